//! Our agent as the client of a right server: what it asks for, and how it uses its tunnels.

use std::net::SocketAddr;

use culvert_tests::peer::net::{End, connect, expect_bytes, read_end};
use culvert_tests::peer::raw::{Raw, kind, setting};
use culvert_tests::peer::server::{Server, Session};
use culvert_tests::peer::world::{APP, REMOTE, REMOTE_SERVICE, World};
use culvert_tests::peer::{pki, stream};
use h2::Reason;
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn the_request_is_as_a_server_expects_it() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let [remote4, remote6] = REMOTE.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
    let (pod4, pod6) =
        (SocketAddr::new(world.peer.v4.into(), APP), SocketAddr::new(world.peer.v6.into(), APP));
    let mut sessions: Vec<Session> = Vec::new();
    let mut traces = Vec::new();
    for (number, (to, authority)) in
        [(pod4, pod4), (remote4, pod4), (pod6, pod6), (remote6, pod6)].into_iter().enumerate()
    {
        let mut app = connect(&world.pod, to);
        let local = app.local_addr().unwrap();
        // One tunnel for a pair of addresses, whatever was dialled.
        if number % 2 == 0 {
            sessions.push(server.session().await);
        }
        let session = sessions.last_mut().unwrap();
        let (request, mut stream) = session.accept().await;
        assert_eq!(request.method(), http::Method::CONNECT);
        assert_eq!(request.uri().authority().unwrap().as_str(), authority.to_string());
        assert!(request.extensions().get::<h2::ext::Protocol>().is_none());
        let names: Vec<_> = request.headers().keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["baggage", "forwarded", "traceparent"], "these and no others");
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            header("baggage"),
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.pod.name=pod,service.name=pod,\
             service.version=latest,cloud.region=lab,cloud.availability_zone=zone-1"
        );
        let host = format!(";host={REMOTE_SERVICE}");
        assert_eq!(
            header("forwarded"),
            format!("for=\"{local}\"{}", if to.port() == 80 { &host } else { "" })
        );
        let trace = header("traceparent");
        assert_eq!(trace.len(), 55);
        assert!(trace.starts_with("00-") && trace.ends_with("-00"), "{trace}");
        assert!(!traces.contains(&trace), "a fresh one for each connection");
        traces.push(trace.clone());
        stream.accept();
        stream.converse(&mut app).await;
        let line = world.line_from(local).await;
        assert_eq!(line.field("error"), None);
        assert!(
            line.has(&[
                ("trace.id", trace.split('-').nth(1).unwrap()),
                ("dst.identity", &world.peer.identity())
            ]),
            "{line:?}"
        );
    }
    server.tcp.assert_untouched();
}

#[tokio::test]
async fn tls_and_settings_are_those_of_a_client() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let _app = connect(&world.pod, world.remote());
    let stream = server.accept().await.unwrap();
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(session.server_name(), None, "no SNI");
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    let certs = session.peer_certificates().unwrap();
    assert!(pki::names(&certs[0], &world.pod.identity()));
    assert_eq!(stream.get_ref().0.peer_addr().unwrap().ip().to_canonical(), world.pod.v4);
    let mut raw = Raw::welcome(stream, &[]).await;
    let settings = raw.find(|f| f.kind == kind::SETTINGS && f.flags == 0).await.unwrap().values();
    let of = |id| settings.iter().find(|(i, _)| *i == id).map(|(_, v)| *v);
    assert_eq!(of(setting::INITIAL_WINDOW_SIZE), Some(4 << 20));
    assert_eq!(of(setting::MAX_FRAME_SIZE), Some(1 << 20));
    assert_eq!(of(setting::MAX_HEADER_LIST_SIZE), Some(16 * 1024));
    assert_eq!(of(setting::ENABLE_PUSH), Some(0));
    let grown = raw.find(|f| f.kind == kind::WINDOW_UPDATE).await.unwrap();
    assert!(u64::from(grown.first()) + 65_535 >= 100 * (4 << 20));
}

#[tokio::test]
async fn a_tunnel_takes_as_many_streams_as_its_server_allows_and_is_used_again() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let mut first = None;
    let mut open = Vec::new();
    for number in 0..3 {
        let app = connect(&world.pod, world.remote());
        if number == 0 {
            first = Some(server.session_with(3).await);
        }
        let (_, mut stream) = first.as_mut().unwrap().accept().await;
        stream.accept();
        open.push((app, stream));
    }
    let mut first = first.unwrap();
    server.tcp.assert_untouched();
    // The fourth needs another tunnel.
    let fourth = connect(&world.pod, world.remote());
    let mut second = server.session_with(3).await;
    let (_, mut stream) = second.accept().await;
    stream.accept();
    open.push((fourth, stream));
    // A place in the first is free again: it is taken.
    let (mut app, mut stream) = open.remove(0);
    app.shutdown().await.unwrap();
    assert_eq!(stream.read_end().await, Ok(Vec::new()));
    stream.finish();
    assert_eq!(read_end(&mut app).await, End::Orderly(Vec::new()));
    world.line_from(app.local_addr().unwrap()).await;
    let mut fifth = connect(&world.pod, world.remote());
    let (_, mut stream) = first.accept().await;
    stream.accept();
    fifth.write_all(b"again").await.unwrap();
    stream.expect(b"again").await;
    server.tcp.assert_untouched();
}

