//! Where the state comes from: a directory of YAML, a discovery server, or a file in the reference's form.

use std::future::Future;
use std::sync::Arc;

use culvert_common::admin::Readiness;
use culvert_common::grpc;
use culvert_common::model::Model;
use culvert_common::source::file::{self, FileSource, ReloadOutcome};
use culvert_common::source::kept::Kept;
use culvert_common::source::local::{self, LocalError, LocalSource};
use culvert_common::task::Essential;
use culvert_common::telemetry::Metrics;
use culvert_common::xds::client::{self, Client};
use culvert_common::xds::on_demand::{Asks, OnDemand};
use culvert_common::xds::proto::discovery::Node;
use culvert_common::xds::translate::Options;
use tokio::sync::watch;

use crate::app::{AppError, kube_settings};
use crate::settings::control_plane::Server;
use crate::settings::{Discovery, Settings};
use crate::shared::Shared;

/// Readiness waits under this name, as with the reference.
const PENDING: &str = "state manager";
/// Bytes that a discovery server may send ahead of what was read.
const WINDOW: u32 = 1 << 20;

/// A source that has been looked at, and not yet published anything.
pub(crate) enum Origin {
    Directory(Box<FileSource>),
    Xds(Box<client::Settings>, OnDemand, Asks),
    Local(Box<LocalSource>),
    Text(Box<Model>),
}

impl Origin {
    /// What is wrong at the start ends the agent with all problems; what is wrong later changes nothing.
    pub(crate) fn open(settings: &Settings) -> Result<Self, AppError> {
        let network = &settings.source.network;
        match settings.discovery() {
            Discovery::Directory(dir) => {
                let kept = settings.control_plane.state_dir(&settings.enrolment.zds_socket).map(Kept::new);
                let source = FileSource::open_keeping(dir, kube_settings(settings), kept);
                let source = source.map_err(AppError::Config)?;
                Ok(Self::Directory(Box::new(source)))
            }
            Discovery::Xds(server) => {
                let (on_demand, asks) = OnDemand::new();
                Ok(Self::Xds(Box::new(xds_settings(settings, &server)), on_demand, asks))
            }
            Discovery::LocalFile(path) => {
                Ok(Self::Local(Box::new(LocalSource::open(path, network).map_err(AppError::Local)?)))
            }
            Discovery::LocalText(text) => {
                let model = local::translate("LOCAL_XDS", &text, network);
                Ok(Self::Text(Box::new(model.map_err(|all| AppError::Local(LocalError::Problems(all)))?)))
            }
        }
    }

    /// Where to ask for what is not known; none if everything is.
    pub(crate) fn on_demand(&self) -> Option<OnDemand> {
        match self {
            Self::Xds(settings, on_demand, _) if settings.scope == client::Scope::OnDemand => {
                Some(on_demand.clone())
            }
            Self::Xds(..) | Self::Directory(_) | Self::Local(_) | Self::Text(_) => None,
        }
    }

    /// Starts publishing; the answer turns true once pods can be decided about.
    pub(crate) fn start(
        self,
        shared: &Arc<Shared>,
        essential: &Essential,
        readiness: &Readiness,
    ) -> watch::Receiver<bool> {
        let metrics = shared.telemetry.metrics();
        match self {
            Self::Directory(source) => {
                let watch = file::watch(*source, Arc::clone(&shared.state), publish(Arc::clone(metrics)));
                essential.spawn("the configuration watch", watch);
                watch::channel(true).1
            }
            Self::Local(source) => {
                let watch = local::watch(*source, Arc::clone(&shared.state), publish(Arc::clone(metrics)));
                essential.spawn("the local file's watch", watch);
                watch::channel(true).1
            }
            Self::Text(model) => {
                metrics.config_loaded(shared.state.publish(*model), 0);
                watch::channel(true).1
            }
            Self::Xds(settings, _, asks) => {
                let publish_to = (Arc::clone(&shared.state), Arc::clone(metrics));
                let (client, synced) = Client::new(*settings, asks, publish_to);
                essential.spawn("the discovery client", client.run());
                let (pending, is_synced) = (readiness.pending(PENDING), synced.clone());
                essential.scope.spawn(once_synced(is_synced, async move { pending.ready() }));
                synced
            }
        }
    }

    /// For the log.
    pub(crate) fn describe(settings: &Settings) -> String {
        match settings.discovery() {
            Discovery::Directory(dir) | Discovery::LocalFile(dir) => dir.display().to_string(),
            Discovery::Xds(server) => server.address.to_string(),
            Discovery::LocalText(_) => "LOCAL_XDS".to_owned(),
        }
    }
}

/// Does `work` once pods can be decided about, if that is ever so.
pub(crate) async fn once_synced(mut synced: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    if synced.wait_for(|synced| *synced).await.is_ok() {
        work.await;
    }
}

fn xds_settings(settings: &Settings, server: &Server) -> client::Settings {
    let (control_plane, source) = (&settings.control_plane, &settings.source);
    let size = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
    let options =
        Options { network: source.network.as_str().into(), bytes_max: size(control_plane.xds_state_max) };
    let metadata = control_plane.node_metadata(source.node.as_deref());
    // Another cluster, network or node has other workloads; another trust domain other identities.
    let owner = format!(
        "cluster={} network={} trust={} node={}",
        source.cluster_id(),
        source.network,
        settings.identity.trust_domain,
        source.node.as_deref().unwrap_or_default()
    );
    let kept = control_plane.state_dir(&settings.enrolment.zds_socket).map(|dir| (dir, owner));
    client::Settings {
        target: server.target(source.cluster_id()),
        limits: grpc::Limits {
            message_max: size(control_plane.xds_message_max),
            window: WINDOW,
            ..grpc::Limits::default()
        },
        node: Node { id: control_plane.node_id(), cluster: String::new(), metadata: Some(metadata.into()) },
        options,
        scope: if control_plane.xds_on_demand { client::Scope::OnDemand } else { client::Scope::Everything },
        kept,
    }
}

/// Tells the metrics of each reload.
pub(crate) fn publish(metrics: Arc<Metrics>) -> impl Fn(ReloadOutcome) + Send + Sync + use<> {
    move |outcome| match outcome {
        ReloadOutcome::Published { revision, .. } => metrics.config_loaded(revision, 0),
        ReloadOutcome::Refused { problems } => metrics.config_refused(problems),
    }
}
