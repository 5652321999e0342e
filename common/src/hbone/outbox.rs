//! Bytes on their way from apps into one tunnel: how many may wait for the socket, in pieces of what size, and who waits.
//!
//! The codec sends the streams that have something in turn, one piece each. Small messages wait for what is before them,
//! in their tunnel and for their worker, so while a worker has any, pieces are small and what waits is little; bulk alone
//! gets what costs least to move. The tunnel's socket (`wire.rs`), its TLS (`records.rs`) and the pool ask here which of
//! the two it is. A stream with nothing waiting never waits for the others' room.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

use super::budget::Budget;

/// Bytes of one tunnel that may wait in the codec, but for one [`SMALL`] piece of each stream that has none there.
pub(super) const TUNNEL: usize = 1 << 20;
/// Largest piece, and so the largest DATA frame, and all that the codec lets one stream have waiting: one write.
pub(super) const PIECE: usize = 256 * 1024;
/// The same with what several pieces cost beside their bytes: it is not for that that the last of them is cut short.
const QUEUE: usize = PIECE + 8 * OVERHEAD;
/// Largest piece where other streams are open in the tunnel, which may be next: several of them wait, and go in turn.
const PIECE_OF_MANY: usize = 64 * 1024;
/// What may wait, and a piece, in a tunnel in which small messages are sent: each of them waits for what is before it.
const TUNNEL_SHARED: usize = 64 * 1024;
const PIECE_SHARED: usize = 16 * 1024;
/// A piece of a stream that has nothing waiting is a small message up to this size, unless it ends a longer one.
const MESSAGE: usize = 2 * 1024;
/// Of a stream that has nothing waiting, so much is taken however much the others have.
pub(super) const SMALL: usize = 16 * 1024;
/// Less room than this is waited over, and less credit not sent while there is more to be had.
pub(super) const SLIVER: usize = 8 * 1024;
/// After a small message so many bytes pass before there are none any more,
const MESSAGE_HOLDS: u64 = 16 << 20;
/// and after many, that all together: where bulk takes all it can get, even those who ask again and again seldom have a turn.
const MESSAGES_HOLD: u64 = 128 << 20;
/// A tunnel through which less has passed carries no bulk yet.
const BULK: u64 = 1 << 20;
/// What a piece costs beside its bytes: its place in the codec's queue, and its own allocation.
const OVERHEAD: usize = 256;
/// The budget is charged in steps, so that small requests cost no shared counter.
const STEP: usize = 64 * 1024;

thread_local! {
    /// Through all tunnels of the worker.
    static WORKER: Passing = const { Passing::new() };
}

/// What passes, either way.
struct Passing {
    bytes: Cell<u64>,
    /// Up to here there are small messages.
    messages: Cell<u64>,
}

impl Passing {
    const fn new() -> Self {
        Self { bytes: Cell::new(0), messages: Cell::new(0) }
    }

    fn pass(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
    }

    fn message(&self) {
        let now = self.bytes.get();
        let held = self.messages.get().max(now) + MESSAGE_HOLDS;
        self.messages.set(held.min(now + MESSAGES_HOLD));
    }

    fn has_messages(&self) -> bool {
        self.bytes.get() < self.messages.get()
    }
}

impl Default for Passing {
    fn default() -> Self {
        Self::new()
    }
}

/// What waits in one tunnel. Not `Send`: it lives on its worker.
#[derive(Default)]
pub struct Outbox {
    queued: Cell<usize>,
    /// Streams that are open.
    lanes: Cell<usize>,
    passing: Passing,
    waiting: RefCell<Vec<Weak<Lane>>>,
    /// The pod's budget, and what it has been charged.
    budget: OnceCell<Arc<Budget>>,
    charged: Cell<usize>,
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.get() {
            budget.release(self.charged.get() as u64);
        }
    }
}

impl Outbox {
    /// Bytes that wait in the codec, at what memory holds for them.
    pub fn queued(&self) -> usize {
        self.queued.get()
    }

    /// A stream's part of it.
    pub(super) fn lane(self: &Rc<Self>) -> Rc<Lane> {
        self.lanes.set(self.lanes.get() + 1);
        Rc::new(Lane {
            outbox: Rc::clone(self),
            queued: Cell::new(0),
            sent: Run::default(),
            waker: RefCell::new(None),
        })
    }

