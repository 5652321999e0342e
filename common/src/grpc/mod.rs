//! gRPC calls to a control plane: one connection, made anew by [`connect`], over our own TLS.
//!
//! Decides whom a connection is made to, whether the server is who it should be, what every call carries (token, headers)
//! and what of an answer is taken: its size is bounded before it is held. Must not know what is asked: discovery and the CA
//! are callers, and so is the decision when to connect again.
//!
//! - [`Target`]: address, roots and token. What is a file is read again for each connection or call, because it rotates.
//! - [`connect`]: TCP, TLS, HTTP/2, each with a limit; an error says which stage it was and what to check.
//! - [`Channel`]: calls on a connection, unary or streaming. `frame` is gRPC's framing, on HTTP/2 by hyper.

mod call;
mod connect;
mod error;
mod frame;
mod target;

pub use crate::config::Stamp;
pub use call::{Channel, Requests, Responses};
pub use connect::connect;
pub use error::{CallError, Code, ConnectError, TargetError};
pub use target::{Limits, Roots, Secret, Target, Token};
