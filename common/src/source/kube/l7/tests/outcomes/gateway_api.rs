//! HTTPRoutes and GRPCRoutes.

use super::*;

const TO: &str = "backendRefs: [{name: cart, port: 80}]";
const NOT_FOUND: &str = "404 NR";

fn route(kind: &str, parent: &str, rules: &str) -> String {
    let spec = format!("parentRefs: [{{group: '', kind: Service, {parent}}}], rules: [{rules}]");
    object(kind, "shop", "name: r", &spec)
}

/// An HTTPRoute of `cart` with one rule; without an action of its own it sends to `cart`.
fn rule(fields: &str) -> String {
    let acts = ["backendRefs:", "RequestRedirect"].iter().any(|key| fields.contains(key));
    let to = if acts { String::new() } else { format!("{TO}, ") };
    route("HTTPRoute", "name: cart", &format!("{{{to}{fields}}}"))
}

#[test]
fn matches() {
    check_rows(
        &rule(""),
        &[
            ("matches: [{path: {type: Exact, value: /a}}]", &[("GET /a", CART), ("GET /a/", NOT_FOUND)]),
            (
                "matches: [{path: {type: PathPrefix, value: /a}}]",
                &[("GET /a/b", "GET svc/a/b > cart-1:80|cart-2:80"), ("GET /ab", NOT_FOUND)],
            ),
            (
                "matches: [{path: {type: PathPrefix, value: /a/}}]",
                &[("GET /a", CART), ("GET /ab", NOT_FOUND)],
            ),
            (
                "matches: [{path: {type: RegularExpression, value: '/a+'}}]",
                &[("GET /a", CART), ("GET /a/", NOT_FOUND)],
            ),
            ("matches: [{method: GET}]", &[("GET /a", CART), ("PUT /a", NOT_FOUND)]),
            (
                "matches: [{headers: [{name: X-A, value: v}]}]",
                &[("GET /a\nx-a: v", CART), ("GET /a\nx-a: w", NOT_FOUND)],
            ),
            (
                "matches: [{headers: [{name: x-a, type: RegularExpression, value: v+}]}]",
                &[("GET /a\nx-a: vv", CART), ("GET /a\nx-a: vw", NOT_FOUND)],
            ),
            (
                "matches: [{queryParams: [{name: q, value: v}]}]",
                &[
                    ("GET /a?q=v&q=w", "GET svc/a?q=v&q=w > cart-1:80|cart-2:80"),
                    ("GET /a?q=w&q=v", NOT_FOUND),
                ],
            ),
            (
                "matches: [{queryParams: [{name: q, type: RegularExpression, value: v+}]}]",
                &[("GET /a?q=vv", "GET svc/a?q=vv > cart-1:80|cart-2:80"), ("GET /a", NOT_FOUND)],
            ),
            (
                "matches: [{method: GET, headers: [{name: x-a, value: v}]}, {path: {value: /b}}]",
                &[
                    ("GET /a\nx-a: v", CART),
                    ("GET /a", NOT_FOUND),
                    ("PUT /b", "PUT svc/b > cart-1:80|cart-2:80"),
                ],
            ),
        ],
        rule,
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn filters() {
    check_rows(
        &rule(""),
        &[
            (
                "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: b}]}}]",
                &[("GET /a\nx-a: a", "GET svc/a > cart-1:80|cart-2:80 -x-a: a +x-a: b")],
            ),
            (
                "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-a, value: b}]}}]",
                &[("GET /a\nx-a: a", "GET svc/a > cart-1:80|cart-2:80 +x-a: b")],
            ),
            (
                "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-a]}}]",
                &[("GET /a\nx-a: a", "GET svc/a > cart-1:80|cart-2:80 -x-a: a")],
            ),
            (
                "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-up, value: '2'}]}}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200 x-up: 2")],
            ),
            (
                "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-b, value: b}]}}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200 x-b: b x-up: 1")],
            ),
            (
                "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-up]}}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200")],
            ),
            (
                "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 80}}}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 copy echo:80")],
            ),
            (
                "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 80}, percent: 1}}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 copy echo:80")],
            ),
            (
                "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 80}, fraction: {numerator: 1, denominator: 1000}}}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 copy echo:80")],
            ),
            (
                "filters: [{type: URLRewrite, urlRewrite: {hostname: b.c}}]",
                &[("GET /a", "GET b.c/a > cart-1:80|cart-2:80")],
            ),
            (
                "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /b}}}]",
                &[("GET /a/x", "GET svc/b > cart-1:80|cart-2:80 +x-envoy-original-path: /a/x")],
            ),
            (
                "matches: [{path: {value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]",
                &[
                    ("GET /a/x", "GET svc/x > cart-1:80|cart-2:80 +x-envoy-original-path: /a/x"),
                    ("GET /a", "GET svc/ > cart-1:80|cart-2:80 +x-envoy-original-path: /a"),
                ],
            ),
            (
                "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /xyz}}}]",
                &[("GET /foo", "GET svc/xyz/foo > cart-1:80|cart-2:80 +x-envoy-original-path: /foo")],
            ),
            (
                "filters: [{type: CORS, cors: {allowOrigins: ['https://*.b.c'], maxAge: 9}}]",
                &[
                    (
                        "OPTIONS /a\norigin: https://a.b.c\naccess-control-request-method: PUT",
                        "200 access-control-allow-origin: https://a.b.c access-control-max-age: 9",
                    ),
                    (
                        "OPTIONS /a\norigin: https://b.c\naccess-control-request-method: PUT",
                        "200 access-control-max-age: 9",
                    ),
                ],
            ),
            (
                "filters: [{type: CORS, cors: {allowOrigins: ['*'], allowMethods: [PUT], allowHeaders: [x-a], exposeHeaders: [x-b], allowCredentials: true}}]",
                &[(
                    "OPTIONS /a\norigin: https://a\naccess-control-request-method: PUT",
                    "200 access-control-allow-credentials: true access-control-allow-headers: x-a access-control-allow-methods: PUT access-control-allow-origin: https://a access-control-expose-headers: x-b access-control-max-age: 5",
                )],
            ),
            // What cannot be done closes its rule, it is not passed over.
            (
                "filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: Own, name: c}}]",
                &[("GET /a", "500")],
            ),
            ("filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC}}]", &[("GET /a", "500")]),
            ("sessionPersistence: {type: Cookie}", &[("GET /a", "500")]),
        ],
        rule,
    );
}

