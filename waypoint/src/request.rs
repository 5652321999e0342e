//! One request, top to bottom: made plain, routed, allowed, filtered; then endpoint, tries, answer; one log line.

use std::borrow::Cow;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use culvert_common::crypto::random;
use culvert_common::l7::retry::grpc_status;
use culvert_common::l7::{
    Act, Changes, Chosen, Connection, Edits, Facts, Failure, Flag, Flags, Passed, Reply, Switch, Values,
    add_server, clean_request, clean_response, find, forwarded_for, normalize, plan,
};
use culvert_common::model::l7::{Backend, ClusterKey, Policies, Route, Weighted};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::time::Instant;

use crate::current::{Current, Live};
use crate::dial::Endpoint;
use crate::http1::head::Framing;
use crate::log::{self, Ending};
use crate::message::{Body, MessageError, Request, Version};
use crate::relay::poll_gone;
use crate::replay::Replay;
use crate::reply::Responder;
use crate::serve::{Stage, Target};

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What became of a request, for its connection.
pub(crate) struct Served {
    /// Another request may follow.
    pub(crate) goes_on: bool,
    /// The client went before it had its answer.
    pub(crate) was_left: bool,
}

/// What is told of a request when it is over.
pub(crate) struct Told {
    pub(crate) started: SystemTime,
    pub(crate) began: Instant,
    pub(crate) status: Option<StatusCode>,
    pub(crate) flags: Flags,
    pub(crate) details: Cow<'static, str>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) cluster: Option<ClusterKey>,
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) upstream_time: Option<Duration>,
    pub(crate) transport: String,
    /// Bytes of both heads.
    pub(crate) heads: (u64, u64),
    /// Of a gRPC request, the status that its answer has.
    pub(crate) grpc: Option<Option<u32>>,
    /// The span of a request that is recorded.
    pub(crate) span: Option<log::Begun>,
    /// Another request may follow on the connection.
    pub(crate) goes_on: bool,
}

impl Told {
    pub(crate) fn new() -> Self {
        Self {
            started: SystemTime::now(),
            began: Instant::now(),
            status: None,
            flags: Flags::default(),
            details: Cow::Borrowed(""),
            received: 0,
            sent: 0,
            route: None,
            cluster: None,
            endpoint: None,
            upstream_time: None,
            transport: String::new(),
            heads: (0, 0),
            grpc: None,
            span: None,
            goes_on: false,
        }
    }
}

impl Told {
    /// Takes from the head of the answer what is told of it.
    pub(crate) fn answered(&mut self, headers: &HeaderMap) {
        self.heads.1 = log::head_bytes(headers);
        self.grpc_status(headers);
    }

    /// Takes the status of gRPC from headers or trailers that may have one.
    pub(crate) fn grpc_status(&mut self, headers: &HeaderMap) {
        if let Some(status @ None) = &mut self.grpc {
            *status = grpc_status(headers).map(u32::from);
        }
    }
}

/// Serves one request to its end.
pub(crate) async fn serve(
    stage: &Rc<Stage>,
    request: Request,
    body: Body<'_>,
    responder: Responder<'_>,
) -> Served {
    let mut ending = Ending::new(stage, request);
    let Ending { told, request, .. } = &mut ending;
    let mut exchange = Exchange {
        stage,
        current: stage.worker.shared.current(),
        body: Replay::new(body, &stage.worker.shared.budget),
        responder: Some(responder),
        cors: HeaderMap::new(),
        told,
    };
    if let Err(error) = Box::pin(exchange.run(request)).await {
        tracing::debug!(%error, "a request broke off");
        exchange.broke_off(&error, request).await;
    }
    drop(exchange);
    ending.is_over = true;
    let was_left = ending.told.flags.has(Flag::DownstreamTermination);
    Served { goes_on: ending.told.goes_on, was_left }
}

/// One request with all that it needs on its way.
pub(crate) struct Exchange<'a> {
    pub(crate) stage: &'a Rc<Stage>,
    pub(crate) current: Arc<Current>,
    pub(crate) body: Replay<'a>,
    /// Gone once an answer has begun.
    pub(crate) responder: Option<Responder<'a>>,
    /// Headers that the answer gets for a request from another origin.
    pub(crate) cors: HeaderMap,
    pub(crate) told: &'a mut Told,
}

/// What comes next for a request.
enum Next<'r> {
    Reply(Reply),
    Forward(Way<'r>),
}

/// Where a request goes.
pub(crate) struct Way<'r> {
    pub(crate) to: To<'r>,
    pub(crate) route: Option<(&'r Route, &'r Weighted)>,
}

/// The destination of a request.
pub(crate) enum To<'r> {
    Cluster(&'r Arc<Live>),
    /// The workload that was asked for.
    Workload(Endpoint),
}

