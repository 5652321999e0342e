//! A waypoint between the node agents: the client asks for a service, and what it sends goes from its node to the waypoint
//! and from there to the server's.
//!
//! The waypoint is in a pod of its own on a third node, which has no agent, since nothing there is captured. `ours.rs` and
//! `envoy.rs` are what may run in it; both know the same three routes and one policy: `documents.rs` has
//! them as objects, which the agents read too, `envoy.yaml` as an Envoy is told them.

mod documents;
mod envoy;
mod ours;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use self::documents::{DENIED, VIP};
use super::agents::Agents;
use super::{HTTP_PORT, Mode, Proxy, READY_MAX, Stage, World, proof};
use crate::bench::work::{Kind, Work};
use crate::lab::{Pod, PodSpec, Process, pause};

/// Name of the waypoint's pod, and of its process where processes are told apart.
pub(crate) const NAME: &str = "waypoint";
/// What the rest of a drain may take.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Our waypoint, then a real Envoy in its place.
pub fn modes() -> Vec<Box<dyn Mode>> {
    vec![Box::new(Meshed::with(ours::Ours)), Box::new(Meshed::with(envoy::Envoy::new()))]
}

/// What runs in the waypoint's pod.
trait Instance {
    /// Name of the mode.
    fn mode(&self) -> &'static str;
    /// One line for people.
    fn title(&self) -> &'static str;
    fn deviations(&self) -> Vec<String>;
    /// The class of its Gateway.
    fn class(&self) -> &'static str;
    fn tools(&self) -> Vec<(String, String)> {
        Vec::new()
    }
    /// Why it does not know further workloads.
    fn cannot_know(&self) -> Option<&'static str> {
        None
    }
    fn prepare(&mut self, _say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        Ok(())
    }
    fn hurry(&mut self, _limit: Duration) {}
    /// Starts it in `pod`.
    fn start(&self, stage: &Stage, pod: &Pod) -> anyhow::Result<Process>;
    /// Whether it takes connections.
    fn is_ready(&self, pod: &Pod) -> bool;
}

/// Agents with a waypoint between them.
struct Meshed<I> {
    instance: I,
    agents: Agents,
    waypoint: Option<Process>,
}

impl<I: Instance> Meshed<I> {
    fn with(instance: I) -> Self {
        Self { instance, agents: Agents::default(), waypoint: None }
    }

    fn documents(&self, stage: &Stage, pod: &Pod) -> String {
        let (app, client) = (&stage.server.spec.name, stage.client.identity());
        documents::text(self.instance.class(), pod.v4, (app, &client))
    }

    fn bring_up(&mut self, stage: &Stage) -> anyhow::Result<Duration> {
        let pod = stage.beside.as_ref().context("a pod for the waypoint")?;
        stage.lab.put(documents::FILE, &self.documents(stage, pod))?;
        let begin = Instant::now();
        let agents = Agents::start(stage)?;
        let waypoint = self.waypoint.insert(self.instance.start(stage, pod)?);
        self.agents = agents.wait()?;
        while !self.instance.is_ready(pod) {
            if let Some(status) = waypoint.ended() {
                bail!("the waypoint ended with {status}: {}", end(waypoint));
            }
            if begin.elapsed() > READY_MAX {
                bail!("the waypoint was not ready within {READY_MAX:?}: {}", end(waypoint));
            }
            pause(Duration::from_millis(5));
        }
        let took = begin.elapsed();
        Agents::capture(stage)?;
        let to = SocketAddr::from((VIP, HTTP_PORT));
        proof::check(stage, VIP.into(), true)
            .with_context(|| format!("agents last said {}", self.agents.last_words()))?;
        // Nobody but a waypoint sees methods: the way leads through it, and its policy holds.
        match proof::status_of(&stage.client, DENIED, (to, "/19"))? {
            Ok(403) if self.agents.have_carried() => Ok(took),
            Ok(403) => bail!("requests are answered, and an agent has not carried any"),
            Ok(other) => bail!("{DENIED} was answered with {other}; the waypoint's policy denies it"),
            Err(error) => Err(error).with_context(|| format!("{DENIED}, which the waypoint's policy denies")),
        }
    }
}

/// The last that it said, as much as a person reads.
fn end(process: &Process) -> String {
    let log = format!("{}{}", process.stdout(), process.stderr());
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

impl<I: Instance> Mode for Meshed<I> {
    fn name(&self) -> &str {
        self.instance.mode()
    }

    fn title(&self) -> String {
        self.instance.title().to_owned()
    }

    fn deviations(&self) -> Vec<String> {
        self.instance.deviations()
    }

    fn tools(&self) -> Vec<(String, String)> {
        self.instance.tools()
    }

    fn cannot(&self, work: &Work) -> Option<&'static str> {
        match work.kind {
            Kind::Start { workloads } if workloads > 0 => self.instance.cannot_know(),
            _ => None,
        }
    }

    fn prepare(&mut self, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.instance.prepare(say)
    }

    fn hurry(&mut self, limit: Duration) {
        self.instance.hurry(limit);
    }

    fn beside(&self) -> Option<PodSpec> {
        let spec = PodSpec::new(NAME).captured(false);
        Some(spec.label("gateway.networking.k8s.io/gateway-name", NAME))
    }

    fn address(&self, _stage: &Stage) -> IpAddr {
        VIP.into()
    }

    fn start(&mut self, stage: &Stage, _world: &World) -> anyhow::Result<Duration> {
        let up = self.bring_up(stage);
        if up.is_err() {
            let _first_error_counts = self.stop(stage);
        }
        up.with_context(|| self.name().to_owned())
    }

    fn proxies(&self) -> Vec<Proxy> {
        let waypoint = self.waypoint.iter().map(|w| Proxy { name: NAME.to_owned(), pid: w.pid() });
        self.agents.proxies().into_iter().chain(waypoint).collect()
    }

    fn stop(&mut self, _stage: &Stage) -> anyhow::Result<()> {
        // Agents first: what they still carry ends at both sides.
        self.agents.stop();
        if let Some(mut waypoint) = self.waypoint.take() {
            let _ended_already = waypoint.signal(Signal::SIGTERM);
            let _killed_when_dropped = waypoint.wait(STOP_MAX);
        }
        Ok(())
    }
}
