//! A request on its way to an endpoint: choice, connection, tries. What is sent over a connection is in [`crate::relay`].

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use culvert_common::crypto::random;
use culvert_common::l7::balance::{Active, Picked};
use culvert_common::l7::breaker::{Kind, Permit};
use culvert_common::l7::outlier::Outcome;
use culvert_common::l7::retry::{self, Next, Tried};
use culvert_common::l7::timeout::{Timeouts, timeouts};
use culvert_common::l7::{Failure, Flag, Reset, add_client_cert, add_request_headers};
use culvert_common::model::l7::{Cluster, ConnectionPool, Protocol, Retries, Upgrade};
use culvert_common::telemetry::GrpcMessages;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method};
use tokio::time::Instant;

use crate::current::{Live, Node};
use crate::dial::{Endpoint, UpstreamError};
use crate::http1::encode;
use crate::http1::head::Framing;
use crate::message::{MessageError, Request, Version};
use crate::mirror::Copies;
use crate::pump::{Pump, Sink};
use crate::relay::{Exchanged, Source, poll_gone};
use crate::replay::Replay;
use crate::request::{Exchange, To, Way};
use crate::upstream::{self, Http1, Need};

/// Connections of HTTP/2 that may turn out to be closing before another one is taken as broken.
const CLOSING_MAX: usize = 3;

/// How a try ended.
pub(crate) enum Ended {
    /// The answer has been given, as far as it came.
    Answered,
    /// There will be another one.
    Again,
    /// It failed, and that is the end.
    Failed(Failure),
}

/// What all tries of a request have in common.
pub(crate) struct Tries<'r> {
    live: Option<&'r Arc<Live>>,
    retries: Option<&'r Retries>,
    times: Timeouts,
    pool: ConnectionPool,
    /// When the client had sent everything.
    sent: Option<Instant>,
    /// Repetitions that were made.
    made: u32,
    /// Of the repetition that comes next, or is under way.
    permit: Option<Permit>,
    tried: Vec<Node>,
    copies: Option<Copies>,
    pub(crate) is_grpc: bool,
    /// Where the messages of this try are counted, of a gRPC request.
    pub(crate) messages: Option<GrpcMessages>,
    /// Those of the client and the server that are. What is sent once more is not counted again.
    counted: (u64, u64),
}

