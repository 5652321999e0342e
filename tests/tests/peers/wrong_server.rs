//! Our agent as the client of wrong servers: its app is told by a reset, and served where another try may help.

use culvert::lab::LogLine;
use culvert_tests::peer::net::{End, connect, expect_bytes, read_end, try_connect};
use culvert_tests::peer::pki::{Claims, Pki, identity};
use culvert_tests::peer::raw::{self, ACK, END_HEADERS, END_STREAM, Frame, Raw, kind, setting};
use culvert_tests::peer::server::{Server, accepted};
use culvert_tests::peer::world::World;
use culvert_tests::peer::{eventually, tls, within};
use h2::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The app is reset having read nothing; the log's one line about it.
async fn refused(world: &World, app: &mut TcpStream, name: &str) -> LogLine {
    let src = app.local_addr().unwrap();
    assert_eq!(read_end(app).await, End::Reset(Vec::new()), "{name}");
    let line = world.line_from(src).await;
    assert!(line.has(&[("direction", "outbound"), ("bytes_recv", "0")]), "{name}: {line:?}");
    line
}

/// As [`refused`], for a connection that the agent may reset before the app has looked at it.
async fn refused_at_once(world: &World, name: &str) -> LogLine {
    let from = world.agent.log_len();
    match try_connect(&world.pod, world.remote()) {
        Ok(mut app) => refused(world, &mut app, name).await,
        Err(e) => {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{name}");
            world.agent.wait_log(from, name, |l| l.has(&[("direction", "outbound")])).unwrap()
        }
    }
}

fn failed(world: &World, flag: &str) -> f64 {
    let labels = ["reporter=\"source\"", &format!("response_flags=\"{flag}\"")];
    world.metric("istio_tcp_connections_failed_total", &labels)
}

/// Status, headers, and what of them the log tells: id and class.
type Refusal<'a> = (u16, &'a [(&'static str, &'a str)], Option<(&'a str, &'a str)>);

#[tokio::test]
async fn a_refusal_reaches_the_app_as_a_reset_and_the_log_with_its_id() {
    let world = World::new(&["--hold-timeout", "0s"]);
    let server = Server::new(&world);
    let id = "0123456789abcdef0123456789abcdef";
    let long = "x".repeat(65);
    let table: [Refusal<'_>; 9] = [
        (401, &[("culvert-denial", id), ("culvert-denial-class", "policy")], Some((id, "policy"))),
        (503, &[("culvert-denial", id), ("culvert-denial-class", "draining")], Some((id, "draining"))),
        (503, &[("culvert-denial", id), ("culvert-denial-class", "made-up")], Some((id, "unknown"))),
        (503, &[("culvert-denial", "a b\"c"), ("culvert-denial-class", "policy")], None),
        (503, &[("culvert-denial", &long), ("culvert-denial-class", "policy")], None),
        (400, &[], None),
        (403, &[], None),
        (500, &[], None),
        (204, &[], None),
    ];
    let mut session = None;
    for (status, headers, denial) in table {
        let flag = if status == 401 { "DENY" } else { "CONNECT" };
        let before = failed(&world, flag);
        let mut app = connect(&world.pod, world.remote());
        app.write_all(b"a secret").await.unwrap();
        if session.is_none() {
            session = Some(server.session().await);
        }
        let (_, mut stream) = session.as_mut().unwrap().accept().await;
        stream.refuse(status, headers);
        let line = refused(&world, &mut app, &status.to_string()).await;
        assert!(line.field("error").unwrap().contains(&format!("http status: {status}")), "{line:?}");
        let noted = line.field("denial.id").zip(line.field("denial.class"));
        assert_eq!(noted, denial.map(|(id, class)| (id.to_owned(), class.to_owned())), "{line:?}");
        assert_eq!(failed(&world, flag), before + 1.0, "{line:?}");
        assert!(line.has(&[("bytes_sent", "0")]), "{line:?}");
        match stream.read_end().await {
            Ok(sent) => assert_eq!(sent, b"", "not one byte before a 200"),
            Err(reason) => assert!(matches!(reason, Reason::CANCEL | Reason::NO_ERROR), "{reason:?}"),
        }
    }
    server.tcp.assert_untouched();
}

