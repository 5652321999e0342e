//! How outgoing connections found their way: held, sent elsewhere, or out in plaintext although they should not be.

use prometheus::{IntCounterVec, Registry};

use super::metrics::groups::counters;

/// Families of the side that connects out.
pub struct ReachMetrics {
    held: IntCounterVec,
    failovers: IntCounterVec,
    downgrades: IntCounterVec,
}

/// How the wait of a held connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldResult {
    /// It got where it should.
    Passed,
    /// It was refused when the time was over, or failed otherwise.
    Refused,
    /// The app left, or the agent drained.
    Gone,
    /// Too many were held already.
    Full,
}

impl HoldResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::Gone => "gone",
            Self::Full => "full",
        }
    }
}

impl ReachMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let r = registry;
        Self {
            held: counters(
                r,
                "culvert_held_connections_total",
                "Outgoing connections that waited for their destination to be captured or known.",
                &["reason", "result"],
            ),
            failovers: counters(
                r,
                "culvert_failovers_total",
                "Tries that failed at one endpoint and went on at another.",
                &["reason"],
            ),
            downgrades: counters(
                r,
                "culvert_downgrades_total",
                "Outgoing connections that left in plaintext although they should not, by why not.",
                &["reason"],
            ),
        }
    }

    /// Counts a held connection when its wait is over. `reason` is one of a bounded set.
    pub fn held(&self, reason: &'static str, result: HoldResult) {
        self.held.with_label_values(&[reason, result.as_str()]).inc();
    }

    /// Counts a try that is followed by one at another endpoint. `reason` is one of a bounded set.
    pub fn failover(&self, reason: &'static str) {
        self.failovers.with_label_values(&[reason]).inc();
    }

    /// Counts a connection that is let out in plaintext. `reason` is one of a bounded set.
    pub fn downgrade(&self, reason: &'static str) {
        self.downgrades.with_label_values(&[reason]).inc();
    }
}
