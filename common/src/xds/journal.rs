//! The last state on disk, so that a restarted agent need not wait for the discovery server. No keys are in it.
//!
//! What could be used of each push is appended as it came, with a checksum for each record; the translation at the next
//! start is the same as for what a server sends, and the versions tell the server what to leave out. When most of the file
//! is out of date it is written anew beside itself and takes its place in one step. A file of another mesh, node or form
//! is not read. Losing the file loses time only: whatever goes wrong here is logged once, and the agent goes on.
//! Start with [`Journal::load`], then [`Journal::flush`].

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::Crc;
use prost::Message;

use super::proto::discovery::Resource;
use super::store::{Kind, Log};

const NAME: &str = "state.xds";
const LOCK: &str = "lock";
/// Stands in place of a type and a name: all types had been told by then.
const COMPLETE: &str = "complete";
/// First line, with the version of the form.
const MAGIC: &str = "culvert discovery state 1";
/// Largest record: a resource of the largest size that is taken, its names and its version.
const RECORD_MAX: usize = (1 << 20) + (64 << 10);
/// Longest first line.
const HEADER_MAX: usize = 4096;
/// Bytes with which a write does not wait.
const PENDING_FULL: usize = 1 << 20;
/// Bytes that wait for another agent to let go of the folder.
const PENDING_MAX: usize = 32 << 20;
/// A file of so many bytes is never too long.
const SMALL: u64 = 4 << 20;

/// One thing that was said.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(string, tag = "1")]
    type_url: String,
    /// Of what is gone.
    #[prost(string, tag = "2")]
    removed: String,
    #[prost(message, optional, tag = "3")]
    resource: Option<Resource>,
}

impl Record {
    fn name(&self) -> &str {
        self.resource.as_ref().map_or(&self.removed, |resource| &resource.name)
    }
}

/// What is read back, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Told {
    /// It was there.
    There(Kind, Resource),
    /// It was gone.
    Gone(Kind, String),
    /// Everything had been told once.
    Complete,
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("{} cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is of another mesh, node or version of this agent ({seen:?}): it is not used", path.display())]
    Foreign { path: PathBuf, seen: String },
}

/// The file and what is to be appended to it.
pub(super) struct Journal {
    dir: PathBuf,
    header: String,
    /// Held by whoever writes.
    lock: Option<File>,
    /// Open for appending, once it is known to be this agent's.
    file: Option<File>,
    size: u64,
    pending: Vec<u8>,
    /// It cannot be written: that was logged.
    has_failed: bool,
}

