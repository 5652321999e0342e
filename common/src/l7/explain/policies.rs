//! Policies in words: what each rule asks for, and what of it the request does not have.

use std::fmt::Display;
use std::sync::Arc;

use super::answer::PolicyView;
use crate::authz::http::{Decision, Denial, Facts, PolicyTrace, RuleId, RuleTrace, Verdict, trace};
use crate::model::l7::{
    Access, Condition, Effect, Operation, PathMatch, Policies, Policy, PolicyRule, Source,
};
use crate::types::{PolicyKey, SpiffeId};

/// Values of a list that are told.
const LISTED: usize = 4;

/// Each policy in the order in which they are asked, those that cannot be evaluated last.
pub(super) fn views(policies: &Policies, facts: &Facts<'_>, decision: &Decision<'_>) -> Vec<PolicyView> {
    let decided = match decision.verdict {
        Verdict::Allowed { by } => by.map(|by| by.policy.key.clone()),
        Verdict::Denied(Denial::ByRule(by)) => Some(by.policy.key.clone()),
        Verdict::Denied(Denial::Fault(fault)) => Some(fault.key.clone()),
        Verdict::Denied(Denial::NoneAllowed(_)) => None,
    };
    let view = |trace: PolicyTrace<'_>| PolicyView {
        policy: trace.policy.key.to_string(),
        action: action(trace.policy.effect).to_owned(),
        dry_run: trace.policy.dry_run,
        matched: trace.is_match(),
        decided: decided.as_ref() == Some(&trace.policy.key) && !trace.policy.dry_run && trace.is_match(),
        rules: rules(&trace, facts),
    };
    let broken = policies.broken.iter().map(|fault| PolicyView {
        policy: fault.key.to_string(),
        action: fault.kind.to_owned(),
        dry_run: false,
        matched: true,
        decided: decided.as_ref() == Some(&fault.key),
        rules: vec![format!("it cannot be evaluated, so everything is denied: {}", fault.reason)],
    });
    trace(policies, facts).into_iter().map(view).chain(broken).collect()
}

/// Why a request is denied, in a line.
pub(super) fn told(denial: &Denial<'_>, policies: &Policies, facts: &Facts<'_>) -> String {
    match denial {
        Denial::ByRule(RuleId { policy, rule }) => {
            let asked = policy.rules.get(*rule).map(wanted).unwrap_or_default();
            format!("AuthorizationPolicy {} denies it: its rule {} matches: {asked}", policy.key, rule + 1)
        }
        Denial::Fault(_) => denial.to_string(),
        Denial::NoneAllowed(_) => {
            let enforced: Vec<&Arc<Policy>> =
                policies.allow.iter().filter(|policy| !policy.dry_run).collect();
            let [only] = &enforced[..] else {
                return format!("{} ALLOW policies are there, and none of them lets it in", enforced.len());
            };
            let why = trace(policies, facts).into_iter().find(|trace| trace.policy.key == only.key);
            let why = why.map(|trace| rules(&trace, facts)).unwrap_or_default();
            let why =
                why.first().cloned().unwrap_or_else(|| "it has no rules, so it allows nobody".to_owned());
            format!("AuthorizationPolicy {} does not let it in: {why}", only.key)
        }
    }
}

fn action(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "ALLOW",
        Effect::Deny => "DENY",
        Effect::Audit => "AUDIT",
    }
}

fn rules(trace: &PolicyTrace<'_>, facts: &Facts<'_>) -> Vec<String> {
    let effect = trace.policy.effect;
    let of = |(at, (rule, traced)): (usize, (&PolicyRule, &RuleTrace))| match traced.is_match {
        true => format!("rule {} matches: {}", at + 1, wanted(rule)),
        false => format!("rule {}: {}", at + 1, unmet(effect, rule, traced, facts)),
    };
    trace.policy.rules.iter().zip(&trace.rules).enumerate().map(of).collect()
}

/// What a rule asks for.
fn wanted(rule: &PolicyRule) -> String {
    let PolicyRule { from, to, when } = rule;
    let either = |entries: Vec<String>| match &entries[..] {
        [] => None,
        _ => Some(entries.join(" or ")),
    };
    let from = either(from.iter().map(|one| told_fields(&source(one))).collect());
    let to = either(to.iter().map(|one| told_fields(&operation(one))).collect());
    let when = when.iter().map(|one| told_fields(&[condition(one)]));
    let all: Vec<String> = from.into_iter().chain(to).chain(when).collect();
    if all.is_empty() { "everything".to_owned() } else { all.join("; ") }
}

