//! The demo's two nodes, seven pods, programs and agents, and the files that describe them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use culvert::lab::{Agent, AgentOptions, Finished, Lab, LabOptions, LogLine, Pod, PodSpec, Process};

/// Port the carts listen on.
pub(super) const CART_PORT: u16 = 8080;
/// Port redis listens on.
pub(super) const REDIS_PORT: u16 = 6379;
/// Port of the agents' tunnels.
pub(super) const HBONE_PORT: u16 = 15008;
/// Port of the bulk transfer.
pub(super) const IPERF_PORT: u16 = 5201;

const PREFIX: &str = "culvert-demo";
const UP_MAX: Duration = Duration::from_secs(10);

/// What `manifests/examples/demo` holds.
pub(super) const DOCUMENTS: [(&str, &str); 6] = [
    ("namespaces.yaml", include_str!("../../../../manifests/examples/demo/namespaces.yaml")),
    ("nodes.yaml", include_str!("../../../../manifests/examples/demo/nodes.yaml")),
    ("pods.yaml", include_str!("../../../../manifests/examples/demo/pods.yaml")),
    ("services.yaml", include_str!("../../../../manifests/examples/demo/services.yaml")),
    ("endpoints.yaml", include_str!("../../../../manifests/examples/demo/endpoints.yaml")),
    ("policy.yaml", include_str!("../../../../manifests/examples/demo/policy.yaml")),
];

/// Name, namespace, node, host part of the addresses, what it is.
pub(super) const PODS: [(&str, &str, usize, u8, &str); 7] = [
    ("web", "shop", 0, 10, "curl, redis-cli, wrk"),
    ("cart-1", "shop", 0, 11, "nginx, endpoint of Service cart"),
    ("report", "shop", 0, 12, "curl, a caller that cart does not know"),
    ("stranger", "other", 0, 13, "curl, never enrolled"),
    ("cart-2", "shop", 1, 10, "nginx, endpoint of Service cart"),
    ("redis", "shop", 1, 11, "redis-server"),
    ("plain", "other", 1, 12, "nginx, never enrolled, to compare with"),
];

/// Everything that runs.
pub(super) struct Stage {
    pub(super) web: Pod,
    pub(super) cart1: Pod,
    pub(super) report: Pod,
    pub(super) stranger: Pod,
    pub(super) cart2: Pod,
    pub(super) redis: Pod,
    pub(super) plain: Pod,
    /// Agent of node-a, agent of node-b.
    pub(super) agents: [Agent; 2],
    /// nginx of cart-1, which one step stops.
    pub(super) cart1_server: Process,
    _servers: Vec<Process>,
    /// Last: it is dropped after everything that runs in it.
    pub(super) lab: Lab,
}

impl Stage {
    /// Builds it all; returns when servers listen and agents are ready.
    pub(super) fn build(ztunnel: PathBuf) -> anyhow::Result<Self> {
        let mut lab = Lab::new(LabOptions { prefix: PREFIX.to_owned() })?;
        let nodes = [lab.node("node-a")?, lab.node("node-b")?];
        let mut pod = |wanted: &str| -> anyhow::Result<Pod> {
            let found = PODS.iter().find(|p| p.0 == wanted).context("a pod of the list")?;
            let node = nodes.get(found.2).copied().context("a node of the list")?;
            let account = account(wanted);
            let spec = PodSpec::new(wanted).namespace(found.1).service_account(account).label("app", account);
            let spec = PodSpec { host: Some(found.3), ..spec };
            Ok(lab.pod(node, spec)?)
        };
        let (web, cart1, report, stranger) = (pod("web")?, pod("cart-1")?, pod("report")?, pod("stranger")?);
        let (cart2, redis, plain) = (pod("cart-2")?, pod("redis")?, pod("plain")?);
        for (name, text) in DOCUMENTS {
            lab.put(name, &text.replace(&format!("{PREFIX}-"), &lab.netns_prefix()))?;
        }
        let cart1_server = nginx(&cart1)?;
        let servers = vec![nginx(&cart2)?, nginx(&plain)?, redis_server(&redis)?];
        let options = AgentOptions { binary: Some(ztunnel), ..AgentOptions::default() };
        let [a, b] = nodes;
        let (a, b) = (lab.start_agent(a, &options)?, lab.start_agent(b, &options)?);
        let agents = [a.wait_ready()?, b.wait_ready()?];
        for (pod, port) in
            [(&cart1, CART_PORT), (&cart2, CART_PORT), (&plain, CART_PORT), (&redis, REDIS_PORT)]
        {
            pod.wait_for(port, UP_MAX)?;
        }
        Ok(Self {
            web,
            cart1,
            report,
            stranger,
            cart2,
            redis,
            plain,
            agents,
            cart1_server,
            _servers: servers,
            lab,
        })
    }

    /// Replaces text in one of the mesh's files on disk.
    ///
    /// **Errors:** the text is not in the file.
    pub(super) fn edit(&self, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let path = self.config_dir().join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        anyhow::ensure!(text.contains(from), "{from:?} is not in {file}");
        Ok(self.lab.put(file, &text.replace(from, to))?)
    }

    /// Starts nginx of cart-1 again.
    pub(super) fn restart_cart1(&mut self) -> anyhow::Result<()> {
        self.cart1_server = nginx(&self.cart1)?;
        Ok(self.cart1.wait_for(CART_PORT, UP_MAX)?)
    }

