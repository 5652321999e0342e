//! HBONE peers made by hand against the real agent, as its client and as its server.
//!
//! Each test makes network namespaces of its own with a real `ztunnel`, so it needs root; `culvert_tests::peer` has
//! what they share. Every refusal is judged from both sides: what the peer or the app saw, that the other end saw
//! nothing, one line in the agent's log, and the metric.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod certificates;
mod envoy;
mod floods;
mod own_pod;
mod random;
mod refusals;
mod right_client;
mod right_server;
mod streams;
mod turns;
mod violations;
mod waypoint;
mod wrong_server;
