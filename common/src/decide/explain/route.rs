//! Follows the connection: the decision at its source for each workload that may be chosen, then that of the
//! destination's agent.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::answer::{Enforced, Explanation, Inbound, OtherPolicy, Outcome, Route, RouteKind};
use super::names::{Destination, Source};
use super::views::{destination_party, endpoints, source_party};
use crate::authz::{Denial, Facts, PolicyTrace, Verdict, authorize, authorize_traced};
use crate::decide::endpoint::{Candidate, candidate};
use crate::decide::waypoint::{self, Found};
use crate::decide::{
    Downgrade, NextHop, Outbound, OutboundRefusal, inbound_hbone, inbound_plaintext, next_hop,
};
use crate::model::{Authorization, Enrolment, GatewayAddress, Scope, Service, TunnelProtocol, Workload};
use crate::state::Snapshot;
use crate::types::{Authority, PolicyKey, SpiffeId, WorkloadUid};

/// Routes that are listed: a service may have hundreds of endpoints.
const ROUTES_MAX: usize = 32;
/// Endpoints whose routes are followed: each costs a look at all endpoints.
const LOOKED_MAX: usize = 256;
/// Policies that do not apply and are listed all the same.
const OTHERS_MAX: usize = 12;
/// Workloads that such a policy selects and that are named.
const SELECTED_MAX: usize = 3;

