//! The certificates of the local workloads: fetched ahead, renewed early, handed out without waiting.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::types::{Clock, SpiffeId};

use super::acceptance::Acceptance;
use super::ca::{Ca, CaError};
use super::crl::Revocation;
use super::schedule::{Failed, Look, Moment, Schedule};
pub use super::workload::WorkloadCert;

/// Longest answer of a CA.
const CA_LIMIT: Duration = Duration::from_secs(30);
/// How often the CA is asked whether its roots have changed.
const ROOTS_LOOK: Duration = Duration::from_secs(1);
/// How often the file of the revocation lists is looked at.
const REVOCATION_LOOK: Duration = Duration::from_secs(1);
/// Longest sleep: the wall clock may jump, and a suspended machine does not count the time.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// One certificate per identity of the local workloads.
pub struct Certs {
    ca: Ca,
    clock: Arc<dyn Clock>,
    accepts: Acceptance,
    schedule: Mutex<Schedule>,
    /// Requests that ended since they were last asked for, by how.
    ended: Mutex<BTreeMap<&'static str, u64>>,
    /// Something may be due earlier than the renewal task thinks.
    sooner: Notify,
    /// Grows when a certificate has replaced one with other roots or another signer.
    trust: watch::Sender<u64>,
}

/// No certificate for an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// None came in time.
    #[error("no certificate of {id} within {limit:?}; check the CA and its queue")]
    Timeout {
        /// Identity asked for.
        id: SpiffeId,
        /// How long was waited.
        limit: Duration,
    },
    /// The CA refused or could not be asked; it is asked again in the background.
    #[error("no certificate of {id}: {reason}")]
    Unavailable {
        /// Identity asked for.
        id: SpiffeId,
        /// The last failure.
        reason: String,
    },
    /// The identity is not needed here any more.
    #[error("no certificate of {id}: no pod of this node has this identity any more")]
    Forgotten {
        /// Identity asked for.
        id: SpiffeId,
    },
}

/// Where one identity stands.
#[derive(Clone, Debug)]
pub struct CertStatus {
    /// The identity.
    pub identity: SpiffeId,
    /// A pod of this node has it.
    pub wanted: bool,
    /// Whether it can be used.
    pub state: CertState,
    /// End of the last certificate's validity.
    pub not_after: Option<SystemTime>,
    /// Why the last fetch failed, also while an older certificate still serves.
    pub error: Option<String>,
    /// That failure was the authority's answer, not its absence.
    pub is_refused: bool,
}

/// Whether an identity can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertState {
    /// There is a valid certificate.
    Available,
    /// The first fetch has not ended, or a new one runs after an unnoticed expiry.
    Initializing,
    /// There is none, and the last fetch failed.
    Unavailable,
}

impl fmt::Display for CertState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Available => "Available",
            Self::Initializing => "Initializing",
            Self::Unavailable => "Unavailable",
        })
    }
}

impl Certs {
    /// Empty cache. Nothing is fetched until [`Certs::run`] runs.
    pub fn new(ca: Ca, clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::accepting(ca, clock, Acceptance::default())
    }

    /// As [`Certs::new`], for peers that `accepts` describes.
    pub fn accepting(ca: Ca, clock: Arc<dyn Clock>, accepts: Acceptance) -> Arc<Self> {
        Arc::new(Self {
            ca,
            clock,
            accepts,
            schedule: Mutex::default(),
            ended: Mutex::default(),
            sooner: Notify::new(),
            trust: watch::Sender::new(0),
        })
    }

    /// The certificate of `id`, if there is one that has not expired.
    pub fn current(&self, id: &SpiffeId) -> Option<Arc<WorkloadCert>> {
        self.schedule().current(id, self.clock.now())
    }

