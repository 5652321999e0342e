use std::net::IpAddr;
use std::sync::Arc;

use ::http::Method;
use proptest::prelude::*;

use super::*;
use crate::l7::fixtures::{Asked, asked};
use crate::l7::{AboveRoot, normalize};
use crate::model::l7::{
    Access, Condition, Effect, Normalization, Operation, PathMatch, Pattern, PolicyRule, Source, Texts,
};
use crate::model::{ServiceAccountMatch, StringMatch};

/// `abc`, `abc*`, `*abc`, `*`, as policies write them.
fn text(text: &str) -> StringMatch {
    match (text.strip_suffix('*'), text.strip_prefix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(prefix), _) => StringMatch::Prefix(prefix.into()),
        (None, Some(suffix)) => StringMatch::Suffix(suffix.into()),
        (None, None) => StringMatch::Exact(text.into()),
    }
}

fn some(values: &[&str]) -> Texts {
    Access { values: values.iter().map(|value| text(value)).collect(), not_values: Vec::new() }
}

fn none_of(values: &[&str]) -> Texts {
    let Access { values, not_values: _ } = some(values);
    Access { values: Vec::new(), not_values: values }
}

fn nets(values: &[&str], not_values: &[&str]) -> Access<ipnet::IpNet> {
    let parsed = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    Access { values: parsed(values), not_values: parsed(not_values) }
}

fn paths(values: &[&str], not_values: &[&str]) -> Operation {
    let parsed = |list: &[&str]| list.iter().map(|path| PathMatch::Text(text(path))).collect();
    Operation {
        paths: Access { values: parsed(values), not_values: parsed(not_values) },
        ..Operation::default()
    }
}

fn from(source: Source) -> PolicyRule {
    PolicyRule { from: vec![source], ..PolicyRule::default() }
}

fn to(operation: Operation) -> PolicyRule {
    PolicyRule { to: vec![operation], ..PolicyRule::default() }
}

fn when(condition: Condition) -> PolicyRule {
    PolicyRule { when: vec![condition], ..PolicyRule::default() }
}

fn header(name: &str, values: Texts) -> PolicyRule {
    when(Condition::RequestHeader { name: name.into(), values })
}

fn policy(name: &str, effect: Effect, rules: Vec<PolicyRule>) -> Arc<Policy> {
    let key = PolicyKey { namespace: "shop".into(), name: name.into() };
    Arc::new(Policy { key, effect, dry_run: false, rules })
}

fn policies(all: &[Arc<Policy>]) -> Policies {
    let of = |effect| all.iter().filter(|policy| policy.effect == effect).cloned().collect();
    Policies {
        deny: of(Effect::Deny),
        allow: of(Effect::Allow),
        audit: of(Effect::Audit),
        broken: Vec::new(),
    }
}

fn passes(effect: Effect, rule: &PolicyRule, request: &Asked) -> bool {
    let policies = policies(&[policy("p", effect, vec![rule.clone()])]);
    authorize(&policies, &request.facts()).denial().is_none()
}

/// Both ways: ALLOW lets pass what matches, DENY what does not.
#[track_caller]
fn check(rule: &PolicyRule, request: &Asked, is_match: bool) {
    assert_eq!(passes(Effect::Allow, rule, request), is_match, "ALLOW {rule:?}\n{:?}", request.facts());
    assert_eq!(passes(Effect::Deny, rule, request), !is_match, "DENY {rule:?}\n{:?}", request.facts());
}

fn get() -> Asked {
    asked("GET /x")
}

fn without_peer() -> Asked {
    Asked { peer: None, ..get() }
}

