//! Who signs the certificates of this node's workloads, as the settings say.

use std::sync::Arc;

use culvert_common::grpc::{self, Secret, Target};
use culvert_common::identity::{Ca, Certs, EmbeddedCa, EmbeddedOptions, IstioCa, IstioOptions};
use culvert_common::types::SystemClock;
use http::{HeaderName, HeaderValue};

use crate::app::AppError;
use crate::settings::control_plane::{Roots, Server, Token};
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
                target: target(&server, settings.source.cluster_id()),
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

/// A server of the control plane, as it is connected to. Each call names the cluster `cluster`.
pub(crate) fn target(server: &Server, cluster: &str) -> Target {
    // An id that is no header value was never known to the server either.
    let cluster = HeaderValue::from_str(cluster).ok();
    let cluster = cluster.map(|id| (HeaderName::from_static("clusterid"), id));
    Target {
        address: server.address.clone(),
        roots: match &server.roots {
            Roots::File(path) => grpc::Roots::File(path.clone()),
            Roots::Pem(text) => grpc::Roots::Pem(text.clone()),
            Roots::System => grpc::Roots::System,
        },
        alternative_host: server.alternative_host.clone(),
        token: server.token.as_ref().map(|token| match token {
            Token::File(path) => grpc::Token::File(path.clone()),
            Token::Literal(text) => grpc::Token::Literal(Secret::new(text.clone())),
        }),
        headers: server.headers.iter().cloned().chain(cluster).collect(),
    }
}
