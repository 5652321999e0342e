//! Peers of a waypoint that abuse HTTP, on either side of it: what they do is bounded, it ends, and others go on.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert::lab::{Place, pause, wait_until};
use culvert_tests::mesh::SOON;
use culvert_tests::net::{PATIENCE, Server, reset};
use culvert_tests::peer;
use culvert_tests::peer::raw::{END_HEADERS, END_STREAM, Frame, Raw, block, headers, kind, setting};
use culvert_tests::stand::{Stand, read_answer};
use tokio::net::TcpStream as AsyncStream;

const MIB: u64 = 1 << 20;
/// What a waypoint may hold after all of it; built without optimization it has some 30 MiB when idle.
const MOST: u64 = 64 * MIB;

/// Sends `unit` again and again until nobody takes it any more, and reads what was said to it.
fn flood(mut stream: TcpStream, begin: &[u8], unit: &[u8], most: usize) -> String {
    let mut reader = stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut got = Vec::new();
        let _reset_or_end = reader.read_to_end(&mut got);
        String::from_utf8_lossy(&got).into_owned()
    });
    let many = unit.repeat((16 << 10) / unit.len() + 1);
    let mut sent = begin.len();
    let mut open = stream.write_all(begin).is_ok();
    while open && sent < most {
        open = stream.write_all(&many).is_ok();
        sent += many.len();
    }
    assert!(!open || sent < most || reading.is_finished(), "{most} bytes were taken");
    let _gone = stream.shutdown(Shutdown::Write);
    reading.join().unwrap()
}

/// What a client of HTTP/1.1 sends, over and over, and what the answer begins with.
const ENDLESS: &[(&str, &str, &str, &str)] = &[
    ("a request line", "GET /", "a", "HTTP/1.1 431 "),
    ("a header", "GET / HTTP/1.1\r\nHost: shop\r\nX: ", "a", "HTTP/1.1 431 "),
    ("headers", "GET / HTTP/1.1\r\nHost: shop\r\n", "a: b\r\n", "HTTP/1.1 431 "),
    ("a method", "G", "G", "HTTP/1.1 "),
    ("no HTTP", "GET / HTTP/1.1\r\nHost: shop\r\n\0", "\0", "HTTP/1.1 400 "),
    (
        "a chunk's extension",
        "POST /hold HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5;x=",
        "y",
        "",
    ),
    ("a chunk's size", "POST /hold HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n", "0", ""),
    (
        "trailers",
        "POST /hold HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        "a: b\r\n",
        "",
    ),
];

/// A server that says nothing until its client goes, but for `GET /quick`.
fn silent(place: &Place) -> Server {
    Server::start(place, 8080, |mut stream, seen| {
        let (mut held, mut buffer) = (Vec::new(), [0; 64 << 10]);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            seen.add(n);
            held.extend_from_slice(&buffer[..n]);
            held.drain(..held.len().saturating_sub(128 << 10));
            while held.starts_with(b"GET /quick") && held.windows(4).any(|four| four == b"\r\n\r\n") {
                let end = held.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
                held.drain(..end);
                if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                    return;
                }
            }
        }
    })
}

/// Others are served as if nothing was.
fn others_go_on(stand: &Stand, beside: &str) {
    for path in ["/ready", "/quick"] {
        let answer = stand.ask(path).unwrap_or_else(|error| error.to_string());
        assert!(answer.contains("200 OK"), "{path} beside {beside}: {answer}\n{}", stand.logs());
    }
    let held = stand.rss();
    assert!(held < MOST, "{held} bytes beside {beside}");
}

