use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::authz::{Facts, Verdict, authorize};
use crate::decide::world::{pod_of, uid, world};
use crate::decide::{NextHop, Outbound, inbound_hbone, inbound_plaintext, next_hop};
use crate::model::{
    Action, Authorization, Clause, Enrolment, Match, Model, Rule, Scope, StringMatch, TunnelProtocol,
    Workload,
};
use crate::types::{Authority, PolicyKey};

const VIP: &str = "10.96.0.1:80";

/// A policy of namespace `a`.
fn policy(name: &str, action: Action, scope: Scope, matching: Match) -> Authorization {
    let key = PolicyKey { namespace: "a".into(), name: name.into() };
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![matching] }] }];
    Authorization { key, scope, action, dry_run: false, rules }
}

fn principal(text: &str) -> Match {
    Match { principals: vec![StringMatch::Exact(text.into())], ..Match::default() }
}

/// The pods of a world; those with a tunnel have it because they are labelled.
fn pods(world: &Snapshot) -> Vec<Workload> {
    let mut pods: Vec<Workload> = world.workloads().map(|w| Workload::clone(w)).collect();
    for pod in pods.iter_mut().filter(|w| w.protocol == TunnelProtocol::Hbone) {
        pod.enrolment = Enrolment::Labelled;
    }
    pods
}

/// The world of `text` with policies; those by selector are listed by every pod whose name is in `listed`.
fn with(text: &str, policies: Vec<Authorization>, listed: &[&str]) -> Snapshot {
    let base = world(text);
    let mut workloads = pods(&base);
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    for workload in workloads.iter_mut().filter(|w| listed.contains(&&*w.name)) {
        let selecting = policies.iter().filter(|p| p.scope == Scope::WorkloadSelector);
        workload.authorization_policies = selecting.map(|p| p.key.clone()).collect();
    }
    let services = base.services().map(|s| crate::model::Service::clone(s)).collect();
    Snapshot::build(1, Model { workloads, services, policies, ..Model::default() })
}

const PAIR: &str = "
pod a/client 10.0.0.1,fd00::1 hbone
pod a/server-0 10.0.0.2,fd00::2 hbone
svc a/server 10.96.0.1,fd96::1 ports=80:8080
  ep a/server-0
";

#[test]
fn each_failing_field_is_told_with_what_was_found() {
    let wanted = Match { destination_ports: vec![80], ..principal("td/ns/b/sa/client") };
    let snapshot = with(PAIR, vec![policy("p", Action::Allow, Scope::Namespace, wanted)], &[]);
    let answer = explain(&snapshot, "client", "server").unwrap();
    assert_eq!(answer.verdict, Outcome::Refused);
    let inbound = answer.routes[0].inbound.as_ref().unwrap();
    assert_eq!(inbound.verdict, "allow policies exist, but none allowed: a/p");
    let fields = &inbound.policies[0].trace.rules[0].clauses[0].matches[0].fields;
    let told: Vec<_> =
        fields.iter().map(|f| (f.field.as_str(), f.listed[0].as_str(), f.found.as_str(), f.held)).collect();
    let want =
        [("principals", "td/ns/b/sa/client", "td/ns/a/sa/client", false), ("ports", "80", "8080", false)];
    assert_eq!(told, want);
    assert_eq!(answer.routes[0].flag, "DENY");
}

#[test]
fn policies_after_the_deciding_one_are_listed_as_not_asked() {
    let all = vec![
        policy("no", Action::Deny, Scope::Namespace, principal("td/ns/a/sa/client")),
        policy("yes", Action::Allow, Scope::Namespace, principal("td/ns/a/sa/client")),
    ];
    let answer = explain(&with(PAIR, all, &[]), "a/client", "10.0.0.2:8080").unwrap();
    let inbound = answer.routes[0].inbound.as_ref().unwrap();
    let asked: Vec<_> = inbound.policies.iter().map(|p| (p.trace.policy.as_str(), p.asked)).collect();
    assert_eq!(asked, [("a/no", true), ("a/yes", false)]);
    assert_eq!(inbound.refused_by, ["a/no"]);
}

