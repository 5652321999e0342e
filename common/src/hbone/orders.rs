//! What the owner of a tunnel asks of it while it runs.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// From the mildest on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Nothing.
    #[default]
    GoOn,
    /// Take no new streams and close behind the last.
    Retire,
    /// Close now, whatever is open.
    Cut,
}

/// The orders of one tunnel. Not `Send`: who gives them is on the tunnel's thread.
#[derive(Debug, Default)]
pub struct Orders {
    given: Cell<Order>,
    waker: RefCell<Option<Waker>>,
}

impl Orders {
    /// Asks for `order`; a milder one than before changes nothing.
    pub fn give(&self, order: Order) {
        if order > self.given.get() {
            self.given.set(order);
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// The order given, once it is beyond `obeyed`. One caller at a time. Cancel-safe.
    pub(super) async fn beyond(&self, obeyed: Order) -> Order {
        poll_fn(|cx| {
            let given = self.given.get();
            if given > obeyed {
                return Poll::Ready(given);
            }
            // Polled with each wake-up of the tunnel's task, whose waker stays the same.
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[tokio::test]
    async fn orders_only_get_stricter_and_wake() {
        let orders = Rc::new(Orders::default());
        let given = Rc::clone(&orders);
        let (first, ()) = tokio::join!(orders.beyond(Order::GoOn), async move {
            tokio::task::yield_now().await;
            given.give(Order::Retire);
        });
        assert_eq!(first, Order::Retire);
        orders.give(Order::Cut);
        orders.give(Order::Retire);
        assert_eq!(orders.beyond(Order::Retire).await, Order::Cut);
        let nothing = tokio::time::timeout(std::time::Duration::ZERO, orders.beyond(Order::Cut)).await;
        assert!(nothing.is_err());
    }
}
