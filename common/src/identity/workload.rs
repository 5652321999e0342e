//! One certificate of a local workload, with the TLS settings built from it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use crate::types::Clock;
use crate::types::SpiffeId;

use super::acceptance::Acceptance;
use super::ca::{CaError, Issued};
use super::describe::{Described, describe};
use super::peer;
use super::tls::{self, Own, Role};
use super::trust::Trust;

/// Sets of expected servers whose settings are kept; beyond, all are built anew.
const CLIENT_CONFIGS_MAX: usize = 1024;

/// A certificate that a local workload can use, as a server and as a client.
pub struct WorkloadCert {
    /// Identity that it proves.
    pub identity: SpiffeId,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity; connections made with it should be drained by then.
    pub not_after: SystemTime,
    own: Arc<Own>,
    trust: Arc<Trust>,
    server: Arc<ServerConfig>,
    clients: Mutex<HashMap<Arc<[SpiffeId]>, Arc<ClientConfig>>>,
}

impl WorkloadCert {
    /// Checks what an authority answered for `id` and builds the settings.
    ///
    /// **Errors**: the certificate is not of `id` alone, not valid now, does not lead to the roots that came with
    /// it, or does not belong to its key: better seen here than by every peer.
    pub(super) fn new(
        id: &SpiffeId,
        issued: &Issued,
        clock: Arc<dyn Clock>,
        accepts: &Acceptance,
    ) -> Result<Self, CaError> {
        let unusable = |seen: String| CaError::Unusable { id: id.clone(), seen };
        let (leaf, intermediates) =
            issued.chain.split_first().ok_or_else(|| unusable("no certificate".to_owned()))?;
        let wrong = |source| CaError::WrongIdentity { wanted: id.clone(), source };
        for role in [Role::Client, Role::Server] {
            let got = peer::identity_for(leaf, role).map_err(wrong)?;
            if got != *id {
                return Err(wrong(tls::PeerIdentityError::Unexpected { got, want: Arc::from([id.clone()]) }));
            }
        }
        let (not_before, not_after) = peer::validity(leaf).map_err(wrong)?;
        let now = clock.now();
        if now < not_before || now >= not_after {
            return Err(CaError::NotValidNow { id: id.clone() });
        }
        let accepts = accepts.clone();
        let lists = accepts.revocation.clone();
        let trust =
            Trust::new((&issued.roots, lists), leaf, intermediates, tls::unix(now)).map_err(unusable)?;
        let key = CertifiedKey::from_der(issued.chain.clone(), issued.key.expose(), &tls::provider())
            .map_err(|error| unusable(error.to_string()))?;
        let (trust_domain, roots) = (id.trust_domain().into(), Arc::clone(trust.roots()));
        let own = Arc::new(Own { trust_domain, key: Arc::new(key), roots, clock, accepts });
        let server = tls::server_config(&own).map_err(|error| unusable(error.to_string()))?;
        // Also proves that client settings can be built at all: later ones differ in the expected set only.
        tls::client_config(&own, Arc::from([])).map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            identity: id.clone(),
            not_before,
            not_after,
            own,
            trust: Arc::new(trust),
            server: Arc::new(server),
            clients: Mutex::default(),
        })
    }

    /// Settings to accept HBONE as this identity: a client certificate of the same trust domain is required.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// Settings to open HBONE as this identity to a server that must prove one of `expected`.
    ///
    /// **Shape**: order and repetition do not matter; with an empty set every server is refused. The settings of
    /// up to 1,024 sets are kept, so that many tunnels share them.
    pub fn client_config(&self, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(expected) {
            return config.clone();
        }
        let mut set = expected.to_vec();
        set.sort_unstable();
        set.dedup();
        let set: Arc<[SpiffeId]> = set.into();
        if let Some(config) = clients.get(&set) {
            return config.clone();
        }
        #[expect(clippy::expect_used, reason = "the same call succeeded when the certificate was taken over")]
        let config =
            Arc::new(tls::client_config(&self.own, set.clone()).expect("settings were built before"));
        if clients.len() >= CLIENT_CONFIGS_MAX {
            clients.clear();
        }
        clients.insert(set, config.clone());
        config
    }

    /// What can be shown of it and the certificates above it, its own first.
    pub fn chain(&self) -> Vec<Described> {
        self.own.key.cert.iter().filter_map(describe).collect()
    }

    /// What can be shown of the roots that it was issued with.
    pub fn roots(&self) -> Vec<Described> {
        self.trust.bundle().iter().filter_map(describe).collect()
    }

    /// The roots by which peers are verified, and the one that has signed this certificate.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Whether it may still be used at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.not_after
    }
}

impl fmt::Debug for WorkloadCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCert")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::fixtures::{Pki, shop};

    #[test]
    fn client_settings_are_shared_by_set_and_bounded() {
        let ours = Pki::new("root").workload(&shop("a"));
        let (x, y) = (shop("x"), shop("y"));
        let first = ours.client_config(&[x.clone(), y.clone()]);
        assert!(Arc::ptr_eq(&first, &ours.client_config(&[x.clone(), y.clone()])));
        assert!(Arc::ptr_eq(&first, &ours.client_config(&[y.clone(), x.clone(), y])));
        assert!(!Arc::ptr_eq(&first, &ours.client_config(&[x])));
        for i in 0..CLIENT_CONFIGS_MAX + 10 {
            ours.client_config(&[shop(&format!("n{i}"))]);
        }
        assert!(ours.clients.lock().unwrap().len() <= CLIENT_CONFIGS_MAX);
    }
}
