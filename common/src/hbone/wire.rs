//! A tunnel's TCP connection: what may wait in its buffers, and how much is read from it before others have a turn.
//!
//! All streams of a tunnel share one queue in each socket, and the newest byte waits behind all others. While small
//! messages pass, both queues are therefore kept as short as the path allows: the sender's by TCP_NOTSENT_LOWAT, the
//! receiver's by a window that fits the round trip. Left alone, the kernel lets several MiB wait there, and a small
//! request beside a bulk stream takes milliseconds. Bulk alone gets longer ones, as each time that one runs empty or full
//! both ends go to sleep and are woken.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::outbox::Outbox;
use crate::net::copy::yield_turn;
use crate::net::socket;

/// Bytes that may wait in the socket for being sent.
const UNSENT: u32 = 32 * 1024;
/// While only bulk passes.
const UNSENT_BULK: u32 = 256 * 1024;
/// Bytes read before the other tasks of the worker have a turn.
const TURN: usize = 64 * 1024;
/// While only bulk passes.
const TURN_BULK: usize = 256 * 1024;
/// The receive buffer of a path without length, within a machine or a rack.
const RECEIVE_MIN: usize = 64 * 1024;
/// At least, while only bulk passes.
const RECEIVE_BULK: usize = 4 << 20;
/// A longer path gets what 10 Gbit/s have under way, which is more than one tunnel moves.
const BYTES_PER_MICROSECOND: usize = 1_250;
/// A path that needs this much is left to the kernel, which grows the buffer by use.
const RECEIVE_MAX: usize = 4 << 20;

/// The buffer is fitted again after so many bytes.
const FIT_EVERY: usize = 4 << 20;

/// Bytes read while there is no room to write: more than the other end may have begun to write.
const AHEAD: usize = 1 << 20;

/// Between TLS and TCP.
pub(super) struct Wire {
    tcp: TcpStream,
    /// Bytes read in this turn.
    read: usize,
    /// Bytes read until the receive buffer is looked at again.
    until_fit: usize,
    /// The receive window of the path while small messages pass; `None` is the kernel's.
    window: Option<usize>,
    /// What the receive buffer was fixed at.
    buffer: usize,
    /// Whether it is set up for bulk.
    bulk: bool,
    /// What waits to be written, and what passes.
    outbox: Rc<Outbox>,
    /// Writes that found no room since something was last read.
    stuck: u32,
    /// What was read while the codec waited for room to write.
    ahead: BytesMut,
}

impl Wire {
    /// **Shape**: `tcp` is connected, so that its round trip is known.
    pub(super) fn new(tcp: TcpStream) -> Self {
        // Each is an improvement where the kernel grants it, and the tunnel works without.
        let _unknown = socket::limit_unsent(&tcp, UNSENT);
        let mut wire = Self {
            tcp,
            read: 0,
            until_fit: 0,
            window: None,
            buffer: 0,
            bulk: false,
            outbox: Rc::default(),
            stuck: 0,
            ahead: BytesMut::new(),
        };
        wire.fit();
        wire
    }

    /// Fits the receive window to the path as it is known now: on a busy machine the first round trip says little.
    fn fit(&mut self) {
        self.until_fit = FIT_EVERY;
        let Ok(round_trip) = socket::shortest_round_trip(&self.tcp) else { return };
        // What was fixed once does not grow by itself again.
        let wanted = receive_window(round_trip).or(self.window.map(|_| RECEIVE_MAX * 4));
        if wanted != self.window {
            self.window = wanted;
            self.set_window();
        }
    }

    /// A buffer that grew is not made smaller, as what is under way would be lost: the window is narrowed before it, and
    /// the peer, as it goes on, comes to know.
    fn set_window(&mut self) {
        let Some(window) = self.window else { return };
        let window = if self.bulk { window.max(RECEIVE_BULK) } else { window };
        if window > self.buffer {
            if socket::fix_receive_buffer(&self.tcp, window).is_err() {
                return;
            }
            self.buffer = window;
        }
        if self.bulk || window < self.buffer {
            let _unknown = socket::limit_window(&self.tcp, window);
        }
    }

    /// Follows what passes through the tunnel.
    fn follow(&mut self) {
        let bulk = self.outbox.is_bulk() && !self.outbox.has_messages();
        if bulk != self.bulk {
            self.bulk = bulk;
            let _unknown = socket::limit_unsent(&self.tcp, if bulk { UNSENT_BULK } else { UNSENT });
            self.set_window();
        }
    }

    fn turn(&self) -> usize {
        if self.bulk { TURN_BULK } else { TURN }
    }

