//! The one immutable [`Snapshot`] that every decision is made from, and the cell that publishes it.
//!
//! A decision takes one snapshot, decides and lets it go: it never mixes two configurations and never pins an old
//! one while bytes flow. Sources publish whole snapshots; readers are lock-free. Knows nothing of files, xDS or sockets.

mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use snapshot::{Policies, Snapshot};

use crate::model::Model;

/// The published snapshot and its revision.
pub struct State {
    current: ArcSwap<Snapshot>,
    revision: watch::Sender<u64>,
}

impl Default for State {
    fn default() -> Self {
        Self { current: ArcSwap::from_pointee(Snapshot::default()), revision: watch::Sender::new(0) }
    }
}

impl State {
    /// Empty state, revision 0.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Decide a connection or request from one of these, then drop it. Lock-free: one `Arc` clone.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces everything by what `model` says. One writer only.
    pub fn publish(&self, model: Model) -> u64 {
        let revision = *self.revision.borrow() + 1;
        self.current.store(Arc::new(Snapshot::build(revision, model)));
        self.revision.send_replace(revision); // after the store, so that woken readers see it
        revision
    }

    /// Wakes on each new revision.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}
