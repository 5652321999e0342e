//! HTTPRoutes and GRPCRoutes, field by field; where they count; their conditions.

use super::*;
use crate::model::l7::Retries;

fn http_route(meta: &str, parent: &str, rules: &str) -> String {
    let spec = format!("parentRefs: [{{group: '', kind: Service, {parent}}}], rules: [{rules}]");
    object("HTTPRoute", "shop", meta, &spec)
}

fn grpc_route(meta: &str, parent: &str, rules: &str) -> String {
    http_route(meta, parent, rules).replace("HTTPRoute", "GRPCRoute")
}

const TO: &str = "backendRefs: [{name: cart, port: 80}]";

/// The routes of `cart` from an HTTPRoute with this rule beside a backend.
fn rule(fields: &str) -> Route {
    let text = http_route("name: r", "name: cart", &format!("{{{TO}, {fields}}}"));
    http(&translated(&text), "cart", 80).remove(0)
}

fn bare(fields: &str) -> Route {
    http(&translated(&http_route("name: r", "name: cart", &format!("{{{fields}}}"))), "cart", 80).remove(0)
}

type Part = fn(&Route) -> String;

#[test]
fn matches() {
    let path: Part = |r| format!("{:?}", r.matches[0].path.as_ref().unwrap());
    let headers: Part = |r| format!("{:?}", r.matches[0].headers);
    let query: Part = |r| format!("{:?}", r.matches[0].query);
    let method: Part = |r| format!("{:?}", r.matches[0].method);
    for (fields, part, wanted) in [
        ("{path: {type: Exact, value: /a}}", path, r#"Text { text: Exact("/a"), ignore_case: false }"#),
        ("{path: {type: PathPrefix, value: /a/}}", path, r#"Segments("/a")"#),
        ("{path: {value: /a}}", path, r#"Segments("/a")"#),
        (
            "{path: {type: RegularExpression, value: '/a+'}}",
            path,
            "Text { text: Regex(//a+/), ignore_case: false }",
        ),
        (
            "{headers: [{name: X-A, value: v}]}",
            headers,
            r#"[HeaderMatch { name: "x-a", value: Exact("v") }]"#,
        ),
        (
            "{headers: [{name: x-a, type: RegularExpression, value: v+}]}",
            headers,
            r#"[HeaderMatch { name: "x-a", value: Regex(/v+/) }]"#,
        ),
        (
            "{headers: [{name: x-a, value: v}, {name: X-A, value: w}]}",
            headers,
            r#"[HeaderMatch { name: "x-a", value: Exact("v") }]"#,
        ),
        ("{queryParams: [{name: Q, value: v}]}", query, r#"[QueryMatch { name: "Q", value: Exact("v") }]"#),
        (
            "{queryParams: [{name: q, type: RegularExpression, value: v+}]}",
            query,
            r#"[QueryMatch { name: "q", value: Regex(/v+/) }]"#,
        ),
        ("{method: PATCH}", method, r#"Some(Exact("PATCH"))"#),
    ] {
        assert_eq!(part(&rule(&format!("matches: [{fields}]"))), wanted, "{fields}");
        assert_ne!(part(&rule("")), wanted, "{fields}");
    }
    assert_eq!(path(&rule("")), r#"Segments("")"#, "everything");
}

#[test]
fn grpc_methods() {
    for (fields, wanted) in [
        (
            "{method: {service: a.B, method: C}}",
            r#"Some(Text { text: Exact("/a.B/C"), ignore_case: false })"#,
        ),
        ("{method: {service: a.B}}", r#"Some(Segments("/a.B"))"#),
        ("{method: {method: C}}", "Some(Text { text: Regex(//[^/]+/C/), ignore_case: false })"),
        (
            "{method: {type: RegularExpression, service: 'a.*', method: 'C|D'}}",
            "Some(Text { text: Regex(//a.*/C|D/), ignore_case: false })",
        ),
        (
            "{method: {type: RegularExpression, service: a}}",
            "Some(Text { text: Regex(//a/.+/), ignore_case: false })",
        ),
        (
            "{method: {type: RegularExpression, method: a}}",
            "Some(Text { text: Regex(//[^/]+/a/), ignore_case: false })",
        ),
        ("{}", "None"),
    ] {
        let text = grpc_route("name: r", "name: echo, port: 7070", &format!("{{{TO}, matches: [{fields}]}}"));
        let route = http(&translated(&text), "echo", 7070).remove(0);
        assert_eq!(format!("{:?}", route.matches[0].path), wanted, "{fields}");
        assert_eq!(route.origin.to_string(), "GRPCRoute shop/r rule 0");
    }
    let text = grpc_route(
        "name: r",
        "name: echo",
        &format!("{{{TO}, matches: [{{headers: [{{name: x, value: v}}]}}]}}"),
    );
    assert_eq!(http(&translated(&text), "echo", 7070)[0].matches[0].headers.len(), 1);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn filters() {
    let request: Part = |r| format!("{:?}", r.request_headers);
    let response: Part = |r| format!("{:?}", r.response_headers);
    let rewrite: Part = |r| format!("{:?}", r.rewrite);
    let mirrors: Part = |r| {
        r.mirrors
            .iter()
            .map(|m| format!("{} {}", m.share.0, shown(&m.backend)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let prefix = "matches: [{path: {value: /a}}],";
    let mirror = |rest: &str| {
        format!(
            "filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: echo, port: 80}}{rest}}}}}]"
        )
    };
    let rows: [(String, Part, &str); 13] = [
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: 50%}], \
             add: [{name: b, value: c}], remove: [D]}}]"
                .into(),
            request,
            r#"HeaderEdits { set: [("x-a", "50%%")], add: [("b", "c")], remove: ["d"], authority: None }"#,
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: a.b}]}}]".into(),
            request,
            r#"HeaderEdits { set: [], add: [], remove: [], authority: Some("a.b") }"#,
        ),
        (
            "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}]".into(),
            response,
            r#"HeaderEdits { set: [("a", "b")], add: [], remove: ["c"], authority: None }"#,
        ),
        (mirror(""), mirrors, "1000000 echo:80"),
        (mirror(", percent: 25"), mirrors, "250000 echo:80"),
        (mirror(", fraction: {numerator: 1, denominator: 8}"), mirrors, "125000 echo:80"),
        (mirror(", fraction: {numerator: 3}"), mirrors, "30000 echo:80"),
        (
            "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 80}}}, \
             {type: RequestMirror, requestMirror: {backendRef: {name: bank, namespace: money, port: 80}}}]"
                .into(),
            mirrors,
            "1000000 echo:80, 1000000 bank:80",
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}]".into(),
            rewrite,
            r#"Rewrite { path: None, authority: Some("a.b") }"#,
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /x}}}]".into(),
            rewrite,
            r#"Rewrite { path: Some(Full("/x")), authority: None }"#,
        ),
        (
            format!("{prefix} filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /x}}}}}}]"),
            rewrite,
            r#"Rewrite { path: Some(PrefixSegments("/x")), authority: None }"#,
        ),
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['https://*.a.b', 'http://c', '*'], allowMethods: [GET, '*'], \
             allowHeaders: [x-a], exposeHeaders: [x-b], maxAge: 9, allowCredentials: true}}]"
                .into(),
            |r| format!("{:?}", r.cors.as_ref()),
            r#"Some(Cors { origins: [Regex(/https://.+\.a\.b/), Exact("http://c"), Prefix("")], methods: Some("GET,*"), headers: Some("x-a"), expose: Some("x-b"), max_age: Some(9s), credentials: true, unmatched: Answer })"#,
        ),
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['http://c']}}]".into(),
            |r| format!("{:?}", r.cors.as_ref().map(|cors| (cors.max_age, cors.credentials))),
            "Some((Some(5s), false))",
        ),
    ];
    for (fields, part, wanted) in rows {
        assert_eq!(part(&rule(&fields)), wanted, "{fields}");
        assert_ne!(part(&rule("")), wanted, "{fields}");
    }
}

