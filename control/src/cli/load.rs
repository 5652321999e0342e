//! `culvert load`: HTTP load at a constant rate with true latencies, or connections that are opened and held.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use culvert::lab::pause;
use culvert::load::{self, CONNECTIONS_MAX, Idle, Plan, RATE_MAX, Target};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// Exit status when there was no load at all.
const NO_LOAD: u8 = 2;
const LOAD_DEFAULT: Duration = Duration::from_secs(10);

/// Ask an HTTP server at a constant rate, and tell the latency its users would see
///
/// Requests are due at even distances, whether or not the server answers, and each one's latency counts from when it was
/// due (no coordinated omission). One that is due while all connections are busy waits for the first that is free. A request
/// that fails is counted by its reason and never repeated. Without --rate the next request follows each answer. TARGET is
/// asked over HTTP/1.1 in plaintext: http://HOST[:PORT][/PATH], or an address with a port.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    culvert load --rate 1000 http://10.96.1.1/             1,000 requests/s for 10 s over 32 connections\n  \
    culvert load --rate 200 --duration 5m [fd00::7]:8080   Ctrl-C prints what there is\n  \
    culvert load --close --connections 16 10.0.0.7:8080    a new connection for each request, 16 at a time\n  \
    culvert load --rate 5000 10.0.0.7:8080 -o json         for scripts\n  \
    culvert load --idle 1000 10.0.0.7:8080                 open 1,000 connections and hold them until Ctrl-C\n\n\
    Exit status: 0 if every request was answered, 1 if some failed, 2 if there was no load at all.")]
pub(crate) struct LoadArgs {
    /// Whom to ask
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Requests a second [default: the next one as soon as the last is answered]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    rate: Option<u32>,
    /// Most connections at a time
    #[arg(long, short, value_name = "N", default_value = "32", value_parser = connections())]
    connections: u32,
    /// Make a connection for each request, and let the server close it
    #[arg(long)]
    close: bool,
    /// How long, such as 500ms, 10s or 5m [default: 10s; with --idle until Ctrl-C or the end of a pipe as standard input]
    #[arg(long, short, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// First part of it that is not counted
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time)]
    warm_up: Duration,
    /// A request without an answer for so long has failed
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    timeout: Duration,
    /// Open so many connections with one request on each, and hold them
    #[arg(long, value_name = "N", value_parser = connections(), conflicts_with_all = ["rate", "close", "warm_up"])]
    idle: Option<u32>,
    /// text for people; json prints one object
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Text,
    Json,
}

fn connections() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX))
}

/// A number with its unit; seconds without one.
fn time(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(format!("{unit:?} is no unit; give ms, s, m or h")),
    };
    let number: f64 =
        number.parse().map_err(|_e| format!("{text:?} is no time, such as 500ms, 10s or 5m"))?;
    // A day is long enough, and leaves sums of times within their range.
    Some(number * seconds)
        .filter(|seconds| (0.0..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("{text} is longer than a day"))
}

/// Makes the load; what keeps it from being made goes to standard error.
pub(crate) fn run(args: &LoadArgs) -> ExitCode {
    let done = match args.idle {
        Some(count) => hold(args, count),
        None => ask(args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _nobody_to_tell = writeln!(std::io::stderr(), "culvert: {error:#}");
            ExitCode::from(NO_LOAD)
        }
    }
}

/// Whether every request was answered.
fn ask(args: &LoadArgs) -> anyhow::Result<bool> {
    let plan = Plan {
        target: args.target.clone(),
        rate: args.rate,
        connections: args.connections,
        close: args.close,
        duration: args.duration.unwrap_or(LOAD_DEFAULT),
        warm_up: args.warm_up,
        limit: args.timeout,
    };
    let stop = stop_on_signal()?;
    let report = load::run(&plan, &stop)?;
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Text => write!(out, "{report}")?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
        }
    }
    Ok(report.failed == 0)
}

/// Whether all connections were opened, and held to the end.
fn hold(args: &LoadArgs, count: u32) -> anyhow::Result<bool> {
    let stop = stop_on_signal()?;
    if args.duration.is_none() {
        stop_on_end_of_pipe(&stop);
    }
    let idle = Idle::open(&args.target, count, args.timeout)?;
    let tell = |text: String, open: usize| -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match args.output {
            Output::Text => writeln!(out, "{text}")?,
            Output::Json => writeln!(
                out,
                "{}",
                json!({ "open": open, "failed": idle.failed(), "failures": idle.failures })
            )?,
        }
        Ok(out.flush()?)
    };
    let mut text = format!("{}: {} connections open, {} failed", args.target, idle.opened(), idle.failed());
    for (failure, count) in idle.failures.iter().filter(|(_, count)| **count > 0) {
        text.push_str(&format!(", {count} {}", failure.text()));
    }
    tell(text, idle.opened())?;
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) && args.duration.is_none_or(|limit| start.elapsed() < limit) {
        pause(Duration::from_millis(50));
    }
    let held = idle.still_open();
    tell(format!("{held} of them were still open at the end"), held)?;
    Ok(idle.failed() == 0 && held == idle.opened())
}

/// Set by the first SIGINT, SIGTERM or SIGHUP; a second one ends the process as a shell would report it.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("watch for signals")?;
    let (mut int, mut term, mut hup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    let flag = Arc::clone(&stop);
    std::thread::spawn(move || {
        let mut wait = || {
            runtime.block_on(async {
                tokio::select! {
                    _ = int.recv() => 2,
                    _ = term.recv() => 15,
                    _ = hup.recv() => 1,
                }
            })
        };
        wait();
        flag.store(true, Ordering::Relaxed);
        let number = wait();
        std::process::exit(128 + number);
    });
    Ok(stop)
}

/// Ends with the program at the other end of standard input, if that is a pipe.
fn stop_on_end_of_pipe(stop: &Arc<AtomicBool>) {
    if !fs::metadata("/dev/stdin").is_ok_and(|stdin| stdin.file_type().is_fifo()) {
        return;
    }
    let flag = Arc::clone(stop);
    std::thread::spawn(move || {
        let _ended = std::io::copy(&mut std::io::stdin().lock().take(u64::MAX), &mut std::io::sink());
        flag.store(true, Ordering::Relaxed);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in
            [("500ms", 500), ("10s", 10_000), ("2", 2_000), ("1.5m", 90_000), ("1h", 3_600_000)]
        {
            assert_eq!(time(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "1d", "-1s", "1e9", "1.2.3s", "25h", "10 s"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
