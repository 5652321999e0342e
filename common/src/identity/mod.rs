//! Who a workload is, and how it proves it: certificates of the local workloads and checks of the peers'.
//!
//! - `ca`: where certificates come from. `embedded`: roots kept in a local directory (`root_dir`). `istio`: a server
//!   that speaks Istio's certificate protocol (`messages`).
//! - `certs`: one certificate per local identity, issued ahead and renewed early. `schedule` decides what is
//!   issued when and does no I/O; start reading there.
//! - `acceptance`: trust domains that are one mesh; `crl`: revocation lists.
//! - `trust`: the roots that came with a certificate, to look at tunnels again when they change.
//! - `workload`: one certificate with the TLS settings built from it.
//! - `describe`: what admin pages show of a certificate.
//! - `tls`: versions, suites, groups and the verifiers. `peer`: the identity inside a peer's certificate.
//!
//! - `service`: Istio's certificate service, for node proxies of others in a benchmark.
//!
//! Nothing here knows pods or policies: callers bring an identity and get TLS settings, or bring a peer's certificate
//! and get an identity. Private keys leave this folder by [`Issued::key_pem`] alone, which no agent calls, and only the
//! embedded root's is ever written to disk here.

pub mod acceptance;
pub mod ca;
pub mod certs;
pub mod crl;
pub mod embedded;
pub mod istio;
pub mod tls;

mod describe;
mod messages;
mod peer;
mod root_dir;
mod schedule;
mod service;
mod trust;
mod workload;

#[cfg(test)]
pub(crate) mod fixtures;

pub use acceptance::Acceptance;
pub use ca::{Ca, CaError, Issued};
pub use certs::{CertState, CertStatus, Certs, IdentityError, WorkloadCert};
pub use crl::{Revocation, RevocationStatus};
pub use describe::Described;
pub use embedded::{EmbeddedCa, EmbeddedOptions};
pub use istio::{IstioCa, IstioOptions};
pub use peer::Role;
pub use service::CertificateService;
pub use tls::{PeerCertificate, PeerIdentityError, peer_certificate, peer_identity};
pub use trust::{Chain, Distrust, Trust};
