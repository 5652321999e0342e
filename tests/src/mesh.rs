//! A lab with agents, and the check at its end.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use culvert::lab::{Agent, AgentOptions, Lab, LabOptions, LogLine, NodeId, Pod, PodSpec, wait_until};

use crate::binary;

/// Longest wait for anything that should happen soon; generous, as tests run side by side on slow machines.
pub const SOON: Duration = Duration::from_secs(30);

/// Nodes `a` and `b`, pods, and an agent for each node or pod.
#[derive(Debug)]
pub struct Mesh {
    /// The cluster.
    pub lab: Lab,
    nodes: [NodeId; 2],
    agents: BTreeMap<String, Running>,
}

#[derive(Debug)]
struct Running {
    agent: Agent,
    /// Descriptors that it had open when it was idle.
    fds: usize,
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl Mesh {
    /// Two nodes without pods and agents.
    pub fn new() -> Self {
        let mut lab = Lab::new(LabOptions { prefix: "culvert-e2e".to_owned() }).expect("a lab");
        let nodes = ["a", "b"].map(|name| lab.node(name).expect("a node"));
        Self { lab, nodes, agents: BTreeMap::new() }
    }

    /// The node `a` or `b`.
    pub fn node(&self, name: &str) -> NodeId {
        self.nodes[usize::from(name == "b")]
    }

    /// Adds a captured pod.
    pub fn captured(&mut self, node: &str, name: &str) -> Pod {
        self.pod(node, PodSpec::new(name).captured(true))
    }

    /// Adds a pod outside the mesh.
    pub fn outside(&mut self, node: &str, name: &str) -> Pod {
        self.pod(node, PodSpec::new(name).captured(false))
    }

    /// Adds a pod.
    pub fn pod(&mut self, node: &str, spec: PodSpec) -> Pod {
        self.lab.pod(self.node(node), spec).expect("a pod")
    }

    /// Writes a document.
    pub fn put(&self, name: &str, text: &str) {
        self.lab.put(name, text).expect("write a document");
    }

    /// Publishes the pods and starts the agents of both nodes.
    pub fn start(&mut self, args: &[&str]) {
        self.lab.publish().expect("publish the pods");
        let started = self.nodes.map(|node| {
            let agent = self.lab.start_agent(node, &options(args)).expect("start an agent");
            (self.lab.node_name(node).to_owned(), agent)
        });
        for (name, agent) in started {
            self.keep(&name, agent);
        }
    }

    /// Starts the agent of one node, after it was stopped.
    pub fn start_node(&mut self, node: &str, args: &[&str]) {
        let agent = self.lab.start_agent(self.node(node), &options(args)).expect("start an agent");
        self.keep(node, agent);
    }

    /// Publishes the pods and starts the agents of both nodes, that of `node` by a shell line in which `$@` is its command.
    pub fn start_by(&mut self, node: &str, line: &str, args: &[&str]) {
        self.lab.publish().expect("publish the pods");
        for name in ["a", "b"] {
            let mut options = options(args);
            if name == node {
                let script = self.lab.dir().join("agent.sh");
                let binary = options.binary.take().expect("the agent's program");
                let text = format!("#!/bin/sh\nset -- {} \"$@\"\n{line}\n", binary.display());
                fs::write(&script, text).expect("write the script");
                fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("make it a program");
                options.binary = Some(script);
            }
            let agent = self.lab.start_agent(self.node(name), &options).expect("start an agent");
            self.keep(name, agent);
        }
    }

    /// Starts a second agent beside the one of a node, and does not wait for it.
    pub fn successor(&self, node: &str, args: &[&str]) -> Agent {
        self.lab.start_agent(self.node(node), &options(args)).expect("start an agent")
    }

    /// Has another agent take the place of a node's agent; returns that one, which drains.
    pub fn replace(&mut self, node: &str, args: &[&str]) -> Agent {
        let before = self.forget(node);
        let next = self.successor(node, args);
        let is_over = || next.log().iter().any(|line| line.as_str().contains("taken over: "));
        let what = format!("a second agent of {node} in the first one's place");
        wait_until(
            &what,
            SOON,
            || is_over().then_some(()),
            || format!("{}\nthe first one:\n{}", log_of(&next), log_of(&before)),
        )
        .unwrap_or_else(|e| panic!("{e}"));
        self.keep(node, next);
        before
    }

    /// Publishes the pods and starts an agent in each captured pod's own namespace.
    pub fn start_dedicated(&mut self, args: &[&str]) {
        self.lab.publish().expect("publish the pods");
        let pods: Vec<Pod> =
            self.lab.pods().iter().filter(|p| p.spec.captured == Some(true)).cloned().collect();
        let started: Vec<_> = pods
            .iter()
            .map(|pod| {
                let spec = &pod.spec;
                let workload = format!("{}/{}/{}", spec.namespace, spec.name, spec.service_account);
                let mut options = options(args);
                options.args.extend(["--mode", "dedicated", "--workload", &workload].map(str::to_owned));
                self.lab.agent_in(pod, &pod.node_name, &options).expect("start an agent")
            })
            .collect();
        for (pod, agent) in pods.iter().zip(started) {
            self.keep(&pod.spec.name, agent);
        }
    }

    fn keep(&mut self, name: &str, agent: Agent) {
        let agent = agent.wait_ready().unwrap_or_else(|e| panic!("agent of {name}: {e}"));
        // The lowest of a few looks: what asked for readiness may still be closing.
        let looks = (0..10).map(|_| {
            culvert::lab::pause(Duration::from_millis(10));
            fds(agent.pid())
        });
        let fds = looks.min().expect("looked");
        self.agents.insert(name.to_owned(), Running { agent, fds });
    }

    /// The agent of a node or, in dedicated mode, of a pod.
    pub fn agent(&self, name: &str) -> &Agent {
        &self.agents.get(name).unwrap_or_else(|| panic!("no agent of {name}")).agent
    }

    /// The ends of all agents' logs, for messages.
    pub fn logs(&self) -> String {
        self.agents.values().map(|running| log_of(&running.agent)).collect()
    }

    /// The agent that captures a pod; none for a pod outside the mesh.
    pub fn agent_of(&self, pod: &Pod) -> Option<&Agent> {
        let of = |name: &str| self.agents.get(name).map(|running| &running.agent);
        (pod.spec.captured == Some(true)).then(|| of(&pod.spec.name).or_else(|| of(&pod.node_name)))?
    }

    /// The agent, to stop or signal it.
    pub fn agent_mut(&mut self, name: &str) -> &mut Agent {
        &mut self.agents.get_mut(name).unwrap_or_else(|| panic!("no agent of {name}")).agent
    }

    /// Takes an agent out of the final check: the test has ended it.
    pub fn forget(&mut self, name: &str) -> Agent {
        self.agents.remove(name).unwrap_or_else(|| panic!("no agent of {name}")).agent
    }

    /// Waits until all agents have taken over the documents as they are now.
    pub fn settle(&self, change: impl FnOnce()) {
        let before: Vec<f64> = self.agents.values().map(|r| revision(&r.agent)).collect();
        change();
        for ((name, running), before) in self.agents.iter().zip(before) {
            let what = format!("a new revision at {name}");
            wait_until(
                &what,
                SOON,
                || (revision(&running.agent) > before).then_some(()),
                || log_of(&running.agent),
            )
            .unwrap_or_else(|e| panic!("{e}"));
        }
    }

    /// Checks that nothing is left of the traffic, ends the agents, and checks that nothing is left of them either.
    pub fn finish(mut self) {
        for (name, running) in &self.agents {
            idle(name, running);
        }
        for (name, running) in &mut self.agents {
            let ended = running.agent.terminate(SOON).unwrap_or_else(|e| panic!("agent of {name}: {e}"));
            let log = log_of(&running.agent);
            assert!(ended.success(), "agent of {name}: {ended}\n{log}");
            let panicked = |text: &str| text.contains("panicked");
            let lines = running.agent.log();
            assert!(
                !panicked(&running.agent.process().stderr()) && !lines.iter().any(|l| panicked(l.as_str())),
                "agent of {name} panicked\n{log}"
            );
        }
        let (prefix, dir) = (self.lab.netns_prefix(), self.lab.dir().to_owned());
        let pids: Vec<u32> = self.agents.values().map(|running| running.agent.pid()).collect();
        drop(self);
        let left: Vec<_> = fs::read_dir("/var/run/netns")
            .expect("the directory of namespaces")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&prefix))
            .collect();
        assert!(left.is_empty(), "namespaces left: {left:?}");
        assert!(!dir.exists(), "{} is left", dir.display());
        assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()), "an agent is left");
    }
}

