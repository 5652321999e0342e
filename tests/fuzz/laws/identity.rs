//! What holds for any bytes of a certificate authority, and of a file of revocation lists.

use culvert_common::identity::crl::read_lists;
use culvert_common::identity::istio::count_certificates;

/// What is taken has a leaf and a root, and is bounded.
pub(crate) fn answers(bytes: &[u8]) {
    if let Some((chain, roots)) = count_certificates(bytes) {
        assert!((1..=10).contains(&chain) && (1..=100).contains(&roots), "{chain} and {roots}");
    }
}

/// What is taken holds a list.
pub(crate) fn lists(bytes: &[u8]) {
    if let Ok(lists) = read_lists(bytes) {
        assert!((1..=100).contains(&lists.len()));
    }
}
