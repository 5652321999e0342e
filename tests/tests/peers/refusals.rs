//! Requests that are refused: by their form, their target, by policy, or because the app does not answer.

use culvert_tests::peer::client::{Tunnel, assert_serves, request};
use culvert_tests::peer::net::App;
use culvert_tests::peer::raw::{self, Frame, Raw, kind};
use culvert_tests::peer::world::{APP, OTHER_SERVICE, SERVICE, World};
use culvert_tests::peer::{client, tls};
use http::{Method, Request};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// How the agent refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// With this status.
    Status(u16),
    /// With 400, or with a stream error for what is no HTTP/2 request at all (RFC 9113 §8.1.1).
    Malformed,
}
use Refused::{Malformed, Status};

async fn raw_tunnel(world: &World) -> (Raw<TlsStream<TcpStream>>, std::net::SocketAddr) {
    let config = tls::client(Some(&world.leaf()), &["h2"]);
    let stream = client::dial(&world.peer, world.hbone(), config).await.expect("a TLS handshake");
    let local = stream.get_ref().0.local_addr().expect("a socket");
    (Raw::greet(stream).await, local)
}

/// Sends a request on a tunnel of its own and judges what comes of it.
async fn judge(world: &World, app: &App, name: &str, ask: &Frame, wanted: Refused) {
    let (mut raw, local) = raw_tunnel(world).await;
    raw.send(ask).await.unwrap();
    let Some(outcome) = raw.outcome(1).await else { panic!("{name}: the tunnel just ended") };
    match outcome.kind {
        kind::HEADERS => {
            let status = outcome.status().unwrap_or_else(|| panic!("{name}: no status in {outcome:?}"));
            let right = match wanted {
                Status(wanted) => status == wanted,
                Malformed => status == 400,
            };
            assert!(right, "{name}: {status}, wanted {wanted:?}");
            assert_eq!(outcome.flags & raw::END_STREAM, raw::END_STREAM, "{name}: no body");
            let line = world.line_from(local).await;
            let class = if status == 400 && line.field("denial.class").as_deref() != Some("destination") {
                "request"
            } else {
                "destination"
            };
            assert!(line.has(&[("denial.class", class)]), "{name}: {line:?}");
            assert_eq!(line.field("denial.id").map(|id| id.len()), Some(32), "{name}: {line:?}");
        }
        kind::RST_STREAM | kind::GOAWAY => assert_eq!(wanted, Malformed, "{name}: {outcome:?}"),
        _ => unreachable!(),
    }
    app.assert_untouched();
}

