//! What CRD, API server or webhook would refuse: each with object and field.

use super::*;

/// Checks that each spec has a problem with this text.
fn check(kind: &str, rows: &[(&str, &str)]) {
    for (spec, wanted) in rows {
        let all = problems(&object(kind, "shop", "name: x", spec));
        let object = format!("{kind} shop/x: ");
        assert!(
            all.iter().any(|problem| problem.contains(&(object.clone() + wanted))),
            "{spec}\n{wanted}\n{all:#?}"
        );
    }
}

#[test]
fn virtual_services() {
    let rule = "http: [{route: [{destination: {host: cart}}]}]";
    let with = |spec: &str| format!("{spec}, {rule}");
    let rows: Vec<(String, &str)> = vec![
        (with("hosts: ['*']"), "spec.hosts[0]: * in the mesh"),
        (with("hosts: ['svc:stable']"), "spec.hosts[0]: \"svc:stable\""),
        (with("hosts: [a.b.c, '*.c']"), "spec.hosts[1]: *.c, which a.b.c means as well"),
        (with("hosts: ['*.c', a.b.c]"), "spec.hosts[1]: a.b.c, which *.c means as well"),
        (with("hosts: [cart], gateways: ['a/b/c d']"), "spec.gateways[0]"),
        (with("hosts: [cart], exportTo: ['~']"), "spec.exportTo[0]: \"~\""),
        (with("hosts: [cart], exportTo: ['*', shop]"), "spec.exportTo: * beside others"),
        (with("hosts: [cart], exportTo: [., shop]"), "spec.exportTo[1]: shop for the second time"),
        (with("hosts: [cart], exportTo: [A_B]"), "spec.exportTo[0]: \"A_B\""),
        (with("hosts: [cart], subset: v1"), "spec.subset: no such field"),
        (with("gateways: [mesh]"), "spec.gateways: gateways in a delegate"),
        (
            "http: [{delegate: {name: a}}]".into(),
            "spec.http[0].delegate: delegate beside hosts that are none",
        ),
        (
            "tcp: [{route: [{destination: {host: a}}]}], http: [{route: [{destination: {host: a}}]}]".into(),
            "spec.tcp: tcp in a delegate",
        ),
        ("hosts: [cart]".into(), "spec: no routes"),
    ];
    let rows: Vec<(&str, &str)> = rows.iter().map(|(spec, wanted)| (&**spec, *wanted)).collect();
    check("VirtualService", &rows);
    let no_spec =
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: x, namespace: shop}}";
    assert!(problems(no_spec)[0].contains("VirtualService shop/x: no spec"));
}

