//! Where certificates come from: one enum over all certificate authorities.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::Instant;
use zeroize::{Zeroize, Zeroizing};

use crate::grpc::{CallError, ConnectError};
use crate::types::SpiffeId;

use super::embedded::EmbeddedCa;
use super::istio::IstioCa;
use super::peer::PeerIdentityError;

/// A certificate authority.
#[derive(Debug)]
pub enum Ca {
    /// Roots of our own in a local directory.
    Embedded(EmbeddedCa),
    /// A server that speaks Istio's protocol.
    Istio(Box<IstioCa>),
}

impl Ca {
    /// Looks whether certificates issued from now on would differ in who signs them or in whom they trust; `None` where
    /// that only shows in the answers.
    ///
    /// **Errors**: the authority's state cannot be used; it goes on with the last good one.
    pub fn refresh(&self, now: Instant) -> Option<Result<bool, CaError>> {
        match self {
            Self::Embedded(ca) => Some(ca.refresh(now)),
            Self::Istio(_) => None,
        }
    }

    /// A new key and a certificate of `id` for it.
    ///
    /// **Errors**: the authority did not answer, or not with what was asked for. Worth a retry.
    /// **Cancel safety**: a dropped call leaves nothing behind here; the authority may have issued.
    pub async fn issue(&self, id: &SpiffeId) -> Result<Issued, CaError> {
        match self {
            Self::Embedded(ca) => ca.issue(id),
            Self::Istio(ca) => ca.issue(id).await,
        }
    }
}

/// A certificate as its authority issued it, with everything needed to use it.
#[derive(Debug)]
pub struct Issued {
    /// Key of the first certificate of `chain`.
    pub key: PrivateKey,
    /// The leaf, then the intermediates in order; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Roots by which peers are verified.
    pub roots: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

impl Issued {
    /// The leaf and its intermediates in PEM.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|cert| pem("CERTIFICATE", cert)).collect()
    }

    /// The roots in PEM.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(|cert| pem("CERTIFICATE", cert)).collect()
    }

    /// The key in PEM, PKCS#8; for a proxy that reads files. Overwritten when dropped.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem("PRIVATE KEY", self.key.0.secret_pkcs8_der()))
    }
}

/// RFC 7468: lines of 64 characters.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(STANDARD.encode(der));
    // Its final size: text that grows leaves copies behind.
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 40);
    let mut line = |parts: &[&str]| parts.iter().for_each(|part| text.push_str(part));
    line(&["-----BEGIN ", label, "-----\n"]);
    for start in (0..body.len()).step_by(64) {
        line(&[body.get(start..(start + 64).min(body.len())).unwrap_or_default(), "\n"]);
    }
    line(&["-----END ", label, "-----\n"]);
    text
}

/// A private key in PKCS#8; overwritten when dropped, and never printed.
pub struct PrivateKey(PrivatePkcs8KeyDer<'static>);

impl PrivateKey {
    /// Takes a PKCS#8 document over.
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(PrivatePkcs8KeyDer::from(der))
    }

    /// A copy for a consumer that overwrites its copy itself, as rustls does.
    pub(super) fn expose(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.0.clone_key())
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(secret)")
    }
}