/// `<namespace>/<name>`
pub(super) fn name_of(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

/// Whether its outgoing connections are captured and its agent sees what comes in.
pub(super) fn is_captured(workload: &Workload) -> bool {
    workload.protocol == TunnelProtocol::Hbone
}

/// Whether an agent takes its connections, out and in: not so where it terminates tunnels itself.
fn is_redirected(workload: &Workload) -> bool {
    is_captured(workload)
        && !workload.native_tunnel
        && !matches!(workload.enrolment, Enrolment::NotLabelled | Enrolment::Exempt)
}

/// Everything but what would change it.
pub(super) fn follow(snapshot: &Snapshot, from: &Source, to: &Destination) -> Explanation {
    let mut routes = Vec::new();
    for dialled in to.dialled.iter().take(LOOKED_MAX) {
        match &from.workload {
            Some(source) if is_redirected(source) => captured(snapshot, source, *dialled, &mut routes),
            _ => direct(snapshot, from, to, *dialled, &mut routes),
        }
    }
    if routes.is_empty() {
        let decision = format!("the name {} leads to no address: the service has no endpoints", to.asked);
        routes.push(refused(decision, "CONNECT"));
    }
    let verdict = overall(&routes);
    // Refused ones are asked for: they are listed whatever their number.
    routes.sort_by_key(|route| route.outcome == Outcome::Allowed);
    let refused_routes = routes.iter().filter(|route| route.outcome != Outcome::Allowed).count();
    let more_routes = routes.len().saturating_sub(ROUTES_MAX);
    routes.truncate(ROUTES_MAX);
    let other_policies = to_workload(snapshot, to, &routes)
        .map(|workload| others(snapshot, from, &workload, &routes))
        .unwrap_or_default();
    Explanation {
        verdict,
        summary: String::new(),
        source: source_party(snapshot, from),
        destination: destination_party(snapshot, to),
        endpoints: endpoints(snapshot, from, to),
        routes,
        more_routes,
        refused_routes,
        other_policies,
        advice: Vec::new(),
        remarks: Vec::new(),
        recent: Vec::new(),
        revision: snapshot.revision,
    }
}

fn overall(routes: &[Route]) -> Outcome {
    let allowed = routes.iter().filter(|route| route.outcome == Outcome::Allowed).count();
    match allowed {
        0 => Outcome::Refused,
        all if all == routes.len() => Outcome::Allowed,
        _ => Outcome::Mixed,
    }
}

/// The workload whose policies matter: that of the first refused route, else of the first one.
pub(super) fn to_workload(snapshot: &Snapshot, to: &Destination, routes: &[Route]) -> Option<Arc<Workload>> {
    let first = routes.iter().find(|route| route.outcome == Outcome::Refused).or(routes.first())?;
    let named = |w: &&Arc<Workload>| name_of(w) == first.workload;
    to.workload.clone().or_else(|| snapshot.workloads().find(named).cloned())
}

/// What the agent of `source` decides, once for each endpoint that it may choose.
fn captured(snapshot: &Snapshot, source: &Arc<Workload>, destination: SocketAddr, routes: &mut Vec<Route>) {
    let facts = |pick| Outbound { source, destination, avoid: &[], failing: &[], pick };
    let mut decided = Vec::new();
    for pick in picks(snapshot, &facts(0)) {
        let decision = next_hop(snapshot, &facts(pick));
        if !decided.contains(&decision) {
            decided.push(decision);
        }
    }
    routes.extend(decided.iter().map(|decision| match decision {
        Ok(hop) => route(snapshot, source, hop),
        Err(OutboundRefusal::Downgrade(downgrade)) => withheld(RouteKind::Refused, downgrade),
        Err(refusal) => refused(refusal.to_string(), refusal.flag().as_str()),
    }));
}

/// A number for each endpoint that may be chosen, of the destination or of each of its waypoints.
fn picks(snapshot: &Snapshot, facts: &Outbound<'_>) -> Vec<u64> {
    let ip = facts.destination.ip().to_canonical();
    let Some(service) = snapshot.service_by_vip(ip, &facts.source.namespace) else {
        let waypoint = snapshot.workload_by_ip(ip).and_then(|w| w.waypoint.as_deref());
        return waypoint.map_or_else(|| vec![0], |waypoint| picks_of(snapshot, waypoint, facts, 0));
    };
    let mut all = picks_among(snapshot, service, facts, 0);
    for (waypoint, high) in waypoint::picks(service) {
        all.append(&mut picks_of(snapshot, waypoint, facts, high));
    }
    all.truncate(LOOKED_MAX + 1); // the first may be there twice
    all
}

/// The numbers that lead to each endpoint of a waypoint, once `high` has chosen the waypoint.
fn picks_of(snapshot: &Snapshot, waypoint: &GatewayAddress, facts: &Outbound<'_>, high: u64) -> Vec<u64> {
    let Some(Found::Service(service)) = waypoint::find(snapshot, &waypoint.destination) else {
        return vec![high];
    };
    let at = SocketAddr::new(facts.destination.ip(), waypoint.port);
    picks_among(snapshot, service, &Outbound { destination: at, ..*facts }, high)
}

/// A number for each endpoint of `service` that may be chosen, not below `high`: the decision takes them by weight, in
/// their order.
fn picks_among(snapshot: &Snapshot, service: &Service, facts: &Outbound<'_>, high: u64) -> Vec<u64> {
    let found: Vec<Candidate<'_>> =
        service.endpoints.iter().filter_map(|e| candidate(snapshot, service, e, facts).ok()).collect();
    let best = found.iter().map(Candidate::preference).max();
    let best = || found.iter().filter(|c| Some(c.preference()) == best);
    let weight: u64 = best().map(|c| u64::from(c.workload.capacity)).sum();
    let offset = high.checked_rem(weight).map_or(0, |rest| weight - rest);
    let mut next = 0;
    let mut picks = vec![high];
    for one in best().take(LOOKED_MAX) {
        picks.push(high + (offset + next) % weight.max(1));
        next += u64::from(one.workload.capacity);
    }
    picks
}

fn withheld(kind: RouteKind, downgrade: &Downgrade) -> Route {
    let workload = match downgrade {
        Downgrade::Workload { workload, .. } => name_of(workload),
        Downgrade::Unanswered { .. } => String::new(),
    };
    let target = downgrade.to().to_string();
    Route { kind, workload, target, ..refused(downgrade.to_string(), downgrade.flag().as_str()) }
}

fn route(snapshot: &Snapshot, source: &Workload, hop: &NextHop) -> Route {
    let plain = |kind, workload: String, to: &SocketAddr| Route {
        kind,
        outcome: Outcome::Allowed,
        workload,
        target: to.to_string(),
        waypoint: String::new(),
        decision: hop.to_string(),
        proves: None,
        expects: Vec::new(),
        inbound: None,
        flag: String::new(),
    };
    match hop {
        NextHop::Passthrough { to, .. } => plain(RouteKind::Passthrough, String::new(), to),
        NextHop::Hold(downgrade) => withheld(RouteKind::Held, downgrade),
        NextHop::Tcp { to, workload, .. } => plain(RouteKind::Plaintext, name_of(workload), to),
        NextHop::Resolve(of) => Route {
            target: format!("{}:{}", of.workload.hostname, of.port),
            ..plain(RouteKind::Plaintext, name_of(&of.workload), &SocketAddr::from(([0; 4], of.port)))
        },
        // The waypoint decides by rules of its own, which are not in the snapshot, and chooses the endpoint.
        NextHop::Hbone { peer, authority, expected, workload, waypoint: Some(waypoint), .. } => Route {
            waypoint: format!("{} at {peer}", waypoint.gateway.destination),
            proves: Some(source.identity.to_string()),
            expects: expected.iter().map(ToString::to_string).collect(),
            ..plain(RouteKind::Hbone, name_of(workload), authority)
        },
        NextHop::Hbone { peer, authority, expected, workload, waypoint: None, .. } => {
            let arrival = Arrival::Hbone { met: peer.ip(), authority: *authority };
            let address = address_towards(&source.addresses, peer.ip());
            let client = Client { identity: Some(&source.identity), address };
            let (inbound, flag) = inbound(snapshot, workload, &arrival, &client);
            Route {
                outcome: if flag.is_empty() { Outcome::Allowed } else { Outcome::Refused },
                proves: Some(source.identity.to_string()),
                expects: expected.iter().map(ToString::to_string).collect(),
                inbound: Some(inbound),
                flag,
                ..plain(RouteKind::Hbone, name_of(workload), authority)
            }
        }
    }
}

fn refused(decision: String, flag: &str) -> Route {
    Route {
        kind: RouteKind::Refused,
        outcome: Outcome::Refused,
        workload: String::new(),
        target: String::new(),
        waypoint: String::new(),
        decision,
        proves: None,
        expects: Vec::new(),
        inbound: None,
        flag: flag.to_owned(),
    }
}

/// What becomes of a connection that no agent sees at its source. Among a service's endpoints the cluster's own service
/// routing chooses, from those that are ready.
fn direct(
    snapshot: &Snapshot,
    from: &Source,
    to: &Destination,
    dialled: SocketAddr,
    routes: &mut Vec<Route>,
) {
    let Some(service) = to.service.as_ref().filter(|service| service.vips.contains(&dialled.ip())) else {
        let workload = to.workload.clone().or_else(|| snapshot.workload_by_ip(dialled.ip()).cloned());
        return routes.push(direct_to(snapshot, from, workload.as_ref(), dialled));
    };
    let source = from.workload.clone().or_else(|| stranger(snapshot, service, from));
    let found: Vec<Candidate<'_>> = match &source {
        Some(source) => {
            let facts = Outbound { source, destination: dialled, avoid: &[], failing: &[], pick: 0 };
            service.endpoints.iter().filter_map(|e| candidate(snapshot, service, e, &facts).ok()).collect()
        }
        None => Vec::new(),
    };
    if found.is_empty() {
        let decision = format!("no endpoint of service {} can take port {}", service.key, dialled.port());
        return routes.push(refused(decision, ""));
    }
    routes
        .extend(found.iter().take(LOOKED_MAX).map(|c| direct_to(snapshot, from, Some(c.workload), c.target)));
}

