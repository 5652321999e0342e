//! Cross-origin requests: preflights are answered, other answers are marked.

use bytes::Bytes;
use culvert_common::l7::Reply;
use culvert_common::l7::cors::{Origin, allow, check, preflight};
use http::StatusCode;

use super::{Context, Passed};

pub(super) fn apply(context: &mut Context<'_>) -> Passed {
    let Some(cors) = context.route.and_then(|route| route.cors.as_ref()) else { return Passed::On };
    match check(cors, context.facts) {
        Origin::None => Passed::On,
        Origin::Allowed(origin) => {
            allow(cors, origin, context.response);
            Passed::On
        }
        Origin::Preflight(origin) => {
            let mut reply = Reply::new(StatusCode::OK, Bytes::new(), false);
            reply.headers.extend(preflight(cors, origin));
            Passed::Reply(reply)
        }
    }
}
