//! What L4 makes of an AuthorizationPolicy, exactly as istiod does: `istio.security.Authorization`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Settings;
use super::authorization_policy::{AuthorizationPolicy, PolicyAction};
use super::authorization_rule::{self as written, Operation, PolicyRule, Source, Test};
use super::object::Objects;
use super::pod::Pod;
use super::reader::{Report, selects};
use crate::model::{Action, Authorization, Clause, Condition, Match, Rule, Scope, Status};
use crate::types::PolicyKey;

const ACCEPTED: &str = "ZtunnelAccepted";

/// The policies that L4 enforces.
pub(super) fn translate(objects: &Objects, settings: &Settings, report: &Report) -> Vec<Authorization> {
    let policies = objects.authorization_policies.iter();
    policies.filter_map(|policy| authorization(policy, settings, report)).collect()
}

/// What node proxies make of each policy that is theirs. Source: Istio, ZtunnelAccepted.
pub(super) fn statuses(objects: &Objects) -> Vec<Status> {
    let own = objects.authorization_policies.iter().filter(|policy| policy.targets.is_empty());
    own.map(status).collect()
}

fn status(policy: &AuthorizationPolicy) -> Status {
    let lost: BTreeSet<String> = policy.rules.iter().flat_map(|rule| Clauses::of(rule).http).collect();
    let lost = lost.into_iter().collect::<Vec<_>>().join(", ");
    let condition = match action(policy) {
        None => {
            let message = "AUDIT and CUSTOM are not enforced at L4";
            Condition::no(ACCEPTED, "UnsupportedValue", message)
        }
        Some(_) if lost.is_empty() => Condition::yes(ACCEPTED, "Accepted", "attached to node proxies"),
        Some(Action::Allow) => {
            let message = format!("L4 cannot see {lost}: rules with these are left out, which allows less");
            Condition::no(ACCEPTED, "UnsupportedValue", message)
        }
        Some(Action::Deny) => {
            let message =
                format!("L4 cannot see {lost}: rules of these alone have no effect, others deny more");
            Condition::no(ACCEPTED, "UnsupportedValue", message)
        }
    };
    Status {
        kind: "AuthorizationPolicy",
        namespace: Arc::clone(&policy.meta.namespace),
        name: Arc::clone(&policy.meta.name),
        part: None,
        conditions: vec![condition],
    }
}

/// The policies that select `pod` by label: those of its own and of the root namespace.
pub(super) fn selecting(pod: &Pod, objects: &Objects, settings: &Settings) -> Vec<PolicyKey> {
    let applies = |policy: &&AuthorizationPolicy| {
        action(policy).is_some()
            && policy.selector.as_ref().is_some_and(|selector| selects(selector, &pod.meta.labels))
    };
    let (own, root) = (&*pod.meta.namespace, &*settings.root_namespace);
    let namespaces = if own == root { &[own][..] } else { &[own, root][..] };
    objects.policies_in(namespaces).into_iter().filter(applies).map(key).collect()
}

/// Positions of the rules that are left out: those of [`allow_rule`] that L4 cannot see all of.
pub(super) fn rules_left_out(policy: &AuthorizationPolicy) -> Vec<usize> {
    let is_left_out = |rule: &PolicyRule| !Clauses::of(rule).http.is_empty();
    let rules = policy.rules.iter().enumerate().filter(|_| action(policy) == Some(Action::Allow));
    rules.filter(|(_, rule)| is_left_out(rule)).map(|(position, _)| position).collect()
}

pub(super) fn key(policy: &AuthorizationPolicy) -> PolicyKey {
    PolicyKey { namespace: Arc::clone(&policy.meta.namespace), name: Arc::clone(&policy.meta.name) }
}

/// None if the policy is not for L4.
fn action(policy: &AuthorizationPolicy) -> Option<Action> {
    match policy.action {
        _ if !policy.targets.is_empty() => None,
        PolicyAction::Allow => Some(Action::Allow),
        PolicyAction::Deny => Some(Action::Deny),
        PolicyAction::Audit | PolicyAction::Custom => None,
    }
}

fn authorization(
    policy: &AuthorizationPolicy,
    settings: &Settings,
    report: &Report,
) -> Option<Authorization> {
    if !policy.targets.is_empty() {
        return None;
    }
    let Some(action) = action(policy) else {
        let (seen, what) = ("AUDIT and CUSTOM are not enforced at L4", "it has no effect on the node proxy");
        report.warning(policy.meta.at.about("spec.action", seen, what));
        return None;
    };
    let scope = match &policy.selector {
        Some(_) => Scope::WorkloadSelector,
        None if policy.meta.namespace == settings.root_namespace => Scope::Global,
        None => Scope::Namespace,
    };
    let rules = policy.rules.iter();
    let rules = match action {
        Action::Allow => rules.filter_map(|rule| allow_rule(policy, rule, report)).collect(),
        Action::Deny => rules.map(|rule| deny_rule(policy, rule, settings, report)).collect(),
    };
    Some(Authorization { key: key(policy), scope, action, dry_run: policy.dry_run, rules })
}

