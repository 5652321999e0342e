//! One tunnel to a captured pod, and one CONNECT of it, each top to bottom: certificate, TLS, HTTP/2; then destination,
//! policy, dial, 200, relay, one log line and one set of counters.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_common::authz::Facts;
use culvert_common::decide::{InboundTarget, inbound_hbone, inbound_service_guess};
use culvert_common::hbone::client::Context;
use culvert_common::hbone::headers::{
    BAGGAGE, Baggage, TRACEPARENT, TraceParent, baggage_of, forwarded_host,
};
use culvert_common::hbone::orders::Orders;
use culvert_common::hbone::relay::{RelayError, Stream, relay};
use culvert_common::hbone::server::{self, ConnectRequest, Refusal};
use culvert_common::identity::Role;
use culvert_common::model::{Health, Locality, TunnelProtocol, Workload, WorkloadType};
use culvert_common::net::proxy_protocol::header;
use culvert_common::net::socket::{ConnectError, set_reset_on_drop};
use culvert_common::state::Snapshot;
use culvert_common::telemetry::ResponseFlag;
use culvert_common::telemetry::{Connection, DenialNote, Failure, Flow, Reporter, Security};
use culvert_common::telemetry::{Handshake, Side, Target, denial_id};
use culvert_common::types::{Authority, SpiffeId, WorkloadUid};
use http::header::FORWARDED;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::admission::{Admitted, Refused};
use crate::connections::{Closed, Entry, Kind, Open};
use crate::outbound::orderly;
use crate::permit::{Denied, held, is_for_now, permit};
use crate::shared::{Pod, Shared, failed};
use crate::worker::Worker;

/// Class of a refusal because the pod or the agent is leaving: it may be asked for again.
const DRAINING: &str = "draining";
/// A dial within the pod that takes longer is given up when the pod leaves.
const LAST_DIALS: Duration = Duration::from_millis(300);

/// What all streams of a tunnel have in common.
struct Client {
    src: SocketAddr,
    /// Address of port 15008 that the client dialled.
    met: SocketAddr,
    identity: SpiffeId,
    orders: Rc<Orders>,
    /// What the answers say of the pod, as long as its workload stays the same.
    baggage: RefCell<Option<(Arc<Workload>, HeaderValue)>>,
}

impl Client {
    /// The `baggage` of an answer; none if it cannot be said in a header.
    fn baggage(&self, workload: &Arc<Workload>) -> Option<HeaderValue> {
        let mut said = self.baggage.borrow_mut();
        if let Some((_, value)) = said.as_ref().filter(|(of, _)| Arc::ptr_eq(of, workload)) {
            return Some(value.clone());
        }
        let value = HeaderValue::try_from(baggage_of(workload)).ok()?;
        Some(said.insert((Arc::clone(workload), value)).1.clone())
    }
}

