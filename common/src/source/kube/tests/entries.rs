//! ServiceEntries and WorkloadEntries: services and endpoints that Kubernetes does not know.

use super::waypoints::{for_waypoint, gateway};
use super::*;
use crate::model::l7::{Balance, Protocol};
use crate::model::{Mode, Service, Visibility};

fn entry(name: &str, meta: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, namespace: shop, {meta}}}, \
         spec: {{{spec}}}}}\n"
    )
}

fn workload(name: &str, meta: &str, spec: &str) -> String {
    entry(name, meta, spec).replace("ServiceEntry", "WorkloadEntry")
}

const PORTS: &str = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: TLS}]";

fn one(text: &str) -> (Model, Service) {
    let model = model(text);
    let service = model.services[0].clone();
    (model, service)
}

#[test]
fn every_field_of_a_service_entry() {
    let spec = format!(
        "hosts: [Api.Example, '*.other.example'], addresses: [10.9.0.1, 'fd99::1', 10.8.0.0/16], {PORTS}, location: \
         MESH_INTERNAL, resolution: STATIC, endpoints: [{{address: 10.1.0.1, ports: {{http: 9090}}, labels: {{app: x}}, \
         network: n, locality: r/z/s, weight: 3, serviceAccount: sa}}, {{address: 'fd01::1'}}], exportTo: ['.'], \
         subjectAltNames: [spiffe://cluster.local/ns/a/sa/b, dns.example]"
    );
    let (model, service) = one(&entry("api", "", &spec));
    assert_eq!(service.key.to_string(), "shop/api.example");
    assert_eq!(model.services[1].key.to_string(), "shop/*.other.example");
    assert_eq!(&*service.name, "api");
    let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["10.9.0.1", "fd99::1"]);
    assert_eq!(service.cidr_vips[0].to_string(), "10.8.0.0/16");
    let ports: Vec<_> = service.ports.iter().map(|(port, of)| (*port, of.target, &*of.name)).collect();
    assert_eq!(ports, [(80, 8080, "http"), (443, 443, "tls")]);
    assert_eq!(service.visibility, Visibility::Namespace);
    assert_eq!(service.subject_alt_names.len(), 1);
    assert!(service.canonical);
    let uid = "Kubernetes/networking.istio.io/ServiceEntry/shop/api/";
    assert_eq!(
        shown(&service.endpoints),
        [format!("{uid}10.1.0.1 {{80: 9090}} Healthy"), format!("{uid}fd01::1 {{}} Healthy")]
    );
    let of = &model.workloads[0];
    assert_eq!(of.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/sa");
    assert_eq!((&*of.network, of.capacity, &*of.locality.subzone), ("n", 3, "s"));
    assert_eq!((&*of.locality.region, &*of.locality.zone), ("r", "z"));
    assert_eq!(model.workloads[1].identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(model.workloads.len(), 2, "both hosts have the same endpoints");
}

#[test]
fn resolutions() {
    for (spec, mode, endpoints, hostname) in [
        ("resolution: NONE", Mode::Passthrough, 0, ""),
        ("", Mode::Passthrough, 0, ""),
        ("resolution: STATIC, endpoints: [{address: 10.1.0.1}]", Mode::Standard, 1, ""),
        ("resolution: DNS", Mode::Standard, 1, "api.example"),
        ("resolution: DNS_ROUND_ROBIN", Mode::Standard, 1, "api.example"),
        ("resolution: DNS, endpoints: [{address: Back.Example}]", Mode::Standard, 1, "back.example"),
    ] {
        let (model, service) = one(&entry("api", "", &format!("hosts: [api.example], {PORTS}, {spec}")));
        assert_eq!((service.load_balancing.mode, service.endpoints.len()), (mode, endpoints), "{spec}");
        assert_eq!(model.workloads.first().map_or("", |w| &*w.hostname), hostname, "{spec}");
    }
    let meta = "annotations: {networking.istio.io/traffic-distribution: PreferClose}";
    let (_, service) = one(&entry("api", meta, &format!("hosts: [a.example], {PORTS}, resolution: DNS")));
    assert_eq!(service.load_balancing.mode, Mode::Failover);
}

#[test]
fn addresses_that_a_controller_gave() {
    let text = format!(
        "\n---\n{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: a, namespace: shop}}, spec: {{hosts: \
         [a.example, b.example], {PORTS}, resolution: DNS}}, status: {{addresses: [{{value: 240.240.0.1, host: a.example}}, \
         {{value: 'fd00::2', host: b.example}}]}}}}"
    );
    let model = model(&text);
    let vips: Vec<String> = model.services.iter().map(|s| s.vips[0].to_string()).collect();
    assert_eq!(vips, ["240.240.0.1", "fd00::2"]);
}

#[test]
fn selectors_choose_pods_and_workload_entries() {
    let spec =
        format!("hosts: [a.example], {PORTS}, resolution: STATIC, workloadSelector: {{labels: {{app: db}}}}");
    let text = entry("a", "", &spec)
        + &pod("db-0", "10.0.0.1", "labels: {app: db}", "", "")
        + &pod("web-0", "10.0.0.2", "labels: {app: web}", "", "")
        + &workload("vm", "labels: {app: db}", "address: 10.1.0.1, ports: {http: 9090}")
        + &workload("vm2", "", "address: 10.1.0.2, labels: {app: db}")
        + &workload("vm3", "labels: {app: web}", "address: 10.1.0.3");
    let (_, service) = one(&text);
    let of = "Kubernetes/networking.istio.io/WorkloadEntry/shop/";
    assert_eq!(
        shown(&service.endpoints),
        [
            "Kubernetes//Pod/shop/db-0 {} Healthy".to_owned(),
            format!("{of}vm {{80: 9090}} Healthy"),
            format!("{of}vm2 {{}} Healthy"),
        ]
    );
}

#[test]
fn services_choose_workload_entries_too() {
    let service = object(
        "Service",
        "db",
        "spec: {selector: {app: db}, ports: [{port: 80, name: http, targetPort: web}, {port: 81, name: b, targetPort: 9}]}",
    );
    let entry = workload("vm", "labels: {app: db}", "address: 10.1.0.1, ports: {web: 8080, b: 10}");
    let (_, service) = one(&(service + &entry));
    let of = "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm";
    assert_eq!(shown(&service.endpoints), [format!("{of} {{80: 8080}} Healthy")]);
}

#[test]
fn every_field_of_a_workload_entry() {
    let text = workload(
        "vm",
        "labels: {app: db, version: v2}, annotations: {ambient.istio.io/redirection: enabled}",
        "address: 'fd01::1', serviceAccount: db, weight: 2, network: n, locality: r/z",
    );
    let model = model(&text);
    let of = &model.workloads[0];
    assert_eq!(of.uid.to_string(), "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm");
    assert_eq!(of.addresses[0].to_string(), "fd01::1");
    assert_eq!(of.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/db");
    assert_eq!((&*of.canonical_name, &*of.canonical_revision), ("db", "v2"));
    assert_eq!((of.protocol, of.capacity), (TunnelProtocol::Hbone, 2));
    let sick = text.trim_end().strip_suffix('}').unwrap().to_owned()
        + ", status: {conditions: [{type: Healthy, status: 'False'}]}}";
    assert_eq!(super::model(&sick).workloads[0].health, Health::Unhealthy);
}

#[test]
fn the_clusters_names_and_addresses_are_not_for_the_taking() {
    let service = object("Service", "cart", "spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}");
    let text = service
        + &pod("a", "10.0.0.1", "", "", "")
        + &entry(
            "x",
            "",
            &format!("hosts: [x.example], addresses: [10.96.0.1, 10.0.0.1, 10.9.9.9], {PORTS}"),
        )
        + &entry("y", "", &format!("hosts: [cart.shop.svc.cluster.local], {PORTS}"));
    let translated = translated(&text, &Settings::default());
    assert_eq!(translated.model.services.len(), 2);
    let vips: Vec<String> = translated.model.services[1].vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["10.9.9.9"]);
    let said = lines(&translated.warnings);
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said.iter().any(|line| line.contains("10.0.0.1, which Kubernetes//Pod/shop/a has")), "{said:?}");
    assert!(said.iter().any(|line| line.contains("only Services have such names")), "{said:?}");
}

