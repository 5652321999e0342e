//! Moves bytes between an app's TCP connection and a CONNECT stream.
//!
//! FIN is END_STREAM, each direction on its own. A reset of the app becomes RST_STREAM(CONNECT_ERROR); a reset of the
//! stream before its END_STREAM becomes a reset of the app: the caller drops the app's socket, which carries
//! `SO_LINGER(1,0)`. Source: RFC 9113 §8.5. A side is never read faster than the other takes it: the app is read only
//! with credit for the tunnel, and credit goes back to the peer only when the app has taken the bytes.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::net::TcpStream;

use super::budget::{Board, Gate, Seat};
use super::queue::Queue;
use super::stream::{RecvHalf, ResetReason, SendHalf, StreamEnd};
use crate::net::copy::{ReadSize, TURN, broken, shutdown_write, try_read, yield_turn};

/// Why a relay ended before both directions had closed.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The app reset its connection, or the kernel gave it up.
    #[error("the app's connection broke off: {0}")]
    App(io::Error),
    /// The peer reset the stream, or the tunnel broke.
    #[error("{0}")]
    Peer(StreamEnd),
    /// The app did not read, and its bytes were the most expensive to keep.
    #[error("the app did not read, and the agent's memory budget was used up")]
    Budget,
}

/// The two halves of an accepted CONNECT stream.
pub struct Stream {
    /// Into the tunnel.
    pub send: SendHalf,
    /// Out of the tunnel.
    pub recv: RecvHalf,
    /// What the peer may send unread.
    pub window: u32,
}

/// Relays until both directions have closed. `from_app` is told of bytes from the app into the
/// tunnel, `to_app` of the others.
///
/// On an error the stream has been reset, and the caller resets the app by dropping its socket.
///
/// **Errors**: see [`RelayError`]. **Cancel safety**: dropping it resets the stream.
pub fn relay<'a, Up: Fn(u64) + 'a, Down: Fn(u64) + 'a>(
    app: &'a TcpStream,
    stream: Stream,
    board: &Board,
    from_app: Up,
    to_app: Down,
) -> impl Future<Output = Result<(), RelayError>> + use<'a, Up, Down> {
    stream.send.charge_to(board.budget());
    let (gate, seat) = (board.gate(), board.join(u64::from(stream.window)));
    let mut upload = Upload {
        app,
        send: stream.send,
        size: ReadSize::default(),
        starved: false,
        holds_credit: false,
        hears_nothing: false,
        done: false,
    };
    let mut download = Download {
        app,
        owed: 0,
        recv: stream.recv,
        queue: Queue::default(),
        seat,
        ended: false,
        done: false,
    };
    let mut broken: Option<Pin<Box<dyn Future<Output = io::Error> + 'a>>> = None;
    // A block over what is made here: an `async fn` would keep each argument as well as what is made of it.
    async move {
        let result = poll_fn(|cx| {
            let down = download.poll(cx, &gate, &to_app)?;
            upload.hears_nothing = download.ended;
            let up = match upload.poll(cx, &gate, &from_app) {
                // The peer has sent its END_STREAM: what it says after that is no reset of what the app received.
                Poll::Ready(Err(RelayError::Peer(_))) if download.ended => {
                    upload.done = true;
                    Poll::Ready(())
                }
                other => other?,
            };
            if down.is_ready() && up.is_ready() {
                return Poll::Ready(Ok(()));
            }
            // While the app is not read, for want of credit or because it has sent its FIN, only this tells of its reset.
            // Boxed when it is first needed: an idle connection does not have it.
            if upload.is_deaf()
                && let Poll::Ready(error) =
                    broken.get_or_insert_with(|| Box::pin(self::broken(app))).as_mut().poll(cx)
            {
                return Poll::Ready(Err(RelayError::App(error)));
            }
            Poll::Pending
        })
        .await;
        match &result {
            Ok(()) => {}
            Err(RelayError::Budget) => upload.send.reset(ResetReason::Budget),
            Err(_) => upload.send.reset(ResetReason::AppReset),
        }
        result
    }
}

struct Upload<'a> {
    app: &'a TcpStream,
    send: SendHalf,
    size: ReadSize,
    /// There is something to read, but no credit to send it.
    starved: bool,
    /// Credit was asked for and not given back.
    holds_credit: bool,
    /// The other direction, which would tell of a reset, has ended.
    hears_nothing: bool,
    done: bool,
}

