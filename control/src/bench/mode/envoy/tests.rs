use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};

use super::*;
use crate::bench::mode::{BULK_PORT, HTTP_PORT};
use crate::lab::{Lab, LabOptions, PodSpec};

const ASK_MAX: Duration = Duration::from_secs(5);
const MARKER: &str = "not-for-the-wire";

fn stage() -> Stage {
    let mut lab = Lab::new(LabOptions { prefix: "culvert-envoy".to_owned() }).unwrap();
    let nodes = vec![lab.node("a").unwrap(), lab.node("b").unwrap()];
    let client = lab.pod(nodes[0], PodSpec::new("client")).unwrap();
    let server = lab.pod(nodes[1], PodSpec::new("server")).unwrap();
    let scratch = lab.dir().join("scratch");
    fs::create_dir(&scratch).unwrap();
    for port in [HTTP_PORT, BULK_PORT] {
        let listener = server.run(|| TcpListener::bind(("::", port))).unwrap().unwrap();
        std::thread::spawn(move || answer(&listener));
    }
    Stage { client, server, beside: None, nodes, ztunnel: PathBuf::new(), scratch, lab }
}

/// Tells in HTTP who asks and what the sidecar says of them.
fn answer(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut bytes = [0; 4096];
            while !seen.ends_with(b"\r\n\r\n") {
                match stream.read(&mut bytes) {
                    Ok(n) if n > 0 => seen.extend_from_slice(&bytes[..n]),
                    _ => return,
                }
            }
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let body = format!("{from}\n{}", String::from_utf8_lossy(&seen));
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        });
    }
}

/// What the client gets for one request; empty if it was cut.
fn get(stage: &Stage, to: SocketAddr) -> String {
    stage
        .client
        .run(|| {
            let mut text = String::new();
            let mut stream = std::net::TcpStream::connect_timeout(&to, ASK_MAX).unwrap();
            stream.set_read_timeout(Some(ASK_MAX)).unwrap();
            let request = format!("GET /{MARKER} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
            let _cut = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut text));
            text
        })
        .unwrap()
}

fn prepared(variant: Variant) -> Sidecars {
    let mut mode = Sidecars::new(variant);
    mode.prepare(&mut |_| {}).unwrap();
    mode
}

#[test]
fn each_variant_carries_requests_of_both_families_encrypted_and_leaves_nothing() {
    let stage = stage();
    for variant in [Variant::Http2, Variant::Http1, Variant::Tcp] {
        let mut mode = prepared(variant);
        mode.start(&stage, &World::default()).unwrap();
        assert_eq!(mode.proxies().len(), 2);
        let tap = stage.lab.tap(&[MARKER.as_bytes()]).unwrap();
        for address in stage.server.addresses() {
            for port in [HTTP_PORT, BULK_PORT] {
                let text = get(&stage, SocketAddr::new(address, port));
                // Istio's sidecars talk to their app from these addresses.
                let from = if address.is_ipv4() { "\r\n127.0.0.6\n" } else { "\r\n::6\n" };
                assert!(text.contains(from), "{variant:?} {address} {port}: {text}");
                let is_http = port == HTTP_PORT && variant != Variant::Tcp;
                let proven = format!("URI={}", stage.client.identity());
                assert_eq!(text.contains(&proven), is_http, "{variant:?} {port}: {text}");
            }
        }
        let seen = tap.seen().unwrap();
        assert_eq!((seen.missed, seen.marked()), (0, 0), "{variant:?}: read on the wire");
        assert!(seen.port(HTTP_PORT).bytes > 0 && seen.port(BULK_PORT).bytes > 0);
        mode.stop(&stage).unwrap();
        assert!(mode.proxies().is_empty());
        let text = get(&stage, SocketAddr::new(stage.server.addresses()[0], HTTP_PORT));
        assert!(text.contains(&stage.client.v4.to_string()), "direct again: {text}");
        assert!(tap.seen().unwrap().marked() > 0, "direct again");
    }
}

#[test]
fn a_server_with_another_identity_and_a_client_that_is_not_allowed_are_refused() {
    let stage = stage();
    let mut mode = prepared(Variant::Http2);
    mode.start(&stage, &World::default()).unwrap();
    let to = |port| SocketAddr::new(stage.server.addresses()[0], port);
    assert!(get(&stage, to(HTTP_PORT)).starts_with("HTTP/1.1 200"));

    // The client's sidecar with a certificate of the root, but of an identity no policy names.
    restart(&mut mode, &stage, &stage.server.identity(), "spiffe://cluster.local/ns/default/sa/stranger");
    assert!(get(&stage, to(HTTP_PORT)).starts_with("HTTP/1.1 403"), "RBAC by principal");
    assert_eq!(get(&stage, to(BULK_PORT)), "", "RBAC by principal, TCP");

    // A server that proves another identity than the one expected.
    restart(&mut mode, &stage, "spiffe://cluster.local/ns/default/sa/other", &stage.client.identity());
    assert!(get(&stage, to(HTTP_PORT)).starts_with("HTTP/1.1 503"), "the server's SAN is checked");
    assert_eq!(get(&stage, to(BULK_PORT)), "", "the server's SAN is checked, TCP");
    mode.stop(&stage).unwrap();
}

/// Starts the client's sidecar again: it expects `server` and proves `own`.
fn restart(mode: &mut Sidecars, stage: &Stage, server: &str, own: &str) {
    let (name, mut old) = mode.running.remove(0);
    old.kill();
    let dir = stage.scratch.join("again");
    let ca = certificates::authority(&stage.lab).unwrap();
    let material = certificates::issue_as(&ca, own, &dir).unwrap();
    let sidecar = Sidecar { name: "client", peer: server, material: &material, variant: mode.variant };
    fs::write(dir.join("envoy.yaml"), bootstrap::text(&sidecar)).unwrap();
    let binary = mode.envoy.as_ref().unwrap().binary.display().to_string();
    let args = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning", "-c"];
    let mut process = stage.client.command(&binary).args(args).arg(dir.join("envoy.yaml")).spawn().unwrap();
    ready("client sidecar", &stage.client, &mut process).unwrap();
    mode.running.insert(0, (name, process));
}

#[test]
fn a_sidecar_that_does_not_start_leaves_the_pods_as_they_were() {
    let stage = stage();
    let mut mode = prepared(Variant::Http1);
    // The port of its admin page is taken: Envoy ends at once.
    let _taken = stage.server.run(|| TcpListener::bind("127.0.0.1:15000")).unwrap().unwrap();
    let refused = format!("{:#}", mode.start(&stage, &World::default()).unwrap_err());
    assert!(refused.contains("server sidecar ended with"), "{refused}");
    assert!(mode.proxies().is_empty());
    let text = get(&stage, SocketAddr::new(stage.server.addresses()[1], HTTP_PORT));
    assert!(text.contains(&stage.client.v6.to_string()), "direct: {text}");
}
