//! A directory of Kubernetes objects in YAML or JSON, re-read on change.
//!
//! Reading is all or nothing: while anything in the directory is wrong, the last good state stays in force. Files are
//! found below the directory, hidden ones and hidden directories left out, symbolic links followed: so the links of a
//! mounted ConfigMap are read, and the directories they point into are not read twice.

mod watches;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use self::watches::Watches;

use super::kept::Kept;
use super::kube::{Document, Settings, Translated, translate, translate_waypoint};
use crate::config::{Problem, Stamp};
use crate::model::Model;
use crate::model::l7::GatewayKey;
use crate::net::memory;
use crate::state::State;

/// Most text that a directory may hold, in bytes. A pod in `kubectl get -o yaml` takes about 8 KiB.
const BYTES_MAX: u64 = 32 << 20;
/// Most files and directories.
const FILES_MAX: usize = 10_000;
/// Deepest directory below the one that is named.
const DEPTH_MAX: usize = 8;
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
    /// The content is in force: newly, or again after others that were refused.
    Published {
        /// Revision of the state.
        revision: u64,
        /// Number of warnings.
        warnings: usize,
    },
    /// The content is wrong or unreadable; what was in force stays.
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

/// Publishes what the directory says into `state`, now and whenever it changes, until dropped. Logs each problem once, and
/// tells `on_result` of each new content, good or bad. Cancel-safe.
pub async fn watch(mut source: FileSource, state: Arc<State>, on_result: impl Fn(ReloadOutcome)) {
    let watches = Watches::new();
    let mut is_new = false;
    loop {
        watches.cover(&source.dir);
        // Read after watching: what changes in between makes an event.
        if let Some(outcome) = source.reload(&state) {
            on_result(outcome);
            memory::give_back(); // reading takes several times what it leaves
            is_new = true;
        }
        loop {
            let told = timeout(RESCAN, watches.changed()).await.is_ok();
            if told || source.has_changed() {
                break;
            }
            // Whoever was deciding from the state before has let go of it by now.
            if std::mem::take(&mut is_new) {
                memory::give_back();
            }
        }
        watches.settled().await;
    }
}

/// The directory and what was last seen in it.
pub struct FileSource {
    dir: PathBuf,
    settings: Settings,
    /// Names, sizes and times as of the last reading.
    scan: Option<Scan>,
    /// Hash of the content, or of the error, that was reported last.
    reported: Option<u64>,
    /// Hash of the content in force, its revision and its number of warnings.
    in_force: Option<(u64, u64, usize)>,
    /// What was read first, before anything could be published.
    first: Option<(u64, Translated)>,
    /// Warnings that were logged for it, not to be logged again with the next change.
    warned: Vec<Problem>,
    /// Where it is kept which waypoints were ready.
    kept: Option<Kept>,
}

impl FileSource {
    /// A directory that may be good or bad.
    pub fn new(dir: PathBuf, settings: Settings) -> Self {
        let (reported, in_force, first) = (None, None, None);
        Self { dir, settings, scan: None, reported, in_force, first, warned: Vec::new(), kept: None }
    }

    /// A directory that is good now. What was read is published by [`watch`], if it is still there then.
    ///
    /// **Errors**: as [`load`].
    pub fn open(dir: PathBuf, settings: Settings) -> Result<Self, LoadError> {
        Self::open_keeping(dir, settings, None)
    }

    /// The same; which waypoints were ready is kept over a restart.
    ///
    /// **Errors**: as [`load`].
    pub fn open_keeping(dir: PathBuf, mut settings: Settings, kept: Option<Kept>) -> Result<Self, LoadError> {
        settings.bound = kept.as_ref().map(Kept::load).unwrap_or_default();
        let texts = Scan::of(&dir)?.read()?;
        let first = Some((texts.hash(), texts.translate(&settings)?));
        drop(texts);
        memory::give_back();
        Ok(Self { first, kept, ..Self::new(dir, settings) })
    }

