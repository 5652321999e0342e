use std::net::IpAddr;

use super::*;
use crate::model::{Endpoint, LoadBalancing, Model, WorkloadType};
use crate::model::{Health, HealthPolicy};
use crate::types::{SpiffeId, WorkloadUid};

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

/// An address in another network.
fn there(network: &str) -> Vec<(Arc<str>, ipnet::IpNet)> {
    vec![(network.into(), "240.241.0.1/32".parse().unwrap())]
}

fn service(namespace: &str, hostname: &str, vips: &str) -> Service {
    let key = ServiceKey { namespace: namespace.into(), hostname: hostname.into() };
    let canonical = hostname.ends_with(".svc.cluster.local");
    Service { vips: ips(vips), canonical, ..Service::new(key, hostname.split('.').next().unwrap()) }
}

fn workload(namespace: &str, name: &str, owner: &str, addresses: &str) -> Workload {
    let uid = WorkloadUid(format!("Kubernetes//Pod/{namespace}/{name}").into());
    let identity = SpiffeId::new("cluster.local", namespace, "default").unwrap();
    Workload {
        addresses: ips(addresses),
        workload_type: if owner == name { WorkloadType::Pod } else { WorkloadType::Deployment },
        workload_name: owner.into(),
        cluster: "Kubernetes".into(),
        ..Workload::new(uid, name, identity)
    }
}

fn behind(mut service: Service, endpoints: &[(&str, Health)]) -> Service {
    let of = |(name, health): &(&str, Health)| Endpoint {
        workload: WorkloadUid(format!("Kubernetes//Pod/{}/{name}", service.key.namespace).into()),
        ports: [].into(),
        health: *health,
    };
    service.endpoints = endpoints.iter().map(of).collect();
    service
}

fn model() -> Model {
    use Health::{Healthy, Terminating, Unhealthy};
    let db = [
        ("db-0", Healthy),
        ("db-1", Healthy),
        ("db-2", Unhealthy),
        ("db-3", Terminating),
        ("db-x", Healthy),
        ("db-7", Healthy),
    ];
    let headless = behind(service("ns1", "db.ns1.svc.cluster.local", ""), &db);
    let eager = behind(service("ns1", "eager.ns1.svc.cluster.local", ""), &db);
    let health_policy = HealthPolicy::AllowAll;
    let eager =
        Service { load_balancing: LoadBalancing { health_policy, ..LoadBalancing::default() }, ..eager };
    let only = |families, one: Service| Service { ip_families: families, ..one };
    let private = |one: Service| Service { visibility: Visibility::Namespace, ..one };
    let services = vec![
        service("ns1", "web.ns1.svc.cluster.local", "10.1.0.1 fd00:1::1"),
        service("ns2", "web.ns2.svc.cluster.local", "10.1.0.2"),
        service("ns2", "far.ns2.svc.cluster.local", "10.1.0.3"),
        service("ns1", "both.ns1.svc.cluster.local", "10.1.0.4 10.1.0.5 fd00:1::4"),
        only(IpFamilies::V4, service("ns1", "four.ns1.svc.cluster.local", "10.1.0.6")),
        only(IpFamilies::V6, service("ns1", "six.ns1.svc.cluster.local", "fd00:1::7")),
        service("ns1", "web.ns1.svc.other.local", "10.1.0.8"),
        headless,
        eager,
        only(IpFamilies::V4, behind(service("ns1", "db4.ns1.svc.cluster.local", ""), &[("db-0", Healthy)])),
        behind(service("ns1", "empty.ns1.svc.cluster.local", ""), &[]),
        service("ns1", "www.example.com", "240.240.0.1"),
        service("ns1", "*.wild.example.com", "240.240.0.2"),
        service("ns1", "*.deep.wild.example.com", "240.240.0.3"),
        service("ns1", "exact.wild.example.com", "240.240.0.4"),
        service("ns1", "headless.example.com", ""),
        Service { elsewhere: there("far"), ..service("ns1", "distant.example.com", "") },
        behind(
            Service { elsewhere: there("far"), ..service("ns1", "distant.ns1.svc.cluster.local", "") },
            &[("db-0", Healthy)],
        ),
        service("ns2", "two.example.com", "240.240.1.2"),
        service("ns3", "two.example.com", "240.240.1.3"),
        service("ns1", "own.example.com", "240.240.2.1"),
        Service { canonical: true, ..service("ns2", "own.example.com", "240.240.2.2") },
        service("ns3", "canon.example.com", "240.240.3.3"),
        Service { canonical: true, ..service("ns2", "canon.example.com", "240.240.3.2") },
        private(service("ns2", "hidden.example.com", "240.240.4.2")),
        private(service("ns1", "shown.example.com", "240.240.4.1")),
        private(service("ns2", "half.example.com", "240.240.5.2")),
        service("ns3", "half.example.com", "240.240.5.3"),
    ];
    let pod = |name, addresses| workload("ns1", name, name, addresses);
    let workloads = vec![
        pod("db-0", "10.2.0.10 fd00:2::10"),
        pod("db-1", "10.2.0.11"),
        pod("db-2", "10.2.0.12"),
        pod("db-3", "10.2.0.13"),
        Workload { network: "far".into(), ..pod("db-x", "10.2.0.14") },
        Workload { network: "far".into(), ..workload("ns1", "db-7", "db", "10.2.0.17") },
    ];
    Model { workloads, services, ..Model::default() }
}

