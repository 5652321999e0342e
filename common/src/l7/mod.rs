//! What becomes of one HTTP request at a waypoint: pure decisions over [`crate::model::l7`].
//!
//! One file per decision. Time, randomness and what others know are arguments; nothing waits, nothing is logged, and what
//! does not change is not copied. The data path acts on these, `culvert why` prints them. Must not know sockets, bodies or
//! HTTP's framing; the snapshot is known to [`explain`] alone.
//!
//! In the order in which a request meets them: [`normalize`], [`find`] with [`Facts`]; [`plan()`] and [`Act`], which have
//! destination, `authz::http`, faults, [`cors`] and what the route does in their order; [`balance`], [`Changes`], [`timeout`],
//! [`breaker`], [`retry`] and [`outlier`]. What is answered here in place of the upstream is in one table: [`Failure`].

pub mod balance;
pub mod breaker;
pub mod cors;
pub mod explain;
mod failure;
mod filters;
#[cfg(test)]
pub(crate) mod fixtures;
mod flags;
mod format;
mod forwarded;
mod headers;
mod hygiene;
mod matching;
pub mod outlier;
mod path;
mod plan;
mod redirect;
mod reply;
pub mod retry;
mod rewrite;
pub mod timeout;
mod trace;

pub use crate::authz::http::{Connection, Facts};
pub use crate::model::l7::AboveRoot;
pub use failure::{Failure, FailureReply, Reset};
pub use filters::Passed;
pub use flags::{Flag, Flags};
pub use format::{BadSubstitution, Values, check as check_value};
pub use forwarded::forwarded_for;
pub use headers::Edits;
pub use hygiene::{
    BadConnection, Switch, add_client_cert, add_request_headers, add_server, add_service_time, clean_request,
    clean_response, remove_hop_by_hop,
};
pub use matching::{Found, by_weight, find, is_match};
pub use path::{BadPath, normalize};
pub use plan::{Act, Changes, Chosen, Plan, plan};
pub use redirect::location;
pub use reply::{Reply, grpc_status, http_status};
pub(crate) use rewrite::{new_authority, path_rewrite, rewritten};
pub use trace::{TraceContext, trace_context};
