//! Which identity is fetched when: the table behind [`super::certs::Certs`]. Time and randomness are arguments.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::types::SpiffeId;

use super::certs::{CertState, CertStatus};
use super::workload::WorkloadCert;

/// Requests to the CA at one time.
pub(super) const PARALLEL_MAX: usize = 8;
/// First pause after a failure; doubles from one to the next.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest pause, before jitter.
const BACKOFF_MAX: Duration = Duration::from_secs(150);
/// Longest pause, before jitter, without a certificate and while the authority does not answer.
const BACKOFF_AWAY: Duration = Duration::from_secs(15);
/// Longest pause, before jitter, while connections are held for a first certificate.
const BACKOFF_HELD: Duration = Duration::from_secs(2);

/// One moment on both clocks: certificates live by the wall clock, pauses must not follow its jumps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) wall: SystemTime,
    pub(super) steady: Instant,
}

/// All identities that are used or asked for here.
#[derive(Default)]
pub(super) struct Schedule {
    entries: HashMap<SpiffeId, Entry>,
}

struct Entry {
    /// A pod of this node has this identity; otherwise somebody merely asked.
    wanted: bool,
    cert: Option<Arc<WorkloadCert>>,
    /// There was a certificate at some time.
    served: bool,
    next: Next,
    /// What is being fetched may be of yesterday: fetch again.
    is_outdated: bool,
    failures: u32,
    /// Why the last fetch failed; none after a success.
    reason: Option<Arc<Failed>>,
    /// Told after each fetch. Its receivers are those who wait.
    done: watch::Sender<()>,
}

/// Why a fetch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// For people.
    pub(super) text: String,
    /// The authority was asked and said no, or gave what cannot be used: waiting for it to come back is no remedy.
    pub(super) is_answer: bool,
}

/// When the next fetch begins.
#[derive(Clone, Copy)]
enum Next {
    Now,
    Running,
    Renew(SystemTime),
    /// The usual pause, and that while connections are held.
    Retry(Instant, Instant),
}

/// What a caller who needs a certificate finds.
pub(super) enum Look {
    Ready(Arc<WorkloadCert>),
    Failed(Arc<Failed>),
    Pending(watch::Receiver<()>),
    Unknown,
}

impl Entry {
    fn new(wanted: bool) -> Self {
        Self {
            wanted,
            cert: None,
            served: false,
            next: Next::Now,
            is_outdated: false,
            failures: 0,
            reason: None,
            done: watch::Sender::new(()),
        }
    }

    fn valid(&self, wall: SystemTime) -> Option<&Arc<WorkloadCert>> {
        self.cert.as_ref().filter(|cert| cert.is_valid_at(wall))
    }

    fn starts_after(&self, wall: SystemTime) -> bool {
        self.cert.as_ref().is_some_and(|cert| wall < cert.not_before)
    }

    fn has_waiters(&self) -> bool {
        self.done.receiver_count() > 0
    }

    /// Somebody waits for the first one. It may come with any attempt: a new pod is not known everywhere at once.
    fn is_held(&self) -> bool {
        self.has_waiters() && !self.served
    }

    fn is_running(&self) -> bool {
        matches!(self.next, Next::Running)
    }

    /// Time until the next fetch; `None` while one runs.
    fn due_in(&self, now: Moment) -> Option<Duration> {
        match self.next {
            Next::Now => Some(Duration::ZERO),
            Next::Running => None,
            // Set back to before its start: peers whose clocks were right all the time take it for not valid yet.
            Next::Renew(_) if self.starts_after(now.wall) => Some(Duration::ZERO),
            Next::Renew(at) => Some(at.duration_since(now.wall).unwrap_or_default()),
            Next::Retry(_, held) if self.is_held() => Some(held.saturating_duration_since(now.steady)),
            Next::Retry(at, _) => Some(at.saturating_duration_since(now.steady)),
        }
    }
}

impl Schedule {
    /// The certificate of `id` if one is valid.
    pub(super) fn current(&self, id: &SpiffeId, wall: SystemTime) -> Option<Arc<WorkloadCert>> {
        self.entries.get(id)?.valid(wall).cloned()
    }

    /// Where `id` stands.
    pub(super) fn look(&self, id: &SpiffeId, wall: SystemTime) -> Look {
        let Some(entry) = self.entries.get(id) else { return Look::Unknown };
        match (entry.valid(wall), &entry.reason) {
            (Some(cert), _) => Look::Ready(cert.clone()),
            (None, Some(reason)) if entry.served => Look::Failed(reason.clone()),
            (None, _) => Look::Pending(entry.done.subscribe()),
        }
    }

    /// Why the last fetch for `id` failed.
    pub(super) fn reason(&self, id: &SpiffeId) -> Option<Arc<Failed>> {
        self.entries.get(id)?.reason.clone()
    }

    /// As [`Schedule::look`]; an identity that is not known is from now on fetched.
    pub(super) fn ask(&mut self, id: &SpiffeId, wall: SystemTime) -> Look {
        if !self.entries.contains_key(id) {
            self.entries.insert(id.clone(), Entry::new(false));
        }
        self.look(id, wall)
    }

    /// Replaces the set of identities that are fetched ahead; others go, unless somebody waits for them.
    pub(super) fn want(&mut self, ids: HashSet<SpiffeId>) {
        self.entries.retain(|id, entry| {
            entry.wanted = ids.contains(id);
            entry.wanted || entry.has_waiters()
        });
        for id in ids {
            self.entries.entry(id).or_insert_with(|| Entry::new(true));
        }
    }

