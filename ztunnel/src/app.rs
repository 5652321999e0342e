//! Wiring: the order of start, of drain, and what ends the process.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_common::admin::{Pending, Readiness, serve_admin, serve_readiness, serve_stats};
use culvert_common::dns::Naming;
use culvert_common::hbone::budget::Budget;
use culvert_common::identity::CaError;
use culvert_common::net::socket::Keepalive;
use culvert_common::source::file::{self, LoadError};
use culvert_common::source::kube;
use culvert_common::source::local::LocalError;
use culvert_common::state::State;
use culvert_common::task::{Essential, Scope};
use culvert_common::telemetry::Metrics;
use culvert_common::telemetry::Telemetry;
use culvert_common::telemetry::{self, LoggingError};
use culvert_common::xds::on_demand::OnDemand;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::admin::{self, AdminSettings, Stop, Stopping};
use crate::authority;
use crate::dns::{Dns, Helper, Origins, Resolver};
use crate::enroll::{self, Enroll, EnrollOptions, Peers};
use crate::inpod::{Ask, Dialer, ListenSettings, Pods, PodsOptions};
use crate::origin::{self, Origin};
use crate::pages::{PageSocket, PageSockets};
use crate::sandbox::{self, Role, SandboxError};
use crate::settings::{Capture, Mode, Settings, Source};
use crate::shared::{Served, Shared};
use crate::successor::{self, Estate, HandOverError, Heir, Inheritance};
use crate::worker::Workers;

/// Limit for the answers that the pages still owe when the traffic has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long a pod whose agent has been succeeded waits for being deleted. One that stays wants to be the node's agent: it
/// ends, is started again, and takes over.
const OUTLIVED: Duration = Duration::from_mins(2);
/// Questions to the owner of the pods that may wait.
const ASKS: usize = 64;
/// Limit for the log's last lines.
pub(crate) const FLUSH: Duration = Duration::from_secs(2);

/// Why the agent does not run, or does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("the settings cannot be used:\n  {}", .0.join("\n  "))]
    Settings(Vec<String>),
    #[error("{0}")]
    Config(LoadError),
    #[error("{0}")]
    Local(LocalError),
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(
        "cannot listen on {addr} for {what}: {source}; is another agent running in this network namespace?"
    )]
    Listen { addr: SocketAddr, what: &'static str, source: std::io::Error },
    #[error("cannot take over from the agent that answers at {}: {source}", path.display())]
    HandOver { path: PathBuf, source: HandOverError },
    #[error("the process cannot be confined: {0}")]
    Sandbox(#[from] SandboxError),
    #[error("cannot listen on {} for proxies: {source}; does another agent enrol this node's pods?", path.display())]
    ZdsSocket { path: PathBuf, source: std::io::Error },
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error("{0} ended unexpectedly; see the log")]
    Ended(&'static str),
    #[error("not all rules could be removed:\n  {}", .0.join("\n  "))]
    Release(Vec<String>),
}

impl AppError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) | Self::Config(_) | Self::Local(_) | Self::Logging(_) => 64,
            Self::Ca(_)
            | Self::Listen { .. }
            | Self::HandOver { .. }
            | Self::Sandbox(_)
            | Self::ZdsSocket { .. }
            | Self::Start(_)
            | Self::Ended(_)
            | Self::Release(_) => 1,
        }
    }
}

/// Runs the agent until it is asked to stop, or until a successor has taken its place.
pub(crate) fn run(settings: &Settings, role: Role) -> Result<(), AppError> {
    let problems = settings.problems();
    if !problems.is_empty() {
        return Err(AppError::Settings(problems));
    }
    if settings.process.compliance_policy.as_deref() == Some("pqc") {
        culvert_common::crypto::require_post_quantum();
    }
    // Before the first thread: capabilities are a thread's own, and the log has one.
    let helper = dns_helper(settings, role);
    let confined = sandbox::enter(role, settings.lifecycle.syscall_filter)?;
    let logger = telemetry::init(settings.lifecycle.log_format.into(), &settings.lifecycle.log)?;
    confined.log();
    for setting in settings.unsupported() {
        tracing::warn!("{setting}");
    }
    raise_descriptor_limit();
    sandbox::check_means(settings.capture.packet_mark)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let telemetry = Telemetry::new(Metrics::new(env!("CARGO_PKG_VERSION")), logger.clone());
    let result = runtime.block_on(agent(settings, (role, helper), telemetry));
    logger.flush(FLUSH);
    result
}

