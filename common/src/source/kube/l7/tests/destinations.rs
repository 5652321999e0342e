//! DestinationRules, field by field.

use super::*;
use crate::model::l7::{Balance, ConnectionPool};

/// A route that leads to `cart`, and to its subset `v1`.
fn used() -> String {
    virtual_service(
        "{route: [{destination: {host: cart}, weight: 1}, {destination: {host: cart, subset: v1}, weight: 1}]}",
    )
}

const ALL: &str = "outbound|80||cart.shop.svc.cluster.local";
const V1: &str = "outbound|80|v1|cart.shop.svc.cluster.local";

fn rule(namespace: &str, meta: &str, spec: &str) -> String {
    object("DestinationRule", namespace, meta, spec)
}

/// The destination `cart` under a rule with this policy.
fn with(policy: &str) -> Cluster {
    let text = used() + &rule("shop", "name: dr", &format!("host: cart, trafficPolicy: {{{policy}}}"));
    cluster(&translated(&text), ALL).unwrap()
}

/// The name of a subset's or service's destination, and what it is under these rules.
fn under(rules: &[String], name: &str) -> Option<Cluster> {
    cluster(&translated(&(used() + &rules.concat())), name)
}

#[test]
fn without_a_rule_there_are_the_defaults() {
    let of = under(&[], ALL).unwrap();
    assert_eq!(
        (of.balance, of.pool, of.outliers, of.retry_budget),
        (Balance::LeastRequest, ConnectionPool::default(), None, None)
    );
    assert_eq!((of.rule, of.refused, of.subset), (None, None, None));
    assert_eq!(format!("{:?}", of.protocol), "Http1");
    assert_eq!(under(&[], V1), None, "a subset that nobody defines");
    let bank = "{route: [{destination: {host: bank.money.svc.cluster.local}}]}";
    let bank = translated(&virtual_service(bank));
    assert!(
        cluster(&bank, "outbound|80||bank.money.svc.cluster.local").is_some(),
        "a service that is not bound"
    );
    let port = "{route: [{destination: {host: cart, port: {number: 81}}}]}";
    assert_eq!(
        cluster(&translated(&virtual_service(port)), "outbound|81||cart.shop.svc.cluster.local"),
        None
    );
}

#[test]
fn balance() {
    for (name, wanted) in [
        ("UNSPECIFIED", Balance::LeastRequest),
        ("LEAST_REQUEST", Balance::LeastRequest),
        ("LEAST_CONN", Balance::LeastRequest),
        ("ROUND_ROBIN", Balance::RoundRobin),
        ("RANDOM", Balance::Random),
        ("PASSTHROUGH", Balance::Passthrough),
    ] {
        let of = with(&format!("loadBalancer: {{simple: {name}}}"));
        assert_eq!((of.balance, of.refused, of.rule.as_deref()), (wanted, None, Some("shop/dr")), "{name}");
    }
    assert_eq!(
        with("loadBalancer: {localityLbSetting: {enabled: false}}").refused,
        None,
        "what is done anyway"
    );
}