#[test]
fn each_field_of_a_source_counts() {
    let source = Source::default;
    let principals = |principals| from(Source { principals, ..source() });
    check(&principals(some(&["cluster.local/ns/shop/sa/client"])), &get(), true);
    check(&principals(some(&["cluster.local/ns/shop/*"])), &get(), true);
    check(&principals(some(&["*/sa/client"])), &get(), true);
    check(&principals(some(&["*"])), &get(), true);
    check(&principals(some(&["*"])), &without_peer(), false);
    check(&principals(some(&["cluster.local/ns/shop/sa/clien", "td/ns/shop/sa/client"])), &get(), false);
    check(&principals(none_of(&["*"])), &get(), false);
    check(&principals(none_of(&["*"])), &without_peer(), true);
    check(&principals(none_of(&["cluster.local/ns/shop/sa/other"])), &get(), true);

    let namespaces = |namespaces| from(Source { namespaces, ..source() });
    check(&namespaces(some(&["shop"])), &get(), true);
    check(&namespaces(some(&["sho*", "x"])), &get(), true);
    check(&namespaces(some(&["sho"])), &get(), false);
    check(&namespaces(none_of(&["shop"])), &get(), false);
    check(&namespaces(some(&["*"])), &without_peer(), false);

    let domains = |trust_domains| from(Source { trust_domains, ..source() });
    check(&domains(some(&["cluster.local"])), &get(), true);
    check(&domains(some(&["other"])), &get(), false);
    check(&domains(none_of(&["cluster.local"])), &get(), false);

    let account = |namespace: &str, name: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: name.into(),
    };
    let accounts =
        |values, not_values| from(Source { service_accounts: Access { values, not_values }, ..source() });
    check(&accounts(vec![account("shop", "client")], vec![]), &get(), true);
    check(&accounts(vec![account("shop", "c.ient")], vec![]), &get(), false);
    check(&accounts(vec![account("other", "client")], vec![]), &get(), false);
    check(&accounts(vec![], vec![account("shop", "client")]), &get(), false);
    check(&accounts(vec![account("shop", "client")], vec![]), &without_peer(), false);
    check(&accounts(vec![], vec![account("shop", "client")]), &without_peer(), true);

    let two = Source { namespaces: some(&["shop"]), principals: some(&["x"]), ..source() };
    check(&from(two), &get(), false);
    let either = PolicyRule {
        from: vec![
            Source { namespaces: some(&["other"]), ..source() },
            Source { namespaces: some(&["shop"]), ..source() },
        ],
        ..PolicyRule::default()
    };
    check(&either, &get(), true);
}

/// The client is the peer of the tunnel; another is believed only from a trusted hop.
#[test]
fn addresses_are_those_of_the_tunnels_peer() {
    let source = Source::default;
    let v4 = |source: &str| Asked { source: source.parse().unwrap(), ..get() };
    let blocks = |values: &[&str], not: &[&str]| from(Source { ip_blocks: nets(values, not), ..source() });
    check(&blocks(&["10.0.0.0/8"], &[]), &v4("10.0.0.1:1"), true);
    check(&blocks(&["10.0.0.0/8"], &["10.0.0.1/32"]), &v4("10.0.0.1:1"), false);
    check(&blocks(&["10.0.0.0/8"], &[]), &v4("192.0.2.1:1"), false);
    check(&blocks(&["10.0.0.0/8"], &[]), &v4("[::ffff:10.0.0.1]:1"), true);
    check(&blocks(&["::ffff:10.0.0.0/104"], &[]), &v4("10.0.0.1:1"), true);
    check(&blocks(&["2001:db8::/32"], &[]), &v4("[2001:db8::1]:1"), true);
    check(&blocks(&["2001:db8::/32"], &[]), &v4("10.0.0.1:1"), false);
    let forged = get().with("x-forwarded-for: 192.0.2.1");
    check(&blocks(&["192.0.2.0/24"], &[]), &forged, false);

    let remote = |values: &[&str]| from(Source { remote_ip_blocks: nets(values, &[]), ..source() });
    check(&remote(&["10.0.0.0/8"]), &forged, true);
    check(&remote(&["192.0.2.0/24"]), &forged, false);
    let trusted = Asked { remote: Some(IpAddr::from([192, 0, 2, 1])), ..get() };
    check(&remote(&["192.0.2.0/24"]), &trusted, true);
    check(&when(Condition::RemoteIp(nets(&["192.0.2.1"].map(|_| "192.0.2.1/32"), &[]))), &trusted, true);
    check(&when(Condition::SourceIp(nets(&["192.0.2.1/32"], &[]))), &trusted, false);
    check(&when(Condition::SourceIp(nets(&["10.0.0.1/32"], &[]))), &trusted, true);
    check(&when(Condition::DestinationIp(nets(&["10.96.0.0/16"], &[]))), &get(), true);
    check(&when(Condition::DestinationIp(nets(&["10.97.0.0/16"], &[]))), &get(), false);
}

