//! What each request passes before it goes anywhere: one list, in the order in which it is applied. A filter is a file.

mod authorize;
mod cors;
mod fault;

use culvert_common::l7::{Facts, Flags, Reply};
use culvert_common::model::l7::{Policies, Route};
use http::HeaderMap;

use crate::serve::Stage;

/// What a filter sees.
struct Context<'a> {
    stage: &'a Stage,
    facts: &'a Facts<'a>,
    policies: &'a Policies,
    route: Option<&'a Route>,
    /// Headers for the answer.
    response: &'a mut HeaderMap,
    flags: &'a mut Flags,
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
pub(crate) async fn run(
    stage: &Stage,
    facts: &Facts<'_>,
    policies: &Policies,
    route: Option<&Route>,
    (response, flags): (&mut HeaderMap, &mut Flags),
) -> Passed {
    let mut context = Context { stage, facts, policies, route, response, flags };
    for filter in ORDER {
        let passed = match filter {
            Filter::Authorize => authorize::apply(&context),
            Filter::Fault => fault::apply(&mut context).await,
            Filter::Cors => cors::apply(&mut context),
        };
        if !matches!(passed, Passed::On) {
            return passed;
        }
    }
    Passed::On
}
