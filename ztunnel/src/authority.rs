//! Who signs the certificates of this node's workloads, as the settings say.

use std::sync::Arc;

use culvert_common::identity::{
    Acceptance, Ca, Certs, EmbeddedCa, EmbeddedOptions, IstioCa, IstioOptions, Revocation,
};
use culvert_common::types::SystemClock;

use crate::app::AppError;
use crate::settings::{Authority, Mode, Settings};

/// Certificates from the authority of the settings; nothing is fetched yet.
pub(crate) fn certificates(settings: &Settings) -> Result<Arc<Certs>, AppError> {
    Ok(Certs::accepting(authority(settings)?, Arc::new(SystemClock), acceptance(settings)))
}

fn acceptance(settings: &Settings) -> Acceptance {
    let control_plane = &settings.control_plane;
    let revocation = control_plane.crl_path.as_deref().filter(|path| !path.as_os_str().is_empty());
    Acceptance {
        aliases: control_plane.trust_domain_aliases.iter().map(|domain| domain.as_str().into()).collect(),
        revocation: revocation.map(|path| Arc::new(Revocation::open(path))),
    }
}

fn authority(settings: &Settings) -> Result<Ca, AppError> {
    let identity = &settings.identity;
    match settings.authority() {
        Authority::Istio(server) => {
            tracing::info!(server = %server.address, "certificates come from Istio's certificate service");
            Ok(Ca::Istio(Box::new(IstioCa::new(IstioOptions {
                target: server.target(settings.source.cluster_id()),
                ttl: identity.secret_ttl,
                // The one workload of dedicated mode is the caller itself.
                impersonates: settings.capture.mode == Mode::Shared,
            }))))
        }
        Authority::Embedded => {
            let options =
                EmbeddedOptions { ttl: identity.secret_ttl, ..EmbeddedOptions::new(&identity.trust_domain) };
            Ok(Ca::Embedded(EmbeddedCa::open_or_create(&identity.ca_dir, options)?))
        }
    }
}
