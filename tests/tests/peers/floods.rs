//! Hostile clients: the agent stays up, stays small, and serves a well-behaved neighbour meanwhile.

use std::time::{Duration, Instant};

use culvert_tests::peer::client::{Tunnel, assert_serves, dial};
use culvert_tests::peer::net::{App, End, expect_bytes, read_end};
use culvert_tests::peer::raw::{self, ACK, Frame, PREFACE, Raw, kind, setting};
use culvert_tests::peer::world::{APP, World};
use culvert_tests::peer::{eventually, tls};
use h2::Reason;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// Memory that a flood may cost, in KiB: far below what it has sent, far above noise.
const GROWTH_MAX: u64 = 64 * 1024;

/// What is sent again and again.
type Source = Box<dyn FnMut() -> Vec<u8>>;

async fn raw_tunnel(world: &World) -> Raw<TlsStream<TcpStream>> {
    let config = tls::client(Some(&world.leaf()), &["h2"]);
    Raw::greet(dial(&world.peer, world.hbone(), config).await.expect("a TLS handshake")).await
}

/// Sends `bytes` again and again, for a while or until the agent has cut the tunnel, without reading anything; then
/// sees that memory is bounded and that somebody else is served.
async fn flood(
    world: &World,
    name: &str,
    mut raw: Raw<TlsStream<TcpStream>>,
    mut bytes: impl FnMut() -> Vec<u8>,
) {
    let before = world.rss();
    let start = Instant::now();
    let (mut sent, mut neighbours) = (0, 0);
    while start.elapsed() < Duration::from_millis(1500) {
        let part = bytes();
        match timeout(Duration::from_millis(300), raw.write(&part)).await {
            Ok(Ok(())) => sent += part.len(),
            // Cut, or held up: both are an answer.
            Ok(Err(_)) | Err(_) => break,
        }
        if start.elapsed() > Duration::from_millis(500 * (neighbours + 1)) {
            assert_serves(world).await;
            neighbours += 1;
        }
    }
    let grown = world.rss().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{name}: {sent} bytes sent, grown by {grown} KiB");
    assert_serves(world).await;
}

#[tokio::test]
async fn floods_of_frames_cost_little_and_starve_nobody() {
    let world = World::new(&[]);
    let _echo = App::listen(&world.pod, APP).echo();
    let authority = world.app().to_string();
    let repeat = |frame: Frame| {
        let many = frame.encode().repeat(500);
        move || many.clone()
    };
    let settings = [(setting::INITIAL_WINDOW_SIZE, 65_535), (setting::MAX_FRAME_SIZE, 16_384)];
    let cases: Vec<(&str, Source)> = vec![
        ("PING", Box::new(repeat(Frame::new(kind::PING, 0, 0, vec![0; 8])))),
        ("PING answers", Box::new(repeat(Frame::new(kind::PING, ACK, 0, vec![0; 8])))),
        ("SETTINGS", Box::new(repeat(Frame::settings(&settings)))),
        ("unknown frames", Box::new(repeat(Frame::new(0xee, 0, 0, vec![0; 64])))),
        ("PRIORITY", Box::new(repeat(Frame::new(2, 0, 1, vec![0, 0, 0, 0, 1])))),
        ("WINDOW_UPDATE", Box::new(repeat(Frame::credit(0, 1)))),
        ("empty CONTINUATION", {
            let mut first = true;
            let head = Frame::new(kind::HEADERS, 0, 1, raw::block(&[(":method", b"CONNECT")])).encode();
            let more = Frame::new(kind::CONTINUATION, 0, 1, Vec::new()).encode().repeat(500);
            Box::new(move || if std::mem::take(&mut first) { head.clone() } else { more.clone() })
        }),
        ("CONTINUATION without end", {
            let mut first = true;
            let head = Frame::new(kind::HEADERS, 0, 1, raw::block(&[(":method", b"CONNECT")])).encode();
            let more =
                Frame::new(kind::CONTINUATION, 0, 1, raw::block(&[("x", &[b'x'; 1000])])).encode().repeat(50);
            Box::new(move || if std::mem::take(&mut first) { head.clone() } else { more.clone() })
        }),
        ("rapid reset", {
            let mut stream = 1;
            let authority = authority.clone();
            Box::new(move || {
                let mut bytes = Vec::new();
                for _ in 0..50 {
                    bytes.extend(raw::connect(stream, authority.as_bytes()).encode());
                    bytes.extend(Frame::reset(stream, Reason::CANCEL).encode());
                    stream += 2;
                }
                bytes
            })
        }),
        ("refused streams", {
            let mut stream = 1;
            Box::new(move || {
                let mut bytes = Vec::new();
                for _ in 0..50 {
                    bytes.extend(raw::connect(stream, b"10.0.0.1:1").encode());
                    stream += 2;
                }
                bytes
            })
        }),
    ];
    for (name, bytes) in cases {
        flood(&world, name, raw_tunnel(&world).await, bytes).await;
    }
    world.settle().await;
}

