//! An Envoy waypoint in the path, for a service and for a workload, and the Gateway API's conformance suite.

use std::process::Command;

use crate::change::println_to_log;
use crate::kube::{folder, kubectl, logged, try_kubectl};
use crate::policy::principal;
use crate::space::Space;

/// `tests/cluster/lab`, for what it does better than a test.
#[track_caller]
fn lab(args: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/lab");
    let output =
        Command::new(script).args(args).env("CARGO_TARGET_DIR", folder().parent().unwrap()).output().unwrap();
    let said = crate::kube::Said::from(output);
    assert!(said.ok, "lab {args:?}: {}{}", said.out, said.err);
    said.out
}

fn gateway(name: &str, what_for: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, labels: {{istio.io/waypoint-for: {what_for}}}}}
spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}
"
    )
}

/// Envoy says that it was there by headers that it adds to requests, which the app repeats, and to answers.
#[track_caller]
fn passes_envoy(space: &Space, url: &str, wanted: bool) {
    crate::kube::until(&format!("{url} through Envoy: {wanted}"), crate::kube::SOON, || {
        let said = space.ask("web", url);
        let through = said.out.to_lowercase().contains("envoy");
        if said.ok && through == wanted { Ok(()) } else { Err(format!("{}{}", said.out, said.err)) }
    });
}

/// Traffic to a service that uses a waypoint passes Envoy, which enforces HTTP policies; so does traffic to the pod's own
/// address when the workload uses one; without the label the way is direct again.
#[test]
fn an_envoy_waypoint_for_services_and_workloads() {
    lab(&["waypoints"]);
    let space = Space::ambient("waypoint");
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    space.captured(true); // the waypoint's own pod never is
    space.apply(&gateway("wp", "all"));
    space.rolled_out("deploy/wp");
    let pod = format!("http://{}:8080/", space.pod_ip("cart"));
    passes_envoy(&space, "http://cart/", false);

    space.kubectl(&["label", "service", "cart", "istio.io/use-waypoint=wp"]);
    passes_envoy(&space, "http://cart/", true);
    passes_envoy(&space, &pod, false);
    let waypoint = format!("src.identity=\"spiffe://cluster.local/ns/{}/sa/wp\"", space.name);
    logged(2, &["direction=\"inbound\"", &waypoint, "dst.workload=\"cart"]);

    space.apply(&format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: paths}}
spec:
  targetRefs: [{{kind: Service, group: '', name: cart}}]
  action: DENY
  rules: [{{from: [{{source: {{principals: ['{}']}}}}], to: [{{operation: {{paths: ['/secret']}}}}]}}]
",
        principal(&space, "web")
    ));
    crate::kube::until("Envoy denies a path", crate::kube::SOON, || {
        let said = space.ask("web", "http://cart/secret");
        if said.out.contains("403") || said.err.contains("403") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    space.answered("web", "http://cart/");

    space.kubectl(&["label", "service", "cart", "istio.io/use-waypoint-"]);
    passes_envoy(&space, "http://cart/", false);
    space.kubectl(&["label", "pods", "-l", "app=cart", "istio.io/use-waypoint=wp"]);
    passes_envoy(&space, &pod, true);
    space.kubectl(&["label", "pods", "-l", "app=cart", "istio.io/use-waypoint-"]);
    passes_envoy(&space, &pod, false);
}

/// As the reference agent: all but the consumer's routes, which Istio's own runs in ambient mode leave out too.
#[test]
fn gateway_api_mesh_conformance() {
    let result = lab(&["conformance"]);
    for namespace in try_kubectl(&["get", "namespaces", "-o", "name"])
        .out
        .lines()
        .filter(|n| n.contains("gateway-conformance"))
    {
        kubectl(&["delete", namespace, "--wait=false"]);
    }
    println_to_log(&result);
    let passed = result.lines().filter(|line| line.starts_with("pass ")).count();
    let others: Vec<&str> = result.lines().filter(|line| !line.starts_with("pass ")).collect();
    assert_eq!((passed, &others[..]), (21, &["fail MeshConsumerRoute"][..]), "{result}");
}
