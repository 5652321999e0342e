//! Where a connection goes, with the reasons as data: pure functions of one snapshot and of what was seen.
//!
//! The node agent acts on these decisions and `culvert why` prints them, so a reason is a value here and words only in
//! `Display`. Randomness is an argument, time plays no part, nothing waits: what the snapshot does not know is unknown.
//! Must not know sockets, TLS or metrics. Other networks are refused, never guessed at.
//!
//! Start with [`next_hop`] (a captured pod connects out), then [`inbound_hbone`] and [`inbound_plaintext`] (somebody
//! connects to it). How a service's endpoint is chosen is in `endpoint.rs`, the waypoint before it in
//! `waypoint.rs`, what is never sent in plaintext in `downgrade.rs`.

mod downgrade;
mod endpoint;
pub mod explain;
mod inbound;
mod next_hop;
mod waypoint;
#[cfg(test)]
mod world;

use std::net::{IpAddr, SocketAddr};

pub use downgrade::{Downgrade, NotPlain, unanswered};
pub use endpoint::{Balance, Choice, PassedOver};
pub use inbound::{InboundRefusal, InboundTarget, inbound_hbone, inbound_plaintext, inbound_service_guess};
pub use next_hop::{NextHop, Outbound, OutboundRefusal, PassthroughReason, Unresolved, next_hop, resolved};
pub use waypoint::Waypoint;

/// Port on which a captured pod accepts HBONE.
pub const HBONE_PORT: u16 = 15008;
/// Port to which a captured pod's outgoing connections are redirected.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port to which plain connections to a captured pod are redirected.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;

/// Whether the agent itself listens on this port in every pod, so that nothing may be sent there on a peer's word.
pub fn is_reserved_port(port: u16) -> bool {
    matches!(port, HBONE_PORT | OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT)
}

/// IPv4-mapped IPv6 addresses as IPv4: a dual-stack socket reports the former, snapshots hold the latter.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Addresses that mean "this host" to whoever dials them, so that they name no peer.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}
