//! What the mesh is, where traffic is taken from, who the workloads are.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::values::{Mode, NoDowngrade, OriginalSource, PodPath, WorkloadInfo};
use culvert_common::config::duration;

/// What the mesh is.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Mesh configuration")]
pub(crate) struct Source {
    /// Directory of the YAML that `kubectl apply` takes; re-read when it changes
    #[arg(long, env = "CULVERT_CONFIG", value_name = "DIR", default_value = "/etc/culvert/mesh")]
    pub(crate) config: PathBuf,
    /// Name of this node; without it every pod that names its namespace is captured
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Cluster id in telemetry and workload UIDs
    #[arg(long, env = "CLUSTER_ID", value_name = "ID", default_value = "Kubernetes")]
    pub(crate) cluster_id: String,
    /// Another name of the cluster id, which wins
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", hide = true)]
    pub(crate) istio_meta_cluster_id: Option<String>,
    /// Domain of service host names
    #[arg(long, env = "CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Namespace whose policies apply to the whole mesh
    #[arg(long, env = "CULVERT_ROOT_NAMESPACE", value_name = "NS", default_value = "istio-system")]
    pub(crate) root_namespace: String,
    /// Id of this network
    #[arg(long, env = "NETWORK", value_name = "ID", default_value = "")]
    pub(crate) network: String,
    /// Ranges that service addresses are taken from; an address outside is warned of
    #[arg(long, env = "CULVERT_SERVICE_RANGE", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_range: Vec<ipnet::IpNet>,
    /// Ranges that pods' addresses are taken from; while the state is incomplete nothing unknown in them, or in the service
    /// ranges, is sent in plaintext
    #[arg(long, env = "CULVERT_POD_RANGE", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) pod_range: Vec<ipnet::IpNet>,
    /// What becomes of plaintext to a pod that is labelled but not captured, or STRICT: enforce (hold, then refuse), count
    /// [default: enforce; with a discovery server count]
    #[arg(long, env = "CULVERT_NO_DOWNGRADE", value_name = "WHAT")]
    pub(crate) no_downgrade: Option<NoDowngrade>,
    /// Namespaces that are never captured
    #[arg(
        long,
        env = "CULVERT_EXCLUDE_NAMESPACES",
        value_name = "NS",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub(crate) exclude_namespaces: Vec<String>,
    /// Let a DENY rule that has only HTTP fields deny at L4, instead of warning that it has no effect
    #[arg(long, env = "POLICY_STRICT", value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(crate) policy_strict: bool,
}

/// Where traffic is taken from.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Capture")]
pub(crate) struct Capture {
    /// shared: many pods, each in a namespace of its own; dedicated: one workload, the agent's own namespace
    #[arg(long, env = "PROXY_MODE", value_name = "MODE", default_value = "shared")]
    pub(crate) mode: Mode,
    /// The workload of dedicated mode
    #[arg(long, env = "PROXY_WORKLOAD_INFO", value_name = "NS/NAME/SA", required_if_eq("mode", "dedicated"))]
    pub(crate) workload: Option<WorkloadInfo>,
    /// Network namespace of a pod, in place of its annotation culvert.dev/netns; may be repeated
    #[arg(long = "pod", env = "CULVERT_PODS", value_name = "NS/NAME=PATH", value_delimiter = ',')]
    pub(crate) pods: Vec<PodPath>,
    /// Mark of the agent's own sockets
    #[arg(long, env = "PACKET_MARK", value_name = "N", default_value_t = 1337)]
    pub(crate) packet_mark: u32,
    /// Let another agent's listeners stand beside this one's in the pods (SO_REUSEPORT): only while a node is handed over
    /// from an agent that needs it, as any root process in a pod could take connections so
    #[arg(long, env = "INPOD_PORT_REUSE", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) port_reuse: bool,
    /// Whether the app sees its client's address: auto, true (refuse if impossible), false
    #[arg(long, env = "ENABLE_ORIG_SRC", value_name = "WHEN", default_value = "auto")]
    pub(crate) original_source: OriginalSource,
    /// Listen and capture on IPv6 too; with false a pod's IPv6 traffic stays outside the mesh
    #[arg(long, env = "IPV6_ENABLED", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) ipv6: bool,
    /// Go on in a namespace that holds another mesh's rules
    #[arg(long, env = "CULVERT_ADOPT")]
    pub(crate) adopt: bool,
}

/// Who the workloads are.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Identity")]
pub(crate) struct Identity {
    /// Directory of the embedded CA's root (mode 0700), shared by the agents of a mesh; made if it is missing
    #[arg(long, env = "CULVERT_CA_DIR", value_name = "DIR", default_value = "/var/lib/culvert/ca")]
    pub(crate) ca_dir: PathBuf,
    /// Trust domain of the mesh
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) trust_domain: String,
    /// Lifetime of a workload's certificate
    #[arg(long, env = "SECRET_TTL", value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub(crate) secret_ttl: Duration,
    /// How long a connection waits for its pod's first certificate before it is refused
    #[arg(long, env = "CULVERT_CERTIFICATE_WAIT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) certificate_wait: Duration,
}

impl Source {
    pub(crate) fn cluster_id(&self) -> &str {
        self.istio_meta_cluster_id.as_deref().unwrap_or(&self.cluster_id)
    }
}

impl Capture {
    /// What only several settings together can get wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        let lacks_workload = self.mode == Mode::Dedicated && self.workload.is_none();
        let told = "dedicated mode needs --workload NAMESPACE/NAME/SERVICE-ACCOUNT (PROXY_WORKLOAD_INFO)";
        lacks_workload.then(|| told.to_owned()).into_iter().collect()
    }

    pub(crate) fn netns_overrides(&self) -> HashMap<String, PathBuf> {
        self.pods.iter().map(|p| (p.pod.clone(), p.path.clone())).collect()
    }
}