fn told_fields(fields: &[Part]) -> String {
    let all: Vec<&str> = fields.iter().map(|field| field.wanted.as_str()).collect();
    if all.is_empty() { "anything".to_owned() } else { all.join(", ") }
}

/// Of each part that fails, what was wanted and what was found.
fn unmet(effect: Effect, rule: &PolicyRule, traced: &RuleTrace, facts: &Facts<'_>) -> String {
    let missing = |fields: Vec<Part>| {
        let failed = fields.into_iter().filter(|part| !holds(effect, &part.alone, facts));
        let all: Vec<String> =
            failed.map(|part| format!("{}, found {}", part.wanted, found(part.looks_at, facts))).collect();
        all.join(" and ")
    };
    let mut all = Vec::new();
    if !rule.from.is_empty() && !traced.from.contains(&true) {
        all.push(rule.from.iter().map(|one| missing(source(one))).collect::<Vec<_>>().join(", or "));
    }
    if !rule.to.is_empty() && !traced.to.contains(&true) {
        all.push(rule.to.iter().map(|one| missing(operation(one))).collect::<Vec<_>>().join(", or "));
    }
    let when = rule.when.iter().zip(&traced.when).filter(|(_, holds)| !**holds);
    all.extend(when.map(|(one, _)| missing(vec![condition(one)])));
    if all.is_empty() { "it does not match".to_owned() } else { all.join("; ") }
}

/// Whether a rule of this alone matches.
fn holds(effect: Effect, rule: &PolicyRule, facts: &Facts<'_>) -> bool {
    let key = PolicyKey { namespace: "".into(), name: "".into() };
    let policy = Policy { key, effect, dry_run: false, rules: vec![rule.clone()] };
    let alone = Policies { deny: vec![Arc::new(policy)], ..Policies::default() };
    trace(&alone, facts).iter().any(PolicyTrace::is_match)
}

/// One field of an entry.
struct Part {
    wanted: String,
    looks_at: LooksAt,
    /// The field as a rule of its own.
    alone: PolicyRule,
}

enum LooksAt {
    Principal,
    Namespace,
    Account,
    TrustDomain,
    Source,
    Destination,
    Host,
    Port,
    Method,
    Path,
    ServerName,
    Header(Arc<str>),
}

fn found(of: LooksAt, facts: &Facts<'_>) -> String {
    let peer = |part: fn(&SpiffeId) -> String| facts.connection.peer.map(part);
    let text = match of {
        LooksAt::Principal => peer(SpiffeId::principal),
        LooksAt::Namespace => peer(|id| id.namespace().to_owned()),
        LooksAt::Account => peer(|id| format!("{}/{}", id.namespace(), id.service_account())),
        LooksAt::TrustDomain => peer(|id| id.trust_domain().to_owned()),
        LooksAt::Source => Some(facts.connection.source.ip().to_string()),
        LooksAt::Destination => Some(facts.connection.destination.ip().to_string()),
        LooksAt::Host => Some(facts.authority.to_owned()),
        LooksAt::Port => Some(facts.port().to_string()),
        LooksAt::Method => Some(facts.method.to_string()),
        LooksAt::Path => Some(facts.path().to_owned()),
        LooksAt::ServerName => facts.connection.server_name.map(str::to_owned),
        LooksAt::Header(name) => {
            facts.joined(&name).map(|value| String::from_utf8_lossy(&value).into_owned())
        }
    };
    text.map_or_else(|| "none".to_owned(), |text| format!("{text:?}"))
}

fn source(one: &Source) -> Vec<Part> {
    // Written out, so that a new field has to be told.
    let Source { principals, namespaces, service_accounts, trust_domains, ip_blocks, remote_ip_blocks } = one;
    let rule = |alone: Source| PolicyRule { from: vec![alone], ..PolicyRule::default() };
    let none = Source::default;
    let all = [
        part("principals", principals, LooksAt::Principal, |a| rule(Source { principals: a, ..none() })),
        part("namespaces", namespaces, LooksAt::Namespace, |a| rule(Source { namespaces: a, ..none() })),
        part("serviceAccounts", service_accounts, LooksAt::Account, |a| {
            rule(Source { service_accounts: a, ..none() })
        }),
        part("trustDomains", trust_domains, LooksAt::TrustDomain, |a| {
            rule(Source { trust_domains: a, ..none() })
        }),
        part("ipBlocks", ip_blocks, LooksAt::Source, |a| rule(Source { ip_blocks: a, ..none() })),
        part("remoteIpBlocks", remote_ip_blocks, LooksAt::Source, |a| {
            rule(Source { remote_ip_blocks: a, ..none() })
        }),
    ];
    all.into_iter().flatten().collect()
}

