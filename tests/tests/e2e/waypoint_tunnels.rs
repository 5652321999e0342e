//! Tunnels of which the test is one end: what a waypoint says to whom it does not let through, and which endpoints it believes.

use culvert::lab::{PodSpec, wait_until};
use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::peer::client::{Tunnel, dial, request};
use culvert_tests::peer::pki::{Claims, Pki};
use culvert_tests::peer::server::Server;
use culvert_tests::peer::tls;
use culvert_tests::stand::{Stand, TO, gateway, routes, service};
use culvert_tests::waypoint::{Waypoint, ask, get, pod};
use http::Request;

#[tokio::test]
async fn what_is_not_behind_the_waypoint_is_refused_with_an_id() {
    let stand = Stand::new(false, "http", "", &[]);
    let pki = Pki::open(&stand.mesh.lab.ca_dir());
    let config = tls::client(Some(&pki.issue(&Claims::account("client"))), &["h2"]);
    let to = (stand.waypoint.pod.v4, 15008).into();
    let tls = dial(&stand.client, to, config).await.expect("TLS");
    let mut tunnel = Tunnel::over(tls).await.expect("HTTP/2");
    let pod = format!("{}:8080", stand.shop.v4);
    let plain = Request::get("http://10.96.0.20:80/ready").body(()).unwrap();
    let rows = [
        (request("10.96.0.20:81"), 404, "destination"),
        (request("10.96.0.77:80"), 404, "destination"),
        (request("nobody.default.svc.cluster.local:80"), 404, "destination"),
        (request(&pod), 404, "destination"),
        (request("10.96.0.20"), 400, "request"),
        (plain, 400, "request"),
    ];
    // Over and over: never another answer, and never none.
    for round in 0..3 {
        for (request, status, class) in &rows {
            let (asked, uri) = (request.clone(), request.uri());
            let mut answer = tunnel.ask(asked).await.unwrap_or_else(|e| panic!("{round}, {uri}: {e}"));
            assert_eq!(answer.status, *status, "{uri}: {:?}", answer.headers);
            assert_eq!(answer.headers["culvert-denial-class"], *class, "{uri}");
            let id = answer.headers["culvert-denial"].to_str().unwrap().to_owned();
            assert_eq!(answer.read_end().await, Ok(Vec::new()), "{uri}: an orderly end");
            let is_told = || stand.waypoint.log().contains(&id).then_some(());
            wait_until("the id in the log", SOON, is_told, || stand.logs()).unwrap();
        }
    }
    for authority in ["10.96.0.20:80", "shop.default.svc.cluster.local:80"] {
        let mut stream = tunnel.connect(authority).await;
        stream.write(b"GET /ready HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
        let answer = stream.read_end().await.expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{authority}: {}", String::from_utf8_lossy(&answer));
    }
    drop(tunnel);
    tokio::task::spawn_blocking(move || stand.finish()).await.unwrap();
}

/// Who the endpoint says that it is. What is right of all but the last is the trust domain, or less.
const CLAIMED: &[&str] = &[
    "spiffe://cluster.local/ns/default/sa/other",
    "spiffe://cluster.local/ns/default/sa/waypoint",
    "spiffe://cluster.local/ns/other/sa/shop",
    "spiffe://other.local/ns/default/sa/shop",
    "spiffe://cluster.local/ns/default/sa/shop",
];

#[tokio::test]
async fn only_an_endpoint_that_is_exactly_who_it_should_be_gets_requests() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    // Nobody captures it, and yet it has tunnels: they are the test's.
    let tunnelled = PodSpec::new("shop").captured(false).label("networking.istio.io/tunnel", "http");
    let shop = mesh.pod("b", tunnelled);
    let place = pod(&mut mesh, "b");
    mesh.put("service.yaml", &service("http"));
    mesh.put("gateway.yaml", &gateway());
    mesh.put("routes.yaml", &routes(""));
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let logs = || waypoint.logs(&mesh);
    let ready = || ask(&client, TO, &get("/ready", "")).ok().filter(|answer| answer.contains("200 OK"));
    wait_until("an answer of the waypoint", SOON, ready, logs).unwrap();
    let pki = Pki::open(&mesh.lab.ca_dir());
    for (number, uri) in CLAIMED.iter().enumerate() {
        let leaf = pki.issue(&Claims::of(uri));
        let server = Server::at(&shop, tls::server(&leaf, &pki, &["h2"]));
        let (from, path) = (client.clone(), format!("/as/{number}"));
        let mut asked = tokio::task::spawn_blocking(move || ask(&from, TO, &get(&path, "")).unwrap());
        if number + 1 < CLAIMED.len() {
            let answer = loop {
                tokio::select! {
                    refused = server.accept() => assert!(refused.is_err(), "{uri} was believed\n{}", logs()),
                    answer = &mut asked => break answer.unwrap(),
                }
            };
            assert!(answer.starts_with("HTTP/1.1 503 "), "{uri}: {answer}\n{}", logs());
            let line = format!("\"GET /as/{number} HTTP/1.1\" 503 URX,UF ");
            wait_until(&line, SOON, || waypoint.log().contains(&line).then_some(()), logs).unwrap();
        } else {
            let mut session = server.session().await;
            let (request, mut stream) = session.accept().await;
            assert_eq!(request.uri().authority().unwrap().as_str(), format!("{}:8080", shop.v4));
            stream.accept();
            stream.expect_begin(format!("GET /as/{number} HTTP/1.1\r\n").as_bytes()).await;
            stream.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nright").await;
            let answer = asked.await.unwrap();
            assert!(answer.contains("200 OK") && answer.ends_with("right"), "{answer}\n{}", logs());
        }
    }
    drop(waypoint); // it keeps connections for the next request
    tokio::task::spawn_blocking(move || mesh.finish()).await.unwrap();
}
