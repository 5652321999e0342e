//! From an original destination to a connection that carries bytes: decide, hold, dial, and while no byte of the app has
//! been read try elsewhere what failed. Each turn decides from a fresh snapshot.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_common::crypto::random;
use culvert_common::decide::{
    Choice, Downgrade, NextHop, Outbound, OutboundRefusal, Unresolved, next_hop, resolved,
};
use culvert_common::hbone::Limits;
use culvert_common::hbone::client::{AnswerWait, Connect, Context, HandshakeError, OpenError, Tunnel};
use culvert_common::hbone::headers::TraceParent;
use culvert_common::hbone::pool::{Key, Opened};
use culvert_common::identity::Role;
use culvert_common::model::Workload;
use culvert_common::net::socket::ConnectError;
use culvert_common::telemetry::{
    Connection, Flow, Handshake, HoldResult, Reporter, ResponseFlag, Security, Side, Target,
};
use culvert_common::types::WorkloadUid;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::OutboundError;
use super::ask::Questions;
use super::hold::Hold;
use super::prepared::Between;
use super::resolve;
use crate::dns::ResolveError;
use crate::shared::{Pod, Shared};
use crate::worker::Worker;

/// Endpoints tried for one connection.
const TRIES: usize = 5;
/// After that no further endpoint is tried.
const TIME: Duration = Duration::from_secs(10);

/// One connection on its way.
pub(super) struct Call<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) pod: &'a Arc<Pod>,
    pub(super) src: SocketAddr,
    /// Original destination.
    pub(super) dst: SocketAddr,
    pub(super) trace: TraceParent,
}

/// What takes the app's bytes.
pub(super) enum Upstream {
    Plain(Rc<TcpStream>),
    Tunnel(Opened),
}

/// Where a connection is being taken. Dropped without [`Routed::open`] it is logged as cut.
pub(super) struct Routed<'a> {
    shared: &'a Shared,
    start: Instant,
    flow: Option<Flow>,
}

impl<'a> Routed<'a> {
    pub(super) fn new(shared: &'a Shared, start: Instant) -> Self {
        Self { shared, start, flow: None }
    }

    /// The connection, if it was routed, as it was at last.
    pub(super) fn open(&mut self) -> Option<Connection> {
        let flow = self.flow.take()?;
        Some(self.shared.telemetry.open(flow, self.start.into_std()))
    }
}

impl Drop for Routed<'_> {
    fn drop(&mut self) {
        drop(self.open());
    }
}

/// Finds an endpoint that takes the connection and opens the way to it.
///
/// **Errors**: what the last try met, or a refusal. **Cancel safety**: dropping it gives up; nothing was read.
pub(super) async fn reach(call: &Call<'_>, routed: &mut Routed<'_>) -> Result<Upstream, OutboundError> {
    let (worker, mut tries, mut hold) = (call.worker, Tries::new(), None);
    let mut questions = Questions::default();
    let reached = loop {
        let (source, decided) = match decide(call, &tries.tried) {
            Ok(decided) => decided,
            Err(error) => break Err(error),
        };
        if questions.has(call, &decided) {
            // Boxed: few connections ask, and every one would hold the room for it.
            match Box::pin(questions.ask(call, &source, &decided)).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(refusal) => break Err(refusal.into()),
            }
        }
        routed.flow = flow(call, &source, &decided);
        let hop = match decided {
            Err(refusal) => break Err(refusal.into()),
            Ok(NextHop::Hold(why)) => {
                if for_state(&mut hold, worker, why.reason()).await {
                    continue;
                }
                break Err(OutboundRefusal::Downgrade(why).into());
            }
            Ok(NextHop::Resolve(of)) => {
                // Boxed: few destinations are found by name, and every connection would hold the room for it.
                match Box::pin(by_name(call, &source, &of)).await {
                    Ok(hop) => {
                        routed.flow = flow(call, &source, &Ok(hop.clone()));
                        hop
                    }
                    Err(error) => break Err(error),
                }
            }
            Ok(hop) => hop,
        };
        let error = match attempt(call, &source, &hop, tries.limits(call, &hop)).await {
            Ok(upstream) => break Ok(upstream),
            Err(error) => error,
        };
        match tries.after(call, &hop, &error) {
            After::Elsewhere(reason) => worker.shared.telemetry.metrics().reach().failover(reason),
            After::Again(reason) if for_a_moment(&mut hold, worker, reason).await => {}
            After::Again(_) | After::End => break Err(error),
        }
    };
    if let Some(hold) = hold {
        hold.end(if reached.is_ok() { HoldResult::Passed } else { HoldResult::Refused });
    }
    reached
}

