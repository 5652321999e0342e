//! Peers that break rules: each ends its own tunnel or stream, leaves one counted reason and one log line with its
//! identity, and nobody else notices.

use std::time::Duration;

use culvert_tests::peer::client::{Answer, Tunnel, dial};
use culvert_tests::peer::net::{App, End, connect, expect_bytes, read_end, reset};
use culvert_tests::peer::raw::{self, ACK, END_HEADERS, END_STREAM, Frame, PREFACE, Raw, kind, setting};
use culvert_tests::peer::server::{Server, accepted};
use culvert_tests::peer::world::{APP, World};
use culvert_tests::peer::{eventually, tls, within};
use h2::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// Flag of DATA: the first byte of the payload is the length of the padding.
const PADDED: u8 = 8;
/// Memory that a hostile peer may cost, in KiB.
const GROWTH_MAX: u64 = 32 * 1024;

async fn bare(world: &World) -> TlsStream<TcpStream> {
    let config = tls::client(Some(&world.leaf()), &["h2"]);
    dial(&world.peer, world.hbone(), config).await.expect("a TLS handshake")
}

async fn raw_tunnel(world: &World) -> Raw<TlsStream<TcpStream>> {
    Raw::greet(bare(world).await).await
}

/// Violations counted on one side, of one kind and of all.
fn counted(world: &World, side: &str, kind: &str) -> (f64, f64) {
    let (side, kind) = (format!("side=\"{side}\""), format!("kind=\"{kind}\""));
    let name = "culvert_peer_violations_total";
    (world.metric(name, &[&side, &kind]), world.metric(name, &[&side]))
}

/// Waits for one violation more than `before`, of `kind` and no other, and for its log line.
async fn one_more(world: &World, name: &str, side: &str, kind: &str, before: f64) {
    eventually(name, || counted(world, side, kind).1 > before).await;
    let (of_kind, all) = counted(world, side, kind);
    assert!(of_kind >= 1.0 && all == before + 1.0, "{name}: {of_kind} of {kind}, {all} in all");
    let about = [("kind", kind), ("identity", &*world.peer.identity())];
    eventually(name, || world.agent.log().iter().any(|l| l.has(&about))).await;
}

/// A well-behaved client with an open stream to an echoing app.
struct Neighbour {
    stream: Answer,
    _tunnel: Tunnel,
}

impl Neighbour {
    async fn new(world: &World) -> Self {
        let mut tunnel = Tunnel::open(world).await;
        let stream = tunnel.connect(&world.app().to_string()).await;
        Self { stream, _tunnel: tunnel }
    }

    async fn is_served(&mut self) {
        self.stream.write(b"still here").await;
        self.stream.expect(b"still here").await;
    }
}

/// Frames that a client sends first, and then again and again; what it is told, and what is counted.
struct Flood {
    name: &'static str,
    first: Vec<u8>,
    again: Box<dyn FnMut() -> Vec<u8>>,
    kind: &'static str,
}

impl Flood {
    fn of(name: &'static str, kind: &'static str, frame: &Frame) -> Self {
        let many = frame.encode().repeat(100);
        Self { name, first: Vec::new(), again: Box::new(move || many.clone()), kind }
    }

    fn behind(mut self, first: &Frame) -> Self {
        self.first = first.encode();
        self
    }

    /// Streams, one after the other: each gives what is sent for it.
    fn streams(name: &'static str, kind: &'static str, frames: impl Fn(u32) -> Vec<Frame> + 'static) -> Self {
        let mut stream = 1;
        let again = move || {
            let mut bytes = Vec::new();
            for _ in 0..20 {
                stream += 2;
                bytes.extend(frames(stream).iter().flat_map(Frame::encode));
            }
            bytes
        };
        Self { name, first: Vec::new(), again: Box::new(again), kind }
    }
}

/// A field of 4,000 bytes, and its name again and again.
fn bomb(stream: u32) -> Frame {
    let mut block = raw::block(&[(":method", b"CONNECT")]);
    block.extend([0x40, 1, b'x', 127, 0xa1, 0x1e]);
    block.extend([b'v'; 4000]);
    block.extend([0xbe; 12_000]);
    Frame::new(kind::HEADERS, END_HEADERS, stream, block)
}

