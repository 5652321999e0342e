//! Requests that two servers could read differently: each gets one answer, and never becomes two at the application.

use std::net::IpAddr;

use culvert_tests::peer::net::connect;
use culvert_tests::peer::raw::{self, END_HEADERS, END_STREAM, Frame, Raw, kind};
use culvert_tests::peer::within;
use culvert_tests::wire::http1::{Heard, Wire};
use culvert_tests::wire::http2::{Client, request, run};
use culvert_tests::wire::{World, port};

/// What a request looks like that should not be one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";

/// Bytes, status of the answer, requests that the application hears. `~` stands for [`SMUGGLED`].
type Row = (&'static str, u16, usize);

/// Bodies whose end is doubtful.
const BODIES: &[Row] = &[
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n~",
        400,
        0,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n26\r\n~\r\n0\r\n\r\n",
        400,
        0,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n~",
        400,
        0,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: identity\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n~", 501, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n~", 501, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n~", 501, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n~", 501, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n~", 501, 0),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n~",
        501,
        0,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n~",
        501,
        0,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n~", 501, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n~", 501, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n~", 501, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0cchunked\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1e1\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello~", 400, 0),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\n\r\nhello~", 400, 0),
    // These say one thing.
    (
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding:\tCHUNKED \r\n\r\n0\r\n\r\n~",
        200,
        1,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 38\r\n\r\n~", 200, 1),
    ("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 005\r\n\r\nhello~", 200, 1),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer_Encoding: chunked\r\nContent-Length: 38\r\n\r\n~",
        200,
        1,
    ),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, content-length\r\nContent-Length: 38\r\n\r\n~", 200, 1),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n~", 200, 1),
];

/// Chunks behind a head that says so.
const CHUNKS: &[Row] = &[
    ("5\nhello\r\n0\r\n\r\n~", 400, 0),
    ("5\r\nhello\n0\r\n\r\n~", 400, 0),
    ("5\r\nhello0\r\n\r\n~", 400, 0),
    ("2\r\nhello\r\n0\r\n\r\n~", 400, 0),
    ("5 \r\nhello\r\n0\r\n\r\n~", 400, 0),
    (" 5\r\nhello\r\n0\r\n\r\n~", 400, 0),
    ("0x5\r\nhello\r\n0\r\n\r\n~", 400, 0),
    ("+5\r\nhello\r\n0\r\n\r\n~", 400, 0),
    ("-1\r\nhello\r\n0\r\n\r\n~", 400, 0),
    ("10000000000000005\r\nhello\r\n0\r\n\r\n~", 400, 0),
    ("5;a\rb\r\nhello\r\n0\r\n\r\n~", 400, 0),
    ("5;a=\"\n\"\r\nhello\r\n0\r\n\r\n~", 400, 0),
    ("0\r\nX: y\n\r\n~", 400, 0),
    ("0\r\nX y\r\n\r\n~", 400, 0),
    ("0\r\n X: y\r\n\r\n~", 400, 0),
    ("0\n\r\n~", 400, 0),
    ("5;a=b\r\nhello\r\n0;c\r\n\r\n~", 200, 1),
    ("00005\r\nhello\r\n000\r\nContent-Length: 38\r\nTransfer-Encoding: x\r\n\r\n~", 200, 1),
];

/// Heads.
const HEADS: &[Row] = &[
    ("GET / HTTP/1.1\nHost: a\n\n~", 400, 0),
    ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nX(: a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET /\tHTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n~", 400, 0),
    ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0),
    ("GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET /a\x7fb HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET a HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET ?a HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET http://a@b/ HTTP/1.1\r\nHost: a@b\r\n\r\n~", 400, 0),
    ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost : a\r\n\r\n~", 400, 0),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n~", 400, 0),
    ("GET /\r\n\r\n~", 426, 0),
    ("GET / http/1.1\r\nHost: a\r\n\r\n~", 400, 0),
    ("GET / HTTP/0.9\r\nHost: a\r\n\r\n~", 426, 0),
    ("GET / HTTP/1.0\r\nHost: a\r\n\r\n~", 426, 0),
    ("GET / HTTP/1.2\r\nHost: a\r\n\r\n~", 426, 0),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n~", 426, 0),
    ("GET / HTTP/1.10\r\nHost: a\r\n\r\n~", 426, 0),
    ("PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n", 426, 0),
    // Behind these nothing is read.
    ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n~", 404, 0),
    ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 38\r\n\r\n~~", 404, 0),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 38\r\n\r\n~",
        400,
        0,
    ),
    ("GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: other\r\n\r\n~", 403, 0),
    // An offer of HTTP/2 is not heard, and what comes behind it is no HTTP/2.
    (
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n~",
        200,
        1,
    ),
    ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n~", 200, 1),
    ("GET http://A/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n~", 200, 1),
    ("GET https://a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n~", 200, 1),
    ("GET //b/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n~", 200, 1),
    ("get / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n~", 200, 1),
];