#[test]
fn connection_pools() {
    type Part = fn(&ConnectionPool) -> String;
    let rows: [(&str, Part, &str); 19] = [
        ("tcp: {maxConnections: 3}", |p| p.max_connections.to_string(), "3"),
        ("tcp: {connectTimeout: 30ms}", |p| format!("{:?}", p.connect_timeout), "30ms"),
        (
            "tcp: {tcpKeepalive: {probes: 2, time: 7200s, interval: 75s}}",
            |p| format!("{:?}", p.keepalive),
            "Some(Keepalive { probes: Some(2), time: Some(7200s), interval: Some(75s) })",
        ),
        (
            "tcp: {tcpKeepalive: {}}",
            |p| format!("{:?}", p.keepalive),
            "Some(Keepalive { probes: None, time: None, interval: None })",
        ),
        ("tcp: {maxConnectionDuration: 5m}", |p| format!("{:?}", p.max_connection_duration), "Some(300s)"),
        ("tcp: {idleTimeout: 5s}", |p| format!("{:?}", p.tcp_idle), "Some(5s)"),
        ("tcp: {idleTimeout: 0s}", |p| format!("{:?}", p.tcp_idle), "None"),
        ("tcp: {idleTimeout: 5s}", |p| format!("{:?}", p.http_idle), "Some(5s)"),
        ("tcp: {idleTimeout: 5s}, http: {idleTimeout: 6s}", |p| format!("{:?}", p.http_idle), "Some(6s)"),
        ("http: {http1MaxPendingRequests: 4}", |p| p.max_pending.to_string(), "4"),
        ("http: {http2MaxRequests: 5}", |p| p.max_requests.to_string(), "5"),
        ("http: {maxRequestsPerConnection: 1}", |p| p.max_requests_per_connection.to_string(), "1"),
        ("http: {maxRetries: 6}", |p| p.max_retries.to_string(), "6"),
        ("http: {idleTimeout: 7s}", |p| format!("{:?}", p.http_idle), "Some(7s)"),
        ("http: {h2UpgradePolicy: UPGRADE}", |p| format!("{:?}", p.upgrade), "Always"),
        ("http: {useClientProtocol: true}", |p| format!("{:?}", p.upgrade), "AsClient"),
        ("http: {maxConcurrentStreams: 8}", |p| p.max_streams.to_string(), "8"),
        (
            "http: {http2KeepAlive: {interval: 9s, timeout: 1s}}",
            |p| format!("{:?}", p.ping),
            "Some((9s, 1s))",
        ),
        ("tcp: {idleTimeout: 0s}", |p| format!("{:?}", p.http_idle), "None"),
    ];
    for (fields, part, wanted) in rows {
        assert_eq!(part(&with(&format!("connectionPool: {{{fields}}}")).pool), wanted, "{fields}");
        assert_ne!(part(&ConnectionPool::default()), wanted, "{fields}");
    }
    for same in ["tcp: {maxConnections: 0}", "http: {h2UpgradePolicy: DO_NOT_UPGRADE, maxRetries: 0}"] {
        assert_eq!(with(&format!("connectionPool: {{{same}}}")).pool, ConnectionPool::default(), "{same}");
    }
}

#[test]
fn outlier_detection() {
    let shown = |fields: &str| {
        let of = with(&format!("outlierDetection: {{{fields}}}")).outliers.unwrap();
        format!(
            "{} {} {:?} {:?} {:?} {:?} {} {:?}",
            of.consecutive_5xx,
            of.consecutive_gateway,
            of.consecutive_local,
            of.interval,
            of.base_ejection,
            of.max_ejection_percent,
            of.min_health_percent,
            of.failure_percent
        )
    };
    // The mere presence of the block turns five errors in a row on.
    assert_eq!(shown(""), "5 0 None 10s 30s None 0 None");
    for (fields, wanted) in [
        ("consecutive5xxErrors: 2", "2 0 None 10s 30s None 0 None"),
        ("consecutive5xxErrors: 0", "0 0 None 10s 30s None 0 None"),
        ("consecutiveGatewayErrors: 3", "5 3 None 10s 30s None 0 None"),
        ("splitExternalLocalOriginErrors: true", "5 0 Some(5) 10s 30s None 0 None"),
        (
            "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4",
            "5 0 Some(4) 10s 30s None 0 None",
        ),
        ("interval: 1s", "5 0 None 1s 30s None 0 None"),
        ("baseEjectionTime: 1m", "5 0 None 10s 60s None 0 None"),
        ("maxEjectionPercent: 50", "5 0 None 10s 30s Some(50) 0 None"),
        ("minHealthPercent: 60", "5 0 None 10s 30s None 60 None"),
        // The name that users still write.
        ("consecutiveErrors: 7", "7 0 None 10s 30s None 0 None"),
        ("consecutiveErrors: 7, consecutive5xxErrors: 2", "2 0 None 10s 30s None 0 None"),
    ] {
        assert_eq!(shown(fields), wanted, "{fields}");
    }
    assert_eq!(shown("maxEjectionPercent: 0"), shown(""));
}

