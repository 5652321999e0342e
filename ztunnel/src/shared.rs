//! What all workers share: settings that do not change, state, certificates, telemetry; and what they know of a pod.

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::admission::{Admission, PodLimits, Refused};
use crate::dns::{Dns, LastServer, Resolver};
use crate::worker::Worker;
use culvert_common::hbone::budget::Budget;
use culvert_common::hbone::{Http2, Limits};
use culvert_common::identity::Certs;
use culvert_common::model::Workload;
use culvert_common::net::netns::NetNs;
use culvert_common::net::socket::{self, ConnectError, DialOptions, Keepalive};
use culvert_common::state::{Snapshot, State};
use culvert_common::task::Scope;
use culvert_common::telemetry::{Early, Failure, Reporter, ResponseFlag, Telemetry};
use culvert_common::types::{SpiffeId, WorkloadUid};
use culvert_common::xds::on_demand::OnDemand;
use culvert_common::zds::WorkloadInfo;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Shared by all workers, read-only.
pub(crate) struct Shared {
    pub(crate) state: Arc<State>,
    /// Where to ask for what the state does not have; none if it has everything.
    pub(crate) on_demand: Option<OnDemand>,
    pub(crate) certs: Arc<Certs>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) served: Served,
    pub(crate) budget: Arc<Budget>,
    pub(crate) pod_limits: PodLimits,
    pub(crate) http2: Http2,
    pub(crate) limits: Limits,
    /// The same for tries that are not the last.
    pub(crate) hurried: Limits,
    /// How long a connection waits for its destination to be captured or known.
    pub(crate) hold: Duration,
    /// How long a connection waits for the first certificate of its pod.
    pub(crate) certificate_wait: Duration,
    pub(crate) mark: u32,
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) response_baggage: bool,
    /// Whether an app that is told of its client is dialled on loopback.
    pub(crate) localhost_app_tunnel: bool,
    pub(crate) policy_info_logging: bool,
    /// The pods' DNS queries; none where they are not taken.
    pub(crate) dns: Option<Dns>,
    /// Addresses of workloads that are host names.
    pub(crate) resolver: Resolver,
    /// Whether another agent has taken this one's place: new connections are its business.
    pub(crate) is_succeeded: AtomicBool,
    /// Changes when a pod has become [`Pod::is_unsteered`].
    pub(crate) unsteered: watch::Sender<()>,
}

impl Shared {
    /// Logs and counts a connection that failed before it was routed.
    pub(crate) fn early(
        &self,
        reporter: Reporter,
        (src_addr, dst_addr): (SocketAddr, Option<SocketAddr>),
        source_identity: Option<&SpiffeId>,
        failure: Failure,
    ) {
        let destination_identity = None;
        let early =
            Early { reporter, src_addr, dst_addr, source_identity, destination_identity, failure: &failure };
        self.telemetry.early_failure(&early);
    }
}

impl Shared {
    /// Counts a connection or tunnel that is refused at a limit; a flood of them is one log line a second and pod.
    pub(crate) fn refused(&self, reporter: Reporter, pod: &Pod, src: SocketAddr, refused: Refused) {
        let metrics = self.telemetry.metrics();
        metrics.budget_refused(refused.limit());
        metrics.refused(reporter, refused.flag().class());
        if let Some(refusals) = pod.admission.tell(Instant::now()) {
            let (pod, flag) =
                (format!("{}/{}", pod.local.namespace, pod.local.name), refused.flag().as_str());
            tracing::warn!(pod, %src, flag, refusals, "connection refused: {refused}");
        }
    }
}

/// A failure without a refusal behind it.
pub(crate) fn failed(flag: ResponseFlag, error: impl ToString) -> Failure {
    Failure { flag, error: error.to_string(), denial: None }
}

/// How long a connection waits for its pod's workload: the state may be later than the pod.
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);
/// How long a pod that is known is asked for by its own name.
const OWN_QUESTION: Duration = Duration::from_hours(1);

/// Who a captured pod is, as ZDS names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodName {
    pub(crate) uid: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) service_account: Arc<str>,
    /// Key of its workload.
    pub(crate) workload: WorkloadUid,
}

