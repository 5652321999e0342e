use super::*;
use crate::decide::world::{pod_of, world};
use crate::decide::{NextHop, Outbound, OutboundRefusal, next_hop};
use crate::model::NoDowngrade;

/// Pods by what is known of them; `b` was captured before, `s` are STRICT, `o` only on port 80.
const WORLD: &str = "
pod web/client 10.0.0.1,fd00::1 hbone
pod shop/free 10.0.0.2,fd00::2
pod shop/free-s 10.0.0.3,fd00::3 strict
pod shop/free-o 10.0.0.4,fd00::4 strict=80
pod shop/label 10.0.0.5,fd00::5 labelled
pod shop/label-s 10.0.0.6,fd00::6 labelled strict
pod shop/exempt-s 10.0.0.7,fd00::7 exempt strict
pod shop/dim 10.0.0.8,fd00::8 dim
pod shop/dim-s 10.0.0.9,fd00::9 dim strict
pod shop/dim-b 10.0.0.10,fd00::10 dim before
pod shop/in-s 10.0.0.11,fd00::11 labelled hbone strict
pod shop/native 10.0.0.12,fd00::12 hbone
svc shop/label 10.96.0.1,fd96::1 ports=80:80
  ep shop/label
svc shop/both 10.96.0.2,fd96::2 ports=80:80
  ep shop/label
  ep shop/in-s
svc shop/strict 10.96.0.3,fd96::3 ports=80:80
  ep shop/free-s
";

/// The decision in a word, and its reason if it is about plaintext.
fn verdict(hop: Result<NextHop, OutboundRefusal>) -> String {
    match hop {
        Ok(NextHop::Hbone { .. }) => "hbone".into(),
        Ok(NextHop::Passthrough { .. } | NextHop::Tcp { downgrade: None, .. }) => "direct".into(),
        Ok(NextHop::Tcp { downgrade: Some(why), .. }) => format!("count {}", why.reason()),
        Ok(NextHop::Hold(why)) => format!("hold {}", why.reason()),
        Ok(NextHop::Resolve(_)) => panic!("no pod here is found by name"),
        Err(OutboundRefusal::Downgrade(why)) => format!("refuse {}", why.reason()),
        Err(other) => panic!("{other}"),
    }
}

fn snapshot(state: Completeness, mode: DowngradeMode) -> Snapshot {
    let ranges = |texts: [&str; 2]| texts.map(|t| t.parse().unwrap()).to_vec();
    let rules = NoDowngrade {
        mode,
        pod_ranges: ranges(["10.0.0.0/16", "fd00::/64"]),
        service_ranges: ranges(["10.96.0.0/16", "fd96::/112"]),
    };
    let mut snapshot = world(WORLD);
    snapshot.completeness = state;
    snapshot.no_downgrade = Arc::new(rules);
    snapshot
}

#[test]
fn the_table() {
    use Completeness::{Complete, Loading, Stale};
    // What is known of a destination does not depend on whether all is known.
    let known: &[(&[&str], &str, &str)] = &[
        (&["10.0.0.2:80", "[fd00::2]:80"], "direct", "direct"),
        (&["10.0.0.3:80", "[fd00::3]:80", "10.96.0.3:80"], "refuse strict", "count strict"),
        (&["10.0.0.4:80", "[fd00::4]:80"], "refuse strict", "count strict"),
        (&["10.0.0.4:81", "[fd00::4]:81"], "direct", "direct"),
        (
            &["10.0.0.5:80", "[fd00::5]:80", "10.96.0.1:80", "[fd96::1]:80"],
            "hold not_captured",
            "count not_captured",
        ),
        (&["10.0.0.6:80", "[fd00::6]:80"], "hold not_captured", "count not_captured"),
        (&["10.0.0.7:80", "[fd00::7]:80"], "direct", "direct"),
        (&["10.0.0.8:80", "[fd00::8]:80"], "direct", "direct"),
        (&["10.0.0.9:80", "[fd00::9]:80"], "refuse strict", "count strict"),
        (&["10.0.0.10:80", "[fd00::10]:80"], "hold captured_before", "count captured_before"),
        (&["10.0.0.11:80", "[fd00::11]:80", "10.0.0.12:80"], "hbone", "hbone"),
    ];
    for state in [Complete, Stale, Loading] {
        let unknown = if state == Complete { "direct" } else { "hold unanswered" };
        let rows = known.iter().copied().chain([
            (&["10.0.9.9:80", "[fd00::99]:80", "10.96.9.9:80", "[fd96::99]:80"][..], unknown, unknown),
            (&["192.0.2.1:80", "[2001:db8::1]:80", "127.0.0.1:80"], "direct", "direct"),
        ]);
        for (addresses, enforced, counted) in rows {
            for (mode, wanted) in [(DowngradeMode::Enforce, enforced), (DowngradeMode::Count, counted)] {
                let snapshot = snapshot(state, mode);
                let source = pod_of(&snapshot, "web/client");
                for to in addresses {
                    let destination = to.parse().unwrap();
                    let facts = Outbound { source: &source, destination, avoid: &[], failing: &[], pick: 0 };
                    assert_eq!(verdict(next_hop(&snapshot, &facts)), wanted, "{to}, {state}, {mode:?}");
                }
            }
        }
    }
}

