//! What goes over the wire, field by field: the discovery envelope, `istio.workload` and `istio.security`.
//!
//! Numbers and names are those of the protocol; nothing here knows what a field means. Fields that no decision reads
//! are left out, and unknown ones are skipped, as protobuf has it. **Source**: l4.md §4.1, §4.4, §4.7.
#![allow(missing_docs, reason = "the names are those of the protocol")]

pub mod discovery;
pub mod security;
pub mod workload;

/// Type URL of workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of authorization policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
