//! Culvert itself: one agent a node.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::agents::Agents;
use super::{HTTP_PORT, Mode, Proxy, READY_MAX, Stage, World};
use crate::lab::{http, wait_until};

/// Both pods captured, by one agent or by one each.
#[derive(Debug)]
pub struct Culvert {
    one_node: bool,
    agents: Agents,
}

impl Culvert {
    /// The pods are on two nodes, an agent on each.
    pub fn two_nodes() -> Self {
        Self { one_node: false, agents: Agents::default() }
    }

    /// Both pods are on one node: one agent is both ends of the tunnel.
    pub fn one_node() -> Self {
        Self { one_node: true, agents: Agents::default() }
    }

    /// One request from pod to pod, and each agent must have counted a connection.
    fn carries(&self, stage: &Stage) -> anyhow::Result<()> {
        Agents::capture(stage)?;
        let to = SocketAddr::from((stage.server.v4, HTTP_PORT));
        let seen = || {
            let asked = stage.client.run(|| http::get(to, "/19", Duration::from_secs(2)));
            let answered = asked.is_ok_and(|a| a.is_ok_and(|a| a.status == 200));
            (answered && self.agents.have_carried()).then_some(())
        };
        wait_until("a request through the tunnel", READY_MAX, seen, || self.agents.last_words())?;
        Ok(())
    }
}

impl Mode for Culvert {
    fn name(&self) -> &str {
        if self.one_node { "culvert-one-node" } else { "culvert" }
    }

    fn title(&self) -> String {
        let where_ =
            if self.one_node { "both pods on one node, one agent" } else { "two nodes, one agent each" };
        format!("Culvert with its defaults: {where_}")
    }

    fn one_node(&self) -> bool {
        self.one_node
    }

    fn start(&mut self, stage: &Stage, _world: &World) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        self.agents = Agents::start(stage)?.wait()?;
        let took = begin.elapsed();
        self.carries(stage)?;
        Ok(took)
    }

    fn proxies(&self) -> Vec<Proxy> {
        self.agents.proxies()
    }

    fn stop(&mut self, _stage: &Stage) -> anyhow::Result<()> {
        self.agents.stop();
        Ok(())
    }
}
