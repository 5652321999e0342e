//! Which pods this process serves: what ZDS says, and for each the listening sockets in its network namespace.
//!
//! What runs survives the loss of the ZDS connection; the next one begins with all wanted pods, and those that are not
//! named by its end are stopped. A pod that cannot be started is refused, and tried again until it is named no more.
//! Sockets may come from a predecessor (`successor.rs`), and go to a successor.
//!
//! Must not know rules, paths of namespaces or why a pod is wanted: that is `enroll`. Decides nothing about
//! connections. Start with [`Pods::run`], then `obey`; `feed` has the conversation, `listeners` the sockets, `sharing`
//! those that another agent's stand beside, `own` the agent's own pod, `certificates` whose are needed.

mod certificates;
mod feed;
mod listeners;
mod own;
mod sharing;

use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_common::admin::{Pending, Readiness};
use culvert_common::net::netns::NetNs;
use culvert_common::task::Scope;
use culvert_common::types::SpiffeId;
use culvert_common::zds::{Request, WorkloadInfo};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use feed::{Answer, Event, Feed};
use listeners::StartError;
use sharing::{Neighbours, OpenDns, OpenPort};

pub(crate) use feed::Dialer;
pub(crate) use listeners::ListenSettings;

use crate::admission::Admission;
use crate::dns::{self, DnsSocket, LastServer};
use crate::settings::OwnPod;
use crate::shared::{Pod, PodName, Serving, Shared};
use crate::successor::{Heirloom, Inheritance, Key};
use crate::worker::{Port, Workers};

/// A pod that could not be started is tried again after this time, then after twice as long.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest time between attempts.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often certificates are reported.
const REPORT: Duration = Duration::from_secs(1);
/// How often the first certificates are looked for: they take milliseconds, and readiness waits for them.
const FIRST_CERTIFICATES: Duration = Duration::from_millis(20);
/// Requests of one agent wait for each other; more than this come from nowhere.
const EVENTS: usize = 8;

/// What this process does with pods.
pub(crate) struct PodsOptions {
    pub(crate) dialer: Dialer,
    pub(crate) listen: ListenSettings,
    /// The cluster's id, first part of workloads' UIDs.
    pub(crate) cluster: String,
    /// Open connections of a pod that leaves get so long.
    pub(crate) grace: Duration,
    /// The agent's own pod, if it is one.
    pub(crate) own: Option<OwnPod>,
    /// The node's name.
    pub(crate) node: Option<String>,
}

/// What predecessor and successor have to do with the pods.
pub(crate) enum Ask {
    /// A successor wants all sockets there are `now`, and those that come `later`.
    Listeners { now: oneshot::Sender<Vec<Heirloom>>, later: mpsc::Sender<Heirloom> },
    /// The successor went away: what the agent told it alone has to be told again.
    Anew,
    /// The predecessor has opened another socket.
    Inherited(Heirloom),
    /// From now on accept from inherited sockets too.
    Accept(oneshot::Sender<()>),
}

/// Owner of all served pods.
pub(crate) struct Pods {
    shared: Arc<Shared>,
    workers: Workers,
    options: PodsOptions,
    readiness: Readiness,
    scope: Scope,
    link: Link,
    running: HashMap<Arc<str>, Running>,
    waiting: HashMap<Arc<str>, Waiting>,
    /// Until the agent has named all pods and each of them is served.
    unsettled: Option<Pending>,
    uncertified: Option<Pending>,
    /// Whether all pods have been named once.
    is_told: bool,
    /// Whether the wanted identities may have changed.
    is_stale: bool,
    /// Identities whose expiry the metrics have.
    certified: HashSet<SpiffeId>,
    inheritance: Inheritance,
    /// Inherited sockets that the predecessor still accepts from; `None` when there is none, or none any more.
    deferred: Option<Vec<(Arc<Pod>, Socket)>>,
    successor: Option<mpsc::Sender<Heirloom>>,
    anew: Arc<Notify>,
    own: Option<Arc<Pod>>,
    /// Why it is not served, as was said last.
    own_error: String,
    neighbours: Neighbours,
}