/// No certificate: the authority cannot be opened, does not issue, or issued something unusable.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The directory of the root is open to others, or no directory.
    #[error("{path} {seen}; the embedded CA needs a directory of mode 0700 that belongs to user {user}")]
    Directory {
        /// Directory of the root.
        path: PathBuf,
        /// What is wrong with it.
        seen: String,
        /// User that this process runs as.
        user: u32,
    },
    /// A file of the root cannot be read or written.
    #[error("{path} cannot be {wanted}; check its owner, its mode and the free space")]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        wanted: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of the root has an unsafe owner or mode, or is no regular file.
    #[error("{path} {seen}; it must be a regular file of user {user} that nobody else can {access}")]
    UnsafeFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        seen: String,
        /// User that this process runs as.
        user: u32,
        /// What others must not be able to do.
        access: &'static str,
    },
    /// A file of the root has other content than expected.
    #[error("{path} {seen}; restore it, or delete all roots to start a new mesh")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found in it.
        seen: String,
    },
    /// The root is not valid at this time.
    #[error("the root in {path} is not valid now; check the clock, or add a root that is valid")]
    RootNotValid {
        /// Directory of the root.
        path: PathBuf,
    },
    /// Somebody asked for an identity that this authority does not issue.
    #[error("{id} is not in trust domain {trust_domain}; check the mesh's trust domain setting")]
    TrustDomain {
        /// Identity asked for.
        id: SpiffeId,
        /// Trust domain of the authority.
        trust_domain: String,
    },
    /// A key or certificate could not be made.
    #[error("the certificate of {id} could not be made")]
    Sign {
        /// Identity or host asked for.
        id: String,
        /// The library's reason.
        source: rcgen::Error,
    },
    /// Somebody else's request cannot be read.
    #[error(
        "the request for a certificate of {id} is none; send a PKCS#10 request in PEM, signed with its own key"
    )]
    Request {
        /// Identity asked for.
        id: SpiffeId,
        /// The library's reason.
        source: rcgen::Error,
    },
    /// The settings of a certificate service could not be made.
    #[error("the certificate service of {host} cannot be set up")]
    Service {
        /// By which callers reach it.
        host: String,
        /// The library's reason.
        source: rustls::Error,
    },
    /// A root could not be made.
    #[error("the root certificate could not be made")]
    SignRoot(#[source] rcgen::Error),
    /// The system has no randomness.
    #[error("no randomness from the system")]
    Random,
    /// The authority answered with a certificate of somebody else, or of nobody.
    #[error("the CA answered for {wanted} with a certificate that does not prove it; check the CA's policy")]
    WrongIdentity {
        /// Identity asked for.
        wanted: SpiffeId,
        /// What the certificate says.
        source: PeerIdentityError,
    },
    /// The authority answered with a certificate that is not valid now.
    #[error(
        "the CA answered for {id} with a certificate that is not valid now; check the clocks of both sides"
    )]
    NotValidNow {
        /// Identity asked for.
        id: SpiffeId,
    },
    /// The authority's answer cannot be used for TLS.
    #[error("the CA's answer for {id} cannot be used: {seen}")]
    Unusable {
        /// Identity asked for.
        id: SpiffeId,
        /// What is wrong with it.
        seen: String,
    },
    /// There is no connection to the authority.
    #[error("the CA cannot be reached")]
    Connect {
        /// Stage and reason; shared by all who waited for the one attempt.
        source: Arc<ConnectError>,
    },
    /// The authority refused, or its answer did not arrive.
    #[error("the CA did not issue a certificate of {id}")]
    Call {
        /// Identity asked for.
        id: SpiffeId,
        /// The authority's words, or what became of the connection.
        source: Box<CallError>,
    },
    /// The authority did not answer in time.
    #[error("the CA did not answer within {limit:?}; check that it is reachable")]
    Timeout {
        /// The limit.
        limit: std::time::Duration,
    },
    /// The code that asked the authority ended without an answer.
    #[error("the request to the CA ended without an answer; see the log for a panic")]
    Aborted,
}

impl CaError {
    /// Whether the authority has answered, with a refusal or with what cannot be used.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Random | Self::Aborted => false,
            Self::Call { source, .. } => source.is_refusal(),
            _ => true,
        }
    }

    /// A word for metrics; one of few.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { source } => source.reason(),
            Self::Call { source, .. } => source.reason(),
            Self::Timeout { .. } => "timeout",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::NotValidNow { .. } => "not_valid_now",
            Self::Unusable { .. } => "unusable",
            Self::TrustDomain { .. } => "trust_domain",
            Self::Directory { .. }
            | Self::File { .. }
            | Self::UnsafeFile { .. }
            | Self::Content { .. }
            | Self::RootNotValid { .. }
            | Self::Sign { .. }
            | Self::SignRoot(_)
            | Self::Request { .. }
            | Self::Service { .. } => "embedded",
            Self::Random | Self::Aborted => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn what_was_issued_reads_back_from_pem() {
        for size in [0, 1, 47, 48, 49, 96, 600] {
            let der = vec![7; size];
            let text = pem("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= 64));
            assert_eq!(CertificateDer::from_pem_slice(text.as_bytes()).unwrap().as_ref(), der);
        }
    }
}
