//! A pod of this node that is to be captured.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::types::WorkloadUid;

/// A pod of this node that is to be captured and whose network namespace is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// `metadata.uid`, or `<namespace>/<name>` where the document has none.
    pub uid: Arc<str>,
    /// Key of its workload.
    pub workload: WorkloadUid,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Path of its network namespace; `None` is the agent's own (dedicated mode).
    pub netns: Option<PathBuf>,
    /// Annotation `ambient.istio.io/bypass-inbound-capture`: no inbound redirection, port 15008 still served.
    pub bypass_inbound: bool,
    /// Annotation `istio.io/reroute-virtual-interfaces`: traffic from these counts as outbound.
    pub reroute_interfaces: Vec<Arc<str>>,
    /// Annotation `ambient.istio.io/dns-capture`: whether its DNS queries are taken; as elsewhere on the node where not said.
    pub dns: Option<bool>,
}
