//! A namespace of a test, and the apps in it.

use std::time::Duration;

use crate::kube::{Said, apply, kubectl, settled, try_kubectl, until};

/// The programs of the tests: Istio's echo server and client, `culvert load`, busybox.
pub(crate) const IMAGE: &str = "localhost/culvert-lab/tester:lab";

/// A namespace that goes away at the end of the test.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) name: String,
}

impl Space {
    /// A fresh namespace outside of the mesh.
    #[track_caller]
    pub(crate) fn plain(name: &str) -> Self {
        settled();
        let name = format!("test-{name}");
        try_kubectl(&["delete", "namespace", &name, "--ignore-not-found", "--timeout=90s"]);
        kubectl(&["create", "namespace", &name]);
        Self { name }
    }

    /// A fresh namespace whose pods are captured.
    #[track_caller]
    pub(crate) fn ambient(name: &str) -> Self {
        let space = Self::plain(name);
        space.label("istio.io/dataplane-mode=ambient");
        space
    }

    #[track_caller]
    pub(crate) fn label(&self, label: &str) {
        kubectl(&["label", "namespace", &self.name, label, "--overwrite"]);
    }

    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        kubectl(&[&["-n", &self.name], args].concat())
    }

    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) {
        apply(&self.name, yaml);
    }

    /// A Deployment of Istio's echo app on one node, with a Service and a service account of the same name; ready.
    #[track_caller]
    pub(crate) fn app(&self, name: &str, node: u32) {
        self.apps(&[(name, node, 1)]);
    }

    /// Several at once: name, node, replicas.
    #[track_caller]
    pub(crate) fn apps(&self, apps: &[(&str, u32, u32)]) {
        let yaml: Vec<String> =
            apps.iter().map(|(name, node, replicas)| app_yaml(name, *node, *replicas)).collect();
        self.apply(&yaml.join("---\n"));
        for (name, ..) in apps {
            self.rolled_out(&format!("deploy/{name}"));
        }
    }

    /// A StatefulSet of two pods behind a headless service; returns when they are ready.
    #[track_caller]
    pub(crate) fn stateful_set(&self, name: &str) {
        self.apply(&format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: None, selector: {{app: {name}}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}}}
spec:
  serviceName: {name}
  replicas: 2
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {{name: app, image: '{IMAGE}', command: [server, --port=8080],
         readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}}}
"
        ));
        self.rolled_out(&format!("statefulset/{name}"));
    }

    /// Waits for a roll-out, and shows what the pods say if there is none.
    #[track_caller]
    pub(crate) fn rolled_out(&self, object: &str) {
        // istiod makes a waypoint's Deployment a moment after its Gateway.
        until(object, Duration::from_secs(30), || {
            let said = try_kubectl(&["-n", &self.name, "get", object]);
            if said.ok { Ok(()) } else { Err(said.err) }
        });
        let said = try_kubectl(&["-n", &self.name, "rollout", "status", object, "--timeout=90s"]);
        if !said.ok {
            let pods = self.kubectl(&["get", "pods", "-o", "wide"]);
            let events = self.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]);
            panic!("{object}: {}\n{pods}\n{events}", said.err);
        }
    }

    /// Waits until istio-cni says of each pod of the namespace that it is captured, or that none is.
    #[track_caller]
    pub(crate) fn captured(&self, wanted: bool) {
        let path = "jsonpath={range .items[*]}{.metadata.name}={.metadata.annotations.ambient\\.istio\\.io/redirection} {end}";
        until(&format!("pods of {} captured: {wanted}", self.name), Duration::from_secs(60), || {
            let pods = self.kubectl(&["get", "pods", "--field-selector=status.phase=Running", "-o", path]);
            let are = pods.split_whitespace().all(|pod| pod.ends_with("=enabled") == wanted);
            if are { Ok(()) } else { Err(pods) }
        });
    }

    /// Runs a command in the first pod of an object, such as `deploy/web`.
    pub(crate) fn exec(&self, object: &str, command: &[&str]) -> Said {
        try_kubectl(&[&["-n", &self.name, "exec", object, "--"], command].concat())
    }

    /// One HTTP request on a connection of its own from a Deployment's pod. The text is what the echo server saw.
    pub(crate) fn ask(&self, from: &str, url: &str) -> Said {
        self.exec(&format!("deploy/{from}"), &["client", "--timeout", "5s", "--count", "1", url])
    }

    /// As [`Self::ask`], which has to succeed.
    #[track_caller]
    pub(crate) fn answered(&self, from: &str, url: &str) -> String {
        let said = self.ask(from, url);
        assert!(
            said.ok && said.out.contains("StatusCode=200"),
            "{from} asks {url}: {}{}",
            said.out,
            said.err
        );
        said.out
    }

    /// Asks until it is as wanted: a policy, a label or a certificate takes its time.
    #[track_caller]
    pub(crate) fn becomes(&self, from: &str, url: &str, answered: bool) {
        until(&format!("{from} asks {url}, answered: {answered}"), Duration::from_secs(30), || {
            let said = self.ask(from, url);
            let is = said.ok && said.out.contains("StatusCode=200");
            if is == answered { Ok(()) } else { Err(format!("{}{}", said.out, said.err)) }
        });
    }

    /// Address of the first pod of an app.
    #[track_caller]
    pub(crate) fn pod_ip(&self, app: &str) -> String {
        let label = format!("app={app}");
        let ip = self.kubectl(&["get", "pods", "-l", &label, "-o", "jsonpath={.items[0].status.podIP}"]);
        assert!(!ip.is_empty(), "{app} has no address");
        ip
    }

    /// The identity of an app, as logs have it.
    pub(crate) fn identity(&self, app: &str) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{app}", self.name)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if std::env::var_os("CULVERT_KEEP").is_none() {
            try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}

/// The pod template's inside: labels, node, the echo server.
pub(crate) fn pod_spec(name: &str, node: u32) -> String {
    format!(
        "serviceAccountName: {name}, terminationGracePeriodSeconds: 2, nodeSelector: {{kubernetes.io/hostname: node-{node}}}, \
         containers: [{{name: app, image: '{IMAGE}', \
         command: [server, --port=8080, --tcp=9090, --grpc=7070], \
         readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}}}]"
    )
}

fn app_yaml(name: &str, node: u32, replicas: u32) -> String {
    let spec = pod_spec(name, node);
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
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: tcp, port: 9090}}, {{name: grpc, port: 7070}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {{{spec}}}
"
    )
}
