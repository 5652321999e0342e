//! One captured outgoing connection, top to bottom: original destination, the way to an endpoint that takes it, relay,
//! one log line and one set of counters. How the way is found, held and tried elsewhere is in `reach.rs`.

mod ask;
pub(crate) mod failing;
mod hold;
pub(crate) mod prepared;
mod reach;
mod resolve;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_common::crypto::random;
use culvert_common::decide::{Downgrade, NotPlain, OutboundRefusal};
use culvert_common::hbone::client::OpenError;
use culvert_common::hbone::headers::TraceParent;
use culvert_common::hbone::pool::Opened;
use culvert_common::hbone::relay::{RelayError, relay};
use culvert_common::net::copy::{CopyError, broken, copy_both_ways};
use culvert_common::net::socket::{ConnectError, original_destination, set_reset_on_drop};
use culvert_common::telemetry::ResponseFlag;
use culvert_common::telemetry::{Connection, Counted, DenialNote, Failure, Reporter, Side, denial_id};
use tokio::net::TcpStream;
use tokio::time::Instant;

use self::reach::{Call, Routed, Upstream, reach};
use crate::connections::{Closed, Entry, Kind, Open};
use crate::shared::{Pod, failed};
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
    Resolve(crate::dns::ResolveError),
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
            | Self::Resolve(_)
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

/// A connection whose way is open. Boxed, so that the task that relays keeps a pointer for it.
struct Served {
    app: TcpStream,
    /// Where it wanted to go.
    original: SocketAddr,
    connection: Connection,
    _open: Counted,
}

/// Serves one accepted connection of port 15001. The socket resets the app when it is dropped before its orderly end.
pub(crate) fn serve<'a>(
    worker: &'a Rc<Worker>,
    pod: &'a Arc<Pod>,
    app: TcpStream,
    src: SocketAddr,
) -> impl Future<Output = ()> + 'a {
    // Boxed: what it takes to get there is not kept while bytes flow.
    let set_up = Box::pin(set_up(worker, pod, app, src));
    // One block, not several `async fn`: each keeps its arguments beside what it makes of them.
    async move {
        let Some((upstream, served)) = set_up.await else { return };
        let listed = list(worker, pod, &upstream, &served);
        let counts = served.connection.counts();
        let (to_server, to_client) = (|n| counts.add_received(n), |n| counts.add_sent(n));
        let outcome: Result<(), OutboundError> = match upstream {
            Upstream::Plain(upstream) => {
                let copied = copy_both_ways(&served.app, &upstream, to_server, to_client).await;
                copied.map(|()| orderly(&upstream)).map_err(OutboundError::from)
            }
            Upstream::Tunnel(Opened { stream, slot }) => {
                let _open = worker.shared.telemetry.metrics().stream(Side::Client);
                let board = worker.board.of(pod.admission.memory());
                listed.through(slot.orders());
                tokio::select! {
                    biased;
                    closed = listed.closed() => Err(OutboundError::Closed(closed)),
                    relayed = relay(&served.app, stream, &board, to_server, to_client) => relayed.map_err(OutboundError::from),
                }
            }
        };
        let Served { app, connection, .. } = *served;
        if outcome.is_ok() {
            orderly(&app);
        }
        drop((app, listed)); // before the log line: who reads it knows that the app has heard
        if matches!(&outcome, Err(OutboundError::Relay(RelayError::Budget))) {
            worker.shared.telemetry.metrics().budget_reset();
        }
        connection.finish(outcome.map_err(|error| error.failure()));
    }
}

/// Finds the way. `None`: it has been refused or given up, and that has been logged and counted.
async fn set_up(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    app: TcpStream,
    src: SocketAddr,
) -> Option<(Upstream, Box<Served>)> {
    let shared = &worker.shared;
    let start = Instant::now();
    let open = shared.telemetry.metrics().socket(Reporter::Source);
    let early = |dst, failure| shared.early(Reporter::Source, (src, dst), None, failure);
    let dst = match original_destination(&app, src) {
        Ok(dst) => dst,
        Err(error) => {
            early(None, failed(ResponseFlag::Connect, format!("no original destination: {error}")));
            return None;
        }
    };
    let trace = TraceParent::new(random(), random() as u64);
    let mut routed = Routed::new(shared, start);
    let reached = {
        let call = Call { worker, pod, src, dst, trace };
        tokio::select! {
            reached = reach(&call, &mut routed) => reached,
            // Nobody waits for it any more: the limits of what is tried add up to minutes.
            error = broken(&app) => Err(RelayError::App(error).into()),
        }
    };
    match (reached, routed.open()) {
        (Ok(upstream), Some(connection)) => {
            Some((upstream, Box::new(Served { app, original: dst, connection, _open: open })))
        }
        (Ok(_), None) => None, // what is reached has been routed
        (Err(error), connection) => {
            drop(app); // before the log line: who reads it knows that the app has heard
            match connection {
                Some(connection) => connection.finish(Err(error.failure())),
                None => early(Some(dst), error.failure()),
            }
            None
        }
    }
}

/// Lists the connection as open, with the address that the app asked for.
fn list(worker: &Worker, pod: &Arc<Pod>, upstream: &Upstream, served: &Served) -> Open {
    let kind = match upstream {
        Upstream::Plain(_) => Kind::OutboundTcp,
        Upstream::Tunnel(_) => Kind::OutboundHbone,
    };
    let dialled = served.connection.flow().dst_addr;
    let entry = Entry::new(kind, pod, &served.connection, dialled).with_original(served.original);
    worker.connections.open(entry)
}

/// From now on dropping the socket is an orderly close.
pub(crate) fn orderly(stream: &TcpStream) {
    // Fails only when the connection is gone already, which closes as it likes.
    let _gone = set_reset_on_drop(stream, false);
}
