//! A hand-made waypoint, and a pod of ours that is one: what a control plane says, in the path.

use std::io::ErrorKind;
use std::net::SocketAddr;

use culvert::lab::{LogLine, Pod};
use culvert_tests::peer::client::Tunnel;
use culvert_tests::peer::net::{App, End, connect, expect_bytes, read_end, try_connect};
use culvert_tests::peer::server::{Server, Session};
use culvert_tests::peer::world::{APP, HBONE, World};
use culvert_tests::peer::{envoy, eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A workload as the local file has it; `more` are further keys, each on its line.
fn workload(pod: &Pod, more: &str) -> String {
    let (name, node) = (&pod.spec.name, &pod.node_name);
    let services = if more.contains("services:") { "" } else { "  services: {}\n" };
    format!(
        "- uid: Kubernetes//Pod/default/{name}\n  name: {name}\n  namespace: default\n  trustDomain: cluster.local\n  \
         serviceAccount: {name}\n  workloadIps: [\"{}\", \"{}\"]\n  protocol: HBONE\n  node: {node}\n  clusterId: Kubernetes\n  \
         workloadName: {name}\n  workloadType: pod\n  canonicalName: {name}\n  canonicalRevision: latest\n{services}{more}",
        pod.v4, pod.v6
    )
}

/// A service of two addresses, `10.96.0.<number>` and its like; port 80 leads to 8080.
fn service(name: &str, number: u8, more: &str) -> String {
    format!(
        "- name: {name}\n  namespace: default\n  hostname: {name}.default.svc.cluster.local\n  vips: [\"/10.96.0.{number}\", \
         \"/fd00:96::{number}\"]\n  ports: {{80: 8080}}\n  canonical: true\n{more}"
    )
}

fn told(workloads: &[String], services: &[String]) -> String {
    format!("workloads:\n{}services:\n{}policies: []\n", workloads.concat(), services.concat())
}

fn host(name: &str) -> String {
    format!("{name}.default.svc.cluster.local")
}

fn by_name(name: &str) -> String {
    format!("  waypoint: {{destination: \"default/{}\", hboneMtlsPort: 15008}}\n", host(name))
}

fn by_address(ip: impl std::fmt::Display) -> String {
    format!("  waypoint: {{destination: \"/{ip}\", hboneMtlsPort: 15008}}\n")
}

/// The waypoint is the peer, behind service `wp`; `twin` is an endpoint and a pod with a waypoint of its own.
fn world() -> World {
    World::told(&[], |[pod, twin, peer]| {
        let in_services =
            ["front", "numbered", "lost"].map(|name| format!("\"default/{}\": {{80: 8080}}", host(name)));
        let of_twin = format!("  services: {{{}}}\n{}", in_services.join(", "), by_address(peer.v4));
        let of_peer = format!("  services: {{\"default/{}\": {{15008: 15008}}}}\n", host("wp"));
        let asleep = format!(
            "  services: {{\"default/{}\": {{15008: 15008}}}}\n  status: Unhealthy\n",
            host("asleep")
        );
        let sleeper =
            workload(pod, "").replace("/pod\n", "/sleeper\n").replace("name: pod\n", "name: sleeper\n");
        let sleeper = sleeper.replace(&format!("\"{}\", \"{}\"", pod.v4, pod.v6), "\"10.1.2.3\"");
        let workloads = [
            workload(pod, ""),
            workload(twin, &of_twin),
            workload(peer, &of_peer),
            sleeper.replace("  services: {}\n", "") + &asleep,
        ];
        let range = format!("  cidrVips: [{{network: \"\", cidr: 10.97.0.0/16}}]\n{}", by_name("wp"));
        let weighted = format!(
            "  weightedWaypoints:\n  - {{destination: {{destination: \"default/{}\", hboneMtlsPort: 15008}}, weight: 0}}\n  \
             - {{destination: {{destination: \"default/{}\", hboneMtlsPort: 15008}}, weight: 7}}\n",
            host("nobody"),
            host("wp")
        );
        let wp = service("wp", 90, "").replace("ports: {80: 8080}", "ports: {15008: 15008}");
        let services = [
            wp,
            service("asleep", 91, "").replace("ports: {80: 8080}", "ports: {15008: 15008}"),
            service("front", 10, &by_name("wp")),
            service("numbered", 11, &by_address("10.96.0.90")),
            service("range", 12, &range),
            service("weighted", 13, &weighted),
            service("lost", 14, &by_name("nobody")),
            service("shut", 15, &by_name("asleep")),
        ];
        told(&workloads, &services)
    })
}

/// What a waypoint is asked for, by what the app dials.
#[tokio::test]
async fn connections_go_to_the_waypoint_of_what_they_address() {
    let world = world();
    let server = Server::new(&world);
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
    let twin = SocketAddr::new(world.twin.v4.into(), APP);
    let rows = [
        (at("10.96.0.10"), Some("front"), world.peer.v4.into()),
        (at("fd00:96::10"), Some("front"), world.peer.v6.into()),
        (at("10.96.0.11"), Some("numbered"), world.peer.v4.into()),
        (at("10.97.5.6"), Some("range"), world.peer.v4.into()),
        (at("10.96.0.13"), Some("weighted"), world.peer.v4.into()),
        (twin, None, world.peer.v4.into()),
    ];
    let mut sessions: Vec<(std::net::IpAddr, Session)> = Vec::new();
    for (to, service, through) in rows {
        let mut app = connect(&world.pod, to);
        let local = app.local_addr().unwrap();
        // One tunnel for each address of the waypoint, whatever was dialled.
        if !sessions.iter().any(|(ip, _)| *ip == through) {
            sessions.push((through, server.session().await));
        }
        let session = sessions.iter_mut().find(|(ip, _)| *ip == through).map(|(_, session)| session).unwrap();
        let (request, mut stream) = session.accept().await;
        assert_eq!(request.uri().authority().unwrap().as_str(), to.to_string());
        let forwarded = request.headers()["forwarded"].to_str().unwrap();
        let host = service.map(|name| format!(";host={}", host(name))).unwrap_or_default();
        assert_eq!(forwarded, format!("for=\"{local}\"{host}"));
        stream.accept();
        stream.converse(&mut app).await;
        let line = world.line_from(local).await;
        let (peer, hbone) = (SocketAddr::new(through, HBONE).to_string(), to.to_string());
        let who = world.peer.identity();
        // The labels are the waypoint's, the service the one that was meant.
        let fields = [
            ("dst.addr", peer.as_str()),
            ("dst.hbone_addr", &hbone),
            ("dst.workload", "peer"),
            ("dst.identity", &who),
        ];
        assert!(line.has(&fields) && line.field("error").is_none(), "{line:?}");
        assert_eq!(line.field("dst.service").map(|s| s.to_string()), service.map(self::host), "{line:?}");
    }
    let labels =
        ["destination_workload=\"peer\"", "destination_service_name=\"front\"", "reporter=\"source\""];
    assert_eq!(world.metric("istio_tcp_connections_opened_total", &labels), 2.0);
    server.tcp.assert_untouched();
}

/// Nobody is reached past a waypoint that is not there.
#[tokio::test]
async fn a_waypoint_that_is_unknown_or_not_ready_is_never_passed_by() {
    let world = world();
    let endpoint = App::listen(&world.twin, APP);
    for (to, seen) in [
        (
            "10.96.0.14:80",
            "unknown waypoint: 10.96.0.14:80 is to go through default/nobody.default.svc.cluster.local",
        ),
        ("[fd00:96::14]:80", "unknown waypoint: [fd00:96::14]:80"),
        (
            "10.96.0.15:80",
            "is to go through waypoint default/asleep.default.svc.cluster.local, which has 1 not ready",
        ),
    ] {
        // The reset may be faster than the app's first look.
        match try_connect(&world.pod, to.parse().unwrap()) {
            Ok(mut app) => assert_eq!(read_end(&mut app).await, End::Reset(Vec::new()), "{to}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{to}"),
        }
        let is_told = |line: &LogLine| {
            let why = line.field("error").unwrap_or_default();
            line.has(&[("scope", "access"), ("dst.addr", to)]) && why.contains(seen)
        };
        eventually(seen, || world.agent.log().iter().any(is_told)).await;
    }
    endpoint.assert_untouched();
}

/// The waypoint passes it on: the agent of the endpoint takes it from the waypoint, and the app sees its address.
#[tokio::test]
async fn what_a_waypoint_sends_on_reaches_the_endpoint() {
    let world = world();
    let (server, endpoint) = (Server::new(&world), App::listen(&world.twin, APP));
    let mut app = connect(&world.pod, "10.96.0.10:80".parse().unwrap());
    let mut session = server.session().await;
    let (_, mut from_client) = session.accept().await;
    let mut tunnel = Tunnel::to(&world, SocketAddr::new(world.twin.v4.into(), HBONE)).await;
    let mut to_endpoint = tunnel.connect(&format!("{}:{APP}", world.twin.v4)).await;
    from_client.accept();
    let (mut served, seen) = endpoint.accept().await;
    assert_eq!(seen.ip(), world.peer.v4, "the waypoint's address");
    app.write_all(b"question").await.unwrap();
    from_client.expect(b"question").await;
    to_endpoint.write(b"question").await;
    expect_bytes(&mut served, b"question").await;
    served.write_all(b"answer").await.unwrap();
    to_endpoint.expect(b"answer").await;
    from_client.write(b"answer").await;
    expect_bytes(&mut app, b"answer").await;
    // The endpoint's agent takes nothing else that is not its own.
    let mut refused = tunnel.ask(culvert_tests::peer::client::request("10.96.0.10:80")).await.unwrap();
    refused.assert_refused(400, "destination").await;
}

/// `pod` is a waypoint that is captured itself, with a tunnel of its own; `twin` has one that only moves the port.
fn sandwich(flags: &[&str]) -> World {
    World::told(flags, |[pod, twin, peer]| {
        let of_pod = format!(
            "  services: {{\"default/{}\": {{15008: 15008}}}}\n  applicationTunnel: {{protocol: PROXY, port: 15088}}\n",
            host("wp")
        );
        let of_twin = "  applicationTunnel: {protocol: NONE, port: 9000}\n";
        let workloads = [workload(pod, &of_pod), workload(twin, of_twin), workload(peer, "")];
        let wp = service("wp", 90, "").replace("ports: {80: 8080}", "ports: {15008: 15008}");
        told(&workloads, &[wp, service("front", 10, &by_name("wp"))])
    })
}

/// Signature, version 2 and PROXY.
const START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21";

/// What follows the signature: family, addresses and ports, and the identity.
fn header(source: SocketAddr, destination: SocketAddr, identity: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let family = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            body.extend([source.ip().octets(), destination.ip().octets()].concat());
            0x11
        }
        (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
            body.extend([source.ip().octets(), destination.ip().octets()].concat());
            0x21
        }
        mixed => panic!("not in this test: {mixed:?}"),
    };
    body.extend([source.port().to_be_bytes(), destination.port().to_be_bytes()].concat());
    body.push(0xd0);
    body.extend((identity.len() as u16).to_be_bytes());
    body.extend(identity.as_bytes());
    let mut all = START.to_vec();
    all.push(family);
    all.extend((body.len() as u16).to_be_bytes());
    all.extend(body);
    all
}