#[test]
fn each_field_of_an_operation_counts() {
    let operation = Operation::default;
    let methods = |methods| to(Operation { methods, ..operation() });
    check(&methods(some(&["GET", "HEAD"])), &get(), true);
    check(&methods(some(&["G*"])), &get(), true);
    check(&methods(some(&["*"])), &get(), true);
    check(&methods(some(&["POST"])), &get(), false);
    check(&methods(none_of(&["GET"])), &get(), false);
    check(&methods(none_of(&["POST"])), &get(), true);

    let hosts = |hosts| to(Operation { hosts, ..operation() });
    check(&hosts(some(&["svc"])), &get(), true);
    check(&hosts(some(&["SVC"])), &get(), true);
    check(&hosts(some(&["*.example.com"])), &get().host("a.EXAMPLE.com"), true);
    check(&hosts(some(&["svc.*"])), &get().host("Svc.shop"), true);
    check(&hosts(some(&["*"])), &get(), true);
    check(&hosts(some(&["other"])), &get(), false);
    check(&hosts(none_of(&["svc"])), &get(), false);
    check(&hosts(some(&["svc:8080"])), &get().host("svc:8080"), true);
    check(&hosts(some(&["svc:8080"])), &get(), false);

    let ports = |values: &[u16], not: &[u16]| {
        to(Operation { ports: Access { values: values.to_vec(), not_values: not.to_vec() }, ..operation() })
    };
    check(&ports(&[80], &[]), &get(), true);
    check(&ports(&[81], &[]), &get(), false);
    check(&ports(&[], &[80]), &get(), false);

    check(&to(paths(&["/x"], &[])), &asked("GET /x?y=/z"), true);
    check(&to(paths(&["/x*"], &[])), &asked("GET /x/y"), true);
    check(&to(paths(&["*.html"], &[])), &asked("GET /a/b.html"), true);
    check(&to(paths(&["*"], &[])), &get(), true);
    check(&to(paths(&["/x"], &[])), &asked("GET /x/"), false);
    check(&to(paths(&["/X"], &[])), &get(), false);
    check(&to(paths(&[], &["/x"])), &get(), false);
    check(&to(paths(&[], &["/y"])), &get(), true);
    check(&to(paths(&["/package.Service/Method"], &[])), &asked("POST /package.Service/Method"), true);
    let both = Operation { methods: some(&["POST"]), ..paths(&["/x"], &[]) };
    check(&to(both), &get(), false);
    let either = PolicyRule { to: vec![paths(&["/y"], &[]), paths(&["/x"], &[])], ..PolicyRule::default() };
    check(&either, &get(), true);
}

#[test]
fn templates_are_compared_with_the_whole_path() {
    let pattern = Pattern::new("/foo/[^/]+/bar").unwrap();
    let template = PathMatch::Template { text: "/foo/{*}/bar".into(), pattern };
    let paths = Access { values: vec![template], not_values: Vec::new() };
    let rule = to(Operation { paths, ..Operation::default() });
    check(&rule, &asked("GET /foo/a/bar"), true);
    check(&rule, &asked("GET /foo/a/b/bar"), false);
    check(&rule, &asked("GET /foo/a/bar/c"), false);
}

#[test]
fn each_condition_counts() {
    let with = get().with("x-user: alice");
    check(&header("x-user", some(&["alice"])), &with, true);
    check(&header("x-user", some(&["al*"])), &with, true);
    check(&header("x-user", some(&["bob"])), &with, false);
    check(&header("x-user", some(&["*"])), &with, true);
    check(&header("x-user", some(&["*"])), &get().with("x-user:"), true);
    check(&header("x-user", some(&["*"])), &get(), false);
    check(&header("x-user", none_of(&["alice"])), &with, false);
    check(&header("x-user", none_of(&["alice"])), &get(), true);
    check(&header("x-user", none_of(&["*"])), &get(), true);
    check(&header(":method", some(&["GET"])), &get(), true);
    check(&header("host", some(&["svc"])), &get(), true);
    check(&when(Condition::SourceNamespace(some(&["shop"]))), &get(), true);
    check(&when(Condition::SourceNamespace(none_of(&["shop"]))), &get(), false);
    check(&when(Condition::SourcePrincipal(some(&["*/sa/client"]))), &get(), true);
    check(&when(Condition::SourcePrincipal(some(&["*"]))), &without_peer(), false);
    check(&when(Condition::SourceTrustDomain(some(&["cluster.local"]))), &get(), true);
    let account = ServiceAccountMatch { namespace: "shop".into(), service_account: "client".into() };
    let accounts = Access { values: vec![account], not_values: Vec::new() };
    check(&when(Condition::SourceServiceAccount(accounts)), &get(), true);
    let ports =
        |port| when(Condition::DestinationPort(Access { values: vec![port], not_values: Vec::new() }));
    check(&ports(80), &get(), true);
    check(&ports(8080), &get(), false);
    let tls = Asked { server_name: Some("a.example.com".into()), ..get() };
    check(&when(Condition::ServerName(some(&["*.example.com"]))), &tls, true);
    check(&when(Condition::ServerName(some(&["*"]))), &get(), false);
    let both = PolicyRule {
        when: vec![
            Condition::SourceNamespace(some(&["shop"])),
            Condition::RequestHeader { name: "x-user".into(), values: some(&["alice"]) },
        ],
        ..PolicyRule::default()
    };
    check(&both, &with, true);
    check(&both, &get(), false);
    check(&PolicyRule::default(), &without_peer(), true);
}

