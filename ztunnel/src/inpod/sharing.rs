//! Ports of pods that this agent shares with another one's sockets, while a node changes hands between them.
//!
//! A socket that others may stand beside is open to any root process of the pod as well, and stays so when the option is
//! taken back. So it lasts as short as can be: once no other socket listens on the port, this agent's is closed and
//! opened anew for itself alone. All of it happens only with `INPOD_PORT_REUSE`.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use culvert_common::model::Workload;
use culvert_common::net::netns::NetNs;
use culvert_common::net::socket;
use culvert_common::state::Snapshot;
use culvert_common::task::Scope;
use tokio::time::Instant;

use super::listeners::{self, StartError};
use super::{Pods, RETRY_MIN, Running};
use crate::dns::{self, DnsSocket};
use crate::settings::OwnPod;
use crate::shared::Pod;
use crate::worker::{Port, Workers};

/// How often ports and neighbours are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// What waits in a socket's queue is taken within this time.
const CLOSING: Duration = Duration::from_secs(1);
/// A successor of this agent's kind asks for the sockets before this time has passed.
const STRANGER: Duration = Duration::from_secs(5);

/// A listening socket of a pod that is accepted from.
pub(super) struct OpenPort {
    port: Port,
    /// Ends the accepting from it.
    until: Scope,
    /// Others may stand beside it.
    is_shared: bool,
}

/// Has a socket accepted from, in a way that can be ended.
pub(super) async fn listen(
    (pod, workers): (&Arc<Pod>, &Workers),
    port: Port,
    listener: TcpListener,
) -> OpenPort {
    let is_shared = socket::is_shared(&listener).unwrap_or(false);
    let until = pod.scope.child();
    workers.listen_until(pod, port, listener, until.clone()).await;
    OpenPort { port, until, is_shared }
}

/// A socket that takes a pod's DNS queries.
pub(super) struct OpenDns {
    kind: dns::Kind,
    at: Option<SocketAddr>,
    until: Scope,
    is_shared: bool,
}

/// Has a DNS socket read, in a way that can be ended.
pub(super) async fn answer(
    (pod, workers): (&Arc<Pod>, &Workers),
    kind: dns::Kind,
    socket: DnsSocket,
) -> OpenDns {
    let (at, is_shared, until) = (socket.local_addr().ok(), socket.is_shared(), pod.scope.child());
    workers.answer(pod, socket, until.clone()).await;
    OpenDns { kind, at, until, is_shared }
}

/// Says that ports of a pod are shared, if they are.
pub(super) fn tell(pod: &Pod, ports: &[OpenPort]) {
    let shared = ports.iter().filter(|open| open.is_shared).count();
    if shared > 0 {
        tracing::warn!(
            pod = pod.local.to_string(),
            ports = shared,
            "another agent's sockets are in this pod too (INPOD_PORT_REUSE): while they are, any root process of the pod \
             could take connections; the ports are opened anew for this agent alone once they have gone"
        );
    }
}

impl Pods {
    /// Lets another agent stand beside this one where one has come to the node; opens those ports anew that were shared,
    /// where it has gone.
    pub(super) async fn look_at_ports(&mut self) {
        // A successor of this kind has copies of the sockets, and will do it.
        if !self.options.listen.port_reuse || self.successor.is_some() || self.deferred.is_some() {
            return;
        }
        let snapshot = self.shared.state.snapshot();
        match self.neighbours.look(&snapshot, Instant::now()) {
            Some(name) => {
                let exclusive =
                    self.running.values_mut().filter(|running| running.ports.iter().any(|p| !p.is_shared));
                exclusive.for_each(|running| share(running, &name));
            }
            None if !self.neighbours.is_new_around() => self.open_anew().await,
            None => {}
        }
    }

    async fn open_anew(&mut self) {
        let mut failed = Vec::new();
        for (uid, running) in &mut self.running {
            let opened = open_alone(running, &self.workers, &self.options.listen).await;
            let dns = match opened {
                Ok(_) => ask_alone(running, &self.workers, self.options.listen.mark).await,
                Err(_) => Ok(0),
            };
            match opened.and_then(|ports| Ok(ports + dns?)) {
                Ok(0) => {}
                Ok(_) => tracing::info!(
                    pod = running.pod.local.to_string(),
                    "the pod's ports are this agent's alone again"
                ),
                Err(error) => failed.push((Arc::clone(uid), error.to_string())),
            }
        }
        for (uid, error) in failed {
            let Some(running) = self.running.get(&uid) else { continue };
            let (name, netns) = (running.pod.local.clone(), running.pod.netns.clone());
            tracing::warn!(pod = name.to_string(), "the pod is not served: {error}");
            self.stop(&uid, Some(self.options.grace));
            self.wait(name, netns, RETRY_MIN, error);
        }
    }
}

