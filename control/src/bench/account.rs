//! Who used the processors: the mode's proxies, the machine as a whole, and processes that are none of the run's.
//!
//! CPU time of a process is read from its POSIX CPU clock: nanoseconds, of all its threads, those that have ended too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::mode::Proxy;

/// Processors that others may use: more shows in the figures of a small machine.
const FOREIGN_MAX: f64 = 0.15;
/// The same as a share of all processors, for large machines.
const FOREIGN_SHARE: f64 = 0.02;
/// The same for what is seen only by its absence, from two ways of counting that differ a little.
const HIDDEN_MAX: f64 = 0.5;
/// Flag of kernel threads in `/proc/PID/stat`.
const PF_KTHREAD: u64 = 0x0020_0000;

/// CPU time of a process since its start.
///
/// **Errors:** there is no such process.
pub fn cpu(pid: u32) -> io::Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    let time = clock_gettime(clock_getcpuclockid(pid)?)?;
    Ok(Duration::from(time))
}

/// Whether the process runs; one that has ended and was not waited for does not.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|text| Seen::parse(&text).is_some_and(|s| !s.is_dead))
}

/// Resident and proportional memory of a process, in MiB.
///
/// **Errors:** there is no such process.
pub fn memory(pid: u32) -> io::Result<(f64, f64)> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text =
        fs::read_to_string(&path).map_err(|e| io::Error::new(e.kind(), format!("read {path}: {e}")))?;
    let field = |name: &str| kib(&text, name).map(|kib| kib / 1024.0);
    field("Rss:").zip(field("Pss:")).ok_or_else(|| io::Error::other(format!("{path} has no Rss and Pss")))
}

/// A field such as `Rss:  1234 kB`.
fn kib(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Counters at one point in time.
#[derive(Debug)]
pub struct Reading {
    at: Instant,
    proxies: BTreeMap<String, Counter>,
    machine: Busy,
    others: Others,
}

/// Of one proxy.
#[derive(Debug, Default)]
struct Counter {
    cpu: Duration,
    /// Voluntary switches of each thread.
    switches: BTreeMap<String, u64>,
}

/// What was used between two readings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// CPU time of each proxy.
    pub by_process: BTreeMap<String, Duration>,
    /// Voluntary context switches of all proxies; those of threads that ended are not in it.
    pub switches: u64,
    /// CPU time of the whole machine.
    pub machine: Duration,
    /// What others took away, if it was too much.
    pub disturbed: Option<String>,
}

impl Cost {
    /// CPU time of all proxies.
    pub fn proxies(&self) -> Duration {
        self.by_process.values().sum()
    }
}

impl Reading {
    /// Counters before something is done: what takes long to read is read first.
    ///
    /// **Errors:** a proxy is gone.
    pub fn before(proxies: &[Proxy], own: &Own) -> io::Result<Self> {
        let others = own.others();
        let (proxies, machine) = (counters(proxies)?, Busy::read()?);
        Ok(Self { at: Instant::now(), proxies, machine, others })
    }

    /// Counters after it was done.
    ///
    /// **Errors:** a proxy is gone.
    pub fn after(proxies: &[Proxy], own: &Own) -> io::Result<Self> {
        let at = Instant::now();
        let (proxies, machine) = (counters(proxies)?, Busy::read()?);
        Ok(Self { at, proxies, machine, others: own.others() })
    }

    /// What was used since `before`.
    pub fn since(&self, before: &Self) -> Cost {
        let mut cost = Cost::default();
        let none = Counter::default();
        for (name, now) in &self.proxies {
            let then = before.proxies.get(name).unwrap_or(&none);
            cost.by_process.insert(name.clone(), now.cpu.saturating_sub(then.cpu));
            let earlier = |tid: &String| then.switches.get(tid).copied().unwrap_or_default();
            cost.switches += now.switches.iter().map(|(tid, n)| n.saturating_sub(earlier(tid))).sum::<u64>();
        }
        cost.machine = self.machine.busy.saturating_sub(before.machine.busy);
        let taken = Taken {
            seconds: self.at.duration_since(before.at).as_secs_f64(),
            foreign: self.others.since(&before.others),
            stolen: self.machine.stolen.saturating_sub(before.machine.stolen),
            hidden: (self.machine.of_processes.saturating_sub(before.machine.of_processes))
                .saturating_sub(self.others.visible.saturating_sub(before.others.visible)),
            // Exact for any machine there is.
            processors: std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
        };
        cost.disturbed = taken.too_much();
        cost
    }
}

