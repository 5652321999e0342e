//! Node agents as a mode has them: one a node, started as a service manager would, with nothing but their defaults.

use std::time::Duration;

use anyhow::Context as _;

use super::{Proxy, READY_MAX, Stage};
use crate::lab::{Agent, AgentOptions};

/// Port on which a captured pod is reached through its tunnel.
pub(super) const HBONE_PORT: u16 = 15008;
/// Nothing is open when agents are stopped, so that there is little to drain.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Agents that are ready, by the names of their nodes. Dropping them kills them.
#[derive(Debug, Default)]
pub(super) struct Agents {
    all: Vec<(String, Agent)>,
}

/// Agents on their way.
pub(super) struct Starting {
    all: Vec<(String, Agent)>,
}

impl Agents {
    /// Starts one on each of the stage's nodes, without waiting for them.
    pub(super) fn start(stage: &Stage) -> anyhow::Result<Starting> {
        let options = AgentOptions { binary: Some(stage.ztunnel.clone()), ..AgentOptions::default() };
        let mut all = Vec::new();
        for node in &stage.nodes {
            all.push((stage.lab.node_name(*node).to_owned(), stage.lab.start_agent(*node, &options)?));
        }
        Ok(Starting { all })
    }

    /// Waits until both pods can be reached by tunnel.
    pub(super) fn capture(stage: &Stage) -> anyhow::Result<()> {
        for pod in [&stage.client, &stage.server] {
            pod.wait_for(HBONE_PORT, READY_MAX)?;
        }
        Ok(())
    }

    /// Whether each has carried a connection.
    pub(super) fn have_carried(&self) -> bool {
        let mutual_tls = [r#"connection_security_policy="mutual_tls""#];
        let counted = |agent: &Agent| agent.metric("istio_tcp_connections_opened_total", &mutual_tls);
        self.all.iter().all(|(_, agent)| counted(agent).is_ok_and(|count| count > 0.0))
    }

    /// The last line of each one's log.
    pub(super) fn last_words(&self) -> String {
        let last = |agent: &Agent| agent.log().last().map(|line| line.as_str().to_owned());
        format!("{:?}", self.all.iter().map(|(_, agent)| last(agent)).collect::<Vec<_>>())
    }

    /// What is accounted.
    pub(super) fn proxies(&self) -> Vec<Proxy> {
        self.all.iter().map(|(name, agent)| Proxy { name: name.clone(), pid: agent.pid() }).collect()
    }

    /// Ends them.
    pub(super) fn stop(&mut self) {
        for (_, mut agent) in self.all.drain(..) {
            if agent.terminate(STOP_MAX).is_err() {
                agent.kill();
            }
        }
    }
}

impl Starting {
    /// Waits until all are ready.
    ///
    /// **Errors:** one is not, with the end of its log.
    pub(super) fn wait(self) -> anyhow::Result<Agents> {
        let ready = |(name, agent): (String, Agent)| {
            let agent = agent.wait_ready().with_context(|| format!("start the agent of {name}"))?;
            Ok::<_, anyhow::Error>((name, agent))
        };
        Ok(Agents { all: self.all.into_iter().map(ready).collect::<Result<_, _>>()? })
    }
}