    /// With a PING to send, the codec reads nothing before it has room to write: two full ends would wait for each
    /// other for ever. One that asks again for room without having read gets its bytes read here, up to a bound which
    /// lets the other end write what it has begun.
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        self.stuck = self.stuck.saturating_add(1);
        if self.ahead.len() >= AHEAD || !matches!(self.tcp.poll_read_ready(cx), Poll::Ready(Ok(()))) {
            return; // an error is told by the next read
        }
        if self.stuck > 1 {
            self.ahead.reserve(TURN);
            match self.tcp.try_read_buf(&mut (&mut self.ahead).limit(TURN)) {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
        yield_turn(cx);
    }

    /// Whether a read would bring anything; if not, the task is woken when it does.
    pub(super) fn is_readable(&mut self, cx: &mut Context<'_>) -> bool {
        let is_readable =
            self.read >= self.turn() || !self.ahead.is_empty() || self.tcp.poll_read_ready(cx).is_ready();
        if !is_readable {
            (self.read, self.stuck) = (0, 0);
        }
        is_readable
    }

    /// What waits to be written to it.
    pub(super) fn outbox(&self) -> &Rc<Outbox> {
        &self.outbox
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp
    }
}

/// What the receive window of a path is limited to, if it is.
fn receive_window(round_trip: Duration) -> Option<usize> {
    let micros = usize::try_from(round_trip.as_micros()).unwrap_or(usize::MAX);
    let bytes = micros.saturating_mul(BYTES_PER_MICROSECOND);
    (bytes < RECEIVE_MAX).then_some(bytes.max(RECEIVE_MIN))
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.follow();
        if self.read >= self.turn() {
            self.until_fit = self.until_fit.saturating_sub(self.read);
            self.read = 0;
            if self.until_fit == 0 {
                self.fit();
            }
            yield_turn(cx);
            return Poll::Pending;
        }
        self.stuck = 0;
        if !self.ahead.is_empty() {
            let taken = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(taken));
            if self.ahead.is_empty() {
                self.ahead = BytesMut::new(); // an idle tunnel holds no block
            }
            self.read += taken;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.tcp).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        self.outbox.pass(read);
        self.read = if polled.is_ready() { self.read + read } else { 0 };
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.follow();
        let polled = Pin::new(&mut self.tcp).poll_write(cx, buf);
        if polled.is_pending() {
            self.read_ahead(cx);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.follow();
        let polled = match bufs {
            [one] => Pin::new(&mut self.tcp).poll_write(cx, one), // send(2), which is the shorter way
            _ => Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs),
        };
        if polled.is_pending() {
            self.read_ahead(cx);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[test]
    fn the_window_fits_the_path_and_never_caps_a_long_one() {
        for (micros, bytes) in [
            (0, Some(RECEIVE_MIN)),
            (40, Some(RECEIVE_MIN)),
            (200, Some(250_000)),
            (1_000, Some(1_250_000)),
            (3_400, None),
            (100_000, None),
        ] {
            assert_eq!(receive_window(Duration::from_micros(micros)), bytes, "{micros} us");
        }
    }

    #[tokio::test]
    async fn what_a_peer_does_not_take_waits_with_the_writer() {
        let (near, far) = pair().await;
        let (mut wire, _far) = (Wire::new(near), Wire::new(far));
        let piece = vec![0; 16 * 1024];
        let mut written = 0;
        // Until nothing moves any more: the other end reads nothing.
        while let Ok(done) = tokio::time::timeout(Duration::from_millis(200), wire.write(&piece)).await {
            written += done.unwrap();
        }
        let unsent = socket::unsent(wire.tcp()).unwrap();
        assert!(unsent <= UNSENT + 32 * 1024, "{unsent} bytes wait unsent");
        assert!(written < 3 << 20, "{written} bytes wait in both sockets");
    }

    /// Polls that it takes to read 8 MiB.
    async fn polls(messages: bool) -> usize {
        let (mut near, far) = pair().await;
        let sender = async {
            let _reader_left = near.write_all(&vec![0; 8 << 20]).await;
        };
        let mut wire = Wire::new(far);
        if messages {
            wire.outbox().message();
        }
        let reader = async {
            let (mut polls, mut read, mut buffer) = (0, 0, vec![0; 16 * 1024]);
            let mut whole = pin!(async {
                while read < 8 << 20 {
                    read += wire.read(&mut buffer).await.unwrap();
                }
            });
            poll_fn(|cx| {
                polls += 1;
                whole.as_mut().poll(cx)
            })
            .await;
            polls
        };
        tokio::join!(sender, reader).1
    }

    #[tokio::test]
    async fn a_reader_with_always_more_yields_after_a_turn() {
        for (messages, turn) in [(true, TURN), (false, TURN_BULK)] {
            let polls = polls(messages).await;
            assert!(polls >= (8 << 20) / (turn + 16 * 1024), "{polls} polls");
        }
    }

    #[tokio::test]
    async fn what_waits_follows_what_passes() {
        let (near, far) = pair().await;
        let (mut wire, mut far) = (Wire::new(near), Wire::new(far));
        let (mut one, mut other) = ([0; 1024], [0; 1024]);
        let mut set_up = async |wire: &mut Wire| {
            wire.write_all(&one).await.unwrap();
            far.read_exact(&mut other).await.unwrap();
            far.write_all(&other).await.unwrap();
            wire.read_exact(&mut one).await.unwrap();
            (wire.bulk, wire.buffer >= RECEIVE_BULK)
        };
        assert_eq!(set_up(&mut wire).await, (false, false));
        wire.outbox().pass(32 << 20);
        let (bulk, large) = set_up(&mut wire).await;
        assert!(bulk);
        // Fixing it needs a right that not everybody has who runs the tests.
        assert_eq!(large, wire.buffer > 0);
        wire.outbox().message();
        assert!(!set_up(&mut wire).await.0, "with the first small message");
    }
}
