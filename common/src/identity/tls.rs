//! TLS of the mesh: TLS 1.3 only, AES-GCM, hybrid key exchange preferred, both sides verified by SPIFFE identity.
//!
//! In TLS 1.3 a client finishes its handshake before the server has looked at the client's certificate. A client
//! that the server refuses therefore learns it from its first read, as an alert, not from the handshake.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DistinguishedName, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

pub use crate::crypto::provider;
use crate::crypto::verify_signatures;
use crate::telemetry::Handshake;
use crate::types::Clock;
use crate::types::SpiffeId;

use super::acceptance::Acceptance;
use super::peer::identity_for;
pub use super::peer::{PeerCertificate, PeerIdentityError, Role, peer_certificate, peer_identity};

/// Application protocol of HBONE.
pub const ALPN: &[u8] = b"h2";

/// Server name for a client connection: none is sent, so any value serves.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())
}

/// Text of a failed TLS connection for a log.
///
/// Identity errors of the verifiers in here without the type names that rustls prints around them.
pub fn explain(error: &std::io::Error) -> String {
    PeerIdentityError::from_io(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Class of a failed TLS connection for a metric.
pub fn result_of(error: &std::io::Error) -> Handshake {
    use rustls::{CertificateError as Bad, Error};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::NoCertificatesPresented) => Handshake::NoPeerCertificate,
        Some(Error::InvalidCertificate(bad)) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                Handshake::Expired
            }
            Bad::UnknownIssuer | Bad::BadSignature => Handshake::UntrustedRoot,
            Bad::BadEncoding => Handshake::BadName,
            Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => Handshake::WrongIdentity,
            Bad::Other(other) => other.0.downcast_ref().map_or(Handshake::Tls, PeerIdentityError::result),
            _ => Handshake::Tls,
        },
        Some(Error::AlertReceived(_)) => Handshake::Refused,
        Some(_) => Handshake::Tls,
        None => Handshake::Closed,
    }
}

/// What both sides' settings are built from.
pub(super) struct Own {
    pub(super) trust_domain: Arc<str>,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) accepts: Acceptance,
}

impl Own {
    /// What the peer's chain says when it leads to a root: whether it was revoked.
    fn not_revoked(
        &self,
        chain: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
        role: Role,
    ) -> Result<(), rustls::Error> {
        match &self.accepts.revocation {
            Some(lists) => Ok(lists.check(chain, &self.roots, now, role)?),
            None => Ok(()),
        }
    }
}

/// Settings of a server that requires a client of its own trust domain.
pub(super) fn server_config(own: &Arc<Own>) -> Result<ServerConfig, rustls::Error> {
    let chain = client_chains(&own.roots)?;
    let verifier = ClientVerifier { chain, own: Arc::clone(own) };
    let mut config = ServerConfig::builder_with_details(provider(), wall(own))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the verifier, and early data can be replayed.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// Settings of a client that accepts exactly the servers of `expected`; none if that is empty.
pub(super) fn client_config(
    own: &Arc<Own>,
    expected: Arc<[SpiffeId]>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = ServerVerifier { own: Arc::clone(own), expected };
    let mut config = ClientConfig::builder_with_details(provider(), wall(own))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Chains of clients to `roots`.
pub(super) fn client_chains(
    roots: &Arc<RootCertStore>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        // Without hints a client always sends its certificate, also one below another of the roots.
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// Chain of a server's leaf to `roots`, at `now`.
pub(super) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    let leaf = ParsedCertificate::try_from(leaf)?;
    verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)
}

/// Wall-clock time in TLS's form; times before 1970 count as 1970.
pub(super) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[derive(Debug)]
struct Wall(Arc<dyn Clock>);

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(self.0.now()))
    }
}

fn wall(own: &Own) -> Arc<dyn TimeProvider> {
    Arc::new(Wall(own.clock.clone()))
}

/// Verifies clients: chain, use, one identity, own trust domain.
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    own: Arc<Own>,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("trust_domain", &self.own.trust_domain).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        self.own.not_revoked((end_entity, intermediates), now, Role::Client)?;
        let got = identity_for(end_entity, Role::Client)?;
        if !self.own.accepts.is_own(&self.own.trust_domain, got.trust_domain()) {
            return Err(PeerIdentityError::TrustDomain { got, want: self.own.trust_domain.clone() }.into());
        }
        Ok(verified)
    }

    verify_signatures!();
}

/// Verifies servers: chain, use, one identity, member of the expected set. DNS and IP names say nothing here.
struct ServerVerifier {
    own: Arc<Own>,
    expected: Arc<[SpiffeId]>,
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_chain(end_entity, intermediates, &self.own.roots, now)?;
        self.own.not_revoked((end_entity, intermediates), now, Role::Server)?;
        let got = identity_for(end_entity, Role::Server)?;
        if !self.own.accepts.is_expected(&self.own.trust_domain, &got, &self.expected) {
            return Err(PeerIdentityError::Unexpected { got, want: self.expected.clone() }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}

#[cfg(test)]
mod tests;
