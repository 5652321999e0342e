//! VirtualServices, field by field.

use super::*;
use crate::model::l7::{Retries, RetryOn};

type Part = fn(&Route) -> String;

/// The first route of a VirtualService with this rule beside a destination.
fn rule(fields: &str) -> Route {
    let text = virtual_service(&format!("{{route: [{{destination: {{host: cart}}}}], {fields}}}"));
    http(&translated(&text), "cart", 80).remove(0)
}

/// The first route of a VirtualService with this rule.
fn bare(fields: &str) -> Route {
    http(&translated(&virtual_service(&format!("{{{fields}}}"))), "cart", 80).remove(0)
}

fn check(rows: &[(&str, Part, &str)], read: fn(&str) -> Route) {
    let plain = rule("");
    for (fields, part, wanted) in rows {
        assert_eq!(part(&read(fields)), *wanted, "{fields}");
        assert_ne!(part(&plain), *wanted, "{fields} changes nothing");
    }
}

#[test]
fn matches() {
    let path: Part = |r| format!("{:?}", r.matches[0].path);
    let headers: Part = |r| format!("{:?}", r.matches[0].headers);
    let without: Part = |r| format!("{:?}", r.matches[0].without_headers);
    let query: Part = |r| format!("{:?}", r.matches[0].query);
    let rows: [(&str, Part, &str); 21] = [
        ("{uri: {exact: /a}}", path, r#"Some(Text { text: Exact("/a"), ignore_case: false })"#),
        ("{uri: {prefix: /a}}", path, r#"Some(Text { text: Prefix("/a"), ignore_case: false })"#),
        ("{uri: {prefix: ''}}", path, r#"Some(Text { text: Prefix(""), ignore_case: false })"#),
        ("{uri: {regex: '/a.*'}}", path, "Some(Text { text: Regex(//a.*/), ignore_case: false })"),
        (
            "{uri: {exact: /a}, ignoreUriCase: true}",
            path,
            r#"Some(Text { text: Exact("/a"), ignore_case: true })"#,
        ),
        ("{scheme: {exact: https}}", |r| format!("{:?}", r.matches[0].scheme), r#"Some(Exact("https"))"#),
        ("{method: {exact: GET}}", |r| format!("{:?}", r.matches[0].method), r#"Some(Exact("GET"))"#),
        ("{method: {prefix: P}}", |r| format!("{:?}", r.matches[0].method), r#"Some(Prefix("P"))"#),
        ("{authority: {regex: 'a|b'}}", |r| format!("{:?}", r.matches[0].authority), "Some(Regex(/a|b/))"),
        ("{port: 80}", |r| format!("{:?}", r.matches[0].port), "Some(80)"),
        ("{headers: {X-A: {exact: v}}}", headers, r#"[HeaderMatch { name: "x-a", value: Exact("v") }]"#),
        ("{headers: {x-a: {exact: ''}}}", headers, r#"[HeaderMatch { name: "x-a", value: Exact("") }]"#),
        ("{headers: {x-a: {prefix: v}}}", headers, r#"[HeaderMatch { name: "x-a", value: Prefix("v") }]"#),
        (
            "{headers: {cookie: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}}",
            headers,
            r#"[HeaderMatch { name: "cookie", value: Regex(/^(.*?;)?(user=jason)(;.*)?$/) }]"#,
        ),
        ("{headers: {x-a: {}}}", headers, r#"[HeaderMatch { name: "x-a", value: Present }]"#),
        (
            "{headers: {':path': {prefix: /a}}}",
            headers,
            r#"[HeaderMatch { name: ":path", value: Prefix("/a") }]"#,
        ),
        (
            "{withoutHeaders: {X-A: {exact: v}}}",
            without,
            r#"[HeaderMatch { name: "x-a", value: Exact("v") }]"#,
        ),
        ("{withoutHeaders: {x-a: {}}}", without, r#"[HeaderMatch { name: "x-a", value: Present }]"#),
        (
            "{withoutHeaders: {x-a: {regex: '*'}}}",
            without,
            r#"[HeaderMatch { name: "x-a", value: Present }]"#,
        ),
        ("{queryParams: {q: {exact: v}}}", query, r#"[QueryMatch { name: "q", value: Exact("v") }]"#),
        ("{queryParams: {Q: {}}}", query, r#"[QueryMatch { name: "Q", value: Present }]"#),
    ];
    for (fields, part, wanted) in rows {
        assert_eq!(part(&rule(&format!("match: [{fields}]"))), wanted, "{fields}");
        assert_ne!(part(&rule("match: [{name: x}]")), wanted, "{fields}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn actions() {
    let retries: Part = |r| {
        let on = &r.retries.on;
        let flags = [
            on.five_xx,
            on.gateway_error,
            on.reset,
            on.reset_before_request,
            on.connect_failure,
            on.refused_stream,
            on.retriable_4xx,
            on.envoy_ratelimited,
        ];
        let flags: String = flags.iter().map(|on| if *on { '1' } else { '0' }).collect();
        format!("{flags} {:?} {:?}", on.statuses, on.grpc_statuses)
    };
    let fault: Part = |r| format!("{:?} {:?}", r.fault.delay, r.fault.abort);
    let rewrite: Part = |r| format!("{:?}", r.rewrite);
    let request: Part = |r| format!("{:?}", r.request_headers);
    let response: Part = |r| format!("{:?}", r.response_headers);
    let mirrors: Part = |r| {
        let all = r.mirrors.iter().map(|m| format!("{} {}", m.share.0, shown(&m.backend)));
        all.collect::<Vec<_>>().join(", ")
    };
    check(
        &[
            ("name: first", |r| r.name.to_string(), "first"),
            ("name: first, match: [{name: a}]", |r| r.name.to_string(), "first.a"),
            ("timeout: 1.5s", |r| format!("{:?}", r.timeout), "Some(1.5s)"),
            ("retries: {attempts: 3}", |r| r.retries.attempts.to_string(), "3"),
            ("retries: {attempts: 0}", |r| r.retries.attempts.to_string(), "0"),
            (
                "retries: {attempts: 1, perTryTimeout: 2s}",
                |r| format!("{:?}", r.retries.per_try_timeout),
                "Some(2s)",
            ),
            (
                "retries: {attempts: 1, backoff: 100ms}",
                |r| format!("{:?}", r.retries.back_off),
                "Jittered { base: 100ms }",
            ),
            (
                "retries: {attempts: 1, retryIgnorePreviousHosts: false}",
                |r| format!("{:?}", r.retries.ignore_previous_hosts),
                "Some(false)",
            ),
            (
                "retries: {attempts: 1, retryRemoteLocalities: true}",
                |r| r.retries.remote_localities.to_string(),
                "true",
            ),
            ("retries: {attempts: 1, retryOn: '5xx,gateway-error'}", retries, "11000000 [] []"),
            ("retries: {attempts: 1, retryOn: 'reset,reset-before-request'}", retries, "00110000 [] []"),
            ("retries: {attempts: 1, retryOn: 'connect-failure,refused-stream'}", retries, "00001100 [] []"),
            ("retries: {attempts: 1, retryOn: 'retriable-4xx,envoy-ratelimited'}", retries, "00000011 [] []"),
            (
                "retries: {attempts: 1, retryOn: 'retriable-status-codes,503,418'}",
                retries,
                "00000000 [503, 418] []",
            ),
            (
                "retries: {attempts: 1, retryOn: 'cancelled,deadline-exceeded,internal,resource-exhausted,unavailable'}",
                retries,
                "00000000 [] [1, 4, 13, 8, 14]",
            ),
            (
                "retries: {attempts: 1, retryOn: 'retriable-headers,http3-post-connect-failure'}",
                retries,
                "00000000 [] []",
            ),
            (
                "fault: {delay: {fixedDelay: 5s, percentage: {value: 0.1}}}",
                fault,
                "Some(Delay { fixed: 5s, share: Fraction(1000) }) None",
            ),
            (
                "fault: {delay: {fixedDelay: 5s, percent: 20}}",
                fault,
                "Some(Delay { fixed: 5s, share: Fraction(200000) }) None",
            ),
            ("fault: {delay: {fixedDelay: 5s}}", fault, "Some(Delay { fixed: 5s, share: Fraction(0) }) None"),
            (
                "fault: {abort: {httpStatus: 418, percentage: {value: 100}}}",
                fault,
                "None Some(Abort { status: 418, grpc_status: None, share: Fraction(1000000) })",
            ),
            (
                "fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 50}}}",
                fault,
                "None Some(Abort { status: 200, grpc_status: Some(14), share: Fraction(500000) })",
            ),
            ("mirror: {host: echo, port: {number: 80}}", mirrors, "1000000 echo:80"),
            ("mirror: {host: echo}, mirrorPercentage: {value: 12.5}", mirrors, "125000 echo:80"),
            ("mirror: {host: echo}, mirrorPercent: 7", mirrors, "70000 echo:80"),
            (
                "mirrors: [{destination: {host: echo}}, {destination: {host: cart, subset: v1}, percentage: {value: 1}}]",
                mirrors,
                "1000000 echo:80, 10000 cart:80/v1",
            ),
            ("rewrite: {uri: /b}", rewrite, r#"Rewrite { path: Some(PrefixText("/b")), authority: None }"#),
            ("rewrite: {authority: b.c}", rewrite, r#"Rewrite { path: None, authority: Some("b.c") }"#),
            (
                r"rewrite: {uriRegexRewrite: {match: '/(a+)', rewrite: '/x\1'}}",
                rewrite,
                r#"Rewrite { path: Some(Regex { pattern: //(a+)/, substitution: "/x\\1" }), authority: None }"#,
            ),
            (
                "headers: {request: {set: {X-B: b, x-a: 50%%}}}",
                request,
                r#"HeaderEdits { set: [("x-b", "b"), ("x-a", "50%%")], add: [], remove: [], authority: None }"#,
            ),
            (
                "headers: {request: {set: {x-a: '%REQ(b)%'}}}",
                request,
                r#"HeaderEdits { set: [("x-a", "%REQ(b)%")], add: [], remove: [], authority: None }"#,
            ),
            (
                "headers: {request: {add: {x-a: a}, remove: [X-C]}}",
                request,
                r#"HeaderEdits { set: [], add: [("x-a", "a")], remove: ["x-c"], authority: None }"#,
            ),
            (
                "headers: {request: {set: {Host: b.c}}}",
                request,
                r#"HeaderEdits { set: [], add: [], remove: [], authority: Some("b.c") }"#,
            ),
            (
                "headers: {request: {add: {':authority': b.c}}}",
                request,
                r#"HeaderEdits { set: [], add: [], remove: [], authority: Some("b.c") }"#,
            ),
            (
                "headers: {response: {set: {x-a: ''}, add: {x-b: b}, remove: [x-c]}}",
                response,
                r#"HeaderEdits { set: [("x-a", "")], add: [("x-b", "b")], remove: ["x-c"], authority: None }"#,
            ),
        ],
        rule,
    );
}

#[test]
fn cross_origin_requests() {
    let cors = |fields: &str| {
        rule(&format!("corsPolicy: {{allowOrigins: [{{exact: 'http://a'}}], {fields}}}")).cors.unwrap()
    };
    let plain = format!("{:?}", cors(""));
    assert_eq!(
        plain,
        r#"Cors { origins: [Exact("http://a")], methods: None, headers: None, expose: None, max_age: None, credentials: false, unmatched: Forward }"#
    );
    for (fields, wanted) in [
        ("allowMethods: [GET, PUT]", r#"methods: Some("GET,PUT")"#),
        (r#"allowMethods: ["*"]"#, r#"methods: Some("*")"#),
        ("allowHeaders: [X-A, '*']", r#"headers: Some("X-A,*")"#),
        ("exposeHeaders: [x-b]", r#"expose: Some("x-b")"#),
        ("maxAge: 24h", "max_age: Some(86400s)"),
        ("allowCredentials: true", "credentials: true"),
        ("unmatchedPreflights: IGNORE", "unmatched: Answer"),
    ] {
        let read = format!("{:?}", cors(fields));
        assert!(read.contains(wanted), "{fields}: {read}");
        assert!(!plain.contains(wanted), "{fields}");
    }
    assert!(format!("{:?}", cors("unmatchedPreflights: FORWARD")).contains("Forward"));
    let old = rule("corsPolicy: {allowOrigin: ['http://b']}").cors.unwrap();
    assert_eq!(format!("{:?}", old.origins), r#"[Exact("http://b")]"#);
}

#[test]
fn answers_and_redirects() {
    check(
        &[
            ("directResponse: {status: 503}", action, "503 \"\""),
            ("directResponse: {status: 200, body: {string: hello}}", action, "200 \"hello\""),
            ("directResponse: {status: 200, body: {bytes: aGk=}}", action, "200 \"hi\""),
        ],
        bare,
    );
    for (fields, wanted) in [
        (
            "uri: /b",
            r#"Redirect { status: 301, scheme: None, authority: None, port: OfScheme, path: Full("/b") }"#,
        ),
        (
            "authority: b.c, redirectCode: 308",
            r#"Redirect { status: 308, scheme: None, authority: Some("b.c"), port: OfScheme, path: Same }"#,
        ),
        (
            "scheme: https, port: 8443",
            r#"Redirect { status: 301, scheme: Some("https"), authority: None, port: Number(8443), path: Same }"#,
        ),
        (
            "derivePort: FROM_REQUEST_PORT",
            "Redirect { status: 301, scheme: None, authority: None, port: OfRequest, path: Same }",
        ),
        (
            "derivePort: FROM_PROTOCOL_DEFAULT, redirectCode: 302",
            "Redirect { status: 302, scheme: None, authority: None, port: OfScheme, path: Same }",
        ),
        (
            "prefixRewrite: /b",
            r#"Redirect { status: 301, scheme: None, authority: None, port: OfScheme, path: PrefixText("/b") }"#,
        ),
    ] {
        let route = bare(&format!("redirect: {{{fields}}}"));
        assert_eq!(format!("{:?}", route.action), format!("Redirect({wanted})"), "{fields}");
    }
}

#[test]
fn destinations() {
    for (destinations, wanted) in [
        ("{destination: {host: cart}}", "1 cart:80"),
        // The weight of a single destination says nothing.
        ("{destination: {host: cart}, weight: 0}", "1 cart:80"),
        ("{destination: {host: cart, subset: v1}, weight: 3}", "1 cart:80/v1"),
        (
            "{destination: {host: cart}, weight: 9}, {destination: {host: echo}, weight: 1}",
            "9 cart:80, 1 echo:80",
        ),
        ("{destination: {host: cart}, weight: 9}, {destination: {host: echo}}", "9 cart:80, 0 echo:80"),
        // The only port of a service, or the one that was asked for.
        ("{destination: {host: cart, port: {number: 8080}}}", "1 cart:8080"),
        ("{destination: {host: echo, port: {number: 7070}}}", "1 echo:7070"),
        ("{destination: {host: bank.money.svc.cluster.local}}", "1 bank:80"),
        ("{destination: {host: CART.shop.svc.cluster.local}}", "1 cart:80"),
        ("{destination: {host: bank}}", "1 503: no service bank.shop.svc.cluster.local is known"),
    ] {
        assert_eq!(action(&bare(&format!("route: [{destinations}]"))), wanted, "{destinations}");
    }
    let edits = bare(
        "route: [{destination: {host: cart}, headers: {request: {set: {x-a: a}}, response: {remove: [x-b]}}}]",
    );
    let RouteAction::Forward(all) = edits.action else { panic!() };
    assert_eq!(format!("{:?}", all[0].request_headers.set), r#"[("x-a", "a")]"#);
    assert_eq!(format!("{:?}", all[0].response_headers.remove), r#"["x-b"]"#);
    let on_grpc = object(
        "VirtualService",
        "shop",
        "name: vs",
        "hosts: [echo], http: [{route: [{destination: {host: echo}}]}]",
    );
    assert_eq!(action(&http(&translated(&on_grpc), "echo", 7070)[0]), "1 echo:7070");
}

#[test]
fn what_nobody_says() {
    let route = rule("");
    assert_eq!((&*route.name, route.timeout, route.retries.attempts), ("", None, 2));
    assert_eq!(route.origin.to_string(), "VirtualService shop/vs rule 0");
    assert_eq!(route.retries, Retries::default());
    let said = rule("retries: {attempts: 3}").retries;
    assert_eq!(said, Retries { attempts: 3, ..Retries::default() });
    assert_eq!(format!("{:?}", said.back_off), "Jittered { base: 25ms }");
    assert_eq!(
        format!("{:?}", RetryOn::usual()),
        "RetryOn { five_xx: false, gateway_error: false, reset: false, reset_before_request: false, connect_failure: true, \
         refused_stream: true, retriable_4xx: false, envoy_ratelimited: false, statuses: [], grpc_statuses: [14, 1] }"
    );
    let of = translated("");
    let default = http(&of, "cart", 80);
    assert_eq!(default.len(), 1);
    assert_eq!((&*default[0].name, action(&default[0])), ("default", "1 cart:80".to_owned()));
    assert_eq!(default[0].origin.to_string(), "default route");
    assert_eq!((default[0].timeout, &default[0].retries), (None, &Retries::default()));
    let tcp = tcp(&of, "echo", 9090);
    assert_eq!(
        (tcp.len(), &*tcp[0].name, shown(&tcp[0].backends[0].0)),
        (1, "default", "echo:9090".to_owned())
    );
}

#[test]
fn each_version_is_read() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let text = virtual_service("{name: a, route: [{destination: {host: cart}}]}")
            .replace("io/v1", &format!("io/{version}"));
        assert_eq!(&*http(&translated(&text), "cart", 80)[0].name, "a", "{version}");
    }
}

/// Whether a VirtualService with this metadata and these fields gives `cart` a route.
fn counts(namespace: &str, fields: &str) -> bool {
    let text = object(
        "VirtualService",
        namespace,
        "name: vs",
        &format!("{fields}, http: [{{name: mine, route: [{{destination: {{host: cart}}}}]}}]"),
    );
    &*http(&translated(&text), "cart", 80)[0].name == "mine"
}

#[test]
fn which_virtual_services_count() {
    for (namespace, fields, is_counted) in [
        ("shop", "hosts: [cart]", true),
        ("shop", "hosts: [CART]", true),
        ("shop", "hosts: [cart.shop.svc.cluster.local]", true),
        ("shop", "hosts: ['*.shop.svc.cluster.local']", true),
        ("shop", "hosts: ['*.money.svc.cluster.local']", false),
        ("shop", "hosts: [cart.shop]", false),
        ("shop", "hosts: [echo]", false),
        ("shop", "hosts: [echo, cart]", true),
        ("shop", "hosts: [cart], gateways: [mesh]", true),
        ("shop", "hosts: [cart], gateways: [ingress/gw, mesh]", true),
        ("shop", "hosts: [cart], gateways: [gw]", false),
        ("shop", "hosts: [cart], exportTo: ['.']", true),
        ("shop", "hosts: [cart], exportTo: ['*']", true),
        ("shop", "hosts: [cart], exportTo: [money]", false),
        ("shop", "hosts: [cart], exportTo: [money, shop]", true),
        // A client's namespace says nothing at a waypoint.
        ("money", "hosts: [cart.shop.svc.cluster.local]", false),
    ] {
        assert_eq!(counts(namespace, fields), is_counted, "{namespace} {fields}");
    }
}

/// Names of the routes of `cart` or of another port.
fn names(text: &str, service: &str, port: u16) -> Vec<String> {
    http(&translated(text), service, port).iter().map(|r| r.name.to_string()).collect()
}

#[test]
fn matches_that_do_not_count_here() {
    for (matches, wanted) in [
        ("{port: 81}", &["last"][..]),
        ("{gateways: [gw]}", &["last"]),
        ("{sourceLabels: {app: web}}", &["last"]),
        ("{sourceNamespace: money}", &["last"]),
        ("{gateways: [gw, mesh], uri: {prefix: /a}}", &["first", "last"]),
        // At a waypoint this is compared with the waypoint's own namespace.
        ("{sourceNamespace: shop, uri: {prefix: /a}}", &["first", "last"]),
        // What is left of the others still counts.
        ("{sourceLabels: {app: web}}, {uri: {prefix: /a}}", &["first", "last"]),
        // Nothing comes after a match of everything.
        ("{uri: {prefix: /}}", &["first"]),
        ("{uri: {prefix: /}, method: {exact: GET}}", &["first", "last"]),
    ] {
        let rules = format!(
            "{{name: first, match: [{matches}], route: [{{destination: {{host: cart}}}}]}}, \
             {{name: last, route: [{{destination: {{host: cart}}}}]}}, \
             {{name: never, route: [{{destination: {{host: cart}}}}]}}"
        );
        assert_eq!(names(&virtual_service(&rules), "cart", 80), wanted, "{matches}");
    }
    let none = virtual_service("{match: [{port: 81}], route: [{destination: {host: cart}}]}");
    assert_eq!(names(&none, "cart", 80), ["default"], "no route is left, so the default one is there");
}

#[test]
fn several_virtual_services_come_one_after_the_other() {
    let vs = |meta: &str, name: &str| {
        let rule = format!(
            "http: [{{name: {name}, match: [{{uri: {{prefix: /a}}}}], route: [{{destination: {{host: cart}}}}]}}]"
        );
        object("VirtualService", "shop", meta, &format!("hosts: [cart], {rule}"))
    };
    let young = vs("name: a, creationTimestamp: '2026-01-02T00:00:00Z'", "young");
    let old = vs("name: z, creationTimestamp: '2026-01-01T00:00:00Z'", "old");
    let b = vs("name: b", "b");
    let c = vs("name: c", "c");
    assert_eq!(names(&[young, old, c, b].concat(), "cart", 80), ["b", "c", "old", "young"]);
}

#[test]
fn tcp_and_tls_routes() {
    let text = object(
        "VirtualService",
        "shop",
        "name: vs",
        "hosts: [echo.shop.svc.cluster.local], \
         tcp: [{match: [{port: 9090, destinationSubnets: [10.0.0.0/8, 'fd00::/8']}], route: [{destination: {host: cart}, weight: 3}, \
         {destination: {host: echo, port: {number: 9090}, subset: v1}, weight: 1}, {destination: {host: bank}}]}, \
         {match: [{sourceLabels: {a: b}}], route: [{destination: {host: cart}}]}, \
         {match: [{sourceSubnet: 10.0.0.0/8}], route: [{destination: {host: cart}}]}, \
         {match: [{gateways: [gw]}], route: [{destination: {host: cart}}]}], \
         tls: [{match: [{sniHosts: [echo.shop.svc.cluster.local], port: 9443}], route: [{destination: {host: cart}, weight: 9}]}]",
    );
    let of = translated(&text);
    let line = |route: &TcpRoute| {
        let backends: Vec<String> =
            route.backends.iter().map(|(b, weight)| format!("{weight} {}", shown(b))).collect();
        format!("{:?} {}", route.matches, backends.join(", "))
    };
    assert_eq!(
        tcp(&of, "echo", 9090).iter().map(line).collect::<Vec<_>>(),
        [
            "[TcpMatch { destinations: [10.0.0.0/8, fd00::/8], port: Some(9090), server_names: [] }] 3 cart:80, 1 echo:9090/v1",
            "[] 1 echo:9090",
        ]
    );
    assert_eq!(
        tcp(&of, "echo", 9443).iter().map(line).collect::<Vec<_>>(),
        [
            r#"[TcpMatch { destinations: [], port: Some(9443), server_names: ["echo.shop.svc.cluster.local"] }] 1 cart:80"#,
            "[] 1 echo:9443",
        ]
    );
    assert!(
        of.waypoint.clusters.keys().any(|key| key.to_string() == "outbound|80||cart.shop.svc.cluster.local")
    );
    // Without a match it is for every connection, and the weight of a single destination says nothing.
    let plain = "hosts: [echo], tcp: [{route: [{destination: {host: cart}, weight: 0}]}]";
    let of = translated(&object("VirtualService", "shop", "name: vs", plain));
    assert_eq!(tcp(&of, "echo", 9090).iter().map(line).next().unwrap(), "[] 1 cart:80");
}

/// Routes of `cart` of a root with `root` in its rule and a delegate with these rules.
fn delegated(root: &str, rules: &str, spec: &str) -> Vec<Route> {
    let text = [
        virtual_service(&format!("{{delegate: {{name: leaf, namespace: money}}, {root}}}")),
        object("VirtualService", "money", "name: leaf", &format!("{spec} http: [{rules}]")),
    ];
    http(&translated(&text.concat()), "cart", 80)
}

#[test]
fn a_delegate_says_the_rest() {
    let to = "route: [{destination: {host: bank}}]";
    let routes = delegated(
        "name: root, match: [{uri: {prefix: /a}, headers: {x: {exact: v}}}], timeout: 1s, rewrite: {uri: /x}, \
         fault: {abort: {httpStatus: 500}}, retries: {attempts: 7}, mirror: {host: cart}, \
         corsPolicy: {allowOrigins: [{exact: a}]}, headers: {request: {remove: [x]}}",
        &format!(
            "{{name: leaf, match: [{{uri: {{prefix: /a/b}}}}], {to}}}, {{timeout: 2s, {to}}}, {{match: [{{uri: {{prefix: /b}}}}], {to}}}"
        ),
        "",
    );
    assert_eq!(routes.len(), 2, "what is wider than the root is left out");
    let one = |root: &str, leaf: &str| {
        delegated(&format!("match: [{root}]"), &format!("{{match: [{leaf}], {to}}}"), "")
    };
    let both = one("{queryParams: {q: {exact: v}}}", "{queryParams: {r: {exact: w}}, uri: {prefix: /a}}");
    assert_eq!(both[0].matches[0].query.len(), 2, "the root's parameters as well");
    let both = one("{port: 80, withoutHeaders: {x: {}}}", "{uri: {prefix: /a}, withoutHeaders: {y: {}}}");
    assert_eq!((both[0].matches[0].port, both[0].matches[0].without_headers.len()), (Some(80), 2));
    let of_root = &one("{uri: {prefix: /a}}", "{method: {exact: GET}}")[0].matches[0].path;
    assert!(of_root.is_some() && both[0].matches[0].path == *of_root);
    // What only another proxy can test, and letters of any case where the root wants them as they are.
    for (root, leaf) in [
        ("{uri: {prefix: /a}, gateways: [gw]}", "{uri: {prefix: /a/b}}"),
        ("{uri: {prefix: /a}}", "{uri: {prefix: /a/b}, ignoreUriCase: true}"),
    ] {
        assert_eq!(&*one(root, leaf)[0].name, "default", "{root} {leaf}");
    }
    let named =
        delegated("match: [{name: a, uri: {prefix: /a}}]", &format!("{{match: [{{name: b}}], {to}}}"), "");
    assert_eq!(&*named[0].name, ".a-b", "the log names both matches");
    let [first, second] = &routes[..] else { panic!() };
    assert_eq!((&*first.name, action(first)), ("root-leaf", "1 bank:80".to_owned()));
    assert_eq!(
        first.matches[0].path,
        Some(l7::PathTest::Text { text: l7::TextMatch::Prefix("/a/b".into()), ignore_case: false })
    );
    assert_eq!(first.matches[0].headers.len(), 1, "the root's header as well");
    assert_eq!(
        (first.timeout, second.timeout),
        (Some(std::time::Duration::from_secs(1)), Some(std::time::Duration::from_secs(2)))
    );
    assert_eq!((&*second.name, first.retries.attempts, first.mirrors.len()), ("root", 7, 1));
    assert!(first.rewrite.path.is_some() && first.fault.abort.is_some() && first.cors.is_some());
    assert_eq!(first.request_headers.remove.len(), 1);
}

/// A match of a delegate counts if it means no request that its root's does not.
#[test]
fn a_delegate_says_no_more_than_its_root() {
    for (root, leaf, counts) in [
        ("uri: {prefix: /a}", "uri: {exact: /a/b}", true),
        ("uri: {exact: /a}", "uri: {exact: /a}", true),
        ("uri: {exact: /a}", "uri: {prefix: /a}", false),
        ("uri: {prefix: /a}", "uri: {regex: /a.*}", false),
        ("uri: {regex: /a.*}", "uri: {exact: /a}", false),
        ("method: {exact: GET}", "method: {exact: GET}", true),
        ("method: {exact: GET}", "method: {exact: PUT}", false),
        ("scheme: {exact: http}", "scheme: {exact: https}", false),
        ("authority: {prefix: a}", "authority: {exact: ab}", true),
        ("authority: {prefix: a}", "authority: {exact: b}", false),
        ("headers: {x: {exact: v}}", "headers: {x: {exact: v}}", true),
        ("headers: {x: {exact: v}}", "headers: {x: {exact: w}}", false),
        ("headers: {x: {exact: v}}", "headers: {y: {exact: w}}", true),
        ("withoutHeaders: {x: {exact: v}}", "withoutHeaders: {x: {exact: w}}", false),
        ("withoutHeaders: {x: {exact: v}}", "withoutHeaders: {y: {exact: w}}", true),
        ("queryParams: {x: {exact: v}}", "queryParams: {x: {exact: w}}", false),
        ("queryParams: {x: {exact: v}}", "queryParams: {y: {exact: w}}", true),
        ("port: 80", "port: 80", true),
        ("port: 80", "port: 81", false),
        ("port: 80", "method: {exact: GET}", true),
    ] {
        let rule = format!("{{name: leaf, match: [{{{leaf}}}], route: [{{destination: {{host: bank}}}}]}}");
        let found = &delegated(&format!("match: [{{{root}}}]"), &rule, "")[0];
        assert_eq!(&*found.name == "leaf", counts, "{root} | {leaf}");
        let names = |all: &[l7::HeaderMatch]| {
            all.iter().map(|one| one.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        if counts && leaf.contains("{y:") {
            let test = &found.matches[0];
            let query = test.query.iter().map(|one| one.name.to_string()).collect::<Vec<_>>().join(" ");
            let all = [names(&test.headers), names(&test.without_headers), query].concat();
            assert_eq!(all, "x y", "{root} | {leaf}");
        }
    }
}

#[test]
fn delegates_that_do_not_count() {
    let to = "{name: leaf, route: [{destination: {host: bank}}]}";
    assert_eq!(&*delegated("", to, "")[0].name, "leaf");
    assert_eq!(&*delegated("", to, "exportTo: [shop],")[0].name, "leaf");
    assert_eq!(&*delegated("", to, "exportTo: ['.'],")[0].name, "default");
    let missing =
        virtual_service("{delegate: {name: nobody}}, {name: last, route: [{destination: {host: cart}}]}");
    assert_eq!(names(&missing, "cart", 80), ["last"]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_has_another_effect_than_one_may_expect_is_told() {
    let to = "route: [{destination: {host: cart}}]";
    for (text, wanted) in [
        (
            virtual_service(&format!("{{rewrite: {{uri: /b}}, {to}}}")),
            "spec.http[0].rewrite.uri: a rewrite without a match of the path",
        ),
        (
            virtual_service(&format!("{{match: [{{sourceLabels: {{a: b}}}}], {to}}}")),
            "sourceLabels: a test of the client's own proxy",
        ),
        (
            virtual_service(&format!("{{match: [{{sourceNamespace: a}}], {to}}}")),
            "sourceNamespace: at a waypoint this is compared",
        ),
        (
            virtual_service(&format!("{{match: [{{statPrefix: a}}], {to}}}")),
            "statPrefix: statPrefix has no effect",
        ),
        (
            virtual_service("{route: [{destination: {host: nobody}}]}"),
            "route[0].destination: no service nobody.shop.svc.cluster.local is known",
        ),
        (virtual_service("{route: [{destination: {host: cart, port: {number: 81}}}]}"), "has no TCP port 81"),
        (
            virtual_service("{route: [{destination: {host: cart, subset: v9}}]}"),
            "no DestinationRule that counts here defines subset v9",
        ),
        (
            virtual_service(&format!("{{name: first, {to}}}, {{name: second, {to}}}")),
            "spec.http[1]: a rule behind one for every request",
        ),
        (
            virtual_service(&format!("{{mirror: {{host: nobody}}, {to}}}")),
            "spec.http[0].mirror: no service nobody",
        ),
        (
            virtual_service(&format!("{{mirror: {{host: cart}}, mirrorPercent: 1, {to}}}")),
            "mirrorPercent is deprecated",
        ),
        (
            virtual_service(&format!("{{fault: {{delay: {{fixedDelay: 1s}}}}, {to}}}")),
            "no percentage; it stands for 0",
        ),
        (
            virtual_service(&format!("{{fault: {{delay: {{percent: 1}}}}, {to}}}")),
            "a delay without fixedDelay",
        ),
        (
            virtual_service(&format!("{{fault: {{abort: {{}}}}, {to}}}")),
            "an abort without httpStatus and grpcStatus",
        ),
        (
            virtual_service("{delegate: {name: nobody}}"),
            "delegate: no VirtualService shop/nobody without hosts",
        ),
        (
            object(
                "VirtualService",
                "money",
                "name: vs",
                "hosts: [cart.shop.svc.cluster.local], http: [{route: [{destination: {host: bank}}]}]",
            ),
            "this VirtualService has no effect there",
        ),
        (
            object(
                "VirtualService",
                "shop",
                "name: vs",
                "hosts: ['*.shop.svc.cluster.local'], tls: [{match: [{sniHosts: [a.shop.svc.cluster.local]}], route: [{destination: {host: cart}}]}]",
            ),
            "a.shop.svc.cluster.local, which is not the name of",
        ),
    ] {
        let all = warnings(&text);
        assert!(all.iter().any(|warning| warning.contains(wanted)), "{wanted}\n{all:?}");
    }
}
