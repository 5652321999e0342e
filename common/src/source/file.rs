//! A directory of Kubernetes objects in YAML or JSON, re-read on change.
//!
//! Reading is all or nothing: while anything in the directory is wrong, the last good state stays in force. Files are
//! found below the directory, hidden ones and hidden directories left out, symbolic links followed: so the links of a
//! mounted ConfigMap are read, and the directories they point into are not read twice.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::kube::{Document, Settings, Translated, translate};
use crate::config::Problem;
use crate::state::State;

/// Most text that a directory may hold, in bytes. A pod in `kubectl get -o yaml` takes about 8 KiB.
const BYTES_MAX: u64 = 64 << 20;
/// Most files and directories.
const FILES_MAX: usize = 10_000;
/// Deepest directory below the one that is named.
const DEPTH_MAX: usize = 8;
/// Quiet time after a change before the directory is read: editors and copies change a file in several steps.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Longest time that changes which never pause can put off reading.
const DEBOUNCE_MAX: Duration = Duration::from_secs(1);
/// Time between looks at the directory without any event, for file systems and links whose changes make none.
const RESCAN: Duration = Duration::from_secs(3);

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It, or something in it, cannot be read.
    #[error("{} cannot be read; check that it exists and its permissions", path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is more than the bounds of this module allow.
    #[error("{} holds {what}; name a directory with configuration only", dir.display())]
    TooMuch {
        /// The directory.
        dir: PathBuf,
        /// More than what.
        what: String,
    },
    /// The objects in it are wrong; all problems, one a line.
    #[error("{} problem(s) in the configuration:\n{}", .0.len(), lines(.0))]
    Problems(Vec<Problem>),
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// How one reading of a changed directory ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// The new content is in force.
    Published {
        /// Revision of the state.
        revision: u64,
        /// Number of warnings.
        warnings: usize,
    },
    /// The new content is wrong or unreadable; what was in force stays.
    Refused {
        /// Number of problems.
        problems: usize,
    },
}

/// Reads `dir` once.
///
/// **Errors**: unreadable, too much, or all problems of all files.
pub fn load(dir: &Path, settings: &Settings) -> Result<Translated, LoadError> {
    Scan::of(dir)?.read()?.translate(settings)
}

/// Publishes what `dir` says into `state`, now and whenever it changes, until dropped. Logs each problem once, and
/// tells `on_result` of each new content, good or bad. Cancel-safe.
pub async fn watch(dir: PathBuf, settings: Settings, state: Arc<State>, on_result: impl Fn(ReloadOutcome)) {
    let mut source = FileSource { dir, settings, scan: None, seen: None };
    let watches = Watches::new();
    loop {
        watches.cover(&source.dir);
        // Read after watching: what changes in between makes an event.
        if let Some(outcome) = source.reload(&state) {
            on_result(outcome);
        }
        loop {
            let told = timeout(RESCAN, watches.changed()).await.is_ok();
            if told || source.has_changed() {
                break;
            }
        }
        watches.settled().await;
    }
}

/// The directory and what was last seen in it.
struct FileSource {
    dir: PathBuf,
    settings: Settings,
    /// Names, sizes and times as of the last reading.
    scan: Option<Scan>,
    /// Hash of the content, or of the error, that was last reported.
    seen: Option<u64>,
}

impl FileSource {
    /// Whether names, sizes or times differ from the last reading.
    fn has_changed(&self) -> bool {
        Scan::of(&self.dir).ok() != self.scan
    }

    /// Reads the directory and publishes it if it is good; none if it says what it said before.
    fn reload(&mut self, state: &State) -> Option<ReloadOutcome> {
        let scan = Scan::of(&self.dir);
        self.scan = scan.as_ref().ok().cloned();
        let texts = scan.and_then(|scan| scan.read());
        let hash = match &texts {
            Ok(texts) => texts.hash(),
            Err(error) => hash(&(1, error.to_string())),
        };
        if self.seen.replace(hash) == Some(hash) {
            return None;
        }
        Some(match texts.and_then(|texts| texts.translate(&self.settings)) {
            Ok(Translated { model, warnings }) => {
                for warning in &warnings {
                    tracing::warn!(target: "state", "{warning}");
                }
                let revision = state.publish(model);
                tracing::info!(target: "state", revision, dir = %self.dir.display(), "configuration in force");
                ReloadOutcome::Published { revision, warnings: warnings.len() }
            }
            Err(LoadError::Problems(problems)) => {
                for problem in &problems {
                    tracing::error!(target: "state", "{problem}");
                }
                ReloadOutcome::Refused { problems: problems.len() }
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::error!(target: "state", cause, "{error}");
                ReloadOutcome::Refused { problems: 1 }
            }
        })
    }
}

/// What distinguishes one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The files of a directory, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Scan {
    dir: PathBuf,
    files: BTreeMap<PathBuf, Stamp>,
}

