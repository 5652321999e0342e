//! Authorization policies of waypoints: what each field becomes, what they are bound to, and what closes its target.

use super::waypoints::{USES, for_waypoint, for_waypoint_with, gateway, service};
use super::*;
use crate::model::l7::{Access, Condition, PathMatch, Policies, Policy, PolicyRule};

fn object_of(name: &str, meta: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: shop, \
         {meta}}}, spec: {{{spec}}}}}\n"
    )
}

fn bound(name: &str, spec: &str) -> String {
    object_of(name, "", &format!("targetRefs: [{{kind: Service, group: '', name: cart}}], {spec}"))
}

fn mesh() -> String {
    [gateway("", "", ""), service("cart", USES), service("other", "")].concat()
}

/// The policies of `cart` with these objects.
fn policies(objects: &str) -> Policies {
    let translated = for_waypoint(&(mesh() + objects));
    Policies::clone(&translated.waypoint.services.values().next().unwrap().policies)
}

fn rule(rule: &str) -> PolicyRule {
    let policies = policies(&bound("p", &format!("action: DENY, rules: [{rule}]")));
    policies.deny[0].rules[0].clone()
}

fn texts(of: &Access<StringMatch>) -> String {
    let text = |list: &[StringMatch]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    format!("{} !{}", text(&of.values), text(&of.not_values))
}

fn many<T: ToString>(of: &Access<T>) -> String {
    let text = |list: &[T]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    format!("{} !{}", text(&of.values), text(&of.not_values))
}

#[test]
fn every_field_of_a_source() {
    let source = |fields: &str| rule(&format!("{{from: [{{source: {{{fields}}}}}]}}")).from[0].clone();
    let of = source("principals: [cluster.local/ns/a/sa/b, '*'], notPrincipals: [other/ns/a/sa/*]");
    assert_eq!(texts(&of.principals), "cluster.local/ns/a/sa/b,* !other/ns/a/sa/*");
    let of = source("namespaces: [a, b*], notNamespaces: ['*c']");
    assert_eq!(texts(&of.namespaces), "a,b* !*c");
    let of = source("serviceAccounts: [web, a/b], notServiceAccounts: [c/d]");
    assert_eq!(many(&of.service_accounts), "shop/web,a/b !c/d");
    let of = source("trustDomains: [td, cluster.local], notTrustDomains: [x]");
    assert_eq!(texts(&of.trust_domains), "td,cluster.local !x");
    let of = source("ipBlocks: [10.0.0.0/8, '::1'], notIpBlocks: [10.0.0.1]");
    assert_eq!(many(&of.ip_blocks), "10.0.0.0/8,::1/128 !10.0.0.1/32");
    let of = source("remoteIpBlocks: [10.0.0.0/8], notRemoteIpBlocks: ['fd00::/8']");
    assert_eq!(many(&of.remote_ip_blocks), "10.0.0.0/8 !fd00::/8");
}

#[test]
fn every_field_of_an_operation() {
    let operation = |fields: &str| rule(&format!("{{to: [{{operation: {{{fields}}}}}]}}")).to[0].clone();
    let of = operation("hosts: [A.example, '*.B'], notHosts: [c*]");
    assert_eq!(texts(&of.hosts), "a.example,*.b !c*");
    let of = operation("ports: ['80', '8080'], notPorts: ['443']");
    assert_eq!(many(&of.ports), "80,8080 !443");
    let of = operation("methods: [GET], notMethods: ['*']");
    assert_eq!(texts(&of.methods), "GET !*");
    let of = operation("paths: [/a, /b*, '*c'], notPaths: ['*']");
    let text = |path: &PathMatch| match path {
        PathMatch::Text(text) => text.to_string(),
        PathMatch::Template { text, .. } => format!("template {text}"),
    };
    assert_eq!(of.paths.values.iter().map(text).collect::<Vec<_>>(), ["/a", "/b*", "*c"]);
    assert_eq!(of.paths.not_values.iter().map(text).collect::<Vec<_>>(), ["*"]);
}