#[tokio::test]
async fn an_app_behind_a_tunnel_of_its_own_is_told_of_its_client() {
    let world = sandwich(&[]);
    let app = App::listen(&world.pod, 15088);
    let rows = [
        (world.pod.v4.into(), "10.96.0.10:80", "10.96.0.10:80"),
        (world.pod.v6.into(), "[fd00:96::10]:80", "[fd00:96::10]:80"),
        (world.pod.v4.into(), "192.0.2.7:443", "192.0.2.7:443"), // the tunnel's owner knows what it takes
        (world.pod.v4.into(), "front.default.svc.cluster.local:80", "10.96.0.10:80"),
    ];
    for (met, authority, told) in rows {
        let mut tunnel = Tunnel::to(&world, SocketAddr::new(met, HBONE)).await;
        let mut stream = tunnel.connect(authority).await;
        let (mut served, seen) = app.accept().await;
        assert!(seen.ip().is_loopback(), "{authority}: {seen}");
        // The header comes without a byte of the client's.
        let want = header(tunnel.local, told.parse().unwrap(), &world.peer.identity());
        let mut got = vec![0; want.len()];
        within("a header", served.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, want, "{authority}");
        stream.converse(served).await;
    }
    // Ports of the agent's own, whatever the tunnel makes of them.
    let mut tunnel = Tunnel::open(&world).await;
    for port in [15001, 15006, 15008] {
        let asked = culvert_tests::peer::client::request(&format!("10.96.0.10:{port}"));
        tunnel.ask(asked).await.unwrap().assert_refused(503, "destination").await;
    }
    app.assert_untouched();
}

