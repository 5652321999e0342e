//! `culvert bench`: what is asked for, what is missing, and where the results go. What it does is in `culvert::bench`.

use std::fs;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use culvert::bench::keep::Keeper;
use culvert::bench::mode::{self, Mode};
use culvert::bench::plan::Pace;
use culvert::bench::progress::Progress;
use culvert::bench::record::Recording;
use culvert::bench::report::{self, Style};
use culvert::bench::run::{self, Asked};
use culvert::bench::work::{self, Kind, Work};
use culvert::bench::{about, compare, keep, stage};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{interrupt, preflight};

/// Compare Culvert with sidecars and with no mesh, under the same real load
///
/// Builds network namespaces for two nodes with a client's and a server's pod for each mode, sends the same work through
/// all of them in turn (wrk, iperf3, nginx), and accounts the CPU time and memory of each mode's proxies. Prints a table
/// with ratios, writes the recording as JSON and a report as one HTML page. Needs root, because it makes network
/// namespaces; it changes nothing else and removes all of them at the end. Figures mean something on a machine that does
/// nothing else: other load is noticed, marked and told.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sudo culvert bench --quick                          a first answer in two minutes\n  \
    sudo culvert bench                                  everything, about 35 minutes\n  \
    sudo culvert bench --modes culvert,direct --works c64,bulk1 --rounds 7\n  \
    sudo culvert bench --mode-file my-proxy.yaml        with your own build of another proxy\n  \
    culvert bench --compare before.json after.json      what changed, and whether it is more than noise\n  \
    culvert bench --report bench.json                   the report again\n\n\
    Exit status: 0 if every mode did its work, 1 if one did not, 2 if something is missing."
)]
pub(crate) struct BenchArgs {
    /// A first answer in two minutes: three modes, five works, three rounds
    #[arg(long)]
    quick: bool,
    /// Only these modes, besides those of --mode-file; `--modes help` lists them
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    modes: Vec<String>,
    /// Only these works; `--works help` lists them
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    works: Vec<String>,
    /// A further mode that this file describes; may be repeated
    #[arg(long, value_name = "FILE")]
    mode_file: Vec<PathBuf>,
    /// Rounds of each work [default: 5, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of one sample; constant rates get half as many more [default: 2, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Directory for bench.json, bench.html and plots; files of an earlier run there are replaced [default:
    /// culvert-bench-<time>]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// text prints a table; json prints the recording, or the comparison
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Measure nothing; show what changed from recording A to recording B
    #[arg(long, value_names = ["A.json", "B.json"], num_args = 2, conflicts_with_all = ["quick", "modes", "works", "mode_file", "rounds", "seconds", "report"])]
    compare: Vec<PathBuf>,
    /// Measure nothing; make table and report of a recording again
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "modes", "works", "mode_file", "rounds", "seconds"])]
    report: Option<PathBuf>,
    /// No colours
    #[arg(long, env = "NO_COLOR", value_parser = FalseyValueParser::new())]
    no_color: bool,
    /// The agent's binary [default: beside this program]
    #[arg(long, env = "CULVERT_ZTUNNEL", value_name = "PATH")]
    ztunnel: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// Runs the benchmark, or makes a report or comparison of what an earlier run has written.
///
/// **Errors:** an argument or file is wrong, the results cannot be written, no mode could be started.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if let [a, b] = args.compare.as_slice() {
        return compared(args, a, b).map(|()| ExitCode::SUCCESS);
    }
    if let Some(file) = &args.report {
        return reported(args, file).map(|()| ExitCode::SUCCESS);
    }
    if asks_for_help(args)? {
        return Ok(ExitCode::SUCCESS);
    }
    let (mut modes, works) = (modes(args)?, works(args)?);
    if args.quick {
        modes.iter_mut().for_each(|mode| mode.hurry(QUICK_PATIENCE));
    }
    let ztunnel = args.ztunnel.clone().map_or_else(culvert::lab::find_ztunnel, Ok);
    let missing = preflight::missing(&ztunnel, &programs(&works));
    if !missing.is_empty() {
        let list: String = missing.iter().map(|m| format!("  {m}\n")).collect();
        io::stderr().write_all(format!("The benchmark cannot run here yet:\n{list}").as_bytes())?;
        return Ok(ExitCode::from(2));
    }
    let pace = args.pace();
    measured(args, Asked { modes, works, pace, ztunnel: ztunnel? })
}

impl BenchArgs {
    fn pace(&self) -> Pace {
        let pace = if self.quick { Pace::QUICK } else { Pace::FULL };
        Pace {
            rounds: self.rounds.unwrap_or(pace.rounds),
            seconds: self.seconds.unwrap_or(pace.seconds),
            ..pace
        }
    }

    fn style(&self) -> Style {
        if !self.no_color && io::stdout().is_terminal() { Style::Colour } else { Style::Plain }
    }
}

