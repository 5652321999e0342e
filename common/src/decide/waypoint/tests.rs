use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::decide::next_hop;
use crate::decide::world::{pod_of, uid, world};
use crate::state::Snapshot;

const WORLD: &str = "
pod web/client 10.0.0.1,fd00::1 hbone
pod shop/cart-0 10.0.0.2,fd00::2 hbone
pod shop/own-0 10.0.0.3,fd00::3 hbone waypoint=shop/wp
pod shop/by-ip-0 10.0.0.4 hbone waypoint=@10.96.9.1
pod shop/by-pod-0 10.0.0.5 hbone waypoint=@10.0.9.2
pod shop/by-name-0 10.0.0.6 hbone waypoint=shop/=edge.example
pod shop/lost-0 10.0.0.7 hbone waypoint=shop/nobody
pod shop/plain-0 10.0.0.8 waypoint=shop/wp
pod shop/far-0 10.9.0.1 hbone network=net-b waypoint=shop/wp
pod shop/wp-0 10.0.9.1,fd00::91 hbone
pod shop/wp-1 10.0.9.2,fd00::92 hbone
pod shop/wp-2 10.0.9.3 hbone
pod shop/edge-0 10.0.9.4,fd00::94 hbone host=edge.example
pod shop/down-0 10.0.9.5 hbone host=down.example not-ready
pod shop/gone-0 10.0.9.6 hbone host=gone.example terminating
pod shop/behind-0 10.0.9.7 hbone tunnel=proxy:15088
pod shop/afar-0 10.9.0.9 hbone network=net-b
svc shop/wp 10.96.9.1,fd96::9 ports=15008:15008 san=extra
  ep shop/wp-0
  ep shop/wp-1 15008:15018
  ep shop/wp-2 not-ready
svc shop/asleep-wp 10.96.9.2 ports=15008:15008
  ep shop/wp-2 not-ready
svc shop/tunnel-wp 10.96.9.3 ports=80:80
  ep shop/behind-0
svc shop/afar-wp 10.96.9.4 ports=15008:15008
  ep shop/afar-0
svc shop/portless-wp 10.96.9.5 ports=80:80
  ep shop/wp-0
svc shop/cart 10.96.0.1,fd96::1 ports=80:8080 waypoint=shop/wp
  ep shop/cart-0
svc shop/cart-ip 10.96.0.2 ports=80:8080 waypoint=@10.96.9.1
  ep shop/cart-0
svc shop/cart-name 10.96.0.3 ports=80:8080 waypoint=shop/=edge.example!15018
  ep shop/cart-0
svc shop/lost 10.96.0.4 ports=80:8080 waypoint=shop/nobody
  ep shop/cart-0
svc shop/lost-ip 10.96.0.5 ports=80:8080 waypoint=@10.96.9.99
  ep shop/cart-0
svc shop/asleep 10.96.0.6 ports=80:8080 waypoint=shop/asleep-wp
  ep shop/cart-0
svc shop/tunnel 10.96.0.7 ports=80:8080 waypoint=shop/tunnel-wp
  ep shop/cart-0
svc shop/afar 10.96.0.8 ports=80:8080 waypoint=shop/afar-wp
  ep shop/cart-0
svc shop/portless 10.96.0.9 ports=80:8080 waypoint=shop/portless-wp
  ep shop/cart-0
svc shop/bare 10.96.0.10 ports=80:8080
  ep shop/own-0
svc shop/outside 10.96.0.11 ports=443:443 mode=Passthrough waypoint=shop/wp
svc shop/empty 10.96.0.12,fd96::12 ports=80:8080 waypoint=shop/wp
svc shop/down 10.96.0.13 ports=80:8080 waypoint=shop/=down.example
svc shop/gone 10.96.0.14 ports=80:8080 waypoint=shop/=gone.example
svc shop/range 10.97.0.0/16,fd97::/64 ports=80:8080 waypoint=shop/wp
  ep shop/cart-0
";

const WP: &str = "spiffe://td/ns/shop/sa/wp or spiffe://td/ns/shop/sa/extra";
const NAMED: &str = "through waypoint shop/wp.shop.svc.cluster.local: one of 2 with rank 0 (Standard), passed over: 1 not ready";

