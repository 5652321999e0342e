//! Connections of every shape through the mesh: long, half closed, large both ways, many, server first; what is not TCP; pods
//! with several containers, ports of the host and inbound capture turned off; an address that comes again.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::kube::{SOON, agent_on, inside, kubectl, kubectl_command, logged, pause, settled, until};
use crate::policy::{STRICT, policy, principal};
use crate::space::{IMAGE, Space};

const BYTES: u64 = 50_000_000;

/// A pod with a second container whose TCP ports repeat (5001), speak first (5002), sum up what they are sent until the
/// end of it (5003) and send a lot (5004), and with a UDP port.
fn tools(name: &str, node: u32, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: a, port: 5001}}, {{name: b, port: 5002}}, {{name: c, port: 5003}}, {{name: d, port: 5004}}, {{name: udp, port: 5005, protocol: UDP}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      serviceAccountName: {name}
      terminationGracePeriodSeconds: 1
      nodeSelector: {{kubernetes.io/hostname: node-{node}}}
      containers:
      - name: app
        image: {IMAGE}
        command: [server, --port=8080, --udp=5005]
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        {more}
      - name: tools
        image: {IMAGE}
        command:
        - sh
        - -c
        - |
          nc -ll -p 5001 -e cat &
          nc -ll -p 5002 -e sh -c 'echo 220 ready; read said; echo 250 $said' &
          nc -ll -p 5003 -e sha256sum &
          exec nc -ll -p 5004 -e head -c {BYTES} /dev/zero
"
    )
}

pub(crate) fn stage(name: &str) -> Space {
    let space = Space::ambient(name);
    space.apply(&tools("far", 2, ""));
    space.apps(&[("web", 1, 1), ("other", 1, 1)]);
    space.rolled_out("deploy/far");
    space.captured(true);
    space.becomes("web", "http://far/", true);
    space
}

/// A shell's script in an app's first container, with its answer.
#[track_caller]
fn shell(space: &Space, app: &str, script: &str) -> String {
    let said = space.exec(&format!("deploy/{app}"), &["sh", "-c", script]);
    assert!(said.ok, "{app}: {script}: {said:?}");
    said.out.trim().to_owned()
}

/// An open connection that writes a line each second and ends when the other end does.
pub(crate) struct Open(Child);

impl Open {
    pub(crate) fn new(space: &Space, app: &str, to: &str, seconds: u32) -> Self {
        // `nc` ends when the server does; the loop that feeds it then cannot write.
        let script =
            format!("(for i in $(seq {seconds}); do echo line $i; sleep 1; done) | nc {to}; echo ended");
        let object = format!("deploy/{app}");
        let mut command = kubectl_command();
        command.args(["-n", &space.name, "exec", &object, "--", "sh", "-c", &script]);
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// The lines that came back until it ended.
    fn lines(mut self) -> usize {
        let mut said = Vec::new();
        self.0.stdout.take().unwrap().read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).lines().filter(|line| line.starts_with("line ")).count()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Large transfers both ways, each with one side closed while the other still sends, byte for byte.
#[test]
fn large_transfers_with_one_side_closed() {
    let space = stage("transfer");
    let wanted = shell(&space, "web", &format!("head -c {BYTES} /dev/zero | sha256sum | cut -c1-64"));
    let sent =
        shell(&space, "web", &format!("head -c {BYTES} /dev/zero | timeout 60 nc far 5003 | cut -c1-64"));
    assert_eq!(sent, wanted, "upwards");
    let got = shell(&space, "web", "timeout 60 nc far 5004 </dev/null | sha256sum | cut -c1-64");
    assert_eq!(got, wanted, "downwards");
    let said = shell(&space, "web", "echo hello | timeout 10 nc far 5002");
    assert_eq!(said, "220 ready\n250 hello", "the server speaks first");
}

/// A thousand connections one after the other, each with one request.
#[test]
fn a_thousand_short_connections() {
    let space = stage("short");
    let said = space.exec(
        "deploy/web",
        &[
            "culvert",
            "load",
            "--rate=250",
            "--duration=4s",
            "--warm-up=0s",
            "--timeout=8s",
            "--close",
            "--connections=64",
            "-o",
            "json",
            "http://far/",
        ],
    );
    let report: serde_json::Value =
        serde_json::from_str(said.out.get(said.out.find('{').unwrap()..).unwrap()).unwrap();
    assert_eq!((report["answered"].as_u64(), report["failed"].as_u64()), (Some(1000), Some(0)), "{report}");
}

/// What is no TCP passes as it is.
#[test]
fn udp_and_icmp_are_untouched() {
    let space = stage("udp");
    let said = space.exec("deploy/web", &["client", "--timeout", "5s", "--count", "1", "udp://far:5005"]);
    assert!(said.ok, "{said:?}");
    shell(&space, "web", &format!("ping -c 2 -W 3 {}", space.pod_ip("far")));
}

/// A policy that comes closes what is open and denied now, whether it is of the namespace or selects the app; others stay.
#[test]
fn a_new_policy_closes_open_connections() {
    let space = stage("closed");
    let (denied, allowed) =
        (Open::new(&space, "web", "far 5001", 40), Open::new(&space, "other", "far 5001", 20));
    pause(Duration::from_secs(3));
    space.apply(&policy("not-web", "DENY", "far", &principal(&space, "web"), ""));
    let lines = denied.lines();
    assert!((1..20).contains(&lines), "{lines} lines of 40 came back before the end");
    let second = Open::new(&space, "other", "far 5001", 40);
    assert_eq!(allowed.lines(), 20, "the other caller's connection stays");
    space.apply(
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nothing}, spec: {}}",
    );
    let lines = second.lines();
    assert!((1..36).contains(&lines), "{lines} lines of 40 came back before the end");
    logged(2, &["connection closed due to policy change"]);
}

