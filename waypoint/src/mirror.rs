//! Copies of requests for mirrors: sent beside the request once all of it is here, their answers read and thrown away.
//!
//! Bounded: a body longer than what is kept for another try is not copied, nor is anything beyond so many copies at once or
//! beyond the memory budget, against which their bodies count.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_common::hbone::budget::Budget;
use culvert_common::l7::balance::{Active, Picked};
use culvert_common::l7::breaker::Kind;
use culvert_common::model::l7::Backend;
use http::HeaderMap;

use crate::current::{Current, Live};
use crate::forward::{head_of, is_http2};
use crate::http1::body::{Decoder, Part};
use crate::http1::head::Framing;
use crate::message::{Body, MessageError, Request};
use crate::pump::{Pump, PumpError, Sink};
use crate::relay::Source;
use crate::replay::Replay;
use crate::request::Way;
use crate::serve::Stage;
use crate::shared::drawn;
use crate::upstream::{self, Http1, Need};

/// Copies that one worker has under way at once.
const COPIES_MAX: usize = 256;
/// A copy takes no longer, from its connection to the end of its answer.
const LONGEST: Duration = Duration::from_secs(60);

/// Copies of one worker that are under way.
pub(crate) struct UnderWay {
    count: Cell<usize>,
    budget: Arc<Budget>,
}

impl UnderWay {
    /// None are. What they hold counts against `budget`.
    pub(crate) fn new(budget: &Arc<Budget>) -> Rc<Self> {
        Rc::new(Self { count: Cell::new(0), budget: Arc::clone(budget) })
    }

    /// One more with a body of so many bytes, if there may be.
    fn take(self: &Rc<Self>, bytes: usize) -> Option<Place> {
        if self.count.get() >= COPIES_MAX || self.budget.is_over() {
            return None;
        }
        self.count.set(self.count.get() + 1);
        self.budget.charge(bytes as u64);
        Some(Place { of: Rc::clone(self), bytes: bytes as u64 })
    }
}

/// A copy that is under way, until it is dropped.
struct Place {
    of: Rc<UnderWay>,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.count.set(self.of.count.get() - 1);
        self.of.budget.release(self.bytes);
    }
}

/// The copies of one request that are to be sent.
pub(crate) struct Copies {
    stage: Rc<Stage>,
    to: Vec<Arc<Live>>,
    head: Request,
    limit: Duration,
}

/// Why a copy did not get to its end.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no endpoint")]
    NoEndpoint,
    #[error("no connection: {0}")]
    Unreached(String),
    #[error(transparent)]
    Broken(#[from] MessageError),
    #[error("it took too long")]
    Late,
    #[error("its host or path cannot be said in HTTP/2")]
    Unsayable,
}

impl Copies {
    /// Those that the route and the destination want of this request, as it goes on; none if there is none.
    pub(crate) fn of(stage: &Rc<Stage>, current: &Current, way: &Way<'_>, request: &Request) -> Option<Self> {
        let (route, backend) = way.route?;
        if route.mirrors.is_empty() && backend.mirrors.is_empty() {
            return None;
        }
        let mirrors = route.mirrors.iter().chain(&backend.mirrors);
        let to: Vec<_> = mirrors
            .filter(|mirror| drawn(mirror.share))
            .filter_map(|mirror| match &mirror.backend {
                Backend::Cluster(key) => current.cluster(key).filter(|live| live.cluster.refused.is_none()),
                Backend::Invalid { .. } => None,
            })
            .cloned()
            .collect();
        let limit = route.timeout.filter(|limit| !limit.is_zero()).unwrap_or(LONGEST).min(LONGEST);
        let is_wanted = !to.is_empty() && request.upgrade.is_none();
        is_wanted.then(|| Self { stage: Rc::clone(stage), to, head: request.clone(), limit })
    }

