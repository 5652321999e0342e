//! Enrolment: keeps the rules in the pods' network namespaces equal to what the snapshot asks, and has a proxy serve them.
//!
//! Level-triggered: what a revision, a proxy's answer, a changed rule or the passing of time gives reason to look at is
//! compared with what should be. A namespace is opened and checked to be the pod's, handed to the newest proxy over ZDS,
//! and only when that one listens are rules written, so that no connection is redirected to nothing; leaving is the other
//! way round. From then on the rules stay, whether a proxy is there or not: captured pods are refused, never bypassed.
//!
//! Must not know listeners, certificates or connections. Parses nothing that comes over a network. Start with
//! [`Enroll::run`], then `advance`; `pod` has the steps in one namespace, `proxies` the conversations.

mod namespace;
mod pod;
mod process;
mod proxies;
pub(crate) mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use culvert_common::admin::{Pending, Readiness};
use culvert_common::model::LocalPod;
use culvert_common::net::netns::NetNs;
use culvert_common::net::rules::{self, CaptureSpec};
use culvert_common::state::{Snapshot, State};
use culvert_common::task::Scope;
use culvert_common::telemetry::Metrics;
use culvert_common::zds::WorkloadInfo;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, MissedTickBehavior, interval};

use namespace::Uncaptured;
use pod::{Enrolled, Stage};
use proxies::{Ask, Event, Proxies};
use settings::Enrolment;

use crate::settings::{Capture, Lifecycle};

pub(crate) use process::run;
pub(crate) use proxies::{LocalDialer, Peers};

/// What could not be done is tried again so often; audits are spread over these steps too.
const STEP: Duration = Duration::from_secs(1);
/// Namespaces whose changes wait for being looked at.
const CHANGES: usize = 256;
/// The proxy cuts what is left of a pod at the end of its grace; then marks and routes can go.
const MARGIN: Duration = Duration::from_secs(1);
/// Name of what readiness waits for.
const PENDING: &str = "capture";

/// What capture is to be like.
#[derive(Clone, Debug)]
pub(crate) struct EnrollOptions {
    pub(crate) ipv6: bool,
    pub(crate) mark: u32,
    pub(crate) adopt: bool,
    /// Open connections of a pod that leaves get so long.
    pub(crate) grace: Duration,
    /// Within this time the rules of each pod are looked at, changes told or not.
    pub(crate) audit: Duration,
    /// Where proxies take the pods' DNS queries; none where they do not.
    pub(crate) dns: Option<DnsCapture>,
}

/// Which pods' DNS queries are redirected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DnsCapture {
    pub(crate) port: u16,
    /// Those of pods that do not say.
    pub(crate) default: bool,
}

impl EnrollOptions {
    /// As they are set; `dns` is the port where proxies take queries.
    pub(crate) fn of(
        capture: &Capture,
        enrolment: &Enrolment,
        lifecycle: &Lifecycle,
        dns: Option<u16>,
    ) -> Self {
        Self {
            ipv6: capture.ipv6,
            mark: capture.packet_mark,
            adopt: capture.adopt,
            grace: lifecycle.deadline(),
            audit: enrolment.audit_interval,
            dns: dns.map(|port| DnsCapture { port, default: enrolment.capture_dns }),
        }
    }

    fn spec(&self, pod: &LocalPod) -> CaptureSpec {
        CaptureSpec {
            ipv6: self.ipv6,
            inbound: !pod.bypass_inbound,
            reroute_interfaces: pod.reroute_interfaces.clone(),
            mark: self.mark,
            adopt: self.adopt,
            dns_port: self.dns.filter(|dns| pod.dns.unwrap_or(dns.default)).map(|dns| dns.port),
            ..CaptureSpec::default()
        }
    }
}

/// Owner of all pods' namespaces and rules.
pub(crate) struct Enroll {
    options: EnrollOptions,
    state: Arc<State>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    pending: Option<Pending>,
    scope: Scope,
    pods: BTreeMap<Arc<str>, Enrolled>,
    leaving: Vec<Leaving>,
    proxies: Proxies,
    changes: (Sender<Arc<str>>, Receiver<Arc<str>>),
    /// The pod whose rules were looked at last.
    audited: Option<Arc<str>>,
    revision: u64,
}

/// A namespace without redirects, whose marks and routes go when the last connections have ended.
struct Leaving {
    pod: String,
    netns: NetNs,
    at: Instant,
}

