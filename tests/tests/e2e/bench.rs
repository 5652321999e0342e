//! `culvert bench` as people run it, in a short form: work flows through every mode, what is written is valid, and whatever
//! ends it leaves nothing behind. No figure is judged.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use culvert::bench::record::{Measure, Recording, Sample};
use culvert::lab::wait_until;
use culvert_tests::binary;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe};

/// Longest run of the command here.
const RUN_MAX: Duration = Duration::from_secs(60);

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bench-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn results(&self) -> PathBuf {
        self.0.join("results")
    }

    fn recording(&self) -> Recording {
        let path = self.results().join("bench.json");
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// The running command. It is killed if the test fails.
struct Bench {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Bench {
    fn start(dir: &Dir, args: &str) -> Self {
        Self::start_by(Command::new(binary::culvert()), dir, args)
    }

    fn start_by(command: Command, dir: &Dir, args: &str) -> Self {
        let stdout = fs::File::create(dir.0.join("stdout")).unwrap();
        Self::start_into(stdout.into(), command, dir, args)
    }

    fn start_into(out: Stdio, mut command: Command, dir: &Dir, args: &str) -> Self {
        let (stdout, stderr) = (dir.0.join("stdout"), dir.0.join("stderr"));
        command.args(["bench", "--ztunnel"]).arg(binary::ztunnel()).arg("--output").arg(dir.results());
        command.args(args.split_whitespace());
        command.stdin(Stdio::null()).stdout(out).stderr(fs::File::create(&stderr).unwrap());
        Self { child: command.spawn().unwrap(), stdout, stderr }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// Waits until it has said something.
    fn wait_for(&self, text: &str) {
        let said = || self.stderr().contains(text).then_some(());
        wait_until(text, RUN_MAX, said, || self.stderr()).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let ended =
            wait_until("end of culvert bench", RUN_MAX, || self.child.try_wait().unwrap(), String::new);
        ended.unwrap_or_else(|e| panic!("{e}: {}", self.stderr()))
    }

    /// Sends a signal and waits for the end, after which nothing may be left.
    fn stop(&mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
        let code = self.end().code();
        self.left_nothing();
        code
    }

    /// No namespace, directory or process of this run.
    fn left_nothing(&self) {
        let prefix = format!("culvert-bench-{}-", self.pid());
        for dir in ["/var/run/netns".into(), std::env::temp_dir()] {
            let names = fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.file_name());
            let left: Vec<_> = names.filter(|n| n.to_string_lossy().starts_with(&prefix)).collect();
            assert!(left.is_empty(), "left in {}: {left:?}", dir.display());
        }
        assert_eq!(with_argument(&prefix), []);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // As a person would end it: it removes what it has made.
            let _gone = kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), Signal::SIGTERM);
            let _ended = self.child.wait();
        }
    }
}

/// Processes whose command line has `part`, and the line.
fn with_argument(part: &str) -> Vec<(u32, String)> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let line = |pid: u32| {
        let mut bytes = Vec::new();
        fs::File::open(format!("/proc/{pid}/cmdline")).ok()?.read_to_end(&mut bytes).ok()?;
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
        line.contains(part).then_some((pid, line))
    };
    pids.filter_map(line).collect()
}

fn of<'a>(recording: &'a Recording, mode: &str, work: &str) -> &'a Sample {
    let found = recording.samples.iter().rev().find(|s| s.mode == mode && s.work == work);
    found.unwrap_or_else(|| panic!("no sample of {work} through {mode}: {:?}", recording.samples))
}

