//! Wrong clients and wrong TLS: refused in the handshake, so that no stream is ever seen.

use std::io::ErrorKind;

use culvert_tests::peer::client::{Tunnel, assert_serves, dial};
use culvert_tests::peer::net::{App, connect};
use culvert_tests::peer::pki::{Claims, Leaf, Pki, identity};
use culvert_tests::peer::raw::{PREFACE, Raw, connect as connect_frame};
use culvert_tests::peer::world::{APP, World};
use culvert_tests::peer::{tls, within};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Certificates that prove nothing, by name.
fn wrong(world: &World) -> Vec<(&'static str, Option<Leaf>)> {
    let right = Claims::account("peer");
    let uri = |uri: &str| Claims::of(uri);
    let usage = |usages: &[ExtendedKeyUsagePurpose]| Claims { usages: usages.to_vec(), ..right.clone() };
    let claims = [
        ("expired", Claims { from: -7200, until: -60, ..right.clone() }),
        ("not valid yet", Claims { from: 3600, until: 7200, ..right.clone() }),
        ("two identities", Claims { uris: vec![identity("peer"), identity("other")], ..right.clone() }),
        ("one identity twice", Claims { uris: vec![identity("peer"); 2], ..right.clone() }),
        (
            "an identity and another URI",
            Claims { uris: vec![identity("peer"), "https://example.com/".into()], ..right.clone() },
        ),
        ("other trust domain", uri("spiffe://elsewhere.example/ns/default/sa/peer")),
        ("trust domain as a prefix", uri("spiffe://cluster.local.example/ns/default/sa/peer")),
        ("empty namespace", uri("spiffe://cluster.local/ns//sa/peer")),
        ("escaped", uri("spiffe://cluster.local/ns/default/sa/%70eer")),
        ("query", uri("spiffe://cluster.local/ns/default/sa/peer?x")),
        ("fragment", uri("spiffe://cluster.local/ns/default/sa/peer#x")),
        ("longer path", uri("spiffe://cluster.local/ns/default/sa/peer/x")),
        ("shorter path", uri("spiffe://cluster.local/ns/default")),
        ("port", uri("spiffe://cluster.local:80/ns/default/sa/peer")),
        ("user", uri("spiffe://me@cluster.local/ns/default/sa/peer")),
        ("other scheme", uri("https://cluster.local/ns/default/sa/peer")),
        ("NUL", uri("spiffe://cluster.local/ns/default/sa/peer\0x")),
        ("newline", uri("spiffe://cluster.local/ns/default/sa/peer\nx")),
        ("4 KiB", uri(&identity(&"x".repeat(4096)))),
        (
            "DNS name only",
            Claims { uris: Vec::new(), dns: vec!["peer.default.svc.cluster.local".into()], ..right.clone() },
        ),
        ("no name at all", Claims { uris: Vec::new(), ..right.clone() }),
        ("for servers only", usage(&[ExtendedKeyUsagePurpose::ServerAuth])),
        ("for no use", usage(&[])),
    ];
    let mut all: Vec<_> = claims.iter().map(|(name, c)| (*name, Some(world.pki.issue(c)))).collect();
    all.push(("other root", Some(Pki::stranger().issue(&right))));
    all.push(("no certificate", None));
    all
}

