//! A waypoint under load holds little: bodies wait at those who send them, answers at those who give them, and who does not
//! read stops nobody else.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use culvert::lab::{Place, pause, wait_until};
use culvert_tests::mesh::{SOON, private, rss};
use culvert_tests::net::{Server, connect};
use culvert_tests::peer;
use culvert_tests::peer::client::{Answer, Tunnel, dial};
use culvert_tests::peer::pki::{Claims, Pki};
use culvert_tests::stand::{Stand, TO, read_answer};
use http::Request;
use tokio::net::TcpListener;

const MIB: u64 = 1 << 20;
/// Longest time for what is a matter of seconds on an idle machine.
const LONG: Duration = Duration::from_secs(120);
/// What each client sends.
const BODY: u64 = 150 * MIB;
/// What a waypoint may hold in all.
const MOST: u64 = 64 * MIB;

/// Opened once; those who wait at it go on.
#[derive(Default)]
struct Gate(AtomicBool);

impl Gate {
    fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn wait(&self) {
        wait_until("a gate to be opened", LONG, || self.0.load(Ordering::SeqCst).then_some(()), String::new)
            .unwrap();
    }
}

/// Reads heads, waits at the gate, then reads all of the body and says how long it was without its framing.
fn slow_server(place: &Place, gate: &Arc<Gate>) -> Server {
    let gate = Arc::clone(gate);
    Server::start(place, 8080, move |mut stream, seen| {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let (mut held, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
        let mut more = |held: &mut Vec<u8>| {
            let n = stream.read(&mut buffer).unwrap_or(0);
            held.extend_from_slice(&buffer[..n]);
            n
        };
        let end = loop {
            if let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if more(&mut held) == 0 {
                return;
            }
        };
        let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
        held.drain(..end);
        if !head.contains("content-length") {
            held.splice(..0, *b"\r\n"); // as if a chunk had been before the first
        }
        seen.add(1);
        gate.wait();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<u64>().ok());
        let (mut letters, mut chunk) = (0_u64, length.unwrap_or(0));
        loop {
            let now = chunk.min(held.len() as u64);
            held.drain(..now as usize);
            (letters, chunk) = (letters + now, chunk - now);
            let line = held.windows(2).skip(2).position(|two| two == b"\r\n").map(|at| at + 4);
            match (length, line) {
                (Some(_), _) if chunk == 0 => break,
                // Behind a chunk comes its end, then the next one's size.
                (None, Some(end)) if chunk == 0 => {
                    let line = String::from_utf8_lossy(&held[..end]).trim().to_owned();
                    chunk =
                        u64::from_str_radix(line.split(';').next().unwrap_or_default(), 16).expect("a size");
                    held.drain(..end);
                    if chunk == 0 {
                        break;
                    }
                }
                _ => {
                    if more(&mut held) == 0 {
                        return;
                    }
                }
            }
        }
        let body = letters.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let _gone = stream.write_all(answer.as_bytes());
    })
}

/// Sends a body of HTTP/1.1 and gives the answer's body.
fn send(stream: TcpStream, chunked: bool, sent: Arc<AtomicU64>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut stream = stream;
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let framing =
            if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {BODY}") };
        write!(stream, "POST /slow HTTP/1.1\r\nHost: shop\r\n{framing}\r\n\r\n").unwrap();
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..BODY / piece.len() as u64 {
            if chunked {
                write!(stream, "{:x}\r\n", piece.len()).unwrap();
            }
            stream.write_all(&piece).unwrap();
            if chunked {
                stream.write_all(b"\r\n").unwrap();
            }
            sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
        let (_, body) = read_answer(&mut stream, &mut Vec::new()).expect("an answer");
        String::from_utf8(body).unwrap()
    })
}

