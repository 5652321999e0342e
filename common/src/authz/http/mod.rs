//! Whether a waypoint lets a request, or a TCP connection, pass: a pure function of its policies and of what is known.
//!
//! A match of DENY denies; then, with any ALLOW policy, one must match. AUDIT and dry-run policies are told beside the verdict
//! and never change it. What cannot be evaluated denies everything that it targets. Where two readers of a request may see
//! different things (repeated headers, ports in hosts, paths that a server decodes once more), DENY looks at all of them and
//! ALLOW at the request as it is: see `forms.rs`. The client never learns which policy refused it; [`Denial`] is for our own log.
//!
//! Start with [`authorize`]; how a rule matches is in `matches.rs`. Must not know the time, routes or sockets.
//!
//! **Source**: Istio AuthorizationPolicy reference; how istiod configures Envoy's RBAC filter.

mod facts;
mod forms;
mod matches;
#[cfg(test)]
mod tests;
mod trace;

use std::fmt;

pub(crate) use facts::host_and_port;
pub use facts::{Connection, Facts};
pub use trace::{PolicyTrace, RuleTrace, trace, trace_tcp};

use crate::model::l7::{Policies, Policy, PolicyFault};
use crate::types::PolicyKey;
use matches::Subject;

/// A rule of a policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RuleId<'p> {
    /// The policy.
    pub policy: &'p Policy,
    /// Which of its rules, from 0.
    pub rule: usize,
}

/// `ns[<namespace>]-policy[<name>]-rule[<index>]`
impl fmt::Display for RuleId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PolicyKey { namespace, name } = &self.policy.key;
        write!(f, "ns[{namespace}]-policy[{name}]-rule[{}]", self.rule)
    }
}

/// Whether it may pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict<'p> {
    /// It may.
    Allowed {
        /// Rule of the ALLOW policy that matched; none where there is no ALLOW policy.
        by: Option<RuleId<'p>>,
    },
    /// It may not.
    Denied(Denial<'p>),
}

/// Why it may not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Denial<'p> {
    /// A rule of a DENY policy matched.
    ByRule(RuleId<'p>),
    /// ALLOW policies apply and none matched.
    NoneAllowed(&'p Policies),
    /// A policy for it cannot be evaluated.
    Fault(&'p PolicyFault),
}

impl Denial<'_> {
    /// As `rbac_access_denied_matched_policy[...]` names the cause: a rule's id, or `none`.
    pub fn id(&self) -> String {
        match self {
            Self::ByRule(id) => id.to_string(),
            Self::NoneAllowed(_) => "none".to_owned(),
            Self::Fault(fault) => format!("ns[{}]-policy[{}]-fault", fault.key.namespace, fault.key.name),
        }
    }
}

impl fmt::Display for Denial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        match self {
            Self::ByRule(RuleId { policy, rule }) => {
                write!(f, "explicitly denied by: {}, rule {rule}", policy.key)
            }
            Self::NoneAllowed(policies) => {
                f.write_str("allow policies exist, but none allowed: ")?;
                let mut enforced = policies.allow.iter().filter(|policy| !policy.dry_run);
                for (at, policy) in enforced.by_ref().take(SHOWN).enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { ", " }, policy.key)?;
                }
                match enforced.count() {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Self::Fault(PolicyFault { kind, key, reason }) => {
                write!(
                    f,
                    "{kind} {key} cannot be evaluated, so everything is denied that it targets: {reason}"
                )
            }
        }
    }
}

/// What a policy that is only tried out would have done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DryRun<'p> {
    /// A rule of a DENY policy matches.
    WouldDeny(RuleId<'p>),
    /// A rule of an ALLOW policy matches.
    WouldAllow(RuleId<'p>),
    /// Dry-run ALLOW policies apply and none matches.
    NoneWouldAllow,
}

/// The verdict, and what is told beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision<'p> {
    /// Never changed by AUDIT or dry-run.
    pub verdict: Verdict<'p>,
    /// Each dry-run DENY policy that matches, and one entry for all dry-run ALLOW policies.
    pub dry_run: Vec<DryRun<'p>>,
    /// First rule that asks for the request to be logged.
    pub audit: Option<RuleId<'p>>,
}

impl<'p> Decision<'p> {
    /// The denial, if it is one.
    pub fn denial(&self) -> Option<Denial<'p>> {
        match self.verdict {
            Verdict::Allowed { .. } => None,
            Verdict::Denied(denial) => Some(denial),
        }
    }
}

/// Decides one HTTP request.
pub fn authorize<'p>(policies: &'p Policies, facts: &Facts<'_>) -> Decision<'p> {
    decide(policies, &Subject::request(facts))
}

/// Decides one TCP connection. What only HTTP has is not known: an ALLOW rule that asks for it does not match, of a DENY rule
/// the rest counts.
pub fn authorize_tcp<'p>(policies: &'p Policies, connection: &Connection<'_>) -> Decision<'p> {
    decide(policies, &Subject::connection(connection))
}

fn decide<'p>(policies: &'p Policies, subject: &Subject<'_>) -> Decision<'p> {
    // Written out, so that a new list has to be evaluated.
    let Policies { deny, allow, audit, broken } = policies;
    let matching = |policy: &'p Policy| {
        let rule = policy.rules.iter().position(|rule| subject.is_match(policy.effect, rule))?;
        Some(RuleId { policy, rule })
    };
    let of = |list: &'p [std::sync::Arc<Policy>], dry_run: bool| {
        list.iter().map(|policy| &**policy).filter(move |policy| policy.dry_run == dry_run)
    };

    let verdict = if let Some(by) = of(deny, false).find_map(matching) {
        Verdict::Denied(Denial::ByRule(by))
    } else if let Some(fault) = broken.first() {
        Verdict::Denied(Denial::Fault(fault))
    } else if let Some(by) = of(allow, false).find_map(matching) {
        Verdict::Allowed { by: Some(by) }
    } else if of(allow, false).next().is_some() {
        Verdict::Denied(Denial::NoneAllowed(policies))
    } else {
        Verdict::Allowed { by: None }
    };

    let mut dry_run: Vec<DryRun<'_>> = of(deny, true).filter_map(matching).map(DryRun::WouldDeny).collect();
    if let Some(by) = of(allow, true).find_map(matching) {
        dry_run.push(DryRun::WouldAllow(by));
    } else if of(allow, true).next().is_some() {
        dry_run.push(DryRun::NoneWouldAllow);
    }
    Decision { verdict, dry_run, audit: of(audit, false).find_map(matching) }
}
