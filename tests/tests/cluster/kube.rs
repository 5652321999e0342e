//! The cluster that is up: commands in its nodes, kubectl, the agents' logs and pages.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for something that the cluster does by itself: a roll-out, a policy on its way, a pod's start.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// What a command wrote, and whether it succeeded.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// `target/cluster`, where `tests/cluster/lab` keeps everything.
pub(crate) fn folder() -> PathBuf {
    // target/<profile>/deps/<test>
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(3).unwrap().join("cluster")
}

/// A command inside a node's namespaces.
pub(crate) fn inside(node: u32) -> Command {
    let file = folder().join(format!("run/node-{node}/pid"));
    let pid = std::fs::read_to_string(&file).unwrap_or_else(|error| {
        panic!("no cluster, or no node-{node}: {}: {error}; `make cluster` brings one up", file.display())
    });
    let mut command = Command::new("nsenter");
    command.args(["-t", pid.trim(), "-n", "-m", "-p", "-i", "-u", "--"]);
    command
}

/// kubectl with the rights of an administrator.
pub(crate) fn kubectl_command() -> Command {
    let mut command = inside(1);
    command.arg(folder().join("bin/kubectl")).arg("--kubeconfig").arg(folder().join("run/admin.conf"));
    command
}

/// Runs kubectl, whatever comes of it.
pub(crate) fn try_kubectl(args: &[&str]) -> Said {
    kubectl_command().args(args).stdin(Stdio::null()).output().expect("start nsenter").into()
}

/// Runs kubectl, which has to succeed.
#[track_caller]
pub(crate) fn kubectl(args: &[&str]) -> String {
    let said = try_kubectl(args);
    assert!(said.ok, "kubectl {}: {}{}", args.join(" "), said.out, said.err);
    said.out
}

/// `kubectl apply` of YAML text, into a namespace.
#[track_caller]
pub(crate) fn apply(namespace: &str, yaml: &str) {
    let mut child = kubectl_command()
        .args(["-n", namespace, "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start nsenter");
    child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
    let said = Said::from(child.wait_with_output().unwrap());
    assert!(said.ok, "kubectl apply: {}\n{yaml}", said.err);
}

/// Lets the cluster run for so long while a test has nothing to ask.
#[expect(clippy::disallowed_methods, reason = "a thread of a test, which has no worker to block")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks until there is an answer; says at the end what the last question showed.
#[track_caller]
pub(crate) fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(found) => return found,
            Err(seen) => assert!(start.elapsed() < limit, "{what}: not within {limit:?}; at last: {seen}"),
        }
        pause(Duration::from_millis(300));
    }
}

/// The agent's pods, as these arguments choose and show them.
#[track_caller]
pub(crate) fn agents(more: &[&str]) -> String {
    kubectl(&[&["-n", "istio-system", "get", "pods", "-l", "app=ztunnel"], more].concat())
}

/// The agent's pods on a node, the newest last.
#[track_caller]
fn agents_on(node: u32) -> Vec<String> {
    let field = format!("--field-selector=spec.nodeName=node-{node}");
    let names = agents(&[
        &field,
        "--sort-by=.metadata.creationTimestamp",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name} {end}",
    ]);
    names.split_whitespace().map(str::to_owned).collect()
}

/// The agent's pod on a node, the newest if there are two.
#[track_caller]
pub(crate) fn agent_on(node: u32) -> String {
    agents_on(node).pop().unwrap_or_else(|| panic!("no agent on node-{node}"))
}

/// All that the agent on a node has logged, also the one before it if there are two.
pub(crate) fn agent_log(node: u32) -> String {
    let logs = |pod: String| try_kubectl(&["-n", "istio-system", "logs", &pod, "--tail=20000"]).out;
    agents_on(node).into_iter().map(logs).collect()
}

/// Waits for a line of a node's agent that has all these words, and returns it.
#[track_caller]
pub(crate) fn logged(node: u32, words: &[&str]) -> String {
    until(&format!("line of the agent on node-{node} with {words:?}"), Duration::from_secs(20), || {
        let log = agent_log(node);
        let found = log.lines().rev().find(|line| words.iter().all(|word| line.contains(word)));
        found.map(str::to_owned).ok_or_else(|| {
            let lines: Vec<&str> = log.lines().rev().take(6).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        })
    })
}

/// A page of the agent on a node: `15000/config_dump`, `15020/metrics`.
pub(crate) fn agent_page(node: u32, page: &str) -> String {
    let (port, path) = page.split_once('/').unwrap();
    let url = format!("http://127.0.0.1:{port}/{path}");
    let process = agent_process(node);
    let page = inside(node).args(["nsenter", "-t", &process, "-n", "busybox", "wget", "-qO-", &url]).output();
    let said = Said::from(page.unwrap());
    assert!(said.ok, "{url} on node-{node}: {}", said.err);
    said.out
}

/// Number of the agent's process, as its node has it: the image has no shell to ask in.
#[track_caller]
pub(crate) fn agent_process(node: u32) -> String {
    find_agent(node).unwrap_or_else(|| panic!("no process of an agent on node-{node}"))
}

/// As [`agent_process`], while there may be none.
pub(crate) fn find_agent(node: u32) -> Option<String> {
    let pod = agent_on(node);
    let uid = kubectl(&["-n", "istio-system", "get", "pod", &pod, "-o", "jsonpath={.metadata.uid}"]);
    // The agent's child has its name, and comes later.
    let script = "for dir in /proc/[0-9]*; do
        grep -qs \"$1\" $dir/cgroup && [ \"$(cat $dir/comm)\" = ztunnel ] && echo ${dir#/proc/}; done | sort -n | head -1";
    let found = inside(node).args(["sh", "-c", script, "sh", &uid]).output().unwrap();
    Some(Said::from(found).out.trim().to_owned()).filter(|process| !process.is_empty())
}

/// Sum of a metric's samples whose line has all these words.
pub(crate) fn metric(node: u32, name: &str, words: &[&str]) -> f64 {
    let page = agent_page(node, "15020/metrics");
    let is_it = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && words.iter().all(|word| line.contains(word))
    };
    page.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Waits until all agents are ready, and so is what they depend on.
#[track_caller]
pub(crate) fn settled() {
    for object in ["deploy/istiod", "ds/istio-cni-node", "ds/ztunnel"] {
        kubectl(&["-n", "istio-system", "rollout", "status", object, "--timeout=120s"]);
    }
}

/// How many nodes are up.
pub(crate) fn nodes() -> u32 {
    (1..=4).take_while(|n| folder().join(format!("run/node-{n}/pid")).exists()).count().try_into().unwrap()
}
