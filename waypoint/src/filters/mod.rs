//! What each request passes before it goes anywhere: one list, in the order in which it is applied. A filter is a file.

mod authorize;
mod cors;
mod fault;

use culvert_common::l7::{Facts, Flags, Reply};
use culvert_common::model::l7::{Policies, Route};
use http::HeaderMap;

use crate::serve::Stage;

/// What a filter sees.
pub(crate) struct Context<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) facts: &'a Facts<'a>,
    pub(crate) policies: &'a Policies,
    pub(crate) route: Option<&'a Route>,
    /// Headers for the answer.
    pub(crate) response: &'a mut HeaderMap,
    /// What is told of the request.
    pub(crate) flags: &'a mut Flags,
}

/// Whether a request goes on.
pub(crate) enum Passed {
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
///
/// **Cancel safety**: a client that goes while a fault delays its request ends it.
pub(crate) async fn run(context: &mut Context<'_>) -> Passed {
    for filter in ORDER {
        let passed = match filter {
            Filter::Authorize => authorize::apply(context),
            Filter::Fault => fault::apply(context).await,
            Filter::Cors => cors::apply(context),
        };
        if !matches!(passed, Passed::On) {
            return passed;
        }
    }
    Passed::On
}
