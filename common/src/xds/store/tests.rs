//! What a push changes, and that the order of pushes does not matter.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::super::proto::discovery::Any;
use super::super::proto::{security as sec, workload as wl};
use super::*;
use crate::model::{Action, Scope};
use crate::state::Snapshot;

const CART: &str = "shop/cart.shop.svc.cluster.local";

fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/shop/{name}")
}

fn resource(kind: Kind, name: &str, version: &str, body: Vec<u8>) -> Resource {
    let body = Any { type_url: kind.url().to_owned(), value: Bytes::from(body) };
    Resource { name: name.into(), version: version.into(), resource: Some(body), aliases: Vec::new() }
}

fn workload(name: &str, last: u8, services: &[(&str, u32)]) -> Resource {
    let list = |(key, target): &(&str, u32)| {
        let ports = vec![wl::Port { service_port: 80, target_port: *target }];
        ((*key).to_owned(), wl::PortList { ports })
    };
    let message = wl::Workload {
        uid: uid(name),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, last]],
        services: services.iter().map(list).collect(),
        ..Default::default()
    };
    let body = wl::Address { kind: Some(wl::Kind::Workload(Box::new(message))) };
    resource(Kind::Address, &uid(name), "a1", body.encode_to_vec())
}

fn service(key: &str, target: u32) -> Resource {
    let (namespace, hostname) = key.split_once('/').unwrap();
    let message = wl::Service {
        name: "cart".into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        ports: vec![wl::Port { service_port: 80, target_port: target }],
        ..Default::default()
    };
    let body = wl::Address { kind: Some(wl::Kind::Service(Box::new(message))) };
    resource(Kind::Address, key, "b2", body.encode_to_vec())
}

fn policy(name: &str, action: i32) -> Resource {
    let message = sec::Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: 1,
        action,
        ..Default::default()
    };
    resource(Kind::Authorization, &format!("shop/{name}"), "", message.encode_to_vec())
}

fn push(store: &mut Store, kind: Kind, removed: &[&str], resources: Vec<Resource>) -> Applied {
    store.apply(kind, removed.iter().copied(), resources.into_iter().map(Ok), &mut ())
}

fn endpoints(parts: &Parts) -> Vec<(String, Vec<(u16, u16)>)> {
    let all = parts.services.iter().flat_map(|service| &service.endpoints);
    let short = |e: &Endpoint| e.workload.0.rsplit_once('/').unwrap().1.to_owned();
    all.map(|e| (short(e), e.ports.iter().map(|(a, b)| (*a, *b)).collect())).collect()
}

#[test]
fn services_find_their_endpoints_whoever_comes_first() {
    let mut store = Store::default();
    assert!(push(&mut store, Kind::Address, &[], vec![workload("a", 1, &[(CART, 8080)])]).changed);
    assert!(store.parts().services.is_empty(), "staged");
    push(&mut store, Kind::Address, &[], vec![service(CART, 8080), workload("b", 2, &[(CART, 9090)])]);
    let told = |name: &str, ports: &[(u16, u16)]| (name.to_owned(), ports.to_vec());
    assert_eq!(endpoints(&store.parts()), [told("a", &[]), told("b", &[(80, 9090)])], "only what differs");
    push(&mut store, Kind::Address, &[], vec![service(CART, 9090)]);
    assert_eq!(endpoints(&store.parts()), [told("a", &[(80, 8080)]), told("b", &[])]);
    push(&mut store, Kind::Address, &[], vec![workload("a", 1, &[])]);
    assert_eq!(endpoints(&store.parts()), [told("b", &[])], "an update takes the place of what was");
    push(&mut store, Kind::Address, &[&uid("b")], vec![]);
    assert!(endpoints(&store.parts()).is_empty());
    push(&mut store, Kind::Address, &[CART], vec![]);
    assert!(store.parts().services.is_empty());
}

