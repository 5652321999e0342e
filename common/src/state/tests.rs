use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::model::{
    Action, Authorization, Endpoint, Enrolment, Health, Model, Scope, Service, TunnelProtocol, Visibility,
    Workload,
};
use crate::types::{PolicyKey, ServiceKey, SpiffeId, WorkloadUid};

const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn workload(uid: &str, change: impl FnOnce(&mut Workload)) -> Workload {
    let identity = SpiffeId::new("cluster.local", "shop", "cart").unwrap();
    let mut workload = Workload {
        addresses: vec![IP],
        enrolment: Enrolment::NotLabelled,
        ..Workload::new(WorkloadUid(uid.into()), "w", identity)
    };
    change(&mut workload);
    workload
}

fn service(namespace: &str, host: &str, change: impl FnOnce(&mut Service)) -> Service {
    let key = ServiceKey { namespace: namespace.into(), hostname: host.into() };
    let mut service = Service { vips: vec![IP], ..Service::new(key, namespace) };
    change(&mut service);
    service
}

fn policy(key: &PolicyKey, scope: Scope) -> Authorization {
    Authorization { key: key.clone(), scope, action: Action::Deny, dry_run: false, rules: vec![] }
}

fn key(text: &str) -> PolicyKey {
    let (namespace, name) = text.split_once('/').unwrap();
    PolicyKey { namespace: namespace.into(), name: name.into() }
}

#[test]
fn the_likeliest_of_several_workloads_owns_an_address() {
    let hbone = |w: &mut Workload| w.protocol = TunnelProtocol::Hbone;
    let over = |w: &mut Workload| {
        w.protocol = TunnelProtocol::Hbone;
        w.health = Health::Terminating;
    };
    let not_ready = |w: &mut Workload| w.health = Health::Unhealthy;
    let rows = [
        (
            "a pod beats another object",
            workload("k//Pod/a/pod", |_| {}),
            workload("k/x/WorkloadEntry/a/entry", hbone),
        ),
        ("captured beats not captured", workload("k//Pod/a/new", hbone), workload("k//Pod/a/old", |_| {})),
        ("running beats ended", workload("k//Pod/a/new", |_| {}), workload("k//Pod/a/old", over)),
        ("readiness does not matter", workload("k//Pod/a/new", not_ready), workload("k//Pod/a/old", over)),
    ];
    for (what, owner, other) in rows {
        for workloads in [vec![owner.clone(), other.clone()], vec![other.clone(), owner.clone()]] {
            let snapshot = Snapshot::build(1, Model { workloads, ..Model::default() });
            assert_eq!(snapshot.workload_by_ip(IP).map(|w| &w.uid), Some(&owner.uid), "{what}");
            assert!(snapshot.workload(&other.uid).is_some(), "{what}: both are known by their key");
            assert_eq!(snapshot.workloads().count(), 2);
        }
    }
}

#[test]
fn a_host_network_workload_owns_no_address() {
    let workloads = vec![workload("k//Pod/a/node", |w| w.host_network = true)];
    let snapshot = Snapshot::build(1, Model { workloads, ..Model::default() });
    assert_eq!(snapshot.workload_by_ip(IP), None);
    assert_eq!(snapshot.workloads().count(), 1);
}

#[test]
fn a_virtual_address_belongs_to_the_service_that_the_caller_means() {
    let private = |s: &mut Service| s.visibility = Visibility::Namespace;
    let canonical = |s: &mut Service| s.canonical = true;
    let owner = |services: &[Service], caller: &str| {
        let model = Model { services: services.to_vec(), ..Model::default() };
        let snapshot = Snapshot::build(1, model);
        snapshot.service_by_vip(IP, caller).map(|s| s.key.namespace.to_string())
    };
    let of = |namespace, change: fn(&mut Service)| service(namespace, "h", change);
    assert_eq!(owner(&[], "x"), None);
    assert_eq!(owner(&[of("a", private)], "x"), None);
    assert_eq!(owner(&[of("a", private)], "a").as_deref(), Some("a"));
    assert_eq!(owner(&[of("a", private), of("b", |_| {})], "x").as_deref(), Some("b"));
    let all = [of("a", |_| {}), of("b", canonical), of("c", |_| {})];
    assert_eq!(owner(&all, "c").as_deref(), Some("c"));
    assert_eq!(owner(&all, "x").as_deref(), Some("b"));
    assert_eq!(owner(&[of("a", |_| {}), of("c", |_| {})], "x").as_deref(), Some("a"));
}

