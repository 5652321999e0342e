//! Connections that wait for a state in which they may go on: how many, how long, and how that ended.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use culvert_common::telemetry::HoldResult;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::worker::Worker;

/// Connections that one worker holds at a time; more are refused at once.
const HELD_MAX: usize = 1024;
/// First pause before a destination that did not listen is tried again; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// One held connection. Dropped without [`Hold::end`] it counts as gone.
pub(super) struct Hold {
    worker: Rc<Worker>,
    reason: &'static str,
    result: Cell<HoldResult>,
    until: Instant,
    pause: Duration,
    changed: watch::Receiver<u64>,
}

impl Hold {
    /// Begins to hold a connection for this reason, one of a bounded set; none if too many are held. Decide once more
    /// before the first wait: what is published from now on ends it.
    pub(super) fn begin(worker: &Rc<Worker>, reason: &'static str) -> Option<Self> {
        let shared = &worker.shared;
        if worker.held.get() >= HELD_MAX {
            shared.telemetry.metrics().reach().held(reason, HoldResult::Full);
            return None;
        }
        worker.held.set(worker.held.get() + 1);
        Some(Self {
            worker: Rc::clone(worker),
            reason,
            result: Cell::new(HoldResult::Gone),
            until: Instant::now() + shared.hold,
            pause: PAUSE_MIN,
            changed: shared.state.changed(),
        })
    }

    /// Waits for another state; false when the time is over.
    pub(super) async fn for_state(&mut self) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        matches!(timeout(left, self.changed.changed()).await, Ok(Ok(())))
    }

    /// Waits for another state, or a moment; false when the time is over.
    pub(super) async fn for_a_moment(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until {
            return false;
        }
        let pause = self.pause.min(self.until - now);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        // A state that changes is worth trying at once; one that cannot change any more is not waited for twice.
        if let Ok(Err(_)) = timeout(pause, self.changed.changed()).await {
            tokio::time::sleep(pause).await;
        }
        true
    }

    /// It goes on, or does not.
    pub(super) fn end(self, result: HoldResult) {
        self.result.set(result);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.worker.held.set(self.worker.held.get() - 1);
        self.worker.shared.telemetry.metrics().reach().held(self.reason, self.result.get());
    }
}
