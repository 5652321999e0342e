//! How much memory the process may use: the limit of its cgroup, or the machine's.

use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

/// Without a limit of the cgroup's, the budget is no larger than this.
const UNLIMITED: u64 = 512 << 20;
/// Never less, or not one stream would have its window.
const LEAST: u64 = 16 << 20;
/// cgroup v1 says "no limit" by a number near 2^63.
const NO_LIMIT: u64 = 1 << 60;

/// Default of the byte budget: half of the cgroup's limit; without one, 512 MiB or a quarter of the machine's memory,
/// whichever is less.
pub(crate) fn default_budget() -> u64 {
    budget_of(&|path| std::fs::read_to_string(path).ok())
}

/// Default of the connections that one pod may have open: a quarter of the limit of open files.
pub(crate) fn default_connections() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    usize::try_from(soft / 4).unwrap_or(usize::MAX).max(64)
}

fn budget_of(read: &impl Fn(&Path) -> Option<String>) -> u64 {
    let budget = match cgroup_limit(read) {
        Some(limit) => limit / 2,
        None => machine(read).map_or(UNLIMITED, |all| (all / 4).min(UNLIMITED)),
    };
    budget.max(LEAST)
}

/// The tightest limit of the cgroup and those above it, v2 or v1.
fn cgroup_limit(read: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let own = read(Path::new("/proc/self/cgroup"))?;
    own.lines().filter_map(|line| limit_of(line, read)).min()
}

/// **Shape**: `line` of `/proc/self/cgroup`, `<id>:<controllers>:<path>`; v2 has no controllers.
fn limit_of(line: &str, read: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        v1 if v1.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let own = PathBuf::from(root).join(path.trim_start_matches('/'));
    // In a container the path is the host's and may not exist; the container's own is then mounted at the root.
    let dirs = own.ancestors().take_while(|dir| dir.starts_with(root));
    let limits = dirs.filter_map(|dir| read(&dir.join(file))?.trim().parse::<u64>().ok());
    limits.filter(|&limit| limit < NO_LIMIT).min()
}

fn machine(read: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let text = read(Path::new("/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn of(files: &[(&str, &str)]) -> u64 {
        budget_of(&|path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn half_of_the_tightest_cgroup_limit() {
        let v2 = ("/proc/self/cgroup", "0::/kubepods/pod1/agent\n");
        let v1 = ("/proc/self/cgroup", "7:cpu,cpuacct:/x\n4:memory:/docker/abc\n");
        let meminfo = ("/proc/meminfo", "MemTotal:       1048576 kB\nMemFree: 1 kB\n");
        for (what, files, expected) in [
            (
                "v2, own",
                vec![v2, ("/sys/fs/cgroup/kubepods/pod1/agent/memory.max", "268435456\n")],
                128 * MIB,
            ),
            (
                "v2, the parent's is tighter",
                vec![
                    v2,
                    ("/sys/fs/cgroup/kubepods/pod1/agent/memory.max", "max\n"),
                    ("/sys/fs/cgroup/kubepods/pod1/memory.max", "134217728\n"),
                ],
                64 * MIB,
            ),
            (
                "v2 in a container",
                vec![("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "209715200\n")],
                100 * MIB,
            ),
            (
                "v1",
                vec![v1, ("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "104857600\n")],
                50 * MIB,
            ),
            (
                "v1 without a limit",
                vec![
                    v1,
                    ("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n"),
                    meminfo,
                ],
                256 * MIB,
            ),
            ("no limit, a large machine", vec![v2, ("/proc/meminfo", "MemTotal: 67108864 kB\n")], 512 * MIB),
            ("nothing to be read", vec![], 512 * MIB),
            ("a very small limit", vec![v2, ("/sys/fs/cgroup/memory.max", "1048576\n")], 16 * MIB),
        ] {
            assert_eq!(of(&files), expected, "{what}");
        }
    }
}
