//! Moves bytes between two TCP connections, and lends each worker thread its one read buffer.
//!
//! A plain copy, not splice(2): with 256 KiB reads a copy costs the whole path no more than 1 MiB pipes do, less for
//! small requests, and an idle connection holds no pipe.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A connection starts with reads of this size: an answer of 16 KiB comes with its headers in one.
const READ_MIN: usize = 32 * 1024;
/// A connection that fills its reads gets there.
const READ_MAX: usize = 256 * 1024;
/// A connection that always has more to move lets the others of its worker have their turn after so many bytes.
pub const TURN: usize = 256 * 1024;
/// What is read in smaller pieces is copied out of the shared buffer, so that a piece that waits holds no more than
/// its size.
const COPY_BELOW: usize = 8 * 1024;

thread_local! {
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Size of the next read: grows fourfold while reads come back full, and shrinks when they do not.
#[derive(Clone, Copy, Debug)]
pub struct ReadSize(usize);

impl Default for ReadSize {
    fn default() -> Self {
        Self(READ_MIN)
    }
}

impl ReadSize {
    /// Bytes to ask for.
    pub fn get(self) -> usize {
        self.0
    }

    fn learn(&mut self, got: usize, asked: usize) {
        if got >= self.0 {
            self.0 = (self.0 * 4).min(READ_MAX);
        } else if got < asked / 8 {
            self.0 = READ_MIN;
        }
    }
}

/// One read of at most `limit` bytes through the thread's buffer; empty is end of stream, `WouldBlock` not ready.
///
/// **Errors**: those of `recv(2)`.
pub fn try_read(from: &TcpStream, size: &mut ReadSize, limit: usize) -> io::Result<Bytes> {
    SCRATCH.with_borrow_mut(|buffer| {
        let want = size.get().min(limit);
        buffer.clear();
        // A buffer of which parts are still on their way cannot be taken back: `reserve` then makes a new one.
        buffer.reserve(want);
        let read = from.try_read_buf(&mut (&mut *buffer).limit(want));
        let got = read?;
        size.learn(got, want);
        if 0 < got && got < want {
            // A short read has emptied the socket: saying so spares the read that would return EAGAIN. What arrives from
            // now on makes an event; a FIN that is there already stays visible.
            let _empty = from.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        if got < COPY_BELOW {
            return Ok(Bytes::copy_from_slice(buffer.get(..got).unwrap_or(&[])));
        }
        Ok(buffer.split_to(got).freeze())
    })
}

/// Frees the thread's buffer; the next read makes a new one.
pub(super) fn drop_buffer() {
    SCRATCH.with_borrow_mut(|buffer| *buffer = BytesMut::new());
}

/// Wakes the task behind all that are ready, once the runtime has looked for new events.
pub fn yield_turn(cx: &mut Context<'_>) {
    // Its first poll does just that, and is never ready.
    let _pending = std::pin::pin!(tokio::task::yield_now()).poll(cx);
}

/// Which connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first argument of [`copy_both_ways`].
    Downstream,
    /// The second.
    Upstream,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Downstream => "the client's connection",
            Self::Upstream => "the connection to the destination",
        })
    }
}

/// A copy ended before both sides had closed.
#[derive(Debug, thiserror::Error)]
#[error("{side} broke off: {source}")]
pub struct CopyError {
    /// The connection whose read or write failed.
    pub side: Side,
    /// What it said.
    pub source: io::Error,
}

/// Copies until both sides have closed; a FIN crosses as a FIN, each direction on its own. On an error both
/// connections should be reset by dropping them with `SO_LINGER(1,0)` set.
///
/// `up` is told of bytes from `downstream` to `upstream`, `down` of the others.
///
/// **Errors**: the first failed read or write. **Cancel safety**: dropping it loses what was read and not yet written.
pub async fn copy_both_ways(
    downstream: &TcpStream,
    upstream: &TcpStream,
    up: impl Fn(u64),
    down: impl Fn(u64),
) -> Result<(), CopyError> {
    let mut forth = OneWay::new(downstream, upstream, Side::Downstream);
    let mut back = OneWay::new(upstream, downstream, Side::Upstream);
    let moved = poll_fn(|cx| {
        let first = forth.poll(cx, &up)?;
        let second = back.poll(cx, &down)?;
        if first.is_ready() && second.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    tokio::select! {
        biased;
        result = moved => result,
        source = broken(downstream) => Err(CopyError { side: Side::Downstream, source }),
        source = broken(upstream) => Err(CopyError { side: Side::Upstream, source }),
    }
}

struct OneWay<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    from_side: Side,
    size: ReadSize,
    waiting: Bytes,
    eof: bool,
    done: bool,
}

impl<'a> OneWay<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, from_side: Side) -> Self {
        Self {
            from,
            to,
            from_side,
            size: ReadSize::default(),
            waiting: Bytes::new(),
            eof: false,
            done: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, count: &impl Fn(u64)) -> Poll<Result<(), CopyError>> {
        let read_failed = |source| CopyError { side: self.from_side, source };
        let to_side = match self.from_side {
            Side::Downstream => Side::Upstream,
            Side::Upstream => Side::Downstream,
        };
        let write_failed = |source| CopyError { side: to_side, source };
        let mut moved = 0;
        while !self.done {
            while !self.waiting.is_empty() {
                match self.to.try_write(&self.waiting) {
                    Ok(n) => {
                        count(n as u64);
                        moved += n;
                        drop(self.waiting.split_to(n));
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        ready!(self.to.poll_write_ready(cx)).map_err(write_failed)?;
                    }
                    Err(e) => return Poll::Ready(Err(write_failed(e))),
                }
            }
            if moved >= TURN {
                yield_turn(cx);
                return Poll::Pending;
            }
            if self.eof {
                shutdown_write(self.to).map_err(write_failed)?;
                self.done = true;
                break;
            }
            match try_read(self.from, &mut self.size, usize::MAX) {
                Ok(data) if data.is_empty() => self.eof = true,
                Ok(data) => self.waiting = data,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.from.poll_read_ready(cx)).map_err(read_failed)?;
                }
                Err(e) => return Poll::Ready(Err(read_failed(e))),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Resolves with what broke `stream` when its other end resets it, also while nothing is read or written. Cancel-safe.
///
/// Whoever waits for room or credit elsewhere does not touch the socket, and would not hear of it.
pub async fn broken(stream: &TcpStream) -> io::Error {
    let error = match stream.ready(Interest::ERROR).await {
        Ok(_) => stream.take_error().unwrap_or_else(Some),
        Err(error) => Some(error),
    };
    match error {
        Some(error) => error,
        None => std::future::pending().await, // somebody else has taken the error, and reports it
    }
}

/// Sends a FIN.
///
/// **Errors**: the other end has reset the connection.
pub fn shutdown_write(stream: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write) {
        // The kernel's word for a connection that was reset in the meantime.
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Err(io::ErrorKind::ConnectionReset.into()),
        done => done,
    }
}

#[cfg(test)]
mod tests;
