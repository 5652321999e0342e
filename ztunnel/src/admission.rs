//! Whether a pod's new connection is taken: how many it may have open, how many new ones a second, and how many tunnels
//! to it may be unfinished. One noisy pod, or one peer, uses up its own share and nobody else's.
//!
//! The newest is refused, not the oldest dropped: each unfinished handshake has a limit in time, and whoever came in
//! good faith is not pushed out by a flood.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use culvert_common::hbone::budget::Budget;
use culvert_common::telemetry::ResponseFlag;

/// What one pod may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodLimits {
    /// Bytes on their way.
    pub(crate) memory: u64,
    /// Open connections and streams.
    pub(crate) connections: usize,
    /// New connections a second, and at once after a pause; none: as many as come.
    pub(crate) rate: Option<u32>,
    /// Unfinished tunnels to it.
    pub(crate) handshakes: usize,
    /// Of them, from one address.
    pub(crate) handshakes_per_source: usize,
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the pod has {0} connections open, as many as one may; see --pod-connections")]
    Connections(usize),
    #[error("the pod opens more than {0} connections a second; see --pod-connection-rate")]
    Rate(u32),
    #[error("{0} tunnels to the pod have not finished their handshake; see --pod-handshakes")]
    Handshakes(usize),
    #[error("{0} tunnels from this address have not finished their handshake; see --source-handshakes")]
    SourceHandshakes(usize),
    #[error("the process's memory budget of {0} bytes is used up; see --memory-budget")]
    Memory(u64),
    #[error("the pod's memory budget of {0} bytes is used up; see --pod-memory-budget")]
    PodMemory(u64),
}

impl Refused {
    /// What the log and the metrics of traffic call it.
    pub(crate) fn flag(self) -> ResponseFlag {
        match self {
            Self::Memory(_) | Self::PodMemory(_) => ResponseFlag::Budget,
            Self::Connections(_) | Self::Rate(_) | Self::Handshakes(_) | Self::SourceHandshakes(_) => {
                ResponseFlag::Limit
            }
        }
    }

    /// Label of `culvert_budget_refusals_total`.
    pub(crate) fn limit(self) -> &'static str {
        match self {
            Self::Connections(_) => "pod-connections",
            Self::Rate(_) => "pod-rate",
            Self::Handshakes(_) => "pod-handshakes",
            Self::SourceHandshakes(_) => "source-handshakes",
            Self::Memory(_) => "memory",
            Self::PodMemory(_) => "pod-memory",
        }
    }
}

/// What one pod uses of its limits; shared by the workers that serve it.
pub(crate) struct Admission {
    limits: PodLimits,
    memory: Arc<Budget>,
    /// Limit of the process's bytes, for messages.
    process: u64,
    open: AtomicUsize,
    start: Instant,
    /// When the bucket will be full again, in nanoseconds after `start`.
    full_at: AtomicU64,
    handshakes: Mutex<HashMap<IpAddr, usize>>,
    told: Mutex<Told>,
}

/// What was logged last, so that a flood does not fill the log.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    since: u64,
}

/// A connection or stream that counts as open until this is dropped.
pub(crate) struct Admitted(Arc<Admission>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A tunnel that counts as unfinished until this is dropped.
pub(crate) struct Handshaking(Arc<Admission>, IpAddr);

impl Drop for Handshaking {
    fn drop(&mut self) {
        let mut handshakes = self.0.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = handshakes.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                handshakes.remove(&self.1);
            }
        }
    }
}

impl PodLimits {
    /// Each with its name in the metrics.
    pub(crate) fn named(&self) -> [(&'static str, u64); 5] {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        [
            ("pod-memory", self.memory),
            ("pod-connections", count(self.connections)),
            ("pod-rate", self.rate.map_or(0, u64::from)),
            ("pod-handshakes", count(self.handshakes)),
            ("source-handshakes", count(self.handshakes_per_source)),
        ]
    }
}

