//! Ways of connecting two pods. Each is a file of its own; the runner knows only [`Mode`] and the list [`built_in`].
//!
//! [`envoy::modes`] are real sidecars, [`waypoint::modes`] have a waypoint between the agents, [`described::read`] is whatever a file describes.

mod agents;
mod certificates;
mod culvert;
pub mod described;
mod direct;
pub mod envoy;
mod outside;
mod proof;
mod redirect;
pub mod waypoint;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::{Lab, NodeId, Pod, PodSpec};

pub use culvert::Culvert;
pub use direct::Direct;

/// All modes that need no file, in the order of tables.
pub fn built_in() -> Vec<Box<dyn Mode>> {
    let mut modes: Vec<Box<dyn Mode>> =
        vec![Box::new(Direct), Box::new(Culvert::two_nodes()), Box::new(Culvert::one_node())];
    modes.extend(waypoint::modes());
    modes.extend(envoy::modes());
    modes
}

/// Where a mode works: a lab of its own, with the two pods between which everything is sent.
#[derive(Debug)]
pub struct Stage {
    /// Runs the load.
    pub client: Pod,
    /// Runs nginx on [`HTTP_PORT`] and iperf3 on [`BULK_PORT`]; they are up before the mode is started.
    pub server: Pod,
    /// A pod that the mode runs something in, on a node of its own; see [`Mode::beside`].
    pub beside: Option<Pod>,
    /// The nodes of client and server, one or two; the client is on the first, the server on the last.
    pub nodes: Vec<NodeId>,
    /// The agent's binary.
    pub ztunnel: PathBuf,
    /// Directory for what the mode writes, empty at its start.
    pub scratch: PathBuf,
    /// Last: it is dropped after what runs in it.
    pub lab: Lab,
}

/// Port of the HTTP server.
pub const HTTP_PORT: u16 = 8080;
/// Port of the bulk server.
pub const BULK_PORT: u16 = 5201;
/// A proxy that is not ready by then has failed.
pub const READY_MAX: Duration = Duration::from_secs(30);

/// A process whose cost is the mode's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Such as `node-a` or `client sidecar`.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

/// What the mode is started for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Workloads that the proxies have to know beside the two pods.
    pub workloads: u32,
}

/// One way of connecting the pods. Dropping it stops everything it started.
pub trait Mode {
    /// Short name, such as `culvert`; unique in a run.
    fn name(&self) -> &str;

    /// One line for people.
    fn title(&self) -> String;

    /// How what runs differs from its own defaults, one line each.
    fn deviations(&self) -> Vec<String> {
        Vec::new()
    }

    /// Programs that took part, with their versions; asked for once it has been started.
    fn tools(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Whether both pods are on one node.
    fn one_node(&self) -> bool {
        false
    }

    /// A pod beside client and server that the mode needs. It gets a node of its own.
    fn beside(&self) -> Option<PodSpec> {
        None
    }

    /// What the client connects to.
    fn address(&self, stage: &Stage) -> IpAddr {
        stage.server.v4.into()
    }

    /// Whether there are proxies to be started and accounted.
    fn has_proxies(&self) -> bool {
        true
    }

    /// Why a work cannot be done with this mode, for example bulk through an HTTP proxy; `None` where it can.
    fn cannot(&self, _work: &super::work::Work) -> Option<&'static str> {
        None
    }

    /// Fetches what the mode needs and checks that it is there, once and before anything is measured; `say` tells people
    /// what takes long. A mode that cannot be prepared is left out with the reason.
    ///
    /// **Errors:** what is missing and how it can be had.
    fn prepare(&mut self, _say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        Ok(())
    }

    /// Nobody waits longer than this for [`Mode::prepare`].
    fn hurry(&mut self, _limit: Duration) {}

    /// Starts the proxies for `stage` and returns once they are ready and what the client sends to
    /// [`Mode::address`] goes through them. The documents of nodes, pods and `world` are in the lab's configuration directory.
    ///
    /// **Shape:** from the start of the first program until all have said that they are ready.
    ///
    /// **Errors:** a program is missing or was not ready in time, with the end of its log.
    fn start(&mut self, stage: &Stage, world: &World) -> anyhow::Result<Duration>;

    /// The processes to be accounted, while it is started.
    fn proxies(&self) -> Vec<Proxy>;

    /// Stops the proxies; what the pods send until the next start goes direct or is refused.
    ///
    /// **Errors:** something would not end.
    fn stop(&mut self, stage: &Stage) -> anyhow::Result<()>;
}
