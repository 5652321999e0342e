//! The agent's own pod: its pages over mutual TLS, and nothing else.

use std::net::{Ipv4Addr, SocketAddr};

use culvert_tests::peer::client::Tunnel;
use culvert_tests::peer::world::{HBONE, World};

/// The node's address, which is that of the agent's pod here.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const DOCUMENT: &str = "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: zt-1\n  namespace: default\n  uid: uid-zt-1\n  \
    labels: {istio.io/dataplane-mode: none}\nspec:\n  nodeName: a\n  serviceAccountName: ztunnel\nstatus:\n  phase: Running\n  \
    conditions: [{type: Ready, status: \"True\"}]\n  podIP: 10.0.0.1\n  podIPs: [{ip: 10.0.0.1}]\n";

#[tokio::test]
async fn pages_are_reached_over_mutual_tls() {
    let flags = ["--pod-name", "zt-1", "--pod-namespace", "default", "--service-account", "ztunnel"];
    let world = World::with(&flags, &[("own.yaml", DOCUMENT)]);
    let mut tunnel = Tunnel::to(&world, SocketAddr::from((OWN, HBONE))).await;
    let mut page = tunnel.connect(&format!("{OWN}:15020")).await;
    page.write(b"GET /metrics HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n").await;
    let text = String::from_utf8(page.read_end().await.unwrap()).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("\nistio_build{"), "{text}");
    // What is on loopback stays there, and the agent's own ports are no destinations.
    for refused in [format!("{OWN}:15000"), "127.0.0.1:15000".to_owned(), format!("{OWN}:{HBONE}")] {
        let answer = tunnel.ask(culvert_tests::peer::client::request(&refused)).await.unwrap();
        assert!(!answer.status.is_success(), "{refused}: {}", answer.status);
    }
}
