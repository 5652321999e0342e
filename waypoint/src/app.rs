//! Wiring: the order of start, of drain, and what ends the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use culvert_common::admin::{Pending, Readiness, serve_admin, serve_readiness, serve_stats};
use culvert_common::hbone::budget::Budget;
use culvert_common::identity::{Acceptance, Ca, CaError, Certs, EmbeddedCa, EmbeddedOptions};
use culvert_common::net::socket::{ListenOptions, listen};
use culvert_common::source::file::{self, FileSource, LoadError, ReloadOutcome};
use culvert_common::state::State;
use culvert_common::task::{Essential, Scope};
use culvert_common::telemetry::{self, Logger, LoggingError, Metrics, Spans, Telemetry};
use culvert_common::types::SystemClock;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::admin;
use crate::current::{Current, Kept};
use crate::names::Names;
use crate::settings::Settings;
use crate::shared::Shared;
use crate::worker::Workers;

/// Limit for the log's last lines.
const FLUSH: Duration = Duration::from_secs(2);
/// Pause after a failed accept: out of descriptors, the next one would fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Longest that an admin page takes.
const PAGE_MAX: Duration = Duration::from_secs(1);
/// Pause before the waypoint looks again for its configuration, or asks again for its certificate.
const CERTIFICATE_PAUSE: Duration = Duration::from_millis(100);

/// Why the waypoint does not run, or does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("{0}")]
    Config(LoadError),
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
    #[error("{0} has ended; see the log for why")]
    Ended(&'static str),
}

impl AppError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Logging(_) => 64,
            Self::Ca(_) | Self::Listen { .. } | Self::Start(_) | Self::Ended(_) => 1,
        }
    }
}

/// Runs the waypoint until it is asked to stop.
pub(crate) fn run(settings: &Settings) -> Result<(), AppError> {
    let logger = telemetry::init(settings.log_format, &settings.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(waypoint(settings, &logger));
    logger.flush(FLUSH);
    // A question to a name server that does not answer is not waited for.
    runtime.shutdown_background();
    result
}

async fn waypoint(settings: &Settings, logger: &Logger) -> Result<(), AppError> {
    let readiness = Readiness::new();
    let metrics = Metrics::of_waypoint(env!("CARGO_PKG_VERSION"));
    let telemetry = Telemetry::of_waypoint(Arc::clone(&metrics), logger.clone());
    let source =
        FileSource::open(settings.config.clone(), settings.translation()).map_err(AppError::Config)?;
    let hbone = bound(settings.hbone_addr, "tunnels")?;
    let stats = bound(settings.stats_addr, "metrics")?;
    let ready = bound(settings.ready_addr, "readiness")?;
    let admin = bound(settings.admin_addr, "admin pages")?;
    let (traffic, mut essential) = (Scope::new(), Essential::default());
    let pages = essential.scope.clone();
    let opened = source.opened().and_then(|model| model.waypoint.as_ref());
    let gateway = opened.map(|waypoint| waypoint.gateway.to_string()).unwrap_or_default();
    let shared = shared(settings, &telemetry)?;
    let (workers, threads) = Workers::start(settings.workers(), &shared, (&traffic, &essential))?;
    metrics.watch_tasks(&traffic);
    metrics.budget_limit("memory", shared.budget.limit());
    let (reading, certificate) = (readiness.pending("configuration"), readiness.pending("certificate"));
    let told = Arc::clone(&metrics);
    let watch = file::watch(source, Arc::clone(&shared.state), move |outcome| match outcome {
        ReloadOutcome::Published { revision, .. } => told.config_loaded(revision, 0),
        ReloadOutcome::Refused { problems } => told.config_refused(problems),
    });
    essential.spawn("the configuration watch", watch);
    let following = Arc::clone(&shared);
    let (is_read, read) = oneshot::channel();
    let follow = async move { follow(&following, (reading, is_read)).await };
    essential.spawn("what makes the configuration ready for requests", follow);
    essential.spawn("the certificate renewal", Arc::clone(&shared.certs).run());
    let scope = pages.clone();
    let for_stats = Arc::clone(&metrics);
    essential.spawn("the metrics page", async move { serve_stats(stats, for_stats, &scope).await });
    let (scope, routes) = (pages.clone(), admin::routes(&shared));
    essential.spawn("the admin pages", async move { serve_admin(admin, routes, PAGE_MAX, &scope).await });
    let (scope, is_ready) = (pages.clone(), readiness.clone());
    essential.spawn("the readiness page", async move { serve_readiness(ready, is_ready, &scope).await });
    let accepting = traffic.clone();
    let proven = Arc::clone(&shared);
    let watched = essential.watched("the listener");
    traffic.spawn(async move {
        let _until_its_end = watched;
        // Who connects before the first configuration is in force waits for it.
        let _read = read.await;
        accept(hbone, &workers, &accepting).await;
    });
    pages.spawn(async move { ready_to_prove(&proven, certificate).await });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %gateway, config = %settings.config.display(), "waypoint started");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        name = essential.ended() => Err(AppError::Ended(name)),
    };
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
    outcome
}