#[tokio::test]
async fn a_wrong_server_gets_not_one_byte() {
    let world = World::new(&[]);
    let stranger = Pki::stranger();
    let right = Claims::account("peer");
    let of = |claims: Claims| world.pki.issue(&claims);
    let table = [
        ("another identity", of(Claims::account("other"))),
        ("another namespace", of(Claims::of("spiffe://cluster.local/ns/other/sa/peer"))),
        ("another trust domain", of(Claims::of("spiffe://elsewhere.example/ns/default/sa/peer"))),
        (
            "also the right identity",
            of(Claims { uris: vec![identity("other"), identity("peer")], ..right.clone() }),
        ),
        ("a prefix", of(Claims::account("peer2"))),
        ("upper case", of(Claims::account("PEER"))),
        ("DNS name", of(Claims { uris: Vec::new(), dns: vec!["peer".into()], ..right.clone() })),
        ("expired", of(Claims { from: -7200, until: -60, ..right.clone() })),
        ("not valid yet", of(Claims { from: 3600, until: 7200, ..right.clone() })),
        (
            "clients only",
            of(Claims { usages: vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth], ..right.clone() }),
        ),
        ("the right identity twice", of(Claims { uris: vec![identity("peer"); 2], ..right.clone() })),
        (
            "another URI beside it",
            of(Claims { uris: vec![identity("peer"), "https://example.com/".into()], ..right.clone() }),
        ),
        ("no name at all", of(Claims { uris: Vec::new(), ..right.clone() })),
        ("empty namespace", of(Claims::of("spiffe://cluster.local/ns//sa/peer"))),
        ("escaped", of(Claims::of("spiffe://cluster.local/ns/default/sa/%70eer"))),
        ("query", of(Claims::account("peer?x"))),
        ("NUL", of(Claims::account("peer\0x"))),
        ("newline", of(Claims::account("peer\nx"))),
        ("another root", stranger.issue(&right)),
    ];
    for (name, leaf) in &table {
        let before = failed(&world, "TLS_FAILURE");
        let server = Server::with(&world, tls::server(leaf, &world.pki, &["h2"]));
        let mut app = connect(&world.pod, world.remote());
        app.write_all(b"a secret").await.unwrap();
        let error = server.accept().await.expect_err(name);
        let alert = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        assert!(matches!(alert, Some(rustls::Error::AlertReceived(_))), "{name}: {error:?}");
        let line = refused(&world, &mut app, name).await;
        assert!(line.field("error").unwrap().starts_with("TLS with "), "{name}: {line:?}");
        assert_eq!(failed(&world, "TLS_FAILURE"), before + 1.0, "{name}");
    }
    // Nor does one that refuses us, which is not asked again.
    let server = Server::with(&world, tls::server(&world.leaf(), &stranger, &["h2"]));
    let mut app = connect(&world.pod, world.remote());
    app.write_all(b"a secret").await.unwrap();
    server.accept().await.expect_err("a certificate of another root");
    let line = refused(&world, &mut app, "refused by the server").await;
    assert!(line.field("error").unwrap().contains("received fatal alert"), "{line:?}");
    assert_eq!(failed(&world, "TLS_FAILURE"), table.len() as f64 + 1.0);
    server.tcp.assert_untouched();
    drop(server);
    for alpn in [&[][..], &["http/1.1"]] {
        let server = Server::with(&world, tls::server(&world.leaf(), &world.pki, alpn));
        let mut app = connect(&world.pod, world.remote());
        app.write_all(b"a secret").await.unwrap();
        if let Ok(mut stream) = server.accept().await {
            let mut sent = Vec::new();
            let _ended = within("the end", stream.read_to_end(&mut sent)).await;
            assert_eq!(sent, b"", "{alpn:?}");
        }
        refused(&world, &mut app, "no h2").await;
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached() {
    let world = World::new(&["--connect-timeout", "1s"]);
    let line = refused_at_once(&world, "refused").await;
    assert!(line.field("error").unwrap().contains("refused"), "{line:?}");
    assert_eq!(failed(&world, "CONNECT"), 1.0);
    // A black hole: the node drops what goes to the pod.
    world.peer.ip(&format!("route add blackhole {}\n", world.pod.v4)).unwrap();
    let line = refused_at_once(&world, "black hole").await;
    assert!(line.field("error").unwrap().contains("maybe a NetworkPolicy"), "{line:?}");
    assert_eq!(failed(&world, "NETWORK_POLICY"), 1.0);
}

#[tokio::test]
async fn no_stage_waits_without_limit() {
    let world = World::new(&["--tls-timeout", "1s", "--preface-timeout", "1s", "--answer-timeout", "1s"]);
    let server = Server::new(&world);
    let mut app = connect(&world.pod, world.remote());
    let (_silent, _) = server.tcp.accept().await;
    let line = refused(&world, &mut app, "silent TLS").await;
    assert!(line.field("error").unwrap().contains("no handshake within 1s"), "{line:?}");
    let mut app = connect(&world.pod, world.remote());
    let (_raw, _) = server.raw(&[]).await;
    let line = refused(&world, &mut app, "silent HTTP/2").await;
    assert!(line.field("error").unwrap().contains("did not answer the CONNECT within 1s"), "{line:?}");
    assert_eq!(failed(&world, "CONNECT"), 1.0);
}

#[tokio::test]
async fn no_room_for_any_stream_is_a_reset_in_time() {
    let world = World::new(&["--answer-timeout", "1s"]);
    let server = Server::new(&world);
    let mut app = connect(&world.pod, world.remote());
    let stream = server.accept().await.unwrap();
    let mut raw = Raw::welcome(stream, &[(setting::MAX_CONCURRENT_STREAMS, 0)]).await;
    // The CONNECT may have left before the settings came; it is not answered.
    let line = tokio::select! {
        line = refused(&world, &mut app, "no room") => line,
        // Silence: the agent gives up the tunnel too, but not before the time.
        () = async { while raw.next().await.is_some() {}; std::future::pending().await } => unreachable!(),
    };
    assert!(line.field("error").unwrap().contains("within 1s"), "{line:?}");
}

#[tokio::test]
async fn nothing_is_dialled_for_an_app_that_has_left() {
    let world = World::new(&["--tls-timeout", "60s", "--answer-timeout", "60s"]);
    let server = Server::new(&world);
    let app = connect(&world.pod, world.remote());
    let src = app.local_addr().unwrap();
    let (silent, _) = server.tcp.accept().await;
    culvert_tests::peer::net::reset(app);
    world.settle().await;
    let line = world.line_from(src).await;
    assert!(line.field("error").unwrap().contains("app's connection broke off"), "{line:?}");
    drop(silent);
    let app = connect(&world.pod, world.remote());
    let mut session = server.session().await;
    let (_, mut stream) = session.accept().await;
    culvert_tests::peer::net::reset(app);
    assert_eq!(stream.read_end().await, Err(Reason::CANCEL), "the request is taken back");
    world.settle().await;
    server.tcp.assert_untouched();
}

#[tokio::test]
async fn goaway_and_refused_streams_are_asked_again_elsewhere() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    for how in ["GOAWAY at once", "REFUSED_STREAM", "closed at once"] {
        let mut app = connect(&world.pod, world.remote());
        app.write_all(b"hello").await.unwrap();
        let mut kept = Vec::new();
        for _ in 0..2 {
            let (mut raw, stream) = server.raw(&[]).await;
            match how {
                "GOAWAY at once" => raw.send(&Frame::goaway(0, Reason::NO_ERROR)).await.unwrap(),
                "REFUSED_STREAM" => {
                    raw.send(&Frame::goaway(0, Reason::NO_ERROR)).await.unwrap();
                    raw.send(&Frame::reset(stream, Reason::REFUSED_STREAM)).await.unwrap();
                }
                _ => {
                    drop(raw);
                    continue;
                }
            }
            kept.push(raw);
        }
        let mut session = server.session().await;
        let (_, mut stream) = session.accept().await;
        stream.accept();
        stream.expect(b"hello").await;
        stream.write(b"served").await;
        expect_bytes(&mut app, b"served").await;
        app.shutdown().await.unwrap();
        stream.finish();
        assert_eq!(read_end(&mut app).await, End::Orderly(Vec::new()), "{how}");
        drop(session);
        world.line_from(app.local_addr().unwrap()).await;
    }
}