/// How far the agent is with telling.
enum Link {
    Down,
    /// It names all wanted pods; these so far.
    Naming(HashSet<Arc<str>>),
    /// It tells what changes.
    Told,
}

struct Running {
    pod: Arc<Pod>,
    /// Copies of its listening sockets, for a successor.
    sockets: Vec<(Port, OwnedFd)>,
    /// Those of them that are accepted from.
    ports: Vec<OpenPort>,
    /// Copies of those that take its DNS queries.
    dns: Vec<(dns::Kind, OwnedFd)>,
    /// Those of them that are read from.
    asked: Vec<OpenDns>,
}

/// A pod's DNS sockets, each with whether a predecessor still reads from it; and copies of them.
type DnsSockets = (Vec<(dns::Kind, DnsSocket, bool)>, Vec<(dns::Kind, OwnedFd)>);

/// What is accepted from, or read, by a worker.
enum Socket {
    Port(Port, TcpListener),
    Dns(dns::Kind, DnsSocket),
}

/// A pod that could not be started.
struct Waiting {
    name: PodName,
    netns: NetNs,
    at: Instant,
    pause: Duration,
    error: String,
}

impl Pods {
    /// Starts nothing before [`Pods::run`]. With an inheritance, its sockets are accepted from only when asked to.
    pub(crate) fn new(
        shared: Arc<Shared>,
        workers: Workers,
        options: PodsOptions,
        (readiness, scope): (Readiness, Scope),
        inheritance: Option<Inheritance>,
    ) -> Self {
        Self {
            unsettled: Some(readiness.pending("workload proxy manager")),
            uncertified: Some(readiness.pending("certificates")),
            deferred: inheritance.is_some().then(Vec::new),
            inheritance: inheritance.unwrap_or_default(),
            shared,
            workers,
            readiness,
            scope,
            link: Link::Down,
            running: HashMap::new(),
            waiting: HashMap::new(),
            is_told: false,
            is_stale: true,
            certified: HashSet::new(),
            successor: None,
            anew: Arc::new(Notify::new()),
            own: None,
            own_error: String::new(),
            neighbours: Neighbours::new(options.own.clone(), options.node.clone()),
            options,
        }
    }