    /// What waits counts against `budget`, that of the pod whose tunnel it is.
    pub(super) fn charge_to(&self, budget: &Arc<Budget>) {
        self.budget.get_or_init(|| Arc::clone(budget));
    }

    fn set_queued(&self, bytes: usize) {
        self.queued.set(bytes);
        let (charge, charged) = (bytes / STEP * STEP, self.charged.get());
        if charge != charged
            && let Some(budget) = self.budget.get()
        {
            self.charged.set(charge);
            budget.charge(charge as u64);
            budget.release(charged as u64);
        }
    }

    /// Whether small messages pass through this or another tunnel of the worker, as far as the last bytes tell.
    pub(super) fn has_messages(&self) -> bool {
        self.passing.has_messages() || WORKER.with(Passing::has_messages)
    }

    /// Whether bulk passes through this one, and nothing else.
    pub(super) fn is_bulk(&self) -> bool {
        self.passing.bytes.get() >= BULK && !self.passing.has_messages()
    }

    /// Takes note of bytes that pass.
    pub(super) fn pass(&self, bytes: usize) {
        self.passing.pass(bytes);
        WORKER.with(|worker| worker.pass(bytes));
    }

    /// Takes note of a small message.
    pub(super) fn message(&self) {
        self.passing.message();
        WORKER.with(Passing::message);
    }

    fn release(&self, bytes: usize) {
        let before = self.queued.get();
        self.set_queued(before - bytes);
        // Half empty, all are woken: whoever then has no use for the room keeps nobody from it.
        let falls_below = |level: usize| before > level && self.queued.get() <= level;
        if falls_below(TUNNEL / 2) || falls_below(TUNNEL_SHARED / 2) {
            for lane in self.waiting.borrow_mut().drain(..).filter_map(|lane| lane.upgrade()) {
                lane.wake();
            }
        }
    }
}

/// Pieces of one direction of a stream, as they come.
#[derive(Default)]
pub(super) struct Run {
    last: Cell<usize>,
}

impl Run {
    /// Whether a piece of `bytes` is a small message: not the end of something longer, which ends wherever its sender had
    /// no more room, or credit.
    pub(super) fn is_message(&self, bytes: usize) -> bool {
        let last = self.last.replace(bytes);
        (1..=MESSAGE).contains(&bytes) && last <= MESSAGE
    }
}

/// One stream's bytes that wait in its tunnel.
pub(super) struct Lane {
    outbox: Rc<Outbox>,
    queued: Cell<usize>,
    sent: Run,
    waker: RefCell<Option<Waker>>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        let outbox = &self.outbox;
        outbox.lanes.set(outbox.lanes.get() - 1);
        if outbox.lanes.get() == 0 {
            // The next stream may be used for something else.
            outbox.passing.bytes.set(0);
            outbox.passing.messages.set(0);
        }
    }
}

impl Lane {
    /// How many bytes may be queued now, at least one. Pending while the tunnel, or the stream's part of it, is full.
    pub(super) fn poll_room(self: &Rc<Self>, cx: &Context<'_>) -> Poll<usize> {
        let (mine, all) = (self.queued.get(), self.outbox.queued());
        let (tunnel, piece, queue) = if self.outbox.has_messages() {
            (TUNNEL_SHARED, PIECE_SHARED, PIECE_SHARED)
        } else {
            (TUNNEL, PIECE, QUEUE)
        };
        let room = match mine {
            0 if all >= tunnel => SMALL,
            0 => piece,
            _ if all >= tunnel => 0,
            _ => queue.saturating_sub(mine),
        };
        // A sliver is not worth a frame while more is on its way.
        if mine == 0 || room >= SLIVER {
            return Poll::Ready(room);
        }
        if self.waker.borrow_mut().replace(cx.waker().clone()).is_none() {
            self.outbox.waiting.borrow_mut().push(Rc::downgrade(self));
        }
        Poll::Pending
    }

    /// The next piece of `data`, no larger than others may wait for.
    pub(super) fn cut(self: &Rc<Self>, data: &mut Bytes) -> Piece {
        let most = match self.outbox.lanes.get() {
            _ if data.len() <= PIECE_SHARED => PIECE_SHARED,
            _ if self.outbox.has_messages() => PIECE_SHARED,
            0 | 1 => PIECE,
            _ => PIECE_OF_MANY,
        };
        self.piece(data.split_to(most.min(data.len())))
    }

