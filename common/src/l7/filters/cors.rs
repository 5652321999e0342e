//! Cross-origin requests: preflights are answered, other answers are marked.

use bytes::Bytes;
use http::StatusCode;

use super::{Context, Passed};
use crate::l7::Reply;
use crate::l7::cors::{Origin, allow, check, preflight};
use crate::model::l7::{Route, RouteAction};

pub(super) fn apply(context: &mut Context<'_>) -> Passed {
    // What a route answers itself says nothing of origins.
    let forwards = |route: &&Route| matches!(route.action, RouteAction::Forward(_));
    let Some(cors) = context.route.filter(forwards).and_then(|route| route.cors.as_ref()) else {
        return Passed::On;
    };
    match check(cors, context.facts) {
        Origin::None => Passed::On,
        Origin::Allowed(origin) => {
            allow(cors, origin, &mut context.response);
            Passed::On
        }
        Origin::Preflight(origin) => {
            let mut reply = Reply::new(StatusCode::OK, Bytes::new(), false);
            reply.headers.extend(preflight(cors, origin, context.facts));
            reply.details = "cors_response".into();
            Passed::Untouched(reply)
        }
    }
}
