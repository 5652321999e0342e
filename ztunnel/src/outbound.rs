//! One captured outgoing connection, top to bottom: original destination, next hop, tunnel or plain connection, relay,
//! one log line and one set of counters.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_common::decide::{NextHop, Outbound, OutboundRefusal, next_hop};
use culvert_common::hbone::client::{Connect, Context, OpenError, Tunnel};
use culvert_common::hbone::headers::{TraceParent, baggage_of, forwarded};
use culvert_common::hbone::pool::{Key, Opened};
use culvert_common::hbone::relay::{RelayError, relay};
use culvert_common::model::Workload;
use culvert_common::net::copy::{CopyError, broken, copy_both_ways};
use culvert_common::net::socket::{ConnectError, original_destination, set_reset_on_drop};
use culvert_common::telemetry::ResponseFlag;
use culvert_common::telemetry::{Connection, DenialNote, Failure, Flow, Reporter, Security};
use culvert_common::telemetry::{Handshake, Side};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::connections::{Entry, Kind, Open};
use crate::shared::{CERTIFICATE_WAIT, Pod, Shared, failed, random};
use crate::worker::Worker;

/// Why an outgoing connection did not end well.
#[derive(Debug, thiserror::Error)]
enum OutboundError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("no connection to the destination: {0}")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

impl OutboundError {
    fn failure(&self) -> Failure {
        let flag = match self {
            Self::Open(error) => error.flag(),
            Self::Relay(RelayError::Budget) => ResponseFlag::Budget,
            Self::Relay(RelayError::App(_) | RelayError::Peer(_)) | Self::Connect(_) | Self::Copy(_) => {
                ResponseFlag::Connect
            }
        };
        let denial = match self {
            Self::Open(OpenError::Refused { denial: Some(denial), .. }) => {
                Some(DenialNote { id: denial.id.clone(), class: denial.class, policy: None })
            }
            _ => None,
        };
        Failure { flag, error: self.to_string(), denial }
    }
}

/// Serves one accepted connection of port 15001. The socket resets the app when it is dropped before its orderly end.
pub(crate) async fn serve(worker: &Rc<Worker>, pod: &Arc<Pod>, app: TcpStream, src: SocketAddr) {
    let shared = &worker.shared;
    let start = Instant::now();
    let _open = shared.telemetry.metrics().socket(Reporter::Source);
    let early = |dst, failure| shared.early(Reporter::Source, (src, dst), None, failure);
    let dst = match original_destination(&app) {
        Ok(dst) => dst,
        Err(error) => {
            return early(None, failed(ResponseFlag::Connect, format!("no original destination: {error}")));
        }
    };
    let (source, hop) = match decide(shared, pod, dst) {
        Ok(decided) => decided,
        Err(failure) => return early(Some(dst), failure),
    };
    let trace = TraceParent::new(random(), random() as u64);
    let connection = shared.telemetry.open(flow(&hop, &source, src, &trace), start.into_std());
    let counts = connection.counts();
    let _listed = list(worker, pod, &connection, (&hop, dst));
    let (to_server, to_client) = (|n| counts.add_received(n), |n| counts.add_sent(n));
    let outcome: Result<(), OutboundError> = async {
        match &hop {
            NextHop::Passthrough { to, .. } | NextHop::Tcp { to, .. } => {
                let upstream = pod.dial(shared, *to, None, true).await?;
                copy_both_ways(&app, &upstream, to_server, to_client).await?;
                orderly(&upstream);
            }
            NextHop::Hold(_) => {} // refused above
            NextHop::Hbone { peer, authority, expected, workload, service, .. } => {
                let key = Key {
                    source: Arc::clone(&pod.local.uid),
                    identity: source.identity.clone(),
                    destination: workload.uid.clone(),
                    peer: *peer,
                    expected: expected.clone(),
                };
                let connect = Connect {
                    authority: *authority,
                    baggage: baggage_of(&source),
                    forwarded: forwarded(src, service.as_deref().map(|s| &*s.key.hostname)),
                    traceparent: trace.to_string(),
                };
                let opened = tokio::select! {
                    opened = open(worker, pod, &key, &connect) => opened?,
                    // Nobody waits for a tunnel any more: its limits add up to minutes.
                    error = broken(&app) => return Err(RelayError::App(error).into()),
                };
                relay(&app, opened.stream, &worker.board, to_server, to_client).await?;
                drop(opened.slot);
            }
        }
        orderly(&app);
        Ok(())
    }
    .await;
    drop(app); // before the log line: who reads it knows that the app has heard
    if matches!(&outcome, Err(OutboundError::Relay(RelayError::Budget))) {
        shared.telemetry.metrics().budget_reset();
    }
    connection.finish(outcome.map_err(|error| error.failure()));
}

