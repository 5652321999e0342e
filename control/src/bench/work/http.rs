//! Load of our own: constant rates, and a connection for each request.
//!
//! Both need what no packaged tool does. wrk, hey and httperf wait for answers before they send on, so that a stalled
//! server is asked less; h2load's rate is bounded by its connections and it tells no percentiles. For new connections
//! wrk's clock starts once the connection is made, which leaves out what is to be measured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{Outcome, Run, path};
use crate::bench::mode::HTTP_PORT;
use crate::bench::record::Measure;
use crate::load::{self, Idle, Plan, Report, Target};

/// Bytes of the answers' bodies.
const BODY: u32 = 100;
/// A request that takes longer has failed; it is also how long a sample may be late.
const LIMIT: Duration = Duration::from_secs(2);
/// Longest warm-up; of a short sample it is a fifth.
const WARM_UP_MAX: Duration = Duration::from_millis(500);

/// A constant rate.
///
/// **Errors:** no connection could be made, or nothing was answered well.
pub(super) fn open(run: &Run<'_>, rate: u32, connections: u32) -> anyhow::Result<Outcome> {
    let report = perform(run, &plan(run, Some(rate), connections)?)?;
    let mut outcome = outcome(&report)?;
    outcome.values.insert(Measure::AskedPerSecond, f64::from(rate));
    outcome.values.insert(Measure::RequestsPerSecond, report.answered_per_second);
    Ok(outcome)
}

/// A connection for each request, so many at a time.
///
/// **Errors:** as [`open`].
pub(super) fn new_connections(run: &Run<'_>, concurrency: u32) -> anyhow::Result<Outcome> {
    let plan = Plan { close: true, ..plan(run, None, concurrency)? };
    let report = perform(run, &plan)?;
    let mut outcome = outcome(&report)?;
    outcome.values.insert(Measure::ConnectionsPerSecond, report.answered_per_second);
    Ok(outcome)
}

/// Opens `connections` keep-alive connections, has one request answered on each, and leaves them idle.
///
/// **Errors:** not all could be opened.
pub fn hold_idle(connections: u32, run: &Run<'_>) -> anyhow::Result<Idle> {
    let target = target(run)?;
    let idle = run.client.run(|| Idle::open(&target, connections, LIMIT))??;
    if idle.failed() > 0 {
        bail!("{} of {connections} idle connections could not be opened: {:?}", idle.failed(), idle.failures);
    }
    Ok(idle)
}

fn target(run: &Run<'_>) -> anyhow::Result<Target> {
    Ok(Target::new(SocketAddr::new(run.server, HTTP_PORT), path(BODY)?))
}

fn plan(run: &Run<'_>, rate: Option<u32>, connections: u32) -> anyhow::Result<Plan> {
    Ok(Plan {
        target: target(run)?,
        rate,
        connections,
        close: false,
        duration: run.duration,
        warm_up: (run.duration / 5).min(WARM_UP_MAX),
        limit: LIMIT,
    })
}

fn perform(run: &Run<'_>, plan: &Plan) -> anyhow::Result<Report> {
    let never = AtomicBool::new(false);
    run.client.run(|| load::run(plan, &never))?.context("make load")
}

fn outcome(report: &Report) -> anyhow::Result<Outcome> {
    if report.answered == 0 {
        bail!("no request was answered well: {report}");
    }
    let latency = &report.latency_us;
    let values = BTreeMap::from([
        (Measure::P50Us, latency.p50),
        (Measure::P99Us, latency.p99),
        (Measure::P999Us, latency.p999),
        (Measure::Failed, (report.failed + report.warm_up_failed) as f64),
    ]);
    // What the warm-up's requests cost is in the proxies' CPU as well.
    let units = (report.answered + report.warm_up_answered) as f64;
    Ok(Outcome { units, values, latency: report.distribution.clone() })
}
