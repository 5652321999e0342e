//! A process that enrols only: `ztunnel enroll`.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_common::admin::{Readiness, serve_readiness, serve_stats};
use culvert_common::net::seqpacket::SeqPacketListener;
use culvert_common::source::file::{self, FileSource};
use culvert_common::state::State;
use culvert_common::task::Essential;
use culvert_common::telemetry::{self, Metrics};
use tokio::signal::unix::{SignalKind, signal};

use super::settings::{EnrollSettings, Page};
use super::{Enroll, EnrollOptions, Peers};
use crate::app::{AppError, FLUSH, listener, translation};
use crate::origin::publish;
use crate::sandbox::{self, Role};

/// Where every node proxy takes DNS queries.
const PROXY_DNS_PORT: u16 = 15053;

/// The socket's permissions: whoever may write to it is given the pods' namespaces.
const MODE: u32 = 0o600;

/// Enrols pods until it is asked to stop. Their rules stay.
pub(crate) fn run(settings: &EnrollSettings) -> Result<(), AppError> {
    let problems = settings.problems();
    if !problems.is_empty() {
        return Err(AppError::Settings(problems));
    }
    // Before the first thread: capabilities are a thread's own, and the log has one.
    let confined = sandbox::enter(Role::Enroll, settings.lifecycle.syscall_filter)?;
    let logger = telemetry::init(settings.lifecycle.log_format.into(), &settings.lifecycle.log)?;
    confined.log();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(enroll(settings));
    logger.flush(FLUSH);
    result
}

async fn enroll(settings: &EnrollSettings) -> Result<(), AppError> {
    // Identities are the proxy's business.
    let kube = translation(&settings.source, &settings.capture, "cluster.local");
    let source = FileSource::open(settings.source.config.clone(), kube).map_err(AppError::Config)?;
    let path = &settings.enrolment.zds_socket;
    let socket = SeqPacketListener::bind(path, MODE)
        .map_err(|source| AppError::ZdsSocket { path: path.clone(), source })?;
    let (state, readiness) = (State::new(), Readiness::new());
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let mut essential = Essential::default();
    if let Page::At(addr) = settings.process.stats_addr {
        let (page, metrics) = (bound(settings, addr, "metrics").await?, Arc::clone(&metrics));
        let scope = essential.scope.clone();
        essential.spawn("the metrics page", async move { serve_stats(page, metrics, &scope).await });
    }
    if let Page::At(addr) = settings.process.ready_addr {
        let (page, readiness) = (bound(settings, addr, "readiness").await?, readiness.clone());
        let scope = essential.scope.clone();
        essential.spawn("the readiness page", async move { serve_readiness(page, readiness, &scope).await });
    }
    let EnrollSettings { capture, enrolment, lifecycle, .. } = settings;
    let options = EnrollOptions::of(capture, enrolment, lifecycle, Some(PROXY_DNS_PORT));
    let owned = (readiness.clone(), essential.scope.clone());
    let enroll =
        Enroll::new(options, Arc::clone(&state), Arc::clone(&metrics), owned, Peers::Listener(socket));
    essential.spawn("enrolment", enroll.run());
    let watch = file::watch(source, state, publish(metrics));
    essential.spawn("the configuration watch", watch);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = settings.source.node.as_deref().unwrap_or(""),
        config = %settings.source.config.display(),
        zds_socket = %path.display(),
        "enrolment started"
    );
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        name = essential.ended() => Err(AppError::Ended(name)),
    };
    tracing::info!("enrolment ends; all capture rules stay");
    essential.scope.cut();
    result
}

async fn bound(
    settings: &EnrollSettings,
    addr: SocketAddr,
    what: &'static str,
) -> Result<tokio::net::TcpListener, AppError> {
    listener(settings.capture.ipv6, addr, what).await
}