fn decide(snapshot: &Snapshot, source: &str, to: &str, pick: u64) -> Result<NextHop, OutboundRefusal> {
    let source = pod_of(snapshot, source);
    let destination = to.parse().unwrap();
    next_hop(snapshot, &Outbound { source: &source, destination, avoid: &[], failing: &[], pick })
}

#[track_caller]
fn check_from(source: &str, to: &str, want: &str) {
    let got = match decide(&world(WORLD), source, to, 0) {
        Ok(hop) => hop.to_string(),
        Err(error) => format!("error: {error}"),
    };
    assert_eq!(got, want, "{source} connecting to {to}");
}

#[track_caller]
fn check(to: &str, want: &str) {
    check_from("web/client", to, want);
}

#[test]
fn what_is_addressed_to_a_service_goes_through_its_waypoint() {
    for to in ["10.96.0.1:80", "10.97.1.2:80", "10.96.0.1:7", "10.96.0.12:80", "10.96.0.11:443"] {
        check(to, &format!("hbone 10.0.9.1:15008 for {to} as {WP} {NAMED}"));
    }
    // The family of the app's connection.
    for to in ["[fd96::1]:80", "[fd97::1:2]:80", "[fd96::12]:80"] {
        check(to, &format!("hbone [fd00::91]:15008 for {to} as {WP} {NAMED}"));
    }
    let by_ip = NAMED.replace("shop/wp.shop.svc.cluster.local", "/10.96.9.1");
    check("10.96.0.2:80", &format!("hbone 10.0.9.1:15008 for 10.96.0.2:80 as {WP} {by_ip}"));
    check(
        "10.96.0.3:80",
        "hbone 10.0.9.4:15018 for 10.96.0.3:80 as spiffe://td/ns/shop/sa/edge through waypoint shop/edge.example: \
         address of the workload itself",
    );
    // No port of the service leads there, but the application's tunnel does.
    check(
        "10.96.0.7:80",
        "hbone 10.0.9.7:15008 for 10.96.0.7:80 as spiffe://td/ns/shop/sa/behind through waypoint \
         shop/tunnel-wp.shop.svc.cluster.local: one of 1 with rank 0 (Standard)",
    );
}

#[test]
fn what_is_addressed_to_a_workload_goes_through_its_own() {
    check("10.0.0.3:5432", &format!("hbone 10.0.9.1:15008 for 10.0.0.3:5432 as {WP} {NAMED}"));
    check("[fd00::3]:80", &format!("hbone [fd00::91]:15008 for [fd00::3]:80 as {WP} {NAMED}"));
    check("10.0.0.8:80", &format!("hbone 10.0.9.1:15008 for 10.0.0.8:80 as {WP} {NAMED}"));
    let by_ip = NAMED.replace("shop/wp.shop.svc.cluster.local", "/10.96.9.1");
    check("10.0.0.4:80", &format!("hbone 10.0.9.1:15008 for 10.0.0.4:80 as {WP} {by_ip}"));
    let one = |to: &str, at: &str, sa: &str, name: &str| {
        let why = "address of the workload itself";
        check(
            to,
            &format!("hbone {at} for {to} as spiffe://td/ns/shop/sa/{sa} through waypoint {name}: {why}"),
        );
    };
    one("10.0.0.5:80", "10.0.9.2:15008", "wp", "/10.0.9.2");
    one("10.0.0.6:80", "10.0.9.4:15008", "edge", "shop/edge.example");
    // An endpoint's own waypoint has no say in what is addressed to a service.
    check(
        "10.96.0.10:80",
        "hbone 10.0.0.3:15008 for 10.0.0.3:8080 as spiffe://td/ns/shop/sa/own: one of 1 with rank 0 (Standard)",
    );
}

