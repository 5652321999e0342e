//! HTTP/1.1 load whose latencies are true: at a constant rate, each counted from the moment it was due.
//!
//! A generator that waits for an answer before it sends the next request stops measuring exactly while the server stalls
//! (coordinated omission): a stall of a second is one slow request to it, not the thousand that came due meanwhile. Here
//! the `schedule` alone says when a request is due. One that is due while all connections are busy waits for the first
//! that is free, in order, and its wait is part of its latency. Requests that wait are a range of numbers, so a server
//! that never answers costs no memory; one that has no answer within the limit has failed and is counted as such.
//! Nothing is sent twice: a failure is counted where the socket tells it.
//!
//! One thread, without a runtime: `epoll`, one timer for the whole schedule, and per request one write and one read.
//! Start at `Engine::run` in `engine`; `slot` is one connection, `answer` reads what a server sends, `report` is what
//! has been seen. `idle` opens connections and holds them.
//!
//! It knows nothing of meshes: it is `culvert load`, and the benchmark's open loop.

mod answer;
mod engine;
mod error;
mod idle;
mod report;
mod schedule;
mod slot;
mod target;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use error::{Failure, LoadError};
pub use idle::Idle;
pub use report::{LatencyUs, PERCENTILES, Report};
pub use target::Target;

/// Most connections.
pub const CONNECTIONS_MAX: u32 = 20_000;
/// Most requests a second that can be asked for.
pub const RATE_MAX: u32 = 1_000_000;

/// What load there is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whom to ask.
    pub target: Target,
    /// Requests a second; `None` sends the next one as soon as the last is answered.
    pub rate: Option<u32>,
    /// Most connections at a time, 1 to [`CONNECTIONS_MAX`].
    pub connections: u32,
    /// Whether each request gets a connection of its own, which the server closes.
    pub close: bool,
    /// How long requests come due, the warm-up included.
    pub duration: Duration,
    /// The first part of it, whose latencies and failures are not counted.
    pub warm_up: Duration,
    /// A request without an answer for so long, counted from when it was due, has failed.
    pub limit: Duration,
}

/// Runs the load on this thread, until the plan's end or shortly after `stop` is set.
///
/// **Errors:** no connection could be made; the plan cannot be; too few file descriptors. A request that fails is counted in
/// the report instead.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Report, LoadError> {
    check(plan)?;
    engine::Engine::new(plan, stop)?.run()
}

fn check(plan: &Plan) -> Result<(), LoadError> {
    let wrong = if !(1..=CONNECTIONS_MAX).contains(&plan.connections) {
        format!("{} connections; 1 to {CONNECTIONS_MAX} are possible", plan.connections)
    } else if plan.rate.is_some_and(|rate| !(1..=RATE_MAX).contains(&rate)) {
        format!("{} requests a second; 1 to {RATE_MAX} are possible", plan.rate.unwrap_or(0))
    } else if plan.warm_up >= plan.duration {
        format!("a warm-up of {:?} leaves nothing of {:?}", plan.warm_up, plan.duration)
    } else if plan.limit.is_zero() {
        "a time limit of nothing".to_owned()
    } else {
        return Ok(());
    };
    Err(LoadError::Plan { wrong })
}

#[cfg(test)]
mod tests;