#[test]
fn of_two_with_one_host_the_older_has_it() {
    let of = |name: &str, created: &str, namespace: &str| {
        let meta = format!("creationTimestamp: '{created}'");
        entry(name, &meta, &format!("hosts: [a.example], addresses: [10.9.0.{}], {PORTS}", name.len()))
            .replace("namespace: shop", &format!("namespace: {namespace}"))
    };
    let apart = model(&(of("a", "2026-01-02T00:00:00Z", "one") + &of("bb", "2026-01-01T00:00:00Z", "two")));
    let canonical: Vec<bool> = apart.services.iter().map(|service| service.canonical).collect();
    assert_eq!(canonical, [false, true]);
    let text = of("a", "2026-01-02T00:00:00Z", "one") + &of("bb", "2026-01-01T00:00:00Z", "one");
    let together = translated(&text, &Settings::default());
    assert_eq!(together.model.services.len(), 1);
    assert_eq!(&*together.model.services[0].name, "bb");
    assert!(lines(&together.warnings)[0].contains("a.example, which the older ServiceEntry one/bb has"));
}

#[test]
fn a_service_entry_is_bound_as_services_are() {
    let ready = "status: {addresses: [{value: 10.96.0.9}]}";
    let uses = "labels: {istio.io/use-waypoint: wp}";
    let text = gateway("", "", ready)
        + &entry(
            "api",
            uses,
            &format!("hosts: [api.example], addresses: [10.9.0.1], {PORTS}, resolution: NONE"),
        );
    let (_, service) = one(&text);
    assert!(service.waypoint.is_some());
    let translated = for_waypoint(&text);
    let bound = translated.waypoint.services.values().next().unwrap();
    let protocols: Vec<Protocol> = bound.ports.values().map(|port| port.protocol).collect();
    assert_eq!(protocols, [Protocol::Http1, Protocol::Tls]);
    assert!(translated.waypoint.clusters.values().all(|cluster| cluster.balance == Balance::Passthrough));
    let reasons: Vec<_> = translated.statuses.iter().filter(|s| s.kind == "ServiceEntry").collect();
    assert_eq!(reasons[0].conditions[0].reason, "WaypointAccepted");
    let wild = entry("wild", "", &format!("hosts: ['*.example'], {PORTS}"));
    let translated = super::translated(&wild, &Settings::default());
    assert_eq!(translated.statuses[0].conditions[0].reason, "NoWaypointForWildcardService");
}