    /// The identity to fetch next, now marked as being fetched; `None` if nothing is due or enough is under way.
    ///
    /// First those for whom connections wait, then those without a certificate, then renewals.
    pub(super) fn start_next(&mut self, now: Moment) -> Option<SpiffeId> {
        self.forget_unused(now);
        if self.entries.values().filter(|entry| entry.is_running()).count() >= PARALLEL_MAX {
            return None;
        }
        let id = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.due_in(now) == Some(Duration::ZERO))
            .min_by_key(|(_, entry)| (!entry.has_waiters(), entry.valid(now.wall).is_some()))
            .map(|(id, _)| id.clone())?;
        self.entries.get_mut(&id)?.next = Next::Running;
        Some(id)
    }

    /// An identity that no pod has lives until its renewal, then nobody pays for it any more.
    fn forget_unused(&mut self, now: Moment) {
        self.entries.retain(|_, entry| {
            entry.wanted
                || entry.has_waiters()
                || entry.due_in(now) != Some(Duration::ZERO)
                || matches!(entry.next, Next::Now)
        });
    }

    /// Time until something is due; `None` if nothing will be.
    pub(super) fn due_in(&self, now: Moment) -> Option<Duration> {
        self.entries.values().filter_map(|entry| entry.due_in(now)).min()
    }

    /// Fetches all again: the authority would answer differently now.
    pub(super) fn reissue(&mut self) {
        for entry in self.entries.values_mut() {
            match entry.next {
                Next::Running => entry.is_outdated = true,
                Next::Now | Next::Renew(_) | Next::Retry(..) => entry.next = Next::Now,
            }
        }
    }

    /// A fetch ended; `random` is in 0..1. The last good certificate stays when it failed. Whether trust has changed with
    /// the new one.
    pub(super) fn finish(
        &mut self,
        id: &SpiffeId,
        fetched: Result<WorkloadCert, Failed>,
        now: Moment,
        random: f64,
    ) -> bool {
        if fetched.is_ok() {
            self.ask_again_where_unanswered();
        }
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let mut trust_changed = false;
        match fetched {
            Ok(cert) => {
                trust_changed = entry.cert.as_ref().is_some_and(|old| old.trust() != cert.trust());
                entry.next = Next::Renew(renewal(now.wall, cert.not_after, random));
                entry.cert = Some(Arc::new(cert));
                entry.served = true;
                entry.failures = 0;
                entry.reason = None;
            }
            Err(reason) => {
                let left =
                    entry.valid(now.wall).and_then(|cert| cert.not_after.duration_since(now.wall).ok());
                // No answer: one attempt a second at most reaches the network, and a node without certificates is down.
                let longest = if reason.is_answer || left.is_some() { BACKOFF_MAX } else { BACKOFF_AWAY };
                let pause = backoff(entry.failures, random).min(longest.mul_f64(0.8 + 0.4 * random));
                let held = BACKOFF_HELD.mul_f64(0.8 + 0.4 * random).min(pause);
                let at = now.steady + left.map_or(pause, |left| pause.min(left));
                entry.next = Next::Retry(at, now.steady + held);
                entry.failures = entry.failures.saturating_add(1);
                entry.reason = Some(reason.into());
            }
        }
        if std::mem::take(&mut entry.is_outdated) {
            entry.next = Next::Now;
        }
        entry.done.send_replace(());
        trust_changed
    }

    /// The authority is back: those who had no answer while it was away need not wait their pause out.
    fn ask_again_where_unanswered(&mut self) {
        for entry in self.entries.values_mut() {
            let unanswered = entry.reason.as_ref().is_some_and(|failed| !failed.is_answer);
            if unanswered && matches!(entry.next, Next::Retry(..)) {
                entry.next = Next::Now;
            }
        }
    }

    /// Nothing is under way any more: the task that fetched was replaced.
    pub(super) fn restart(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.is_running()) {
            entry.next = Next::Now;
        }
    }

    /// All identities, sorted.
    pub(super) fn status(&self, wall: SystemTime) -> Vec<CertStatus> {
        let mut all: Vec<_> = self
            .entries
            .iter()
            .map(|(id, entry)| CertStatus {
                identity: id.clone(),
                wanted: entry.wanted,
                state: match (entry.valid(wall), &entry.reason) {
                    (Some(_), _) => CertState::Available,
                    (None, Some(_)) => CertState::Unavailable,
                    (None, None) => CertState::Initializing,
                },
                not_after: entry.cert.as_ref().map(|cert| cert.not_after),
                error: entry.reason.as_ref().map(|failed| failed.text.clone()),
                is_refused: entry.reason.as_ref().is_some_and(|failed| failed.is_answer),
            })
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// Wanted identities that never had a certificate, with what is known about the cause.
    pub(super) fn not_ready(&self) -> Vec<(SpiffeId, String)> {
        let mut missing: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.wanted && !entry.served)
            .map(|(id, entry)| {
                let waiting = "waiting for the first certificate";
                (id.clone(), entry.reason.as_ref().map_or(waiting, |failed| &failed.text).to_owned())
            })
            .collect();
        missing.sort();
        missing
    }
}

/// Renewal of a certificate received now: after 45–55 % of what is left of its life.
///
/// Counted from now, not from its start: a start in the past must not make a short-lived certificate due at once.
pub(super) fn renewal(now: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.45 + 0.1 * random).max(BACKOFF_MIN)
}

/// Pause after `failures` earlier failures in a row: 1 s, doubled up to 150 s, ±20 %.
pub(super) fn backoff(failures: u32, random: f64) -> Duration {
    let factor = 1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX);
    BACKOFF_MIN.saturating_mul(factor).min(BACKOFF_MAX).mul_f64(0.8 + 0.4 * random)
}

#[cfg(test)]
mod tests;
