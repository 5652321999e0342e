//! A pod's network namespace: opened, checked to be the pod's, entered.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;

use culvert_common::model::LocalPod;
use culvert_common::net::netns::NetNs;
use culvert_common::net::rules::RulesError;

/// Why a pod cannot be captured now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    #[error("cannot open its network namespace {}: {source}; is the pod running, and is the path right?", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot enter its network namespace: {0}; the agent needs CAP_SYS_ADMIN")]
    Enter(#[from] io::Error),
    #[error("its network namespace is already captured for {other}; check the paths of both pods")]
    Shared { other: String },
    #[error(
        "its address {ip} is not in the network namespace that is named for it; check the pod's path and addresses"
    )]
    WrongNamespace { ip: IpAddr },
    #[error("cannot listen on port {port} in its network namespace: {source}; does another proxy run there?")]
    Listen { port: u16, source: io::Error },
    #[error("the kernel does not let sockets take the clients' addresses (ENABLE_ORIG_SRC=true asks for it)")]
    NotTransparent,
    #[error(transparent)]
    Rules(#[from] RulesError),
}

/// The pod's namespace; `None` is the agent's own.
pub(super) fn open(pod: &LocalPod) -> Result<Option<NetNs>, CaptureError> {
    let Some(path) = &pod.netns else { return Ok(None) };
    NetNs::open(path).map(Some).map_err(|source| CaptureError::Open { path: path.clone(), source })
}

/// Runs `work` inside.
pub(crate) fn enter_pod<R>(netns: Option<&NetNs>, work: impl FnOnce() -> R) -> Result<R, CaptureError> {
    match netns {
        Some(netns) => netns.run(work).map_err(CaptureError::Enter),
        None => Ok(work()),
    }
}

/// Whether the namespace we are in has the pod's addresses: a wrong path must not give one pod another's identity.
pub(super) fn owns_addresses(pod: &LocalPod) -> Result<(), CaptureError> {
    for ip in &pod.addresses {
        match UdpSocket::bind((*ip, 0)) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                return Err(CaptureError::WrongNamespace { ip: *ip });
            }
            _ => {}
        }
    }
    Ok(())
}
