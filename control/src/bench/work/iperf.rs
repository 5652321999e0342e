//! Bulk by iperf3: what the receiver got.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::{Outcome, Run};
use crate::bench::mode::BULK_PORT;
use crate::bench::record::Measure;
use crate::lab::pause;

/// How much longer than asked iperf3 may take.
const SLACK: Duration = Duration::from_secs(20);
/// How long the server may be busy with the end of the last run.
const BUSY_MAX: Duration = Duration::from_secs(5);
const BUSY: &str = "the server is busy";
const GIB: f64 = (1_u64 << 30) as f64;

#[derive(Debug, Deserialize)]
struct Report {
    error: Option<String>,
    #[serde(default)]
    end: End,
}

#[derive(Debug, Default, Deserialize)]
struct End {
    /// Of all streams, as the receiver counted; it comes from the server unless that sends.
    sum_received: Option<Sum>,
}

#[derive(Debug, Deserialize)]
struct Sum {
    bytes: u64,
    seconds: f64,
}

/// Sends as fast as it goes over `streams` connections, from the server if `down`.
///
/// **Errors:** iperf3 is missing, did not end in time, or says what went wrong.
pub(super) fn bulk(run: &Run<'_>, streams: u32, down: bool) -> anyhow::Result<Outcome> {
    let seconds = run.duration.as_secs_f64().round().max(1.0);
    let start = Instant::now();
    loop {
        let (server, port) = (run.server.to_string(), BULK_PORT.to_string());
        let command = run
            .client
            .command("iperf3")
            .args(["-J", "-c", &server, "-p", &port, "-t", &seconds.to_string(), "-P", &streams.to_string()])
            .args(["--connect-timeout", "5000"])
            .args(down.then_some("-R"));
        let done = command.finish(Duration::from_secs_f64(seconds) + SLACK)?;
        match outcome(&done.stdout) {
            // It serves one test at a time, and may not have seen the end of the last one yet.
            Err(e) if e.to_string().contains(BUSY) && start.elapsed() < BUSY_MAX => {
                pause(Duration::from_millis(50));
            }
            Err(e) => return Err(e.context(format!("iperf3 ended with {}{}", done.status, done.stderr))),
            Ok(outcome) => return Ok(outcome),
        }
    }
}

/// What iperf3's JSON says.
fn outcome(output: &str) -> anyhow::Result<Outcome> {
    let report: Report = serde_json::from_str(output).context("iperf3 printed no report")?;
    if let Some(error) = report.error {
        bail!("{error}");
    }
    let sum = report.end.sum_received.context("iperf3's report lacks what was received")?;
    if sum.bytes == 0 || !sum.seconds.is_normal() || sum.seconds < 0.0 {
        bail!("nothing was received in {} s", sum.seconds);
    }
    let bytes = sum.bytes as f64;
    let values = BTreeMap::from([
        (Measure::GbitPerSecond, bytes * 8.0 / 1e9 / sum.seconds),
        // A stream that breaks is an error of the whole run.
        (Measure::Failed, 0.0),
    ]);
    Ok(Outcome { units: bytes / GIB, values, latency: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a report of iperf3 3.12, two streams.
    const GOOD: &str = r#"{"start": {"version": "iperf 3.12"}, "intervals": [], "end": {"streams": [], "sum_sent":
        {"start": 0, "end": 1.5, "seconds": 1.5, "bytes": 3221225473, "bits_per_second": 17179869189.3, "retransmits": 0,
        "sender": true}, "sum_received": {"start": 0, "end": 1.5, "seconds": 1.5, "bytes": 3221225472, "bits_per_second":
        17179869184.0, "sender": true}, "cpu_utilization_percent": {"host_total": 41.5}}}"#;

    #[test]
    fn what_the_receiver_got_is_counted() {
        let outcome = outcome(GOOD).unwrap();
        assert_eq!(outcome.units, 3.0, "GiB");
        assert_eq!(outcome.values[&Measure::GbitPerSecond], 17.179869184);
        assert_eq!(outcome.values[&Measure::Failed], 0.0);
    }

    #[test]
    fn errors_are_told_and_nothing_is_no_figure() {
        let nothing = GOOD.replace("\"bytes\": 3221225472", "\"bytes\": 0");
        for (text, wrong) in [
            (
                r#"{"end": {}, "error": "unable to connect to server: Connection refused"}"#,
                "Connection refused",
            ),
            (r#"{"end": {}, "error": "the server is busy running a test. try again later"}"#, BUSY),
            (r#"{"end": {}}"#, "lacks what was received"),
            ("", "printed no report"),
            (nothing.as_str(), "nothing was received"),
        ] {
            let error = format!("{:#}", outcome(text).unwrap_err());
            assert!(error.contains(wrong), "{error}");
        }
    }
}
