//! What a connection to a captured pod may reach: that pod's own address and a port that is not the agent's.
//!
//! A pod that is a waypoint, or has a tunnel of its application's own, is told of other addresses; what is dialled is its
//! own all the same. **Source**: l4.md §3.7, §3.8.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::waypoint::{self, Found};
use super::{canonical, is_local, is_reserved_port};
use crate::model::{GatewayAddress, Service, TunnelPreamble, Workload};
use crate::state::Snapshot;
use crate::telemetry::ResponseFlag;
use crate::types::{Authority, ServiceKey};

/// What to dial for an incoming connection, once policy allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundTarget {
    /// The pod's address and the application's port.
    pub to: SocketAddr,
    /// The service that was asked for; with an address as authority, see [`inbound_service_guess`].
    pub service: Option<Arc<Service>>,
    /// The address that was asked for, where the application is to be told of it before the first byte.
    pub told: Option<SocketAddr>,
}

/// Why an incoming connection is refused before policy is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboundRefusal {
    /// The authority names another address than the one that was dialled.
    #[error(
        "ip mismatch: CONNECT asks for {authority} on a connection to {destination}; is the client's view of the pod stale?"
    )]
    IpMismatch {
        /// Address of the authority.
        authority: IpAddr,
        /// Address that the tunnel was dialled on.
        destination: IpAddr,
    },
    /// Loopback or no address: what listens there is not meant for others.
    #[error("{destination} is no address of the pod's for others; dial the pod's own address")]
    LocalAddress {
        /// Address that was dialled.
        destination: IpAddr,
    },
    /// No service has this host name.
    #[error("no service has the host name {host}; is the client's view of it stale?")]
    UnknownService {
        /// Host name of the authority.
        host: Arc<str>,
    },
    /// The service is known, but this pod is none of its endpoints.
    #[error("the pod is no endpoint of {service}; check the selector of the service")]
    NotAnEndpoint {
        /// The service asked for.
        service: ServiceKey,
    },
    /// The service has no such port, or this pod none behind it.
    #[error("service {service} leads port {port} to no port of this pod; check the service's ports")]
    PortNotInService {
        /// The service asked for.
        service: ServiceKey,
        /// The service port asked for.
        port: u16,
    },
    /// The application is to be told the address of a service that has none.
    #[error(
        "service {service} has no address that the application could be told; give it one, or ask for an address"
    )]
    NoAddress {
        /// The service asked for.
        service: ServiceKey,
    },
    /// The target is a port of the agent itself.
    #[error("port {port} is the agent's own; call the application's port")]
    ReservedPort {
        /// The target port.
        port: u16,
    },
}

impl InboundRefusal {
    /// Status of the answer to a CONNECT.
    pub fn status(&self) -> u16 {
        match self {
            Self::IpMismatch { .. } | Self::LocalAddress { .. } => 400,
            Self::UnknownService { .. }
            | Self::NotAnEndpoint { .. }
            | Self::PortNotInService { .. }
            | Self::NoAddress { .. }
            | Self::ReservedPort { .. } => 503,
        }
    }

    /// The only mapping to log and metric flags.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::IpMismatch { .. }
            | Self::LocalAddress { .. }
            | Self::UnknownService { .. }
            | Self::NotAnEndpoint { .. }
            | Self::PortNotInService { .. }
            | Self::NoAddress { .. }
            | Self::ReservedPort { .. } => ResponseFlag::Connect,
        }
    }
}

/// What a CONNECT with `authority` reaches, on a tunnel that was dialled at `connection_destination`.
///
/// The address to dial is always the tunnel's own destination, so that no authority makes the agent a relay.
pub fn inbound_hbone(
    snapshot: &Snapshot,
    pod: &Workload,
    connection_destination: IpAddr,
    authority: &Authority,
) -> Result<InboundTarget, InboundRefusal> {
    let destination = connection_destination.to_canonical();
    let (port, service) = match authority {
        Authority::Addr(addr) => {
            let asked = addr.ip().to_canonical();
            let is_meant = asked == destination
                || pod.application_tunnel.is_some()
                || is_waypoint_of(snapshot, pod, (destination, asked));
            if !is_meant {
                return Err(InboundRefusal::IpMismatch { authority: asked, destination });
            }
            (addr.port(), None)
        }
        Authority::Host(host, port) => {
            let service = asked_service(snapshot, (pod, destination), host)?;
            let refused = || InboundRefusal::PortNotInService { service: service.key.clone(), port: *port };
            (target_of(service, pod, *port).ok_or_else(refused)?, Some(Arc::clone(service)))
        }
    };
    let to = reachable(SocketAddr::new(destination, port))?;
    let Some(tunnel) = pod.application_tunnel else { return Ok(InboundTarget { to, service, told: None }) };
    // The agent's own ports are out of reach before and after.
    let port = if tunnel.port == 0 { to.port() } else { tunnel.port };
    let to = reachable(SocketAddr::new(to.ip(), port))?;
    let told = match tunnel.protocol {
        TunnelPreamble::None => None,
        TunnelPreamble::Proxy => Some(told(authority, service.as_deref())?),
    };
    Ok(InboundTarget { to, service, told })
}

