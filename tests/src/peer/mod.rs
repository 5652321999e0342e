//! HBONE peers made by hand, right and wrong ones, beside a real agent in network namespaces.
//!
//! They share nothing with the agent but the root of the lab's CA: certificates come from `rcgen`, TLS from `rustls`
//! with verifiers of our own, HTTP/2 from `h2` or, where that is too polite, from [`raw`]. Sockets are made in a
//! namespace and then used from the test's own runtime.
//!
//! Start reading at [`world::World`]; [`net`] has the apps and what they saw of an end, [`pki`] the certificates,
//! [`tls`] the handshakes, [`client`] a right client.

pub mod client;
pub mod envoy;
pub mod net;
pub mod pki;
pub mod raw;
pub mod server;
pub mod stream;
pub mod tls;
pub mod world;

use std::future::Future;
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen; a test that passes never waits so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The future's value; a panic with `what` when it takes too long.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Asks every 10 ms until `check` says yes; a panic with `what` when it takes too long.
pub async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
