//! The example of the format, and what is refused in it.

use super::*;
use crate::model::{
    Action, HealthPolicy, IpFamilies, LocalityScope, Mode, Scope, StringMatch, TunnelPreamble,
    TunnelProtocol, Visibility,
};

const EXAMPLE: &str = r#"
workloads:
  - uid: c1//Pod/shop/cart-0
    name: cart-0
    namespace: shop
    trustDomain: cluster.local
    serviceAccount: cart
    workloadIps: ["10.20.0.5", "fd00::5"]
    protocol: HBONE
    networkMode: Standard
    network: net-a
    node: node-1
    workloadName: cart
    workloadType: deployment
    canonicalName: cart
    canonicalRevision: v2
    clusterId: c1
    status: Healthy
    capacity: 3
    locality: {region: r1, zone: z1, subzone: ""}
    authorizationPolicies: ["shop/only-web"]
    waypoint: {destination: "shop/wp.shop.svc.cluster.local", hboneMtlsPort: 15008}
    applicationTunnel: {protocol: PROXY, port: 15088}
    services:
      "shop/cart.shop.svc.cluster.local": {80: 8080, 443: 8443}
  - uid: net-b/remote/cart
    namespace: shop
    workloadIps: []
    protocol: HBONE
    network: net-b
    networkGateway: {destination: "net-b/203.0.113.7", hboneMtlsPort: 15008}
    services: {"shop/cart.shop.svc.cluster.local": {80: 8080}}
services:
  - name: cart
    namespace: shop
    hostname: cart.shop.svc.cluster.local
    vips: ["net-a/10.96.1.1", "net-b/10.97.1.1"]
    cidrVips: [{network: net-a, cidr: 10.97.0.0/16}]
    ports: {80: 8080, 443: 0}
    subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/cart"]
    canonical: true
    visibility: Namespace
    ipFamilies: Dual
    loadBalancer: {routingPreferences: [Network, Region, Zone], mode: Failover, healthPolicy: OnlyHealthy}
    weightedWaypoints:
      - {destination: {destination: "shop/wp2.shop.svc.cluster.local", hboneMtlsPort: 15008}, weight: 10}
policies:
  - name: only-web
    namespace: shop
    scope: WorkloadSelector
    action: Allow
    dryRun: false
    rules:
      - - - principals: [!Exact cluster.local/ns/shop/sa/web, !Prefix "cluster.local/ns/ops/"]
            destinationPorts: [8080]
          - namespaces: [!Suffix "-admin"]
            notPrincipals: [!Presence []]
        - - notSourceIps: ["10.99.0.0/16"]
            serviceAccounts: [{namespace: shop, serviceAccount: web}]
"#;

fn read(text: &str) -> Result<Model, Vec<String>> {
    translate("mesh.yaml", text, "net-a").map_err(|all| all.iter().map(ToString::to_string).collect())
}