/// Lets others stand beside all sockets of a pod.
fn share(running: &mut Running, name: &str) {
    for (port, socket) in &running.sockets {
        let open = running.ports.iter_mut().find(|open| open.port == *port);
        match socket::share(socket) {
            Ok(()) => open.into_iter().for_each(|open| open.is_shared = true),
            Err(error) => tracing::warn!(port = port.number(), "a port cannot be shared: {error}"),
        }
    }
    for (kind, socket) in &running.dns {
        if let Err(error) = socket::share(socket) {
            tracing::warn!(kind = kind.as_str(), "a DNS socket cannot be shared: {error}");
        }
    }
    running.asked.iter_mut().for_each(|open| open.is_shared = true);
    tracing::info!(
        agent = name,
        pod = running.pod.local.to_string(),
        "another agent of this node may use the pod's ports"
    );
    tell(&running.pod, &running.ports);
}

/// Opens those shared ports of a pod anew where nobody else listens any more, and says how many those are.
///
/// Between closing and opening the port is closed for some microseconds; what waited in the old socket is served.
async fn open_alone(
    running: &mut Running,
    workers: &Workers,
    settings: &listeners::ListenSettings,
) -> Result<usize, StartError> {
    let Running { pod, sockets, ports, .. } = running;
    let alone: Vec<_> =
        ports.extract_if(.., |open| open.is_shared && is_alone(&pod.netns, open.port)).collect();
    let count = alone.len();
    for OpenPort { port, until, .. } in alone {
        sockets.retain(|(other, _)| *other != port);
        until.shut_down(CLOSING).await;
        let (listener, _) = listeners::open_one(&pod.netns, settings, port)?;
        sockets.push((port, listener.try_clone().map_err(StartError::Copy)?.into()));
        ports.push(listen((pod, workers), port, listener).await);
    }
    Ok(count)
}

/// The same for its DNS sockets. Queries that wait for an answer keep the old one open for a moment.
async fn ask_alone(running: &mut Running, workers: &Workers, mark: u32) -> Result<usize, StartError> {
    let Running { pod, dns, asked, .. } = running;
    let is_alone = |open: &OpenDns| open.at.is_some_and(|at| dns::is_alone(&pod.netns, at, open.kind));
    let alone: Vec<_> = asked.extract_if(.., |open| open.is_shared && is_alone(open)).collect();
    let count = alone.len();
    for OpenDns { kind, at, until, .. } in alone {
        let Some(at) = at else { continue };
        dns.retain(|(other, _)| *other != kind);
        until.shut_down(CLOSING).await;
        let socket = dns::open_one(&pod.netns, at, kind, (mark, true)).map_err(StartError::Dns)?;
        dns.push((kind, socket.copy().map_err(StartError::Copy)?));
        asked.push(answer((pod, workers), kind, socket).await);
    }
    Ok(count)
}

fn is_alone(netns: &NetNs, port: Port) -> bool {
    let count = netns.run(|| socket::listeners_on(port.number())).and_then(|count| count);
    count.is_ok_and(|count| count <= 1)
}

/// Other pods of this node that are agents, as the state has them: those with the agent's own service account.
pub(super) struct Neighbours {
    own: Option<(OwnPod, String)>,
    /// There before this agent: predecessors, on their way out.
    elder: Option<HashSet<Arc<str>>>,
    /// One that has come since, and when it was seen first.
    new: Option<(Arc<str>, Instant)>,
}

impl Neighbours {
    pub(super) fn new(own: Option<OwnPod>, node: Option<String>) -> Self {
        Self { own: own.zip(node), elder: None, new: None }
    }

    /// Whether one has come that may be a stranger.
    fn is_new_around(&self) -> bool {
        self.new.is_some()
    }

    /// The name of an agent that has come to this node and has not asked for this one's sockets: of another kind.
    fn look(&mut self, snapshot: &Snapshot, now: Instant) -> Option<Arc<str>> {
        let (own, node) = self.own.as_ref()?;
        let is_agent = |w: &Workload| {
            *w.node == **node
                && *w.namespace == *own.namespace
                && w.identity.service_account() == own.service_account
                && *w.name != *own.name
        };
        let mut there = snapshot.workloads().filter(|w| is_agent(w)).map(|w| Arc::clone(&w.name));
        let elder = match &mut self.elder {
            Some(elder) => elder,
            none => {
                *none = Some(there.collect());
                return None;
            }
        };
        let found = there.find(|name| !elder.contains(name));
        self.new = match (found, self.new.take()) {
            (Some(found), Some((name, since))) if found == name => Some((name, since)),
            (Some(found), _) => Some((found, now)),
            (None, _) => None,
        };
        let stranger = self.new.as_ref().filter(|(_, since)| now.duration_since(*since) >= STRANGER);
        stranger.map(|(name, _)| Arc::clone(name))
    }
}
