//! The recording while it grows, and the files it becomes.
//!
//! The thread that measures adds to it; the one that waits for signals may close it at any time and write what is there.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context as _;

use super::record::{About, FORMAT, Recording, Sample};
use super::report;

/// The recording.
pub const JSON: &str = "bench.json";
/// The report.
pub const HTML: &str = "bench.html";
/// More than a long run writes: asked for before it begins.
const ROOM: usize = 4 << 20;

/// A directory and what will stand in it.
#[derive(Debug)]
pub struct Keeper {
    dir: PathBuf,
    begin: Instant,
    state: Mutex<State>,
    /// Held while files are written.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    recording: Recording,
    is_closed: bool,
}

impl Keeper {
    /// Makes the directory and tries whether there is room.
    ///
    /// **Errors:** it cannot be made or written, or the disk is full; nothing is left behind then.
    pub fn open(dir: &Path, about: About) -> anyhow::Result<Self> {
        let made = !dir.exists();
        fs::create_dir_all(dir).with_context(|| {
            format!("make the directory {} for the results; name another one with --output", dir.display())
        })?;
        if let Err(e) = probe(dir) {
            if made {
                let _only_if_empty = fs::remove_dir(dir);
            }
            return Err(e).with_context(|| {
                format!(
                    "write {} MiB to {} for the results; make room, or name another directory with --output",
                    ROOM >> 20,
                    dir.display()
                )
            });
        }
        let recording =
            Recording { format: FORMAT, about, modes: Vec::new(), works: Vec::new(), samples: Vec::new() };
        let state = Mutex::new(State { recording, is_closed: false });
        Ok(Self { dir: dir.to_owned(), begin: Instant::now(), state, writing: Mutex::new(()) })
    }

    /// Changes the recording, unless it is closed.
    pub fn update(&self, change: impl FnOnce(&mut Recording)) {
        let mut state = lock(&self.state);
        if !state.is_closed {
            change(&mut state.recording);
        }
    }

    /// Adds a sample, unless it is closed.
    pub fn add(&self, sample: Sample) {
        self.update(|recording| recording.samples.push(sample));
    }

    /// Seconds since the begin.
    pub fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// What there is so far.
    pub fn recording(&self) -> Recording {
        lock(&self.state).recording.clone()
    }

    /// From now on nothing is added: what follows a signal is no measurement.
    pub fn close(&self) -> Recording {
        let mut state = lock(&self.state);
        if !state.is_closed {
            state.is_closed = true;
            state.recording.about.seconds = self.seconds();
        }
        state.recording.clone()
    }

    /// Writes the recording and its report, each whole or not at all. Without any sample nothing is written, and the
    /// directory is removed if it is empty.
    ///
    /// **Errors:** the disk is full.
    pub fn save(&self) -> anyhow::Result<Option<Saved>> {
        let recording = self.close();
        let _one_at_a_time = lock(&self.writing);
        if recording.samples.is_empty() {
            let _only_if_empty = fs::remove_dir(&self.dir);
            return Ok(None);
        }
        let mut json = serde_json::to_vec_pretty(&recording).context("make JSON of the recording")?;
        json.push(b'\n');
        let saved = Saved { json: self.dir.join(JSON), html: self.dir.join(HTML) };
        put(&saved.json, &json)?;
        write_report(&self.dir, &recording)?;
        Ok(Some(saved))
    }
}

/// Files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The recording.
    pub json: PathBuf,
    /// The report.
    pub html: PathBuf,
}

/// Writes the report and its plots into a directory; returns the report's path.
///
/// **Errors:** the directory cannot be written, or the disk is full.
pub fn write_report(dir: &Path, recording: &Recording) -> anyhow::Result<PathBuf> {
    let html = dir.join(HTML);
    put(&html, report::html(recording).as_bytes())?;
    for (name, svg) in report::plots(recording) {
        put(&dir.join(name), svg.as_bytes())?;
    }
    Ok(html)
}

/// Writes a file, whole or not at all.
fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let write = || {
        let mut file = fs::File::create(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&draft)))
        .with_context(|| format!("write {}", path.display()))
}

fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".probe-{}", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&path)?;
        file.write_all(&vec![b'x'; ROOM])?;
        file.sync_all()
    };
    let written = write();
    let _if_it_was_made = fs::remove_file(&path);
    written
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("culvert-keep-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _gone = fs::remove_dir_all(&self.0);
        }
    }

    fn sample() -> Sample {
        Sample { round: 1, mode: "direct".to_owned(), work: "c1".to_owned(), ..Sample::default() }
    }

    #[test]
    fn what_was_measured_can_be_read_again() {
        let dir = Dir::new("saved");
        let keeper = Keeper::open(&dir.0.join("deep"), About::default()).unwrap();
        keeper.add(sample());
        let saved = keeper.save().unwrap().unwrap();
        let read: Recording = serde_json::from_slice(&fs::read(&saved.json).unwrap()).unwrap();
        assert_eq!(read, keeper.recording());
        assert_eq!(read.samples, [sample()]);
        assert!(saved.html.is_file());
        let names = fs::read_dir(dir.0.join("deep")).unwrap().flatten();
        assert!(names.into_iter().all(|e| !e.file_name().to_string_lossy().contains("draft")));
    }

    #[test]
    fn nothing_is_added_once_it_is_closed() {
        let dir = Dir::new("closed");
        let keeper = Keeper::open(&dir.0, About::default()).unwrap();
        keeper.add(sample());
        assert_eq!(keeper.close().samples.len(), 1);
        keeper.add(sample());
        assert_eq!(keeper.recording().samples.len(), 1);
    }

    #[test]
    fn without_a_sample_nothing_is_left() {
        let dir = Dir::new("empty");
        let keeper = Keeper::open(&dir.0, About::default()).unwrap();
        assert_eq!(keeper.save().unwrap(), None);
        assert!(!dir.0.exists());
    }

    #[test]
    fn a_directory_that_cannot_be_is_told_before_anything_is_measured() {
        let dir = Dir::new("file");
        fs::write(&dir.0, "").unwrap();
        let error = Keeper::open(&dir.0.join("below"), About::default()).unwrap_err();
        assert!(format!("{error:#}").contains("--output"), "{error:#}");
        fs::remove_file(&dir.0).unwrap();
    }
}
