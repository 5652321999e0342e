//! Policy that lives: after each revision the open connections to captured pods are decided again, and those that would
//! not be let in any more are reset. So are those of pods whose rules another hand has removed.
//!
//! Each worker looks after its own, a piece at a time, so that ten thousand connections do not hold up the others. Pods
//! of which nothing that matters has changed cost one comparison. What was decided in between, from a revision that this
//! walk has not seen, is found by the revision that each connection carries.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_common::authz::{Denial, Facts, Verdict, authorize};
use culvert_common::model::{Authorization, Workload};
use culvert_common::state::{Policies, Snapshot};
use culvert_common::telemetry::denial_id;
use culvert_common::types::PolicyKey;
use tokio::time::{Instant, sleep_until};

use crate::connections::{Closed, Entry, Kind};
use crate::permit::MISSING_HOLD;
use crate::worker::Worker;

/// Connections that are looked at before others get their turn.
const PIECE: usize = 256;

/// Decides again for as long as the worker lives, also while it drains.
pub(crate) async fn run(worker: &Worker) {
    let mut revisions = worker.shared.state.changed();
    let mut unsteered = worker.shared.unsteered.subscribe();
    let mut known = Known::default();
    loop {
        let hold = known.hold_ends();
        let held = async {
            match hold {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() {
                return std::future::pending().await; // the worker holds the state: it ends first
            },
            () = held => {}
            changed = unsteered.changed() => match changed {
                Ok(()) => {
                    end_unsteered(worker).await;
                    continue;
                }
                Err(_) => return std::future::pending().await, // as above
            },
        }
        let snapshot = worker.shared.state.snapshot();
        let closed = known.walk(worker, &snapshot).await;
        if closed > 0 {
            tracing::info!(
                revision = snapshot.revision,
                closed,
                "policy changed: open connections were reset"
            );
        }
    }
}

/// Ends the incoming connections of pods whose rules went: what their apps say would go out to the clients' own addresses,
/// past this agent. Outgoing ones are left to end: what the app has said before is still brought to its end.
async fn end_unsteered(worker: &Worker) {
    let (mut from, mut closed) = (Some(0), 0);
    while let Some(at) = from {
        let (piece, next) = worker.connections.piece(at, PIECE);
        for entry in piece.iter().filter(|entry| entry.kind.is_inbound()) {
            let pod = &entry.pod;
            // What came by a tunnel and was passed on as the agent's own connection needs no rules.
            let needs_rules =
                entry.kind == Kind::InboundTcp || pod.client_of(entry.src, entry.actual).is_some();
            if pod.is_unsteered.load(Ordering::Relaxed) && needs_rules {
                entry.close(Closed::Unsteered { id: denial_id() });
                closed += 1;
            }
        }
        from = next;
        if from.is_some() {
            tokio::task::yield_now().await;
        }
    }
    if closed > 0 {
        tracing::info!(closed, "pods left without the rules that steer: incoming connections were reset");
    }
}

/// What decides over the connections of a pod.
#[derive(Debug, PartialEq, Eq)]
struct Basis {
    policies: Vec<Arc<Authorization>>,
    missing: Vec<PolicyKey>,
}

impl Basis {
    fn of(snapshot: &Snapshot, workload: &Workload) -> Self {
        let Policies { all, missing } = snapshot.policies_for(workload);
        Self { policies: all, missing }
    }
}

/// A pod during one walk; `None` as its basis if the snapshot does not have it: its release ends the connections.
struct Looked {
    basis: Option<Basis>,
    is_same: bool,
    /// Until when a policy may be missing.
    hold: Option<Instant>,
}

/// What the last walk saw.
#[derive(Default)]
struct Known {
    revision: u64,
    pods: HashMap<Arc<str>, Looked>,
}

impl Known {
    /// When the first policy has been missing for too long.
    fn hold_ends(&self) -> Option<Instant> {
        self.pods.values().filter_map(|pod| pod.hold).min()
    }

    /// Looks at each open connection; returns how many were closed.
    async fn walk(&mut self, worker: &Worker, snapshot: &Snapshot) -> usize {
        let mut pods = HashMap::new();
        let (mut from, mut closed) = (Some(0), 0);
        while let Some(at) = from {
            let (piece, next) = worker.connections.piece(at, PIECE);
            for entry in piece.iter().filter(|entry| entry.kind.is_inbound()) {
                if !pods.contains_key(&entry.pod.local.uid) {
                    pods.insert(Arc::clone(&entry.pod.local.uid), self.look(snapshot, entry));
                }
                let pod = pods.get(&entry.pod.local.uid);
                let Some(Looked { basis: Some(basis), is_same, hold }) = pod else { continue };
                let settled = [self.revision, snapshot.revision].contains(&entry.allowed_at.get());
                if settled && *is_same {
                    entry.allowed_at.set(snapshot.revision);
                    continue;
                }
                match decide(basis, entry) {
                    Verdict::Allowed { .. } => entry.allowed_at.set(snapshot.revision),
                    Verdict::Denied(Denial::Missing(_)) if hold.is_some() => {}
                    Verdict::Denied(denial) => {
                        entry.close(Closed::Policy { denial, id: denial_id() });
                        closed += 1;
                    }
                }
            }
            from = next;
            if from.is_some() {
                tokio::task::yield_now().await;
            }
        }
        (self.revision, self.pods) = (snapshot.revision, pods);
        closed
    }

    fn look(&self, snapshot: &Snapshot, entry: &Entry) -> Looked {
        let local = &entry.pod.local;
        let basis = entry.pod.workload(snapshot).ok().map(|workload| Basis::of(snapshot, &workload));
        let before = self.pods.get(&local.uid);
        let is_same = before.is_some_and(|before| before.basis == basis);
        let is_missing = basis.as_ref().is_some_and(|basis| !basis.missing.is_empty());
        let now = Instant::now();
        let hold = is_missing.then(|| match before {
            Some(Looked { basis: Some(before), hold, .. }) if !before.missing.is_empty() => *hold,
            _ => Some(now + MISSING_HOLD),
        });
        Looked { basis, is_same, hold: hold.flatten().filter(|at| *at > now) }
    }
}

fn decide(basis: &Basis, entry: &Entry) -> Verdict {
    let facts = Facts {
        peer: entry.peer.as_ref(),
        source_ip: entry.src.ip(),
        destination_ip: entry.actual.ip(),
        destination_port: entry.actual.port(),
    };
    authorize(&basis.policies, &basis.missing, &facts).verdict
}