/// Serves one accepted connection of port 15008.
pub(crate) async fn serve(worker: &Rc<Worker>, pod: &Arc<Pod>, tcp: TcpStream, src: SocketAddr) {
    let shared = &worker.shared;
    let start = Instant::now();
    let count = |result| shared.telemetry.metrics().handshake(Side::Server, result, start.elapsed());
    let early = |dst, failure| shared.early(Reporter::Destination, (src, dst), None, failure);
    let workload = match pod.workload(&shared.state.snapshot()) {
        Ok(workload) => workload,
        Err(error) => return early(None, failed(ResponseFlag::Connect, error)),
    };
    let met = match tcp.local_addr() {
        Ok(addr) => SocketAddr::new(addr.ip().to_canonical(), addr.port()),
        Err(error) => return early(None, failed(ResponseFlag::Connect, error)),
    };
    let handshaking = match pod.admission.handshake(src.ip()) {
        Ok(handshaking) => handshaking,
        Err(refused) => {
            let _gone = set_reset_on_drop(&tcp, true);
            drop(tcp);
            return shared.refused(Reporter::Destination, pod, src, refused);
        }
    };
    let certificate = match shared.certs.wait(&workload.identity, shared.certificate_wait).await {
        Ok(certificate) => certificate,
        Err(error) => {
            count(Handshake::NoCertificate);
            return early(Some(met), failed(ResponseFlag::Identity, error));
        }
    };
    let tls = certificate.server_config();
    let metrics = shared.telemetry.metrics();
    let context = Context { http2: &shared.http2, limits: &shared.limits, scope: &pod.scope, metrics };
    // Boxed, both: the handshake's room is given back, and HTTP/2's is not kept twice on its way into its loop.
    let accepted = match Box::pin(server::accept(tcp, src, tls, &context)).await {
        Ok(accepted) => accepted,
        Err(error) => {
            count(error.result());
            if error.flag() == ResponseFlag::CertRevoked {
                metrics.identity().rejected(Reporter::Destination);
            }
            return early(Some(met), failed(error.flag(), error));
        }
    };
    drop(handshaking);
    count(Handshake::Complete);
    let _open = shared.telemetry.metrics().tunnel(Side::Server);
    let (identity, orders) = (accepted.peer.clone(), Rc::new(Orders::default()));
    worker.tunnels.track(shared, &certificate, (Role::Client, &accepted.chain), &orders);
    let client =
        Rc::new(Client { src, met, identity, orders: Rc::clone(&orders), baggage: RefCell::default() });
    let drained = Box::pin(async {
        tokio::select! {
            () = pod.scope.draining() => {}
            () = terminating(shared, pod) => {}
        }
    });
    let ended = Box::pin(accepted.run(&shared.limits, drained, &orders, |request| {
        let (worker, owner, client) = (Rc::clone(worker), Arc::clone(pod), Rc::clone(&client));
        let request = Box::new(request);
        pod.scope.spawn_local(async move { serve_stream(&worker, &owner, &client, request).await });
    }));
    if let Err(error) = ended.await {
        tracing::debug!(%src, peer = %client.identity, error, "a tunnel broke");
    }
}

/// Resolves when the pod has been leaving for a moment and nobody takes its place. Another hand may have removed the
/// rules by which the app's answer comes back, and the client can still go another way.
async fn leaving(shared: &Shared, pod: &Pod) {
    pod.scope.draining().await;
    if shared.is_succeeded.load(Ordering::Relaxed) {
        return std::future::pending().await;
    }
    if !pod.is_unsteered.load(Ordering::Relaxed) {
        tokio::time::sleep(LAST_DIALS).await;
    }
}

/// Resolves when the pod begins to be deleted: its clients should go elsewhere. Who has not heard of it is still served,
/// over a new tunnel; that is why it never resolves for a pod that is being deleted already.
async fn terminating(shared: &Shared, pod: &Pod) {
    let mut revisions = shared.state.changed();
    let is_ending = || {
        let snapshot = shared.state.snapshot();
        snapshot.workload(&pod.local.workload).is_some_and(|w| w.health == Health::Terminating)
    };
    let was_ending = is_ending();
    while was_ending || !is_ending() {
        if revisions.changed().await.is_err() {
            return std::future::pending().await; // the state outlives all connections
        }
    }
}