fn measured(args: &BenchArgs, asked: Asked) -> anyhow::Result<ExitCode> {
    let now = OffsetDateTime::now_utc();
    let started = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).context("format the time")?;
    // The program by its name: where it lies says something about the machine and nothing about the figures.
    let command =
        ["culvert".to_owned()].into_iter().chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ");
    let output = args.output.clone().unwrap_or_else(|| {
        let name: String = started.chars().filter(|c| *c != '-' && *c != ':').collect();
        PathBuf::from(format!("culvert-bench-{name}"))
    });
    let keeper = Arc::new(Keeper::open(&output, about::about(command, started))?);
    let kept = Arc::clone(&keeper);
    interrupt::watch(move || {
        kept.close();
        Box::new(move || last_words(&kept))
    })?;
    let width = terminal_width();
    let mut progress = Progress::new(Box::new(Told), io::stderr().is_terminal(), width);
    let ended = run::run(asked, &keeper, &mut progress);
    interrupt::hold_if_signalled();
    let recording = keeper.close();
    let saved = keeper.save();
    interrupt::hold_if_signalled();
    ended?;
    match args.format {
        Format::Text => print(&report::table(&recording, args.style()))?,
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&recording)?))?,
    }
    if let Some(saved) = saved? {
        progress.say(&format!("\nrecording  {}\nreport     {}", saved.json.display(), saved.html.display()));
    }
    let all_did = recording.samples.iter().all(|s| s.failed.is_none());
    Ok(if all_did { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Standard error until a signal comes: what fails from then on fails because everything is being removed.
struct Told;

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        interrupt::hold_if_signalled();
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// After a signal: what was measured is kept, and marked as incomplete.
fn last_words(keeper: &Keeper) -> String {
    match keeper.save() {
        Ok(Some(saved)) if keeper.recording().about.complete => {
            format!("stopped; the whole recording is in {}", saved.json.display())
        }
        Ok(Some(saved)) => format!(
            "stopped; {} samples are kept, as an incomplete recording, in {}",
            keeper.recording().samples.len(),
            saved.json.display()
        ),
        Ok(None) => "stopped before anything was measured".to_owned(),
        Err(e) => format!("stopped; what was measured is lost: {e:#}"),
    }
}

fn compared(args: &BenchArgs, a: &Path, b: &Path) -> anyhow::Result<()> {
    let comparison = compare::compare(&read(a)?, &read(b)?);
    match args.format {
        Format::Text => print(&comparison.text(args.style())),
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&comparison)?)),
    }
}

fn reported(args: &BenchArgs, file: &Path) -> anyhow::Result<()> {
    let recording = read(file)?;
    let beside = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = args.output.as_deref().unwrap_or(beside);
    fs::create_dir_all(dir).with_context(|| format!("make the directory {}", dir.display()))?;
    let html = keep::write_report(dir, &recording)?;
    match args.format {
        Format::Text => print(&report::table(&recording, args.style()))?,
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&recording)?))?,
    }
    Ok(writeln!(io::stderr(), "\nreport     {}", html.display())?)
}

fn read(file: &Path) -> anyhow::Result<Recording> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| format!("read {name}"))?;
    Ok(compare::parse(&name, &text)?)
}

/// Modes that are asked for: those of `--modes`, else all, or three with `--quick`; then those of files.
fn modes(args: &BenchArgs) -> anyhow::Result<Vec<Box<dyn Mode>>> {
    let mut all = mode::built_in();
    let names: Vec<String> = all.iter().map(|m| m.name().to_owned()).collect();
    known("mode", &args.modes, &names)?;
    if !args.modes.is_empty() {
        all.retain(|m| args.modes.iter().any(|n| n == m.name()));
    } else if args.quick {
        all.retain(|m| QUICK_MODES.contains(&m.name()));
    }
    for file in &args.mode_file {
        let described = mode::described::read(file)?;
        if all.iter().any(|m| m.name() == described.name()) || names.iter().any(|n| n == described.name()) {
            bail!("{}: there is a mode {} already; give it another name", file.display(), described.name());
        }
        all.push(described);
    }
    Ok(all)
}

/// How long a first answer may wait for what a mode has to fetch.
const QUICK_PATIENCE: Duration = Duration::from_secs(25);
/// Modes of a first answer.
const QUICK_MODES: [&str; 3] = ["direct", "culvert", "envoy-sidecar"];

fn works(args: &BenchArgs) -> anyhow::Result<Vec<Work>> {
    let mut all = work::all();
    let names: Vec<String> = all.iter().map(|w| w.name.clone()).collect();
    known("work", &args.works, &names)?;
    if args.works.is_empty() && args.quick {
        return Ok(work::quick());
    }
    all.retain(|w| args.works.is_empty() || args.works.contains(&w.name));
    Ok(all)
}

/// Whether all `wanted` are among `names`.
fn known(what: &str, wanted: &[String], names: &[String]) -> anyhow::Result<()> {
    match wanted.iter().find(|w| !names.contains(w)) {
        Some(unknown) => bail!("there is no {what} {unknown:?}; there are {}", names.join(", ")),
        None => Ok(()),
    }
}

/// Prints the list that `--modes help` or `--works help` asks for.
fn asks_for_help(args: &BenchArgs) -> anyhow::Result<bool> {
    let is_help = |names: &[String]| matches!(names, [one] if one == "help");
    let list = if is_help(&args.modes) {
        mode::built_in().iter().map(|m| format!("{:<20} {}\n", m.name(), m.title())).collect::<String>()
    } else if is_help(&args.works) {
        work::all().iter().map(|w| format!("{:<20} {}\n", w.name, w.title)).collect()
    } else {
        return Ok(false);
    };
    print(&list)?;
    Ok(true)
}

/// Programs that the run starts.
fn programs(works: &[Work]) -> Vec<&'static str> {
    let mut programs = stage::PROGRAMS.to_vec();
    // The warm-up is a closed loop.
    if works.iter().any(|w| !matches!(w.kind, Kind::Start { .. })) {
        programs.push("wrk");
    }
    programs
}

fn terminal_width() -> usize {
    let columns = std::env::var_os("COLUMNS").and_then(|c| c.to_str().and_then(|c| c.parse().ok()));
    columns.filter(|c| *c >= 40).unwrap_or(80)
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