#[test]
fn every_key_of_a_condition() {
    let when = |key: &str, values: &str| {
        let rule = rule(&format!("{{when: [{{key: '{key}', values: [{values}], notValues: [{values}]}}]}}"));
        rule.when[0].clone()
    };
    let ip = Access {
        values: vec!["10.0.0.1/32".parse().unwrap()],
        not_values: vec!["10.0.0.1/32".parse().unwrap()],
    };
    let text = || Access {
        values: vec![StringMatch::Prefix("a".into())],
        not_values: vec![StringMatch::Prefix("a".into())],
    };
    assert_eq!(when("source.ip", "10.0.0.1"), Condition::SourceIp(ip.clone()));
    assert_eq!(when("remote.ip", "10.0.0.1"), Condition::RemoteIp(ip.clone()));
    assert_eq!(when("destination.ip", "10.0.0.1"), Condition::DestinationIp(ip));
    let ports = Access { values: vec![80], not_values: vec![80] };
    assert_eq!(when("destination.port", "'80'"), Condition::DestinationPort(ports));
    assert_eq!(when("source.namespace", "a*"), Condition::SourceNamespace(text()));
    assert_eq!(when("source.principal", "a*"), Condition::SourcePrincipal(text()));
    assert_eq!(when("source.trustDomain", "a*"), Condition::SourceTrustDomain(text()));
    assert_eq!(when("connection.sni", "a*"), Condition::ServerName(text()));
    let header = Condition::RequestHeader { name: "x-a".into(), values: text() };
    assert_eq!(when("request.headers[X-A]", "a*"), header);
    let Condition::SourceServiceAccount(accounts) = when("source.serviceAccount", "web, x/y") else {
        panic!()
    };
    assert_eq!(many(&accounts), "shop/web,x/y !shop/web,x/y");
}

#[test]
fn templates_match_whole_segments() {
    let pattern = |template: &str| {
        let rule = rule(&format!("{{to: [{{operation: {{paths: ['{template}']}}}}]}}"));
        match rule.to[0].paths.values[0].clone() {
            PathMatch::Template { pattern, .. } => pattern,
            PathMatch::Text(text) => panic!("{text}"),
        }
    };
    for (template, path, matches) in [
        ("/a-._~%!$&()+,;:@=9/{*}", "/a-._~%!$&()+,;:@=9/b", true),
        ("/a/{*}", "/a/b", true),
        ("/a/{*}", "/a/b/", false),
        ("/a/{*}", "/a/", false),
        ("/a/{*}", "/a/b/c", false),
        ("/a/{*}/c", "/a/b/c", true),
        ("/a/{**}", "/a/", true),
        ("/a/{**}", "/a/b/c", true),
        ("/a/{**}", "/a", false),
        ("/a/{**}/", "/a/b/c/", true),
        ("/a/{**}/", "/a/b/c", false),
        ("/a/{*}/{**}", "/a/b/c/d", true),
    ] {
        assert_eq!(pattern(template).is_match(path.as_bytes()), matches, "{template} {path}");
    }
    for template in ["/a/{*}.txt", "/{**}/{*}", "/{**}/{**}", "/a/{b}", "/a*/{*}", "{*}", "/a//{*}", "/{"] {
        let spec = format!("action: DENY, rules: [{{to: [{{operation: {{paths: ['{template}']}}}}]}}]");
        let problems = problems(&object_of("p", "", &spec));
        assert!(problems[0].contains("{*} and {**}, each alone between slashes"), "{template}: {problems:?}");
    }
}

#[test]
fn principals_have_all_names_of_the_mesh() {
    let settings = Settings {
        trust_domain: "td".into(),
        trust_domain_aliases: vec!["old".into()],
        ..Settings::default()
    };
    for (written, expected) in [
        ("cluster.local/ns/a/sa/b", "td/ns/a/sa/b,old/ns/a/sa/b"),
        ("td/ns/a/sa/b", "td/ns/a/sa/b,old/ns/a/sa/b"),
        ("old/ns/a/sa/*", "td/ns/a/sa/*,old/ns/a/sa/*"),
        ("*ld/ns/a/sa/b", "*ld/ns/a/sa/b,td/ns/a/sa/b"),
        ("else/ns/a/sa/b", "else/ns/a/sa/b"),
        ("*/ns/a/sa/b", "*/ns/a/sa/b"),
        ("*", "*"),
        ("td/*", "td/*"),
    ] {
        let spec = format!("rules: [{{from: [{{source: {{principals: ['{written}']}}}}]}}]");
        let translated = for_waypoint_with(&(mesh() + &bound("p", &spec)), &settings);
        let policies = &translated.waypoint.services.values().next().unwrap().policies;
        let mut found: Vec<String> =
            policies.allow[0].rules[0].from[0].principals.values.iter().map(ToString::to_string).collect();
        found.sort();
        let mut expected: Vec<&str> = expected.split(',').collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "{written}");
    }
}

fn shown(policy: &Policy) -> String {
    format!("{} {:?} {} {}", policy.key, policy.effect, policy.dry_run, policy.rules.len())
}