impl<'a> Exchange<'a> {
    /// **Errors**: the client has gone, or broke off.
    async fn run(&mut self, request: &mut Request) -> Result<(), MessageError> {
        let current = Arc::clone(&self.current);
        let is_grpc = facts(self.stage, request).is_grpc();
        self.told.grpc = is_grpc.then_some(None);
        let (chosen, next) = match prepare(request, &current) {
            Ok(()) => {
                self.dress(request);
                self.decide(&current, request).await?
            }
            Err(failure) => (None, Next::Reply(Reply::failure(&failure, is_grpc))),
        };
        let reply = match next {
            Next::Reply(reply) => reply,
            Next::Forward(way) => match self.forward(request, &way, is_grpc).await? {
                None => return Ok(()),
                Some(failure) => Reply::failure(&failure, is_grpc),
            },
        };
        self.reply(reply, chosen, request).await
    }

    /// The client went, or what it sent is no body: then it hears so, if nothing else was said to it.
    async fn broke_off(&mut self, error: &MessageError, request: &Request) {
        if matches!(error, MessageError::Body(_)) {
            self.told.flags.raise(Flag::DownstreamProtocol);
            if let Some(responder) = &mut self.responder {
                responder.keep_alive = false;
            }
            let is_grpc = facts(self.stage, request).is_grpc();
            let _gone = self.reply(Reply::failure(&Failure::BadRequest, is_grpc), None, request).await;
        } else {
            self.told.flags.raise(Flag::DownstreamTermination);
            self.told.details = Cow::Borrowed("downstream_remote_disconnect");
        }
        self.told.goes_on = false;
    }

    /// What comes next, with the route and the destination whose edits an answer gets that is made here. A fault's delay passes
    /// meanwhile.
    ///
    /// **Errors**: the client has gone.
    async fn decide<'r>(
        &mut self,
        current: &'r Current,
        request: &mut Request,
    ) -> Result<(Option<Chosen<'r>>, Next<'r>), MessageError> {
        let stage = self.stage;
        let Some((routes, policies)) = rules(current, &stage.target) else {
            let is_grpc = facts(stage, request).is_grpc();
            return Ok((None, Next::Reply(Reply::failure(&Failure::NoRoute, is_grpc))));
        };
        let found = find(routes, &facts(stage, request));
        self.tell_client(request);
        let facts = facts(stage, request);
        let plan = plan(found, policies, &facts, || random() as u64);
        let chosen = plan.chosen;
        self.told.route = route_name(&stage.target, found.map(|found| found.route));
        // Known to the log even of what is denied, as Envoy's is once there is a route.
        self.told.cluster = chosen.and_then(|chosen| match &chosen.backend?.backend {
            Backend::Cluster(key) => current.cluster(key).map(|live| live.cluster.key.clone()),
            Backend::Invalid { .. } => None,
        });
        log::decided(stage, &facts, &plan.decision);
        if let Some(delay) = plan.delay {
            self.told.flags.raise(Flag::DelayInjected);
            while_there(&mut self.body, &mut self.responder, tokio::time::sleep(delay)).await?;
        }
        self.cors = plan.response;
        match plan.passed {
            Passed::On => {}
            Passed::Reply(reply) => return Ok((chosen, Next::Reply(reply))),
            Passed::Untouched(reply) => return Ok((None, Next::Reply(reply))),
        }
        if let Target::Workload(workload) = &stage.target {
            let endpoint = Endpoint { workload: Arc::clone(workload), address: stage.destination };
            return Ok((None, Next::Forward(Way { to: To::Workload(endpoint), route: None })));
        }
        let cluster = |key| current.cluster(key).map(|live| (live, &*live.cluster));
        let next = match Act::of(chosen, &facts, cluster) {
            Act::Reply(reply) => Next::Reply(reply),
            Act::Forward(found, backend, live) => {
                let changes = Changes::of(found, backend, &values(&facts, request.version, self.told));
                if let Some(authority) = changes.apply(&mut request.headers, &mut request.path) {
                    request.authority = authority.clone();
                }
                Next::Forward(Way { to: To::Cluster(live), route: Some((found.route, backend)) })
            }
        };
        Ok((chosen, next))
    }

    /// An answer that is made here.
    async fn reply(
        &mut self,
        reply: Reply,
        chosen: Option<Chosen<'_>>,
        request: &Request,
    ) -> Result<(), MessageError> {
        let Some(mut responder) = self.responder.take() else { return Ok(()) };
        let mut reply = reply;
        if let Some(flag) = reply.flag {
            self.told.flags.raise(flag);
        }
        (self.told.status, self.told.details) = (Some(reply.status), reply.details.clone());
        if let Some(Chosen { found, backend }) = chosen {
            let facts = facts(self.stage, request);
            let edits = Edits::of_response(found.route, backend, &values(&facts, request.version, self.told));
            reply.edit(|headers| {
                edits.apply(headers);
                clean_response(headers, Switch::No);
            });
        }
        let Reply { status, mut headers, body, details, .. } = reply;
        headers.extend(std::mem::take(&mut self.cors));
        add_server(&mut headers);
        self.told.answered(&headers);
        self.told.sent = if request.method == Method::HEAD { 0 } else { body.len() as u64 };
        // As Envoy has it, an answer that does not wait for the request's body is the last of its connection.
        let was_awaited = self.told.endpoint.is_some() || self.told.flags.has(Flag::DelayInjected);
        let is_early = !was_awaited && !matches!(request.framing, Framing::Empty | Framing::Length(0));
        let is_last = is_early
            || request.method == Method::CONNECT
            || request.upgrade.is_some()
            || details == "path_normalization_failed";
        // What the client still sends would be read as its next request.
        let drains = self.stage.worker.scope.is_draining();
        let is_whole = self.body.take_rest().await;
        if !is_early {
            self.told.received = self.body.taken();
        }
        responder.keep_alive &= is_whole && !drains && !is_last;
        let keep_alive = responder.keep_alive;
        responder.whole(status, &headers, body).await?;
        self.told.goes_on = keep_alive;
        Ok(())
    }
}