/// Waits until there is a certificate for the waypoint's identity.
async fn ready_to_prove(shared: &Shared, certificate: Pending) {
    loop {
        if let Some(identity) = shared.identity() {
            match shared.certs.wait(&identity, shared.certificate_wait).await {
                Ok(_) => return certificate.ready(),
                Err(error) => tracing::warn!(%identity, %error, "no certificate yet"),
            }
        }
        tokio::time::sleep(CERTIFICATE_PAUSE).await;
    }
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

fn shared(settings: &Settings, telemetry: &Arc<Telemetry>) -> Result<Arc<Shared>, AppError> {
    let options = EmbeddedOptions::new(&settings.trust_domain);
    let ca = Ca::Embedded(EmbeddedCa::open_or_create(&settings.ca_dir, options)?);
    let aliases = settings.trust_domain_aliases.iter().map(|domain| domain.as_str().into()).collect();
    let acceptance = Acceptance { aliases, ..Acceptance::default() };
    let certs = Certs::accepting(ca, Arc::new(SystemClock), acceptance);
    let [from_clients, to_endpoints] = settings.http2();
    Ok(Arc::new(Shared {
        state: State::new(),
        current: ArcSwap::default(),
        certs,
        metrics: Arc::clone(telemetry.metrics()),
        telemetry: Arc::clone(telemetry),
        access_log: settings.access_log.form(),
        trace_sampling: settings.trace_sampling,
        spans: Spans::default(),
        budget: Budget::new(settings.memory_budget),
        from_clients,
        to_endpoints,
        limits: settings.limits(),
        idle: settings.idle_timeout,
        last_call: settings.termination_deadline / 2,
        certificate_wait: Duration::from_secs(5),
        trusted_proxies: settings.trusted_proxies(),
        trusted_hops: settings.trusted_hops,
    }))
}

/// Makes of each revision of the state, and of other addresses of host names, what requests use.
async fn follow(shared: &Shared, reading: (Pending, oneshot::Sender<()>)) {
    let (mut revisions, mut kept, mut reading) = (shared.state.changed(), Kept::default(), Some(reading));
    let mut names = Names::new();
    loop {
        let snapshot = shared.state.snapshot();
        names.follow(&snapshot);
        if let Some(waypoint) = snapshot.waypoint() {
            let waypoint = Arc::clone(waypoint);
            shared.certs.want(waypoint.identity.iter().cloned().collect());
            let next = Current::next(snapshot, waypoint, (&mut kept, &names), Instant::now());
            shared.current.store(Arc::new(next));
            if let Some((reading, is_read)) = reading.take() {
                reading.ready();
                // Nobody waits for it in a drain.
                let _draining = is_read.send(());
            }
        }
        let changed = tokio::select! {
            changed = revisions.changed() => changed.is_ok(),
            () = names.changed() => true,
        };
        if !changed {
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn opened(documents: &str) -> Result<FileSource, AppError> {
        let dir = std::env::temp_dir().join(format!("waypoint-{:032x}", culvert_common::crypto::random()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("mesh.yaml"), documents).unwrap();
        let settings = Settings::try_parse_from(["waypoint", "--config", dir.to_str().unwrap()]).unwrap();
        let opened = FileSource::open(settings.config.clone(), settings.translation());
        std::fs::remove_dir_all(&dir).unwrap();
        opened.map_err(AppError::Config)
    }

    fn document(namespace: &str, class: &str) -> String {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: waypoint, namespace: {namespace}}}\nspec:\n  gatewayClassName: {class}\n  \
             listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\n"
        )
    }

    #[test]
    fn what_cannot_be_used_at_the_start_is_told_and_ends_with_64() {
        let ours = document("shop", "culvert-waypoint");
        let source = opened(&ours).ok().unwrap();
        let waypoint = source.opened().unwrap().waypoint.clone().unwrap();
        assert_eq!(
            waypoint.identity.as_ref().unwrap().to_string(),
            "spiffe://cluster.local/ns/shop/sa/waypoint"
        );
        for (documents, said) in [
            (format!("{ours}{}", document("bank", "culvert-waypoint")), "bank/waypoint, shop/waypoint"),
            (document("shop", "other"), "there is no Gateway of a waypoint"),
            (
                "kind: Gateway\napiVersion: gateway.networking.k8s.io/v1\n".to_owned(),
                "problem(s) in the configuration",
            ),
        ] {
            let error = opened(&documents).err().unwrap();
            assert!(error.to_string().contains(said), "{error}");
            assert_eq!(error.exit_code(), 64);
        }
    }
}
