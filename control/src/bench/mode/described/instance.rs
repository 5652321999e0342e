//! One program of a described mode: started, waited for, accounted, ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::file::Ready;
use crate::bench::mode::{Proxy, proof};
use crate::lab::{LabError, Place, Process, wait_until};

/// Longest that one look at readiness takes.
const ASK_MAX: Duration = Duration::from_secs(5);
const KILL_MAX: Duration = Duration::from_secs(5);
/// The end of a log that goes into an error.
const LINES: usize = 8;

/// A shell command in a namespace.
pub(super) struct Shell<'a> {
    pub(super) place: &'a Place,
    pub(super) dir: &'a Path,
    pub(super) environment: &'a [(String, String)],
}

impl Shell<'_> {
    pub(super) fn spawn(&self, command: &str) -> Result<Process, LabError> {
        let mut shell = self.place.command("sh").args(["-c", command]).current_dir(self.dir);
        for (key, value) in self.environment {
            shell = shell.env(key, value);
        }
        shell.spawn()
    }

    /// Whether it ended with 0 in time.
    ///
    /// **Errors:** what it said, if not.
    pub(super) fn finish(&self, command: &str, limit: Duration) -> anyhow::Result<String> {
        let ended = self.spawn(command)?.finish(limit)?;
        if ended.status.success() {
            return Ok(ended.stdout);
        }
        bail!("ended with {}: {}", ended.status, tail(&format!("{}{}", ended.stdout, ended.stderr)))
    }
}

/// A program that was started.
#[derive(Debug)]
pub(super) struct Instance {
    /// Name of its node or pod.
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) dir: PathBuf,
    pub(super) environment: Vec<(String, String)>,
    pub(super) process: Process,
    pub(super) pid_file: Option<PathBuf>,
}

impl Instance {
    pub(super) fn shell(&self) -> Shell<'_> {
        Shell { place: &self.place, dir: &self.dir, environment: &self.environment }
    }

    /// Waits until it takes traffic.
    ///
    /// **Errors:** it ended, or was not ready in time: with the end of what it said.
    pub(super) fn wait_ready(&mut self, ready: &Ready, limit: Duration) -> anyhow::Result<()> {
        let (mut gone, mut last) = (None, "nothing yet".to_owned());
        let waited = wait_until(
            &format!("{} ready", self.name),
            limit,
            || {
                gone = self.gone();
                if gone.is_some() {
                    return Some(());
                }
                match self.is_ready(ready) {
                    Ok(()) => Some(()),
                    Err(e) => {
                        last = format!("{e:#}");
                        None
                    }
                }
            },
            String::new,
        );
        match (gone, waited) {
            (Some(why), _) => bail!("{}: {why}: {}", self.name, self.log()),
            (None, Err(LabError::Timeout { .. })) => {
                bail!(
                    "{} was not ready within {limit:?}; last seen: {last}; its log: {}",
                    self.name,
                    self.log()
                )
            }
            (None, waited) => Ok(waited?),
        }
    }

    fn is_ready(&self, ready: &Ready) -> anyhow::Result<()> {
        if self.root().is_none() {
            bail!("no process id in {}", self.pid_file.clone().unwrap_or_default().display());
        }
        match ready {
            Ready::Command(command) => self.shell().finish(command, ASK_MAX).map(|_| ()),
            Ready::Port(port) if self.place.is_listening(*port) => Ok(()),
            Ready::Port(port) => bail!("nothing listens on port {port}"),
            Ready::Http { address, path } => {
                let status = proof::status(&self.place, *address, path)?;
                match status.with_context(|| format!("ask {address}{path}"))? {
                    200 => Ok(()),
                    status => bail!("{address}{path} says {status}"),
                }
            }
        }
    }

    /// Why it can no longer become ready.
    fn gone(&mut self) -> Option<String> {
        let status = self.process.ended()?;
        // With a file it may leave a daemon behind.
        let is_daemon = status.success() && self.pid_file.is_some();
        (!is_daemon).then(|| format!("the start command ended with {status}"))
    }

    /// The process from which the accounted ones descend.
    fn root(&self) -> Option<u32> {
        let Some(file) = &self.pid_file else { return Some(self.process.pid()) };
        let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    /// Its process and all that descend from it; not a shell that only waits for them.
    pub(super) fn proxies(&self) -> Vec<Proxy> {
        let Some(root) = self.root() else { return Vec::new() };
        let mut pids = descendants(root);
        let is_shell = matches!(command(root).as_str(), "sh" | "dash" | "bash");
        if !is_shell || pids.is_empty() {
            pids.insert(0, root);
        }
        let mut names = BTreeMap::new();
        let name = |pid: u32| {
            let base = format!("{} {}", self.name, command(pid));
            let count = names.entry(base.clone()).or_insert(0);
            *count += 1;
            if *count == 1 { base } else { format!("{base} {count}") }
        };
        let named: Vec<String> = pids.iter().copied().map(name).collect();
        named.into_iter().zip(pids).map(|(name, pid)| Proxy { name, pid }).collect()
    }

    /// Asks it to end and waits for that.
    ///
    /// **Errors:** the stop command failed, or it was still there.
    pub(super) fn end(&self, stop: Option<&str>, limit: Duration) -> anyhow::Result<()> {
        let pids: Vec<u32> =
            self.root().into_iter().flat_map(|root| [vec![root], descendants(root)].concat()).collect();
        match stop {
            Some(stop) => {
                let ended = self.shell().finish(stop, limit);
                ended.with_context(|| format!("the stop command of {}", self.name))?;
            }
            None => self.root().into_iter().for_each(|pid| send(pid, Signal::SIGTERM)),
        }
        let left = || pids.iter().all(|pid| !is_alive(*pid)).then_some(());
        wait_until(&format!("end of {}", self.name), limit, left, || tail(&self.process.stderr()))?;
        Ok(())
    }

    fn log(&self) -> String {
        tail(&format!("{}{}", self.process.stdout(), self.process.stderr()))
    }
}

/// Kills whatever was started with this mark in its environment, daemons too.
///
/// **Errors:** something is still there after that.
pub(super) fn kill_marked(mark: &str) -> anyhow::Result<()> {
    let wanted = format!("BENCH_INSTANCE={mark}");
    let marked = || -> Vec<u32> {
        let is_ours = |pid: &u32| {
            let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            bytes.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
        };
        pids().filter(is_ours).filter(|pid| is_alive(*pid)).collect()
    };
    let gone = || {
        let left = marked();
        left.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
        left.is_empty().then_some(())
    };
    wait_until("end of what was killed", KILL_MAX, gone, || format!("processes {:?}", marked()))?;
    Ok(())
}

fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ended_meanwhile = kill(Pid::from_raw(pid), signal);
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// What descends from `root`, parents first.
fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = pids().filter_map(|pid| Some((pid, stat(pid)?.1))).collect();
    let (mut found, mut known) = (Vec::new(), BTreeSet::from([root]));
    loop {
        let next: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| known.contains(parent) && !known.contains(pid))
            .map(|p| p.0)
            .collect();
        if next.is_empty() {
            return found;
        }
        known.extend(&next);
        found.extend(next);
    }
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Not while only its exit status is left.
fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn command(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The end of a text, for an error.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let end = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n");
    if end.is_empty() { "it said nothing".to_owned() } else { end }
}
