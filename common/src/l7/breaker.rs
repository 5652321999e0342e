//! Circuit breakers: how much is under way to one destination, counted over all threads of the process.
//!
//! **Source**: Istio `ConnectionPoolSettings`; Envoy, circuit breaking.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::retry;
use crate::model::l7::Cluster;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Connections, or tunnels.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests under way.
    Requests,
    /// Retries under way.
    Retries,
}

/// The counts of one destination. Kept over changes of configuration: limits are asked for each time.
#[derive(Debug, Default)]
pub struct Breaker {
    counts: [AtomicU32; 4],
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    kind: Kind,
}

impl Breaker {
    /// How many there are.
    pub fn count(&self, kind: Kind) -> u32 {
        self.of(kind).load(Relaxed)
    }

    /// One more, if `cluster` lets there be.
    ///
    /// **Errors**: none is left: 503 with the flag `UO`; for a retry the answer that it was to mend.
    pub fn take(self: &Arc<Self>, kind: Kind, cluster: &Cluster) -> Option<Permit> {
        let limit = self.limit(kind, cluster);
        let more = |count: u32| (count < limit).then(|| count.saturating_add(1));
        self.of(kind).fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Permit { breaker: Arc::clone(self), kind })
    }

    /// One more in any case: each endpoint may have one connection.
    pub fn take_anyway(self: &Arc<Self>, kind: Kind) -> Permit {
        self.of(kind).fetch_add(1, Relaxed);
        Permit { breaker: Arc::clone(self), kind }
    }

    /// How many there may be now.
    pub fn limit(&self, kind: Kind, cluster: &Cluster) -> u32 {
        match (kind, &cluster.retry_budget) {
            (Kind::Connections, _) => cluster.pool.max_connections,
            (Kind::Pending, _) => cluster.pool.max_pending,
            (Kind::Requests, _) => cluster.pool.max_requests,
            (Kind::Retries, None) => cluster.pool.max_retries,
            (Kind::Retries, Some(budget)) => {
                let under_way = self.count(Kind::Requests).saturating_add(self.count(Kind::Pending));
                retry::allowed(budget, under_way)
            }
        }
    }

    fn of(&self, kind: Kind) -> &AtomicU32 {
        let [connections, pending, requests, retries] = &self.counts;
        match kind {
            Kind::Connections => connections,
            Kind::Pending => pending,
            Kind::Requests => requests,
            Kind::Retries => retries,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breaker.of(self.kind).fetch_sub(1, Relaxed);
    }
}
