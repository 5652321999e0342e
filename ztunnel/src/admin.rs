//! The admin pages on loopback: what they are called and what they do.
//!
//! To add a page, add a [`Route`] in [`routes`]: `Route::read` for one that only tells, `Route::change` for one that is
//! asked for by POST. A handler gets the request without its body and answers with `text`, `json` or `typed`; it runs on
//! the control runtime, so it may await but must not block. Each page also gets a row in `docs/admin.md`; pages that the
//! reference node proxy does not have begin with `/culvert/`.

mod config;
mod connections;

use std::sync::Arc;
use std::time::Duration;

use culvert_common::admin::{
    Answer, DumpParts, Route, Routes, denials_page, dump, dump_certificates, logging_page, text, why_page,
};
use http::StatusCode;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::settings::{Discovery, Settings};
use crate::shared::Shared;
use crate::worker::Workers;

/// What the pages need beside what the workers share.
#[derive(Clone)]
pub(crate) struct AdminSettings {
    /// How long open connections get when the agent is asked to stop.
    deadline: Duration,
    network: Arc<str>,
    /// The settings as the dump shows them.
    config: Value,
    /// Whether all of the state comes from a local file.
    is_static: bool,
}

impl AdminSettings {
    pub(crate) fn new(settings: &Settings) -> Self {
        let network = settings.source.network.as_str().into();
        let is_static = matches!(settings.discovery(), Discovery::LocalFile(_) | Discovery::LocalText(_));
        Self { deadline: settings.lifecycle.deadline(), network, config: config::config(settings), is_static }
    }
}

/// One end of the wish to stop: the pages'.
#[derive(Clone)]
pub(crate) struct Stop {
    asked: mpsc::Sender<()>,
    drained: watch::Receiver<bool>,
}

/// The other end: the agent's.
pub(crate) struct Stopping {
    pub(crate) asked: mpsc::Receiver<()>,
    drained: watch::Sender<bool>,
}

impl Stopping {
    pub(crate) fn new() -> (Stop, Self) {
        let (ask, asked) = mpsc::channel(1);
        let (tell, drained) = watch::channel(false);
        (Stop { asked: ask, drained }, Self { asked, drained: tell })
    }

    /// The traffic has ended: whoever asked for it is answered.
    pub(crate) fn drained(&self) {
        self.drained.send_replace(true);
    }
}

/// All pages, in the order of the index.
pub(crate) fn routes(
    shared: &Arc<Shared>,
    workers: &Workers,
    settings: &AdminSettings,
    stop: &Stop,
) -> Arc<Routes> {
    let (state, own) = (Arc::clone(shared), settings.clone());
    let (all, listed) = (workers.clone(), workers.clone());
    let (stop, deadline) = (stop.clone(), settings.deadline);
    let routes = vec![
        Route::read("/config_dump", "state, settings, certificates and open connections", move |_| {
            config_dump(Arc::clone(&state), all.clone(), own.clone())
        }),
        Route::read("/culvert/connections", "open connections, with bytes and age", move |_| {
            connections::page(listed.clone())
        }),
        why_page(&shared.state, &shared.telemetry),
        denials_page(&shared.telemetry),
        logging_page(&shared.telemetry),
        Route::change("/quitquitquit", "drain and end the agent, as SIGTERM does", QUIT, move |_| {
            quit(stop.clone(), deadline)
        }),
        Route::read("/debug/pprof/profile", "CPU profile (not built in; says how)", |_| async {
            text(StatusCode::NOT_IMPLEMENTED, PROFILE)
        }),
        Route::read("/debug/pprof/heap", "heap profile (not built in; says how)", |_| async {
            text(StatusCode::INTERNAL_SERVER_ERROR, HEAP)
        }),
    ];
    Routes::new("node agent", routes, Arc::clone(shared.telemetry.metrics()))
}

const QUIT: &str = "only POST is answered here

POST /quitquitquit     open connections get their grace, then the agent ends
";

const PROFILE: &str = "no CPU profiler is built in: sampling by signals is not safe beside traffic
from the node, for 10 seconds: perf record -g -F 99 -p $(pidof ztunnel) -- sleep 10; perf report
";

const HEAP: &str = "no heap profiler is built in
from the node: heaptrack --pid $(pidof ztunnel), or compare process memory with culvert_hbone_* metrics
";

async fn config_dump(shared: Arc<Shared>, workers: Workers, settings: AdminSettings) -> Answer {
    let open = workers.connections().await;
    let snapshot = shared.state.snapshot();
    let parts = DumpParts {
        network: settings.network,
        version: config::version(),
        config: settings.config,
        is_static: settings.is_static,
        certificates: dump_certificates(&shared.certs),
        workload_state: Box::new(connections::by_pod(shared.served.list(), open)),
    };
    dump(&snapshot, parts)
}

async fn quit(mut stop: Stop, deadline: Duration) -> Answer {
    // A full channel means that it was asked before.
    let _asked_before = stop.asked.try_send(());
    // An error means that the agent is past its drain.
    let _ended = tokio::time::timeout(deadline, stop.drained.wait_for(|drained| *drained)).await;
    text(StatusCode::OK, "shutdown now\n")
}
