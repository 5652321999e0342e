//! The only place where tasks are spawned: a [`Scope`] owns them, drains them, then cuts them.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owner of a set of tasks. Clones share the set.
#[derive(Clone, Default)]
pub struct Scope {
    tasks: TaskTracker,
    drain: CancellationToken,
    cut: CancellationToken,
}

impl Scope {
    /// Empty scope.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope of its own that drains and is cut when this one is, or earlier when asked to.
    pub fn child(&self) -> Self {
        Self { tasks: TaskTracker::new(), drain: self.drain.child_token(), cut: self.cut.child_token() }
    }

    /// Runs `work` on the current runtime. After the drain deadline it is dropped at whichever await it stands.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            cut.run_until_cancelled(work).await;
        });
    }

    /// As [`Scope::spawn`], for work that stays on this thread. Needs a `LocalSet`.
    pub fn spawn_local(&self, work: impl Future<Output = ()> + 'static) {
        let cut = self.cut.clone();
        self.tasks.spawn_local(async move {
            cut.run_until_cancelled(work).await;
        });
    }

    /// Resolves when no new work may start. Cancel-safe.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Resolves when all work has been dropped. Cancel-safe.
    pub async fn ended(&self) {
        self.cut.cancelled().await;
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Asks for no new work; open work goes on.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Drops all work at once.
    pub fn cut(&self) {
        self.drain.cancel();
        self.cut.cancel();
    }

    /// Number of tasks that have not ended.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task is left.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// No new work, up to `grace` for open work, then cut. Returns how many were cut; 0 is clean.
    pub async fn shut_down(&self, grace: Duration) -> usize {
        self.drain.cancel();
        self.tasks.close();
        let clean = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        let left = if clean { 0 } else { self.tasks.len() };
        self.cut.cancel();
        self.tasks.wait().await;
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_ends_in_time_is_not_cut() {
        let scope = Scope::new();
        let inner = scope.clone();
        scope.spawn(async move { inner.draining().await });
        assert_eq!(scope.shut_down(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_does_not_end_is_cut_and_counted() {
        let scope = Scope::new();
        scope.spawn(std::future::pending());
        scope.spawn(std::future::pending());
        assert_eq!(scope.shut_down(Duration::from_secs(5)).await, 2);
        assert!(scope.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_follows_its_parent_and_not_the_other_way_round() {
        let parent = Scope::new();
        let child = parent.child();
        child.drain();
        assert!(!parent.is_draining());
        let other = parent.child();
        parent.drain();
        assert!(other.is_draining());
    }
}