#[test]
fn order_and_scope_of_policies() {
    let any = || vec![PolicyRule::default()];
    let never = || vec![to(paths(&["/never"], &[]))];
    let allowed = |all: &[Arc<Policy>]| authorize(&policies(all), &get().facts()).denial().is_none();
    let (allow, deny, audit) = (Effect::Allow, Effect::Deny, Effect::Audit);
    for (all, want) in [
        (vec![], true),
        (vec![policy("a", allow, vec![])], false),
        (vec![policy("a", allow, any())], true),
        (vec![policy("a", allow, never())], false),
        (vec![policy("a", allow, never()), policy("b", allow, any())], true),
        (vec![policy("d", deny, vec![])], true),
        (vec![policy("d", deny, any())], false),
        (vec![policy("d", deny, never())], true),
        (vec![policy("d", deny, any()), policy("a", allow, any())], false),
        (vec![policy("d", deny, never()), policy("a", allow, any())], true),
        (vec![policy("u", audit, any())], true),
        (vec![policy("u", audit, vec![])], true),
    ] {
        assert_eq!(allowed(&all), want, "{all:?}");
    }
}

#[test]
fn the_rule_that_decides_is_named() {
    let rules = || vec![to(paths(&["/never"], &[])), PolicyRule::default()];
    let deny = policies(&[policy("no", Effect::Deny, rules())]);
    let denial = authorize(&deny, &get().facts()).denial().unwrap();
    assert_eq!(denial.id(), "ns[shop]-policy[no]-rule[1]");
    assert_eq!(denial.to_string(), "explicitly denied by: shop/no, rule 1");
    let allow = policies(&[policy("yes", Effect::Allow, rules())]);
    let Verdict::Allowed { by: Some(by) } = authorize(&allow, &get().facts()).verdict else { panic!() };
    assert_eq!(by.to_string(), "ns[shop]-policy[yes]-rule[1]");
    let nothing: Vec<Arc<Policy>> = (0..7).map(|n| policy(&format!("p{n}"), Effect::Allow, vec![])).collect();
    let nothing = policies(&nothing);
    let denial = authorize(&nothing, &get().facts()).denial().unwrap();
    assert_eq!(denial.id(), "none");
    let want =
        "allow policies exist, but none allowed: shop/p0, shop/p1, shop/p2, shop/p3, shop/p4 and 2 more";
    assert_eq!(denial.to_string(), want);
}

#[test]
fn what_cannot_be_evaluated_denies_everything() {
    let key = PolicyKey { namespace: "shop".into(), name: "jwt".into() };
    let fault = PolicyFault { kind: "RequestAuthentication", key, reason: "not built yet".into() };
    let mut all = policies(&[policy("yes", Effect::Allow, vec![PolicyRule::default()])]);
    all.broken.push(fault);
    let denial = authorize(&all, &get().facts()).denial().unwrap();
    assert_eq!(denial.id(), "ns[shop]-policy[jwt]-fault");
    assert!(denial.to_string().starts_with("RequestAuthentication shop/jwt cannot be evaluated"), "{denial}");
    assert!(authorize_tcp(&all, &get().facts().connection).denial().is_some());
    all.deny.push(policy("no", Effect::Deny, vec![PolicyRule::default()]));
    assert_eq!(authorize(&all, &get().facts()).denial().unwrap().id(), "ns[shop]-policy[no]-rule[0]");
}

