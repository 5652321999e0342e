//! What can be wrong with a target, a connection and a call.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of a target, or the files that they name, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The address is not of the form that is needed.
    #[error("{address} is no address of a control plane; write https://host:port")]
    Address {
        /// As it was set.
        address: String,
    },
    /// A file cannot be read.
    #[error("{what} in {} cannot be read ({cause}); is the volume mounted?", path.display())]
    File {
        /// What is in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// A file is longer than any that is meant.
    #[error("{what} in {} has more than {limit} bytes; is it the right file?", path.display())]
    FileTooLong {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes that are read at most.
        limit: u64,
    },
    /// There is no certificate at all.
    #[error("no root certificate in {from}; write the control plane's root there, in PEM")]
    NoRoots {
        /// Where they were looked for.
        from: String,
    },
    /// A certificate cannot be used.
    #[error("a root certificate in {from} cannot be used ({seen})")]
    BadRoot {
        /// Where it was found.
        from: String,
        /// What is wrong with it.
        seen: String,
    },
    /// The token's file is there, but nothing is in it.
    #[error("the token in {from} is empty; does the kubelet still renew it?")]
    EmptyToken {
        /// Where it was looked for.
        from: String,
    },
    /// The token has characters that no token has.
    #[error("the token in {from} is no single line of text; is it the right file?")]
    BadToken {
        /// Where it was found.
        from: String,
    },
}

/// No connection to a control plane.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Settings or files.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The name has no address.
    #[error("{host} cannot be resolved ({cause}); does the Service exist, and does the node's DNS answer?")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's answer.
        cause: io::Error,
    },
    /// A stage took too long.
    #[error(
        "{host}: no end of {stage} within {limit:?}; is the control plane overloaded, or a NetworkPolicy in the way?"
    )]
    Timeout {
        /// Host and port.
        host: String,
        /// What was waited for.
        stage: Stage,
        /// The limit.
        limit: Duration,
    },
    /// No TCP connection.
    #[error("{host} at {addr} does not take connections ({cause}); is the control plane running?")]
    Tcp {
        /// Host and port.
        host: String,
        /// The last address tried.
        addr: SocketAddr,
        /// The system's answer.
        cause: io::Error,
    },
    /// The certificate is for another host.
    #[error(
        "the certificate of {host} is not valid for that name but for {names}; check the address, or set the alternative host name"
    )]
    WrongName {
        /// Host and port.
        host: String,
        /// Names in the certificate.
        names: String,
    },
    /// The certificate comes from a root that is not known.
    #[error(
        "the certificate of {host} was signed by none of the roots in {roots}; were the control plane's roots replaced?"
    )]
    UnknownRoot {
        /// Host and port.
        host: String,
        /// Where the roots came from.
        roots: String,
    },
    /// The certificate is not valid at this time.
    #[error("the certificate of {host} is not valid now ({cause}); check the clocks of both sides")]
    NotValidNow {
        /// Host and port.
        host: String,
        /// TLS's words.
        cause: rustls::Error,
    },
    /// TLS did not come about.
    #[error("no TLS with {host}: {cause}; TLS 1.3 is required")]
    Tls {
        /// Host and port.
        host: String,
        /// What TLS or the socket says.
        cause: io::Error,
    },
    /// The server does not speak HTTP/2.
    #[error("{host} does not speak HTTP/2; is it the control plane's gRPC port?")]
    NoHttp2 {
        /// Host and port.
        host: String,
    },
    /// HTTP/2 did not come about.
    #[error("no HTTP/2 connection with {host}: {cause}")]
    Http2 {
        /// Host and port.
        host: String,
        /// The library's words.
        cause: hyper::Error,
    },
}

impl ConnectError {
    /// A word for metrics; one of few.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Target(TargetError::EmptyToken { .. } | TargetError::BadToken { .. }) => "token",
            Self::Target(_) => "settings",
            Self::Resolve { .. } => "resolve",
            Self::Timeout { .. } => "timeout",
            Self::Tcp { .. } => "refused",
            Self::WrongName { .. } => "wrong_name",
            Self::UnknownRoot { .. } => "unknown_root",
            Self::NotValidNow { .. } => "expired",
            Self::Tls { .. } => "tls",
            Self::NoHttp2 { .. } | Self::Http2 { .. } => "http2",
        }
    }
}