fn client_floods(authority: String) -> Vec<Flood> {
    let window = [(setting::INITIAL_WINDOW_SIZE, 65_535)];
    let open = raw::connect(1, authority.as_bytes());
    let half = Frame::new(kind::HEADERS, 0, 1, raw::block(&[(":method", b"CONNECT")]));
    let malformed = |n| raw::headers(n, &[(":method", b"CONNECT"), ("Upper", b"x")]);
    let given_up = move |n| vec![raw::connect(n, authority.as_bytes()), Frame::reset(n, Reason::CANCEL)];
    vec![
        Flood::of("PING", "ping_flood", &Frame::new(kind::PING, 0, 0, vec![0; 8])),
        Flood::of("PING answers", "ping_flood", &Frame::new(kind::PING, ACK, 0, vec![0; 8])),
        Flood::of("SETTINGS", "settings_flood", &Frame::settings(&window)),
        Flood::of("unknown frames", "frame_flood", &Frame::new(0xee, 0, 0, vec![0; 64])),
        Flood::of("PRIORITY", "frame_flood", &Frame::new(2, 0, 1, vec![0, 0, 0, 0, 1])),
        Flood::of("GOAWAY", "frame_flood", &Frame::goaway(0, Reason::NO_ERROR)).behind(&open),
        Flood::of("WINDOW_UPDATE", "window_update_flood", &Frame::credit(0, 1)),
        Flood::of("empty DATA", "empty_data", &Frame::new(kind::DATA, 0, 1, Vec::new())).behind(&open),
        Flood::of("padded empty DATA", "excess", &Frame::new(kind::DATA, PADDED, 1, vec![3, 0, 0, 0]))
            .behind(&open),
        Flood::of("empty CONTINUATION", "continuation", &Frame::new(kind::CONTINUATION, 0, 1, Vec::new()))
            .behind(&half),
        Flood::of(
            "CONTINUATION without end",
            "continuation",
            &Frame::new(kind::CONTINUATION, 0, 1, raw::block(&[("x", &[b'x'; 1000])])),
        )
        .behind(&half),
        Flood::streams("HPACK bombs", "header_list", |n| vec![bomb(n)]),
        Flood::streams("rapid reset", "reset_flood", given_up),
        Flood::streams("malformed requests", "provoked_resets", move |n| vec![malformed(n)]),
    ]
}

#[tokio::test]
async fn a_flooding_client_ends_its_own_tunnel_for_one_counted_reason() {
    let world = World::new(&["--memory-budget", "67108864"]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut neighbour = Neighbour::new(&world).await;
    let before = world.rss();
    for Flood { name, first, mut again, kind } in client_floods(world.app().to_string()) {
        let ended = |kind: &str| counted(&world, "server", kind).0;
        let count = ended(kind);
        let mut raw = raw_tunnel(&world).await;
        let mut sent = raw.write(&first).await;
        for _ in 0..5000 {
            if sent.is_err() {
                break;
            }
            sent = raw.write(&again()).await;
            if ended(kind) > count {
                break;
            }
        }
        // What it was told stands in front of the end.
        if let Some(goaway) = raw.find(|f| f.kind == kind::GOAWAY).await {
            assert!(
                [Reason::ENHANCE_YOUR_CALM, Reason::NO_ERROR].contains(&goaway.goaway_reason()),
                "{name}: {goaway:?}"
            );
        }
        eventually(name, || ended(kind) == count + 1.0).await;
        let about = [("kind", kind), ("identity", &*world.peer.identity())];
        eventually(name, || world.agent.log().iter().any(|l| l.has(&about))).await;
        neighbour.is_served().await;
        let grown = world.rss().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{name}: grown by {grown} KiB");
    }
    drop(neighbour);
    world.settle().await;
}

/// A flood's name, what is counted for it, and its frame for a stream.
type ServerFlood = (&'static str, &'static str, fn(u32) -> Frame);

#[tokio::test]
async fn a_flooding_server_ends_its_own_tunnel_for_one_counted_reason() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let mut other = connect(&world.twin, world.remote());
    let mut session = server.session().await;
    let (_, mut neighbour) = session.accept().await;
    neighbour.accept();
    let before = world.rss();
    let floods: [ServerFlood; 8] = [
        ("PING", "ping_flood", |_| Frame::new(kind::PING, 0, 0, vec![0; 8])),
        ("SETTINGS", "settings_flood", |_| Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)])),
        ("WINDOW_UPDATE", "window_update_flood", |n| Frame::credit(n, 1)),
        ("empty DATA", "empty_data", |n| Frame::new(kind::DATA, 0, n, Vec::new())),
        ("PRIORITY", "frame_flood", |n| Frame::new(2, 0, n, vec![0, 0, 0, 0, 1])),
        ("unknown frames", "frame_flood", |_| Frame::new(0xee, 0, 0, vec![0; 64])),
        ("interim answers", "interim", |n| raw::headers(n, &[(":status", b"103"), ("link", &[b'x'; 500])])),
        ("HPACK bombs", "header_list", |n| {
            let Frame { payload, .. } = bomb(n);
            Frame::new(
                kind::HEADERS,
                END_HEADERS,
                n,
                payload.slice(raw::block(&[(":method", b"CONNECT")]).len()..),
            )
        }),
    ];
    for (name, kind, frame) in floods {
        let count = counted(&world, "client", kind).0;
        let mut app = connect(&world.pod, world.remote());
        let (mut raw, stream) = server.raw(&[]).await;
        raw.send(&accepted(stream)).await.unwrap();
        let many = frame(stream).encode().repeat(100);
        for _ in 0..5000 {
            if raw.write(&many).await.is_err() || counted(&world, "client", kind).0 > count {
                break;
            }
        }
        eventually(name, || counted(&world, "client", kind).0 == count + 1.0).await;
        assert_eq!(read_end(&mut app).await, End::Reset(Vec::new()), "{name}");
        let about = [("kind", kind), ("identity", &*world.peer.identity())];
        eventually(name, || world.agent.log().iter().any(|l| l.has(&about))).await;
        other.write_all(b"meanwhile").await.unwrap();
        neighbour.expect(b"meanwhile").await;
        neighbour.write(b"served").await;
        expect_bytes(&mut other, b"served").await;
        let grown = world.rss().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{name}: grown by {grown} KiB");
    }
}