#[test]
fn dry_run_and_audit_are_told_and_change_nothing() {
    let dry = |name, effect, rules| {
        Arc::new(Policy { dry_run: true, ..Policy::clone(&policy(name, effect, rules)) })
    };
    let any = || vec![PolicyRule::default()];
    let all = policies(&[
        dry("d", Effect::Deny, any()),
        dry("a", Effect::Allow, vec![]),
        policy("u", Effect::Audit, any()),
    ]);
    let decision = authorize(&all, &get().facts());
    assert_eq!(decision.verdict, Verdict::Allowed { by: None });
    assert!(matches!(decision.dry_run[..], [DryRun::WouldDeny(_), DryRun::NoneWouldAllow]));
    assert_eq!(decision.audit.unwrap().to_string(), "ns[shop]-policy[u]-rule[0]");
    let all = policies(&[
        dry("a", Effect::Allow, any()),
        policy("no", Effect::Deny, any()),
        dry("u", Effect::Audit, any()),
    ]);
    let decision = authorize(&all, &get().facts());
    assert!(decision.denial().is_some() && decision.audit.is_none());
    assert!(matches!(decision.dry_run[..], [DryRun::WouldAllow(_)]));
    assert_eq!(authorize(&policies(&[]), &get().facts()).dry_run, []);
}

#[test]
fn a_tcp_connection_has_nothing_of_http() {
    let decide = |effect, rule: &PolicyRule| {
        let all = policies(&[policy("p", effect, vec![rule.clone()])]);
        let request = get();
        authorize_tcp(&all, &request.facts().connection).denial().is_none()
    };
    let methods = |ports: Access<u16>| Operation { methods: some(&["POST"]), ports, ..Operation::default() };
    let port = |port| Access { values: vec![port], not_values: Vec::new() };
    let l4 = from(Source { namespaces: some(&["shop"]), ..Source::default() });
    assert!(decide(Effect::Allow, &l4) && !decide(Effect::Deny, &l4));
    let ports = to(Operation { ports: port(80), ..Operation::default() });
    assert!(decide(Effect::Allow, &ports) && !decide(Effect::Deny, &ports));
    for rule in [to(methods(port(80))), to(paths(&["/x"], &[])), header("x", none_of(&["y"]))] {
        assert!(!decide(Effect::Allow, &rule), "an ALLOW rule that asks for HTTP does not match: {rule:?}");
        assert!(!decide(Effect::Deny, &rule), "of a DENY rule the rest counts: {rule:?}");
    }
    assert!(decide(Effect::Deny, &to(methods(port(81)))), "and the rest does not match");
}

#[test]
fn a_trace_tells_which_part_of_a_rule_does_not_hold() {
    let rule = PolicyRule {
        from: vec![Source { namespaces: some(&["other"]), ..Source::default() }, Source::default()],
        to: vec![paths(&["/y"], &[])],
        when: vec![
            Condition::SourceNamespace(some(&["shop"])),
            Condition::RequestHeader { name: "x-user".into(), values: some(&["alice"]) },
        ],
    };
    let all = policies(&[
        policy("a", Effect::Allow, vec![rule, PolicyRule::default()]),
        policy("d", Effect::Deny, vec![]),
    ]);
    let request = get();
    let traces = trace(&all, &request.facts());
    let names: Vec<&str> = traces.iter().map(|trace| &*trace.policy.key.name).collect();
    assert_eq!(names, ["d", "a"]);
    assert_eq!(traces.iter().map(PolicyTrace::is_match).collect::<Vec<_>>(), [false, true]);
    let want = RuleTrace {
        is_match: false,
        from: vec![false, true],
        to: vec![false],
        when: vec![true, false],
        needs_http: false,
    };
    assert_eq!(traces[1].rules[0], want);
    assert!(traces[1].rules[1].is_match);
    let tcp = trace_tcp(&all, &request.facts().connection);
    assert!(tcp[1].rules[0].needs_http && !tcp[1].rules[1].needs_http);
}

