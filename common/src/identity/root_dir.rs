//! The embedded CA's roots on disk: the first made by whoever comes first, all read by every agent of the machine.
//!
//! A root is a pair `root-cert.pem` and `root-key.pem`, or `root-NAME-cert.pem` and `root-NAME-key.pem`. One without its
//! key is trusted and signs nothing.
//!
//! Both files of the first come to their names by `link(2)` from a complete, synced temporary file. `link` fails if the
//! name exists, so of several agents that start at once exactly one key wins, nobody reads half a file, and no lock can
//! be left behind. The certificate is made from the key that won: whichever agent's certificate wins fits it, and
//! an agent killed between the two files leaves a state that the next one completes.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::ca::CaError;

/// Name of the root that is made where there is none.
const FIRST: &str = "root";
const KEY: &str = "-key.pem";
const CERT: &str = "-cert.pem";
/// All these files have less than 2 KiB.
const SIZE_MAX: u64 = 64 * 1024;
/// Roots that overlap are two; more than this is a mistake.
const ROOTS_MAX: usize = 16;

/// One root as it is on disk.
pub(super) struct RootFiles {
    pub(super) cert_path: PathBuf,
    pub(super) key_path: PathBuf,
    pub(super) cert: CertificateDer<'static>,
    /// Where it is missing, the root is only trusted.
    pub(super) key: Option<KeyPair>,
}

/// All roots in `dir`; without any, the first is made, its certificate by `self_sign`.
pub(super) fn open_or_create(
    dir: &Path,
    self_sign: impl FnOnce(&KeyPair) -> Result<String, CaError>,
) -> Result<Vec<RootFiles>, CaError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(CaError::File { path: dir.to_owned(), wanted: "created", source: error });
        }
        _ => {}
    }
    check(dir)?;
    if names(dir)?.iter().all(|name| name == FIRST) {
        create_first(dir, self_sign)?;
    }
    read_all(dir)
}

/// All roots in `dir`, by name.
pub(super) fn read_all(dir: &Path) -> Result<Vec<RootFiles>, CaError> {
    check(dir)?;
    names(dir)?.iter().map(|name| read_root(dir, name)).collect()
}

fn read_root(dir: &Path, name: &str) -> Result<RootFiles, CaError> {
    let (cert_path, key_path) = (dir.join(format!("{name}{CERT}")), dir.join(format!("{name}{KEY}")));
    let key = read(&key_path, Access::Read)?.map(|pem| parse_key(&key_path, &pem)).transpose()?;
    let Some(pem) = read(&cert_path, Access::Write)? else {
        let seen = format!("is missing although {name}{KEY} is there");
        return Err(CaError::Content { path: cert_path, seen });
    };
    let mut certs = CertificateDer::pem_slice_iter(&pem);
    let refuse = |seen: &str| CaError::Content { path: cert_path.clone(), seen: seen.to_owned() };
    let cert = match certs.next() {
        Some(Ok(cert)) => cert,
        _ => return Err(refuse("holds no certificate in PEM")),
    };
    if certs.next().is_some() {
        return Err(refuse("holds more than one certificate, each root has a file of its own"));
    }
    Ok(RootFiles { cert_path, key_path, cert, key })
}

/// What changes when somebody changes a root; a look at it reads no key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Print(Vec<(String, [i64; 7])>);

/// The print of `dir` as it is now.
pub(super) fn print(dir: &Path) -> Result<Print, CaError> {
    check(dir)?;
    let mut files = Vec::new();
    for name in names(dir)? {
        for file in [format!("{name}{CERT}"), format!("{name}{KEY}")] {
            let seen = match dir.join(&file).symlink_metadata() {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(CaError::File { path: dir.join(file), wanted: "looked at", source });
                }
            };
            let (len, inode) = (seen.len().cast_signed(), seen.ino().cast_signed());
            let times = [seen.mtime(), seen.mtime_nsec(), seen.ctime(), seen.ctime_nsec()];
            files.push((file, [len, inode, i64::from(seen.mode()), times[0], times[1], times[2], times[3]]));
        }
    }
    Ok(Print(files))
}

/// Names of the roots of which `dir` has a file.
fn names(dir: &Path) -> Result<BTreeSet<String>, CaError> {
    let failed = |source| CaError::File { path: dir.to_owned(), wanted: "listed", source };
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let file = entry.map_err(failed)?.file_name();
        let Some(file) = file.to_str() else { continue };
        let Some(name) = file.strip_suffix(KEY).or_else(|| file.strip_suffix(CERT)) else { continue };
        if name == FIRST || name.strip_prefix(FIRST).is_some_and(|rest| rest.starts_with('-')) {
            names.insert(name.to_owned());
        }
        if names.len() > ROOTS_MAX {
            let (path, seen) = (dir.to_owned(), format!("holds more than {ROOTS_MAX} roots"));
            return Err(CaError::Content { path, seen });
        }
    }
    Ok(names)
}

