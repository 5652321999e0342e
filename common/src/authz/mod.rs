//! Whether a connection to a workload is allowed: a pure function of the policies that apply and of what was proven.
//!
//! Enforced at the destination, for tunnelled and plain connections alike. Where something cannot be known (a policy
//! that is named but absent, an address list of which nothing could be read) the answer is the one that lets less
//! through. PeerAuthentication needs no code here: sources translate it into policies. Must not know the snapshot, the
//! time, or sockets: the caller collects the policies and the facts. The peer never learns which policy refused it;
//! [`Denial`] is for our own log.
//!
//! Start with [`authorize`]; how one policy matches is in `matches.rs`. What a waypoint asks of a request is in [`http`].

pub mod http;
mod matches;
#[cfg(test)]
mod tests;
mod trace;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub use trace::{ClauseTrace, FieldTrace, MatchTrace, PolicyTrace, RuleTrace};

use crate::model::{Action, Authorization};
use crate::types::{PolicyKey, SpiffeId};
use matches::Subject;
use trace::{Observer, Trace};

/// What is known of one connection at its destination.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Identity that TLS proved; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// TCP peer.
    pub source_ip: IpAddr,
    /// Address of the pod.
    pub destination_ip: IpAddr,
    /// Port that the pod would be dialled on, after service ports were translated.
    pub destination_port: u16,
}

/// Whether the connection may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed {
        /// ALLOW policy that matched; `None` where no ALLOW policy applies.
        by: Option<PolicyKey>,
    },
    /// It may not.
    Denied(Denial),
}

/// Why a connection is denied. `Display` uses Istio's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A DENY policy matched.
    #[error("explicitly denied by: {0}")]
    ByPolicy(PolicyKey),
    /// ALLOW policies apply and none matched.
    #[error("allow policies exist, but none allowed: {}", Names(policies))]
    NoneAllowed {
        /// Those policies, in the order given.
        policies: Vec<PolicyKey>,
    },
    /// The workload names a policy that is not known, so what it would say is not known either.
    #[error(
        "policy {0} is attached to the workload but not known; was it deleted, or has it not arrived yet?"
    )]
    Missing(PolicyKey),
}

impl Denial {
    /// Names of the policies that are the cause, joined by commas.
    pub fn policies(&self) -> String {
        match self {
            Self::ByPolicy(key) | Self::Missing(key) => key.to_string(),
            Self::NoneAllowed { policies } => Names(policies).to_string(),
        }
    }
}

/// What a policy that is only tried out would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// A DENY policy matches.
    WouldDeny(PolicyKey),
    /// An ALLOW policy matches.
    WouldAllow(PolicyKey),
    /// Dry-run ALLOW policies apply and none matches.
    NoneWouldAllow(Vec<PolicyKey>),
}

impl DryRun {
    /// The same as a metric's label.
    pub fn verdict(&self) -> &'static str {
        match self {
            Self::WouldDeny(_) => "would_deny",
            Self::WouldAllow(_) => "would_allow",
            Self::NoneWouldAllow(_) => "none_would_allow",
        }
    }
}

/// The verdict, and what dry-run policies would have added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Never changed by a dry-run policy.
    pub verdict: Verdict,
    /// At most one entry for each dry-run DENY policy and one for all dry-run ALLOW policies.
    pub dry_run: Vec<DryRun>,
}

impl Decision {
    /// The denial, if it is one.
    pub fn denial(&self) -> Option<&Denial> {
        match &self.verdict {
            Verdict::Allowed { .. } => None,
            Verdict::Denied(denial) => Some(denial),
        }
    }
}

/// Decides one connection.
///
/// Any matching DENY denies; then any policy in `missing` denies; without ALLOW policies the rest is allowed; with
/// some, one of them must match.
///
/// **Source**: Istio AuthorizationPolicy reference (order of evaluation), `istio.security.Authorization`.
pub fn authorize(policies: &[Arc<Authorization>], missing: &[PolicyKey], facts: &Facts<'_>) -> Decision {
    evaluate(policies, missing, facts, &mut ())
}

/// As [`authorize`], with what was looked at, in order: policies after the one that decides are not among them.
pub fn authorize_traced(
    policies: &[Arc<Authorization>],
    missing: &[PolicyKey],
    facts: &Facts<'_>,
) -> (Decision, Vec<PolicyTrace>) {
    let mut trace = Trace::default();
    let decision = evaluate(policies, missing, facts, &mut trace);
    (decision, trace.policies)
}

fn evaluate<O: Observer>(
    policies: &[Arc<Authorization>],
    missing: &[PolicyKey],
    facts: &Facts<'_>,
    observer: &mut O,
) -> Decision {
    let subject = Subject::of(facts);
    let of = |action: Action, dry_run: bool| {
        policies.iter().filter(move |p| p.action == action && p.dry_run == dry_run)
    };
    let mut matching = |p: &&Arc<Authorization>| matches::policy(p, &subject, observer);

    let verdict = if let Some(deny) = of(Action::Deny, false).find(&mut matching) {
        Verdict::Denied(Denial::ByPolicy(deny.key.clone()))
    } else if let Some(key) = missing.first() {
        Verdict::Denied(Denial::Missing(key.clone()))
    } else if let Some(allow) = of(Action::Allow, false).find(&mut matching) {
        Verdict::Allowed { by: Some(allow.key.clone()) }
    } else if of(Action::Allow, false).next().is_some() {
        Verdict::Denied(Denial::NoneAllowed { policies: keys(of(Action::Allow, false)) })
    } else {
        Verdict::Allowed { by: None }
    };

    let mut dry_run: Vec<DryRun> =
        of(Action::Deny, true).filter(&mut matching).map(|p| DryRun::WouldDeny(p.key.clone())).collect();
    if let Some(allow) = of(Action::Allow, true).find(&mut matching) {
        dry_run.push(DryRun::WouldAllow(allow.key.clone()));
    } else if of(Action::Allow, true).next().is_some() {
        dry_run.push(DryRun::NoneWouldAllow(keys(of(Action::Allow, true))));
    }
    Decision { verdict, dry_run }
}

fn keys<'a>(policies: impl Iterator<Item = &'a Arc<Authorization>>) -> Vec<PolicyKey> {
    policies.map(|p| p.key.clone()).collect()
}

/// Istio's words, without the `dry-run: ` that its log line starts with.
impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldDeny(key) => write!(f, "deny policy match: {key}"),
            Self::WouldAllow(key) => write!(f, "allow policy match: {key}"),
            Self::NoneWouldAllow(keys) => write!(f, "no allow policies match: {}", Names(keys)),
        }
    }
}

/// Names for one log line: a namespace may hold hundreds.
struct Names<'a>(&'a [PolicyKey]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        for (i, key) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{key}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
