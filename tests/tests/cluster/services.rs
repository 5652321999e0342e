//! Services of every shape: which endpoint answers, and that none does where none should.

use std::collections::BTreeSet;

use crate::kube::{SOON, until};
use crate::space::{IMAGE, Space};

/// Who answered, of so many requests on connections of their own: pods by the Deployment's name, `none` for no answer.
fn answering(space: &Space, from: &str, url: &str, times: u32) -> BTreeSet<String> {
    let script = "for i in $(seq \"$1\"); do timeout 6 client --timeout 3s --count 1 \"$2\" 2>&1 | grep -o 'Hostname=.*' || echo Hostname=none; done";
    let said = space.exec(&format!("deploy/{from}"), &["sh", "-c", script, "sh", &times.to_string(), url]);
    said.out
        .lines()
        .filter_map(|line| line.split_once("Hostname="))
        .map(|(_, pod)| pod.trim().rsplitn(3, '-').last().unwrap_or_default().to_owned())
        .collect()
}

/// Waits until exactly these Deployments answer.
#[track_caller]
fn answered_by(space: &Space, from: &str, url: &str, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|&name| name.to_owned()).collect();
    until(&format!("{url} is answered by {wanted:?}"), SOON, || {
        let seen = answering(space, from, url, 12);
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

/// One pod of each node behind one label.
fn two_nodes(name: &str) -> Space {
    let space = Space::ambient(name);
    space.apps(&[("web", 1, 1), ("near", 1, 1), ("far", 2, 1)]);
    for app in ["near", "far"] {
        let patch = r#"{"spec":{"template":{"metadata":{"labels":{"group":"both"}}}}}"#;
        space.kubectl(&["patch", &format!("deploy/{app}"), "-p", patch]);
    }
    for app in ["near", "far"] {
        space.rolled_out(&format!("deploy/{app}"));
    }
    space.captured(true);
    space
}

fn service(name: &str, rest: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{group: both}}, {rest}}}}}\n---\n"
    )
}

const PORTS: &str = "ports: [{name: http, port: 80, targetPort: 8080}]";

/// Ports by name and several of them, affinity, traffic kept on the node or close to it, external addresses.
#[test]
fn services_of_every_shape() {
    let space = two_nodes("services");
    let shapes = [
        service("plain", PORTS),
        service("sticky", &format!("sessionAffinity: ClientIP, {PORTS}")),
        service("local", &format!("internalTrafficPolicy: Local, {PORTS}")),
        service("close", &format!("trafficDistribution: PreferSameNode, {PORTS}")),
        service("zone", &format!("trafficDistribution: PreferSameZone, {PORTS}")),
        service("external", &format!("externalIPs: [10.251.0.9], {PORTS}")),
        service("several", "ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 81, targetPort: 9090}, {name: grpc, port: 82, targetPort: 7070}]"),
        "{apiVersion: v1, kind: Service, metadata: {name: elsewhere}, spec: {type: ExternalName, externalName: plain.test-services.svc.cluster.local}}\n---\n".to_owned(),
        "{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {selector: {group: nobody}, ports: [{name: http, port: 80}]}}".to_owned(),
    ]
    .concat();
    space.apply(&shapes);
    answered_by(&space, "web", "http://plain/", &["near", "far"]);
    answered_by(&space, "web", "http://local/", &["near"]);
    answered_by(&space, "web", "http://close/", &["near"]);
    answered_by(&space, "web", "http://zone/", &["near"]);
    answered_by(&space, "web", "http://elsewhere/", &["near", "far"]);
    answered_by(&space, "web", "http://external/", &["near", "far"]);
    answered_by(&space, "web", "tcp://several:81", &["near", "far"]);
    answered_by(&space, "web", "grpc://several:82", &["near", "far"]);
    answered_by(&space, "web", "http://sticky/", &["near", "far"]);
    answered_by(&space, "web", "http://nobody/", &["none"]);
    // A port that the service does not have.
    answered_by(&space, "web", "http://plain:8080/", &["none"]);
    // What is local has nobody left: nothing leaves the node instead. What is close goes on.
    space.kubectl(&["scale", "deploy/near", "--replicas=0"]);
    answered_by(&space, "web", "http://close/", &["far"]);
    answered_by(&space, "web", "http://zone/", &["far"]);
    answered_by(&space, "web", "http://local/", &["none"]);
}

/// A port by its name, which means another number in each pod.
#[test]
fn a_named_port_is_each_pods_own() {
    let space = two_nodes("named-port");
    for (app, number) in [("near", 8080), ("far", 8081)] {
        let patch = format!(
            r#"{{"spec":{{"template":{{"spec":{{"containers":[{{"name":"app","command":["server","--port={number}","--tcp=9091","--grpc=7071"],"ports":[{{"name":"web","containerPort":{number}}}],"readinessProbe":{{"httpGet":{{"port":{number}}}}}}}]}}}}}}}}"#
        );
        space.kubectl(&["patch", &format!("deploy/{app}"), "-p", &patch]);
        space.rolled_out(&format!("deploy/{app}"));
    }
    space.captured(true);
    space.apply(&service("named", "ports: [{name: http, port: 80, targetPort: web}]"));
    answered_by(&space, "web", "http://named/", &["near", "far"]);
}

