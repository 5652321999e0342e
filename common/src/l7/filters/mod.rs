//! What each request passes before it goes anywhere: one list, in the order in which it is applied. A filter is a file.
//!
//! Filters decide and change nothing but what is said of the answer: who calls waits for a delay, and tells.

mod authorize;
mod cors;
mod fault;

use std::time::Duration;

use http::HeaderMap;

use super::{Facts, Reply};
use crate::authz::http::Decision;
use crate::model::l7::Route;

/// What a filter sees, and what it says of a request beside whether it goes on.
pub(super) struct Context<'a> {
    pub(super) facts: &'a Facts<'a>,
    /// Of the policies.
    pub(super) decision: &'a Decision<'a>,
    pub(super) route: Option<&'a Route>,
    /// Makes random numbers.
    pub(super) draw: &'a mut dyn FnMut() -> u64,
    /// Time that is lost first.
    pub(super) delay: Option<Duration>,
    /// Headers for the answer.
    pub(super) response: HeaderMap,
}

/// Whether a request goes on.
#[derive(Debug)]
pub enum Passed {
    /// It does.
    On,
    /// It is answered here.
    Reply(Reply),
    /// It is answered here, and no route changes the answer.
    Untouched(Reply),
}

/// All filters, in their order.
#[derive(Clone, Copy)]
enum Filter {
    Authorize,
    Fault,
    Cors,
}

const ORDER: [Filter; 3] = [Filter::Authorize, Filter::Fault, Filter::Cors];

/// Applies the filters until one answers.
pub(super) fn run(context: &mut Context<'_>) -> Passed {
    for filter in ORDER {
        let passed = match filter {
            Filter::Authorize => authorize::apply(context),
            Filter::Fault => fault::apply(context),
            Filter::Cors => cors::apply(context),
        };
        if !matches!(passed, Passed::On) {
            return passed;
        }
    }
    Passed::On
}
