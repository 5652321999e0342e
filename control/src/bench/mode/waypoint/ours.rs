//! Our own waypoint, beside the agent's binary.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;

use super::{Instance, Stage};
use crate::lab::{Pod, Process, http};

const READY_PORT: u16 = 15021;
const ASK_MAX: Duration = Duration::from_secs(2);

/// Culvert's waypoint with its defaults, but for what [`Instance::deviations`] says.
#[derive(Debug)]
pub(super) struct Ours;

fn binary(ztunnel: &Path) -> PathBuf {
    ztunnel.with_file_name("waypoint")
}

impl Instance for Ours {
    fn mode(&self) -> &'static str {
        "culvert+waypoint"
    }

    fn title(&self) -> &'static str {
        "Culvert's agents on two nodes, its waypoint in a pod on a third: a service, three routes, one policy"
    }

    fn deviations(&self) -> Vec<String> {
        vec![
            "the waypoint's access log is off, as it is in envoy-waypoint".to_owned(),
            "no agent on the waypoint's node: nothing there is captured".to_owned(),
        ]
    }

    fn class(&self) -> &'static str {
        "culvert-waypoint"
    }

    fn start(&self, stage: &Stage, pod: &Pod) -> anyhow::Result<Process> {
        let binary = binary(&stage.ztunnel);
        ensure!(
            binary.is_file(),
            "there is no waypoint at {}, beside the agent; build it with cargo build -p waypoint",
            binary.display()
        );
        let command = pod.command(&binary.to_string_lossy()).arg("--config").arg(stage.lab.config_dir());
        let command = command.arg("--ca-dir").arg(stage.lab.ca_dir()).args(["--access-log", "off"]);
        Ok(command.spawn()?)
    }

    fn is_ready(&self, pod: &Pod) -> bool {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, READY_PORT));
        let asked = pod.run(|| http::get(to, "/healthz/ready", ASK_MAX));
        asked.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200))
    }
}