/// The source and what is to be done, from one snapshot that is freed here: a connection open for days must not pin it.
fn decide(call: &Call<'_>, avoid: &[WorkloadUid]) -> Result<Decided, OutboundError> {
    let Call { worker, pod, dst, .. } = call;
    let snapshot = worker.shared.state.snapshot();
    let source = pod.workload(&snapshot).map_err(OutboundError::Source)?;
    let (failing, pick) = (worker.failing.now(), random() as u64);
    let facts = Outbound { source: &source, destination: *dst, avoid, failing: &failing, pick };
    let decided = next_hop(&snapshot, &facts);
    if let Ok(hop) = &decided
        && let Some((uid, at)) = endpoint(hop)
    {
        worker.failing.chosen(uid, at);
    }
    Ok((source, decided))
}

type Decided = (Arc<Workload>, Result<NextHop, OutboundRefusal>);

/// Waits for another state; the first time, only until it is decided once more. False: refuse.
async fn for_state(hold: &mut Option<Hold>, worker: &Rc<Worker>, reason: &'static str) -> bool {
    match hold {
        Some(hold) => hold.for_state().await,
        None => {
            *hold = Hold::begin(worker, reason);
            hold.is_some()
        }
    }
}

/// Waits for another state or a moment. False: give up.
async fn for_a_moment(hold: &mut Option<Hold>, worker: &Rc<Worker>, reason: &'static str) -> bool {
    if hold.is_none() {
        *hold = Hold::begin(worker, reason);
    }
    match hold {
        Some(hold) => hold.for_a_moment().await,
        None => false,
    }
}

/// Where a workload is that was only known by name.
async fn by_name(call: &Call<'_>, source: &Arc<Workload>, of: &Unresolved) -> Result<NextHop, OutboundError> {
    let Call { worker, dst, .. } = call;
    let host = &of.workload.hostname;
    worker.shared.telemetry.metrics().dns().on_demand(source, host);
    let addresses = worker.shared.resolver.addresses(host).await.map_err(OutboundError::Resolve)?;
    let ip = resolve::one_of(&addresses, dst.is_ipv4(), random() as u64);
    let ip = ip.ok_or_else(|| OutboundError::Resolve(ResolveError::NoAddress { host: Arc::clone(host) }))?;
    Ok(resolved(&worker.shared.state.snapshot(), source, of, ip)?)
}

/// The workload that is meant and the address of its app, where it is one; of a waypoint its own address, and of a
/// workload that is found by name only the port, as it is decided on.
fn endpoint(hop: &NextHop) -> Option<(&WorkloadUid, SocketAddr)> {
    match hop {
        NextHop::Hbone { peer, workload, waypoint: Some(_), .. } => Some((&workload.uid, *peer)),
        NextHop::Tcp { to: app, workload, .. } | NextHop::Hbone { authority: app, workload, .. } => {
            let app = if workload.addresses.is_empty() { unresolved(app.port()) } else { *app };
            Some((&workload.uid, app))
        }
        NextHop::Resolve(of) => Some((&of.workload.uid, unresolved(of.port))),
        NextHop::Passthrough { .. } | NextHop::Hold(_) => None,
    }
}

