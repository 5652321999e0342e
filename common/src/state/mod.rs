//! The one immutable [`Snapshot`] that every decision is made from, and the cell that publishes it.
//!
//! A decision takes one snapshot, decides and lets it go: it never mixes two configurations and never pins an old
//! one while bytes flow. Sources publish whole snapshots; readers are lock-free. Knows nothing of files, xDS or sockets.

mod ranges;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use snapshot::{Completeness, Policies, Snapshot};

use crate::model::{Enrolment, NoDowngrade, Parts, TunnelProtocol, Workload};
use crate::types::WorkloadUid;

/// The published snapshot and its revision.
#[derive(Default)]
pub struct State {
    current: ArcSwap<Snapshot>,
    revision: watch::Sender<u64>,
    no_downgrade: Arc<NoDowngrade>,
    /// Workloads that exist and were captured in some publication. Only the writer asks.
    captured: Mutex<HashSet<WorkloadUid>>,
}

impl State {
    /// Empty state, revision 0, in which no address is known to be the mesh's.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Empty state, revision 0, whose snapshots say what is never sent in plaintext.
    pub fn with(no_downgrade: NoDowngrade) -> Arc<Self> {
        let no_downgrade = Arc::new(no_downgrade);
        let mut empty = Snapshot::default();
        empty.no_downgrade = Arc::clone(&no_downgrade);
        Arc::new(Self { current: ArcSwap::from_pointee(empty), no_downgrade, ..Self::default() })
    }

    /// Decide a connection or request from one of these, then drop it. Lock-free: one `Arc` clone.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces everything by what a model, or its parts, say. One writer only.
    pub fn publish(&self, model: impl Into<Parts>) -> u64 {
        self.publish_as(model, Completeness::Complete)
    }

    /// As [`State::publish`], for a source that may know only a part, or what was.
    pub fn publish_as(&self, model: impl Into<Parts>, completeness: Completeness) -> u64 {
        let revision = *self.revision.borrow() + 1;
        let mut next = Snapshot::build(revision, model);
        next.completeness = completeness;
        next.no_downgrade = Arc::clone(&self.no_downgrade);
        let before = self.remember(&next);
        self.current.store(Arc::new(next.having_captured(before)));
        self.revision.send_replace(revision); // after the store, so that woken readers see it
        revision
    }

    /// Says that the source cannot be read as it is now: what is known stays, under its revision, but what is not known
    /// may exist. Until the next publication or [`State::confirm`].
    pub fn mark_stale(&self) {
        self.set_completeness(Completeness::Stale);
    }

    /// Says that the source is again what was published last.
    pub fn confirm(&self) {
        self.set_completeness(Completeness::Complete);
    }

    fn set_completeness(&self, completeness: Completeness) {
        let current = self.snapshot();
        // What is still loading stays so: nothing was published that could be stale or confirmed.
        if current.completeness == completeness || current.completeness == Completeness::Loading {
            return;
        }
        let mut next = Snapshot::clone(&current);
        next.completeness = completeness;
        self.current.store(Arc::new(next));
        self.revision.send_modify(|_| {}); // wakes who waits; the content is the same
    }

    /// Adds what is captured now to what was, forgets what is gone or has left the mesh, and returns what was but is not.
    fn remember(&self, next: &Snapshot) -> HashSet<WorkloadUid> {
        let mut captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        let (hbone, plain): (Vec<_>, Vec<_>) =
            next.workloads().partition(|w| w.protocol == TunnelProtocol::Hbone);
        let was = |w: &&Arc<Workload>| w.enrolment != Enrolment::NotLabelled && captured.contains(&w.uid);
        let before: HashSet<_> = plain.into_iter().filter(was).map(|w| w.uid.clone()).collect();
        // By the keys of this snapshot: an earlier one's would keep the memory that they lie in.
        *captured = hbone.into_iter().map(|w| w.uid.clone()).chain(before.iter().cloned()).collect();
        before
    }

    /// Wakes on each new revision, and when a state turns stale or is confirmed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}