    /// Runs until the agent drains.
    pub(crate) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let first_state = self.readiness.pending("state manager");
        let mut revisions = self.shared.state.changed();
        // An agent that knows nothing yet would have its pods' connections wait for nothing.
        while *revisions.borrow_and_update() == 0 {
            tokio::select! {
                () = self.scope.draining() => return,
                Some(ask) = asks.recv() => self.answer(ask).await,
                changed = revisions.changed() => if changed.is_err() { return },
            }
        }
        first_state.ready();
        let (events, mut happened) = mpsc::channel(EVENTS);
        let feed = Feed::new(self.options.dialer.clone(), events, Arc::clone(&self.anew));
        self.scope.spawn(feed.run(self.scope.clone()));
        let mut report = interval(REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(sharing::LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let scope = self.scope.clone();
        loop {
            let retry = self.waiting.values().map(|waiting| waiting.at).min();
            tokio::select! {
                () = scope.draining() => return,
                Some(event) = happened.recv() => self.hear(event).await,
                Some(ask) = asks.recv() => self.answer(ask).await,
                changed = revisions.changed() => {
                    self.is_stale = true;
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => self.retry().await,
                () = sleep(FIRST_CERTIFICATES), if self.uncertified.is_some() && self.is_told => {
                    self.report_certificates();
                }
                _ = report.tick() => {
                    self.report_certificates();
                    self.open_own().await;
                }
                _ = look.tick() => self.look_at_ports().await,
            }
            self.report();
        }
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Connected => {
                tracing::info!("ZDS connection established");
                self.link = Link::Naming(HashSet::new());
                self.waiting.clear();
                self.unsettle();
            }
            Event::Lost => {
                self.link = Link::Down;
                self.unsettle();
            }
            Event::Request(request, answered) => {
                let answer = self.obey(request).await;
                // Nobody waits when the connection broke meanwhile: the next one begins with all pods.
                let _broken = answered.send(answer);
            }
        }
    }

    async fn obey(&mut self, request: Request) -> Answer {
        match (request, &mut self.link) {
            (Request::Add { uid, info, netns }, link) => {
                let uid: Arc<str> = uid.into();
                if let Link::Naming(named) = link {
                    named.insert(Arc::clone(&uid));
                }
                match NetNs::from_fd(netns) {
                    Ok(netns) => self.add(self.name(uid, info), netns).await,
                    Err(error) => Answer::Refused(error.to_string()),
                }
            }
            (Request::Keep { uid }, Link::Naming(named)) => {
                named.insert(uid.into());
                Answer::Done
            }
            (Request::Del { uid, .. }, Link::Naming(named)) => {
                named.remove(uid.as_str());
                self.waiting.remove(uid.as_str());
                Answer::Done
            }
            (Request::Del { uid, grace }, _) => {
                self.waiting.remove(uid.as_str());
                self.stop(&uid, grace);
                Answer::Done
            }
            (Request::SnapshotSent, Link::Naming(named)) => {
                let named = std::mem::take(named);
                self.link = Link::Told;
                self.told(&named).await;
                Answer::Done
            }
            (Request::Keep { uid }, _) => Answer::Misplaced(format!(
                "keep of pod {uid} after the snapshot; check the versions of agent and proxy"
            )),
            (Request::SnapshotSent, _) => Answer::Misplaced(
                "a second end of the snapshot; check the versions of agent and proxy".to_owned(),
            ),
        }
    }

    fn name(&self, uid: Arc<str>, info: WorkloadInfo) -> PodName {
        PodName::new(uid, &self.options.cluster, info)
    }

    /// All wanted pods have been named.
    async fn told(&mut self, named: &HashSet<Arc<str>>) {
        let unnamed: Vec<_> = self.running.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        let grace = Some(self.options.grace);
        unnamed.iter().for_each(|uid| self.stop(uid, grace));
        (self.is_told, self.is_stale) = (true, true);
        // What stopped may have been in the way.
        let now = Instant::now();
        self.waiting.values_mut().for_each(|waiting| waiting.at = now);
        tracing::info!(
            pods = self.running.len(),
            waiting = self.waiting.len(),
            stopped = unnamed.len(),
            "all pods of this node are known"
        );
    }

    /// Has a pod served; nothing changes when it is already, in the same namespace.
    async fn add(&mut self, name: PodName, netns: NetNs) -> Answer {
        match self.running.get(&name.uid) {
            Some(running) if running.pod.netns == netns && running.pod.local == name => return Answer::Done,
            Some(_) => self.stop(&Arc::clone(&name.uid), Some(self.options.grace)),
            None => {}
        }
        let pause = self.waiting.remove(&name.uid).map_or(RETRY_MIN, |waiting| waiting.pause);
        match self.start(&name, &netns).await {
            Ok(()) => Answer::Done,
            Err(error) => {
                let error = error.to_string();
                tracing::warn!(pod = name.to_string(), "the pod is not served: {error}");
                self.wait(name, netns, pause, error.clone());
                Answer::Refused(error)
            }
        }
    }

    fn wait(&mut self, name: PodName, netns: NetNs, pause: Duration, error: String) {
        self.unsettle();
        let at = Instant::now() + pause;
        let pause = (pause * 2).min(RETRY_MAX);
        self.waiting.insert(Arc::clone(&name.uid), Waiting { name, netns, at, pause, error });
    }

    /// Tries those whose time has come.
    async fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.waiting.extract_if(|_, waiting| waiting.at <= now).collect();
        for (_, Waiting { name, netns, pause, error: before, .. }) in due {
            match self.start(&name, &netns).await {
                Ok(()) => tracing::info!(pod = name.to_string(), "the pod is served now"),
                Err(error) => {
                    let error = error.to_string();
                    if error != before {
                        tracing::warn!(pod = name.to_string(), "the pod is not served: {error}");
                    }
                    self.wait(name, netns, pause, error);
                }
            }
        }
    }