#[test]
fn redirects() {
    let redirect = |fields: &str| {
        rule(&format!(
            "matches: [{{path: {{value: /a}}}}], filters: [{{type: RequestRedirect, requestRedirect: {{{fields}}}}}]"
        ))
    };
    check_rows(
        &rule(""),
        &[
            ("hostname: b.c", &[("GET /a", "302 location: http://b.c/a")]),
            ("hostname: b.c, statusCode: 307", &[("GET /a", "307 location: http://b.c/a")]),
            ("scheme: https", &[("GET /a", "302 location: https://svc/a")]),
            ("port: 8080", &[("GET /a", "302 location: http://svc:8080/a")]),
            ("scheme: https, port: 443", &[("GET /a", "302 location: https://svc/a")]),
            (
                "path: {type: ReplaceFullPath, replaceFullPath: /b}",
                &[("GET /a/x", "302 location: http://svc/b")],
            ),
            (
                "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}",
                &[("GET /a/x", "302 location: http://svc/x")],
            ),
        ],
        redirect,
    );
}

#[test]
fn times_and_retries() {
    check_rows(
        &rule(""),
        &[
            (
                "timeouts: {request: 2s}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 +x-envoy-expected-rq-timeout-ms: 2000")],
            ),
            (
                "timeouts: {request: 2s, backendRequest: 1s}, retry: {attempts: 1}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 +x-envoy-expected-rq-timeout-ms: 1000")],
            ),
            (
                "timeouts: {backendRequest: 1s}",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 +x-envoy-expected-rq-timeout-ms: 1000")],
            ),
            (
                "timeouts: {request: 0s}, name: x, filters: [{type: URLRewrite, urlRewrite: {hostname: b}}]",
                &[("GET /a", "GET b/a > cart-1:80|cart-2:80")],
            ),
        ],
        rule,
    );
    for (fields, upstream, wanted) in [
        ("retry: {codes: [500], attempts: 3}", 500, true),
        ("retry: {codes: [500]}", 503, false),
        ("", 500, false),
    ] {
        let of = World { upstream, ..world(&rule(fields)) };
        assert_eq!(of.outcome("GET /a").ends_with(" times"), wanted, "{fields}");
    }
    let of = World { upstream: 500, ..world(&rule("retry: {codes: [500], attempts: 3}")) };
    assert!(of.outcome("GET /a").ends_with(" 4 times"));
}