fn counters(proxies: &[Proxy]) -> io::Result<BTreeMap<String, Counter>> {
    let read = |proxy: &Proxy| {
        let gone = |e: io::Error| {
            io::Error::new(e.kind(), format!("{} (process {}) is gone: {e}", proxy.name, proxy.pid))
        };
        let counter = Counter { cpu: cpu(proxy.pid).map_err(gone)?, switches: switches(proxy.pid) };
        Ok((proxy.name.clone(), counter))
    };
    proxies.iter().map(read).collect()
}

fn switches(pid: u32) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((task.file_name().to_string_lossy().into_owned(), line.trim().parse().ok()?))
    };
    tasks.filter_map(of).collect()
}

/// Time of all processors together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Busy {
    busy: Duration,
    /// Without what interrupts took.
    of_processes: Duration,
    stolen: Duration,
}

impl Busy {
    fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        Self::parse(&text, tick()).ok_or_else(|| io::Error::other("/proc/stat is of an unknown shape"))
    }

    /// The first line: user nice system idle iowait irq softirq steal, in ticks.
    fn parse(text: &str, tick: Duration) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let fields: Vec<u32> = line.split_whitespace().map_while(|f| f.parse().ok()).collect();
        let at = |index: usize| fields.get(index).copied().unwrap_or_default();
        let sum = |fields: &[usize]| fields.iter().map(|index| tick * at(*index)).sum();
        let (busy, of_processes) = (sum(&[0, 1, 2, 5, 6]), sum(&[0, 1, 2]));
        (fields.len() >= 4).then(|| Self { busy, of_processes, stolen: tick * at(7) })
    }
}

fn tick() -> Duration {
    let hertz = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|n| u32::try_from(n).ok());
    Duration::from_secs(1) / hertz.filter(|n| *n > 0).unwrap_or(100)
}

/// What belongs to the run: this process, what it started, and everything in its labs' network namespaces.
#[derive(Clone, Debug, Default)]
pub struct Own {
    namespaces: BTreeSet<u64>,
    processes: BTreeSet<u32>,
}

impl Own {
    /// Adds a network namespace, by its path.
    pub fn add_namespace(&mut self, path: &Path) {
        self.namespaces.extend(fs::metadata(path).ok().map(|m| m.ino()));
    }

    /// Adds processes that may be anywhere.
    pub fn add_processes(&mut self, pids: impl IntoIterator<Item = u32>) {
        self.processes.extend(pids);
    }

    fn others(&self) -> Others {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let read = |pid: u32| {
            let seen = Seen::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
            let namespace = fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|m| m.ino());
            let inside =
                namespace.is_some_and(|n| self.namespaces.contains(&n)) || self.processes.contains(&pid);
            Some((pid, seen, inside))
        };
        Others::of(pids.filter_map(read).collect(), std::process::id())
    }
}

/// One process as `/proc/PID/stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    name: String,
    parent: u32,
    is_dead: bool,
    is_kernel: bool,
    /// Its own and that of its children that were waited for.
    ticks: u64,
}

impl Seen {
    fn parse(text: &str) -> Option<Self> {
        // The name may contain anything, parentheses and spaces too.
        let (head, rest) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let ticks = [11, 12, 13, 14].into_iter().map(number).sum::<Option<u64>>()?;
        Some(Self {
            name: name.to_owned(),
            parent: u32::try_from(number(1)?).ok()?,
            is_dead: matches!(*fields.first()?, "Z" | "X"),
            is_kernel: number(6)? & PF_KTHREAD != 0,
            ticks,
        })
    }
}

