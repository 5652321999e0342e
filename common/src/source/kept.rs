//! Which waypoints were ready, over a restart: one `<namespace>/<name>` a line, in a file of its own.
//!
//! Whoever lost the file takes a waypoint whose pods are all gone for one that was never there, and lets traffic pass it by.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::model::l7::GatewayKey;

const NAME: &str = "waypoints";
/// First line, with the version of the form.
const MAGIC: &str = "culvert waypoints 1";
/// Largest file that is read: ten thousand of the longest names.
const SIZE_MAX: u64 = 8 << 20;

/// The file.
#[derive(Clone, Debug)]
pub struct Kept {
    dir: PathBuf,
}

impl Kept {
    /// A file in `dir`, which need not exist.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// What it says; nothing, with a log line, if it cannot be read.
    pub fn load(&self) -> BTreeSet<GatewayKey> {
        let path = self.dir.join(NAME);
        match read(&path) {
            Ok(text) => parse(&text).unwrap_or_else(|| {
                tracing::warn!(target: "state", path = %path.display(), "not a list of waypoints; it is written anew");
                BTreeSet::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                tracing::warn!(target: "state", %error, path = %path.display(), "cannot read which waypoints were ready");
                BTreeSet::new()
            }
        }
    }

    /// Writes it anew, in one step.
    ///
    /// **Errors**: the folder cannot be made or written to; the file is as it was.
    pub fn save(&self, waypoints: &BTreeSet<GatewayKey>) -> io::Result<()> {
        let path = self.dir.join(NAME);
        if waypoints.is_empty() && !path.exists() {
            return Ok(()); // most meshes have none
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let new = self.dir.join(format!("{NAME}.new"));
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        let lines: String = waypoints.iter().map(|key| format!("{key}\n")).collect();
        file.write_all(format!("{MAGIC}\n{lines}").as_bytes())?;
        file.sync_data()?;
        fs::rename(new, path)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(SIZE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str) -> Option<BTreeSet<GatewayKey>> {
    let mut lines = text.lines();
    (lines.next()? == MAGIC).then_some(())?;
    let key = |line: &str| {
        let (namespace, name) = line.split_once('/')?;
        Some(GatewayKey { namespace: namespace.into(), name: name.into() })
    };
    lines.map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_again() {
        let dir = std::env::temp_dir().join(format!("culvert-kept-{}", std::process::id()));
        let kept = Kept::new(dir.join("below"));
        assert_eq!(kept.load(), BTreeSet::new());
        kept.save(&BTreeSet::new()).unwrap();
        assert!(!dir.exists(), "nothing is written for nothing");
        let key = |name: &str| GatewayKey { namespace: "shop".into(), name: name.into() };
        let all = BTreeSet::from([key("a"), key("b.c")]);
        kept.save(&all).unwrap();
        assert_eq!(kept.load(), all);
        kept.save(&BTreeSet::new()).unwrap();
        assert_eq!(kept.load(), BTreeSet::new());
        fs::write(dir.join("below").join(NAME), "something else\na/b\n").unwrap();
        assert_eq!(kept.load(), BTreeSet::new());
        fs::write(dir.join("below").join(NAME), format!("{MAGIC}\nno slash\n")).unwrap();
        assert_eq!(kept.load(), BTreeSet::new());
        fs::remove_dir_all(dir).unwrap();
    }
}
