//! DestinationRules and ServiceEntries. How balance, circuits and ejections work is in `l7::balance`, `l7::breaker` and
//! `l7::outlier`; that each field gets there is in `tests::destinations`.

use super::*;

fn rule(namespace: &str, spec: &str) -> String {
    object("DestinationRule", namespace, "name: dr", spec)
}

fn to(subset: &str) -> String {
    virtual_service(&format!("{{route: [{{destination: {{host: cart, subset: {subset}}}}}]}}"))
}

#[test]
fn subsets() {
    let spec =
        "host: cart, subsets: [{name: v1, labels: {version: v1}}, {name: none, labels: {version: v9}}]";
    for (rules, subset, wanted) in [
        (rule("shop", spec), "v1", "GET svc/a > cart-1:80"),
        (rule("shop", spec), "v2", "503 NC"),
        (rule("shop", spec), "none", "503 \"no healthy upstream\" UH"),
        // The namespaces of the waypoint, the service and the whole mesh count, that of the client does not.
        (
            rule("istio-system", &spec.replace("cart", "cart.shop.svc.cluster.local")),
            "v1",
            "GET svc/a > cart-1:80",
        ),
        (rule("money", &spec.replace("cart", "cart.shop.svc.cluster.local")), "v1", "503 NC"),
    ] {
        assert_eq!(
            world(&(to(subset) + &rules)).outcome("GET /a\npeer: money/x"),
            wanted,
            "{rules} {subset}"
        );
    }
}

#[test]
fn traffic_policies() {
    let policy = |policy: &str| rule("shop", &format!("host: cart, trafficPolicy: {{{policy}}}"));
    for (fields, wanted) in [
        ("loadBalancer: {simple: RANDOM}", CART),
        ("loadBalancer: {simple: PASSTHROUGH}", "GET svc/a > as asked 10.96.0.1:80"),
        ("tls: {mode: DISABLE}", CART),
        ("tls: {mode: ISTIO_MUTUAL}", CART),
        // What is not built sends nothing anywhere.
        ("loadBalancer: {consistentHash: {httpHeaderName: x}}", "503"),
        ("loadBalancer: {localityLbSetting: {enabled: true}}", "503"),
        ("loadBalancer: {simple: RANDOM, warmup: {duration: 1m}}", "503"),
        ("tls: {mode: SIMPLE}", "503"),
        ("proxyProtocol: {version: V1}", "503"),
    ] {
        let outcome = world(&policy(fields)).outcome("GET /a");
        // Why is told in the log; the answer has no more than the status.
        let outcome = if wanted == "503" { outcome.split(' ').next().unwrap().to_owned() } else { outcome };
        assert_eq!(outcome, wanted, "{fields}");
    }
}

const ENTRY: &str = "
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry,
 metadata: {name: far, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {hosts: [far.example], addresses: [240.0.0.1], resolution: STATIC, location: MESH_EXTERNAL,
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 81, name: other, protocol: HTTP}],
  endpoints: [{address: 192.0.2.1, ports: {http: 9090}}, {address: 'fd00::9', labels: {version: v1}}]}}
";

#[test]
fn service_entries() {
    let ask = "GET /a\nto: 240.0.0.1:80";
    let other = "GET /a\nto: 240.0.0.1:81";
    let of = world(ENTRY);
    let ports = |outcome: String| {
        let to = outcome.split_once(" > ").unwrap_or_else(|| panic!("{outcome}")).1.to_owned();
        let mut ports: Vec<String> =
            to.split('|').map(|one| one.rsplit(':').next().unwrap().to_owned()).collect();
        ports.sort();
        ports.join(" ")
    };
    assert_eq!((ports(of.outcome(ask)), ports(of.outcome(other))), ("8080 9090".into(), "81 81".into()));
    assert_eq!(of.outcome("GET /a\nto: 240.0.0.1:82"), "no port");
    assert_eq!(of.outcome("GET /a\nto: 240.0.0.2:80"), "not bound");
    // Without the label of a waypoint it is not the waypoint's.
    assert_eq!(world(&ENTRY.replace("istio.io/use-waypoint", "other")).outcome(ask), "not bound");
    let (nobody, _) = ENTRY.split_once("endpoints").unwrap();
    let nobody = format!("{}}}}}\n", nobody.trim_end().trim_end_matches(','));
    assert_eq!(
        world(&nobody).outcome(ask),
        "503 \"no healthy upstream\" UH",
        "as Istio has it: no endpoint yet"
    );
    // Without resolution it goes where it was asked to go, in a whole range too.
    let open = ENTRY.replace("STATIC", "NONE").replace("240.0.0.1", "240.0.0.0/24");
    let (before, _) = open.split_once("endpoints").unwrap();
    let open = format!("{}}}}}\n", before.trim_end().trim_end_matches(','));
    assert_eq!(world(&open).outcome("GET /a\nto: 240.0.0.7:80"), "GET svc/a > as asked 240.0.0.7:80");
    let by_name = open.replace("NONE", "DNS").replace("240.0.0.0/24", "240.0.0.1");
    assert_eq!(ports(world(&by_name).outcome(ask)), "8080", "the host name is the endpoint");
    let dynamic = open.replace("NONE", "DYNAMIC_DNS").replace("far.example", "'*.example'");
    let refused = world(&dynamic).outcome("GET /a\nto: 240.0.0.7:80");
    assert_eq!(refused, "503 NC", "not built: nothing is sent");
    let route = object(
        "HTTPRoute",
        "shop",
        "name: r",
        "parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: far}], \
         rules: [{backendRefs: [{name: cart, port: 80}]}]",
    );
    assert_eq!(world(&[ENTRY, &route].concat()).outcome(ask), CART);
    let selecting = ENTRY.replace("192.0.2.1", "192.0.2.2");
    let selector = "workloadSelector: {labels: {app: cart}}";
    let (before, _) = selecting.split_once("endpoints").unwrap();
    let selecting = format!("{before}{selector}}}}}\n");
    assert_eq!(world(&selecting).outcome(ask), "GET svc/a > cart-1:8080|cart-2:8080");
}
