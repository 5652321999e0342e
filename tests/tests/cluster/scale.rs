//! A hundred captured pods on one node.

use crate::change::println_to_log;
use crate::kube::{SOON, Said, agent_process, inside, kubectl, until};
use crate::space::{IMAGE, Space};

const PODS: usize = 100;

#[test]
fn a_hundred_pods_on_a_node() {
    let space = Space::ambient("scale");
    space.app("web", 2);
    space.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: many}}
spec: {{selector: {{app: many}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: many}}
spec:
  replicas: {PODS}
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {{kubernetes.io/hostname: node-1}}
      containers:
      - name: app
        image: {IMAGE}
        command: [sh, -c, 'mkdir /tmp/www; hostname >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www']
"
    ));
    kubectl(&["-n", &space.name, "rollout", "status", "deploy/many", "--timeout=400s"]);
    space.captured(true);
    let ips = "jsonpath={range .items[*]}{.status.podIP} {end}";
    let ips = space.kubectl(&["get", "pods", "-l", "app=many", "-o", ips]);
    let ips: Vec<&str> = ips.split_whitespace().collect();
    assert_eq!(ips.len(), PODS);
    // Each answers under its own address through its own sockets.
    let script = format!(
        "for ip in {}; do timeout 8 wget -qO- http://$ip:8080/ || echo FAILED $ip; done",
        ips.join(" ")
    );
    until("each pod answers", SOON, || {
        let said = space.exec("deploy/web", &["sh", "-c", &script]);
        let answers = said.out.lines().filter(|line| line.starts_with("many-")).count();
        if answers == PODS { Ok(()) } else { Err(format!("{answers} answers: {}{}", said.out, said.err)) }
    });
    let file = format!("/proc/{}/status", agent_process(1));
    let status = Said::from(inside(1).args(["grep", "VmRSS", &file]).output().unwrap()).out;
    println_to_log(&format!("agent with {PODS} pods: {}", status.trim()));
    // They go all at once.
    space.kubectl(&["delete", "deploy/many", "--cascade=foreground", "--timeout=120s"]);
}
