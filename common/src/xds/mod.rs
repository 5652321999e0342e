//! State from a control plane that speaks delta xDS: istiod, or one of its protocol.
//!
//! Decides what is asked, what of an answer is taken, and when the state is published. What a resource means for a
//! connection is decided elsewhere, from the snapshot. From the wire inwards:
//!
//! - [`client`]: the task; connections, back-off, publications. Start with [`client::Client::run`].
//! - [`session`]: one stream's questions and answers, pure; [`wire`] reads an answer piece by piece.
//! - [`on_demand`]: look-ups of what is not known yet.
//! - [`store`]: what was said, by name; services get their endpoints from the workloads. Pure.
//! - `journal`: the last state on disk, for the next start.
//! - [`translate`]: one resource to one item of the model, pure; [`proto`] are its messages.
//!
//! Everything that a server sends is bounded: a message, a resource, and all that is kept. What cannot be used leaves
//! what was there before.

mod backoff;
pub mod client;
mod journal;
pub mod on_demand;
pub mod proto;
pub mod session;
pub mod store;
pub mod translate;
pub mod wire;
