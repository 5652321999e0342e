//! A right client: what it gets, and what it is told.

use std::net::SocketAddr;

use culvert_tests::peer::client::{self, Tunnel, dial, request};
use culvert_tests::peer::net::{App, End, expect_bytes, read_end};
use culvert_tests::peer::raw::{Frame, Raw, kind, setting};
use culvert_tests::peer::world::{APP, HBONE, OTHER_SERVICE, SERVICE, World};
use culvert_tests::peer::{pki, tls, within};
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn a_connect_reaches_the_app_as_the_client_itself() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    for (address, source) in world.pod.addresses().into_iter().zip(world.peer.addresses()) {
        let by_service = (SERVICE.to_uppercase(), 80);
        let names = [(address.to_string(), APP), (SERVICE.to_owned(), 80), by_service];
        let mut tunnel = Tunnel::to(&world, SocketAddr::new(address, HBONE)).await;
        for (host, port) in names {
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let authority = format!("{host}:{port}");
            let (mut stream, (served, client)) =
                tokio::join!(tunnel_connect(&mut tunnel, &authority), app.accept());
            assert_eq!(client.ip(), source, "the app sees its client");
            stream.converse(served).await;
        }
    }
    world.settle().await;
}

/// A CONNECT whose answer must be 200 with the destination's baggage and nothing else.
async fn tunnel_connect(tunnel: &mut Tunnel, authority: &str) -> client::Answer {
    let answer = tunnel.connect(authority).await;
    let baggage = "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.pod.name=pod,service.name=pod,\
                   service.version=latest,cloud.region=lab,cloud.availability_zone=zone-1";
    let headers: Vec<_> = answer.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!(headers, [("baggage", baggage)]);
    answer
}

#[tokio::test]
async fn the_server_presents_the_pods_identity_and_announces_its_settings() {
    let world = World::new(&[]);
    let config = tls::client(Some(&world.leaf()), &["h2"]);
    let stream = dial(&world.peer, world.hbone(), config).await.unwrap();
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    let suite = session.negotiated_cipher_suite().unwrap().suite();
    assert!(format!("{suite:?}").contains("AES_"), "{suite:?}");
    let certs = session.peer_certificates().unwrap();
    assert!(pki::names(&certs[0], &world.pod.identity()), "the pod's own identity, not its node's");
    let mut raw = Raw::greet(stream).await;
    let settings = raw.find(|f| f.kind == kind::SETTINGS).await.unwrap().values();
    let of = |id| settings.iter().find(|(i, _)| *i == id).map(|(_, v)| *v);
    assert_eq!(of(setting::INITIAL_WINDOW_SIZE), Some(4 << 20));
    assert_eq!(of(setting::MAX_FRAME_SIZE), Some(1 << 20));
    assert_eq!(of(setting::MAX_CONCURRENT_STREAMS), Some(200));
    assert_eq!(of(setting::MAX_HEADER_LIST_SIZE), Some(64 * 1024));
    let grown = raw.find(|f| f.kind == kind::WINDOW_UPDATE).await.unwrap();
    let window = u64::from(grown.first()) + 65_535;
    assert_eq!(grown.stream, 0);
    assert!(window >= 200 * (4 << 20), "stalled streams never use up the connection's window: {window}");
    let ping = Frame::new(kind::PING, 0, 0, b"12345678".to_vec());
    raw.send(&ping).await.unwrap();
    let pong = raw.find(|f| f.kind == kind::PING && f.flags == 1).await.unwrap();
    assert_eq!(pong.payload, ping.payload);
}

#[tokio::test]
async fn two_hundred_streams_at_once_on_one_tunnel() {
    let world = World::new(&[]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut tunnel = Tunnel::open(&world).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(tunnel.connect(&world.app().to_string()).await);
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write(format!("stream {number}").as_bytes()).await;
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.expect(format!("stream {number}").as_bytes()).await;
        stream.finish();
        assert_eq!(stream.read_end().await, Ok(Vec::new()));
    }
    world.settle().await;
}

#[tokio::test]
async fn headers_a_client_may_send_change_nothing_but_telemetry() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let long = format!("k8s.pod.name={}", "x".repeat(3000));
    let forged: [&[(&str, &str)]; 8] = [
        &[("x-istio-source", "waypoint"), ("x-forwarded-network", "elsewhere"), ("x-unknown", "1")],
        &[("forwarded", "for=\"1.2.3.4:5\";host=evil.example"), ("x-forwarded-for", "1.2.3.4")],
        &[("forwarded", &format!("for=\"1.2.3.4:5\";host={OTHER_SERVICE}"))],
        &[("baggage", "k8s.namespace.name=kube-system,k8s.deployment.name=admin,service.name=admin")],
        &[("baggage", "k8s.namespace.name=a"), ("baggage", "k8s.namespace.name=b,=,,==,a=b=c")],
        &[("baggage", &long)],
        &[("traceparent", "00-nonsense"), ("culvert-denial", "abc"), ("content-type", "text/html")],
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")],
    ];
    for headers in forged {
        let mut tunnel = Tunnel::open(&world).await;
        let mut ask = request(&world.app().to_string());
        for &(name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            ask.headers_mut().append(name, value.parse().unwrap());
        }
        let (answer, (served, client)) = tokio::join!(tunnel.ask(ask), app.accept());
        let mut answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{headers:?}");
        assert_eq!(client.ip(), world.peer.v4, "{headers:?}");
        drop(served);
        answer.finish();
        assert_eq!(answer.read_end().await, Ok(Vec::new()));
        let line = world.line_from(tunnel.local).await;
        let wanted = [
            ("src.identity", &*world.peer.identity()),
            ("src.workload", "peer"),
            ("src.namespace", "default"),
            ("dst.service", SERVICE),
        ];
        assert!(line.has(&wanted), "{headers:?}: {line:?}");
        assert_eq!(line.field("error"), None);
    }
}