/// An address of its own comes before a range; of ranges, one of the caller's namespace, then the narrowest.
#[test]
fn a_range_holds_what_no_service_has_as_its_address() {
    let ranges = |texts: &'static [&'static str]| {
        move |s: &mut Service| {
            s.vips = vec![];
            s.cidr_vips = texts.iter().map(|text| text.parse().unwrap()).collect();
        }
    };
    let private = |s: &mut Service| s.visibility = Visibility::Namespace;
    let canonical = |s: &mut Service| s.canonical = true;
    let of = |namespace, changes: &[&dyn Fn(&mut Service)]| {
        service(namespace, "h", |s| changes.iter().for_each(|change| change(s)))
    };
    let wide = ranges(&["10.0.0.0/8", "fd00::/16"]);
    let narrow = ranges(&["10.0.0.0/24", "fd00::/64"]);
    let unaligned = ranges(&["10.0.0.9/24"]); // as somebody wrote it
    let whole = ranges(&["0.0.0.0/0", "::/0"]);
    let owner = |services: &[Service], ip: &str, caller: &str| {
        let model = Model { services: services.to_vec(), ..Model::default() };
        let snapshot = Snapshot::build(1, model);
        let found = snapshot.service_by_vip(ip.parse().unwrap(), caller);
        found.map_or_else(String::new, |s| s.key.namespace.to_string())
    };
    /// Address, namespace of the caller, namespace of the service that is found.
    type Row = (&'static str, &'static str, &'static str);
    let table: &[(&str, Vec<Service>, &[Row])] = &[
        (
            "the narrowest",
            vec![of("wide", &[&wide]), of("narrow", &[&narrow]), of("whole", &[&whole])],
            &[
                ("10.0.0.1", "x", "narrow"),
                ("10.0.1.1", "x", "wide"),
                ("192.0.2.1", "x", "whole"),
                ("fd00::1", "x", "narrow"),
                ("fd00:1::1", "x", "wide"),
                ("2001:db8::1", "x", "whole"),
                ("10.0.0.1", "wide", "wide"), // the caller's own namespace counts more
            ],
        ),
        ("what holds it not", vec![of("wide", &[&wide])], &[("11.0.0.1", "x", ""), ("fe00::1", "x", "")]),
        (
            "an unaligned one",
            vec![of("a", &[&unaligned])],
            &[("10.0.0.200", "x", "a"), ("10.0.1.1", "x", "")],
        ),
        (
            "an exact one comes first",
            vec![of("narrow", &[&narrow]), of("exact", &[])],
            &[("10.0.0.1", "x", "exact"), ("10.0.0.1", "narrow", "exact"), ("10.0.0.2", "x", "narrow")],
        ),
        (
            "exact ones that are not seen leave it to the ranges",
            vec![of("exact", &[&private]), of("wide", &[&wide])],
            &[("10.0.0.1", "x", "wide"), ("10.0.0.1", "exact", "exact")],
        ),
        (
            "a range that is not seen",
            vec![of("narrow", &[&narrow, &private]), of("wide", &[&wide])],
            &[("10.0.0.1", "x", "wide"), ("10.0.0.1", "narrow", "narrow"), ("10.0.0.1", "wide", "wide")],
        ),
        (
            "of equal ones the canonical, then the first",
            vec![of("a", &[&wide]), of("b", &[&wide]), of("c", &[&wide, &canonical])],
            &[("10.0.0.1", "x", "c"), ("10.0.0.1", "b", "b")],
        ),
        ("of equal ones the first", vec![of("a", &[&wide]), of("b", &[&wide])], &[("10.0.0.1", "x", "a")]),
    ];
    for (what, services, rows) in table {
        for (ip, caller, want) in *rows {
            assert_eq!(owner(services, ip, caller), *want, "{what}: {ip} from {caller}");
        }
    }
}

