//! Why one workload can or cannot talk to another: what the data path decides for such a connection, step by step.
//!
//! Nothing is decided here. Each step is a call of the function that decides it for traffic ([`next_hop`],
//! [`inbound_hbone`], [`inbound_plaintext`], [`authz::authorize_traced`]) on the same snapshot; this module only asks
//! for the pair in question and keeps the answers as data. It sees the configuration, not the network: a packet filter
//! or an app that does not listen is not in the snapshot.
//!
//! Start with [`explain`]; `names` understands what was asked, `route` follows the connection, `views` shows both sides
//! and the endpoints, `reason` says it in a line, `advice` says what would change it, `text` is for people. The types are
//! in `answer`.
//!
//! [`next_hop`]: super::next_hop
//! [`inbound_hbone`]: super::inbound_hbone
//! [`inbound_plaintext`]: super::inbound_plaintext
//! [`authz::authorize_traced`]: crate::authz::authorize_traced

mod advice;
mod answer;
mod names;
mod reason;
mod route;
#[cfg(test)]
mod tests;
mod text;
mod views;

pub use answer::{
    EndpointView, Enforced, Explanation, Inbound, OtherPolicy, Outcome, Party, Route, RouteKind,
};
pub use names::NotUnderstood;
pub use text::Tone;

use crate::state::{Completeness, Snapshot};

/// Explains a connection from `source` to `destination`.
///
/// **Shape**: `source` is a pod (`namespace/name` or a name), a service, an address or a workload's UID; `destination`
/// the same with `:port`. Without a port the only one is taken.
///
/// **Errors**: a name is unknown or ambiguous, or a port is missing; says what there is.
pub fn explain(snapshot: &Snapshot, source: &str, destination: &str) -> Result<Explanation, NotUnderstood> {
    if snapshot.completeness == Completeness::Loading {
        return Err(NotUnderstood::Loading);
    }
    let from = names::source(snapshot, source)?;
    let to = names::destination(snapshot, destination, &from)?;
    let mut answer = route::follow(snapshot, &from, &to);
    advice::complete(&mut answer, snapshot, &from, &to);
    Ok(answer)
}