/// The same over HTTP/2.
fn send_http2(stream: TcpStream, sent: Arc<AtomicU64>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let (send, connection) = h2::client::Builder::new().handshake::<_, Bytes>(stream).await.unwrap();
            let mut driver = tokio::task::JoinSet::new();
            driver.spawn(connection);
            let request = Request::post("http://shop/slow").body(()).unwrap();
            let (answer, mut body) = send.ready().await.unwrap().send_request(request, false).unwrap();
            let mut left = BODY;
            while left > 0 {
                body.reserve_capacity(64 << 10);
                let room =
                    std::future::poll_fn(|cx| body.poll_capacity(cx)).await.expect("a stream").unwrap();
                let now = left.min(room.min(64 << 10) as u64);
                left -= now;
                body.send_data(Bytes::from(vec![b'x'; now as usize]), left == 0).unwrap();
                sent.fetch_add(now, Ordering::Relaxed);
            }
            let mut recv = answer.await.unwrap().into_body();
            String::from_utf8(peer::stream::read_end(&mut recv).await.unwrap()).unwrap()
        })
    })
}

#[test]
fn bodies_for_a_slow_server_wait_at_their_clients() {
    let stand = Stand::new(true, "http", "", &[]);
    let gate = Arc::new(Gate::default());
    let server = slow_server(&stand.shop, &gate);
    let sent = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..8)
        .map(|n| match n % 3 {
            0 => send(stand.connect(), true, Arc::clone(&sent)),
            1 => send(stand.connect(), false, Arc::clone(&sent)),
            _ => send_http2(stand.connect(), Arc::clone(&sent)),
        })
        .collect();
    wait_until("all requests to arrive", SOON, || (server.seen.bytes() == 8).then_some(()), || stand.logs())
        .unwrap();
    // Until nobody gets any further.
    let mut before = (u64::MAX, 0);
    let stalled = || {
        let now = sent.load(Ordering::Relaxed);
        before = if now == before.0 { (now, before.1 + 1) } else { (now, 0) };
        (before.1 == 20).then_some(())
    };
    wait_until("back-pressure", LONG, stalled, || stand.logs()).unwrap();
    let held = sent.load(Ordering::Relaxed);
    let most = stand.rss();
    println!("stalled behind {} MiB; the waypoint has {} MiB", held / MIB, most / MIB);
    assert!(held < 8 * BODY / 4, "{held} bytes went nowhere");
    gate.open();
    let mut most = most;
    while !clients.iter().all(JoinHandle::is_finished) {
        most = most.max(stand.rss());
        pause(Duration::from_millis(20));
    }
    for client in clients {
        let told = client.join().unwrap_or_else(|_| panic!("a client failed\n{}", stand.logs()));
        assert_eq!(told, BODY.to_string());
    }
    println!("at the most {} MiB", most / MIB);
    assert!(most < MOST, "{most} bytes in the waypoint\n{}", stand.logs());
    drop(server);
    stand.finish();
}

/// A server that answers `/big` with this many letters, anything else with one.
const BIG: u64 = 16 * MIB;

fn generous_server(place: &Place) -> Server {
    Server::start(place, 8080, |mut stream, seen| {
        stream.set_write_timeout(Some(LONG)).unwrap();
        let (mut held, mut buffer, piece) = (Vec::new(), [0; 4096], vec![b'x'; 64 << 10]);
        loop {
            while let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                let is_big = held.starts_with(b"GET /big");
                held.drain(..end + 4);
                let length = if is_big { BIG } else { 1 };
                seen.add(1);
                if write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").is_err() {
                    return;
                }
                let mut left = length;
                while left > 0 {
                    let now = left.min(piece.len() as u64);
                    if stream.write_all(&piece[..now as usize]).is_err() {
                        return;
                    }
                    left -= now;
                }
            }
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(n) => held.extend_from_slice(&buffer[..n]),
            }
        }
    })
}