#[tokio::test]
async fn a_server_that_never_serves_is_asked_a_few_times_only() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let mut app = connect(&world.pod, world.remote());
    let src = app.local_addr().unwrap();
    let mut kept = Vec::new();
    {
        let mut gone = std::pin::pin!(read_end(&mut app));
        loop {
            let (mut raw, _) = tokio::select! {
                end = &mut gone => break assert_eq!(end, End::Reset(Vec::new())),
                asked = server.raw(&[]) => asked,
            };
            raw.send(&Frame::goaway(0, Reason::ENHANCE_YOUR_CALM)).await.unwrap();
            kept.push(raw);
            assert!(kept.len() <= 5, "bounded");
        }
    }
    let line = world.line_from(src).await;
    assert!(line.field("error").is_some(), "{line:?}");
    server.tcp.assert_untouched();
}

/// What a server answers to the CONNECT of stream `n`, and whether the app is then served.
type Script = (&'static str, fn(u32) -> Vec<Frame>, bool);

#[tokio::test]
async fn odd_answers() {
    let world = World::new(&["--answer-timeout", "1s"]);
    let server = Server::new(&world);
    let scripts: [Script; 12] = [
        ("200 with content-length 0", |n| vec![ok_with(n, &[("content-length", b"0")])], true),
        ("200 with other headers", |n| vec![ok_with(n, &[("x-envoy", b"1"), ("baggage", b"=,;\"")])], true),
        ("interim answers", |n| vec![interim(n, b"100"), interim(n, b"103"), accepted(n)], true),
        ("101", |n| vec![interim(n, b"101")], false),
        ("only interim answers", |n| vec![interim(n, b"103"), interim(n, b"103")], false),
        ("no status", |n| vec![raw::headers(n, &[("x", b"y")])], false),
        ("odd status", |n| vec![raw::headers(n, &[(":status", b"2x0")])], false),
        ("two statuses", |n| vec![raw::headers(n, &[(":status", b"200"), (":status", b"200")])], false),
        ("DATA before the answer", |n| vec![Frame::new(kind::DATA, 0, n, b"x".to_vec()), accepted(n)], false),
        (
            "200 and END_STREAM",
            |n| vec![Frame::new(kind::HEADERS, END_HEADERS | END_STREAM, n, vec![0x88])],
            true,
        ),
        ("PUSH_PROMISE", |n| vec![Frame::new(5, END_HEADERS, n, vec![0, 0, 0, 2, 0x82])], false),
        ("frames of a stream never opened", |n| vec![accepted(n + 20)], false),
    ];
    for (name, script, is_served) in scripts {
        let mut app = connect(&world.pod, world.remote());
        app.write_all(b"secret").await.unwrap();
        let src = app.local_addr().unwrap();
        let mut kept = Vec::new();
        let served = loop {
            // A tunnel that broke over the answer is replaced, and the next gets the same answer.
            let mut first = [0; 1];
            let tunnel = tokio::select! {
                ended = app.read(&mut first) => {
                    assert!(!is_served && ended.is_err(), "{name}: {ended:?}");
                    break false;
                }
                (mut raw, stream) = server.raw(&[]) => {
                    for frame in script(stream) {
                        let _broken = raw.send(&frame).await;
                    }
                    (raw, stream)
                }
            };
            let (mut raw, stream) = tunnel;
            if is_served {
                let data =
                    raw.find(|f| f.kind == kind::DATA && f.stream == stream && !f.payload.is_empty()).await;
                assert_eq!(&data.expect(name).payload[..], b"secret", "{name}");
                break true;
            }
            kept.push(raw);
            assert!(kept.len() <= 5, "{name}: bounded");
        };
        assert_eq!(served, is_served, "{name}");
        if !is_served {
            for mut raw in kept {
                while let Ok(Some(frame)) =
                    tokio::time::timeout(std::time::Duration::from_millis(20), raw.next()).await
                {
                    assert!(
                        frame.kind != kind::DATA || frame.payload.is_empty(),
                        "{name}: a byte before a 200"
                    );
                }
            }
            world.line_from(src).await;
        } else {
            drop(app);
        }
        // The next case gets a tunnel of its own.
        world.settle().await;
    }
}

/// 200 with more headers.
fn ok_with(stream: u32, more: &[(&str, &[u8])]) -> Frame {
    raw::headers(stream, &[&[(":status", &b"200"[..])], more].concat())
}

/// An interim answer.
fn interim(stream: u32, status: &[u8]) -> Frame {
    raw::headers(stream, &[(":status", status)])
}

#[tokio::test]
async fn trailers_are_an_orderly_end() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let mut app = connect(&world.pod, world.remote());
    let (mut raw, stream) = server.raw(&[]).await;
    raw.send(&accepted(stream)).await.unwrap();
    raw.send(&Frame::new(kind::DATA, 0, stream, b"all".to_vec())).await.unwrap();
    let trailers = raw::block(&[("grpc-status", b"0")]);
    raw.send(&Frame::new(kind::HEADERS, END_HEADERS | END_STREAM, stream, trailers)).await.unwrap();
    assert_eq!(read_end(&mut app).await, End::Orderly(b"all".to_vec()));
}