fn direct_to(snapshot: &Snapshot, from: &Source, workload: Option<&Arc<Workload>>, to: SocketAddr) -> Route {
    let mut route = Route {
        kind: RouteKind::Direct,
        outcome: Outcome::Allowed,
        workload: workload.map(|w| name_of(w)).unwrap_or_default(),
        target: to.to_string(),
        waypoint: String::new(),
        decision: format!("direct {to}: the source is outside the mesh"),
        proves: None,
        expects: Vec::new(),
        inbound: None,
        flag: String::new(),
    };
    if let Some(workload) = workload.filter(|w| is_redirected(w) && !bypasses(snapshot, w)) {
        let client = Client { identity: None, address: address_towards(&from.addresses, to.ip()) };
        let (inbound, flag) = inbound(snapshot, workload, &Arrival::Plaintext { to }, &client);
        if !flag.is_empty() {
            route.outcome = Outcome::Refused;
        }
        (route.inbound, route.flag) = (Some(inbound), flag);
    }
    route
}

/// Whether plaintext to it is not redirected, by its annotation.
pub(super) fn bypasses(snapshot: &Snapshot, workload: &Workload) -> bool {
    snapshot.background().bypass_inbound.contains(&workload.uid)
}

/// Somebody of whom only the address is known, in the network of the service's pods.
pub(super) fn stranger(snapshot: &Snapshot, service: &Service, from: &Source) -> Option<Arc<Workload>> {
    let near = service.endpoints.iter().find_map(|e| snapshot.workload(&e.workload));
    near.map(|near| {
        Arc::new(Workload {
            uid: WorkloadUid("outside".into()),
            addresses: from.addresses.clone(),
            node: "".into(),
            ..Workload::clone(near)
        })
    })
}

