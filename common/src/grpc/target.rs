//! To whom a connection goes, and what it proves with.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::error::TargetError;
use crate::config::Stamp;

/// Largest file of roots or of a token.
const FILE_MAX: u64 = 1 << 20;

/// A control plane, and how to speak to it.
#[derive(Clone, Debug)]
pub struct Target {
    /// `https://host:port`, or `http://` for plaintext.
    pub address: Uri,
    /// By which roots its certificate is verified.
    pub roots: Roots,
    /// Another name that its certificate may be valid for.
    pub alternative_host: Option<String>,
    /// Sent as a bearer token with every call.
    pub token: Option<Token>,
    /// Sent with every call, `clusterid` among them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Roots of a control plane's certificate.
#[derive(Clone, PartialEq, Eq)]
pub enum Roots {
    /// A PEM file, read again for each connection.
    File(PathBuf),
    /// PEM itself.
    Pem(String),
    /// What the system trusts.
    System,
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Pem(_) => f.write_str("Pem(..)"),
            Self::System => f.write_str("System"),
        }
    }
}

impl Roots {
    /// The roots as they are now.
    ///
    /// **Errors**: the file cannot be read, or holds no certificate.
    pub fn load(&self) -> Result<RootCertStore, TargetError> {
        let mut store = RootCertStore::empty();
        let from = self.describe();
        match self {
            Self::File(path) => add(&mut store, &read(path, "root certificates")?, &from)?,
            Self::Pem(text) => add(&mut store, text.as_bytes(), &from)?,
            Self::System => {
                // Single certificates of a system's store that cannot be read are nobody's business here.
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if store.is_empty() {
            return Err(TargetError::NoRoots { from });
        }
        Ok(store)
    }

    /// What changes when the file is replaced; `None` where there is no file, or it cannot be looked at.
    pub fn stamp(&self) -> Option<Stamp> {
        let Self::File(path) = self else { return None };
        Stamp::of(path)
    }

    /// Where they come from, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Pem(_) => "the PEM text in the settings".to_owned(),
            Self::System => "the system's store".to_owned(),
        }
    }
}

fn add(store: &mut RootCertStore, pem: &[u8], from: &str) -> Result<(), TargetError> {
    for cert in CertificateDer::pem_slice_iter(pem) {
        let bad = |seen: String| TargetError::BadRoot { from: from.to_owned(), seen };
        let cert = cert.map_err(|error| bad(error.to_string()))?;
        store.add(cert).map_err(|error| bad(error.to_string()))?;
    }
    Ok(())
}

/// A bearer token.
#[derive(Clone, Debug)]
pub enum Token {
    /// A file, read again for each call: tokens rotate.
    File(PathBuf),
    /// The token itself.
    Literal(Secret),
}

impl Token {
    /// The `authorization` header with the token as it is now.
    ///
    /// **Errors**: the file cannot be read or is empty, or the text is no header value.
    pub fn header(&self) -> Result<HeaderValue, TargetError> {
        let (from, text) = match self {
            Self::File(path) => (path.display().to_string(), Zeroizing::new(read(path, "token")?)),
            Self::Literal(secret) => {
                ("the settings".to_owned(), Zeroizing::new(secret.0.as_bytes().to_vec()))
            }
        };
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(TargetError::EmptyToken { from });
        }
        // Its final size: text that grows leaves copies behind.
        let mut value = Zeroizing::new(Vec::with_capacity(text.len() + 7));
        value.extend_from_slice(b"Bearer ");
        value.extend_from_slice(text);
        let mut header = HeaderValue::from_bytes(&value).map_err(|_| TargetError::BadToken { from })?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// Text that is never printed, and overwritten when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TargetError> {
    let unreadable = |cause| TargetError::File { what, path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(TargetError::FileTooLong { what, path: path.to_owned(), limit: FILE_MAX });
    }
    Ok(bytes)
}

/// Limits of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the name's look-up, and for each address's TCP connection.
    pub connect: Duration,
    /// For TLS, and again for HTTP/2's preface.
    pub handshake: Duration,
    /// For the answer to a PING.
    pub ping: Duration,
    /// Between PINGs.
    pub ping_interval: Duration,
    /// Bytes of the longest message that is taken.
    pub message_max: usize,
    /// Bytes that the server may send ahead of what was read, on a stream and in all.
    pub window: u32,
}

impl Default for Limits {
    /// Those of the reference, but for windows.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            ping: Duration::from_secs(10),
            ping_interval: Duration::from_secs(30),
            message_max: 4 << 20,
            window: 1 << 20,
        }
    }
}
