//! A byte stream with somebody at its other end: a CONNECT stream of a tunnel, or a TCP connection. For those who look into
//! the bytes; who only moves them has [`super::relay`].
//!
//! What arrives leaves the codec at once and waits here, charged to the budget; its sender gets credit when it is taken, so
//! that nobody sends faster than somebody takes. What is written waits for credit or for room in the socket.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::HeaderMap;
use tokio::net::TcpStream;

use super::budget::{Board, Gate, Seat};
use super::client::Slot;
use super::queue::Queue;
use super::relay::Stream;
use super::stream::{RecvHalf, ResetReason, SendHalf, StreamEnd};
use crate::net::copy::{ReadSize, shutdown_write, try_read};
use crate::net::socket::set_reset_on_drop;

/// Why a link ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream was reset, or its tunnel broke.
    #[error("{0}")]
    Stream(StreamEnd),
    /// The TCP connection broke.
    #[error("the connection broke off: {0}")]
    Tcp(io::Error),
    /// Nobody took its bytes, and they were the most expensive to keep.
    #[error("what arrived was not taken, and the memory budget was used up")]
    Budget,
}

/// What arrives.
pub struct Reader {
    from: From,
}

enum From {
    Tunnel(Inbox<RecvHalf>),
    Tcp(Rc<TcpStream>, ReadSize),
}

/// What is sent.
pub struct Writer {
    to: To,
    /// Its place in the tunnel, as long as the stream lives.
    _slot: Option<Slot>,
}

enum To {
    Tunnel(SendHalf),
    Tcp(Rc<TcpStream>),
}

/// The two directions of a CONNECT stream; `slot` is its place in a tunnel that we opened.
pub fn tunnel(stream: Stream, slot: Option<Slot>, board: &Board) -> (Reader, Writer) {
    stream.send.charge_to(board.budget());
    let inbox = Inbox::new(stream.recv, u64::from(stream.window), board);
    (Reader { from: From::Tunnel(inbox) }, Writer { to: To::Tunnel(stream.send), _slot: slot })
}

/// The two directions of a TCP connection.
pub fn tcp(stream: TcpStream) -> (Reader, Writer) {
    let stream = Rc::new(stream);
    let from = From::Tcp(Rc::clone(&stream), ReadSize::default());
    (Reader { from }, Writer { to: To::Tcp(stream), _slot: None })
}

impl Reader {
    /// The next bytes, never none; `None` is the orderly end.
    ///
    /// **Errors**: the other end broke off. **Cancel safety**: nothing is lost between two polls.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, LinkError>> {
        match &mut self.from {
            From::Tunnel(inbox) => inbox.poll_next(cx),
            From::Tcp(stream, size) => loop {
                match try_read(stream, size, usize::MAX) {
                    Ok(data) => return Poll::Ready(Ok(Some(data).filter(|data| !data.is_empty()))),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(stream.poll_read_ready(cx)).map_err(LinkError::Tcp)?;
                    }
                    Err(error) => return Poll::Ready(Err(LinkError::Tcp(error))),
                }
            },
        }
    }

    /// Ready when the other end has ended or broken off, whatever it has said before; that is kept. Of a TCP connection nothing
    /// is known before it is read.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Option<LinkError>> {
        match &mut self.from {
            From::Tunnel(inbox) => inbox.poll_gone(cx),
            From::Tcp(..) => Poll::Pending,
        }
    }

    /// Whether something has come that nobody has taken.
    pub fn is_ahead(&self) -> bool {
        matches!(&self.from, From::Tunnel(inbox) if !inbox.queue.is_empty())
    }
}

/// Where an [`Inbox`] gets its bytes from.
trait Source {
    /// The next bytes; `None` is the orderly end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamEnd>>>;
    /// Lets the sender send so many bytes more.
    fn credit(&mut self, bytes: usize);
}

impl Source for RecvHalf {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamEnd>>> {
        let next = ready!(RecvHalf::poll_data(self, cx));
        Poll::Ready(next.filter(|data| !matches!(data, Err(end) if end.is_orderly())))
    }

    fn credit(&mut self, bytes: usize) {
        RecvHalf::credit(self, bytes);
    }
}

impl Source for h2::RecvStream {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamEnd>>> {
        let next = ready!(h2::RecvStream::poll_data(self, cx));
        Poll::Ready(next.map(|data| data.map_err(|error| StreamEnd::from_h2(&error))))
    }

    fn credit(&mut self, bytes: usize) {
        // An error says that the stream is gone, which `poll_data` reports with its reason.
        let _gone = self.flow_control().release_capacity(bytes);
    }
}