/// Where the decision sees a workload that is found by name.
fn unresolved(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

/// What has been tried for one connection.
struct Tries {
    tried: Vec<WorkloadUid>,
    left: usize,
    until: Instant,
    /// All were tried in a hurry: each gets a second chance, as one that is only slow fails then too.
    is_second_round: bool,
}

/// What to do after a failed try.
enum After {
    /// Try another endpoint; why.
    Elsewhere(&'static str),
    /// There is no other, but this one may work in a moment; why.
    Again(&'static str),
    /// Tell the app.
    End,
}

impl Tries {
    fn new() -> Self {
        Self { tried: Vec::new(), left: TRIES - 1, until: Instant::now() + TIME, is_second_round: false }
    }

    /// Whether this hop is one of several that may still be tried.
    fn has_others(&self, hop: &NextHop) -> bool {
        let (NextHop::Tcp { why, .. } | NextHop::Hbone { why, .. }) = hop else { return false };
        let untried = matches!(why, Choice::Balanced(balance) if balance.untried > 0);
        let once_more = !self.is_second_round && !self.tried.is_empty();
        (untried || once_more) && self.left > 0 && Instant::now() < self.until
    }

    fn limits<'a>(&self, call: &Call<'a>, hop: &NextHop) -> &'a Limits {
        let shared = &call.worker.shared;
        if self.has_others(hop) { &shared.hurried } else { &shared.limits }
    }

    fn after(&mut self, call: &Call<'_>, hop: &NextHop, error: &OutboundError) -> After {
        let (Some((uid, at)), Some(reason)) = (endpoint(hop), reason(error)) else { return After::End };
        call.worker.failing.failed(uid, at);
        if self.has_others(hop) {
            self.left -= 1;
            let all_tried = matches!(hop, NextHop::Tcp { why: Choice::Balanced(b), .. }
                | NextHop::Hbone { why: Choice::Balanced(b), .. } if b.untried == 0);
            if all_tried {
                self.is_second_round = true;
                self.tried.clear();
            } else {
                self.tried.push(uid.clone());
            }
            return After::Elsewhere(reason);
        }
        match passing(error) {
            Some(reason) => {
                self.tried.clear();
                self.is_second_round = false;
                After::Again(reason)
            }
            None => After::End,
        }
    }
}

/// Why another endpoint may do better, as a label's value; none where it would say the same, or must not be asked:
/// a refusal by policy is an answer.
fn reason(error: &OutboundError) -> Option<&'static str> {
    match error {
        OutboundError::Open(OpenError::Tcp { is_refused: true, .. }) => Some("refused"),
        OutboundError::Open(OpenError::Tcp { is_refused: false, .. }) => Some("unreachable"),
        OutboundError::Open(OpenError::TcpTimeout { .. })
        | OutboundError::Connect(ConnectError::Timeout { .. }) => Some("timeout"),
        OutboundError::Open(OpenError::Handshake(HandshakeError::Tls { .. })) => Some("tls"),
        OutboundError::Open(OpenError::Handshake(HandshakeError::Http2 { .. })) => Some("http2"),
        OutboundError::Open(OpenError::Lost { .. }) => Some("lost"),
        OutboundError::Open(OpenError::AnswerTimeout { .. }) => Some("no_answer"),
        OutboundError::Open(OpenError::Refused { status, .. }) => {
            (*status == StatusCode::SERVICE_UNAVAILABLE).then_some("unavailable")
        }
        OutboundError::Connect(ConnectError::Io { source, .. }) => {
            Some(if is_refused(source) { "refused" } else { "unreachable" })
        }
        OutboundError::Open(OpenError::Identity(_))
        | OutboundError::Source(_)
        | OutboundError::Refused(_)
        | OutboundError::Resolve(_)
        | OutboundError::Relay(_)
        | OutboundError::Copy(_)
        | OutboundError::Closed(_) => None,
    }
}

