//! What holds for any bytes of a certificate authority.

use culvert_common::identity::istio::count_certificates;

/// What is taken has a leaf and a root, and is bounded.
pub(crate) fn answers(bytes: &[u8]) {
    if let Some((chain, roots)) = count_certificates(bytes) {
        assert!((1..=10).contains(&chain) && (1..=100).contains(&roots), "{chain} and {roots}");
    }
}
