//! One real program inside a namespace.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::error::At;
use super::place::Place;
use super::{LabError, wait_until};

/// Makes log names unique within this process.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A running program. Dropping it kills its process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// What a program that ended had to say.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Process {
    pub(super) fn spawn(place: &Place, name: &str, mut command: Command) -> Result<Self, LabError> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let stdout = place.log_path(&format!("{name}.{number}.out"));
        let stderr = place.log_path(&format!("{name}.{number}.err"));
        let open = |path: &Path| File::create(path).at(|| format!("create {}", path.display()));
        command.stdin(Stdio::null()).stdout(open(&stdout)?).stderr(open(&stderr)?).process_group(0);
        // The child inherits the namespace of the thread that starts it.
        let child = place.starting(|| command.spawn())?.map_err(|e| start_error(&command, e))?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its standard output goes.
    pub fn stdout_path(&self) -> &Path {
        &self.stdout
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has complained about so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to the program alone.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        kill(self.id(), signal).at(|| format!("send {signal} to {}", self.name))
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// SIGKILL to the process group, and waits.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            let _ended_meanwhile = killpg(self.id(), Signal::SIGKILL);
            let _status = self.child.wait();
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let what = format!("end of {}", self.name);
        let (out, err) = (self.stdout.clone(), self.stderr.clone());
        wait_until(&what, limit, || self.ended(), || format!("{}{}", tail(&read(&out)), tail(&read(&err))))
    }

    /// Waits for its end and takes what it printed; kills it when `limit` is over.
    pub fn finish(mut self, limit: Duration) -> Result<Finished, LabError> {
        let status = self.wait(limit)?;
        Ok(Finished { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    fn id(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn start_error(command: &Command, e: io::Error) -> LabError {
    let program = command.get_program().to_string_lossy().into_owned();
    if e.kind() == io::ErrorKind::NotFound {
        return LabError::Missing { package: package_of(&program), program };
    }
    LabError::Io { what: format!("start {program}"), source: e }
}

/// Finds a program in `PATH` or where Debian keeps servers, which a user's `PATH` lacks.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Debian package that has a program the lab's users start.
pub fn package_of(program: &str) -> &'static str {
    match program {
        "ip" => "iproute2",
        "nginx" => "nginx-light",
        "curl" => "curl",
        "wrk" => "wrk",
        "iperf3" => "iperf3",
        "redis-server" => "redis-server",
        "redis-cli" => "redis-tools",
        "nc" => "netcat-openbsd",
        "socat" => "socat",
        _ => "the package that has it",
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The last lines of a log, for an error message.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(12)).map(|l| format!("{l}\n")).collect()
}
