//! The admin pages of a real agent, asked by right and by wrong clients.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use culvert::lab::{Place, wait_until};
use culvert_tests::mesh::{Mesh, SOON, log_of};
use culvert_tests::net::{PATIENCE, Server, connect, exchange};
use serde_json::Value;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn open(from: &Place, ip: IpAddr) -> std::io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect(SocketAddr::new(ip, 15000))).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends bytes and reads until the server closes; what came, as status and body.
fn raw(from: &Place, ip: IpAddr, request: &str) -> (u16, String) {
    let mut stream = open(from, ip).expect("the admin port");
    let _refused_midway = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

fn ask(from: &Place, method: &str, path: &str, headers: &str) -> (u16, String) {
    raw(from, V4, &format!("{method} {path} HTTP/1.0\r\n{headers}\r\n"))
}

pub(crate) fn get(from: &Place, path: &str) -> (u16, String) {
    ask(from, "GET", path, "Host: localhost\r\n")
}

fn post(from: &Place, path: &str) -> (u16, String) {
    ask(from, "POST", path, "Host: localhost:15000\r\n")
}

#[test]
fn only_right_requests_are_answered() {
    let mut mesh = Mesh::new();
    mesh.captured("a", "client");
    mesh.start(&[]);
    let node = mesh.lab.host(mesh.node("a")).unwrap().clone();

    for ip in [V4, V6] {
        let (status, body) = raw(&node, ip, "GET / HTTP/1.0\r\nHost: [::1]:15000\r\n\r\n");
        assert_eq!(status, 200, "{ip}");
        assert!(body.contains("/config_dump"), "{body}");
    }
    // Not beyond loopback.
    let outside = mesh.lab.host_addresses(mesh.node("a"));
    for ip in outside {
        let refused = open(&node, ip).expect_err("nothing listens there");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{ip}");
    }
    for (method, path, headers, status) in [
        ("GET", "/config_dump", "Host: rebind.example\r\n", 403),
        ("GET", "/config_dump", "Host: rebind.example:15000\r\n", 403),
        ("GET", "/config_dump", "", 403),
        ("POST", "/quitquitquit", "Host: localhost\r\nOrigin: http://evil.example\r\n", 403),
        ("POST", "/quitquitquit", "Host: localhost\r\nOrigin: null\r\n", 403),
        ("POST", "/quitquitquit", "Host: evil.example\r\nOrigin: http://localhost\r\n", 403),
        ("GET", "/quitquitquit", "Host: localhost\r\n", 405),
        ("PUT", "/quitquitquit", "Host: localhost\r\n", 405),
        ("GET", "/logging?level=off", "Host: localhost\r\n", 405),
        ("POST", "/logging?level=loud", "Host: localhost\r\n", 400),
        ("GET", "/nowhere", "Host: localhost\r\n", 404),
        ("GET", "/debug/pprof/heap", "Host: localhost\r\n", 500),
    ] {
        assert_eq!(ask(&node, method, path, headers).0, status, "{method} {path} {headers:?}");
    }
    // A head larger than 8 KiB, and one that never ends.
    let large = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(64 << 10));
    assert_ne!(raw(&node, V4, &large).0, 200);
    for started in ["", "GET / HTTP/1.1\r\nHost: local"] {
        // Comes back because the server gives up, long before the test's own patience is over.
        assert_ne!(raw(&node, V4, started).0, 200, "{started:?}");
    }
    // Many connections that say nothing: there is room again when they are given up.
    let idle: Vec<TcpStream> = (0..200).filter_map(|_| open(&node, V4).ok()).collect();
    wait_until("room again", SOON, || (get(&node, "/").0 == 200).then_some(()), || log_of(mesh.agent("a")))
        .unwrap();
    drop(idle);
    let refused = |reason: &str| {
        let label = format!("reason=\"{reason}\"");
        mesh.agent("a").metric("culvert_admin_refused_total", &[&label]).unwrap()
    };
    assert_eq!([refused("host"), refused("origin"), refused("method")], [4.0, 2.0, 3.0]);
    mesh.finish();
}

#[test]
fn the_dump_tells_what_istios_tools_read() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let echo = Server::echo(&server, 8080);
    let node = mesh.lab.host(mesh.node("b")).unwrap().clone();
    let mut kept = connect(&client, (server.v6.into(), 8080)).unwrap();
    let mut word = [0; 3];
    kept.write_all(b"abc").unwrap();
    kept.read_exact(&mut word).unwrap();

    let (status, body) = get(&node, "/config_dump");
    assert_eq!(status, 200);
    let dump: Value = serde_json::from_str(&body).expect("the dump is JSON");
    let workloads = dump["workloads"].as_array().unwrap();
    let found =
        workloads.iter().find(|w| w["name"] == server.spec.name.as_str()).expect("the server's workload");
    assert_eq!(found["protocol"], "HBONE");
    assert_eq!(found["workloadIps"].as_array().unwrap().len(), 2);
    let identity = server.identity();
    let certs = dump["certificates"].as_array().unwrap();
    let cert = certs.iter().find(|c| c["identity"] == identity.as_str()).expect("the server's certificate");
    assert_eq!(cert["state"], "Available");
    assert!(cert["certChain"][0]["pem"].is_string() && cert["rootCerts"][0]["pem"].is_string());
    let states = dump["workloadState"].as_object().unwrap();
    let state = states.values().find(|s| s["info"]["name"] == server.spec.name.as_str()).expect("its state");
    assert_eq!(state["state"], "Up");
    let app = SocketAddr::new(server.v6.into(), 8080).to_string();
    let inbound = state["connections"]["inbound"].as_array().unwrap();
    assert_eq!(inbound.len(), 1, "{state}");
    assert_eq!(
        (&inbound[0]["actualDst"], &inbound[0]["protocol"]),
        (&Value::from(app.as_str()), &"HBONE".into())
    );
    assert_eq!(state["connections"]["outbound"], Value::Array(Vec::new()));
    let (_, list) = get(&mesh.lab.host(mesh.node("a")).unwrap().clone(), "/culvert/connections");
    let list: Value = serde_json::from_str(&list).expect("the list is JSON");
    let one = &list["connections"][0];
    assert_eq!((&one["direction"], &one["originalDst"]), (&"outbound".into(), &Value::from(app.as_str())));
    assert_eq!((&one["bytesToServer"], &one["bytesToClient"]), (&3.into(), &3.into()));
    drop(kept);
    assert!(dump["config"]["clusterId"].is_string() && dump["version"]["version"].is_string());
    assert!(!body.contains("PRIVATE"));
    drop(echo);
    mesh.finish();
}