    /// The certificate of `id`; waits for the first one up to `limit`, before all other fetches.
    ///
    /// An identity outside the wanted set is fetched too, and forgotten when its renewal is due.
    ///
    /// While none has ever come, failures are waited through: a new pod is not known everywhere at once, and a CA comes
    /// back. Attempts are then 2 s apart at most.
    ///
    /// **Errors**: none in time, with the last failure if there was one; at once where the last certificate has expired and
    /// its renewal failed (the next attempt runs in the background).
    /// **Cancel safety**: a dropped call only gives up its place.
    pub async fn wait(&self, id: &SpiffeId, limit: Duration) -> Result<Arc<WorkloadCert>, IdentityError> {
        let mut look = self.schedule().ask(id, self.clock.now());
        let waiting = async {
            loop {
                match look {
                    Look::Ready(cert) => return Ok(cert),
                    Look::Failed(reason) => {
                        return Err(IdentityError::Unavailable {
                            id: id.clone(),
                            reason: reason.text.clone(),
                        });
                    }
                    Look::Unknown => return Err(IdentityError::Forgotten { id: id.clone() }),
                    Look::Pending(mut done) => {
                        self.sooner.notify_one();
                        // An error means that the entry is gone, which the next look tells.
                        let _gone = done.changed().await;
                    }
                }
                look = self.schedule().look(id, self.clock.now());
            }
        };
        timeout(limit, waiting).await.unwrap_or_else(|_| {
            let failed = self.schedule().reason(id);
            let id = id.clone();
            Err(match failed {
                Some(failed) => IdentityError::Unavailable { id, reason: failed.text.clone() },
                None => IdentityError::Timeout { id, limit },
            })
        })
    }

    /// Sets the identities of this node's pods: fetched ahead and renewed. All others are forgotten.
    pub fn want(&self, ids: HashSet<SpiffeId>) {
        self.schedule().want(ids);
        self.sooner.notify_one();
    }

    /// Wakes when certificates have come to trust other roots, or to be signed by another: what was set up with the ones
    /// before should be looked at again.
    pub fn trust_changed(&self) -> watch::Receiver<u64> {
        self.trust.subscribe()
    }

    /// The lists by which peers are checked, if there are to be any.
    pub fn revocation(&self) -> Option<&Arc<Revocation>> {
        self.accepts.revocation.as_ref()
    }

    /// Reads the revocation lists again when their file changes.
    async fn watch_revocation(&self) {
        let Some(lists) = &self.accepts.revocation else { return };
        loop {
            lists.look_at_age(self.clock.now());
            sleep(REVOCATION_LOOK).await;
            if lists.refresh() {
                self.trust.send_modify(|revision| *revision += 1);
            }
        }
    }

