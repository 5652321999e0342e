//! Support of the end-to-end tests: a lab with the agents of this source tree, servers and clients inside it, and the
//! check that nothing is left behind.
//!
//! Everything here panics with what was seen, as a test does. Start with [`mesh::Mesh`]; `net.rs` has the servers and
//! clients, `documents.rs` the YAML.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod binary;
pub mod control_plane;
pub mod dice;
pub mod dns;
pub mod documents;
pub mod enrolment;
pub mod mesh;
pub mod net;
pub mod peer;
pub mod stand;
pub mod traffic;
pub mod waypoint;
pub mod wire;
pub mod zds_agent;
