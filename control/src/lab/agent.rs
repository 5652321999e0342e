//! A node agent in a lab.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::process::{Process, tail};
use super::{Lab, LabError, LogLine, NodeId, Place, http, wait_until};

const READY_PORT: u16 = 15021;
const METRICS_PORT: u16 = 15020;
/// An agent that is not ready by then has something to say in its log.
const READY_MAX: Duration = Duration::from_secs(15);
const ASK_MAX: Duration = Duration::from_secs(2);

/// How an agent is started.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Binary; [`find_ztunnel`] when `None`.
    pub binary: Option<PathBuf>,
    /// Part of the agent to start, such as `proxy`; both when `None`.
    pub part: Option<String>,
    /// Arguments beside `--config`, `--node` and `--ca-dir`.
    pub args: Vec<String>,
    /// Environment, such as `RUST_LOG`.
    pub env: Vec<(String, String)>,
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    place: Place,
    process: Process,
}

impl Lab {
    /// Starts a node's agent with the lab's documents and CA; returns when it says that it is ready.
    ///
    /// **Errors:** no binary, or not ready in time: with the end of its log.
    pub fn agent(&self, node: NodeId, options: &AgentOptions) -> Result<Agent, LabError> {
        let agent = self.start_agent(node, options)?;
        agent.wait_ready()
    }

    /// As [`Lab::agent`] without waiting, for starting several side by side.
    pub fn start_agent(&self, node: NodeId, options: &AgentOptions) -> Result<Agent, LabError> {
        let place = self.host(node)?.clone();
        self.agent_in(&place, self.node_name(node), options)
    }

    /// Starts an agent in any namespace, such as a pod's own (dedicated mode).
    pub fn agent_in(&self, place: &Place, node: &str, options: &AgentOptions) -> Result<Agent, LabError> {
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => find_ztunnel()?,
        };
        let mut command = place
            .command(&binary.to_string_lossy())
            .args(&options.part)
            .arg("--config")
            .arg(self.config_dir())
            .args(["--node", node])
            .arg("--ca-dir")
            .arg(self.ca_dir())
            .args(&options.args);
        for (key, value) in &options.env {
            command = command.env(key, value);
        }
        Ok(Agent { place: place.clone(), process: command.spawn()? })
    }
}

impl Agent {
    /// Waits until port 15021 says ready.
    pub fn wait_ready(mut self) -> Result<Self, LabError> {
        let what = format!("agent of {} ready on port {READY_PORT}", self.place.name());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, READY_PORT));
        let (mut ended, mut last) = (None, String::new());
        let place = self.place.clone();
        let process = &mut self.process;
        let check = || {
            ended = process.ended();
            if ended.is_some() {
                return Some(false);
            }
            match place.run(|| http::get(to, "/healthz/ready", ASK_MAX)) {
                Ok(Ok(answer)) if answer.status == 200 => return Some(true),
                Ok(Ok(answer)) => last = format!("{} {}", answer.status, answer.body.trim()),
                Ok(Err(e)) => last = e.to_string(),
                Err(e) => last = e.to_string(),
            }
            None
        };
        let waited = wait_until(&what, READY_MAX, check, String::new);
        match waited {
            Ok(true) => Ok(self),
            Ok(false) => Err(LabError::Command {
                command: format!("agent of {}", self.place.name()),
                output: format!(
                    "ended with {}\n{}",
                    ended.map(|s| s.to_string()).unwrap_or_default(),
                    self.end_of_log()
                ),
            }),
            Err(_) => {
                let seen = format!("{last}\n{}", self.end_of_log());
                Err(LabError::Timeout { what, limit: READY_MAX, seen })
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Lines of its log so far.
    pub fn log(&self) -> Vec<LogLine> {
        self.process.stdout().lines().map(LogLine::new).collect()
    }

    /// Number of lines of its log so far: pass it to [`Agent::wait_log`] to see only later ones.
    pub fn log_len(&self) -> usize {
        self.log().len()
    }

    /// Waits for a log line after the first `from` ones.
    pub fn wait_log(
        &self,
        from: usize,
        what: &str,
        wanted: impl Fn(&LogLine) -> bool,
    ) -> Result<LogLine, LabError> {
        let what = format!("line in the log of {}: {what}", self.place.name());
        let find = || self.log().into_iter().skip(from).find(|line| wanted(line));
        wait_until(&what, Duration::from_secs(5), find, || self.end_of_log())
    }

    /// Its metrics page.
    pub fn metrics(&self) -> Result<String, LabError> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        let answer = self.place.run(|| http::get(to, "/metrics", ASK_MAX))?;
        answer
            .map(|a| a.body)
            .map_err(|e| LabError::Io { what: "read the metrics page".to_owned(), source: e })
    }

    /// Sum of a metric's samples whose labels contain each of `labels` (`key="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64, LabError> {
        let page = self.metrics()?;
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (set, value) = rest.rsplit_once(' ')?;
            let whole = set.is_empty() || set.starts_with('{');
            (whole && labels.iter().all(|l| set.contains(l))).then(|| value.parse::<f64>().ok())?
        };
        Ok(page.lines().filter_map(of).sum())
    }

    /// SIGTERM, then waits for its drain to end.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        self.process.terminate(limit)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    fn end_of_log(&self) -> String {
        format!("{}{}", tail(&self.process.stdout()), tail(&self.process.stderr()))
    }
}

/// Finds the agent's binary: `CULVERT_ZTUNNEL`, beside the running program, or one directory up (test programs).
pub fn find_ztunnel() -> Result<PathBuf, LabError> {
    if let Some(path) = std::env::var_os("CULVERT_ZTUNNEL") {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(LabError::NoAgent { tried: path.display().to_string() })
        };
    }
    let own = std::env::current_exe().unwrap_or_default();
    let tried: Vec<PathBuf> = own.ancestors().skip(1).take(2).map(|dir: &Path| dir.join("ztunnel")).collect();
    let list = || tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    tried.iter().find(|p| p.is_file()).cloned().ok_or_else(|| LabError::NoAgent { tried: list() })
}
