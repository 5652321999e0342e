//! The identity inside a peer's certificate.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::telemetry::Handshake;
use crate::types::{NotASpiffeId, SpiffeId};

/// What a verified peer proved, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Identity in the certificate's one URI name.
    pub identity: SpiffeId,
    /// End of the leaf's validity; the connection proves nothing afterwards.
    pub not_after: SystemTime,
}

/// Part that a peer plays in a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peer opened the connection.
    Client,
    /// The peer accepted the connection.
    Server,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// A peer's certificate does not prove an identity that is accepted here.
///
/// `Debug` is the message too: that is what rustls prints of an error that it carries for others.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerIdentityError {
    /// No certificate at all.
    #[error("peer presented no certificate; is it a mesh workload?")]
    NoCertificate,
    /// The certificate or one of the extensions that matter cannot be read.
    #[error("peer certificate cannot be read ({0}); check the CA that issued it")]
    Unreadable(&'static str),
    /// No URI among the subject's alternative names.
    #[error("peer certificate has no URI name; was it issued for a mesh workload?")]
    NoUri,
    /// More than one URI, so that two readers could disagree about who this is.
    #[error(
        "peer certificate has {count} URI names, an identity is exactly one; check the CA that issued it"
    )]
    ManyUris {
        /// Number of URI names.
        count: usize,
    },
    /// The one URI is no identity.
    #[error("peer certificate names {0}")]
    NotSpiffe(NotASpiffeId),
    /// The certificate is not meant for this part.
    #[error(
        "peer certificate of {identity} is not meant for a TLS {role} (extended key usage); check the CA"
    )]
    Usage {
        /// Identity in the certificate.
        identity: SpiffeId,
        /// Part that the peer plays.
        role: Role,
    },
    /// A client of another trust domain.
    #[error("peer is {got}, not of trust domain {want}; do both sides belong to one mesh?")]
    TrustDomain {
        /// Identity that the peer proved.
        got: SpiffeId,
        /// Trust domain of the own certificate.
        want: Arc<str>,
    },
    /// A certificate of its chain was revoked.
    #[error("peer certificate, or one above it, was revoked by its issuer")]
    Revoked,
    /// Whether it was revoked cannot be said.
    #[error("peer certificate cannot be checked for revocation ({0}); check the revocation lists")]
    RevocationUnknown(String),
    /// A server that is somebody else.
    #[error(
        "peer did not present the expected SAN ({}), got {got}; did the pod behind this address change?",
        List(want)
    )]
    Unexpected {
        /// Identity that the peer proved.
        got: SpiffeId,
        /// Identities of which one was wanted.
        want: Arc<[SpiffeId]>,
    },
}

impl fmt::Debug for PeerIdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PeerIdentityError {
    /// As a handshake that it ended is counted.
    pub fn result(&self) -> Handshake {
        match self {
            Self::NoCertificate => Handshake::NoPeerCertificate,
            Self::Unreadable(_) | Self::NoUri | Self::ManyUris { .. } | Self::NotSpiffe(_) => {
                Handshake::BadName
            }
            Self::Usage { .. } | Self::TrustDomain { .. } | Self::Unexpected { .. } => {
                Handshake::WrongIdentity
            }
            Self::Revoked | Self::RevocationUnknown(_) => Handshake::Revoked,
        }
    }

    /// The reason of a failed TLS handshake, if it was the peer's identity.
    pub fn from_tls(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
                other.0.downcast_ref()
            }
            _ => None,
        }
    }

    /// The reason of a failed TLS connection, if it was the peer's identity.
    pub fn from_io(error: &std::io::Error) -> Option<&Self> {
        Self::from_tls(error.get_ref()?.downcast_ref()?)
    }
}

impl From<PeerIdentityError> for rustls::Error {
    // The alert is `certificate_unknown`: rustls ties every other alert to an error without room for ours.
    fn from(error: PeerIdentityError) -> Self {
        rustls::CertificateError::Other(rustls::OtherError(Arc::new(error))).into()
    }
}

/// The first few identities: a service may have hundreds.
struct List<'a>(&'a [SpiffeId]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        for (i, id) in self.0.iter().take(SHOWN).enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{id}")?;
        }
        if self.0.len() > SHOWN {
            write!(f, " and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}

/// Identity that a handshake's peer proved.
///
/// Call it with the certificates of a finished handshake made with our settings: they have verified the chain.
///
/// **Errors**: no certificate, or none with exactly one URI name that is an identity.
/// Source: SPIFFE X509-SVID §2, §5.2.
pub fn peer_identity(certs: Option<&[CertificateDer<'_>]>) -> Result<SpiffeId, PeerIdentityError> {
    peer_certificate(certs).map(|peer| peer.identity)
}

/// As [`peer_identity`], with the time until which it holds.
pub fn peer_certificate(certs: Option<&[CertificateDer<'_>]>) -> Result<PeerCertificate, PeerIdentityError> {
    let leaf = certs.and_then(<[_]>::first).ok_or(PeerIdentityError::NoCertificate)?;
    read(&parse(leaf)?)
}

/// Identity of `leaf` if the certificate is also meant for a peer of this role.
///
/// An absent extended key usage counts as "not meant for it": every mesh CA writes it.
pub(super) fn identity_for(leaf: &CertificateDer<'_>, role: Role) -> Result<SpiffeId, PeerIdentityError> {
    let leaf = parse(leaf)?;
    let identity = read(&leaf)?.identity;
    let usage = leaf
        .extended_key_usage()
        .map_err(|_| PeerIdentityError::Unreadable("extended key usage"))?
        .is_some_and(|usage| match role {
            Role::Client => usage.value.client_auth,
            Role::Server => usage.value.server_auth,
        });
    if usage { Ok(identity) } else { Err(PeerIdentityError::Usage { identity, role }) }
}

/// Validity of a certificate.
pub(super) fn validity(cert: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), PeerIdentityError> {
    let validity = parse(cert)?.validity().clone();
    let time = |t: i64| system_time(t).ok_or(PeerIdentityError::Unreadable("validity"));
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerIdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err(PeerIdentityError::Unreadable("bytes after its end")),
        Err(_) => Err(PeerIdentityError::Unreadable("not X.509")),
    }
}

fn read(leaf: &X509Certificate<'_>) -> Result<PeerCertificate, PeerIdentityError> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| PeerIdentityError::Unreadable("alternative names"))?
        .ok_or(PeerIdentityError::NoUri)?;
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // A name that one reader skips and another reads must not decide who somebody is.
            GeneralName::Invalid(..) => return Err(PeerIdentityError::Unreadable("alternative names")),
            _ => {}
        }
    }
    let identity = match uris[..] {
        [] => return Err(PeerIdentityError::NoUri),
        [uri] => uri.parse().map_err(PeerIdentityError::NotSpiffe)?,
        _ => return Err(PeerIdentityError::ManyUris { count: uris.len() }),
    };
    let not_after = system_time(leaf.validity().not_after.timestamp())
        .ok_or(PeerIdentityError::Unreadable("validity"))?;
    Ok(PeerCertificate { identity, not_after })
}

fn system_time(unix: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(unix).ok()?))
}