#[tokio::test]
async fn no_more_than_a_hundred_streams_share_a_tunnel() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let mut apps = vec![connect(&world.pod, world.remote())];
    let mut first = server.session_with(1000).await;
    let mut streams = vec![first.accept().await.1];
    for _ in 1..100 {
        apps.push(connect(&world.pod, world.remote()));
        streams.push(first.accept().await.1);
    }
    server.tcp.assert_untouched();
    apps.push(connect(&world.pod, world.remote()));
    let mut second = server.session_with(1000).await;
    streams.push(second.accept().await.1);
    for (number, (app, stream)) in apps.iter_mut().zip(&mut streams).enumerate() {
        let text = format!("connection {number}");
        stream.accept();
        app.write_all(text.as_bytes()).await.unwrap();
        stream.expect(text.as_bytes()).await;
    }
}

#[tokio::test]
async fn how_a_stream_ends_is_how_the_apps_connection_ends() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let mut session = None;
    let resets = [Reason::CANCEL, Reason::CONNECT_ERROR, Reason::INTERNAL_ERROR];
    for reason in resets.map(Some).into_iter().chain([Some(Reason::NO_ERROR), None]) {
        let mut app = connect(&world.pod, world.remote());
        if session.is_none() {
            session = Some(server.session().await);
        }
        let (_, mut stream) = session.as_mut().unwrap().accept().await;
        stream.accept();
        app.write_all(b"ask").await.unwrap();
        stream.expect(b"ask").await;
        stream.write(b"half").await;
        expect_bytes(&mut app, b"half").await;
        match reason {
            None => {
                // END_STREAM, and a reset behind it that takes nothing back.
                stream.finish();
                assert_eq!(read_end(&mut app).await, End::Orderly(Vec::new()));
                stream.reset(Reason::NO_ERROR);
            }
            Some(Reason::NO_ERROR) => {
                stream.reset(Reason::NO_ERROR);
                assert_eq!(read_end(&mut app).await, End::Orderly(Vec::new()));
            }
            Some(reason) => {
                stream.reset(reason);
                assert_eq!(read_end(&mut app).await, End::Reset(Vec::new()), "{reason:?}");
                let line = world.line_from(app.local_addr().unwrap()).await;
                assert!(line.field("error").unwrap().contains(&format!("{reason:?}")), "{line:?}");
            }
        }
    }
    // The other way round.
    let mut app = connect(&world.pod, world.remote());
    let (_, mut stream) = session.as_mut().unwrap().accept().await;
    stream.accept();
    stream.write(b"half").await;
    expect_bytes(&mut app, b"half").await;
    culvert_tests::peer::net::reset(app);
    assert_eq!(stream.read_end().await, Err(Reason::CONNECT_ERROR));
    server.tcp.assert_untouched();
    world.settle().await;
}

#[tokio::test]
async fn a_small_window_and_large_answers_keep_every_byte() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let data: Vec<u8> = (0..2_000_000_u32).map(|i| ((i * 7) >> 5) as u8).collect();
    let mut app = connect(&world.pod, world.remote());
    let mut session = server.session().await;
    let (_, mut stream) = session.accept().await;
    stream.accept();
    let send = stream.send.as_mut().unwrap();
    let (mut read, mut write) = app.split();
    let (_, got, _, back) = tokio::join!(
        async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        },
        stream::read_end(&mut stream.recv),
        async {
            stream::write(send, &data).await.unwrap();
            stream::finish(send);
        },
        async {
            use tokio::io::AsyncReadExt as _;
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            got
        }
    );
    assert!(got.unwrap() == data && back == data);
}

#[tokio::test]
async fn a_server_with_room_for_one_stream_gets_a_tunnel_for_each() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    // All at once: the tunnel's SETTINGS arrive when several requests are on their way.
    let mut apps: Vec<_> = (0..4).map(|_| connect(&world.pod, world.remote())).collect();
    for app in &mut apps {
        app.write_all(b"question").await.unwrap();
    }
    let mut open = Vec::new();
    for _ in 0..apps.len() {
        let mut session = server.session_with(1).await;
        let (_, mut stream) = session.accept().await;
        stream.accept();
        stream.expect(b"question").await;
        stream.write(b"answer").await;
        open.push((session, stream));
    }
    for app in &mut apps {
        expect_bytes(app, b"answer").await;
        app.shutdown().await.unwrap();
    }
    for (_, stream) in &mut open {
        assert_eq!(stream.read_end().await, Ok(Vec::new()));
        stream.finish();
    }
    for app in &mut apps {
        assert_eq!(read_end(app).await, End::Orderly(Vec::new()));
    }
}