/// Lists the connection as open, with its next hop and the address that the app asked for.
fn list(
    worker: &Worker,
    pod: &Arc<Pod>,
    connection: &Connection,
    (hop, original): (&NextHop, SocketAddr),
) -> Open {
    let (kind, dialled) = match hop {
        NextHop::Passthrough { to, .. } | NextHop::Tcp { to, .. } => (Kind::OutboundTcp, *to),
        NextHop::Hbone { peer, .. } => (Kind::OutboundHbone, *peer),
        NextHop::Hold(downgrade) => (Kind::OutboundTcp, downgrade.to()), // refused before it is opened
    };
    worker.connections.open(Entry::new(kind, pod, connection, dialled).with_original(original))
}

/// The source and the next hop, from one snapshot that is freed here: a connection open for days must not pin it.
fn decide(shared: &Shared, pod: &Pod, dst: SocketAddr) -> Result<(Arc<Workload>, NextHop), Failure> {
    let snapshot = shared.state.snapshot();
    let source = pod.workload(&snapshot).map_err(|error| failed(ResponseFlag::Connect, error))?;
    let facts =
        Outbound { source: &source, destination: dst, avoid: &[], failing: &[], pick: random() as u64 };
    let refused = |refusal: OutboundRefusal| failed(refusal.flag(), refusal);
    match next_hop(&snapshot, &facts).map_err(refused)? {
        NextHop::Hold(why) => Err(refused(OutboundRefusal::Downgrade(why))),
        hop => Ok((source, hop)),
    }
}

/// From now on dropping the socket is an orderly close.
pub(crate) fn orderly(stream: &TcpStream) {
    // Fails only when the connection is gone already, which closes as it likes.
    let _gone = set_reset_on_drop(stream, false);
}

fn flow(hop: &NextHop, source: &Arc<Workload>, src: SocketAddr, trace: &TraceParent) -> Flow {
    let mut flow = Flow {
        reporter: Reporter::Source,
        source: Some(Arc::clone(source)),
        source_identity: Some(source.identity.clone()),
        destination: None,
        destination_identity: None,
        service: None,
        security: Security::Unknown,
        src_addr: src,
        dst_addr: src,
        hbone_addr: None,
        trace_id: None,
    };
    match hop {
        NextHop::Passthrough { to, .. } => flow.dst_addr = *to,
        NextHop::Hold(downgrade) => flow.dst_addr = downgrade.to(),
        NextHop::Tcp { to, workload, service, .. } => {
            (flow.dst_addr, flow.destination) = (*to, Some(Arc::clone(workload)));
            flow.service.clone_from(service);
        }
        NextHop::Hbone { peer, authority, workload, service, .. } => {
            (flow.dst_addr, flow.destination) = (*peer, Some(Arc::clone(workload)));
            flow.service.clone_from(service);
            flow.security = Security::MutualTls;
            flow.hbone_addr = Some(authority.to_string());
            flow.trace_id = Some(format!("{:032x}", trace.trace));
        }
    }
    flow
}

/// A stream to a workload, on a tunnel of this worker.
async fn open(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    key: &Key,
    connect: &Connect,
) -> Result<Opened, OpenError> {
    // Boxed: few connections make a tunnel, and every one would hold the room for it.
    let establish = || Box::pin(establish(worker, pod, key));
    worker.pool.open(key, connect, worker.shared.limits.answer, establish).await
}

/// A new tunnel: the pod's certificate, a connection from within its namespace, TLS, HTTP/2.
async fn establish(worker: &Rc<Worker>, pod: &Arc<Pod>, key: &Key) -> Result<Rc<Tunnel>, OpenError> {
    let shared = &worker.shared;
    let count = |result| shared.telemetry.metrics().handshake(Side::Client, result);
    let certificate = match shared.certs.current(&key.identity) {
        Some(certificate) => certificate,
        None => shared.certs.wait(&key.identity, CERTIFICATE_WAIT).await.map_err(|error| {
            count(Handshake::NoCertificate);
            OpenError::Identity(error.to_string())
        })?,
    };
    let peer = key.peer;
    let tcp = pod.dial(shared, peer, None, false).await.map_err(|error| match error {
        ConnectError::Timeout { limit, .. } => OpenError::TcpTimeout { peer, limit },
        ConnectError::Io { source, .. } => OpenError::Tcp { peer, cause: source.to_string() },
    })?;
    let tls = certificate.client_config(&key.expected);
    let context = Context {
        http2: &shared.http2,
        limits: &shared.limits,
        scope: &pod.scope,
        metrics: shared.telemetry.metrics(),
    };
    let tunnel = Tunnel::establish(tcp, peer, tls, certificate.not_after, &context).await;
    count(match &tunnel {
        Ok(_) => Handshake::Complete,
        Err(OpenError::Http2 { .. }) => Handshake::Http2,
        Err(_) => Handshake::Tls,
    });
    tunnel
}