proptest! {
    /// Whatever the ranges are, what is found is what a look at all of them finds.
    #[test]
    fn ranges_are_found_as_by_looking_at_all(
        services in prop::collection::vec((0..4_u8, 0..=8_u8, any::<u8>(), any::<bool>(), any::<bool>()), 0..12),
        last in any::<u8>(),
        caller in 0..4_u8,
    ) {
        // All in one block of eight bits, so that they overlap.
        let range = |len: u8, at: u8| ipnet::IpNet::new([10, 0, 0, at].into(), 24 + len).unwrap();
        let all: Vec<Service> = services.iter().enumerate().map(|(n, (namespace, len, at, canonical, private))| {
            service(&format!("ns-{namespace}"), &format!("h-{n}"), |s| {
                s.vips = vec![];
                s.cidr_vips = vec![range(*len, *at)];
                s.canonical = *canonical;
                s.visibility = if *private { Visibility::Namespace } else { Visibility::Public };
            })
        }).collect();
        let (ip, caller) = (IpAddr::from([10, 0, 0, last]), format!("ns-{caller}"));
        let own = |s: &Service| *s.key.namespace == *caller;
        let mut want: Vec<&Service> = all.iter().filter(|s| s.cidr_vips[0].contains(&ip))
            .filter(|s| s.visibility == Visibility::Public || own(s)).collect();
        want.sort_by_key(|s| std::cmp::Reverse((own(s), s.cidr_vips[0].prefix_len(), s.canonical)));
        let snapshot = Snapshot::build(1, Model { services: all.clone(), ..Model::default() });
        let got = snapshot.service_by_vip(ip, &caller).map(|s| s.key.clone());
        prop_assert_eq!(got, want.first().map(|s| s.key.clone()));
    }
}

#[test]
fn a_workload_is_found_by_its_name_in_its_namespace() {
    let named = |uid: &str, namespace: &str, host: &str| {
        workload(uid, |w| (w.namespace, w.hostname) = (namespace.into(), host.into()))
    };
    let workloads = vec![named("a", "shop", "h"), named("b", "web", "h"), named("c", "shop", "")];
    let snapshot = Snapshot::build(1, Model { workloads, ..Model::default() });
    let find = |namespace: &str, host: &str| {
        let key = ServiceKey { namespace: namespace.into(), hostname: host.into() };
        snapshot.workload_by_host(&key).map(|w| w.uid.to_string())
    };
    assert_eq!(find("shop", "h").as_deref(), Some("a"));
    assert_eq!(find("web", "h").as_deref(), Some("b"));
    assert_eq!((find("ops", "h"), find("shop", "")), (None, None));
}

#[test]
fn a_host_name_is_found_whoever_may_see_it() {
    let private = |s: &mut Service| s.visibility = Visibility::Namespace;
    let services = vec![service("a", "h", private), service("b", "h", |s| s.canonical = true)];
    let snapshot = Snapshot::build(1, Model { services, ..Model::default() });
    let found = |host, ns| snapshot.service_by_host(host, ns).map(|s| &*s.key.namespace);
    assert_eq!(found("h", "a"), Some("a"));
    assert_eq!(found("h", "x"), Some("b"));
    assert_eq!(found("other", "a"), None);
    let by_key = ServiceKey { namespace: "a".into(), hostname: "h".into() };
    assert!(snapshot.service(&by_key).is_some());
}

