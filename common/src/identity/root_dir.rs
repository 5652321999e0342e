//! The embedded root on disk: made once by whoever comes first, then read by every agent of the machine.
//!
//! Both files come to their names by `link(2)` from a complete, synced temporary file. `link` fails if the name
//! exists, so of several agents that start at once exactly one key wins, nobody reads half a file, and no lock can
//! be left behind. The certificate is made from the key that won: whichever agent's certificate wins fits it, and
//! an agent killed between the two files leaves a state that the next one completes.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::ca::CaError;

const KEY: &str = "root-key.pem";
const CERT: &str = "root-cert.pem";
/// Both files have less than 2 KiB.
const SIZE_MAX: u64 = 64 * 1024;

/// Key and certificate of the root in `dir`; what is missing is made, the certificate by `self_sign`.
pub(super) fn open_or_create(
    dir: &Path,
    self_sign: impl FnOnce(&KeyPair) -> Result<String, CaError>,
) -> Result<(KeyPair, CertificateDer<'static>), CaError> {
    prepare(dir)?;
    let (key_path, cert_path) = (dir.join(KEY), dir.join(CERT));
    let mut pem = read(&key_path, Access::Read)?;
    if pem.is_none() {
        if read(&cert_path, Access::Write)?.is_some() {
            // Perhaps another agent made both files since the first look.
            pem = read(&key_path, Access::Read)?;
            if pem.is_none() {
                let seen = format!("is missing although {CERT} is there");
                return Err(CaError::Content { path: key_path, seen });
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
    let mut pem = read(&cert_path, Access::Write)?;
    if pem.is_none() {
        publish(&cert_path, &self_sign(&key)?)?;
        pem = read(&cert_path, Access::Write)?;
    }
    let pem = pem.ok_or_else(|| vanished(&cert_path))?;
    let cert = CertificateDer::from_pem_slice(&pem)
        .map_err(|_| CaError::Content { path: cert_path, seen: "holds no certificate in PEM".to_owned() })?;
    Ok((key, cert))
}

/// Path of the root's certificate, for messages.
pub(super) fn cert_path(dir: &Path) -> PathBuf {
    dir.join(CERT)
}

/// Creates the directory unless it is there, and refuses one that others can enter.
fn prepare(dir: &Path) -> Result<(), CaError> {
    let user = nix::unistd::geteuid().as_raw();
    let refuse = |seen: String| CaError::Directory { path: dir.to_owned(), seen, user };
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(CaError::File { path: dir.to_owned(), wanted: "created", source: error });
        }
        _ => {}
    }
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
