//! The agent's own pod: only its port for tunnels, so that what scrapes its metrics can do so over mutual TLS.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use culvert_common::net::netns::NetNs;
use culvert_common::task::Scope;
use culvert_common::zds::WorkloadInfo;

use super::listeners::{self, ListenSettings, StartError};
use super::{Pods, PodsOptions};
use crate::admission::Admission;
use crate::settings::{OriginalSource, OwnPod};
use crate::shared::{Pod, PodName, Shared};
use crate::worker::Port;

/// Stands for its UID, which nobody tells.
const UID: &str = "own";

/// Opens the port in the agent's namespace. Its pages see the agent's address, as nothing is redirected there.
fn open(
    own: &OwnPod,
    cluster: &str,
    settings: &ListenSettings,
    (shared, scope): (&Shared, &Scope),
) -> Result<(Arc<Pod>, TcpListener), StartError> {
    let netns = NetNs::current().map_err(StartError::Enter)?;
    let settings = ListenSettings { original_source: OriginalSource::False, port_reuse: false, ..*settings };
    let (listener, _) = listeners::open_one(&netns, &settings, Port::Hbone)?;
    let info = WorkloadInfo {
        name: own.name.clone(),
        namespace: own.namespace.clone(),
        service_account: own.service_account.clone(),
    };
    let pod = Pod {
        local: PodName::new(UID.into(), cluster, info),
        netns,
        spoof_source: false,
        scope: scope.child(),
        admission: Admission::new(shared.pod_limits, &shared.budget),
        is_known: AtomicBool::new(false),
        is_unsteered: AtomicBool::new(false),
        name_server: crate::dns::LastServer::default(),
    };
    Ok((Arc::new(pod), listener))
}

impl Pods {
    /// Opens the agent's own port for tunnels, where it is a pod, and tries again until it can.
    pub(super) async fn open_own(&mut self) {
        let (None, Some(own)) = (&self.own, &self.options.own) else { return };
        let PodsOptions { cluster, listen, .. } = &self.options;
        match open(own, cluster, listen, (&self.shared, &self.scope)) {
            Ok((pod, listener)) => {
                self.workers.listen(&pod, Port::Hbone, listener).await;
                tracing::info!(pod = pod.local.to_string(), "own pages can be reached over mutual TLS");
                (self.own, self.is_stale) = (Some(pod), true);
            }
            Err(error) => {
                let error = error.to_string();
                if error != self.own_error {
                    tracing::warn!("own pages cannot be reached over mutual TLS: {error}");
                    self.own_error = error;
                }
            }
        }
    }
}