#[test]
fn what_a_push_does_not_name_stays_the_same_object() {
    let mut store = Store::default();
    let other = "shop/other.shop.svc.cluster.local";
    let all = vec![
        service(CART, 80),
        service(other, 80),
        workload("a", 1, &[(CART, 80)]),
        workload("b", 2, &[(other, 80)]),
    ];
    push(&mut store, Kind::Address, &[], all.clone());
    push(&mut store, Kind::Authorization, &[], vec![policy("p", 0)]);
    let before = store.parts();
    let again = push(&mut store, Kind::Address, &[], all);
    assert!(!again.changed, "the same again is no change");
    push(&mut store, Kind::Address, &[], vec![workload("a", 9, &[(CART, 8080)])]);
    let after = store.parts();
    let same = |a: &[Arc<Workload>], b: &[Arc<Workload>]| {
        a.iter().zip(b).map(|(a, b)| Arc::ptr_eq(a, b)).collect::<Vec<_>>()
    };
    assert_eq!(same(&before.workloads, &after.workloads), [false, true]);
    let same: Vec<_> = before.services.iter().zip(&after.services).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
    assert_eq!(same, [false, true]);
    assert!(Arc::ptr_eq(&before.policies[0], &after.policies[0]));
}

#[test]
fn the_good_resources_of_a_push_are_in_force_and_the_bad_ones_named() {
    let mut store = Store::default();
    let bad = |name: &str| resource(Kind::Address, name, "c", vec![0xff]);
    let applied = push(
        &mut store,
        Kind::Address,
        &[],
        vec![bad("x"), workload("a", 1, &[]), bad("y"), service(CART, 1)],
    );
    assert_eq!((applied.changed, applied.rejected_count), (true, 2));
    let nack = applied.nack().unwrap();
    assert!(nack.starts_with("x: cannot be decoded") && nack.contains("; y: cannot be decoded"), "{nack}");
    let parts = store.parts();
    assert_eq!((parts.workloads.len(), parts.services.len()), (1, 1));
    // What cannot be used leaves what was there, and its version.
    push(&mut store, Kind::Address, &[], vec![bad(&uid("a"))]);
    assert_eq!(store.parts().workloads.len(), 1);
    let versions: BTreeMap<_, _> = store.versions(Kind::Address).collect();
    assert_eq!(versions, [(uid("a"), "a1".into()), (CART.into(), "b2".into())].into());
    let empty = Resource { name: "e".into(), ..Resource::default() };
    assert_eq!(push(&mut store, Kind::Address, &[], vec![empty]).rejected[0].reason, Unusable::Empty);
    let other = resource(Kind::Authorization, "o", "", vec![]);
    let applied = push(&mut store, Kind::Address, &[], vec![other]);
    assert!(matches!(applied.rejected[0].reason, Unusable::OtherType(_)));
}

#[test]
fn a_nack_is_of_bounded_length() {
    let mut store = Store::default();
    let bad = (0..500).map(|n| resource(Kind::Address, &format!("{n}{}", "x".repeat(4000)), "", vec![0xff]));
    let applied = push(&mut store, Kind::Address, &[], bad.collect());
    assert_eq!((applied.rejected.len(), applied.rejected_count), (32, 500));
    let nack = applied.nack().unwrap();
    assert!(nack.len() < 16 << 10 && nack.ends_with("; and 468 more"), "{}", nack.len());
}

#[test]
fn a_policy_that_cannot_be_used_denies_until_one_can() {
    let mut store = Store::default();
    push(&mut store, Kind::Authorization, &[], vec![policy("new", 7), policy("old", 0)]);
    push(&mut store, Kind::Authorization, &[], vec![policy("old", 7)]);
    let actions = |store: &mut Store| {
        let parts = store.parts();
        parts.policies.iter().map(|p| (p.key.name.to_string(), p.action, p.scope)).collect::<Vec<_>>()
    };
    let told = |name: &str, action| (name.to_owned(), action, Scope::Namespace);
    assert_eq!(actions(&mut store), [told("new", Action::Deny), told("old", Action::Allow)]);
    let versions: Vec<_> = store.versions(Kind::Authorization).collect();
    assert_eq!(versions.len(), 2, "told, so that the server says when it is gone");
    push(&mut store, Kind::Authorization, &["shop/old", "shop/none", "odd"], vec![policy("new", 0)]);
    assert_eq!(actions(&mut store), [told("new", Action::Allow)]);
}

