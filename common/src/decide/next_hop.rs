//! Where a captured pod's outgoing connection goes.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::downgrade::{Downgrade, not_plain, unanswered};
use super::endpoint::{self, Chosen};
use super::{Choice, HBONE_PORT, PassedOver, canonical, is_local, is_reserved_port};
use crate::model::{DowngradeMode, Mode, Service, TunnelProtocol, Workload};
use crate::state::Snapshot;
use crate::telemetry::ResponseFlag;
use crate::types::{ServiceKey, SpiffeId, WorkloadUid};

/// What is known of an outgoing connection.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// The captured workload that connects.
    pub source: &'a Workload,
    /// Original destination.
    pub destination: SocketAddr,
    /// Endpoints already tried in vain for this connection; chosen again only when no other is left.
    pub avoid: &'a [WorkloadUid],
    /// Endpoints at which others failed a moment ago, with address and port; chosen last among those not tried yet.
    pub failing: &'a [(WorkloadUid, SocketAddr)],
    /// Any number, uniformly random: decides among endpoints by weight.
    pub pick: u64,
}

/// What to dial, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// The original destination itself, outside what the mesh decides on.
    Passthrough {
        /// What to dial.
        to: SocketAddr,
        /// Why.
        why: PassthroughReason,
    },
    /// A known workload that is not captured: plain TCP.
    Tcp {
        /// What to dial.
        to: SocketAddr,
        /// The destination.
        workload: Arc<Workload>,
        /// The service that was addressed, if one was.
        service: Option<Arc<Service>>,
        /// Why this workload.
        why: Choice,
        /// Why it should not get plaintext, where that is only counted.
        downgrade: Option<Box<Downgrade>>,
    },
    /// Nothing now: plaintext is not allowed, and the destination may be captured in a moment. Decide again on each new
    /// snapshot; when patience ends, refuse with [`OutboundRefusal::Downgrade`] of this.
    Hold(Box<Downgrade>),
    /// A captured workload: a stream in a tunnel to it.
    Hbone {
        /// What to dial: the workload's address and [`HBONE_PORT`].
        peer: SocketAddr,
        /// What to ask for in CONNECT: the same address and the workload's own port.
        authority: SocketAddr,
        /// The peer must prove one of these: the workload's identity first, then the service's further ones, sorted.
        expected: Vec<SpiffeId>,
        /// The destination.
        workload: Arc<Workload>,
        /// The service that was addressed, if one was.
        service: Option<Arc<Service>>,
        /// Why this workload.
        why: Choice,
    },
}

/// Why a connection goes to its original destination untouched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassthroughReason {
    /// No service or workload owns the address: outside the mesh, a node, or a pod with its node's network.
    UnknownDestination,
    /// The service says so.
    Service(Arc<Service>),
}

/// Why an outgoing connection is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundRefusal {
    /// It would come back to the agent itself, without end.
    #[error(
        "attempted recursive call to ourselves: {destination} is the agent's own port; call the application's port"
    )]
    SelfCall {
        /// Original destination.
        destination: SocketAddr,
    },
    /// No endpoint of the service can take it.
    #[error(
        "no healthy upstream: {destination}: service {service} has {candidates}; check its endpoints' readiness"
    )]
    NoHealthyEndpoint {
        /// Original destination.
        destination: SocketAddr,
        /// The service.
        service: ServiceKey,
        /// Why each of its endpoints cannot.
        candidates: PassedOver,
    },
    /// The service has no such port.
    #[error("no healthy upstream: {destination}: service {service} has no port {}, only {}", destination.port(), Ports(ports))]
    PortNotInService {
        /// Original destination.
        destination: SocketAddr,
        /// The service.
        service: ServiceKey,
        /// The ports it has.
        ports: Vec<u16>,
    },
    /// The destination is in another network, to which there is no way yet.
    #[error(
        "no valid routing destination: {destination} is in network {network:?}, the source in {own:?}; networks are not connected"
    )]
    OtherNetwork {
        /// Original destination.
        destination: SocketAddr,
        /// Its network.
        network: Arc<str>,
        /// The source's.
        own: Arc<str>,
    },
    /// It would leave in plaintext and may not.
    #[error("{0}")]
    Downgrade(Box<Downgrade>),
}

impl OutboundRefusal {
    /// The only mapping to log and metric flags.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::SelfCall { .. }
            | Self::NoHealthyEndpoint { .. }
            | Self::PortNotInService { .. }
            | Self::OtherNetwork { .. } => ResponseFlag::Connect,
            Self::Downgrade(downgrade) => downgrade.flag(),
        }
    }
}

