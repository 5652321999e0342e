//! Policies: DENY, ALLOW. What AUDIT and dry-run say changes nothing.

use super::{Context, Passed};
use crate::l7::{Failure, Reply};

pub(super) fn apply(context: &Context<'_>) -> Passed {
    match context.decision.denial() {
        None => Passed::On,
        Some(denial) => Passed::Reply(Reply::failure(&Failure::Denied(denial.id()), context.facts.is_grpc())),
    }
}