/// Waits until an agent holds nothing of its traffic any more: no sockets, no tunnels, no descriptors beyond its own.
fn idle(name: &str, running: &Running) {
    let Running { agent, fds: base } = running;
    let look = || {
        let sum = |metric| agent.metric(metric, &[]).unwrap_or_else(|e| panic!("agent of {name}: {e}"));
        let now = (sum("istio_tcp_sockets_open"), sum("culvert_hbone_tunnels_open"), fds(agent.pid()));
        let opened = sum("istio_tcp_connections_opened_total");
        let closed = sum("istio_tcp_connections_closed_total");
        ((now.0, now.1) == (0.0, 0.0) && now.2 <= *base && (opened - closed).abs() < 0.5, now, opened, closed)
    };
    let what = format!("agent of {name} idle again, with {base} descriptors");
    wait_until(&what, SOON, || look().0.then_some(()), || {
        let (_, (sockets, tunnels, fds), opened, closed) = look();
        format!(
            "sockets {sockets}, tunnels {tunnels}, descriptors {fds} {:?}, opened {opened}, closed {closed}\n{}",
            links(agent.pid()),
            log_of(agent)
        )
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

/// How an agent of a test is started: as in production, but tunnels that nobody uses go soon.
pub fn options(args: &[&str]) -> AgentOptions {
    let ranges = culvert::lab::SERVICE_RANGES.join(",");
    let own = ["--pool-unused-release", "1s", "--service-range", &ranges];
    AgentOptions {
        binary: Some(binary::ztunnel()),
        part: None,
        args: own.iter().chain(args).map(|&arg| arg.to_owned()).collect(),
        env: Vec::new(),
    }
}

fn revision(agent: &Agent) -> f64 {
    agent.metric("culvert_config_revision", &[]).expect("the metrics page")
}

/// Open descriptors of a process, but for those of its own network namespace: each thread opens one when it first needs to
/// find back, and keeps it; in dedicated mode each of the agent's two parts has one for its pod.
pub fn fds(pid: u32) -> usize {
    let home = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap_or_default().display().to_string();
    let (homes, others): (Vec<_>, Vec<_>) = links(pid).into_iter().partition(|link| *link == home);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    others.len() + homes.len().saturating_sub(threads + 2)
}

fn links(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|e| fs::read_link(e.path()).ok()).map(|p| p.display().to_string()).collect()
}

/// Resident memory of a process in bytes.
pub fn rss(pid: u32) -> u64 {
    of_status(pid, "VmRSS:")
}

/// What of it is the process's own: heap and stacks, without the program's text.
pub fn private(pid: u32) -> u64 {
    of_status(pid, "RssAnon:")
}

fn of_status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The end of an agent's log, for messages.
pub fn log_of(agent: &Agent) -> String {
    let log = agent.log();
    let last = log.iter().skip(log.len().saturating_sub(25));
    last.map(|line| format!("  {}\n", line.as_str())).collect()
}

/// Whether a line is the one that tells of a connection's end.
pub fn is_access(line: &LogLine) -> bool {
    ["connection complete", "connection failed"].iter().any(|message| line.as_str().contains(message))
}

/// Lines of ended connections that have all of these fields.
pub fn access(agent: &Agent, fields: &[(&str, &str)]) -> Vec<LogLine> {
    agent.log().into_iter().filter(|line| is_access(line) && line.has(fields)).collect()
}

/// Waits for the one line of an ended connection with these fields.
///
/// **Errors**: none came, or more than one is there.
pub fn one_access(agent: &Agent, fields: &[(&str, &str)]) -> Result<LogLine, String> {
    one_access_since(agent, 0, fields)
}

/// The same behind the first `from` lines of the log: a client's port may come again.
///
/// **Errors**: as [`one_access`].
pub fn one_access_since(agent: &Agent, from: usize, fields: &[(&str, &str)]) -> Result<LogLine, String> {
    let find = || {
        let lines = agent.log().into_iter().skip(from);
        let found: Vec<_> = lines.filter(|line| is_access(line) && line.has(fields)).collect();
        (!found.is_empty()).then_some(found)
    };
    let what = format!("a log line with {fields:?}");
    let mut lines = wait_until(&what, SOON, find, || log_of(agent)).map_err(|e| e.to_string())?;
    match lines.pop() {
        Some(line) if lines.is_empty() => Ok(line),
        last => Err(format!("more than one log line with {fields:?}: {last:?} {lines:?}")),
    }
}

/// The address of `pod` in the family of `other`.
pub fn same_family(pod: &Pod, other: IpAddr) -> IpAddr {
    pod.addresses()[usize::from(other.is_ipv6())]
}
