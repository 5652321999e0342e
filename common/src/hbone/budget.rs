//! The memory that bytes on their way may hold: a limit for the process and one for each pod, and who goes first when
//! one is reached.
//!
//! A stream may hold what its peer may send: its window. What counts against the limits is therefore, for a stream
//! whose app has not read for a second, the whole window that was granted; for every other stream, what it holds
//! just now. Bytes from apps count while they wait in a tunnel. Over a limit nothing more is read for those it concerns,
//! and the worst stream is reset whose app has not read for a moment, never one whose app reads; new connections are
//! refused by the callers. A pod that holds next to nothing is not made to pay for those that passed the process's limit.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

/// An app that has not read for so long counts as stalled.
const STALL: Duration = Duration::from_secs(1);
/// Over a limit, one that has not read for so long may be reset: in a second a fast peer would send a multiple of it.
const STALL_OVER_LIMIT: Duration = Duration::from_millis(100);
/// A pod with no more than this part of the process's limit goes on while others have passed it by no more than a quarter.
const NEXT_TO_NOTHING: u64 = 64;

/// A limit: of the process, or of a pod within it. Shared by all workers.
pub struct Budget {
    limit: u64,
    held: AtomicU64,
    resets: AtomicU64,
    whole: Option<Arc<Budget>>,
}

impl Budget {
    /// **Shape**: `limit` in bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicU64::new(0), resets: AtomicU64::new(0), whole: None })
    }

    /// A part of this one: what it holds counts against both.
    pub fn part(self: &Arc<Self>, limit: u64) -> Arc<Self> {
        let whole = Some(Arc::clone(self));
        Arc::new(Self { limit, held: AtomicU64::new(0), resets: AtomicU64::new(0), whole })
    }

    /// Bytes allowed.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that count against the limit now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Streams that were reset to keep the limit.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// Whether this limit or the whole's is passed: no new connection should be taken, and nothing more be read.
    pub fn is_over(&self) -> bool {
        let by_others = |whole: &Self| {
            self.held() <= whole.limit / NEXT_TO_NOTHING && whole.held() <= whole.limit + whole.limit / 4
        };
        self.held() > self.limit
            || self.whole.as_ref().is_some_and(|whole| whole.is_over() && !by_others(whole))
    }

    /// Counts `bytes` more.
    pub fn charge(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.charge(bytes);
        }
    }

    /// Counts `bytes` less.
    pub fn release(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.release(bytes);
        }
    }

    fn count_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.count_reset();
        }
    }
}

/// One worker's streams that hold bytes. Not `Send`: it lives on its worker.
#[derive(Clone)]
pub struct Board {
    budget: Arc<Budget>,
    holders: Rc<RefCell<Vec<Rc<Holder>>>>,
    /// Who reads no more until its budget has room.
    paused: Rc<RefCell<Vec<Rc<Paused>>>>,
}

struct Paused {
    budget: Arc<Budget>,
    waker: RefCell<Option<Waker>>,
}

