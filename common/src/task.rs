//! The only place where tasks are spawned: a [`Scope`] owns them, drains them, then cuts them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Owner of a set of tasks. Clones share the set.
#[derive(Clone, Default)]
pub struct Scope {
    tasks: TaskTracker,
    /// Trackers of the scopes above, which wait for this one's tasks too.
    above: Vec<TaskTracker>,
    drain: CancellationToken,
    cut: CancellationToken,
    is_cut: Flag,
}

/// Whether a scope, or one above it, has been cut. Cheaper to ask than a token, which takes a lock.
#[derive(Clone, Default)]
struct Flag {
    own: Arc<AtomicBool>,
    above: Option<Arc<Flag>>,
}

impl Flag {
    fn is_set(&self) -> bool {
        self.own.load(Ordering::Acquire) || self.above.as_ref().is_some_and(|flag| flag.is_set())
    }
}

pin_project! {
    /// Work that is dropped when its scope is cut.
    ///
    /// A connection's task is polled several times a request: the token is polled once, to be woken by it, and after
    /// that only the flag is read.
    struct UntilCut<F> {
        #[pin]
        work: F,
        #[pin]
        cut: WaitForCancellationFutureOwned,
        is_cut: Flag,
        registered: bool,
        counted: Vec<TaskTrackerToken>,
    }
}

impl<F: Future<Output = ()>> Future for UntilCut<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // The waker of a spawned task never changes, so that registering it once is enough.
        if !std::mem::replace(this.registered, true) && this.cut.poll(cx).is_ready() || this.is_cut.is_set() {
            return Poll::Ready(());
        }
        this.work.poll(cx)
    }
}

impl Scope {
    /// Empty scope.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope of its own that drains and is cut when this one is, or earlier when asked to. Its tasks count here too.
    pub fn child(&self) -> Self {
        let mut above = self.above.clone();
        above.push(self.tasks.clone());
        let is_cut = Flag { own: Arc::default(), above: Some(Arc::new(self.is_cut.clone())) };
        let (drain, cut) = (self.drain.child_token(), self.cut.child_token());
        Self { tasks: TaskTracker::new(), above, drain, cut, is_cut }
    }

    fn until_cut<F: Future<Output = ()>>(&self, work: F) -> UntilCut<F> {
        UntilCut {
            work,
            cut: self.cut.clone().cancelled_owned(),
            is_cut: self.is_cut.clone(),
            registered: false,
            counted: self.above.iter().map(TaskTracker::token).collect(),
        }
    }

    /// Runs `work` on the current runtime. After the drain deadline it is dropped at whichever await it stands.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.until_cut(work));
    }

    /// As [`Scope::spawn`], for work that stays on this thread. Needs a local runtime or a `LocalSet`.
    pub fn spawn_local(&self, work: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(self.until_cut(work));
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
        self.is_cut.own.store(true, Ordering::Release); // before the token wakes those who look at it
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
        self.cut();
        self.tasks.wait().await;
        left
    }
}

/// Work without which the process must not go on.
pub struct Essential {
    /// Owner of what [`Essential::spawn`] runs.
    pub scope: Scope,
    tell: mpsc::Sender<&'static str>,
    ended: mpsc::Receiver<&'static str>,
}

/// Tells of the end of essential work when it is dropped: also when that panics.
pub struct Watched {
    name: &'static str,
    tell: mpsc::Sender<&'static str>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        // One end is enough: what does not fit is not needed.
        let _heard = self.tell.try_send(self.name);
    }
}

impl Default for Essential {
    fn default() -> Self {
        let (tell, ended) = mpsc::channel(1);
        Self { scope: Scope::new(), tell, ended }
    }
}

impl Essential {
    /// Runs `work` until its scope is cut.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let watched = self.watched(name);
        self.scope.spawn(async move {
            let _until_its_end = watched;
            work.await;
        });
    }

    /// For work that others own, and hold this as long as it goes on.
    pub fn watched(&self, name: &'static str) -> Watched {
        Watched { name, tell: self.tell.clone() }
    }

    /// Waits for the end of any of it: its name. Cancel-safe.
    pub async fn ended(&mut self) -> &'static str {
        self.ended.recv().await.unwrap_or("a task")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn essential_work_that_ends_or_panics_is_told_of() {
        let mut essential = Essential::default();
        essential.spawn("endless", std::future::pending());
        essential.spawn("short", async {});
        assert_eq!(essential.ended().await, "short");
        essential.spawn("broken", async { panic!("on purpose") });
        assert_eq!(essential.ended().await, "broken");
        drop(essential.watched("others'"));
        assert_eq!(essential.ended().await, "others'");
    }

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
    async fn a_scope_waits_for_its_childrens_work_and_not_the_other_way_round() {
        let parent = Scope::new();
        let child = parent.child();
        child.child().spawn(tokio::time::sleep(Duration::from_secs(1)));
        assert_eq!(child.shut_down(Duration::from_secs(5)).await, 0);
        let other = parent.child();
        parent.spawn(std::future::pending());
        other.spawn(std::future::pending());
        assert_eq!((other.len(), parent.len()), (1, 2));
        assert_eq!(other.shut_down(Duration::from_secs(1)).await, 1);
        assert_eq!(parent.shut_down(Duration::from_secs(1)).await, 1);
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