async fn agent(
    settings: &Settings,
    (role, helper): (Role, std::io::Result<Option<Helper>>),
    telemetry: Arc<Telemetry>,
) -> Result<(), AppError> {
    let readiness = Readiness::new();
    let starting = Starting::new(settings, &readiness);
    let origin = Origin::open(settings)?;
    // Before anything is changed: a second agent takes the first one's place, or does not get as far as the pods.
    let (hand_over, mut sockets) = HandOver::begin(settings, role).await?;
    let stats = sockets.open("metrics", settings.process.stats_addr)?;
    let ready = sockets.open("readiness", settings.process.ready_addr)?;
    let admin = admin_sockets(settings, &mut sockets)?;
    let (copies, inheritance) = sockets.finish();
    // Pages and sources outlive the traffic, so that a drain can be watched.
    let (traffic, mut essential) = (Scope::new(), Essential::default());
    let for_pods = (dns(settings, helper, &essential.scope), origin.on_demand());
    let shared = shared(settings, telemetry, for_pods)?;
    let (workers, threads) = Workers::start(settings.workers(), &shared, &traffic)?;
    let metrics = Arc::clone(shared.telemetry.metrics());
    metrics.watch_tasks(&traffic);
    tell_limits(&shared);
    let enrolling = Scope::new();
    let (asks, to_answer) = mpsc::channel(ASKS);
    let scopes = (&readiness, &traffic, &enrolling);
    let work = work(settings, (role, &shared, &workers), scopes, (inheritance, to_answer));
    let synced = origin.start(&shared, &essential, &readiness);
    traffic.spawn(origin::once_synced(synced, work));
    essential.spawn("the certificate renewal", Arc::clone(&shared.certs).run());
    let pages = essential.scope.child();
    spawn_pages((stats, metrics), (ready, readiness.clone()), &essential, &pages);
    let (stop, mut stopping) = Stopping::new();
    spawn_admin(settings, (&shared, &workers), admin, (&essential, &pages, stop));
    drop(workers);
    let mut superseded = hand_over.start((asks, copies), &readiness, &essential.scope, &traffic);
    starting.done();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = settings.source.node.as_deref().unwrap_or(""),
        config = Origin::describe(settings),
        "agent started"
    );
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(()) = stopping.asked.recv() => Ok(()),
        Some(()) = superseded.recv() => {
            tracing::info!("a successor has taken over");
            shared.is_succeeded.store(true, Ordering::Relaxed);
            pages.drain(); // it answers for both from now on
            Ok(())
        }
        name = essential.ended() => Err(AppError::Ended(name)),
    };
    readiness.drain();
    enrolling.cut(); // all rules stay: a successor's, or those of pods that are refused now
    drain(&traffic, settings.lifecycle.deadline()).await;
    stopping.drained();
    pages.shut_down(LAST_ANSWERS).await;
    if shared.is_succeeded.load(Ordering::Relaxed) && settings.process.kubernetes_service_host.is_some() {
        // The kubelet would start an ended container again, and that agent would take the successor's place.
        tracing::info!("waiting for the end of this pod");
        let _or_too_long = tokio::time::timeout(OUTLIVED, terminate.recv()).await;
    }
    essential.scope.cut();
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a traffic worker had panicked");
        }
    }
    result
}

/// What readiness waits for until everything has been started, by the reference's names.
struct Starting(Vec<Pending>);

impl Starting {
    fn new(settings: &Settings, readiness: &Readiness) -> Self {
        let dns = settings.control_plane.dns_capture().then_some("dns proxy");
        Self(std::iter::once("proxy").chain(dns).map(|name| readiness.pending(name)).collect())
    }