#[test]
fn a_waypoint_is_never_left_out() {
    let unknown = |to: &str, name: &str| {
        let rest = "no such service or workload is known; does its Gateway exist, and is it programmed?";
        check(to, &format!("error: unknown waypoint: {to} is to go through {name}, and {rest}"));
    };
    unknown("10.96.0.4:80", "shop/nobody.shop.svc.cluster.local");
    unknown("10.96.0.5:80", "/10.96.9.99");
    unknown("10.0.0.7:80", "shop/nobody.shop.svc.cluster.local");
    let none = |to: &str, name: &str, seen: &str| {
        let rest = "check the readiness of its pods";
        check(
            to,
            &format!(
                "error: no healthy upstream: {to} is to go through waypoint {name}, which has {seen}; {rest}"
            ),
        );
    };
    none("10.96.0.6:80", "shop/asleep-wp.shop.svc.cluster.local", "1 not ready");
    none("10.96.0.9:80", "shop/portless-wp.shop.svc.cluster.local", "1 without the port");
    none("10.96.0.13:80", "shop/down.example", "1 not ready");
    none("10.96.0.14:80", "shop/gone.example", "1 terminating");
    let far = "is in network \"net-b\", the source in \"\"; networks are not connected";
    check("10.96.0.8:80", &format!("error: no valid routing destination: 10.96.0.8:80 {far}"));
    check("10.9.0.1:80", &format!("error: no valid routing destination: 10.9.0.1:80 {far}"));
}

#[test]
fn what_a_waypoint_sends_does_not_go_through_it_again() {
    let own = "as spiffe://td/ns/shop/sa/own: address of the workload itself";
    for waypoint in ["shop/wp-0", "shop/wp-1", "shop/wp-2"] {
        check_from(waypoint, "10.0.0.3:80", &format!("hbone 10.0.0.3:15008 for 10.0.0.3:80 {own}"));
        check_from(
            waypoint,
            "10.96.0.1:80",
            "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as spiffe://td/ns/shop/sa/cart: one of 1 with rank 0 (Standard)",
        );
    }
    check_from(
        "shop/edge-0",
        "10.0.0.6:80",
        "hbone 10.0.0.6:15008 for 10.0.0.6:80 as spiffe://td/ns/shop/sa/by: address of the workload itself",
    );
    // Another one does.
    check_from(
        "shop/edge-0",
        "10.0.0.3:80",
        &format!("hbone 10.0.9.1:15008 for 10.0.0.3:80 as {WP} {NAMED}"),
    );
}

#[test]
fn the_hop_says_what_was_addressed_and_who_takes_it() {
    let snapshot = world(WORLD);
    let Ok(NextHop::Hbone { workload, service, waypoint: Some(waypoint), .. }) =
        decide(&snapshot, "web/client", "10.96.0.1:80", 0)
    else {
        panic!("no hop");
    };
    assert_eq!((&*workload.name, &*service.unwrap().name), ("wp-0", "cart"));
    assert_eq!((&*waypoint.service.unwrap().name, waypoint.workload), ("wp", None));
    let Ok(NextHop::Hbone { service: None, waypoint: Some(waypoint), .. }) =
        decide(&snapshot, "web/client", "10.0.0.5:80", 0)
    else {
        panic!("no hop");
    };
    assert_eq!((waypoint.service, &*waypoint.workload.unwrap().name), (None, "by-pod-0"));
}

