//! A mode that a file describes: someone's own build of another proxy, which takes part like the built-in ones.
//!
//! `file.rs` reads and checks the file, `environment.rs` is what its commands are told, `instance.rs` one program that was
//! started. What a proxy may ask for is made here: certificates of one root, our rules or our `enroll` with its ZDS
//! sockets, the reference's file of workloads (`workloads.rs`). Start at [`Mode::start`]. The fields are described in
//! `docs/bench-modes.md`.

mod authority;
mod environment;
mod file;
mod instance;
#[cfg(test)]
mod tests;
mod workloads;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use self::authority::Authority;
use self::environment::{Ground, LOCAL_XDS, Whose, variables, zds_socket};
use self::file::{Description, Netns, Part, parse};
use self::instance::{Instance, Shell, kill_marked};
use super::certificates::{self, Material};
use super::{Mode, Proxy, Stage, World, proof, redirect};
use crate::bench::work::{Kind, Work};
use crate::lab::{NodeId, Pod, Process, http, wait_until};

/// Larger files are no descriptions.
const FILE_MAX: u64 = 1 << 20;
const VERSION_MAX: Duration = Duration::from_secs(10);

/// Reads the description of a mode.
///
/// **Errors:** the file cannot be read, or what is wrong in it, each with line, field and allowed values.
pub fn read(path: &Path) -> anyhow::Result<Box<dyn Mode>> {
    let file = path.display().to_string();
    let about = fs::metadata(path).with_context(|| format!("read {file}"))?;
    if about.len() > FILE_MAX {
        bail!("{file}: {} bytes; a description has at most {FILE_MAX}", about.len());
    }
    let text = fs::read_to_string(path).with_context(|| format!("read {file}"))?;
    match parse(&file, &text) {
        Ok(description) => Ok(Box::new(Described::new(description))),
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            bail!("{}", lines.join("\n"))
        }
    }
}

/// A described mode, running or not.
#[derive(Debug)]
struct Described {
    description: Description,
    version: Option<String>,
    mark: String,
    authority: Option<Authority>,
    enrolling: Vec<Process>,
    running: Vec<(Instance, Part)>,
}

impl Described {
    fn new(description: Description) -> Self {
        Self {
            description,
            version: None,
            mark: String::new(),
            authority: None,
            enrolling: Vec::new(),
            running: Vec::new(),
        }
    }

    fn bring_up(&mut self, stage: &Stage, world: &World) -> anyhow::Result<Duration> {
        let materials = certify(stage)?;
        let local = workloads::text([&stage.client, &stage.server], world.workloads);
        let path = stage.scratch.join(LOCAL_XDS);
        fs::write(&path, local).with_context(|| format!("write {}", path.display()))?;
        // Unique among all runs: it is looked for in every process of the machine.
        self.mark = format!("{}{}", stage.lab.netns_prefix(), self.description.name);
        if self.description.certificate_service {
            self.authority = Some(Authority::start(stage)?);
        }
        if self.description.enroll {
            self.enrol(stage)?;
        }
        let begin = Instant::now();
        self.start_parts(stage, world, &materials)?;
        let limit = self.description.start_max;
        for (instance, part) in &mut self.running {
            instance.wait_ready(&part.ready, limit)?;
        }
        let took = begin.elapsed();
        if self.description.enroll {
            for node in &stage.nodes {
                self.captured(stage, *node)?;
            }
        } else if self.description.capture {
            redirect::on(&[&stage.client, &stage.server])?;
        }
        proof::check(stage, stage.server.v4.into(), self.description.encrypted)?;
        Ok(took)
    }

    /// Starts our `enroll` on each node; it waits for the node's proxy.
    fn enrol(&mut self, stage: &Stage) -> anyhow::Result<()> {
        for node in &stage.nodes {
            let socket = zds_socket(stage, *node);
            let _of_an_earlier_start = fs::remove_file(&socket);
            let command = stage.lab.host(*node)?.command(&stage.ztunnel.to_string_lossy()).arg("enroll");
            let command = command.arg("--config").arg(stage.lab.config_dir());
            let command = command.args(["--node", stage.lab.node_name(*node), "--zds-socket"]).arg(&socket);
            let mut process = command.spawn()?;
            let mut ended = None;
            let up = || {
                ended = process.ended();
                (ended.is_some() || socket.exists()).then_some(())
            };
            wait_until("the ZDS socket of ztunnel enroll", self.description.start_max, up, String::new)?;
            if let Some(status) = ended {
                bail!("ztunnel enroll ended with {status}: {}", instance::tail(&process.stdout()));
            }
            self.enrolling.push(process);
        }
        Ok(())
    }