fn naming() -> Naming {
    Naming { domain: "cluster.local".into(), preferred_namespace: Some("ns3".into()), ipv6: true }
}

/// What a pod of ns1 is told: `-` for nobody here knows, else addresses in order, an alias before them.
fn told(naming: &Naming, name: &str, family: Family) -> String {
    let snapshot = Snapshot::build(5, model());
    let question = Question { name: name.into(), family };
    let asker = Asker { namespace: "ns1", network: "" };
    let Some(found) = answer(&snapshot, naming, asker, &question, 1) else { return "-".into() };
    let mut addresses = found.answer.addresses.clone();
    assert_eq!(found.outcome == Outcome::Success, !addresses.is_empty(), "{name}");
    addresses.sort_unstable();
    let mut all: Vec<_> = found.answer.alias.iter().map(|alias| format!("{alias}:")).collect();
    all.extend(addresses.iter().map(ToString::to_string));
    if all.is_empty() { found.outcome.as_str().into() } else { all.join(" ") }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn what_a_pod_is_told() {
    let (none, never) = ("no records", "service does not support this record type");
    for (name, v4, v6) in [
        // services by every form of their names
        ("web.ns1.svc.cluster.local", "10.1.0.1", "fd00:1::1"),
        ("web.ns1.svc", "10.1.0.1", "fd00:1::1"),
        ("web.ns1", "10.1.0.1", "fd00:1::1"),
        ("web", "10.1.0.1", "fd00:1::1"),
        ("web.ns2", "10.1.0.2", none),
        ("web.ns2.svc.cluster.local", "10.1.0.2", none),
        ("far.ns2", "10.1.0.3", none),
        ("far", "-", "-"),
        ("far.ns1", "-", "-"),
        ("both", "10.1.0.4 10.1.0.5", "fd00:1::4"),
        // as a resolver asks with its search domains
        (
            "web.ns1.svc.cluster.local.ns1.svc.cluster.local",
            "web.ns1.svc.cluster.local: 10.1.0.1",
            "web.ns1.svc.cluster.local: fd00:1::1",
        ),
        ("web.ns2.ns1.svc.cluster.local", "web.ns2: 10.1.0.2", "web.ns2:"),
        ("web.ns2.svc.svc.cluster.local", "web.ns2.svc: 10.1.0.2", "web.ns2.svc:"),
        ("www.example.com.ns1.svc.cluster.local", "www.example.com: 240.240.0.1", "www.example.com:"),
        ("www.example.com.svc.cluster.local", "www.example.com: 240.240.0.1", "www.example.com:"),
        ("www.example.com.cluster.local", "www.example.com: 240.240.0.1", "www.example.com:"),
        ("www.example.com.ns2.svc.cluster.local", "-", "-"),
        ("www.example.com.corp.example", "-", "-"),
        // other clusters' domains only in full
        ("web.ns1.svc.other.local", "10.1.0.8", none),
        ("web.ns1.svc.other", "-", "-"),
        // families
        ("four", "10.1.0.6", never),
        ("six", never, "fd00:1::7"),
        ("db4", "10.2.0.10", never),
        // headless: those that are ready, of this network
        ("db", "10.2.0.10 10.2.0.11", "fd00:2::10"),
        ("db.ns1.svc.cluster.local", "10.2.0.10 10.2.0.11", "fd00:2::10"),
        ("eager", "10.2.0.10 10.2.0.11 10.2.0.12", "fd00:2::10"),
        ("empty", none, none),
        // only in another network: no answer of this one, and not for endpoints in its place
        ("distant.example.com", none, none),
        ("distant", none, none),
        ("db-0.distant", "-", "-"),
        // pods of a StatefulSet
        ("db-0.db", "10.2.0.10", "fd00:2::10"),
        ("db-0.db.ns1", "10.2.0.10", "fd00:2::10"),
        ("db-0.db.ns1.svc.cluster.local", "10.2.0.10", "fd00:2::10"),
        ("db-1.db.ns1.svc.cluster.local", "10.2.0.11", none),
        (
            "db-1.db.ns1.svc.cluster.local.svc.cluster.local",
            "db-1.db.ns1.svc.cluster.local: 10.2.0.11",
            "db-1.db.ns1.svc.cluster.local:",
        ),
        ("db-2.db.ns1.svc.cluster.local", "-", "-"),
        ("db-2.eager.ns1.svc.cluster.local", "10.2.0.12", none),
        ("db-3.eager.ns1.svc.cluster.local", "-", "-"),
        ("db-9.db.ns1.svc.cluster.local", "-", "-"),
        ("db-x.db.ns1.svc.cluster.local", "-", "-"),
        ("db-7.db.ns1.svc.cluster.local", "-", "-"),
        ("db-0.web.ns1.svc.cluster.local", "-", "-"),
        ("10-2-0-10.db.ns1.svc.cluster.local", "-", "-"),
        ("10-2-0-10.ns1.pod.cluster.local", "-", "-"),
        // others' names
        ("www.example.com", "240.240.0.1", none),
        ("example.com", "-", "-"),
        ("headless.example.com", "-", "-"),
        ("unknown.example.org", "-", "-"),
        ("com", "-", "-"),
        // wildcards, the most specific first
        ("a.wild.example.com", "240.240.0.2", none),
        ("a.b.wild.example.com", "240.240.0.2", none),
        ("a.deep.wild.example.com", "240.240.0.3", none),
        ("exact.wild.example.com", "240.240.0.4", none),
        ("wild.example.com", "-", "-"),
        ("a.wild.example.com.ns1.svc.cluster.local", "240.240.0.2", none),
        // one name, several owners
        ("two.example.com", "240.240.1.3", none),
        ("own.example.com", "240.240.2.1", none),
        ("canon.example.com", "240.240.3.2", none),
        // visibility
        ("hidden.example.com", "-", "-"),
        ("shown.example.com", "240.240.4.1", none),
        ("half.example.com", "240.240.5.3", none),
    ] {
        assert_eq!(told(&naming(), name, Family::V4), v4, "{name} A");
        assert_eq!(told(&naming(), name, Family::V6), v6, "{name} AAAA");
    }
}

#[test]
fn without_ipv6_there_are_no_such_addresses() {
    let naming = Naming { ipv6: false, ..naming() };
    for (name, v4) in [("web", "10.1.0.1"), ("db", "10.2.0.10 10.2.0.11"), ("db-0.db", "10.2.0.10")] {
        assert_eq!(told(&naming, name, Family::V4), v4);
        assert_eq!(told(&naming, name, Family::V6), Outcome::Unsupported.as_str());
    }
}

#[test]
fn a_negative_answer_speaks_for_the_zone_of_its_name() {
    let snapshot = Snapshot::build(5, model());
    let asker = Asker { namespace: "ns1", network: "" };
    let zone = |name: &str| {
        let question = Question { name: name.into(), family: Family::V6 };
        answer(&snapshot, &naming(), asker, &question, 1).unwrap().answer.zone
    };
    assert_eq!(zone("web.ns2.svc.cluster.local"), "cluster.local");
    assert_eq!(zone("www.example.com"), "www.example.com");
    assert_eq!(zone("www.example.com.cluster.local"), "www.example.com");
    assert_eq!(zone("web.ns2"), "web.ns2");
}

#[test]
fn addresses_come_in_any_order_and_each_once() {
    let mut firsts = std::collections::BTreeSet::new();
    let all = ips("10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5");
    for random in 0..200_u64 {
        let mut mixed = all.clone();
        shuffle(&mut mixed, random.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        firsts.insert(mixed[0]);
        mixed.sort_unstable();
        assert_eq!(mixed, all);
    }
    assert_eq!(firsts.len(), all.len());
}

#[test]
fn keys_are_told_for_names_of_the_cluster() {
    let asker = Asker { namespace: "ns1", network: "" };
    let told = |name: &str| -> Vec<_> {
        keys(&naming(), asker, name).into_iter().map(|key| key.to_string()).collect()
    };
    assert_eq!(told("web"), ["ns1/web.ns1.svc.cluster.local"]);
    assert_eq!(told("web.ns2.svc.cluster.local").first().unwrap(), "ns2/web.ns2.svc.cluster.local");
    assert_eq!(told("db-0.db.ns1"), ["ns1/db.ns1.svc.cluster.local"]);
    for none in ["www.example.org", "a.very.long.example.org", "pod.db.ns1"] {
        assert!(told(none).is_empty(), "{none}");
    }
}