fn create_first(
    dir: &Path,
    self_sign: impl FnOnce(&KeyPair) -> Result<String, CaError>,
) -> Result<(), CaError> {
    let (key_path, cert_path) = (dir.join(format!("{FIRST}{KEY}")), dir.join(format!("{FIRST}{CERT}")));
    let mut pem = read(&key_path, Access::Read)?;
    if pem.is_none() {
        if read(&cert_path, Access::Write)?.is_some() {
            // Perhaps another agent made both files since the first look.
            pem = read(&key_path, Access::Read)?;
            if pem.is_none() {
                return Err(keyless(&cert_path, key_path));
            }
        } else {
            let mut key = KeyPair::generate().map_err(CaError::SignRoot)?;
            let made = Zeroizing::new(key.serialize_pem());
            key.zeroize();
            publish(&key_path, &made)?;
            pem = read(&key_path, Access::Read)?;
        }
    }
    let pem = pem.ok_or_else(|| vanished(&key_path))?;
    let key = parse_key(&key_path, &pem)?;
    if read(&cert_path, Access::Write)?.is_none() {
        publish(&cert_path, &self_sign(&key)?)?;
    }
    Ok(())
}

/// No root can sign.
pub(super) fn keyless(cert_path: &Path, key_path: PathBuf) -> CaError {
    let cert = cert_path.file_name().unwrap_or_default().to_string_lossy();
    CaError::Content { path: key_path, seen: format!("is missing although {cert} is there") }
}

/// Refuses a directory that others can enter.
fn check(dir: &Path) -> Result<(), CaError> {
    let user = nix::unistd::geteuid().as_raw();
    let refuse = |seen: String| CaError::Directory { path: dir.to_owned(), seen, user };
    // Not through a symbolic link: whoever owns the link could choose the root.
    let seen = dir.symlink_metadata().map_err(|source| CaError::File {
        path: dir.to_owned(),
        wanted: "looked at",
        source,
    })?;
    if !seen.is_dir() {
        return Err(refuse("is no directory".to_owned()));
    }
    if seen.uid() != user {
        return Err(refuse(format!("belongs to user {}", seen.uid())));
    }
    let mode = seen.mode() & 0o7777;
    if mode != 0o700 {
        return Err(refuse(format!("has mode {mode:04o}")));
    }
    Ok(())
}

/// What others must not be able to do with a file.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

impl Access {
    fn refused_bits(self) -> u32 {
        match self {
            Self::Read => 0o077,
            Self::Write => 0o022,
        }
    }
}

/// Content of a file of the root; `None` if it does not exist.
fn read(path: &Path, refused: Access) -> Result<Option<Zeroizing<Vec<u8>>>, CaError> {
    let failed = |source| CaError::File { path: path.to_owned(), wanted: "read", source };
    // Non-blocking, so that a FIFO of that name cannot hold the start up.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(file) => file,
    };
    let user = nix::unistd::geteuid().as_raw();
    let meta = file.metadata().map_err(failed)?;
    let seen = if !meta.is_file() {
        Some("is no regular file".to_owned())
    } else if meta.uid() != user {
        Some(format!("belongs to user {}", meta.uid()))
    } else if meta.mode() & refused.refused_bits() != 0 {
        Some(format!("has mode {:04o}", meta.mode() & 0o7777))
    } else {
        None
    };
    if let Some(seen) = seen {
        let access = match refused {
            Access::Read => "read",
            Access::Write => "write",
        };
        return Err(CaError::UnsafeFile { path: path.to_owned(), seen, user, access });
    }
    if meta.len() > SIZE_MAX {
        return Err(CaError::Content { path: path.to_owned(), seen: format!("has {} bytes", meta.len()) });
    }
    // Room for all at once: growing would leave copies of the key behind.
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1));
    file.take(SIZE_MAX).read_to_end(&mut content).map_err(failed)?;
    Ok(Some(content))
}

/// Gives `content` the name `path`, unless that name exists by then.
fn publish(path: &Path, content: &str) -> Result<(), CaError> {
    let failed = |source| CaError::File { path: path.to_owned(), wanted: "written", source };
    let dir = path.parent().unwrap_or(Path::new("."));
    let unique = getrandom::u64().map_err(|_| CaError::Random)?;
    let temporary = dir.join(format!(".{unique:016x}.tmp"));
    let written = write_new(&temporary, content).and_then(|()| match std::fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = std::fs::remove_file(&temporary);
    written.map_err(failed)?;
    removed.map_err(failed)?;
    // The names last only once the directory is synced.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

fn write_new(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

fn parse_key(path: &Path, pem: &[u8]) -> Result<KeyPair, CaError> {
    let refuse = |seen: &str| CaError::Content { path: path.to_owned(), seen: seen.to_owned() };
    let mut der = PrivatePkcs8KeyDer::from_pem_slice(pem)
        .map_err(|_| refuse("holds no private key in PEM and PKCS#8"))?;
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
    der.zeroize();
    key.map_err(|_| refuse("holds no P-256 key"))
}

fn vanished(path: &Path) -> CaError {
    CaError::Content { path: path.to_owned(), seen: "vanished while it was read".to_owned() }
}
