//! Bytes on their way from apps into one tunnel: how many may wait for the socket, in pieces of what size, and who waits.
//!
//! The codec sends the streams that have something in turn, one piece each. So that a small request waits for little, a
//! piece is small while several streams send, and what all of them have waiting is bounded. A stream with nothing
//! waiting never waits for the others' room.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

use super::budget::Budget;

/// Bytes of one tunnel that may wait in the codec, but for one [`SMALL`] piece of each stream that has none there.
pub(super) const TUNNEL: usize = 256 * 1024;
/// Largest piece, and so the largest DATA frame, while several streams send.
pub(super) const PIECE: usize = 64 * 1024;
/// Both for a tunnel in which small messages are sent: each of them waits for what is before it.
const TUNNEL_SHARED: usize = 64 * 1024;
const PIECE_SHARED: usize = 16 * 1024;
/// A piece of a stream that has nothing waiting is a small message up to this size.
const MESSAGE: usize = 2 * 1024;
/// Of a stream that has nothing waiting, so much is taken however much the others have.
pub(super) const SMALL: usize = 16 * 1024;
/// Less room than this is waited over.
const SLIVER: usize = 8 * 1024;
/// A stream after which no other has sent anything for so many bytes is alone, and may send larger frames.
const ALONE: u64 = 16 << 20;
/// What a piece costs beside its bytes: its place in the codec's queue, and its own allocation.
const OVERHEAD: usize = 256;
/// The budget is charged in steps, so that small requests cost no shared counter.
const STEP: usize = 64 * 1024;

/// What waits in one tunnel. Not `Send`: it lives on its worker.
#[derive(Default)]
pub struct Outbox {
    queued: Cell<usize>,
    /// The lane that sent last, and what it has sent since another one did.
    last: Cell<u64>,
    run: Cell<u64>,
    lanes: Cell<u64>,
    /// What all have sent, and what they had when the last small message was sent.
    sent: Cell<u64>,
    message_at: Cell<Option<u64>>,
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
            id: self.lanes.get(),
            queued: Cell::new(0),
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

    /// Whether small messages are sent here, as far as the last bytes tell.
    fn has_messages(&self) -> bool {
        self.message_at.get().is_some_and(|at| self.sent.get() - at < ALONE)
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

/// One stream's bytes that wait in its tunnel.
pub(super) struct Lane {
    outbox: Rc<Outbox>,
    id: u64,
    queued: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl Lane {
    /// How many bytes may be queued now, at least one. Pending while the tunnel, or the stream's part of it, is full.
    pub(super) fn poll_room(self: &Rc<Self>, cx: &Context<'_>) -> Poll<usize> {
        let (mine, all) = (self.queued.get(), self.outbox.queued());
        let (tunnel, piece) =
            if self.outbox.has_messages() { (TUNNEL_SHARED, PIECE_SHARED) } else { (TUNNEL, PIECE) };
        let room = match mine {
            _ if self.is_alone() => TUNNEL.saturating_sub(mine),
            0 if all >= tunnel => SMALL,
            0 => piece,
            _ if all >= tunnel => 0,
            _ => piece.saturating_sub(mine),
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

    /// Whether no other stream has sent for a while.
    fn is_alone(&self) -> bool {
        self.outbox.last.get() == self.id && self.outbox.run.get() >= ALONE
    }

    /// Takes the bytes into account until the piece has been written or dropped.
    pub(super) fn piece(self: &Rc<Self>, data: Bytes) -> Piece {
        let outbox = &self.outbox;
        let run = if outbox.last.replace(self.id) == self.id { outbox.run.get() } else { 0 };
        outbox.run.set(run.saturating_add(data.len() as u64));
        outbox.sent.set(outbox.sent.get() + data.len() as u64);
        if self.queued.get() == 0 && data.len() <= MESSAGE {
            outbox.message_at.set(Some(outbox.sent.get()));
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
        assert!(outbox.queued() <= TUNNEL + PIECE + 50 * (SMALL + OVERHEAD), "{}", outbox.queued());
        let sizes = || held.iter().flatten().map(Buf::remaining);
        assert!(sizes().all(|size| size <= PIECE) && held.iter().all(|pieces| !pieces.is_empty()));
        let small = outbox.lane();
        assert_eq!(room(&small), Some(SMALL), "a stream with nothing waiting does not wait for the others");
        drop(held);
        assert_eq!(outbox.queued(), 0);
    }

    #[test]
    fn only_a_stream_that_is_alone_gets_more_than_a_piece() {
        let outbox = Rc::<Outbox>::default();
        let (bulk, small) = (outbox.lane(), outbox.lane());
        for _ in 0..ALONE / PIECE as u64 {
            assert_eq!(room(&bulk), Some(PIECE));
            drop(bulk.piece(vec![0; PIECE].into()));
        }
        assert_eq!(room(&bulk), Some(TUNNEL));
        drop(small.piece(vec![0; 1].into()));
        assert_eq!(room(&bulk), Some(PIECE_SHARED), "another stream has sent a small message");
        let other = outbox.lane();
        for _ in 0..ALONE / PIECE as u64 {
            drop(bulk.piece(vec![0; PIECE / 2].into()));
            drop(other.piece(vec![0; PIECE / 2].into()));
        }
        assert_eq!(room(&bulk), Some(PIECE), "for long all that was sent was bulk");
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
        assert!(held.len() < PIECE / OVERHEAD, "{} single bytes", held.len());
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
