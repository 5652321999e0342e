//! What changes while requests go on: certificates, documents, endpoints, enrolment, the agents themselves.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use culvert::lab::{Pod, PodSpec, pause, wait_until};
use culvert_tests::documents::{Service, pods};
use culvert_tests::mesh::{Mesh, SOON, log_of};
use culvert_tests::net::{Acceptor, End, Server, exchange, read_to_end, try_out};
use culvert_tests::traffic::Traffic;
use nix::sys::signal::Signal;

const PORT: u16 = 8080;

/// A captured client on node a, a captured server on node b.
fn world(args: &[&str]) -> (Mesh, Pod, Pod) {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(args);
    (mesh, client, server)
}

/// Sends a word and reads it back.
fn ping((client, server): &mut (TcpStream, TcpStream)) -> std::io::Result<()> {
    let mut word = [0; 4];
    client.write_all(b"ping")?;
    server.read_exact(&mut word)?;
    server.write_all(&word)?;
    client.read_exact(&mut word)
}

#[test]
fn certificates_are_renewed_under_traffic() {
    let (mesh, client, server) = world(&["--secret-ttl", "6s"]);
    let _echo = Server::echo(&server, PORT);
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let mut long = acceptor.pair(&client);
    let traffic = Traffic::start(&client, (server.v4.into(), PORT), 2);
    let expiry = |node: &str, pod: &Pod| {
        let identity = format!("identity=\"{}\"", pod.identity());
        mesh.agent(node).metric("culvert_certificate_expiry_seconds", &[&identity]).unwrap()
    };
    let expiries = || [("a", &client), ("b", &server)].map(|(node, pod)| expiry(node, pod));
    // Three certificates later each tunnel of the start has outlived its own.
    let mut renewals = [0_u32; 2];
    let mut last = expiries();
    let enough = || {
        for ((count, last), now) in renewals.iter_mut().zip(&mut last).zip(expiries()) {
            *count += u32::from(now > *last);
            *last = now;
        }
        renewals.iter().all(|count| *count >= 4).then_some(())
    };
    wait_until("four renewals at both agents", Duration::from_secs(60), enough, || log_of(mesh.agent("a")))
        .unwrap();
    traffic.more(20);
    ping(&mut long).expect("a connection open all the time");
    traffic.end_well("renewal");
    drop((long, acceptor));
    mesh.finish();
}

#[test]
fn documents_change_under_traffic() {
    let mut mesh = Mesh::new();
    let web = |name: &str| PodSpec::new(name).captured(true).label("app", "web");
    let client = mesh.captured("a", "client");
    let near = mesh.pod("a", web("near"));
    let far = mesh.pod("b", web("far"));
    let (near_echo, _far_echo) = (Server::echo(&near, PORT), Server::echo(&far, PORT));
    mesh.put(
        "services.yaml",
        &Service::new("web", &["10.96.0.10"]).selects("app", "web").port(80, "8080").yaml(),
    );
    mesh.start(&[]);
    let vip = ("10.96.0.10".parse().unwrap(), 80);
    let traffic = [Traffic::start(&client, vip, 2), Traffic::start(&client, (far.v6.into(), PORT), 1)];
    let publish = |unready: &[&str]| {
        let text = pods(mesh.lab.pods(), unready);
        mesh.settle(|| mesh.put("pods.yaml", &text));
    };
    for n in 0..5 {
        let more = Service::new("more", &["10.96.0.11"]).selects("app", "web").port(80 + n, "8080").yaml();
        mesh.settle(|| mesh.put("more.yaml", &more));
        publish(&[["near"], ["far"]][usize::from(n % 2)]);
        publish(&[]);
        traffic.iter().for_each(|traffic| traffic.more(5));
    }
    // An endpoint that is unready is used by nobody: its server can go.
    publish(&["near"]);
    drop(near_echo);
    traffic.iter().for_each(|traffic| traffic.more(20));
    for traffic in traffic {
        traffic.end_well("reload");
    }
    mesh.finish();
}

