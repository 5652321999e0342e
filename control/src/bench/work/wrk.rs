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
    if !latency.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from wrk 4.1.0 against nginx, 16 connections.
    const GOOD: &str = "Running 1s test @ http://127.0.0.1:18099/100\n  1 threads and 16 connections\n  \
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   246.73us  287.83us   4.40ms   95.82%\n    \
        Req/Sec    55.38k     6.26k   66.36k    63.64%\n  60573 requests in 1.10s, 14.38MB read\n\
        Requests/sec:  55064.51\nTransfer/sec:     13.08MB\n\n\
        culvert-wrk {\"requests\":60573,\"duration_us\":1100037,\"connect\":0,\"read\":0,\"write\":0,\"timeout\":0,\
        \"status\":0,\"min_us\":25,\"max_us\":4404,\"latency_us\":[[10,133],[20,158],[30,172],[40,183],[50,194],[60,206],\
        [70,224],[75,233],[80,243],[90,299],[95,456],[99,1707],[99.9,3662],[99.99,4239]]}\n";

    fn changed(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replace(from, to)
    }

    #[test]
    fn what_wrk_counted_is_read() {
        let outcome = outcome(GOOD).unwrap();
        assert_eq!(outcome.units, 60_573.0);
        let value = |measure| outcome.values[&measure];
        assert_eq!(value(Measure::RequestsPerSecond).round(), 55_065.0, "as wrk's own text says");
        assert_eq!((value(Measure::P50Us), value(Measure::P99Us)), (194.0, 1_707.0));
        assert_eq!((value(Measure::P999Us), value(Measure::Failed)), (3_662.0, 0.0));
        assert_eq!((outcome.latency.len(), outcome.latency[0]), (16, (0.0, 25.0)));
        assert_eq!(outcome.latency[15], (100.0, 4_404.0));
    }

    #[test]
    fn failures_at_the_socket_and_bad_answers_are_failed() {
        let text = changed("\"connect\":0,\"read\":0,\"write\":0", "\"connect\":1,\"read\":20,\"write\":300");
        let outcome = outcome(&text.replace("\"status\":0", "\"status\":573")).unwrap();
        assert_eq!((outcome.units, outcome.values[&Measure::Failed]), (60_000.0, 894.0));
    }

    #[test]
    fn an_output_that_is_not_of_its_form_is_no_figure() {
        for (text, wrong) in [
            (String::new(), "wrk did not say what it counted"),
            (changed("culvert-wrk {", "{"), "wrk did not say"),
            (GOOD.repeat(2), "wrk did not say"),
            (changed("\"requests\":60573,", ""), "not of its form"),
            (changed("\"requests\":60573", "\"requests\":-1"), "not of its form"),
            (changed("\"max_us\"", "\"most_us\""), "not of its form"),
            (changed("\"status\":0", "\"status\":60574"), "60574 bad answers among 60573"),
            (
                changed("\"status\":0", "\"status\":60573"),
                "no request of wrk was answered well (60573 failed",
            ),
            (changed("\"duration_us\":1100037", "\"duration_us\":0"), "no request of wrk"),
            (changed("[50,194]", "[50,94]"), "do not rise"),
            (changed("[99.9,3662],", ""), "no 99.9th percentile"),
        ] {
            let error = format!("{:#}", outcome(&text).unwrap_err());
            assert!(error.contains(wrong), "{wrong}: {error}");
        }
    }
}
