//! Who signs the certificates of this node's workloads, as the settings say.

use std::sync::Arc;

use culvert_common::identity::{Ca, Certs, EmbeddedCa, EmbeddedOptions, IstioCa, IstioOptions};
use culvert_common::types::SystemClock;

use crate::app::AppError;
use crate::settings::{Authority, Mode, Settings};

/// Certificates from the authority of the settings; nothing is fetched yet.
pub(crate) fn certificates(settings: &Settings) -> Result<Arc<Certs>, AppError> {
    Ok(Certs::new(authority(settings)?, Arc::new(SystemClock)))
}

fn authority(settings: &Settings) -> Result<Ca, AppError> {
    let identity = &settings.identity;
    match settings.authority() {
        Authority::Istio(server) => {
            tracing::info!(server = %server.address, "certificates come from Istio's certificate service");
            Ok(Ca::Istio(IstioCa::new(IstioOptions {
                target: server.target(settings.source.cluster_id()),
                ttl: identity.secret_ttl,
                // The one workload of dedicated mode is the caller itself.
                impersonates: settings.capture.mode == Mode::Shared,
            })))
        }
        Authority::Embedded => {
            let options =
                EmbeddedOptions { ttl: identity.secret_ttl, ..EmbeddedOptions::new(&identity.trust_domain) };
            Ok(Ca::Embedded(EmbeddedCa::open_or_create(&identity.ca_dir, options)?))
        }
    }
}
