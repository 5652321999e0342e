//! AuthorizationPolicies, and what a Gateway says of its requests.

use super::*;
use crate::model::l7::{AboveRoot, Normalization};

fn policy(meta: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop{meta}}}, \
         spec: {{{spec}}}}}\n"
    )
}

const CART_ONLY: &str = "targetRefs: [{kind: Service, group: '', name: cart}]";
const DENIED: &str = "403 \"RBAC: access denied\"";

/// Each field alone, in a DENY and in an ALLOW: who is meant is denied by the one and let in by the other.
#[test]
fn fields_of_rules() {
    let from = "peer: shop/web\nfrom: 10.1.0.1:99";
    let meant = format!("GET /a\nhost: b.c\nx-a: v\n{from}");
    let other = "PUT /z\nhost: z\nx-a: w\npeer: money/bob\nfrom: 10.2.0.1:99";
    for rule in [
        "from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]",
        "from: [{source: {notPrincipals: [cluster.local/ns/money/sa/*]}}]",
        "from: [{source: {namespaces: [shop]}}]",
        "from: [{source: {notNamespaces: [money]}}]",
        "from: [{source: {serviceAccounts: [web]}}]",
        "from: [{source: {notServiceAccounts: [money/bob]}}]",
        "from: [{source: {ipBlocks: [10.1.0.0/16]}}]",
        "from: [{source: {notIpBlocks: [10.2.0.0/16]}}]",
        "from: [{source: {remoteIpBlocks: [10.1.0.0/16]}}]",
        "from: [{source: {notRemoteIpBlocks: [10.2.0.0/16]}}]",
        "from: [{source: {trustDomains: [cluster.local], namespaces: [shop]}}]",
        "from: [{source: {notTrustDomains: [other], namespaces: [shop]}}]",
        "to: [{operation: {methods: [GET]}}]",
        "to: [{operation: {notMethods: [PUT]}}]",
        "to: [{operation: {paths: [/a]}}]",
        "to: [{operation: {paths: ['/{*}'], methods: [GET]}}]",
        "to: [{operation: {notPaths: [/z*]}}]",
        "to: [{operation: {hosts: [b.c]}}]",
        "to: [{operation: {hosts: ['*.c']}}]",
        "to: [{operation: {notHosts: [z]}}]",
        "to: [{operation: {ports: ['80'], methods: [GET]}}]",
        "to: [{operation: {notPorts: ['81'], methods: [GET]}}]",
        "when: [{key: 'request.headers[x-a]', values: [v]}]",
        "when: [{key: 'request.headers[x-a]', notValues: [w]}]",
        "when: [{key: source.ip, values: [10.1.0.0/16]}]",
        "when: [{key: remote.ip, notValues: [10.2.0.0/16]}]",
        "when: [{key: source.namespace, values: [shop]}]",
        "when: [{key: source.principal, values: [cluster.local/ns/shop/*]}]",
        "when: [{key: source.serviceAccount, values: [shop/web]}]",
        "when: [{key: source.trustDomain, values: [cluster.local]}, {key: source.namespace, values: [shop]}]",
        "when: [{key: destination.ip, values: [10.96.0.1]}, {key: source.namespace, values: [shop]}]",
        "when: [{key: destination.port, values: ['80']}, {key: source.namespace, values: [shop]}]",
    ] {
        for (action, meant_is_denied) in [("DENY", true), ("ALLOW", false)] {
            let of = world(&policy("", &format!("{CART_ONLY}, action: {action}, rules: [{{{rule}}}]")));
            assert_eq!(
                of.outcome(&meant) == DENIED,
                meant_is_denied,
                "{action} {rule}: {}",
                of.outcome(&meant)
            );
            assert_eq!(
                of.outcome(other) == DENIED,
                !meant_is_denied,
                "{action} {rule}: {}",
                of.outcome(other)
            );
        }
    }
}

/// The mesh of the other tests, whose waypoint has this metadata.
fn mesh(meta: &str) -> String {
    let of = "metadata: {name: wp, namespace: shop";
    assert!(MESH.contains(of));
    MESH.replacen(of, &format!("{of}, {meta}"), 1)
}