#[test]
fn actions_and_dry_runs_are_kept_apart() {
    let all = [
        bound("b", "action: DENY, rules: [{}]"),
        bound("a", "action: DENY, rules: [{}, {}]"),
        bound("c", ""),
        bound("d", "action: AUDIT, rules: [{}]"),
        object_of(
            "e",
            "annotations: {istio.io/dry-run: 'true'}",
            "targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: wp}, rules: [{}]",
        ),
    ];
    let policies = policies(&all.concat());
    let of = |list: &[Arc<Policy>]| list.iter().map(|policy| shown(policy)).collect::<Vec<_>>();
    assert_eq!(of(&policies.deny), ["shop/a Deny false 2", "shop/b Deny false 1"]);
    assert_eq!(of(&policies.allow), ["shop/c Allow false 0", "shop/e Allow true 1"]);
    assert_eq!(of(&policies.audit), ["shop/d Audit false 1"]);
    assert_eq!(policies.broken, []);
}

#[test]
fn policies_are_bound_to_what_they_name() {
    let gateway_ref = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]";
    let class = "\n---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: class, namespace: \
                 istio-system}, spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: \
                 culvert-waypoint}]}}";
    let objects = [
        object_of("gateway", "", gateway_ref),
        class.to_owned(),
        class.replace("istio-system", "shop").replace("name: class", "name: class-here"),
        bound("service", ""),
        object_of("elsewhere", "", "targetRefs: [{kind: Service, name: other}]"),
        object_of(
            "selector",
            "",
            "selector: {matchLabels: {app: cart}}, rules: [{to: [{operation: {methods: [GET]}}]}]",
        ),
        object_of("wide", "", "{}").replace("spec: {{}}", "spec: {}"),
        object_of(
            "twice",
            "",
            "targetRefs: [{kind: Service, name: cart}, {group: gateway.networking.k8s.io, kind: Gateway, name: wp}]",
        ),
    ];
    let translated = for_waypoint(&(mesh() + &objects.concat()));
    let names = |policies: &Policies| policies.allow.iter().map(|p| p.key.to_string()).collect::<Vec<_>>();
    let cart = &translated.waypoint.services.values().next().unwrap().policies;
    assert_eq!(names(cart), ["istio-system/class", "shop/gateway", "shop/service", "shop/twice"]);
    let wide = ["istio-system/class", "shop/gateway", "shop/twice"];
    assert_eq!(names(&translated.waypoint.policies), wide, "of workload-addressed traffic");
    let said = lines(&translated.warnings);
    let of_class = "a GatewayClass in namespace shop; nobody evaluates the policy for it; allowed: in the root namespace";
    assert!(said.iter().any(|line| line.contains("class-here") && line.contains(of_class)), "{said:?}");
    let reason = |name: &str| {
        let status = translated.statuses.iter().find(|s| s.kind == "AuthorizationPolicy" && &*s.name == name);
        status.map(|status| status.conditions[0].reason)
    };
    assert_eq!(reason("service"), Some("Accepted"));
    assert_eq!(reason("elsewhere"), Some("AncestorNotBound"));
    assert_eq!(reason("selector"), None);
    let theirs =
        gateway("", "", "status: {addresses: [{value: 10.96.0.9}]}").replace("name: wp", "name: theirs");
    let of_others = mesh().replace(
        "name: other, namespace: shop, ",
        "name: other, namespace: shop, labels: {istio.io/use-waypoint: theirs}",
    ) + &theirs
        + &object_of(
            "p",
            "",
            "targetRefs: [{kind: Service, name: other}, {group: gateway.networking.k8s.io, kind: Gateway, name: theirs}]",
        );
    let translated = for_waypoint(&of_others);
    assert!(
        !translated.statuses.iter().any(|s| s.kind == "AuthorizationPolicy"),
        "the other waypoint says it"
    );
}