/// The address of a side with several that it would use towards `to`.
fn address_towards(own: &[IpAddr], to: IpAddr) -> IpAddr {
    own.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()).or(own.first()).copied().unwrap_or(to)
}

/// How a connection comes to the destination.
enum Arrival {
    Hbone { met: IpAddr, authority: SocketAddr },
    Plaintext { to: SocketAddr },
}

/// What the destination's agent sees of the source.
struct Client<'a> {
    identity: Option<&'a SpiffeId>,
    address: IpAddr,
}

/// What the destination's agent decides, and the flag of its log if it refuses.
fn inbound(
    snapshot: &Snapshot,
    workload: &Workload,
    arrival: &Arrival,
    client: &Client<'_>,
) -> (Inbound, String) {
    let (via, target) = match arrival {
        Arrival::Hbone { met, authority } => {
            let target = inbound_hbone(snapshot, workload, *met, &Authority::Addr(*authority));
            ("HBONE on port 15008", target)
        }
        Arrival::Plaintext { to } => ("plaintext", inbound_plaintext(snapshot, workload, *to)),
    };
    let mut answer = Inbound {
        via: via.to_owned(),
        target: String::new(),
        seen_identity: client.identity.map(ToString::to_string),
        seen_address: client.address.to_string(),
        peer_authentication: peer_authentication(snapshot, workload),
        refusal: None,
        policies: Vec::new(),
        missing: Vec::new(),
        dry_run: Vec::new(),
        verdict: String::new(),
        refused_by: Vec::new(),
    };
    let target = match target {
        Ok(target) => target.to,
        Err(refusal) => {
            answer.refusal = Some(refusal.to_string());
            return (answer, refusal.flag().as_str().to_owned());
        }
    };
    let facts = facts(client, target);
    let applying = snapshot.policies_for(workload);
    let (decision, traces) = authorize_traced(&applying.all, &applying.missing, &facts);
    answer.target = target.to_string();
    answer.missing = applying.missing.iter().map(ToString::to_string).collect();
    answer.dry_run = decision.dry_run.iter().map(ToString::to_string).collect();
    answer.policies = enforced(snapshot, workload, &applying.all, traces);
    match decision.verdict {
        Verdict::Allowed { by } => {
            answer.verdict = match by {
                Some(policy) => format!("allowed by: {policy}"),
                None => "allowed: no ALLOW policy applies, and no DENY policy matches".to_owned(),
            };
            (answer, String::new())
        }
        Verdict::Denied(denial) => {
            answer.verdict = denial.to_string();
            answer.refused_by = match &denial {
                Denial::ByPolicy(key) | Denial::Missing(key) => vec![key.to_string()],
                Denial::NoneAllowed { policies } => policies.iter().map(ToString::to_string).collect(),
            };
            (answer, crate::telemetry::ResponseFlag::Deny.as_str().to_owned())
        }
    }
}

fn facts<'a>(client: &Client<'a>, target: SocketAddr) -> Facts<'a> {
    Facts {
        peer: client.identity,
        source_ip: client.address,
        destination_ip: target.ip(),
        destination_port: target.port(),
    }
}

/// The policies that were asked, in that order, then the others.
fn enforced(
    snapshot: &Snapshot,
    workload: &Workload,
    all: &[Arc<Authorization>],
    traces: Vec<PolicyTrace>,
) -> Vec<Enforced> {
    let view = |asked, trace: PolicyTrace| {
        let left_out = left_out(snapshot, &trace.policy);
        let numbers = (0..trace.rules.len() + left_out.len()).filter(|n| !left_out.contains(n));
        Enforced {
            asked,
            origin: origin(snapshot, workload, &trace.policy),
            rule_numbers: numbers.map(|n| n + 1).take(trace.rules.len()).collect(),
            rules_left_out: left_out.len(),
            trace,
        }
    };
    let unasked: Vec<Enforced> = all
        .iter()
        .filter(|policy| !traces.iter().any(|trace| trace.policy == policy.key.to_string()))
        .map(|policy| view(false, PolicyTrace::of(policy)))
        .collect();
    traces.into_iter().map(|trace| view(true, trace)).chain(unasked).collect()
}

