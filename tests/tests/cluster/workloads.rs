//! Every kind of workload, kubelet's probes, NodePort, and what a ServiceEntry adds.

use std::time::Duration;

use crate::kube::{SOON, inside, logged, pause, until};
use crate::policy::STRICT;
use crate::space::{IMAGE, Space};

/// A StatefulSet behind a headless service: each pod by its own name.
#[test]
fn stateful_set_pods_by_name() {
    let space = Space::ambient("stateful");
    space.app("web", 1);
    space.stateful_set("db");
    space.captured(true);
    for pod in ["db-0", "db-1"] {
        space.becomes("web", &format!("http://{pod}.db:8080/"), true);
        let said = space.answered("web", &format!("http://{pod}.db:8080/"));
        assert!(said.contains(&format!("Hostname={pod}")), "{said}");
    }
    space.becomes("web", "http://db:8080/", true);
    logged_any(&["direction=\"inbound\"", "dst.workload=\"db-0", &space.identity("web")]);
}

/// Waits for a line on whichever node.
#[track_caller]
fn logged_any(words: &[&str]) {
    until(&format!("a line with {words:?}"), SOON, || {
        let lines: String = (1..=crate::kube::nodes()).map(crate::kube::agent_log).collect();
        let found = lines.lines().any(|line| words.iter().all(|word| line.contains(word)));
        if found { Ok(()) } else { Err("none".to_owned()) }
    });
}

/// A Job asks at once, before anything could wait for the mesh, and comes to its end.
#[test]
fn a_job_asks_from_its_first_moment() {
    let space = Space::ambient("job");
    space.app("cart", 2);
    space.captured(true);
    space.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: asker}}
spec:
  backoffLimit: 0
  completions: 6
  parallelism: 3
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: {IMAGE}
        command: [client, --timeout, 10s, --count, '3', 'http://cart/']
"
    ));
    space.kubectl(&["wait", "--for=condition=complete", "job/asker", "--timeout=90s"]);
    logged(2, &["direction=\"inbound\"", "dst.workload=\"cart", &format!("ns/{}/sa/default", space.name)]);
}

/// One pod on each node, which all reach the others.
#[test]
fn daemon_set_pods_reach_each_other() {
    let space = Space::ambient("daemon");
    space.apply(&format!(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: each}}
spec:
  selector: {{matchLabels: {{app: each}}}}
  template:
    metadata: {{labels: {{app: each}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {{name: app, image: '{IMAGE}', command: [server, --port=8080],
         readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}}}
"
    ));
    space.rolled_out("ds/each");
    space.captured(true);
    let list = space.kubectl(&[
        "get",
        "pods",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name}={.status.podIP} {end}",
    ]);
    let pods: Vec<(&str, &str)> = list.split_whitespace().filter_map(|pod| pod.split_once('=')).collect();
    assert!(pods.len() >= 2, "{list}");
    for (name, _) in &pods {
        for (_, ip) in &pods {
            let said = space.exec(name, &["client", "--timeout", "5s", &format!("http://{ip}:8080/")]);
            assert!(said.ok, "{name} to {ip}: {said:?}");
        }
    }
}

/// Pods in the host's network stay out of the mesh, and talk to it in both directions.
#[test]
fn host_network_pods_are_reached_and_reach() {
    let space = Space::ambient("host");
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    space.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: host}}
spec:
  selector: {{matchLabels: {{app: host}}}}
  template:
    metadata: {{labels: {{app: host}}}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      nodeSelector: {{kubernetes.io/hostname: node-2}}
      containers:
      - {{name: app, image: '{IMAGE}', command: [server, --port=18080],
         readinessProbe: {{httpGet: {{path: /, port: 18080}}, periodSeconds: 1}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: host}}
spec: {{selector: {{app: host}}, ports: [{{name: http, port: 80, targetPort: 18080}}]}}
"
    ));
    space.rolled_out("deploy/host");
    space.becomes("web", "http://host/", true);
    space.becomes("cart", "http://host/", true);
    let ip = space.pod_ip("cart");
    space.becomes("host", &format!("http://{ip}:8080/"), true);
    let ip = space.pod_ip("web");
    space.becomes("host", &format!("http://{ip}:8080/"), true);
}

