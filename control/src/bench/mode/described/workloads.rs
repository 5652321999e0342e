//! The reference node proxy's file of workloads (`LOCAL_XDS_PATH`): the two pods, and those of the world beside them.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::environment::workload_uid;
use crate::lab::Pod;

/// Workloads of a namespace beside the two pods.
const PER_NAMESPACE: u32 = 100;

/// The file's text.
pub(super) fn text(pods: [&Pod; 2], workloads: u32) -> String {
    let mut text = String::from("services: []\npolicies: []\nworkloads:\n");
    for pod in pods {
        let _infallible = writeln!(
            text,
            "- uid: {uid:?}\n  name: {name:?}\n  namespace: {namespace:?}\n  trustDomain: cluster.local\n  \
             serviceAccount: {account:?}\n  workloadIps: [{v4:?}, {v6:?}]\n  protocol: HBONE\n  node: {node:?}\n  \
             workloadName: {name:?}\n  workloadType: pod\n  canonicalName: {name:?}\n  canonicalRevision: latest\n  \
             clusterId: Kubernetes\n  status: Healthy\n  services: {{}}",
            uid = workload_uid(pod),
            name = pod.spec.name,
            namespace = pod.spec.namespace,
            account = pod.spec.service_account,
            v4 = pod.v4.to_string(),
            v6 = pod.v6.to_string(),
            node = pod.node_name,
        );
    }
    for number in 0..workloads {
        // In 10.128.0.0/9, which no lab uses.
        let ip = Ipv4Addr::from(0x0a80_0000 + number / 250 * 256 + number % 250 + 2);
        let team = number / PER_NAMESPACE;
        let _infallible = writeln!(
            text,
            "- uid: Kubernetes//Pod/team-{team}/app-{number}\n  name: app-{number}\n  namespace: team-{team}\n  \
             trustDomain: cluster.local\n  serviceAccount: app-{number}\n  workloadIps: [\"{ip}\"]\n  protocol: HBONE\n  \
             node: far-{team}\n  clusterId: Kubernetes\n  services: {{}}"
        );
    }
    text
}
