//! One plaintext connection to a captured pod, top to bottom: original destination, policy without an identity, dial,
//! copy, one log line and one set of counters.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use culvert_common::authz::Facts;
use culvert_common::decide::inbound_plaintext;
use culvert_common::net::copy::{CopyError, copy_both_ways};
use culvert_common::net::socket::{ConnectError, original_destination};
use culvert_common::telemetry::ResponseFlag;
use culvert_common::telemetry::{ByteCounts, Failure, Flow, Reporter, Security};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::connections::{Closed, Entry, Kind};
use crate::outbound::orderly;
use crate::permit::{Denied, permit};
use crate::shared::{Pod, Shared, failed};
use crate::worker::Worker;

#[derive(Debug, thiserror::Error)]
enum PassthroughError {
    #[error(transparent)]
    Denied(#[from] Denied),
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
    let early = |dst, failure| shared.early(Reporter::Destination, (src, dst), None, failure);
    let dst = match original_destination(&client) {
        Ok(dst) => dst,
        Err(error) => {
            return early(None, failed(ResponseFlag::Connect, format!("no original destination: {error}")));
        }
    };
    let (flow, verdict, to, revision) = {
        let snapshot = shared.state.snapshot();
        let workload = match pod.workload(&snapshot) {
            Ok(workload) => workload,
            Err(error) => return early(Some(dst), failed(ResponseFlag::Connect, error)),
        };
        let target = match inbound_plaintext(&snapshot, &workload, dst) {
            Ok(target) => target,
            Err(refusal) => return early(Some(dst), failed(refusal.flag(), refusal)),
        };
        let facts = Facts {
            peer: None,
            source_ip: src.ip(),
            destination_ip: target.to.ip(),
            destination_port: target.to.port(),
        };
        let flow = Flow {
            reporter: Reporter::Destination,
            source: snapshot.workload_by_ip(src.ip()).cloned(),
            source_identity: None,
            destination: Some(Arc::clone(&workload)),
            destination_identity: None,
            service: target.service,
            security: Security::Unknown,
            src_addr: src,
            dst_addr: target.to,
            hbone_addr: None,
            trace_id: None,
        };
        (flow, permit(shared, &snapshot, &workload, &facts), target.to, snapshot.revision)
    };
    let connection = shared.telemetry.open(flow, start.into_std());
    let counts = connection.counts();
    let outcome = match verdict {
        Err(denied) => Err(denied.into()),
        Ok(()) => {
            let entry = Entry::new(Kind::InboundTcp, pod, &connection, to).allowed_at(revision);
            let open = worker.connections.open(entry);
            let source = (pod.spoof_source && src.ip() != to.ip()).then(|| src.ip());
            tokio::select! {
                biased;
                closed = open.closed() => Err(PassthroughError::Closed(closed)),
                relayed = relay(shared, pod, &client, (to, source), &counts) => relayed,
            }
        }
    };
    drop(client); // before the log line: who reads it knows that the client has heard
    connection.finish(outcome.map_err(|error| error.failure()));
}

/// Dials the app as its client and copies until both have closed.
async fn relay(
    shared: &Shared,
    pod: &Pod,
    client: &TcpStream,
    (to, source): (SocketAddr, Option<IpAddr>),
    counts: &ByteCounts,
) -> Result<(), PassthroughError> {
    let app = pod.dial(shared, to, source, true).await?;
    copy_both_ways(client, &app, |n| counts.add_received(n), |n| counts.add_sent(n)).await?;
    orderly(&app);
    orderly(client);
    Ok(())
}