impl Admission {
    /// Nothing open yet; the pod's bytes are a part of `process`.
    pub(crate) fn new(limits: PodLimits, process: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            limits,
            memory: process.part(limits.memory),
            process: process.limit(),
            open: AtomicUsize::new(0),
            start: Instant::now(),
            full_at: AtomicU64::new(0),
            handshakes: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// The pod's byte budget.
    pub(crate) fn memory(&self) -> &Arc<Budget> {
        &self.memory
    }

    /// Takes a new connection or stream into account.
    ///
    /// **Errors**: the limit that it would pass.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> Result<Admitted, Refused> {
        if self.memory.held() > self.memory.limit() {
            return Err(Refused::PodMemory(self.memory.limit()));
        }
        if self.memory.is_over() {
            return Err(Refused::Memory(self.process));
        }
        let most = self.limits.connections;
        if self.open.fetch_add(1, Ordering::Relaxed) >= most {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::Connections(most));
        }
        let admitted = Admitted(Arc::clone(self));
        match self.limits.rate {
            Some(rate) if !self.take_token(rate, now) => Err(Refused::Rate(rate)),
            _ => Ok(admitted),
        }
    }

    /// A bucket of one second's tokens, kept as the time at which it will be full.
    fn take_token(&self, rate: u32, now: Instant) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let now = u64::try_from(now.duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        let token = SECOND / u64::from(rate.max(1));
        let take = |full_at: u64| {
            let next = full_at.max(now).saturating_add(token);
            (next - now <= SECOND.max(token)).then_some(next)
        };
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Takes a new tunnel's handshake into account.
    ///
    /// **Errors**: the limit that it would pass.
    pub(crate) fn handshake(self: &Arc<Self>, source: IpAddr) -> Result<Handshaking, Refused> {
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if handshakes.values().sum::<usize>() >= self.limits.handshakes {
            return Err(Refused::Handshakes(self.limits.handshakes));
        }
        let count = handshakes.entry(source).or_default();
        if *count >= self.limits.handshakes_per_source {
            return Err(Refused::SourceHandshakes(*count));
        }
        *count += 1;
        Ok(Handshaking(Arc::clone(self), source))
    }

    /// How many refusals a line that is written now stands for; none if one was written within the second.
    pub(crate) fn tell(&self, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.since += 1;
        if told.at.is_some_and(|at| now.duration_since(at) < Duration::from_secs(1)) {
            return None;
        }
        told.at = Some(now);
        Some(std::mem::take(&mut told.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> PodLimits {
        PodLimits { memory: 1000, connections: 3, rate: None, handshakes: 4, handshakes_per_source: 2 }
    }

    fn admission(limits: PodLimits) -> Arc<Admission> {
        Admission::new(limits, &Budget::new(10_000))
    }

    #[test]
    fn a_pod_has_so_many_connections_and_gets_their_places_back() {
        let (pod, now) = (admission(limits()), Instant::now());
        let mut open: Vec<_> = (0..3).map(|_| pod.admit(now).unwrap_or_else(|e| panic!("{e}"))).collect();
        for _ in 0..2 {
            assert_eq!(pod.admit(now).err(), Some(Refused::Connections(3)));
        }
        open.pop();
        assert!(pod.admit(now).is_ok());
        assert!(admission(limits()).admit(now).is_ok(), "another pod has its own");
    }

    #[test]
    fn new_connections_come_at_a_rate_with_a_seconds_burst() {
        let pod = admission(PodLimits { connections: 1000, rate: Some(10), ..limits() });
        let taken = |at: Instant| (0..100).filter(|_| pod.admit(at).is_ok()).count();
        let start = Instant::now();
        assert_eq!(taken(start), 10);
        assert_eq!(taken(start + Duration::from_millis(50)), 0);
        assert_eq!(taken(start + Duration::from_millis(550)), 5);
        assert_eq!(taken(start + Duration::from_secs(60)), 10, "a pause saves up one second, not more");
        assert_eq!(pod.open.load(Ordering::Relaxed), 0, "what was refused does not count as open");
    }

    #[test]
    fn unfinished_tunnels_are_counted_by_source_and_in_all() {
        let pod = admission(limits());
        let [one, two, three] = ["10.0.0.1", "10.0.0.2", "fd00::3"].map(|ip| ip.parse().unwrap());
        let mut held: Vec<_> =
            [one, one, two].map(|ip| pod.handshake(ip).unwrap_or_else(|e| panic!("{e}"))).into();
        assert_eq!(pod.handshake(one).err(), Some(Refused::SourceHandshakes(2)));
        held.push(pod.handshake(three).unwrap_or_else(|e| panic!("{e}")));
        assert_eq!(pod.handshake(two).err(), Some(Refused::Handshakes(4)));
        held.remove(0);
        assert!(pod.handshake(one).is_ok());
        drop(held);
        assert!(pod.handshakes.lock().unwrap().is_empty(), "sources that have gone are forgotten");
    }

    #[test]
    fn over_the_memory_budget_nothing_new_is_taken() {
        let process = Budget::new(10_000);
        let [pod, other] = [(); 2].map(|()| Admission::new(limits(), &process));
        pod.memory.charge(1_001);
        assert_eq!(pod.admit(Instant::now()).err(), Some(Refused::PodMemory(1_000)));
        assert!(other.admit(Instant::now()).is_ok(), "a pod's budget is its own");
        pod.memory.release(1_001);
        process.charge(10_001);
        assert!(other.admit(Instant::now()).is_ok(), "it holds nothing, and others are hardly over");
        other.memory.charge(200);
        assert_eq!(other.admit(Instant::now()).err(), Some(Refused::Memory(10_000)));
        other.memory.release(200);
        process.release(10_001);
        assert!(pod.admit(Instant::now()).is_ok());
    }

    #[test]
    fn a_flood_of_refusals_is_one_line_a_second() {
        let (pod, start) = (admission(limits()), Instant::now());
        assert_eq!(pod.tell(start), Some(1));
        assert!((0..50).all(|_| pod.tell(start + Duration::from_millis(900)).is_none()));
        assert_eq!(pod.tell(start + Duration::from_secs(1)), Some(51));
    }
}