#[test]
fn endpoints_are_ejected_by_percentage_if_the_annotation_says_so() {
    let meta = "name: dr, annotations: {policy.culvert.dev/failure-percentage: '40'}";
    let alone = under(&[rule("shop", meta, "host: cart")], ALL).unwrap().outliers.unwrap();
    assert_eq!(
        format!("{alone:?}"),
        "Outliers { consecutive_5xx: 0, consecutive_gateway: 0, consecutive_local: None, interval: 10s, base_ejection: 30s, \
         max_ejection_percent: None, min_health_percent: 0, failure_percent: Some(40) }"
    );
    let policy = "host: cart, trafficPolicy: {outlierDetection: {}}";
    let both = under(&[rule("shop", meta, policy)], ALL).unwrap().outliers.unwrap();
    assert_eq!((both.consecutive_5xx, both.failure_percent), (5, Some(40)));
}

#[test]
fn retry_budgets() {
    let shown = |fields: &str| {
        let of = with(&format!("retryBudget: {{{fields}}}")).retry_budget.unwrap();
        format!("{} {}", of.percent, of.min_concurrency)
    };
    assert_eq!(shown(""), "20 3");
    assert_eq!(shown("percent: 12.5"), "12.5 3");
    assert_eq!(shown("minRetryConcurrency: 9"), "20 9");
    assert_eq!(shown("budgetInterval: 0s"), "20 3");
}

#[test]
fn what_is_not_built_is_refused_and_nothing_else_breaks() {
    for (policy, field) in [
        ("loadBalancer: {consistentHash: {httpHeaderName: x}}", "loadBalancer.consistentHash"),
        ("loadBalancer: {consistentHash: {httpCookie: {name: a, ttl: 0s}}}", "loadBalancer.consistentHash"),
        ("loadBalancer: {consistentHash: {useSourceIp: true}}", "loadBalancer.consistentHash"),
        ("loadBalancer: {consistentHash: {httpQueryParameterName: q}}", "loadBalancer.consistentHash"),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 65537}}}",
            "loadBalancer.consistentHash",
        ),
        ("loadBalancer: {localityLbSetting: {enabled: true}}", "loadBalancer.localityLbSetting"),
        ("loadBalancer: {localityLbSetting: {distribute: []}}", "loadBalancer.localityLbSetting"),
        ("loadBalancer: {zoneAwareLbSetting: {enabled: true}}", "loadBalancer.zoneAwareLbSetting"),
        ("loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 1m}}", "loadBalancer.warmup"),
        ("loadBalancer: {simple: ROUND_ROBIN, warmupDurationSecs: 1m}", "loadBalancer.warmupDurationSecs"),
        ("tls: {mode: SIMPLE}", "tls with mode SIMPLE"),
        ("tls: {mode: MUTUAL, credentialName: a}", "tls with mode MUTUAL"),
        ("tls: {mode: MUTUAL, clientCertificate: a, privateKey: b}", "tls with mode MUTUAL"),
        ("tunnel: {targetHost: a, targetPort: 1}", "tunnel"),
        ("proxyProtocol: {version: V1}", "proxyProtocol"),
        ("retryBudget: {budgetInterval: 10s}", "retryBudget.budgetInterval"),
    ] {
        let text = used() + &rule("shop", "name: dr", &format!("host: cart, trafficPolicy: {{{policy}}}"));
        let of = translated(&text);
        let reason = cluster(&of, ALL).unwrap().refused.unwrap();
        assert_eq!(&*reason, format!("DestinationRule shop/dr: spec.trafficPolicy.{field} is not built yet"));
        assert!(of.warnings.iter().any(|w| w.seen == "not built yet"), "{policy}: {:?}", of.warnings);
        assert_eq!(http(&of, "cart", 80).len(), 1);
        let echo = cluster(&of, "outbound|7070||echo.shop.svc.cluster.local").unwrap();
        assert_eq!(echo.refused, None, "{policy}");
    }
    for mode in ["DISABLE", "ISTIO_MUTUAL"] {
        assert_eq!(with(&format!("tls: {{mode: {mode}}}")).refused, None, "{mode}");
    }
}

