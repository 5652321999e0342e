//! Why a request failed, and why there is no load at all.

use std::io;
use std::net::SocketAddr;

use serde::Serialize;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The connection was refused.
    Refused,
    /// The connection was reset, or broke with another error of the socket.
    Reset,
    /// The connection was closed before the end of the answer.
    Closed,
    /// The connection could not be made for another reason: no route, no port left.
    Connect,
    /// What came is no HTTP/1.1 answer.
    Malformed,
    /// The answer's status was none from 200 to 399.
    Status,
    /// Sent, and not answered within the limit or by the end.
    Unanswered,
    /// No connection was free within the limit or by the end.
    NotSent,
}

impl Failure {
    /// All, in the order of output.
    pub const ALL: [Self; 8] = [
        Self::Refused,
        Self::Reset,
        Self::Closed,
        Self::Connect,
        Self::Malformed,
        Self::Status,
        Self::Unanswered,
        Self::NotSent,
    ];

    /// In words, after a number.
    pub fn text(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed early",
            Self::Connect => "not connected",
            Self::Malformed => "no HTTP",
            Self::Status => "bad status",
            Self::Unanswered => "not answered in time",
            Self::NotSent => "not sent, all connections busy",
        }
    }

    /// What an error of a socket that was being connected means.
    pub(super) fn of_connect(e: &io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset => Self::Reset,
            io::ErrorKind::TimedOut => Self::Unanswered,
            _ => Self::Connect,
        }
    }
}

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan is wrong.
    #[error("{wrong}")]
    Plan {
        /// How.
        wrong: String,
    },
    /// What to ask is not of the form.
    #[error("{text:?} is not an address to ask: {wrong}; give http://HOST:PORT/PATH or ADDRESS:PORT")]
    Target {
        /// What was given.
        text: String,
        /// What is wrong with it.
        wrong: String,
    },
    /// Not one connection could be made.
    #[error("no connection to {to}: {why}; does the server listen there?")]
    Unreachable {
        /// To whom.
        to: SocketAddr,
        /// Why the last one failed.
        why: &'static str,
    },
    /// The process may not have so many files open.
    #[error("{wanted} connections need more open files than the limit of {limit}; see ulimit -n")]
    Files {
        /// Connections asked for.
        wanted: u32,
        /// The hard limit.
        limit: u64,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Adds what was being done to an error of the system.
pub(super) trait At<T> {
    fn at(self, what: &'static str) -> Result<T, LoadError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, what: &'static str) -> Result<T, LoadError> {
        self.map_err(|e| LoadError::System { what, source: e.into() })
    }
}