    fn done(self) {
        self.0.into_iter().for_each(Pending::ready);
    }
}

fn tell_limits(shared: &Shared) {
    let metrics = shared.telemetry.metrics();
    metrics.budget_limit("memory", shared.budget.limit());
    shared.pod_limits.named().iter().for_each(|(name, limit)| metrics.budget_limit(name, *limit));
}

async fn drain(traffic: &Scope, deadline: Duration) {
    tracing::info!(?deadline, "draining");
    let cut = traffic.shut_down(deadline).await;
    tracing::info!(tasks_cut = cut, "drained");
}

/// What is done once the mesh is known: the pods are served.
fn work(
    settings: &Settings,
    (role, shared, workers): (Role, &Arc<Shared>, &Workers),
    (readiness, traffic, enrolling): (&Readiness, &Scope, &Scope),
    (inheritance, to_answer): (Option<Inheritance>, mpsc::Receiver<Ask>),
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    if !settings.process.enable_proxy {
        return Box::pin(follow(Arc::clone(shared), readiness));
    }
    let dialer = enrolment(settings, role, shared, (readiness, enrolling));
    let options = pods_options(settings, shared, dialer);
    let scopes = (readiness.clone(), traffic.clone());
    let pods = Pods::new(Arc::clone(shared), workers.clone(), options, scopes, inheritance);
    Box::pin(pods.run(to_answer))
}

/// In the place of the pods, where none is to be served: ready with the first state.
fn follow(shared: Arc<Shared>, readiness: &Readiness) -> impl Future<Output = ()> + Send + use<> {
    tracing::warn!(
        "ENABLE_PROXY=false: no pod is served; traffic of captured pods is another agent's business"
    );
    let first_state = readiness.pending("state manager");
    async move {
        if shared.state.changed().wait_for(|revision| *revision > 0).await.is_ok() {
            first_state.ready();
        }
    }
}

/// Where the proxy side finds the agent that names its pods; in one process that is a task.
fn enrolment(
    settings: &Settings,
    role: Role,
    shared: &Arc<Shared>,
    (readiness, enrolling): (&Readiness, &Scope),
) -> Dialer {
    if role == Role::Proxy {
        return Dialer::Path(settings.enrolment.zds_socket.clone());
    }
    let (dialer, peers) = Peers::local();
    let Settings { capture, enrolment, lifecycle, .. } = settings;
    let dns = shared.dns.as_ref().and_then(Dns::port);
    let options = EnrollOptions::of(capture, enrolment, lifecycle, dns);
    let metrics = Arc::clone(shared.telemetry.metrics());
    let about = (readiness.clone(), enrolling.clone());
    enrolling.spawn(Enroll::new(options, Arc::clone(&shared.state), metrics, about, peers).run());
    Dialer::Local(dialer)
}

fn pods_options(settings: &Settings, shared: &Shared, dialer: Dialer) -> PodsOptions {
    PodsOptions {
        dialer,
        listen: ListenSettings {
            ipv6: settings.capture.ipv6,
            mark: settings.capture.packet_mark,
            original_source: settings.capture.original_source,
            keepalive: shared.keepalive,
            port_reuse: settings.capture.port_reuse,
        },
        own: settings.control_plane.own_pod(),
        node: settings.source.node.clone(),
        cluster: kube_settings(settings).cluster.to_string(),
        grace: settings.lifecycle.deadline(),
    }
}

/// The change of places between two agents, from this one's side.
struct HandOver {
    path: Option<PathBuf>,
    heir: Option<Heir>,
    released: watch::Sender<bool>,
}

impl HandOver {
    /// Takes what the agent that runs already has, if one does.
    async fn begin(settings: &Settings, role: Role) -> Result<(Self, PageSockets), AppError> {
        let path = settings.successor_socket(role)?;
        let claimed = match &path {
            Some(path) => successor::claim(path)
                .await
                .map_err(|source| AppError::HandOver { path: path.clone(), source })?,
            None => None,
        };
        let (heir, inheritance) = claimed.unzip();
        let (released, is_released) = watch::channel(false);
        let sockets = PageSockets::new(settings.capture.ipv6, inheritance, is_released);
        Ok((Self { path, heir, released }, sockets))
    }