/// The address that was asked for; of a service IPv4 comes first.
fn told(authority: &Authority, service: Option<&Service>) -> Result<SocketAddr, InboundRefusal> {
    match (authority, service) {
        (Authority::Addr(addr), _) => Ok(canonical(*addr)),
        (Authority::Host(_, port), Some(service)) => {
            let vip = service.vips.iter().find(|ip| ip.is_ipv4()).or(service.vips.first());
            let refused = || InboundRefusal::NoAddress { service: service.key.clone() };
            vip.map(|ip| SocketAddr::new(*ip, *port)).ok_or_else(refused)
        }
        (Authority::Host(host, _), None) => Err(InboundRefusal::UnknownService { host: Arc::clone(host) }),
    }
}

/// Whether what owns the address that was asked for has this pod as its waypoint, or the pod's address.
fn is_waypoint_of(snapshot: &Snapshot, pod: &Workload, (destination, asked): (IpAddr, IpAddr)) -> bool {
    let workload = snapshot.workload_by_ip(asked).and_then(|w| w.waypoint.as_deref());
    let services = snapshot.services_at(asked).iter().chain(snapshot.services_around(asked));
    workload
        .into_iter()
        .chain(services.flat_map(|service| waypoint::all_of(service)))
        .any(|gateway| is_gateway(snapshot, pod, destination, gateway))
}

/// Whether a gateway's name leads to this pod, or to whoever has the address that was dialled.
fn is_gateway(snapshot: &Snapshot, pod: &Workload, dialled: IpAddr, gateway: &GatewayAddress) -> bool {
    match waypoint::find(snapshot, &gateway.destination) {
        Some(Found::Workload(workload)) => workload.uid == pod.uid || workload.addresses.contains(&dialled),
        Some(found @ Found::Service(_)) => found.has(pod),
        None => false,
    }
}

/// What a plain connection that was redirected reaches: its original destination.
pub fn inbound_plaintext(
    snapshot: &Snapshot,
    pod: &Workload,
    destination: SocketAddr,
) -> Result<InboundTarget, InboundRefusal> {
    let to = reachable(canonical(destination))?;
    Ok(InboundTarget { to, service: inbound_service_guess(snapshot, pod, None, to.port()), told: None })
}

/// The service that a connection to `port` of `pod` was probably meant for; telemetry only.
///
/// `forwarded_host` counts if it is one of the pod's services, because a peer may write anything there; else the first
/// of its services that leads to this port.
pub fn inbound_service_guess(
    snapshot: &Snapshot,
    pod: &Workload,
    forwarded_host: Option<&str>,
    port: u16,
) -> Option<Arc<Service>> {
    let services = snapshot.services_of(&pod.uid);
    let named = services
        .iter()
        .find(|s| forwarded_host.is_some_and(|host| s.key.hostname.eq_ignore_ascii_case(host)));
    let leads_here = |s: &&Arc<Service>| {
        let endpoints = || s.endpoints.iter().filter(|e| e.workload == pod.uid);
        let mut ports = s.ports.keys().chain(endpoints().flat_map(|e| e.ports.keys()));
        ports.any(|p| endpoints().any(|e| s.target_port(e, *p) == Some(port)))
    };
    named.or_else(|| services.iter().find(leads_here)).cloned()
}

fn reachable(to: SocketAddr) -> Result<SocketAddr, InboundRefusal> {
    if is_local(to.ip()) {
        return Err(InboundRefusal::LocalAddress { destination: to.ip() });
    }
    if is_reserved_port(to.port()) {
        return Err(InboundRefusal::ReservedPort { port: to.port() });
    }
    Ok(to)
}

/// The service of this name that the pod is an endpoint of, or stands before.
fn asked_service<'a>(
    snapshot: &'a Snapshot,
    (pod, destination): (&Workload, IpAddr),
    host: &Arc<str>,
) -> Result<&'a Arc<Service>, InboundRefusal> {
    let named = || snapshot.services_of(&pod.uid).iter().filter(|s| s.key.hostname == *host);
    let found = named()
        .find(|s| s.key.namespace == pod.namespace)
        .or_else(|| named().find(|s| s.canonical))
        .or_else(|| named().next());
    if let Some(own) = found {
        return Ok(own);
    }
    match snapshot.service_by_host(host, &pod.namespace) {
        Some(other)
            if pod.application_tunnel.is_some()
                || waypoint::all_of(other).any(|gateway| is_gateway(snapshot, pod, destination, gateway)) =>
        {
            Ok(other)
        }
        Some(other) => Err(InboundRefusal::NotAnEndpoint { service: other.key.clone() }),
        None => Err(InboundRefusal::UnknownService { host: Arc::clone(host) }),
    }
}

/// Port of the pod behind a service's port; where it stands before the service, the service's own target.
fn target_of(service: &Service, pod: &Workload, port: u16) -> Option<u16> {
    let mut own = service.endpoints.iter().filter(|e| e.workload == pod.uid).peekable();
    if own.peek().is_none() {
        return service.ports.get(&port).map(|p| p.target).filter(|target| *target != 0);
    }
    own.find_map(|e| service.target_port(e, port))
}

#[cfg(test)]
mod tests;