impl Upload<'_> {
    fn is_deaf(&self) -> bool {
        self.starved || self.done
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        gate: &Gate,
        count: &impl Fn(u64),
    ) -> Poll<Result<(), RelayError>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        if self.hears_nothing
            && let Poll::Ready(end) = self.send.poll_end(cx)
        {
            self.done = end.is_orderly();
            return Poll::Ready(if self.done { Ok(()) } else { Err(RelayError::Peer(end)) });
        }
        let mut moved = 0;
        loop {
            if moved >= TURN {
                yield_turn(cx);
                return Poll::Pending;
            }
            // Credit is asked for only when the app has something: an idle stream holds none of the tunnel's.
            match self.app.poll_read_ready(cx) {
                Poll::Ready(ready) => ready.map_err(RelayError::App)?,
                Poll::Pending => {
                    // A short read ends here: what was granted beyond it would be missing to the other streams.
                    if std::mem::take(&mut self.holds_credit) {
                        self.send.release_credit();
                    }
                    return Poll::Pending;
                }
            }
            // Over the budget each stream has one piece on its way, and no more.
            self.starved = !self.send.is_empty() && !gate.may_read(cx.waker());
            if self.starved {
                return Poll::Pending;
            }
            self.holds_credit = true;
            let credit = self.send.poll_credit(cx, self.size.get()).map_err(RelayError::Peer)?;
            self.starved = credit.is_pending();
            let credit = ready!(credit);
            match try_read(self.app, &mut self.size, credit) {
                Ok(data) if data.is_empty() => {
                    self.send.finish().map_err(RelayError::Peer)?;
                    self.done = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(data) => {
                    count(data.len() as u64);
                    moved += data.len();
                    self.send.send(data).map_err(RelayError::Peer)?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(RelayError::App(e))),
            }
        }
    }
}

struct Download<'a> {
    app: &'a TcpStream,
    /// Credit that the peer gets when the budget has room.
    owed: usize,
    recv: RecvHalf,
    queue: Queue,
    seat: Seat,
    ended: bool,
    done: bool,
}

impl Download<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        gate: &Gate,
        count: &impl Fn(u64),
    ) -> Poll<Result<(), RelayError>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            // Always everything, whether the app reads or not: what stays in the codec it may take for an attack.
            let mut last = Bytes::new();
            while !self.ended {
                match self.recv.poll_data(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => self.ended = true,
                    Poll::Ready(Some(Ok(data))) => self.push(std::mem::replace(&mut last, data)),
                    Poll::Ready(Some(Err(end))) if end.is_orderly() => self.ended = true,
                    Poll::Ready(Some(Err(end))) => {
                        // What came before it is the app's, as far as it takes it now. Envoy ends so what it has closed:
                        // a whole answer, and RST_STREAM(CONNECT_ERROR) without END_STREAM right behind it.
                        let taken = self.write_all(last)?;
                        count(taken as u64);
                        return Poll::Ready(Err(RelayError::Peer(end)));
                    }
                }
            }
            let taken = self.write_all(last)?;
            if taken > 0 {
                count(taken as u64);
                self.owed += taken;
            }
            if self.owed > 0 && gate.may_read(cx.waker()) {
                self.recv.credit(std::mem::take(&mut self.owed));
            }
            if self.seat.update(self.queue.cost(), taken > 0, cx.waker()) {
                return Poll::Ready(Err(RelayError::Budget));
            }
            if self.queue.is_empty() {
                if !self.ended {
                    return Poll::Pending; // `poll_data` has the waker
                }
                shutdown_write(self.app).map_err(RelayError::App)?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if taken >= TURN {
                yield_turn(cx);
                return Poll::Pending;
            }
            ready!(self.app.poll_write_ready(cx)).map_err(RelayError::App)?;
        }
    }

    fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.queue.push(data);
        }
    }

    /// Writes what is queued and then `last`, as much as the app takes now. A message that the app takes at once, which
    /// is the rule, is not copied into a block of the queue.
    fn write_all(&mut self, mut last: Bytes) -> Result<usize, RelayError> {
        let mut taken = 0;
        if self.queue.is_empty() && !last.is_empty() {
            match self.app.try_write(&last) {
                Ok(n) => {
                    taken = n;
                    last.advance(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(RelayError::App(e)),
            }
        }
        self.push(last);
        Ok(taken + self.write()?)
    }

    /// Writes what the app takes now, up to a turn.
    fn write(&mut self) -> Result<usize, RelayError> {
        let mut taken = 0;
        while !self.queue.is_empty() && taken < TURN {
            let mut slices = [IoSlice::new(&[]); 16];
            let filled = self.queue.slices(&mut slices);
            let slices = slices.get(..filled).unwrap_or_default();
            // One piece is the rule, and send(2) the shorter way.
            let written = match slices {
                [one] => self.app.try_write(one),
                _ => self.app.try_write_vectored(slices),
            };
            match written {
                Ok(n) => {
                    self.queue.advance(n);
                    taken += n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(RelayError::App(e)),
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests;