#[tokio::test]
async fn a_wrong_certificate_is_refused_with_an_alert_and_no_stream() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let counted = |result: &str| {
        let labels = ["side=\"server\"".to_owned(), format!("result=\"{result}\"")];
        world.metric("culvert_hbone_handshakes_total", &labels.each_ref().map(String::as_str))
    };
    for (name, leaf) in wrong(&world) {
        let reason = match name {
            "expired" | "not valid yet" => "expired",
            "other root" => "untrusted_root",
            "no certificate" => "no_peer_certificate",
            "other trust domain" | "trust domain as a prefix" | "for servers only" | "for no use" => {
                "wrong_identity"
            }
            _ => "bad_name",
        };
        let before = counted(reason);
        let tcp = connect(&world.peer, world.hbone());
        let local = tcp.local_addr().unwrap();
        let connector = tokio_rustls::TlsConnector::from(tls::client(leaf.as_ref(), &["h2"]));
        // The client's side of the handshake is over before the server has looked at the certificate.
        let ended = match within("a handshake", connector.connect(tls::nobody(), tcp)).await {
            Err(e) => e,
            Ok(mut stream) => {
                let eager =
                    [PREFACE, &connect_frame(1, world.app().to_string().as_bytes()).encode()].concat();
                let _too_late = stream.write_all(&eager).await;
                let read = async {
                    let mut byte = [0];
                    match stream.read(&mut byte).await {
                        Ok(0) => panic!("{name}: closed without an alert"),
                        Ok(_) => panic!("{name}: the agent speaks to it"),
                        Err(e) => e,
                    }
                };
                within("an alert", read).await
            }
        };
        let alert = ended.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        assert!(matches!(alert, Some(rustls::Error::AlertReceived(_))), "{name}: {ended:?}");
        let line = world.line_from(local).await;
        assert!(line.has(&[("direction", "inbound"), ("message", "connection failed")]), "{name}: {line:?}");
        assert!(line.field("error").unwrap().starts_with("TLS with "), "{name}: {line:?}");
        assert_eq!(line.field("src.identity"), None, "{name}: nothing is proven");
        assert_eq!(counted(reason), before + 1.0, "{name}: {reason}");
        app.assert_untouched();
    }
    let _echo = app.echo();
    assert_serves(&world).await;
}

#[tokio::test]
async fn without_alpn_h2_there_is_no_tunnel() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    for alpn in [&[][..], &["http/1.1"], &["h3", "h2c"]] {
        let tcp = connect(&world.peer, world.hbone());
        let local = tcp.local_addr().unwrap();
        let connector = tokio_rustls::TlsConnector::from(tls::client(Some(&world.leaf()), alpn));
        match within("a handshake", connector.connect(tls::nobody(), tcp)).await {
            Err(_alert) => {}
            Ok(stream) => {
                let mut raw = Raw::new(stream);
                let eager =
                    [PREFACE, &connect_frame(1, world.app().to_string().as_bytes()).encode()].concat();
                let _too_late = raw.write(&eager).await;
                assert_eq!(raw.next().await, None, "{alpn:?}");
            }
        }
        let line = world.line_from(local).await;
        assert!(line.has(&[("message", "connection failed")]), "{alpn:?}: {line:?}");
        app.assert_untouched();
    }
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let world = World::new(&[]);
    // A ClientHello without supported_versions: ECDHE-ECDSA-AES128-GCM-SHA256, P-256, ecdsa_secp256r1_sha256, ALPN h2.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3][..],
        &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'],
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    let mut tcp = connect(&world.peer, world.hbone());
    let local = tcp.local_addr().unwrap();
    tcp.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    match within("an alert", tcp.read_to_end(&mut answer)).await {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70], "a fatal alert protocol_version");
    let line = world.line_from(local).await;
    assert!(line.field("error").unwrap().starts_with("TLS with "), "{line:?}");
}

#[tokio::test]
async fn silent_and_half_handshakes_are_closed_in_time() {
    let world = World::new(&["--tls-timeout", "1s", "--preface-timeout", "1s"]);
    let app = App::listen(&world.pod, APP);
    let before = world.descriptors();
    let silent = connect(&world.peer, world.hbone());
    let mut half = connect(&world.peer, world.hbone());
    half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1]).await.unwrap();
    for mut tcp in [silent, half] {
        let local = tcp.local_addr().unwrap();
        let mut rest = Vec::new();
        let _end = within("the end of a silent peer", tcp.read_to_end(&mut rest)).await;
        let line = world.line_from(local).await;
        assert!(line.field("error").unwrap().contains("no handshake within 1s"), "{line:?}");
    }
    for sent in [&b""[..], &PREFACE[..11]] {
        let config = tls::client(Some(&world.leaf()), &["h2"]);
        let stream = dial(&world.peer, world.hbone(), config).await.unwrap();
        let local = stream.get_ref().0.local_addr().unwrap();
        let mut raw = Raw::new(stream);
        raw.write(sent).await.unwrap();
        while raw.next().await.is_some() {}
        let line = world.line_from(local).await;
        assert!(line.has(&[("message", "connection failed")]), "{sent:?}: {line:?}");
    }
    app.assert_untouched();
    culvert_tests::peer::eventually("no descriptor left", || world.descriptors() <= before).await;
    let _echo = app.echo();
    assert_serves(&world).await;
    drop(Tunnel::open(&world).await);
}