    /// Fetches and renews until it is dropped; run it once, as an essential task.
    ///
    /// Renewal is due after 45–55 % of a certificate's life. A failure is retried after 1 s, then twice as long each
    /// time up to 150 s, ±20 %, and no later than the expiry of the certificate that is still in use. When the CA's roots
    /// change, all certificates are issued again at once. A certificate that serves is never thrown away for a failure.
    ///
    /// The revocation lists, if there are to be any, are read again whenever their file changes.
    ///
    /// **Cancel safety**: requests under way are dropped; a later call begins them again.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(self.watch_revocation(), self.renew());
    }

    async fn renew(self: &Arc<Self>) {
        self.schedule().restart();
        let mut fetches = JoinSet::new();
        let mut running = HashMap::new();
        let mut roots = RootsLook::default();
        loop {
            self.look_at_roots(&mut roots);
            while let Some(id) = self.start_next() {
                let (certs, wanted) = (self.clone(), id.clone());
                let task = fetches.spawn(async move { certs.fetch(&wanted).await });
                running.insert(task.id(), id);
            }
            let pause = roots.due_in().map_or(SLEEP_MAX, |look| look.min(SLEEP_MAX)).min(self.pause());
            tokio::select! {
                () = self.sooner.notified() => {}
                () = sleep(pause) => {}
                Some(ended) = fetches.join_next_with_id() => self.finish(&mut running, ended),
            }
        }
    }

    /// All identities that are used or asked for, sorted.
    pub fn status(&self) -> Vec<CertStatus> {
        self.schedule().status(self.clock.now())
    }

    /// Requests to the CA that ended since the last call, by how: `issued`, or a failure's [`CaError::reason`].
    pub fn take_ended(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether each wanted identity has had its first certificate.
    ///
    /// **Errors**: those that have not, with the last failure or "waiting".
    pub fn all_ready(&self) -> Result<(), Vec<(SpiffeId, String)>> {
        let missing = self.schedule().not_ready();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    fn look_at_roots(&self, look: &mut RootsLook) {
        let now = Instant::now();
        if look.next.is_none_or(|at| now < at) {
            return;
        }
        let refreshed = self.ca.refresh(now);
        look.next = refreshed.is_some().then(|| now + ROOTS_LOOK);
        let problem = match refreshed {
            None => return,
            Some(Ok(is_changed)) => {
                if is_changed {
                    tracing::info!(ca = ?self.ca, "the roots have changed: all certificates are issued again");
                    self.schedule().reissue();
                }
                None
            }
            Some(Err(error)) => Some(chain(&error)),
        };
        if problem == look.problem {
            return;
        }
        match &problem {
            Some(error) => tracing::warn!(error, "the changed roots are not taken, those before stay in use"),
            None => tracing::info!("the roots can be used again"),
        }
        look.problem = problem;
    }

    async fn fetch(&self, id: &SpiffeId) -> Result<WorkloadCert, CaError> {
        let issued = timeout(CA_LIMIT, self.ca.issue(id))
            .await
            .map_err(|_| CaError::Timeout { limit: CA_LIMIT })
            .flatten()?;
        WorkloadCert::new(id, &issued, self.clock.clone(), &self.accepts)
    }

    fn finish(
        &self,
        running: &mut HashMap<Id, SpiffeId>,
        ended: Result<(Id, Result<WorkloadCert, CaError>), JoinError>,
    ) {
        let (task, fetched) = match ended {
            Ok((task, fetched)) => (task, fetched),
            Err(error) => (error.id(), Err(CaError::Aborted)),
        };
        let Some(id) = running.remove(&task) else { return };
        let how = fetched.as_ref().map_or_else(CaError::reason, |_| "issued");
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner).entry(how).or_default() += 1;
        let fetched = fetched
            .inspect(
                |cert| tracing::debug!(identity = %id, not_after = ?cert.not_after, "certificate issued"),
            )
            .map_err(|error| self.failed(&id, &error));
        let now = self.now();
        if self.schedule().finish(&id, fetched, now, random()) {
            self.trust.send_modify(|revision| *revision += 1);
        }
    }

    /// Logged when it is told the first time: a CA that is away is away for all identities, and for many attempts.
    fn failed(&self, id: &SpiffeId, error: &CaError) -> Failed {
        let failed = Failed { text: chain(error), is_answer: error.is_answer() };
        let before = self.schedule().reason(id);
        if before.as_deref() == Some(&failed) {
            tracing::debug!(identity = %id, error = failed.text, "still no new certificate");
        } else {
            tracing::warn!(identity = %id, error = failed.text, "no new certificate; it is asked for again");
        }
        failed
    }

    fn start_next(&self) -> Option<SpiffeId> {
        let now = self.now();
        self.schedule().start_next(now)
    }

    fn pause(&self) -> Duration {
        let now = self.now();
        self.schedule().due_in(now).map_or(SLEEP_MAX, |due| due.min(SLEEP_MAX))
    }

    fn now(&self) -> Moment {
        Moment { wall: self.clock.now(), steady: Instant::now() }
    }

    /// A panic while it was held cannot leave the table half changed in a way that matters more than going on.
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the CA's roots are looked at next, and what was wrong with them last.
struct RootsLook {
    /// `None` where there is nothing to look at.
    next: Option<Instant>,
    problem: Option<String>,
}

impl Default for RootsLook {
    fn default() -> Self {
        Self { next: Some(Instant::now()), problem: None }
    }
}

impl RootsLook {
    fn due_in(&self) -> Option<Duration> {
        self.next.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

impl fmt::Debug for Certs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certs").field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// Uniform in 0..1; the middle when the system has no randomness, as jitter is not worth a failure.
fn random() -> f64 {
    getrandom::u32().map_or(0.5, |r| f64::from(r) / (f64::from(u32::MAX) + 1.0))
}

/// An error with its causes in one line.
fn chain(error: &CaError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