impl PodName {
    pub(crate) fn new(uid: Arc<str>, cluster: &str, info: WorkloadInfo) -> Self {
        let WorkloadInfo { name, namespace, service_account } = info;
        let workload = WorkloadUid(format!("{cluster}//Pod/{namespace}/{name}").into());
        let service_account =
            if service_account.is_empty() { "default".into() } else { service_account.into() };
        Self { uid, namespace: namespace.into(), name: name.into(), service_account, workload }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The pods that are served, or wait to be, as of the last change: for those who look, not for decisions.
#[derive(Default)]
pub(crate) struct Served(Mutex<Vec<(PodName, Serving)>>);

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serving {
    /// Its sockets are open.
    Up,
    /// It could not be served yet; it is tried again.
    Pending,
}

impl Served {
    pub(crate) fn set(&self, pods: Vec<(PodName, Serving)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }

    pub(crate) fn list(&self) -> Vec<(PodName, Serving)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A captured pod.
pub(crate) struct Pod {
    pub(crate) local: PodName,
    pub(crate) netns: NetNs,
    /// Whether the app may see its client's address; `None` decides by whether the kernel allows it.
    pub(crate) spoof_source: bool,
    /// Accept loops and connections of this pod.
    pub(crate) scope: Scope,
    /// What it may use, and uses.
    pub(crate) admission: Arc<Admission>,
    /// Where its DNS queries went last.
    pub(crate) name_server: LastServer,
    /// Whether the state has had its workload.
    pub(crate) is_known: AtomicBool,
    /// The rules went by which the app's answers to its clients' addresses came back here.
    pub(crate) is_unsteered: AtomicBool,
}

impl Pod {
    /// The pod's workload in `snapshot`.
    ///
    /// **Errors**: what to log; it is missing until the state has it, and between two states. One with another service
    /// account than the agent told is another pod of this name.
    pub(crate) fn workload(&self, snapshot: &Snapshot) -> Result<Arc<Workload>, String> {
        let uid = &self.local.workload;
        let found = snapshot.workload(uid);
        let own = found.filter(|w| w.identity.service_account() == &*self.local.service_account);
        own.cloned().ok_or_else(|| format!("failed to fetch information about local workload {uid}"))
    }

    /// Waits until the state has the pod's workload, up to 5 s; the decision after it tells if it never came.
    ///
    /// Once known, this is one load: a workload that goes missing later is a pod that goes.
    /// **Cancel safety**: a dropped call has done nothing. **Source**: l4.md §9.1 row 2.
    pub(crate) async fn known(&self, shared: &Shared) {
        if !self.is_known.load(Ordering::Relaxed) {
            // Boxed: few connections wait, and every one would hold the room for it.
            Box::pin(self.become_known(&shared.state, shared.on_demand.as_ref())).await;
        }
    }

    async fn become_known(&self, state: &State, on_demand: Option<&OnDemand>) {
        let mut revisions = state.changed();
        if self.workload(&state.snapshot()).is_ok() {
            self.is_known.store(true, Ordering::Relaxed);
            if let Some(on_demand) = on_demand.cloned() {
                // It came with somebody's question, or from before a restart: to stay it is asked for by its name, and
                // nobody waits for that, as the control plane may be away.
                let uid = self.local.workload.clone();
                self.scope.spawn(async move {
                    let _answer = on_demand.workload(&uid, OWN_QUESTION).await;
                });
            }
            return;
        }
        let waiting = async {
            if let Some(on_demand) = on_demand {
                let _then_in_the_state = on_demand.workload(&self.local.workload, WORKLOAD_WAIT).await;
            }
            while self.workload(&state.snapshot()).is_err() {
                if revisions.changed().await.is_err() {
                    return;
                }
            }
            self.is_known.store(true, Ordering::Relaxed);
        };
        let _decided_by_look_up = tokio::time::timeout(WORKLOAD_WAIT, waiting).await;
    }

    /// Runs `work` in the pod's network namespace.
    pub(crate) fn enter<R>(&self, work: impl FnOnce() -> R) -> std::io::Result<R> {
        self.netns.run(work)
    }

    /// The address that the app at `to` is to see as its client's, where it may and can; any port.
    pub(crate) fn client_of(&self, src: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        (self.spoof_source && src.ip() != to.ip()).then(|| SocketAddr::new(src.ip(), 0))
    }

    /// Connects from within the pod's namespace, as `source` if it is given; port 0: the kernel picks one.
    ///
    /// The socket resets its peer when it is dropped, until it is told otherwise.
    pub(crate) fn dial<'a>(
        &'a self,
        worker: &'a Worker,
        to: SocketAddr,
        source: Option<SocketAddr>,
    ) -> impl Future<Output = Result<Rc<TcpStream>, ConnectError>> + 'a {
        self.dial_app(worker, (to, source), &worker.shared.limits)
    }

    /// Connects to where the pod's app wanted to go, as [`Pod::dial`] does.
    pub(crate) fn dial_out<'a>(
        &'a self,
        worker: &'a Worker,
        to: SocketAddr,
        limits: &'a Limits,
    ) -> impl Future<Output = Result<Rc<TcpStream>, ConnectError>> + 'a {
        self.dial_app(worker, (to, None), limits)
    }

    async fn dial_app(
        &self,
        worker: &Worker,
        addrs: (SocketAddr, Option<SocketAddr>),
        limits: &Limits,
    ) -> Result<Rc<TcpStream>, ConnectError> {
        // A limit on unacknowledged data counts from the first byte on; probes can wait.
        let keepalive = worker.shared.keepalive.filter(|keepalive| keepalive.user_timeout);
        let app = self.connect(&worker.shared, addrs, (true, keepalive), limits).await?;
        Ok(if keepalive.is_some() { Rc::new(app) } else { worker.young.note(app) })
    }

    /// Connects for a tunnel. The socket closes in order when it is dropped.
    pub(crate) fn dial_tunnel<'a>(
        &'a self,
        shared: &'a Shared,
        peer: SocketAddr,
        limits: &'a Limits,
    ) -> impl Future<Output = Result<TcpStream, ConnectError>> + 'a {
        self.connect(shared, (peer, None), (false, shared.keepalive), limits)
    }

    async fn connect(
        &self,
        shared: &Shared,
        (to, source): (SocketAddr, Option<SocketAddr>),
        (is_app, keepalive): (bool, Option<Keepalive>),
        limits: &Limits,
    ) -> Result<TcpStream, ConnectError> {
        let options =
            DialOptions { mark: Some(shared.mark), source, nodelay: true, keepalive, reset_on_drop: is_app };
        let socket = self
            .enter(|| socket::dial_socket(to, &options))
            .and_then(|made| made)
            .map_err(|source| ConnectError::Io { to, source })?;
        socket::connect(socket, to, limits.connect).await
    }
}