/// Without loopback the app is dialled on the pod's address, as its client.
#[tokio::test]
async fn a_tunnel_may_reach_the_pods_own_address() {
    let world = sandwich(&["--localhost-app-tunnel", "false"]);
    let (app, other) = (App::listen(&world.pod, 15088), App::listen(&world.twin, 9000));
    let mut tunnel = Tunnel::open(&world).await;
    let _stream = tunnel.connect("10.96.0.10:80").await;
    let (mut served, seen) = app.accept().await;
    assert_eq!(seen.ip(), world.peer.v4);
    let want = header(tunnel.local, "10.96.0.10:80".parse().unwrap(), &world.peer.identity());
    let mut got = vec![0; want.len()];
    within("a header", served.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, want);
    // Without a preamble only the port is another.
    let mut tunnel = Tunnel::to(&world, SocketAddr::new(world.twin.v4.into(), HBONE)).await;
    let mut stream = tunnel.connect(&format!("{}:80", world.twin.v4)).await;
    let (mut served, seen) = other.accept().await;
    assert_eq!(seen.ip(), world.peer.v4);
    stream.write(b"question").await;
    expect_bytes(&mut served, b"question").await;
}

/// Envoy between two pods of ours: it ends the client's tunnel and makes one to the endpoint.
#[tokio::test]
async fn envoy_as_a_waypoint() {
    let world = World::told(&[], |[pod, twin, peer]| {
        let of_peer = format!("  services: {{\"default/{}\": {{15008: 15008}}}}\n", host("wp"));
        let of_pod =
            format!("  services: {{\"default/{}\": {{80: 8080}}}}\n{}", host("front"), by_name("wp"));
        let workloads = [workload(pod, &of_pod), workload(twin, ""), workload(peer, &of_peer)];
        let wp = service("wp", 90, "").replace("ports: {80: 8080}", "ports: {15008: 15008}");
        told(&workloads, &[wp, service("front", 10, &by_name("wp"))])
    });
    let app = App::listen(&world.pod, APP);
    let envoy = envoy::start_waypoint(&world);
    // Addressed to the service, and to the workload.
    for to in ["10.96.0.10:80".parse().unwrap(), SocketAddr::new(world.pod.v4.into(), APP)] {
        let mut client = connect(&world.twin, to);
        client.write_all(b"question").await.unwrap();
        let (mut served, seen) = app.accept().await;
        assert_eq!(seen.ip(), world.peer.v4, "the waypoint's address");
        expect_bytes(&mut served, b"question").await;
        served.write_all(b"answer").await.unwrap();
        expect_bytes(&mut client, b"answer").await;
        client.shutdown().await.unwrap();
        assert_eq!(read_end(&mut served).await, End::Orderly(Vec::new()));
        served.shutdown().await.unwrap();
        assert_eq!(read_end(&mut client).await, End::Orderly(Vec::new()));
        let line = world.line_from(client.local_addr().unwrap_or(to)).await;
        assert_eq!(line.field("dst.workload").map(|w| w.to_string()).as_deref(), Some("peer"), "{line:?}");
    }
    drop(envoy);
}
