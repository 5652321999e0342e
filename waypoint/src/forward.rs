//! A request on its way to an endpoint: choice, connection, tries, and the answer on its way back.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use culvert_common::l7::balance::{Active, Ask, Picked};
use culvert_common::l7::breaker::{Kind, Permit};
use culvert_common::l7::outlier::Outcome;
use culvert_common::l7::retry::{self, Tried};
use culvert_common::l7::timeout::{Timeouts, timeouts};
use culvert_common::l7::{
    Edits, Failure, Flag, Reset, Switch, add_client_cert, add_request_headers, add_server, add_service_time,
    clean_response, http_status,
};
use culvert_common::model::l7::{Cluster, ConnectionPool, Protocol, Retries, Upgrade};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::{Instant, Sleep};

use crate::current::{Live, Node};
use crate::http1::body::Decoder;
use crate::http1::encode;
use crate::http1::head::{self, Framing};
use crate::message::{Body, Input, MessageError, Pump, PumpError, Request, Sink, Version};
use crate::request::{Exchange, To, Way, facts, values};
use crate::shared::random;
use crate::upstream::{self, Endpoint, Http1, UpstreamError};

/// Longest time that a timer is set to; as good as never.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a try ended without an answer for the client.
enum Ended {
    /// The answer has been given, to its end.
    Answered,
    /// It failed and may be tried again.
    Again(Failure),
    /// It failed, or the answer of an earlier try was better.
    Failed(Failure),
}

/// The head of an upstream's answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    framing: Framing,
    keep_alive: bool,
    body: Option<h2::RecvStream>,
}

/// Where an answer comes from.
enum Source<'c> {
    Http1(&'c mut Input, Method),
    Http2(h2::client::ResponseFuture),
}

impl Source<'_> {
    async fn head(&mut self) -> Result<Answer, MessageError> {
        match self {
            Self::Http1(input, method) => {
                let head = input.head(head::RESPONSE_MAX).await?.ok_or(MessageError::Short)?;
                let head::ResponseHead { status, headers, framing, keep_alive } =
                    head::response(&head, method)?;
                Ok(Answer { status, headers, framing, keep_alive, body: None })
            }
            Self::Http2(response) => {
                let (parts, body) = response.await?.into_parts();
                let length = parts.headers.get(http::header::CONTENT_LENGTH);
                let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
                let framing = match (body.is_end_stream(), length) {
                    (true, _) => Framing::Empty,
                    (false, Some(length)) => Framing::Length(length),
                    (false, None) => Framing::Chunked,
                };
                let (status, headers) = (parts.status, parts.headers);
                Ok(Answer { status, headers, framing, keep_alive: true, body: Some(body) })
            }
        }
    }
}

/// What all tries of a request have in common.
struct Tries<'r> {
    live: Option<&'r Arc<Live>>,
    retries: Option<&'r Retries>,
    times: Timeouts,
    pool: ConnectionPool,
    /// When the client had sent everything.
    sent: Option<Instant>,
    /// Those that were made.
    made: u32,
    tried: Vec<Node>,
    is_grpc: bool,
}

impl<'a> Exchange<'a> {
    /// Sends the request on and the answer back. A failure is for the caller to tell.
    ///
    /// **Errors**: the client has gone, or broke off.
    pub(crate) async fn forward(
        &mut self,
        request: &mut Request,
        way: &Way<'_>,
        is_grpc: bool,
    ) -> Result<Option<Failure>, MessageError> {
        let live = match &way.to {
            To::Cluster(live) => Some(*live),
            To::Workload(_) => None,
        };
        let route = way.route.map(|(route, _)| route);
        let retries = route.map(|route| &route.retries).filter(|retries| retries.attempts > 0);
        let per_try = retries.and_then(|retries| retries.per_try_timeout);
        let grpc = is_grpc.then_some(&request.headers);
        let mut tries = Tries {
            live,
            retries,
            times: timeouts(route.and_then(|route| route.timeout), per_try, grpc),
            pool: live.map(|live| live.cluster.pool.clone()).unwrap_or_default(),
            sent: None,
            made: 0,
            tried: Vec::new(),
            is_grpc,
        };
        let _permit = match live.map(|live| live.breaker.take(Kind::Requests, &live.cluster)) {
            Some(None) => return Ok(Some(overflow())),
            permit => permit.flatten(),
        };
        if retries.is_none() {
            self.body.forget();
        }
        let mut retry_permit: Option<Permit> = None;
        loop {
            let failure = match self.attempt(request, way, &mut tries).await? {
                Ended::Answered => return Ok(None),
                Ended::Failed(failure) => return Ok(Some(failure)),
                Ended::Again(failure) => failure,
            };
            drop(retry_permit.take());
            if let Some(live) = live {
                retry_permit = live.breaker.take(Kind::Retries, &live.cluster);
                if retry_permit.is_none() {
                    self.told.flags.raise(Flag::UpstreamOverflow);
                    return Ok(Some(failure));
                }
            }
            tries.made += 1;
            self.body.rewind();
            let back_off = retries.map(|retries| retry::pause(retries.back_off, tries.made, random() as u64));
            tokio::time::sleep(back_off.unwrap_or_default()).await;
        }
    }

