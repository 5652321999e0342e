//! What Culvert's binaries share. A module may name only modules of lower rows (`tests/tests/tidy.rs` checks it):
//!
//! | row | modules | may know |
//! | --- | --- | --- |
//! | 0 | `types`, `task` | std, tokio's task types |
//! | 1 | `model`, `config`, `crypto` | plain data; checked settings; the one choice of cryptography |
//! | 2 | `telemetry` | metrics, access log, logging; no decisions |
//! | 3 | `authz`, `state`, `grpc` | pure evaluation; the one immutable snapshot; calls to a control plane |
//! | 4 | `decide`, `l7`, `net`, `identity` | pure decisions on connections and on HTTP requests; sockets, namespaces, rules; certificates |
//! | 5 | `dns`, `hbone`, `source`, `xds`, `zds` | answers to pods' queries; the tunnel; where the state comes from; how the node agent's two processes talk |
//! | 6 | `admin` | readiness and metrics pages |

#![warn(missing_docs)]

pub mod types;

pub mod task;

pub mod model;

pub mod config;
pub mod crypto;

pub mod telemetry;

pub mod authz;
pub mod grpc;
pub mod state;

pub mod decide;
pub mod identity;
pub mod l7;
pub mod net;

pub mod dns;
pub mod hbone;
pub mod source;
pub mod xds;
pub mod zds;

pub mod admin;