/// A pod joins, leaves, and joins again before its old connections have ended: those that are open go on, and the rules
/// of the second capture outlive the end of the first.
#[test]
fn a_pod_enters_and_leaves_the_mesh() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.outside("a", "client"), mesh.outside("b", "server"));
    mesh.start(&["--termination-deadline", "3s"]);
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let publish = |captured: bool| {
        let mut server = server.clone();
        server.spec.captured = Some(captured);
        mesh.settle(|| mesh.put("pods.yaml", &[client.document(true), server.document(true)].concat()));
        let agent = mesh.agent("b");
        let active =
            || agent.metric("culvert_capture_pods_captured", &[]).unwrap() == f64::from(u8::from(captured));
        wait_until("the pod's capture", SOON, || active().then_some(()), || log_of(agent)).unwrap();
    };
    let captured = || {
        mesh.agent("b").metric("istio_tcp_connections_opened_total", &["reporter=\"destination\""]).unwrap()
    };
    let mut direct = acceptor.pair(&client);
    publish(true);
    let mut taken = acceptor.pair(&client);
    ping(&mut direct).expect("open before the pod was captured");
    ping(&mut taken).unwrap();
    assert_eq!(captured(), 1.0);
    publish(false);
    ping(&mut taken).expect("open when the pod was released");
    let mut beside = acceptor.pair(&client);
    ping(&mut beside).unwrap();
    assert_eq!(captured(), 1.0, "new connections pass the agent by");
    publish(true);
    ping(&mut acceptor.pair(&client)).unwrap();
    assert_eq!(captured(), 2.0);
    assert_eq!(read_to_end(&mut taken.0).1, End::Reset, "cut when its grace was over");
    mesh.agent("b")
        .wait_log(0, "the end of the first capture", |line| line.as_str().contains("pod released"))
        .unwrap();
    ping(&mut beside).expect("opened while the pod was outside");
    ping(&mut acceptor.pair(&client)).unwrap();
    assert_eq!(captured(), 3.0, "still captured after the first capture has ended");
    drop((direct, taken, beside, acceptor));
    publish(false); // its listeners and its namespace's handle have to go too
    mesh.finish();
}

#[test]
fn bad_documents_leave_the_last_good_state() {
    let (mesh, client, server) = world(&[]);
    let echo = Server::echo(&server, PORT);
    let agents = ["a", "b"].map(|node| mesh.agent(node));
    let loaded = |wanted: f64| {
        for agent in agents {
            let now = || agent.metric("culvert_config_last_reload_successful", &[]).unwrap();
            wait_until(
                "the outcome of a reload",
                SOON,
                || (now() - wanted).abs().lt(&0.1).then_some(()),
                || log_of(agent),
            )
            .unwrap();
        }
    };
    let from = agents.map(culvert::lab::Agent::log_len);
    let bad = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: default}\nspec: {mtls: {mode: STRICTEST}}\n";
    mesh.put("bad.yaml", bad);
    loaded(0.0);
    for (agent, from) in agents.iter().zip(from) {
        let said =
            |wanted: &str| agent.wait_log(from, wanted, |line| line.as_str().contains(wanted)).unwrap();
        let line = said("bad.yaml");
        for part in ["PeerAuthentication default/p", "spec.mtls.mode", "STRICTEST", "PERMISSIVE"] {
            assert!(line.as_str().contains(part), "{part}: {}", line.as_str());
        }
        assert!(agent.metric("culvert_config_problems", &[]).unwrap() >= 1.0);
    }
    exchange(&client, (server.v4.into(), PORT), b"as before").unwrap();
    // Other files' changes wait as well: all or nothing.
    mesh.put(
        "deny.yaml",
        &culvert_tests::documents::policy(
            "AuthorizationPolicy",
            "default",
            "deny",
            "action: DENY\nrules: [{}]",
        ),
    );
    pause(Duration::from_millis(500));
    exchange(&client, (server.v4.into(), PORT), b"as before").unwrap();
    mesh.settle(|| mesh.lab.take_away("bad.yaml").unwrap());
    loaded(1.0);
    let reached = echo.seen.accepted();
    assert_eq!(try_out(&client, (server.v4.into(), PORT)).2, End::Reset, "the policy is in force now");
    assert_eq!(echo.seen.accepted(), reached);
    mesh.finish();
}