/// Headless services: by label, without a selector from an EndpointSlice that a person wrote, not ready but published.
#[test]
fn endpoints_that_are_written_or_not_ready() {
    let space = two_nodes("endpoints");
    let plain = Space::plain("endpoints-outside");
    plain.app("legacy", 2);
    let (legacy, far) = (plain.pod_ip("legacy"), space.pod_ip("far"));
    let slice = |service: &str, ip: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}, \
             addressType: IPv4, ports: [{{name: http, port: 8080, protocol: TCP}}], endpoints: [{{addresses: ['{ip}'], conditions: {{ready: true}}}}]}}\n---\n"
        )
    };
    let bare = |name: &str, rest: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{rest}ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}\n---\n"
        )
    };
    space.apply(
        &[
            bare("outside", ""),
            slice("outside", &legacy),
            bare("headless", "clusterIP: None, "),
            slice("headless", &legacy),
            bare("pod", ""),
            slice("pod", &far),
        ]
        .concat(),
    );
    answered_by(&space, "web", "http://outside/", &["legacy"]);
    answered_by(&space, "web", "http://headless:8080/", &["legacy"]);
    answered_by(&space, "web", "http://pod/", &["far"]);

    // Never ready, and asked nevertheless where the service says so.
    space.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: early}}
spec:
  selector: {{matchLabels: {{app: early}}}}
  template:
    metadata: {{labels: {{app: early}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {{name: app, image: '{IMAGE}', command: [server, --port=8080], readinessProbe: {{exec: {{command: ['false']}}}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: published}}, spec: {{publishNotReadyAddresses: true, selector: {{app: early}}, {PORTS}}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: ready}}, spec: {{selector: {{app: early}}, {PORTS}}}}}
"
    ));
    answered_by(&space, "web", "http://published/", &["early"]);
    answered_by(&space, "web", "http://ready/", &["none"]);
}

/// What a ServiceEntry makes of host names: resolved by the agent, passed through, by wildcard, of one namespace only.
#[test]
fn service_entries_of_every_resolution() {
    let (space, friends) = (Space::ambient("resolution"), Space::ambient("resolution-b"));
    let plain = Space::plain("resolution-out");
    space.app("web", 1);
    friends.app("web", 1);
    plain.app("legacy", 2);
    space.captured(true);
    friends.captured(true);
    let legacy = plain.pod_ip("legacy");
    let name = format!("legacy.{}.svc.cluster.local", plain.name);
    let entry = |entry: &str, spec: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {entry}}}, spec: {{{spec}}}}}\n---\n"
        )
    };
    let ports = "ports: [{number: 80, targetPort: 8080, name: http, protocol: TCP}]";
    let same = "ports: [{number: 8080, name: http, protocol: TCP}]";
    space.apply(
        &[
            entry("by-name", &format!("hosts: [by-name.example], resolution: DNS, ports: [{{number: 80, name: http, protocol: TCP}}], endpoints: [{{address: {name}}}]")),
            entry("fixed", &format!("hosts: [fixed.example], resolution: STATIC, {ports}, endpoints: [{{address: {legacy}}}]")),
            entry("fixed-range", &format!("hosts: [range.example], addresses: [10.252.0.0/24], resolution: STATIC, {ports}, endpoints: [{{address: {legacy}}}]")),
            entry("through", &format!("hosts: [through.example], addresses: ['{legacy}'], resolution: NONE, {same}")),
            entry("wild", &format!("hosts: ['*.wild.example'], addresses: [10.252.1.1], resolution: STATIC, {ports}, endpoints: [{{address: {legacy}}}]")),
            entry("empty", &format!("hosts: [empty.example], addresses: [10.252.1.3], resolution: STATIC, {ports}")),
            entry("gone", "hosts: [gone.example], resolution: DNS, ports: [{number: 80, name: http, protocol: TCP}], endpoints: [{address: gone.invalid}]"),
        ]
        .concat(),
    );
    for url in [
        "http://by-name.example/",
        "http://fixed.example/",
        "http://10.252.0.77/",
        "http://through.example:8080/",
        "http://a.wild.example/",
        "http://b.c.wild.example/",
    ] {
        answered_by(&space, "web", url, &["legacy"]);
    }
    for url in
        ["http://empty.example/", "http://gone.example/", "http://wild.example/", "http://fixed.example:81/"]
    {
        answered_by(&space, "web", url, &["none"]);
    }
    // Of another namespace too: istiod says nothing of `exportTo` to node proxies.
    answered_by(&friends, "web", "http://fixed.example/", &["legacy"]);
}