#[test]
fn what_contradicts_itself_is_a_problem() {
    for (spec, expected) in [
        ("ports: [{number: 80, name: a}]", "spec: no hosts"),
        ("hosts: ['']", "spec.hosts[0]: \"\"; allowed: a host name, or *. and a host name"),
        ("hosts: ['a b']", "spec.hosts[0]: \"a b\""),
        (
            "hosts: [a.example], resolution: STATIC, endpoints: [{address: b.example}]",
            "spec.endpoints[0]: address \"b.example\" with resolution STATIC",
        ),
        (
            "hosts: [a.example], resolution: DNS, endpoints: [{address: 'b c'}]",
            "spec.endpoints[0].address: \"b c\"; allowed: an IP address or a host name",
        ),
        (
            "hosts: [a.example], resolution: STATIC, ports: [{number: 80, name: a}], endpoints: [{address: 10.0.0.1, ports: {b: 1}}]",
            "spec.endpoints[0]: a port \"b\"; allowed: names of the object's own ports",
        ),
        (
            "hosts: [a.example], resolution: DNS, addresses: [10.0.0.0/8]",
            "spec: a CIDR block with resolution DNS",
        ),
        (
            "hosts: [a.example], ports: [{number: 80, name: a}, {number: 81, name: a}]",
            "spec.ports[1]: port name \"a\" for the second time",
        ),
        (
            "hosts: [a.example], resolution: NONE, endpoints: [{address: 10.0.0.1}]",
            "endpoints with resolution NONE",
        ),
        ("hosts: ['*.example'], resolution: DNS", "a wildcard host with resolution DNS"),
        (
            "hosts: [a.example], resolution: Static",
            "allowed: NONE, STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS",
        ),
        ("hosts: [a.example], location: HERE", "allowed: MESH_EXTERNAL, MESH_INTERNAL"),
        ("hosts: [a.example], addresses: [x]", "spec.addresses[0]: \"x\""),
        ("hosts: [a.example], ports: [{name: a}]", "spec.ports[0]: no number"),
        (
            "hosts: [a.example], ports: [{number: 80, protocol: XMPP}]",
            "spec.ports[0].protocol: \"XMPP\"; allowed: HTTP, ",
        ),
        ("hosts: [a.example], ports: [{number: 80}, {number: 80}]", "80 for the second time"),
        ("hosts: [a.example], endpoint: []", "spec.endpoint: no such field"),
        (
            "hosts: [a.example], resolution: STATIC, endpoints: [{ports: {a: 1}}]",
            "spec.endpoints[0]: no address",
        ),
        (
            "hosts: [a.example], resolution: STATIC, endpoints: [{address: 'unix:///a'}]",
            "spec.endpoints[0].address",
        ),
        ("hosts: [a.example], exportTo: ['~']", "spec.exportTo[0]"),
        ("hosts: [a.example], subjectAltNames: ['spiffe://x']", "spec.subjectAltNames[0]"),
        (
            "hosts: [a.example], resolution: STATIC, endpoints: [{address: 10.0.0.1}], workloadSelector: {labels: {a: b}}",
            "both endpoints and workloadSelector",
        ),
    ] {
        let problems = problems(&entry("a", "", spec));
        assert!(problems.iter().any(|line| line.contains(expected)), "{spec}: {problems:?}");
    }
}