    /// Takes the bytes into account until the piece has been written or dropped.
    fn piece(self: &Rc<Self>, data: Bytes) -> Piece {
        let outbox = &self.outbox;
        outbox.pass(data.len());
        if self.sent.is_message(data.len()) && self.queued.get() == 0 {
            outbox.message();
        }
        let cost = data.len() + OVERHEAD;
        self.queued.set(self.queued.get() + cost);
        outbox.set_queued(outbox.queued() + cost);
        Piece { data, lane: Rc::clone(self) }
    }

    /// The pod's budget, for what waits here.
    pub(super) fn charge_to(&self, budget: &Arc<Budget>) {
        self.outbox.charge_to(budget);
    }

    /// Its tunnel's.
    #[cfg(test)]
    pub(super) fn outbox(&self) -> &Rc<Outbox> {
        &self.outbox
    }

    /// Whether nothing of the stream waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queued.get() == 0
    }

    fn release(&self, bytes: usize) {
        self.queued.set(self.queued.get() - bytes);
        self.outbox.release(bytes);
        if self.queued.get() == 0 {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Bytes in the codec that count as waiting until they are written.
pub struct Piece {
    data: Bytes,
    lane: Rc<Lane>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
        self.lane.release(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.lane.release(self.data.len() + OVERHEAD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(lane: &Rc<Lane>) -> Option<usize> {
        match lane.poll_room(&Context::from_waker(Waker::noop())) {
            Poll::Ready(room) => Some(room),
            Poll::Pending => None,
        }
    }

    /// Queues as much as there is room for.
    fn fill(lane: &Rc<Lane>) -> Vec<Piece> {
        std::iter::from_fn(|| room(lane).map(|room| lane.piece(vec![0; room].into()))).collect()
    }

    #[test]
    fn a_tunnel_holds_its_limit_and_a_small_piece_of_each_stream() {
        let outbox = Rc::<Outbox>::default();
        let lanes: Vec<_> = (0..50).map(|_| outbox.lane()).collect();
        let held: Vec<_> = lanes.iter().map(fill).collect();
        assert!(outbox.queued() <= TUNNEL + QUEUE + 50 * (SMALL + OVERHEAD), "{}", outbox.queued());
        assert!(held.iter().all(|pieces| !pieces.is_empty()));
        let small = outbox.lane();
        assert_eq!(room(&small), Some(SMALL), "a stream with nothing waiting does not wait for the others");
        drop(held);
        assert_eq!(outbox.queued(), 0);
    }

    /// Pieces of 256 KiB.
    fn cut(lane: &Rc<Lane>) -> Vec<usize> {
        let mut data = Bytes::from(vec![0; PIECE]);
        let held: Vec<_> = std::iter::from_fn(|| (!data.is_empty()).then(|| lane.cut(&mut data))).collect();
        held.iter().map(Buf::remaining).collect()
    }

    #[test]
    fn bulk_that_is_passed_on_waits_in_whole_frames() {
        let outbox = Rc::<Outbox>::default();
        let (bulk, _other) = (outbox.lane(), outbox.lane());
        let mut held = Vec::new();
        while let Some(room) = room(&bulk) {
            held.push(bulk.piece(vec![0; PIECE_OF_MANY.min(room)].into()));
        }
        assert_eq!(held.iter().map(Buf::remaining).collect::<Vec<_>>(), [PIECE_OF_MANY; 4]);
    }

    #[test]
    fn what_is_long_is_cut_for_those_who_may_be_next() {
        let outbox = Rc::<Outbox>::default();
        let bulk = outbox.lane();
        assert_eq!(cut(&bulk), [PIECE]);
        let _other = outbox.lane();
        assert_eq!(cut(&bulk), [PIECE_OF_MANY; 4]);
        outbox.message();
        assert_eq!(cut(&bulk), [PIECE_SHARED; 16]);
    }

    #[test]
    fn pieces_are_small_while_there_are_small_messages() {
        let outbox = Rc::<Outbox>::default();
        let bulk = outbox.lane();
        assert_eq!(room(&bulk), Some(PIECE), "nothing is known yet");
        let (other, small) = (outbox.lane(), outbox.lane());
        drop(bulk.piece(vec![0; PIECE].into()));
        drop(small.piece(vec![0; 1].into()));
        assert_eq!(room(&bulk), Some(PIECE_SHARED), "another stream has sent a small message");
        for _ in 0..MESSAGE_HOLDS / PIECE as u64 {
            assert!(outbox.has_messages() && !outbox.is_bulk());
            drop(bulk.piece(vec![0; PIECE / 2].into()));
            drop(other.piece(vec![0; PIECE / 2].into()));
        }
        assert_eq!(room(&bulk), Some(PIECE), "for long all that was sent was bulk");
        assert!(outbox.is_bulk());
        outbox.message();
        assert_eq!(room(&bulk), Some(PIECE_SHARED), "one that came in counts as well");
    }

    #[test]
    fn many_messages_are_remembered_longer() {
        let passing = Passing::new();
        (0..1000).for_each(|_| passing.message());
        passing.pass(MESSAGES_HOLD as usize - 1);
        assert!(passing.has_messages());
        passing.pass(1);
        assert!(!passing.has_messages());
    }

    #[test]
    fn a_message_in_one_tunnel_makes_pieces_small_in_all_of_the_worker() {
        let (one, other) = (Rc::<Outbox>::default(), Rc::<Outbox>::default());
        let lane = other.lane();
        one.message();
        assert_eq!(room(&lane), Some(PIECE_SHARED));
        other.pass(BULK as usize);
        assert!(other.is_bulk(), "though what is small goes elsewhere");
    }

    #[test]
    fn the_end_of_something_longer_is_no_message() {
        let run = Run::default();
        let cases = [
            (1, true),
            (MESSAGE, true),
            (PIECE, false),
            (100, false),
            (100, true),
            (0, false),
            (MESSAGE + 1, false),
            (300, false), // behind what is hardly longer: a window has ends too
        ];
        for (bytes, message) in cases {
            assert_eq!(run.is_message(bytes), message, "{bytes}");
        }
    }

    #[test]
    fn a_tunnel_that_was_empty_is_used_anew() {
        let outbox = Rc::<Outbox>::default();
        let lane = outbox.lane();
        outbox.pass(BULK as usize);
        assert!(outbox.is_bulk());
        drop((lane.piece(vec![0; 1].into()), lane));
        assert!(!outbox.is_bulk());
    }

    #[test]
    fn a_tunnel_half_empty_wakes_all_who_wait() {
        struct Count(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(0.into()));
        let waker = Waker::from(Arc::clone(&count));
        let outbox = Rc::<Outbox>::default();
        let lanes: Vec<_> = (0..8).map(|_| outbox.lane()).collect();
        let mut held: Vec<_> = lanes.iter().map(fill).collect();
        let waits = |lane| Lane::poll_room(lane, &Context::from_waker(&waker)).is_pending();
        assert!(lanes.iter().all(waits));
        while outbox.queued() > TUNNEL / 2 {
            held.pop();
        }
        assert_eq!(count.0.load(std::sync::atomic::Ordering::Relaxed), 8);
    }

    #[test]
    fn what_waits_counts_against_the_budget_and_is_given_back() {
        let (outbox, budget) = (Rc::<Outbox>::default(), Budget::new(1 << 20));
        outbox.charge_to(&budget);
        let lanes: Vec<_> = (0..16).map(|_| outbox.lane()).collect();
        drop(lanes[0].piece(vec![0; 1000].into()));
        assert_eq!(budget.held(), 0, "a small request charges nothing");
        let held: Vec<_> = lanes.iter().map(fill).collect();
        assert!(budget.held() > (outbox.queued() - STEP) as u64 && budget.held() <= outbox.queued() as u64);
        drop(held);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn single_bytes_are_charged_at_what_they_cost() {
        let outbox = Rc::<Outbox>::default();
        let lane = outbox.lane();
        let mut held = Vec::new();
        while room(&lane).is_some() {
            held.push(lane.piece(vec![0; 1].into()));
        }
        assert!(held.len() < QUEUE / OVERHEAD, "{} single bytes", held.len());
    }

    #[test]
    fn what_is_written_makes_room_before_the_piece_is_gone() {
        let outbox = Rc::<Outbox>::default();
        let lane = outbox.lane();
        let mut piece = lane.piece(vec![0; 1000].into());
        piece.advance(400);
        assert_eq!(outbox.queued(), 600 + OVERHEAD);
        drop(piece);
        assert_eq!(outbox.queued(), 0);
    }
}
