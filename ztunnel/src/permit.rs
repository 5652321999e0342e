//! What policy says of a connection to a captured pod, when it comes and again while it is open.

use std::sync::Arc;
use std::time::Duration;

use culvert_common::authz::{self, Decision, Facts, Verdict, authorize};
use culvert_common::model::Workload;
use culvert_common::state::Snapshot;
use culvert_common::telemetry::{DenialNote, Failure, ResponseFlag};

use tokio::time::sleep;

use crate::shared::{Shared, denial_id};

/// How long a policy that a workload names may be absent before that counts: the two may arrive apart.
pub(crate) const MISSING_HOLD: Duration = Duration::from_secs(2);

/// A policy said no.
#[derive(Debug, thiserror::Error)]
#[error("{denial}")]
pub(crate) struct Denied {
    pub(crate) denial: authz::Denial,
    pub(crate) id: String,
}

impl Denied {
    pub(crate) fn failure(&self) -> Failure {
        let policy = Some(self.denial.policies());
        let denial = Some(DenialNote { id: self.id.clone(), class: "policy", policy });
        Failure { flag: ResponseFlag::Deny, error: self.to_string(), denial }
    }
}

/// Whether the policies of `workload` let `facts` through; what dry-run policies think of it is counted and
/// logged.
pub(crate) fn permit(
    shared: &Shared,
    snapshot: &Snapshot,
    workload: &Workload,
    facts: &Facts<'_>,
) -> Result<(), Arc<Denied>> {
    let policies = snapshot.policies_for(workload);
    let decision = authorize(&policies.all, &policies.missing, facts);
    log(shared, workload, facts, &decision);
    match decision.verdict {
        Verdict::Allowed { .. } => Ok(()),
        Verdict::Denied(denial) => Err(Arc::new(Denied { denial, id: denial_id() })),
    }
}

/// Whether it is said no only for want of a policy that may still be on its way.
pub(crate) fn is_for_now(verdict: &Result<(), Arc<Denied>>) -> bool {
    verdict.as_ref().is_err_and(|denied| matches!(denied.denial, authz::Denial::Missing(_)))
}

/// Decides with `again` until that is no longer for want of a policy, at each revision, for [`MISSING_HOLD`] at most.
///
/// **Cancel safety**: a dropped call leaves nothing behind.
pub(crate) async fn held<T>(
    shared: &Shared,
    again: impl Fn() -> T,
    verdict: impl Fn(&T) -> Option<&Result<(), Arc<Denied>>>,
) -> T {
    let mut revisions = shared.state.changed(); // before the first look: no revision is missed
    let deadline = sleep(MISSING_HOLD);
    tokio::pin!(deadline);
    loop {
        let decided = again();
        let waits = verdict(&decided).is_some_and(is_for_now);
        if waits {
            tokio::select! {
                changed = revisions.changed() => if changed.is_ok() { continue },
                () = &mut deadline => {}
            }
        }
        shared.telemetry.metrics().policy_hold(!waits);
        return decided;
    }
}

fn log(shared: &Shared, workload: &Workload, facts: &Facts<'_>, decision: &Decision) {
    let log = |text: std::fmt::Arguments<'_>| {
        let peer = facts.peer.map(tracing::field::display);
        if shared.policy_info_logging {
            tracing::info!(target: "rbac", workload = %workload.uid, peer, "{text}");
        } else {
            tracing::debug!(target: "rbac", workload = %workload.uid, peer, "{text}");
        }
    };
    for note in &decision.dry_run {
        shared.telemetry.metrics().dry_run(note.verdict());
        log(format_args!("dry-run: {note}"));
    }
    match &decision.verdict {
        Verdict::Allowed { by: Some(policy) } => log(format_args!("allowed by: {policy}")),
        Verdict::Allowed { by: None } => {}
        Verdict::Denied(denial) => log(format_args!("{denial}")),
    }
}