/// Part of a connection's making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The host's name.
    Resolve,
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
    /// HTTP/2.
    Http2,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "the look-up of its name",
            Self::Tcp => "the TCP handshake",
            Self::Tls => "the TLS handshake",
            Self::Http2 => "the HTTP/2 preface",
        })
    }
}

/// gRPC's status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// `INVALID_ARGUMENT`.
    pub const INVALID_ARGUMENT: Self = Self(3);
    /// `PERMISSION_DENIED`.
    pub const PERMISSION_DENIED: Self = Self(7);
    /// `UNIMPLEMENTED`.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// `INTERNAL`.
    pub const INTERNAL: Self = Self(13);
    /// `UNAVAILABLE`.
    pub const UNAVAILABLE: Self = Self(14);
    /// `UNAUTHENTICATED`.
    pub const UNAUTHENTICATED: Self = Self(16);

    /// Names of all codes, in their order.
    pub const NAMES: [&'static str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];

    /// Its name; one of few.
    pub fn name(self) -> &'static str {
        usize::try_from(self.0).ok().and_then(|code| Self::NAMES.get(code).copied()).unwrap_or("UNKNOWN")
    }

    fn hint(self) -> &'static str {
        match self {
            Self::UNAUTHENTICATED => "; check the token: its audience, its expiry, and the cluster id",
            Self::PERMISSION_DENIED => "; check what the control plane allows to this service account",
            Self::UNAVAILABLE => "; is the control plane up and ready?",
            Self::UNIMPLEMENTED => "; is it the right port, and a version that knows this call?",
            _ => "",
        }
    }
}

/// A call, or a stream, that ended otherwise than well.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The token cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The server's own answer.
    #[error("the control plane answered {}: {message}{}", code.name(), code.hint())]
    Status {
        /// gRPC's code.
        code: Code,
        /// The server's words, shortened, without control characters.
        message: String,
    },
    /// An answer without gRPC.
    #[error("the control plane answered with HTTP status {status} and no gRPC; is it the gRPC port?")]
    NotGrpc {
        /// HTTP's status.
        status: u16,
    },
    /// The connection, or the stream, ended early.
    #[error("the connection to the control plane broke: {}", Chain(cause))]
    Broken {
        /// The library's words.
        cause: hyper::Error,
    },
    /// The answer ended without a status.
    #[error("the control plane ended its answer without a status; was it stopped, or is a proxy between?")]
    Ended,
    /// A message is longer than what is taken.
    #[error("the control plane sent a message of {bytes} bytes, at most {limit} are taken")]
    TooLong {
        /// Its announced length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A message cannot be read.
    #[error("the control plane sent a message that cannot be read ({seen})")]
    Unreadable {
        /// What is wrong.
        seen: String,
    },
    /// No answer in time.
    #[error("the control plane did not answer within {limit:?}; is it overloaded?")]
    Timeout {
        /// The limit.
        limit: Duration,
    },
}

impl CallError {
    /// Whether the server understood and said no; otherwise it may do what was asked when it is back, or less busy.
    pub fn is_refusal(&self) -> bool {
        const PASSING: [&str; 6] =
            ["CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "UNAVAILABLE"];
        matches!(self, Self::Status { code, .. } if !PASSING.contains(&code.name()))
    }

    /// A word for metrics; one of few.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Target(_) => "token",
            Self::Status { code: Code::UNAUTHENTICATED, .. } => "unauthenticated",
            Self::Status { code: Code::PERMISSION_DENIED, .. } => "permission_denied",
            Self::Status { code: Code::UNAVAILABLE, .. } => "unavailable",
            Self::Status { .. } => "status",
            Self::NotGrpc { .. } => "http",
            Self::Broken { .. } | Self::Ended => "broken",
            Self::TooLong { .. } => "too_long",
            Self::Unreadable { .. } => "unreadable",
            Self::Timeout { .. } => "timeout",
        }
    }
}

/// An error with its causes: hyper's own text alone says little.
struct Chain<'a>(&'a hyper::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = std::error::Error::source(self.0);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
