//! The memory that received bytes may hold: one limit for the process, and who goes first when it is reached.
//!
//! A stream may hold what its peer may send: its window. What counts against the limit is therefore, for a stream
//! whose app has not read for a second, the whole window that was granted; for every other stream, what it holds
//! just now. Over the limit the worst stalled stream is reset, never one whose app reads.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

/// An app that has not read for so long counts as stalled.
const STALL: Duration = Duration::from_secs(1);

/// The limit of the process; shared by all workers.
pub struct Budget {
    limit: u64,
    held: AtomicU64,
    resets: AtomicU64,
}

impl Budget {
    /// **Shape**: `limit` in bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicU64::new(0), resets: AtomicU64::new(0) })
    }

    /// Bytes that count against the limit now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Streams that were reset to keep the limit.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// Whether the limit is passed: no new connection should be taken.
    pub fn is_over(&self) -> bool {
        self.held() > self.limit
    }
}

/// One worker's streams that hold bytes. Not `Send`: it lives on its worker.
#[derive(Clone)]
pub struct Board {
    budget: Arc<Budget>,
    holders: Rc<RefCell<Vec<Rc<Holder>>>>,
}

struct Holder {
    cost: Cell<u64>,
    window: u64,
    charged: Cell<u64>,
    since: Cell<Instant>,
    evict: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Board {
    /// An empty board of `budget`.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, holders: Rc::default() }
    }

    /// A stream that may come to hold bytes; `window` is what its peer may send unread.
    pub(super) fn join(&self, window: u64) -> Seat {
        Seat { board: self.clone(), window, holder: None }
    }

    /// Counts streams that have stalled by now, and resets the worst while the limit is passed. Once a second.
    pub fn sweep(&self, now: Instant) {
        for holder in self.holders.borrow().iter() {
            if now.duration_since(holder.since.get()) >= STALL {
                self.charge(holder, holder.cost.get().max(holder.window));
            }
        }
        self.enforce(now);
    }

    fn charge(&self, holder: &Holder, amount: u64) {
        let before = holder.charged.replace(amount);
        self.budget.held.fetch_add(amount, Ordering::Relaxed);
        self.budget.held.fetch_sub(before, Ordering::Relaxed);
    }

    fn enforce(&self, now: Instant) {
        while self.budget.is_over() {
            let holders = self.holders.borrow();
            let stalled =
                holders.iter().filter(|h| !h.evict.get() && now.duration_since(h.since.get()) >= STALL);
            let Some(worst) = stalled.max_by_key(|h| (h.cost.get(), now.duration_since(h.since.get())))
            else {
                return;
            };
            worst.evict.set(true);
            self.charge(worst, 0);
            self.budget.resets.fetch_add(1, Ordering::Relaxed);
            if let Some(waker) = worst.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

/// A stream's place on the board; takes part only while it holds bytes.
pub(super) struct Seat {
    board: Board,
    window: u64,
    holder: Option<Rc<Holder>>,
}

impl Seat {
    /// The stream now holds `cost` bytes; `progress` says whether its app took some. Returns true if the stream must
    /// be reset.
    pub(super) fn update(&mut self, cost: usize, progress: bool, waker: &Waker) -> bool {
        let cost = cost as u64;
        if cost == 0 {
            self.leave();
            return false;
        }
        let board = &self.board;
        let holder = self.holder.get_or_insert_with(|| {
            let holder = Rc::new(Holder {
                cost: Cell::new(0),
                window: self.window,
                charged: Cell::new(0),
                since: Cell::new(Instant::now()),
                evict: Cell::new(false),
                waker: RefCell::new(None),
            });
            board.holders.borrow_mut().push(Rc::clone(&holder));
            holder
        });
        if holder.evict.get() {
            return true;
        }
        let grew = cost > holder.cost.replace(cost);
        if progress {
            holder.since.set(Instant::now());
        }
        if progress || holder.charged.get() < cost {
            board.charge(holder, cost);
        }
        holder.waker.borrow_mut().replace(waker.clone());
        if grew && board.budget.is_over() {
            board.enforce(Instant::now());
        }
        holder.evict.get()
    }

    fn leave(&mut self) {
        if let Some(holder) = self.holder.take() {
            self.board.charge(&holder, 0);
            self.board.holders.borrow_mut().retain(|other| !Rc::ptr_eq(other, &holder));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(seat: &mut Seat, cost: usize, progress: bool) -> bool {
        seat.update(cost, progress, Waker::noop())
    }

    #[tokio::test(start_paused = true)]
    async fn the_worst_stalled_stream_goes_and_one_that_reads_stays() {
        let budget = Budget::new(10_000);
        let board = Board::new(Arc::clone(&budget));
        let (mut reads, mut small, mut large) = (board.join(4_000), board.join(4_000), board.join(4_000));
        assert!(
            !step(&mut small, 100, false)
                && !step(&mut large, 3_000, false)
                && !step(&mut reads, 3_900, true)
        );
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!step(&mut reads, 3_900, true));
        board.sweep(Instant::now());
        assert!(step(&mut large, 3_000, false), "two granted windows and 3,900 bytes are over 10,000");
        assert!(!step(&mut small, 100, false) && !step(&mut reads, 3_900, true));
        assert_eq!((budget.held(), budget.resets()), (7_900, 1));
        drop((reads, small, large));
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_queue_costs_nothing_and_leaves_the_board() {
        let budget = Budget::new(10);
        let board = Board::new(Arc::clone(&budget));
        let mut seat = board.join(1_000);
        assert!(!step(&mut seat, 5, true) && !step(&mut seat, 0, true));
        assert_eq!((budget.held(), board.holders.borrow().len()), (0, 0));
    }
}
