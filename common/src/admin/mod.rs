//! The pages an operator's tools read: readiness (15021) and metrics (15020), over HTTP/1.1 on the control runtime.
//!
//! Both ports are open to every pod that reaches the agent, so each read is bounded in time and size and the number of
//! connections is bounded; nothing here changes state. It must not know how traffic flows: it reads what others tell.
//!
//! Start with [`Readiness`], then [`serve_readiness`] and [`serve_stats`].

mod http;
mod readiness;
mod stats;

pub use readiness::{Pending, Readiness, serve_readiness};
pub use stats::serve_stats;
