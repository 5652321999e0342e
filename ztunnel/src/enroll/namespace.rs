//! A pod's network namespace, opened and checked to be the pod's; and why a pod is not captured.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;

use culvert_common::model::LocalPod;
use culvert_common::net::netns::NetNs;
use culvert_common::net::rules::RulesError;

/// Why a pod is not captured now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Uncaptured {
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
    #[error("no proxy is connected; is ztunnel proxy running, and with the same --zds-socket?")]
    NoProxy,
    #[error("the proxy has not answered yet")]
    Unanswered,
    #[error("the proxy does not serve it: {0}")]
    Refused(String),
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error("chains of others may redirect its connections first ({}); find out who made them", .chains.join(", "))]
    Overtaken { chains: Vec<String> },
}

impl Uncaptured {
    /// All answers of [`Self::reason`].
    pub(super) const REASONS: [&'static str; 7] =
        ["namespace", "address", "no_proxy", "unanswered", "refused", "rules", "foreign_mesh"];

    /// The reason as a label's value.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Open { .. } | Self::Enter(_) | Self::Shared { .. } => "namespace",
            Self::WrongNamespace { .. } => "address",
            Self::NoProxy => "no_proxy",
            Self::Unanswered => "unanswered",
            Self::Refused(_) => "refused",
            Self::Rules(RulesError::ForeignMesh { .. }) | Self::Overtaken { .. } => "foreign_mesh",
            Self::Rules(_) => "rules",
        }
    }
}

/// The pod's namespace; the agent's own where the pod names none (dedicated mode).
pub(super) fn open(pod: &LocalPod) -> Result<NetNs, Uncaptured> {
    match &pod.netns {
        Some(path) => NetNs::open(path).map_err(|source| Uncaptured::Open { path: path.clone(), source }),
        None => Ok(NetNs::current()?),
    }
}

/// Whether the namespace has the pod's addresses: a wrong path must not give one pod another's identity.
pub(super) fn check(netns: &NetNs, pod: &LocalPod) -> Result<(), Uncaptured> {
    let is_missing = |ip: &IpAddr| {
        UdpSocket::bind((*ip, 0)).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
    };
    match netns.run(|| pod.addresses.iter().find(|ip| is_missing(ip)))? {
        Some(ip) => Err(Uncaptured::WrongNamespace { ip: *ip }),
        None => Ok(()),
    }
}
