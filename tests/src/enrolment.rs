//! The agent of a node as two processes: `ztunnel enroll` and `ztunnel proxy`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use culvert::lab::{Agent, Place, Process, http, wait_until};

use crate::binary;
use crate::mesh::{Mesh, SOON, options};

const METRICS_PORT: u16 = 15014;
const ASK_MAX: Duration = Duration::from_secs(2);

/// A running `ztunnel enroll`. Dropping it kills it.
#[derive(Debug)]
pub struct Enrolment {
    place: Place,
    process: Process,
}

/// Where the two processes of a node meet.
pub fn socket(mesh: &Mesh, node: &str) -> PathBuf {
    mesh.lab.dir().join(format!("zds-{node}")).join("z.sock")
}

/// Starts the proxy of a node; wait for it with `wait_ready`.
pub fn start_proxy(mesh: &Mesh, node: &str, args: &[&str]) -> Agent {
    let mut options = options(args);
    options.part = Some("proxy".to_owned());
    options.args.extend(["--zds-socket".to_owned(), socket(mesh, node).display().to_string()]);
    mesh.lab.start_agent(mesh.node(node), &options).expect("start a proxy")
}

impl Enrolment {
    /// Starts the other process of a node.
    pub fn start(mesh: &Mesh, node: &str, args: &[&str]) -> Self {
        let place = mesh.lab.host(mesh.node(node)).expect("the node").clone();
        let command = place
            .command(&binary::ztunnel().to_string_lossy())
            .arg("enroll")
            .arg("--config")
            .arg(mesh.lab.config_dir())
            .args(["--node", node])
            .arg("--zds-socket")
            .arg(socket(mesh, node))
            .args(args);
        let process = command.spawn().expect("start enrolment");
        Self { place, process }
    }

    /// Sum of a metric's samples whose labels contain each of `labels`; none while the page does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        let page = self.place.run(|| http::get(to, "/metrics", ASK_MAX)).ok()?.ok()?.body;
        let of = |line: &str| {
            let (set, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let whole = set.is_empty() || set.starts_with('{');
            (whole && labels.iter().all(|label| set.contains(label))).then(|| value.parse::<f64>().ok())?
        };
        Some(page.lines().filter_map(of).sum())
    }

    /// Waits until a metric has a value.
    pub fn wait_metric(&self, name: &str, labels: &[&str], wanted: f64) {
        let is_it = || (self.metric(name, labels)? - wanted).abs().lt(&0.1).then_some(());
        let seen = || format!("{:?}\n{}", self.metric(name, labels), self.log());
        wait_until(&format!("{name} {labels:?} {wanted}"), SOON, is_it, seen)
            .unwrap_or_else(|e| panic!("{e}"));
    }

    /// Waits until so many pods are captured.
    pub fn wait_captured(&self, pods: usize) {
        self.wait_metric(
            "culvert_capture_pods_captured",
            &[],
            f64::from(u32::try_from(pods).expect("few pods")),
        );
    }

    /// Waits until it has logged something.
    pub fn wait_log(&self, wanted: &str) {
        let said = || self.log().contains(wanted).then_some(());
        wait_until(&format!("{wanted:?} in the log"), SOON, said, || self.log())
            .unwrap_or_else(|e| panic!("{e}"));
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        format!("{}{}", self.process.stdout(), self.process.stderr())
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// SIGTERM; it ends well.
    pub fn terminate(mut self) {
        let ended = self.process.terminate(SOON).expect("its end");
        assert!(ended.success(), "{ended}\n{}", self.log());
    }
}