/// HTTP rules of a VirtualService, alone and beside a destination.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn http_rules() {
    let to = "route: [{destination: {host: cart}}]";
    let beside = [
        ("timeout: 0s", "timeout: \"0s\""),
        ("timeout: 1", "timeout: 1"),
        ("timeout: 1500us", "timeout"),
        ("retries: {attempts: -1}", "retries.attempts: -1"),
        ("retries: {attempts: two, retryOn: 5xx}", "retries.attempts: \"two\""),
        ("retries: {attempts: 0, retryOn: 5xx}", "retries.retryOn: set although attempts is 0"),
        ("retries: {perTryTimeout: 1s}", "retries.perTryTimeout: set although attempts is 0"),
        ("retries: {attempts: 1, perTryTimeout: 0s}", "retries.perTryTimeout: \"0s\""),
        ("retries: {attempts: 1, retryOn: '5xx, reset'}", "retries.retryOn: \" reset\" among the conditions"),
        ("retries: {attempts: 1, retryOn: often}", "retries.retryOn: \"often\" among the conditions"),
        ("retries: {attempts: 1, retryOn: '599'}", "retries.retryOn: \"599\" among the conditions"),
        ("retries: {attempts: 1, backoff: 0s}", "retries.backoff"),
        ("retries: {attempts: 1, tries: 2}", "retries.tries: no such field"),
        ("redirect: {uri: /a}", "route: route beside redirect"),
        ("directResponse: {status: 200}", "route: route beside directResponse"),
        ("delegate: {name: a}", "route: route beside delegate"),
        ("mirror: {host: a}, mirrors: [{destination: {host: a}}]", "mirrors: mirrors beside mirror"),
        ("mirror: {host: a}, mirrorPercentage: {value: 101}", "mirrorPercentage.value: 101"),
        ("mirrors: [{percentage: {value: 1}}]", "mirrors[0]: no destination"),
        ("mirror: {host: '*'}", "mirror.host: \"*\""),
        ("rewrite: {}", "rewrite: nothing to rewrite"),
        ("rewrite: {uri: ''}", "rewrite: nothing to rewrite"),
        (
            "rewrite: {uri: /a, uriRegexRewrite: {match: a, rewrite: b}}",
            "rewrite.uriRegexRewrite: uriRegexRewrite beside uri",
        ),
        (r#"rewrite: {uri: "/a\r\nX: b"}"#, "rewrite.uri: \"/a"),
        (
            "rewrite: {uri: /a b}",
            "rewrite.uri: \"/a b\"; allowed: a path without spaces and control characters",
        ),
        (r#"rewrite: {uriRegexRewrite: {match: a, rewrite: "b\n"}}"#, "rewrite.uriRegexRewrite.rewrite: \"b"),
        ("rewrite: {uriRegexRewrite: {match: a}}", "rewrite.uriRegexRewrite: no match or no rewrite"),
        (
            "rewrite: {uriRegexRewrite: {match: a, rewrite: ''}}",
            "rewrite.uriRegexRewrite: no match or no rewrite",
        ),
        ("rewrite: {uriRegexRewrite: {match: '(', rewrite: b}}", "rewrite.uriRegexRewrite.match"),
        (
            "rewrite: {authority: a}, headers: {request: {set: {host: b}}}",
            "the authority is set by rewrite and by headers",
        ),
        (
            "headers: {request: {set: {host: a}, add: {':authority': b}}}",
            "headers.request.add.:authority: the authority is set twice",
        ),
        ("headers: {request: {set: {':path': a}}}", "headers.request.set.:path: header \":path\""),
        ("headers: {request: {remove: [host]}}", "headers.request.remove[0]: header \"host\""),
        ("headers: {response: {set: {host: a}}}", "headers.response.set.host: header \"host\""),
        ("headers: {response: {add: {'a b': a}}}", "headers.response.add.a b: header \"a b\""),
        ("headers: {request: {set: {a: '%HOSTNAME%'}}}", "headers.request.set.a: %HOSTNAME%"),
        ("headers: {request: {set: {a: 50%}}}", "headers.request.set.a"),
        ("headers: {request: {set: {a: \"b\\u0001\"}}}", "headers.request.set.a"),
        ("fault: {}", "fault: neither delay nor abort"),
        ("fault: {delay: {exponentialDelay: 1s}}", "fault.delay.exponentialDelay"),
        ("fault: {delay: {fixedDelay: 0s}}", "fault.delay.fixedDelay: \"0s\""),
        ("fault: {delay: {fixedDelay: 1s, percentage: {value: 0.00001}}}", "fault.delay.percentage.value"),
        ("fault: {delay: {fixedDelay: 1s, percent: 101}}", "fault.delay.percent: 101"),
        ("fault: {abort: {httpStatus: 199}}", "fault.abort.httpStatus: 199"),
        ("fault: {abort: {httpStatus: 600}}", "fault.abort.httpStatus: 600"),
        ("fault: {abort: {grpcStatus: 14}}", "fault.abort.grpcStatus: 14"),
        ("fault: {abort: {grpcStatus: BAD}}", "fault.abort.grpcStatus: \"BAD\""),
        (
            "fault: {abort: {httpStatus: 500, grpcStatus: OK}}",
            "fault.abort.grpcStatus: grpcStatus beside httpStatus",
        ),
        ("fault: {abort: {http2Error: a}}", "fault.abort.http2Error"),
        ("fault: {abort: {httpStatus: 500, percentage: {value: -1}}}", "fault.abort.percentage.value: -1"),
        ("corsPolicy: {allowOrigins: [{exact: ''}]}", "corsPolicy.allowOrigins[0]: no origin"),
        ("corsPolicy: {allowMethods: [get]}", "corsPolicy.allowMethods[0]: \"get\""),
        ("corsPolicy: {allowHeaders: ['a b']}", "corsPolicy.allowHeaders[0]: \"a b\""),
        ("corsPolicy: {exposeHeaders: ['']}", "corsPolicy.exposeHeaders[0]"),
        ("corsPolicy: {maxAge: 1.5s}", "corsPolicy.maxAge: \"1.5s\""),
        ("corsPolicy: {unmatchedPreflights: BAD}", "corsPolicy.unmatchedPreflights: \"BAD\""),
        ("path: /a", "path: no such field"),
    ];
    let alone = [
        ("name: a", ": nothing to do"),
        ("route: [{weight: 1}]", ".route[0]: no destination"),
        ("route: [{destination: {subset: v1}}]", ".route[0].destination: no host"),
        ("route: [{destination: {host: '*'}}]", ".route[0].destination.host: \"*\""),
        ("route: [{destination: {host: cart, port: {number: 0}}}]", ".route[0].destination.port.number: 0"),
        ("route: [{destination: {host: cart, port: {}}}]", ".route[0].destination.port: no number"),
        ("route: [{destination: {host: cart, subset: V_1}}]", ".route[0].destination.subset: \"V_1\""),
        ("route: [{destination: {host: cart}, weight: -1}]", ".route[0].weight: -1"),
        (
            "route: [{destination: {host: cart}, weight: 0}, {destination: {host: echo}}]",
            ".route: all weights are 0",
        ),
        ("redirect: {}", ".redirect: nowhere to go"),
        ("redirect: {uri: /a, redirectCode: 304}", ".redirect.redirectCode: 304"),
        ("redirect: {uri: /a, scheme: ftp}", ".redirect.scheme: \"ftp\""),
        (
            "redirect: {port: 1, derivePort: FROM_REQUEST_PORT}",
            ".redirect.derivePort: derivePort beside port",
        ),
        ("redirect: {uri: /a, prefixRewrite: /b}", ".redirect: prefixRewrite beside uri"),
        (
            "match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /b}",
            ": redirect.prefixRewrite beside a uri that is no prefix",
        ),
        ("redirect: {uri: /a}, fault: {abort: {httpStatus: 500}}", ".fault: fault beside redirect"),
        (r#"redirect: {uri: "/a\nb"}"#, ".redirect.uri: \"/a"),
        (r#"redirect: {prefixRewrite: "/a\tb"}"#, ".redirect.prefixRewrite: \"/a"),
        ("redirect: {uri: /a}, rewrite: {uri: /b}", ".rewrite: rewrite beside redirect"),
        (
            "redirect: {uri: /a}, directResponse: {status: 200}",
            ".directResponse: directResponse beside redirect",
        ),
        (
            "directResponse: {status: 200}, fault: {abort: {httpStatus: 500}}",
            ".fault: fault beside directResponse",
        ),
        ("directResponse: {status: 200}, rewrite: {uri: /b}", ".rewrite: rewrite beside directResponse"),
        ("directResponse: {status: 100}", ".directResponse.status: 100"),
        ("directResponse: {}", ".directResponse: no status"),
        ("directResponse: {status: 200, body: {string: a, bytes: YQ==}}", ".directResponse.body.bytes"),
        ("directResponse: {status: 200, body: {bytes: '?'}}", ".directResponse.body.bytes: \"?\""),
        ("delegate: {}", ".delegate: no name"),
        ("delegate: {name: a}, redirect: {uri: /a}", ".redirect: redirect beside delegate"),
    ];
    let rows = beside.map(|(rule, field)| {
        (format!("{to}, {rule}"), format!(".{field}").replace(".the auth", ": the auth"))
    });
    let rows = rows.into_iter().chain(alone.map(|(rule, field)| (rule.to_owned(), field.to_owned())));
    for (rule, field) in rows {
        check(
            "VirtualService",
            &[(&format!("hosts: [cart], http: [{{{rule}}}]"), &format!("spec.http[0]{field}"))],
        );
    }
    let long = format!(
        "hosts: [cart], http: [{{directResponse: {{status: 200, body: {{string: {}}}}}}}]",
        "a".repeat((1 << 20) + 1)
    );
    check("VirtualService", &[(&long, "spec.http[0].directResponse.body: 1048577 bytes")]);
}

#[test]
fn matches_of_virtual_services() {
    let long = format!("uri: {{regex: {}}}", "a".repeat(1025));
    for (fields, field) in [
        ("headers: {a: {regex: '*'}}", "headers.a.regex"),
        ("headers: {a: {regex: ''}}", "headers.a.regex"),
        ("headers: {a: {prefix: ''}}", "headers.a.prefix"),
        ("headers: {a: {exact: b, prefix: c}}", "headers.a: several of exact"),
        ("headers: {a: {suffix: b}}", "headers.a.suffix: no such field"),
        ("headers: {'a b': {exact: c}}", "headers.a b: header \"a b\""),
        ("headers: {'@request.auth.claims.group': {exact: a}}", "headers.@request.auth.claims.group"),
        (
            "withoutHeaders: {'@request.auth.claims[a][b]': {exact: a}}",
            "withoutHeaders.@request.auth.claims[a][b]",
        ),
        ("withoutHeaders: {a: {regex: '('}}", "withoutHeaders.a.regex"),
        ("queryParams: {a: {regex: '*'}}", "queryParams.a.regex"),
        ("queryParams: {a: {prefix: ''}}", "queryParams.a.prefix"),
        ("uri: {regex: '(?=a)'}", "uri.regex"),
        (&long, "uri.regex"),
        ("method: {prefix: ''}", "method.prefix"),
        ("scheme: {regex: '['}", "scheme.regex"),
        ("authority: {exact: 1}", "authority.exact: 1"),
        ("port: 0", "port: 0"),
        ("sourceNamespace: A_", "sourceNamespace: \"A_\""),
        ("sourceLabels: {a/: b}", "sourceLabels.a/: label a/"),
        ("ignoreUriCase: often", "ignoreUriCase"),
        ("path: /a", "path: no such field"),
    ] {
        let spec = format!(
            "hosts: [cart], http: [{{match: [{{{fields}}}], route: [{{destination: {{host: cart}}}}]}}]"
        );
        check("VirtualService", &[(&spec, &format!("spec.http[0].match[0].{field}"))]);
    }
    // Ingress gateways may route by claims: what is not for the mesh is left alone.
    translated(&object(
        "VirtualService",
        "shop",
        "name: x",
        "hosts: ['*'], gateways: [gw], http: [{match: [{headers: {'@request.auth.claims.a': {exact: b}}}], route: [{destination: {host: cart}}]}]",
    ));
}

#[test]
fn tcp_and_tls_rules() {
    check(
        "VirtualService",
        &[
            ("hosts: [cart], tcp: [{}]", "spec.tcp[0]: no route"),
            (
                "hosts: [cart], tcp: [{route: [{destination: {host: a}, weight: 0}, {destination: {host: b}}]}]",
                "spec.tcp[0].route: all weights are 0",
            ),
            (
                "hosts: [cart], tcp: [{match: [{destinationSubnets: [a]}], route: [{destination: {host: a}}]}]",
                "spec.tcp[0].match[0].destinationSubnets[0]: \"a\"",
            ),
            (
                "hosts: [cart], tcp: [{match: [{port: 99999}], route: [{destination: {host: a}}]}]",
                "spec.tcp[0].match[0].port: 99999",
            ),
            (
                "hosts: [cart], tcp: [{match: [{sniHosts: [a]}], route: [{destination: {host: a}}]}]",
                "spec.tcp[0].match[0].sniHosts: no such field",
            ),
            ("hosts: [cart], tls: [{route: [{destination: {host: a}}]}]", "spec.tls[0]: no match"),
            (
                "hosts: [cart], tls: [{match: [{port: 1}], route: [{destination: {host: a}}]}]",
                "spec.tls[0].match[0]: no sniHosts",
            ),
            (
                "hosts: [a.b], tls: [{match: [{sniHosts: [c.d]}], route: [{destination: {host: a}}]}]",
                "spec.tls[0].match[0].sniHosts[0]: c.d, which no host",
            ),
            ("hosts: [a.b], tls: [{match: [{sniHosts: [a.b]}]}]", "spec.tls[0]: no route"),
        ],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn destination_rules() {
    let policies = [
        ("", ": an empty policy"),
        (
            "tunnel: {targetHost: a, targetPort: 1}, proxyProtocol: {version: V1}",
            ".proxyProtocol: proxyProtocol beside tunnel",
        ),
        ("loadBalancer: {simple: BEST}", ".loadBalancer.simple: \"BEST\""),
        (
            "loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}",
            ".loadBalancer.consistentHash: consistentHash beside simple",
        ),
        (
            "loadBalancer: {consistentHash: {httpCookie: {ttl: 1s}}}",
            ".loadBalancer.consistentHash.httpCookie: no name",
        ),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}}}",
            ".loadBalancer.consistentHash.maglev: no tableSize",
        ),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 4}}}",
            ".loadBalancer.consistentHash.maglev.tableSize: 4",
        ),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 1}}}",
            ".loadBalancer.consistentHash.maglev.tableSize: 1",
        ),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 5000011}}}",
            ".loadBalancer.consistentHash.maglev.tableSize: 5000011",
        ),
        ("loadBalancer: {other: 1}", ".loadBalancer.other: no such field"),
        ("connectionPool: {}", ".connectionPool: an empty block"),
        ("connectionPool: {tcp: {maxConnections: -1}}", ".connectionPool.tcp.maxConnections: -1"),
        ("connectionPool: {tcp: {connectTimeout: 0s}}", ".connectionPool.tcp.connectTimeout: \"0s\""),
        ("connectionPool: {tcp: {maxConnectionDuration: 1us}}", ".connectionPool.tcp.maxConnectionDuration"),
        ("connectionPool: {tcp: {idleTimeout: x}}", ".connectionPool.tcp.idleTimeout: \"x\""),
        (
            "connectionPool: {tcp: {tcpKeepalive: {time: 0s}}}",
            ".connectionPool.tcp.tcpKeepalive.time: \"0s\"",
        ),
        (
            "connectionPool: {tcp: {tcpKeepalive: {interval: 0s}}}",
            ".connectionPool.tcp.tcpKeepalive.interval: \"0s\"",
        ),
        (
            "connectionPool: {http: {http1MaxPendingRequests: -1}}",
            ".connectionPool.http.http1MaxPendingRequests: -1",
        ),
        ("connectionPool: {http: {http2MaxRequests: a}}", ".connectionPool.http.http2MaxRequests"),
        (
            "connectionPool: {http: {maxRequestsPerConnection: -1}}",
            ".connectionPool.http.maxRequestsPerConnection: -1",
        ),
        ("connectionPool: {http: {maxRetries: -1}}", ".connectionPool.http.maxRetries: -1"),
        (
            "connectionPool: {http: {maxConcurrentStreams: -1}}",
            ".connectionPool.http.maxConcurrentStreams: -1",
        ),
        ("connectionPool: {http: {idleTimeout: 0s}}", ".connectionPool.http.idleTimeout: \"0s\""),
        (
            "connectionPool: {http: {h2UpgradePolicy: NEVER}}",
            ".connectionPool.http.h2UpgradePolicy: \"NEVER\"",
        ),
        (
            "connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}",
            ".connectionPool.http: useClientProtocol beside",
        ),
        (
            "connectionPool: {http: {http2KeepAlive: {interval: 0s, timeout: 1s}}}",
            ".connectionPool.http.http2KeepAlive.interval",
        ),
        ("connectionPool: {http: {other: 1}}", ".connectionPool.http.other: no such field"),
        ("outlierDetection: {interval: 0s}", ".outlierDetection.interval: \"0s\""),
        ("outlierDetection: {baseEjectionTime: 0s}", ".outlierDetection.baseEjectionTime: \"0s\""),
        ("outlierDetection: {maxEjectionPercent: 101}", ".outlierDetection.maxEjectionPercent: 101"),
        ("outlierDetection: {minHealthPercent: -1}", ".outlierDetection.minHealthPercent: -1"),
        ("outlierDetection: {consecutive5xxErrors: -1}", ".outlierDetection.consecutive5xxErrors: -1"),
        ("outlierDetection: {consecutiveGatewayErrors: a}", ".outlierDetection.consecutiveGatewayErrors"),
        ("outlierDetection: {consecutiveErrors: -1}", ".outlierDetection.consecutiveErrors: -1"),
        (
            "outlierDetection: {consecutiveLocalOriginFailures: 1}",
            ".outlierDetection.consecutiveLocalOriginFailures: set although",
        ),
        ("retryBudget: {percent: 101}", ".retryBudget.percent: 101"),
        ("retryBudget: {minRetryConcurrency: -1}", ".retryBudget.minRetryConcurrency: -1"),
        ("tls: {mode: BAD}", ".tls.mode: \"BAD\""),
        (
            "tls: {mode: ISTIO_MUTUAL, caCertificates: a}",
            ".tls.caCertificates: set although mode is ISTIO_MUTUAL",
        ),
        ("tls: {mode: MUTUAL, clientCertificate: a}", ".tls: MUTUAL without a certificate"),
        ("portLevelSettings: [{loadBalancer: {simple: RANDOM}}]", ".portLevelSettings[0]: no port"),
        ("portLevelSettings: [{port: {number: 80}}]", ".portLevelSettings[0]: an empty policy"),
        ("other: 1", ".other: no such field"),
    ];
    for (policy, field) in policies {
        let spec = format!("host: cart, trafficPolicy: {{{policy}}}");
        check("DestinationRule", &[(&spec, &format!("spec.trafficPolicy{field}"))]);
    }
    check(
        "DestinationRule",
        &[
            ("subsets: []", "spec: no host"),
            ("host: 'a b'", "spec.host: \"a b\""),
            ("host: cart, other: 1", "spec.other: no such field"),
            ("host: cart, exportTo: ['~']", "spec.exportTo[0]: \"~\""),
            ("host: cart, subsets: [{labels: {a: b}}]", "spec.subsets[0]: no name"),
            ("host: cart, subsets: [{name: v1, labels: {a: 'b c'}}]", "spec.subsets[0].labels.a: label a"),
            (
                "host: cart, exportTo: ['*'], workloadSelector: {matchLabels: {a: b}}",
                "spec.exportTo: other namespaces, beside a workloadSelector",
            ),
            ("host: cart, subsets: [{name: V_1}]", "spec.subsets[0].name: \"V_1\""),
            ("host: cart, subsets: [{name: v1}, {name: v1}]", "spec.subsets[1]: v1 for the second time"),
            (
                "host: cart, subsets: [{name: v1, trafficPolicy: {}}]",
                "spec.subsets[0].trafficPolicy: an empty policy",
            ),
        ],
    );
    for value in ["0", "101", "many"] {
        let meta = format!("name: x, annotations: {{policy.culvert.dev/failure-percentage: '{value}'}}");
        let all = problems(&object("DestinationRule", "shop", &meta, "host: cart"));
        assert!(all[0].contains("policy.culvert.dev/failure-percentage"), "{all:?}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn gateway_routes() {
    let many = |count: usize, item: &str| vec![item; count].join(", ");
    let rules = [
        (format!("backendRefs: [{}]", many(17, "{name: cart, port: 80}")), ".backendRefs: 17 items"),
        (format!("matches: [{}]", many(65, "{}")), ".matches: 65 items"),
        (format!("filters: [{}]", many(17, "{type: RequestMirror, requestMirror: {backendRef: {name: cart, port: 80}}}")), ".filters: 17 items"),
        ("name: A_B".into(), ".name: \"A_B\""),
        ("matches: [{path: {value: a}}]".into(), ".matches[0].path.value: \"a\""),
        ("matches: [{path: {value: /a//b}}]".into(), ".matches[0].path.value"),
        ("matches: [{path: {value: /a/../b}}]".into(), ".matches[0].path.value"),
        ("matches: [{path: {type: Exact, value: /a/.}}]".into(), ".matches[0].path.value"),
        ("matches: [{path: {value: /a%2Fb}}]".into(), ".matches[0].path.value"),
        ("matches: [{path: {value: '/a#b'}}]".into(), ".matches[0].path.value"),
        ("matches: [{path: {type: Suffix, value: /a}}]".into(), ".matches[0].path.type: \"Suffix\""),
        ("matches: [{path: {type: RegularExpression, value: '('}}]".into(), ".matches[0].path.value"),
        ("matches: [{path: {type: RegularExpression}}]".into(), ".matches[0].path: no value"),
        ("matches: [{method: get}]".into(), ".matches[0].method: \"get\""),
        ("matches: [{headers: [{name: a}]}]".into(), ".matches[0].headers[0]: no name or no value"),
        ("matches: [{headers: [{name: ':path', value: a}]}]".into(), ".matches[0].headers[0]: name \":path\""),
        ("matches: [{headers: [{name: a, value: b}, {name: a, value: c}]}]".into(), ".matches[0].headers[1]: a for the second time"),
        ("matches: [{headers: [{name: a, type: Prefix, value: b}]}]".into(), ".matches[0].headers[0].type: \"Prefix\""),
        (format!("matches: [{{queryParams: [{}]}}]", many(17, "{name: a, value: b}")), ".matches[0].queryParams: 17 items"),
        ("filters: [{type: Other}]".into(), ".filters[0].type: \"Other\""),
        ("filters: [{type: URLRewrite}]".into(), ".filters[0]: no urlRewrite"),
        ("filters: [{}]".into(), ".filters[0]: no type"),
        ("filters: [{type: URLRewrite, urlRewrite: {hostname: a}}, {type: URLRewrite, urlRewrite: {hostname: a}}]".into(), ".filters[1].type: URLRewrite for the second time"),
        ("filters: [{type: URLRewrite, urlRewrite: {hostname: a}}, {type: RequestRedirect, requestRedirect: {hostname: a}}]".into(), ": URLRewrite beside RequestRedirect"),
        ("filters: [{type: URLRewrite, urlRewrite: {hostname: '*.a'}}]".into(), ".filters[0].urlRewrite.hostname: \"*.a\""),
        ("filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /a b}}}]".into(), ".filters[0].urlRewrite.path.replaceFullPath: \"/a b\""),
        ("filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath}}}]".into(), ".filters[0].urlRewrite.path: no replaceFullPath"),
        ("matches: [{path: {value: /a}}, {path: {value: /b}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]".into(), ".filters: ReplacePrefixMatch without"),
        ("matches: [{path: {type: Exact, value: /a}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]".into(), ".filters: ReplacePrefixMatch without"),
        ("filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]".into(), ".filters[0].requestRedirect.statusCode: 304"),
        ("filters: [{type: RequestRedirect, requestRedirect: {scheme: ftp}}]".into(), ".filters[0].requestRedirect.scheme: \"ftp\""),
        ("filters: [{type: RequestRedirect, requestRedirect: {port: 80}}], backendRefs: [{name: cart, port: 80}]".into(), ": backendRefs beside RequestRedirect"),
        ("filters: [{type: RequestMirror, requestMirror: {percent: 1}}]".into(), ".filters[0].requestMirror: no backendRef"),
        ("filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, percent: 101}}]".into(), ".filters[0].requestMirror.percent: 101"),
        ("filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, percent: 1, fraction: {numerator: 1}}}]".into(), ".filters[0].requestMirror.fraction: fraction beside percent"),
        ("filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, fraction: {numerator: 2, denominator: 1}}}]".into(), ".filters[0].requestMirror.fraction.numerator: 2"),
        ("filters: [{type: CORS, cors: {allowOrigins: [a]}}]".into(), ".filters[0].cors.allowOrigins[0]: \"a\""),
        ("filters: [{type: CORS, cors: {maxAge: 0}}]".into(), ".filters[0].cors.maxAge: 0"),
        ("filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}, {name: a, value: c}]}}]".into(), ".filters[0].requestHeaderModifier.set[1]: a for the second time"),
        ("filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: ['a b']}}]".into(), ".filters[0].requestHeaderModifier.remove[0]"),
        ("filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a}]}}]".into(), ".filters[0].responseHeaderModifier.add[0]: no name or no value"),
        ("backendRefs: [{name: cart}]".into(), ".backendRefs[0]: no port"),
        ("backendRefs: [{name: cart, port: 80}], retry: {attempts: 0}".into(), ".retry.attempts: 0"),
        ("filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: ''}]}}]".into(), ".filters[0].requestHeaderModifier.set[0].value: \"\""),
        ("backendRefs: [{port: 80}]".into(), ".backendRefs[0]: no name"),
        ("backendRefs: [{name: cart, port: 80, weight: 1000001}]".into(), ".backendRefs[0].weight: 1000001"),
        ("timeouts: {request: 1.5s}".into(), ".timeouts.request: \"1.5s\""),
        ("timeouts: {request: 123456s}".into(), ".timeouts.request"),
        ("timeouts: {request: 1h1m1s1ms1s}".into(), ".timeouts.request"),
        ("timeouts: {request: 1us}".into(), ".timeouts.request"),
        ("timeouts: {request: '0'}".into(), ".timeouts.request: \"0\""),
        ("timeouts: {request: 1s, backendRequest: 2s}".into(), ".timeouts: backendRequest is longer"),
        ("retry: {codes: [200]}".into(), ".retry.codes[0]: 200"),
        ("retry: {attempts: -1}".into(), ".retry.attempts: -1"),
        ("retry: {backoff: soon}".into(), ".retry.backoff: \"soon\""),
        ("other: 1".into(), ".other: no such field"),
    ];
    let parents = "parentRefs: [{group: '', kind: Service, name: cart}]";
    for (rule, field) in rules {
        check("HTTPRoute", &[(&format!("{parents}, rules: [{{{rule}}}]"), &format!("spec.rules[0]{field}"))]);
    }
    let seventeen = many(17, "{}");
    let many_parents = format!("parentRefs: [{}]", many(33, "{group: '', kind: Service, name: cart}"));
    let many_rules = format!("{parents}, rules: [{seventeen}]");
    let many_matches =
        format!("{parents}, rules: [{}]", many(3, &format!("{{matches: [{}]}}", many(50, "{}"))));
    check(
        "HTTPRoute",
        &[
            (&many_parents, "spec.parentRefs: 33 items"),
            (&many_rules, "spec.rules: 17 items"),
            (&many_matches, "spec: 150 matches in all"),
            ("rules: [{name: a}, {name: a}]", "spec.rules[1].name: a for the second time"),
            (
                "parentRefs: [{group: '', kind: Service, name: cart}, {group: '', kind: Service, name: cart}]",
                "spec.parentRefs[1]: the same parent for the second time",
            ),
            ("parentRefs: [{group: '', kind: Service}]", "spec.parentRefs[0]: no name"),
            ("parentRefs: [{group: '', kind: Service, name: cart, port: 0}]", "spec.parentRefs[0].port: 0"),
            ("other: 1", "spec.other: no such field"),
        ],
    );
    check(
        "GRPCRoute",
        &[
            (
                "rules: [{matches: [{method: {}}]}]",
                "spec.rules[0].matches[0].method: neither service nor method",
            ),
            (
                "rules: [{matches: [{method: {service: 'a/b'}}]}]",
                "spec.rules[0].matches[0].method: characters",
            ),
            (
                "rules: [{matches: [{method: {type: RegularExpression, service: '('}}]}]",
                "spec.rules[0].matches[0].method",
            ),
            (
                "rules: [{filters: [{type: URLRewrite, urlRewrite: {}}]}]",
                "spec.rules[0].filters[0].type: \"URLRewrite\"",
            ),
            ("rules: [{timeouts: {request: 1s}}]", "spec.rules[0].timeouts: no such field"),
        ],
    );
}

/// Each kind with everything that it may have, as far as one may stand beside the other.
const WHOLE: &[(&str, &str)] = &[
    (
        "VirtualService",
        "hosts: [cart.shop.svc.cluster.local], http: [\
         {name: a, match: [{name: m, uri: {prefix: /a}, scheme: {exact: http}, method: {exact: GET}, authority: {exact: a}, \
         headers: {x: {exact: a}}, withoutHeaders: {y: {exact: a}}, queryParams: {q: {exact: a}}, port: 80}], \
         rewrite: {uriRegexRewrite: {match: a, rewrite: b}}, retries: {attempts: 1}, \
         fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}, abort: {httpStatus: 500, percentage: {value: 1}}}, \
         mirror: {host: cart, port: {number: 80}}, mirrorPercentage: {value: 1}, corsPolicy: {allowOrigins: [{exact: a}]}, \
         headers: {request: {remove: [a]}, response: {remove: [a]}}, \
         route: [{destination: {host: cart, port: {number: 80}}, headers: {request: {remove: [b]}}}]}, \
         {match: [{uri: {exact: /b}}], redirect: {uri: /a}}, \
         {match: [{uri: {exact: /c}}], directResponse: {status: 200, body: {string: a}}}, \
         {match: [{uri: {exact: /d}}], delegate: {name: nobody}}, \
         {mirrors: [{destination: {host: cart}, percentage: {value: 1}}], route: [{destination: {host: cart}}]}], \
         tls: [{match: [{sniHosts: [cart.shop.svc.cluster.local]}], route: [{destination: {host: cart}}]}], \
         tcp: [{match: [{port: 80}], route: [{destination: {host: cart}}]}]",
    ),
    (
        "DestinationRule",
        "host: cart, workloadSelector: {matchLabels: {a: b}}, exportTo: ['.'], trafficPolicy: {loadBalancer: {simple: RANDOM}, \
         connectionPool: {tcp: {tcpKeepalive: {time: 1s}}, http: {http2KeepAlive: {interval: 1s, timeout: 1s}}}, \
         outlierDetection: {interval: 1s}, tls: {mode: SIMPLE}, retryBudget: {percent: 1}, \
         portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}, \
         subsets: [{name: v1, trafficPolicy: {tls: {mode: DISABLE}}}]",
    ),
    (
        "HTTPRoute",
        "parentRefs: [{group: '', kind: Service, name: cart}], rules: [{name: r, \
         matches: [{path: {value: /a}, headers: [{name: a, value: b}], queryParams: [{name: a, value: b}]}], \
         filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}, \
         {type: URLRewrite, urlRewrite: {hostname: a, path: {type: ReplaceFullPath, replaceFullPath: /b}}}, \
         {type: RequestMirror, requestMirror: {backendRef: {name: cart, port: 80}, fraction: {numerator: 1, denominator: 2}}}, \
         {type: CORS, cors: {allowOrigins: ['*']}}], timeouts: {request: 2s}, retry: {codes: [500]}, \
         backendRefs: [{name: cart, port: 80, \
         filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [a]}}]}]}, \
         {filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}]}, \
         {filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /b}}}]}]",
    ),
    (
        "GRPCRoute",
        "parentRefs: [{group: '', kind: Service, name: cart}], rules: [{matches: [{method: {service: a}, \
         headers: [{name: a, value: b}]}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [a]}}], \
         backendRefs: [{name: cart, port: 80}]}]",
    ),
    (
        "AuthorizationPolicy",
        "targetRefs: [{group: '', kind: Service, name: cart}], rules: [{from: [{source: {namespaces: [a]}}], \
         to: [{operation: {methods: [GET]}}], when: [{key: 'request.headers[a]', values: [b]}]}]",
    ),
];

/// Mappings whose keys anybody may choose.
const CHOSEN: [&str; 4] = ["headers: {x", "withoutHeaders: {", "queryParams: {q", "matchLabels: {"];

/// A mistyped key says something that would not be done.
#[test]
fn a_key_that_does_not_exist_is_refused_wherever_it_stands() {
    for (kind, spec) in WHOLE {
        assert!(
            result(&object(kind, "shop", "name: x", spec)).is_ok(),
            "{kind}: {:?}",
            result(&object(kind, "shop", "name: x", spec)).err()
        );
        for (at, _) in spec.match_indices('{') {
            let before = spec.get(..at).unwrap();
            let is_chosen = |key: &&str| {
                let (name, first) = key.split_once('{').unwrap();
                before.ends_with(name) && spec.get(at + 1..).unwrap().starts_with(first)
            };
            if CHOSEN.iter().any(is_chosen) {
                continue;
            }
            let text = format!("{before}{{bogus: 1, {}", spec.get(at + 1..).unwrap());
            let all = result(&object(kind, "shop", "name: x", &text)).err().unwrap_or_default();
            assert!(
                all.iter().any(|one| one.contains("bogus: no such field") || one.contains("bogus beside")),
                "{kind}: {all:?}\n{text}"
            );
        }
        for text in [
            object(kind, "shop", "name: x", spec).replacen("spec: {", "bogus: 1, spec: {", 1),
            object(kind, "shop", "name: x", &format!("bogus: 1, {spec}")),
        ] {
            assert!(problems(&text).iter().any(|one| one.contains("bogus: no such field")), "{text}");
        }
    }
}
