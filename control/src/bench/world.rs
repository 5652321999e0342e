//! A cluster beside the two pods: documents of so many workloads, in the proportions of a real one.
//!
//! For ten pods one Service with its endpoints, and one policy. None of the pods is on a node that exists: they are known,
//! not served.

use std::fmt::Write as _;

use crate::lab::{Lab, LabError};

/// Pods of a service, and of a policy.
const PODS_PER_SERVICE: u32 = 10;
/// Pods in one file.
const PODS_PER_FILE: u32 = 1_000;
/// Pods of a node, and of a namespace.
const PODS_PER_NODE: u32 = 100;
/// The most that the addresses have room for.
pub const WORKLOADS_MAX: u32 = 100_000;

/// Writes the lab's own documents and those of `workloads` more pods; takes away what an earlier call wrote.
///
/// **Errors:** the disk is full.
pub fn publish(lab: &Lab, workloads: u32) -> Result<(), LabError> {
    lab.publish()?;
    for index in 0.. {
        let name = format!("world-{index}.yaml");
        let first = index * PODS_PER_FILE;
        if first < workloads.min(WORKLOADS_MAX) {
            lab.put(&name, &documents(first, (workloads - first).min(PODS_PER_FILE)))?;
        } else if lab.config_dir().join(&name).exists() {
            lab.take_away(&name)?;
        } else {
            break;
        }
    }
    Ok(())
}

/// Documents of `count` pods from number `first` on.
fn documents(first: u32, count: u32) -> String {
    let mut text = String::new();
    for pod in first..first + count {
        if pod % PODS_PER_SERVICE == 0 {
            let members = PODS_PER_SERVICE.min(first + count - pod);
            service(&mut text, pod, members);
        }
        let _infallible = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: app-{service}-{pod}\n  namespace: team-{team}\n  uid: uid-{pod}\n  \
             labels:\n    app: app-{service}\n    istio.io/dataplane-mode: ambient\nspec:\n  nodeName: far-{team}\n  \
             serviceAccountName: app-{service}\nstatus:\n  phase: Running\n  conditions:\n  - type: Ready\n    status: \"True\"\n  \
             podIP: {ip}\n  podIPs:\n  - ip: {ip}\n",
            service = pod / PODS_PER_SERVICE,
            team = pod / PODS_PER_NODE,
            ip = address(pod),
        );
    }
    text
}

fn service(text: &mut String, pod: u32, members: u32) {
    let (service, team) = (pod / PODS_PER_SERVICE, pod / PODS_PER_NODE);
    let _infallible = write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: app-{service}\n  namespace: team-{team}\nspec:\n  clusterIP: {ip}\n  \
         clusterIPs: [{ip}]\n  selector:\n    app: app-{service}\n  ports:\n  - name: http\n    port: 80\n    targetPort: 8080\n\
         ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: app-{service}\n  \
         namespace: team-{team}\nspec:\n  selector:\n    matchLabels:\n      app: app-{service}\n  action: ALLOW\n  rules:\n  - from:\n    - source:\n        \
         principals: [\"cluster.local/ns/team-{team}/sa/app-{caller}\"]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: app-{service}\n  namespace: team-{team}\n  \
         labels:\n    kubernetes.io/service-name: app-{service}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\nendpoints:\n",
        ip = format_args!("10.{}.{}.{}", 97 + (service >> 16), (service >> 8) & 0xff, service & 0xff),
        caller = service.saturating_sub(1),
    );
    for member in pod..pod + members {
        let _infallible = write!(
            text,
            "- addresses: [{ip}]\n  conditions: {{ready: true}}\n  nodeName: far-{team}\n  \
             targetRef: {{kind: Pod, namespace: team-{team}, name: app-{service}-{member}}}\n",
            ip = address(member),
        );
    }
}

/// In 10.128.0.0/10, which no lab uses.
fn address(pod: u32) -> std::net::Ipv4Addr {
    // The first of each /24 are left out, as a network's own address is.
    std::net::Ipv4Addr::from(0x0a80_0000 + pod / 250 * 256 + pod % 250 + 2)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ten_pods_share_a_service_and_a_policy() {
        let text = documents(0, 1_000);
        let count = |kind: &str| text.matches(&format!("\nkind: {kind}\n")).count();
        assert_eq!(count("Pod"), 1_000);
        for kind in ["Service", "EndpointSlice", "AuthorizationPolicy"] {
            assert_eq!(count(kind), 100, "{kind}");
        }
        assert_eq!(text.matches("targetRef").count(), 1_000);
    }

    #[test]
    fn addresses_are_unique_and_outside_the_labs_own() {
        let all: BTreeSet<_> = (0..WORKLOADS_MAX).map(address).collect();
        assert_eq!(u32::try_from(all.len()).unwrap(), WORKLOADS_MAX);
        assert!(all.iter().all(|a| a.octets()[0] == 10 && (128..192).contains(&a.octets()[1])));
    }

    #[test]
    fn a_last_service_has_the_pods_that_are_left() {
        let text = documents(0, 13);
        assert_eq!(text.matches("\nkind: Service\n").count(), 2);
        assert_eq!(text.matches("targetRef").count(), 13);
    }
}