impl Journal {
    /// Nothing is read or written yet. `owner` tells apart whose state it is: mesh and node.
    pub(super) fn new(dir: PathBuf, owner: &str) -> Self {
        let owner: String = owner.chars().filter(|c| !c.is_control()).take(HEADER_MAX / 8).collect();
        let header = format!("{MAGIC} {owner}\n");
        Self { dir, header, lock: None, file: None, size: 0, pending: Vec::new(), has_failed: false }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Reads what is there, up to the first record that is damaged. Returns how old the file is; `None` if there is none.
    ///
    /// **Errors**: it cannot be read, or is not this agent's; the next write begins a new one.
    pub(super) fn load(&self, mut each: impl FnMut(Told)) -> Result<Option<Duration>, LoadError> {
        let path = self.path();
        let failed = |source| LoadError::Io { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let modified = file.metadata().and_then(|meta| meta.modified()).map_err(failed)?;
        let mut reader = BufReader::new(file);
        let seen = read_header(&mut reader).map_err(failed)?;
        if seen != self.header {
            return Err(LoadError::Foreign { path, seen: seen.trim_end().chars().take(200).collect() });
        }
        let mut records = Records(reader);
        while let Some((record, _)) = records.next().map_err(failed)? {
            if record.type_url.is_empty() {
                each(Told::Complete);
                continue;
            }
            let Some(kind) = Kind::of(&record.type_url) else { continue };
            each(match record.resource {
                Some(resource) => Told::There(kind, resource),
                None => Told::Gone(kind, record.removed),
            });
        }
        Ok(Some(SystemTime::now().duration_since(modified).unwrap_or_default()))
    }

    /// Everything has been told once.
    pub(super) fn complete(&mut self) {
        self.note(&Record { type_url: String::new(), removed: COMPLETE.to_owned(), resource: None });
    }

    /// Whether there is so much to be written that it should not wait.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_FULL
    }

    /// Whether there is anything to be written.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes what waits. `held` is about how many bytes of the file are not out of date.
    pub(super) fn flush(&mut self, held: usize) {
        match self.write(held) {
            Ok(true) => self.pending = Vec::new(),
            Ok(false) if self.pending.len() < PENDING_MAX => {}
            Ok(false) => self.fail("another process has held its lock for too long"),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn fail(&mut self, why: &str) {
        (self.has_failed, self.file, self.lock, self.pending) = (true, None, None, Vec::new());
        let path = self.path();
        tracing::warn!(
            target: "xds", path = %path.display(), why,
            "the last state is not kept for the next start; is the folder writable and not full?"
        );
    }

    /// False: another agent still writes.
    fn write(&mut self, held: usize) -> io::Result<bool> {
        if self.has_failed || self.pending.is_empty() {
            return Ok(true);
        }
        if !self.lock()? {
            return Ok(false);
        }
        self.append()?;
        if self.size > SMALL.max(3 * held as u64) {
            self.compact()?;
        }
        Ok(true)
    }

    fn lock(&mut self) -> io::Result<bool> {
        if self.lock.is_some() {
            return Ok(true);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).append(true).mode(0o600).open(self.dir.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => self.lock = Some(lock),
            Err(fs::TryLockError::WouldBlock) => return Ok(false),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        self.adopt()?;
        Ok(true)
    }

    /// Goes on with the file that is there, if it is this agent's.
    fn adopt(&mut self) -> io::Result<()> {
        let path = self.path();
        let Ok(file) = File::open(&path) else { return Ok(()) };
        let mut reader = BufReader::new(file);
        if read_header(&mut reader)? != self.header {
            return Ok(());
        }
        let (mut records, mut good) = (Records(reader), self.header.len() as u64);
        while let Some((_, size)) = records.next()? {
            good += size;
        }
        // What follows the last good record would hide what is appended.
        let file = OpenOptions::new().append(true).open(&path)?;
        file.set_len(good)?;
        (self.file, self.size) = (Some(file), good);
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let made = self.replace(|_| Ok(()))?;
                self.file.insert(made)
            }
        };
        file.write_all(&self.pending)?;
        self.size += self.pending.len() as u64;
        Ok(())
    }

    /// Keeps the last word on each name.
    fn compact(&mut self) -> io::Result<()> {
        let path = self.path();
        let mut last = HashMap::new();
        let mut records = Records::after_header(&path)?;
        let mut count = 0u64;
        while let Some((record, _)) = records.next()? {
            last.insert((record.type_url.clone(), record.name().to_owned()), count);
            count += 1;
        }
        let file = self.replace(|to| {
            let (mut records, mut at) = (Records::after_header(&path)?, 0u64);
            while let Some((record, _)) = records.next()? {
                let is_last = last.get(&(record.type_url.clone(), record.name().to_owned())) == Some(&at);
                if is_last && (record.resource.is_some() || record.type_url.is_empty()) {
                    to.write_all(&encode(&record))?;
                }
                at += 1;
            }
            Ok(())
        })?;
        self.file = Some(file);
        Ok(())
    }

    /// Makes a new file and puts it in the old one's place in one step.
    fn replace(&mut self, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<File> {
        let new = self.dir.join(format!("{NAME}.new"));
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        let mut writer = BufWriter::new(&file);
        writer.write_all(self.header.as_bytes())?;
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        file.sync_data()?;
        self.size = file.metadata()?.len();
        fs::rename(&new, self.path())?;
        // Its position is its end.
        Ok(file)
    }
}

impl Log for Journal {
    fn there(&mut self, kind: Kind, resource: &Resource) {
        let resource = Some(resource.clone()); // the body is shared
        self.note(&Record { type_url: kind.url().to_owned(), removed: String::new(), resource });
    }

    fn gone(&mut self, kind: Kind, name: &str) {
        self.note(&Record { type_url: kind.url().to_owned(), removed: name.to_owned(), resource: None });
    }
}

impl Journal {
    fn note(&mut self, record: &Record) {
        if !self.has_failed {
            self.pending.extend_from_slice(&encode(record));
        }
    }
}

/// Length, checksum, record.
fn encode(record: &Record) -> Vec<u8> {
    let body = record.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], &checksum(&body).to_le_bytes(), &body].concat()
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn read_header(reader: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < HEADER_MAX && reader.read(&mut byte)? == 1 {
        line.extend_from_slice(&byte);
        if byte == [b'\n'] {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Records up to the end, or to the first that is damaged.
struct Records(BufReader<File>);

impl Records {
    fn after_header(path: &Path) -> io::Result<Self> {
        let mut reader = BufReader::new(File::open(path)?);
        read_header(&mut reader)?;
        Ok(Self(reader))
    }

    fn next(&mut self) -> io::Result<Option<(Record, u64)>> {
        let (mut length, mut sum) = ([0; 4], [0; 4]);
        if !(self.fill(&mut length)? && self.fill(&mut sum)?) {
            return Ok(None);
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > RECORD_MAX {
            return Ok(None);
        }
        let mut body = vec![0; length];
        if !self.fill(&mut body)? || checksum(&body) != u32::from_le_bytes(sum) {
            return Ok(None);
        }
        Ok(Record::decode(bytes::Bytes::from(body)).ok().map(|record| (record, length as u64 + 8)))
    }

    /// False if the file ends before.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.0.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
