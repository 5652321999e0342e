//! One write for all that a tunnel's streams had ready: between the codec and TLS.
//!
//! The codec flushes each DATA frame of 256 bytes or more on its own, so that every message would be a TLS record, a
//! write and a packet. What it writes and flushes is therefore held here, or in TLS as far as that has room, until the
//! tunnel's driver has polled it to its end; then [`Flush::poll`] lets it go. The driver stands behind all streams that
//! are ready, which have then said what they have to say.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

use super::wire::Wire;

/// Bytes held at most: one TLS record.
const HELD: usize = 16 * 1024;
/// Writes up to this size share records; a larger one is encrypted where it stands.
const SMALL: usize = 8 * 1024;

thread_local! {
    /// The buffer of whichever tunnel is driven now: one whose socket takes everything needs none of its own.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The codec's end.
pub(super) struct Gather<S>(Rc<RefCell<Gathered<S>>>);

/// The driver's end.
pub(super) struct Flush<S>(Weak<RefCell<Gathered<S>>>);

struct Gathered<S> {
    io: S,
    held: Vec<u8>,
    /// So much of it has been written.
    written: usize,
    /// The driver flushes.
    is_driven: bool,
    /// Something was written below since it was flushed.
    is_dirty: bool,
    /// What the driver's flush met, for the codec.
    broken: Option<io::Error>,
}

impl<S> Gather<S> {
    /// Writes through until somebody promises to flush.
    pub(super) fn new(io: S) -> Self {
        let (is_driven, is_dirty) = (false, false);
        let gathered = Gathered { io, held: Vec::new(), written: 0, is_driven, is_dirty, broken: None };
        Self(Rc::new(RefCell::new(gathered)))
    }

    /// From the first [`Flush::poll`] on nothing is sent without it.
    pub(super) fn flush(&self) -> Flush<S> {
        Flush(Rc::downgrade(&self.0))
    }
}

impl<S: Session> Flush<S> {
    /// Sends what is held; to be called each time the codec has been polled. What does not fit into the socket wakes the
    /// task when it may, and an error is told to the codec.
    pub(super) fn poll(&self, cx: &mut Context<'_>) {
        let Some(gathered) = self.0.upgrade() else { return };
        let gathered = &mut *gathered.borrow_mut();
        gathered.is_driven = true;
        if let Poll::Ready(Err(error)) = gathered.poll_flush(cx) {
            gathered.broken = Some(error);
            cx.waker().wake_by_ref();
        }
    }
}

impl<S: Session> Gathered<S> {
    /// Keeps `parts`, which fit.
    fn hold(&mut self, parts: &[IoSlice<'_>]) {
        if self.held.capacity() == 0 {
            self.held = SPARE.take();
            self.held.reserve_exact(HELD);
        }
        for part in parts {
            self.held.extend_from_slice(part);
        }
    }

    /// Hands what is held to TLS.
    fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.held.get(self.written..) {
            self.is_dirty = true;
            self.written += ready!(poll_put(&mut self.io, cx, &[IoSlice::new(rest)]))?;
        }
        if self.written > 0 {
            self.written = 0;
            self.held.clear();
            SPARE.replace(std::mem::take(&mut self.held));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(cx))?;
        if self.is_dirty {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// TLS, as far as it can be used without its socket.
pub(super) trait Session: AsyncRead + AsyncWrite + Unpin {
    /// Whether a read may bring anything; if not, the task is woken when it may.
    fn is_readable(&mut self, cx: &mut Context<'_>) -> bool;

    /// Encrypts what it has room for, to be written by a flush.
    fn put(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl Session for client::TlsStream<Wire> {
    fn is_readable(&mut self, cx: &mut Context<'_>) -> bool {
        let (wire, session) = self.get_mut();
        // What wants nothing has decrypted bytes left, or its end to tell.
        !session.wants_read() || wire.is_readable(cx)
    }

    fn put(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.get_mut().1.writer().write_vectored(parts)
    }
}

impl Session for server::TlsStream<Wire> {
    fn is_readable(&mut self, cx: &mut Context<'_>) -> bool {
        let (wire, session) = self.get_mut();
        !session.wants_read() || wire.is_readable(cx)
    }

    fn put(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.get_mut().1.writer().write_vectored(parts)
    }
}

/// Encrypts, and writes only when TLS has no room for more.
fn poll_put(io: &mut impl Session, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
    match io.put(parts)? {
        0 => match ready!(Pin::new(io).poll_write_vectored(cx, parts))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => Poll::Ready(Ok(written)),
        },
        put => Poll::Ready(Ok(put)),
    }
}

impl<S: Session> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gathered = &mut *self.0.borrow_mut();
        if let Some(error) = gathered.broken.take() {
            return Poll::Ready(Err(error));
        }
        // The codec reads whenever it is polled, behind each write and behind each message. Two of three times there is
        // nothing, and the way down to the socket through TLS and back costs half as much as a message.
        if gathered.is_driven && !gathered.io.is_readable(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut gathered.io).poll_read(cx, buf)
    }
}

impl<S: Session> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gathered = &mut *self.0.borrow_mut();
        if !gathered.is_driven {
            gathered.is_dirty = true;
            return Pin::new(&mut gathered.io).poll_write_vectored(cx, parts);
        }
        let bytes = parts.iter().map(|part| part.len()).sum::<usize>();
        let is_small = bytes <= SMALL;
        if !is_small || gathered.held.len() + bytes > HELD {
            ready!(gathered.poll_write_held(cx))?;
        }
        if is_small {
            gathered.hold(parts);
            return Poll::Ready(Ok(bytes));
        }
        gathered.is_dirty = true;
        poll_put(&mut gathered.io, cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gathered = &mut *self.0.borrow_mut();
        if gathered.is_driven { Poll::Ready(Ok(())) } else { gathered.poll_flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gathered = &mut *self.0.borrow_mut();
        ready!(gathered.poll_flush(cx))?;
        Pin::new(&mut gathered.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    impl Session for DuplexStream {
        fn is_readable(&mut self, _cx: &mut Context<'_>) -> bool {
            true
        }

        fn put(&mut self, _parts: &[IoSlice<'_>]) -> io::Result<usize> {
            Ok(0)
        }
    }

    /// Keeps its writes, of at most `room` bytes, and has a buffer like that of TLS.
    #[derive(Default)]
    struct Sink {
        writes: Vec<Vec<u8>>,
        room: usize,
        put: Vec<u8>,
        flushed: usize,
    }

    const PUT: usize = 64 * 1024;

    impl Sink {
        fn let_go(&mut self) {
            let now = self.put.len().min(self.room);
            if now > 0 {
                self.room -= now;
                self.writes.push(self.put.drain(..now).collect());
            }
        }
    }

    impl AsyncRead for Sink {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl Session for Sink {
        fn is_readable(&mut self, _cx: &mut Context<'_>) -> bool {
            false
        }

        fn put(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            let before = self.put.len();
            for part in parts {
                let now = part.len().min(PUT - self.put.len());
                self.put.extend_from_slice(&part[..now]);
            }
            Ok(self.put.len() - before)
        }
    }

    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.let_go();
            match self.put(parts)? {
                0 => Poll::Pending,
                put => Poll::Ready(Ok(put)),
            }
        }

        fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.let_go();
            self.flushed += 1;
            if self.put.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Gather<Sink> {
        fn writes(&self) -> Vec<usize> {
            self.0.borrow().io.writes.iter().map(Vec::len).collect()
        }

        fn put(&mut self, bytes: &[u8]) -> Option<usize> {
            let (head, rest) = bytes.split_at(bytes.len().min(9));
            let parts = [IoSlice::new(head), IoSlice::new(rest)];
            match Pin::new(self).poll_write_vectored(&mut noop(), &parts) {
                Poll::Ready(written) => Some(written.unwrap()),
                Poll::Pending => None,
            }
        }
    }

    fn noop() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    fn gather(room: usize) -> (Gather<Sink>, Flush<Sink>) {
        let gather = Gather::new(Sink { room, ..Sink::default() });
        let flush = gather.flush();
        (gather, flush)
    }

    #[test]
    fn what_all_streams_said_in_a_turn_is_one_write() {
        let (mut gather, flush) = gather(usize::MAX);
        assert_eq!(gather.put(&[1; 100]), Some(100));
        assert!(Pin::new(&mut gather).poll_flush(&mut noop()).is_ready());
        assert_eq!(gather.writes().len(), 1, "nobody has promised to flush yet");
        flush.poll(&mut noop());
        for stream in 0..30 {
            assert_eq!(gather.put(&[stream; 500]), Some(500));
            assert!(Pin::new(&mut gather).poll_flush(&mut noop()).is_ready());
        }
        flush.poll(&mut noop());
        assert_eq!(gather.writes(), [100, 30 * 500]);
        assert_eq!(gather.0.borrow().io.flushed, 2, "once each time there was something");
        flush.poll(&mut noop());
        assert_eq!((gather.writes().len(), gather.0.borrow().io.flushed), (2, 2), "nothing is left");
    }

    #[test]
    fn what_is_large_is_passed_on_behind_what_came_before() {
        let (mut gather, flush) = gather(usize::MAX);
        flush.poll(&mut noop());
        gather.put(&[1; 500]).unwrap();
        for _ in 0..2 {
            assert_eq!(gather.put(&[2; SMALL + 1]), Some(SMALL + 1));
        }
        gather.put(&[3; 500]).unwrap();
        flush.poll(&mut noop());
        let all = gather.0.borrow().io.writes.concat();
        let runs: Vec<_> = all.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
        assert_eq!(runs, [(1, 500), (2, 2 * (SMALL + 1)), (3, 500)]);
        assert_eq!(gather.writes().len(), 1);
    }

    #[test]
    fn a_full_socket_holds_a_bounded_part_back_and_loses_nothing() {
        let (mut gather, flush) = gather(1000);
        flush.poll(&mut noop());
        let mut taken = 0_usize;
        while let Some(now) = gather.put(&[(taken % 251) as u8; 500]) {
            taken += now;
            flush.poll(&mut noop());
            assert!(taken <= HELD + PUT + 1000, "{taken}");
        }
        gather.0.borrow_mut().io.room = usize::MAX;
        flush.poll(&mut noop());
        assert_eq!(gather.0.borrow().io.writes.concat().len(), taken);
        assert_eq!(gather.0.borrow().held.capacity(), 0, "an idle tunnel holds no buffer");
    }

    #[tokio::test]
    async fn a_shutdown_takes_what_is_held_along() {
        let (near, mut far) = duplex(1 << 16);
        let mut gather = Gather::new(near);
        let flush = gather.flush();
        flush.poll(&mut noop());
        gather.write_all(b"goodbye").await.unwrap();
        gather.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"goodbye");
    }

    #[tokio::test]
    async fn the_codec_hears_of_a_flush_that_failed() {
        let (near, far) = duplex(1 << 16);
        let mut gather = Gather::new(near);
        let flush = gather.flush();
        flush.poll(&mut noop());
        drop(far);
        gather.write_all(b"lost").await.unwrap();
        flush.poll(&mut noop());
        assert!(gather.read(&mut [0; 8]).await.is_err());
        drop(gather);
        flush.poll(&mut noop()); // the codec may be gone first
    }
}