/// What has come on a stream and has not been taken, out of the codec and charged to the budget.
struct Inbox<S> {
    from: S,
    queue: Queue,
    seat: Seat,
    gate: Gate,
    /// Credit that the sender gets when the budget has room.
    owed: usize,
    ended: bool,
    /// Told once all that came before it has been taken.
    broken: Option<StreamEnd>,
}

impl<S: Source> Inbox<S> {
    fn new(from: S, window: u64, board: &Board) -> Self {
        let (seat, gate) = (board.join(window), board.gate());
        Self { from, queue: Queue::default(), seat, gate, owed: 0, ended: false, broken: None }
    }

    /// Takes everything out of the codec: what stays there it may take for an attack. The first bytes go into `first`, if it
    /// is there and nothing is before them.
    fn fetch(&mut self, cx: &mut Context<'_>, mut first: Option<&mut Bytes>) {
        while !self.ended && self.broken.is_none() {
            match self.from.poll_data(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(Ok(data))) if data.is_empty() => {}
                Poll::Ready(Some(Ok(data))) => match first.take_if(|_| self.queue.is_empty()) {
                    Some(first) => *first = data,
                    None => self.queue.push(data),
                },
                Poll::Ready(Some(Err(end))) => self.broken = Some(end),
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, LinkError>> {
        let mut first = Bytes::new();
        self.fetch(cx, Some(&mut first));
        let chunk = if first.is_empty() { self.queue.pop() } else { Some(first) };
        if let Some(chunk) = &chunk {
            self.owed += chunk.len();
        }
        if self.owed > 0 && self.gate.may_read(cx.waker()) {
            self.from.credit(std::mem::take(&mut self.owed));
        }
        if self.seat.update(self.queue.cost(), chunk.is_some(), cx.waker()) {
            return Poll::Ready(Err(LinkError::Budget));
        }
        match (chunk, self.broken) {
            (Some(chunk), _) => Poll::Ready(Ok(Some(chunk))),
            (None, Some(end)) => Poll::Ready(Err(LinkError::Stream(end))),
            (None, None) if self.ended => Poll::Ready(Ok(None)),
            (None, None) => Poll::Pending,
        }
    }

    /// As [`Reader::poll_gone`].
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Option<LinkError>> {
        self.fetch(cx, None);
        if self.seat.update(self.queue.cost(), false, cx.waker()) {
            return Poll::Ready(Some(LinkError::Budget));
        }
        match self.broken {
            Some(end) => Poll::Ready(Some(LinkError::Stream(end))),
            None if self.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// A body that arrives on a stream of an HTTP/2 connection which runs through a link. Nothing of it stays in the codec, where
/// it would not count, and where a stream that nobody takes would use up what its connection may send.
pub struct Arrivals {
    inbox: Inbox<h2::RecvStream>,
}

impl Arrivals {
    /// `window` is what its sender may send unread.
    pub fn new(stream: h2::RecvStream, window: u32, board: &Board) -> Self {
        Self { inbox: Inbox::new(stream, u64::from(window), board) }
    }

    /// The next bytes, never none; `None` is their end, behind which there may be trailers.
    ///
    /// **Errors**: the stream or its connection broke off. **Cancel safety**: nothing is lost between two polls.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, LinkError>> {
        self.inbox.poll_next(cx)
    }

    /// The trailers, once all bytes have been taken.
    ///
    /// **Errors**: the stream or its connection broke off.
    pub fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, LinkError>> {
        let trailers = ready!(self.inbox.from.poll_trailers(cx));
        Poll::Ready(trailers.map_err(|error| LinkError::Stream(StreamEnd::from_h2(&error))))
    }

    /// Ready when the stream has broken off; what came before is kept.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        match ready!(self.inbox.poll_gone(cx)) {
            Some(error) => Poll::Ready(error),
            None => Poll::Pending,
        }
    }

    /// Whether nothing more is to come.
    pub fn is_end(&self) -> bool {
        self.inbox.queue.is_empty() && self.inbox.from.is_end_stream()
    }
}

impl Writer {
    /// Hands `data` over, all of it in the end.
    ///
    /// **Errors**: the other end broke off. **Cancel safety**: what was not taken is still in `data`.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<Result<(), LinkError>> {
        while !data.is_empty() {
            match &mut self.to {
                To::Tunnel(send) => {
                    let credit = ready!(send.poll_credit(cx, data.len())).map_err(LinkError::Stream)?;
                    send.send(data.split_to(credit.min(data.len()))).map_err(LinkError::Stream)?;
                }
                To::Tcp(stream) => match stream.try_write(data) {
                    Ok(taken) => data.advance(taken),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(stream.poll_write_ready(cx)).map_err(LinkError::Tcp)?;
                    }
                    Err(error) => return Poll::Ready(Err(LinkError::Tcp(error))),
                },
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more follows.
    ///
    /// **Errors**: the other end broke off.
    pub fn finish(&mut self) -> Result<(), LinkError> {
        match &mut self.to {
            To::Tunnel(send) => send.finish().map_err(LinkError::Stream),
            To::Tcp(stream) => shutdown_write(stream).map_err(LinkError::Tcp),
        }
    }

    /// Resets the stream; a TCP connection is reset when both halves are dropped.
    pub fn reset(&mut self) {
        match &mut self.to {
            To::Tunnel(send) => send.reset(ResetReason::AppReset),
            To::Tcp(stream) => {
                // One that cannot be set so is closed in order.
                let _gone = set_reset_on_drop(&**stream, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::super::budget::Budget;
    use super::*;

    /// What its peer has sent, in its pieces, then its end.
    #[derive(Default)]
    struct Peer {
        sent: VecDeque<Bytes>,
        end: Option<Result<(), StreamEnd>>,
        credit: usize,
    }

    impl Source for Peer {
        fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamEnd>>> {
            match (self.sent.pop_front(), self.end) {
                (Some(data), _) => Poll::Ready(Some(Ok(data))),
                (None, Some(end)) => Poll::Ready(end.err().map(Err)),
                (None, None) => Poll::Pending,
            }
        }

        fn credit(&mut self, bytes: usize) {
            self.credit += bytes;
        }
    }

    #[test]
    fn what_comes_while_nobody_takes_it_counts_and_is_taken_in_order() {
        let budget = Budget::new(1 << 20);
        let mut inbox = Inbox::new(Peer::default(), 1 << 16, &Board::new(std::sync::Arc::clone(&budget)));
        let mut cx = Context::from_waker(Waker::noop());
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for round in 0..20_usize {
            for piece in 0..3 {
                let data = vec![(round * 3 + piece) as u8; 1 + 3000 * piece];
                sent.extend_from_slice(&data);
                inbox.from.sent.push_back(data.into());
            }
            if round % 3 < 2 {
                assert!(inbox.poll_gone(&mut cx).is_pending());
                assert!(budget.held() as usize >= sent.len() - got.len(), "round {round}");
                assert_eq!(inbox.from.credit, got.len(), "nobody has taken it");
                continue;
            }
            while let Poll::Ready(next) = inbox.poll_next(&mut cx) {
                got.extend_from_slice(&next.unwrap().unwrap());
            }
            assert!(got == sent, "round {round}");
            assert_eq!((inbox.from.credit, budget.held()), (got.len(), 0));
        }
    }

    #[test]
    fn an_end_is_told_at_once_and_after_what_came_before_it() {
        for (end, broken) in [(Ok(()), false), (Err(StreamEnd::Reset(8)), true)] {
            let mut inbox = Inbox::new(Peer::default(), 1 << 16, &Board::new(Budget::new(1 << 20)));
            let mut cx = Context::from_waker(Waker::noop());
            inbox.from.sent.push_back(Bytes::from_static(b"last"));
            inbox.from.end = Some(end);
            assert!(matches!(inbox.poll_gone(&mut cx), Poll::Ready(gone) if gone.is_some() == broken));
            assert!(matches!(inbox.poll_next(&mut cx), Poll::Ready(Ok(Some(data))) if data == "last"));
            match inbox.poll_next(&mut cx) {
                Poll::Ready(Ok(None)) => assert!(!broken),
                Poll::Ready(Err(LinkError::Stream(StreamEnd::Reset(8)))) => assert!(broken),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_given_up_over_the_budget() {
        let budget = Budget::new(10_000);
        let mut inbox = Inbox::new(Peer::default(), 1 << 16, &Board::new(std::sync::Arc::clone(&budget)));
        let mut cx = Context::from_waker(Waker::noop());
        inbox.from.sent.push_back(vec![0; 8000].into());
        assert!(inbox.poll_gone(&mut cx).is_pending());
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        inbox.from.sent.push_back(vec![0; 8000].into());
        assert!(matches!(inbox.poll_gone(&mut cx), Poll::Ready(Some(LinkError::Budget))));
        drop(inbox);
        assert_eq!(budget.held(), 0);
    }
}