#[test]
fn what_never_ends_in_http1_is_ended() {
    let stand = Stand::new(false, "http", "", &[]);
    let _server = silent(&stand.shop);
    // A head that has begun and does not go on; all of this test is its time.
    let mut late = stand.connect();
    late.write_all(b"GET /ready HTTP/1.1\r\nHost: sh").unwrap();
    for (what, begin, unit, answer) in ENDLESS {
        let got = flood(stand.connect(), begin.as_bytes(), unit.as_bytes(), 16 << 20);
        assert!(got.starts_with(answer), "{what}: {got:?}\n{}", stand.logs());
        others_go_on(&stand, what);
    }
    // More header lines than are taken, in a head that ends.
    let head = format!("GET /ready HTTP/1.1\r\nHost: shop\r\n{}\r\n", "a: b\r\n".repeat(101));
    let mut stream = stand.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let (got, _) = read_answer(&mut stream, &mut Vec::new()).unwrap();
    assert!(got.starts_with("http/1.1 431 "), "{got}");
    // Requests by the thousand of which nobody reads the answers, then somebody does.
    let mut stream = stand.connect();
    let mut reader = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        for _ in 0..3000 {
            stream.write_all(b"GET /ready HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
        }
        stream
    });
    pause(Duration::from_millis(500));
    others_go_on(&stand, "a flood of requests");
    let mut held = Vec::new();
    for n in 0..3000 {
        let (got, _) = read_answer(&mut reader, &mut held).unwrap_or_else(|e| panic!("answer {n}: {e}"));
        assert!(got.starts_with("http/1.1 200 "), "answer {n}: {got}");
    }
    drop((sending.join().unwrap(), reader));
    // A client that ends its half behind a request that is not answered ends the request.
    let mut half = stand.connect();
    half.write_all(b"GET /hold HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    half.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    late.set_read_timeout(Some(2 * PATIENCE)).unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("\r\n\r\nstream timeout"), "{answer:?}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
    for line in ["431 DPE http1.headers_too_large ", "408 SI stream_idle_timeout "] {
        let line = format!("\"- - HTTP/1.1\" {line}");
        let is_told = || stand.waypoint.log().contains(&line).then_some(());
        wait_until(&line, SOON, is_told, || stand.logs()).unwrap();
    }
    others_go_on(&stand, "all of it");
    stand.finish();
}

/// What becomes of a connection of HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// It ends.
    Ends,
    /// It goes on: a request on it is answered.
    GoesOn,
}

type Http2 = Raw<AsyncStream>;

fn request(stream: u32, path: &str, extra: &[(&str, &[u8])]) -> Frame {
    let mut fields: Vec<(&str, &[u8])> =
        vec![(":method", b"GET"), (":scheme", b"http"), (":authority", b"shop"), (":path", path.as_bytes())];
    fields.extend_from_slice(extra);
    let mut frame = headers(stream, &fields);
    frame.flags |= END_STREAM;
    frame
}

fn upload(stream: u32, path: &str) -> Frame {
    let fields: [(&str, &[u8]); 4] =
        [(":method", b"POST"), (":scheme", b"http"), (":authority", b"shop"), (":path", path.as_bytes())];
    headers(stream, &fields)
}

/// Sends frames, many at a time, until nobody takes them.
async fn pour(raw: &mut Http2, frames: impl Iterator<Item = Frame>) {
    let mut bytes = Vec::new();
    for frame in frames {
        bytes.extend_from_slice(&frame.encode());
        if bytes.len() > 16 << 10 && raw.write(&std::mem::take(&mut bytes)).await.is_err() {
            return;
        }
    }
    let _gone = raw.write(&bytes).await;
}

