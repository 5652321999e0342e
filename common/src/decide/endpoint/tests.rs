use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::decide::world::{pod_of, uid, world};
use crate::types::WorkloadUid;

/// Names of the chosen endpoints for `picks` consecutive random numbers, each with how often.
fn spread(text: &str, avoid: &[WorkloadUid], picks: u64) -> BTreeMap<String, u64> {
    let snapshot = world(text);
    let source = pod_of(&snapshot, "web/client");
    let destination = "10.96.0.1:80".parse().unwrap();
    let service = snapshot.service_by_vip("10.96.0.1".parse().unwrap(), "web").unwrap();
    let mut counts = BTreeMap::new();
    for pick in 0..picks {
        let facts = Outbound { source: &source, destination, avoid, failing: &[], pick };
        let name = match choose(&snapshot, service, &facts) {
            Ok(chosen) => chosen.workload.name.to_string(),
            Err(passed_over) => format!("none: {passed_over}"),
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// The endpoints that take a connection, as `name×picks`.
#[track_caller]
fn check(what: &str, text: &str, avoid: &[&str], want: &str) {
    let avoid: Vec<WorkloadUid> = avoid.iter().map(|name| uid(name)).collect();
    let got = spread(text, &avoid, 12);
    let got: Vec<String> = got.into_iter().map(|(name, count)| format!("{name}×{count}")).collect();
    assert_eq!(got.join(" "), want, "{what}");
}

/// A client and four endpoints, ever farther away; `service` are words of the service.
fn places(service: &str) -> String {
    format!(
        "
pod web/client 10.0.0.1 node=n1 subzone=r1 zone=a region=r
pod shop/node 10.0.0.2 node=n1 subzone=r1 zone=a region=r
pod shop/rack 10.0.0.3 node=n2 subzone=r1 zone=a region=r
pod shop/zone 10.0.0.4 node=n3 subzone=r2 zone=a region=r
pod shop/region 10.0.0.5 node=n4 subzone=r3 zone=b region=r
pod shop/world 10.0.0.6 node=n5 subzone=r1 zone=a region=q
svc shop/s 10.96.0.1 ports=80:8080 {service}
  ep shop/world
  ep shop/region
  ep shop/zone
  ep shop/rack
  ep shop/node
"
    )
}

#[test]
fn locality_decides_as_the_mode_says() {
    let check = |service: &str, want: &str| check(service, &places(service), &[], want);
    let close = "prefer=Network,Region,Zone";
    let node = "prefer=Network,Region,Zone,Subzone,Node";
    check("mode=Standard prefer=Node", "node×2 rack×2 region×3 world×3 zone×2");
    check(&format!("mode=Failover {close}"), "node×4 rack×4 zone×4");
    check(&format!("mode=Failover {node}"), "node×12");
    check("mode=Failover prefer=Region", "node×3 rack×3 region×3 zone×3");
    // The zone of another region has the same name: the count ended at the region.
    check("mode=Failover prefer=Region,Zone,Subzone", "node×6 rack×6");
    check("mode=Failover prefer=Cluster", "node×2 rack×2 region×3 world×3 zone×2");
    check("mode=Strict prefer=Node", "node×12");
    check("mode=Strict prefer=Zone", "node×3 rack×3 world×3 zone×3");
    check("mode=Strict prefer=Region,Zone", "node×4 rack×4 zone×4");
}

#[test]
fn without_near_endpoints_failover_leaves_and_strict_refuses() {
    let far = |service: &str| {
        format!(
            "
pod web/client 10.0.0.1 node=n1 zone=a
pod shop/b-0 10.0.0.2 node=n2 zone=b
pod shop/b-1 10.0.0.3 node=n1 zone=a
svc shop/s 10.96.0.1 ports=80:8080 {service}
  ep shop/b-0
  ep shop/b-1 not-ready
"
        )
    };
    check("failover", &far("mode=Failover prefer=Network,Zone"), &[], "b-0×12");
    let none = "none: 1 not ready, 1 out of the service's traffic policy×12";
    check("strict", &far("mode=Strict prefer=Node"), &[], none);
    check("strict, not ready ones too", &far("mode=Strict prefer=Node all"), &[], "b-1×12");
}

#[test]
fn a_leading_network_scope_outweighs_the_others() {
    let snapshot = world(&places("mode=Failover prefer=Network,Region,Zone,Node"));
    let client = pod_of(&snapshot, "web/client");
    let elsewhere =
        |name: &str| Workload { network: "b".into(), ..Workload::clone(&pod_of(&snapshot, name)) };
    let service = snapshot.service_by_vip("10.96.0.1".parse().unwrap(), "web").unwrap();
    let rank_of = |w: &Workload| rank(&service.load_balancing, &client, w).unwrap();
    let ranks: Vec<usize> = ["world", "region", "zone", "node"]
        .map(|name| format!("shop/{name}"))
        .iter()
        .flat_map(|name| [rank_of(&elsewhere(name)), rank_of(&pod_of(&snapshot, name))])
        .collect();
    assert_eq!(ranks, [0, 4, 1, 5, 2, 6, 3, 7]); // remote, local
}

#[test]
fn readiness_weight_and_ports_exclude() {
    let world = |service: &str, ep: &str| {
        format!(
            "
pod web/client 10.0.0.1
pod shop/a 10.0.0.2 weight=3
pod shop/b 10.0.0.3 weight=1
pod shop/c 10.0.0.4 weight=0
svc shop/s 10.96.0.1 ports={service}
{ep}
"
        )
    };
    let all = "ep shop/a\nep shop/b\nep shop/c";
    check("weights", &world("80:8080", all), &[], "a×9 b×3");
    check("only weight 0", &world("80:8080", "ep shop/c"), &[], "none: 1 with weight 0×12");
    check("not ready", &world("80:8080", "ep shop/a not-ready\nep shop/b"), &[], "b×12");
    check(
        "published although not ready",
        &world("80:8080 all", "ep shop/a not-ready\nep shop/b"),
        &[],
        "a×9 b×3",
    );
    check("terminating", &world("80:8080 all", "ep shop/a terminating\nep shop/b"), &[], "b×12");
    check("named port", &world("80:0", "ep shop/a\nep shop/b 80:9090"), &[], "b×12");
    check("endpoint without the port", &world("80:8080", "ep shop/a 80:0\nep shop/b"), &[], "b×12");
    check("nothing left", &world("80:8080", ""), &[], "none: no endpoints×12");
}

#[test]
fn tried_endpoints_come_last() {
    let world = places("mode=Failover prefer=Network,Region,Zone,Subzone,Node");
    check("nearest tried", &world, &["shop/node"], "rack×12");
    check("two tried", &world, &["shop/node", "shop/rack"], "zone×12");
    let all = ["shop/node", "shop/rack", "shop/zone", "shop/region", "shop/world"];
    check("all tried: the nearest again", &world, &all, "node×12");
    check("unknown names are no matter", &world, &["shop/x"], "node×12");
}

#[test]
fn the_address_is_the_requested_one_or_of_its_family() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let snapshot = world("pod a/dual fd00::2,10.0.0.2,10.0.0.3\npod a/four 10.0.0.4\npod a/six fd00::5");
    for (families, pod, requested, want) in [
        (IpFamilies::Automatic, "a/dual", "10.0.0.3", Some("10.0.0.3")),
        (IpFamilies::V6, "a/dual", "10.0.0.3", Some("10.0.0.3")),
        (IpFamilies::Automatic, "a/dual", "10.96.0.1", Some("10.0.0.2")),
        (IpFamilies::Dual, "a/dual", "fd96::1", Some("fd00::2")),
        (IpFamilies::V6, "a/dual", "10.96.0.1", Some("fd00::2")),
        (IpFamilies::V4, "a/dual", "fd96::1", Some("10.0.0.2")),
        (IpFamilies::Dual, "a/four", "fd96::1", Some("10.0.0.4")),
        (IpFamilies::V6, "a/four", "fd96::1", None),
        (IpFamilies::V4, "a/six", "10.96.0.1", None),
    ] {
        let got = address(families, &pod_of(&snapshot, pod), ip(requested));
        assert_eq!(got, want.map(ip), "{families:?} {pod} {requested}");
    }
}

#[test]
fn the_choice_says_how_it_was_made() {
    let snapshot = world(&places("mode=Failover prefer=Network,Region,Zone"));
    let source = pod_of(&snapshot, "web/client");
    let service = snapshot.service_by_vip("10.96.0.1".parse().unwrap(), "web").unwrap();
    let tried = [uid("shop/node"), uid("shop/rack"), uid("shop/zone"), uid("shop/region"), uid("shop/world")];
    let choice = |avoid| {
        let facts = Outbound {
            source: &source,
            destination: "10.96.0.1:80".parse().unwrap(),
            avoid,
            failing: &[],
            pick: 7,
        };
        choose(&snapshot, service, &facts).unwrap().choice.to_string()
    };
    assert_eq!(choice(&[]), "one of 3 with rank 5 (Failover), 2 less preferred");
    assert_eq!(choice(&tried), "one of 3 with rank 5 (Failover), 2 less preferred, tried before");
}

/// An endpoint: place, weight, health, tried before.
type Drawn = (u8, u8, u8, u8, bool);

fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
    prop::collection::vec((0..3u8, 0..3u8, 0..4u8, 0..4u8, prop::bool::weighted(0.2)), 0..8)
}

fn lines(endpoints: &[Drawn], service: &str) -> (String, Vec<WorkloadUid>) {
    let mut pods = "pod web/client 10.0.0.1 node=n0 zone=z0\n".to_owned();
    let mut service = format!("svc shop/s 10.96.0.1 ports=80:8080 {service}\n");
    let mut avoid = vec![];
    for (i, (node, zone, weight, health, tried)) in endpoints.iter().enumerate() {
        pods += &format!("pod shop/e{i} 10.0.1.{i} node=n{node} zone=z{zone} weight={weight}\n");
        service +=
            &format!("  ep shop/e{i} {}\n", ["", "", "not-ready", "terminating"][usize::from(*health)]);
        if *tried {
            avoid.push(uid(&format!("shop/e{i}")));
        }
    }
    (pods + &service, avoid)
}

proptest! {
    /// Whatever is chosen may be chosen: healthy, with weight, inside a strict scope, not tried if another was left,
    /// and nothing nearer was left. If nothing is chosen, nothing could be.
    #[test]
    fn the_chosen_endpoint_is_eligible(
        endpoints in drawn(), mode in prop::sample::select(vec!["Standard", "Strict", "Failover"]), all in any::<bool>(), pick in any::<u64>(),
    ) {
        let (text, avoid) = lines(&endpoints, &format!("mode={mode} prefer=Zone,Node {}", if all { "all" } else { "" }));
        let near = |e: &Drawn| match (e.1 == 0, e.0 == 0) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        let eligible = |e: &Drawn| {
            e.2 != 0 && (e.3 < 2 || e.3 == 2 && all) && (mode != "Strict" || near(e) == 2)
        };
        let snapshot = world(&text);
        let source = pod_of(&snapshot, "web/client");
        let service = snapshot.service_by_vip("10.96.0.1".parse().unwrap(), "web").unwrap();
        let facts = Outbound { source: &source, destination: "10.96.0.1:80".parse().unwrap(), avoid: &avoid, failing: &[], pick };
        match choose(&snapshot, service, &facts) {
            Err(passed_over) => {
                prop_assert!(!endpoints.iter().any(eligible));
                prop_assert_eq!(passed_over.total() as usize, endpoints.len());
            }
            Ok(chosen) => {
                let index: usize = chosen.workload.name.trim_start_matches('e').parse().unwrap();
                let e = &endpoints[index];
                prop_assert!(eligible(e));
                let others: Vec<_> = endpoints.iter().filter(|o| eligible(o)).collect();
                prop_assert!(!e.4 || others.iter().all(|o| o.4));
                if mode == "Failover" {
                    prop_assert!(others.iter().all(|o| o.4 != e.4 || near(o) <= near(e)));
                }
                let Choice::Balanced(b) = chosen.choice else { panic!("{}", chosen.choice) };
                prop_assert_eq!(b.candidates + b.farther + b.passed_over.total() as usize, endpoints.len());
            }
        }
    }

    /// Over as many consecutive numbers as the weights add up to, each endpoint is chosen as often as its weight says.
    #[test]
    fn weights_are_shares(weights in prop::collection::vec(0..5u8, 1..6), rounds in 1..4u64) {
        let endpoints: Vec<Drawn> = weights.iter().map(|w| (0, 0, *w, 0, false)).collect();
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let (text, _) = lines(&endpoints, "");
        let counts = spread(&text, &[], total * rounds);
        for (i, weight) in weights.iter().enumerate() {
            let count = counts.get(&format!("e{i}")).copied().unwrap_or(0);
            prop_assert_eq!(count, u64::from(*weight) * rounds);
        }
    }
}