    /// What every request is given before it goes on; routes may take it away again.
    pub(crate) fn dress(&self, request: &mut Request) {
        let scheme = if request.is_https { "https" } else { "http" };
        add_request_headers(&mut request.headers, scheme, random());
        if self.current.waypoint.forwards_identity {
            let shared = &self.stage.worker.shared;
            add_client_cert(&mut request.headers, &shared.identity, &self.stage.client.identity);
        }
    }

    /// One try.
    async fn attempt(
        &mut self,
        request: &mut Request,
        way: &Way<'_>,
        tries: &mut Tries<'_>,
    ) -> Result<Ended, MessageError> {
        let (endpoint, node) = match self.endpoint(way, tries) {
            Ok(chosen) => chosen,
            Err(failure) => return Ok(Ended::Failed(failure)),
        };
        let _active = node.clone().map(Active::new);
        self.told.endpoint = Some(endpoint.clone());
        let elapsed = tries.sent.map(|at| at.elapsed()).unwrap_or_default();
        tries.times.announce(elapsed, tries.is_grpc, &mut request.headers);
        let worker = &self.stage.worker;
        let speaks_http2 =
            request.upgrade.is_none() && is_http2(tries.live.map(|live| &*live.cluster), request.version);
        if speaks_http2 {
            let connected = upstream::http2(worker, &self.stage.client, &endpoint, &tries.pool).await;
            let connection = match connected {
                Ok(connection) => connection,
                Err(error) => return Ok(self.unreached(&error, tries, node.as_ref())),
            };
            let sent = connection.request(request).await;
            let (response, stream, _slot) = match sent {
                Ok(sent) => sent,
                Err(error) => return Ok(self.broken(&error.into(), false, tries, node.as_ref())),
            };
            let sink = stream.map_or(Sink::Nothing, Sink::Http2);
            let (mut upload, mut source) = (Pump::new(sink), Source::Http2(response));
            let ended = self.exchange((request, way), tries, (&mut upload, &mut source), node.as_ref()).await;
            return ended.map(|(ended, _)| ended);
        }
        let connected = upstream::http1(worker, &self.stage.client, &endpoint, &tries.pool).await;
        let (mut connection, is_new) = match connected {
            Ok(connected) => connected,
            Err(error) => return Ok(self.unreached(&error, tries, node.as_ref())),
        };
        let _ = is_new;
        connection.served += 1;
        let head = head_of(request);
        let Http1 { input, output, .. } = &mut connection;
        let mut upload = Pump::new(Sink::http1(output, request.framing, head));
        let mut source = Source::Http1(input, request.method.clone());
        let ended = self.exchange((request, way), tries, (&mut upload, &mut source), node.as_ref()).await;
        drop((upload, source));
        let (ended, is_reusable) = ended?;
        if is_reusable {
            upstream::keep(&self.stage.worker, &endpoint, connection, &tries.pool);
        }
        Ok(ended)
    }

