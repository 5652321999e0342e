//! VirtualServices.

use super::*;

const TO: &str = "route: [{destination: {host: cart}}]";

/// A VirtualService of `cart` with one rule; without an action of its own it sends to `cart`.
fn rule(fields: &str) -> String {
    let acts = ["route:", "redirect:", "directResponse:", "delegate:"].iter().any(|key| fields.contains(key));
    let to = if acts { String::new() } else { format!("{TO}, ") };
    virtual_service(&format!("{{{to}{fields}}}"))
}

const NOT_FOUND: &str = "404 NR";

#[test]
fn matches() {
    check_rows(
        &rule(""),
        &[
            (
                "match: [{uri: {exact: /a}}]",
                &[("GET /a?q=1", "GET svc/a?q=1 > cart-1:80|cart-2:80"), ("GET /a/", NOT_FOUND)],
            ),
            (
                "match: [{uri: {prefix: /a}}]",
                &[("GET /ab", "GET svc/ab > cart-1:80|cart-2:80"), ("GET /b", NOT_FOUND)],
            ),
            ("match: [{uri: {regex: '/a+'}}]", &[("GET /a", CART), ("GET /a/b", NOT_FOUND)]),
            ("match: [{uri: {exact: /A}, ignoreUriCase: true}]", &[("GET /a", CART), ("GET /b", NOT_FOUND)]),
            ("match: [{uri: {exact: /A}}]", &[("GET /a", NOT_FOUND)]),
            ("match: [{scheme: {exact: https}}]", &[("GET /a", NOT_FOUND)]),
            ("match: [{method: {exact: GET}}]", &[("GET /a", CART), ("PUT /a", NOT_FOUND)]),
            ("match: [{authority: {prefix: s}}]", &[("GET /a", CART), ("GET /a\nhost: other", NOT_FOUND)]),
            (
                "match: [{headers: {X-A: {exact: v}}}]",
                &[("GET /a\nx-a: v", CART), ("GET /a\nx-a: w", NOT_FOUND), ("GET /a", NOT_FOUND)],
            ),
            (
                "match: [{headers: {x-a: {prefix: v}}}]",
                &[("GET /a\nx-a: vw", CART), ("GET /a\nx-a: w", NOT_FOUND)],
            ),
            (
                "match: [{headers: {x-a: {regex: 'v|w'}}}]",
                &[("GET /a\nx-a: w", CART), ("GET /a\nx-a: vw", NOT_FOUND)],
            ),
            ("match: [{headers: {x-a: {}}}]", &[("GET /a\nx-a: w", CART), ("GET /a", NOT_FOUND)]),
            (
                "match: [{withoutHeaders: {x-a: {exact: v}}}]",
                &[("GET /a", CART), ("GET /a\nx-a: v", NOT_FOUND)],
            ),
            ("match: [{withoutHeaders: {x-a: {}}}]", &[("GET /a", CART), ("GET /a\nx-a: w", NOT_FOUND)]),
            (
                "match: [{queryParams: {q: {exact: v}}}]",
                &[("GET /a?q=v", "GET svc/a?q=v > cart-1:80|cart-2:80"), ("GET /a?q=w", NOT_FOUND)],
            ),
            ("match: [{port: 80, uri: {prefix: /b}}]", &[("GET /a", NOT_FOUND)]),
            // All of one match, any of several.
            (
                "match: [{uri: {prefix: /a}, method: {exact: GET}}]",
                &[("GET /a", CART), ("PUT /a", NOT_FOUND)],
            ),
            (
                "match: [{uri: {prefix: /b}}, {method: {exact: GET}}]",
                &[("GET /a", CART), ("PUT /a", NOT_FOUND)],
            ),
            // What can only be tested in the client's own proxy drops its match; the others still count.
            ("match: [{sourceLabels: {a: b}}, {uri: {prefix: /b}}]", &[("GET /a", NOT_FOUND)]),
            (
                "match: [{sourceNamespace: money}, {uri: {prefix: /b}}]",
                &[("GET /a\npeer: money/x", NOT_FOUND)],
            ),
            ("match: [{gateways: [gw]}, {uri: {prefix: /b}}]", &[("GET /a", NOT_FOUND)]),
        ],
        rule,
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_the_upstream_is_sent() {
    check_rows(
        &rule(""),
        &[
            (
                "rewrite: {uri: /b}, match: [{uri: {prefix: /a}}]",
                &[("GET /a/c?q", "GET svc/b/c?q > cart-1:80|cart-2:80 +x-envoy-original-path: /a/c?q")],
            ),
            (
                "rewrite: {uri: /b}, match: [{uri: {exact: /a}}]",
                &[("GET /a", "GET svc/b > cart-1:80|cart-2:80 +x-envoy-original-path: /a")],
            ),
            (
                "rewrite: {uri: /bar}",
                &[("GET /foo", "GET svc/barfoo > cart-1:80|cart-2:80 +x-envoy-original-path: /foo")],
            ),
            ("rewrite: {authority: b.c}", &[("GET /a", "GET b.c/a > cart-1:80|cart-2:80")]),
            (
                "rewrite: {authority: b.c}, headers: {request: {set: {x-a: b}}}",
                &[("GET /a", "GET b.c/a > cart-1:80|cart-2:80 +x-a: b")],
            ),
            (
                r"rewrite: {uriRegexRewrite: {match: '/(a)', rewrite: '/x\1'}}",
                &[("GET /a", "GET svc/xa > cart-1:80|cart-2:80 +x-envoy-original-path: /a")],
            ),
            (
                "headers: {request: {set: {x-a: b}}}",
                &[("GET /a\nx-a: a", "GET svc/a > cart-1:80|cart-2:80 -x-a: a +x-a: b")],
            ),
            // An empty text is one.
            (
                "headers: {request: {set: {x-a: ''}}}",
                &[("GET /a\nx-a: a", "GET svc/a > cart-1:80|cart-2:80 -x-a: a +x-a: ")],
            ),
            (
                "headers: {request: {add: {x-a: b}}}",
                &[("GET /a\nx-a: a", "GET svc/a > cart-1:80|cart-2:80 +x-a: b")],
            ),
            (
                "headers: {request: {remove: [x-a]}}",
                &[("GET /a\nx-a: a", "GET svc/a > cart-1:80|cart-2:80 -x-a: a")],
            ),
            (
                "headers: {request: {set: {':authority': b.c}}}",
                &[("GET /a", "GET b.c/a > cart-1:80|cart-2:80")],
            ),
            (
                "headers: {request: {set: {x-a: '%REQ(x-b)%'}}}",
                &[("GET /a\nx-b: b", "GET svc/a > cart-1:80|cart-2:80 +x-a: b")],
            ),
            (
                "headers: {response: {set: {x-up: '2'}}}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200 x-up: 2")],
            ),
            (
                "headers: {response: {add: {x-up: '2'}}}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200 x-up: 1 x-up: 2")],
            ),
            ("headers: {response: {remove: [x-up]}}", &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200")]),
            (
                "timeout: 2s",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 +x-envoy-expected-rq-timeout-ms: 2000")],
            ),
            (
                "timeout: 2s, retries: {attempts: 1, perTryTimeout: 1s}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 +x-envoy-expected-rq-timeout-ms: 1000")],
            ),
            ("mirror: {host: echo}", &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 copy echo:80")]),
            (
                "mirror: {host: echo, port: {number: 7070}}, mirrorPercentage: {value: 0.1}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 copy echo:7070")],
            ),
            (
                "mirror: {host: echo}, mirrorPercentage: {value: 0}, rewrite: {authority: b}",
                &[("GET /a", "GET b/a > cart-1:80|cart-2:80")],
            ),
            (
                "mirrors: [{destination: {host: echo}}, {destination: {host: cart}, percentage: {value: 50}}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 copy echo:80 copy cart:80")],
            ),
        ],
        rule,
    );
}

