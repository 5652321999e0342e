//! Which pods are captured: keeps listeners and rules in the pods' network namespaces equal to what the snapshot asks.
//!
//! Level-triggered: each revision, and each second while a pod could not be captured, what is compared with what should
//! be. Listeners come before rules, so that no connection is redirected to nothing; leaving is the other way round.
//! Decides nothing about connections. Start with [`Redirect::reconcile`].

mod namespace;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use culvert_common::admin::{Pending, Readiness};
use culvert_common::identity::CertState;
use culvert_common::model::LocalPod;
use culvert_common::net::netns::NetNs;
use culvert_common::net::rules::{self, CaptureSpec};
use culvert_common::net::socket::{ListenOptions, listen};
use culvert_common::state::Snapshot;
use culvert_common::task::Scope;
use culvert_common::types::SpiffeId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval};

pub(crate) use namespace::{CaptureError, enter_pod};

use crate::admission::Admission;
use crate::settings::OriginalSource;
use crate::shared::{Pod, Shared};
use crate::worker::{Port, Workers};

/// A pod that could not be captured is tried again so often.
const RETRY: Duration = Duration::from_secs(1);
/// How often the first certificates are looked for.
const FIRST_CERTIFICATES: Duration = Duration::from_millis(20);
/// Connections of one listener that wait for being accepted.
const BACKLOG: u32 = 1024;

/// What capture needs beside the state.
#[derive(Clone, Debug)]
pub(crate) struct CaptureSettings {
    pub(crate) ipv6: bool,
    pub(crate) mark: u32,
    pub(crate) original_source: OriginalSource,
    pub(crate) adopt: bool,
    /// Open connections of a pod that leaves get so long.
    pub(crate) grace: Duration,
}

impl CaptureSettings {
    pub(crate) fn spec(&self, pod: &LocalPod) -> CaptureSpec {
        CaptureSpec {
            ipv6: self.ipv6,
            inbound: !pod.bypass_inbound,
            reroute_interfaces: pod.reroute_interfaces.clone(),
            mark: self.mark,
            adopt: self.adopt,
            ..CaptureSpec::default()
        }
    }
}

/// Owner of all captured pods.
pub(crate) struct Redirect {
    shared: Arc<Shared>,
    workers: Workers,
    settings: CaptureSettings,
    readiness: Readiness,
    scope: Scope,
    captured: HashMap<Arc<str>, Arc<Pod>>,
    /// What was last said of a pod that could not be captured, so that it is said once.
    failing: HashMap<Arc<str>, String>,
    pending: Option<Pending>,
    uncertified: Option<Pending>,
    /// Identities whose expiry the metrics have.
    certified: HashSet<SpiffeId>,
    /// Released pods whose connections have ended.
    drained: (UnboundedSender<Arc<Pod>>, UnboundedReceiver<Arc<Pod>>),
}

impl Redirect {
    pub(crate) fn new(
        shared: Arc<Shared>,
        workers: Workers,
        settings: CaptureSettings,
        readiness: Readiness,
        scope: Scope,
    ) -> Self {
        let pending = Some(readiness.pending("workload proxy manager"));
        let uncertified = Some(readiness.pending("certificates"));
        Self {
            shared,
            workers,
            settings,
            readiness,
            scope,
            captured: HashMap::new(),
            failing: HashMap::new(),
            pending,
            uncertified,
            certified: HashSet::new(),
            drained: unbounded_channel(),
        }
    }