/// Why the same endpoint may do better in a moment, as a label's value: the two agents learn of a pod's capture, or of its
/// end, one after the other, and an agent that is replaced does not listen for a moment.
fn passing(error: &OutboundError) -> Option<&'static str> {
    match error {
        OutboundError::Open(OpenError::Tcp { is_refused: true, .. }) => Some("refused"),
        OutboundError::Open(OpenError::Refused { denial: Some(denial), .. }) => {
            (denial.class == "draining").then_some("draining")
        }
        _ => None,
    }
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// One try at one next hop.
async fn attempt(
    call: &Call<'_>,
    source: &Arc<Workload>,
    hop: &NextHop,
    limits: &Limits,
) -> Result<Upstream, OutboundError> {
    let Call { worker, pod, .. } = *call;
    let upstream = match hop {
        NextHop::Passthrough { to, .. } => Upstream::Plain(pod.dial_out(worker, *to, limits).await?),
        NextHop::Tcp { to, downgrade, .. } => {
            if let Some(downgrade) = downgrade {
                worker.shared.telemetry.metrics().reach().downgrade(downgrade.reason());
            }
            Upstream::Plain(pod.dial_out(worker, *to, limits).await?)
        }
        NextHop::Hold(why) => return Err(OutboundRefusal::Downgrade(why.clone()).into()),
        NextHop::Resolve(of) => {
            let host = Arc::clone(&of.workload.hostname);
            return Err(OutboundError::Resolve(ResolveError::NoAddress { host }));
        }
        NextHop::Hbone { peer, authority, expected, workload, service, .. } => {
            let (destination, peer, authority) = (workload, *peer, *authority);
            let between = Between { pod: &pod.local.uid, source, destination, peer, authority, expected };
            let prepared = worker.routes.prepared(between)?;
            let key = &prepared.key;
            let connect = Connect {
                authority: &prepared.authority,
                baggage: &prepared.baggage,
                source: call.src,
                host: service.as_deref().map(|s| &*s.key.hostname),
                trace: call.trace,
            };
            // Boxed: few connections make a tunnel, and every one would hold the room for it.
            let establish = || Box::pin(establish(worker, pod, key, limits));
            let wait = AnswerWait::of(limits);
            Upstream::Tunnel(worker.pool.open(key, &connect, wait, establish).await?)
        }
    };
    if let Some((uid, at)) = endpoint(hop) {
        worker.failing.works(uid, at);
    }
    Ok(upstream)
}

/// A new tunnel: the pod's certificate, a connection from within its namespace, TLS, HTTP/2.
async fn establish(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    key: &Key,
    limits: &Limits,
) -> Result<Rc<Tunnel>, OpenError> {
    let shared = &worker.shared;
    let start = Instant::now();
    let count = |result| shared.telemetry.metrics().handshake(Side::Client, result, start.elapsed());
    let certificate = match shared.certs.current(&key.identity) {
        Some(certificate) => certificate,
        None => shared.certs.wait(&key.identity, shared.certificate_wait).await.map_err(|error| {
            count(Handshake::NoCertificate);
            OpenError::Identity(error.to_string())
        })?,
    };
    let peer = key.peer;
    let tcp = pod.dial_tunnel(shared, peer, limits).await?;
    let tls = certificate.client_config(&key.expected);
    let context =
        Context { http2: &shared.http2, limits, scope: &pod.scope, metrics: shared.telemetry.metrics() };
    let tunnel = Tunnel::establish(tcp, peer, tls, certificate.not_after, &context).await;
    count(tunnel.as_ref().map_or_else(OpenError::result, |_| Handshake::Complete));
    if tunnel.as_ref().is_err_and(|error| error.flag() == ResponseFlag::CertRevoked) {
        shared.telemetry.metrics().identity().rejected(Reporter::Source);
    }
    let tunnel = tunnel?;
    worker.tunnels.track(shared, &certificate, (Role::Server, tunnel.chain()), tunnel.orders());
    Ok(tunnel)
}