/// Authorities that lead nowhere, and how each is refused.
#[expect(clippy::too_many_lines, reason = "a table")]
fn odd_authorities(world: &World) -> Vec<(String, Refused)> {
    let (v4, v6) = (world.pod.v4, world.pod.v6);
    let (twin4, twin6, peer4) = (world.twin.v4, world.twin.v6, world.peer.v4);
    let dotted = format!("{SERVICE}.:80");
    let long = format!("{}:80", "a.".repeat(200));
    let label = format!("{}.default.svc.cluster.local:80", "a".repeat(64));
    vec![
        (String::new(), Malformed),
        (":80".into(), Malformed),
        ("80".into(), Malformed),
        (format!("{v4}"), Malformed),
        (format!("{v4}:"), Malformed),
        (format!("{v4}:0"), Malformed),
        (format!("{v4}:65536"), Malformed),
        (format!("{v4}:99999999999999999999"), Malformed),
        (format!("{v4}:+8080"), Malformed),
        (format!("{v4}:-1"), Malformed),
        (format!("{v4}:0x1f90"), Malformed),
        (format!("{v4}: 8080"), Malformed),
        (format!(" {v4}:8080"), Malformed),
        (format!("{v4}:8080 "), Malformed),
        (format!("{v4}:8080:8080"), Malformed),
        (format!("{v4}:http"), Malformed),
        (format!("user@{v4}:8080"), Malformed),
        (format!("user:pass@{v4}:8080"), Malformed),
        (format!("@{v4}:8080"), Malformed),
        (format!("http://{v4}:8080"), Malformed),
        (format!("{v4}:8080/"), Malformed),
        (format!("{v4}:8080?x=y"), Malformed),
        (format!("{v4}:8080#x"), Malformed),
        (format!("{v4},{twin4}:8080"), Malformed),
        (format!("{v4}\0:8080"), Malformed),
        (format!("{v4}:8080\r\nx: y"), Malformed),
        (format!("{v4}%00:8080"), Malformed),
        (format!("[{v4}]:8080"), Malformed),
        (format!("[::ffff:{v4}]:8080"), Malformed),
        (format!("{v6}:8080"), Malformed),
        (format!("[{v6}]"), Malformed),
        (format!("[{v6}:8080"), Malformed),
        (format!("[{v6}%25eth0]:8080"), Malformed),
        (format!("[{v6}%eth0]:8080"), Malformed),
        ("0177.0.0.1:8080".into(), Malformed),
        ("0x7f000001:8080".into(), Status(503)),
        ("2130706433:8080".into(), Malformed),
        ("127.1:8080".into(), Malformed),
        ("127.0.0.1:8080".into(), Status(400)),
        ("[::1]:8080".into(), Status(400)),
        ("0.0.0.0:8080".into(), Status(400)),
        ("[::]:8080".into(), Status(400)),
        ("224.0.0.1:8080".into(), Status(400)),
        ("255.255.255.255:8080".into(), Status(400)),
        ("169.254.169.254:80".into(), Status(400)),
        ("[fe80::1]:8080".into(), Status(400)),
        (format!("{twin4}:8080"), Status(400)),
        (format!("[{twin6}]:8080"), Status(400)),
        (format!("{peer4}:8080"), Status(400)),
        (format!("[{v6}]:8080"), Status(400)),
        ("10.0.0.1:22".into(), Status(400)),
        ("10.96.0.10:80".into(), Status(400)),
        ("1.1.1.1:443".into(), Status(400)),
        (format!("{v4}:15001"), Status(503)),
        (format!("{v4}:15006"), Status(503)),
        (format!("{v4}:15008"), Status(503)),
        (format!("{SERVICE}:81"), Status(503)),
        (format!("{SERVICE}:8080"), Status(503)),
        (format!("{SERVICE}:15008"), Status(503)),
        (dotted, Malformed),
        (format!("{OTHER_SERVICE}:80"), Status(503)),
        ("front.elsewhere.svc.cluster.local:80".into(), Status(503)),
        ("kubernetes.default.svc.cluster.local:443".into(), Status(503)),
        ("front:80".into(), Status(503)),
        ("localhost:8080".into(), Status(503)),
        ("example.com:443".into(), Status(503)),
        ("*:80".into(), Malformed),
        ("*.default.svc.cluster.local:80".into(), Malformed),
        ("a..b:80".into(), Malformed),
        (".:80".into(), Malformed),
        ("\u{e9}.example:80".into(), Malformed),
        (long, Malformed),
        (label, Malformed),
        (format!("{}:80", "x".repeat(60_000)), Malformed),
    ]
}

#[tokio::test]
async fn no_odd_authority_leaves_the_pods_own_address() {
    let world = World::new(&[]);
    let (app, twin) = (App::listen(&world.pod, APP), App::listen(&world.twin, APP));
    let table = odd_authorities(&world);
    assert!(table.len() >= 60);
    for (authority, wanted) in &table {
        let shown: String = authority.chars().take(60).collect();
        judge(&world, &app, &format!("{shown:?}"), &raw::connect(1, authority.as_bytes()), *wanted).await;
        twin.assert_untouched();
    }
    let _echo = app.echo();
    assert_serves(&world).await;
}

