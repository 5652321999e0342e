//! Faults that a route makes on purpose: the delay first, then the answer in place of the upstream's.

use culvert_common::l7::{Flag, Reply};

use super::{Context, Passed};
use crate::shared::drawn;

pub(super) async fn apply(context: &mut Context<'_>) -> Passed {
    let Some(route) = context.route else { return Passed::On };
    if let Some(delay) = route.fault.delay
        && drawn(delay.share)
    {
        context.flags.raise(Flag::DelayInjected);
        tokio::time::sleep(delay.fixed).await;
    }
    match &route.fault.abort {
        Some(abort) if drawn(abort.share) => Passed::Reply(Reply::abort(abort, context.facts.is_grpc())),
        _ => Passed::On,
    }
}
