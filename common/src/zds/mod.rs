//! ZDS: how the process that owns the pods' network namespaces hands them to the one that carries their traffic.
//!
//! The agent listens, the proxy connects and says hello; then the agent asks, one packet a message, and the proxy
//! answers each with an ack before the next is sent. A namespace travels as an open descriptor beside the `Add` that names
//! its pod. Wire facts are Istio's (package `istio.workload.zds`), so either end may be the reference's.
//!
//! Decides what a well-formed message is. Must not know which pods are wanted, nor what is done with a namespace: that is
//! `ztunnel/src/enroll` (agent) and `ztunnel/src/inpod` (proxy). Start with [`Channel`], then [`Request`].

mod channel;
mod messages;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use channel::Channel;
pub use messages::{decode_ack, decode_hello, decode_request};

/// Bytes of the reference's buffers: a longer packet is an error there.
pub const REFERENCE_PACKET: usize = 1024;
/// Longest packet that is accepted here.
pub const PACKET_MAX: usize = 8192;

/// The proxy's answer: done, or why not.
pub type Ack = Result<(), String>;

/// Who a pod is, as far as ZDS tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// The pod's name; never empty.
    pub name: String,
    /// Its namespace; never empty.
    pub namespace: String,
    /// Its service account; may be empty, which stands for `default`.
    pub service_account: String,
}

/// What the agent asks of the proxy.
#[derive(Debug)]
pub enum Request {
    /// Serve this pod; repeated for the same namespace, it changes nothing.
    Add {
        /// The pod's UID; never empty.
        uid: String,
        /// Who it is.
        info: WorkloadInfo,
        /// An open descriptor of its network namespace, not checked yet: see `NetNs::from_fd`.
        netns: OwnedFd,
    },
    /// Go on with this pod if it is served: it is wanted, but its namespace is not at hand. Before `SnapshotSent` only.
    Keep {
        /// The pod's UID.
        uid: String,
    },
    /// Stop serving this pod.
    Del {
        /// The pod's UID.
        uid: String,
        /// For how long answers of the pod's app to open connections still reach the proxy. None where the agent does not
        /// say, as the reference's: it has removed those rules by now.
        grace: Option<Duration>,
    },
    /// All wanted pods have been named: stop serving the others.
    SnapshotSent,
}

/// Why a message cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZdsError {
    /// The socket.
    #[error("ZDS socket: {0}")]
    Socket(#[from] io::Error),
    /// More than fits, or no descriptor is free to receive.
    #[error("a ZDS packet is truncated: more than {PACKET_MAX} bytes, or this process is out of descriptors")]
    Truncated,
    /// No message of ours.
    #[error(
        "a ZDS packet of {length} bytes does not parse as {what}: {reason}; check the versions of both ends"
    )]
    Malformed {
        /// The message that was awaited.
        what: &'static str,
        /// Of the packet, in bytes.
        length: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Descriptors where none belong, or none or several where one does.
    #[error("a ZDS {what} message came with {found} descriptors where {wanted} belong")]
    Descriptors {
        /// The message's kind.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many belong there.
        wanted: usize,
    },
    /// The peer speaks another version.
    #[error("the ZDS peer says version {0}; this one speaks version 1")]
    Version(i32),
    /// An `Add` that does not say who the pod is. The connection is still in order.
    #[error("the ZDS add of pod {uid:?} does not say {missing}")]
    Workload {
        /// The pod's UID.
        uid: String,
        /// The field.
        missing: &'static str,
    },
    /// Longer than a packet may be.
    #[error("a ZDS message of {length} bytes is longer than {PACKET_MAX}: check the names of the pod")]
    TooLong {
        /// In bytes.
        length: usize,
    },
    /// The peer ended the connection where an answer was due.
    #[error("the ZDS peer ended the connection where an answer was due")]
    Ended,
}

impl ZdsError {
    /// Whether the connection is still in order: refuse this message, go on with the next. Otherwise refuse, then drop
    /// the connection.
    pub fn is_refusal_only(&self) -> bool {
        matches!(self, Self::Workload { .. })
    }
}
