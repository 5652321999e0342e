use std::net::SocketAddr;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::http::tests::Server;
use super::*;

async fn start() -> (Server, Arc<Metrics>) {
    let metrics = Metrics::new("1");
    let routes = vec![
        Route::read("/tell", "tells", |request| async move {
            text(StatusCode::OK, request.query("what").unwrap_or_else(|| "nothing".to_owned()))
        }),
        Route::change("/change", "changes", "POST /change\n", |_| async { text(StatusCode::OK, "changed") }),
    ];
    let routes = Routes::new("waypoint", routes, Arc::clone(&metrics));
    let server = Server::start(move |listener, scope| async move {
        serve_admin(listener, routes, Duration::ZERO, &scope).await;
    })
    .await;
    (server, metrics)
}

async fn ask(to: SocketAddr, head: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn only_loopback_may_ask() {
    let (server, metrics) = start().await;
    for (method, path, headers, status) in [
        ("GET", "/tell", "Host: localhost", 200),
        ("GET", "/tell", "Host: LocalHost:15000", 200),
        ("GET", "/tell", "Host: 127.0.0.1", 200),
        ("GET", "/tell", "Host: 127.8.9.1:1", 200),
        ("GET", "/tell", "Host: [::1]", 200),
        ("GET", "/tell", "Host: [::1]:15000", 200),
        ("HEAD", "/tell", "Host: localhost", 200),
        ("POST", "/change", "Host: localhost", 200),
        ("POST", "/change", "Host: localhost\r\nOrigin: http://localhost:3000", 200),
        ("POST", "/change", "Host: localhost\r\nOrigin: https://[::1]", 200),
        ("POST", "http://127.0.0.1:15000/change", "Host: localhost", 200),
        // A form of a page from anywhere.
        ("POST", "/change", "Host: localhost\r\nOrigin: https://evil.example", 403),
        ("POST", "/change", "Host: localhost\r\nOrigin: null", 403),
        ("POST", "/change", "Host: localhost\r\nOrigin: http://localhost.evil.example", 403),
        (
            "POST",
            "/change",
            "Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example",
            403,
        ),
        ("POST", "/change", "Host: localhost\r\nOrigin: ", 403),
        ("GET", "/tell", "Host: localhost\r\nOrigin: http://10.0.0.1", 403),
        // A name that was made to resolve to loopback.
        ("GET", "/tell", "Host: evil.example", 403),
        ("GET", "/tell", "Host: evil.example:15000", 403),
        ("GET", "/tell", "Host: localhost.evil.example", 403),
        ("GET", "/tell", "Host: 127.0.0.1.evil.example", 403),
        ("GET", "/tell", "Host: 127.1", 403),
        ("GET", "/tell", "Host: 10.0.0.1:15000", 403),
        ("GET", "/tell", "Host: [::2]", 403),
        ("GET", "/tell", "Host: [::ffff:127.0.0.1]", 403),
        ("GET", "/tell", "Host: [localhost]", 403),
        ("GET", "/tell", "Host: localhost:http", 403),
        ("GET", "/tell", "Host: user@localhost", 403),
        ("GET", "/tell", "Host: ", 403),
        ("GET", "/tell", "X: y", 403),
        ("GET", "/tell", "Host: localhost\r\nHost: evil.example", 403),
        ("GET", "http://evil.example/tell", "Host: localhost", 403),
        ("GET", "/nowhere", "Host: evil.example", 403),
        ("GET", "/nowhere", "Host: localhost", 404),
        ("GET", "/tell/", "Host: localhost", 404),
        ("GET", "/change", "Host: localhost", 405),
        ("PUT", "/change", "Host: localhost", 405),
        ("HEAD", "/change", "Host: localhost", 405),
        ("GET", "/change", "Host: evil.example", 403),
    ] {
        let (got, body) = ask(server.addr, &format!("{method} {path} HTTP/1.1\r\n{headers}")).await;
        assert_eq!(got, status, "{method} {path} {headers:?}: {body}");
        let served = body == "changed" || body == "nothing";
        assert!(method == "HEAD" || served == (status == 200), "{method} {path}: {body}");
    }
    let page = metrics.encode(false);
    for (reason, count) in [("host", 17), ("origin", 6), ("method", 3)] {
        let line = format!("culvert_admin_refused_total{{reason=\"{reason}\"}} {count}");
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
    server.stop().await;
}

proptest! {
    /// Nothing but loopback passes, however it is written.
    #[test]
    fn no_other_name_is_loopback(name in "[a-zA-Z0-9.:%\\[\\]@-]{0,40}", port in any::<u16>()) {
        for host in [name.clone(), format!("{name}:{port}"), format!("[{name}]:{port}"), format!("localhost.{name}x")] {
            if is_loopback(&host) {
                let bare = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok() && !host.ends_with(']'));
                let bare = bare.map_or(host.as_str(), |(bare, _)| bare).trim_matches(['[', ']']);
                let ours = bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
                prop_assert!(ours, "{host}");
            }
        }
        let _any_text = is_loopback_origin(&name);
    }

    #[test]
    fn any_address_of_loopback_passes(last in any::<[u8; 3]>(), port in any::<u16>()) {
        let [a, b, c] = last;
        let forms = [format!("127.{a}.{b}.{c}"), format!("127.{a}.{b}.{c}:{port}"), format!("[::1]:{port}")];
        prop_assert!(forms.iter().all(|host| is_loopback(host)));
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_one_and_the_index_links_pages() {
    let (server, _) = start().await;
    let (status, body) = ask(server.addr, "GET /change HTTP/1.1\r\nHost: localhost").await;
    assert_eq!((status, body.as_str()), (405, "POST /change\n"));
    let (status, body) = ask(server.addr, "GET / HTTP/1.1\r\nHost: localhost").await;
    assert_eq!(status, 200);
    assert!(body.contains("<a href=\"/tell\">/tell</a></td><td>tells</td>"), "{body}");
    assert!(body.contains("<td>POST /change</td><td>changes</td>"), "{body}");
    server.stop().await;
}

#[tokio::test]
async fn queries_are_decoded() {
    let (server, _) = start().await;
    for (query, expected) in [
        ("", "nothing"),
        ("?", "nothing"),
        ("?what=a", "a"),
        ("?what", ""),
        ("?x=1&what=a%3Db%2Cc+d&what=2", "a=b,c d"),
        ("?wh%61t=%zz%4", "%zz%4"),
        ("?what=%ff", "\u{fffd}"),
        ("?what=a=b", "a=b"),
    ] {
        let (_, body) = ask(server.addr, &format!("GET /tell{query} HTTP/1.1\r\nHost: localhost")).await;
        assert_eq!(body, expected, "{query:?}");
    }
    server.stop().await;
}