impl Scan {
    fn of(dir: &Path) -> Result<Self, LoadError> {
        let mut scan = Self { dir: dir.to_owned(), files: BTreeMap::new() };
        let mut entries = 0;
        let mut dirs = vec![(dir.to_owned(), 0)];
        while let Some((at, depth)) = dirs.pop() {
            for entry in fs::read_dir(&at).map_err(|source| io_error(&at, source))? {
                let path = entry.map_err(|source| io_error(&at, source))?.path();
                entries += 1;
                if entries > FILES_MAX {
                    return Err(scan.too_much(format!("more than {FILES_MAX} files")));
                }
                let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
                let extension = path.extension().and_then(|extension| extension.to_str());
                if is_hidden {
                    continue;
                }
                let wanted = matches!(extension, Some("yaml" | "yml" | "json"));
                match fs::metadata(&path) {
                    Ok(meta) if meta.is_dir() && depth < DEPTH_MAX => dirs.push((path, depth + 1)),
                    Ok(meta) if meta.is_dir() => {
                        return Err(scan.too_much(format!("directories deeper than {DEPTH_MAX}")));
                    }
                    Ok(meta) if wanted && meta.is_file() => drop(scan.files.insert(path, stamp(&meta))),
                    Err(source) if wanted => return Err(io_error(&path, source)),
                    _ => {}
                }
            }
        }
        Ok(scan)
    }

    fn too_much(&self, what: String) -> LoadError {
        LoadError::TooMuch { dir: self.dir.clone(), what }
    }

    fn read(&self) -> Result<Texts, LoadError> {
        let mut texts = Vec::with_capacity(self.files.len());
        let mut left = BYTES_MAX;
        for path in self.files.keys() {
            // O_NONBLOCK: a pipe that took the file's place must not hold the agent.
            let open = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
            let mut bytes = Vec::new();
            let read = open.and_then(|file| file.take(left + 1).read_to_end(&mut bytes));
            let read = read.map_err(|source| io_error(path, source))? as u64;
            left = left
                .checked_sub(read)
                .ok_or_else(|| self.too_much(format!("more than {} MiB of text", BYTES_MAX >> 20)))?;
            texts.push((path.display().to_string(), bytes));
        }
        Ok(Texts(texts))
    }
}

fn io_error(path: &Path, source: io::Error) -> LoadError {
    LoadError::Io { path: path.to_owned(), source }
}

fn stamp(meta: &fs::Metadata) -> Stamp {
    Stamp {
        inode: meta.ino(),
        size: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    }
}

/// Names and content of all files.
struct Texts(Vec<(String, Vec<u8>)>);

impl Texts {
    fn hash(&self) -> u64 {
        hash(&(0, &self.0))
    }

    fn translate(&self, settings: &Settings) -> Result<Translated, LoadError> {
        let mut problems = Vec::new();
        let mut documents = Vec::with_capacity(self.0.len());
        for (file, bytes) in &self.0 {
            match std::str::from_utf8(bytes) {
                Ok(text) => documents.push(Document { file, text }),
                Err(error) => problems.push(Problem {
                    file: file.clone(),
                    line: bytes.iter().take(error.valid_up_to()).filter(|b| **b == b'\n').count() + 1,
                    object: String::new(),
                    field: String::new(),
                    seen: "bytes that are no UTF-8".into(),
                    allowed: "allowed: YAML or JSON in UTF-8".into(),
                }),
            }
        }
        match translate(&documents, settings) {
            Ok(translated) if problems.is_empty() => Ok(translated),
            Ok(_) => Err(LoadError::Problems(problems)),
            Err(more) => {
                problems.extend(more);
                Err(LoadError::Problems(problems))
            }
        }
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Events of the directory and of those below it. Without inotify (no descriptor left, say) only the rescan remains.
struct Watches {
    inotify: Option<AsyncFd<Fd>>,
}

/// Gives the descriptor's number, which the reactor asks for.
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watches {
    fn new() -> Self {
        let init = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(io::Error::from);
        #[expect(deprecated, reason = "its successor is unsafe; this descriptor's number never changes")]
        let inotify = init.and_then(|inotify| AsyncFd::new(Fd(inotify)));
        let inotify = inotify
            .inspect_err(|error| {
                tracing::warn!(target: "state", %error, "no inotify; changes are seen after {RESCAN:?} only");
            })
            .ok();
        Self { inotify }
    }

    /// Watches `dir` and the directories below it. A directory that is watched already stays so.
    fn cover(&self, dir: &Path) {
        let Some(inotify) = &self.inotify else { return };
        // Not IN_MODIFY: a file that is being written is read when its writer closes it.
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut dirs = vec![(dir.to_owned(), 0)];
        let mut count = 0;
        while let Some((at, depth)) = dirs.pop() {
            // What cannot be watched is seen by the rescan.
            let _ = inotify.get_ref().0.add_watch(&at, mask);
            let entries = fs::read_dir(&at).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()).take(FILES_MAX) {
                let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
                if !is_hidden && depth < DEPTH_MAX && count < FILES_MAX && path.is_dir() {
                    count += 1;
                    dirs.push((path, depth + 1));
                }
            }
        }
    }

    /// Resolves when something changed; takes the events. Cancel-safe.
    async fn changed(&self) {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
            let read = ready.try_io(|fd| fd.get_ref().0.read_events().map_err(io::Error::from));
            match read {
                Ok(Ok(_)) => return,
                Ok(Err(_)) => sleep(DEBOUNCE).await, // never spin on a broken descriptor
                Err(_) => {}                         // not ready after all
            }
        }
    }

    /// Resolves when nothing has changed for [`DEBOUNCE`], or after [`DEBOUNCE_MAX`].
    async fn settled(&self) {
        let quiet = async { while timeout(DEBOUNCE, self.changed()).await.is_ok() {} };
        let _ = timeout(DEBOUNCE_MAX, quiet).await;
    }
}
