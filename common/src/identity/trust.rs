//! Whom a certificate trusts, and by whom it is trusted: what tells whether a tunnel should live on when roots change.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::crl::Revocation;
use super::peer::{self, Role};
use super::tls;

/// The roots that came with a certificate, and the one among them that it leads to.
pub struct Trust {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    revocation: Option<Arc<Revocation>>,
    /// What `roots` was made of, sorted.
    bundle: Vec<CertificateDer<'static>>,
    signer: CertificateDer<'static>,
}

/// The certificate that a peer has proven itself with, and its intermediates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(Arc<[CertificateDer<'static>]>);

impl Chain {
    /// As a TLS session has it.
    pub fn of(certificates: Option<&[CertificateDer<'static>]>) -> Self {
        Self(certificates.unwrap_or_default().into())
    }

    /// Whether there is nothing to verify.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a peer that was verified before is trusted no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// Its chain leads to no root that is trusted now.
    Roots(String),
    /// It, or one above it, was revoked; or nobody can say.
    Revoked(String),
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Roots(cause) | Self::Revoked(cause) => f.write_str(cause),
        }
    }
}

impl Trust {
    /// Trust in `roots` of whoever has the certificate `leaf`.
    ///
    /// **Errors**: no root can be read, or `leaf` leads to none of them.
    pub(super) fn new(
        (roots, revocation): (&[CertificateDer<'static>], Option<Arc<Revocation>>),
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Self, String> {
        let mut bundle = roots.to_vec();
        bundle.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        bundle.dedup();
        let (store, read) = store(&bundle);
        if read == 0 {
            return Err("no root certificate that can be read".to_owned());
        }
        tls::verify_chain(leaf, intermediates, &store, now).map_err(|error| error.to_string())?;
        let leads = |root: &&CertificateDer<'static>| {
            let (alone, _) = self::store(std::slice::from_ref(*root));
            tls::verify_chain(leaf, intermediates, &alone, now).is_ok()
        };
        let signer = bundle.iter().find(leads).cloned().ok_or("it leads to no single root")?;
        let roots = Arc::new(store);
        let clients = tls::client_chains(&roots).map_err(|error| error.to_string())?;
        Ok(Self { roots, clients, revocation, bundle, signer })
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    /// The roots, in no particular order.
    pub(super) fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// Whether a certificate of the same issuer would be signed by the same root.
    pub fn has_signer_of(&self, other: &Self) -> bool {
        self.signer == other.signer
    }

    /// Whether a peer that was verified before would still lead to one of these roots, and was not revoked. Its expiry does not count: a peer
    /// whose certificate has expired keeps what it has open, and opens nothing new.
    ///
    /// **Errors**: for the log, why not.
    pub fn verify(&self, chain: &Chain, role: Role) -> Result<(), Distrust> {
        let (leaf, intermediates) =
            chain.0.split_first().ok_or_else(|| Distrust::Roots("there is no certificate".to_owned()))?;
        let (_, end) = peer::validity(leaf).map_err(|error| Distrust::Roots(error.to_string()))?;
        let while_valid = tls::unix(end.checked_sub(Duration::from_secs(1)).unwrap_or(end));
        match role {
            Role::Server => tls::verify_chain(leaf, intermediates, &self.roots, while_valid),
            Role::Client => self.clients.verify_client_cert(leaf, intermediates, while_valid).map(drop),
        }
        .map_err(|error| Distrust::Roots(error.to_string()))?;
        match &self.revocation {
            Some(lists) => lists
                .check((leaf, intermediates), &self.roots, while_valid, role)
                .map_err(|error| Distrust::Revoked(error.to_string())),
            None => Ok(()),
        }
    }
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.signer == other.signer && self.bundle == other.bundle
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("roots", &self.bundle.len()).finish_non_exhaustive()
    }
}

fn store(roots: &[CertificateDer<'static>]) -> (RootCertStore, usize) {
    let mut store = RootCertStore::empty();
    let (read, _unreadable) = store.add_parsable_certificates(roots.iter().cloned());
    (store, read)
}