#[test]
fn subsets_are_endpoints_with_labels() {
    let spec = "host: cart, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]";
    let members = |rules: &[String]| {
        let of = under(rules, V1).unwrap();
        let mut all: Vec<String> = of.subset.unwrap().members.iter().map(ToString::to_string).collect();
        all.sort();
        all
    };
    assert_eq!(members(&[rule("shop", "name: dr", spec)]), ["Kubernetes//Pod/shop/cart-1"]);
    let everything = "host: cart, subsets: [{name: v1}]";
    assert_eq!(
        members(&[rule("shop", "name: dr", everything)]),
        ["Kubernetes//Pod/shop/cart-1", "Kubernetes//Pod/shop/cart-2"]
    );
    let named = virtual_service("{route: [{destination: {host: cart, subset: v-1}}]}")
        + &rule("shop", "name: dr", "host: cart, subsets: [{name: v-1, labels: {version: v1}}]");
    assert!(cluster(&translated(&named), &V1.replace("v1", "v-1")).is_some(), "a name with a hyphen");
    let nobody = "host: cart, subsets: [{name: v1, labels: {version: v1, app: other}}]";
    assert_eq!(members(&[rule("shop", "name: dr", nobody)]), [""; 0]);
}

#[test]
fn the_subset_replaces_blocks_and_the_port_all_of_them() {
    let both = |spec: &str| {
        let rules = [rule("shop", "name: dr", spec)];
        let shown = |name| {
            let of = under(&rules, name).unwrap();
            format!("{:?} {} {}", of.balance, of.pool.max_retries, of.outliers.is_some())
        };
        (shown(ALL), shown(V1))
    };
    let top = "loadBalancer: {simple: RANDOM}, connectionPool: {http: {maxRetries: 2}}";
    for (spec, of_all, of_subset) in [
        (format!("trafficPolicy: {{{top}}}, subsets: [{{name: v1}}]"), "Random 2 false", "Random 2 false"),
        (
            format!(
                "trafficPolicy: {{{top}}}, subsets: [{{name: v1, trafficPolicy: {{connectionPool: {{http: {{maxRetries: 3}}}}}}}}]"
            ),
            "Random 2 false",
            "Random 3 false",
        ),
        (
            format!(
                "trafficPolicy: {{{top}}}, subsets: [{{name: v1, trafficPolicy: {{loadBalancer: {{simple: ROUND_ROBIN}}}}}}]"
            ),
            "Random 2 false",
            "RoundRobin 2 false",
        ),
        // What is said for the port takes nothing over.
        (
            format!(
                "trafficPolicy: {{{top}, portLevelSettings: [{{port: {{number: 80}}, outlierDetection: {{}}}}]}}, subsets: [{{name: v1}}]"
            ),
            "LeastRequest 4294967295 true",
            "LeastRequest 4294967295 true",
        ),
        (
            format!(
                "trafficPolicy: {{{top}, portLevelSettings: [{{port: {{number: 81}}, outlierDetection: {{}}}}]}}, subsets: [{{name: v1}}]"
            ),
            "Random 2 false",
            "Random 2 false",
        ),
        (
            format!(
                "trafficPolicy: {{{top}}}, subsets: [{{name: v1, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, loadBalancer: {{simple: ROUND_ROBIN}}}}]}}}}]"
            ),
            "Random 2 false",
            "RoundRobin 4294967295 false",
        ),
    ] {
        assert_eq!(both(&format!("host: cart, {spec}")), (of_all.into(), of_subset.into()), "{spec}");
    }
}

