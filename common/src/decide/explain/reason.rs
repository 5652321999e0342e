//! Why a connection is let through or not, in one line.

use super::advice::{Case, fields, is_allow, is_deciding_deny};
use super::answer::{Enforced, Explanation, Inbound, Outcome, Route, RouteKind};
use super::route::{bypasses, is_captured, name_of};
use crate::authz::RuleTrace;
use crate::model::{Enrolment, PeerMode};

impl Case<'_> {
    /// Why a route ends as it does, in one line.
    pub(super) fn reason(&self, answer: &Explanation, route: &Route) -> String {
        let (source, end) = (self.source_name(), self.end_name());
        match (route.outcome, &route.inbound, route.kind) {
            (Outcome::Allowed, None, RouteKind::Hbone) => format!(
                "in a tunnel with mutual TLS to waypoint {}, which decides by its own rules and sends it on",
                route.waypoint
            ),
            (Outcome::Allowed, Some(inbound), RouteKind::Hbone) => {
                format!("in a tunnel with mutual TLS; {}", inbound.verdict)
            }
            (Outcome::Allowed, Some(inbound), _) => {
                format!("in plaintext, because {source} is outside the mesh; {}", inbound.verdict)
            }
            (Outcome::Allowed, None, RouteKind::Passthrough)
                if self.end.as_ref().is_some_and(|w| w.host_network) =>
            {
                format!("sent on as it is: {end} has its node's network, so that its address is not its own")
            }
            (Outcome::Allowed, None, RouteKind::Passthrough) => {
                "sent on as it is: the mesh knows no pod or service with this address".to_owned()
            }
            (Outcome::Allowed, None, RouteKind::Plaintext) => {
                format!("in plaintext, because {end} is outside the mesh; no policy is enforced")
            }
            (Outcome::Allowed, None, _) if self.end.as_ref().is_some_and(|w| bypasses(self.snapshot, w)) => {
                format!(
                    "in plaintext past the mesh: an annotation of {end} keeps plaintext away from its agent; no policy is \
                     enforced"
                )
            }
            (Outcome::Allowed, None, _) if self.end.as_ref().is_some_and(|w| is_captured(w)) => {
                format!("in plaintext; {end} terminates tunnels itself, and decides itself what it takes")
            }
            (Outcome::Allowed, None, _) => {
                "in plaintext; neither side is in the mesh, so no policy is enforced".to_owned()
            }
            (_, None, _) => self.nowhere(answer, route),
            (_, Some(inbound), _) => self.refusal(inbound),
        }
    }

    fn refusal(&self, inbound: &Inbound) -> String {
        let (source, end) = (self.source_name(), self.end_name());
        if let Some(refusal) = &inbound.refusal {
            return refusal.clone();
        }
        let deny = inbound.policies.iter().find(|p| is_deciding_deny(p));
        match (deny, inbound.missing.first()) {
            (Some(deny), _) if !deny.origin.is_empty() => format!(
                "{end} takes mutual TLS only ({}), and {source} is outside the mesh and sends plaintext",
                deny.origin
            ),
            (Some(deny), _) => {
                format!("AuthorizationPolicy {} denies it{}", deny.trace.policy, rule_of(deny))
            }
            (None, Some(missing)) => {
                format!("{end} names policy {missing}, which does not exist, so everything is refused")
            }
            (None, None) => {
                let allows: Vec<&Enforced> = inbound.policies.iter().filter(|p| is_allow(p)).collect();
                match &allows[..] {
                    [one] => format!(
                        "AuthorizationPolicy {} of {end} does not let {source} in: {}",
                        one.trace.policy,
                        unmet(one)
                    ),
                    all => {
                        format!("{end} has {} ALLOW policies, and none of them lets {source} in", all.len())
                    }
                }
            }
        }
    }

    /// Why nothing leaves the source, in one line.
    fn nowhere(&self, answer: &Explanation, route: &Route) -> String {
        if let Some(end) = self.end.as_ref().filter(|_| !route.workload.is_empty()) {
            let mode = self.snapshot.background().peer_authentication.get(&end.uid);
            return match (end.enrolment, mode) {
                (Enrolment::Labelled | Enrolment::Unknown, _) => {
                    format!(
                        "{} should be in the mesh and is not captured, so nothing is sent to it in plaintext",
                        name_of(end)
                    )
                }
                (_, Some(PeerMode { is_strict: true, by: Some(by), .. })) => format!(
                    "{} takes mutual TLS only ({by}) and is outside the mesh, so nothing is sent to it in plaintext",
                    name_of(end)
                ),
                _ => route.decision.clone(),
            };
        }
        let Some(service) = self.to.service.as_ref().filter(|_| !self.has_waypoint()) else {
            return route.decision.clone();
        };
        let name = format!("{}.{}", service.name, service.key.namespace);
        if let Some(dialled) = self.to.dialled.first().filter(|_| !self.has_port()) {
            let ports: Vec<String> = service.ports.keys().map(ToString::to_string).collect();
            return format!("service {name} has no port {}, only {}", dialled.port(), ports.join(", "));
        }
        match &answer.endpoints[..] {
            [] => format!("service {name} has no endpoints"),
            [one] if !one.is_in => format!(
                "the only endpoint of service {name} cannot take it: {}: {}",
                one.workload, one.reason
            ),
            all if all.iter().all(|e| !e.is_in) => {
                format!("none of the {} endpoints of service {name} can take it", all.len())
            }
            _ => route.decision.clone(),
        }
    }
}

/// Why an ALLOW policy does not match: the rule that is nearest to it.
fn unmet(policy: &Enforced) -> String {
    let effort = |(_, rule): &(usize, &RuleTrace)| fields(rule).filter(|f| !f.held).count();
    match policy.rules().min_by_key(effort) {
        Some((_, rule)) => super::text::failed(rule),
        None if policy.rules_left_out != 0 => {
            "its rules ask for HTTP fields, which the node agent cannot see".to_owned()
        }
        None => "it has no rules, so it allows nobody".to_owned(),
    }
}

fn rule_of(policy: &Enforced) -> String {
    let Some((number, rule)) = policy.rules().find(|(_, rule)| rule.matched) else { return String::new() };
    let held: Vec<String> = fields(rule).filter(|f| f.held).map(super::text::compared).collect();
    if held.is_empty() {
        return format!(": its rule {number} matches everything");
    }
    format!(": its rule {number} matches: {}", held.join("; "))
}