#[expect(clippy::too_many_lines, reason = "a table")]
async fn abuse(what: &str, raw: &mut Http2) {
    let continued = |first: &Frame| Frame { flags: first.flags & !END_HEADERS, ..first.clone() };
    match what {
        "requests that are given up at once" => {
            let pairs = (0..20_000_u32).map(|n| 2 * n + 1);
            let frames = pairs.flat_map(|n| [request(n, "/hold", &[]), Frame::reset(n, h2::Reason::CANCEL)]);
            pour(raw, frames).await;
        }
        "a head in endless pieces" => {
            let first = continued(&request(1, "/ready", &[]));
            let piece = Frame::new(kind::CONTINUATION, 0, 1, block(&[("x", &[b'y'; 1000])]));
            pour(raw, std::iter::once(first).chain(std::iter::repeat_n(piece, 20_000))).await;
        }
        "a head in endless empty pieces" => {
            let first = continued(&request(1, "/ready", &[]));
            let piece = Frame::new(kind::CONTINUATION, 0, 1, Vec::new());
            pour(raw, std::iter::once(first).chain(std::iter::repeat_n(piece, 100_000))).await;
        }
        "settings" => pour(raw, std::iter::repeat_n(Frame::settings(&[]), 100_000)).await,
        "pings" => pour(raw, std::iter::repeat_n(Frame::new(kind::PING, 0, 0, vec![7; 8]), 100_000)).await,
        "priorities" => {
            pour(raw, std::iter::repeat_n(Frame::new(2, 0, 1, vec![0, 0, 0, 0, 1]), 100_000)).await
        }
        "frames of no known kind" => {
            pour(raw, std::iter::repeat_n(Frame::new(99, 0, 0, vec![1]), 100_000)).await
        }
        "credit" => pour(raw, std::iter::repeat_n(Frame::credit(0, 1), 100_000)).await,
        "data without bytes" => {
            let empty = Frame::new(kind::DATA, 0, 1, Vec::new());
            pour(raw, std::iter::once(upload(1, "/hold")).chain(std::iter::repeat_n(empty, 100_000))).await;
        }
        "data of one byte" => {
            let one = Frame::new(kind::DATA, 0, 1, vec![b'x']);
            pour(raw, std::iter::once(upload(1, "/hold")).chain(std::iter::repeat_n(one, 60_000))).await;
            raw.send(&Frame::reset(1, h2::Reason::CANCEL)).await.unwrap();
        }
        "headers that grow when they are unpacked" => {
            // One header goes into the table, and is named thousands of times. Source: RFC 7541 §6.
            let mut bomb =
                block(&[(":method", b"GET"), (":scheme", b"http"), (":authority", b"shop"), (":path", b"/")]);
            let long = block(&[("x", &[b'y'; 4000])]);
            bomb.push(0x40);
            bomb.extend_from_slice(&long[1..]);
            bomb.resize(16_000, 0xbe);
            let frames =
                (0..50).map(|n| Frame::new(kind::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, bomb.clone()));
            pour(raw, frames).await;
        }
        "too many headers" => {
            let many = vec![("a", &b"b"[..]); 150];
            raw.send(&request(1, "/ready", &many)).await.unwrap();
            let outcome = raw.outcome(1).await.expect("an answer or a reset");
            assert!(outcome.kind == kind::RST_STREAM || outcome.status() == Some(431), "{outcome:?}");
        }
        "more requests at once than are allowed" => {
            pour(raw, (0..1100).map(|n| request(2 * n + 1, "/hold", &[]))).await;
            let refused = raw.find(|f| f.kind == kind::RST_STREAM).await.expect("a stream refused");
            assert_eq!(refused.first(), u32::from(h2::Reason::REFUSED_STREAM));
            pour(raw, (0..1100).map(|n| Frame::reset(2 * n + 1, h2::Reason::CANCEL))).await;
        }
        "no window" => {
            raw.send(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])).await.unwrap();
            pour(raw, (0..200).map(|n| request(2 * n + 1, "/quick", &[]))).await;
            let all = (0..200).map(|n| Frame::reset(2 * n + 1, h2::Reason::CANCEL));
            pour(raw, all).await;
            raw.send(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 20)])).await.unwrap();
        }
        "half a frame" => raw.write(&[0, 0, 100, 0]).await.unwrap(),
        "a frame that is too long" => {
            let _gone = raw.write(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]).await;
        }
        other => panic!("{other}"),
    }
}

const HTTP2: &[(&str, Becomes)] = &[
    ("requests that are given up at once", Becomes::Ends),
    ("a head in endless pieces", Becomes::Ends),
    ("a head in endless empty pieces", Becomes::Ends),
    ("settings", Becomes::Ends),
    ("pings", Becomes::Ends),
    ("priorities", Becomes::Ends),
    ("frames of no known kind", Becomes::Ends),
    ("credit", Becomes::Ends),
    ("data without bytes", Becomes::Ends),
    ("data of one byte", Becomes::GoesOn),
    ("headers that grow when they are unpacked", Becomes::Ends),
    ("too many headers", Becomes::GoesOn),
    ("more requests at once than are allowed", Becomes::GoesOn),
    ("no window", Becomes::GoesOn),
    ("a frame that is too long", Becomes::Ends),
];

