//! Faults that a route makes on purpose: the delay first, then the answer in place of the upstream's.

use culvert_common::l7::Reply;

use super::{Context, Passed};
use crate::shared::random;

pub(super) async fn apply(context: &Context<'_>) -> Passed {
    let Some(route) = context.route else { return Passed::On };
    let drawn = || u32::try_from(random() % 1_000_000).unwrap_or_default();
    if let Some(delay) = route.fault.delay
        && delay.share.includes(drawn())
    {
        tokio::time::sleep(delay.fixed).await;
    }
    match &route.fault.abort {
        Some(abort) if abort.share.includes(drawn()) => {
            Passed::Reply(Reply::abort(abort, context.facts.is_grpc()))
        }
        _ => Passed::On,
    }
}
