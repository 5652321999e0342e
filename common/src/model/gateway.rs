//! What stands between a source and a workload: waypoints, gateways of networks, and the application's own proxy.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::types::ServiceKey;

/// Where a waypoint, or the gateway of another network, is found. Source: `istio.workload.GatewayAddress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// By what it is found.
    pub destination: GatewayDestination,
    /// Its HBONE port.
    pub port: u16,
}

/// Name or address of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayDestination {
    /// A virtual address of a service, or an address of a workload.
    Address {
        /// Network in which the address is meant.
        network: Arc<str>,
        /// The address.
        ip: IpAddr,
    },
    /// A service's host name, or a workload's.
    Hostname(ServiceKey),
}

/// One of several waypoints that share a service's connections. Source: `istio.workload.WeightedWaypoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub gateway: GatewayAddress,
    /// Its part of new connections, against those of the others; 0 takes none.
    pub weight: u32,
}

/// How a workload's application wants what comes out of a tunnel. Source: `istio.workload.ApplicationTunnel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationTunnel {
    /// What is said before the first byte.
    pub protocol: TunnelPreamble,
    /// Port of the application in place of the one that was asked for; 0 leaves that.
    pub port: u16,
}

/// What an application is told before a connection's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelPreamble {
    /// Nothing.
    None,
    /// Source, destination and the source's identity, as PROXY protocol version 2.
    Proxy,
}

/// `<network>/<address>` or `<namespace>/<host name>`, as configuration dumps write it.
impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { network, ip } => write!(f, "{network}/{ip}"),
            Self::Hostname(key) => key.fmt(f),
        }
    }
}