    /// Sends them, each as a task of its own, if all of the body is still here.
    pub(crate) fn send(self, body: &Replay<'_>) {
        let Some((parts, trailers)) = body.whole() else {
            return tracing::debug!("a request is too long for its mirrors");
        };
        let Self { stage, to, head, limit } = self;
        let head = Rc::new(head);
        for live in to {
            if stage.worker.scope.is_draining() {
                return;
            }
            let Some(place) = stage.worker.copies.take(parts.iter().map(Bytes::len).sum()) else {
                return tracing::debug!("too many copies for mirrors are under way, or too large ones");
            };
            let (stage, head) = (Rc::clone(&stage), Rc::clone(&head));
            let body = Copied { parts: parts.clone().into_iter(), trailers: trailers.clone() };
            stage.worker.scope.clone().spawn_local(async move {
                let sent = tokio::time::timeout(limit, Box::pin(one(&stage, &live, &head, body))).await;
                if let Err(error) = sent.unwrap_or(Err(Failed::Late)) {
                    tracing::debug!(cluster = %live.cluster.key, %error, "a copy for a mirror failed");
                }
                drop(place);
            });
        }
    }
}

struct Copied {
    parts: std::vec::IntoIter<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Copied {
    fn next(&mut self) -> Part {
        match self.parts.find(|part| !part.is_empty()) {
            Some(data) => Part::Data(data),
            None => Part::End(self.trailers.take()),
        }
    }
}

async fn one(stage: &Rc<Stage>, live: &Arc<Live>, head: &Request, body: Copied) -> Result<(), Failed> {
    let _permit = live.breaker.take(Kind::Requests, &live.cluster).ok_or(Failed::NoEndpoint)?;
    let node = match live.pick(None) {
        Ok(Picked::Endpoint(node)) => node.clone(),
        Ok(Picked::AsAsked) | Err(_) => return Err(Failed::NoEndpoint),
    };
    let endpoint = node.endpoint();
    let _active = Active::new(node);
    let (worker, client, pool) = (&stage.worker, &stage.client, &live.cluster.pool);
    let need = Need { worker, client, endpoint: &endpoint, live: Some(live), pool };
    if is_http2(Some(&live.cluster), head.version) {
        let uri = upstream::uri(head).ok_or(Failed::Unsayable)?;
        let connection = upstream::http2(need).await.map_err(|error| Failed::Unreached(error.to_string()))?;
        let (response, stream, _place) = connection.request(head, uri).await.map_err(MessageError::from)?;
        let upload = Pump::new(stream.map_or(Sink::Nothing, Sink::Http2));
        exchange(upload, body, Source::Http2(response, stage.worker.board.clone())).await?;
        return Ok(());
    }
    let connected = upstream::http1(need, false).await;
    let (mut connection, _) = connected.map_err(|error| Failed::Unreached(error.to_string()))?;
    connection.served += 1;
    let Http1 { input, output, .. } = &mut connection;
    let upload = Pump::new(Sink::http1(output, head.framing, head_of(head)));
    if exchange(upload, body, Source::Http1(input, head.method.clone())).await? {
        upstream::keep(need, connection);
    }
    Ok(())
}

/// Sends all and reads all; whether the connection may be used again.
async fn exchange(
    mut upload: Pump<'_>,
    mut body: Copied,
    mut source: Source<'_>,
) -> Result<bool, MessageError> {
    let sent = poll_fn(|cx| upload.poll(cx, |_| std::task::Poll::Ready(Ok(body.next())))).await;
    sent.map_err(|error| match error {
        PumpError::From(error) | PumpError::To(error) => error,
    })?;
    let answer = loop {
        let answer = source.head().await?;
        if !answer.status.is_informational() {
            break answer;
        }
    };
    let keep_alive = answer.keep_alive && answer.framing != Framing::Close;
    let mut from = match (source, answer.body) {
        (Source::Http1(input, _), _) => Body::Http1(input, Decoder::new(answer.framing)),
        (Source::Http2(..), Some(body)) => Body::Http2(body),
        (Source::Http2(..), None) => Body::Empty,
    };
    while !matches!(poll_fn(|cx| from.poll_part(cx)).await?, Part::End(_)) {
        // A server that is never slower than this would keep everybody else from their turn.
        tokio::task::consume_budget().await;
    }
    Ok(keep_alive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_bounded_in_number_and_bytes_until_they_end() {
        let budget = Budget::new(1000);
        let copies = UnderWay::new(&budget);
        let all: Vec<_> = (0..COPIES_MAX).map(|_| copies.take(1).unwrap()).collect();
        assert!(copies.take(1).is_none());
        assert_eq!(budget.held(), COPIES_MAX as u64);
        drop(all);
        assert_eq!((copies.count.get(), budget.held()), (0, 0));
        let large = copies.take(1001).unwrap();
        assert!(copies.take(0).is_none(), "over the budget");
        drop(large);
        assert!(copies.take(0).is_some());
    }
}