#[test]
fn a_captured_endpoint_is_preferred_to_one_that_should_be() {
    for (mode, wanted) in [(DowngradeMode::Enforce, 0), (DowngradeMode::Count, 50)] {
        let snapshot = snapshot(Completeness::Complete, mode);
        let source = pod_of(&snapshot, "web/client");
        let destination = "10.96.0.2:80".parse().unwrap();
        let plain = (0..100).filter(|&pick| {
            let facts = Outbound { source: &source, destination, avoid: &[], failing: &[], pick };
            !matches!(next_hop(&snapshot, &facts), Ok(NextHop::Hbone { .. }))
        });
        assert_eq!(plain.count(), wanted, "{mode:?}");
    }
}

#[test]
fn the_words_say_what_was_seen_and_what_to_check() {
    let snapshot = snapshot(Completeness::Stale, DowngradeMode::Enforce);
    let source = pod_of(&snapshot, "web/client");
    for (to, parts) in [
        (
            "10.0.0.5:80",
            ["shop/label at 10.0.0.5:80", "labelled for the mesh but not captured", "node agent of node n1"],
        ),
        ("10.0.0.10:80", ["shop/dim-b at 10.0.0.10:80", "was captured before", "node agent of node n1"]),
        ("10.0.0.3:80", ["shop/free-s at 10.0.0.3:80", "root/istio_converted_static_strict", "PERMISSIVE"]),
        ("10.0.9.9:80", ["10.0.9.9:80", "range 10.0.0.0/16", "state is stale"]),
    ] {
        let destination = to.parse().unwrap();
        let facts = Outbound { source: &source, destination, avoid: &[], failing: &[], pick: 0 };
        let refusal = match next_hop(&snapshot, &facts) {
            Ok(NextHop::Hold(why)) => OutboundRefusal::Downgrade(why),
            Err(refusal) => refusal,
            Ok(hop) => panic!("{hop}"),
        };
        assert_eq!(refusal.flag(), ResponseFlag::NotCaptured);
        let text = refusal.to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
    }
}

/// A look-up that nobody has answered, whatever the state says of itself.
#[test]
fn an_address_that_nobody_has_answered_for_gets_no_plaintext() {
    for state in [Completeness::Loading, Completeness::Stale, Completeness::Complete] {
        let snapshot = snapshot(state, DowngradeMode::Count);
        let told =
            |to: &str| unanswered(&snapshot, to.parse().unwrap()).map(|d| (d.reason(), d.to().to_string()));
        for to in ["10.0.0.200:80", "[::ffff:10.0.0.200]:80"] {
            assert_eq!(told(to), Some(("unanswered", "10.0.0.200:80".into())), "{to} {state}");
        }
        assert_eq!(told("[fd96::5]:80"), Some(("unanswered", "[fd96::5]:80".into())), "{state}");
        assert_eq!(told("192.0.2.1:80"), None, "{state}: outside");
    }
}
