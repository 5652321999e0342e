//! Faults that a route makes on purpose: the delay first, then the answer in place of the upstream's.

use super::{Context, Passed};
use crate::l7::Reply;
use crate::model::l7::Fraction;

pub(super) fn apply(context: &mut Context<'_>) -> Passed {
    let Some(route) = context.route else { return Passed::On };
    let mut is_drawn =
        |share: Fraction| share.includes(u32::try_from((context.draw)() % 1_000_000).unwrap_or_default());
    context.delay = route.fault.delay.filter(|delay| is_drawn(delay.share)).map(|delay| delay.fixed);
    match &route.fault.abort {
        Some(abort) if is_drawn(abort.share) => Passed::Reply(Reply::abort(abort, context.facts.is_grpc())),
        _ => Passed::On,
    }
}