    /// What was read when it was opened, until that is published.
    pub fn opened(&self) -> Option<&Model> {
        self.first.as_ref().map(|(_, translated)| &translated.model)
    }

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
        if self.reported.replace(hash) == Some(hash) {
            return None;
        }
        if let Some((_, revision, warnings)) = self.in_force.filter(|(in_force, ..)| *in_force == hash) {
            tracing::info!(target: "state", revision, "configuration is again what is in force");
            state.confirm();
            return Some(ReloadOutcome::Published { revision, warnings });
        }
        let translated = match self.first.take().filter(|(of, _)| *of == hash) {
            Some((_, translated)) => Ok(translated),
            None => texts.and_then(|texts| texts.translate(&self.settings)),
        };
        Some(match translated {
            Ok(translated) => self.publish(translated, hash, state),
            Err(error) => {
                state.mark_stale();
                refuse(&error)
            }
        })
    }

    fn publish(&mut self, translated: Translated, hash: u64, state: &State) -> ReloadOutcome {
        let Translated { model, warnings, bound, statuses: _ } = translated;
        self.keep(bound);
        for warning in warnings.iter().filter(|warning| self.warned.binary_search(warning).is_err()) {
            tracing::warn!(target: "state", "{warning}");
        }
        let revision = state.publish(model);
        tracing::info!(target: "state", revision, dir = %self.dir.display(), "configuration in force");
        let count = warnings.len();
        self.in_force = Some((hash, revision, count));
        self.warned = warnings; // in order, as all reports of the translation
        ReloadOutcome::Published { revision, warnings: count }
    }
}

impl FileSource {
    /// Remembers which waypoints were ready, for the next reading and for the next start.
    fn keep(&mut self, bound: BTreeSet<GatewayKey>) {
        if self.settings.bound == bound {
            return;
        }
        self.settings.bound = bound;
        let Some(Err(error)) = self.kept.as_ref().map(|kept| kept.save(&self.settings.bound)) else { return };
        let what = "cannot keep which waypoints were ready; after a restart, traffic of one without pods passes it by";
        tracing::warn!(target: "state", %error, "{what}");
    }
}

fn refuse(error: &LoadError) -> ReloadOutcome {
    let LoadError::Problems(problems) = error else {
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        tracing::error!(target: "state", cause, "{error}");
        return ReloadOutcome::Refused { problems: 1 };
    };
    refused(problems)
}

/// Logs each problem.
pub(super) fn refused(problems: &[Problem]) -> ReloadOutcome {
    for problem in problems {
        tracing::error!(target: "state", "{problem}");
    }
    ReloadOutcome::Refused { problems: problems.len() }
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
                    Ok(meta) if wanted && meta.is_file() => drop(scan.files.insert(path, Stamp::from(&meta))),
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
        let too_much = || self.too_much(format!("more than {} MiB of text", BYTES_MAX >> 20));
        let mut left = BYTES_MAX;
        if self.files.values().map(Stamp::size).fold(0, u64::saturating_add) > left {
            return Err(too_much());
        }
        for path in self.files.keys() {
            // O_NONBLOCK: a pipe that took the file's place must not hold the agent.
            let open = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
            let mut bytes = Vec::new();
            let read = open.and_then(|file| file.take(left + 1).read_to_end(&mut bytes));
            let read = read.map_err(|source| io_error(path, source))? as u64;
            left = left.checked_sub(read).ok_or_else(too_much)?;
            texts.push((path.display().to_string(), bytes));
        }
        Ok(Texts(texts))
    }
}

fn io_error(path: &Path, source: io::Error) -> LoadError {
    LoadError::Io { path: path.to_owned(), source }
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
        let translated = match &settings.waypoint {
            None => translate(&documents, settings),
            Some(gateway) => translate_waypoint(&documents, settings, gateway).map(Translated::from),
        };
        match translated {
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

#[cfg(test)]
mod tests;
