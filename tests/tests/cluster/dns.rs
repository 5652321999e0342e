//! Names of every shape, asked in captured pods.

use std::time::Duration;

use crate::kube::{Said, until};
use crate::space::{IMAGE, Space};

/// busybox's nslookup in a Deployment's pod.
fn look_up(space: &Space, from: &str, args: &[&str]) -> Said {
    space.exec(&format!("deploy/{from}"), &[&["timeout", "6", "nslookup"], args].concat())
}

/// The addresses in its answer, without that of the server.
fn addresses(said: &Said) -> Vec<String> {
    let answers = said.out.split("\n\n").skip(1).flat_map(str::lines);
    answers.filter_map(|line| line.strip_prefix("Address: ")).map(|ip| ip.trim().to_owned()).collect()
}

#[track_caller]
pub(crate) fn resolves(space: &Space, from: &str, kind: &str, name: &str, wanted: &[&str]) {
    let mut wanted: Vec<String> = wanted.iter().map(|&ip| ip.to_owned()).collect();
    wanted.sort();
    until(&format!("{name} is {wanted:?}"), Duration::from_secs(20), || {
        let said = look_up(space, from, &[&format!("-type={kind}"), name]);
        let mut got = addresses(&said);
        got.sort();
        got.dedup();
        if got == wanted { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

/// A query over TCP for type and name to the pod's name server; the whole answer in hexadecimal.
fn over_tcp(space: &Space, from: &str, name: &str, kind: u8) -> String {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, kind, 0, 1]);
    let length = u16::try_from(query.len()).unwrap().to_be_bytes();
    let octal: String = length.iter().chain(&query).map(|byte| format!("\\{byte:03o}")).collect();
    let server = "$(awk '/^nameserver/ {print $2; exit}' /etc/resolv.conf)";
    // nc ends with its input, before the answer: the input stays open for a moment.
    let script =
        format!("(printf '{octal}'; sleep 2) | timeout 5 nc {server} 53 | od -An -v -tx1 | tr -d ' \\n'");
    space.exec(&format!("deploy/{from}"), &["sh", "-c", &script]).out
}

/// Services by short and long names, headless ones, StatefulSet pods, ServiceEntries and wildcards, and what is not there.
#[test]
fn names_of_every_shape() {
    let (space, friends) = (Space::ambient("dns"), Space::ambient("dns-friends"));
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    friends.app("cart", 2);
    space.stateful_set("db");
    space.apply(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: named}
spec:
  hosts: [named.example]
  addresses: [10.250.0.1]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: TCP}]
  endpoints: [{address: 192.0.2.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ['*.wild.example']
  addresses: [10.250.0.2]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: TCP}]
  endpoints: [{address: 192.0.2.2}]
",
    );
    space.captured(true);
    let vip = |space: &Space, name: &str| {
        space.kubectl(&["get", "service", name, "-o", "jsonpath={.spec.clusterIP}"])
    };
    let (own, other) = (vip(&space, "cart"), vip(&friends, "cart"));
    let (ns, theirs) = (&space.name, &friends.name);
    for name in
        ["cart", &format!("cart.{ns}"), &format!("cart.{ns}.svc"), &format!("cart.{ns}.svc.cluster.local")]
    {
        resolves(&space, "web", "a", name, &[&own]);
    }
    resolves(&space, "web", "a", &format!("cart.{theirs}"), &[&other]);
    resolves(&space, "web", "a", &format!("cart.{theirs}.svc.cluster.local."), &[&other]);

    let pods = space.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=db",
        "-o",
        "jsonpath={range .items[*]}{.status.podIP} {end}",
    ]);
    let pods: Vec<&str> = pods.split_whitespace().collect();
    resolves(&space, "web", "a", "db", &pods);
    resolves(&space, "web", "a", &format!("db-0.db.{ns}.svc.cluster.local"), &pods[..1]);
    resolves(&space, "web", "a", "named.example", &["10.250.0.1"]);
    resolves(&space, "web", "a", "a.wild.example", &["10.250.0.2"]);
    resolves(&space, "web", "a", "outside.example", &["172.31.0.1"]);
}

/// What is not there is NXDOMAIN with the SOA; other types and TCP pass to the cluster's DNS.
#[test]
fn what_is_not_ours_passes_unchanged() {
    let space = Space::ambient("dns-relay");
    space.apps(&[("web", 1, 1)]);
    space.captured(true);
    let said = look_up(&space, "web", &["-type=a", "nothing.outside.invalid."]);
    assert!(said.out.contains("NXDOMAIN") || said.err.contains("NXDOMAIN"), "{said:?}");
    let said = look_up(&space, "web", &["-type=txt", "outside.example."]);
    assert!(said.out.contains("from CoreDNS"), "{said:?}");
    let said =
        look_up(&space, "web", &["-type=srv", &format!("_http._tcp.web.{}.svc.cluster.local.", space.name)]);
    assert!(said.out.contains("service ="), "{said:?}");

    let answer = over_tcp(&space, "web", "outside.example", 1);
    assert!(answer.contains("ac1f0001"), "172.31.0.1 over TCP: {answer}");
    let answer = over_tcp(&space, "web", "nothing.outside.invalid", 1);
    let flags = answer.get(4..12).unwrap_or_default();
    assert!(flags.ends_with('3') && flags.starts_with("1234"), "NXDOMAIN over TCP: {answer}");
    // QDCOUNT 1, ANCOUNT 0, NSCOUNT 1: the SOA of CoreDNS.
    assert_eq!(answer.get(12..24), Some("000100000001"), "{answer}");
}

/// A pod with its own resolv.conf: its search domains and its name server count, not the agent's.
#[test]
fn a_pod_has_its_own_resolver() {
    let space = Space::ambient("dns-own");
    space.app("cart", 2);
    space.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: own}}
spec:
  selector: {{matchLabels: {{app: own}}}}
  template:
    metadata: {{labels: {{app: own}}}}
    spec:
      terminationGracePeriodSeconds: 1
      dnsPolicy: None
      dnsConfig: {{nameservers: [10.96.0.10], searches: [example]}}
      containers: [{{name: app, image: '{IMAGE}', command: [sleep, '1000000']}}]
"
    ));
    space.rolled_out("deploy/own");
    space.captured(true);
    let own = space.kubectl(&["get", "service", "cart", "-o", "jsonpath={.spec.clusterIP}"]);
    resolves(&space, "own", "a", &format!("cart.{}.svc.cluster.local", space.name), &[&own]);
    resolves(&space, "own", "a", "outside.example", &["172.31.0.1"]);
    resolves(&space, "own", "a", "outside", &["172.31.0.1"]);
}