    /// Lengths of both agents' logs: a point in time to look from.
    pub(super) fn mark(&self) -> [usize; 2] {
        self.agents.each_ref().map(Agent::log_len)
    }

    /// The end of each agent's log.
    pub(super) fn ends_of_logs(&self) -> Vec<(String, String)> {
        let end = |agent: &Agent| {
            let lines = agent.log();
            let last = lines.iter().skip(lines.len().saturating_sub(6));
            last.map(|l| format!("{}\n", l.as_str())).collect::<String>()
        };
        ["node-a", "node-b"].into_iter().zip(&self.agents).map(|(n, a)| (n.to_owned(), end(a))).collect()
    }

    /// Pods with the name of their namespace.
    pub(super) fn shells(&self) -> Vec<(String, String)> {
        self.lab.pods().iter().map(|p| (p.spec.name.clone(), p.netns().to_owned())).collect()
    }

    /// Directory of the mesh's files.
    pub(super) fn config_dir(&self) -> PathBuf {
        self.lab.config_dir()
    }

    /// Directory of what programs print.
    pub(super) fn logs_dir(&self) -> PathBuf {
        self.lab.dir().join("logs")
    }
}

/// Service account of a pod: that of its workload, whose replicas are numbered.
fn account(pod: &str) -> &str {
    pod.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit())
}

/// Addresses of a pod as a URL has them.
pub(super) fn url(address: std::net::IpAddr, port: u16, path: &str) -> String {
    format!("http://{}{path}", std::net::SocketAddr::new(address, port))
}

/// curl in a pod: status and body, or curl's complaint. Each call is a connection of its own.
pub(super) fn curl(pod: &Pod, url: &str) -> anyhow::Result<Result<String, String>> {
    let command = pod.command("curl").args(["-sS", "--globoff", "--fail", "--max-time", "5", url]);
    let done: Finished = command.env("no_proxy", "*").finish(Duration::from_secs(8))?;
    Ok(if done.status.success() {
        Ok(done.stdout.trim().to_owned())
    } else {
        Err(done.stderr.trim().to_owned())
    })
}

/// A field of a log line, or a dash.
pub(super) fn field(line: &LogLine, key: &str) -> String {
    line.field(key).unwrap_or_else(|| "-".to_owned())
}

fn nginx(pod: &Pod) -> anyhow::Result<Process> {
    let dir = pod.dir()?;
    let name = &pod.spec.name;
    // One process, no files beside its own; it answers with its name, the client's address and the request.
    let text = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {dir}/pid;\nerror_log {dir}/error.log;\nevents {{ worker_connections 2048; }}\n\
         http {{\n  access_log {dir}/access.log;\n  default_type text/plain;\n  client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  \
         fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n  keepalive_requests 1000000;\n  \
         server {{\n    listen {CART_PORT};\n    listen [::]:{CART_PORT} ipv6only=on;\n    \
         location / {{ return 200 \"{name} answers $remote_addr $request_uri\\n\"; }}\n    location /bench {{ access_log off; return 200 \"ok\\n\"; }}\n  }}\n}}\n",
        dir = dir.display()
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(pod
        .command("nginx")
        .arg("-e")
        .arg(dir.join("error.log"))
        .arg("-p")
        .arg(&dir)
        .arg("-c")
        .arg(&file)
        .spawn()?)
}

/// Requests that reached a pod's nginx, one a line.
pub(super) fn access_log(pod: &Pod) -> anyhow::Result<String> {
    let path: &Path = &pod.dir()?.join("access.log");
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn redis_server(pod: &Pod) -> anyhow::Result<Process> {
    let dir = pod.dir()?;
    let port = REDIS_PORT.to_string();
    let args = [
        "--port",
        &port,
        "--bind",
        "0.0.0.0",
        "::",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
    ];
    Ok(pod.command("redis-server").args(args).arg("--dir").arg(&dir).spawn()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files name the addresses that the lab gives out: one list may not drift from the other.
    #[test]
    fn the_files_and_the_stage_agree() {
        let text = |name: &str| DOCUMENTS.iter().find(|d| d.0 == name).unwrap().1;
        let pods: Vec<&str> = text("pods.yaml").split("\n---\n").collect();
        assert_eq!(pods.len(), PODS.len());
        for ((name, namespace, node, host, _), document) in PODS.iter().zip(pods) {
            let number = node + 1;
            let wanted = [
                format!("  name: {name}\n  namespace: {namespace}\n"),
                format!("culvert.dev/netns: /var/run/netns/{PREFIX}-{name}\n"),
                format!("nodeName: {}\n", ["node-a", "node-b"][*node]),
                format!("labels: {{app: {}}}\n", account(name)),
                format!("serviceAccountName: {}\n", account(name)),
                format!("- ip: 10.244.{number}.{host}\n"),
                format!("- ip: \"fd00:244:{number}::{host}\"\n"),
            ];
            for part in wanted {
                assert!(document.contains(&part), "{part:?} is not in {document}");
            }
        }
        for (file, part) in [
            ("namespaces.yaml", "istio.io/dataplane-mode: none"),
            ("policy.yaml", r#"["cluster.local/ns/shop/sa/web"]"#),
            ("endpoints.yaml", "{ready: true} # cart-1"),
            ("services.yaml", "10.96.0.10"),
            ("services.yaml", "fd00:96::10"),
        ] {
            assert!(text(file).contains(part), "{part:?} is not in {file}");
        }
    }
}