/// While an agent drains and after it has gone: open connections go on until the deadline, new ones are refused.
fn drained(node: &str) {
    let (mut mesh, client, server) = world(&["--termination-deadline", "4s", "--hold-timeout", "100ms"]);
    let echo = Server::echo(&server, PORT);
    let acceptor = Acceptor::new(&server, (server.v6.into(), 9000));
    let marker = b"plaintext-on-the-wire";
    let tap = mesh.lab.tap(&[marker]).unwrap();
    exchange(&client, (server.v4.into(), PORT), marker).unwrap();
    let mut open = acceptor.pair(&client);
    ping(&mut open).unwrap();
    let reached = (echo.seen.accepted(), acceptor.server.seen.accepted());
    let mut agent = mesh.forget(node);
    agent.process().signal(Signal::SIGTERM).unwrap();
    agent.wait_log(0, "the drain", |line| line.as_str().contains("draining")).unwrap();
    // Refused by the draining agent, or by the kernel once its listeners are closed.
    let refused = || {
        for to in [(server.v4.into(), PORT), (server.v6.into(), PORT)] {
            let (_, bytes, end) = try_out(&client, to);
            let closed = matches!(&end, End::Other(error) if error.contains("refused"));
            assert!(bytes.is_empty() && (end == End::Reset || closed), "{bytes:?}, {end:?}");
        }
    };
    refused();
    ping(&mut open).expect("an open connection lives while the agent drains");
    refused();
    let (_, end) = read_to_end(&mut open.0);
    assert_eq!(end, End::Reset, "cut at the deadline");
    assert_eq!(read_to_end(&mut open.1).1, End::Reset, "at the server too");
    let status = agent.process().wait(SOON).unwrap();
    assert!(status.success(), "{status}\n{}", log_of(&agent));
    refused();
    assert_eq!((echo.seen.accepted(), acceptor.server.seen.accepted()), reached, "nobody reached the server");
    let outsider = mesh.outside("a", "outsider");
    if node == "b" {
        let (_, bytes, end) = try_out(&outsider, (server.v4.into(), PORT));
        assert!(bytes.is_empty() && end != End::Fin, "plaintext past the rules: {bytes:?}, {end:?}");
    }
    // The next agent takes over what the last one left.
    mesh.start_node(node, &[]);
    let again = || exchange(&client, (server.v4.into(), PORT), marker).ok();
    wait_until("service again", SOON, again, || log_of(mesh.agent(node))).unwrap();
    let seen = tap.seen().unwrap();
    assert_eq!((seen.markers[0], seen.port(PORT).bytes), (0, 0), "plaintext between the nodes");
    drop((open, acceptor));
    mesh.finish();
}

#[test]
fn the_source_agent_drains() {
    drained("a");
}

#[test]
fn the_destination_agent_drains() {
    drained("b");
}

/// A killed agent is a reset at both ends, never an orderly end.
#[test]
fn a_killed_agent_resets() {
    for node in ["a", "b"] {
        let (mut mesh, client, server) = world(&[]);
        let to = (server.v4.into(), 9000);
        let acceptor = Acceptor::new(&server, to);
        let mut open = acceptor.pair(&client);
        ping(&mut open).unwrap();
        let reached = acceptor.server.seen.accepted();
        mesh.forget(node).kill();
        assert_eq!(read_to_end(&mut open.0).1, End::Reset, "the client, agent of {node} killed");
        assert_eq!(read_to_end(&mut open.1).1, End::Reset, "the server, agent of {node} killed");
        let (_, bytes, end) = try_out(&client, to);
        assert!(bytes.is_empty() && end != End::Fin, "{bytes:?}, {end:?}");
        assert_eq!(acceptor.server.seen.accepted(), reached, "past the killed agent of {node}");
        mesh.start_node(node, &[]);
        ping(&mut acceptor.pair(&client)).expect("the next agent serves");
        drop((open, acceptor));
        mesh.finish();
    }
}
