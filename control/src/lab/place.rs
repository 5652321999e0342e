//! Running things inside one namespace.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::error::At;
use super::netns::{self, Ground};
use super::process::{Finished, Process, find_program};
use super::{LabError, wait_until};

/// One network namespace of a lab. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    netns: String,
    ground: Arc<Ground>,
}

impl Place {
    pub(super) fn new(name: &str, netns: &str, ground: Arc<Ground>) -> Self {
        Self { name: name.to_owned(), netns: netns.to_owned(), ground }
    }

    /// Its name within the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of its network namespace, as `ip netns exec` takes it.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Path of its network namespace, as the annotation `culvert.dev/netns` takes it.
    pub fn netns_path(&self) -> PathBuf {
        netns::path(&self.netns)
    }

    /// A directory of its own, made on first use.
    pub fn dir(&self) -> Result<PathBuf, LabError> {
        let dir = self.ground.dir().join("run").join(&self.name);
        let made = self.ground.starting(|| fs::create_dir_all(&dir))?;
        made.at(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }

    /// Runs `work` on a thread inside the namespace and waits for it. A panic goes on in the caller.
    ///
    /// **Errors:** the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let inside = || netns::enter(&self.netns).map(|()| work());
        let ended = thread::scope(|scope| scope.spawn(inside).join());
        let entered = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        entered.at(|| format!("enter {}", self.netns))
    }

    /// Starts `work` on a thread inside the namespace; it gets the error if that cannot be entered.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<Result<T, LabError>> {
        let netns = self.netns.clone();
        thread::spawn(move || {
            netns::enter(&netns).at(|| format!("enter {netns}"))?;
            Ok(work())
        })
    }

    /// A program to be started inside the namespace.
    pub fn command(&self, program: &str) -> PlaceCommand {
        let file = find_program(program).unwrap_or_else(|| program.into());
        PlaceCommand { place: self.clone(), program: program.to_owned(), command: Command::new(file) }
    }

    /// Runs `ip -batch -` inside the namespace.
    pub fn ip(&self, batch: &str) -> Result<(), LabError> {
        self.run(|| netns::ip(batch))?
    }

    /// Writes settings below `/proc/sys` as the namespace sees them.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        self.run(|| {
            for (key, value) in settings {
                fs::write(format!("/proc/sys/{key}"), value).at(|| format!("set {key} to {value}"))?;
            }
            Ok(())
        })?
    }

    /// Whether a TCP socket listens on the port, on any address of either family.
    pub fn is_listening(&self, port: u16) -> bool {
        let wanted = format!(":{port:04X}");
        let listens = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().is_some_and(|f| f.ends_with(&wanted));
            // 0A is TCP_LISTEN.
            local && fields.nth(1) == Some("0A")
        };
        let read = || {
            ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
                .iter()
                .any(|table| fs::read_to_string(table).is_ok_and(|t| t.lines().any(listens)))
        };
        self.run(read).unwrap_or(false)
    }

    /// Waits until a TCP socket listens on the port; connects to nothing.
    pub fn wait_for(&self, port: u16, limit: Duration) -> Result<(), LabError> {
        let what = format!("a listener on port {port} of {}", self.name);
        wait_until(&what, limit, || self.is_listening(port).then_some(()), || "nothing listens".to_owned())
    }

    /// Waits until no process is left in the namespace.
    pub fn wait_empty(&self, limit: Duration) -> Result<(), LabError> {
        netns::wait_empty(&self.netns, limit)
    }

    /// As [`Place::run`], for what must not be started once the lab is being removed.
    pub(super) fn starting<T: Send>(&self, start: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.ground.starting(|| self.run(start))?
    }

    pub(super) fn log_path(&self, log: &str) -> PathBuf {
        self.ground.dir().join("logs").join(log)
    }
}

/// A program to be started inside a [`Place`].
#[derive(Debug)]
pub struct PlaceCommand {
    place: Place,
    program: String,
    command: Command,
}

impl PlaceCommand {
    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets the working directory.
    pub fn current_dir(mut self, dir: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Starts it in the background, in a process group of its own; what it prints goes to a file.
    pub fn spawn(self) -> Result<Process, LabError> {
        let base = self.program.rsplit('/').next().unwrap_or("program");
        let name = format!("{}-{base}", self.place.name);
        Process::spawn(&self.place, &name, self.command)
    }

    /// Starts it and waits for its end, for at most `limit`; then it is killed.
    pub fn finish(self, limit: Duration) -> Result<Finished, LabError> {
        self.spawn()?.finish(limit)
    }
}
