//! One captured outgoing connection, top to bottom: original destination, the way to an endpoint that takes it, relay,
//! one log line and one set of counters. How the way is found, held and tried elsewhere is in `reach.rs`.

pub(crate) mod failing;
mod hold;
mod reach;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_common::decide::{Downgrade, NotPlain, OutboundRefusal};
use culvert_common::hbone::client::OpenError;
use culvert_common::hbone::headers::TraceParent;
use culvert_common::hbone::relay::{RelayError, relay};
use culvert_common::net::copy::{CopyError, broken, copy_both_ways};
use culvert_common::net::socket::{ConnectError, original_destination, set_reset_on_drop};
use culvert_common::telemetry::ResponseFlag;
use culvert_common::telemetry::{Connection, DenialNote, Failure, Reporter, Side};
use tokio::net::TcpStream;
use tokio::time::Instant;

use self::reach::{Call, Routed, Upstream, reach};
use crate::connections::{Closed, Entry, Kind};
use crate::shared::{Pod, denial_id, failed, random};
use crate::worker::Worker;

/// Why an outgoing connection did not end well.
#[derive(Debug, thiserror::Error)]
enum OutboundError {
    #[error("{0}")]
    Source(String),
    #[error(transparent)]
    Refused(#[from] OutboundRefusal),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("no connection to the destination: {0}")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("{0}")]
    Closed(Rc<Closed>),
}

impl OutboundError {
    fn failure(&self) -> Failure {
        let flag = match self {
            Self::Closed(closed) => return closed.failure(),
            Self::Refused(refusal) => refusal.flag(),
            Self::Open(error) => error.flag(),
            Self::Relay(RelayError::Budget) => ResponseFlag::Budget,
            Self::Source(_)
            | Self::Relay(RelayError::App(_) | RelayError::Peer(_))
            | Self::Connect(_)
            | Self::Copy(_) => ResponseFlag::Connect,
        };
        let denial = match self {
            Self::Open(OpenError::Refused { denial: Some(denial), .. }) => {
                Some(DenialNote { id: denial.id.clone(), class: denial.class, policy: None })
            }
            Self::Refused(OutboundRefusal::Downgrade(downgrade)) => {
                let policy = match &**downgrade {
                    Downgrade::Workload { why: NotPlain::Strict(policy), .. } => Some(policy.to_string()),
                    Downgrade::Workload { .. } | Downgrade::Unanswered { .. } => None,
                };
                Some(DenialNote { id: denial_id(), class: flag.class(), policy })
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
    let trace = TraceParent::new(random(), random() as u64);
    let mut routed = Routed::new(shared, start);
    let reached = {
        let call = Call { worker, pod, src, dst, trace };
        tokio::select! {
            // Boxed: what it takes to get there is not kept while bytes flow.
            reached = Box::pin(reach(&call, &mut routed)) => reached,
            // Nobody waits for it any more: the limits of what is tried add up to minutes.
            error = broken(&app) => Err(RelayError::App(error).into()),
        }
    };
    let Some(connection) = routed.open() else {
        if let Err(error) = reached {
            drop(app); // before the log line: who reads it knows that the app has heard
            early(Some(dst), error.failure());
        }
        return;
    };
    let outcome = match reached {
        Ok(upstream) => carry(worker, &app, upstream, (pod, dst), &connection).await,
        Err(error) => Err(error),
    };
    drop(app); // as above
    if matches!(&outcome, Err(OutboundError::Relay(RelayError::Budget))) {
        shared.telemetry.metrics().budget_reset();
    }
    connection.finish(outcome.map_err(|error| error.failure()));
}

/// Relays until both sides have closed. Lists the connection as open meanwhile, with the address that the app asked for.
async fn carry(
    worker: &Worker,
    app: &TcpStream,
    upstream: Upstream,
    (pod, original): (&Arc<Pod>, SocketAddr),
    connection: &Connection,
) -> Result<(), OutboundError> {
    let kind = match &upstream {
        Upstream::Plain(_) => Kind::OutboundTcp,
        Upstream::Tunnel(_) => Kind::OutboundHbone,
    };
    let dialled = connection.flow().dst_addr;
    let entry = Entry::new(kind, pod, connection, dialled).with_original(original);
    let listed = worker.connections.open(entry);
    let counts = connection.counts();
    let (to_server, to_client) = (|n| counts.add_received(n), |n| counts.add_sent(n));
    match upstream {
        Upstream::Plain(upstream) => {
            copy_both_ways(app, &upstream, to_server, to_client).await?;
            orderly(&upstream);
        }
        Upstream::Tunnel(opened) => {
            let _open = worker.shared.telemetry.metrics().stream(Side::Client);
            let board = worker.board.of(pod.admission.memory());
            listed.through(opened.slot.orders());
            tokio::select! {
                biased;
                closed = listed.closed() => return Err(OutboundError::Closed(closed)),
                relayed = relay(app, opened.stream, &board, to_server, to_client) => relayed?,
            }
            drop(opened.slot);
        }
    }
    orderly(app);
    Ok(())
}

/// From now on dropping the socket is an orderly close.
pub(crate) fn orderly(stream: &TcpStream) {
    // Fails only when the connection is gone already, which closes as it likes.
    let _gone = set_reset_on_drop(stream, false);
}