#[test]
fn backends() {
    check_rows(
        &rule(""),
        &[
            ("backendRefs: [{name: echo, port: 7070}]", &[("GET /a", "GET svc/a > echo-1:7070")]),
            (
                "backendRefs: [{name: bank, namespace: money, port: 80}]",
                &[("GET /a", "GET svc/a > bank-1:80")],
            ),
            (
                "backendRefs: [{name: cart, port: 80, weight: 0}, {name: echo, port: 80}]",
                &[("GET /a", "GET svc/a > echo-1:80")],
            ),
            ("backendRefs: [{name: nobody, port: 80}]", &[("GET /a", "500 NC")]),
            (
                "backendRefs: [{name: nobody, port: 80, weight: 0}, {name: echo, port: 80}]",
                &[("GET /a", "GET svc/a > echo-1:80")],
            ),
            ("backendRefs: [{name: cart, port: 81}]", &[("GET /a", "500 NC")]),
            ("backendRefs: [{name: cart, port: 80, weight: 0}]", &[("GET /a", "500")]),
            ("backendRefs: []", &[("GET /a", "500")]),
            (
                "backendRefs: [{group: networking.istio.io, kind: Hostname, name: echo.shop.svc.cluster.local, port: 80}]",
                &[("GET /a", "GET svc/a > echo-1:80")],
            ),
            (
                "backendRefs: [{name: cart, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: a}]}}]}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 +x-a: a")],
            ),
            (
                "backendRefs: [{name: cart, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: b.c}}]}]",
                &[("GET /a", "GET b.c/a > cart-1:80|cart-2:80")],
            ),
            (
                "backendRefs: [{name: cart, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-up]}}]}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 < 200")],
            ),
            (
                "backendRefs: [{name: cart, port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 80}}}]}]",
                &[("GET /a", "GET svc/a > cart-1:80|cart-2:80 copy echo:80")],
            ),
        ],
        rule,
    );
    let mut of = world(&rule("backendRefs: [{name: cart, port: 80, weight: 3}, {name: nobody, port: 80}]"));
    let mut answered = [0, 0];
    for drawn in 0..400 {
        of.drawn = drawn;
        answered[usize::from(of.outcome("GET /a") == "500 NC")] += 1;
    }
    assert_eq!(answered, [300, 100], "a backend that is not there answers 500 for its share");
}