/// kubelet reaches what it probes although STRICT refuses plaintext: HTTP, TCP, gRPC and commands.
#[test]
fn probes_of_every_kind_under_strict() {
    let space = Space::ambient("probes");
    space.apply(STRICT);
    let probes = [
        ("http", "httpGet: {path: /, port: 8080}"),
        ("tcp", "tcpSocket: {port: 9090}"),
        ("exec", "exec: {command: ['true']}"),
        ("grpc", "grpc: {port: 6060}"),
    ];
    let pods: Vec<String> = probes
        .iter()
        .map(|(name, probe)| {
            let each = ["startup", "readiness", "liveness"]
                .map(|kind| format!("{kind}Probe: {{{probe}, periodSeconds: 1, failureThreshold: 5}}"))
                .join(", ");
            // Istio's echo app does not serve gRPC's health protocol on a port of gRPC: etcd's and others' is like this one.
            format!(
                "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: app, image: '{IMAGE}', command: [server, --port=8080, --tcp=9090, --grpc=6060], {each}}}]
"
            )
        })
        .collect();
    space.apply(&pods.join("---\n"));
    for (name, _) in probes {
        space.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
    space.captured(true);
    // Through five more rounds of liveness.
    pause(Duration::from_secs(6));
    let counts = "jsonpath={range .items[*]}{.metadata.name} ready={.status.containerStatuses[0].ready} restarts={.status.containerStatuses[0].restartCount};{end}";
    let pods = space.kubectl(&["get", "pods", "-o", counts]);
    for (name, _) in probes {
        assert!(pods.contains(&format!("{name} ready=true restarts=0;")), "{pods}");
    }
}

/// From outside of the cluster through a port of a node, to a pod there and to one on another node.
#[test]
fn a_node_port_leads_to_captured_pods() {
    let space = Space::ambient("node-port");
    space.apps(&[("near", 1, 1), ("far", 2, 1)]);
    space.captured(true);
    // A machine beside the nodes.
    let outside = "ip netns list | grep -q outside || {
        ip netns add outside
        ip link add outside0 type veth peer name eth0 netns outside
        ip link set outside0 master nodes0 up
        ip -n outside addr add 172.31.0.99/24 dev eth0
        ip -n outside link set eth0 up; }";
    assert!(inside(1).args(["sh", "-ec", outside]).status().unwrap().success());
    for (app, port) in [("near", 31801), ("far", 31802)] {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {app}-port}}, spec: {{type: NodePort, selector: {{app: {app}}}, \
             ports: [{{name: http, port: 80, targetPort: 8080, nodePort: {port}}}]}}}}"
        ));
        until(&format!("node port of {app}"), SOON, || {
            let url = format!("http://172.31.0.1:{port}/");
            let output = inside(1)
                .args(["ip", "netns", "exec", "outside", "timeout", "5", "busybox", "wget", "-qO-", &url])
                .output()
                .unwrap();
            let said = crate::kube::Said::from(output);
            if said.ok && said.out.contains("Hostname=") { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }
}

/// A host name of a ServiceEntry: addresses outside of the mesh, a pod selected by label, and a WorkloadEntry.
#[test]
fn service_entries_name_what_is_inside_and_outside() {
    let (space, plain) = (Space::ambient("entry"), Space::plain("entry-outside"));
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    plain.app("legacy", 2);
    space.captured(true);
    let legacy = plain.pod_ip("legacy");
    space.apply(&format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: legacy}}
spec:
  hosts: [legacy.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, targetPort: 8080, name: http, protocol: TCP}}]
  endpoints: [{{address: {legacy}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: selected}}
spec:
  hosts: [selected.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, targetPort: 8080, name: http, protocol: TCP}}]
  workloadSelector: {{labels: {{app: cart}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: vm, labels: {{app: vm}}}}
spec: {{address: {legacy}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: vm}}
spec:
  hosts: [vm.example]
  addresses: [10.250.0.7]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, targetPort: 8080, name: http, protocol: TCP}}]
  workloadSelector: {{labels: {{app: vm}}}}
"
    ));
    for host in ["legacy.example", "selected.example", "vm.example", "10.250.0.7"] {
        space.becomes("web", &format!("http://{host}/"), true);
    }
    let source = format!("src.identity=\"{}\"", space.identity("web"));
    logged(2, &["direction=\"inbound\"", "dst.workload=\"cart", &source]);
}
