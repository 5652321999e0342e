//! Making, entering and removing network namespaces, and the record of what must go.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::error::At;
use super::place::Place;
use super::poll::pause;
use super::process::find_program;
use super::{LabError, wait_until};

/// Tries to remove a lab's directory.
const REMOVALS_MAX: u32 = 50;
const NETNS_DIR: &str = "/var/run/netns";

/// Labs of this process, for [`remove_all`]; `None` once that has begun.
static LIVE: Mutex<Option<Vec<Weak<Ground>>>> = Mutex::new(Some(Vec::new()));

/// Removes every lab of this process, which can make no others from then on; for a signal handler's thread, just before
/// the process ends.
pub fn remove_all() {
    let live = lock(&LIVE).take().unwrap_or_default();
    for ground in live.iter().filter_map(Weak::upgrade) {
        ground.remove();
    }
}

/// Kills what this process has started outside labs, with all descendants; whether there was anything. For a signal
/// handler's thread, after [`remove_all`].
pub fn kill_children() -> bool {
    let all: Vec<(Pid, Pid)> = pids().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut family = vec![Pid::this()];
    let mut next = 0;
    while let Some(of) = family.get(next).copied() {
        family.extend(all.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        next += 1;
    }
    let children = family.split_off(1);
    for pid in &children {
        let _ended_meanwhile = kill(*pid, Signal::SIGKILL);
    }
    !children.is_empty()
}

fn parent(pid: Pid) -> Option<Pid> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may contain anything: state and parent.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    (fields.next()? != "Z").then_some(())?;
    fields.next()?.parse().ok().map(Pid::from_raw)
}

fn pids() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

/// What one lab has made outside its own memory.
#[derive(Debug)]
pub(super) struct Ground {
    prefix: String,
    dir: PathBuf,
    /// `None` once removal has begun: nothing may be added any more.
    names: Mutex<Option<BTreeSet<String>>>,
    /// Held while removing: whoever comes second waits until it is done.
    removal: Mutex<()>,
}

impl Ground {
    pub(super) fn new(prefix: &str) -> Result<Arc<Self>, LabError> {
        let uid = geteuid().as_raw();
        if uid != 0 {
            return Err(LabError::NotRoot { uid });
        }
        sweep(prefix);
        let unique = RandomState::new().hash_one(prefix) & 0xff_ffff;
        let prefix = format!("{prefix}-{}-{unique:06x}", std::process::id());
        let dir = std::env::temp_dir().join(&prefix);
        // Held over the making: a lab is either known to the removal or never made.
        let mut live = lock(&LIVE);
        let live = live.as_mut().ok_or(LabError::Closed)?;
        fs::create_dir(&dir).at(|| format!("create {}", dir.display()))?;
        let ground =
            Arc::new(Self { prefix, dir, names: Mutex::new(Some(BTreeSet::new())), removal: Mutex::new(()) });
        live.retain(|g| g.strong_count() > 0);
        live.push(Arc::downgrade(&ground));
        Ok(ground)
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a namespace with `lo` up and the settings all of a lab's namespaces share.
    pub(super) fn place(self: &Arc<Self>, name: &str) -> Result<Place, LabError> {
        let netns = format!("{}-{name}", self.prefix);
        {
            // Held over the call: a namespace is either recorded or never made.
            let mut names = lock(&self.names);
            let names = names.as_mut().ok_or(LabError::Closed)?;
            ip(&format!("netns add {netns}\n"))?;
            names.insert(netns.clone());
        }
        let place = Place::new(name, &netns, Arc::clone(self));
        place.ip("link set lo up\n")?;
        place.sysctl(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/dad_transmits", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
        ])?;
        // BBR's pacing distorts a path without a real network. A namespace may not be allowed cubic, reno it always is.
        let set = |name| place.sysctl(&[("net/ipv4/tcp_congestion_control", name)]);
        set("cubic").or_else(|_| set("reno"))?;
        Ok(place)
    }

    /// Runs `start` unless removal has begun: what it starts is either killed by the removal or never started.
    pub(super) fn starting<T>(&self, start: impl FnOnce() -> T) -> Result<T, LabError> {
        let names = lock(&self.names);
        if names.is_none() {
            return Err(LabError::Closed);
        }
        Ok(start())
    }

    pub(super) fn remove_place(&self, netns: &str) -> Result<(), LabError> {
        let mut names = lock(&self.names);
        let names = names.as_mut().ok_or(LabError::Closed)?;
        if names.remove(netns) {
            let gone = BTreeSet::from([netns.to_owned()]);
            kill_inside(&gone);
            delete(&gone);
        }
        Ok(())
    }

