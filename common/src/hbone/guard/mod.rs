//! What a peer may send through a tunnel, beyond what the codec checks: a filter on the decrypted bytes, before HTTP/2.
//!
//! It reads frame heads, hands payload on where it stands, and says every header block again in plain words, so that the
//! codec sees only what was accepted. It ends a tunnel whose peer floods it or breaks the protocol, and says so once: in
//! a metric, in a log line with the peer's identity, and in a GOAWAY. Connect tunnels need less than HTTP/2 offers, so
//! what it refuses no right peer sends. It knows no stream and no policy. Start with `Filter::step` in `filter.rs`.

mod allowance;
mod feed;
mod filter;
pub mod hpack;
mod message;
mod sent;
mod violation;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use self::feed::Feed;
use self::violation::Ends;
pub use self::violation::Violation;
use crate::telemetry::{PeerViolations, Side};
use crate::types::SpiffeId;

/// Bytes that are read at once when the codec has no space to look at them where they will stay.
const ASIDE: usize = 64;

/// Who is told of a violation, and of whom.
pub struct Report {
    /// Counts.
    pub violations: PeerViolations,
    /// The peer's address.
    pub peer: SocketAddr,
    /// The peer's proven identity.
    pub identity: SpiffeId,
}

/// What our SETTINGS announce, and how long the peer's may take.
#[derive(Clone, Copy, Debug)]
pub struct Announced {
    /// Largest frame.
    pub frame: u32,
    /// Largest header list.
    pub header_list: u32,
    /// Limit of the peer's first SETTINGS.
    pub limit: Duration,
}

/// A connection of which only accepted bytes are read.
pub struct Guard<S> {
    io: S,
    feed: Box<Feed>,
    /// Until the peer's SETTINGS have come.
    deadline: Option<Pin<Box<Sleep>>>,
    ended: Option<Violation>,
    noted: Box<Noted>,
}

/// What has been told.
struct Noted {
    side: Side,
    report: Report,
    tunnel: bool,
    stream: bool,
}

impl Noted {
    /// Counts a violation: a tunnel ends for one only, a stream each. Of either the first is logged.
    fn note(&mut self, ends: Ends) {
        let (violation, told, what) = match ends {
            Ends::Stream(violation) => (violation, &mut self.stream, "a stream was reset"),
            Ends::Tunnel(_) if self.tunnel => return,
            Ends::Tunnel(violation) => (violation, &mut self.tunnel, "a tunnel was ended"),
        };
        let Report { violations, peer, identity } = &self.report;
        let kind = violation.as_str();
        violations.count(self.side, kind);
        if !std::mem::replace(told, true) {
            tracing::warn!(%peer, %identity, kind, "{what}: {violation}");
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guard<S> {
    /// Guards `io`, of which nothing has been read.
    pub fn new(io: S, side: Side, announced: Announced, report: Report) -> Self {
        let clock = || tokio::time::Instant::now().into_std();
        let feed = Box::new(Feed::new(side, announced.frame as usize, announced.header_list as usize, clock));
        let deadline = Some(Box::pin(tokio::time::sleep(announced.limit)));
        let noted = Box::new(Noted { side, report, tunnel: false, stream: false });
        Self { io, feed, deadline, ended: None, noted }
    }

    /// Reads once, in place if that is possible.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<Filled>> {
        let checked = match self.feed.held(buf.remaining()) {
            Some(held) => {
                let before = buf.filled().len();
                buf.put_slice(held);
                let begun = buf.filled().len();
                let read = self.poll_io(cx, buf);
                if buf.filled().len() == begun {
                    buf.set_filled(before);
                    return read.map_ok(|()| Filled::End);
                }
                let kept = self.feed.in_place(buf.filled_mut().get_mut(before..).unwrap_or_default());
                buf.set_filled(before + kept.unwrap_or(0));
                kept.map(|kept| if kept > 0 { Filled::Some } else { Filled::Nothing })
            }
            None => {
                let mut space = [0; ASIDE];
                let mut aside = ReadBuf::new(&mut space);
                ready!(self.poll_io(cx, &mut aside))?;
                if aside.filled().is_empty() {
                    return Poll::Ready(Ok(Filled::End));
                }
                self.feed.push(aside.filled()).map(|()| Filled::Nothing)
            }
        };
        if self.feed.filter.greeted() {
            self.deadline = None;
        }
        Poll::Ready(Ok(checked.unwrap_or_else(|violation| {
            self.end(cx, violation);
            Filled::Nothing
        })))
    }

    /// Reads from below, and takes note of a peer that breaks TLS.
    fn poll_io(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            match error.get_ref().and_then(|e| e.downcast_ref()) {
                // It refuses us: its right, and told as a failed handshake.
                None | Some(rustls::Error::AlertReceived(_)) => {}
                Some(_) => self.noted.note(Ends::Tunnel(Violation::Tls)),
            }
        }
        read
    }

    /// Tells everybody, and the peer as far as it listens.
    fn end(&mut self, cx: &mut Context<'_>, violation: Violation) {
        self.ended = Some(violation);
        self.noted.note(Ends::Tunnel(violation));
        if self.feed.filter.at_boundary() {
            let goaway = goaway(self.feed.filter.last_stream(), violation);
            let _as_far_as_it_goes = Pin::new(&mut self.io).poll_write(cx, &goaway);
        }
        let _as_far_as_it_goes = Pin::new(&mut self.io).poll_flush(cx);
        let _as_far_as_it_goes = Pin::new(&mut self.io).poll_shutdown(cx);
    }

    /// Takes note of what was written.
    fn wrote(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>], mut bytes: usize) -> io::Result<()> {
        let (noted, filter) = (&mut self.noted, &mut self.feed.filter);
        let mut checked = Ok(());
        for part in parts {
            let now = bytes.min(part.len());
            bytes -= now;
            let sent = filter.sent(part.get(..now).unwrap_or_default(), |ends| noted.note(ends));
            checked = checked.and(sent);
        }
        // Behind all that was written: only there it is known whether a frame has ended.
        checked.map_err(|violation| {
            self.end(cx, violation);
            aborted(violation)
        })
    }
}