fn operation(one: &Operation) -> Vec<Part> {
    let Operation { hosts, ports, methods, paths } = one;
    let rule = |alone: Operation| PolicyRule { to: vec![alone], ..PolicyRule::default() };
    let none = Operation::default;
    let shown = Access {
        values: paths.values.iter().map(path).collect(),
        not_values: paths.not_values.iter().map(path).collect(),
    };
    let all = [
        part("hosts", hosts, LooksAt::Host, |a| rule(Operation { hosts: a, ..none() })),
        part("ports", ports, LooksAt::Port, |a| rule(Operation { ports: a, ..none() })),
        part("methods", methods, LooksAt::Method, |a| rule(Operation { methods: a, ..none() })),
        part("paths", &shown, LooksAt::Path, |_| rule(Operation { paths: paths.clone(), ..none() })),
    ];
    all.into_iter().flatten().collect()
}

fn path(one: &PathMatch) -> String {
    match one {
        PathMatch::Text(text) => text.to_string(),
        PathMatch::Template { text, .. } => text.to_string(),
    }
}

fn condition(one: &Condition) -> Part {
    let (key, lists, looks_at) = match one {
        Condition::RequestHeader { name, values } => {
            (format!("request.headers[{name}]"), lists(values), LooksAt::Header(Arc::clone(name)))
        }
        Condition::SourceIp(nets) => ("source.ip".to_owned(), lists(nets), LooksAt::Source),
        Condition::RemoteIp(nets) => ("remote.ip".to_owned(), lists(nets), LooksAt::Source),
        Condition::SourceNamespace(texts) => {
            ("source.namespace".to_owned(), lists(texts), LooksAt::Namespace)
        }
        Condition::SourcePrincipal(texts) => {
            ("source.principal".to_owned(), lists(texts), LooksAt::Principal)
        }
        Condition::SourceServiceAccount(accounts) => {
            ("source.serviceAccount".to_owned(), lists(accounts), LooksAt::Account)
        }
        Condition::SourceTrustDomain(texts) => {
            ("source.trustDomain".to_owned(), lists(texts), LooksAt::TrustDomain)
        }
        Condition::DestinationIp(nets) => ("destination.ip".to_owned(), lists(nets), LooksAt::Destination),
        Condition::DestinationPort(ports) => ("destination.port".to_owned(), lists(ports), LooksAt::Port),
        Condition::ServerName(texts) => ("connection.sni".to_owned(), lists(texts), LooksAt::ServerName),
    };
    let alone = PolicyRule { when: vec![one.clone()], ..PolicyRule::default() };
    Part { wanted: worded(&key, &lists), looks_at, alone }
}

fn part<T: Display + Clone>(
    name: &str,
    access: &Access<T>,
    looks_at: LooksAt,
    alone: impl FnOnce(Access<T>) -> PolicyRule,
) -> Option<Part> {
    let all = lists(access);
    if all.0.is_none() && all.1.is_none() {
        return None;
    }
    let alone = alone(Access { values: access.values.clone(), not_values: access.not_values.clone() });
    Some(Part { wanted: worded(name, &all), looks_at, alone })
}

type Lists = (Option<String>, Option<String>);

fn lists<T: Display>(access: &Access<T>) -> Lists {
    (list(&access.values), list(&access.not_values))
}

fn list<T: Display>(values: &[T]) -> Option<String> {
    if values.is_empty() {
        return None;
    }
    let shown: Vec<String> = values.iter().take(LISTED).map(ToString::to_string).collect();
    let more = match values.len() - shown.len() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Some(format!("[{}{more}]", shown.join(", ")))
}

fn worded(name: &str, lists: &Lists) -> String {
    match lists {
        (Some(wanted), None) => format!("{name} {wanted}"),
        (None, Some(unwanted)) => format!("{name} not {unwanted}"),
        (Some(wanted), Some(unwanted)) => format!("{name} {wanted} but not {unwanted}"),
        (None, None) => name.to_owned(),
    }
}