#[test]
fn redirects() {
    for (fields, wanted) in [
        (
            "hostname: a.b",
            r#"status: 302, scheme: None, authority: Some("a.b"), port: OfRequest, path: Same"#,
        ),
        (
            "scheme: https, statusCode: 301",
            r#"status: 301, scheme: Some("https"), authority: None, port: OfScheme, path: Same"#,
        ),
        (
            "scheme: https, port: 8443",
            r#"status: 302, scheme: Some("https"), authority: None, port: Number(8443), path: Same"#,
        ),
        ("port: 80", "status: 302, scheme: None, authority: None, port: Number(80), path: Same"),
        ("statusCode: 303", "status: 303, scheme: None, authority: None, port: OfRequest, path: Same"),
        ("statusCode: 307", "status: 307, scheme: None, authority: None, port: OfRequest, path: Same"),
        ("statusCode: 308", "status: 308, scheme: None, authority: None, port: OfRequest, path: Same"),
        (
            "path: {type: ReplaceFullPath, replaceFullPath: /x}",
            r#"status: 302, scheme: None, authority: None, port: OfRequest, path: Full("/x")"#,
        ),
        (
            "path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}",
            r#"status: 302, scheme: None, authority: None, port: OfRequest, path: PrefixSegments("/x")"#,
        ),
    ] {
        let route = bare(&format!(
            "matches: [{{path: {{value: /a}}}}], filters: [{{type: RequestRedirect, requestRedirect: {{{fields}}}}}]"
        ));
        assert_eq!(format!("{:?}", route.action), format!("Redirect(Redirect {{ {wanted} }})"), "{fields}");
    }
}