#[test]
fn a_policy_that_is_named_and_absent_refuses() {
    let mut model = Model::default();
    let base = world(PAIR);
    model.workloads.extend(pods(&base));
    let gone = PolicyKey { namespace: "a".into(), name: "gone".into() };
    model.workloads.iter_mut().for_each(|w| w.authorization_policies = vec![gone.clone()]);
    let answer = explain(&Snapshot::build(1, model), "client", "server-0:80").unwrap();
    assert_eq!((answer.verdict, answer.routes[0].flag.as_str()), (Outcome::Refused, "DENY"));
    assert!(answer.summary.contains("a/gone, which does not exist"), "{}", answer.summary);
    assert!(answer.advice[0].contains("a/gone"), "{:?}", answer.advice);
}

const BEHIND: &str = "
pod a/client 10.0.0.1 hbone
pod a/server-0 10.0.0.2 hbone waypoint=a/asleep
pod a/other-0 10.0.0.3 hbone waypoint=a/wp
pod a/wp-0 10.0.9.1 hbone
pod a/wp-1 10.0.9.2 hbone
pod a/new-0 10.0.9.3 hbone
pod a/down-0 10.0.9.4 hbone
svc a/wp 10.96.9.1 ports=15008:15008
  ep a/wp-0
  ep a/wp-1
svc a/new 10.96.9.2 ports=15008:15008
  ep a/new-0
svc a/asleep 10.96.9.3 ports=15008:15008
  ep a/down-0 not-ready
svc a/server 10.96.0.1 ports=80:8080 waypoint=a/wp
  ep a/server-0
svc a/canary 10.96.0.2 ports=80:8080 weights=a/wp*3,a/new*2
svc a/lost 10.96.0.3 ports=80:8080 waypoint=a/nobody
";

#[test]
fn a_waypoint_is_told_with_each_of_its_pods() {
    let snapshot = with(BEHIND, vec![], &[]);
    let ways = |to: &str| {
        let answer = explain(&snapshot, "client", to).unwrap();
        assert_eq!(answer.verdict, Outcome::Allowed, "{answer}");
        let way = |r: &Route| format!("{} {} {}", r.workload, r.waypoint, r.target);
        let mut ways: Vec<String> = answer.routes.iter().map(way).collect();
        ways.sort();
        (ways, answer)
    };
    let wp = "a/wp.a.svc.cluster.local at";
    let (of_server, answer) = ways("server");
    let pods =
        |to: &str| [format!("a/wp-0 {wp} 10.0.9.1:15008 {to}"), format!("a/wp-1 {wp} 10.0.9.2:15008 {to}")];
    assert_eq!(of_server, pods("10.96.0.1:80"));
    let text = answer.to_string();
    assert!(
        text.contains("HBONE tunnel, mutual TLS, to waypoint a/wp.a.svc.cluster.local at 10.0.9."),
        "{text}"
    );
    assert!(text.contains("the waypoint decides by its own rules"), "{text}");
    assert!(answer.advice[0].contains("its own configuration and log"), "{:?}", answer.advice);
    assert_eq!(ways("other-0:80").0, pods("10.0.0.3:80"));
    let (canary, _) = ways("canary");
    let new = "a/new-0 a/new.a.svc.cluster.local at 10.0.9.3:15008 10.96.0.2:80".to_owned();
    assert_eq!(canary, [&[new][..], &pods("10.96.0.2:80")].concat());
}

#[test]
fn a_waypoint_that_cannot_take_it_is_told() {
    let snapshot = with(BEHIND, vec![], &[]);
    let refused = |to: &str, seen: &str, advice: &str| {
        let answer = explain(&snapshot, "client", to).unwrap();
        assert_eq!(
            (answer.verdict, answer.routes[0].flag.as_str()),
            (Outcome::Refused, "CONNECT"),
            "{answer}"
        );
        assert!(answer.summary.contains(seen), "{answer}");
        assert!(answer.advice[0].contains(advice), "{answer}");
    };
    refused("lost", "unknown waypoint: 10.96.0.3:80 is to go through a/nobody", "create Gateway a/nobody");
    refused(
        "server-0:80",
        "is to go through waypoint a/asleep.a.svc.cluster.local, which has 1 not ready",
        "see why no pod of waypoint a/asleep is ready",
    );
}