/// DENY on repeated headers: each value, and all of them joined.
#[test]
fn repeated_headers_get_past_nothing() {
    let twice = get().with("x-role: user").with("x-role: admin");
    let deny = |values| passes(Effect::Deny, &header("x-role", values), &twice);
    let allow = |values| passes(Effect::Allow, &header("x-role", values), &twice);
    for values in [&["user"][..], &["admin"], &["user,admin"], &["*admin"], &["*"]] {
        assert!(!deny(some(values)), "{values:?}");
    }
    assert!(deny(some(&["root"])));
    assert!(!deny(none_of(&["user"])), "another value is not the one that is let pass");
    assert!(!deny(none_of(&["user", "admin"])), "nor is the joined one");
    assert!(allow(some(&["admin"])) && allow(some(&["user"])));
    assert!(!allow(some(&["user,admin"])) && !allow(some(&["root"])));
    assert!(!allow(none_of(&["admin"])) && !allow(none_of(&["user,admin"])) && allow(none_of(&["root"])));
}

/// Each gets past a policy of some proxy: by the advisory, or by what was measured.
#[test]
fn the_bypass_corpus_is_denied() {
    let base = |request: &str| {
        let (method, target) = request.split_once(' ').unwrap();
        let plain = normalize(target.as_bytes(), Normalization::Base, AboveRoot::Dropped).unwrap();
        asked(&format!("{method} {plain}"))
    };
    let admin = [to(paths(&["/admin"], &[])), to(paths(&["/admin*"], &[]))];
    for request in [
        "GET /admin",
        "GET //admin",
        "GET ///admin",
        "GET /./admin",
        "GET /x/../admin",
        "GET /%61dmin",
        "GET /%2561dmin",
        "GET /%252561dmin",
        "GET /x/%2e%2e/admin",
        "GET /x%2f..%2fadmin",
        "GET /x%2f%2e%2e%2fadmin",
        "GET /x%252f..%252fadmin",
        "GET /%2fadmin",
        "GET /%5cadmin",
        r"GET /\admin",
        "GET /admin;x", // CVE-2026-73551, -73511, -73553: path parameters
        "GET /admin;x=1?y",
        "GET /;x/admin",
        "GET /x;y/../admin",
        "GET /admin%3Bx",
        "GET /admin?x=/public",
        "GET /admin#/public",
    ] {
        for rule in &admin {
            assert!(!passes(Effect::Deny, rule, &base(request)), "{request} {rule:?}");
        }
        let allow_others = to(paths(&["*"], &["/admin*"]));
        assert!(
            !passes(Effect::Allow, &allow_others, &base(request)),
            "{request} passes an ALLOW but for it"
        );
    }
    // Where nothing is made plain here, servers still resolve dots.
    for path in ["/x/../admin", "/./admin", "/x/../x/./../admin"] {
        let plain = normalize(path.as_bytes(), Normalization::None, AboveRoot::Dropped).unwrap();
        let request = asked(&format!("GET {plain}"));
        admin.iter().for_each(|rule| assert!(!passes(Effect::Deny, rule, &request), "{path}"));
    }
    for request in ["GET /admin%2Fx", "GET /admin/%2e/x", "GET /admin%5cx", "GET //admin;a/x"] {
        assert!(!passes(Effect::Deny, &to(paths(&["/admin/*"], &[])), &base(request)), "{request}");
    }
    for request in ["GET /public", "GET /administrator%2f..%2fpublic", "GET /x;/admin", "GET /y?p=//admin"] {
        assert!(passes(Effect::Deny, &admin[0], &base(request)), "{request} is another path");
    }

    let host = to(Operation { hosts: some(&["bad.host"]), ..Operation::default() });
    for name in
        ["bad.host", "BAD.host", "bad.host:80", "bad.host:8080", "bad.host.", "Bad.Host.:80", "bad.host:"]
    {
        assert!(!passes(Effect::Deny, &host, &get().host(name)), "{name}");
    }
    for name in ["good.host", "xbad.host", "bad.host.example", "bad.host.example:80"] {
        assert!(passes(Effect::Deny, &host, &get().host(name)), "{name}");
    }
    let but_one = to(Operation { hosts: none_of(&["bad.host"]), ..Operation::default() });
    assert!(!passes(Effect::Allow, &but_one, &get().host("bad.host:80")));

    // GHSA-w44g-8m76-8gc5: the case of a method over HTTP/2.
    let method = to(Operation { methods: some(&["DELETE"]), ..Operation::default() });
    for name in ["DELETE", "delete", "Delete"] {
        let request = Asked { method: Method::from_bytes(name.as_bytes()).unwrap(), ..get() };
        assert!(!passes(Effect::Deny, &method, &request), "{name}");
        let allowed = passes(Effect::Allow, &method, &request);
        assert_eq!(allowed, name == "DELETE", "ALLOW takes methods as they are");
    }

    // CVE-2026-73552: bytes that are no text are compared as bytes.
    let mut request = get();
    request.headers.append("x-role", ::http::HeaderValue::from_bytes(b"admin\xff").unwrap());
    assert!(!passes(Effect::Deny, &header("x-role", some(&["admin*"])), &request));
    assert!(!passes(Effect::Deny, &header("x-role", some(&["*"])), &request));
    assert!(!passes(Effect::Allow, &header("x-role", some(&["admin"])), &request));

    // CVE-2026-39350: a dot in a service account is a dot.
    let account = ServiceAccountMatch { namespace: "shop".into(), service_account: "c.ient".into() };
    let accounts = Access { values: vec![account], not_values: Vec::new() };
    assert!(!passes(
        Effect::Allow,
        &from(Source { service_accounts: accounts, ..Source::default() }),
        &get()
    ));
}