#[tokio::test]
async fn abuse_of_http2_ends_its_own_connection_at_the_most() {
    let stand = Arc::new(Stand::new(false, "http", "", &["--idle-timeout", "20s"]));
    let server = silent(&stand.shop);
    // One that says nothing more stays beside all the others.
    let mut mute = Raw::greet(stand.connect_async()).await;
    abuse("half a frame", &mut mute).await;
    for (what, becomes) in HTTP2 {
        let mut raw = Raw::greet(stand.connect_async()).await;
        abuse(what, &mut raw).await;
        match becomes {
            // A GOAWAY may be lost to a reset: who does not stop sending does not hear it.
            Becomes::Ends => while raw.next().await.is_some() {},
            Becomes::GoesOn => {
                raw.send(&request(5001, "/ready", &[])).await.unwrap();
                let answer = raw.find(|f| f.stream == 5001 || f.kind == kind::GOAWAY).await;
                let answer =
                    answer.unwrap_or_else(|| panic!("{what}: the connection ended\n{}", stand.logs()));
                assert_eq!(answer.status(), Some(200), "{what}: {answer:?}\n{}", stand.logs());
            }
        }
        drop(raw);
        let (stand, what) = (Arc::clone(&stand), *what);
        tokio::task::spawn_blocking(move || others_go_on(&stand, what)).await.unwrap();
    }
    while mute.next().await.is_some() {}
    drop((mute, server));
    let stand = Arc::into_inner(stand).expect("nobody else has it");
    tokio::task::spawn_blocking(move || stand.finish()).await.unwrap();
}

/// A server that breaks HTTP as the path says.
fn wrong(place: &Place) -> Server {
    Server::start(place, 8080, |mut stream, seen| {
        let (mut held, mut buffer) = (Vec::new(), [0; 16 << 10]);
        loop {
            let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(n) => held.extend_from_slice(&buffer[..n]),
                }
                continue;
            };
            let head = String::from_utf8_lossy(&held[..end]).into_owned();
            held.drain(..end);
            seen.add(1);
            let path = head.split(' ').nth(1).unwrap_or_default();
            let unit = match path {
                "/quick" => {
                    let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                    continue;
                }
                "/endless-head" => "a: b\r\n".repeat(100),
                "/endless-header" => "a".repeat(1000),
                "/endless-103" => "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".to_owned(),
                _ => String::new(),
            };
            let first = match path {
                "/endless-head" => "HTTP/1.1 200 OK\r\n",
                "/endless-header" => "HTTP/1.1 200 OK\r\nx: ",
                "/garbage" => "\u{1}\u{2}\u{3} this is not HTTP\r\n\r\n",
                "/short" | "/reset" => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this",
                "/bad-chunk" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n",
                "/more" => {
                    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
                }
                "/early" => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly",
                _ => "",
            };
            let mut open = stream.write_all(first.as_bytes()).is_ok();
            while open && !unit.is_empty() {
                open = stream.write_all(unit.as_bytes()).is_ok();
            }
            match path {
                "/reset" => {
                    pause(Duration::from_millis(100));
                    return reset(stream);
                }
                "/more" | "/early" => {}
                _ => return,
            }
        }
    })
}

/// Path, what the answer begins with, and whether it may be taken for whole.
const WRONG: &[(&str, &str, bool)] = &[
    ("/endless-head", "HTTP/1.1 50", true),
    ("/endless-header", "HTTP/1.1 50", true),
    ("/endless-103", "HTTP/1.1 103", true),
    ("/garbage", "HTTP/1.1 502", true),
    ("/nothing", "HTTP/1.1 503", true),
    ("/short", "HTTP/1.1 200", false),
    ("/reset", "HTTP/1.1 200", false),
    ("/bad-chunk", "HTTP/1.1 200", false),
    ("/more", "HTTP/1.1 200", true),
];