#[test]
fn answers_for_slow_readers_wait_at_the_server() {
    const READERS: usize = 24;
    let stand = Stand::new(true, "http", "", &[]);
    let server = generous_server(&stand.shop);
    let slow: Vec<TcpStream> = (0..READERS)
        .map(|_| {
            let mut stream = stand.connect();
            stream.write_all(b"GET /big HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
            stream
        })
        .collect();
    // One more client, with many streams that have no window, then a little.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let streams = runtime.block_on(async {
        let mut builder = h2::client::Builder::new();
        let greeting = builder.initial_window_size(1000).handshake::<_, Bytes>(stand.connect_async());
        let (mut send, connection) = peer::within("HTTP/2", greeting).await.unwrap();
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let mut answers = Vec::new();
        for _ in 0..READERS {
            let request = Request::get("http://shop/big").body(()).unwrap();
            let mut ready = peer::within("room", send.ready()).await.unwrap();
            answers
                .push(peer::within("an answer", ready.send_request(request, true).unwrap().0).await.unwrap());
            send = ready;
        }
        (driver, answers)
    });
    let arrived = || (server.seen.bytes() == 2 * READERS as u64).then_some(());
    wait_until("all requests to arrive", SOON, arrived, || stand.logs()).unwrap();
    for n in 0..50 {
        let answer = stand.ask("/small").unwrap_or_default();
        assert!(answer.contains("200 OK"), "request {n} beside slow readers: {answer}\n{}", stand.logs());
    }
    let held = stand.rss();
    println!("{} MiB beside {} answers that nobody reads", held / MIB, 2 * READERS);
    assert!(held < MOST, "{held} bytes in the waypoint\n{}", stand.logs());
    runtime.block_on(async { drop(streams) });
    drop(runtime);
    for mut stream in slow {
        let (_, body) = read_answer(&mut stream, &mut Vec::new()).expect("the whole answer");
        assert_eq!(body.len() as u64, BIG);
    }
    drop(server);
    stand.finish();
}

/// A server of HTTP/2 whose answers to `/big` never end by themselves.
fn http2_server(place: &Place, big: u64) -> (tokio::task::JoinSet<()>, Arc<AtomicU64>) {
    let connections = Arc::new(AtomicU64::new(0));
    let listener = place.run(|| std::net::TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let count = Arc::clone(&connections);
    tasks.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let mut served = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            served.spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                let mut answers = tokio::task::JoinSet::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let length = if request.uri().path() == "/big" { big } else { 1 };
                    answers.spawn(async move {
                        let head = http::Response::new(());
                        let Ok(mut body) = respond.send_response(head, false) else { return };
                        // However long nobody reads: the test has a limit of its own.
                        let mut left = length;
                        while left > 0 {
                            body.reserve_capacity(64 << 10);
                            let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
                            let Some(Ok(room)) = room else { return };
                            let now = left.min(room as u64);
                            left -= now;
                            if body.send_data(Bytes::from(vec![b'x'; now as usize]), left == 0).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        }
    });
    (tasks, connections)
}

/// All requests of a worker to an endpoint share one connection of HTTP/2.
#[tokio::test]
async fn streams_that_nobody_reads_do_not_stop_others_of_the_same_connection() {
    const STALLED: usize = 16;
    let stand = Stand::new(false, "http2", "", &["--worker-threads", "1"]);
    let (_server, connections) = http2_server(&stand.shop, 2 * MIB);
    let mut builder = h2::client::Builder::new();
    // Nobody reads these: they get what windows allow, and wait.
    let (mut send, connection) = peer::within(
        "HTTP/2",
        builder.initial_window_size(1000).handshake::<_, Bytes>(stand.connect_async()),
    )
    .await
    .unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut ready = peer::within("room", send.ready()).await.unwrap();
        let request = Request::get("http://shop/big").body(()).unwrap();
        stalled.push(peer::within("an answer", ready.send_request(request, true).unwrap().0).await.unwrap());
        send = ready;
    }
    for n in 0..20 {
        let greeting = h2::client::handshake(stand.connect_async());
        let (mut send, connection) = peer::within("HTTP/2", greeting).await.unwrap();
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let request = Request::get("http://shop/small").body(()).unwrap();
        let answer = send.send_request(request, true).unwrap().0;
        let answer = peer::within("an answer beside stalled streams", answer).await.unwrap();
        let mut body = answer.into_body();
        assert_eq!(peer::stream::read_end(&mut body).await.unwrap(), b"x", "request {n}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "one connection to the endpoint");
    let held = stand.rss();
    assert!(held < MOST, "{held} bytes in the waypoint");
    // Whoever reads on gets everything.
    for answer in stalled {
        assert_eq!(peer::stream::read_end(&mut answer.into_body()).await.unwrap().len() as u64, 2 * MIB);
    }
    drop((send, driver));
    tokio::task::spawn_blocking(move || stand.finish()).await.unwrap();
}

/// Connections that have had a request and wait for another one, over tunnels of the test's own.
#[tokio::test]
async fn ten_thousand_idle_connections_cost_little() {
    const TUNNELS: u64 = 100;
    const EACH: u64 = 100;
    /// Bytes of the waypoint for each, built without optimization; its tunnels and their TLS included.
    const COST: u64 = 12 * 1024;
    let stand = Stand::new(false, "http", "", &[]);
    let pki = Pki::open(&stand.mesh.lab.ca_dir());
    let leaf = pki.issue(&Claims::account("client"));
    let config = peer::tls::client(Some(&leaf), &["h2"]);
    let to = (stand.waypoint.pod.v4, 15008).into();
    let authority = format!("{}:{}", TO.0, TO.1);
    let open = async |count: u64| {
        let mut tunnel = Tunnel::over(dial(&stand.client, to, Arc::clone(&config)).await.expect("TLS"))
            .await
            .expect("HTTP/2");
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = tunnel.connect(&authority).await;
            stream.write(b"GET /ready HTTP/1.1\r\nHost: shop\r\n\r\n").await;
            answered(&mut stream).await;
            streams.push(stream);
        }
        (tunnel, streams)
    };
    let pid = stand.waypoint.process.pid();
    let warm = open(EACH).await;
    let before = private(pid);
    let mut all = Vec::new();
    for _ in 0..TUNNELS {
        all.push(open(EACH).await);
    }
    let grown = private(pid).saturating_sub(before);
    println!(
        "{} bytes for each of {} connections; {} MiB resident",
        grown / (TUNNELS * EACH),
        TUNNELS * EACH,
        rss(pid) / MIB
    );
    assert!(grown < TUNNELS * EACH * COST, "grown by {grown} bytes");
    // They are all still there.
    for (_, streams) in &mut all {
        for stream in streams.iter_mut().take(3) {
            stream.write(b"GET /ready HTTP/1.1\r\nHost: shop\r\n\r\n").await;
            answered(stream).await;
        }
    }
    drop((all, warm));
    let given_back = || (private(pid).saturating_sub(before) < grown / 2).then_some(());
    wait_until("memory to be given back", LONG, given_back, || format!("{} bytes", private(pid))).unwrap();
    tokio::task::spawn_blocking(move || stand.finish()).await.unwrap();
}

/// Reads one answer without a body.
async fn answered(stream: &mut Answer) {
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        let data =
            peer::within("an answer", stream.recv.data()).await.expect("an answer").expect("an open stream");
        stream.recv.flow_control().release_capacity(data.len()).expect("credit");
        got.extend_from_slice(&data);
    }
    assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
}

