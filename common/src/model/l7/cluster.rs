//! How a destination is reached: what DestinationRules say of a service, of one of its ports, of a subset.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::types::{ServiceKey, WorkloadUid};

/// One port of a service, or of a subset of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// Name of the subset; none: all endpoints.
    pub subset: Option<Arc<str>>,
}

/// `outbound|<port>|<subset>|<host>`, as logs and dumps name it.
impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subset = self.subset.as_deref().unwrap_or("");
        write!(f, "outbound|{}|{subset}|{}", self.port, self.service.hostname)
    }
}

/// How a destination is reached. Source: Istio DestinationRule reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its name.
    pub key: ClusterKey,
    /// Which endpoints of the service are meant; none: all.
    pub subset: Option<Subset>,
    /// What its endpoints speak.
    pub protocol: Protocol,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// How much may go there at once.
    pub pool: ConnectionPool,
    /// When an endpoint is left alone for a while; none: never.
    pub outliers: Option<Outliers>,
    /// Retries that may be under way at once.
    pub retry_budget: Option<RetryBudget>,
    /// The object that says so, `<namespace>/<name>`; none: defaults.
    pub rule: Option<Arc<str>>,
    /// Something in the rule cannot be done here: nothing goes there, and this is why.
    pub refused: Option<Arc<str>>,
}

/// Endpoints whose labels a subset names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// Those that have them.
    pub members: Arc<HashSet<WorkloadUid>>,
}

/// What is spoken on a port. Source: appProtocol, then the port's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, or HTTP/2 if clients begin so.
    Http1,
    /// HTTP/2 without TLS: gRPC, h2c.
    Http2,
    /// Any bytes.
    Tcp,
    /// TLS that is not ended here.
    Tls,
    /// Not said: what the first bytes look like.
    #[default]
    Unknown,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The one with fewer requests under way, of two that are drawn.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// None: the address that was asked for.
    Passthrough,
}

/// How much may go to a destination at once; `u32::MAX` is no limit. Source: `ConnectionPoolSettings`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPool {
    /// Connections.
    pub max_connections: u32,
    /// TCP, TLS and CONNECT together.
    pub connect_timeout: Duration,
    /// TCP keepalive toward endpoints that are reached without a tunnel.
    pub keepalive: Option<Keepalive>,
    /// After so long a connection takes nothing more.
    pub max_connection_duration: Option<Duration>,
    /// A TCP connection on which nothing moves is ended; none: never.
    pub tcp_idle: Option<Duration>,
    /// Requests that wait for a connection.
    pub max_pending: u32,
    /// Requests under way.
    pub max_requests: u32,
    /// Requests on one connection; 0: no limit.
    pub max_requests_per_connection: u32,
    /// Retries under way.
    pub max_retries: u32,
    /// An unused HTTP connection is kept so long; none: as long as its server keeps it.
    pub http_idle: Option<Duration>,
    /// Whether HTTP/1.1 becomes HTTP/2.
    pub upgrade: Upgrade,
    /// Streams on one HTTP/2 connection.
    pub max_streams: u32,
    /// HTTP/2 PINGs: between two, and for the answer.
    pub ping: Option<(Duration, Duration)>,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            max_connections: u32::MAX,
            connect_timeout: Duration::from_secs(10),
            keepalive: None,
            max_connection_duration: None,
            tcp_idle: Some(Duration::from_secs(3600)),
            max_pending: u32::MAX,
            max_requests: u32::MAX,
            max_requests_per_connection: 0,
            max_retries: u32::MAX,
            http_idle: Some(Duration::from_secs(3600)),
            upgrade: Upgrade::ByPort,
            max_streams: u32::MAX,
            ping: None,
        }
    }
}

/// TCP keepalive; what is not said is the system's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of TcpKeepalive")]
pub struct Keepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

/// Which HTTP endpoints are spoken to with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// As the port says; where it says nothing, as the client does.
    #[default]
    ByPort,
    /// Always HTTP/2.
    Always,
    /// As the client does.
    AsClient,
}

/// When an endpoint is left alone for a while. Source: `OutlierDetection`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// Answers of 5xx in a row; 0: do not count.
    pub consecutive_5xx: u32,
    /// Answers of 502, 503 or 504 in a row; 0: do not count.
    pub consecutive_gateway: u32,
    /// Failures of our own in a row, counted alone: `splitExternalLocalOriginErrors`; none: they count as answers.
    pub consecutive_local: Option<u32>,
    /// How often it is looked at.
    pub interval: Duration,
    /// Time for the first ejection; further ones take as many times longer.
    pub base_ejection: Duration,
    /// Part of the endpoints that may be left alone; none: 10, and one of them always.
    pub max_ejection_percent: Option<u32>,
    /// With fewer healthy, all are used.
    pub min_health_percent: u32,
    /// Part of failed answers within an interval that ejects: annotation `policy.culvert.dev/failure-percentage`.
    pub failure_percent: Option<u32>,
}

/// Retries that may be under way at once, against requests. Source: `RetryBudget`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// In percent of the requests under way.
    pub percent: f64,
    /// So many always.
    pub min_concurrency: u32,
}