/// Decides where an outgoing connection goes: service first, then workload, else the original destination.
pub fn next_hop(snapshot: &Snapshot, facts: &Outbound<'_>) -> Result<NextHop, OutboundRefusal> {
    let destination = canonical(facts.destination);
    let facts = &Outbound { destination, ..*facts };
    let ip = destination.ip();
    // Somebody dialled our listener itself, so the "original" destination is the listener: dialling it never ends.
    if is_reserved_port(destination.port()) && (is_local(ip) || facts.source.addresses.contains(&ip)) {
        return Err(OutboundRefusal::SelfCall { destination });
    }
    if let Some(service) = snapshot.service_by_vip(ip, &facts.source.namespace) {
        return to_service(snapshot, service, facts);
    }
    let Some(workload) = snapshot.workload_by_ip(ip) else {
        if let Some(downgrade) = unanswered(snapshot, destination) {
            return Ok(NextHop::Hold(Box::new(downgrade)));
        }
        return Ok(NextHop::Passthrough { to: destination, why: PassthroughReason::UnknownDestination });
    };
    if workload.network != facts.source.network {
        return Err(other_network(facts, workload));
    }
    let chosen = Chosen { workload: Arc::clone(workload), target: destination, choice: Choice::Requested };
    to_workload(snapshot, chosen, None)
}

fn to_service(
    snapshot: &Snapshot,
    service: &Arc<Service>,
    facts: &Outbound<'_>,
) -> Result<NextHop, OutboundRefusal> {
    let destination = facts.destination;
    let port = destination.port();
    if service.load_balancing.mode == Mode::Passthrough {
        let why = PassthroughReason::Service(Arc::clone(service));
        return Ok(NextHop::Passthrough { to: destination, why });
    }
    if !service.ports.contains_key(&port) && !service.endpoints.iter().any(|e| e.ports.contains_key(&port)) {
        return Err(OutboundRefusal::PortNotInService {
            destination,
            service: service.key.clone(),
            ports: service.ports.keys().copied().collect(),
        });
    }
    let chosen = endpoint::choose(snapshot, service, facts).map_err(|candidates| {
        let remote = || service.endpoints.iter().filter_map(|e| snapshot.workload(&e.workload));
        match remote().find(|w| w.network != facts.source.network) {
            Some(workload) if candidates.other_network != 0 => other_network(facts, workload),
            _ => OutboundRefusal::NoHealthyEndpoint { destination, service: service.key.clone(), candidates },
        }
    })?;
    if is_reserved_port(chosen.target.port()) && chosen.workload.uid == facts.source.uid {
        return Err(OutboundRefusal::SelfCall { destination });
    }
    to_workload(snapshot, chosen, Some(Arc::clone(service)))
}

fn to_workload(
    snapshot: &Snapshot,
    chosen: Chosen,
    service: Option<Arc<Service>>,
) -> Result<NextHop, OutboundRefusal> {
    let Chosen { workload, target: to, choice: why } = chosen;
    if workload.protocol == TunnelProtocol::Hbone {
        let peer = SocketAddr::new(to.ip(), HBONE_PORT);
        let expected = expected(&workload, service.as_deref());
        return Ok(NextHop::Hbone { peer, authority: to, expected, workload, service, why });
    }
    let downgrade = not_plain(snapshot, &workload, to).map(|why| {
        let (workload, service) = (Arc::clone(&workload), service.clone());
        Box::new(Downgrade::Workload { to, workload, service, why })
    });
    match downgrade {
        Some(downgrade) if snapshot.no_downgrade.mode == DowngradeMode::Enforce => {
            if downgrade.may_pass() {
                Ok(NextHop::Hold(downgrade))
            } else {
                Err(OutboundRefusal::Downgrade(downgrade))
            }
        }
        downgrade => Ok(NextHop::Tcp { to, workload, service, why, downgrade }),
    }
}

/// Identities that the destination may prove. Sorted and without repetition, because the pool's key holds them.
fn expected(workload: &Workload, service: Option<&Service>) -> Vec<SpiffeId> {
    let mut others: Vec<SpiffeId> = service.map_or(&[][..], |s| &s.subject_alt_names).to_vec();
    others.retain(|id| *id != workload.identity);
    others.sort();
    others.dedup();
    others.insert(0, workload.identity.clone());
    others
}

fn other_network(facts: &Outbound<'_>, workload: &Workload) -> OutboundRefusal {
    OutboundRefusal::OtherNetwork {
        destination: facts.destination,
        network: Arc::clone(&workload.network),
        own: Arc::clone(&facts.source.network),
    }
}

/// One line: how, to where, and why.
impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passthrough { to, why: PassthroughReason::UnknownDestination } => {
                write!(f, "passthrough {to}: unknown destination")
            }
            Self::Passthrough { to, why: PassthroughReason::Service(service) } => {
                write!(f, "passthrough {to}: service {}", service.key)
            }
            Self::Tcp { to, why, downgrade: None, .. } => write!(f, "tcp {to}: {why}"),
            Self::Tcp { to, why, downgrade: Some(downgrade), .. } => {
                write!(f, "tcp {to}: {why}, although it should be {}", downgrade.reason())
            }
            Self::Hold(downgrade) => write!(f, "hold: {downgrade}"),
            Self::Hbone { peer, authority, expected, why, .. } => {
                write!(f, "hbone {peer} for {authority} as ")?;
                for (i, id) in expected.iter().enumerate() {
                    let or = if i == 0 { "" } else { " or " };
                    write!(f, "{or}{id}")?;
                }
                write!(f, ": {why}")
            }
        }
    }
}

struct Ports<'a>(&'a [u16]);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none at all");
        }
        for (i, port) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{port}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
