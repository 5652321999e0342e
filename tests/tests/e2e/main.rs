//! Traffic through real agents in network namespaces. Needs root and the programs of `hack/setup.sh`.
//!
//! One program for all topics, as linking is slow; each test has a lab of its own and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod bench;
mod bench_modes;
mod change;
mod discovery;
mod dns;
mod ends;
mod failover;
mod fairness;
mod faults;
mod live;
mod load;
mod local_file;
mod log;
mod matrix;
mod memory;
mod no_ipv6;
mod node_agent;
mod nodowngrade;
mod policy;
mod protocols;
mod revoked;
mod routing;
mod sandbox;
mod successor;
mod two_processes;
mod waypoint;
mod waypoint_abuse;
mod waypoint_bypass;
mod waypoint_config;
mod waypoint_failures;
mod waypoint_replaced;
mod waypoint_requests;
mod waypoint_services;
mod waypoint_smuggling;
mod waypoint_stands;
mod waypoint_told;
mod waypoint_tunnels;
mod waypoint_wire;
mod why;
mod zds_client;
