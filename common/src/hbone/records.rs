//! TLS on a tunnel's wire: how much may wait there, encrypted and not written.
//!
//! The codec hands over frame after frame until it is told to wait, and what TLS has taken is in nobody's order any
//! more: where small messages are sent it takes little, and otherwise as much as one write carries.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

use super::gather::Session;
use super::outbox::{Outbox, PIECE};
use super::wire::Wire;

/// Bytes that may wait where small messages are sent.
const SHARED: usize = 64 * 1024;
/// And where they are not: [`PIECE`], with what frames and records add to it.
const LARGE: usize = PIECE + 8 * 1024;

/// Either end's TLS.
pub(super) trait Limited: Session {
    /// Bounds what waits to be written.
    fn limit(&mut self, bytes: usize);
}

impl Limited for client::TlsStream<Wire> {
    fn limit(&mut self, bytes: usize) {
        self.get_mut().1.set_buffer_limit(Some(bytes));
    }
}

impl Limited for server::TlsStream<Wire> {
    fn limit(&mut self, bytes: usize) {
        self.get_mut().1.set_buffer_limit(Some(bytes));
    }
}

/// TLS that follows what its tunnel is used for.
pub(super) struct Records<S> {
    tls: S,
    outbox: Rc<Outbox>,
    limit: usize,
}

impl<S: Limited> Records<S> {
    /// **Shape**: `tls` has shaken hands; `outbox` is its wire's.
    pub(super) fn new(mut tls: S, outbox: Rc<Outbox>) -> Self {
        tls.limit(SHARED);
        Self { tls, outbox, limit: SHARED }
    }

    fn follow(&mut self) {
        let limit = if self.outbox.has_messages() { SHARED } else { LARGE };
        if limit != self.limit {
            self.limit = limit;
            self.tls.limit(limit);
        }
    }
}

impl<S: Limited> Session for Records<S> {
    fn is_readable(&mut self, cx: &mut Context<'_>) -> bool {
        self.tls.is_readable(cx)
    }

    fn put(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.follow();
        self.tls.put(parts)
    }
}

impl<S: Limited> AsyncRead for Records<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl<S: Limited> AsyncWrite for Records<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.follow();
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.follow();
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