    /// Waits until `enroll` has handed over and captured all pods of the node.
    fn captured(&self, stage: &Stage, node: NodeId) -> anyhow::Result<()> {
        const READY: u16 = 15022;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, READY));
        let place = stage.lab.host(node)?;
        let mut last = String::new();
        let ready = || {
            let asked = place.run(|| http::get(to, "/healthz/ready", VERSION_MAX));
            match asked {
                Ok(Ok(answer)) if answer.status == 200 => return Some(()),
                Ok(Ok(answer)) => last = answer.body,
                Ok(Err(e)) => last = e.to_string(),
                Err(e) => last = e.to_string(),
            }
            None
        };
        let waited =
            wait_until("pods captured by ztunnel enroll", self.description.start_max, ready, String::new);
        waited.with_context(|| format!("{}: {}", place.name(), last.trim()))?;
        Ok(())
    }

    fn start_parts(
        &mut self,
        stage: &Stage,
        world: &World,
        materials: &[(Pod, Material)],
    ) -> anyhow::Result<()> {
        let ground = Ground { stage, materials, workloads: world.workloads, instance: &self.mark };
        let mut all = Vec::new();
        if let Some(part) = &self.description.node {
            all.extend(stage.nodes.iter().map(|node| (Whose::Node(*node), part)));
        }
        if let Some(part) = &self.description.pod {
            all.extend([&stage.client, &stage.server].map(|pod| (Whose::Pod(pod), part)));
        }
        for (whose, part) in all {
            let (name, place) = match whose {
                Whose::Node(node) => (stage.lab.node_name(node), stage.lab.host(node)?),
                Whose::Pod(pod) if part.netns == Netns::Pod => (pod.name(), &**pod),
                Whose::Pod(pod) => (pod.name(), stage.lab.host(pod.node)?),
            };
            let dir = stage.scratch.join(name);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            let mut environment = variables(&ground, whose);
            environment.push(("BENCH_DIR".to_owned(), dir.display().to_string()));
            environment.extend(self.description.environment.iter().cloned());
            let pid_file = part.pid_file.as_ref().map(|file| dir.join(file));
            if let Some(file) = &pid_file {
                let _of_an_earlier_start = fs::remove_file(file);
            }
            let shell = Shell { place, dir: &dir, environment: &environment };
            if let (None, Some(command)) = (&self.version, &self.description.version) {
                let said = shell.finish(command, VERSION_MAX).context("the version command")?;
                self.version = said.lines().next().map(|line| line.trim().to_owned());
            }
            let process = shell.spawn(&part.start)?;
            let (name, place) = (name.to_owned(), place.clone());
            let instance = Instance { name, place, dir, environment, process, pid_file };
            self.running.push((instance, part.clone()));
        }
        Ok(())
    }
}

/// A certificate for each of the two pods.
fn certify(stage: &Stage) -> anyhow::Result<Vec<(Pod, Material)>> {
    let ca = certificates::authority(&stage.lab)?;
    let issue = |pod: &Pod| {
        let material = certificates::issue(&ca, pod, &stage.scratch.join(pod.name()))?;
        Ok((pod.clone(), material))
    };
    [&stage.client, &stage.server].into_iter().map(issue).collect()
}

impl Mode for Described {
    fn name(&self) -> &str {
        &self.description.name
    }

    fn title(&self) -> String {
        self.description.title.clone()
    }

    fn deviations(&self) -> Vec<String> {
        self.description.deviations.clone()
    }

    fn tools(&self) -> Vec<(String, String)> {
        self.version.iter().map(|version| (self.description.name.clone(), version.clone())).collect()
    }

    fn one_node(&self) -> bool {
        self.description.one_node
    }

    fn cannot(&self, work: &Work) -> Option<&'static str> {
        let names: &[&str] = match work.kind {
            Kind::Closed { .. } => &["closed"],
            Kind::Open { .. } => &["open"],
            Kind::Connections { .. } => &["connections"],
            Kind::Bulk { .. } => &["bulk"],
            Kind::Memory { .. } => &["memory"],
            Kind::Start { workloads: 0 } => &["start"],
            Kind::Start { .. } => &["start", "workloads"],
        };
        let named = names.iter().any(|name| self.description.cannot.contains(name));
        named.then_some("the file that describes the mode says that it cannot")
    }

    fn start(&mut self, stage: &Stage, world: &World) -> anyhow::Result<Duration> {
        let up = self.bring_up(stage, world);
        if up.is_err() {
            let _first_error_counts = self.stop(stage);
        }
        up.with_context(|| self.description.name.clone())
    }

    fn proxies(&self) -> Vec<Proxy> {
        self.running.iter().flat_map(|(instance, _)| instance.proxies()).collect()
    }

    fn stop(&mut self, stage: &Stage) -> anyhow::Result<()> {
        // First, so that nobody puts the rules back.
        self.enrolling.clear();
        let mut first = redirect::off(&[&stage.client, &stage.server]);
        for (instance, part) in self.running.drain(..).rev() {
            first = first.and(instance.end(part.stop.as_deref(), self.description.stop_max));
        }
        self.authority = None;
        if !self.mark.is_empty() {
            first = first.and(kill_marked(&self.mark));
        }
        first
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        self.running.clear();
        if !self.mark.is_empty() {
            let _nobody_to_tell = kill_marked(&self.mark);
        }
    }
}
