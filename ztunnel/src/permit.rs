//! What policy says of a connection to a captured pod, when it comes and again while it is open.

use std::sync::Arc;
use std::time::Duration;

use culvert_common::authz::{self, Decision, Facts, Verdict, authorize};
use culvert_common::model::Workload;
use culvert_common::state::{Snapshot, State};
use culvert_common::telemetry::{DenialNote, Failure, Metrics, ResponseFlag, denial_id};

use tokio::time::sleep;

use crate::shared::Shared;

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
    (state, metrics): (&State, &Metrics),
    again: impl Fn() -> T,
    verdict: impl Fn(&T) -> Option<&Result<(), Arc<Denied>>>,
) -> T {
    let mut revisions = state.changed(); // before the first look: no revision is missed
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
        metrics.policy_hold(!waits);
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

#[cfg(test)]
mod tests {
    use culvert_common::model::Model;
    use culvert_common::types::PolicyKey;

    use super::*;

    fn missing() -> Result<(), Arc<Denied>> {
        let key = PolicyKey { namespace: "shop".into(), name: "late".into() };
        Err(Arc::new(Denied { denial: authz::Denial::Missing(key), id: String::new() }))
    }

    fn itself(verdict: &Result<(), Arc<Denied>>) -> Option<&Result<(), Arc<Denied>>> {
        Some(verdict)
    }

    /// Decides as soon as the state has this revision, while others come and go.
    async fn wait(needed: u64, published: u64) -> (bool, String) {
        let (state, metrics) = (State::new(), Metrics::new("1"));
        let again = || if state.snapshot().revision >= needed { Ok(()) } else { missing() };
        let publish = async {
            for _ in 0..published {
                tokio::task::yield_now().await;
                state.publish(Model::default());
            }
        };
        let (verdict, ()) = tokio::join!(held((&state, &metrics), again, itself), publish);
        let counted = metrics.encode(false);
        let line = counted.lines().find(|line| line.starts_with("culvert_policy_holds_total{"));
        (verdict.is_ok(), line.unwrap_or_default().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_is_absent_is_waited_for_and_then_refuses() {
        let came = "culvert_policy_holds_total{result=\"came\"} 1";
        let absent = "culvert_policy_holds_total{result=\"absent\"} 1";
        let start = tokio::time::Instant::now();
        assert_eq!(wait(0, 0).await, (true, came.to_owned()), "there at the second look");
        assert_eq!(wait(3, 3).await, (true, came.to_owned()), "revisions that do not bring it are none");
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(wait(4, 3).await, (false, absent.to_owned()));
        assert_eq!(start.elapsed(), MISSING_HOLD);
    }

    #[test]
    fn only_a_missing_policy_is_waited_for() {
        let by_policy = PolicyKey { namespace: "shop".into(), name: "deny".into() };
        let denied = Denied { denial: authz::Denial::ByPolicy(by_policy), id: String::new() };
        assert!(is_for_now(&missing()));
        assert!(!is_for_now(&Ok(())) && !is_for_now(&Err(Arc::new(denied))));
    }
}