/// Why a CONNECT was not served to its end. What the peer learns of it is [`StreamError::refusal`].
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Denied(#[from] Arc<Denied>),
    #[error(transparent)]
    Limit(#[from] Refused),
    #[error("no connection to the app: {0}")]
    Connect(#[from] ConnectError),
    #[error("the app does not take the PROXY header: {0}; does it expect one on this port?")]
    Tell(io::Error),
    #[error("the client left before the app had answered")]
    ClientGone,
    #[error("the pod is leaving the mesh, or the agent is ending, and the app had not answered yet")]
    Leaving,
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("{0}")]
    Closed(Rc<Closed>),
}

impl StreamError {
    fn refusal(&self) -> Option<Refusal> {
        let of = |status, class| Some(Refusal { status, class });
        match self {
            Self::Closed(closed) if matches!(**closed, Closed::Unsteered { .. }) => {
                of(StatusCode::SERVICE_UNAVAILABLE, DRAINING)
            }
            Self::Denied(_) | Self::Closed(_) => of(StatusCode::UNAUTHORIZED, "policy"),
            Self::Limit(refused) => of(StatusCode::SERVICE_UNAVAILABLE, refused.flag().class()),
            Self::Connect(_) => of(StatusCode::SERVICE_UNAVAILABLE, "connect"),
            Self::Leaving => of(StatusCode::SERVICE_UNAVAILABLE, DRAINING),
            Self::Tell(_) | Self::ClientGone | Self::Relay(_) => None,
        }
    }

    fn failure(&self, id: &str) -> Failure {
        let flag = match self {
            Self::Denied(denied) => return denied.failure(),
            Self::Closed(closed) => return closed.failure(),
            Self::Limit(refused) => refused.flag(),
            Self::Relay(RelayError::Budget) => ResponseFlag::Budget,
            Self::Connect(_) | Self::Tell(_) | Self::ClientGone | Self::Leaving => ResponseFlag::Connect,
            Self::Relay(RelayError::App(_) | RelayError::Peer(_)) => ResponseFlag::Connect,
        };
        let denial = self.refusal().map(|r| DenialNote { id: id.into(), class: r.class, policy: None });
        Failure { flag, error: self.to_string(), denial }
    }
}

/// A stream that was answered with 200. Boxed, so that the task that relays keeps a pointer for it.
struct Served {
    app: Rc<TcpStream>,
    open: Open,
    admitted: Admitted,
    connection: Connection,
}

async fn serve_stream(worker: &Rc<Worker>, pod: &Arc<Pod>, client: &Client, request: Box<ConnectRequest>) {
    let metrics = worker.shared.telemetry.metrics();
    let _open = (metrics.socket(Reporter::Destination), metrics.stream(Side::Server));
    // Boxed: what it takes to get there is not kept while bytes flow.
    let Some((stream, served)) = Box::pin(answer(worker, pod, client, request)).await else { return };
    let board = worker.board.of(pod.admission.memory());
    let counts = served.connection.counts();
    let outcome = tokio::select! {
        biased;
        closed = served.open.closed() => Err(StreamError::Closed(closed)),
        relayed = relay(&served.app, stream, &board, |n| counts.add_sent(n), |n| counts.add_received(n)) => {
            relayed.map_err(StreamError::from)
        }
    };
    let Served { app, open, admitted, connection } = *served;
    if outcome.is_ok() {
        orderly(&app);
    }
    drop((app, open, admitted)); // before the log line: who reads it knows that the app has heard
    if matches!(&outcome, Err(StreamError::Relay(RelayError::Budget))) {
        metrics.budget_reset();
    }
    connection.finish(outcome.map_err(|error| error.failure("")));
}

/// Decides, dials and says 200. `None`: it has been refused, and that has been logged and counted.
async fn answer(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &Client,
    mut request: Box<ConnectRequest>,
) -> Option<(Stream, Box<Served>)> {
    let shared = &worker.shared;
    let start = Instant::now();
    let routed = match decided(shared, pod, client, &request).await {
        Ok(routed) => routed,
        Err((refusal, error)) => {
            let id = denial_id();
            let denial = Some(DenialNote { id: id.clone(), class: refusal.class, policy: None });
            request.refuse(refusal, &id);
            let failure = Failure { flag: ResponseFlag::Connect, error, denial };
            let addrs = (client.src, Some(client.met));
            shared.early(Reporter::Destination, addrs, Some(&client.identity), failure);
            return None;
        }
    };
    let Routed { flow, verdict, to, told, revision, baggage } = *routed;
    let (app, source) = way_in(shared, pod, client, (to, told));
    let connection = shared.telemetry.open(flow, start.into_std());
    let dialled: Result<_, StreamError> = async {
        verdict?;
        let admitted = pod.admission.admit(start.into_std())?;
        let entry = Entry::new(Kind::InboundHbone, pod, &connection, to).allowed_at(revision);
        let open = worker.connections.open(entry.through(&client.orders));
        tokio::select! {
            biased;
            closed = open.closed() => Err(StreamError::Closed(closed)),
            app = pod.dial(worker, app, source) => Ok((app?, (open, admitted))),
            () = request.gone() => Err(StreamError::ClientGone),
            () = leaving(shared, pod) => Err(StreamError::Leaving),
        }
    }
    .await;
    let (app, (open, admitted)) = match dialled {
        Ok(dialled) => dialled,
        Err(error) => {
            let id = match &error {
                StreamError::Denied(denied) => denied.id.clone(),
                StreamError::Closed(closed) => closed.id().to_owned(),
                _ => denial_id(),
            };
            if let StreamError::Limit(refused) = &error {
                shared.telemetry.metrics().budget_refused(refused.limit());
            }
            if let Some(refusal) = error.refusal() {
                request.refuse(refusal, &id);
            }
            connection.finish(Err(error.failure(&id)));
            return None;
        }
    };
    let started = match (request.accept(baggage), told) {
        (Err(_), _) => Err(StreamError::ClientGone),
        (Ok(stream), None) => Ok(stream),
        (Ok(stream), Some(told)) => {
            let header = header(client.src, told, &client.identity);
            tell(&app, &header, shared.limits.connect).await.map(|()| stream).map_err(StreamError::Tell)
        }
    };
    match started {
        Ok(stream) => Some((stream, Box::new(Served { app, open, admitted, connection }))),
        Err(error) => {
            drop((app, open, admitted)); // before the log line, as above
            connection.finish(Err(error.failure("")));
            None
        }
    }
}

/// Where the app is dialled, and as whom.
///
/// An app that is told of the connection behind its own need not see an address that it could not answer to: it is
/// dialled on loopback, where nobody else can tell it anything. **Source**: l4.md §3.7.
fn way_in(
    shared: &Shared,
    pod: &Pod,
    client: &Client,
    (to, told): (SocketAddr, Option<SocketAddr>),
) -> (SocketAddr, Option<SocketAddr>) {
    if told.is_none() || !shared.localhost_app_tunnel {
        return (to, pod.client_of(client.src, to));
    }
    let loopback =
        if to.is_ipv4() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { IpAddr::from(Ipv6Addr::LOCALHOST) };
    (SocketAddr::new(loopback, to.port()), None)
}

/// Says the first bytes of a connection; they fit into a new socket's buffer.
async fn tell(app: &TcpStream, mut header: &[u8], limit: Duration) -> io::Result<()> {
    let said = async {
        while !header.is_empty() {
            app.writable().await?;
            match app.try_write(header) {
                Ok(count) => header = header.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    tokio::time::timeout(limit, said).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Bytes that one stream's task holds.
#[cfg(test)]
pub(crate) fn stream_size() -> usize {
    fn of<'a, F: Future>(
        _serve: impl Fn(&'a Rc<Worker>, &'a Arc<Pod>, &'a Client, Box<ConnectRequest>) -> F,
    ) -> usize {
        size_of::<F>()
    }
    of(serve_stream)
}

/// Boxed on its way, as a stream's future is larger for every byte of it.
struct Routed {
    flow: Flow,
    verdict: Result<(), Arc<Denied>>,
    to: SocketAddr,
    /// What the app is told was asked for, before the first byte.
    told: Option<SocketAddr>,
    /// Of the snapshot that all of it was decided from.
    revision: u64,
    baggage: Option<HeaderValue>,
}

fn verdict_of(routed: &Result<Box<Routed>, (Refusal, String)>) -> Option<&Result<(), Arc<Denied>>> {
    routed.as_ref().ok().map(|routed| &routed.verdict)
}

/// Where it goes and whether it may, once the policies that the pod names are known.
async fn decided(
    shared: &Shared,
    pod: &Pod,
    client: &Client,
    request: &ConnectRequest,
) -> Result<Box<Routed>, (Refusal, String)> {
    let first = route(shared, pod, client, request);
    if !verdict_of(&first).is_some_and(is_for_now) {
        return first;
    }
    // Boxed: few connections wait, and every one would hold the room for it.
    Box::pin(held(
        (&shared.state, shared.telemetry.metrics()),
        || route(shared, pod, client, request),
        verdict_of,
    ))
    .await
}

/// Everything that is decided from one snapshot.
///
/// **Errors**: what the client is told, and what the log says.
fn route(
    shared: &Shared,
    pod: &Pod,
    client: &Client,
    request: &ConnectRequest,
) -> Result<Box<Routed>, (Refusal, String)> {
    let refuse = |status, class, error: String| Err((Refusal { status, class }, error));
    if !request.is_connect() {
        return refuse(StatusCode::BAD_REQUEST, "request", "the request is no plain CONNECT".into());
    }
    let authority: Authority = match request.authority().parse() {
        Ok(authority) => authority,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, "request", format!("{error}")),
    };
    // Behind a successor's back these are the last ones, sent before the GOAWAY was seen: they are served.
    if pod.scope.is_draining() && !shared.is_succeeded.load(Ordering::Relaxed) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, DRAINING, "the agent is draining".into());
    }
    let snapshot = shared.state.snapshot();
    let workload = match pod.workload(&snapshot) {
        Ok(workload) => workload,
        Err(error) => return refuse(StatusCode::SERVICE_UNAVAILABLE, "destination", error),
    };
    let target = match inbound_hbone(&snapshot, &workload, client.met.ip(), &authority) {
        Ok(target) => target,
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return refuse(status, "destination", refusal.to_string());
        }
    };
    let facts = Facts {
        peer: Some(&client.identity),
        source_ip: client.src.ip(),
        destination_ip: target.to.ip(),
        destination_port: target.to.port(),
    };
    let verdict = permit(shared, &snapshot, &workload, &facts);
    let baggage = if shared.response_baggage { client.baggage(&workload) } else { None };
    let (to, told) = (target.to, target.told);
    let flow = flow(&snapshot, client, &workload, target, request);
    Ok(Box::new(Routed { flow, verdict, to, told, revision: snapshot.revision, baggage }))
}

fn flow(
    snapshot: &Snapshot,
    client: &Client,
    workload: &Arc<Workload>,
    target: InboundTarget,
    request: &ConnectRequest,
) -> Flow {
    let header = |name: HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok());
    let host = header(FORWARDED).and_then(forwarded_host);
    let service =
        target.service.or_else(|| inbound_service_guess(snapshot, workload, host, target.to.port()));
    let baggage = || {
        let lines = request.headers().get_all(BAGGAGE).iter().filter_map(|v| v.to_str().ok());
        Arc::new(described(&Baggage::parse(lines), &client.identity, client.src.ip()))
    };
    let trace = header(TRACEPARENT).and_then(TraceParent::parse);
    Flow {
        reporter: Reporter::Destination,
        source: Some(snapshot.workload_by_ip(client.src.ip()).cloned().unwrap_or_else(baggage)),
        source_identity: Some(client.identity.clone()),
        destination: Some(Arc::clone(workload)),
        destination_identity: None,
        service,
        security: Security::MutualTls,
        src_addr: client.src,
        dst_addr: client.met,
        hbone_addr: Some(Target::Text(request.authority().into())),
        trace: trace.map(|t| t.trace),
    }
}

/// A client that is in no snapshot, as it describes itself; for telemetry only.
fn described(baggage: &Baggage, identity: &SpiffeId, ip: IpAddr) -> Workload {
    let text = |value: &Option<String>| Arc::from(value.as_deref().unwrap_or(""));
    let uid = WorkloadUid(Arc::from(format!("described//{identity}/{ip}")));
    Workload {
        addresses: vec![ip],
        protocol: TunnelProtocol::Hbone,
        canonical_name: text(&baggage.service_name),
        canonical_revision: text(&baggage.service_version),
        workload_type: match baggage.workload_type {
            Some("cronjob") => WorkloadType::CronJob,
            Some("job") => WorkloadType::Job,
            Some("pod") => WorkloadType::Pod,
            _ => WorkloadType::Deployment,
        },
        workload_name: text(&baggage.workload_name),
        cluster: text(&baggage.cluster),
        locality: Locality { region: text(&baggage.region), zone: text(&baggage.zone), subzone: "".into() },
        ..Workload::new(uid, text(&baggage.workload_name), identity.clone())
    }
}
