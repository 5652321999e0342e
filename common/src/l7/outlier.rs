//! Which endpoints are left alone for a while because they fail: passive health checks, over all threads of the process.
//!
//! Counters are the endpoint's own atomics; the lock is taken only when one reaches its threshold and once an interval.
//! There is no timer: what an interval would do is done by who looks next, with the same outcome.
//!
//! **Source**: Istio `OutlierDetection`; Envoy, outlier detection.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;

use super::balance::Host;
use crate::model::l7::Outliers;

/// No ejection takes longer, unless the base is.
const LONGEST: Duration = Duration::from_secs(300);
/// Part of the endpoints that may be left alone where nothing is said.
const DEFAULT_PERCENT: u32 = 10;
/// Answers within an interval below which a percentage says nothing.
const FEW_ANSWERS: u32 = 10;

/// How a request to an endpoint went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, with this status; that of gRPC as [`super::http_status`] has it.
    Answered(StatusCode),
    /// There is a connection, and an answer will come.
    Connected,
    /// There is a connection, which is all that is asked of TCP.
    Opened,
    /// No connection, or it ended without an answer.
    Failed,
    /// No answer in time.
    TimedOut,
}

/// Why an endpoint is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of OutlierDetection")]
pub enum Cause {
    Consecutive5xx,
    ConsecutiveGateway,
    ConsecutiveLocalOrigin,
    FailurePercentage,
}

/// An endpoint was just left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Why.
    pub cause: Cause,
    /// For how long, up to the next interval's end.
    pub time: Duration,
}

/// What an endpoint did lately.
#[derive(Debug, Default)]
pub struct Health {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// Within this interval.
    answers: AtomicU32,
    /// Within this interval.
    failures: AtomicU32,
    is_ejected: AtomicBool,
    /// How many base times the last ejection takes; less by one for each healthy interval.
    times: AtomicU32,
    /// When it was ejected, in nanoseconds since the detector began.
    at: AtomicU64,
}

impl Health {
    /// Whether it is left alone.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Relaxed)
    }
}

/// Watches the endpoints of one destination.
#[derive(Debug)]
pub struct Detector {
    began: Instant,
    /// When intervals were last looked at, in nanoseconds since it began: intervals change with the configuration.
    swept: AtomicU64,
    /// Endpoints that are left alone; those that are gone since may be among them.
    ejected: AtomicU32,
    changes: Mutex<()>,
}

impl Detector {
    /// One that has seen nothing. Intervals are counted from `now`.
    pub fn new(now: Instant) -> Self {
        Self { began: now, swept: AtomicU64::new(0), ejected: AtomicU32::new(0), changes: Mutex::new(()) }
    }

    /// Whether an endpoint may be left alone: quickly, so that nothing is counted where none is.
    pub(super) fn may_have_ejected(&self) -> bool {
        self.ejected.load(Relaxed) > 0
    }

    /// Counts how a request to `host`, one of `hosts`, went.
    pub fn record<T: AsRef<Host>>(
        &self,
        outliers: &Outliers,
        (hosts, host): (&[T], &Host),
        outcome: Outcome,
        now: Instant,
    ) -> Option<Ejection> {
        self.sweep(outliers, hosts, now);
        let health = &host.health;
        let cause = match (outcome, outliers.consecutive_local) {
            (Outcome::Answered(status), _) => health.answered(outliers, status),
            (Outcome::Failed, None) => health.answered(outliers, StatusCode::SERVICE_UNAVAILABLE),
            (Outcome::TimedOut, None) => health.answered(outliers, StatusCode::GATEWAY_TIMEOUT),
            (Outcome::Opened, None) => health.answered(outliers, StatusCode::OK),
            (Outcome::Connected, None) => None,
            (Outcome::Failed | Outcome::TimedOut, Some(limit)) => {
                reached(&health.consecutive_local, limit).then_some(Cause::ConsecutiveLocalOrigin)
            }
            (Outcome::Opened | Outcome::Connected, Some(_)) => {
                clear(&health.consecutive_local);
                None
            }
        }?;
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        health.forget(cause);
        self.eject(outliers, (hosts, host), cause, now)
    }