    fn endpoint(&self, way: &Way<'_>, tries: &mut Tries<'_>) -> Result<(Endpoint, Option<Node>), Failure> {
        let live = match &way.to {
            To::Workload(endpoint) => return Ok((endpoint.clone(), None)),
            To::Cluster(live) => live,
        };
        let ask = Ask {
            balance: live.cluster.balance,
            outliers: live.cluster.outliers.as_ref(),
            random: [random() as u64, random() as u64],
            now: std::time::Instant::now(),
        };
        let may_repeat = tries.retries.is_some_and(|retries| retries.ignore_previous_hosts == Some(false));
        let was_tried = |node: &Node| tries.tried.iter().any(|one| one.address == node.address);
        let avoid: Option<&dyn Fn(&Node) -> bool> =
            if tries.tried.is_empty() || may_repeat { None } else { Some(&was_tried) };
        match live.endpoints.pick(&ask, avoid) {
            Ok(Picked::Endpoint(node)) => {
                let node = node.clone();
                tries.tried.push(node.clone());
                Ok((Endpoint { workload: Arc::clone(&node.workload), address: node.address }, Some(node)))
            }
            Ok(Picked::AsAsked) => {
                let workload = self.current.snapshot.workload_by_ip(self.stage.destination.ip()).cloned();
                let workload = workload.ok_or(Failure::NoHealthyUpstream)?;
                Ok((Endpoint { workload, address: self.stage.destination }, None))
            }
            Err(_) => Err(Failure::NoHealthyUpstream),
        }
    }

    /// No connection to the endpoint.
    fn unreached(&mut self, error: &UpstreamError, tries: &Tries<'_>, node: Option<&Node>) -> Ended {
        let (reason, outcome) = if error.is_timeout() {
            (Reset::ConnectionTimeout, Outcome::TimedOut)
        } else {
            (Reset::ConnectionFailure, Outcome::Failed)
        };
        self.told.transport = error.to_string();
        self.record(tries, node, outcome);
        self.failed(reason, false, tries)
    }

    /// The connection broke before an answer came.
    fn broken(
        &mut self,
        error: &MessageError,
        was_sent: bool,
        tries: &Tries<'_>,
        node: Option<&Node>,
    ) -> Ended {
        let reason = match error {
            MessageError::Head(_) | MessageError::Body(_) => Reset::ProtocolError,
            MessageError::Http2(error) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => {
                Reset::RefusedStream
            }
            MessageError::Http2(error) if error.is_reset() => Reset::RemoteReset,
            _ => Reset::ConnectionTermination,
        };
        self.told.transport = error.to_string();
        self.record(tries, node, Outcome::Failed);
        self.failed(reason, was_sent, tries)
    }

    fn failed(&mut self, reason: Reset, was_sent: bool, tries: &Tries<'_>) -> Ended {
        let failure = Failure::Reset { reason, retried: tries.made > 0, transport: Cow::Borrowed("") };
        match self.may_retry(tries, Tried::Reset { reason, was_sent }) {
            true => Ended::Again(failure),
            false => Ended::Failed(failure),
        }
    }

    /// Whether another try may follow one that ended so; that there were too many is told.
    fn may_retry(&mut self, tries: &Tries<'_>, tried: Tried<'_>) -> bool {
        match tries.retries.map(|retries| retry::next(retries, tries.made, tried)) {
            Some(retry::Next::Again) => self.body.can_rewind(),
            Some(retry::Next::UsedUp) => {
                self.told.flags.raise(Flag::RetryLimit);
                false
            }
            Some(retry::Next::Done) | None => false,
        }
    }

    fn record(&self, tries: &Tries<'_>, node: Option<&Node>, outcome: Outcome) {
        let (Some(live), Some(node)) = (tries.live, node) else { return };
        let Some(outliers) = &live.cluster.outliers else { return };
        let (hosts, now) = (live.endpoints.list(), std::time::Instant::now());
        let ejection = live.endpoints.detector().record(outliers, (hosts, node.as_ref()), outcome, now);
        if let Some(ejection) = ejection {
            let (cause, time) = (ejection.cause, ejection.time);
            tracing::warn!(endpoint = %node.address, cluster = %live.cluster.key, ?cause, ?time, "endpoint ejected");
        }
    }