/// A frame that a server must answer with an error of its stream.
type Form = (&'static str, fn(u32) -> Frame);

#[tokio::test]
async fn errors_that_a_client_provokes_are_counted_and_end() {
    let world = World::new(&[]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut neighbour = Neighbour::new(&world).await;
    let before = world.rss();
    let forms: [Form; 5] = [
        ("credit of nothing", |n| Frame::credit(n, 0)),
        ("credit beyond the window", |n| Frame::credit(n, 0x7fff_ffff)),
        ("a stream that depends on itself", |n| {
            Frame::new(2, 0, n, [n.to_be_bytes().to_vec(), vec![1]].concat())
        }),
        ("DATA after the end", |n| Frame::new(kind::DATA, 0, n, b"x".to_vec())),
        ("a second request on a stream", |n| raw::connect(n, b"10.0.0.1:1")),
    ];
    for (name, frame) in forms {
        let authority = world.app().to_string();
        let mut raw = raw_tunnel(&world).await;
        let all = counted(&world, "server", "").1;
        'flood: for batch in 0..400_u32 {
            let mut bytes = Vec::new();
            for n in 0..20 {
                let stream = (batch * 20 + n) * 2 + 1;
                let ends = if name.contains("after the end") { END_STREAM } else { 0 };
                let open = raw::connect(stream, authority.as_bytes());
                bytes.extend(Frame::new(kind::HEADERS, END_HEADERS | ends, stream, open.payload).encode());
                bytes.extend(frame(stream).encode());
            }
            if raw.write(&bytes).await.is_err() || counted(&world, "server", "").1 > all + 300.0 {
                break 'flood;
            }
        }
        neighbour.is_served().await;
        let grown = world.rss().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{name}: grown by {grown} KiB");
    }
    drop(neighbour);
    world.settle().await;
}

#[tokio::test]
async fn a_malformed_message_ends_its_stream_and_no_other() {
    let world = World::new(&[]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut raw = raw_tunnel(&world).await;
    let authority = world.app().to_string();
    raw.send(&raw::connect(1, authority.as_bytes())).await.unwrap();
    assert_eq!(raw.outcome(1).await.unwrap().status(), Some(200));
    let with = |name: &'static str, value: &'static [u8]| {
        raw::block(&[(":method", b"CONNECT"), (":authority", authority.as_bytes()), (name, value)])
    };
    let long = raw::block(&[(":method", b"CONNECT"), (":authority", &[b'x'; 100_000])]);
    let blocks = [
        ("NUL in a value", with("x", b"a\0b")),
        ("newline in a value", with("x", b"a\nb")),
        ("upper case", with("X", b"y")),
        ("space in a name", with("x y", b"z")),
        ("no name", with("", b"z")),
        ("status of an answer", with(":status", b"200")),
        ("unknown pseudo header", with(":target", b"x")),
        ("method twice", with(":method", b"CONNECT")),
        ("a pseudo header too late", raw::block(&[("a", b"b"), (":method", b"CONNECT")])),
        ("no method", raw::block(&[(":authority", authority.as_bytes())])),
        ("nothing", Vec::new()),
        ("over the limit", long),
    ];
    for (number, (name, block)) in blocks.into_iter().enumerate() {
        let stream = u32::try_from(number).unwrap() * 2 + 3;
        let all = counted(&world, "server", "malformed").1;
        let mut pieces = block.chunks(16_000).peekable();
        let first = pieces.next().unwrap_or_default().to_vec();
        let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        raw.send(&Frame::new(kind::HEADERS, end, stream, first)).await.unwrap();
        while let Some(piece) = pieces.next() {
            let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            raw.send(&Frame::new(kind::CONTINUATION, end, stream, piece.to_vec())).await.unwrap();
        }
        let outcome = raw.outcome(stream).await.expect(name);
        assert_eq!((outcome.kind, outcome.first()), (kind::RST_STREAM, 1), "{name}: {outcome:?}");
        one_more(&world, name, "server", "malformed", all).await;
        raw.send(&Frame::new(kind::DATA, 0, 1, b"go on".to_vec())).await.unwrap();
        let data = raw.find(|f| f.kind == kind::DATA && f.stream == 1 && !f.payload.is_empty()).await;
        assert_eq!(&data.expect(name).payload[..], b"go on", "{name}");
    }
    drop(raw);
    world.settle().await;
}

#[tokio::test]
async fn a_length_in_a_connect_or_its_answer_means_nothing() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    for length in [&b"0"[..], b"3", b"18446744073709551616", b"x"] {
        let mut raw = raw_tunnel(&world).await;
        let at = world.app().to_string();
        let head = [(":method", &b"CONNECT"[..]), (":authority", at.as_bytes()), ("content-length", length)];
        raw.send(&raw::headers(1, &head)).await.unwrap();
        let (mut served, _) = app.accept().await;
        assert_eq!(raw.outcome(1).await.unwrap().status(), Some(200));
        raw.send(&Frame::new(kind::DATA, 0, 1, b"longer".to_vec())).await.unwrap();
        expect_bytes(&mut served, b"longer").await;
        raw.send(&Frame::new(kind::DATA, END_STREAM, 1, Vec::new())).await.unwrap();
        assert_eq!(read_end(&mut served).await, End::Orderly(Vec::new()));
    }
    let server = Server::new(&world);
    for length in [&b"0"[..], b"3", b"18446744073709551616", b"x"] {
        let mut app = connect(&world.pod, world.remote());
        let (mut raw, stream) = server.raw(&[]).await;
        raw.send(&raw::headers(stream, &[(":status", b"200"), ("content-length", length)])).await.unwrap();
        raw.send(&Frame::new(kind::DATA, 0, stream, b"longer".to_vec())).await.unwrap();
        expect_bytes(&mut app, b"longer").await;
        app.write_all(b"answer").await.unwrap();
        let data = raw.find(|f| f.kind == kind::DATA && !f.payload.is_empty()).await.unwrap();
        assert_eq!(&data.payload[..], b"answer");
        raw.send(&Frame::new(kind::DATA, END_STREAM, stream, Vec::new())).await.unwrap();
        assert_eq!(read_end(&mut app).await, End::Orderly(Vec::new()));
        drop((app, raw));
        world.settle().await;
    }
    assert_eq!(counted(&world, "client", "").1 + counted(&world, "server", "").1, 0.0);
}

/// The table sizes that a header block announces. Source: RFC 7541 §6.3.
fn table_sizes(mut block: &[u8]) -> Vec<u32> {
    let mut sizes = Vec::new();
    while let [first, rest @ ..] = block {
        if first & 0xe0 != 0x20 {
            break;
        }
        block = rest;
        let mut size = u32::from(first & 0x1f);
        if size == 31 {
            for shift in [0, 7, 14, 21, 28] {
                let [byte, rest @ ..] = block else { break };
                block = rest;
                size += u32::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
        }
        sizes.push(size);
    }
    sizes
}

#[tokio::test]
async fn a_peers_table_size_is_not_adopted_in_full() {
    let world = World::new(&[]);
    let settings = [(setting::HEADER_TABLE_SIZE, u32::MAX)];
    let mut raw = Raw::new(bare(&world).await);
    raw.write(PREFACE).await.unwrap();
    raw.send(&Frame::settings(&settings)).await.unwrap();
    for stream in [1, 3, 5] {
        raw.send(&raw::connect(stream, b"10.0.0.1:1")).await.unwrap();
        let answer = raw.outcome(stream).await.unwrap();
        assert_eq!(answer.kind, kind::HEADERS);
        assert!(table_sizes(&answer.payload).iter().all(|s| *s <= 65_536), "{answer:?}");
    }
    let server = Server::new(&world);
    let mut kept = Vec::new();
    let app = connect(&world.pod, world.remote());
    let (mut raw, stream) = server.raw(&settings).await;
    raw.send(&accepted(stream)).await.unwrap();
    raw.find(|f| f.kind == kind::SETTINGS && f.flags & ACK == ACK).await.unwrap();
    kept.push(app);
    kept.push(connect(&world.pod, world.remote()));
    let request = raw.find(|f| f.kind == kind::HEADERS).await.unwrap();
    assert!(table_sizes(&request.payload).iter().all(|s| *s <= 65_536), "{request:?}");
}

/// What a server sends first and as its answer, and what is counted for it.
type Lenient = (&'static str, fn(u32) -> Vec<Frame>, &'static str);

#[tokio::test]
async fn lenient_answers_are_refused_for_one_counted_reason() {
    let world = World::new(&["--answer-timeout", "2s"]);
    let server = Server::new(&world);
    let cases: [Lenient; 10] = [
        ("no status", |n| vec![Frame::settings(&[]), raw::headers(n, &[("x", b"y")])], "malformed"),
        ("101", |n| vec![Frame::settings(&[]), raw::headers(n, &[(":status", b"101")])], "malformed"),
        (
            "a path",
            |n| vec![Frame::settings(&[]), raw::headers(n, &[(":status", b"200"), (":path", b"/")])],
            "malformed",
        ),
        (
            "a method",
            |n| vec![Frame::settings(&[]), raw::headers(n, &[(":status", b"200"), (":method", b"GET")])],
            "malformed",
        ),
        ("odd status", |n| vec![Frame::settings(&[]), raw::headers(n, &[(":status", b"2x0")])], "malformed"),
        ("ENABLE_PUSH", |n| vec![Frame::settings(&[(setting::ENABLE_PUSH, 1)]), accepted(n)], "settings"),
        (
            "PUSH_PROMISE",
            |n| {
                let promise = Frame::new(5, END_HEADERS, n, vec![0, 0, 0, 2, 0x82]);
                vec![Frame::settings(&[]), promise, accepted(n)]
            },
            "push",
        ),
        ("no SETTINGS first", |n| vec![accepted(n), Frame::settings(&[])], "no_settings"),
        (
            "an answered SETTINGS first",
            |n| vec![Frame::new(kind::SETTINGS, ACK, 0, Vec::new()), accepted(n)],
            "no_settings",
        ),
        ("PING first", |n| vec![Frame::new(kind::PING, 0, 0, vec![0; 8]), accepted(n)], "no_settings"),
    ];
    for (name, script, kind) in cases {
        let before = counted(&world, "client", kind);
        let mut app = connect(&world.pod, world.remote());
        app.write_all(b"secret").await.unwrap();
        let mut kept = Vec::new();
        let mut tunnels = 0.0;
        let mut gone = Box::pin(read_end(&mut app));
        loop {
            let stream = tokio::select! {
                end = &mut gone => break assert_eq!(end, End::Reset(Vec::new()), "{name}"),
                stream = server.accept() => stream.expect("a TLS handshake"),
            };
            tunnels += 1.0;
            let mut raw = Raw::new(stream);
            // The client's first request is stream 1.
            for frame in script(1) {
                let _broken = raw.send(&frame).await;
            }
            kept.push(raw);
            assert!(kept.len() <= 5, "{name}: bounded");
        }
        eventually(name, || counted(&world, "client", kind).0 >= before.0 + tunnels).await;
        let after = counted(&world, "client", kind);
        assert_eq!(
            (after.0, after.1),
            (before.0 + tunnels, before.1 + tunnels),
            "{name}: one for each tunnel"
        );
        drop(kept);
        world.settle().await;
    }
}

#[tokio::test]
async fn a_client_without_settings_is_ended_in_time() {
    let world = World::new(&["--preface-timeout", "1s"]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut silent = Raw::new(bare(&world).await);
    silent.write(PREFACE).await.unwrap();
    // Not even an answer to the agent's own SETTINGS: it would be a frame.
    let goaway = loop {
        let frame = silent.next().await.expect("a GOAWAY");
        if frame.kind == kind::GOAWAY {
            break frame;
        }
    };
    assert_eq!(goaway.goaway_reason(), Reason::SETTINGS_TIMEOUT);
    one_more(&world, "silent", "server", "silent", 0.0).await;
    let request = raw::connect(1, world.app().to_string().as_bytes());
    for (number, first) in [request, Frame::new(kind::PING, 0, 0, vec![0; 8])].into_iter().enumerate() {
        let before = counted(&world, "server", "no_settings").1;
        let mut raw = Raw::new(bare(&world).await);
        raw.write(PREFACE).await.unwrap();
        raw.send(&first).await.unwrap();
        let goaway = raw.find(|f| f.kind == kind::GOAWAY).await.expect("a GOAWAY");
        assert_eq!(goaway.goaway_reason(), Reason::PROTOCOL_ERROR, "{number}");
        one_more(&world, "no SETTINGS", "server", "no_settings", before).await;
    }
    Neighbour::new(&world).await.is_served().await;
}

#[tokio::test]
async fn a_server_without_settings_is_ended_in_time() {
    let world = World::new(&["--preface-timeout", "1s", "--answer-timeout", "60s"]);
    let server = Server::new(&world);
    let mut app = connect(&world.pod, world.remote());
    let mut kept = Vec::new();
    let mut gone = Box::pin(read_end(&mut app));
    loop {
        tokio::select! {
            end = &mut gone => break assert_eq!(end, End::Reset(Vec::new())),
            stream = server.accept() => kept.push(stream.expect("a TLS handshake")),
        }
    }
    assert!((1..=5).contains(&kept.len()));
    assert_eq!(counted(&world, "client", "silent").0, kept.len() as f64);
}

#[tokio::test]
async fn empty_frames_now_and_then_are_no_flood() {
    let world = World::new(&[]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut raw = raw_tunnel(&world).await;
    raw.send(&raw::connect(1, world.app().to_string().as_bytes())).await.unwrap();
    assert_eq!(raw.outcome(1).await.unwrap().status(), Some(200));
    // More than the codec stands in a tunnel's life, each beside a byte of use.
    for _ in 0..400 {
        raw.send(&Frame::new(kind::DATA, 0, 1, Vec::new())).await.unwrap();
        raw.send(&Frame::new(kind::DATA, 0, 1, b"x".to_vec())).await.unwrap();
        raw.find(|f| f.kind == kind::DATA && !f.payload.is_empty()).await.expect("a byte");
    }
    assert_eq!(counted(&world, "server", "").1, 0.0);
}

#[tokio::test]
async fn credit_for_every_byte_is_no_flood() {
    let world = World::new(&[]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut raw = raw_tunnel(&world).await;
    let authority = world.app().to_string();
    let streams: Vec<u32> = (0..200).map(|n| n * 2 + 1).collect();
    for stream in &streams {
        raw.send(&raw::connect(*stream, authority.as_bytes())).await.unwrap();
        assert_eq!(raw.outcome(*stream).await.unwrap().status(), Some(200), "{stream}");
    }
    for _ in 0..40 {
        let bytes: Vec<u8> =
            streams.iter().flat_map(|s| Frame::new(kind::DATA, 0, *s, b"x".to_vec()).encode()).collect();
        raw.write(&bytes).await.unwrap();
        let mut back = 0;
        while back < streams.len() {
            let data = raw.find(|f| f.kind == kind::DATA).await.expect("an open tunnel");
            back += data.payload.len();
            for _ in 0..data.payload.len() {
                let credit = [Frame::credit(data.stream, 1).encode(), Frame::credit(0, 1).encode()].concat();
                raw.write(&credit).await.unwrap();
            }
        }
    }
    assert_eq!(counted(&world, "server", "").1, 0.0);
    drop(raw);
    world.settle().await;
}

#[tokio::test]
async fn a_ping_without_answer_ends_the_tunnel() {
    let world = World::new(&["--ping-interval", "200ms", "--ping-timeout", "500ms"]);
    let app = App::listen(&world.pod, APP);
    let mut raw = raw_tunnel(&world).await;
    raw.send(&raw::connect(1, world.app().to_string().as_bytes())).await.unwrap();
    let (mut served, _) = app.accept().await;
    assert_eq!(read_end(&mut served).await, End::Reset(Vec::new()), "a peer that does not answer");
    drop(raw);
    let server = Server::new(&world);
    let mut client = connect(&world.pod, world.remote());
    let (mut raw, stream) = server.raw(&[]).await;
    raw.send(&accepted(stream)).await.unwrap();
    raw.send(&Frame::new(kind::DATA, 0, stream, b"last words".to_vec())).await.unwrap();
    expect_bytes(&mut client, b"last words").await;
    assert_eq!(read_end(&mut client).await, End::Reset(Vec::new()));
    drop(raw);
    // One that answers goes on, far past the limit.
    let mut tunnel = Tunnel::open(&world).await;
    let authority = world.app().to_string();
    let (mut stream, (mut served, _)) = tokio::join!(tunnel.connect(&authority), app.accept());
    let idle = timeout(Duration::from_secs(2), read_end(&mut served)).await;
    assert!(idle.is_err(), "{idle:?}");
    stream.write(b"still here").await;
    expect_bytes(&mut served, b"still here").await;
}

#[tokio::test]
async fn handshakes_of_a_byte_at_a_time_end_in_time() {
    let world = World::new(&["--tls-timeout", "2s", "--connect-timeout", "5s"]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut neighbour = Neighbour::new(&world).await;
    let before = world.descriptors();
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let slow = async |tcp: &mut TcpStream| {
        for byte in hello.iter().chain([0; 100].iter()) {
            if tcp.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never ended");
    };
    let mut clients: Vec<_> = (0..20).map(|_| connect(&world.peer, world.hbone())).collect();
    within("the end of slow clients", async {
        for tcp in &mut clients {
            slow(tcp).await;
        }
    })
    .await;
    drop(clients);
    neighbour.is_served().await;
    let server = Server::new(&world);
    let mut app = connect(&world.pod, world.remote());
    let mut gone = Box::pin(read_end(&mut app));
    let (mut tcp, _) = server.tcp.accept().await;
    tokio::select! {
        end = &mut gone => assert_eq!(end, End::Reset(Vec::new())),
        () = slow(&mut tcp) => assert_eq!(within("the app's end", gone).await, End::Reset(Vec::new())),
    }
    drop(tcp);
    eventually("no descriptor left", || world.descriptors() <= before).await;
}

#[tokio::test]
async fn garbage_behind_the_handshake_ends_the_tunnel() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let mut raw = raw_tunnel(&world).await;
    raw.send(&raw::connect(1, world.app().to_string().as_bytes())).await.unwrap();
    let (mut served, _) = app.accept().await;
    assert_eq!(raw.outcome(1).await.unwrap().status(), Some(200));
    let mut tcp = raw.into_inner().into_inner().0;
    tcp.write_all(b"\x17\x03\x03\x00\x20it was encrypted for somebody el").await.unwrap();
    assert_eq!(read_end(&mut served).await, End::Reset(Vec::new()));
    one_more(&world, "garbage", "server", "tls", 0.0).await;
    let server = Server::new(&world);
    let mut client = connect(&world.pod, world.remote());
    let (mut raw, stream) = server.raw(&[]).await;
    raw.send(&accepted(stream)).await.unwrap();
    raw.send(&Frame::new(kind::DATA, 0, stream, b"half".to_vec())).await.unwrap();
    expect_bytes(&mut client, b"half").await;
    let mut tcp = raw.into_inner().into_inner().0;
    tcp.write_all(&[0x55; 600]).await.unwrap();
    assert_eq!(read_end(&mut client).await, End::Reset(Vec::new()));
    one_more(&world, "garbage", "client", "tls", 0.0).await;
}

#[tokio::test]
async fn thousands_of_streams_and_idle_connections_go_away() {
    // That fewer are taken is another test's.
    let world = World::new(&["--source-handshakes", "1000", "--pod-handshakes", "1000"]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut neighbour = Neighbour::new(&world).await;
    let before = (world.rss(), world.descriptors());
    let idle: Vec<_> = (0..500).map(|_| connect(&world.peer, world.hbone())).collect();
    let mut tunnels = Vec::new();
    for _ in 0..10 {
        let mut raw = raw_tunnel(&world).await;
        let authority = world.app().to_string();
        let asks: Vec<u8> =
            (0..200).flat_map(|n| raw::connect(n * 2 + 1, authority.as_bytes()).encode()).collect();
        raw.write(&asks).await.unwrap();
        for _ in 0..200 {
            let answer = raw.find(|f| f.kind == kind::HEADERS).await.expect("an answer");
            assert_eq!(answer.status(), Some(200));
        }
        tunnels.push(raw);
        neighbour.is_served().await;
    }
    let peak = world.rss().saturating_sub(before.0);
    assert!(peak < 64 * 1024, "2,000 streams and 500 connections: {peak} KiB");
    drop((idle, tunnels));
    eventually("descriptors go away", || world.descriptors() <= before.1 + 2).await;
    neighbour.is_served().await;
    assert_eq!(counted(&world, "server", "").1, 0.0);
}

#[tokio::test]
async fn uploads_that_the_peer_abandons_do_not_wait_for_the_app() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let before = world.descriptors();
    let mut raw = raw_tunnel(&world).await;
    let authority = world.app().to_string();
    let mut stalled = Vec::new();
    for n in 0..50 {
        let stream = n * 2 + 1;
        raw.send(&raw::connect(stream, authority.as_bytes())).await.unwrap();
        stalled.push(app.accept().await.0);
        assert_eq!(raw.outcome(stream).await.unwrap().status(), Some(200));
        let part = Frame::new(kind::DATA, 0, stream, vec![1; 16_384]).encode().repeat(20);
        raw.write(&part).await.unwrap();
    }
    drop(raw);
    eventually("descriptors go away", || world.descriptors() <= before + 2).await;
    for mut app in stalled {
        assert!(matches!(read_end(&mut app).await, End::Reset(_)));
    }
    world.settle().await;
}

#[tokio::test]
async fn odd_settings_end_the_tunnel() {
    let world = World::new(&[]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut neighbour = Neighbour::new(&world).await;
    let cases = [
        ("a window beyond 31 bits", (setting::INITIAL_WINDOW_SIZE, 1 << 31), "protocol"),
        ("a frame of nothing", (setting::MAX_FRAME_SIZE, 0), "protocol"),
        ("a frame beyond 24 bits", (setting::MAX_FRAME_SIZE, 1 << 24), "protocol"),
        ("a push that is neither", (setting::ENABLE_PUSH, 2), "protocol"),
    ];
    for (name, setting, kind) in cases {
        let before = counted(&world, "server", kind).1;
        let mut raw = raw_tunnel(&world).await;
        raw.send(&Frame::settings(&[setting])).await.unwrap();
        let goaway = raw.find(|f| f.kind == kind::GOAWAY).await.expect(name);
        assert_ne!(goaway.goaway_reason(), Reason::NO_ERROR, "{name}");
        one_more(&world, name, "server", kind, before).await;
        neighbour.is_served().await;
    }
}

#[tokio::test]
async fn windows_that_come_and_go_lose_no_byte() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let mut raw = raw_tunnel(&world).await;
    raw.send(&raw::connect(1, world.app().to_string().as_bytes())).await.unwrap();
    let (mut served, _) = app.accept().await;
    assert_eq!(raw.outcome(1).await.unwrap().status(), Some(200));
    let total = 400_000_usize;
    let sender = async {
        let data: Vec<u8> = (0..total).map(|i| (i >> 8) as u8).collect();
        served.write_all(&data).await.unwrap();
        data
    };
    let reader = async {
        let mut got = Vec::new();
        // Nothing, a little, all there is, and nothing again: a window may become negative.
        for window in [0, 100, 0x7fff_ffff, 0, 1, 70_000, 0].into_iter().cycle() {
            raw.send(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, window)])).await.unwrap();
            raw.send(&Frame::new(kind::PING, 0, 0, vec![0; 8])).await.unwrap();
            loop {
                let frame = raw.next().await.expect("an open tunnel");
                match frame.kind {
                    kind::DATA => got.extend_from_slice(&frame.payload),
                    kind::PING if frame.flags & ACK == ACK => break,
                    _ => {}
                }
            }
            if got.len() == total {
                return got;
            }
        }
        unreachable!("for ever")
    };
    let (data, got) = within("all bytes", async { tokio::join!(sender, reader) }).await;
    assert!(data == got, "other bytes than were sent");
    assert_eq!(counted(&world, "server", "").1, 0.0);
}

#[tokio::test]
async fn more_than_the_window_ends_the_stream_and_no_other() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let mut raw = raw_tunnel(&world).await;
    let authority = world.app().to_string();
    let mut served = Vec::new();
    for stream in [1, 3] {
        raw.send(&raw::connect(stream, authority.as_bytes())).await.unwrap();
        served.push(app.accept().await.0);
        assert_eq!(raw.outcome(stream).await.unwrap().status(), Some(200));
    }
    let many = Frame::new(kind::DATA, 0, 1, vec![1; 16_384]).encode().repeat(64);
    // The kernel takes some of it for the app, and credit comes back for that.
    for _ in 0..40 {
        raw.write(&many).await.unwrap();
    }
    let told = raw.find(|f| f.kind == kind::RST_STREAM && f.stream == 1).await.expect("an open tunnel");
    assert_eq!(told.first(), u32::from(Reason::FLOW_CONTROL_ERROR));
    one_more(&world, "more than the window", "server", "flow_control", 0.0).await;
    assert!(matches!(read_end(&mut served[0]).await, End::Reset(_)));
    raw.send(&Frame::new(kind::DATA, 0, 3, b"still here".to_vec())).await.unwrap();
    expect_bytes(&mut served[1], b"still here").await;
}

#[tokio::test]
async fn peers_that_do_not_read_are_waited_for_and_nobody_else_is() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let authority = world.app().to_string();
    let mut tunnel = Tunnel::open(&world).await;
    let (mut neighbour, (mut near, _)) = tokio::join!(tunnel.connect(&authority), app.accept());
    let before = world.rss();
    // Answers to a client that gives all credit and reads nothing, from twenty apps that never stop.
    let mut client = raw_tunnel(&world).await;
    let mut apps = Vec::new();
    let chunk = vec![3; 1 << 20];
    for n in 0..20 {
        client.send(&raw::connect(n * 2 + 1, authority.as_bytes())).await.unwrap();
        let (mut served, _) = app.accept().await;
        while let Ok(Ok(())) = timeout(Duration::from_millis(50), served.write_all(&chunk)).await {}
        apps.push(served);
    }
    // Uploads to a server that reads nothing.
    let server = Server::new(&world);
    let mut uploads = Vec::new();
    let mut first = connect(&world.pod, world.remote());
    let (mut deaf, stream) = server.raw(&[(setting::INITIAL_WINDOW_SIZE, 0x7fff_ffff)]).await;
    deaf.send(&accepted(stream)).await.unwrap();
    deaf.send(&Frame::credit(0, 0x7000_0000)).await.unwrap();
    for _ in 0..20 {
        if timeout(Duration::from_millis(200), first.write_all(&chunk)).await.is_err() {
            break;
        }
    }
    uploads.push(first);
    let grown = world.rss().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "grown by {grown} KiB");
    for _ in 0..20 {
        neighbour.write(b"to the app").await;
        expect_bytes(&mut near, b"to the app").await;
        near.write_all(b"and back").await.unwrap();
        neighbour.expect(b"and back").await;
    }
    assert_eq!(counted(&world, "server", "").1 + counted(&world, "client", "").1, 0.0);
    drop((client, deaf, apps, uploads));
}