#[tokio::test]
async fn a_tunnel_cut_in_the_middle_is_a_reset() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    for how in ["FIN", "reset", "close_notify", "bad frame", "GOAWAY and FIN"] {
        let mut app = connect(&world.pod, world.remote());
        let (mut raw, stream) = server.raw(&[]).await;
        raw.send(&accepted(stream)).await.unwrap();
        raw.send(&Frame::new(kind::DATA, 0, stream, b"half".to_vec())).await.unwrap();
        expect_bytes(&mut app, b"half").await;
        let mut kept = None;
        match how {
            "reset" => culvert_tests::peer::net::reset(raw.into_inner().into_inner().0),
            "bad frame" => {
                let _broken = raw.send(&Frame::new(kind::DATA, 0, 0, b"x".to_vec())).await;
                kept = Some(raw.into_inner().into_inner().0);
            }
            "close_notify" => {
                let mut tls = raw.into_inner();
                tls.shutdown().await.unwrap();
                kept = Some(tls.into_inner().0);
            }
            _ => {
                if how.starts_with("GOAWAY") {
                    raw.send(&Frame::goaway(stream, Reason::NO_ERROR)).await.unwrap();
                }
                let mut tcp = raw.into_inner().into_inner().0;
                tcp.shutdown().await.unwrap();
                kept = Some(tcp);
            }
        }
        assert_eq!(read_end(&mut app).await, End::Reset(Vec::new()), "{how}");
        let line = world.line_from(app.local_addr().unwrap()).await;
        assert!(line.has(&[("bytes_recv", "4")]), "{how}: {line:?}");
        drop(kept);
    }
    world.settle().await;
}