#[test]
fn servers_that_break_http_hurt_nobody_else() {
    let stand = Stand::new(false, "http", "", &[]);
    let server = wrong(&stand.shop);
    for (path, begins, is_whole) in WRONG {
        for round in 0..3 {
            let mut stream = stand.connect();
            stream
                .write_all(
                    format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").as_bytes(),
                )
                .unwrap();
            let mut got = Vec::new();
            let ended = stream.read_to_end(&mut got);
            let got = String::from_utf8_lossy(&got).into_owned();
            assert!(got.starts_with(begins), "{path}, round {round}: {got:?} {ended:?}\n{}", stand.logs());
            assert!(!got.contains("evil"), "{path}: {got}");
            // Of a body that breaks off nobody may take the end of the connection for its end.
            let has_end =
                got.contains("content-length: 100") || ended.is_err() || !got.ends_with("0\r\n\r\n");
            assert!(*is_whole || has_end, "{path}: {got:?} {ended:?}");
            others_go_on(&stand, path);
        }
    }
    // Hundreds of answers before the answer are an answer that never comes.
    let answer = stand.ask("/endless-103").unwrap_or_default();
    assert!(answer.matches("103 Early Hints").count() < 200 && answer.contains("HTTP/1.1 502"), "{answer}");
    // An answer that comes before its request's end is one.
    let mut stream = stand.connect();
    stream.write_all(b"POST /early HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\nxxx").unwrap();
    let (head, body) = read_answer(&mut stream, &mut Vec::new()).unwrap();
    assert!(head.starts_with("http/1.1 200 ") && body == b"early", "{head}");
    others_go_on(&stand, "an early answer");
    drop((stream, server));
    stand.finish();
}

/// A connection on which nobody asks for anything is ended; one that waits for an answer is not.
#[tokio::test]
async fn idle_connections_are_ended() {
    let stand = Arc::new(Stand::new(false, "http", "", &["--idle-timeout", "1s"]));
    let is_open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&is_open);
    let server = Server::start(&stand.shop, 8080, move |mut stream, seen| {
        let mut buffer = [0; 4096];
        seen.add(stream.read(&mut buffer).unwrap_or(0));
        while !gate.load(Ordering::SeqCst) {
            pause(Duration::from_millis(20));
        }
        let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    let waits = {
        let mut stream = stand.connect();
        stream.write_all(b"GET /wait HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
        stream
    };
    let mut busy = Raw::greet(stand.connect_async()).await;
    busy.send(&request(1, "/wait", &[])).await.unwrap();
    let one = Arc::clone(&stand);
    let ended = tokio::task::spawn_blocking(move || {
        let mut silent = one.connect();
        let mut used = one.connect();
        used.write_all(b"GET /ready HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
        let mut all = String::new();
        used.read_to_string(&mut all).expect("an orderly end");
        // Nothing was said: it was dialled, and that is all.
        let _either = silent.read_to_end(&mut Vec::new());
        all
    });
    let all = peer::within("the ends", ended).await.unwrap();
    assert!(all.starts_with("HTTP/1.1 200 "), "{all}");
    let mut quiet = Raw::greet(stand.connect_async()).await;
    quiet.send(&request(1, "/ready", &[])).await.unwrap();
    assert_eq!(quiet.outcome(1).await.expect("an answer").status(), Some(200));
    let goaway = quiet.find(|f| f.kind == kind::GOAWAY).await.expect("a word before the end");
    assert_eq!(goaway.goaway_reason(), h2::Reason::NO_ERROR);
    while quiet.find(|_| false).await.is_some() {}
    // All this took longer than the limit.
    is_open.store(true, Ordering::SeqCst);
    assert_eq!(busy.outcome(1).await.expect("an answer").status(), Some(200));
    let answer = tokio::task::spawn_blocking(move || {
        let mut waits = waits;
        read_answer(&mut waits, &mut Vec::new()).unwrap().0
    });
    assert!(answer.await.unwrap().starts_with("http/1.1 200 "));
    drop((busy, server));
    let stand = Arc::into_inner(stand).expect("nobody else has it");
    tokio::task::spawn_blocking(move || stand.finish()).await.unwrap();
}

const RETRIED: &str = "  - match: [{uri: {exact: /retried}}]\n    \
    retries: {attempts: 1, retryOn: \"503\", backoff: 20s}\n    route: [{destination: {host: shop}}]\n";

/// A body that outgrows what is kept while another try is waited for.
#[test]
fn a_body_too_long_to_be_kept_for_another_try_is_told() {
    let stand = Stand::new(false, "http", RETRIED, &[]);
    let server = Server::start(&stand.shop, 8080, |mut stream, seen| {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            let is_head = buffer.starts_with(b"POST");
            if is_head && stream.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").is_err() {
                return;
            }
            seen.add(n);
        }
    });
    // The pause is random, and may be too short.
    let full = (0..5).any(|_| {
        let before = server.seen.bytes();
        let mut stream = stand.connect();
        let length = 3 << 20;
        write!(stream, "POST /retried HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\n").unwrap();
        let tried = || (server.seen.bytes() > before).then_some(());
        wait_until("a try", SOON, tried, || stand.logs()).unwrap();
        pause(Duration::from_millis(200));
        let mut reader = stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || stream.write_all(&vec![b'x'; length]));
        let answer = read_answer(&mut reader, &mut Vec::new());
        let _closed_before_the_end = reader.shutdown(Shutdown::Both);
        let _either = sending.join().unwrap();
        let (head, body) = answer.unwrap();
        assert!(head.starts_with("http/1.1 50"), "{head}");
        head.starts_with("http/1.1 507 ") && body == b"exceeded request buffer limit while retrying upstream"
    });
    assert!(full, "{}", stand.logs());
    let told = || {
        stand.waypoint.log().contains("\" 507 - request_payload_exceeded_retry_buffer_limit ").then_some(())
    };
    wait_until("the details in the log", SOON, told, || stand.logs()).unwrap();
    drop(server);
    stand.finish();
}

