//! What the agent tells: metrics, the access log, its own log. No decisions.
//!
//! A worker pays little: the counters of a pair of workloads are found once a connection in a table of its thread, a
//! line is formatted once at close and copied into a bounded queue, and one thread writes. Nothing here waits for a
//! scrape, a terminal or a disk; what cannot be kept is dropped and counted.
//!
//! It must not know what was decided or why a rule exists: callers hand in workloads, services and failures as data.
//! Start with [`Telemetry::open`] and [`Connection`], then [`Metrics`] and [`init`].

mod capture;
mod connection;
mod denials;
mod discovery;
mod dns;
mod encode;
mod events;
mod filter;
#[cfg(test)]
mod fixtures;
mod flag;
mod labels;
mod line;
mod logging;
mod metrics;
mod pairs;
mod reach;
mod requests;
mod spans;
mod table;
mod traffic;

pub use capture::CaptureMetrics;
pub use connection::{
    ByteCounts, Connection, DenialNote, Early, Failure, Flow, Reporter, Security, Target, Telemetry,
};
pub use denials::{Denial, Denials, Party, denial_id};
pub use discovery::{DiscoveryMetrics, Termination};
pub use dns::{DnsMetrics, DnsQuery};
pub use flag::ResponseFlag;
pub use logging::{FilterError, LogFormat, Logger, LoggingError, init};
pub use metrics::{Counted, Handshake, Metrics, PeerViolations, Side};
pub use reach::{HoldResult, ReachMetrics};
pub use requests::{Between, EndedRequest, GrpcMessages, GrpcStatus};
pub use spans::{Span, Spans};