/// A frame for stream `n` that is sent without end.
type Flood = (&'static str, fn(u32) -> Frame);

#[tokio::test]
async fn floods_from_a_server_cost_little() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let before = world.rss();
    let mut other = connect(&world.twin, world.remote());
    let mut session = server.session().await;
    let (_, mut neighbour) = session.accept().await;
    neighbour.accept();
    let floods: [Flood; 6] = [
        ("PING", |_| Frame::new(kind::PING, 0, 0, vec![0; 8])),
        ("SETTINGS", |_| Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)])),
        ("interim answers", |n| raw::headers(n, &[(":status", b"103"), ("link", &[b'x'; 500])])),
        ("empty DATA", |n| Frame::new(kind::DATA, 0, n, Vec::new())),
        ("1-byte DATA", |n| Frame::new(kind::DATA, 0, n, vec![1])),
        ("SETTINGS answers", |_| Frame::new(kind::SETTINGS, ACK, 0, Vec::new())),
    ];
    for (name, frame) in floods {
        let app = connect(&world.pod, world.remote());
        let (mut raw, stream) = server.raw(&[]).await;
        if name.ends_with("DATA") {
            raw.send(&accepted(stream)).await.unwrap();
        }
        let many = frame(stream).encode().repeat(1000);
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(800) {
            match tokio::time::timeout(std::time::Duration::from_millis(300), raw.write(&many)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        let grown = world.rss().saturating_sub(before);
        assert!(grown < 64 * 1024, "{name}: grown by {grown} KiB");
        other.write_all(b"meanwhile").await.unwrap();
        neighbour.expect(b"meanwhile").await;
        neighbour.write(b"served").await;
        expect_bytes(&mut other, b"served").await;
        culvert_tests::peer::net::reset(app);
        drop(raw);
        // Of this flood's tunnel nothing is left.
        let mine = || world.metric("istio_tcp_sockets_open", &["reporter=\"source\""]);
        eventually(name, || mine() <= 1.0).await;
        // A tunnel that was retried meanwhile is not the next flood's.
        drain(&server).await;
    }
}

/// Takes tunnels that wait to be accepted, and closes them.
async fn drain(server: &Server) {
    while tokio::time::timeout(std::time::Duration::from_millis(20), server.tcp.accept()).await.is_ok() {}
}