#[test]
fn endpoints_that_differ_make_it_depend() {
    let text = "
pod a/client 10.0.0.1 hbone
pod a/open-0 10.0.0.2 hbone
pod a/shut-0 10.0.0.3 hbone
svc a/server 10.96.0.1 ports=80:8080
  ep a/open-0
  ep a/shut-0
";
    let shut = policy("nobody", Action::Allow, Scope::WorkloadSelector, principal("x"));
    let answer = explain(&with(text, vec![shut], &["shut-0"]), "client", "server").unwrap();
    assert_eq!(answer.verdict, Outcome::Mixed);
    assert_eq!(answer.routes.len(), 2);
    assert!(answer.summary.starts_with("1 of 2 endpoints refuse: "), "{}", answer.summary);
    assert!(answer.to_string().starts_with("DEPENDS  a/client -> server.a:80: "), "{answer}");
}

#[test]
fn families_and_uncommon_names_are_understood() {
    let snapshot = with(PAIR, vec![], &[]);
    for (source, destination, target) in [
        ("fd00::1", "server:80", "[fd00::2]:8080"), // the family that was asked for
        ("client", "[fd96::1]:80", "[fd00::2]:8080"),
        ("[fd00::1]", "fd00::2", ""),
        ("a/client", "[fd00::2]:9", "[fd00::2]:9"),
        ("::ffff:10.0.0.1", "[::ffff:10.0.0.2]:9", "10.0.0.2:9"),
        ("Kubernetes//Pod/a/client", "SERVER.a.svc.cluster.local.:80", "10.0.0.2:8080"),
    ] {
        match explain(&snapshot, source, destination) {
            Ok(answer) => {
                let got = &answer.routes[0].target;
                assert!(target.is_empty() || got == target, "{source} {destination}: {got}");
            }
            Err(error) => panic!("{source} {destination}: {error}"),
        }
    }
    for (source, destination) in
        [("", "server"), ("client", ""), ("client", "server:"), ("client", "a/b/c:1")]
    {
        assert!(explain(&snapshot, source, destination).is_err(), "{source:?} {destination:?}");
    }
}

#[test]
fn a_name_that_several_have_is_not_guessed() {
    let text = "
pod a/client 10.0.0.1 hbone
pod b/client 10.0.0.2 hbone
svc a/server 10.96.0.1 ports=80:8080
svc b/server 10.96.0.2 ports=80:8080,81:8081
";
    let snapshot = with(text, vec![], &[]);
    let all = vec!["a/client".to_owned(), "b/client".to_owned()];
    let ambiguous = NotUnderstood::Ambiguous { side: "source", text: "client".into(), all };
    assert_eq!(explain(&snapshot, "client", "server").unwrap_err(), ambiguous);
    // As DNS would: the caller's own namespace first.
    assert_eq!(explain(&snapshot, "a/client", "server").unwrap().destination.name, "server.a");
    let error = explain(&snapshot, "b/client", "server").unwrap_err().to_string();
    assert_eq!(error, "server needs a port: it has 80, 81; write server:<port>");
}

#[test]
fn a_state_that_is_not_whole_says_so() {
    let nothing_yet = Snapshot::default();
    assert_eq!(explain(&nothing_yet, "client", "server").unwrap_err(), NotUnderstood::Loading);
    let mut stale = with(PAIR, vec![], &[]);
    stale.completeness = Completeness::Stale;
    let answer = explain(&stale, "client", "server").unwrap();
    assert!(answer.remarks[0].contains("the last good one"), "{:?}", answer.remarks);
    // An address of the mesh that nobody is known to have: held, as traffic is.
    let ranges =
        crate::model::NoDowngrade { pod_ranges: vec!["10.0.0.0/8".parse().unwrap()], ..Default::default() };
    stale.no_downgrade = Arc::new(ranges);
    let answer = explain(&stale, "client", "10.9.9.9:80").unwrap();
    assert_eq!((answer.verdict, answer.routes[0].kind), (Outcome::Refused, RouteKind::Held));
}

#[test]
fn many_endpoints_cost_a_bounded_look() {
    let mut text = "pod a/client 10.0.0.1 hbone\nsvc a/server 10.96.0.1 ports=80:8080\n".to_owned();
    for i in 0..600 {
        writeln!(text, "  ep a/s{i}").unwrap();
    }
    for i in 0..600 {
        writeln!(text, "pod a/s{i} 10.1.{}.{} hbone", i / 250, i % 250 + 1).unwrap();
    }
    let answer = explain(&with(&text, vec![], &[]), "client", "server").unwrap();
    assert_eq!((answer.verdict, answer.endpoints.len()), (Outcome::Allowed, 600));
    assert_eq!((answer.routes.len(), answer.more_routes), (32, 256 - 32));
    assert!(answer.to_string().lines().count() < 60, "{answer}");
}

