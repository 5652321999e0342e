//! What ran, where and when: the head of a recording.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::record::{About, Machine};
use super::stage::version;

/// Commit given at build time, for programs that left their repository.
const BUILT_FROM: Option<&str> = option_env!("CULVERT_COMMIT");

/// Everything that is known before the run.
pub fn about(command: String, started: String) -> About {
    let mut tools = std::collections::BTreeMap::new();
    for (program, flag) in [("nginx", "-v"), ("iperf3", "--version"), ("wrk", "--version")] {
        tools.extend(version(program, flag).map(|v| (program.to_owned(), v)));
    }
    About {
        command,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: commit(),
        started,
        machine: machine(),
        tools,
        ..About::default()
    }
}

fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(rest.trim_start_matches([' ', '\t', ':']).trim().to_owned())
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let kib: u64 = memory.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
    Machine {
        cpus: std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        model: field(&read("/proc/cpuinfo"), "model name")
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        memory_mib: kib / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        congestion_control: String::new(),
    }
}

/// The working tree that the program stands in, or that it was built from.
fn commit() -> Option<String> {
    let program = std::env::current_exe().unwrap_or_default();
    let places = [program.parent().map(Path::to_owned), std::env::current_dir().ok()];
    places.into_iter().flatten().find_map(described).or_else(|| BUILT_FROM.map(str::to_owned))
}

/// `git describe`, if the place is inside a working tree of Culvert.
fn described(place: PathBuf) -> Option<String> {
    let git = |args: &[&str]| {
        // Under sudo the tree belongs to someone else.
        let mut command = Command::new("git");
        let output = command.args(["-c", "safe.directory=*"]).args(args).current_dir(&place).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let top = git(&["rev-parse", "--show-toplevel"])?;
    Path::new(&top)
        .join("ztunnel/Cargo.toml")
        .is_file()
        .then(|| git(&["describe", "--always", "--dirty", "--abbrev=12"]))?
}
