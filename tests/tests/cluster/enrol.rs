//! A namespace joins the mesh and leaves it.

use crate::kube::{agent_page, logged, nodes};
use crate::space::Space;

/// One request, which both agents log with both identities and port 15008.
#[track_caller]
fn over_hbone(space: &Space, from: (&str, u32), to: (&str, u32)) {
    let ((from, from_node), (to, to_node)) = (from, to);
    let said = space.answered(from, &format!("http://{to}/"));
    assert!(said.contains(&format!("IP={}", space.pod_ip(from))), "{to} sees {from}'s own address: {said}");
    let (source, destination) = (space.identity(from), space.identity(to));
    let source = format!("src.identity=\"{source}\"");
    let destination = format!("dst.identity=\"{destination}\"");
    let out = logged(from_node, &["direction=\"outbound\"", &source, &destination]);
    assert!(out.contains(":15008"), "{out}");
    logged(to_node, &["direction=\"inbound\"", &source, &destination]);
}

/// Running pods are captured when their namespace is labelled, talk in both directions on one node and across nodes, and
/// go back to plaintext when the label goes.
#[test]
fn a_label_brings_running_pods_into_the_mesh_and_back() {
    assert!(nodes() >= 2, "needs two nodes: make cluster NODES=2");
    let space = Space::plain("enrol");
    space.apps(&[("web", 1, 1), ("near", 1, 1), ("far", 2, 1)]);
    for to in ["near", "far"] {
        space.becomes("web", &format!("http://{to}/"), true); // kube-proxy takes its time
    }

    space.label("istio.io/dataplane-mode=ambient");
    space.captured(true);
    over_hbone(&space, ("web", 1), ("near", 1));
    over_hbone(&space, ("near", 1), ("web", 1));
    over_hbone(&space, ("web", 1), ("far", 2));
    over_hbone(&space, ("far", 2), ("web", 1));
    // To the pod's address as to the service's, gRPC and plain TCP as HTTP.
    let ip = space.pod_ip("far");
    space.answered("web", &format!("http://{ip}:8080/"));
    space.answered("web", "grpc://far:7070");
    let tcp = space.ask("web", "tcp://far:9090");
    assert!(tcp.ok, "{tcp:?}");

    space.label("istio.io/dataplane-mode=none");
    space.captured(false);
    for (from, to) in [("web", "near"), ("web", "far"), ("far", "web")] {
        space.becomes(from, &format!("http://{to}/"), true);
    }
}

/// A pod that starts in a labelled namespace is in the mesh from its first packet, and a pod may stay out by its own label.
#[test]
fn pods_are_captured_as_they_start() {
    let space = Space::ambient("start");
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    space.captured(true);
    over_hbone(&space, ("web", 1), ("cart", 2));

    let patch = r#"{"spec":{"template":{"metadata":{"labels":{"istio.io/dataplane-mode":"none"}}}}}"#;
    space.kubectl(&["patch", "deploy/web", "-p", patch]);
    space.rolled_out("deploy/web");
    space.becomes("web", "http://cart/", true);
    let said = space.answered("web", "http://cart/");
    assert!(said.contains(&format!("IP={}", space.pod_ip("web"))) || said.contains("IP="), "{said}");
    logged(2, &["direction=\"inbound\"", "dst.workload=\"cart", "src.workload=\"web"]);
}

/// Traffic between the mesh and what is outside of it, both ways.
#[test]
fn the_mesh_and_plain_pods_reach_each_other() {
    let (space, plain) = (Space::ambient("inside"), Space::plain("outside"));
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    plain.apps(&[("near", 1, 1), ("far", 2, 1)]);
    space.captured(true);
    for (from, to) in [("web", "near"), ("web", "far"), ("cart", "near")] {
        space.becomes(from, &format!("http://{to}.{}/", plain.name), true);
    }
    for (from, to) in [("near", "web"), ("near", "cart"), ("far", "web")] {
        plain.becomes(from, &format!("http://{to}.{}/", space.name), true);
    }
}

/// What istioctl and people read: the agents' state has the pods with certificates.
#[test]
fn the_dump_has_workloads_services_and_certificates() {
    let space = Space::ambient("dump");
    space.apps(&[("web", 1, 1), ("cart", 1, 1)]);
    space.captured(true);
    space.becomes("web", "http://cart/", true);
    let dump: serde_json::Value = serde_json::from_str(&agent_page(1, "15000/config_dump")).unwrap();
    let has = |key: &str, field: &str, value: &str| {
        let items = dump[key].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(
            items.iter().any(|item| item[field].as_str().is_some_and(|text| text.starts_with(value))),
            "{key} with {field} {value}: {items:?}"
        );
    };
    has("services", "hostname", &format!("cart.{}.svc.cluster.local", space.name));
    has("workloads", "name", "cart-");
    has("certificates", "identity", &space.identity("cart"));
    let shown = crate::kube::inside(1)
        .arg(crate::kube::folder().join("bin/istioctl"))
        .args(["ztunnel-config", "workloads", "-o", "short", "--kubeconfig"])
        .arg(crate::kube::folder().join("run/admin.conf"))
        .arg(format!("{}.istio-system", crate::kube::agent_on(1)))
        .output()
        .unwrap();
    let shown = crate::kube::Said::from(shown);
    let lines: Vec<&str> = shown.out.lines().filter(|line| line.contains(&space.name)).collect();
    assert!(shown.ok && lines.len() >= 2 && lines.iter().all(|line| line.contains("HBONE")), "{shown:?}");
}
