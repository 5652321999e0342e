//! A byte stream with somebody at its other end: a CONNECT stream of a tunnel, or a TCP connection. For those who look into
//! the bytes; who only moves them has [`super::relay`].
//!
//! What arrives leaves the codec at once and waits here, charged to the budget; its sender gets credit when it is taken, so
//! that nobody sends faster than somebody takes. What is written waits for credit or for room in the socket.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
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
    queue: Queue,
    seat: Seat,
    gate: Gate,
    /// Credit that the sender gets when the budget has room.
    owed: usize,
    ended: bool,
    /// Told once all that came before it has been taken.
    broken: Option<StreamEnd>,
}

enum From {
    Tunnel(RecvHalf),
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
    let reader = Reader::new(From::Tunnel(stream.recv), u64::from(stream.window), board);
    (reader, Writer { to: To::Tunnel(stream.send), _slot: slot })
}

/// The two directions of a TCP connection.
pub fn tcp(stream: TcpStream, board: &Board) -> (Reader, Writer) {
    let stream = Rc::new(stream);
    let reader = Reader::new(From::Tcp(Rc::clone(&stream), ReadSize::default()), 0, board);
    (reader, Writer { to: To::Tcp(stream), _slot: None })
}

impl Reader {
    fn new(from: From, window: u64, board: &Board) -> Self {
        Self {
            from,
            queue: Queue::default(),
            seat: board.join(window),
            gate: board.gate(),
            owed: 0,
            ended: false,
            broken: None,
        }
    }

    /// The next bytes, never none; `None` is the orderly end.
    ///
    /// **Errors**: the other end broke off. **Cancel safety**: nothing is lost between two polls.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, LinkError>> {
        let Self { from, queue, seat, gate, owed, ended, broken } = self;
        let recv = match from {
            From::Tunnel(recv) => recv,
            From::Tcp(stream, size) => loop {
                match try_read(stream, size, usize::MAX) {
                    Ok(data) => return Poll::Ready(Ok(Some(data).filter(|data| !data.is_empty()))),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(stream.poll_read_ready(cx)).map_err(LinkError::Tcp)?;
                    }
                    Err(error) => return Poll::Ready(Err(LinkError::Tcp(error))),
                }
            },
        };
        // Always everything: what stays in the codec it may take for an attack.
        let mut first = Bytes::new();
        while !*ended && broken.is_none() {
            match recv.poll_data(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => *ended = true,
                Poll::Ready(Some(Ok(data))) if first.is_empty() && queue.is_empty() => first = data,
                Poll::Ready(Some(Ok(data))) => queue.push(data),
                Poll::Ready(Some(Err(end))) if end.is_orderly() => *ended = true,
                Poll::Ready(Some(Err(end))) => *broken = Some(end),
            }
        }
        let chunk = if first.is_empty() { queue.pop() } else { Some(first) };
        if let Some(chunk) = &chunk {
            *owed += chunk.len();
        }
        if *owed > 0 && gate.may_read(cx.waker()) {
            recv.credit(std::mem::take(owed));
        }
        if seat.update(queue.cost(), chunk.is_some(), cx.waker()) {
            return Poll::Ready(Err(LinkError::Budget));
        }
        match (chunk, *broken) {
            (Some(chunk), _) => Poll::Ready(Ok(Some(chunk))),
            (None, Some(end)) => Poll::Ready(Err(LinkError::Stream(end))),
            (None, None) if *ended => Poll::Ready(Ok(None)),
            (None, None) => Poll::Pending,
        }
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
