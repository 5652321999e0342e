//! What is never sent in plaintext: to whom, and why not.
//!
//! **Source**: Istio PeerAuthentication (STRICT) for what a workload takes; the rest is the mesh's own promise.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::authz::{Denial, Facts, authorize};
use crate::model::{DowngradeMode, Enrolment, Service, TunnelProtocol, Workload};
use crate::state::{Completeness, Snapshot};
use crate::telemetry::ResponseFlag;
use crate::types::PolicyKey;

/// Names of the policies that sources, istiod among them, make of PeerAuthentications.
const STRICT: [&str; 2] = ["istio_converted_static_strict", "converted_peer_authentication_"];

/// A connection that would leave in plaintext and may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Downgrade {
    /// The destination is a workload that is not captured.
    Workload {
        /// What would be dialled.
        to: SocketAddr,
        /// The destination.
        workload: Arc<Workload>,
        /// The service that was addressed, if one was.
        service: Option<Arc<Service>>,
        /// Why that may not be.
        why: NotPlain,
    },
    /// Nobody is known at the destination, but it is an address of the mesh and not all is known.
    Unanswered {
        /// Original destination.
        to: SocketAddr,
        /// Range of pods or services that holds it.
        range: IpNet,
        /// What the state lacks.
        state: Completeness,
    },
}

/// Why a known workload that is not captured gets no plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPlain {
    /// It is labelled for the mesh.
    Labelled,
    /// It was captured under this UID before, and nobody says that it has left the mesh.
    CapturedBefore,
    /// This policy denies plaintext to it.
    Strict(PolicyKey),
}

impl Downgrade {
    /// Value of the label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Workload { why: NotPlain::Labelled, .. } => "not_captured",
            Self::Workload { why: NotPlain::CapturedBefore, .. } => "captured_before",
            Self::Workload { why: NotPlain::Strict(_), .. } => "strict",
            Self::Unanswered { .. } => "unanswered",
        }
    }

    /// Whether the next state may well allow the connection, so that it is worth waiting for.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Workload { why: NotPlain::Strict(_), .. })
    }

    /// The only mapping to log and metric flags.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Workload { .. } | Self::Unanswered { .. } => ResponseFlag::NotCaptured,
        }
    }

    /// What would be dialled.
    pub fn to(&self) -> SocketAddr {
        match self {
            Self::Workload { to, .. } | Self::Unanswered { to, .. } => *to,
        }
    }
}

/// What was seen, then what to check.
impl std::fmt::Display for Downgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (to, workload, why) = match self {
            Self::Workload { to, workload, why, .. } => (to, workload, why),
            Self::Unanswered { to, range, state } => {
                return write!(
                    f,
                    "nobody is known at {to}, which is in the mesh's range {range}, and the state is {state}: not sent in \
                     plaintext; check what the agent says of its configuration"
                );
            }
        };
        let name = format_args!("{}/{}", workload.namespace, workload.name).to_string();
        match why {
            NotPlain::Labelled => write!(
                f,
                "{name} at {to} is labelled for the mesh but not captured: not sent in plaintext; is the node agent of node \
                 {} running, and what does it say of the pod?",
                workload.node
            ),
            NotPlain::CapturedBefore => write!(
                f,
                "{name} at {to} was captured before and is not now: not sent in plaintext; is the node agent of node {} \
                 running, and what does it say of the pod?",
                workload.node
            ),
            NotPlain::Strict(policy) => write!(
                f,
                "{name} at {to} takes no plaintext by policy {policy} and is not captured: refused at the source; label it \
                 istio.io/dataplane-mode: ambient, or make its PeerAuthentication PERMISSIVE"
            ),
        }
    }
}

/// Why this workload gets no plaintext, if it is not captured and gets none. Says nothing of what is done about it.
pub(super) fn not_plain(snapshot: &Snapshot, workload: &Workload, to: SocketAddr) -> Option<NotPlain> {
    if workload.protocol == TunnelProtocol::Hbone || workload.enrolment == Enrolment::Exempt {
        return None;
    }
    match workload.enrolment {
        Enrolment::Labelled => return Some(NotPlain::Labelled),
        Enrolment::Unknown if snapshot.was_captured(&workload.uid) => return Some(NotPlain::CapturedBefore),
        Enrolment::Unknown | Enrolment::NotLabelled | Enrolment::Exempt => {}
    }
    strict(snapshot, workload, to).map(NotPlain::Strict)
}

/// As [`not_plain`], where it is not only counted.
pub(super) fn is_withheld(snapshot: &Snapshot, workload: &Workload, to: SocketAddr) -> bool {
    snapshot.no_downgrade.mode == DowngradeMode::Enforce && not_plain(snapshot, workload, to).is_some()
}

/// The policy by which `workload` takes no plaintext on this port.
fn strict(snapshot: &Snapshot, workload: &Workload, to: SocketAddr) -> Option<PolicyKey> {
    let keys = &workload.authorization_policies;
    let keys = keys.iter().filter(|key| STRICT.iter().any(|name| key.name.starts_with(name)));
    let (mut policies, mut missing) = (Vec::new(), Vec::new());
    for key in keys {
        match snapshot.policy(key) {
            Some(policy) => policies.push(Arc::clone(policy)),
            None => missing.push(key.clone()),
        }
    }
    if policies.is_empty() && missing.is_empty() {
        return None;
    }
    // No policy of these asks for the source's address.
    let source_ip = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    let facts = Facts { peer: None, source_ip, destination_ip: to.ip(), destination_port: to.port() };
    match authorize(&policies, &missing, &facts).denial() {
        Some(Denial::ByPolicy(key) | Denial::Missing(key)) => Some(key.clone()),
        Some(Denial::NoneAllowed { .. }) | None => None,
    }
}

/// Why an address that nobody is known to have gets no plaintext.
pub(super) fn incomplete(snapshot: &Snapshot, to: SocketAddr) -> Option<Downgrade> {
    match snapshot.completeness {
        Completeness::Complete => None,
        Completeness::Loading | Completeness::Stale => unanswered(snapshot, to),
    }
}

/// The same where the source of the state was asked for the address and has not answered.
pub fn unanswered(snapshot: &Snapshot, to: SocketAddr) -> Option<Downgrade> {
    let to = super::canonical(to);
    let range = snapshot.no_downgrade.range_of(to.ip())?;
    let state = match snapshot.completeness {
        Completeness::Complete => Completeness::Stale, // as far as this address goes
        other => other,
    };
    Some(Downgrade::Unanswered { to, range, state })
}

#[cfg(test)]
mod tests;
