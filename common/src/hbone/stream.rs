//! One CONNECT stream of a tunnel, seen by the relay: two halves that move bytes with credit.
//!
//! The only place where the relay and the HTTP/2 codec meet: a codec of our own takes over by replacing the insides
//! of these two types.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::outbox::{Lane, Outbox, Piece, Run, SLIVER};

/// How a stream ended before its END_STREAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// The peer reset the stream; RFC 9113 error code.
    #[error("the peer reset the stream ({})", reason_name(*.0))]
    Reset(u32),
    /// The tunnel broke: TCP, TLS or HTTP/2 failed below the stream.
    #[error("the tunnel to the peer broke")]
    TunnelLost,
}

fn reason_name(code: u32) -> String {
    format!("{:?}", h2::Reason::from(code))
}

impl StreamEnd {
    /// RST_STREAM(NO_ERROR): the peer wants no more, but nothing went wrong.
    pub fn is_orderly(self) -> bool {
        self == Self::Reset(u32::from(h2::Reason::NO_ERROR))
    }

    pub(super) fn from_h2(error: &h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::Reset(reason.into()),
            _ => Self::TunnelLost,
        }
    }
}

/// What we tell the peer when we reset a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// The app's connection was reset: RFC 9113 §8.5.
    AppReset,
    /// Memory had to be given back.
    Budget,
}

/// The direction from the app into the tunnel.
pub struct SendHalf {
    inner: h2::SendStream<Piece>,
    lane: Rc<Lane>,
}

impl SendHalf {
    /// Wraps the codec's half; `outbox` is the tunnel's.
    pub fn new(inner: h2::SendStream<Piece>, outbox: &Rc<Outbox>) -> Self {
        Self { inner, lane: outbox.lane() }
    }

    /// Bytes that [`SendHalf::send`] may take now; at least one, at most `want`. Pending while the peer gives no credit
    /// or the tunnel's output is full.
    ///
    /// **Errors**: the stream or the tunnel is gone.
    pub fn poll_credit(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, StreamEnd>> {
        let want = ready!(self.lane.poll_room(cx)).min(want);
        loop {
            let mut credit = self.inner.capacity();
            if credit > 0 && credit < want.min(SLIVER) {
                // What is left of an earlier claim; there may be more, which would go behind it in a frame of its own.
                self.inner.reserve_capacity(want);
                credit = self.inner.capacity();
            }
            if credit > 0 {
                return Poll::Ready(Ok(credit.min(want)));
            }
            self.inner.reserve_capacity(want);
            match ready!(self.inner.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(StreamEnd::from_h2(&error))),
                None => return Poll::Ready(Err(StreamEnd::TunnelLost)),
            }
        }
    }

    /// What waits in the tunnel counts against `budget`.
    pub(super) fn charge_to(&self, budget: &std::sync::Arc<super::budget::Budget>) {
        self.lane.charge_to(budget);
    }

    /// Whether nothing of this stream waits in the tunnel.
    pub(super) fn is_empty(&self) -> bool {
        self.lane.is_empty()
    }

    /// Gives credit back that is not needed now, so that other streams of the tunnel have it.
    pub fn release_credit(&mut self) {
        self.inner.reserve_capacity(0);
    }

    /// Ready when the peer reset the stream or the tunnel broke.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<StreamEnd> {
        Poll::Ready(match ready!(self.inner.poll_reset(cx)) {
            Ok(reason) => StreamEnd::Reset(reason.into()),
            Err(error) => StreamEnd::from_h2(&error),
        })
    }

    /// Queues `data`; no more than was granted.
    ///
    /// **Errors**: the stream or the tunnel is gone.
    pub fn send(&mut self, mut data: Bytes) -> Result<(), StreamEnd> {
        loop {
            let piece = self.lane.cut(&mut data);
            self.inner.send_data(piece, false).map_err(|error| StreamEnd::from_h2(&error))?;
            if data.is_empty() {
                return Ok(());
            }
        }
    }

    /// Queues END_STREAM behind all data.
    ///
    /// **Errors**: the stream or the tunnel is gone.
    pub fn finish(&mut self) -> Result<(), StreamEnd> {
        self.inner
            .send_data(self.lane.cut(&mut Bytes::new()), true)
            .map_err(|error| StreamEnd::from_h2(&error))
    }

    /// Resets the stream, both directions; what is queued may be lost.
    pub fn reset(&mut self, reason: ResetReason) {
        self.inner.send_reset(match reason {
            ResetReason::AppReset => h2::Reason::CONNECT_ERROR,
            ResetReason::Budget => h2::Reason::ENHANCE_YOUR_CALM,
        });
    }
}

/// The direction out of the tunnel to the app.
pub struct RecvHalf {
    inner: h2::RecvStream,
    outbox: Rc<Outbox>,
    run: Run,
}

impl RecvHalf {
    /// Wraps the codec's half; `outbox` is the tunnel's.
    pub fn new(inner: h2::RecvStream, outbox: &Rc<Outbox>) -> Self {
        Self { inner, outbox: Rc::clone(outbox), run: Run::default() }
    }

    /// The next DATA; `None` is END_STREAM.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamEnd>>> {
        let next = ready!(self.inner.poll_data(cx));
        if let Some(Ok(data)) = &next
            && self.run.is_message(data.len())
        {
            self.outbox.message();
        }
        Poll::Ready(next.map(|data| data.map_err(|error| StreamEnd::from_h2(&error))))
    }

    /// Lets the peer send `taken` bytes more: the app has taken as many.
    pub fn credit(&mut self, taken: usize) {
        // An error says that the stream is gone, which `poll_data` reports with its reason.
        let _gone = self.inner.flow_control().release_capacity(taken);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::SystemTime;

    use crate::hbone::client::Tunnel;
    use crate::hbone::fixtures::{Mesh, WAIT, connect, local};

    /// A sender whose pieces are no part of the window sends what is left of it, however little that is.
    #[tokio::test]
    async fn what_fills_a_window_is_no_small_message() {
        const WINDOW: usize = 256 << 10;
        const READ: usize = WINDOW / 20 - 7;
        local(async {
            let mut mesh = Mesh::new(100).await;
            mesh.http2.stream_window = WINDOW as u32;
            let tunnel = mesh.establish().await.unwrap();
            let (slot, connect) = (tunnel.claim(SystemTime::now()).unwrap(), connect());
            let (near, far) = tokio::join!(Tunnel::open(&slot, &connect, WAIT), async {
                mesh.requests.recv().await.unwrap().accept(None).unwrap()
            });
            let (mut recv, mut send) = (near.unwrap().recv, far.send);
            let sent = async {
                let mut left = 16 * WINDOW;
                while left > 0 {
                    let credit = poll_fn(|cx| send.poll_credit(cx, READ)).await.unwrap().min(left);
                    send.send(vec![0; credit].into()).unwrap();
                    left -= credit;
                    tokio::task::yield_now().await; // to the driver, so that each is a frame
                }
            };
            let taken = async {
                let (mut small, mut unread) = (0, 0);
                for _ in 0..16 {
                    while unread < WINDOW {
                        let data = poll_fn(|cx| recv.poll_data(cx)).await.unwrap().unwrap();
                        unread += data.len();
                        small += usize::from(data.len() < 200);
                    }
                    recv.credit(std::mem::take(&mut unread));
                    assert!(!recv.outbox.has_messages());
                }
                small
            };
            let ((), small) = tokio::join!(sent, taken);
            assert!(small > 0, "what was to be seen did not happen");
            assert!(!send.lane.outbox().has_messages());
        })
        .await;
    }
}