    /// Takes the predecessor's place when this agent is ready, then waits for a successor, who is told of by the answer.
    fn start(
        self,
        (asks, pages): (mpsc::Sender<Ask>, Vec<(String, OwnedFd)>),
        readiness: &Readiness,
        scope: &Scope,
        traffic: &Scope,
    ) -> mpsc::Receiver<()> {
        let (superseded, is_superseded) = mpsc::channel(1);
        let Self { path, heir, released } = self;
        let (readiness, traffic) = (readiness.clone(), traffic.clone());
        let pending = heir.is_some().then(|| readiness.pending(successor::PENDING));
        scope.spawn(async move {
            if let (Some(heir), Some(pending)) = (heir, pending) {
                heir.run(asks.clone(), readiness, pending, released).await;
            }
            if let Some(path) = path {
                Estate { path, pages, asks, superseded, traffic }.run().await;
            }
        });
        is_superseded
    }
}

/// The admin pages listen on every address of `--admin-addr` that this machine has.
fn admin_sockets(settings: &Settings, sockets: &mut PageSockets) -> Result<Vec<PageSocket>, AppError> {
    let mut opened = Vec::new();
    for addr in &settings.process.admin_addr {
        // A machine without IPv6 has no ::1.
        if addr.is_ipv6() && !opened.is_empty() {
            opened.extend(sockets.open_if_there("admin", *addr)?);
        } else {
            opened.push(sockets.open("admin", *addr)?);
        }
    }
    Ok(opened)
}

fn spawn_pages(
    (stats, metrics): (PageSocket, Arc<Metrics>),
    (ready, readiness): (PageSocket, Readiness),
    essential: &Essential,
    pages: &Scope,
) {
    let scope = pages.clone();
    essential.spawn("the metrics page", async move {
        if let Ok(stats) = stats.open().await {
            serve_stats(stats, metrics, &scope).await;
        }
    });
    let scope = pages.clone();
    essential.spawn("the readiness page", async move {
        if let Ok(ready) = ready.open().await {
            serve_readiness(ready, readiness, &scope).await;
        }
    });
}

fn spawn_admin(
    settings: &Settings,
    (shared, workers): (&Arc<Shared>, &Workers),
    sockets: Vec<PageSocket>,
    (essential, pages, stop): (&Essential, &Scope, Stop),
) {
    let deadline = settings.lifecycle.deadline();
    let routes = admin::routes(shared, workers, &AdminSettings::new(settings), &stop);
    for socket in sockets {
        let (routes, scope) = (Arc::clone(&routes), pages.clone());
        essential.spawn("the admin pages", async move {
            if let Ok(listener) = socket.open().await {
                serve_admin(listener, routes, deadline, &scope).await;
            }
        });
    }
}

/// What a confined proxy cannot look up itself is looked up by a process that is started before.
fn dns_helper(settings: &Settings, role: Role) -> std::io::Result<Option<Helper>> {
    let is_needed =
        role == Role::Proxy && settings.lifecycle.syscall_filter && settings.control_plane.dns_capture();
    is_needed.then(Helper::start).transpose()
}

fn dns(settings: &Settings, helper: std::io::Result<Option<Helper>>, scope: &Scope) -> Option<Dns> {
    let control_plane = &settings.control_plane;
    if !control_plane.dns_capture() {
        return None;
    }
    let origins = match helper {
        Ok(None) => Origins::Direct,
        Ok(Some(helper)) => helper.run(scope),
        Err(error) => {
            tracing::warn!(%error, "no second process: where pods send DNS queries cannot be looked up");
            Origins::Unknown
        }
    };
    let preferred = control_plane.prefered_service_namespace.as_deref().filter(|ns| !ns.is_empty());
    let naming = Naming {
        domain: settings.source.cluster_domain.trim_end_matches('.').to_ascii_lowercase().into(),
        preferred_namespace: preferred.map(Into::into),
        ipv6: settings.capture.ipv6,
    };
    Some(Dns::new(naming, control_plane.dns_proxy_addr, origins))
}