/// Routes and policies of what a connection is for; none: it is not there any more.
fn rules<'r>(current: &'r Current, target: &Target) -> Option<(&'r [Route], &'r Policies)> {
    match target {
        Target::Service(key, port) => {
            let bound = current.waypoint.services.get(key)?;
            Some((&bound.ports.get(port)?.http, &bound.policies))
        }
        Target::Workload(..) => Some((&[], &current.waypoint.policies)),
    }
}

/// What the log calls the route: a workload has the one that everybody gets.
fn route_name(target: &Target, route: Option<&Route>) -> Option<Arc<str>> {
    match target {
        Target::Service(..) => route.map(|route| Arc::clone(&route.name)),
        Target::Workload(_) => Some("default".into()),
    }
}

/// Does `work` while the client is there.
///
/// **Errors**: the client goes first.
async fn while_there<T>(
    body: &mut Replay<'_>,
    responder: &mut Option<Responder<'_>>,
    work: impl Future<Output = T>,
) -> Result<T, MessageError> {
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => poll_gone(body, responder, cx).map(Err),
    })
    .await
}

/// What everything after this may rely on: no header for one hop, a plain path.
fn prepare(request: &mut Request, current: &Current) -> Result<(), Failure> {
    let switch = if request.upgrade.is_some() { Switch::Upgrade } else { Switch::No };
    clean_request(&mut request.headers, switch).map_err(|_| Failure::BadConnection)?;
    // Policies compare texts: what is none would be compared as something else.
    if request.authority.to_str().is_err() {
        return Err(Failure::BadRequest);
    }
    let is_websocket = |upgrade: &HeaderValue| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket");
    if request.upgrade.as_ref().is_some_and(|upgrade| !is_websocket(upgrade)) {
        return Err(Failure::UpgradeRefused);
    }
    if request.method == Method::CONNECT {
        return Err(Failure::NoRoute);
    }
    // What a client of HTTP/1.1 does not say, who sent it on may have.
    request.is_https |= request.version == Version::Http1
        && request
            .headers
            .get(FORWARDED_PROTO)
            .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
    if request.path == "*" {
        return Err(Failure::NotAPath);
    }
    let waypoint = &current.waypoint;
    let plain = normalize(request.path.as_bytes(), waypoint.normalization, waypoint.above_root);
    if let Cow::Owned(plain) = plain.map_err(|_| Failure::BadPath)? {
        request.path = plain;
    }
    Ok(())
}

/// The client that the tunnel's peer names, if it is a proxy that is believed; else the peer's own address.
fn remote(stage: &Stage, headers: &HeaderMap) -> IpAddr {
    let named = stage.client.trusted_hops.and_then(|hops| forwarded_for(headers, hops));
    named.unwrap_or(stage.client.address.ip())
}

pub(crate) fn facts<'f>(stage: &'f Stage, request: &'f Request) -> Facts<'f> {
    Facts {
        connection: Connection {
            peer: Some(&stage.client.identity),
            source: stage.client.address,
            remote: remote(stage, &request.headers),
            destination: stage.destination,
            server_name: None,
        },
        method: &request.method,
        scheme: if request.is_https { "https" } else { "http" },
        authority: request.authority.to_str().unwrap_or_default(),
        target: &request.path,
        headers: &request.headers,
    }
}

pub(crate) fn values<'v>(facts: &'v Facts<'v>, version: Version, told: &'v Told) -> Values<'v> {
    Values {
        facts,
        protocol: version.as_str(),
        started: told.started,
        route: told.route.as_deref().unwrap_or_default(),
        upstream: told.endpoint.as_ref().map(|endpoint| endpoint.address),
        flags: told.flags,
        details: &told.details,
        response: None,
    }
}