#[test]
fn another_endpoint_of_the_waypoint_is_tried() {
    let snapshot = world(WORLD);
    let source = pod_of(&snapshot, "web/client");
    let at = |avoid: &[_], failing: &[_]| {
        let destination = "10.96.0.1:80".parse().unwrap();
        match next_hop(&snapshot, &Outbound { source: &source, destination, avoid, failing, pick: 0 }) {
            Ok(NextHop::Hbone { peer, why: Choice::Balanced(balance), .. }) => {
                (peer.to_string(), balance.untried)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(at(&[], &[]), ("10.0.9.1:15008".into(), 1));
    assert_eq!(at(&[uid("shop/wp-0")], &[]), ("10.0.9.2:15018".into(), 0));
    assert_eq!(at(&[uid("shop/wp-0"), uid("shop/wp-1")], &[]).1, 0);
    let failed = (uid("shop/wp-0"), "10.0.9.1:15008".parse().unwrap());
    assert_eq!(at(&[], &[failed]), ("10.0.9.2:15018".into(), 1));
    let elsewhere = (uid("shop/wp-0"), "10.0.9.1:15018".parse().unwrap());
    assert_eq!(at(&[], &[elsewhere]).0, "10.0.9.1:15008", "another port is another endpoint");
}

const WEIGHTS: &str = "
pod web/client 10.0.0.1 hbone
pod shop/cart-0 10.0.0.2 hbone
pod shop/a-0 10.0.9.1 hbone
pod shop/a-1 10.0.9.2 hbone
pod shop/b-0 10.0.9.3 hbone
svc shop/a ports=15008:15008
  ep shop/a-0
  ep shop/a-1
svc shop/b ports=15008:15008
  ep shop/b-0
svc shop/both 10.96.0.1 ports=80:80 waypoint=shop/nobody weights=shop/a*6,shop/b*2
svc shop/zero 10.96.0.2 ports=80:80 waypoint=shop/b weights=shop/a*0,shop/nobody*0
svc shop/none 10.96.0.3 ports=80:80 weights=shop/a*0
  ep shop/cart-0
svc shop/some 10.96.0.4 ports=80:80 waypoint=shop/b weights=shop/a*1,shop/nobody*0
";

#[test]
fn weighted_waypoints_share_the_connections() {
    let snapshot = world(WEIGHTS);
    let shares = |to: &str| {
        let mut shares = BTreeMap::new();
        // All combinations of what decides among waypoints and what decides among endpoints.
        for pick in (0..8).flat_map(|high: u64| (0..2).map(move |low| high << 32 | low)) {
            let peer = match decide(&snapshot, "web/client", to, pick).unwrap() {
                NextHop::Hbone { peer, .. } => peer.ip().to_string(),
                other => panic!("{other}"),
            };
            *shares.entry(peer).or_insert(0) += 1;
        }
        shares.into_iter().collect::<Vec<_>>()
    };
    let want = |all: &[(&str, i32)]| all.iter().map(|(ip, n)| ((*ip).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(shares("10.96.0.1:80"), want(&[("10.0.9.1", 6), ("10.0.9.2", 6), ("10.0.9.3", 4)]));
    assert_eq!(shares("10.96.0.2:80"), want(&[("10.0.9.3", 16)]), "all 0: the single one counts");
    assert_eq!(shares("10.96.0.3:80"), want(&[("10.0.0.2", 16)]), "all 0 and no single one: none");
    assert_eq!(shares("10.96.0.4:80"), want(&[("10.0.9.1", 8), ("10.0.9.2", 8)]));
}

#[test]
fn a_workload_that_is_found_by_name_is_resolved_first() {
    let snapshot = world(
        "
pod web/client 10.0.0.1,fd00::1 hbone
pod shop/db-0 - host=db.example
pod shop/tunnelled-0 - host=edge.example hbone
pod shop/nowhere-0 -
svc shop/db 240.240.0.1 ports=5432:5433
  ep shop/db-0
svc shop/edge 240.240.0.2 ports=443:443 san=extra
  ep shop/tunnelled-0
svc shop/nowhere 240.240.0.3 ports=80:80
  ep shop/nowhere-0
svc shop/agent 240.240.0.4 ports=80:15001
  ep shop/db-0
",
    );
    let source = pod_of(&snapshot, "web/client");
    let ask = |to: &str| match decide(&snapshot, "web/client", to, 0).unwrap() {
        NextHop::Resolve(of) => of,
        other => panic!("{other}"),
    };
    let then = |of: &super::super::Unresolved, ip: &str| match super::super::resolved(
        &snapshot,
        &source,
        of,
        ip.parse().unwrap(),
    ) {
        Ok(hop) => hop.to_string(),
        Err(error) => format!("error: {error}"),
    };
    let one = "one of 1 with rank 0 (Standard)";
    let db = ask("240.240.0.1:5432");
    assert_eq!(NextHop::Resolve(db.clone()).to_string(), format!("resolve db.example for port 5433: {one}"));
    assert_eq!(then(&db, "192.0.2.9"), format!("tcp 192.0.2.9:5433: {one}"));
    assert_eq!(then(&db, "2001:db8::9"), format!("tcp [2001:db8::9]:5433: {one}"));
    assert_eq!(then(&db, "::ffff:192.0.2.9"), format!("tcp 192.0.2.9:5433: {one}"));
    let ids = "spiffe://td/ns/shop/sa/tunnelled or spiffe://td/ns/shop/sa/extra";
    let edge = ask("240.240.0.2:443");
    assert_eq!(then(&edge, "192.0.2.9"), format!("hbone 192.0.2.9:15008 for 192.0.2.9:443 as {ids}: {one}"));
    let refused = decide(&snapshot, "web/client", "240.240.0.3:80", 0).unwrap_err().to_string();
    assert!(refused.contains("1 without a usable address"), "{refused}");
    // A name may lead anywhere, but not to the agent itself.
    let agent = ask("240.240.0.4:80");
    for own in ["127.0.0.1", "::1", "10.0.0.1", "fd00::1", "0.0.0.0"] {
        assert!(then(&agent, own).contains("attempted recursive call"), "{own}");
    }
    assert_eq!(then(&agent, "192.0.2.9"), format!("tcp 192.0.2.9:15001: {one}"));
}

/// A waypoint of the world, or one that nothing is known of.
fn any_gateway() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a/ready",
        "a/shut",
        "a/nobody",
        "@10.96.9.1",
        "@10.0.9.2",
        "@10.96.9.9",
        "a/=edge",
    ])
}

proptest! {
    /// Whatever waypoints a destination has, it is reached through one that is ready, or not at all; and without any it is
    /// reached itself.
    #[test]
    fn who_has_a_waypoint_is_reached_through_one(
        single in prop::option::of(any_gateway()),
        weights in prop::collection::vec((any_gateway(), 0..3_u32), 0..3),
        is_service in any::<bool>(),
        passes in any::<bool>(),
        ready in any::<[bool; 3]>(),
        pick in any::<u64>(),
    ) {
        let state = |n: usize| if ready[n] { "" } else { "not-ready" };
        let mut text = format!("
pod a/client 10.0.0.1 hbone
pod a/wp-0 10.0.9.1 hbone
pod a/wp-1 10.0.9.2 hbone {}
pod a/edge-0 10.0.9.3 hbone host=edge {}
svc a/ready 10.96.9.1 ports=15008:15008
  ep a/wp-0 {}
  ep a/wp-1 {}
svc a/shut 10.96.9.2 ports=15008:15008
  ep a/wp-0 not-ready
", state(1), state(2), state(0), state(1));
        let of_pod = single.filter(|_| !is_service).map(|w| format!("waypoint={w}")).unwrap_or_default();
        writeln!(text, "pod a/server 10.0.0.2 hbone {of_pod}").unwrap();
        write!(text, "svc a/server 10.96.0.1 ports=80:8080").unwrap();
        if let Some(single) = single.filter(|_| is_service) {
            write!(text, " waypoint={single}").unwrap();
        }
        if !weights.is_empty() {
            let all: Vec<String> = weights.iter().map(|(gateway, weight)| format!("{gateway}*{weight}")).collect();
            write!(text, " weights={}", all.join(",")).unwrap();
        }
        writeln!(text, "{}\n  ep a/server", if passes { " mode=Passthrough" } else { "" }).unwrap();
        let snapshot = world(&text);
        let to = if is_service { "10.96.0.1:80" } else { "10.0.0.2:80" };
        let has_one = single.is_some() || (is_service && weights.iter().any(|(_, weight)| *weight != 0));
        let wanted = to.parse::<SocketAddr>().unwrap();
        match decide(&snapshot, "a/client", to, pick) {
            Ok(NextHop::Hbone { waypoint: Some(_), peer, authority, workload, expected, .. }) => {
                prop_assert!(has_one && workload.addresses.contains(&peer.ip()), "{text}");
                let index = [("wp-0", 0), ("wp-1", 1), ("edge-0", 2)].iter().find(|(name, _)| *name == &*workload.name);
                prop_assert!(index.is_some_and(|(_, n)| ready[*n]), "{text}: {}", workload.name);
                prop_assert_eq!((authority, &expected[0]), (wanted, &workload.identity));
            }
            Err(OutboundRefusal::UnknownWaypoint { .. } | OutboundRefusal::NoHealthyWaypoint { .. }) => {
                prop_assert!(has_one, "{text}");
            }
            Ok(NextHop::Hbone { waypoint: None, workload, .. }) => {
                prop_assert!(!has_one && &*workload.name == "server", "{text}");
            }
            Ok(NextHop::Passthrough { .. }) => prop_assert!(!has_one && is_service && passes, "{text}"),
            other => prop_assert!(false, "{text}: {other:?}"),
        }
    }
}