#[test]
fn the_one_that_refuses_among_many_is_told() {
    let mut text = "pod a/client 10.0.0.1 hbone\nsvc a/server 10.96.0.1 ports=80:8080\n".to_owned();
    for i in 0..100 {
        writeln!(text, "  ep a/s{i}").unwrap();
    }
    for i in 0..100 {
        writeln!(text, "pod a/s{i} 10.1.0.{} hbone", i + 1).unwrap();
    }
    let shut = policy("nobody", Action::Allow, Scope::WorkloadSelector, principal("x"));
    let answer = explain(&with(&text, vec![shut], &["s99"]), "client", "server").unwrap();
    assert_eq!((answer.verdict, answer.routes[0].workload.as_str()), (Outcome::Mixed, "a/s99"));
    assert!(answer.summary.starts_with("1 of 100 endpoints refuse: "), "{}", answer.summary);
}

#[test]
fn two_outside_the_mesh_are_told_how_to_get_in() {
    let text = "pod a/client 10.0.0.1\npod b/server-0 10.0.0.2";
    let answer = explain(&with(text, vec![], &[]), "client", "server-0:80").unwrap();
    assert!(answer.summary.contains("neither side is in the mesh"), "{}", answer.summary);
    let label = |ns: &str| format!("kubectl label namespace {ns} istio.io/dataplane-mode=ambient");
    assert!(
        answer.advice[0].contains(&label("b")) && answer.advice[1].contains(&label("a")),
        "{:?}",
        answer.advice
    );
}

#[test]
fn who_terminates_tunnels_itself_is_not_taken_for_captured() {
    let mut model = Model::default();
    let base = world(PAIR);
    model.workloads.extend(base.workloads().map(|w| Workload::clone(w))); // a tunnel, but no label
    let answer = explain(&Snapshot::build(1, model), "client", "server-0:80").unwrap();
    assert_eq!((answer.verdict, answer.routes[0].kind), (Outcome::Allowed, RouteKind::Direct));
    assert!(answer.routes[0].inbound.is_none());
}

#[test]
fn nothing_is_said_twice_by_a_round_trip() {
    let snapshot = with(PAIR, vec![policy("p", Action::Allow, Scope::Namespace, principal("x"))], &[]);
    let answer = explain(&snapshot, "client", "server").unwrap();
    let json = serde_json::to_string(&answer).unwrap();
    let back: Explanation = serde_json::from_str(&json).unwrap();
    assert_eq!(back, answer);
    assert_eq!(back.to_string(), answer.to_string());
}

/// Four pods, one service with some of them, and policies of all kinds.
fn worlds() -> impl Strategy<Value = (String, Vec<Authorization>, BTreeSet<usize>)> {
    let pod = (any::<bool>(), 0..3_u32);
    let endpoint = (0..4_usize, prop::sample::select(vec!["", "", "not-ready", "terminating", "80:9"]));
    let matching = (0..5_usize, 0..4_usize).prop_map(|(kind, who)| match kind {
        0 => principal(&format!("td/ns/a/sa/p{who}")),
        1 => Match { not_principals: vec![StringMatch::Presence], ..Match::default() },
        2 => Match { destination_ports: vec![8080], ..Match::default() },
        3 => {
            Match { source_ips: Some(vec![format!("10.0.0.{who}/32").parse().unwrap()]), ..Match::default() }
        }
        _ => Match {
            namespaces: vec![StringMatch::Prefix("a".into())],
            not_destination_ports: vec![9],
            ..Match::default()
        },
    });
    let scope = prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let policy = (any::<bool>(), 0..4_u8, scope, prop::collection::vec(matching, 0..3));
    let worlds = (
        prop::collection::vec(pod, 4),
        prop::collection::vec(endpoint, 0..4),
        prop::collection::vec(policy, 0..4),
        prop::collection::btree_set(0..4_usize, 0..4),
    );
    worlds.prop_map(|(pods, endpoints, policies, listed)| {
        let mut text = String::new();
        for (i, (captured, weight)) in pods.iter().enumerate() {
            let hbone = if *captured { "hbone" } else { "" };
            writeln!(text, "pod a/p{i} 10.0.0.{i} {hbone} weight={weight}").unwrap();
        }
        writeln!(text, "svc a/s 10.96.0.1 ports=80:8080").unwrap();
        for (pod, state) in endpoints {
            writeln!(text, "  ep a/p{pod} {state}").unwrap();
        }
        let policies =
            policies.into_iter().enumerate().map(|(i, (deny, dry, scope, matches))| Authorization {
                key: PolicyKey { namespace: "a".into(), name: format!("x{i}").into() },
                scope,
                action: if deny { Action::Deny } else { Action::Allow },
                dry_run: dry == 0,
                rules: matches
                    .into_iter()
                    .map(|m| Rule { clauses: vec![Clause { matches: vec![m] }] })
                    .collect(),
            });
        (text, policies.collect(), listed)
    })
}

