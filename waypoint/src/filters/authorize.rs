//! Policies: DENY, ALLOW; AUDIT and dry-run are told.

use culvert_common::authz::http::authorize;
use culvert_common::l7::{Failure, Reply};

use super::{Context, Passed};
use crate::log;

pub(super) fn apply(context: &Context<'_>) -> Passed {
    let decision = authorize(context.policies, context.facts);
    log::tried_out(context.stage, Some(context.facts), &decision);
    match decision.denial() {
        None => Passed::On,
        Some(denial) => {
            log::denied(context.stage, context.facts, denial.to_string());
            Passed::Reply(Reply::failure(&Failure::Denied(denial.id()), context.facts.is_grpc()))
        }
    }
}