const DELAYED: &str = "  - match: [{uri: {exact: /short}}]\n    fault: {delay: {fixedDelay: 1ms, percentage: {value: 100}}}\n    \
    route: [{destination: {host: shop}}]\n  - match: [{uri: {prefix: /long}}]\n    \
    fault: {delay: {fixedDelay: 1h, percentage: {value: 100}}}\n    route: [{destination: {host: shop}}]\n";

/// A delay is told, and a client that does not wait for its end has ended its request.
#[tokio::test]
async fn a_client_that_goes_during_a_delay_ends_its_request() {
    let stand = Stand::new(false, "http", DELAYED, &[]);
    let server = silent(&stand.shop);
    let lines = |path: &str, flags: &str| {
        let log = stand.waypoint.log();
        log.lines().filter(|line| line.contains(path) && line.contains(flags)).count()
    };
    let mut short = stand.connect();
    short.write_all(b"GET /short HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
    wait_until("the request", SOON, || (server.seen.bytes() > 0).then_some(()), || stand.logs()).unwrap();
    drop(short);
    wait_until("its line", SOON, || (lines("/short", " DI,DC ") == 1).then_some(()), || stand.logs())
        .unwrap();
    let before = server.seen.accepted();
    let begun = |text: &str| {
        let mut stream = stand.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let clients = [
        begun("GET /long/1 HTTP/1.1\r\nHost: shop\r\n\r\n"),
        begun("POST /long/2 HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello"),
        begun("POST /long/3 HTTP/1.1\r\nHost: shop\r\nContent-Length: 500000\r\n\r\nhello"),
    ];
    let mut http2 = Raw::greet(stand.connect_async()).await;
    http2.send(&request(1, "/long/4", &[])).await.unwrap();
    http2.send(&upload(3, "/long/5")).await.unwrap();
    // An answer on the same connection says that what came before has begun.
    http2.send(&request(5, "/ready", &[])).await.unwrap();
    assert_eq!(http2.outcome(5).await.expect("an answer").status(), Some(200));
    http2.send(&Frame::reset(1, h2::Reason::CANCEL)).await.unwrap();
    http2.send(&Frame::reset(3, h2::Reason::CANCEL)).await.unwrap();
    others_go_on(&stand, "delays");
    let quick = server.seen.accepted();
    drop(clients);
    let ended = || (1..=5).all(|n| lines(&format!("/long/{n}"), " DI,DC ") == 1).then_some(());
    wait_until("the lines of all five", SOON, ended, || stand.logs()).unwrap();
    assert!(quick - before <= 1 && server.seen.accepted() == quick, "nothing was sent to the server");
    drop((http2, server));
    tokio::task::spawn_blocking(move || stand.finish()).await.unwrap();
}