    async fn start(&mut self, name: &PodName, netns: &NetNs) -> Result<(), StartError> {
        if let Some(other) = self.running.values().find(|other| other.pod.netns == *netns) {
            return Err(StartError::Shared { other: other.pod.local.to_string() });
        }
        let (uid, id, inheritance) = (&name.uid, netns.id(), &mut self.inheritance);
        let inherited = |port: Port| inheritance.take(&Key::pod(uid, id, port.number()));
        let (opened, spoof_source) = listeners::open(netns, &self.options.listen, inherited)?;
        let mut sockets = Vec::with_capacity(opened.len());
        for one in &opened {
            sockets.push((one.port, one.listener.try_clone().map_err(StartError::Copy)?.into()));
        }
        let (dns, dns_copies) = self.open_dns(name, netns)?;
        let pod = Arc::new(Pod {
            local: name.clone(),
            spoof_source,
            netns: netns.clone(),
            scope: self.scope.child(),
            admission: Admission::new(self.shared.pod_limits, &self.shared.budget),
            is_known: AtomicBool::new(false),
            is_unsteered: AtomicBool::new(false),
            name_server: LastServer::default(),
        });
        let inherited = opened.iter().filter(|one| one.is_inherited).count();
        let mut ports = Vec::with_capacity(opened.len());
        for one in opened {
            match &mut self.deferred {
                Some(deferred) if one.is_inherited => {
                    deferred.push((Arc::clone(&pod), Socket::Port(one.port, one.listener)));
                }
                _ => ports.push(sharing::listen((&pod, &self.workers), one.port, one.listener).await),
            }
        }
        let mut asked = Vec::with_capacity(dns.len());
        for (kind, socket, is_inherited) in dns {
            match &mut self.deferred {
                Some(deferred) if is_inherited => {
                    deferred.push((Arc::clone(&pod), Socket::Dns(kind, socket)));
                }
                _ => asked.push(sharing::answer((&pod, &self.workers), kind, socket).await),
            }
        }
        tracing::info!(
            pod = name.to_string(),
            client_addresses = pod.spoof_source,
            sockets_taken_over = inherited,
            "pod served"
        );
        sharing::tell(&pod, &ports);
        self.shared.telemetry.metrics().pod_started();
        self.is_stale = true;
        let running = Running { pod, sockets, dns: dns_copies, ports, asked };
        self.bequeath_one(&running);
        self.running.insert(Arc::clone(&name.uid), running);
        Ok(())
    }

    /// The sockets of its DNS queries, if they are taken, and copies of them: open before any rule redirects to them.
    fn open_dns(&mut self, name: &PodName, netns: &NetNs) -> Result<DnsSockets, StartError> {
        let Some(dns) = &self.shared.dns else { return Ok(Default::default()) };
        let (uid, id, inheritance) = (&name.uid, netns.id(), &mut self.inheritance);
        let inherited = |kind| inheritance.take(&Key::dns(uid, id, kind));
        let listen = &self.options.listen;
        let opened = dns::open(netns, &dns.addresses, (listen.mark, listen.port_reuse), inherited);
        let (mut sockets, mut copies) = (Vec::new(), Vec::new());
        for (kind, socket, is_inherited) in opened.map_err(StartError::Dns)? {
            copies.push((kind, socket.copy().map_err(StartError::Copy)?));
            sockets.push((kind, socket, is_inherited));
        }
        Ok((sockets, copies))
    }

