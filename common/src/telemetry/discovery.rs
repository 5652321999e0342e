//! What is told of the discovery server, and of the state that came from it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Registry};

use super::encode::{Kind, Scrape};
use super::metrics::groups::{counter, counters, gauges};

const NO_LABELS: [&str; 0] = [];

/// Why a stream, or an attempt at one, ended. Names are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// There was no connection.
    ConnectionError,
    /// The server ended it with an error that is worth waiting for.
    Error,
    /// The connection, or the server behind it, went away as servers do.
    Reconnect,
    /// The server ended it in order.
    Complete,
}

impl Termination {
    /// Value of the label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

/// Families of the discovery client.
pub struct DiscoveryMetrics {
    terminations: IntCounterVec,
    messages: IntCounterVec,
    bytes: IntCounterVec,
    rejected: IntCounter,
    /// Without labels; vectors only so that nothing is said where there is no discovery server.
    connected: IntGaugeVec,
    resources: IntGaugeVec,
    current: Mutex<Current>,
}

/// Since when the state may differ from what the server has.
#[derive(Clone, Copy, Default)]
enum Current {
    /// There is no server.
    #[default]
    NoServer,
    /// It is what the server has.
    Yes,
    /// It was, until then.
    Until(Instant),
}

impl DiscoveryMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let rejected = "Resources of the discovery server that could not be used.";
        Self {
            terminations: counters(
                r,
                "istio_xds_connection_terminations_total",
                "Connections to the discovery server that ended, by reason.",
                &["reason"],
            ),
            messages: counters(
                r,
                "istio_xds_message_total",
                "Messages of the discovery server, by type.",
                &["url"],
            ),
            bytes: counters(
                r,
                "istio_xds_message_bytes_total",
                "Bytes of the discovery server's messages, by type.",
                &["url"],
            ),
            rejected: counter(r, "culvert_xds_rejected_resources_total", rejected),
            connected: gauges(
                r,
                "culvert_xds_connected",
                "1 while the discovery server answers on a stream.",
                &[],
            ),
            resources: gauges(
                r,
                "culvert_xds_resources",
                "Resources that the discovery server told and that are in force, by kind.",
                &["kind"],
            ),
            current: Mutex::default(),
        }
    }

    /// A stream, or an attempt at one, ended.
    pub fn terminated(&self, reason: Termination) {
        self.terminations.with_label_values(&[reason.as_str()]).inc();
    }

    /// A message came. `url` is one that was asked for, or `other`.
    pub fn message(&self, url: &'static str, bytes: usize, rejected: usize) {
        self.messages.with_label_values(&[url]).inc();
        self.bytes.with_label_values(&[url]).inc_by(bytes as u64);
        self.rejected.inc_by(rejected as u64);
    }

    /// How many of each kind are in force.
    pub fn resources(&self, counts: [(&'static str, usize); 3]) {
        for (kind, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.resources.with_label_values(&[kind]).set(count);
        }
    }

    /// The state is what the server has, from now on.
    pub fn connected(&self) {
        self.connected.with_label_values(&NO_LABELS).set(1);
        *self.lock() = Current::Yes;
    }

    /// The server is away; `since` is when the state was what it had, if that is not known already.
    pub fn disconnected(&self, since: Instant) {
        self.connected.with_label_values(&NO_LABELS).set(0);
        let mut current = self.lock();
        if !matches!(*current, Current::Until(_)) {
            *current = Current::Until(since);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn encode(&self, scrape: &mut Scrape, now: Instant) {
        let seconds = match *self.lock() {
            Current::NoServer => return,
            Current::Yes => 0,
            Current::Until(then) => now.saturating_duration_since(then).as_secs(),
        };
        const NAME: &str = "culvert_xds_state_age_seconds";
        let help = "Seconds since the state was what the discovery server has; 0 while it answers.";
        scrape.family(NAME, Kind::Gauge, help);
        scrape.sample(NAME, &[], seconds);
    }
}
