//! Culvert itself: one agent a node, started as a service manager would, with nothing but its defaults.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{HTTP_PORT, Mode, Proxy, READY_MAX, Stage, World};
use crate::lab::{Agent, AgentOptions, http, wait_until};

/// Port on which a captured pod is reached through its tunnel.
const HBONE_PORT: u16 = 15008;
/// Nothing is open when agents are stopped, so that there is little to drain.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Both pods captured, by one agent or by one each.
#[derive(Debug)]
pub struct Culvert {
    one_node: bool,
    agents: Vec<(String, Agent)>,
}

impl Culvert {
    /// The pods are on two nodes, an agent on each.
    pub fn two_nodes() -> Self {
        Self { one_node: false, agents: Vec::new() }
    }

    /// Both pods are on one node: one agent is both ends of the tunnel.
    pub fn one_node() -> Self {
        Self { one_node: true, agents: Vec::new() }
    }

    /// One request from pod to pod, and each agent must have counted a connection.
    fn carries(&self, stage: &Stage) -> anyhow::Result<()> {
        for pod in [&stage.client, &stage.server] {
            pod.wait_for(HBONE_PORT, READY_MAX)?;
        }
        let to = SocketAddr::from((stage.server.v4, HTTP_PORT));
        let counted = |agent: &Agent| {
            agent
                .metric("istio_tcp_connections_opened_total", &[r#"connection_security_policy="mutual_tls""#])
        };
        let seen = || {
            let asked = stage.client.run(|| http::get(to, "/19", Duration::from_secs(2)));
            let answered = asked.is_ok_and(|a| a.is_ok_and(|a| a.status == 200));
            (answered && self.agents.iter().all(|(_, a)| counted(a).is_ok_and(|n| n > 0.0))).then_some(())
        };
        let logs = || {
            self.agents.iter().map(|(_, a)| a.log().last().map(|l| l.as_str().to_owned())).collect::<Vec<_>>()
        };
        wait_until("a request through the tunnel", READY_MAX, seen, || format!("{:?}", logs()))?;
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
        let options = AgentOptions { binary: Some(stage.ztunnel.clone()), ..AgentOptions::default() };
        let begin = Instant::now();
        let mut started = Vec::new();
        for node in &stage.nodes {
            started.push((stage.lab.node_name(*node).to_owned(), stage.lab.start_agent(*node, &options)?));
        }
        for (name, agent) in started {
            let agent = agent.wait_ready().with_context(|| format!("start the agent of {name}"))?;
            self.agents.push((name, agent));
        }
        let took = begin.elapsed();
        self.carries(stage)?;
        Ok(took)
    }

    fn proxies(&self) -> Vec<Proxy> {
        self.agents.iter().map(|(name, agent)| Proxy { name: name.clone(), pid: agent.pid() }).collect()
    }

    fn stop(&mut self, _stage: &Stage) -> anyhow::Result<()> {
        for (_, mut agent) in std::mem::take(&mut self.agents) {
            if agent.terminate(STOP_MAX).is_err() {
                agent.kill();
            }
        }
        Ok(())
    }
}
