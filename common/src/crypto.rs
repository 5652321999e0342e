//! The one choice of cryptography: versions of TLS aside, all that is encrypted or signed here goes through this provider.
//! And the one source of random numbers that are no secrets.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};

static POST_QUANTUM_ONLY: AtomicBool = AtomicBool::new(false);

/// Has the process speak the hybrid key exchange and no other (`COMPLIANCE_POLICY=pqc`): peers without it are refused.
///
/// To be called before anything is encrypted; later it changes nothing.
pub fn require_post_quantum() {
    POST_QUANTUM_ONLY.store(true, Ordering::Relaxed);
}

/// Cryptography of the mesh; the process-wide default of rustls is never used.
///
/// The hybrid group comes first: rustls then sends a key share for it and one for X25519, so that a peer without
/// ML-KEM answers in one round trip too. A server takes the client's first group that it has.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_AES_128_GCM_SHA256,
            ],
            kx_groups: key_exchanges(POST_QUANTUM_ONLY.load(Ordering::Relaxed)),
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

/// The part of a verifier of certificates that is the same for all: signatures of a handshake are checked by [`provider`].
macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &rustls_pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = $crate::crypto::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &rustls_pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = $crate::crypto::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            $crate::crypto::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(crate) use verify_signatures;

/// A random number; not for secrets' sake but so that ids and choices do not repeat.
pub fn random() -> u128 {
    thread_local! {
        /// From the kernel, many at a time, as each connection and each request takes some.
        static NUMBERS: RefCell<Vec<u128>> = const { RefCell::new(Vec::new()) };
    }
    NUMBERS.with_borrow_mut(|numbers| {
        if numbers.is_empty() {
            let mut bytes = [0; 512];
            // Without the kernel's randomness there is no TLS either: this cannot fail in a running process.
            let _filled = getrandom::fill(&mut bytes);
            numbers.extend(bytes.as_chunks().0.iter().copied().map(u128::from_ne_bytes));
        }
        numbers.pop().unwrap_or_default()
    })
}

fn key_exchanges(post_quantum_only: bool) -> Vec<&'static dyn SupportedKxGroup> {
    let mut all: Vec<&'static dyn SupportedKxGroup> = vec![kx_group::X25519MLKEM768];
    if !post_quantum_only {
        all.extend([kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::NamedGroup;

    #[test]
    fn the_hybrid_exchange_comes_first_or_alone() {
        let names = |only| key_exchanges(only).iter().map(|group| group.name()).collect::<Vec<_>>();
        assert_eq!(names(true), [NamedGroup::X25519MLKEM768]);
        let all = names(false);
        assert!(all.len() > 1 && all[0] == NamedGroup::X25519MLKEM768);
        // Nobody asked for it here.
        assert_eq!(provider().kx_groups.len(), all.len());
    }

    #[test]
    fn random_numbers_do_not_repeat() {
        // More than are asked for at once.
        let drawn: std::collections::HashSet<u128> = (0..100).map(|_| random()).collect();
        assert_eq!(drawn.len(), 100);
    }
}