#[test]
fn timeouts_and_retries() {
    let shown = |fields: &str| {
        let route = rule(fields);
        let Retries { attempts, on, per_try_timeout, back_off, .. } = route.retries;
        format!("{:?} {per_try_timeout:?} {attempts} {:?} {back_off:?}", route.timeout, on.statuses)
    };
    let pause = "Jittered { base: 25ms }";
    for (fields, wanted) in [
        ("", format!("None None 2 [] {pause}")),
        ("timeouts: {request: 1m30s}", format!("Some(90s) None 2 [] {pause}")),
        ("timeouts: {request: 0s}", format!("None None 2 [] {pause}")),
        ("timeouts: {backendRequest: 500ms}", format!("Some(500ms) None 2 [] {pause}")),
        ("timeouts: {request: 2s, backendRequest: 1s}", format!("Some(1s) None 2 [] {pause}")),
        ("timeouts: {request: 2s, backendRequest: 1s}, retry: {}", format!("Some(2s) Some(1s) 2 [] {pause}")),
        ("retry: {attempts: 5, codes: [500, 503]}", format!("None None 5 [500, 503] {pause}")),
        ("retry: {backoff: 100ms}", "None None 2 [] AtLeast(100ms)".into()),
    ] {
        assert_eq!(shown(fields), wanted, "{fields}");
    }
    let on = rule("retry: {codes: [500]}").retries.on;
    assert!(on.connect_failure && on.refused_stream && !on.five_xx);
    assert_eq!(on.grpc_statuses, [14, 1]);
}

#[test]
fn backends() {
    for (refs, wanted) in [
        ("{name: cart, port: 80}", "1 cart:80".to_owned()),
        (
            "{name: cart, port: 80, weight: 9}, {name: echo, port: 7070, weight: 1}",
            "9 cart:80, 1 echo:7070".into(),
        ),
        ("{name: cart, port: 80}, {name: echo, port: 80, weight: 0}", "1 cart:80".into()),
        // A backend that is not there and gets nothing breaks nothing.
        ("{name: cart, port: 80}, {name: nobody, port: 80, weight: 0}", "1 cart:80".into()),
        (
            "{name: cart, port: 80}, {name: nobody, port: 80}",
            "1 cart:80, 1 500: no Service shop/nobody is known".into(),
        ),
        ("{name: nobody, port: 80}", "1 500: no Service shop/nobody is known".into()),
        // No grant is needed in a mesh.
        ("{name: bank, namespace: money, port: 80}", "1 bank:80".into()),
        ("{name: cart, port: 81}", "1 500: cart.shop.svc.cluster.local has no TCP port 81".into()),
        (
            "{name: cart.shop, port: 80}",
            "1 500: Service cart.shop: the object's name is needed, not its host name".into(),
        ),
        (
            "{group: example.com, kind: Bucket, name: a}",
            "1 500: Bucket of group \"example.com\" is no backend here".into(),
        ),
        (
            "{group: networking.istio.io, kind: Hostname, name: cart.shop.svc.cluster.local, port: 80}",
            "1 cart:80".into(),
        ),
        (
            "{group: networking.istio.io, kind: Hostname, name: cart.shop.svc.cluster.local}",
            "1 cart:80".into(),
        ),
        (
            "{group: networking.istio.io, kind: Hostname, name: echo.shop.svc.cluster.local}",
            "1 500: no port for echo.shop.svc.cluster.local".into(),
        ),
        (
            "{group: networking.istio.io, kind: Hostname, name: a.b, port: 80}",
            "1 500: no service a.b is known".into(),
        ),
        ("{name: cart, port: 80, weight: 0}", "500 \"\"".into()),
        ("", "500 \"\"".into()),
    ] {
        assert_eq!(action(&bare(&format!("backendRefs: [{refs}]"))), wanted, "{refs}");
    }
    let route = bare(
        "backendRefs: [{name: cart, port: 80, filters: [\
         {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}, \
         {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [c]}}, \
         {type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 80}}}, \
         {type: URLRewrite, urlRewrite: {hostname: d.e}}]}]",
    );
    let RouteAction::Forward(all) = route.action else { panic!() };
    assert_eq!((all[0].request_headers.set.len(), all[0].response_headers.remove.len()), (1, 1));
    assert_eq!((all[0].mirrors.len(), all[0].rewrite.authority.is_some()), (1, true));
}