/// A pod that is bound itself, and the class of the waypoint.
const BOUND: &str = "
---
{apiVersion: v1, kind: Pod, metadata: {name: alone, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 status: {podIPs: [{ip: 10.0.0.5}]}}
";

#[test]
fn actions_and_targets() {
    let mesh = mesh("labels: {istio.io/waypoint-for: all}");
    let requests = ["GET /a", "GET /a\nto: 10.96.0.2:80", "GET /a\nto: 10.0.0.5:80"];
    let open = [CART, "GET svc/a > echo-1:80", "GET /a > workload alone"];
    let all = "rules: [{}]";
    let gateway = "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: wp}]";
    let class =
        "targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: culvert-waypoint}]";
    for (meta, spec, denied) in [
        ("", format!("{CART_ONLY}, action: DENY, {all}"), [true, false, false]),
        ("", format!("{gateway}, action: DENY, {all}"), [true; 3]),
        ("", format!("{CART_ONLY}, action: ALLOW, {all}"), [false; 3]),
        ("", format!("{CART_ONLY}, action: ALLOW"), [true, false, false]),
        ("", CART_ONLY.to_owned(), [true, false, false]),
        ("", format!("{CART_ONLY}, action: AUDIT, {all}"), [false; 3]),
        (
            ", annotations: {istio.io/dry-run: 'true'}",
            format!("{CART_ONLY}, action: DENY, {all}"),
            [false; 3],
        ),
        // Selectors, and policies without a target, are for node agents.
        ("", format!("selector: {{matchLabels: {{app: cart}}}}, action: DENY, {all}"), [false; 3]),
        ("", format!("action: DENY, {all}"), [false; 3]),
        // A class is named in the root namespace only.
        ("!", format!("{class}, action: DENY, {all}"), [true; 3]),
        // What cannot be evaluated closes what it is for, and nothing else.
        ("", format!("{CART_ONLY}, action: CUSTOM, provider: {{name: x}}, {all}"), [true, false, false]),
        (
            "",
            format!("{CART_ONLY}, rules: [{{from: [{{source: {{requestPrincipals: ['*']}}}}]}}]"),
            [true, false, false],
        ),
        (
            "",
            format!(
                "{CART_ONLY}, action: DENY, rules: [{{when: [{{key: 'request.auth.claims[a]', values: [b]}}]}}]"
            ),
            [true, false, false],
        ),
    ] {
        let text = match meta {
            "!" => policy("", &spec).replace("namespace: shop", "namespace: istio-system"),
            meta => policy(meta, &spec),
        };
        let of = world_of(&mesh, &(text + BOUND), &Settings::default());
        for ((request, open), is_denied) in requests.iter().zip(open).zip(denied) {
            let wanted = if is_denied { DENIED } else { open };
            assert_eq!(of.outcome(request), wanted, "{request:?} {meta} {spec}");
        }
    }
}

/// A target of the kind ServiceEntry; a DENY beside an ALLOW; calls of gRPC.
#[test]
fn what_policies_come_to() {
    let entry = "
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry,
 metadata: {name: far, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {hosts: [far.example], addresses: [240.0.0.1], resolution: STATIC,
  ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}}
";
    let target = "targetRefs: [{kind: ServiceEntry, group: networking.istio.io, name: far}]";
    let of = world(&(policy("", &format!("{target}, action: DENY, rules: [{{}}]")) + entry));
    assert_eq!((of.outcome("GET /a\nto: 240.0.0.1:80"), of.outcome("GET /a")), (DENIED.into(), CART.into()));
    let other = world(
        &(policy("", &format!("{}, action: DENY, rules: [{{}}]", target.replace("far", "near"))) + entry),
    );
    assert!(!other.outcome("GET /a\nto: 240.0.0.1:80").starts_with("403"), "a target of another name");
    let both = policy("", &format!("{CART_ONLY}, action: ALLOW, rules: [{{}}]"))
        + &policy(
            "",
            &format!("{CART_ONLY}, action: DENY, rules: [{{to: [{{operation: {{methods: [PUT]}}}}]}}]"),
        )
        .replace("name: p,", "name: q,");
    let of = world(&both);
    assert_eq!((of.outcome("GET /a"), of.outcome("PUT /a")), (CART.into(), DENIED.into()));
    assert_eq!(
        of.outcome("PUT /a\ncontent-type: application/grpc"),
        "200 content-type: application/grpc grpc-message: RBAC: access denied grpc-status: 7"
    );
}

#[test]
fn what_a_gateway_says() {
    let plain = Settings::default();
    let xfcc = mesh("annotations: {ambient.istio.io/xfcc-include-client-identity: 'true'}");
    let told = "By=spiffe://cluster.local/ns/shop/sa/wp;URI=spiffe://cluster.local/ns/money/sa/bob";
    let forged = "GET /a\npeer: money/bob\nx-forwarded-client-cert: By=me";
    let gone = format!("{CART} -x-forwarded-client-cert: By=me");
    assert_eq!(
        world_of(&xfcc, "", &plain).outcome(forged),
        format!("{gone} +x-forwarded-client-cert: {told}")
    );
    assert_eq!(world("").outcome(forged), gone);
    // Policies see it, routes do not.
    let route = virtual_service(
        "{match: [{headers: {x-forwarded-client-cert: {regex: '.*'}}}], directResponse: {status: 201}}",
    );
    assert_eq!(world_of(&xfcc, &route, &plain).outcome(forged), "404 NR");
    let key = "when: [{key: 'request.headers[x-forwarded-client-cert]', values: ['*bob']}]";
    let deny = policy("", &format!("{CART_ONLY}, action: DENY, rules: [{{{key}}}]"));
    assert_eq!(world_of(&xfcc, &deny, &plain).outcome(forged), DENIED);
    // What it serves.
    let pod = "GET /a\nto: 10.0.0.5:80";
    for (serves, on_service, on_pod) in [
        ("service", CART, "not bound"),
        ("workload", "not bound", "GET /a > workload alone"),
        ("all", CART, "GET /a > workload alone"),
        ("none", "not bound", "not bound"),
    ] {
        let of = world_of(&mesh(&format!("labels: {{istio.io/waypoint-for: {serves}}}")), BOUND, &plain);
        assert_eq!((of.outcome("GET /a"), of.outcome(pod)), (on_service.into(), on_pod.into()), "{serves}");
    }
    let strict = Settings { above_root: AboveRoot::Refused, ..Settings::default() };
    assert_eq!(world_with("", &strict).outcome("GET /../a"), "400");
    assert_eq!(world("").outcome("GET /../a"), CART);
    let merged = Settings { normalization: Normalization::MergeSlashes, ..Settings::default() };
    assert_eq!(world_with("", &merged).outcome("GET //a"), CART);
    assert_eq!(world("").outcome("GET //a"), CART.replace("/a", "//a"));
}