/// Positions of a policy's rules that the translation left out.
fn left_out(snapshot: &Snapshot, policy: &str) -> Vec<usize> {
    let Some((namespace, name)) = policy.split_once('/') else { return Vec::new() };
    let key = PolicyKey { namespace: namespace.into(), name: name.into() };
    snapshot.background().rules_left_out.get(&key).cloned().unwrap_or_default()
}

/// Whether a policy is made of a PeerAuthentication rather than written by somebody.
pub(super) fn is_converted(policy: &str) -> bool {
    let name = policy.rsplit('/').next().unwrap_or(policy);
    name == "istio_converted_static_strict" || name.starts_with("converted_peer_authentication_")
}

fn origin(snapshot: &Snapshot, workload: &Workload, policy: &str) -> String {
    if !is_converted(policy) {
        return String::new();
    }
    let mode = snapshot.background().peer_authentication.get(&workload.uid);
    let object = mode.and_then(|mode| mode.ports_by.as_ref().or(mode.by.as_ref()));
    object.map_or_else(|| "a PeerAuthentication".to_owned(), ToString::to_string)
}

fn peer_authentication(snapshot: &Snapshot, workload: &Workload) -> String {
    let Some(mode) = snapshot.background().peer_authentication.get(&workload.uid) else {
        let listed = workload.authorization_policies.iter().any(|key| is_converted(&key.name));
        let said = if listed { "STRICT or by port" } else { "PERMISSIVE, as no PeerAuthentication applies" };
        return said.to_owned();
    };
    let name = if mode.is_strict { "STRICT" } else { "PERMISSIVE" };
    let by = mode.by.as_ref().map_or("default", |by| &**by);
    match &mode.ports_by {
        Some(ports_by) => format!("{name} by {by}, on some ports otherwise by {ports_by}"),
        None => format!("{name} by {by}"),
    }
}

/// Policies by label that lie in the workload's namespace, or select nobody at all, and that it does not have.
fn others(snapshot: &Snapshot, from: &Source, workload: &Workload, routes: &[Route]) -> Vec<OtherPolicy> {
    // The first by name: workloads come in no order, and an answer is the same each time.
    let mut selected: HashMap<&PolicyKey, BTreeSet<String>> = HashMap::new();
    for one in snapshot.workloads() {
        for key in &one.authorization_policies {
            let names = selected.entry(key).or_default();
            names.insert(name_of(one));
            if names.len() > SELECTED_MAX {
                names.pop_last();
            }
        }
    }
    let expected = |policy: &&Arc<Authorization>| {
        policy.scope == Scope::WorkloadSelector
            && !workload.authorization_policies.contains(&policy.key)
            && !is_converted(&policy.key.name)
            && (policy.key.namespace == workload.namespace || !selected.contains_key(&policy.key))
    };
    let mut found: Vec<&Arc<Authorization>> = snapshot.policies().filter(expected).collect();
    found.sort_by(|a, b| a.key.cmp(&b.key));
    let route = routes.iter().find(|route| route.workload == name_of(workload));
    let target: Option<SocketAddr> = route.and_then(|route| route.target.parse().ok());
    let tunnelled = route.is_some_and(|route| route.kind == RouteKind::Hbone);
    let would_match = |policy: &Arc<Authorization>| {
        let Some(target) = target else { return false };
        let identity = from.workload.as_ref().filter(|_| tunnelled).map(|w| &w.identity);
        let client = Client { identity, address: address_towards(&from.addresses, target.ip()) };
        let decision = authorize(std::slice::from_ref(policy), &[], &facts(&client, target));
        match decision.verdict {
            Verdict::Allowed { by } => by.is_some(),
            Verdict::Denied(denial) => matches!(denial, Denial::ByPolicy(_)),
        }
    };
    let view = |policy: &Arc<Authorization>| OtherPolicy {
        policy: policy.key.to_string(),
        action: PolicyTrace::of(policy).action,
        selector: snapshot
            .background()
            .policy_selectors
            .get(&policy.key)
            .map(ToString::to_string)
            .unwrap_or_default(),
        selects: selected.get(&policy.key).into_iter().flatten().cloned().collect(),
        would_match: would_match(policy),
    };
    found.into_iter().take(OTHERS_MAX).map(view).collect()
}
