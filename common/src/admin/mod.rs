//! The pages an operator's tools read, over HTTP/1.1 on the control runtime: readiness (15021) and metrics (15020), which
//! every pod that reaches the agent may read, and the admin pages (15000), on loopback only.
//!
//! Each read is bounded in time and size and the number of connections is bounded; only admin pages that are asked for by
//! POST change anything, and none answers a request whose Host or Origin is not loopback. Nothing here knows how traffic
//! flows: it reads what others tell, and the binaries bring the handlers of their pages.
//!
//! Start with [`Readiness`], then [`Route`] and [`serve_admin`].

mod accept;
mod denials;
mod dump;
mod http;
mod pages;
mod readiness;
mod routes;
mod stats;

pub use denials::{RefusalPage, RefusalView, recent_of, refusals};
pub use dump::{DumpParts, dump, dump_certificates, json_answer, json_list};
pub use http::{Answer, Answering, Body, Request, text, typed};
pub use pages::{denials_page, logging_page, why_page};
pub use readiness::{Pending, Readiness, serve_readiness};
pub use routes::{Route, Routes, serve_admin};
pub use stats::serve_stats;