#[test]
fn rules_without_effect_answer_500() {
    for filter in [
        "{type: ExtensionRef, extensionRef: {group: a.b, kind: Own, name: c}}",
        "{type: ExternalAuth, externalAuth: {protocol: GRPC}}",
    ] {
        assert_eq!(action(&rule(&format!("filters: [{filter}]"))), "500 \"\"", "{filter}");
    }
    assert_eq!(action(&rule("sessionPersistence: {type: Cookie}")), "500 \"\"");
    for filter in ["{type: RequestRedirect, requestRedirect: {}}", "{type: CORS, cors: {}}"] {
        let route = bare(&format!(
            "backendRefs: [{{name: cart, port: 80, filters: [{filter}]}}, {{name: echo, port: 80}}]"
        ));
        assert!(action(&route).starts_with("1 500: ") && action(&route).ends_with("1 echo:80"), "{filter}");
    }
    let none = object("HTTPRoute", "shop", "name: r", "parentRefs: [{group: '', kind: Service, name: cart}]");
    assert_eq!(action(&http(&translated(&none), "cart", 80)[0]), "500 \"\"");
}

#[test]
fn names_of_routes() {
    assert_eq!(&*rule("").name, "shop.r.0");
    assert_eq!(&*rule("name: my.own").name, "my.own");
    let two = http_route(
        "name: r",
        "name: cart",
        &format!("{{{TO}, matches: [{{path: {{value: /a}}}}, {{path: {{value: /b}}}}]}}, {{{TO}}}"),
    );
    let names: Vec<String> = http(&translated(&two), "cart", 80).iter().map(|r| r.name.to_string()).collect();
    assert_eq!(names, ["shop.r.0", "shop.r.0", "shop.r.1"]);
}

/// On which ports of `echo` an HTTPRoute of `namespace` with this parent counts, and its conditions.
fn attached(namespace: &str, parent: &str) -> (Vec<u16>, String) {
    let spec = format!(
        "parentRefs: [{parent}], rules: [{{backendRefs: [{{name: cart, namespace: shop, port: 80}}]}}]"
    );
    let of = translated(&object("HTTPRoute", namespace, "name: r", &spec));
    let own = |port: &u16| http(&of, "echo", *port)[0].origin.kind == "HTTPRoute";
    let ports = [80, 7070].into_iter().filter(own).collect();
    let status = of.statuses.iter().find(|status| status.kind == "HTTPRoute");
    let line = |c: &Condition| format!("{}={} {}", c.kind, c.holds, c.reason);
    let conditions = status.map(|s| s.conditions.iter().map(line).collect::<Vec<_>>().join(", "));
    (ports, conditions.unwrap_or_default())
}

#[test]
fn parents() {
    let good =
        "Accepted=true Accepted, ResolvedRefs=true ResolvedRefs, ResolvedWaypoints=true ResolvedWaypoints";
    let missing = "Accepted=false NoMatchingParent, ResolvedRefs=true ResolvedRefs";
    for (namespace, parent, ports, conditions) in [
        ("shop", "{group: '', kind: Service, name: echo}", &[80, 7070][..], good),
        ("shop", "{group: '', kind: Service, name: echo, port: 80}", &[80], good),
        ("shop", "{group: '', kind: Service, name: echo, sectionName: grpc}", &[7070], good),
        ("shop", "{group: '', kind: Service, name: echo, sectionName: grpc, port: 7070}", &[7070], good),
        ("shop", "{group: '', kind: Service, name: echo, sectionName: grpc, port: 80}", &[], missing),
        ("shop", "{group: '', kind: Service, name: echo, port: 81}", &[], missing),
        ("shop", "{group: '', kind: Service, name: echo, sectionName: none}", &[], missing),
        ("shop", "{group: '', kind: Service, name: nobody}", &[], missing),
        ("shop", "{group: networking.istio.io, kind: ServiceEntry, name: echo}", &[], missing),
        (
            "money",
            "{group: '', kind: Service, name: echo, namespace: shop}",
            &[],
            "Accepted=false NotAllowedByListeners, ResolvedRefs=true ResolvedRefs",
        ),
        // For other controllers: no status of ours.
        ("shop", "{name: ingress}", &[], ""),
        ("shop", "{kind: Service, name: echo}", &[], ""),
        ("shop", "{group: example.com, kind: Service, name: echo}", &[], ""),
    ] {
        assert_eq!(
            attached(namespace, parent),
            (ports.to_vec(), conditions.to_owned()),
            "{namespace} {parent}"
        );
    }
}