#[test]
fn every_field_of_the_form_is_read() {
    let model = read(EXAMPLE).unwrap();
    let [cart, remote] = &model.workloads[..] else { panic!("{:?}", model.workloads) };
    assert_eq!(
        (&*cart.uid.0, cart.protocol, cart.capacity),
        ("c1//Pod/shop/cart-0", TunnelProtocol::Hbone, 3)
    );
    assert_eq!(cart.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!((cart.addresses.len(), &*cart.locality.zone, &*cart.node), (2, "z1", "node-1"));
    assert_eq!(cart.waypoint.as_ref().unwrap().destination.to_string(), "shop/wp.shop.svc.cluster.local");
    let tunnel = cart.application_tunnel.unwrap();
    assert_eq!((tunnel.protocol, tunnel.port), (TunnelPreamble::Proxy, 15088));
    assert_eq!(cart.authorization_policies[0].to_string(), "shop/only-web");
    assert_eq!(remote.network_gateway.as_ref().unwrap().destination.to_string(), "net-b/203.0.113.7");
    assert_eq!(remote.identity.service_account(), "default");

    let [service] = &model.services[..] else { panic!("{:?}", model.services) };
    assert_eq!(service.vips, ["10.96.1.1".parse::<std::net::IpAddr>().unwrap()], "not of another network");
    assert_eq!(service.cidr_vips.len(), 1);
    let elsewhere: Vec<_> = service.elsewhere.iter().map(|(net, ip)| format!("{net} {ip}")).collect();
    assert_eq!(elsewhere, ["net-b 10.97.1.1/32"]);
    assert_eq!((service.ip_families, service.visibility), (IpFamilies::Dual, Visibility::Namespace));
    let balancing = &service.load_balancing;
    assert_eq!((balancing.mode, balancing.health_policy), (Mode::Failover, HealthPolicy::OnlyHealthy));
    assert_eq!(balancing.routing_preference[0], LocalityScope::Network);
    assert_eq!(service.weighted_waypoints[0].weight, 10);
    let own: Vec<_> = service.endpoints.iter().map(|e| (&*e.workload.0, e.ports.clone())).collect();
    let named = [(443, 8443)].into_iter().collect();
    assert_eq!(own, [("c1//Pod/shop/cart-0", named), ("net-b/remote/cart", BTreeMap::new())]);

    let [policy] = &model.policies[..] else { panic!("{:?}", model.policies) };
    assert_eq!(
        (policy.scope, policy.action, policy.dry_run),
        (Scope::WorkloadSelector, Action::Allow, false)
    );
    let [rule] = &policy.rules[..] else { panic!("{policy:?}") };
    assert_eq!(rule.clauses.len(), 2);
    let [first, second] = &rule.clauses[0].matches[..] else { panic!("{rule:?}") };
    assert_eq!(first.principals[0], StringMatch::Exact("cluster.local/ns/shop/sa/web".into()));
    assert_eq!(first.principals[1], StringMatch::Prefix("cluster.local/ns/ops/".into()));
    assert_eq!(second.namespaces, [StringMatch::Suffix("-admin".into())]);
    assert_eq!(second.not_principals, [StringMatch::Presence]);
    assert_eq!(rule.clauses[1].matches[0].not_source_ips.as_ref().unwrap().len(), 1);
}

#[test]
fn an_empty_file_is_an_empty_mesh() {
    for text in ["", "# nothing\n", "{}", "workloads: []\nservices: ~\n"] {
        assert!(read(text).unwrap().workloads.is_empty(), "{text:?}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_what_is_allowed() {
    let policy = |matches: &str| {
        format!(
            "policies: [{{name: a, namespace: b, scope: Global, action: Deny, dryRun: false, rules: [[[{matches}]]]}}]"
        )
    };
    for (text, wanted) in [
        ("gateways: []", "mesh.yaml:1: gateways: no such field; allowed: workloads, services, policies"),
        (
            "workloads:\n- {namespace: a, workloadIps: [], services: {}, ips: []}",
            "mesh.yaml:2: workloads[0].ips: no such field",
        ),
        ("workloads:\n- {workloadIps: [], services: {}}", "workloads[0]: no namespace; required: namespace"),
        ("workloads:\n- {namespace: a, services: {}}", "workloads[0]: no workloadIps; required"),
        (
            "workloads:\n- {namespace: a, workloadIps: [x], services: {}}",
            "workloads[0].workloadIps[0]: \"x\"; allowed: an IP address",
        ),
        ("workloads:\n- {namespace: a, workloadIps: [], services: {}, protocol: TLS}", "allowed: HBONE, TCP"),
        (
            "workloads:\n- {namespace: a, workloadIps: [], services: {x: {}}}",
            "allowed: <namespace>/<host name>",
        ),
        (
            "services:\n- {name: a, namespace: b, hostname: c, vips: [10.0.0.1], ports: {}}",
            "allowed: <network>/<address>",
        ),
        ("services:\n- {name: a, namespace: b, hostname: c, vips: [], ports: {80: x}}", "allowed: a number"),
        (
            "services:\n- {name: a, namespace: b, hostname: c, vips: [], ports: {}, loadBalancer: {mode: Failover}}",
            "no healthPolicy",
        ),
        (&policy("{principals: [web]}"), "allowed: !Exact text, !Prefix text, !Suffix text, !Presence []"),
        (&policy("{sourceIps: [10.0.0.0/33]}"), "allowed: an IP address or a CIDR block"),
        (&policy("{paths: [x]}"), "no such field"),
        (
            "policies: [{name: a, namespace: b, scope: Mesh, action: Deny, dryRun: false, rules: []}]",
            "allowed: Global, Namespace, WorkloadSelector",
        ),
        ("a: [", "no YAML"),
        ("{}\n---\nworkloads: []\n", "a second document"),
    ] {
        let problems = read(text).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains(wanted)), "{text}\n{problems:#?}");
    }
}