#[test]
fn no_more_is_kept_than_the_limit() {
    let one = workload("a", 1, &[]).resource.unwrap().value.len();
    let mut store = Store::new(Options { bytes_max: one * 10, ..Options::default() });
    let all = |store: &mut Store| {
        let applied =
            push(store, Kind::Address, &[], (0..20).map(|n| workload(&format!("{n:x}"), n, &[])).collect());
        (applied.rejected_count, store.parts().workloads.len())
    };
    let (rejected, held) = all(&mut store);
    assert!(rejected > 0 && held <= 10 && rejected + held >= 20, "{rejected} {held}");
    let names: Vec<String> = store.versions(Kind::Address).map(|(name, _)| name).collect();
    push(&mut store, Kind::Address, &names.iter().map(String::as_str).collect::<Vec<_>>(), vec![]);
    assert!(store.is_empty());
    assert_eq!(store.held, 0);
    assert_eq!(all(&mut store), (rejected, held));
}

#[test]
fn versions_come_back_as_they_were_told() {
    for version in ["", "0", "a1", "ffffffffffffffff", "0a", "A1", "+1", "10000000000000000", "v1", "-"] {
        assert_eq!(Version::new(version).text(), version);
    }
}

/// One thing that a push may say.
#[derive(Clone, Debug)]
enum Step {
    Workload(u8, u8, u8),
    Service(u8, u8),
    RemoveWorkload(u8),
    RemoveService(u8),
}

fn key(number: u8) -> String {
    format!("shop/s{number}.shop.svc.cluster.local")
}

fn apply(store: &mut Store, step: &Step) {
    let _applied = match step {
        Step::Workload(name, ip, services) => {
            let all: Vec<String> = (0..3).filter(|bit| services & (1 << bit) != 0).map(key).collect();
            let of: Vec<_> = all.iter().map(|key| (key.as_str(), 8000 + u32::from(*ip))).collect();
            push(store, Kind::Address, &[], vec![workload(&name.to_string(), *ip, &of)])
        }
        Step::Service(number, target) => {
            push(store, Kind::Address, &[], vec![service(&key(*number), 8000 + u32::from(*target))])
        }
        Step::RemoveWorkload(name) => push(store, Kind::Address, &[&uid(&name.to_string())], vec![]),
        Step::RemoveService(number) => push(store, Kind::Address, &[&key(*number)], vec![]),
    };
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, 0..4u8, 0..8u8).prop_map(|(name, ip, services)| Step::Workload(name, ip, services)),
        (0..3u8, 0..4u8).prop_map(|(number, target)| Step::Service(number, target)),
        (0..4u8).prop_map(Step::RemoveWorkload),
        (0..3u8).prop_map(Step::RemoveService),
    ]
}

proptest! {
    /// Whatever came before, and whether anything was published between: the state is that of the last word on each name.
    #[test]
    fn any_history_equals_the_last_word_on_each_name(steps in proptest::collection::vec((step(), any::<bool>()), 0..40)) {
        let mut store = Store::default();
        for (step, publish) in &steps {
            apply(&mut store, step);
            if *publish {
                store.parts();
            }
        }
        let mut last = BTreeMap::new();
        for (step, _) in &steps {
            let name = match step {
                Step::Workload(name, ..) | Step::RemoveWorkload(name) => (0, *name),
                Step::Service(number, _) | Step::RemoveService(number) => (1, *number),
            };
            last.insert(name, step);
        }
        // Services first one time, workloads first the other.
        for reversed in [false, true] {
            let mut fresh = Store::default();
            let mut words: Vec<_> = last.values().collect();
            if reversed {
                words.reverse();
            }
            words.into_iter().for_each(|step| apply(&mut fresh, step));
            prop_assert_eq!(&fresh.parts().workloads, &store.parts().workloads);
            prop_assert_eq!(&fresh.parts().services, &store.parts().services);
            prop_assert_eq!(fresh.held, store.held);
        }
        let snapshot = Snapshot::build(1, store.parts());
        prop_assert!(snapshot.services().all(|s| s.endpoints.iter().all(|e| snapshot.workload(&e.workload).is_some())));
    }
}