/// Processes that are none of the run's.
#[derive(Clone, Debug, Default, PartialEq)]
struct Others {
    /// Name and ticks, by process.
    processes: BTreeMap<u32, (String, u64)>,
    /// Time of all processes that can be seen, the run's own and the kernel's too.
    visible: Duration,
}

impl Others {
    /// Leaves out what is `inside`, and `root` with its descendants.
    fn of(all: Vec<(u32, Seen, bool)>, root: u32) -> Self {
        let parents: BTreeMap<u32, u32> = all.iter().map(|(pid, seen, _)| (*pid, seen.parent)).collect();
        let descends = |pid: u32| {
            // Bounded: the table is read while it changes, and could show a circle.
            std::iter::successors(Some(pid), |pid| parents.get(pid).copied()).take(64).any(|pid| pid == root)
        };
        let ticks = all.iter().map(|(_, seen, _)| seen.ticks).sum::<u64>();
        let visible = tick() * u32::try_from(ticks).unwrap_or(u32::MAX);
        let is_foreign =
            |(pid, seen, inside): &(u32, Seen, bool)| !inside && !seen.is_kernel && !descends(*pid);
        let foreign = all.into_iter().filter(is_foreign);
        Self { processes: foreign.map(|(pid, seen, _)| (pid, (seen.name, seen.ticks))).collect(), visible }
    }

    /// CPU time they used, and the names of those that used most of it.
    ///
    /// The sum is right although processes end: what one that ended had used until `before` is taken from what its parent
    /// got for waiting for it.
    fn since(&self, before: &Self) -> (Duration, Vec<String>) {
        let sum = |of: &Self| of.processes.values().map(|(_, ticks)| ticks).sum::<u64>();
        let ticks = sum(self).saturating_sub(sum(before));
        let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
        for (pid, (name, ticks)) in &self.processes {
            let earlier = before.processes.get(pid).map_or(0, |(_, ticks)| *ticks);
            *by_name.entry(name).or_default() += ticks.saturating_sub(earlier);
        }
        let mut names: Vec<(&str, u64)> = by_name.into_iter().filter(|(_, ticks)| *ticks > 0).collect();
        names.sort_by_key(|(_, ticks)| std::cmp::Reverse(*ticks));
        let names = names.into_iter().take(3).map(|(name, _)| name.to_owned()).collect();
        (tick() * u32::try_from(ticks).unwrap_or(u32::MAX), names)
    }
}

/// What was taken from the run.
#[derive(Debug)]
struct Taken {
    seconds: f64,
    foreign: (Duration, Vec<String>),
    stolen: Duration,
    /// By processes that cannot be seen, such as those outside of a container.
    hidden: Duration,
    /// Processors of the machine.
    processors: f64,
}

impl Taken {
    fn too_much(&self) -> Option<String> {
        let share = |time: Duration| time.as_secs_f64() / self.seconds.max(0.001);
        let (foreign, stolen, hidden) = (share(self.foreign.0), share(self.stolen), share(self.hidden));
        // Ticks are coarse: in a short sample two of them are no load.
        let seen = foreign + stolen > FOREIGN_MAX.max(FOREIGN_SHARE * self.processors)
            && self.foreign.0 + self.stolen > 2 * tick();
        if !seen && hidden <= HIDDEN_MAX {
            return None;
        }
        let mut parts = Vec::new();
        if foreign > 0.01 {
            parts.push(format!("{} used {foreign:.2} processors", self.foreign.1.join(", ")));
        }
        if stolen > 0.01 {
            parts.push(format!("the hypervisor took {stolen:.2} processors"));
        }
        if hidden > HIDDEN_MAX {
            parts.push(format!("processes that cannot be seen from here used {hidden:.2} processors"));
        }
        Some(parts.join("; "))
    }
}

/// Looks at the machine for a while without doing anything; tells what else is running on it.
///
/// **Errors:** `/proc` is not what it should be.
pub fn watch(own: &Own, time: Duration) -> io::Result<Option<String>> {
    let before = Reading::before(&[], own)?;
    crate::lab::pause(time);
    Ok(Reading::after(&[], own)?.since(&before).disturbed)
}

#[cfg(test)]
mod tests;