/// What is wrong with the answer to some bytes.
fn wrong(world: &World, to: IpAddr, bytes: &str, (status, heard): (u16, usize)) -> Option<String> {
    let bytes = bytes.replace('~', SMUGGLED);
    let mut wire = Wire::open(&world.client, (to, port::HTTP)).unwrap();
    // One that closes early takes not all of it.
    let _gone = wire.send(&bytes);
    let answer = wire.answer("GET").map(|answer| (answer.status(), answer.values("connection").join(",")));
    let rest = wire.rest();
    let got = heads(&world.heard);
    let is_good = answer == Some((status, "close".to_owned()))
        && rest.is_empty()
        && got.len() == heard
        && !got.iter().any(|head| head.contains("/smuggled"));
    let rest = String::from_utf8_lossy(&rest).into_owned();
    (!is_good).then(|| format!("{bytes:?}: {answer:?}, then {rest:?}, heard {got:?}"))
}

fn heads(heard: &Heard) -> Vec<String> {
    heard.take().into_iter().map(|message| message.head).collect()
}

#[test]
fn what_is_doubtful_is_answered_once_and_goes_nowhere() {
    let world = World::start("");
    let to = world.plain();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = CHUNKS.iter().map(|(bytes, status, heard)| (format!("{head}{bytes}"), (*status, *heard)));
    let others = BODIES.iter().chain(HEADS);
    let others = others.map(|(bytes, status, heard)| ((*bytes).to_owned(), (*status, *heard)));
    let mut problems: Vec<String> =
        others.chain(chunks).filter_map(|(bytes, want)| wrong(&world, to, &bytes, want)).collect();
    for (bytes, status) in [
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n~", "x: y\r\n".repeat(100)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n~", "x".repeat(70_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n~", "y".repeat(70_000)), 431),
    ] {
        problems.extend(wrong(&world, to, &bytes, (status, 0)).map(|text| text.chars().take(200).collect()));
    }
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n---\n"), world.logs());
    world.finish();
}

/// Answers that would be more than one, or have two ends.
const ANSWERS: &[(&str, u16)] = &[
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502),
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", 502),
    ("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", 502),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\nok", 502),
    ("HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok", 502),
    ("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok", 502),
    ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok", 502),
    ("HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 502),
    ("HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok", 502),
    ("HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok", 502),
    ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", 502),
    ("HTTP/1.1 103 Hints\r\nTransfer-Encoding: chunked\r\n\r\n", 502),
    // What comes behind an answer is another one's: the connection is not used again.
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", 200),
    ("HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", 204),
];

#[test]
fn answers_are_never_two() {
    let (ask, answer) = std::sync::mpsc::channel::<String>();
    let answer = std::sync::Mutex::new(answer);
    let world = World::start("");
    let next = move |_: &str| answer.lock().unwrap().recv().unwrap_or_default();
    let server = culvert_tests::waypoint::answering(&world.shop, 90, next);
    let mut wire = Wire::open(&world.client, (world.shop.v4.into(), 90)).unwrap();
    let mut problems = Vec::new();
    for (text, status) in ANSWERS {
        ask.send((*text).to_owned()).unwrap();
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let got = wire.answer("GET").map(|got| (got.status(), got.text()));
        let good = |got: &(u16, String)| got.0 == *status && !got.1.contains("forged");
        if !got.as_ref().is_some_and(good) {
            problems.push(format!("{text:?}: {got:?}"));
        }
    }
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n---\n"), world.logs());
    drop((wire, ask));
    world.finish();
    drop(server);
}

/// What is for one hop, set by a route, and a time for which connections wait that no clock has.
const CONNECTIONS: &str = r#"---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain, namespace: default}
spec:
  host: plain
  trafficPolicy: {connectionPool: {tcp: {idleTimeout: 0s}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: plain, namespace: default}
spec:
  hosts: [plain]
  http:
  - match: [{uri: {exact: /direct}}]
    directResponse: {status: 200}
    headers:
      response: {set: {connection: close, transfer-encoding: chunked, x-set: "yes"}}
  - route: [{destination: {host: plain}}]
    headers:
      request: {set: {transfer-encoding: gzip, keep-alive: "5"}}
      response: {set: {connection: close, transfer-encoding: chunked, x-set: "yes"}}
"#;

#[test]
fn what_a_route_says_of_connections_is_not_said_on_them() {
    let world = World::start(CONNECTIONS);
    let mut wire = Wire::open(&world.client, (world.plain(), port::HTTP)).unwrap();
    for path in ["/", "/direct", "/a", "/chunks/2"] {
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        let answer = wire.answer("GET").unwrap_or_else(|| panic!("{path}: no answer\n{}", world.logs()));
        let got = (answer.status(), answer.values("x-set"), answer.values("connection").len());
        assert_eq!(got, (200, vec!["yes"], 0), "{path}: {}", answer.head);
        assert_eq!(lengths(&answer.head), 1, "{path}: {}", answer.head);
    }
    run(async {
        let mut client = Client::open(&world.client, (world.plain(), port::GRPC)).await;
        for path in ["/Head", "/direct", "/Head"] {
            let mut call = client.begin(request(http::Method::GET, path), true).await;
            assert_eq!(call.status().await, Ok(200), "{path}\n{}", world.logs());
            assert_eq!(call.head["x-set"], "yes", "{path}");
        }
    });
    world.finish();
}

/// Pseudo-headers of a right request.
const RIGHT: [(&str, &[u8]); 4] =
    [(":method", b"POST"), (":scheme", b"http"), (":authority", b"shop"), (":path", b"/")];

/// Right ones but for these, and these headers behind them.
fn block(changed: &[(&'static str, &'static [u8])]) -> Vec<u8> {
    let of = |name: &str| changed.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let mut all: Vec<(&str, &[u8])> = RIGHT
        .iter()
        .map(|(name, value)| (*name, of(name).unwrap_or(value)))
        .filter(|(_, value)| *value != b"-")
        .collect();
    all.extend(changed.iter().filter(|(name, _)| !RIGHT.iter().any(|(other, _)| other == name)));
    raw::block(&all)
}

/// Headers, bodies in their frames, and the status: 0 for a stream or connection that is reset.
type Frames = (&'static [(&'static str, &'static [u8])], &'static [&'static [u8]], u16);

const FRAMES: &[Frames] = &[
    (&[("content-length", b"5")], &[b"hello", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"], 0),
    (&[("content-length", b"50")], &[b"hello"], 0),
    (&[("content-length", b"5"), ("content-length", b"6")], &[b"hello"], 0),
    (&[("content-length", b"+5")], &[b"hello"], 0),
    (&[("content-length", b"5, 5")], &[b"hello"], 0),
    (&[("transfer-encoding", b"chunked")], &[b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"], 0),
    (&[("connection", b"close")], &[b""], 0),
    (&[("keep-alive", b"5")], &[b""], 0),
    (&[("proxy-connection", b"close")], &[b""], 0),
    (&[("upgrade", b"h2c")], &[b""], 0),
    (&[("te", b"gzip")], &[b""], 0),
    (&[("X-Upper", b"a")], &[b""], 0),
    (&[("x y", b"a")], &[b""], 0),
    (&[("x:y", b"a")], &[b""], 0),
    (&[("x\r\ny", b"a")], &[b""], 0),
    (&[("", b"a")], &[b""], 0),
    (&[("x", b"a\r\nTransfer-Encoding: chunked")], &[b""], 0),
    (&[("x", b"a\nb")], &[b""], 0),
    (&[("x", b"a\0b")], &[b""], 0),
    (&[(":method", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET")], &[b""], 0),
    (&[(":method", b"G T")], &[b""], 0),
    (&[(":method", b"")], &[b""], 0),
    (&[(":method", b"-")], &[b""], 0),
    (&[(":path", b"/ HTTP/1.1\r\nX: y\r\n\r\n")], &[b""], 0),
    (&[(":path", b"/a b")], &[b""], 0),
    (&[(":path", b"")], &[b""], 0),
    (&[(":path", b"-")], &[b""], 0),
    (&[(":scheme", b"-")], &[b""], 0),
    (&[(":scheme", b"http://x/ HTTP/1.1\r\n")], &[b""], 0),
    (&[(":authority", b"a\r\nX: y")], &[b""], 0),
    (&[(":authority", b"a b")], &[b""], 0),
    (&[(":authority", b"u@a")], &[b""], 0),
    (&[(":authority", b"a/b")], &[b""], 0),
    (&[(":authority", b"-"), ("host", b"a"), ("host", b"b")], &[b""], 0),
    (&[("host", b"a"), ("host", b"b")], &[b""], 0),
    (&[(":authority", b"-")], &[b""], 0),
    (&[("x", b"y"), (":late", b"a")], &[b""], 0),
    (&[(":status", b"200")], &[b""], 0),
    (&[(":protocol", b"websocket")], &[b""], 0),
    (&[(":method", b"CONNECT")], &[b""], 0),
    (
        &[(":method", b"CONNECT"), (":path", b"-"), (":scheme", b"-")],
        &[b"GET /smuggled HTTP/1.1\r\n\r\n"],
        404,
    ),
    (&[(":path", b"*")], &[b""], 404),
    // One request each, whatever is in it.
    (&[("content-length", b"5"), ("content-length", b"5")], &[b"hello"], 200),
    (&[], &[b"hello", b"", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"], 200),
    (&[], &[b"", b"", b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"], 200),
    (&[("host", b"other")], &[b"hello"], 200),
    (&[("transfer_encoding", b"chunked")], &[b"hello"], 200),
    (&[("te", b"trailers")], &[b"hello"], 200),
];

#[test]
fn what_comes_in_http2_is_one_request_of_http1_or_none() {
    let world = World::start("");
    let mut problems = Vec::new();
    for row in FRAMES {
        let (headers, bodies, status) = row;
        let got = run(send(&world, &block(headers), bodies));
        let heard = heads(&world.heard);
        let is_one = heard.len() == usize::from(*status == 200)
            && heard
                .iter()
                .all(|head| head.starts_with("POST / HTTP/1.1\r\nhost: shop\r\n") && lengths(head) == 1);
        if got != *status || !is_one {
            problems.push(format!("{row:?}: {got}, heard {heard:?}"));
        }
    }
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n---\n"), world.logs());
    world.finish();
}

/// How often a head says how long its body is.
fn lengths(head: &str) -> usize {
    let says = |line: &&str| line.starts_with("content-length:") || line.starts_with("transfer-encoding:");
    head.split("\r\n").filter(says).count()
}

/// The status of the answer; 0 if there is none.
async fn send(world: &World, block: &[u8], bodies: &[&[u8]]) -> u16 {
    let mut raw = Raw::greet(connect(&world.client, (world.plain(), port::HTTP).into())).await;
    // Who ends the connection early takes not all of it.
    let _gone = raw.send(&Frame::new(kind::HEADERS, END_HEADERS, 1, block.to_vec())).await;
    for (at, body) in bodies.iter().enumerate() {
        let flags = if at + 1 == bodies.len() { END_STREAM } else { 0 };
        let _gone = raw.send(&Frame::new(kind::DATA, flags, 1, body.to_vec())).await;
    }
    let outcome = within("an answer", raw.outcome(1)).await;
    outcome.filter(|frame| frame.kind == kind::HEADERS).and_then(|frame| frame.status()).unwrap_or(0)
}