/// Why nothing is sent there is taken over with its block, and replaced with it.
#[test]
fn refusals_are_those_of_the_block_that_counts() {
    let locality = "loadBalancer: {localityLbSetting: {enabled: true}}";
    for (top, of_subset, wanted) in [
        ("tls: {mode: SIMPLE}", "", (true, true)),
        ("tls: {mode: SIMPLE}", "tls: {mode: DISABLE}", (true, false)),
        ("tls: {mode: SIMPLE}", "loadBalancer: {simple: RANDOM}", (true, true)),
        ("tls: {mode: DISABLE}", "tls: {mode: SIMPLE}", (false, true)),
        (locality, "tls: {mode: DISABLE}", (true, true)),
        (locality, "loadBalancer: {simple: RANDOM}", (true, false)),
        ("outlierDetection: {}", "proxyProtocol: {version: V1}", (false, true)),
    ] {
        let policy =
            if of_subset.is_empty() { String::new() } else { format!(", trafficPolicy: {{{of_subset}}}") };
        let spec = format!("host: cart, trafficPolicy: {{{top}}}, subsets: [{{name: v1{policy}}}]");
        let rules = [rule("shop", "name: dr", &spec)];
        let is_refused = |name| under(&rules, name).unwrap().refused.is_some();
        assert_eq!((is_refused(ALL), is_refused(V1)), wanted, "{spec}");
    }
    let kept = "host: cart, trafficPolicy: {outlierDetection: {}}, subsets: [{name: v1, trafficPolicy: {tls: {mode: DISABLE}}}]";
    assert!(under(&[rule("shop", "name: dr", kept)], V1).unwrap().outliers.is_some());
}

/// A rule whose `maxRetries` tells it from others.
fn numbered(namespace: &str, meta: &str, host: &str, number: u32, rest: &str) -> String {
    let spec = format!(
        "host: '{host}', trafficPolicy: {{connectionPool: {{http: {{maxRetries: {number}}}}}}}{rest}"
    );
    rule(namespace, meta, &spec)
}

#[test]
fn which_rule_counts() {
    let own = |number, rest| numbered("shop", "name: own", "cart", number, rest);
    let root =
        |number, rest| numbered("istio-system", "name: root", "cart.shop.svc.cluster.local", number, rest);
    let client = numbered("money", "name: client", "cart.shop.svc.cluster.local", 9, "");
    let wide = numbered("shop", "name: wide", "*.shop.svc.cluster.local", 5, "");
    let wider = numbered("shop", "name: wider", "*.svc.cluster.local", 6, "");
    let selector = rule(
        "shop",
        "name: sel",
        "host: cart, workloadSelector: {matchLabels: {a: b}}, trafficPolicy: {connectionPool: {http: {maxRetries: 8}}}",
    );
    for (rules, wanted) in [
        (vec![own(1, "")], 1),
        (vec![own(1, ""), root(2, "")], 1),
        (vec![root(2, "")], 2),
        // Hidden from the waypoint's namespace, or meant for others.
        (vec![root(2, ", exportTo: ['.']")], u32::MAX),
        (vec![client], u32::MAX),
        (vec![selector], u32::MAX),
        (vec![wide.clone(), own(1, "")], 1),
        (vec![wide.clone(), wider.clone()], 5),
        (vec![wider], 6),
        // In the waypoint's own namespace a rule counts whomever it is exported to.
        (vec![own(1, ", exportTo: [money]")], 1),
        // The first namespace with any rule decides, even if its host is less specific.
        (vec![wide, root(2, "")], 5),
    ] {
        assert_eq!(under(&rules, ALL).unwrap().pool.max_retries, wanted, "{rules:?}");
    }
}

