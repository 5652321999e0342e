use super::*;
use crate::identity::{EmbeddedCa, EmbeddedOptions};

#[tokio::test(start_paused = true)]
async fn a_wanted_identity_gets_a_certificate() {
    let dir = std::env::temp_dir().join(format!("culvert-certs-{:x}", getrandom::u64().unwrap()));
    let ca = EmbeddedCa::open_or_create(&dir, EmbeddedOptions::new("cluster.local")).unwrap();
    let certs = Certs::new(Ca::Embedded(ca), Arc::new(crate::types::SystemClock));
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let scope = crate::task::Scope::new();
    scope.spawn(certs.clone().run());
    let cert = certs.wait(&id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(cert.identity, id);
    scope.cut();
    std::fs::remove_dir_all(dir).unwrap();
}