#[test]
fn conditions() {
    let shown = |rules: &str, parent: &str| {
        let of = translated(&http_route("name: r", parent, rules));
        let status = of.statuses.into_iter().find(|status| status.kind == "HTTPRoute").unwrap();
        let line = |c: &Condition| format!("{}={} {}: {}", c.kind, c.holds, c.reason, c.message);
        let conditions: Vec<String> = status.conditions.iter().map(line).collect();
        (status.part.unwrap().to_string(), conditions)
    };
    let extension = "filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: Own, name: c}}]";
    let (part, conditions) =
        shown(&format!("{{{TO}}}, {{{TO}, {extension}}}"), "name: cart, port: 80, sectionName: http");
    assert_eq!(part, "Service shop/cart:80#http");
    assert_eq!(
        conditions,
        [
            "Accepted=true Accepted: Route was valid",
            "PartiallyInvalid=true UnsupportedValue: spec.rules[1].filters[0]: no filter Own c is known",
            "ResolvedRefs=true ResolvedRefs: All references resolved",
            "ResolvedWaypoints=true ResolvedWaypoints: cart goes through waypoint shop/wp",
        ]
    );
    let on_backend = format!("{{backendRefs: [{{name: cart, port: 80, {extension}}}]}}");
    let (_, conditions) = shown(&on_backend, "name: cart");
    assert!(
        conditions[1].starts_with("PartiallyInvalid=true UnsupportedValue: spec.rules[0].backendRefs[0]")
    );
    let (_, conditions) = shown(&format!("{{{TO}, {extension}}}"), "name: cart");
    assert!(conditions[0].starts_with("Accepted=false UnsupportedValue"), "{conditions:?}");
    for (refs, wanted) in [
        ("{name: nobody, port: 80}", "ResolvedRefs=false BackendNotFound: no Service shop/nobody is known"),
        (
            "{name: nobody, port: 80, weight: 0}",
            "ResolvedRefs=false BackendNotFound: no Service shop/nobody is known",
        ),
        (
            "{group: a.b, kind: C, name: d}",
            "ResolvedRefs=false InvalidKind: C of group \"a.b\" is no backend here",
        ),
        (
            "{name: cart, port: 81}",
            "ResolvedRefs=false InvalidDestination: cart.shop.svc.cluster.local has no TCP port 81",
        ),
    ] {
        let (_, conditions) = shown(&format!("{{backendRefs: [{refs}]}}"), "name: cart");
        assert_eq!(conditions[1], wanted);
    }
    let (_, conditions) = shown(
        &format!(
            "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: nobody, port: 1}}}}}}], {TO}}}"
        ),
        "name: cart",
    );
    assert!(conditions[1].starts_with("ResolvedRefs=false BackendNotFound"), "{conditions:?}");
    let text = object(
        "HTTPRoute",
        "money",
        "name: r",
        "parentRefs: [{group: '', kind: Service, name: bank}], rules: [{}]",
    );
    let of = translated(&text);
    let status = of.statuses.iter().find(|status| status.kind == "HTTPRoute").unwrap();
    assert!(status.conditions[2].message.contains("is not bound to waypoint shop/wp"), "{status:?}");
}