#[test]
fn entries_that_cannot_be_are_problems_and_what_has_no_effect_is_told() {
    for (spec, expected) in [
        ("ports: {a: 1}", "spec: no address"),
        ("address: 10.0.0.1, weight: many", "spec.weight: \"many\""),
        ("address: 10.0.0.1, ports: {a: 70000}", "spec.ports.a: 70000"),
        ("address: 10.0.0.1, port: 1", "spec.port: no such field"),
    ] {
        let problems = problems(&workload("a", "", spec));
        assert!(problems.iter().any(|line| line.contains(expected)), "{spec}: {problems:?}");
    }
    let racing = "annotations: {istio.io/connect-strategy: RACE_FIRST_TCP_CONNECT}";
    let said = warnings(&entry("a", racing, "hosts: [a.example], resolution: DNS"));
    assert!(said[0].contains("racing connections is not supported"), "{said:?}");
    let said = warnings(&entry("a", "", "hosts: [a.example], resolution: STATIC"));
    assert!(said.iter().any(|line| line.contains("resolution STATIC without endpoints")), "{said:?}");
    let of_dns = "hosts: ['*.example'], resolution: DNS, endpoints: [{address: b.example}]";
    assert_eq!(model(&entry("a", "", of_dns)).services[0].endpoints.len(), 1, "its endpoints are known");
    let said = warnings(&entry("a", "", "hosts: ['*.example'], resolution: DYNAMIC_DNS"));
    assert!(said.iter().any(|line| line.contains("DYNAMIC_DNS is not supported")), "{said:?}");
}
