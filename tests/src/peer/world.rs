//! One agent with two captured pods, and on another node a pod without agent, whose place a hand-made peer takes.

use std::net::{IpAddr, SocketAddr};

use culvert::lab::{
    Agent, AgentOptions, Lab, LabOptions, LogLine, NodeId, Pod, PodSpec, Process, wait_until,
};

use super::pki::{Claims, Leaf, Pki};
use super::{PATIENCE, eventually};
use crate::binary;

/// Port of HBONE.
pub const HBONE: u16 = 15008;
/// Port of the apps.
pub const APP: u16 = 8080;
/// Host name of the service in front of `pod`: port 80 leads to [`APP`].
pub const SERVICE: &str = "front.default.svc.cluster.local";
/// Host name of the service in front of `twin`.
pub const OTHER_SERVICE: &str = "other.default.svc.cluster.local";
/// Address of the service in front of `peer`.
pub const REMOTE: [&str; 2] = ["10.96.0.30", "fd00:96::30"];
/// Host name of that service.
pub const REMOTE_SERVICE: &str = "remote.default.svc.cluster.local";

/// The lab of these tests.
pub struct World {
    /// The agent of node `a`.
    pub agent: Agent,
    /// What captures the pods, where the agent does not.
    enroll: Option<Process>,
    /// A captured pod of node `a`.
    pub pod: Pod,
    /// Another one.
    pub twin: Pod,
    /// A pod of node `b` that counts as captured. There is no agent: the test is its port 15008, or its client.
    pub peer: Pod,
    /// The mesh's root.
    pub pki: Pki,
    /// Removed with the world.
    pub lab: Lab,
}

impl World {
    /// The lab, with agent flags beside the usual ones.
    pub fn new(flags: &[&str]) -> Self {
        Self::with(flags, &[])
    }

    /// As [`World::new`], with more documents.
    pub fn with(flags: &[&str], documents: &[(&str, &str)]) -> Self {
        let (lab, node, [pod, twin, peer]) = pods();
        lab.publish().expect("documents");
        let services = [
            service("front", ["10.96.0.10", "fd00:96::10"], &pod),
            service("other", ["10.96.0.20", "fd00:96::20"], &twin),
            service("remote", REMOTE, &peer),
        ];
        lab.put("services.yaml", &services.concat()).expect("documents");
        for (name, text) in documents {
            lab.put(name, text).expect("documents");
        }
        Self::start((lab, node), [pod, twin, peer], &options(flags))
    }

    /// As [`World::new`], where all that the mesh has comes from a local file as a control plane would say it. `text` is
    /// told the pods `pod`, `twin` and `peer`. Enrolment is a process of its own, as the file says nothing of it.
    pub fn told(flags: &[&str], text: impl FnOnce([&Pod; 3]) -> String) -> Self {
        let (lab, node, [pod, twin, peer]) = pods();
        lab.publish().expect("documents");
        let (file, socket) = (lab.dir().join("told.yaml"), lab.dir().join("zds").join("z.sock"));
        std::fs::write(&file, text([&pod, &twin, &peer])).expect("a file");
        let enroll = lab.host(node).expect("the node").command(&binary::ztunnel().display().to_string());
        let enroll = enroll.arg("enroll").arg("--config").arg(lab.config_dir());
        let enroll = enroll.args(["--node", lab.node_name(node)]).arg("--zds-socket").arg(&socket);
        let enroll = enroll.spawn().expect("enrolment");
        let socket = socket.display().to_string();
        let mut options = options(&[&["--zds-socket", &socket], flags].concat());
        options.part = Some("proxy".to_owned());
        options.env.push(("LOCAL_XDS_PATH".to_owned(), file.display().to_string()));
        let mut world = Self::start((lab, node), [pod, twin, peer], &options);
        world.enroll = Some(enroll);
        let is_up =
            || world.agent.metric("workload_manager_active_proxy_count", &[]).ok().filter(|n| *n > 1.5);
        let up = wait_until("both pods served", PATIENCE, is_up, String::new);
        up.expect("two captured pods");
        world
    }

    fn start((lab, node): (Lab, NodeId), [pod, twin, peer]: [Pod; 3], options: &AgentOptions) -> Self {
        let agent = lab.agent(node, options).expect("an agent");
        let pki = Pki::open(&lab.ca_dir());
        Self { agent, enroll: None, pod, twin, peer, pki, lab }
    }