struct Holder {
    budget: Arc<Budget>,
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
        Self { budget, holders: Rc::default(), paused: Rc::default() }
    }

    /// The same board, for the streams of a pod whose part of the budget is `part`.
    pub fn of(&self, part: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(part), ..self.clone() }
    }

    /// What this board's streams count against.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// A stream that may come to hold bytes; `window` is what its peer may send unread.
    pub(super) fn join(&self, window: u64) -> Seat {
        Seat { board: self.clone(), window, holder: None }
    }

    /// What tells one stream when to stop reading.
    pub(super) fn gate(&self) -> Gate {
        Gate { board: self.clone(), paused: RefCell::new(None) }
    }

    /// Counts streams that have stalled by now, resets the worst while a limit is passed, and wakes who may read
    /// again. Once a second.
    pub fn sweep(&self, now: Instant) {
        for holder in self.holders.borrow().iter() {
            if now.duration_since(holder.since.get()) >= STALL {
                holder.charge(holder.cost.get().max(holder.window));
            }
        }
        let budgets: Vec<_> = self.holders.borrow().iter().map(|h| Arc::clone(&h.budget)).collect();
        for budget in budgets.iter().filter(|budget| budget.is_over()) {
            self.enforce(budget, now);
        }
        self.resume();
    }

    /// Wakes those whose budget has room again.
    fn resume(&self) {
        self.paused.borrow_mut().retain(|paused| {
            let room = !paused.budget.is_over();
            if room && let Some(waker) = paused.waker.borrow_mut().take() {
                waker.wake();
            }
            !room
        });
    }

    /// Resets streams that are not read, the worst first, until neither `budget` nor the whole is over its limit.
    fn enforce(&self, budget: &Arc<Budget>, now: Instant) {
        while budget.is_over() {
            let holders = self.holders.borrow();
            let own = budget.held() > budget.limit;
            let concerned = |h: &Holder| !own || Arc::ptr_eq(&h.budget, budget);
            let stalled = holders
                .iter()
                .filter(|h| concerned(h) && !h.evict.get())
                .filter(|h| now.duration_since(h.since.get()) >= STALL_OVER_LIMIT);
            let Some(worst) = stalled.max_by_key(|h| (h.cost.get(), now.duration_since(h.since.get())))
            else {
                return;
            };
            worst.evict.set(true);
            worst.charge(0);
            worst.budget.count_reset();
            if let Some(waker) = worst.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

impl Holder {
    fn charge(&self, amount: u64) {
        let before = self.charged.replace(amount);
        self.budget.charge(amount);
        self.budget.release(before);
    }
}

/// Tells one stream whether more may be read for it.
pub(super) struct Gate {
    board: Board,
    paused: RefCell<Option<Rc<Paused>>>,
}

impl Gate {
    /// Whether more may be read. If not, the waker is woken when there is room, at the latest by the next sweep.
    pub(super) fn may_read(&self, waker: &Waker) -> bool {
        if !self.board.budget.is_over() {
            return true;
        }
        let mut slot = self.paused.borrow_mut();
        let paused = slot.get_or_insert_with(|| {
            let budget = Arc::clone(&self.board.budget);
            Rc::new(Paused { budget, waker: RefCell::new(None) })
        });
        if paused.waker.borrow_mut().replace(waker.clone()).is_none() {
            self.board.paused.borrow_mut().push(Rc::clone(paused));
        }
        false
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(paused) = self.paused.borrow_mut().take() {
            self.board.paused.borrow_mut().retain(|other| !Rc::ptr_eq(other, &paused));
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
                budget: Arc::clone(&board.budget),
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
            holder.charge(cost);
        }
        holder.waker.borrow_mut().replace(waker.clone());
        if grew && board.budget.is_over() {
            board.enforce(&board.budget, Instant::now());
        }
        holder.evict.get()
    }

    fn leave(&mut self) {
        if let Some(holder) = self.holder.take() {
            holder.charge(0);
            self.board.holders.borrow_mut().retain(|other| !Rc::ptr_eq(other, &holder));
            if !self.board.paused.borrow().is_empty() {
                self.board.resume();
            }
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
    async fn a_pod_over_its_part_loses_its_own_streams_and_no_others() {
        let process = Budget::new(100_000);
        let board = Board::new(Arc::clone(&process));
        let [noisy, quiet] = [(); 2].map(|()| process.part(10_000));
        let (loud, calm) = (board.of(&noisy), board.of(&quiet));
        let (mut one, mut two, mut other) = (loud.join(6_000), loud.join(6_000), calm.join(9_000));
        assert!(
            !step(&mut one, 100, false) && !step(&mut two, 200, false) && !step(&mut other, 9_000, false)
        );
        tokio::time::advance(Duration::from_secs(2)).await;
        board.sweep(Instant::now());
        assert!(step(&mut two, 200, false), "two granted windows are over the pod's 10,000");
        assert!(!step(&mut one, 100, false) && !step(&mut other, 9_000, false));
        assert_eq!((noisy.held(), quiet.held(), process.held()), (6_000, 9_000, 15_000));
        assert_eq!((noisy.resets(), quiet.resets(), process.resets()), (1, 0, 1));
        drop((one, two, other));
        assert_eq!((noisy.held(), quiet.held(), process.held()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_limit_reading_stops_until_there_is_room() {
        struct Count(AtomicU64);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(AtomicU64::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let budget = Budget::new(1_000);
        let board = Board::new(Arc::clone(&budget));
        let gate = board.gate();
        let mut holds = board.join(5_000);
        assert!(gate.may_read(&waker));
        assert!(!step(&mut holds, 1_500, true));
        assert!(!gate.may_read(&waker) && !gate.may_read(&waker));
        assert_eq!(board.paused.borrow().len(), 1, "one place, however often it asks");
        board.sweep(Instant::now());
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "still over");
        assert!(!step(&mut holds, 0, true));
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "woken as soon as there is room");
        assert!(gate.may_read(&waker) && board.paused.borrow().is_empty());
        budget.charge(2_000);
        assert!(!gate.may_read(&waker));
        budget.release(2_000);
        board.sweep(Instant::now());
        assert_eq!(count.0.load(Ordering::Relaxed), 2, "what another worker gave back is seen by the sweep");
        drop(gate);
        assert!(board.paused.borrow().is_empty());
    }

    #[test]
    fn a_pod_that_holds_next_to_nothing_does_not_pay_for_others() {
        let whole = Budget::new(64_000);
        let (noisy, calm) = (whole.part(64_000), whole.part(32_000));
        calm.charge(1_000);
        noisy.charge(64_000);
        assert!(whole.is_over() && noisy.is_over() && !calm.is_over());
        calm.charge(1);
        assert!(calm.is_over(), "no more than a 64th of the whole");
        calm.release(1);
        noisy.charge(15_001);
        assert!(calm.is_over(), "nobody, once the limit is passed by more than a quarter");
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_limit_a_moment_without_reading_is_enough() {
        let budget = Budget::new(1_000);
        let board = Board::new(Arc::clone(&budget));
        let (mut stops, mut reads) = (board.join(4_000), board.join(4_000));
        assert!(!step(&mut stops, 900, false) && !step(&mut reads, 90, true));
        tokio::time::advance(STALL_OVER_LIMIT).await;
        assert!(!step(&mut reads, 95, true), "within the limit nobody goes");
        assert!(!step(&mut reads, 200, true), "it reads");
        assert!(step(&mut stops, 900, false));
        assert_eq!((budget.held(), budget.resets()), (200, 1));
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