impl Enroll {
    /// Nothing is done before [`Self::run`]. Tasks belong to `scope`; needs a Tokio runtime.
    pub(crate) fn new(
        options: EnrollOptions,
        state: Arc<State>,
        metrics: Arc<Metrics>,
        (readiness, scope): (Readiness, Scope),
        peers: Peers,
    ) -> Self {
        Self {
            options,
            state,
            metrics,
            pending: Some(readiness.pending(PENDING)),
            readiness,
            proxies: Proxies::new(peers, scope.child()),
            scope,
            pods: BTreeMap::new(),
            leaving: Vec::new(),
            changes: mpsc::channel(CHANGES),
            audited: None,
            revision: 0,
        }
    }

    /// Runs until the scope drains. All rules stay then.
    pub(crate) async fn run(mut self) {
        let mut revisions = self.state.changed();
        let mut step = interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let scope = self.scope.clone();
        loop {
            tokio::select! {
                () = scope.draining() => return,
                _ = step.tick() => self.step(),
                changed = revisions.changed() => if changed.is_err() { return },
                event = self.proxies.next() => self.hear(event),
                Some(uid) = self.changes.1.recv() => self.audit(&uid),
            }
            let snapshot = self.state.snapshot();
            // Revision 0: nothing is known yet, so nothing is taken away either.
            if snapshot.revision != self.revision {
                self.revision = snapshot.revision;
                self.reconcile(&snapshot);
            }
            if self.revision > 0 {
                self.inform();
                self.report();
            }
        }
    }

    /// Compares the pods with those that are wanted.
    fn reconcile(&mut self, snapshot: &Snapshot) {
        let wanted: HashMap<_, _> =
            snapshot.pods().iter().map(|pod| (Arc::clone(&pod.uid), (pod, info(pod, snapshot)))).collect();
        let gone = self
            .pods
            .iter()
            .filter(|(uid, pod)| wanted.get(*uid).is_none_or(|(local, _)| local.netns != pod.local.netns));
        for uid in gone.map(|(uid, _)| Arc::clone(uid)).collect::<Vec<_>>() {
            self.release(&uid);
        }
        for (uid, (local, info)) in wanted {
            let new = || Enrolled::new(Arc::clone(local), info.clone());
            let pod = self.pods.entry(Arc::clone(&uid)).or_insert_with(new);
            pod.local = Arc::clone(local);
            if let Err(error) = pod.respecify(self.options.spec(local)) {
                pod.fail(error);
            }
            if pod.info != info {
                // For the proxy it is another pod; its redirects stay, so that nothing gets past meanwhile.
                pod.info = info;
                (pod.asked, pod.served) = (None, None);
                self.proxies.ask_all(&Ask::Del { uid: Arc::clone(&uid), grace: self.options.grace });
            }
        }
        self.advance_all();
    }

    fn step(&mut self) {
        let now = Instant::now();
        let (due, leaving) = std::mem::take(&mut self.leaving).into_iter().partition(|left| left.at <= now);
        self.leaving = leaving;
        due.into_iter().for_each(|left: Leaving| self.clear(&left));
        let uncaptured = self.pods.iter().filter(|(_, pod)| pod.problem.is_some() || !pod.is_held());
        for uid in uncaptured.map(|(uid, _)| Arc::clone(uid)).collect::<Vec<_>>() {
            self.advance(&uid);
        }
        self.audit_some();
    }