    /// A right certificate of `peer`.
    pub fn leaf(&self) -> Leaf {
        self.pki.issue(&Claims::account("peer"))
    }

    /// Port 15008 of the captured pod, IPv4.
    pub fn hbone(&self) -> SocketAddr {
        SocketAddr::new(self.pod.v4.into(), HBONE)
    }

    /// The app of the captured pod, IPv4.
    pub fn app(&self) -> SocketAddr {
        SocketAddr::new(self.pod.v4.into(), APP)
    }

    /// The app that the hand-made server stands for, IPv4.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.peer.v4.into(), APP)
    }

    /// Lines of the access log about connections from `src`.
    pub fn lines_from(&self, src: SocketAddr) -> Vec<LogLine> {
        let src = src.to_string();
        let about = |l: &LogLine| l.has(&[("scope", "access"), ("src.addr", &src)]);
        self.agent.log().into_iter().filter(about).collect()
    }

    /// The access log's one line about the connection from `src`; panics unless there is exactly one.
    pub async fn line_from(&self, src: SocketAddr) -> LogLine {
        eventually("a log line", || !self.lines_from(src).is_empty()).await;
        let mut lines = self.lines_from(src);
        assert_eq!(lines.len(), 1, "one line for one connection: {lines:#?}");
        lines.remove(0)
    }

    /// Sum of a metric's samples; see [`Agent::metric`].
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.agent.metric(name, labels).expect("the metrics page")
    }

    /// Resident memory of the agent in KiB.
    pub fn rss(&self) -> u64 {
        let path = format!("/proc/{}/status", self.agent.pid());
        let status = std::fs::read_to_string(path).expect("a running agent");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    /// Open descriptors of the agent.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.agent.pid());
        std::fs::read_dir(path).expect("a running agent").count()
    }

    /// Waits until the agent holds no connection any more, by its own count.
    pub async fn settle(&self) {
        let open = || self.metric("istio_tcp_sockets_open", &[]);
        eventually("all connections gone", || open() == 0.0).await;
    }
}

fn options(flags: &[&str]) -> AgentOptions {
    let args = ["--log-format", "json"].iter().chain(flags).map(|&flag| flag.to_owned()).collect();
    let env = vec![("RUST_LOG".to_owned(), "info".to_owned())];
    AgentOptions { binary: Some(binary::ztunnel()), part: None, args, env }
}

/// Two captured pods on node `a`, which is named, and one on node `b`.
fn pods() -> (Lab, NodeId, [Pod; 3]) {
    let mut lab = Lab::new(LabOptions { prefix: "culvert-peers".to_owned() }).expect("a lab");
    let (a, b) = (lab.node("a").expect("a node"), lab.node("b").expect("a node"));
    let mut pod = |node, name: &str| lab.pod(node, PodSpec::new(name).captured(true)).expect("a pod");
    let pods = [pod(a, "pod"), pod(a, "twin"), pod(b, "peer")];
    (lab, a, pods)
}

/// A dual-stack service with one endpoint.
fn service(name: &str, [v4, v6]: [&str; 2], pod: &Pod) -> String {
    let slice = |family: &str, address: IpAddr| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{}\n  namespace: default\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n- {{name: tcp, port: {APP}}}\nendpoints:\n\
             - addresses: [\"{address}\"]\n  conditions: {{ready: true}}\n  nodeName: {}\n  \
             targetRef: {{kind: Pod, namespace: default, name: {}}}\n",
            family.to_lowercase(),
            pod.node_name,
            pod.spec.name
        )
    };
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  selector: {{app: {}}}\n  \
         clusterIP: {v4}\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n  \
         ports:\n  - {{name: tcp, port: 80, targetPort: {APP}}}\n{}{}",
        pod.spec.name,
        slice("IPv4", pod.v4.into()),
        slice("IPv6", pod.v6.into())
    )
}

impl Drop for World {
    /// A test that fails tells what the agent had to say.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.agent.log();
            let last = log.iter().skip(log.len().saturating_sub(12)).map(|l| format!("{}\n", l.as_str()));
            let enrolled = self.enroll.as_ref().map(|e| format!("{}{}", e.stdout(), e.stderr()));
            let (ended, complaints) = (self.agent.process().ended(), self.agent.process().stderr());
            let enrolled = enrolled.unwrap_or_default();
            eprintln!("agent: {ended:?}\n{}{complaints}{enrolled}", last.collect::<String>());
        }
    }
}