    /// Runs until the agent drains. The rules stay then: captured pods are refused, never bypassed.
    pub(crate) async fn run(mut self) {
        let mut revisions = self.shared.state.changed();
        let mut tick = interval(RETRY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = None;
        let scope = self.scope.clone();
        loop {
            tokio::select! {
                () = scope.draining() => return,
                _ = tick.tick() => {}
                // The first certificates take milliseconds, and readiness waits for them.
                () = tokio::time::sleep(FIRST_CERTIFICATES), if self.uncertified.is_some() && seen.is_some() => {
                    self.report_certificates();
                    continue;
                }
                changed = revisions.changed() => if changed.is_err() { return },
                Some(pod) = self.drained.1.recv() => {
                    self.clear(&pod);
                    continue;
                }
            }
            let snapshot = self.shared.state.snapshot();
            if snapshot.revision == 0 {
                continue; // nothing is known yet: nothing is taken away either
            }
            if seen.replace(snapshot.revision) != Some(snapshot.revision) || !self.failing.is_empty() {
                self.reconcile(&snapshot).await;
            }
            self.report_certificates();
        }
    }

    async fn reconcile(&mut self, snapshot: &Snapshot) {
        let identities = snapshot.pods().iter().filter_map(|pod| snapshot.workload(&pod.workload));
        self.shared.certs.want(identities.map(|w| w.identity.clone()).collect());
        let wanted: HashMap<_, _> = snapshot.pods().iter().map(|pod| (Arc::clone(&pod.uid), pod)).collect();
        let leaving = self
            .captured
            .iter()
            .filter(|(uid, pod)| wanted.get(*uid).is_none_or(|local| !same_capture(local, &pod.local)));
        for uid in leaving.map(|(uid, _)| Arc::clone(uid)).collect::<Vec<_>>() {
            self.release(&uid);
        }
        self.failing.retain(|uid, _| wanted.contains_key(uid));
        for local in snapshot.pods() {
            if self.captured.contains_key(&local.uid) {
                continue;
            }
            match self.capture(local).await {
                Ok(()) => {
                    self.failing.remove(&local.uid);
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.failing.insert(Arc::clone(&local.uid), text.clone()).as_ref() != Some(&text) {
                        let pod = format!("{}/{}", local.namespace, local.name);
                        tracing::error!(pod, "the pod is not captured: {text}");
                    }
                }
            }
        }
        self.shared.telemetry.metrics().pods(self.captured.len(), self.failing.len());
        match (self.failing.is_empty(), self.pending.is_some()) {
            (true, true) => drop(self.pending.take().map(Pending::ready)),
            (false, false) => self.pending = Some(self.readiness.pending("workload proxy manager")),
            _ => {}
        }
    }

    async fn capture(&mut self, local: &Arc<LocalPod>) -> Result<(), CaptureError> {
        let netns = namespace::open(local)?;
        if let Some(netns) = &netns {
            let other =
                self.captured.values().find(|p| p.netns.as_ref().is_some_and(|n| n.id() == netns.id()));
            if let Some(other) = other {
                let other = format!("{}/{}", other.local.namespace, other.local.name);
                return Err(CaptureError::Shared { other });
            }
        }
        let spec = self.settings.spec(local);
        let options = ListenOptions {
            mark: Some(self.settings.mark),
            transparent: self.settings.original_source != OriginalSource::False,
            ipv6_only: false,
            backlog: BACKLOG,
            keepalive: self.shared.keepalive,
            nodelay: true,
            ..ListenOptions::default()
        };
        let ipv6 = self.settings.ipv6;
        let (listeners, transparent) = enter_pod(netns.as_ref(), || {
            namespace::owns_addresses(local)?;
            let mut listeners = Vec::with_capacity(3);
            let mut transparent = true;
            for (port, number) in [
                (Port::Hbone, spec.hbone_port),
                (Port::Passthrough, spec.inbound_port),
                (Port::Outbound, spec.outbound_port),
            ] {
                // A tunnel's last frames wait in its socket when it closes behind its last stream: never dropped.
                let options = ListenOptions { reset_on_drop: port != Port::Hbone, ..options.clone() };
                let (listener, can) = listen_on(number, ipv6, &options)
                    .map_err(|source| CaptureError::Listen { port: number, source })?;
                transparent &= can;
                listeners.push((port, listener));
            }
            Ok::<_, CaptureError>((listeners, transparent))
        })??;
        if !transparent && self.settings.original_source == OriginalSource::True {
            return Err(CaptureError::NotTransparent);
        }
        let scope = self.scope.child();
        let pod = Arc::new(Pod {
            local: Arc::clone(local),
            spoof_source: transparent && self.settings.original_source != OriginalSource::False,
            netns,
            scope,
            admission: Admission::new(self.shared.pod_limits, &self.shared.budget),
            is_known: AtomicBool::new(false),
        });
        for (port, listener) in listeners {
            self.workers.listen(&pod, port, listener).await;
        }
        // Last: from here on connections arrive.
        let installed = enter_pod(pod.netns.as_ref(), || rules::install(&spec))?;
        let installed = installed.inspect_err(|_| pod.scope.cut())?;
        tracing::info!(
            pod = %format!("{}/{}", local.namespace, local.name),
            ipv6 = installed.ipv6,
            client_addresses = pod.spoof_source,
            connections_left_alone = installed.open_before,
            "pod captured"
        );
        self.shared.telemetry.metrics().pod_started();
        self.captured.insert(Arc::clone(&local.uid), pod);
        Ok(())
    }

    /// Redirects go first, then the listeners; open connections get their grace, then marks and routes go.
    fn release(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.captured.remove(uid) else { return };
        let name = format!("{}/{}", pod.local.namespace, pod.local.name);
        let removed = enter_pod(pod.netns.as_ref(), rules::remove_redirects);
        if let Err(error) = removed.and_then(|removed| Ok(removed?)) {
            tracing::warn!(pod = name, "cannot remove the redirects: {error}");
        }
        self.shared.telemetry.metrics().pod_stopped();
        let (grace, drained) = (self.settings.grace, self.drained.0.clone());
        self.scope.spawn(async move {
            let cut = pod.scope.shut_down(grace).await;
            tracing::info!(pod = name, connections_cut = cut, "pod released");
            // Nobody hears it when the agent ends: its rules stay anyhow.
            let _agent_ends = drained.send(pod);
        });
    }

    /// Removes the rest of the rules, unless the pod has come back meanwhile: they are its new capture's then.
    fn clear(&self, pod: &Pod) {
        let netns = |pod: &Pod| pod.netns.as_ref().map(NetNs::id);
        if self.captured.values().any(|other| netns(other) == netns(pod)) {
            return;
        }
        let removed = enter_pod(pod.netns.as_ref(), rules::remove);
        if let Err(error) = removed.and_then(|removed| Ok(removed?)) {
            let name = format!("{}/{}", pod.local.namespace, pod.local.name);
            tracing::warn!(pod = name, "cannot remove the capture rules: {error}");
        }
    }

    /// Readiness waits until each local workload has its first certificate or a stated reason why not.
    fn report_certificates(&mut self) {
        let (statuses, metrics) = (self.shared.certs.status(), self.shared.telemetry.metrics());
        let mut certified = HashSet::new();
        for status in &statuses {
            if let Some(not_after) = status.not_after {
                metrics.certificate(&status.identity, not_after);
                certified.insert(status.identity.clone());
            }
        }
        self.certified.difference(&certified).for_each(|gone| metrics.certificate_gone(gone));
        self.certified = certified;
        let waiting = statuses.iter().any(|s| matches!(s.state, CertState::Initializing));
        if !waiting && let Some(uncertified) = self.uncertified.take() {
            uncertified.ready();
        }
    }
}

/// Whether two descriptions of one pod ask for the same listeners and rules.
fn same_capture(a: &LocalPod, b: &LocalPod) -> bool {
    let of =
        |p: &LocalPod| (p.netns.clone(), p.bypass_inbound, p.reroute_interfaces.clone(), p.workload.clone());
    of(a) == of(b)
}

fn listen_on(
    port: u16,
    ipv6: bool,
    options: &ListenOptions,
) -> std::io::Result<(std::net::TcpListener, bool)> {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    if !ipv6 {
        return listen(v4, options);
    }
    match listen(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port), options) {
        // A namespace without IPv6 at all.
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => listen(v4, options),
        other => other,
    }
}

/// Removes the rules from all `pods`; returns what could not be done.
pub(crate) fn release_all(pods: &[LocalPod]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut done = HashSet::new();
    for pod in pods {
        let removed = namespace::open(pod).and_then(|netns| {
            if netns.as_ref().is_some_and(|n| !done.insert(n.id())) {
                return Ok(());
            }
            Ok(enter_pod(netns.as_ref(), rules::remove)??)
        });
        if let Err(error) = removed {
            problems.push(format!("{}/{}: {error}", pod.namespace, pod.name));
        }
    }
    problems
}
