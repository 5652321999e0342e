//! What can go wrong while building a lab.

use std::io;
use std::time::Duration;

/// Why the lab or something in it did not come up.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces need rights.
    #[error("running as uid {uid}: network namespaces need root, run it with sudo")]
    NotRoot {
        /// Effective uid.
        uid: u32,
    },
    /// A program is not installed.
    #[error("{program} is not installed: apt-get install {package}")]
    Missing {
        /// Program looked for.
        program: String,
        /// Debian package that has it.
        package: &'static str,
    },
    /// The agent's binary is not there.
    #[error("no ztunnel binary at {tried}: cargo build -p ztunnel, or set CULVERT_ZTUNNEL")]
    NoAgent {
        /// Paths looked at.
        tried: String,
    },
    /// The system refused something.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Cause.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{command}: {output}")]
    Command {
        /// What was run.
        command: String,
        /// Status and what it printed.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {limit:?}; last seen: {seen}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// State at the end, such as the end of a log.
        seen: String,
    },
    /// A range is used up or an id is of another lab.
    #[error("no such entry, or no room for more {what}")]
    Full {
        /// Of what.
        what: &'static str,
    },
    /// The lab is being removed.
    #[error("the lab is being removed")]
    Closed,
}

/// Adds what was being done to an error of the system.
pub(super) trait At<T> {
    fn at(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|e| LabError::Io { what: what(), source: e.into() })
    }
}