#[test]
fn a_rule_of_the_services_namespace_must_be_exported_to_the_waypoint() {
    let to_bank = virtual_service("{route: [{destination: {host: bank.money.svc.cluster.local}}]}");
    let name = "outbound|80||bank.money.svc.cluster.local";
    for (rules, wanted) in [
        (vec![numbered("money", "name: own", "bank", 1, "")], 1),
        (vec![numbered("money", "name: own", "bank", 1, ", exportTo: [shop]")], 1),
        (vec![numbered("money", "name: own", "bank", 1, ", exportTo: ['.']")], u32::MAX),
        // The waypoint's namespace comes first.
        (
            vec![
                numbered("money", "name: own", "bank", 1, ""),
                numbered("shop", "name: near", "bank.money.svc.cluster.local", 2, ""),
            ],
            2,
        ),
        // A short name is a service beside the rule.
        (vec![numbered("shop", "name: near", "bank", 2, "")], u32::MAX),
    ] {
        let of = translated(&(to_bank.clone() + &rules.concat()));
        assert_eq!(cluster(&of, name).unwrap().pool.max_retries, wanted, "{rules:?}");
    }
}

/// A waypoint in the root namespace: what is said there for the whole mesh comes after a service's own rules.
#[test]
fn a_waypoint_in_the_root_namespace_sees_services_rules_first() {
    let settings = Settings { root_namespace: "shop".into(), ..Settings::default() };
    let to_bank = virtual_service("{route: [{destination: {host: bank.money.svc.cluster.local}}]}");
    let own = numbered("money", "name: own", "bank", 1, "");
    let root = |rest| numbered("shop", "name: root", "bank.money.svc.cluster.local", 2, rest);
    for (rules, wanted) in
        [(vec![own.clone(), root("")], 1), (vec![own, root(", exportTo: ['.']")], 2), (vec![root("")], 2)]
    {
        let text = to_bank.clone() + &rules.concat();
        let documents = [MESH, &text].map(|text| Document { file: "a.yaml", text });
        let of = translate_waypoint(&documents, &settings, &key()).unwrap();
        let found = cluster(&of, "outbound|80||bank.money.svc.cluster.local").unwrap();
        assert_eq!(found.pool.max_retries, wanted, "{rules:?}");
    }
}

#[test]
fn rules_for_one_host_are_merged() {
    let young = numbered(
        "shop",
        "name: a, creationTimestamp: '2026-01-02T00:00:00Z'",
        "cart",
        1,
        ", subsets: [{name: v1, labels: {version: v2}}]",
    );
    let old = numbered(
        "shop",
        "name: b, creationTimestamp: '2026-01-01T00:00:00Z'",
        "cart.shop.svc.cluster.local",
        2,
        ", subsets: [{name: v1, labels: {version: v1}}]",
    );
    let bare = rule("shop", "name: c", "host: cart");
    let of = under(&[young.clone(), old, bare.clone()], ALL).unwrap();
    assert_eq!(
        (of.pool.max_retries, of.rule.as_deref()),
        (2, Some("shop/c")),
        "the oldest that says something"
    );
    let of = under(&[young, bare], V1).unwrap();
    assert_eq!((of.pool.max_retries, of.rule.as_deref()), (1, Some("shop/a")), "subsets of all");
}

#[test]
fn what_has_another_effect_than_one_may_expect_is_told() {
    for (meta, spec, wanted) in [
        ("", "trafficPolicy: {outlierDetection: {consecutiveErrors: 5}}", "consecutiveErrors is deprecated"),
        (
            "",
            "trafficPolicy: {outlierDetection: {outlierDetectionHttpErrorCodes: [429]}}",
            "it is not applied at a waypoint",
        ),
        ("", "trafficPolicy: {connectionPool: {http: {http2KeepAlive: {interval: 1s}}}}", "both are needed"),
        ("", "workloadSelector: {matchLabels: {a: b}}", "it has no effect at a waypoint"),
        (", annotations: {policy.culvert.dev/failure-percentage: '5'}", "", "this is Culvert's own"),
    ] {
        let all = warnings(&rule("shop", &format!("name: dr{meta}"), &format!("host: cart, {spec}")));
        assert!(all.iter().any(|warning| warning.contains(wanted)), "{wanted}\n{all:?}");
    }
}