impl Tries<'_> {
    /// Counts the messages of gRPC that have passed since.
    pub(crate) fn tell_messages(&mut self, upload: &Pump<'_>, download: Option<&Pump<'_>>) {
        let Some(messages) = &self.messages else { return };
        let (up, down) = (upload.messages(), download.map_or(0, Pump::messages));
        if up > self.counted.0 {
            messages.add_requests(up - std::mem::replace(&mut self.counted.0, up));
        }
        if down > self.counted.1 {
            messages.add_responses(down - std::mem::replace(&mut self.counted.1, down));
        }
    }

    /// The client has sent everything: time counts from now on, and copies go out.
    pub(crate) fn is_sent(&mut self, body: &Replay<'_>) {
        self.sent.get_or_insert_with(Instant::now);
        if let Some(copies) = self.copies.take() {
            copies.send(body);
        }
    }

    /// The client has heard of this try: there will be no other one.
    pub(crate) fn is_told(&mut self) {
        self.retries = None;
    }

    /// When the request has taken too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sent?.checked_add(self.times.request?)
    }

    /// When a try that has all of the request by now has taken too long.
    pub(crate) fn limit_of_try(&self) -> Option<Instant> {
        Instant::now().checked_add(self.times.of_try(self.sent?.elapsed())?)
    }

    /// Whether a repetition may be made while so many others are.
    pub(crate) fn take_permit(&mut self) -> bool {
        let Some(live) = self.live else { return true };
        // Its own place is free for the next one.
        self.permit = None;
        self.permit = live.breaker.take(Kind::Retries, &live.cluster);
        self.permit.is_some()
    }
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
        let usual = route.is_none().then(Retries::default);
        let retries = route.map(|route| &route.retries).or(usual.as_ref());
        let retries = retries.filter(|retries| retries.attempts > 0);
        let per_try = retries.and_then(|retries| retries.per_try_timeout);
        let grpc = is_grpc.then_some(&request.headers);
        let _permit = match live.map(|live| live.breaker.take(Kind::Requests, &live.cluster)) {
            Some(None) => return Ok(Some(overflow())),
            permit => permit.flatten(),
        };
        let mut tries = Tries {
            live,
            retries,
            times: timeouts(route.and_then(|route| route.timeout), per_try, grpc),
            pool: live.map(|live| live.cluster.pool.clone()).unwrap_or_default(),
            sent: None,
            made: 0,
            permit: None,
            tried: Vec::new(),
            copies: Copies::of(self.stage, &self.current, way, request),
            is_grpc,
            messages: None,
            counted: (0, 0),
        };
        if retries.is_none() && tries.copies.is_none() {
            self.body.forget();
        }
        if self.body.is_done() {
            tries.is_sent(&self.body);
        }
        loop {
            match self.attempt(request, way, &mut tries).await? {
                Ended::Answered => return Ok(None),
                Ended::Failed(failure) => return Ok(Some(failure)),
                Ended::Again => {}
            }
            tries.made += 1;
            self.body.rewind();
            let back_off = retries.map(|retries| retry::pause(retries.back_off, tries.made, random() as u64));
            if let Some(failure) = self.pause(&tries, back_off.unwrap_or_default()).await? {
                return Ok(Some(failure));
            }
        }
    }

    /// What every request is given before it goes on; routes may take it away again.
    pub(crate) fn dress(&self, request: &mut Request) {
        add_request_headers(&mut request.headers, random());
    }

    /// Who the client is, for policies and the application; as Envoy has it, routes do not see it.
    pub(crate) fn tell_client(&self, request: &mut Request) {
        let waypoint = &self.current.waypoint;
        if waypoint.forwards_identity
            && let Some(identity) = &waypoint.identity
        {
            add_client_cert(&mut request.headers, identity, &self.stage.client.identity);
        }
    }

    /// Does `work`; none if the request's time passes first.
    ///
    /// **Errors**: the client goes first.
    async fn within<T>(
        &mut self,
        tries: &Tries<'_>,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, MessageError> {
        let mut work = pin!(work);
        let mut timer = pin!(tries.deadline().map(tokio::time::sleep_until));
        let Self { body, responder, .. } = self;
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(Some(done)));
            }
            if timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
                return Poll::Ready(Ok(None));
            }
            poll_gone(body, responder, cx).map(Err)
        })
        .await
    }

    /// Waits before another try; what the client sends meanwhile is kept for it. A failure if there will be none.
    ///
    /// **Errors**: the client goes, or what it sends is no body.
    async fn pause(&mut self, tries: &Tries<'_>, time: Duration) -> Result<Option<Failure>, MessageError> {
        let mut pause = pin!(tokio::time::sleep(time));
        let mut timer = pin!(tries.deadline().map(tokio::time::sleep_until));
        let Self { body, responder, .. } = self;
        poll_fn(|cx| {
            // As Envoy has it, which keeps nothing beyond the limit either: no try is under way that could take it.
            if !body.keep(cx)? {
                return Poll::Ready(Ok(Some(Failure::RetryBufferFull)));
            }
            if pause.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            if timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
                return Poll::Ready(Ok(Some(Failure::Timeout)));
            }
            poll_gone(body, responder, cx).map(Err)
        })
        .await
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
        // What an earlier try met is not why this one fails.
        self.told.transport.clear();
        // The first try is told the whole time: a fraction of a millisecond would make it one less.
        let sent = tries.sent.filter(|_| tries.made > 0);
        let elapsed = sent.map(|at| at.elapsed()).unwrap_or_default();
        tries.times.announce(elapsed, tries.is_grpc, &mut request.headers);
        let speaks_http2 =
            request.upgrade.is_none() && is_http2(tries.live.map(|live| &*live.cluster), request.version);
        let on = (&endpoint, node.as_ref());
        if speaks_http2 {
            self.by_http2((request, way), tries, on).await
        } else {
            self.by_http1((request, way), tries, on).await
        }
    }

    async fn by_http2(
        &mut self,
        (request, way): (&Request, &Way<'_>),
        tries: &mut Tries<'_>,
        (endpoint, node): (&Endpoint, Option<&Node>),
    ) -> Result<Ended, MessageError> {
        // HTTP/2's rules for hosts and paths are narrower than those of HTTP/1.1, and of routes.
        let Some(uri) = upstream::uri(request) else {
            return Ok(Ended::Failed(Failure::BadRequest));
        };
        let (live, pool) = (tries.live, tries.pool.clone());
        let (worker, client) = (&self.stage.worker, &self.stage.client);
        let need = Need { worker, client, endpoint, live, pool: &pool };
        let mut closing = 0;
        let (response, stream, _place) = loop {
            let connection = match self.within(tries, upstream::http2(need)).await? {
                None => return Ok(self.timed_out(tries, node)),
                Some(Err(error)) => return Ok(self.unreached(&error, tries, node)),
                Some(Ok(connection)) => connection,
            };
            let begun = match self.within(tries, connection.request(request, uri.clone())).await? {
                None => return Ok(self.timed_out(tries, node)),
                Some(begun) => begun,
            };
            match begun {
                Ok(begun) => break begun,
                // It has ended, or its server has said that it will: another one takes the request, which nobody has seen.
                Err(_) if closing < CLOSING_MAX => closing += 1,
                Err(error) => return Ok(self.broken(&error.into(), false, tries, node)),
            }
        };
        let sink = stream.map_or(Sink::Nothing, Sink::Http2);
        let (mut upload, mut source) =
            (Pump::new(sink), Source::Http2(response, self.stage.worker.board.clone()));
        Ok(match self.exchange((request, way), tries, (&mut upload, &mut source), node).await? {
            Exchanged::Over(ended, _) => ended,
            Exchanged::Broken(error) => self.broken(&error, true, tries, node),
        })
    }

    async fn by_http1(
        &mut self,
        (request, way): (&Request, &Way<'_>),
        tries: &mut Tries<'_>,
        (endpoint, node): (&Endpoint, Option<&Node>),
    ) -> Result<Ended, MessageError> {
        let (live, pool) = (tries.live, tries.pool.clone());
        let (worker, client) = (&self.stage.worker, &self.stage.client);
        let need = Need { worker, client, endpoint, live, pool: &pool };
        let mut fresh = false;
        loop {
            let (mut connection, has_waited) = match self.within(tries, upstream::http1(need, fresh)).await? {
                None => return Ok(self.timed_out(tries, node)),
                Some(Err(error)) => return Ok(self.unreached(&error, tries, node)),
                Some(Ok(connected)) => connected,
            };
            connection.served += 1;
            let Http1 { input, output, .. } = &mut connection;
            let mut upload = Pump::new(Sink::http1(output, request.framing, head_of(request)));
            let mut source = Source::Http1(input, request.method.clone());
            let exchanged = self.exchange((request, way), tries, (&mut upload, &mut source), node).await?;
            drop((upload, source));
            match exchanged {
                Exchanged::Over(ended, is_reusable) => {
                    if is_reusable {
                        upstream::keep(need, connection);
                    }
                    return Ok(ended);
                }
                // The server has ended a connection that waited before it saw the request.
                Exchanged::Broken(error) if has_waited && is_stale(&error) && self.is_repeatable(request) => {
                    self.body.rewind();
                    fresh = true;
                }
                Exchanged::Broken(error) => return Ok(self.broken(&error, true, tries, node)),
            }
        }
    }

    /// Whether nothing is different if a server gets it twice.
    fn is_repeatable(&self, request: &Request) -> bool {
        let is_idempotent = matches!(
            request.method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
        );
        is_idempotent
            && request.upgrade.is_none()
            && (request.framing == Framing::Empty || self.body.can_rewind())
    }

    fn endpoint(&self, way: &Way<'_>, tries: &mut Tries<'_>) -> Result<(Endpoint, Option<Node>), Failure> {
        let live = match &way.to {
            To::Workload(endpoint) => return Ok((endpoint.clone(), None)),
            To::Cluster(live) => live,
        };
        let may_repeat = tries.retries.is_some_and(|retries| retries.ignore_previous_hosts == Some(false));
        let was_tried = |node: &Node| tries.tried.iter().any(|one| one.address == node.address);
        let avoid: Option<&dyn Fn(&Node) -> bool> =
            if tries.tried.is_empty() || may_repeat { None } else { Some(&was_tried) };
        match live.pick(avoid) {
            Ok(Picked::Endpoint(node)) => {
                tries.tried.push(node.clone());
                Ok((node.endpoint(), Some(node.clone())))
            }
            Ok(Picked::AsAsked) => {
                let asked = self.current.asked(self.stage.destination);
                Ok((asked.ok_or(Failure::NoHealthyUpstream)?, None))
            }
            Err(_) => Err(Failure::NoHealthyUpstream),
        }
    }

    /// No connection to the endpoint.
    fn unreached(&mut self, error: &UpstreamError, tries: &mut Tries<'_>, node: Option<&Node>) -> Ended {
        if matches!(error, UpstreamError::Overflow) {
            return Ended::Failed(overflow());
        }
        let (reason, outcome) = if error.is_timeout() {
            (Reset::ConnectionTimeout, Outcome::TimedOut)
        } else if error.is_refusal() {
            // As Envoy has it: there was a tunnel, and it ended.
            (Reset::ConnectionTermination, Outcome::Failed)
        } else {
            (Reset::ConnectionFailure, Outcome::Failed)
        };
        if error.is_refusal() {
            tracing::debug!(%error, "a tunnel was refused");
        } else {
            self.told.transport = error.to_string();
        }
        self.record(tries, node, outcome);
        self.failed(reason, error.is_refusal(), tries)
    }

    /// The connection broke before an answer came.
    fn broken(
        &mut self,
        error: &MessageError,
        was_sent: bool,
        tries: &mut Tries<'_>,
        node: Option<&Node>,
    ) -> Ended {
        let reason = reset_of(error);
        tracing::debug!(%error, "a try broke off");
        self.record(tries, node, Outcome::Failed);
        self.failed(reason, was_sent, tries)
    }

    fn failed(&mut self, reason: Reset, was_sent: bool, tries: &mut Tries<'_>) -> Ended {
        let failure = Failure::Reset { reason, retried: tries.made > 0, transport: Cow::Borrowed("") };
        self.again_or(failure, Tried::Reset { reason, was_sent }, tries)
    }

    pub(crate) fn timed_out(&mut self, tries: &mut Tries<'_>, node: Option<&Node>) -> Ended {
        self.record(tries, node, Outcome::TimedOut);
        if tries.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            return Ended::Failed(Failure::Timeout);
        }
        self.again_or(Failure::PerTryTimeout, Tried::TimedOut { was_sent: true }, tries)
    }

    fn again_or(&mut self, failure: Failure, tried: Tried<'_>, tries: &mut Tries<'_>) -> Ended {
        if self.may_retry(tries, tried) {
            if tries.take_permit() {
                return Ended::Again;
            }
            self.told.flags.raise(Flag::UpstreamOverflow);
        }
        Ended::Failed(failure)
    }

    /// Whether a try is worth repeating, and its body is still there.
    pub(crate) fn may_retry(&mut self, tries: &Tries<'_>, tried: Tried<'_>) -> bool {
        let Some(retries) = tries.retries else { return false };
        match retry::next(retries, tries.made, tried) {
            Next::Again => self.body.can_rewind(),
            Next::Done => false,
            Next::UsedUp => {
                self.told.flags.raise(Flag::RetryLimit);
                false
            }
        }
    }

    pub(crate) fn record(&self, tries: &Tries<'_>, node: Option<&Node>, outcome: Outcome) {
        let (Some(live), Some(node)) = (tries.live, node) else { return };
        let Some(outliers) = &live.cluster.outliers else { return };
        let (hosts, now) = (live.endpoints.list(), std::time::Instant::now());
        let ejection = live.endpoints.detector().record(outliers, (hosts, node.as_ref()), outcome, now);
        if let Some(ejection) = ejection {
            let (cause, time) = (ejection.cause, ejection.time);
            tracing::warn!(endpoint = %node.address, cluster = %live.cluster.key, ?cause, ?time, "endpoint ejected");
        }
    }
}

