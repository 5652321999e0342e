//! TCP that is not looked into: route, endpoint, relay; one log line and one closed connection, however it ends.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_common::crypto::random;
use culvert_common::hbone::link::{LinkError, Writer};

use culvert_common::authz::http::{Connection, authorize_tcp};
use culvert_common::l7::Flag;
use culvert_common::l7::balance::{NoEndpoint, Picked};
use culvert_common::l7::breaker::{Kind, Permit};
use culvert_common::l7::by_weight;
use culvert_common::model::l7::{Backend, ClusterKey, ConnectionPool, TcpMatch, TcpRoute};
use culvert_common::telemetry::{self, ByteCounts, Flow, Reporter, ResponseFlag, Security};
use culvert_common::types::ServiceKey;
use tokio::time::Instant;

use crate::client_hello::{self, Hello};
use crate::current::{Current, Live};
use crate::dial::{self, Endpoint, UpstreamError};
use crate::log;
use crate::message::Input;
use crate::request::Told;
use crate::serve::{Stage, Target};

/// Who spoke first on a connection of which nobody has said what it carries.
pub(crate) enum FirstWord {
    /// The client, or its end.
    Client(Result<Option<Bytes>, LinkError>),
    /// The server: its connection, with what it said.
    Server(Box<Upstream>),
}

/// A connection to an endpoint.
pub(crate) struct Upstream {
    way: Way,
    input: Input,
    output: Writer,
    /// Nothing may move for so long, and all of it take so long.
    idle: Option<Duration>,
    most: Option<Duration>,
    _permit: Option<Permit>,
}

/// Where a connection goes, as far as that was decided.
#[derive(Default)]
struct Way {
    cluster: Option<ClusterKey>,
    endpoint: Option<Endpoint>,
}

/// A connection that is under way. It is counted and told of when this is dropped: also when its task is, at the end of a drain.
struct Ending {
    stage: Rc<Stage>,
    told: Told,
    open: Option<telemetry::Connection>,
    /// How it ended; none: it was cut.
    end: Option<ResponseFlag>,
}

impl Ending {
    fn new(stage: &Rc<Stage>) -> Self {
        Self { stage: Rc::clone(stage), told: Told::new(), open: None, end: None }
    }

    /// It is counted as open from now on.
    fn open(&mut self, way: Way) -> Rc<ByteCounts> {
        (self.told.cluster, self.told.endpoint) = (way.cluster, way.endpoint);
        let stage = &self.stage;
        let flow = Flow {
            reporter: Reporter::Waypoint,
            source: stage.source.clone(),
            source_identity: Some(stage.client.identity.clone()),
            destination: self.told.endpoint.as_ref().and_then(Endpoint::known).cloned(),
            destination_identity: None,
            service: stage.service.clone(),
            security: Security::MutualTls,
            src_addr: stage.client.address,
            dst_addr: stage.destination,
            hbone_addr: None,
            trace: None,
        };
        let open = stage.worker.shared.telemetry.open(flow, std::time::Instant::now());
        let counts = open.counts();
        self.open = Some(open);
        counts
    }