/// Every mode starts, work flows through it, and what was seen can be read again.
#[test]
fn a_short_run_measures_every_mode() {
    let dir = Dir::new("short");
    let modes = ["direct", "culvert", "culvert-one-node", "culvert-proxy"];
    let described = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/examples/bench/culvert-proxy.yaml");
    let args = format!(
        "--modes direct,culvert,culvert-one-node --mode-file {described} --works c16,new,bulk1-down,start-0 --rounds 1 \
         --seconds 1 -o json"
    );
    let mut bench = Bench::start(&dir, &args);
    let status = bench.end();
    assert!(status.success(), "{status}: {}", bench.stderr());
    bench.left_nothing();
    let recording = dir.recording();
    let printed: Recording = serde_json::from_str(&bench.stdout()).unwrap();
    assert_eq!(printed, recording, "what is printed is what is kept");
    assert!(recording.about.complete);
    assert_eq!(recording.modes.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), modes);
    assert!(["cubic", "reno"].contains(&recording.about.machine.congestion_control.as_str()));
    for mode in modes {
        let http = of(&recording, mode, "c16");
        assert!(http.failed.is_none(), "{http:?}");
        assert!(http.values[&Measure::RequestsPerSecond] > 0.0);
        assert_eq!(http.values.get(&Measure::Failed).copied().unwrap_or_default(), 0.0, "{http:?}");
        let new = of(&recording, mode, "new");
        assert!(new.values[&Measure::ConnectionsPerSecond] > 0.0, "{new:?}");
        let bulk = of(&recording, mode, "bulk1-down");
        assert!(bulk.values[&Measure::GbitPerSecond] > 0.0);
        if mode != "direct" {
            let agents = if mode == "culvert-one-node" { 1 } else { 2 };
            // `ztunnel proxy` has a second process, which this work does not need.
            assert_eq!(http.by_process.len(), if mode == "culvert-proxy" { 2 * agents } else { agents });
            let worked = http.by_process.values().filter(|cpu| **cpu > 0.0).count();
            assert!(worked >= agents, "each agent worked: {http:?}");
            assert!(http.values[&Measure::CpuUsPerRequest] > 0.0);
            assert!(bulk.values[&Measure::CpuSPerGib] > 0.0);
            let start = of(&recording, mode, "start-0");
            assert!(start.values[&Measure::StartMs] > 0.0, "{start:?}");
            assert!(start.values[&Measure::RssMib] >= start.values[&Measure::PssMib]);
        }
    }
    let page = fs::read_to_string(dir.results().join("bench.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("culvert-one-node"));
}

/// Both waypoints do all works, and what their processes take is told apart from the agents'.
#[test]
fn waypoints_are_measured_side_by_side() {
    let dir = Dir::new("waypoints");
    binary::waypoint();
    let modes = ["culvert+waypoint", "envoy-waypoint"];
    let args = "--modes culvert+waypoint,envoy-waypoint --works c16,new,bulk1,start-0 --rounds 1 --seconds 1";
    let mut bench = Bench::start(&dir, args);
    let status = bench.end();
    assert!(status.success(), "{status}: {}", bench.stderr());
    bench.left_nothing();
    let recording = dir.recording();
    for mode in modes {
        for work in ["c16", "new", "bulk1", "start-0"] {
            let sample = of(&recording, mode, work);
            assert!(sample.failed.is_none(), "{sample:?}");
            assert_eq!(sample.values.get(&Measure::Failed).copied().unwrap_or_default(), 0.0, "{sample:?}");
            let names: Vec<&str> = sample.by_process.keys().map(String::as_str).collect();
            assert_eq!(names, ["node-a", "node-b", "waypoint"], "{mode} {work}");
            assert!(sample.by_process.values().all(|cost| *cost > 0.0), "each took part: {sample:?}");
        }
        let record = recording.modes.iter().find(|m| m.name == mode).unwrap();
        assert!(!record.deviations.is_empty(), "what differs is said");
    }
    let table = bench.stdout();
    assert!(table.contains("waypoints: the waypoint's process alone"), "{table}");
    assert!(table.contains("new: CPU µs/connection"), "{table}");
}

/// Ctrl-C while the first modes come up: nothing was measured, nothing is kept.
#[test]
fn a_signal_during_start_up_leaves_nothing() {
    let dir = Dir::new("early");
    let mut bench = Bench::start(&dir, "--modes direct,culvert --works c1 --rounds 1");
    bench.wait_for("starting culvert");
    assert_eq!(bench.stop(Signal::SIGINT), Some(130), "{}", bench.stderr());
    assert!(bench.stderr().contains("before anything was measured"), "{}", bench.stderr());
    assert!(!dir.results().exists());
}

/// SIGTERM in the middle of samples: those that were taken are kept, and called incomplete.
#[test]
fn a_signal_in_the_middle_keeps_what_was_measured() {
    let dir = Dir::new("middle");
    let mut bench = Bench::start(&dir, "--modes direct --works c1,c16 --rounds 500 --seconds 1");
    bench.wait_for("round 2/500, c16");
    assert_eq!(bench.stop(Signal::SIGTERM), Some(143), "{}", bench.stderr());
    assert!(bench.stderr().contains("samples are kept, as an incomplete recording"), "{}", bench.stderr());
    let recording = dir.recording();
    assert!(!recording.about.complete);
    assert!(recording.samples.len() >= 3);
    assert!(
        recording.samples.iter().all(|s| s.failed.is_none()),
        "a stop is no failure: {:?}",
        recording.samples
    );
    assert!(dir.results().join("bench.html").is_file());
}

/// The same while a mode is being restarted and its memory looked at.
#[test]
fn a_signal_during_a_memory_work_leaves_nothing() {
    let dir = Dir::new("memory");
    let mut bench = Bench::start(&dir, "--modes culvert-one-node --works c1,memory --rounds 1 --seconds 1");
    bench.wait_for("round 1/1, memory");
    assert_eq!(bench.stop(Signal::SIGINT), Some(130), "{}", bench.stderr());
    assert!(dir.recording().samples.iter().any(|s| s.work == "c1" && s.failed.is_none()));
}

/// The same while the table is being printed, to someone who does not read: what was measured is whole.
#[test]
fn a_signal_during_the_report_keeps_all() {
    let dir = Dir::new("report");
    let (unread, full) = pipe().unwrap();
    fcntl(&full, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while nix::unistd::write(&full, &[0; 512]).is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let command = Command::new(binary::culvert());
    let mut bench = Bench::start_into(full.into(), command, &dir, "--modes direct --works c1 --rounds 1");
    let written = || dir.results().join("bench.html").exists().then_some(());
    wait_until("the report", RUN_MAX, written, || bench.stderr()).unwrap();
    assert_eq!(bench.stop(Signal::SIGTERM), Some(143), "{}", bench.stderr());
    assert!(bench.stderr().contains("the whole recording is in"), "{}", bench.stderr());
    assert!(dir.recording().about.complete);
    drop(unread);
}

/// A proxy that dies takes its own samples with it, and no others.
#[test]
fn a_mode_that_dies_does_not_end_the_run() {
    let dir = Dir::new("dies");
    let mut bench = Bench::start(&dir, "--modes direct,culvert --works c1 --rounds 4 --seconds 1");
    bench.wait_for("round 2/4, c1");
    let agents = with_argument(&format!("culvert-bench-{}-", bench.pid()));
    let agent = agents.iter().find(|(_, line)| line.contains("--node node-b")).unwrap();
    kill(Pid::from_raw(i32::try_from(agent.0).unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(bench.end().code(), Some(1), "{}", bench.stderr());
    bench.left_nothing();
    let recording = dir.recording();
    assert!(recording.about.complete);
    assert!(of(&recording, "direct", "c1").failed.is_none());
    let dead = of(&recording, "culvert", "c1").failed.clone().unwrap();
    assert!(dead.contains("node-b"), "{dead}");
    assert!(recording.about.notes.iter().any(|n| n.contains("node-b")), "{:?}", recording.about.notes);
}

#[test]
fn what_is_missing_is_told_before_anything_is_built() {
    let dir = Dir::new("missing");
    let mut command = Command::new(binary::culvert());
    command.env("PATH", "/nonexistent");
    let mut bench = Bench::start_by(command, &dir, "--works c1");
    assert_eq!(bench.end().code(), Some(2));
    assert!(bench.stderr().contains("apt-get install -y iperf3 wrk"), "{}", bench.stderr());
    assert!(!dir.results().exists());
}

#[test]
fn without_root_it_says_so() {
    let dir = Dir::new("nobody");
    // A copy: the directory of the program may be closed to others.
    let copy = dir.0.join("culvert");
    fs::copy(binary::culvert(), &copy).unwrap();
    let mut command = Command::new(&copy);
    command.uid(65_534).gid(65_534);
    let mut bench = Bench::start_by(command, &dir, "--modes direct --works c1");
    assert_eq!(bench.end().code(), Some(2));
    assert!(bench.stderr().contains("need root"), "{}", bench.stderr());
}

/// A full disk is found before the first lab is built, not after 20 minutes.
#[test]
fn a_full_disk_is_told_at_once() {
    use nix::mount::{MsFlags, mount, umount};
    let dir = Dir::new("full");
    let disk = dir.0.join("results");
    fs::create_dir(&disk).unwrap();
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
    let mut bench = Bench::start(&dir, "--modes direct --works c1");
    let code = bench.end().code();
    let left = fs::read_dir(&disk).unwrap().count();
    umount(&disk).unwrap();
    assert_eq!((code, left), (Some(1), 0), "{}", bench.stderr());
    assert!(
        bench.stderr().contains("No space left") && bench.stderr().contains("--output"),
        "{}",
        bench.stderr()
    );
    bench.left_nothing();
}

#[test]
fn unknown_names_are_told_with_those_that_exist() {
    let dir = Dir::new("names");
    for (args, wanted) in [
        ("--modes istio", "there is no mode \"istio\"; there are direct, culvert,"),
        ("--works c2", "there is no work \"c2\"; there are c1, c16,"),
    ] {
        let mut bench = Bench::start(&dir, args);
        assert_eq!(bench.end().code(), Some(1));
        assert!(bench.stderr().contains(wanted), "{}", bench.stderr());
    }
}