/// A form in which somebody may read a request makes no ALLOW wider.
#[test]
fn forms_do_not_widen_an_allow() {
    let allow = |rule: PolicyRule, request: &Asked| passes(Effect::Allow, &rule, request);
    for target in ["//public", "/public;x", "/x/..%2fpublic", "/%2570ublic"] {
        assert!(!allow(to(paths(&["/public"], &[])), &asked(&format!("GET {target}"))), "{target}");
    }
    let hosts = || to(Operation { hosts: some(&["svc"]), ..Operation::default() });
    assert!(!allow(hosts(), &get().host("svc:8080")) && !allow(hosts(), &get().host("svc.")));
    assert!(
        !passes(Effect::Deny, &to(paths(&[], &["/public"])), &asked("GET //public")),
        "nor a DENY narrower"
    );
}

proptest! {
    /// What normalisation makes of a path is all that an ALLOW sees: it matches the plain path or nothing.
    #[test]
    fn normalisation_never_widens_an_allow(
        target in "/([a-c./;\\\\]|%2[ef]|%5c|%6[1-3]|%25){0,8}",
        value in "/[a-c]{0,2}(/[a-c])?\\*?",
        how in prop::sample::select(vec![
            Normalization::None,
            Normalization::Base,
            Normalization::MergeSlashes,
            Normalization::DecodeAndMergeSlashes,
        ]),
    ) {
        let Ok(plain) = normalize(target.as_bytes(), how, AboveRoot::Dropped) else { return Ok(()) };
        let request = asked(&format!("GET {plain}"));
        let rule = to(paths(&[&value], &[]));
        let is_match = match text(&value) {
            StringMatch::Exact(text) => *plain == *text,
            StringMatch::Prefix(text) => plain.starts_with(&*text),
            StringMatch::Suffix(_) | StringMatch::Presence => true,
        };
        prop_assert_eq!(passes(Effect::Allow, &rule, &request), is_match);
        prop_assert!(!is_match || !passes(Effect::Deny, &rule, &request), "what ALLOW sees DENY sees");
    }

    /// A matching DENY wins whatever else is there. Source: Istio, order of evaluation.
    #[test]
    fn a_matching_deny_always_wins(allows in 0_usize..4, never in any::<bool>(), at in 0_usize..4) {
        let mut all: Vec<Arc<Policy>> =
            (0..allows).map(|n| policy(&format!("a{n}"), Effect::Allow, vec![PolicyRule::default()])).collect();
        if never {
            all.push(policy("d0", Effect::Deny, vec![to(paths(&["/never"], &[]))]));
        }
        all.insert(at.min(all.len()), policy("d1", Effect::Deny, vec![PolicyRule::default()]));
        let all = policies(&all);
        let denial = authorize(&all, &get().facts()).denial().map(|denial| denial.id());
        prop_assert_eq!(denial.as_deref(), Some("ns[shop]-policy[d1]-rule[0]"));
    }

    #[test]
    fn no_request_makes_it_panic(target in "/[ -~]{0,24}", host in "[ -~]{0,12}") {
        let rule = to(Operation { hosts: some(&["x*"]), ..paths(&["/x"], &["/y*"]) });
        let request = asked("GET /").host(&host);
        let request = Asked { target, ..request };
        passes(Effect::Allow, &rule, &request);
        passes(Effect::Deny, &rule, &request);
    }
}