/// What traffic from a captured pod gets, asked of the data path alone, for many random numbers.
fn traffic(snapshot: &Snapshot, source: &Workload, to: &str) -> BTreeSet<bool> {
    let destination = to.parse().unwrap();
    let facts = |pick| Outbound { source, destination, avoid: &[], failing: &[], pick };
    let outcome = |pick| match next_hop(snapshot, &facts(pick)) {
        Err(_) | Ok(NextHop::Hold(_)) => false,
        Ok(NextHop::Passthrough { .. } | NextHop::Tcp { .. } | NextHop::Resolve(_)) => true,
        Ok(NextHop::Hbone { peer, authority, workload, .. }) => {
            let authority = Authority::Addr(authority);
            let target = inbound_hbone(snapshot, &workload, peer.ip(), &authority);
            target.is_ok_and(|target| permitted(snapshot, &workload, Some(source), source, target.to))
        }
    };
    (0..24).map(outcome).collect()
}

fn permitted(
    snapshot: &Snapshot,
    workload: &Workload,
    peer: Option<&Workload>,
    source: &Workload,
    to: std::net::SocketAddr,
) -> bool {
    let facts = Facts {
        peer: peer.map(|p| &p.identity),
        source_ip: source.addresses[0],
        destination_ip: to.ip(),
        destination_port: to.port(),
    };
    let policies = snapshot.policies_for(workload);
    matches!(authorize(&policies.all, &policies.missing, &facts).verdict, Verdict::Allowed { .. })
}

fn verdict(outcomes: &BTreeSet<bool>) -> Outcome {
    match (outcomes.contains(&true), outcomes.contains(&false)) {
        (true, false) => Outcome::Allowed,
        (true, true) => Outcome::Mixed,
        (false, _) => Outcome::Refused,
    }
}

proptest! {
    #[test]
    fn the_answer_is_that_of_traffic((text, policies, listed) in worlds(), from in 0..4_usize, to in 0..4_usize) {
        let names: Vec<String> = listed.iter().map(|i| format!("p{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let snapshot = with(&text, policies, &names);
        let source: Arc<Workload> = pod_of(&snapshot, &format!("a/p{from}"));
        let name = format!("a/p{from}");
        if source.protocol == TunnelProtocol::Hbone {
            for destination in [VIP.to_owned(), format!("10.0.0.{to}:8080"), "192.0.2.1:443".to_owned()] {
                let answer = explain(&snapshot, &name, &destination).unwrap();
                let want = verdict(&traffic(&snapshot, &source, &destination));
                prop_assert_eq!(answer.verdict, want, "{} to {}\n{}{}", name, destination, text, answer);
            }
        } else {
            let pod = snapshot.workload(&uid(&format!("a/p{to}"))).unwrap();
            let address = format!("10.0.0.{to}:8080").parse().unwrap();
            let want = pod.protocol == TunnelProtocol::Tcp
                || inbound_plaintext(&snapshot, pod, address)
                    .is_ok_and(|target| permitted(&snapshot, pod, None, &source, target.to));
            let answer = explain(&snapshot, &name, &address.to_string()).unwrap();
            prop_assert_eq!(answer.verdict == Outcome::Allowed, want, "{}{}", text, answer);
        }
    }

    #[test]
    fn any_question_is_answered(source in "\\PC{0,12}", destination in "\\PC{0,24}") {
        let snapshot = with(PAIR, vec![], &[]);
        let _any = explain(&snapshot, &source, &destination);
        let _any = explain(&snapshot, "client", &destination);
    }
}