#[tokio::test]
async fn tiny_and_empty_data_to_a_stalled_app_stay_small() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let authority = world.app().to_string();
    for size in [0, 1] {
        let mut raw = raw_tunnel(&world).await;
        raw.send(&raw::connect(1, authority.as_bytes())).await.unwrap();
        let (stalled, _) = app.accept().await;
        assert_eq!(raw.outcome(1).await.unwrap().status(), Some(200));
        let before = world.rss();
        // Within flow control: one byte of credit each, or none.
        let many = Frame::new(kind::DATA, 0, 1, vec![7; size]).encode().repeat(20_000);
        for _ in 0..40 {
            match timeout(Duration::from_secs(5), raw.write(&many)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        let grown = world.rss().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{size}-byte DATA: grown by {grown} KiB");
        let mut tunnel = Tunnel::open(&world).await;
        let (mut neighbour, (mut served, _)) = tokio::join!(tunnel.connect(&authority), app.accept());
        neighbour.write(b"still served").await;
        expect_bytes(&mut served, b"still served").await;
        drop((raw, stalled));
    }
    world.settle().await;
}

#[tokio::test]
async fn over_the_budget_stalled_streams_are_reset_and_others_go_on() {
    let world = World::new(&["--memory-budget", "8388608"]);
    let app = App::listen(&world.pod, APP);
    let authority = world.app().to_string();
    let mut tunnel = Tunnel::open(&world).await;
    let (mut good, (mut served, _)) = tokio::join!(tunnel.connect(&authority), app.accept());
    let mut stalled = Vec::new();
    for _ in 0..6 {
        let (stream, (unread, _)) = tokio::join!(tunnel.connect(&authority), app.accept());
        stalled.push((stream, unread));
    }
    let chunk = vec![1; 1 << 20];
    for (stream, _) in &mut stalled {
        // What the kernel does not take for the app stays in the agent.
        while let Ok(Ok(())) = timeout(Duration::from_millis(300), stream.try_write(&chunk)).await {}
    }
    eventually("a reset for the budget", || world.metric("culvert_hbone_budget_resets_total", &[]) >= 1.0)
        .await;
    for _ in 0..20 {
        good.write(b"go on").await;
        expect_bytes(&mut served, b"go on").await;
    }
    let (mut calmed, mut cut) = (0, 0);
    for (mut stream, mut unread) in stalled {
        let reset = timeout(Duration::from_millis(200), stream.read_end()).await;
        if let Ok(reset) = reset {
            assert_eq!(reset, Err(Reason::ENHANCE_YOUR_CALM));
            calmed += 1;
            if matches!(read_end(&mut unread).await, End::Reset(_)) {
                cut += 1;
            }
        }
    }
    assert!(calmed >= 1 && cut == calmed, "{calmed} streams reset, {cut} apps");
    let flagged = ["reporter=\"destination\"", "response_flags=\"CULVERT_BUDGET\""];
    eventually("all counted", || {
        world.metric("istio_tcp_connections_failed_total", &flagged) >= f64::from(calmed)
    })
    .await;
    good.write(b"end").await;
    expect_bytes(&mut served, b"end").await;
}

#[tokio::test]
async fn silent_streams_and_half_open_clients_are_served_around() {
    let world = World::new(&[]);
    let _echo = App::listen(&world.pod, APP).echo();
    let mut idle = Vec::new();
    for number in 0..60 {
        let mut tcp = culvert_tests::peer::net::connect(&world.peer, world.hbone());
        if number % 2 == 0 {
            use tokio::io::AsyncWriteExt as _;
            tcp.write_all(&[22, 3]).await.unwrap();
        }
        idle.push(tcp);
    }
    let mut tunnels = Vec::new();
    for _ in 0..4 {
        let mut tunnel = Tunnel::open(&world).await;
        let mut streams = Vec::new();
        for _ in 0..50 {
            streams.push(tunnel.connect(&world.app().to_string()).await);
        }
        tunnels.push((tunnel, streams));
    }
    let mut unread = raw_tunnel(&world).await;
    unread.write(&PREFACE[..0]).await.unwrap();
    assert_serves(&world).await;
    drop((idle, tunnels, unread));
    world.settle().await;
    assert_serves(&world).await;
}