    /// Sends the request over an open connection and the answer back; whether the connection may be used again.
    async fn exchange(
        &mut self,
        (request, way): (&Request, &Way<'_>),
        tries: &mut Tries<'_>,
        (upload, source): (&mut Pump<'_>, &mut Source<'_>),
        node: Option<&Node>,
    ) -> Result<(Ended, bool), MessageError> {
        let began = Instant::now();
        let answer = loop {
            let answer = match self.answer(tries, upload, source).await? {
                Waited::Answer(answer) => answer,
                Waited::Broken(error) => return Ok((self.broken(&error, true, tries, node), false)),
                Waited::TimedOut => return Ok((self.timed_out(tries, node), false)),
            };
            if !answer.status.is_informational() || answer.status == StatusCode::SWITCHING_PROTOCOLS {
                break answer;
            }
            if let Some(responder) = &mut self.responder {
                responder.interim(answer.status, answer.headers).await?;
            }
        };
        let status = match tries.is_grpc.then(|| retry::grpc_status(&answer.headers)).flatten() {
            Some(status) => http_status(status),
            None => answer.status,
        };
        self.record(tries, node, Outcome::Connected);
        self.record(tries, node, Outcome::Answered(status));
        if self.may_retry(tries, Tried::Answered(answer.status, &answer.headers))
            && self.may_take_retry(tries)
        {
            return Ok((Ended::Again(Failure::NoHealthyUpstream), false));
        }
        self.body.forget();
        self.told.upstream_time = Some(began.elapsed());
        self.told.details = Cow::Borrowed("via_upstream");
        let is_reusable = self.relay(request, way, (upload, source), answer).await?;
        Ok((Ended::Answered, is_reusable))
    }

    /// An answer that is worth another try is only thrown away if there may be one.
    fn may_take_retry(&mut self, tries: &Tries<'_>) -> bool {
        let is_free = tries.live.is_none_or(|live| {
            live.breaker.count(Kind::Retries) < live.breaker.limit(Kind::Retries, &live.cluster)
        });
        if !is_free {
            self.told.flags.raise(Flag::UpstreamOverflow);
        }
        is_free
    }

    fn timed_out(&mut self, tries: &Tries<'_>, node: Option<&Node>) -> Ended {
        self.record(tries, node, Outcome::TimedOut);
        let elapsed = tries.sent.map(|at| at.elapsed()).unwrap_or_default();
        if tries.times.request.is_some_and(|all| elapsed >= all) {
            return Ended::Failed(Failure::Timeout);
        }
        match self.may_retry(tries, Tried::TimedOut { was_sent: true }) {
            true => Ended::Again(Failure::PerTryTimeout),
            false => Ended::Failed(Failure::PerTryTimeout),
        }
    }

    /// Sends the body and waits for the head of the answer, for as long as that may take.
    async fn answer(
        &mut self,
        tries: &mut Tries<'_>,
        upload: &mut Pump<'_>,
        source: &mut Source<'_>,
    ) -> Result<Waited, MessageError> {
        let mut head = pin!(source.head());
        let mut timer = pin!(tokio::time::sleep(NEVER));
        let mut is_set = false;
        let Self { body, responder, told, .. } = self;
        poll_fn(|cx| {
            if let Err(error) = upload_some(upload, body, cx)? {
                // It may have answered before it stopped reading.
                return Poll::Ready(Ok(match head.as_mut().poll(cx) {
                    Poll::Ready(Ok(answer)) => Waited::Answer(answer),
                    Poll::Ready(Err(_)) | Poll::Pending => Waited::Broken(error),
                }));
            }
            told.received = upload.bytes;
            match head.as_mut().poll(cx) {
                Poll::Ready(Ok(answer)) => return Poll::Ready(Ok(Waited::Answer(answer))),
                Poll::Ready(Err(error)) => return Poll::Ready(Ok(Waited::Broken(error))),
                Poll::Pending => {}
            }
            if body.is_done() && !is_set {
                is_set = true;
                let sent = *tries.sent.get_or_insert_with(Instant::now);
                set(timer.as_mut(), tries.times.of_try(sent.elapsed()));
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Waited::TimedOut));
            }
            if body.is_done()
                && let Some(responder) = responder
                && let Poll::Ready(error) = responder.poll_gone(cx)
            {
                return Poll::Ready(Err(error));
            }
            Poll::Pending
        })
        .await
    }

    /// The answer's way to the client, beside what is left of the request.
    async fn relay(
        &mut self,
        request: &Request,
        way: &Way<'_>,
        (upload, source): (&mut Pump<'_>, &mut Source<'_>),
        answer: Answer,
    ) -> Result<bool, MessageError> {
        let Answer { status, mut headers, framing, keep_alive, body } = answer;
        let switches = status == StatusCode::SWITCHING_PROTOCOLS;
        clean_response(&mut headers, if switches { Switch::Upgrade } else { Switch::No });
        add_service_time(&mut headers, self.told.upstream_time.unwrap_or_default());
        if let Some((route, backend)) = way.route {
            let facts = facts(self.stage, request);
            let mut values = values(&facts, request.version, self.told);
            values.response = Some((status, &headers));
            let edits = Edits::of_response(route, Some(backend), &values);
            edits.apply(&mut headers);
        }
        add_server(&mut headers);
        headers.extend(std::mem::take(&mut self.cors));
        self.told.status = Some(status);
        let Some(responder) = self.responder.take() else { return Ok(false) };
        let client_keeps = responder.keep_alive && !switches;
        let framing = if switches { Framing::Close } else { framing };
        if switches {
            self.body.switch();
            upload.switch();
        }
        let mut download = Pump::new(responder.begin(status, &headers, framing)?);
        let mut from = match (source, body) {
            (Source::Http1(input, _), _) => Body::Http1(input, Decoder::new(framing)),
            (Source::Http2(_), Some(body)) => Body::Http2(body),
            (Source::Http2(_), None) => Body::Empty,
        };
        let moved = both(upload, &mut self.body, &mut download, &mut from).await;
        (self.told.received, self.told.sent) = (upload.bytes, download.bytes);
        match moved {
            Ok(()) => {
                self.told.goes_on = client_keeps && self.body.take_rest().await;
                Ok(keep_alive && upload.is_done && !switches)
            }
            Err(PumpError::From(error)) => {
                download.reset();
                self.told.flags.raise(Flag::UpstreamTermination);
                self.told.details =
                    Cow::Borrowed("upstream_reset_after_response_started{connection_termination}");
                self.told.transport = error.to_string();
                Ok(false)
            }
            Err(PumpError::To(error)) => {
                upload.reset();
                self.told.flags.raise(Flag::DownstreamTermination);
                self.told.details = Cow::Borrowed("downstream_remote_disconnect");
                Err(error)
            }
        }
    }
}