/// What a read brought.
enum Filled {
    Some,
    Nothing,
    End,
}

fn aborted(violation: Violation) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, violation)
}

/// Source: RFC 9113 §6.8.
fn goaway(last_stream: u32, violation: Violation) -> [u8; 17] {
    let mut frame = [0, 0, 8, filter::kind::GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let [.., a, b, c, d, e, f, g, h] = &mut frame;
    [*a, *b, *c, *d] = last_stream.to_be_bytes();
    [*e, *f, *g, *h] = u32::from(violation.reason()).to_be_bytes();
    frame
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(violation) = this.ended {
                return Poll::Ready(Err(aborted(violation)));
            }
            if this.feed.take(buf) {
                return Poll::Ready(Ok(()));
            }
            match this.poll_fill(cx, buf)? {
                Poll::Ready(Filled::Some | Filled::End) => return Poll::Ready(Ok(())),
                Poll::Ready(Filled::Nothing) => {}
                Poll::Pending => match &mut this.deadline {
                    Some(deadline) => {
                        ready!(deadline.as_mut().poll(cx));
                        this.end(cx, Violation::Silent);
                    }
                    None => return Poll::Pending,
                },
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(violation) = this.ended {
            return Poll::Ready(Err(aborted(violation)));
        }
        let written = match parts {
            [one] => ready!(Pin::new(&mut this.io).poll_write(cx, one))?,
            _ => ready!(Pin::new(&mut this.io).poll_write_vectored(cx, parts))?,
        };
        this.wrote(cx, parts, written)?;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// What of a peer's `bytes` the codec gets to see when they come in pieces of `size`, and why no more. For tests and fuzzing.
pub fn filtered(side: Side, bytes: &[u8], size: usize) -> (Vec<u8>, Option<Violation>) {
    let mut feed = Feed::new(side, 16_384, 16_384, Instant::now);
    let mut seen = Vec::new();
    for piece in bytes.chunks(size.max(1)) {
        // Readers have some space; a long frame that was held back is continued aside.
        let checked = match feed.held(ASIDE) {
            Some(held) => {
                let mut all = [held, piece].concat();
                let kept = feed.in_place(&mut all);
                kept.map(|kept| seen.extend_from_slice(all.get(..kept).unwrap_or_default()))
            }
            None => feed.push(piece),
        };
        if let Err(violation) = checked {
            return (seen, Some(violation));
        }
        let mut space = vec![0; 1 << 20];
        let mut buf = ReadBuf::new(&mut space);
        while feed.take(&mut buf) {
            seen.extend_from_slice(buf.filled());
            buf.clear();
        }
    }
    (seen, None)
}

#[cfg(test)]
mod tests;