/// A rule with a condition that L4 cannot see allows nothing at L4: it is left out.
fn allow_rule(policy: &AuthorizationPolicy, rule: &PolicyRule, report: &Report) -> Option<Rule> {
    let clauses = Clauses::of(rule);
    if !clauses.http.is_empty() {
        let seen = format!("L4 cannot see {}", clauses.http.join(", "));
        report.warning(policy.meta.at.about(
            &rule.path,
            seen,
            "the node proxy leaves the rule out and allows less",
        ));
        return None;
    }
    Some(Rule { clauses: clauses.all.into_iter().map(|(clause, _)| clause).collect() })
}

/// Conditions that L4 cannot see are left out of the rule field by field. What then is empty never matches, unless the
/// strict setting makes it match always.
fn deny_rule(policy: &AuthorizationPolicy, rule: &PolicyRule, settings: &Settings, report: &Report) -> Rule {
    let clauses = Clauses::of(rule);
    let dead = clauses.all.iter().any(|(clause, _)| is_never(clause));
    if !clauses.http.is_empty() {
        let seen = format!("L4 cannot see {}", clauses.http.join(", "));
        let what = match (dead, settings.policy_strict) {
            (true, false) => {
                "the rule has no effect on the node proxy; a waypoint or the strict setting enforces it"
            }
            (false, false)
                if clauses.all.iter().any(|(clause, _)| clause.matches.contains(&Match::default())) =>
            {
                "what L4 cannot see has no effect on the node proxy; a waypoint or the strict setting enforces it"
            }
            (_, _) => "the node proxy denies more than the rule says",
        };
        report.warning(policy.meta.at.about(&rule.path, seen, what));
    }
    // A match that is empty because of what L4 cannot see might be any: with the strict setting its clause holds always.
    let holds_always = |clause: &Clause, lost: bool| {
        settings.policy_strict && lost && clause.matches.contains(&Match::default())
    };
    let all = clauses.all.into_iter().filter(|(clause, lost)| !holds_always(clause, *lost));
    Rule { clauses: all.map(|(clause, _)| clause).collect() }
}

/// A clause that has matches, all of them without any field, never holds.
fn is_never(clause: &Clause) -> bool {
    !clause.matches.is_empty() && clause.matches.iter().all(|one| *one == Match::default())
}

/// The clauses of one rule (`to`, `from`, then each of `when`), each with whether it lost a field that L4 cannot see.
struct Clauses {
    all: Vec<(Clause, bool)>,
    /// Names of the fields that were lost.
    http: Vec<String>,
}

impl Clauses {
    fn of(rule: &PolicyRule) -> Self {
        let mut clauses = Self { all: Vec::new(), http: Vec::new() };
        if !rule.to.is_empty() {
            let lost = rule.to.iter().flat_map(|to| &to.http).map(|name| (*name).to_owned()).collect();
            clauses.add(rule.to.iter().map(to).collect(), lost);
        }
        if !rule.from.is_empty() {
            let lost = rule.from.iter().flat_map(|from| &from.http).map(|name| (*name).to_owned()).collect();
            clauses.add(rule.from.iter().map(from).collect(), lost);
        }
        for condition in &rule.when {
            let (one, is_lost) = match when(condition) {
                Some(one) => (one, false),
                None => (Match::default(), true),
            };
            clauses.add(vec![one], if is_lost { vec![condition.key.clone()] } else { Vec::new() });
        }
        clauses
    }

    fn add(&mut self, matches: Vec<Match>, lost: Vec<String>) {
        self.all.push((Clause { matches }, !lost.is_empty()));
        for name in lost {
            if !self.http.contains(&name) {
                self.http.push(name);
            }
        }
    }
}

fn to(operation: &Operation) -> Match {
    let (some, not) = operation.ports.clone();
    Match { destination_ports: some, not_destination_ports: not, ..Match::default() }
}

fn from(source: &Source) -> Match {
    let Source { principals, namespaces, service_accounts, ip_blocks, .. } = source;
    Match {
        principals: principals.0.clone(),
        not_principals: principals.1.clone(),
        namespaces: namespaces.0.clone(),
        not_namespaces: namespaces.1.clone(),
        service_accounts: service_accounts.0.clone(),
        not_service_accounts: service_accounts.1.clone(),
        source_ips: ip_blocks.0.clone(),
        not_source_ips: ip_blocks.1.clone(),
        ..Match::default()
    }
}

/// None if L4 cannot see it.
fn when(condition: &written::Condition) -> Option<Match> {
    let mut of = Match::default();
    match condition.test.clone() {
        Test::SourceIp(blocks) => (of.source_ips, of.not_source_ips) = blocks,
        Test::DestinationIp(blocks) => (of.destination_ips, of.not_destination_ips) = blocks,
        Test::SourceNamespace(texts) => (of.namespaces, of.not_namespaces) = texts,
        Test::SourcePrincipal(texts) => (of.principals, of.not_principals) = texts,
        Test::DestinationPort(some, not) => {
            (of.destination_ports, of.not_destination_ports) = (some, not);
        }
        Test::SourceServiceAccount(_)
        | Test::SourceTrustDomain(_)
        | Test::RemoteIp(_)
        | Test::ServerName(_)
        | Test::RequestHeader(..)
        | Test::Token
        | Test::EnvoyMetadata => return None,
    }
    Some(of)
}