    fn advance_all(&mut self) {
        for uid in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.advance(&uid);
        }
    }

    /// Takes a pod as far as it can go now.
    fn advance(&mut self, uid: &Arc<str>) {
        let newest = self.proxies.newest();
        let opened = self.open(uid);
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let spec = self.options.spec(&pod.local);
        let was_held = pod.is_held();
        let forward = || -> Result<(), Uncaptured> {
            opened?;
            let proxy = newest.filter(|proxy| pod.served == Some(*proxy));
            if !pod.is_held() && (proxy.is_some() || pod.was_held()?) {
                pod.capture(spec, &self.scope, self.changes.0.clone())?;
            }
            match (newest, proxy) {
                (None, _) => Err(Uncaptured::NoProxy),
                (Some(_), Some(_)) => Ok(()),
                (Some(newest), None) => {
                    if pod.asked != Some(newest) {
                        pod.asked = Some(newest);
                        self.proxies.ask(newest, pod.add().into_iter().collect());
                    }
                    // Until the newest proxy has answered, an older one may go on serving it.
                    let is_served = pod.served.is_some_and(|by| self.proxies.is_connected(by));
                    let is_refused = matches!(pod.problem, Some(Uncaptured::Refused(_)));
                    if is_served && pod.is_held() && !is_refused {
                        Ok(())
                    } else {
                        Err(Uncaptured::Unanswered)
                    }
                }
            }
        };
        match forward() {
            // Of rules that were in force before, only an audit can tell that they are right again.
            _ if was_held
                && matches!(pod.problem, Some(Uncaptured::Overtaken { .. } | Uncaptured::Rules(_))) => {}
            Ok(()) => pod.recover(),
            // What the proxy said last tells more than that it is asked again.
            Err(Uncaptured::Unanswered) if matches!(pod.problem, Some(Uncaptured::Refused(_))) => {}
            Err(error) => pod.fail(error),
        }
    }

    /// Opens a pod's namespace, unless it is open, and checks that it is the pod's and no other's.
    fn open(&mut self, uid: &Arc<str>) -> Result<(), Uncaptured> {
        let Some(pod) = self.pods.get(uid).filter(|pod| matches!(pod.stage, Stage::Wanted)) else {
            return Ok(());
        };
        let netns = namespace::open(&pod.local)?;
        if let Some(other) = self.pods.values().find(|other| other.netns() == Some(&netns)) {
            return Err(Uncaptured::Shared { other: other.name() });
        }
        namespace::check(&netns, &pod.local)?;
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.stage = Stage::Opened(netns);
        }
        Ok(())
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Hello => {}
            Event::Answer { from, ask, answer } => {
                let result = if answer.is_ok() { "ack" } else { "nack" };
                self.metrics.capture().answered(ask.name(), result);
                match (ask, answer) {
                    (Ask::Add { uid, netns, info }, answer) => {
                        let Some(pod) = self.pods.get_mut(&uid) else { return };
                        // The pod may have left, moved or changed since it was asked for.
                        if pod.asked != Some(from) || pod.netns() != Some(&netns) || pod.info != info {
                            return;
                        }
                        pod.asked = None;
                        match answer {
                            Ok(()) => {
                                pod.served = Some(from);
                                self.advance(&uid);
                            }
                            Err(text) => pod.fail(Uncaptured::Refused(text)),
                        }
                    }
                    (ask, Err(text)) => {
                        tracing::warn!(proxy = from, request = ask.name(), "refused by the proxy: {text}");
                    }
                    (Ask::SnapshotSent, Ok(())) => tracing::info!(proxy = from, "the proxy has all pods"),
                    (_, Ok(())) => {}
                }
            }
            Event::Gone { who, why } => {
                tracing::warn!(proxy = who, "ZDS connection ended: {why}");
                for pod in self.pods.values_mut() {
                    pod.asked = pod.asked.filter(|asked| *asked != who);
                    pod.served = pod.served.filter(|served| *served != who);
                }
                if self.proxies.newest().is_none() {
                    tracing::warn!("no proxy is connected: captured pods are refused, others wait");
                }
                self.advance_all();
            }
        }
    }

    /// Sends all pods to those proxies that have just connected.
    fn inform(&mut self) {
        for who in self.proxies.uninformed() {
            let mut asks = Vec::with_capacity(self.pods.len() + 1);
            for (uid, pod) in &mut self.pods {
                match pod.add() {
                    Some(add) => {
                        pod.asked = Some(who);
                        asks.push(add);
                    }
                    None => asks.push(Ask::Keep { uid: Arc::clone(uid) }),
                }
            }
            tracing::info!(proxy = who, pods = asks.len(), "proxy connected");
            asks.push(Ask::SnapshotSent);
            self.proxies.ask(who, asks);
            self.advance_all();
        }
    }

    /// Redirects go first, then the proxy's listeners; marks and routes when open connections have had their grace.
    fn release(&mut self, uid: &Arc<str>) {
        let Some(mut pod) = self.pods.remove(uid) else { return };
        let held = pod.release();
        self.proxies.ask_all(&Ask::Del { uid: Arc::clone(uid), grace: self.options.grace });
        self.leave(&pod, held);
    }

    fn leave(&mut self, pod: &Enrolled, held: Option<NetNs>) {
        if let Some(netns) = held {
            tracing::info!(pod = pod.name(), "redirects removed");
            let at = Instant::now() + self.options.grace + MARGIN;
            self.leaving.push(Leaving { pod: pod.name(), netns, at });
        }
    }

    /// Removes the rest of the rules, unless the pod has come back meanwhile: they are its new capture's then.
    fn clear(&self, left: &Leaving) {
        if self.pods.values().any(|pod| pod.netns() == Some(&left.netns)) {
            return;
        }
        let removed = left.netns.run(rules::remove).map_err(Uncaptured::Enter);
        match removed.and_then(|done| Ok(done?)) {
            Ok(()) => tracing::info!(pod = left.pod, "capture rules removed"),
            Err(error) => tracing::warn!(pod = left.pod, "cannot remove the capture rules: {error}"),
        }
    }

    /// Looks at the next few pods, so that all have their turn within the interval.
    fn audit_some(&mut self) {
        let steps = usize::try_from(self.options.audit.as_secs() / STEP.as_secs().max(1)).unwrap_or(1).max(1);
        for _ in 0..self.pods.len().div_ceil(steps) {
            let after = self.audited.take().and_then(|last| {
                let next = (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
                self.pods.range::<Arc<str>, _>(next).next()
            });
            let Some((uid, pod)) = after.or_else(|| self.pods.iter().next()) else { return };
            let (uid, has_moved) = (Arc::clone(uid), pod.has_moved());
            self.audited = Some(Arc::clone(&uid));
            if has_moved { self.follow(&uid) } else { self.audit(&uid) }
        }
    }

    /// The pod has another namespace now: the proxy replaces the old one when it is asked for the new one.
    fn follow(&mut self, uid: &Arc<str>) {
        let Some(mut pod) = self.pods.remove(uid) else { return };
        tracing::warn!(pod = pod.name(), "the pod has another network namespace than before");
        let held = pod.release();
        self.leave(&pod, held);
        self.pods.insert(Arc::clone(uid), Enrolled::new(pod.local, pod.info));
        self.advance(uid);
    }

    fn audit(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let metrics = self.metrics.capture();
        match pod.audit(Instant::now()) {
            Ok(audited) => {
                audited.parts.into_iter().for_each(|part| metrics.repaired(part));
                if audited.has_new_foreign {
                    metrics.foreign_rules();
                }
                match (audited.overtaking.is_empty(), &pod.problem) {
                    (false, _) => pod.fail(Uncaptured::Overtaken { chains: audited.overtaking }),
                    (true, Some(Uncaptured::Overtaken { .. } | Uncaptured::Rules(_))) if pod.is_held() => {
                        pod.recover();
                        self.advance(uid);
                    }
                    (true, _) => {}
                }
            }
            Err(error) => pod.fail(error),
        }
    }

    fn report(&mut self) {
        let failing = |reason| {
            let is_it = |pod: &&Enrolled| pod.problem.as_ref().is_some_and(|p| p.reason() == reason);
            (reason, self.pods.values().filter(is_it).count())
        };
        let captured = self.pods.values().filter(|pod| pod.problem.is_none()).count();
        let capture = self.metrics.capture();
        capture.pods(self.pods.len(), captured, Uncaptured::REASONS.map(failing));
        capture.proxies(self.proxies.len());
        match (captured == self.pods.len(), self.pending.is_some()) {
            (true, true) => drop(self.pending.take().map(Pending::ready)),
            (false, false) => self.pending = Some(self.readiness.pending(PENDING)),
            _ => {}
        }
    }
}

/// Who a pod is.
fn info(pod: &LocalPod, snapshot: &Snapshot) -> WorkloadInfo {
    let service_account = snapshot.workload(&pod.workload).map(|w| w.identity.service_account().to_owned());
    WorkloadInfo {
        name: pod.name.to_string(),
        namespace: pod.namespace.to_string(),
        service_account: service_account.unwrap_or_default(),
    }
}

/// Removes the rules from all `pods`; returns what could not be done.
pub(crate) fn release_all(pods: &[LocalPod]) -> Vec<String> {
    let mut problems = Vec::new();
    for pod in pods {
        let removed = namespace::open(pod).and_then(|netns| Ok(netns.run(rules::remove)??));
        if let Err(error) = removed {
            problems.push(format!("{}/{}: {error}", pod.namespace, pod.name));
        }
    }
    problems
}