#[test]
fn a_workload_knows_its_services_once_each() {
    let endpoint = |uid: &str| Endpoint {
        workload: WorkloadUid(uid.into()),
        ports: BTreeMap::new(),
        health: Health::Terminating,
    };
    // Listed twice, as by two EndpointSlices.
    let services = vec![
        service("a", "h", |s| s.endpoints = vec![endpoint("u"), endpoint("v"), endpoint("u")]),
        service("b", "i", |s| s.endpoints = vec![endpoint("u")]),
    ];
    let snapshot = Snapshot::build(1, Model { services, ..Model::default() });
    let of = |uid: &str| {
        let services = snapshot.services_of(&WorkloadUid(uid.into())).iter();
        services.map(|s| s.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(of("u"), ["a/h", "b/i"]);
    assert_eq!(of("v"), ["a/h"]);
    assert_eq!(of("w"), Vec::<String>::new());
}

#[test]
fn policies_are_those_of_the_mesh_the_namespace_and_the_list() {
    let policies = [
        ("root/global", Scope::Global),
        ("shop/namespace", Scope::Namespace),
        ("web/namespace", Scope::Namespace),
        ("shop/selected", Scope::WorkloadSelector),
        ("shop/of-another", Scope::WorkloadSelector),
    ];
    let policies = policies.map(|(name, scope)| policy(&key(name), scope)).to_vec();
    let listed = ["shop/selected", "shop/gone", "shop/namespace", "shop/selected"];
    let w = workload("u", |w| w.authorization_policies = listed.map(key).to_vec());
    let snapshot = Snapshot::build(1, Model { policies, ..Model::default() });
    let found = snapshot.policies_for(&w);
    let names: Vec<String> = found.all.iter().map(|p| p.key.to_string()).collect();
    assert_eq!(names, ["root/global", "shop/namespace", "shop/selected"]);
    assert_eq!(found.missing, [key("shop/gone")]);
}

#[test]
fn what_was_captured_is_remembered_until_it_is_gone_or_has_left() {
    let state = State::new();
    let publish = |what: Option<(TunnelProtocol, Enrolment)>| {
        let workload = what.map(|(protocol, enrolment)| {
            workload("u", |w| (w.protocol, w.enrolment) = (protocol, enrolment))
        });
        state.publish(Model { workloads: workload.into_iter().collect(), ..Model::default() });
        state.snapshot().was_captured(&WorkloadUid("u".into()))
    };
    let (hbone, tcp) = (TunnelProtocol::Hbone, TunnelProtocol::Tcp);
    assert!(!publish(Some((tcp, Enrolment::Unknown))), "never captured");
    assert!(!publish(Some((hbone, Enrolment::Unknown))), "captured now");
    assert!(publish(Some((tcp, Enrolment::Unknown))));
    assert!(publish(Some((tcp, Enrolment::Labelled))), "still, at the second look");
    assert!(!publish(None));
    assert!(!publish(Some((tcp, Enrolment::Unknown))), "another one of its name");
    assert!(!publish(Some((hbone, Enrolment::Labelled))));
    assert!(!publish(Some((tcp, Enrolment::NotLabelled))), "it has left the mesh");
    assert!(!publish(Some((tcp, Enrolment::Unknown))));
}

#[test]
fn a_stale_state_keeps_its_revision_and_wakes_who_waits() {
    let state = State::with(NoDowngrade {
        pod_ranges: vec!["10.0.0.0/8".parse().unwrap()],
        ..NoDowngrade::default()
    });
    let now = || (state.snapshot().completeness, state.snapshot().revision);
    assert!(state.snapshot().no_downgrade.range_of(IP).is_some(), "known before anything else is");
    state.mark_stale();
    assert_eq!(now(), (Completeness::Loading, 0));
    state.publish(Model { workloads: vec![workload("u", |_| {})], ..Model::default() });
    assert_eq!(now(), (Completeness::Complete, 1));
    let mut changed = state.changed();
    state.mark_stale();
    assert_eq!(now(), (Completeness::Stale, 1));
    assert!(changed.has_changed().unwrap() && state.snapshot().workload_by_ip(IP).is_some());
    changed.mark_unchanged();
    state.mark_stale();
    assert!(!changed.has_changed().unwrap(), "nothing new");
    state.confirm();
    assert_eq!(now(), (Completeness::Complete, 1));
    state.mark_stale();
    state.publish(Model::default());
    assert_eq!(now(), (Completeness::Complete, 2));
    assert!(state.snapshot().no_downgrade.range_of(IP).is_some());
}

#[test]
fn a_publication_wakes_readers_after_it_can_be_read() {
    let state = State::new();
    let mut changed = state.changed();
    assert_eq!(state.snapshot().revision, 0);
    assert!(!changed.has_changed().unwrap());

    let old = state.snapshot();
    let revision = state.publish(Model { workloads: vec![workload("u", |_| {})], ..Model::default() });
    assert_eq!(revision, 1);
    assert!(changed.has_changed().unwrap());
    assert_eq!(*changed.borrow_and_update(), 1);
    assert_eq!(state.snapshot().revision, 1);
    assert!(state.snapshot().workload_by_ip(IP).is_some());
    assert!(old.workload_by_ip(IP).is_none(), "a snapshot that is held does not change");
    assert_eq!(state.publish(Model::default()), 2);
    assert!(state.snapshot().workload_by_ip(IP).is_none(), "a publication replaces everything");
}