/// An agent that is rolled over lets open connections and transfers come to their end; those of both nodes.
#[test]
fn what_is_open_outlives_a_roll_over() {
    let space = stage("outlives");
    let open = Open::new(&space, "web", "far 5001", 15);
    pause(Duration::from_secs(1));
    let before = agent_on(1);
    kubectl(&["-n", "istio-system", "rollout", "restart", "ds/ztunnel"]);
    let sent = shell(
        &space,
        "web",
        "(head -c 20000000 /dev/zero; sleep 6; head -c 20000000 /dev/zero) | timeout 60 nc far 5003 | cut -c1-64",
    );
    let wanted = shell(&space, "web", "head -c 40000000 /dev/zero | sha256sum | cut -c1-64");
    assert_eq!(sent, wanted);
    settled();
    assert_ne!(before, agent_on(1));
    assert_eq!(open.lines(), 15);
}

/// A port of the host leads into a captured pod, also under STRICT's eyes only in plaintext's absence; pods with inbound
/// capture turned off take plaintext and tunnels alike.
#[test]
fn host_ports_and_pods_that_bypass_inbound_capture() {
    let space = Space::ambient("host-port");
    space.app("web", 1);
    let bypass = tools("bypass", 2, "ports: [{containerPort: 8080}]").replace(
        "{labels: {app: bypass}}",
        "{labels: {app: bypass}, annotations: {ambient.istio.io/bypass-inbound-capture: 'true'}}",
    );
    space.apply(&tools("port", 2, "ports: [{containerPort: 8080, hostPort: 18888}]"));
    space.apply(&bypass);
    space.rolled_out("deploy/port");
    space.rolled_out("deploy/bypass");
    space.captured(true);
    let from_node = |url: &str| {
        let output = inside(1).args(["timeout", "5", "busybox", "wget", "-qO-", url]).output().unwrap();
        let said = crate::kube::Said::from(output);
        if said.ok && said.out.contains("Hostname=") { Ok(()) } else { Err(format!("{said:?}")) }
    };
    until("the host's port", SOON, || from_node("http://172.31.0.2:18888/"));
    space.becomes("web", "http://port/", true);
    space.becomes("web", "http://bypass/", true);
    space.apply(STRICT);
    until("STRICT counts at the host's port", SOON, || match from_node("http://172.31.0.2:18888/") {
        Ok(()) => Err("answered".to_owned()),
        Err(_) => Ok(()),
    });
    let url = format!("http://{}:8080/", space.pod_ip("bypass"));
    until("plaintext to the pod that bypasses", SOON, || from_node(&url));
    for app in ["port", "bypass"] {
        space.answered("web", &format!("http://{app}/"));
        let wanted = format!("dst.identity=\"{}\"", space.identity(app));
        logged(
            2,
            &["direction=\"inbound\"", &wanted, &format!("src.identity=\"{}\"", space.identity("web"))],
        );
    }
}

/// A pod with another identity at the address of one that has just gone: nobody takes it for that one.
#[test]
fn an_address_that_comes_again() {
    let space = Space::ambient("again");
    space.apps(&[("web", 1, 1), ("cart", 2, 1), ("gate", 2, 1)]);
    space.captured(true);
    space.apply(&policy("only-web", "ALLOW", "gate", &principal(&space, "web"), ""));
    space.kubectl(&["create", "serviceaccount", "thief"]);
    space.becomes("web", "http://gate/", true);
    let ip = space.pod_ip("web");
    for round in 0..3 {
        // The next address that the node's range gives is the same one.
        space.kubectl(&["scale", "deploy/web", "--replicas=0"]);
        space.kubectl(&["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s"]);
        let script = format!(
            "cd /var/lib/cni/networks/pods && ! [ -e {ip} ] && printf %s {} >last_reserved_ip.0",
            previous(&ip)
        );
        until("the address is free", SOON, || {
            if inside(1).args(["sh", "-c", &script]).status().unwrap().success() {
                Ok(())
            } else {
                Err(String::new())
            }
        });
        let name = format!("thief-{round}");
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: thief}}}}, spec: {{serviceAccountName: thief, \
             nodeSelector: {{kubernetes.io/hostname: node-1}}, terminationGracePeriodSeconds: 1, \
             containers: [{{name: app, image: '{IMAGE}', command: [server, --port=8080]}}]}}}}"
        ));
        space.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        assert_eq!(space.pod_ip("thief"), ip, "the address comes again");
        for _ in 0..5 {
            let said = space.exec(&name, &["client", "--timeout", "3s", "--count", "1", "http://gate/"]);
            assert!(!said.ok, "{said:?}");
        }
        space.captured(true);
        // And it is reached as who it is.
        until("the new pod answers", SOON, || {
            let said = space.ask("cart", &format!("http://{ip}:8080/"));
            if said.ok && said.out.contains(&name) { Ok(()) } else { Err(format!("{said:?}")) }
        });
        logged(
            1,
            &[
                "direction=\"inbound\"",
                &format!("dst.workload=\"{name}"),
                &format!("ns/{}/sa/thief", space.name),
            ],
        );
        space.kubectl(&["delete", "pod", &name, "--grace-period=0", "--force"]);
    }
    space.kubectl(&["scale", "deploy/web", "--replicas=1"]);
    space.rolled_out("deploy/web");
    space.becomes("web", "http://gate/", true);
}

/// The IPv4 address before this one.
fn previous(ip: &str) -> std::net::Ipv4Addr {
    let ip: std::net::Ipv4Addr = ip.parse().unwrap();
    std::net::Ipv4Addr::from(u32::from(ip) - 1)
}
