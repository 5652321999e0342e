//! What holds for any bytes of a file of revocation lists.

use culvert_common::identity::crl::read_lists;

/// What is taken holds a list.
pub(crate) fn lists(bytes: &[u8]) {
    if let Ok(lists) = read_lists(bytes) {
        assert!((1..=100).contains(&lists.len()));
    }
}
