//! Policies: DENY, ALLOW; AUDIT and dry-run are told.

use culvert_common::authz::http::authorize;
use culvert_common::l7::{Failure, Reply};

use super::{Context, Passed};

pub(super) fn apply(context: &Context<'_>) -> Passed {
    let decision = authorize(context.policies, context.facts);
    match decision.denial() {
        None => Passed::On,
        Some(denial) => Passed::Reply(Reply::failure(&Failure::Denied(denial.id()), context.facts.is_grpc())),
    }
}
