//! The documents that describe the lab: what `kubectl get -o yaml` would show of the same cluster.

use std::fmt::Write as _;
use std::fs;

use super::error::At;
use super::{Lab, LabError, NodeId, Pod, SERVICE_RANGES};

impl Lab {
    /// Writes `nodes.yaml` and `pods.yaml` for all nodes and pods that exist, every pod ready.
    pub fn publish(&self) -> Result<(), LabError> {
        let nodes: String = (0..self.nodes.len()).map(|n| self.node_document(NodeId(n))).collect();
        let pods: String = self.pods.iter().map(|pod| pod.document(true)).collect();
        self.put("nodes.yaml", &nodes)?;
        self.put("pods.yaml", &pods)
    }

    /// Puts a document into the configuration directory, whole or not at all.
    pub fn put(&self, name: &str, text: &str) -> Result<(), LabError> {
        let draft = self.dir().join(format!("{name}.draft"));
        let target = self.config_dir().join(name);
        fs::write(&draft, text).at(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &target).at(|| format!("move to {}", target.display()))
    }

    /// Takes a document out of the configuration directory.
    pub fn take_away(&self, name: &str) -> Result<(), LabError> {
        let path = self.config_dir().join(name);
        fs::remove_file(&path).at(|| format!("remove {}", path.display()))
    }

    /// A node's document.
    pub fn node_document(&self, node: NodeId) -> String {
        let [v4, v6] = self.host_addresses(node);
        let (pods4, pods6) = super::Node::pod_address(node.0, 0);
        let name = self.node_name(node);
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    kubernetes.io/hostname: {name}\n    \
             topology.kubernetes.io/region: lab\n    topology.kubernetes.io/zone: zone-{}\nspec:\n  podCIDRs:\n  - {pods4}/24\n  \
             - {pods6}/64\nstatus:\n  addresses:\n  - type: InternalIP\n    address: {v4}\n  - type: InternalIP\n    address: \"{v6}\"\n",
            node.0 + 1
        )
    }

    /// Flags an agent needs to know which addresses are services'.
    pub fn service_ranges(&self) -> String {
        SERVICE_RANGES.join(",")
    }
}

impl Pod {
    /// The pod's document.
    pub fn document(&self, ready: bool) -> String {
        let spec = &self.spec;
        let mut text = format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: uid-{}\n  labels:\n",
            spec.name, spec.namespace, spec.name
        );
        let mode = spec.captured.map(|on| if on { "ambient" } else { "none" });
        let labels = spec.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        for (key, value) in labels.chain(mode.map(|m| ("istio.io/dataplane-mode", m))) {
            let _infallible = writeln!(text, "    {key}: {value:?}");
        }
        let netns = self.netns_path().display().to_string();
        text.push_str("  annotations:\n");
        let annotations = spec.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        for (key, value) in annotations.chain([("culvert.dev/netns", netns.as_str())]) {
            let _infallible = writeln!(text, "    {key}: {value:?}");
        }
        let status = if ready { "True" } else { "False" };
        let _infallible = writeln!(
            text,
            "spec:\n  nodeName: {}\n  serviceAccountName: {}\nstatus:\n  phase: Running\n  conditions:\n  - type: Ready\n    \
             status: \"{status}\"\n  podIP: {}\n  podIPs:\n  - ip: {}\n  - ip: \"{}\"",
            self.node_name, spec.service_account, self.v4, self.v4, self.v6
        );
        text
    }
}