    /// Kills, deletes, forgets. Safe to call twice.
    pub(super) fn remove(&self) {
        let _until_done = lock(&self.removal);
        let names = lock(&self.names).take();
        if let Some(names) = names {
            kill_inside(&names);
            delete(&names);
            remove_dir(&self.dir);
        }
    }
}

/// Removes a directory into which somebody may still write: under another name nothing new finds its way there.
fn remove_dir(dir: &Path) {
    let aside = dir.with_extension("gone");
    let dir = if fs::rename(dir, &aside).is_ok() { &aside } else { dir };
    for _ in 0..REMOVALS_MAX {
        match fs::remove_dir_all(dir) {
            // What was being written just now came between.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => pause(Duration::from_millis(5)),
            _ => return,
        }
    }
}

impl Drop for super::Lab {
    fn drop(&mut self) {
        self.ground.remove();
    }
}

pub(super) fn path(netns: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(netns)
}

/// Moves the calling thread into the namespace. Threads that did must end there, not go back to a pool.
pub(super) fn enter(netns: &str) -> io::Result<()> {
    let file = File::open(path(netns))?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Runs `ip -batch -` in the namespace of the calling thread.
pub(super) fn ip(batch: &str) -> Result<(), LabError> {
    let missing = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => LabError::Missing { program: "ip".to_owned(), package: "iproute2" },
        _ => LabError::Io { what: "start ip".to_owned(), source: e },
    };
    let mut child = Command::new(find_program("ip").unwrap_or_else(|| "ip".into()))
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes()).at(|| "write to ip".to_owned())?;
    }
    let output = child.wait_with_output().at(|| "wait for ip".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Command {
        command: format!("ip -batch ({})", batch.trim().replace('\n', "; ")),
        output: format!("{}: {}", output.status, said.trim()),
    })
}

fn delete(names: &BTreeSet<String>) {
    let batch: String = names.iter().map(|n| format!("netns del {n}\n")).collect();
    // One bad line must not keep the others: each on its own if the batch stops.
    if ip(&batch).is_err() {
        for name in names.iter().filter(|n| path(n).exists()) {
            let _reported_by_sweep = ip(&format!("netns del {name}\n"));
        }
    }
}

/// Kills every process whose network namespace is one of `names`, until none is left.
fn kill_inside(names: &BTreeSet<String>) {
    let inodes: BTreeSet<u64> =
        names.iter().filter_map(|n| fs::metadata(path(n)).ok()).map(|m| m.ino()).collect();
    let start = Instant::now();
    while !inodes.is_empty() && start.elapsed() < Duration::from_secs(3) {
        let inside = processes_in(&inodes);
        if inside.is_empty() {
            return;
        }
        for pid in inside {
            let _ended_meanwhile = kill(pid, Signal::SIGKILL);
        }
        pause(Duration::from_millis(5));
    }
}

fn processes_in(inodes: &BTreeSet<u64>) -> Vec<Pid> {
    pids()
        .filter(|pid| *pid != Pid::this())
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| inodes.contains(&m.ino())))
        .collect()
}

/// Removes what runs with the same prefix left behind whose process is gone.
fn sweep(prefix: &str) {
    let dead = |name: &str| {
        let rest = name.strip_prefix(prefix)?.strip_prefix('-')?;
        let (pid, _) = rest.split_once('-')?;
        let pid: u32 = pid.parse().ok()?;
        (!Path::new(&format!("/proc/{pid}")).exists()).then(|| name.to_owned())
    };
    let list = |dir: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| dead(e.file_name().to_str()?)).collect()
    };
    let names = list(Path::new(NETNS_DIR));
    if !names.is_empty() {
        kill_inside(&names);
        delete(&names);
    }
    for name in list(&std::env::temp_dir()) {
        let _best_effort = fs::remove_dir_all(std::env::temp_dir().join(name));
    }
}

/// Waits until no process is left in the namespace.
pub(super) fn wait_empty(netns: &str, limit: Duration) -> Result<(), LabError> {
    let inode = fs::metadata(path(netns)).at(|| format!("look at {netns}"))?.ino();
    let set = BTreeSet::from([inode]);
    let what = format!("no process left in {netns}");
    wait_until(
        &what,
        limit,
        || processes_in(&set).is_empty().then_some(()),
        || format!("{:?}", processes_in(&set)),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