#[test]
fn destinations() {
    check_rows(
        &rule(""),
        &[
            (
                "route: [{destination: {host: echo, port: {number: 7070}}}]",
                &[("GET /a", "GET svc/a > echo-1:7070")],
            ),
            ("route: [{destination: {host: echo}}]", &[("GET /a", "GET svc/a > echo-1:80")]),
            (
                "route: [{destination: {host: bank.money.svc.cluster.local}}]",
                &[("GET /a", "GET svc/a > bank-1:80")],
            ),
            ("route: [{destination: {host: cart, subset: v1}}]", &[("GET /a", "503 NC")]),
            ("route: [{destination: {host: nobody}}]", &[("GET /a", "503 NC")]),
            (
                "route: [{destination: {host: cart}, weight: 1, headers: {request: {set: {x-a: a}}}}, {destination: {host: echo}, weight: 1}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 +x-a: a")],
            ),
            (
                "route: [{destination: {host: cart}, headers: {response: {set: {x-up: '3'}}}}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200 x-up: 3")],
            ),
            // The weight of a single one says nothing.
            // One of weight 0 gets nothing, and yet the edits are those of several: the route's come last.
            (
                "headers: {request: {set: {x-a: r}}}, route: [{destination: {host: cart}, weight: 1, headers: {request: {set: {x-a: d}}}}, {destination: {host: nobody}, weight: 0}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 +x-a: r")],
            ),
            ("route: [{destination: {host: echo}, weight: 0}]", &[("GET /a", "GET svc/a > echo-1:80")]),
        ],
        rule,
    );
}