    /// Does what intervals that ended since the last time would have done: endpoints come back.
    pub fn sweep<T: AsRef<Host>>(&self, outliers: &Outliers, hosts: &[T], now: Instant) {
        let interval = outliers.interval.max(Duration::from_millis(1)).as_nanos();
        let since = now.saturating_duration_since(self.began).as_nanos();
        let ended = since / interval;
        let done = || u128::from(self.swept.load(Relaxed)) / interval;
        if ended <= done() {
            return;
        }
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let done = done();
        if ended <= done {
            return;
        }
        for host in hosts {
            let health = &host.as_ref().health;
            let mut healthy = ended - done;
            if health.is_ejected() {
                let over = u128::from(health.at.load(Relaxed)) + ejection_time(outliers, health).as_nanos();
                let Some(after) = ended.checked_sub(over.div_ceil(interval)) else { continue };
                health.is_ejected.store(false, Relaxed);
                healthy = after;
            }
            let less = u32::try_from(healthy).unwrap_or(u32::MAX);
            health.times.store(health.times.load(Relaxed).saturating_sub(less), Relaxed);
        }
        for host in hosts {
            let health = &host.as_ref().health;
            if health.fails_too_often(outliers) {
                self.eject(outliers, (hosts, host.as_ref()), Cause::FailurePercentage, now);
            }
            clear(&health.answers);
            clear(&health.failures);
        }
        self.count(hosts);
        self.swept.store(u64::try_from(since).unwrap_or(u64::MAX), Relaxed);
    }

    /// Leaves it alone, if so many may be.
    fn eject<T: AsRef<Host>>(
        &self,
        outliers: &Outliers,
        (hosts, host): (&[T], &Host),
        cause: Cause,
        now: Instant,
    ) -> Option<Ejection> {
        if host.health.is_ejected() || !may_eject(outliers, hosts) {
            return None;
        }
        let health = &host.health;
        let times = health.times.load(Relaxed);
        if outliers.base_ejection.saturating_mul(times) < longest(outliers) {
            health.times.store(times.saturating_add(1), Relaxed);
        }
        let at = now.saturating_duration_since(self.began).as_nanos();
        health.at.store(u64::try_from(at).unwrap_or(u64::MAX), Relaxed);
        health.is_ejected.store(true, Relaxed);
        self.count(hosts);
        Some(Ejection { cause, time: ejection_time(outliers, health) })
    }

    fn count<T: AsRef<Host>>(&self, hosts: &[T]) {
        self.ejected.store(u32::try_from(ejected(hosts)).unwrap_or(u32::MAX), Relaxed);
    }
}

impl Health {
    fn answered(&self, outliers: &Outliers, status: StatusCode) -> Option<Cause> {
        if outliers.failure_percent.is_some() {
            self.answers.fetch_add(1, Relaxed);
        }
        if !status.is_server_error() {
            clear(&self.consecutive_5xx);
            clear(&self.consecutive_gateway);
            return None;
        }
        if outliers.failure_percent.is_some() {
            self.failures.fetch_add(1, Relaxed);
        }
        let mut cause = None;
        if reached(&self.consecutive_5xx, outliers.consecutive_5xx) {
            cause = Some(Cause::Consecutive5xx);
        }
        if !matches!(status.as_u16(), 502..=504) {
            clear(&self.consecutive_gateway);
        } else if reached(&self.consecutive_gateway, outliers.consecutive_gateway) {
            cause = Some(Cause::ConsecutiveGateway);
        }
        cause
    }

    /// What has led to an ejection, or would have, counts no more.
    fn forget(&self, cause: Cause) {
        match cause {
            Cause::Consecutive5xx => clear(&self.consecutive_5xx),
            Cause::ConsecutiveGateway => clear(&self.consecutive_gateway),
            Cause::ConsecutiveLocalOrigin => clear(&self.consecutive_local),
            Cause::FailurePercentage => {}
        }
    }

    fn fails_too_often(&self, outliers: &Outliers) -> bool {
        let (answers, failures) = (self.answers.load(Relaxed), self.failures.load(Relaxed));
        outliers.failure_percent.is_some_and(|percent| {
            answers >= FEW_ANSWERS && u64::from(failures) * 100 >= u64::from(percent) * u64::from(answers)
        })
    }
}

/// One more; whether that is enough, also of a limit that was higher before. 0 counts nothing.
fn reached(counter: &AtomicU32, limit: u32) -> bool {
    limit != 0 && counter.fetch_add(1, Relaxed).saturating_add(1) >= limit
}

/// Writes only where there is something: an endpoint that is well is only read.
fn clear(counter: &AtomicU32) {
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}

pub(super) fn ejected<T: AsRef<Host>>(hosts: &[T]) -> usize {
    hosts.iter().filter(|host| host.as_ref().health.is_ejected()).count()
}

/// Whether one more may be left alone.
fn may_eject<T: AsRef<Host>>(outliers: &Outliers, hosts: &[T]) -> bool {
    let ejected = ejected(hosts);
    let within = |percent: u32| (ejected + 1) * 100 <= hosts.len() * percent as usize;
    match outliers.max_ejection_percent {
        Some(percent) => within(percent),
        None => within(DEFAULT_PERCENT) || (ejected == 0 && hosts.len() > 1),
    }
}

fn longest(outliers: &Outliers) -> Duration {
    LONGEST.max(outliers.base_ejection)
}

fn ejection_time(outliers: &Outliers, health: &Health) -> Duration {
    outliers.base_ejection.saturating_mul(health.times.load(Relaxed)).min(longest(outliers))
}

#[cfg(test)]
mod tests;