#[test]
fn the_metrics_page_speaks_both_forms_and_gzip() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let echo = Server::echo(&server, 8080);
    let node = mesh.lab.host(mesh.node("a")).unwrap().clone();
    exchange(&client, (server.v4.into(), 8080), b"x").unwrap();
    let scrape = |accept: &str| -> Vec<u8> {
        let mut stream = node.run(|| TcpStream::connect((V4, 15020))).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /stats/prometheus HTTP/1.0\r\nHost: x\r\n{accept}\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    };
    let plain = String::from_utf8(scrape("")).unwrap();
    let open =
        scrape("Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.4,*/*;q=0.1\r\n");
    let open = String::from_utf8(open).unwrap();
    assert!(!plain.contains("# EOF") && open.ends_with("\n# EOF\n"));
    for (family, kind) in [
        ("istio_tcp_connections_opened", "counter"),
        ("culvert_hbone_handshake_seconds", "counter"),
        ("tokio_worker_park_count", "counter"),
        ("culvert_hbone_streams_open", "gauge"),
        ("culvert_config_stale_seconds", "gauge"),
        ("culvert_certificate_expiry_seconds", "gauge"),
    ] {
        let suffix = if kind == "counter" { "_total" } else { "" };
        assert!(plain.contains(&format!("# TYPE {family}{suffix} {kind}\n")), "{family} in\n{plain}");
        assert!(open.contains(&format!("# TYPE {family} {kind}\n")), "{family} in\n{open}");
    }
    let packed = scrape("Accept-Encoding: gzip\r\n");
    let head = packed.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(&packed[head..head + 2], [0x1f, 0x8b], "the mark of gzip");
    assert!(packed.len() - head < plain.len() / 4, "{} of {}", packed.len() - head, plain.len());
    drop(echo);
    mesh.finish();
}

#[test]
fn log_levels_change_while_it_runs() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let echo = Server::echo(&server, 8080);
    let node = mesh.lab.host(mesh.node("a")).unwrap().clone();
    let opened = |from: usize| {
        exchange(&client, (server.v4.into(), 8080), b"x").unwrap();
        let agent = mesh.agent("a");
        agent
            .wait_log(from, "the end of the connection", |l| l.as_str().contains("connection complete"))
            .unwrap();
        agent.log().iter().skip(from).any(|l| l.as_str().contains("connection opened"))
    };
    let length = || mesh.agent("a").log_len();
    assert_eq!(post(&node, "/logging"), (200, "current log level is info\n".to_owned()));
    assert!(!opened(length()));
    let (status, body) = post(&node, "/logging?level=access%3Ddebug");
    assert_eq!((status, body.as_str()), (200, "current log level is access=debug,info\n"));
    assert!(opened(length()));
    assert_eq!(post(&node, "/logging?reset").1, "current log level is info\n");
    assert!(!opened(length()));
    drop(echo);
    mesh.finish();
}

#[test]
fn a_post_drains_and_ends_the_agent() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&["--termination-deadline", "20s"]);
    let echo = Server::echo(&server, 8080);
    let node = mesh.lab.host(mesh.node("a")).unwrap().clone();
    let mut kept = connect(&client, (server.v4.into(), 8080)).unwrap();
    let mut byte = [0];
    kept.write_all(b"1").unwrap();
    kept.read_exact(&mut byte).unwrap();

    let asked = std::thread::spawn(move || post(&node, "/quitquitquit"));
    let draining = |l: &culvert::lab::LogLine| l.as_str().contains("\tdraining");
    mesh.agent("a").wait_log(0, "the drain begins", draining).unwrap();
    // What is open goes on until it ends by itself.
    kept.write_all(b"2").unwrap();
    kept.read_exact(&mut byte).unwrap();
    assert!(!asked.is_finished(), "the answer waits for the drain");
    kept.shutdown(Shutdown::Write).unwrap();
    assert_eq!(kept.read(&mut byte).unwrap(), 0);
    assert_eq!(asked.join().unwrap(), (200, "shutdown now\n".to_owned()));
    let mut agent = mesh.forget("a");
    assert!(agent.process().wait(Duration::from_secs(30)).unwrap().success());
    drop((echo, agent));
    mesh.finish();
}