/// Shares of requests converge to the weights, over all numbers that may be drawn.
#[test]
fn weights() {
    let text = "route: [{destination: {host: cart}, weight: 3}, {destination: {host: echo}, weight: 1}]";
    let mut of = world(&rule(text));
    let mut echo = 0;
    for drawn in 0..4000 {
        of.drawn = drawn;
        echo += usize::from(of.outcome("GET /a").contains("echo"));
    }
    assert_eq!(echo, 1000);
}

#[test]
fn answers_of_the_waypoint() {
    check_rows(
        &rule(""),
        &[
            ("directResponse: {status: 418, body: {string: tea}}", &[("GET /a", "418 \"tea\"")]),
            ("directResponse: {status: 200, body: {bytes: aGk=}}", &[("GET /a", "200 \"hi\"")]),
            (
                "directResponse: {status: 503}, headers: {response: {set: {x-a: b}}}",
                &[("GET /a", "503 x-a: b")],
            ),
            ("redirect: {uri: /b}", &[("GET /a", "301 location: http://svc/b")]),
            (
                "redirect: {authority: b.c, redirectCode: 308}",
                &[("GET /a?q", "308 location: http://b.c/a?q")],
            ),
            ("redirect: {scheme: https, port: 8443}", &[("GET /a", "301 location: https://svc:8443/a")]),
            // One that is said counts, also the scheme's own, which is not written.
            ("redirect: {port: 80}", &[("GET /a\nhost: svc:8080", "301 location: http://svc/a")]),
            ("redirect: {port: 8080}", &[("GET /a", "301 location: http://svc:8080/a")]),
            (
                "redirect: {scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}",
                &[("GET /a\nhost: svc:80", "301 location: https://svc/a")],
            ),
            (
                "redirect: {authority: b.c, derivePort: FROM_REQUEST_PORT}",
                &[("GET /a", "301 location: http://b.c/a")],
            ),
            (
                "redirect: {prefixRewrite: /x}, match: [{uri: {prefix: /a}}]",
                &[("GET /a/b", "301 location: http://svc/x/b")],
            ),
            (
                "fault: {abort: {httpStatus: 418, percentage: {value: 100}}}",
                &[("GET /a", "418 \"fault filter abort\" FI")],
            ),
            (
                "fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}",
                &[
                    (
                        "POST /a\ncontent-type: application/grpc",
                        "200 FI content-type: application/grpc grpc-message: fault filter abort grpc-status: 14",
                    ),
                    ("GET /a", "200 \"fault filter abort\" FI"),
                ],
            ),
            (
                "fault: {delay: {fixedDelay: 2s, percentage: {value: 1}}}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200 delayed: 2s x-up: 1")],
            ),
            (
                "fault: {delay: {fixedDelay: 2s, percent: 1}}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200 delayed: 2s x-up: 1")],
            ),
            // No percentage is none.
            (
                "fault: {abort: {httpStatus: 418}}, rewrite: {authority: b}",
                &[("GET /a", "GET b/a > cart-1:80|cart-2:80")],
            ),
            (
                "fault: {abort: {httpStatus: 418, percentage: {value: 0}}}, rewrite: {authority: b}",
                &[("GET /a", "GET b/a > cart-1:80|cart-2:80")],
            ),
        ],
        rule,
    );
}

