//! What the commands of a described mode are told, as environment.

use std::path::Path;

use crate::bench::mode::certificates::Material;
use crate::bench::mode::{BULK_PORT, HTTP_PORT, Stage, redirect};
use crate::lab::{NodeId, Pod};

/// Where the mode's files and services are; the same for all commands.
pub(super) struct Ground<'a> {
    pub(super) stage: &'a Stage,
    /// Of the client and of the server.
    pub(super) materials: &'a [(Pod, Material)],
    pub(super) workloads: u32,
    /// Marks every process that was started, so that none is forgotten.
    pub(super) instance: &'a str,
}

/// Whose command it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whose<'a> {
    Node(NodeId),
    Pod(&'a Pod),
}

/// Address of Istio's certificate service, on the loopback of each node and pod.
pub(super) const CA_PORT: u16 = 15012;
/// Name of the reference's file of workloads in the scratch directory.
pub(super) const LOCAL_XDS: &str = "workloads.yaml";

/// Path of a node's ZDS socket, in a folder of its own: an agent looks there for one to take the place of.
pub(super) fn zds_socket(stage: &Stage, node: NodeId) -> std::path::PathBuf {
    stage.scratch.join(format!("zds-{}", stage.lab.node_name(node))).join("ztunnel.sock")
}

/// All variables of one command.
pub(super) fn variables(ground: &Ground<'_>, whose: Whose<'_>) -> Vec<(String, String)> {
    let Ground { stage, materials, workloads, instance } = ground;
    let mut all = Vec::new();
    let mut add = |key: &str, value: String| all.push((format!("BENCH_{key}"), value));
    let show = |path: &Path| path.display().to_string();
    add("INSTANCE", (*instance).to_owned());
    add("SCRATCH", show(&stage.scratch));
    add("CONFIG", show(&stage.lab.config_dir()));
    add("CA_DIR", show(&stage.lab.ca_dir()));
    add("LOCAL_XDS", show(&stage.scratch.join(LOCAL_XDS)));
    add("ZTUNNEL", show(&stage.ztunnel));
    add("HTTP_PORT", HTTP_PORT.to_string());
    add("BULK_PORT", BULK_PORT.to_string());
    add("MARK", redirect::mark().to_string());
    add("WORKLOADS", workloads.to_string());
    add("CA_ADDRESS", format!("https://localhost:{CA_PORT}"));
    for (role, (pod, material)) in ["CLIENT", "SERVER"].into_iter().zip(materials.iter()) {
        add("ROOT_CERT", show(&material.root));
        pod_variables(role, pod, material, &mut add);
        node_variables(&format!("{role}_NODE"), stage, pod.node, &mut add);
    }
    match whose {
        Whose::Node(node) => {
            add("SELF", stage.lab.node_name(node).to_owned());
            node_variables("NODE", stage, node, &mut add);
        }
        Whose::Pod(pod) => {
            add("SELF", pod.name().to_owned());
            let role = if pod.name() == stage.client.name() { "client" } else { "server" };
            add("ROLE", role.to_owned());
            node_variables("NODE", stage, pod.node, &mut add);
            for (own, material) in materials.iter().filter(|(own, _)| own.name() == pod.name()) {
                pod_variables("POD", own, material, &mut add);
            }
        }
    }
    // The root is the same for both.
    all.dedup();
    all
}

fn node_variables(prefix: &str, stage: &Stage, node: NodeId, add: &mut impl FnMut(&str, String)) {
    let [v4, v6] = stage.lab.host_addresses(node);
    let mut one = |key: &str, value: String| add(&format!("{prefix}{key}"), value);
    one("", stage.lab.node_name(node).to_owned());
    one("_IP", v4.to_string());
    one("_IPV6", v6.to_string());
    one("_ZDS_SOCKET", zds_socket(stage, node).display().to_string());
    if let Ok(place) = stage.lab.host(node) {
        one("_NETNS", place.netns_path().display().to_string());
    }
}

fn pod_variables(prefix: &str, pod: &Pod, material: &Material, add: &mut impl FnMut(&str, String)) {
    let mut one = |key: &str, value: String| add(&format!("{prefix}{key}"), value);
    one("", pod.spec.name.clone());
    one("_NAMESPACE", pod.spec.namespace.clone());
    one("_SERVICE_ACCOUNT", pod.spec.service_account.clone());
    one("_UID", format!("uid-{}", pod.spec.name));
    one("_WORKLOAD_UID", workload_uid(pod));
    one("_IDENTITY", pod.identity());
    one("_NETNS", pod.netns_path().display().to_string());
    one("_IP", pod.v4.to_string());
    one("_IPV6", pod.v6.to_string());
    one("_CERT", material.cert.display().to_string());
    one("_KEY", material.key.display().to_string());
}

/// As Istio's control plane names a pod's workload.
pub(super) fn workload_uid(pod: &Pod) -> String {
    format!("Kubernetes//Pod/{}/{}", pod.spec.namespace, pod.spec.name)
}