/// What the log and the metrics say of it; none for what is refused before it goes anywhere.
fn flow(call: &Call<'_>, source: &Arc<Workload>, decided: &Result<NextHop, OutboundRefusal>) -> Option<Flow> {
    let mut flow = Flow {
        reporter: Reporter::Source,
        source: Some(Arc::clone(source)),
        source_identity: Some(source.identity.clone()),
        destination: None,
        destination_identity: None,
        service: None,
        security: Security::Unknown,
        src_addr: call.src,
        dst_addr: call.dst,
        hbone_addr: None,
        trace: None,
    };
    match decided {
        Ok(NextHop::Passthrough { to, .. }) => flow.dst_addr = *to,
        Ok(NextHop::Tcp { to, workload, service, .. }) => {
            (flow.dst_addr, flow.destination) = (*to, Some(Arc::clone(workload)));
            flow.service.clone_from(service);
        }
        Ok(NextHop::Hbone { peer, authority, workload, service, .. }) => {
            (flow.dst_addr, flow.destination) = (*peer, Some(Arc::clone(workload)));
            flow.service.clone_from(service);
            flow.security = Security::MutualTls;
            flow.hbone_addr = Some(Target::Addr(*authority));
            flow.trace = Some(call.trace.trace);
        }
        Ok(NextHop::Resolve(of)) => {
            (flow.destination, flow.service) =
                (Some(Arc::clone(&of.workload)), Some(Arc::clone(&of.service)));
        }
        Ok(NextHop::Hold(downgrade)) | Err(OutboundRefusal::Downgrade(downgrade)) => {
            flow.dst_addr = downgrade.to();
            if let Downgrade::Workload { workload, service, .. } = &**downgrade {
                flow.destination = Some(Arc::clone(workload));
                flow.service.clone_from(service);
            }
        }
        Err(_) => return None,
    }
    Some(flow)
}

#[cfg(test)]
mod tests {
    use culvert_common::hbone::client::Denial;

    use super::*;

    const PEER: SocketAddr = SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 15008);

    fn answer(status: u16, class: Option<&'static str>) -> OpenError {
        let denial = class.map(|class| Denial { id: "1".into(), class });
        OpenError::Refused { status: StatusCode::from_u16(status).unwrap(), denial }
    }

    /// What is tried elsewhere, what again in a moment, and what is an answer.
    #[test]
    fn each_failure_is_tried_elsewhere_or_told() {
        let (limit, cause) = (Duration::from_secs(1), || "cause".to_owned());
        let io = |kind: io::ErrorKind| ConnectError::Io { to: PEER, source: kind.into() };
        let tcp = |is_refused| OpenError::Tcp { peer: PEER, cause: cause(), is_refused };
        let table: [(OutboundError, Option<&str>, Option<&str>); 18] = [
            (tcp(true).into(), Some("refused"), Some("refused")),
            (tcp(false).into(), Some("unreachable"), None),
            (OpenError::TcpTimeout { peer: PEER, limit }.into(), Some("timeout"), None),
            (
                OpenError::from(HandshakeError::Tls { peer: PEER, cause: cause(), result: Handshake::Tls })
                    .into(),
                Some("tls"),
                None,
            ),
            (
                OpenError::from(HandshakeError::Http2 { peer: PEER, cause: cause() }).into(),
                Some("http2"),
                None,
            ),
            (OpenError::Lost { peer: PEER, cause: cause() }.into(), Some("lost"), None),
            (OpenError::AnswerTimeout { peer: PEER, limit }.into(), Some("no_answer"), None),
            (answer(503, None).into(), Some("unavailable"), None),
            (answer(503, Some("connect")).into(), Some("unavailable"), None),
            (answer(503, Some("draining")).into(), Some("unavailable"), Some("draining")),
            (answer(401, Some("policy")).into(), None, None),
            (answer(403, None).into(), None, None),
            (answer(400, None).into(), None, None),
            (OpenError::Identity(cause()).into(), None, None),
            (io(io::ErrorKind::ConnectionRefused).into(), Some("refused"), None),
            (io(io::ErrorKind::HostUnreachable).into(), Some("unreachable"), None),
            (ConnectError::Timeout { to: PEER, limit }.into(), Some("timeout"), None),
            (OutboundError::Source(cause()), None, None),
        ];
        for (error, elsewhere, again) in table {
            assert_eq!((reason(&error), passing(&error)), (elsewhere, again), "{error}");
        }
    }
}
