//! One plaintext connection to a captured pod, top to bottom: original destination, policy without an identity, dial,
//! copy, one log line and one set of counters.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_common::authz::Facts;
use culvert_common::crypto::random;
use culvert_common::decide::inbound_plaintext;
use culvert_common::net::copy::{CopyError, copy_both_ways};
use culvert_common::net::socket::{ConnectError, original_destination};
use culvert_common::telemetry::ResponseFlag;
use culvert_common::telemetry::{Connection, Failure, Flow, Reporter, Security};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::connections::{Closed, Entry, Kind, Open};
use crate::outbound::orderly;
use crate::permit::{Denied, held, is_for_now, permit};
use crate::shared::{Pod, Shared, failed};
use crate::worker::Worker;

/// Ports above 60999.
const APART: u128 = 4536;
/// Of these so many are tried, then it is the kernel's choice: a client that comes often leaves many in TIME_WAIT.
const APART_TRIES: usize = 2;

#[derive(Debug, thiserror::Error)]
enum PassthroughError {
    #[error(transparent)]
    Denied(#[from] Arc<Denied>),
    #[error("no connection to the app: {0}")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("{0}")]
    Closed(Rc<Closed>),
}

impl PassthroughError {
    fn failure(&self) -> Failure {
        match self {
            Self::Denied(denied) => denied.failure(),
            Self::Closed(closed) => closed.failure(),
            Self::Connect(_) | Self::Copy(_) => failed(ResponseFlag::Connect, self),
        }
    }
}

/// Serves one accepted connection of port 15006.
pub(crate) async fn serve(worker: &Rc<Worker>, pod: &Arc<Pod>, client: TcpStream, src: SocketAddr) {
    let shared = &worker.shared;
    let start = Instant::now();
    let _open = shared.telemetry.metrics().socket(Reporter::Destination);
    let dst = match original_destination(&client, src) {
        Ok(dst) => dst,
        Err(error) => {
            let failure = failed(ResponseFlag::Connect, format!("no original destination: {error}"));
            return shared.early(Reporter::Destination, (src, None), None, failure);
        }
    };
    let (connection, open) = match decided(shared, pod, (src, dst)).await {
        Ok(routed) => routed.open(worker, pod, start),
        Err(failure) => return shared.early(Reporter::Destination, (src, Some(dst)), None, failure),
    };
    let counts = connection.counts();
    let outcome: Result<(), PassthroughError> = async {
        let open = open.as_ref().map_err(Arc::clone)?;
        let app = tokio::select! {
            biased;
            closed = open.closed() => return Err(PassthroughError::Closed(closed)),
            // Boxed: what it takes to get there is not kept while bytes flow.
            app = Box::pin(dial(worker, pod, connection.flow())) => app?,
        };
        tokio::select! {
            biased;
            closed = open.closed() => return Err(PassthroughError::Closed(closed)),
            copied = copy_both_ways(&client, &app, |n| counts.add_received(n), |n| counts.add_sent(n)) => copied?,
        }
        orderly(&app);
        orderly(&client);
        Ok(())
    }
    .await;
    drop(client); // before the log line: who reads it knows that the client has heard
    connection.finish(outcome.map_err(|error| error.failure()));
}

/// Connects to the app as its client, where it may.
///
/// The client itself may be connecting to the same address at this moment, and where both are of one kernel they are given
/// the same port more often than chance has it: one of the two would be reset. So a port is tried first that clients
/// are not given.
async fn dial(worker: &Worker, pod: &Pod, flow: &Flow) -> Result<Rc<TcpStream>, ConnectError> {
    let (to, client) = (flow.dst_addr, pod.client_of(flow.src_addr, flow.dst_addr));
    if let Some(client) = client {
        for _ in 0..APART_TRIES {
            let source = SocketAddr::new(client.ip(), apart(random()));
            match pod.dial(worker, to, Some(source)).await {
                Err(ConnectError::Io { source, .. }) if is_taken(&source) => {}
                dialled => return dialled,
            }
        }
    }
    pod.dial(worker, to, client).await
}

/// A port beyond those that Linux gives to connections unless it is told to (`ip_local_port_range`).
fn apart(random: u128) -> u16 {
    u16::MAX - (random % APART) as u16
}

/// Whether the socket's own port was in the way.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// Boxed, as a connection's future is larger for every byte of it.
struct Routed {
    flow: Flow,
    verdict: Result<(), Arc<Denied>>,
    to: SocketAddr,
    /// Of the snapshot that all of it was decided from.
    revision: u64,
}

impl Routed {
    /// Opens it, and lists it as open if it may go on. The box is freed here, not when the connection ends.
    fn open(
        self: Box<Self>,
        worker: &Worker,
        pod: &Arc<Pod>,
        start: Instant,
    ) -> (Connection, Result<Open, Arc<Denied>>) {
        let Self { flow, verdict, to, revision } = *self;
        let connection = worker.shared.telemetry.open(flow, start.into_std());
        let entry = Entry::new(Kind::InboundTcp, pod, &connection, to).allowed_at(revision);
        let open = verdict.map(|()| worker.connections.open(entry));
        (connection, open)
    }
}

fn verdict_of(routed: &Result<Box<Routed>, Failure>) -> Option<&Result<(), Arc<Denied>>> {
    routed.as_ref().ok().map(|routed| &routed.verdict)
}

/// Where it goes and whether it may, once the policies that the pod names are known.
async fn decided(
    shared: &Shared,
    pod: &Pod,
    addrs: (SocketAddr, SocketAddr),
) -> Result<Box<Routed>, Failure> {
    let first = route(shared, pod, addrs);
    if !verdict_of(&first).is_some_and(is_for_now) {
        return first;
    }
    // Boxed: few connections wait, and every one would hold the room for it.
    Box::pin(held((&shared.state, shared.telemetry.metrics()), || route(shared, pod, addrs), verdict_of))
        .await
}

/// Everything that is decided from one snapshot.
///
/// **Errors**: why it is refused before policy is asked.
fn route(shared: &Shared, pod: &Pod, (src, dst): (SocketAddr, SocketAddr)) -> Result<Box<Routed>, Failure> {
    let snapshot = shared.state.snapshot();
    let workload = pod.workload(&snapshot).map_err(|error| failed(ResponseFlag::Connect, error))?;
    let target = inbound_plaintext(&snapshot, &workload, dst).map_err(|r| failed(r.flag(), r))?;
    let facts = Facts {
        peer: None,
        source_ip: src.ip(),
        destination_ip: target.to.ip(),
        destination_port: target.to.port(),
    };
    let verdict = permit(shared, &snapshot, &workload, &facts);
    let flow = Flow {
        reporter: Reporter::Destination,
        source: snapshot.workload_by_ip(src.ip()).cloned(),
        source_identity: None,
        destination: Some(workload),
        destination_identity: None,
        service: target.service,
        security: Security::Unknown,
        src_addr: src,
        dst_addr: target.to,
        hbone_addr: None,
        trace: None,
    };
    Ok(Box::new(Routed { flow, verdict, to: target.to, revision: snapshot.revision }))
}