#[tokio::test]
async fn forms_of_goaway() {
    let world = World::new(&[]);
    let server = Server::new(&world);
    let calm = Reason::ENHANCE_YOUR_CALM;
    // Up to the stream, with whatever reason: it goes on, and the next connection gets a tunnel of its own.
    for frames in [
        vec![(1, Reason::NO_ERROR)],
        vec![(1, calm)],
        vec![(0x7fff_ffff, Reason::NO_ERROR), (1, Reason::NO_ERROR)],
    ] {
        let mut app = connect(&world.pod, world.remote());
        let (mut raw, stream) = server.raw(&[]).await;
        raw.send(&accepted(stream)).await.unwrap();
        for (last, reason) in &frames {
            raw.send(&Frame::goaway(*last, *reason)).await.unwrap();
        }
        let next = connect(&world.pod, world.remote());
        let (mut other, asked) = server.raw(&[]).await;
        other.send(&accepted(asked)).await.unwrap();
        raw.send(&Frame::new(kind::DATA, END_STREAM, stream, b"to the end".to_vec())).await.unwrap();
        assert_eq!(read_end(&mut app).await, End::Orderly(b"to the end".to_vec()), "{frames:?}");
        // A tunnel that ends before its streams would be dialled anew.
        reset(next);
        drop(app);
        world.settle().await;
    }
    assert_eq!(counted(&world, "client", "").1, 0.0);
    // Against the rules: a stream of its own, or a last stream that rises.
    let wrong = Frame::new(kind::GOAWAY, 0, 1, vec![0; 8]);
    let rising = [Frame::goaway(1, Reason::NO_ERROR), Frame::goaway(3, Reason::NO_ERROR)];
    for (name, frames) in [("on a stream", vec![wrong]), ("rising", rising.to_vec())] {
        let before = counted(&world, "client", "protocol").1;
        let mut app = connect(&world.pod, world.remote());
        let (mut raw, stream) = server.raw(&[]).await;
        raw.send(&accepted(stream)).await.unwrap();
        raw.send(&Frame::new(kind::DATA, 0, stream, b"half".to_vec())).await.unwrap();
        expect_bytes(&mut app, b"half").await;
        for frame in &frames {
            raw.send(frame).await.unwrap();
        }
        assert_eq!(read_end(&mut app).await, End::Reset(Vec::new()), "{name}");
        one_more(&world, name, "client", "protocol", before).await;
        drop(raw);
        world.settle().await;
    }
}
