//! The agent's own pod: only its port for tunnels, so that what scrapes its metrics can do so over mutual TLS.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use culvert_common::net::netns::NetNs;
use culvert_common::task::Scope;
use culvert_common::zds::WorkloadInfo;

use super::listeners::{self, ListenSettings, StartError};
use crate::admission::Admission;
use crate::settings::{OriginalSource, OwnPod};
use crate::shared::{Pod, PodName, Shared};
use crate::worker::Port;

/// Stands for its UID, which nobody tells.
const UID: &str = "own";

/// Opens the port in the agent's namespace. Its pages see the agent's address, as nothing is redirected there.
pub(super) fn open(
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
    };
    Ok((Arc::new(pod), listener))
}