#[tokio::test]
async fn goaway_at_drain_and_open_streams_end_in_peace() {
    let mut world = World::new(&["--termination-deadline", "10s"]);
    let app = App::listen(&world.pod, APP);
    let mut tunnel = Tunnel::open(&world).await;
    let authority = world.app().to_string();
    let (mut stream, (mut served, _)) = tokio::join!(tunnel.connect(&authority), app.accept());
    world.agent.process().signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    world.agent.wait_log(0, "drain", |l| l.has(&[("message", "draining")])).unwrap();
    // `h2` lets go of the tunnel when the GOAWAY has come.
    let refused = within("a GOAWAY", async {
        loop {
            match tunnel.ask(request(&authority)).await {
                Err(e) => return e,
                Ok(mut late) => {
                    late.assert_refused(503, "draining").await;
                }
            }
        }
    });
    let refused = refused.await;
    assert!(refused.is_go_away() && refused.is_remote(), "{refused:?}");
    app.assert_untouched();
    stream.write(b"still here").await;
    expect_bytes(&mut served, b"still here").await;
    served.write_all(b"so am I").await.unwrap();
    stream.expect(b"so am I").await;
    stream.finish();
    assert_eq!(read_end(&mut served).await, End::Orderly(Vec::new()));
    drop(served);
    assert_eq!(stream.read_end().await, Ok(Vec::new()));
    assert!(tunnel.ended().await.is_ok());
    let status = world.agent.process().wait(culvert_tests::peer::PATIENCE).unwrap();
    assert!(status.success(), "{status}");
}

/// An app that does not answer a dial: when its pod leaves, the client is told at once that it may ask again.
#[tokio::test]
async fn a_dial_that_hangs_is_given_up_when_the_pod_leaves() {
    let mut world = World::new(&["--termination-deadline", "20s", "--connect-timeout", "60s"]);
    let full = world.pod.run(|| {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::new(world.pod.v4.into(), APP).into()).unwrap();
        listener.listen(0).unwrap();
        listener
    });
    // Nobody accepts, and one connection fills the queue.
    let first = culvert_tests::peer::net::connect(&world.pod, SocketAddr::new(world.pod.v4.into(), APP));
    let mut tunnel = Tunnel::open(&world).await;
    let authority = world.app().to_string();
    let (answer, _send) = tunnel.send(request(&authority)).await.unwrap();
    let dials = || world.metric("istio_tcp_sockets_open", &["reporter=\"destination\""]);
    culvert_tests::peer::eventually("the dial has begun", || dials() == 1.0).await;
    world.agent.process().signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    let answer = within("a refusal", answer).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["culvert-denial-class"], "draining");
    drop((first, full));
}

/// A pod that is being deleted: its clients are told to go, open streams go on, and who comes anew is served.
#[tokio::test]
async fn goaway_when_the_pod_is_being_deleted() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let mut tunnel = Tunnel::open(&world).await;
    let authority = world.app().to_string();
    let (mut stream, (mut served, _)) = tokio::join!(tunnel.connect(&authority), app.accept());
    let documents: String = world.lab.pods().iter().map(|pod| pod.document(true)).collect();
    let name = format!("  name: {}\n", world.pod.spec.name);
    let deleted = format!("{name}  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n");
    world.lab.put("pods.yaml", &documents.replace(&name, &deleted)).unwrap();
    let gone = within("a GOAWAY", async {
        loop {
            match tunnel.ask(request(&authority)).await {
                Err(e) => return e,
                Ok(_served) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    });
    let gone = gone.await;
    assert!(gone.is_go_away() && gone.is_remote(), "{gone:?}");
    stream.write(b"still here").await;
    expect_bytes(&mut served, b"still here").await;
    let mut anew = Tunnel::open(&world).await;
    for _ in 0..3 {
        let mut late = anew.connect(&authority).await;
        late.finish();
    }
    stream.finish();
    assert_eq!(read_end(&mut served).await, End::Orderly(Vec::new()));
    drop(served);
    assert_eq!(stream.read_end().await, Ok(Vec::new()));
    assert!(tunnel.ended().await.is_ok());
}