#[test]
fn cross_origin_requests() {
    let policy = |fields: &str| rule(&format!("corsPolicy: {{{fields}}}"));
    let ask = "OPTIONS /a\norigin: http://ok\naccess-control-request-method: GET";
    let foreign = "OPTIONS /a\norigin: http://no\naccess-control-request-method: GET";
    let passed = "OPTIONS svc/a > cart-1:80|cart-2:80";
    check_rows(
        &rule(""),
        &[
            (
                "allowOrigins: [{exact: 'http://ok'}]",
                &[
                    (ask, "200 access-control-allow-origin: http://ok"),
                    (foreign, passed),
                    // No preflight: another method, or nothing asked for.
                    (
                        "GET /a\norigin: http://ok\naccess-control-request-method: GET",
                        "GET svc/a > cart-1:80|cart-2:80 < 200 access-control-allow-origin: http://ok x-up: 1",
                    ),
                    (
                        "OPTIONS /a\norigin: http://ok",
                        "OPTIONS svc/a > cart-1:80|cart-2:80 < 200 access-control-allow-origin: http://ok x-up: 1",
                    ),
                    (
                        "GET /a\norigin: http://ok",
                        "GET svc/a > cart-1:80|cart-2:80 < 200 access-control-allow-origin: http://ok x-up: 1",
                    ),
                ],
            ),
            ("allowOrigins: [{prefix: 'http://o'}]", &[(ask, "200 access-control-allow-origin: http://ok")]),
            ("allowOrigins: [{regex: '.*ok'}]", &[(ask, "200 access-control-allow-origin: http://ok")]),
            ("allowOrigin: ['http://ok']", &[(ask, "200 access-control-allow-origin: http://ok")]),
            (
                "allowOrigins: [{exact: 'http://ok'}], allowMethods: [GET, PUT]",
                &[(ask, "200 access-control-allow-methods: GET,PUT access-control-allow-origin: http://ok")],
            ),
            (
                "allowOrigins: [{exact: 'http://ok'}], allowHeaders: [x-a]",
                &[(ask, "200 access-control-allow-headers: x-a access-control-allow-origin: http://ok")],
            ),
            (
                "allowOrigins: [{exact: 'http://ok'}], exposeHeaders: [x-b]",
                &[(
                    "GET /a\norigin: http://ok",
                    "GET svc/a > cart-1:80|cart-2:80 < 200 access-control-allow-origin: http://ok access-control-expose-headers: x-b x-up: 1",
                )],
            ),
            (
                "allowOrigins: [{exact: 'http://ok'}], maxAge: 1m",
                &[(ask, "200 access-control-allow-origin: http://ok access-control-max-age: 60")],
            ),
            (
                "allowOrigins: [{exact: 'http://ok'}], allowCredentials: true",
                &[(ask, "200 access-control-allow-credentials: true access-control-allow-origin: http://ok")],
            ),
            ("allowOrigins: [{exact: 'http://ok'}], unmatchedPreflights: IGNORE", &[(foreign, "200")]),
        ],
        policy,
    );
}

/// How often a request is sent to endpoints that answer with this status.
fn tries(retries: &str, upstream: u16) -> String {
    let of = World { upstream, ..world(&rule(&format!("retries: {{{retries}}}"))) };
    let outcome = of.outcome("GET /a");
    outcome.strip_suffix(" times").and_then(|rest| rest.rsplit(' ').next()).unwrap_or("1").to_owned()
}

/// What depends on how a try failed otherwise than by its status is in `l7::retry`.
#[test]
fn retries() {
    for (fields, upstream, wanted) in [
        ("attempts: 3, retryOn: 5xx", 500, "4"),
        ("attempts: 0", 503, "1"),
        ("attempts: 2", 500, "1"),
        ("attempts: 2, retryOn: gateway-error", 502, "3"),
        ("attempts: 2, retryOn: gateway-error", 500, "1"),
        ("attempts: 2, retryOn: retriable-4xx", 409, "3"),
        ("attempts: 2, retryOn: retriable-4xx", 404, "1"),
        ("attempts: 1, retryOn: 'retriable-status-codes,418'", 418, "2"),
        ("attempts: 1, retryOn: '418'", 503, "1"),
    ] {
        assert_eq!(tries(fields, upstream), wanted, "{fields} {upstream}");
    }
}

/// Once a rule is there for HTTP there is no default route; list order decides, not what matches best.
#[test]
fn order_of_rules() {
    let both = virtual_service(
        "{match: [{uri: {prefix: /a}}], directResponse: {status: 203}}, \
         {match: [{uri: {exact: /a}}], directResponse: {status: 202}}",
    );
    let of = world(&both);
    assert_eq!(of.outcome("GET /a"), "203");
    assert_eq!(of.outcome("GET /b"), NOT_FOUND);
    let tea = "hosts: [cart], http: [{directResponse: {status: 418}}]";
    for (namespace, more, wanted) in [
        ("shop", "", "418"),
        ("shop", ", gateways: [mesh]", "418"),
        ("shop", ", gateways: [gw]", CART),
        ("shop", ", exportTo: [money]", CART),
    ] {
        let text = object("VirtualService", namespace, "name: vs", &format!("{tea}{more}"));
        assert_eq!(world(&text).outcome("GET /a"), wanted, "{namespace} {more}");
    }
    // That of a client's namespace has no effect.
    let of_client = "hosts: [cart.shop.svc.cluster.local], http: [{directResponse: {status: 418}}]";
    let of_client = object("VirtualService", "money", "name: vs", of_client);
    assert_eq!(world(&of_client).outcome("GET /a\npeer: money/x"), CART);
}

#[test]
fn delegates() {
    let leaf = "http: [{match: [{uri: {prefix: /a}}], directResponse: {status: 418}}]";
    let text = rule("delegate: {name: leaf, namespace: money}, match: [{uri: {prefix: /a}}]")
        + &object("VirtualService", "money", "name: leaf", leaf);
    let of = world(&text);
    assert_eq!((of.outcome("GET /a"), of.outcome("GET /b")), ("418".into(), NOT_FOUND.into()));
}
