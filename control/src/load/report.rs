//! What a load has seen.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{Failure, LoadError};

/// Percentiles of a distribution, for a plot.
pub const PERCENTILES: [f64; 15] =
    [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 90.0, 95.0, 99.0, 99.9, 99.99];

/// Longest latency that is told apart, in nanoseconds: ten minutes.
const LONGEST: u64 = 600_000_000_000;
/// Shortest difference that matters, in nanoseconds.
const FINEST: u64 = 100;

/// What a load has seen. The warm-up is in nothing but `warm_up_answered` and `warm_up_failed`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Whom it asked.
    pub target: String,
    /// Requests a second that were asked for; none in a closed loop.
    pub asked_per_second: Option<u32>,
    /// Requests a second that were answered well.
    pub answered_per_second: f64,
    /// Seconds from the first request's due time to the end, or to the last answer if that is later.
    pub seconds: f64,
    /// Whether it went on for as long as asked.
    pub complete: bool,
    /// Requests that were due.
    pub due: u64,
    /// Those that were answered well.
    pub answered: u64,
    /// The others.
    pub failed: u64,
    /// The others by reason; all reasons are named.
    pub failures: BTreeMap<Failure, u64>,
    /// Latency of answered requests, from when they were due to the last byte, in µs.
    pub latency_us: LatencyUs,
    /// The same as pairs of percentile (0 to 100) and µs, rising.
    pub distribution: Vec<(f64, f64)>,
    /// How much of that passed before a connection was free and the request was sent, in µs.
    pub unsent_us: LatencyUs,
    /// Most connections at a time.
    pub connections: u32,
    /// Connections made in all.
    pub connections_made: u64,
    /// Connections that could not be made before there was a request for them.
    pub connections_failed: u64,
    /// Answered requests of the warm-up.
    pub warm_up_answered: u64,
    /// Failed requests of the warm-up.
    pub warm_up_failed: u64,
    /// CPU of this program for one request of all, in µs.
    pub own_cpu_us: f64,
}

/// A distribution in a few figures, in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencyUs {
    /// Least.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Half are under it.
    pub p50: f64,
    /// 90 % are under it.
    pub p90: f64,
    /// 99 % are under it.
    pub p99: f64,
    /// 99.9 % are under it.
    #[serde(rename = "p99.9")]
    pub p999: f64,
    /// Most.
    pub max: f64,
}

/// Times, in nanoseconds, told apart to three digits.
#[derive(Debug)]
pub(super) struct Times(Histogram<u64>);

impl Times {
    pub(super) fn new() -> Result<Self, LoadError> {
        let wrong = |e| LoadError::Plan { wrong: format!("no histogram: {e}") };
        Ok(Self(Histogram::new_with_bounds(FINEST, LONGEST, 3).map_err(wrong)?))
    }

    pub(super) fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    pub(super) fn summary(&self) -> LatencyUs {
        if self.0.is_empty() {
            return LatencyUs::default();
        }
        LatencyUs {
            min: self.at(0.0),
            mean: self.0.mean() / 1e3,
            p50: self.at(50.0),
            p90: self.at(90.0),
            p99: self.at(99.0),
            p999: self.at(99.9),
            max: self.at(100.0),
        }
    }

    pub(super) fn distribution(&self) -> Vec<(f64, f64)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        PERCENTILES.into_iter().chain([100.0]).map(|percentile| (percentile, self.at(percentile))).collect()
    }

    /// Microseconds, to a tenth.
    fn at(&self, percentile: f64) -> f64 {
        let nanoseconds = match percentile {
            0.0 => self.0.min(),
            100.0 => self.0.max(),
            _ => self.0.value_at_percentile(percentile).min(self.0.max()),
        };
        (nanoseconds as f64 / 100.0).round() / 10.0
    }
}

impl Report {
    fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = match self.asked_per_second {
            Some(rate) => format!("{rate} requests/s asked"),
            None => "as fast as answered".to_owned(),
        };
        writeln!(
            f,
            "{}: {asked}, {:.1} answered/s for {:.1} s",
            self.target, self.answered_per_second, self.seconds
        )?;
        write!(f, "  {} requests due, {} answered, {} failed", self.due, self.answered, self.failed)?;
        for (number, (failure, count)) in self.failures.iter().filter(|(_, count)| **count > 0).enumerate() {
            write!(f, "{} {count} {}", if number == 0 { ":" } else { "," }, failure.text())?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary(f)?;
        let from =
            if self.asked_per_second.is_some() { "from when it was due" } else { "from when it began" };
        if self.answered > 0 {
            writeln!(f, "  latency, {from}, in µs:")?;
            line(f, &self.latency_us)?;
        }
        if self.asked_per_second.is_some() && self.due > 0 {
            writeln!(f, "  of that before it was sent:")?;
            line(f, &self.unsent_us)?;
        }
        write!(f, "  {} connections made for {} at a time", self.connections_made, self.connections)?;
        if self.connections_failed > 0 {
            write!(f, ", {} could not be made", self.connections_failed)?;
        }
        writeln!(f, "; {:.1} µs of own CPU per request", self.own_cpu_us)?;
        if self.warm_up_failed > 0 {
            writeln!(f, "  {} requests failed during the warm-up", self.warm_up_failed)?;
        }
        if !self.complete {
            writeln!(f, "  stopped before its end")?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, times: &LatencyUs) -> fmt::Result {
    writeln!(
        f,
        "    p50 {:.0}  p90 {:.0}  p99 {:.0}  p99.9 {:.0}  max {:.0}  (mean {:.0}, min {:.0})",
        times.p50, times.p90, times.p99, times.p999, times.max, times.mean, times.min
    )
}