fn shared(
    settings: &Settings,
    telemetry: Arc<Telemetry>,
    (dns, on_demand): (Option<Dns>, Option<OnDemand>),
) -> Result<Arc<Shared>, AppError> {
    let (identity, tunnel) = (&settings.identity, &settings.tunnel);
    Ok(Arc::new(Shared {
        state: State::with(settings.no_downgrade()),
        on_demand,
        certs: authority::certificates(settings)?,
        certificate_wait: identity.certificate_wait,
        telemetry,
        served: Served::default(),
        budget: Budget::new(settings.memory_budget()),
        pod_limits: settings.pod_limits(),
        http2: settings.http2(),
        limits: settings.limits(),
        hurried: settings.limits().hurried(),
        hold: tunnel.hold_timeout,
        mark: settings.capture.packet_mark,
        keepalive: tunnel.keepalive.then_some(Keepalive {
            time: tunnel.keepalive_time,
            interval: tunnel.keepalive_interval,
            retries: tunnel.keepalive_retries,
            user_timeout: tunnel.user_timeout,
        }),
        response_baggage: tunnel.response_baggage,
        localhost_app_tunnel: settings.control_plane.localhost_app_tunnel,
        policy_info_logging: settings.process.policy_info_logging,
        dns,
        resolver: Resolver::new(settings.capture.packet_mark),
        is_succeeded: AtomicBool::new(false),
        unsteered: watch::Sender::new(()),
    }))
}

/// Removes the capture rules of this node's pods.
pub(crate) fn release(settings: &Settings) -> Result<(), AppError> {
    let loaded = file::load(&settings.source.config, &kube_settings(settings)).map_err(AppError::Config)?;
    let problems = enroll::release_all(&loaded.model.pods);
    if !problems.is_empty() {
        return Err(AppError::Release(problems));
    }
    for pod in &loaded.model.pods {
        writeln!(std::io::stdout(), "{}/{}: capture rules removed", pod.namespace, pod.name)?;
    }
    Ok(())
}

/// A listener in the agent's own namespace; without IPv6 an address that stands for all stands for those of IPv4.
pub(crate) async fn listener(
    ipv6: bool,
    addr: SocketAddr,
    what: &'static str,
) -> Result<TcpListener, AppError> {
    let any_v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port());
    let addr = if !ipv6 && addr.is_ipv6() { any_v4 } else { addr };
    match TcpListener::bind(addr).await {
        Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) && addr.ip().is_unspecified() => {
            TcpListener::bind(any_v4).await.map_err(|source| AppError::Listen { addr: any_v4, what, source })
        }
        bound => bound.map_err(|source| AppError::Listen { addr, what, source }),
    }
}

pub(crate) fn kube_settings(settings: &Settings) -> kube::Settings {
    translation(&settings.source, &settings.capture, &settings.identity.trust_domain)
}

/// What the translation of documents needs to know of the settings.
pub(crate) fn translation(source: &Source, capture: &Capture, trust_domain: &str) -> kube::Settings {
    let dedicated = capture.workload.as_ref().filter(|_| capture.mode == Mode::Dedicated);
    kube::Settings {
        cluster: source.cluster_id().into(),
        trust_domain: trust_domain.into(),
        cluster_domain: source.cluster_domain.as_str().into(),
        root_namespace: source.root_namespace.as_str().into(),
        network: source.network.as_str().into(),
        node: source.node.as_deref().map(Into::into),
        policy_strict: source.policy_strict,
        service_range: source.service_range.clone(),
        excluded_namespaces: source.exclude_namespaces.iter().map(|ns| ns.as_str().into()).collect(),
        netns_overrides: capture.netns_overrides(),
        dedicated: dedicated.map(|w| kube::Dedicated {
            namespace: w.namespace.as_str().into(),
            name: w.name.as_str().into(),
            service_account: w.service_account.as_str().into(),
        }),
        ..kube::Settings::default()
    }
}

/// A node's connections need more descriptors than the usual soft limit.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
