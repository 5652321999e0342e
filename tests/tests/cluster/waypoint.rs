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

/// A waypoint of another namespace for a whole namespace, its ServiceEntries too, `none` for one service, one that does not
/// exist; and one that is away: what is meant for it is refused until it is back, and never passes it by.
#[test]
fn waypoints_of_every_attachment() {
    lab(&["waypoints"]);
    let (space, infra, plain) =
        (Space::ambient("attach"), Space::plain("attach-infra"), Space::plain("attach-out"));
    space.apps(&[("web", 1, 1), ("cart", 2, 1), ("bare", 2, 1), ("bogus", 2, 1)]);
    plain.app("legacy", 2);
    space.captured(true);
    infra.apply(
        &gateway("wp", "all")
            .replace("protocol: HBONE", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}"),
    );
    infra.rolled_out("deploy/wp");
    space.apply(&format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: egress}}
spec:
  hosts: [egress.example]
  resolution: STATIC
  ports: [{{number: 80, targetPort: 8080, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}}}]
",
        plain.pod_ip("legacy")
    ));
    space.kubectl(&["label", "service", "bare", "istio.io/use-waypoint=none"]);
    space.kubectl(&["label", "service", "bogus", "istio.io/use-waypoint=nobody"]);
    space.label(&format!("istio.io/use-waypoint-namespace={}", infra.name));
    space.label("istio.io/use-waypoint=wp");
    for (url, wanted) in [("cart", true), ("egress.example", true), ("bare", false), ("bogus", false)] {
        passes_envoy(&space, &format!("http://{url}/"), wanted);
    }

    infra.kubectl(&["scale", "deploy/wp", "--replicas=0"]);
    for host in ["cart", "egress.example"] {
        space.becomes("web", &format!("http://{host}/"), false);
    }
    for _ in 0..5 {
        let said = space.ask("web", "http://cart/");
        assert!(!said.ok, "{said:?}");
    }
    space.answered("web", "http://bare/");
    logged(1, &["direction=\"outbound\"", "no healthy upstream"]);
    infra.kubectl(&["scale", "deploy/wp", "--replicas=1"]);
    for host in ["cart", "egress.example"] {
        passes_envoy(&space, &format!("http://{host}/"), true);
    }
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