    /// It was not carried.
    fn failed(&mut self, error: &Failed) {
        let (end, flags): (_, &[Flag]) = match error {
            Failed::Denied { .. } => (ResponseFlag::None, &[]),
            Failed::NoRoute(..) => (ResponseFlag::NoRoute, &[Flag::NoRoute]),
            Failed::Refused(..) => (ResponseFlag::NoCluster, &[Flag::NoCluster]),
            Failed::NoEndpoint(..) => (ResponseFlag::NoHealthyUpstream, &[Flag::NoHealthyUpstream]),
            Failed::Overflow(_) => (ResponseFlag::Overflow, &[Flag::UpstreamOverflow]),
            Failed::Hello => (ResponseFlag::TlsFailure, &[Flag::DownstreamProtocol]),
            Failed::Silent => (ResponseFlag::None, &[Flag::StreamIdle]),
            Failed::Broken(_) => (ResponseFlag::Connect, &[Flag::DownstreamTermination]),
            // As Envoy says it: the one try was the last.
            Failed::Upstream(_) => {
                (ResponseFlag::Unreached, &[Flag::UpstreamConnectionFailure, Flag::RetryLimit])
            }
        };
        self.end = Some(end);
        self.told.flags.extend(flags.iter().copied());
        match error {
            Failed::Denied { id, .. } => {
                self.told.details = format!("rbac_access_denied_matched_policy[{id}]").into();
            }
            Failed::Refused(_, reason) => reason.as_ref().clone_into(&mut self.told.transport),
            Failed::Upstream(error) => self.told.transport = error.to_string(),
            Failed::NoRoute(..)
            | Failed::NoEndpoint(..)
            | Failed::Overflow(_)
            | Failed::Hello
            | Failed::Silent
            | Failed::Broken(_) => {}
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.open.is_none() {
            self.open(Way::default());
        }
        let Some(open) = self.open.take() else { return };
        (self.told.received, self.told.sent) = (open.counts().received(), open.counts().sent());
        match self.end {
            Some(ResponseFlag::None) => open.finish(Ok(())),
            Some(flag) => open.finish(Err(telemetry::Failure { flag, error: String::new(), denial: None })),
            None => {
                self.told.details = "cut_by_drain".into();
                drop(open);
            }
        }
        log::tcp(&self.stage, &self.told);
    }
}

/// Dials the server and waits for whoever speaks first. A server that cannot be reached says nothing.
pub(crate) async fn first_word(stage: &Rc<Stage>, input: &mut Input) -> FirstWord {
    let client = poll_fn(|cx| input.poll_bytes(cx));
    let server = async {
        // What fails here is dialled again when the client has spoken, and told of then. A server of TLS does not speak first:
        // whoever asks for its name is not let past here.
        let Ok(mut upstream) = dial(stage, None, &mut Way::default()).await else {
            return std::future::pending().await;
        };
        match poll_fn(|cx| upstream.input.poll_bytes(cx)).await {
            Ok(Some(first)) => {
                upstream.input.put_back(first);
                upstream
            }
            Ok(None) | Err(_) => upstream,
        }
    };
    tokio::select! {
        biased;
        first = client => FirstWord::Client(first),
        upstream = server => FirstWord::Server(Box::new(upstream)),
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(stage: &Rc<Stage>, input: Input, writer: Writer) {
    go_on(Ending::new(stage), (input, writer), Ok(None)).await;
}

/// Serves one connection whose client speaks first and may speak TLS.
pub(crate) async fn serve_tls(stage: &Rc<Stage>, mut input: Input, writer: Writer) {
    let ending = Ending::new(stage);
    let name = tokio::time::timeout(ending.stage.idle(), server_name(&mut input)).await;
    go_on(ending, (input, writer), name.unwrap_or(Err(Failed::Silent))).await;
}

async fn go_on(
    mut ending: Ending,
    (input, mut writer): (Input, Writer),
    name: Result<Option<String>, Failed>,
) {
    let (stage, mut way) = (Rc::clone(&ending.stage), Way::default());
    let dialled = match name {
        Ok(name) => dial(&stage, name.as_deref(), &mut way).await,
        Err(error) => Err(error),
    };
    match dialled {
        Ok(mut upstream) => {
            let counts = ending.open(std::mem::take(&mut upstream.way));
            relay(&mut ending, (input, writer), upstream, &counts).await;
        }
        Err(error) => {
            // A reset takes back whatever has not been sent, and the tunnel's answer may not have been: its turn first.
            tokio::task::yield_now().await;
            writer.reset();
            if let Failed::Denied { policy, .. } = &error {
                log::denied_tcp(&stage, policy);
            }
            tracing::debug!(client = %stage.client.identity, destination = %stage.destination, "TCP: {error}");
            ending.open(way);
            ending.failed(&error);
        }
    }
}

/// Serves one whose server has spoken first.
pub(crate) async fn answered(stage: &Rc<Stage>, client: (Input, Writer), mut upstream: Upstream) {
    let mut ending = Ending::new(stage);
    let counts = ending.open(std::mem::take(&mut upstream.way));
    relay(&mut ending, client, upstream, &counts).await;
}

/// The name of the server that a TLS client asks for; what it has said is still to be read.
async fn server_name(input: &mut Input) -> Result<Option<String>, Failed> {
    let mut said = BytesMut::new();
    let hello = loop {
        let Some(more) = poll_fn(|cx| input.poll_bytes(cx)).await? else { break Hello::Other };
        said.extend_from_slice(&more);
        match client_hello::read(&said) {
            Hello::Open => {}
            hello => break hello,
        }
    };
    input.put_back(said.freeze());
    match hello {
        Hello::Tls(name) => Ok(name),
        Hello::Open | Hello::Other => Ok(None),
        Hello::Bad => Err(Failed::Hello),
    }
}

/// Why a connection is not carried.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("a policy denies it: {policy}")]
    Denied { policy: String, id: String },
    #[error("nothing leads on from {0} port {1}")]
    NoRoute(ServiceKey, u16),
    #[error("{0} cannot be reached: {1}")]
    Refused(ClusterKey, Arc<str>),
    #[error("{0}: {1}")]
    NoEndpoint(ClusterKey, NoEndpoint),
    #[error("{0}: its circuit is open")]
    Overflow(ClusterKey),
    #[error("the client speaks TLS, but its first message cannot be read, nor whom it asks for")]
    Hello,
    #[error("nobody has said anything for too long")]
    Silent,
    #[error("it broke off: {0}")]
    Broken(#[from] LinkError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// Says in `way` how far it came.
async fn dial(stage: &Rc<Stage>, server_name: Option<&str>, way: &mut Way) -> Result<Upstream, Failed> {
    let current = stage.worker.shared.current();
    let connection = Connection {
        peer: Some(&stage.client.identity),
        source: stage.client.address,
        remote: stage.client.address.ip(),
        destination: stage.destination,
        server_name,
    };
    let (policies, route) = match &stage.target {
        Target::Workload(..) => (&current.waypoint.policies, None),
        Target::Service(key, port) => {
            let no_route = || Failed::NoRoute(key.clone(), *port);
            let bound = current.waypoint.services.get(key).ok_or_else(no_route)?;
            let at = bound.ports.get(port).ok_or_else(no_route)?;
            let is_for = |route: &&TcpRoute| {
                let is_match = |one: &TcpMatch| one.is_match(stage.destination.ip(), *port);
                route.matches.is_empty() || route.matches.iter().any(is_match)
            };
            (&bound.policies, Some(at.tcp.iter().find(is_for).ok_or_else(no_route)?))
        }
    };
    let decision = authorize_tcp(policies, &connection);
    log::tried_out(stage, None, &decision);
    if let Some(denial) = decision.denial() {
        return Err(Failed::Denied { policy: denial.to_string(), id: denial.id() });
    }
    let default = ConnectionPool::default();
    let (endpoint, pool, permit) = match (route, &stage.target) {
        (Some(route), _) => {
            let live = destination(&current, route)?;
            way.cluster = Some(live.cluster.key.clone());
            let permit = live.breaker.take(Kind::Connections, &live.cluster);
            let permit = permit.ok_or_else(|| Failed::Overflow(live.cluster.key.clone()))?;
            (any(&current, live, stage)?, live.cluster.pool.clone(), Some(permit))
        }
        (None, Target::Workload(workload)) => {
            (Endpoint { workload: Arc::clone(workload), address: stage.destination }, default, None)
        }
        (None, Target::Service(key, port)) => return Err(Failed::NoRoute(key.clone(), *port)),
    };
    way.endpoint = Some(endpoint.clone());
    let (reader, output) = dial::connect(&stage.worker, &stage.client, &endpoint, &pool).await?;
    let (idle, most) = (pool.tcp_idle, pool.max_connection_duration);
    let way = std::mem::take(way);
    Ok(Upstream { way, input: Input::new(reader), output, idle, most, _permit: permit })
}

/// One of the route's destinations by weight.
fn destination<'c>(current: &'c Current, route: &TcpRoute) -> Result<&'c Arc<Live>, Failed> {
    let key = match by_weight(&route.backends, |(_, weight)| *weight, random() as u64) {
        Some((Backend::Cluster(key), _)) => key,
        _ => {
            return Err(Failed::NoRoute(
                ServiceKey { namespace: "".into(), hostname: route.name.clone() },
                0,
            ));
        }
    };
    let live = current.cluster(key);
    let live =
        live.ok_or_else(|| Failed::Refused(key.clone(), "no DestinationRule defines the subset".into()))?;
    match &live.cluster.refused {
        Some(reason) => Err(Failed::Refused(key.clone(), Arc::clone(reason))),
        None => Ok(live),
    }
}

fn any(current: &Current, live: &Live, stage: &Stage) -> Result<Endpoint, Failed> {
    match live.pick(None) {
        Ok(Picked::Endpoint(node)) => Ok(node.endpoint()),
        Ok(Picked::AsAsked) => {
            let none = NoEndpoint { ready: 0, ejected: 0 };
            let asked = current.asked(stage.destination);
            asked.ok_or_else(|| Failed::NoEndpoint(live.cluster.key.clone(), none))
        }
        Err(none) => Err(Failed::NoEndpoint(live.cluster.key.clone(), none)),
    }
}

/// Moves bytes until both directions have ended.
async fn relay(
    ending: &mut Ending,
    (input, writer): (Input, Writer),
    upstream: Upstream,
    counts: &ByteCounts,
) {
    let mut up = OneWay::new(input, upstream.output, |bytes| counts.add_received(bytes));
    let mut down = OneWay::new(upstream.input, writer, |bytes| counts.add_sent(bytes));
    let (began, mut moved_at) = (Instant::now(), Instant::now());
    // One timer for both limits, set anew only when it fires.
    let due = |moved_at: Instant| {
        let idle = upstream.idle.and_then(|idle| moved_at.checked_add(idle));
        let most = upstream.most.and_then(|most| began.checked_add(most));
        idle.into_iter().chain(most).min()
    };
    let mut timer = pin!(due(moved_at).map(tokio::time::sleep_until));
    let mut moved_before = 0;
    let moved = poll_fn(|cx| {
        let (first, second) = (up.poll(cx)?, down.poll(cx)?);
        if first.is_ready() && second.is_ready() {
            return Poll::Ready(Ok::<_, LinkError>(true));
        }
        if std::mem::replace(&mut moved_before, up.moved + down.moved) != up.moved + down.moved {
            moved_at = Instant::now();
        }
        while timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
            let next = due(moved_at);
            if next.is_some_and(|next| next <= Instant::now()) {
                return Poll::Ready(Ok(false));
            }
            timer.set(next.map(tokio::time::sleep_until));
        }
        Poll::Pending
    })
    .await;
    ending.end = Some(ResponseFlag::None);
    if let Ok(false) = moved {
        tracing::debug!(destination = %ending.stage.destination, "a TCP connection was idle or open for too long");
        if upstream.most.is_some_and(|most| began.elapsed() >= most) {
            ending.end = Some(ResponseFlag::Duration);
            ending.told.flags.raise(Flag::DurationTimeout);
        }
        // Ends that have gone hear nothing of it.
        let _gone = (up.to.finish(), down.to.finish());
    }
    if let Err(error) = moved {
        tracing::debug!(%error, "a TCP connection broke");
        up.to.reset();
        down.to.reset();
    }
}

struct OneWay<C> {
    from: Input,
    to: Writer,
    count: C,
    waiting: Bytes,
    ended: bool,
    done: bool,
    /// Bytes, and the end as one.
    moved: u64,
}

impl<C: Fn(u64)> OneWay<C> {
    fn new(from: Input, to: Writer, count: C) -> Self {
        Self { from, to, count, waiting: Bytes::new(), ended: false, done: false, moved: 0 }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        while !self.done {
            ready!(self.to.poll_send(cx, &mut self.waiting))?;
            if self.ended {
                self.to.finish()?;
                self.done = true;
                break;
            }
            match ready!(self.from.poll_bytes(cx))? {
                Some(bytes) => {
                    self.moved += bytes.len() as u64;
                    (self.count)(bytes.len() as u64);
                    self.waiting = bytes;
                }
                None => {
                    self.moved += 1;
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
