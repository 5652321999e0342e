//! What a busy task waits for and seldom gets: timers, orders, the end of everything.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use pin_project_lite::pin_project;

pin_project! {
    /// Work that is polled only when it was woken itself, not with each wake-up of its task.
    ///
    /// A tunnel's driver is polled with each message, and asking a handful of futures each time that nothing has come
    /// of them costs more than many a message.
    pub(super) struct Seldom<F> {
        #[pin]
        work: F,
        woken: Arc<Woken>,
        waker: Waker,
        // The task's, as `woken` has it.
        task: Option<Waker>,
    }
}

struct Woken {
    is_woken: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_woken.swap(true, Ordering::AcqRel)
            && let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner)
        {
            task.wake_by_ref();
        }
    }
}

impl<F: Future> Seldom<F> {
    pub(super) fn new(work: F) -> Self {
        let woken = Arc::new(Woken { is_woken: AtomicBool::new(true), task: Mutex::new(None) });
        let waker = Waker::from(Arc::clone(&woken));
        Self { work, woken, waker, task: None }
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // A spawned task's waker stays the same, so that this is done once.
        if !this.task.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *this.task = Some(cx.waker().clone());
            this.woken.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(this.task);
        }
        // Loaded first: a plain read is all that it costs when there is nothing.
        if !this.woken.is_woken.load(Ordering::Relaxed) || !this.woken.is_woken.swap(false, Ordering::AcqRel)
        {
            return Poll::Pending;
        }
        this.work.poll(&mut Context::from_waker(this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_is_polled_when_it_was_woken_and_wakes_its_task() {
        let (polls, order) = (Cell::new(0), Notify::new());
        let mut seldom = pin!(Seldom::new(async {
            let mut work = pin!(async {
                order.notified().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            });
            poll_fn(|cx| {
                polls.set(polls.get() + 1);
                work.as_mut().poll(cx)
            })
            .await;
        }));
        for _ in 0..100 {
            let is_pending = poll_fn(|cx| Poll::Ready(seldom.as_mut().poll(cx).is_pending())).await;
            assert!(is_pending);
            yield_now().await;
        }
        assert_eq!(polls.get(), 1, "nothing has happened");
        order.notify_one();
        seldom.await;
        assert_eq!(polls.get(), 3, "told, and its time came");
    }

    #[tokio::test]
    async fn it_may_move_to_another_task() {
        let order = Notify::new();
        let mut seldom = pin!(Seldom::new(order.notified()));
        assert!(seldom.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        tokio::join!(seldom, async { order.notify_one() });
    }
}
