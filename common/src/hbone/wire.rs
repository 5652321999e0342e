//! A tunnel's TCP connection: what may wait in its buffers, and how much is read from it before others have a turn.
//!
//! All streams of a tunnel share one queue in each socket, and the newest byte waits behind all others. Both queues are
//! therefore kept as short as the path allows: the sender's by TCP_NOTSENT_LOWAT, the receiver's by a buffer that fits
//! the round trip. Left alone, the kernel lets several MiB wait there, and a small request beside a bulk stream takes
//! milliseconds.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::net::copy::yield_turn;
use crate::net::socket;

/// Bytes that may wait in the socket for being sent.
const UNSENT: u32 = 32 * 1024;
/// Bytes read before the other tasks of the worker have a turn.
const TURN: usize = 64 * 1024;
/// The receive buffer of a path without length, within a machine or a rack.
const RECEIVE_MIN: usize = 64 * 1024;
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
    /// What the receive buffer was fixed at.
    fixed: Option<usize>,
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
        let mut wire = Self { tcp, read: 0, until_fit: 0, fixed: None, stuck: 0, ahead: BytesMut::new() };
        wire.fit();
        wire
    }

    /// Fits the receive buffer to the path as it is known now: on a busy machine the first round trip says little.
    fn fit(&mut self) {
        self.until_fit = FIT_EVERY;
        let Ok(round_trip) = socket::shortest_round_trip(&self.tcp) else { return };
        // What was fixed once does not grow by itself again.
        let wanted = receive_buffer(round_trip).or(self.fixed.map(|_| RECEIVE_MAX * 4));
        if wanted != self.fixed
            && let Some(bytes) = wanted
            && socket::fix_receive_buffer(&self.tcp, bytes).is_ok()
        {
            self.fixed = wanted;
        }
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
            self.read >= TURN || !self.ahead.is_empty() || self.tcp.poll_read_ready(cx).is_ready();
        if !is_readable {
            (self.read, self.stuck) = (0, 0);
        }
        is_readable
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp
    }
}

/// What the receive buffer of a path is fixed at, if it is.
fn receive_buffer(round_trip: Duration) -> Option<usize> {
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
        if self.read >= TURN {
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
        self.read = if polled.is_ready() { self.read + buf.filled().len() - before } else { 0 };
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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
    fn the_buffer_fits_the_path_and_never_caps_a_long_one() {
        for (micros, bytes) in [
            (0, Some(RECEIVE_MIN)),
            (40, Some(RECEIVE_MIN)),
            (200, Some(250_000)),
            (1_000, Some(1_250_000)),
            (3_400, None),
            (100_000, None),
        ] {
            assert_eq!(receive_buffer(Duration::from_micros(micros)), bytes, "{micros} us");
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

    #[tokio::test]
    async fn a_reader_with_always_more_yields_after_a_turn() {
        let (mut near, far) = pair().await;
        let sender = async {
            let _reader_left = near.write_all(&vec![0; 4 << 20]).await;
        };
        let mut wire = Wire::new(far);
        let reader = async {
            let (mut polls, mut read, mut buffer) = (0, 0, vec![0; 16 * 1024]);
            let mut whole = pin!(async {
                while read < 4 << 20 {
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
        let ((), polls) = tokio::join!(sender, reader);
        assert!(polls >= (4 << 20) / (TURN + 16 * 1024), "{polls} polls");
    }
}
