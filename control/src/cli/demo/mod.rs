//! `culvert demo`: the tunnel's main job on real traffic, told to a person step by step.
//!
//! `stage` builds the mesh and its programs, `steps` shows and checks one thing each, `figures` measures, `story` prints
//! and remembers what held; `waypoint` is another stage with steps of its own, `shop` its application, `picture` shows where
//! requests go. Nothing here is known to the agent: it reads the same files and sees the same traffic as anywhere else.

mod client;
mod figures;
mod picture;
mod shop;
mod stage;
mod steps;
mod story;
mod waypoint;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use super::paint::Paint;
use super::{interrupt, preflight};
use stage::Stage;
use story::Story;

/// Show two nodes' pods talking over mutual TLS, with real programs and no cluster
///
/// Builds network namespaces for two nodes and seven pods, runs nginx, redis and one agent per node in them, and shows
/// on IPv4 and IPv6: plaintext before enrolment, mutual TLS after, policy, reload, readiness, cost. Needs root, because
/// it makes network namespaces; it changes nothing else and removes all of them at the end.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sudo culvert demo\n  sudo culvert demo --waypoint    what a waypoint does with requests\n  sudo culvert demo --keep     leave it running, with a shell for each pod\n  \
    sudo culvert demo -o json    only the result, for scripts\n\nExit status: 0 if every check held, 1 if one did not, 2 if something is missing."
)]
pub(crate) struct DemoArgs {
    /// Show a waypoint: canary, header routing, rewrite, mirror, retries, a circuit, faults, timeouts, policies on requests
    #[arg(long, conflicts_with = "keep")]
    waypoint: bool,
    /// Leave everything running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// text tells the story; json prints one object at the end
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    /// No colours
    #[arg(long, env = "NO_COLOR", value_parser = FalseyValueParser::new())]
    no_color: bool,
    /// The agent's binary [default: beside this program]
    #[arg(long, env = "CULVERT_ZTUNNEL", value_name = "PATH")]
    ztunnel: Option<std::path::PathBuf>,
}

/// Without these there is no demo; `wrk` and `iperf3` only leave the figures out.
const PROGRAMS: [&str; 5] = ["ip", "nginx", "curl", "redis-server", "redis-cli"];

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Text,
    Json,
}

/// Runs the demo.
///
/// **Errors:** the stage could not be built; a check that did not hold is an exit code instead.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let coloured = args.output == Output::Text && !args.no_color && std::io::stdout().is_terminal();
    let paint = if coloured { Paint::Colour } else { Paint::Plain };
    let mut story = Story::new(args.output == Output::Text, paint);
    let ztunnel = args.ztunnel.clone().map_or_else(culvert::lab::find_ztunnel, Ok);
    let programs: &[&str] = if args.waypoint { &["ip"] } else { &PROGRAMS };
    let mut missing = preflight::missing(&ztunnel, programs);
    if let Some(path) = ztunnel.as_ref().ok().filter(|_| args.waypoint).map(|path| waypoint::binary(path))
        && !path.is_file()
    {
        missing.push(format!("no waypoint at {}; build it with cargo build -p waypoint", path.display()));
    }
    if !missing.is_empty() {
        story.missing(&missing)?;
        return Ok(ExitCode::from(2));
    }
    interrupt::watch(|| Box::new(|| "stopped".to_owned()))?;
    if args.waypoint {
        return show_waypoint(ztunnel?, &mut story, start);
    }
    let mut stage = Stage::build(ztunnel?).context("build the demo's nodes, pods and programs")?;
    story.cast(start.elapsed())?;
    for step in steps::STEPS {
        story.begin(step.title)?;
        if let Err(e) = (step.run)(&mut stage, &mut story) {
            // The agents' logs follow at the end.
            story.check(false, format!("{e:#}").lines().next().unwrap_or_default())?;
        }
    }
    if !story.held() {
        story.logs(&stage)?;
    }
    story.end(start.elapsed())?;
    if args.keep {
        story.keep(&stage)?;
        loop {
            std::thread::park();
        }
    }
    Ok(if story.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The demo of the waypoint.
fn show_waypoint(ztunnel: std::path::PathBuf, story: &mut Story, start: Instant) -> anyhow::Result<ExitCode> {
    let stage =
        waypoint::Stage::build(ztunnel).context("build the demo's nodes, pods, agents and waypoint")?;
    story.opening(
        "two nodes, a client, two versions of a cart and their waypoint, between real agents",
        start.elapsed(),
    )?;
    for step in waypoint::STEPS {
        story.begin(step.title)?;
        if start.elapsed() > waypoint::LONGEST {
            story
                .check(false, &format!("left out: the demo has taken longer than {:?}", waypoint::LONGEST))?;
            continue;
        }
        if let Err(e) = (step.run)(&stage, story) {
            story.check(false, format!("{e:#}").lines().next().unwrap_or_default())?;
        }
    }
    if !story.held() {
        story.quote("waypoint", &stage.end_of_log())?;
    }
    story.end(start.elapsed())?;
    Ok(if story.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