/// A client may take its time for a head and a body.
#[test]
fn who_writes_slowly_is_served_and_stops_nobody() {
    let stand = Stand::new(false, "http", "", &[]);
    let gate = Arc::new(Gate::default());
    gate.open();
    let _server = slow_server(&stand.shop, &gate);
    let text = b"POST /a HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\n4;e=1\r\nxxxx\r\n0\r\nT: 1\r\n\r\n";
    let mut slow: Vec<TcpStream> = (0..20).map(|_| stand.connect()).collect();
    for byte in text {
        for stream in &mut slow {
            stream.write_all(&[*byte]).unwrap();
        }
        pause(Duration::from_millis(2));
    }
    for stream in &mut slow {
        let (head, body) = read_answer(stream, &mut Vec::new()).unwrap();
        assert!(head.starts_with("http/1.1 200") && body == b"7", "{head}");
    }
    // Half a head, half a chunk's size: the others go on.
    let mut halves: Vec<TcpStream> = (0..20).map(|_| connect(&stand.client, TO).unwrap()).collect();
    for (n, stream) in halves.iter_mut().enumerate() {
        stream.write_all(&text[..20 + n * 3]).unwrap();
    }
    for _ in 0..10 {
        assert!(stand.ask("/ready").unwrap().contains("200 OK"));
    }
    drop((halves, slow));
    stand.finish();
}