    /// Its listeners close at once; tunnels get GOAWAY, and open connections their grace, which is no longer than what the
    /// agent told. Where it told none, answers of the pod's app to its clients' addresses reach them no more, and those
    /// connections end at once.
    fn stop(&mut self, uid: &str, told: Option<Duration>) {
        let Some(Running { pod, sockets, dns, .. }) = self.running.remove(uid) else { return };
        drop((sockets, dns));
        if let Some(deferred) = &mut self.deferred {
            deferred.retain(|(other, ..)| !Arc::ptr_eq(other, &pod));
        }
        self.is_stale = true;
        self.shared.telemetry.metrics().pod_stopped();
        if told.is_none() {
            pod.is_unsteered.store(true, Ordering::Relaxed); // before it drains: who waits for that looks
            self.shared.unsteered.send_replace(());
        }
        let grace = told.map_or(self.options.grace, |told| told.min(self.options.grace));
        self.scope.spawn(async move {
            let cut = pod.scope.shut_down(grace).await;
            tracing::info!(pod = pod.local.to_string(), connections_cut = cut, "pod released");
        });
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Listeners { now, later } => {
                let all = self.running.values().flat_map(heirlooms).collect();
                // A successor that has gone already is told of by `Anew`.
                let _gone = now.send(all);
                self.successor = Some(later);
            }
            Ask::Anew => {
                self.successor = None;
                self.anew.notify_one();
            }
            Ask::Inherited(heirloom) => {
                self.inheritance.keep(heirloom);
                let now = Instant::now();
                self.waiting.values_mut().for_each(|waiting| waiting.at = now);
            }
            Ask::Accept(done) => {
                for (pod, socket) in self.deferred.take().unwrap_or_default() {
                    let (port, listener) = match socket {
                        Socket::Port(port, listener) => (port, listener),
                        Socket::Dns(kind, socket) => {
                            let open = sharing::answer((&pod, &self.workers), kind, socket).await;
                            if let Some(running) = self.running.get_mut(&pod.local.uid) {
                                running.asked.push(open);
                            }
                            continue;
                        }
                    };
                    let open = sharing::listen((&pod, &self.workers), port, listener).await;
                    if let Some(running) = self.running.get_mut(&pod.local.uid) {
                        running.ports.push(open);
                        sharing::tell(&pod, &running.ports);
                    }
                }
                // What nobody asked for is of pods that have left meanwhile.
                self.inheritance = Inheritance::default();
                let _gone = done.send(());
            }
        }
    }

    /// Gives a pod's sockets to the successor, if there is one.
    fn bequeath_one(&mut self, running: &Running) {
        let Some(successor) = &self.successor else { return };
        for heirloom in heirlooms(running) {
            // Full or gone: it can open the sockets itself once this process has closed them.
            if successor.try_send(heirloom).is_err() {
                self.successor = None;
                return;
            }
        }
    }

    fn unsettle(&mut self) {
        if self.unsettled.is_none() {
            self.unsettled = Some(self.readiness.pending("workload proxy manager"));
        }
    }

    fn report(&mut self) {
        let is_told = matches!(self.link, Link::Told);
        // Also before the agent has named them: what the state tells of this node is enough to begin with.
        if std::mem::take(&mut self.is_stale) {
            self.shared.certs.want(self.wanted_identities());
        }
        if is_told
            && self.waiting.is_empty()
            && let Some(unsettled) = self.unsettled.take()
        {
            unsettled.ready();
        }
        self.shared.telemetry.metrics().pods(self.running.len(), self.waiting.len());
        let up = self.running.values().map(|running| (running.pod.local.clone(), Serving::Up));
        let pending = self.waiting.values().map(|waiting| (waiting.name.clone(), Serving::Pending));
        self.shared.served.set(up.chain(pending).collect());
    }
}

/// A pod's sockets, as a successor gets them. One that cannot be copied is left out: the successor opens its own.
fn heirlooms(running: &Running) -> impl Iterator<Item = Heirloom> {
    let (uid, id) = (&running.pod.local.uid, running.pod.netns.id());
    let ports = running.sockets.iter().map(move |(port, socket)| (Key::pod(uid, id, port.number()), socket));
    let dns = running.dns.iter().map(move |(kind, socket)| (Key::dns(uid, id, *kind), socket));
    ports.chain(dns).filter_map(|(key, socket)| Some(Heirloom { key, socket: socket.try_clone().ok()? }))
}