#[test]
fn what_cannot_be_evaluated_closes_its_target() {
    let token = "when: [{key: 'request.auth.claims[iss]', values: [a]}]";
    for (object, reason) in [
        (bound("p", "action: CUSTOM, provider: {name: x}, rules: [{}]"), "CUSTOM"),
        (bound("p", "rules: [{from: [{source: {requestPrincipals: ['*']}}]}]"), "request principals"),
        (
            bound("p", "action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]"),
            "request principals",
        ),
        (bound("p", &format!("rules: [{{{token}}}]")), "request.auth.claims[iss]"),
        (bound("p", "rules: [{when: [{key: experimental.envoy.filters.a, values: [b]}]}]"), "Envoy"),
        (bound("p", "").replace("AuthorizationPolicy", "RequestAuthentication"), "tokens are not verified"),
    ] {
        let translated = for_waypoint(&(mesh() + &object));
        let policies = &translated.waypoint.services.values().next().unwrap().policies;
        assert_eq!(policies.broken.len(), 1, "{object}");
        assert!(policies.broken[0].reason.contains(reason), "{:?}", policies.broken);
        assert!(policies.allow.is_empty() && policies.deny.is_empty());
        assert!(translated.waypoint.policies.broken.is_empty(), "other targets stay open");
        let said = lines(&translated.warnings);
        assert!(said.iter().any(|line| line.contains("everything there is denied")), "{said:?}");
    }
    for object in [
        bound("p", "action: AUDIT, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]"),
        object_of(
            "p",
            "annotations: {istio.io/dry-run: 'true'}",
            "targetRef: {kind: Service, name: cart}, action: CUSTOM, provider: {name: x}, rules: [{}]",
        ),
    ] {
        let policies = policies(&object);
        assert_eq!(policies, Policies::default(), "it would enforce nothing: {object}");
    }
}

#[test]
fn targets_that_cannot_be_are_problems() {
    for (spec, expected) in [
        (
            "selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: cart}]",
            "spec: both selector and targetRefs",
        ),
        (
            "targetRef: {kind: Service, name: a}, targetRefs: [{kind: Service, name: cart}]",
            "spec: both targetRef and targetRefs",
        ),
        ("targetRefs: [{kind: Pod, name: cart}]", "spec.targetRefs[0]: kind \"Pod\" of group \"\""),
        (
            "targetRefs: [{group: apps, kind: Service, name: cart}]",
            "spec.targetRefs[0]: kind \"Service\" of group \"apps\"",
        ),
        ("targetRefs: [{kind: Service}]", "spec.targetRefs[0]: no name"),
        ("targetRefs: [{kind: Service, name: a, namespace: web}]", "spec.targetRefs[0].namespace: \"web\""),
        ("targetRefs: [{kind: Service, name: a, namespace: shop}]", "spec.targetRefs[0].namespace: \"shop\""),
        ("targetRefs: [{kind: Service, name: a, port: 80}]", "spec.targetRefs[0].port: no such field"),
    ] {
        let problems = problems(&object_of("p", "", spec));
        assert!(problems.iter().any(|line| line.contains(expected)), "{spec}: {problems:?}");
    }
    for (spec, expected) in [
        (
            "targetRefs: [{kind: Service, name: a}], action: DENY",
            "spec: no rules, so that it would never match",
        ),
        ("targetRefs: [{kind: Service, name: a}], action: CUSTOM, provider: {name: x}", "spec: no rules"),
        (
            "targetRefs: [{kind: Service, name: a}], action: CUSTOM, rules: [{}]",
            "spec: CUSTOM without a provider",
        ),
        ("targetRefs: [{kind: Service, name: a}], provider: {name: x}", "spec: a provider without CUSTOM"),
    ] {
        let problems = problems(&object_of("p", "", spec));
        assert!(problems.iter().any(|line| line.contains(expected)), "{spec}: {problems:?}");
    }
    let many = "{kind: Service, name: cart}, ".repeat(17);
    assert!(problems(&object_of("p", "", &format!("targetRefs: [{many}]")))[0].contains("17 targetRefs"));
}

#[test]
fn a_policy_that_nobody_evaluates_is_said() {
    let ready = "status: {addresses: [{value: 10.96.0.9}]}";
    let mesh = [gateway("", "", ready), service("cart", USES), service("other", "")].concat();
    for (reference, expected) in [
        ("{kind: Service, name: cart}", None),
        ("{kind: Service, name: other}", Some("Service other has no waypoint")),
        ("{kind: Service, name: none}", Some("no Service none in namespace shop")),
        ("{group: gateway.networking.k8s.io, kind: Gateway, name: wp}", None),
        (
            "{group: gateway.networking.k8s.io, kind: Gateway, name: x}",
            Some("no Gateway x in namespace shop"),
        ),
        (
            "{group: networking.istio.io, kind: ServiceEntry, name: x}",
            Some("no ServiceEntry x in namespace shop"),
        ),
    ] {
        let said = warnings(&(mesh.clone() + &object_of("p", "", &format!("targetRefs: [{reference}]"))));
        assert_eq!(said.len(), usize::from(expected.is_some()), "{reference} {said:?}");
        if let Some(expected) = expected {
            assert!(said[0].contains(expected) && said[0].contains("nobody evaluates"), "{said:?}");
        }
    }
}
