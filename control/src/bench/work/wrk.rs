//! Closed loop by wrk: the next request as soon as the last is answered.
//!
//! What wrk counted is taken from a line that a script of ours prints at its end (`wrk.lua`), not from its text for
//! people, which rounds and has no p99.9. wrk corrects its latencies for the time that it was itself late.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::{Outcome, Run, path};
use crate::bench::mode::HTTP_PORT;
use crate::bench::record::Measure;

/// Start of the script's line.
const MARK: &str = "culvert-wrk ";
/// How much longer than asked wrk may take.
const SLACK: Duration = Duration::from_secs(20);
const SCRIPT: &str = include_str!("wrk.lua");

/// The script's line: counts, and microseconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    requests: u64,
    duration_us: u64,
    connect: u64,
    read: u64,
    write: u64,
    timeout: u64,
    /// Answers with a status of 400 and above; they are among `requests`.
    status: u64,
    min_us: f64,
    max_us: f64,
    latency_us: Vec<(f64, f64)>,
}

/// Requests bodies of `body` bytes over `connections` connections.
///
/// **Errors:** wrk is missing, did not end in time, or got no good answer; with what it printed.
pub(super) fn closed(run: &Run<'_>, connections: u32, body: u32) -> anyhow::Result<Outcome> {
    let script = run.client.dir()?.join("wrk.lua");
    fs::write(&script, SCRIPT).with_context(|| format!("write {}", script.display()))?;
    let url = format!("http://{}{}", SocketAddr::new(run.server, HTTP_PORT), path(body)?);
    // wrk takes whole seconds.
    let seconds = run.duration.as_secs_f64().round().max(1.0);
    let command = run
        .client
        .command("wrk")
        .args(["-t1".to_owned(), format!("-c{connections}"), format!("-d{seconds}s"), "-s".to_owned()])
        .arg(script)
        .arg(url);
    let done = command.finish(Duration::from_secs_f64(seconds) + SLACK)?;
    if !done.status.success() {
        bail!("wrk ended with {}: {}{}", done.status, done.stdout, done.stderr);
    }
    outcome(&done.stdout)
}

/// What wrk's output says.
///
/// **Errors:** the script's line is missing, is not of its form or contradicts itself, or no answer was good.
fn outcome(output: &str) -> anyhow::Result<Outcome> {
    let mut lines = output.lines().filter_map(|line| line.strip_prefix(MARK));
    let (Some(line), None) = (lines.next(), lines.next()) else {
        bail!("wrk did not say what it counted; it printed: {output}");
    };
    let counted: Counted =
        serde_json::from_str(line).with_context(|| format!("what wrk counted is not of its form: {line}"))?;
    let good = counted
        .requests
        .checked_sub(counted.status)
        .with_context(|| format!("wrk counted {} bad answers among {}", counted.status, counted.requests))?;
    let failed = [counted.connect, counted.read, counted.write, counted.timeout, counted.status]
        .into_iter()
        .fold(0_u64, u64::saturating_add);
    if good == 0 || counted.duration_us == 0 {
        bail!(
            "no request of wrk was answered well ({failed} failed: {} to connect, {} to read, {} to write, {} late, \
             {} with a bad status)",
            counted.connect,
            counted.read,
            counted.write,
            counted.timeout,
            counted.status
        );
    }
    let mut latency = vec![(0.0, counted.min_us)];
    latency.extend(counted.latency_us);
    latency.push((100.0, counted.max_us));
    if !latency.is_sorted() {
        bail!("latencies of wrk do not rise: {latency:?}");
    }
    let at = |percentile: f64| latency.iter().find(|(p, _)| *p == percentile).map(|(_, us)| *us);
    let rate = good as f64 / (counted.duration_us as f64 / 1e6);
    let mut values = BTreeMap::from([(Measure::RequestsPerSecond, rate), (Measure::Failed, failed as f64)]);
    for (measure, percentile) in [(Measure::P50Us, 50.0), (Measure::P99Us, 99.0), (Measure::P999Us, 99.9)] {
        let us = at(percentile).with_context(|| format!("wrk told no {percentile}th percentile"))?;
        values.insert(measure, us);
    }
    Ok(Outcome { units: good as f64, values, latency })
}
