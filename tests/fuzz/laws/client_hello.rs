//! What holds for the first bytes of any connection that may be TLS.

use waypoint::client_hello::{self, Hello};

/// A TLS client's first message: once it is known what it is, more bytes change nothing.
pub(crate) fn hello(bytes: &[u8]) {
    let all = client_hello::read(bytes);
    let known =
        (0..bytes.len()).map(|cut| client_hello::read(&bytes[..cut])).find(|hello| *hello != Hello::Open);
    assert!(known.is_none_or(|known| known == all), "{all:?}");
    if let Hello::Tls(Some(name)) = all {
        assert!(!name.is_empty() && name.is_ascii() && name == name.to_ascii_lowercase());
    }
}