#[test]
fn parents_and_order() {
    let tea = "{filters: [{type: RequestRedirect, requestRedirect: {hostname: b.c}}]}";
    let to_echo = "GET /a\nto: 10.96.0.2:80";
    let to_grpc = "GET /a\nto: 10.96.0.2:7070";
    let away = "302 location: http://b.c/a";
    let (echo, echo_grpc) = ("GET svc/a > echo-1:80", "GET svc/a > echo-1:7070");
    for (parent, on_http, on_grpc) in [
        ("name: echo", away, "302 location: http://b.c:7070/a"),
        ("name: echo, port: 80", away, echo_grpc),
        ("name: echo, sectionName: grpc", echo, "302 location: http://b.c:7070/a"),
        ("name: echo, sectionName: http, port: 7070", echo, echo_grpc),
        ("name: echo, port: 81", echo, echo_grpc),
        ("name: cart", echo, echo_grpc),
    ] {
        let of = world(&route("HTTPRoute", parent, tea));
        assert_eq!((of.outcome(to_echo), of.outcome(to_grpc)), (on_http.into(), on_grpc.into()), "{parent}");
    }
    // What matches more closely comes first, in whichever order the rules stand.
    let answer = |path: &str, host: &str| {
        format!(
            "{{matches: [{{path: {path}}}], filters: [{{type: RequestRedirect, requestRedirect: {{hostname: {host}}}}}]}}"
        )
    };
    let rules = [
        answer("{value: /a}", "short"),
        answer("{value: /a/b}", "long"),
        answer("{type: Exact, value: /a/b}", "exact"),
    ];
    let of = world(&route("HTTPRoute", "name: cart", &rules.join(", ")));
    assert_eq!(of.outcome("GET /a/b"), "302 location: http://exact/a/b");
    assert_eq!(of.outcome("GET /a/b/c"), "302 location: http://long/a/b/c");
    assert_eq!(of.outcome("GET /a/c"), "302 location: http://short/a/c");
    // Of one path: a method, then more headers, then more query parameters.
    let more = [
        "method: GET",
        "headers: [a, b]",
        "headers: [a], queryParams: [q]",
        "headers: [a]",
        "queryParams: [q, r]",
    ];
    let tests = more.into_iter().chain(["queryParams: [q]", "name: bare"]).enumerate().map(|(number, test)| {
        let all = ["a", "b", "q", "r"].iter().fold(test.replace("name: bare", ""), |text, name| {
            text.replace(&format!("[{name}"), &format!("[{{name: {name}, value: v}}"))
                .replace(&format!(", {name}]"), &format!(", {{name: {name}, value: v}}]"))
        });
        format!("{{matches: [{{path: {{value: /p}}, {all}}}], filters: [{{type: RequestRedirect, requestRedirect: {{hostname: h{number}}}}}]}}")
    });
    let mut tests: Vec<String> = tests.collect();
    tests.reverse();
    let of = world(&route("HTTPRoute", "name: cart", &tests.join(", ")));
    for (number, request) in [
        "GET /p?q=v&r=v\na: v\nb: v",
        "PUT /p?q=v&r=v\na: v\nb: v",
        "PUT /p?q=v&r=v\na: v",
        "PUT /p\na: v",
        "PUT /p?q=v&r=v",
        "PUT /p?q=v",
        "PUT /p",
    ]
    .into_iter()
    .enumerate()
    {
        let outcome = of.outcome(request);
        assert!(outcome.starts_with(&format!("302 location: http://h{number}/p")), "{request:?}: {outcome}");
    }
}

#[test]
fn calls_of_grpc() {
    let rule = |fields: &str| route("GRPCRoute", "name: cart", &format!("{{{TO}, {fields}}}"));
    let call = |path: &str| format!("POST {path}\ncontent-type: application/grpc");
    let refused = "200 NR content-type: application/grpc grpc-status: 12";
    let to = |path: &str| format!("POST svc{path} > cart-1:80|cart-2:80");
    for (fields, path, is_passed) in [
        ("matches: [{method: {service: a.B, method: C}}]", "/a.B/C", true),
        ("matches: [{method: {service: a.B, method: C}}]", "/a.B/D", false),
        ("matches: [{method: {service: a.B}}]", "/a.B/D", true),
        ("matches: [{method: {service: a.B}}]", "/a.C/D", false),
        ("matches: [{method: {method: C}}]", "/x.Y/C", true),
        ("matches: [{method: {method: C}}]", "/x.Y/D", false),
        ("matches: [{method: {type: RegularExpression, service: 'a.+', method: '(C|D)'}}]", "/a.B/D", true),
        ("matches: [{method: {type: RegularExpression, service: 'a.+', method: '(C|D)'}}]", "/b.B/D", false),
        ("matches: [{headers: [{name: x-a, value: v}]}]", "/a.B/C", false),
        ("", "/a.B/C", true),
    ] {
        let outcome = world(&rule(fields)).outcome(&call(path));
        assert_eq!(outcome, if is_passed { to(path) } else { refused.to_owned() }, "{fields} {path}");
    }
    let of = world(&rule(
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: a}]}}]",
    ));
    assert_eq!(of.outcome(&call("/a.B/C")), format!("{} +x-a: a", to("/a.B/C")));
    let of =
        world(&rule("filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-up]}}]"));
    assert_eq!(of.outcome(&call("/a.B/C")), format!("{} < 200", to("/a.B/C")));
    let of =
        world(&rule("filters: [{type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 80}}}]"));
    assert_eq!(of.outcome(&call("/a.B/C")), format!("{} copy echo:80", to("/a.B/C")));
}