#[test]
fn routes_of_both_kinds_and_virtual_services_on_one_port() {
    let http_rule = format!(
        "{{{TO}, name: h, matches: [{{path: {{type: Exact, value: /a.B/C}}, method: POST}}]}}, {{{TO}, name: rest}}"
    );
    let grpc_rule = format!("{{{TO}, name: g, matches: [{{method: {{service: a.B, method: C}}}}]}}");
    let vs = |created: &str, more: &str| {
        let meta = format!("name: vs, creationTimestamp: '{created}'");
        let spec =
            format!("hosts: [echo], {more} http: [{{name: vs, route: [{{destination: {{host: echo}}}}]}}]");
        object("VirtualService", "shop", &meta, &spec)
    };
    let created = "name: same, creationTimestamp: '2026-01-02T00:00:00Z'";
    let routes = [
        http_route(created, "name: echo, port: 7070", &http_rule),
        grpc_route(created, "name: echo, port: 7070", &grpc_rule),
    ]
    .concat();
    let names = |text: &str| {
        let routes = http(&translated(text), "echo", 7070);
        routes.iter().map(|route| route.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&routes), ["h", "g", "rest"]);
    // As istiod has it: routes of the waypoint's namespace first, but for what is exported nowhere else.
    for created in ["2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"] {
        assert_eq!(names(&(routes.clone() + &vs(created, ""))), ["h", "g", "rest", "vs"]);
        assert_eq!(names(&(routes.clone() + &vs(created, "exportTo: ['.'],"))), ["vs", "h", "g", "rest"]);
    }
}

#[test]
fn what_has_no_effect_is_told() {
    for (text, wanted) in [
        (
            http_route("name: r", "name: nobody", ""),
            "no Service shop/nobody is known; the route has no effect there",
        ),
        (http_route("name: r", "name: cart, port: 1", ""), "Service cart has no TCP port 1"),
        (
            http_route("name: r", "name: cart", "{backendRefs: [{name: nobody, port: 1}]}"),
            "its share of the requests is answered with 500",
        ),
        (
            http_route("name: r", "name: cart", "{backendRefs: [{name: nobody, port: 1, weight: 0}]}"),
            "so nothing would go there",
        ),
        (http_route("name: r", "name: cart", "{sessionPersistence: {}}"), "sessionPersistence is not built"),
        (
            http_route("name: r", "name: cart", "").replace("rules", "hostnames: [a.b], rules"),
            "hostnames have no effect in a mesh",
        ),
        (
            object("HTTPRoute", "shop", "name: r", "parentRefs: [{group: a.b, kind: Own, name: x}]"),
            "it has no effect in a mesh",
        ),
        (
            object("HTTPRoute", "shop", "name: r", "parentRefs: [{kind: Service, name: x}]"),
            "write group: \"\" for a Service",
        ),
    ] {
        let all = warnings(&text);
        assert!(all.iter().any(|warning| warning.contains(wanted)), "{wanted}\n{all:?}");
    }
}

#[test]
fn each_version_is_read() {
    for version in ["v1", "v1beta1"] {
        let text = http_route("name: r", "name: cart", &format!("{{{TO}}}"))
            .replace("k8s.io/v1", &format!("k8s.io/{version}"));
        assert_eq!(&*http(&translated(&text), "cart", 80)[0].name, "shop.r.0", "{version}");
    }
}

/// A ServiceEntry of two hosts behind the waypoint, with endpoints that have labels.
const ENTRY: &str = "
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry,
 metadata: {name: far, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {hosts: [a.example.com, b.example.com], addresses: [240.0.0.1], resolution: STATIC, location: MESH_EXTERNAL,
  ports: [{number: 80, name: http, protocol: HTTP}],
  endpoints: [{address: 192.0.2.1, labels: {version: v1}}, {address: 192.0.2.2, labels: {version: v2}}]}}
";

#[test]
fn service_entries_are_parents_and_destinations() {
    let spec = "parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: far}], \
        rules: [{backendRefs: [{name: cart, port: 80}]}]";
    let of = translated(&[ENTRY, &object("HTTPRoute", "shop", "name: r", spec)].concat());
    for host in ["a", "b"] {
        assert_eq!(action(&http(&of, host, 80)[0]), "1 cart:80", "{host}: each host of the entry");
    }
    let to_far = virtual_service("{route: [{destination: {host: a.example.com, subset: v1}}]}");
    let rule = object(
        "DestinationRule",
        "shop",
        "name: dr",
        "host: a.example.com, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: v1}}]",
    );
    let name = "outbound|80|v1|a.example.com";
    let one = cluster(&translated(&[ENTRY, &to_far, &rule].concat()), name).unwrap();
    assert_eq!((one.balance, one.subset.unwrap().members.len()), (l7::Balance::Random, 1));
    // Without resolution there is nothing to choose from.
    let open = ENTRY.replace("STATIC", "NONE").replace("endpoints: [{address: 192.0.2.1, labels: {version: v1}}, {address: 192.0.2.2, labels: {version: v2}}]", "");
    let one = cluster(&translated(&[&*open, &to_far, &rule].concat()), name).unwrap();
    assert_eq!(one.balance, l7::Balance::Passthrough);
}