/// What came of waiting for an answer.
enum Waited {
    Answer(Answer),
    Broken(MessageError),
    TimedOut,
}

fn overflow() -> Failure {
    Failure::Reset { reason: Reset::Overflow, retried: false, transport: Cow::Borrowed("") }
}

fn set(timer: Pin<&mut Sleep>, time: Option<Duration>) {
    if let Some(time) = time {
        timer.reset(Instant::now() + time);
    }
}

/// Moves what can be moved of the request. The outer error is the client's, the inner one the upstream's.
fn upload_some(
    upload: &mut Pump<'_>,
    body: &mut crate::message::Replay<'_>,
    cx: &mut Context<'_>,
) -> Result<Result<(), MessageError>, MessageError> {
    match upload.poll(cx, |cx| body.poll_part(cx)) {
        Poll::Ready(Err(PumpError::From(error))) => Err(error),
        Poll::Ready(Err(PumpError::To(error))) => Ok(Err(error)),
        Poll::Ready(Ok(())) | Poll::Pending => Ok(Ok(())),
    }
}

/// Moves both bodies until the answer is over. A server that has answered need not hear the rest.
async fn both(
    upload: &mut Pump<'_>,
    request: &mut crate::message::Replay<'_>,
    download: &mut Pump<'_>,
    from: &mut Body<'_>,
) -> Result<(), PumpError> {
    let mut deaf = false;
    poll_fn(|cx| {
        if !deaf {
            match upload.poll(cx, |cx| request.poll_part(cx)) {
                Poll::Ready(Err(PumpError::From(error))) => return Poll::Ready(Err(PumpError::To(error))),
                Poll::Ready(Err(PumpError::To(_))) => deaf = true,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        download.poll(cx, |cx| from.poll_part(cx))
    })
    .await
}

/// Which version of HTTP an endpoint is spoken to with.
fn is_http2(cluster: Option<&Cluster>, client: Version) -> bool {
    let Some(cluster) = cluster else { return client == Version::Http2 };
    match (cluster.pool.upgrade, cluster.protocol) {
        (Upgrade::Always, _) => true,
        (Upgrade::AsClient, _) => client == Version::Http2,
        (Upgrade::ByPort, Protocol::Http2) => true,
        (Upgrade::ByPort, Protocol::Http1) => false,
        (Upgrade::ByPort, _) => client == Version::Http2,
    }
}

fn head_of(request: &Request) -> bytes::BytesMut {
    let Request { method, path, authority, headers, framing, upgrade, .. } = request;
    let Some(protocol) = upgrade else { return encode::request(method, path, authority, headers, *framing) };
    let mut headers = headers.clone();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
    encode::request(method, path, authority, &headers, *framing)
}
