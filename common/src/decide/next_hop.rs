//! Where a captured pod's outgoing connection goes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::downgrade::{Downgrade, incomplete, not_plain};
use super::endpoint::{self, Chosen, expected};
use super::waypoint::{self, Before, Waypoint};
use super::{Choice, HBONE_PORT, PassedOver, canonical, is_local, is_reserved_port};
use crate::model::{DowngradeMode, GatewayDestination, Mode, Service, TunnelProtocol, Workload};
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
    /// A captured workload, or a waypoint: a stream in a tunnel to it.
    Hbone {
        /// What to dial: the workload's address and [`HBONE_PORT`], or the waypoint's address and port.
        peer: SocketAddr,
        /// What to ask for in CONNECT: the same address and the workload's own port; of a waypoint the original
        /// destination.
        authority: SocketAddr,
        /// The peer must prove one of these: the workload's identity first, then the further ones of the service that it
        /// was chosen from, sorted.
        expected: Vec<SpiffeId>,
        /// Who ends the tunnel: the destination, or the waypoint.
        workload: Arc<Workload>,
        /// The service that was addressed, if one was.
        service: Option<Arc<Service>>,
        /// Why this workload.
        why: Choice,
        /// The waypoint, if it goes through one.
        waypoint: Option<Box<Waypoint>>,
    },
    /// A workload that is found by its name: ask for its addresses, and go on with [`resolved`].
    Resolve(Box<Unresolved>),
}

/// A destination of which only the name is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The destination; its `hostname` is to be asked for.
    pub workload: Arc<Workload>,
    /// Its port.
    pub port: u16,
    /// The service that was addressed.
    pub service: Arc<Service>,
    /// Why this workload.
    pub why: Choice,
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
    /// It is to go through a waypoint of which nothing is known.
    #[error(
        "unknown waypoint: {destination} is to go through {waypoint}, and no such service or workload is known; does its Gateway exist, and is it programmed?"
    )]
    UnknownWaypoint {
        /// Original destination.
        destination: SocketAddr,
        /// The waypoint.
        waypoint: GatewayDestination,
    },
    /// It is to go through a waypoint that cannot take it.
    #[error(
        "no healthy upstream: {destination} is to go through waypoint {waypoint}, which has {candidates}; check the readiness of its pods"
    )]
    NoHealthyWaypoint {
        /// Original destination.
        destination: SocketAddr,
        /// The waypoint.
        waypoint: GatewayDestination,
        /// Why each of its endpoints cannot.
        candidates: PassedOver,
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
            | Self::OtherNetwork { .. }
            | Self::UnknownWaypoint { .. }
            | Self::NoHealthyWaypoint { .. } => ResponseFlag::Connect,
            Self::Downgrade(downgrade) => downgrade.flag(),
        }
    }
}

/// Decides where an outgoing connection goes: service first, then workload, else the original destination; where the
/// one that is addressed has a waypoint, to that.
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
        if let Some(downgrade) = incomplete(snapshot, destination) {
            return Ok(NextHop::Hold(Box::new(downgrade)));
        }
        return Ok(NextHop::Passthrough { to: destination, why: PassthroughReason::UnknownDestination });
    };
    if workload.network != facts.source.network {
        return Err(other_network(facts, workload));
    }
    if let Some(hop) = waypoint::hop(snapshot, facts, Before::Workload(workload)) {
        return hop;
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
    if let Some(hop) = waypoint::hop(snapshot, facts, Before::Service(service)) {
        return hop;
    }
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
    if chosen.target.ip().is_unspecified() {
        let Chosen { workload, target, choice: why } = chosen;
        let (port, service) = (target.port(), Arc::clone(service));
        return Ok(NextHop::Resolve(Box::new(Unresolved { workload, port, service, why })));
    }
    to_workload(snapshot, chosen, Some(Arc::clone(service)))
}

/// Goes on after [`NextHop::Resolve`], with an address that the name has.
pub fn resolved(
    snapshot: &Snapshot,
    source: &Workload,
    of: &Unresolved,
    ip: IpAddr,
) -> Result<NextHop, OutboundRefusal> {
    let target = canonical(SocketAddr::new(ip, of.port));
    let is_own = is_local(target.ip()) || source.addresses.contains(&target.ip());
    if is_reserved_port(of.port) && is_own {
        return Err(OutboundRefusal::SelfCall { destination: target });
    }
    let chosen = Chosen { workload: Arc::clone(&of.workload), target, choice: of.why };
    to_workload(snapshot, chosen, Some(Arc::clone(&of.service)))
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
        return Ok(NextHop::Hbone { peer, authority: to, expected, workload, service, why, waypoint: None });
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

pub(super) fn other_network(facts: &Outbound<'_>, workload: &Workload) -> OutboundRefusal {
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
            Self::Resolve(of) => {
                write!(f, "resolve {} for port {}: {}", of.workload.hostname, of.port, of.why)
            }
            Self::Hbone { peer, authority, expected, why, waypoint, .. } => {
                write!(f, "hbone {peer} for {authority} as ")?;
                for (i, id) in expected.iter().enumerate() {
                    let or = if i == 0 { "" } else { " or " };
                    write!(f, "{or}{id}")?;
                }
                if let Some(waypoint) = waypoint {
                    write!(f, " through waypoint {}", waypoint.gateway.destination)?;
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
