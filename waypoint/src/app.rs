//! Wiring: the order of start, of drain, and what ends the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use culvert_common::admin::{Readiness, serve_readiness, serve_stats};
use culvert_common::hbone::budget::Budget;
use culvert_common::identity::{Acceptance, Ca, CaError, Certs, EmbeddedCa, EmbeddedOptions};
use culvert_common::net::socket::{ListenOptions, listen};
use culvert_common::source::file::{self, FileSource, LoadError, ReloadOutcome};
use culvert_common::state::State;
use culvert_common::task::Scope;
use culvert_common::telemetry::{self, LogFormat, LoggingError, Metrics};
use culvert_common::types::{SpiffeId, SystemClock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::current::{Current, Kept};
use crate::settings::Settings;
use crate::shared::Shared;
use crate::worker::Workers;

/// Limit for the log's last lines.
const FLUSH: Duration = Duration::from_secs(2);
/// Pause after a failed accept: out of descriptors, the next one would fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the waypoint does not run, or does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("{0}")]
    Config(LoadError),
    #[error("{0}")]
    Gateway(String),
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(
        "cannot listen on {addr} for {what}: {source}; is another waypoint running in this network namespace?"
    )]
    Listen { addr: SocketAddr, what: &'static str, source: std::io::Error },
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

impl AppError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Gateway(_) | Self::Logging(_) => 64,
            Self::Ca(_) | Self::Listen { .. } | Self::Start(_) => 1,
        }
    }
}

/// Runs the waypoint until it is asked to stop.
pub(crate) fn run(settings: &Settings) -> Result<(), AppError> {
    let logger = telemetry::init(LogFormat::Json, &settings.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(waypoint(settings));
    logger.flush(FLUSH);
    result
}

async fn waypoint(settings: &Settings) -> Result<(), AppError> {
    let readiness = Readiness::new();
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let source =
        FileSource::open(settings.config.clone(), settings.translation()).map_err(AppError::Config)?;
    let hbone = bound(settings.hbone_addr, "tunnels")?;
    let stats = bound(settings.stats_addr, "metrics")?;
    let ready = bound(settings.ready_addr, "readiness")?;
    let (traffic, pages) = (Scope::new(), Scope::new());
    let identity = source.opened().and_then(|model| model.waypoint.as_ref()?.identity.clone());
    let shared = shared(settings, &metrics, identity)?;
    let (workers, threads) = Workers::start(settings.workers(), &shared, &traffic)?;
    metrics.watch_tasks(&traffic);
    metrics.budget_limit("memory", shared.budget.limit());
    let reading = readiness.pending("configuration");
    let told = Arc::clone(&metrics);
    pages.spawn(file::watch(source, Arc::clone(&shared.state), move |outcome| match outcome {
        ReloadOutcome::Published { revision, .. } => told.config_loaded(revision, 0),
        ReloadOutcome::Refused { problems } => told.config_refused(problems),
    }));
    let following = Arc::clone(&shared);
    pages.spawn(async move { follow(&following, reading).await });
    pages.spawn(Arc::clone(&shared.certs).run());
    let scope = pages.clone();
    let for_stats = Arc::clone(&metrics);
    pages.spawn(async move { serve_stats(stats, for_stats, &scope).await });
    let (scope, is_ready) = (pages.clone(), readiness.clone());
    pages.spawn(async move { serve_readiness(ready, is_ready, &scope).await });
    let accepting = traffic.clone();
    traffic.spawn(async move { accept(hbone, &workers, &accepting).await });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %settings.config.display(), "waypoint started");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    readiness.drain();
    let deadline = settings.termination_deadline;
    tracing::info!(?deadline, "draining");
    let cut = traffic.shut_down(deadline).await;
    tracing::info!(tasks_cut = cut, "drained");
    pages.cut();
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a traffic worker had panicked");
        }
    }
    Ok(())
}

/// A listening socket; without IPv6 an address that stands for all stands for those of IPv4.
fn bound(addr: SocketAddr, what: &'static str) -> Result<TcpListener, AppError> {
    let options = ListenOptions { nodelay: true, ..ListenOptions::default() };
    let any_v4 = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, addr.port()));
    let opened = match listen(addr, &options) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) && addr.ip().is_unspecified() => {
            listen(any_v4, &options)
        }
        opened => opened,
    };
    let opened = opened.and_then(|(listener, _)| TcpListener::from_std(listener));
    opened.map_err(|source| AppError::Listen { addr, what, source })
}

/// Whom the waypoint is, and what it shares.
fn shared(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    identity: Option<SpiffeId>,
) -> Result<Arc<Shared>, AppError> {
    let options = EmbeddedOptions::new(&settings.trust_domain);
    let ca = Ca::Embedded(EmbeddedCa::open_or_create(&settings.ca_dir, options)?);
    let identity = identity.ok_or_else(|| AppError::Gateway("nobody says whom the waypoint is".into()))?;
    let aliases = settings.trust_domain_aliases.iter().map(|domain| domain.as_str().into()).collect();
    let acceptance = Acceptance { aliases, ..Acceptance::default() };
    let certs = Certs::accepting(ca, Arc::new(SystemClock), acceptance);
    Ok(Arc::new(Shared {
        state: State::new(),
        current: ArcSwap::default(),
        certs,
        identity,
        metrics: Arc::clone(metrics),
        budget: Budget::new(settings.memory_budget),
        http2: settings.http2(),
        limits: settings.limits(),
        certificate_wait: Duration::from_secs(5),
    }))
}

/// Makes of each revision of the state what requests use.
async fn follow(shared: &Shared, reading: culvert_common::admin::Pending) {
    let (mut revisions, mut kept, mut reading) = (shared.state.changed(), Kept::default(), Some(reading));
    loop {
        let snapshot = shared.state.snapshot();
        if let Some(waypoint) = snapshot.waypoint() {
            let waypoint = Arc::clone(waypoint);
            shared.current.store(Arc::new(Current::next(snapshot, waypoint, &mut kept, Instant::now())));
            if let Some(reading) = reading.take() {
                reading.ready();
            }
        }
        if revisions.changed().await.is_err() {
            return;
        }
    }
}

/// Takes connections until the drain, each for the worker with the fewest.
async fn accept(listener: TcpListener, workers: &Workers, scope: &Scope) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = scope.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(tcp, peer)| Ok((tcp.into_std()?, peer))) {
            Ok((tcp, peer)) => {
                workers.take(tcp, SocketAddr::new(peer.ip().to_canonical(), peer.port())).await
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