#[cfg(test)]
mod tests {
    use culvert_common::model::Model;

    use super::*;

    fn pod() -> Pod {
        let info =
            WorkloadInfo { name: "cart-0".into(), namespace: "shop".into(), service_account: "cart".into() };
        let limits = PodLimits {
            memory: 1 << 20,
            connections: 1,
            rate: None,
            handshakes: 1,
            handshakes_per_source: 1,
        };
        Pod {
            local: PodName::new("uid".into(), "Kubernetes", info),
            netns: NetNs::current().unwrap(),
            spoof_source: false,
            scope: Scope::default(),
            admission: Admission::new(limits, &Budget::new(1 << 20)),
            name_server: LastServer::default(),
            is_known: AtomicBool::new(false),
            is_unsteered: AtomicBool::new(false),
        }
    }

    /// As after a restart without the control plane: nobody takes the questions.
    #[tokio::test(start_paused = true)]
    async fn a_pod_that_the_state_has_waits_for_nobody_and_is_asked_for_all_the_same() {
        let (state, pod) = (State::new(), pod());
        let (on_demand, mut asks) = OnDemand::new();
        let began = tokio::time::Instant::now();
        pod.become_known(&state, Some(&on_demand)).await;
        assert!(!pod.is_known.load(Ordering::Relaxed) && began.elapsed() == WORKLOAD_WAIT, "not there yet");
        assert!(asks.try_recv().is_ok());
        let identity = SpiffeId::new("cluster.local", "shop", "cart").unwrap();
        let workload = Workload::new(pod.local.workload.clone(), "cart-0", identity);
        state.publish(Model { workloads: vec![workload], ..Model::default() });
        let began = tokio::time::Instant::now();
        pod.become_known(&state, Some(&on_demand)).await;
        assert!(pod.is_known.load(Ordering::Relaxed));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(asks.recv().await.is_some(), "by its own name, so that it stays");
        assert_eq!(pod.scope.shut_down(Duration::ZERO).await, 1, "with the pod it ends");
    }
}
