//! What goes through a waypoint as it was said: each protocol, each way to address an application, with routes of each kind.

use std::net::IpAddr;
use std::time::Duration;

use culvert::lab::{pause, wait_until};
use culvert_tests::mesh::SOON;
use culvert_tests::net::{exchange, read_to_end};
use culvert_tests::peer::client::{Tunnel, dial};
use culvert_tests::peer::pki::{Claims, Pki};
use culvert_tests::peer::tls;
use culvert_tests::wire::http1::{Heard, Message, Wire};
use culvert_tests::wire::http2::{Client, request, run};
use culvert_tests::wire::{GREETING, World, client_hello, port};
use http::{HeaderValue, Method};

/// Method, path, headers and body of a request; status of its answer, what that has and what it has not.
type Row = (&'static str, &'static str, &'static str, u16, &'static [&'static str], &'static [&'static str]);

/// One after the other on one connection. A line of the application's echo is `name: value`.
const ROWS: &[Row] = &[
    ("GET", "/a?b=c", "X-In: 1\r\n", 200, &["GET /a?b=c HTTP/1.1", "x-in: 1", "x-server: shop"], &["--\nx"]),
    ("GET", "/a", "X-In: \r\n", 200, &["x-in: \r\n"], &[]),
    ("HEAD", "/a", "", 200, &["content-length: ", "x-server: shop"], &["HEAD /a"]),
    ("OPTIONS", "/a", "", 200, &["OPTIONS /a HTTP/1.1"], &[]),
    ("TRACE", "/a", "", 200, &["TRACE /a HTTP/1.1"], &[]),
    ("DELETE", "/a", "", 200, &["DELETE /a HTTP/1.1"], &["transfer-encoding"]),
    ("BREW", "/pot", "", 200, &["BREW /pot HTTP/1.1"], &[]),
    (
        "PATCH",
        "/a",
        "Content-Length: 5\r\n\r\nhello",
        200,
        &["PATCH /a", "content-length: 5", "--\nhello"],
        &[],
    ),
    ("PUT", "/a", "Content-Length: 0\r\n", 200, &["content-length: 0"], &[]),
    ("POST", "/a", "", 200, &["content-length: 0"], &[]),
    ("GET", "/a", "Content-Length: 2\r\n\r\nhi", 200, &["--\nhi"], &[]),
    (
        "POST",
        "/a",
        "Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 9\r\n\r\n",
        200,
        &["transfer-encoding: chunked", "--\nabcde"],
        &["x-sum: 9", "content-length: 5"],
    ),
    ("GET", "/empty", "", 204, &["x-server: shop"], &["content-length", "transfer-encoding"]),
    ("GET", "/same", "If-None-Match: \"1\"\r\n", 304, &["etag: \"1\""], &["transfer-encoding"]),
    ("GET", "/chunks/3", "", 200, &["transfer-encoding: chunked", "000000000100002"], &["content-length"]),
    ("GET", "/trailers", "TE: trailers\r\n", 200, &["body"], &["x-sum: 9"]),
    ("GET", "/status/404", "", 404, &["bad"], &[]),
    ("GET", "/close", "", 200, &["transfer-encoding: chunked", "GET /close"], &["connection: close"]),
    ("GET", "/large/300000", "", 200, &["content-length: 300000", "xxxxx"], &[]),
];

fn told(answer: &Message) -> String {
    format!("{}{}{}", answer.head, answer.text(), answer.trailers)
}

fn asked((method, path, rest, ..): &Row) -> String {
    let end = if rest.contains("\r\n\r\n") { "" } else { "\r\n" };
    format!("{method} {path} HTTP/1.1\r\nHost: shop\r\n{rest}{end}")
}

/// What is wrong with the answer to a row.
fn wrong(row: &Row, answer: Option<&Message>) -> Option<String> {
    let (method, path, _, status, has, has_not) = row;
    let Some(answer) = answer else { return Some(format!("{method} {path}: no answer")) };
    let text = told(answer).to_ascii_lowercase();
    let contains = |part: &&&str| text.contains(&part.to_ascii_lowercase());
    let missing: Vec<_> = has.iter().filter(|part| !contains(part)).collect();
    let present: Vec<_> = has_not.iter().filter(contains).collect();
    let shown: String = text.chars().take(600).collect();
    (answer.status() != *status || !missing.is_empty() || !present.is_empty())
        .then(|| format!("{method} {path}: lacks {missing:?}, has {present:?}:\n{shown}"))
}

#[test]
fn requests_of_http1_pass_as_they_are() {
    let world = World::start("");
    let mut problems = Vec::new();
    for (name, to) in world.targets() {
        for at in [port::HTTP, port::SNIFFED] {
            let mut wire = Wire::open(&world.client, (to, at)).unwrap();
            for row in ROWS {
                wire.send(asked(row)).unwrap();
                problems
                    .extend(wrong(row, wire.answer(row.0).as_ref()).map(|bad| format!("{name} {at}: {bad}")));
            }
            // All at once, answered in their order.
            wire.send(ROWS.iter().map(asked).collect::<String>()).unwrap();
            for row in ROWS {
                problems.extend(
                    wrong(row, wire.answer(row.0).as_ref()).map(|bad| format!("{name} {at}, at once: {bad}")),
                );
            }
            problems.extend(interim(&mut wire).err().map(|bad| format!("{name} {at}: {bad}")));
            problems.extend(early(&world, (to, at)).err().map(|bad| format!("{name} {at}: {bad}")));
        }
    }
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n---\n"), world.logs());
    world.finish();
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{what}: {got:?}, not {want:?}")) }
}

/// What comes before an answer.
fn interim(wire: &mut Wire) -> Result<(), String> {
    let gone = |error: std::io::Error| error.to_string();
    let host = "Host: shop\r\n";
    wire.send(format!("GET /hints HTTP/1.1\r\n{host}\r\n")).map_err(gone)?;
    for link in ["</a.css>; rel=preload", "</b.css>; rel=preload"] {
        let hints = wire.answer("GET").ok_or("no hints")?;
        same("hints", (hints.status(), hints.values("link")), (103, vec![link]))?;
        same("what is for one hop", hints.values("x-mine").len() + hints.values("connection").len(), 0)?;
        same("a length of nothing", hints.values("content-length").len(), 0)?;
    }
    same("after hints", wire.answer("GET").map(|answer| answer.status()), Some(200))?;
    let expect = "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    wire.send(format!("POST /continue HTTP/1.1\r\n{host}{expect}")).map_err(gone)?;
    same("continue", wire.answer("POST").map(|answer| answer.status()), Some(100))?;
    wire.send("hello").map_err(gone)?;
    let answer = wire.answer("POST").ok_or("no answer")?;
    same("what was sent then", answer.text().contains("--\nhello"), true)?;
    wire.send(format!("POST /refused HTTP/1.1\r\n{host}{expect}")).map_err(gone)?;
    let answer = wire.answer("POST").ok_or("no answer")?;
    same("refused", (answer.status(), answer.values("connection")), (417, vec!["close"]))
}

/// An answer before the whole request is there: it comes, and nothing is read behind it.
fn early(world: &World, to: (IpAddr, u16)) -> Result<(), String> {
    let mut wire = Wire::open(&world.client, to).map_err(|error| error.to_string())?;
    let head = "POST /early HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000000\r\n\r\nsome";
    wire.send(head).map_err(|error| error.to_string())?;
    let answer = wire.answer("POST").ok_or("no answer")?;
    same("early", (answer.status(), answer.values("connection")), (413, vec!["close"]))
}

#[test]
fn requests_of_http2_pass_and_change_version_where_they_must() {
    let world = World::start("");
    for (name, to) in world.targets() {
        run(as_they_are(&world, &name, to));
        // A port that says nothing is spoken to as its client speaks.
        if !world.shop.addresses().contains(&to) {
            run(to_http1(&world, &name, to));
            from_http1(&world, &name, to);
        }
    }
    world.finish();
}

async fn as_they_are(world: &World, name: &str, to: IpAddr) {
    let mut client = Client::open(&world.client, (to, port::GRPC)).await;
    let mut call = client.begin(request(Method::POST, "/Echo"), false).await;
    call.send.send_data("some ".into(), false).unwrap();
    call.send.send_data("".into(), false).unwrap();
    call.send.send_data("body".into(), false).unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("9"));
    call.send.send_trailers(trailers).unwrap();
    let (body, trailers) = call.rest().await.unwrap();
    assert_eq!(body, b"some body", "{name}");
    assert_eq!(trailers["x-sum"], "9", "{name}: trailers both ways");

    let mut call = client.begin(request(Method::GET, "/Hints"), true).await;
    let hints = call.interim().await.unwrap_or_else(|| panic!("{name}: no hints"));
    assert_eq!(hints.status(), 103, "{name}");
    assert_eq!(hints.headers()["link"], "</a.css>", "{name}");
    assert_eq!(call.status().await, Ok(200), "{name}");
}

/// To an application of HTTP/1.1, and what that may not see of HTTP/2.
async fn to_http1(world: &World, name: &str, to: IpAddr) {
    let mut client = Client::open(&world.client, (to, port::HTTP)).await;
    let mut asked = request(Method::POST, "/a");
    asked.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    asked.headers_mut().append("cookie", HeaderValue::from_static("b=2"));
    let mut call = client.begin(asked, false).await;
    for part in ["some ", "", "body"] {
        call.send.send_data(part.into(), false).unwrap();
    }
    call.finish();
    let (body, _) = call.rest().await.unwrap();
    let body = String::from_utf8(body).unwrap();
    let parts =
        ["POST /a HTTP/1.1", "host: shop", "cookie: a=1; b=2", "transfer-encoding: chunked", "--\nsome body"];
    for part in parts {
        assert!(body.contains(part), "{name}: {part}: {body}");
    }
    for (method, path, status, bytes) in [
        (Method::HEAD, "/a", 200, Some(0)),
        (Method::GET, "/empty", 204, Some(0)),
        (Method::GET, "/same", 304, Some(0)),
        (Method::GET, "/chunks/3", 200, Some(15)),
        (Method::GET, "/trailers", 200, Some(4)),
        (Method::GET, "/hints", 200, None),
        (Method::GET, "/large/300000", 200, Some(300_000)),
    ] {
        let mut call = client.begin(request(method.clone(), path), true).await;
        if path == "/hints" {
            let hints = call.interim().await.unwrap_or_else(|| panic!("{name}: no hints"));
            assert_eq!(hints.headers().len(), 1, "{name}: {hints:?}");
        }
        assert_eq!(call.status().await, Ok(status), "{name}: {method} {path}");
        let (body, trailers) = call.rest().await.unwrap();
        assert!(trailers.is_empty(), "{name}: {path}: {trailers:?}");
        assert!(bytes.is_none_or(|bytes| bytes == body.len()), "{name}: {path}: {} bytes", body.len());
    }
}

/// The other way round, where the port says what is spoken.
fn from_http1(world: &World, name: &str, to: IpAddr) {
    let mut wire = Wire::open(&world.client, (to, port::GRPC)).unwrap();
    let mut ask = |request: &str| {
        wire.send(format!("{request}\r\n")).unwrap();
        wire.answer("GET").unwrap_or_else(|| panic!("{name}: no answer\n{}", world.logs()))
    };
    let answer = ask("GET /Head HTTP/1.1\r\nHost: shop:81\r\nConnection: x-mine\r\nX-Mine: 1\r\n");
    let text = answer.text();
    assert!(text.starts_with("GET http://shop:81/Head\n"), "{name}: {}", told(&answer));
    assert!(!text.contains("x-mine") && !text.contains("connection"), "{name}: {text}");
    let chunks = "2\r\nhi\r\n0\r\nx-sum: 9\r\n";
    let answer =
        ask(&format!("POST /Echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
    assert_eq!((answer.text().as_str(), answer.trailers.as_str()), ("hi", ""), "{name}");
    let answer = ask("GET / HTTP/1.1\r\nHost: a:b:c\r\n");
    assert_eq!(answer.status(), 400, "{name}: what HTTP/2 cannot say: {}", told(&answer));
}

#[test]
fn grpc_streams_both_ways() {
    let world = World::start("");
    for (name, to) in world.targets() {
        let (requests, cancelled) = (world.seen.requests(), world.seen.cancelled());
        run(async {
            let mut client = Client::open(&world.client, (to, port::GRPC)).await;
            let mut unary = client.call("Unary", &[]).await;
            unary.say("hello").await;
            unary.finish();
            assert_eq!(unary.next().await.as_deref(), Some("hello"), "{name}");
            assert_eq!(unary.grpc_status().await, "0", "{name}: in trailers");

            let mut stream = client.call("Server", &[]).await;
            stream.say("again").await;
            stream.finish();
            for number in 0..100 {
                assert_eq!(stream.next().await.as_deref(), Some("again"), "{name}: {number}");
            }
            assert_eq!(stream.grpc_status().await, "0", "{name}");

            let mut stream = client.call("Client", &[]).await;
            for _ in 0..100 {
                stream.say("12345").await;
            }
            stream.finish();
            assert_eq!(stream.next().await.as_deref(), Some("1000"), "{name}: bytes with their frames");
            assert_eq!(stream.grpc_status().await, "0", "{name}");

            // Neither waits for the other's end.
            let mut stream = client.call("Bidi", &[]).await;
            for number in 0..50 {
                let text = format!("message {number}");
                stream.say(&text).await;
                assert_eq!(stream.next().await, Some(text), "{name}");
            }
            stream.finish();
            assert_eq!(stream.next().await, None, "{name}");
            assert_eq!(stream.grpc_status().await, "0", "{name}");

            let mut only = client.call("Only", &[]).await;
            only.finish();
            assert_eq!((only.status().await, only.grpc_status().await), (Ok(200), "5".to_owned()), "{name}");
            assert_eq!(only.head["grpc-message"], "none", "{name}");

            let mut late = client.call("Slow", &[("grpc-timeout", "300m")]).await;
            late.finish();
            assert_eq!(
                (late.status().await, late.grpc_status().await),
                (Ok(200), "14".to_owned()),
                "{name}: a deadline"
            );
            assert_eq!(late.head["grpc-message"], "upstream request timeout", "{name}");

            let mut call = client.call("Slow", &[]).await;
            call.say("hello").await;
            let all = requests + 7;
            wait_until(&name, SOON, || (world.seen.requests() == all).then_some(()), || world.logs())
                .unwrap();
            call.send.send_reset(h2::Reason::CANCEL);
            // Sent as soon as the connection is driven again.
            let mut other = client.call("Unary", &[]).await;
            other.finish();
            assert_eq!(other.grpc_status().await, "0", "{name}: only one call is cancelled");
        });
        // The one whose deadline passed, and the one that was given up.
        let all = cancelled + 2;
        wait_until(&name, SOON, || (world.seen.cancelled() == all).then_some(()), || world.logs()).unwrap();
    }
    world.finish();
}

const WEBSOCKET: &str = "Host: shop\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// A text frame and a frame that closes, as a client masks them.
const FRAME: &[u8] = b"\x81\x85\x01\x02\x03\x04igohn";
const CLOSE: &[u8] = b"\x88\x80\x01\x02\x03\x04";

/// A route that gives an answer less time than a WebSocket then lives.
const TIMED: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: timed, namespace: default}\n\
    spec: {hosts: [plain], http: [{timeout: 2s, route: [{destination: {host: plain}}]}]}\n";

#[test]
fn websockets_pass_as_bytes() {
    let world = World::start(TIMED);
    for (name, to) in world.targets() {
        for at in [port::HTTP, port::SNIFFED] {
            let mut wire = Wire::open(&world.client, (to, at)).unwrap();
            wire.send(format!("GET /upgrade HTTP/1.1\r\n{WEBSOCKET}")).unwrap();
            let answer = wire.answer("GET").unwrap_or_else(|| panic!("{name}: no answer\n{}", world.logs()));
            assert_eq!(
                (answer.status(), answer.values("upgrade")),
                (101, vec!["websocket"]),
                "{name}: {}",
                told(&answer)
            );
            let framed = answer.values("transfer-encoding").len() + answer.values("content-length").len();
            assert_eq!(framed, 0, "{name}: {}", told(&answer));
            if name == "plain by IPv4" {
                pause(Duration::from_secs(3));
            }
            for _ in 0..3 {
                wire.send(FRAME).unwrap();
                assert_eq!(wire.exactly(FRAME.len()).as_deref(), Some(FRAME), "{name}");
            }
            wire.send(CLOSE).unwrap();
            assert_eq!(wire.rest(), CLOSE, "{name}: and then it ends");

            // Refused by the application, or another protocol: as Envoy has it, that is the last of its connection.
            for asked in [
                format!("GET /status/403 HTTP/1.1\r\n{WEBSOCKET}"),
                format!("GET /upgrade HTTP/1.1\r\n{}", WEBSOCKET.replace("websocket", "other")),
            ] {
                let mut wire = Wire::open(&world.client, (to, at)).unwrap();
                wire.send(&asked).unwrap();
                let answer = wire.answer("GET").unwrap_or_else(|| panic!("{name}: no answer"));
                assert_eq!((answer.status(), answer.text().as_str()), (403, ""), "{name}: {asked}");
                assert_eq!(answer.values("connection"), ["close"], "{name}: {asked}");
            }
        }
        if !world.shop.addresses().contains(&to) {
            run(over_http2(&world, &name, to));
        }
    }
    world.finish();
}

/// WebSocket over HTTP/2, to an application that speaks it over HTTP/1.1. Source: RFC 8441.
async fn over_http2(world: &World, name: &str, to: IpAddr) {
    let connect = |path: &str, protocol: &'static str| {
        let mut asked = request(Method::CONNECT, path);
        asked.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
        asked
    };
    let mut client = Client::open(&world.client, (to, port::HTTP)).await;
    // Whether it may be asked for is known once the settings are here.
    assert_eq!(client.begin(request(Method::GET, "/a"), true).await.status().await, Ok(200), "{name}");
    assert!(client.send.is_extended_connect_protocol_enabled(), "{name}");
    world.heard.take();
    let mut call = client.begin(connect("/upgrade", "websocket"), false).await;
    assert_eq!(call.status().await, Ok(200), "{name}\n{}", world.logs());
    let heard = world.heard.take();
    let asked = heard.first().unwrap_or_else(|| panic!("{name}: nothing was asked"));
    assert!(asked.head.starts_with("GET /upgrade HTTP/1.1\r\n"), "{name}: {}", asked.head);
    assert_eq!(asked.values("upgrade"), ["websocket"], "{name}");
    assert_eq!(asked.values("sec-websocket-key").len(), 1, "{name}");
    call.send.send_data(FRAME.into(), false).unwrap();
    call.send.send_data(CLOSE.into(), false).unwrap();
    let (body, _) = call.rest().await.unwrap();
    assert_eq!(body, [FRAME, CLOSE].concat(), "{name}");
    // What comes with a request that is refused reaches nobody.
    let mut call = client.begin(connect("/status/403", "websocket"), false).await;
    call.send.send_data("GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n".into(), false).unwrap();
    assert_eq!(call.status().await, Ok(403), "{name}");
    let mut call = client.begin(connect("/upgrade", "other"), false).await;
    assert_eq!(call.status().await, Ok(403), "{name}");
    let heard: Vec<_> = world.heard.take().into_iter().map(|message| message.head).collect();
    assert!(!heard.iter().any(|head| head.contains("smuggled")), "{name}: {heard:?}");
}

#[test]
fn bytes_pass_whoever_speaks_first() {
    let world = World::start("");
    let mut problems = Vec::new();
    for (name, to) in world.targets() {
        for at in [port::TCP, port::TLS] {
            let text = if at == port::TLS {
                client_hello("virtual.default.svc.cluster.local", 10_000)
            } else {
                b"hello".to_vec()
            };
            match exchange(&world.client, (to, at), &text) {
                Ok((_, echo)) if echo == text => {}
                other => problems.push(format!("{name} {at}: {other:?}")),
            }
        }
        for at in [port::GREETING, port::SNIFFED_GREETING] {
            let mut stream = culvert_tests::net::connect(&world.client, (to, at)).unwrap();
            let (bytes, end) = read_to_end(&mut stream);
            if String::from_utf8_lossy(&bytes) != GREETING {
                problems.push(format!("{name} {at}: {bytes:?}, {end:?}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n---\n"), world.logs());
    world.finish();
}

/// A client of the waypoint that names a service, not its address.
#[test]
fn a_service_is_reached_by_its_name() {
    let world = World::start("");
    run(async {
        let pki = Pki::open(&world.mesh.lab.ca_dir());
        let leaf = pki.issue(&Claims::account("client"));
        for waypoint in world.waypoint.pod.addresses() {
            let config = tls::client(Some(&leaf), &["h2"]);
            let stream = dial(&world.waypoint.pod, (waypoint, 15008).into(), config).await.expect("TLS");
            let mut tunnel = Tunnel::over(stream).await.expect("HTTP/2");
            let mut stream = tunnel.connect("virtual.default.svc.cluster.local:80").await;
            stream.write(b"GET /by-name HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n").await;
            let answer = String::from_utf8(stream.read_end().await.expect("an orderly end")).unwrap();
            assert!(answer.contains("GET /by-name HTTP/1.1"), "{answer}\n{}", world.logs());
            for (authority, status) in [
                ("virtual.default.svc.cluster.local:8", 404),
                ("other.default.svc.cluster.local:80", 404),
                ("10.96.0.99:80", 404),
                ("127.0.0.1:15000", 404),
            ] {
                let asked = culvert_tests::peer::client::request(authority);
                let answer = tunnel.ask(asked).await.expect("an answer");
                assert_eq!(answer.status.as_u16(), status, "{authority}");
                assert!(answer.headers.contains_key("culvert-denial"), "{authority}: {:?}", answer.headers);
            }
        }
    });
    world.finish();
}

const MIRRORS: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: mirrored, namespace: default, labels: {istio.io/use-waypoint: waypoint}}
spec:
  clusterIP: 10.96.0.30
  clusterIPs: [10.96.0.30]
  selector: {app: shop}
  ports: [{name: http, port: 80, targetPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: copies, namespace: default}
spec:
  clusterIP: 10.96.0.31
  clusterIPs: [10.96.0.31]
  selector: {app: shop}
  ports: [{name: http, port: 80, targetPort: 90}, {name: http-dead, port: 81, targetPort: 91}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mirrored, namespace: default}
spec:
  hosts: [mirrored]
  http:
  - match: [{uri: {prefix: /never}}]
    mirror: {host: copies, port: {number: 80}}
    mirrorPercentage: {value: 0}
    route: [{destination: {host: mirrored}}]
  - match: [{uri: {prefix: /half}}]
    mirror: {host: copies, port: {number: 80}}
    mirrorPercentage: {value: 50}
    route: [{destination: {host: mirrored}}]
  - match: [{uri: {prefix: /dead}}]
    mirror: {host: copies, port: {number: 81}}
    route: [{destination: {host: mirrored}}]
  - headers: {request: {set: {x-set: route}}}
    mirrors:
    - {destination: {host: copies, port: {number: 80}}}
    - {destination: {host: copies, port: {number: 80}}, percentage: {value: 100}}
    route: [{destination: {host: mirrored}}]
"#;

#[test]
fn mirrors_get_the_same_and_are_not_waited_for() {
    let world = World::start(MIRRORS);
    let copies = Heard::default();
    let server = copies.serve(&world.shop, 90);
    let to = ([10, 96, 0, 30].into(), port::HTTP);
    let mut wire = Wire::open(&world.client, to).unwrap();
    let mut ask = |line: &str, rest: &str| {
        wire.send(format!("{line} HTTP/1.1\r\nHost: shop\r\n{rest}")).unwrap();
        let answer = wire.answer("POST").unwrap_or_else(|| panic!("{line}: no answer\n{}", world.logs()));
        assert_eq!(answer.status(), 200, "{line}: {}", told(&answer));
    };
    // The application answers with what a mirror's answer would change.
    ask("POST /a?b", "X-In: 1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let mut got = Vec::new();
    let both = || {
        got.extend(copies.take());
        (got.len() >= 2).then(|| std::mem::take(&mut got))
    };
    let got = wait_until("both copies", SOON, both, || world.logs()).unwrap();
    for copy in got {
        assert!(copy.head.starts_with("POST /a?b HTTP/1.1\r\n"), "{}", copy.head);
        assert_eq!(
            (copy.values("x-in"), copy.values("x-set"), copy.values("host")),
            (vec!["1"], vec!["route"], vec!["shop"])
        );
        assert_eq!(copy.text(), "hello");
    }
    for _ in 0..100 {
        ask("GET /half", "\r\n");
        ask("GET /never", "\r\n");
    }
    let mut half = 0;
    let some = || {
        half += copies.take().iter().filter(|copy| copy.head.starts_with("GET /half ")).count();
        (half >= 20).then_some(())
    };
    wait_until("copies of some", SOON, some, || world.logs()).unwrap();
    assert!(half <= 80, "{half} of 100 at 50 %");
    for _ in 0..20 {
        ask("GET /dead", "\r\n");
    }
    assert!(copies.take().iter().all(|copy| copy.head.starts_with("GET /half ")), "0 % is none");
    drop(wire);
    world.finish();
    drop(server);
}
