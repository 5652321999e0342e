//! What a connection to a captured pod may reach: that pod's own address and a port that is not the agent's.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::endpoint::target_port;
use super::{canonical, is_local, is_reserved_port};
use crate::model::{Service, Workload};
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
            if asked != destination {
                return Err(InboundRefusal::IpMismatch { authority: asked, destination });
            }
            (addr.port(), None)
        }
        Authority::Host(host, port) => {
            let service = own_service(snapshot, pod, host)?;
            let refused = || InboundRefusal::PortNotInService { service: service.key.clone(), port: *port };
            (target_of(service, pod, *port).ok_or_else(refused)?, Some(Arc::clone(service)))
        }
    };
    let to = reachable(SocketAddr::new(destination, port))?;
    Ok(InboundTarget { to, service })
}

/// What a plain connection that was redirected reaches: its original destination.
pub fn inbound_plaintext(
    snapshot: &Snapshot,
    pod: &Workload,
    destination: SocketAddr,
) -> Result<InboundTarget, InboundRefusal> {
    let to = reachable(canonical(destination))?;
    Ok(InboundTarget { to, service: inbound_service_guess(snapshot, pod, None, to.port()) })
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
        ports.any(|p| endpoints().any(|e| target_port(s, e, *p) == Some(port)))
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

/// The service of this name that the pod is an endpoint of.
fn own_service<'a>(
    snapshot: &'a Snapshot,
    pod: &Workload,
    host: &Arc<str>,
) -> Result<&'a Arc<Service>, InboundRefusal> {
    let named = || snapshot.services_of(&pod.uid).iter().filter(|s| s.key.hostname == *host);
    let found = named()
        .find(|s| s.key.namespace == pod.namespace)
        .or_else(|| named().find(|s| s.canonical))
        .or_else(|| named().next());
    found.ok_or_else(|| match snapshot.service_by_host(host, &pod.namespace) {
        Some(other) => InboundRefusal::NotAnEndpoint { service: other.key.clone() },
        None => InboundRefusal::UnknownService { host: Arc::clone(host) },
    })
}

fn target_of(service: &Service, pod: &Workload, port: u16) -> Option<u16> {
    service.endpoints.iter().filter(|e| e.workload == pod.uid).find_map(|e| target_port(service, e, port))
}

#[cfg(test)]
mod tests;
