//! Where one mode works: its lab, the two pods, the real servers, the documents.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::mode::{BULK_PORT, HTTP_PORT, Mode, Proxy, Stage, World};
use super::world;
use crate::lab::{Lab, LabOptions, Pod, PodSpec, Process};

/// Start of the names of everything that a run makes; shared by its labs, so that the next run finds all leftovers.
pub const PREFIX: &str = "culvert-bench";
/// Programs without which no mode can work.
pub const PROGRAMS: [&str; 3] = ["ip", "nginx", "iperf3"];

const UP_MAX: Duration = Duration::from_secs(10);

/// A mode with its lab and servers. Dropping it stops the mode's programs first and removes the lab last.
pub struct Scene {
    /// The mode.
    pub mode: Box<dyn Mode>,
    _servers: Vec<Process>,
    /// Where it works.
    pub stage: Stage,
}

impl Scene {
    /// Builds the lab and starts the servers; the mode itself is not started.
    ///
    /// **Errors:** no right, a program is missing, a server does not listen.
    pub fn build(mode: Box<dyn Mode>, ztunnel: &Path) -> anyhow::Result<Self> {
        let mut lab = Lab::new(LabOptions { prefix: PREFIX.to_owned() })?;
        let mut nodes = vec![lab.node("node-a")?];
        if !mode.one_node() {
            nodes.push(lab.node("node-b")?);
        }
        let first = *nodes.first().context("a node")?;
        let last = *nodes.last().context("a node")?;
        let client = lab.pod(first, PodSpec::new("client").captured(true))?;
        let server = lab.pod(last, PodSpec::new("server").captured(true))?;
        let beside = match mode.beside() {
            Some(spec) => {
                let own = lab.node("node-c")?;
                Some(lab.pod(own, spec)?)
            }
            None => None,
        };
        lab.publish()?;
        let scratch = lab.dir().join("scratch");
        fs::create_dir(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        let servers = vec![nginx(&server)?, iperf3(&server)?];
        for port in [HTTP_PORT, BULK_PORT] {
            server.wait_for(port, UP_MAX)?;
        }
        let stage = Stage { client, server, beside, nodes, ztunnel: ztunnel.to_owned(), scratch, lab };
        Ok(Self { mode, _servers: servers, stage })
    }

    /// Starts the mode with so many workloads in its documents.
    ///
    /// **Errors:** it does not come up.
    pub fn start(&mut self, workloads: u32) -> anyhow::Result<Duration> {
        world::publish(&self.stage.lab, workloads)?;
        self.mode.start(&self.stage, &World { workloads })
    }

    /// Stops the mode and starts it again.
    ///
    /// **Errors:** it does not end, or does not come up.
    pub fn restart(&mut self, workloads: u32) -> anyhow::Result<Duration> {
        self.mode.stop(&self.stage)?;
        self.start(workloads)
    }

    /// The first of the mode's processes that is no longer there.
    pub fn lost(&self) -> Option<Proxy> {
        self.mode.proxies().into_iter().find(|proxy| !super::account::is_alive(proxy.pid))
    }

    /// Congestion control of the client's connections.
    pub fn congestion_control(&self) -> String {
        let read = || fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
        let read = self.stage.client.run(read);
        read.ok().and_then(Result::ok).map(|text| text.trim().to_owned()).unwrap_or_default()
    }
}

/// nginx with one worker. Keep-alive has no limit of requests: what ends a connection is the load program.
fn nginx(pod: &Pod) -> anyhow::Result<Process> {
    let dir = pod.dir()?;
    let files = dir.join("files");
    fs::create_dir(&files).with_context(|| format!("create {}", files.display()))?;
    let mut locations = String::new();
    for (path, bytes) in [("", 2_usize), ("19", 19), ("100", 100)] {
        let _infallible =
            writeln!(locations, "    location = /{path} {{ return 200 \"{}\"; }}", "x".repeat(bytes));
    }
    fs::write(files.join("16k"), vec![b'x'; 16 << 10]).context("write the server's files")?;
    let text = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
         worker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n\
         http {{\n  access_log off;\n  default_type text/plain;\n  client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  \
         fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n  \
         keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n  keepalive_time 1d;\n  tcp_nodelay on;\n  open_file_cache max=16 inactive=1d;\n  \
         server {{\n    listen {HTTP_PORT} backlog=4096;\n    listen [::]:{HTTP_PORT} ipv6only=on backlog=4096;\n    root {files};\n{locations}  }}\n}}\n",
        dir = dir.display(),
        files = files.display(),
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    let command = pod.command("nginx").arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir);
    Ok(command.arg("-c").arg(&file).spawn()?)
}

fn iperf3(pod: &Pod) -> anyhow::Result<Process> {
    Ok(pod.command("iperf3").args(["-s", "-p", &BULK_PORT.to_string()]).spawn()?)
}

/// Version of a server of this stage, as it tells itself.
pub fn version(program: &str, flag: &str) -> Option<String> {
    let file: PathBuf = crate::lab::find_program(program)?;
    let output = std::process::Command::new(file).arg(flag).output().ok()?;
    // nginx tells on standard error.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().map(|line| line.trim().to_owned())
}