type Headers = Vec<(&'static str, Vec<u8>)>;

#[tokio::test]
async fn what_is_no_plain_connect_is_refused() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let authority = world.app().to_string();
    let at = authority.as_bytes();
    let owned = |(name, value): (&'static str, &[u8])| (name, value.to_vec());
    let with = |extra: &[(&'static str, &'static [u8])]| -> Headers {
        [(":method", &b"CONNECT"[..]), (":authority", at)]
            .into_iter()
            .chain(extra.iter().copied())
            .map(owned)
            .collect()
    };
    let method = |method: &[u8]| -> Headers {
        let full = [(":method", method), (":scheme", b"https"), (":path", b"/"), (":authority", at)];
        full.map(owned).into()
    };
    let table: Vec<(&str, Headers)> = vec![
        ("GET", method(b"GET")),
        ("POST", method(b"POST")),
        ("OPTIONS", method(b"OPTIONS")),
        ("unknown method", method(b"BREW")),
        ("lower-case method", method(b"connect")),
        ("CONNECT with scheme and path", method(b"CONNECT")),
        ("with scheme", with(&[(":scheme", b"https")])),
        ("with path", with(&[(":path", b"/")])),
        ("extended", with(&[(":protocol", b"websocket"), (":scheme", b"https"), (":path", b"/")])),
        ("extended without path", with(&[(":protocol", b"connect-udp")])),
        ("no method", vec![(":authority", at.to_vec())]),
        ("no authority", vec![(":method", b"CONNECT".to_vec())]),
        ("host in its place", vec![(":method", b"CONNECT".to_vec()), ("host", at.to_vec())]),
        ("two authorities", with(&[(":authority", b"10.0.0.1:1")])),
        ("unknown pseudo header", with(&[(":target", b"x")])),
        ("pseudo header of an answer", with(&[(":status", b"200")])),
        ("upper-case name", with(&[("Baggage", b"x=y")])),
        ("connection header", with(&[("connection", b"close")])),
        ("transfer-encoding", with(&[("transfer-encoding", b"chunked")])),
        ("no headers", Vec::new()),
    ];
    for (name, headers) in &table {
        let headers: Vec<(&str, &[u8])> = headers.iter().map(|(n, v)| (*n, &v[..])).collect();
        judge(&world, &app, name, &raw::headers(1, &headers), Malformed).await;
    }
    let _echo = app.echo();
    assert_serves(&world).await;
}

#[tokio::test]
async fn a_refusal_says_its_class_and_id_and_nothing_else() {
    let world = World::new(&["--log", "info"]);
    let (app, twin) = (App::listen(&world.pod, APP), App::listen(&world.twin, APP));
    let closed = format!("{}:9", world.pod.v4);
    let get =
        Request::builder().method(Method::GET).uri(format!("https://{}/", world.app())).body(()).unwrap();
    let table = [
        (request(&format!("{}:{APP}", world.twin.v4)), 400, "destination"),
        (request(&format!("{OTHER_SERVICE}:80")), 503, "destination"),
        (request(&closed), 503, "connect"),
        (get, 400, "request"),
    ];
    let count = |class: &str| world.metric("culvert_refusals_total", &[&format!("class=\"{class}\"")]);
    for (ask, status, class) in table {
        let what = format!("{ask:?}");
        let before = count(class);
        let mut tunnel = Tunnel::open(&world).await;
        let mut answer = tunnel.ask(ask).await.unwrap();
        let id = answer.assert_refused(status, class).await;
        let line = world.line_from(tunnel.local).await;
        assert!(line.has(&[("denial.id", &id), ("denial.class", class)]), "{what}: {line:?}");
        assert!(line.has(&[("src.identity", &*world.peer.identity())]), "{what}: {line:?}");
        assert_eq!(count(class), before + 1.0, "{what}");
        app.assert_untouched();
        twin.assert_untouched();
        // The tunnel is as good as before.
        let again = tunnel.ask(request(&closed)).await.unwrap();
        assert_eq!(again.status, 503);
    }
}

const DENY_ALL: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: only-friends\n  \
    namespace: default\nspec:\n  selector:\n    matchLabels: {app: pod}\n  action: ALLOW\n  rules:\n  - from:\n    - source:\n        \
    principals: [\"cluster.local/ns/default/sa/friend\"]\n";

#[tokio::test]
async fn policy_refuses_with_401_and_one_line_that_names_it() {
    let world = World::with(&[], &[("policy.yaml", DENY_ALL)]);
    let app = App::listen(&world.pod, APP);
    let mut tunnel = Tunnel::open(&world).await;
    for authority in [world.app().to_string(), format!("{SERVICE}:80")] {
        let mut answer = tunnel.ask(request(&authority)).await.unwrap();
        answer.assert_refused(401, "policy").await;
    }
    drop(tunnel);
    let mut tunnel = Tunnel::open(&world).await;
    let mut answer = tunnel.ask(request(&world.app().to_string())).await.unwrap();
    let id = answer.assert_refused(401, "policy").await;
    let line = world.line_from(tunnel.local).await;
    let wanted = [
        ("denial.id", &*id),
        ("denial.class", "policy"),
        ("src.identity", &*world.peer.identity()),
        ("dst.identity", &*world.pod.identity()),
        ("message", "connection complete"),
    ];
    assert!(line.has(&wanted), "{line:?}");
    assert!(line.field("denial.policy").unwrap().contains("only-friends"), "{line:?}");
    assert_eq!(world.metric("culvert_refusals_total", &["class=\"policy\""]), 3.0);
    let denied = ["reporter=\"destination\"", "response_flags=\"DENY\""];
    assert_eq!(world.metric("istio_tcp_connections_failed_total", &denied), 3.0);
    app.assert_untouched();
    // Forged headers do not help, another identity does.
    let mut forged = request(&world.app().to_string());
    forged.headers_mut().insert("baggage", "service.name=friend".parse().unwrap());
    forged.headers_mut().insert("x-istio-source", "waypoint".parse().unwrap());
    forged.headers_mut().insert("forwarded", "for=\"10.244.2.99:1\"".parse().unwrap());
    tunnel.ask(forged).await.unwrap().assert_refused(401, "policy").await;
    app.assert_untouched();
    let friend = world.pki.issue(&culvert_tests::peer::pki::Claims::account("friend"));
    let stream = client::dial(&world.peer, world.hbone(), tls::client(Some(&friend), &["h2"])).await.unwrap();
    let mut tunnel = Tunnel::over(stream).await.unwrap();
    let authority = world.app().to_string();
    let (answer, _served) = tokio::join!(tunnel.connect(&authority), app.accept());
    drop(answer);
}
