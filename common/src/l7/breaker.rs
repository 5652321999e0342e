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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::fixtures::cluster;
    use crate::model::l7::{ConnectionPool, RetryBudget};

    #[test]
    fn each_kind_has_its_limit_and_a_dropped_permit_is_free_again() {
        let pool = ConnectionPool {
            max_connections: 1,
            max_pending: 2,
            max_requests: 3,
            max_retries: 0,
            ..ConnectionPool::default()
        };
        let cluster = Cluster { pool, ..cluster() };
        let breaker = Arc::new(Breaker::default());
        for (kind, limit) in
            [(Kind::Connections, 1), (Kind::Pending, 2), (Kind::Requests, 3), (Kind::Retries, 0)]
        {
            let mut permits: Vec<Permit> = (0..limit).filter_map(|_| breaker.take(kind, &cluster)).collect();
            assert_eq!((permits.len(), breaker.count(kind)), (limit, u32::try_from(limit).unwrap()));
            assert!(breaker.take(kind, &cluster).is_none(), "{kind:?}");
            if permits.pop().is_some() {
                assert!(breaker.take(kind, &cluster).is_some(), "{kind:?}: one is free");
            }
        }
        assert_eq!(breaker.count(Kind::Requests), 0);
        let anyway = [breaker.take_anyway(Kind::Connections), breaker.take_anyway(Kind::Connections)];
        assert_eq!(breaker.count(Kind::Connections), 2);
        drop(anyway);
        assert!(breaker.take(Kind::Connections, &cluster).is_some());
    }

    #[test]
    fn a_budget_takes_the_place_of_the_limit_of_retries() {
        let budget = RetryBudget { percent: 50.0, min_concurrency: 1 };
        let cluster = Cluster { retry_budget: Some(budget), ..cluster() };
        let breaker = Arc::new(Breaker::default());
        let first = breaker.take(Kind::Retries, &cluster);
        assert!(first.is_some() && breaker.take(Kind::Retries, &cluster).is_none());
        let _under_way: Vec<Permit> = (0..3)
            .flat_map(|_| [breaker.take(Kind::Requests, &cluster), breaker.take(Kind::Pending, &cluster)])
            .flatten()
            .collect();
        assert_eq!(breaker.limit(Kind::Retries, &cluster), 3);
        assert!(breaker.take(Kind::Retries, &cluster).is_some());
    }

    #[test]
    fn threads_together_take_no_more_than_there_are() {
        let pool = ConnectionPool { max_requests: 5, ..ConnectionPool::default() };
        let (breaker, cluster) = (Arc::new(Breaker::default()), Cluster { pool, ..cluster() });
        let taken: usize = std::thread::scope(|scope| {
            let take = || {
                let permits =
                    (0..100).filter_map(|_| breaker.take(Kind::Requests, &cluster)).collect::<Vec<_>>();
                let count = permits.len();
                std::mem::forget(permits);
                count
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((taken, breaker.count(Kind::Requests)), (5, 5));
    }
}