/// What an upstream's connection that broke means.
pub(crate) fn reset_of(error: &MessageError) -> Reset {
    match error {
        MessageError::Head(_) | MessageError::Body(_) | MessageError::Interim => Reset::ProtocolError,
        MessageError::Http2(error) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => {
            Reset::RefusedStream
        }
        // The server goes, and says which requests it has not seen: this is one.
        MessageError::Http2(error)
            if error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR) =>
        {
            Reset::RefusedStream
        }
        MessageError::Http2(error)
            if error.is_reset() && error.reason() == Some(h2::Reason::PROTOCOL_ERROR) =>
        {
            Reset::ProtocolError
        }
        MessageError::Http2(error) if error.is_reset() => Reset::RemoteReset,
        MessageError::Reset(_) => Reset::RemoteReset,
        _ => Reset::ConnectionTermination,
    }
}

fn overflow() -> Failure {
    Failure::Reset { reason: Reset::Overflow, retried: false, transport: Cow::Borrowed("") }
}

/// Whether a connection that waited ended before anything of an answer came.
fn is_stale(error: &MessageError) -> bool {
    matches!(error, MessageError::Closed | MessageError::Link(_))
}

/// Which version of HTTP an endpoint is spoken to with.
pub(crate) fn is_http2(cluster: Option<&Cluster>, client: Version) -> bool {
    let Some(cluster) = cluster else { return client == Version::Http2 };
    match (cluster.pool.upgrade, cluster.protocol) {
        (Upgrade::Always, _) => true,
        (Upgrade::AsClient, _) => client == Version::Http2,
        (Upgrade::ByPort, Protocol::Http2) => true,
        (Upgrade::ByPort, Protocol::Http1) => false,
        (Upgrade::ByPort, _) => client == Version::Http2,
    }
}

/// The head of a request as HTTP/1.1 has it.
pub(crate) fn head_of(request: &Request) -> bytes::BytesMut {
    let Request { method, path, authority, headers, framing, upgrade, .. } = request;
    let Some(protocol) = upgrade else { return encode::request(method, path, authority, headers, *framing) };
    let mut headers = headers.clone();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol.clone());
    encode::request(method, path, authority, &headers, *framing)
}
