//! Why a tunnel carries no stream, with what each reason is logged and counted as.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::headers::{DENIAL, DENIAL_CLASS, known_class};
use crate::net::socket::ConnectError;
use crate::telemetry::{Handshake, ResponseFlag};

/// Why a connection is no tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate, ours, or the handshake itself.
    #[error("TLS with {peer}: {cause}")]
    Tls {
        /// The other end.
        peer: SocketAddr,
        /// What went wrong.
        cause: String,
        /// The same, to be counted.
        result: Handshake,
    },
    /// The peer speaks TLS but not HTTP/2.
    #[error("HTTP/2 with {peer}: {cause}")]
    Http2 {
        /// The other end.
        peer: SocketAddr,
        /// What went wrong.
        cause: String,
    },
}

impl HandshakeError {
    /// The only mapping to log and metric flags.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Tls { result: Handshake::Revoked, .. } => ResponseFlag::CertRevoked,
            Self::Tls { .. } => ResponseFlag::TlsFailure,
            Self::Http2 { .. } => ResponseFlag::H2Handshake,
        }
    }

    /// As the handshake is counted.
    pub fn result(&self) -> Handshake {
        match self {
            Self::Tls { result, .. } => *result,
            Self::Http2 { .. } => Handshake::Http2,
        }
    }
}

/// Why no stream could be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// No TCP connection.
    #[error("no connection to {peer}: {cause}; is the pod running and its node reachable?")]
    Tcp {
        /// The next hop.
        peer: SocketAddr,
        /// What the kernel said.
        cause: String,
        /// Nobody listens there, or no more: it may be about to.
        is_refused: bool,
    },
    /// No answer to the SYN.
    #[error("{peer} did not answer within {limit:?}; maybe a NetworkPolicy is blocking HBONE port 15008")]
    TcpTimeout {
        /// The next hop.
        peer: SocketAddr,
        /// The limit that passed.
        limit: Duration,
    },
    /// No tunnel.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The tunnel ended before it answered; another one may be tried.
    #[error("the tunnel to {peer} ended before the CONNECT was answered: {cause}")]
    Lost {
        /// The next hop.
        peer: SocketAddr,
        /// What went wrong.
        cause: String,
    },
    /// No answer to the CONNECT.
    #[error("{peer} did not answer the CONNECT within {limit:?}; is the node agent there overloaded?")]
    AnswerTimeout {
        /// The next hop.
        peer: SocketAddr,
        /// The limit that passed.
        limit: Duration,
    },
    /// Refused.
    #[error("http status: {status}{}", denial.as_ref().map(|d| format!(", {d}")).unwrap_or_default())]
    Refused {
        /// Status of the answer.
        status: StatusCode,
        /// Id and class, where the peer is one of ours.
        denial: Option<Denial>,
    },
    /// No certificate of our own.
    #[error("{0}")]
    Identity(String),
}

impl From<ConnectError> for OpenError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Timeout { to, limit } => Self::TcpTimeout { peer: to, limit },
            ConnectError::Io { to, source } => {
                let is_refused =
                    matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset);
                Self::Tcp { peer: to, cause: source.to_string(), is_refused }
            }
        }
    }
}

/// What a refusing peer says beside the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Joins its log with ours.
    pub id: String,
    /// One of [`super::headers::CLASSES`], or `unknown`.
    pub class: &'static str,
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refused by the destination's node agent, class {}, denial id {}", self.class, self.id)
    }
}

impl Denial {
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        // A peer's text goes to our log: only what ours would send is taken.
        let text = |name| {
            let value = headers.get(name)?.to_str().ok()?;
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            ((1..=64).contains(&value.len()) && value.bytes().all(fits)).then(|| value.to_owned())
        };
        Some(Self { id: text(DENIAL)?, class: known_class(&text(DENIAL_CLASS)?) })
    }
}

impl OpenError {
    /// The only mapping to log and metric flags.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Tcp { .. } | Self::Lost { .. } | Self::AnswerTimeout { .. } => ResponseFlag::Connect,
            Self::TcpTimeout { .. } => ResponseFlag::NetworkPolicy,
            Self::Handshake(error) => error.flag(),
            Self::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED => ResponseFlag::Deny,
            Self::Refused { .. } => ResponseFlag::Connect,
            Self::Identity(_) => ResponseFlag::Identity,
        }
    }

    /// As the set-up of a tunnel that ended so is counted.
    pub fn result(&self) -> Handshake {
        match self {
            Self::Handshake(error) => error.result(),
            Self::Identity(_) => Handshake::NoCertificate,
            Self::Tcp { .. }
            | Self::TcpTimeout { .. }
            | Self::Lost { .. }
            | Self::AnswerTimeout { .. }
            | Self::Refused { .. } => Handshake::Tls,
        }
    }
}
