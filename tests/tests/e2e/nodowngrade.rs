//! What is meant for the mesh never leaves in plaintext: held while it may pass in a moment, then refused at the source.

use std::net::IpAddr;
use std::time::Duration;

use culvert::lab::{Pod, PodSpec, wait_until};
use culvert_tests::documents::{Service, policy};
use culvert_tests::mesh::{Mesh, SOON, log_of, one_access, same_family};
use culvert_tests::net::{End, Server, exchange, try_out};
use culvert_tests::traffic::Traffic;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PORT: u16 = 8080;
const RANGES: [&str; 2] = ["--pod-range", "10.244.0.0/16,fd00:244::/32"];
const PENDING: (&str, &str) = ("ambient.istio.io/redirection", "pending");

/// The pod, labelled or not, and nobody says any more that its redirection is pending.
fn described(pod: &Pod, labelled: bool) -> String {
    let mut pod = pod.clone();
    pod.spec.captured = Some(labelled);
    pod.spec.annotations.remove(PENDING.0);
    pod.document(true)
}

/// Sum of a family's samples with these labels at the agent of node a.
fn count(mesh: &Mesh, name: &str, labels: &[&str]) -> f64 {
    mesh.agent("a").metric(name, labels).unwrap()
}

/// A connection that gets nowhere: the app is reset, the server sees nothing, and the one log line says why.
fn refused(mesh: &Mesh, client: &Pod, to: (IpAddr, u16), says: &[&str]) {
    let flags = || count(mesh, "istio_tcp_connections_failed_total", &["response_flags=\"NOT_CAPTURED\""]);
    let before = flags();
    let (own, bytes, end) = try_out(client, to);
    assert!(bytes.is_empty() && end == End::Reset, "{to:?}: {bytes:?}, {end:?}");
    let src = own.to_string();
    let line = one_access(mesh.agent("a"), &[("src.addr", &src)]).unwrap();
    let error = line.field("error").unwrap_or_default();
    for part in says {
        assert!(error.contains(part), "{part:?} in {error:?}");
    }
    assert_eq!(line.field("denial.class").as_deref(), Some("not-captured"), "{line:?}");
    assert!(line.field("denial.id").is_some_and(|id| id.len() == 32), "{line:?}");
    assert_eq!(flags(), before + 1.0);
}

/// Each row of the table with a real connection, over both families, and nothing of it on the wire.
#[test]
fn what_may_not_be_sent_in_plaintext_is_refused_at_the_source() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let pending = mesh.pod("b", PodSpec::new("pending").captured(true).annotation(PENDING.0, PENDING.1));
    let strict = mesh.outside("b", "strict");
    let free = mesh.outside("b", "free");
    let later = mesh.outside("b", "later");
    let servers = [&pending, &strict, &free, &later].map(|pod| Server::echo(pod, PORT));
    let only = "selector: {matchLabels: {app: strict}}\nmtls: {mode: STRICT}";
    mesh.put("strict.yaml", &policy("PeerAuthentication", "default", "only-mtls", only));
    let both = Service::new("both", &["10.96.0.10"]).selects("app", "pending").port(80, "8080").yaml();
    mesh.put("service.yaml", &both);
    let marker = b"not-in-plaintext";
    let tap = mesh.lab.tap(&[marker]).unwrap();
    mesh.start(&[RANGES[0], RANGES[1], "--hold-timeout", "300ms"]);
    // Unknown from here on: it has no document.
    let known = mesh.lab.pods().iter().filter(|pod| pod.spec.name != "later").map(|pod| pod.document(true));
    let known: String = known.collect();
    mesh.settle(|| mesh.put("pods.yaml", &known));
    for from in client.addresses() {
        let at = |pod: &Pod| (same_family(pod, from), PORT);
        refused(&mesh, &client, at(&pending), &["default/pending", "labelled for the mesh but not captured"]);
        refused(
            &mesh,
            &client,
            at(&strict),
            &["default/strict", "istio_converted_static_strict", "PERMISSIVE"],
        );
        exchange(&client, at(&free), b"free").unwrap();
        exchange(&client, at(&later), b"unknown, and all is known").unwrap();
    }
    refused(&mesh, &client, ("10.96.0.10".parse().unwrap(), 80), &["labelled for the mesh but not captured"]);
    let held = |reason: &str| count(&mesh, "culvert_held_connections_total", &[reason, "result=\"refused\""]);
    assert_eq!(held("reason=\"not_captured\""), 3.0, "strict is not waited for");
    // A state that cannot be read whole: what is not known may be labelled.
    mesh.put("broken.yaml", "kind: [");
    let stale = || count(&mesh, "culvert_config_last_reload_successful", &[]) < 0.5;
    wait_until("a refused reload", SOON, || stale().then_some(()), || log_of(mesh.agent("a"))).unwrap();
    for from in client.addresses() {
        let at = |pod: &Pod| (same_family(pod, from), PORT);
        refused(&mesh, &client, at(&later), &["nobody is known at", "state is stale"]);
        exchange(&client, at(&free), b"free").unwrap();
    }
    assert_eq!(held("reason=\"unanswered\""), 2.0);
    mesh.lab.take_away("broken.yaml").unwrap();
    wait_until("good again", SOON, || (!stale()).then_some(()), || log_of(mesh.agent("a"))).unwrap();
    exchange(&client, (later.v4.into(), PORT), b"as before").unwrap();
    let accepted = servers.each_ref().map(|server| server.seen.accepted());
    assert_eq!(accepted, [0, 0, 4, 3]);
    assert_eq!(count(&mesh, "culvert_downgrades_total", &[]), 0.0);
    drop(tap);
    mesh.finish();
}

/// With `count` nothing is held or refused, and each connection that would have been is counted.
#[test]
fn what_is_only_counted_goes_out() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let pending = mesh.pod("b", PodSpec::new("pending").captured(true).annotation(PENDING.0, PENDING.1));
    let strict = mesh.outside("b", "strict");
    let _servers = [&pending, &strict].map(|pod| Server::echo(pod, PORT));
    mesh.put("strict.yaml", &policy("PeerAuthentication", "default", "default", "mtls: {mode: STRICT}"));
    mesh.start(&["--no-downgrade", "count"]);
    for pod in [&pending, &strict] {
        for at in pod.addresses() {
            exchange(&client, (at, PORT), b"in plaintext").unwrap();
        }
    }
    let counted = |reason: &str| count(&mesh, "culvert_downgrades_total", &[reason]);
    assert_eq!((counted("reason=\"not_captured\""), counted("reason=\"strict\"")), (2.0, 2.0));
    assert_eq!(count(&mesh, "culvert_held_connections_total", &[]), 0.0);
    mesh.finish();
}

/// A held connection goes on as soon as the destination is captured, and its bytes are those of the app.
#[test]
fn what_is_held_passes_when_its_destination_is_captured() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let server = mesh.pod("b", PodSpec::new("server").captured(true).annotation(PENDING.0, PENDING.1));
    let echo = Server::echo(&server, PORT);
    let marker = b"held, then through the tunnel";
    let tap = mesh.lab.tap(&[marker]).unwrap();
    mesh.start(&["--hold-timeout", "20s"]);
    let waiting: Vec<_> = server
        .addresses()
        .map(|at| {
            let client = client.clone();
            std::thread::spawn(move || exchange(&client, (at, PORT), marker).map(|(_, answer)| answer))
        })
        .into();
    let sockets = || count(&mesh, "istio_tcp_sockets_open", &["reporter=\"source\""]);
    wait_until("held connections", SOON, || (sockets() > 1.5).then_some(()), || log_of(mesh.agent("a")))
        .unwrap();
    assert_eq!(echo.seen.accepted(), 0);
    mesh.put("pods.yaml", &[client.document(true), described(&server, true)].concat());
    for held in waiting {
        let answer = held.join().unwrap().unwrap_or_else(|e| panic!("{e}\n{}", mesh.logs()));
        assert_eq!(answer, marker);
    }
    assert_eq!(count(&mesh, "culvert_held_connections_total", &["result=\"passed\""]), 2.0);
    assert_eq!(tap.seen().unwrap().markers[0], 0, "plaintext between the nodes");
    // Its listeners have to go too.
    mesh.settle(|| mesh.put("pods.yaml", &[client.document(true), described(&server, false)].concat()));
    mesh.finish();
}

/// The client's agent learns first that a pod is in the mesh: it dials a port 15008 that nobody serves yet. Then it learns
/// last that the pod has left.
#[test]
fn enrolment_loses_nothing_whoever_learns_first() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.outside("b", "server"));
    let _echo = Server::echo(&server, PORT);
    mesh.start(&[]);
    let traffic = server.addresses().map(|at| Traffic::start(&client, (at, PORT), 3));
    let active = || mesh.agent("b").metric("workload_manager_active_proxy_count", &[]).unwrap();
    for round in 0..3 {
        for labelled in [true, false] {
            let late = if labelled == (round == 0) { "b" } else { "a" };
            // An agent that does not run learns nothing.
            let pid = Pid::from_raw(mesh.agent(late).pid().try_into().unwrap());
            let signal = |signal| kill(pid, signal).unwrap();
            signal(Signal::SIGSTOP);
            mesh.put("pods.yaml", &[client.document(true), described(&server, labelled)].concat());
            culvert::lab::pause(Duration::from_millis(400));
            signal(Signal::SIGCONT);
            let wanted = f64::from(u8::from(labelled));
            wait_until(
                "capture",
                SOON,
                || ((active() - wanted).abs() < 0.1).then_some(()),
                || log_of(mesh.agent("b")),
            )
            .unwrap();
            traffic.iter().for_each(|traffic| traffic.more(20));
        }
    }
    let told = |node| mesh.agent(node).log().into_iter().map(|line| line.as_str().to_owned());
    let doubtful = |line: &String| !line.contains("connection complete") || line.contains("error");
    let logs = || ["a", "b"].into_iter().flat_map(told).filter(doubtful).collect::<Vec<_>>().join("\n");
    for traffic in traffic {
        traffic.end_well_or_tell("whoever learns first", logs);
    }
    mesh.finish();
}

/// Whoever leaves while it is held is forgotten at once, and counted and logged once.
#[test]
fn an_app_may_leave_while_it_is_held() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let pending = mesh.pod("b", PodSpec::new("pending").captured(true).annotation(PENDING.0, PENDING.1));
    mesh.start(&["--hold-timeout", "60s"]);
    let sockets = || count(&mesh, "istio_tcp_sockets_open", &["reporter=\"source\""]);
    let wait = |what: &str, wanted: f64| {
        let there = || ((sockets() - wanted).abs() < 0.1).then_some(());
        wait_until(what, SOON, there, || log_of(mesh.agent("a"))).unwrap();
    };
    let held: Vec<_> =
        pending.addresses().map(|at| culvert_tests::net::connect(&client, (at, PORT)).unwrap()).into();
    wait("held connections", 2.0);
    culvert::lab::pause(Duration::from_millis(300)); // accepted is counted, held is not to be seen
    let own: Vec<_> = held.iter().map(|app| app.local_addr().unwrap().to_string()).collect();
    for app in held {
        socket2::SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
    }
    wait("the end of what was held", 0.0);
    for src in own {
        let line = one_access(mesh.agent("a"), &[("src.addr", &src)]).unwrap();
        assert!(line.field("error").is_some_and(|e| e.contains("app's connection broke off")), "{line:?}");
    }
    let gone = ["reason=\"not_captured\"", "result=\"gone\""];
    assert_eq!(count(&mesh, "culvert_held_connections_total", &gone), 2.0);
    mesh.finish();
}

/// The destination's agent is replaced, one after the other: between the two nobody listens, and new connections wait.
#[test]
fn an_agent_that_is_replaced_costs_no_new_connection() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    let _echo = Server::echo(&server, PORT);
    mesh.start(&["--hold-timeout", "10s", "--termination-deadline", "2s"]);
    let traffic = server.addresses().map(|at| Traffic::start(&client, (at, PORT), 3));
    for _ in 0..3 {
        let mut old = mesh.forget("b");
        assert!(old.terminate(SOON).unwrap().success());
        mesh.start_node("b", &["--termination-deadline", "2s"]);
        traffic.iter().for_each(|traffic| traffic.more(20));
    }
    for traffic in traffic {
        traffic.end_well_or_tell("a new agent", || log_of(mesh.agent("a")));
    }
    mesh.finish();
}

/// Who is dialled as an unmeshed client never gets a port that the client may have at this moment: one of the two
/// connections would be reset.
#[test]
fn a_client_and_who_dials_as_it_do_not_meet() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.outside("a", "client"), mesh.captured("b", "server"));
    let echo = Server::echo(&server, PORT);
    mesh.start(&[]);
    let traffic = server.addresses().map(|at| Traffic::start(&client, (at, PORT), 3));
    traffic.iter().for_each(|traffic| traffic.more(100));
    for traffic in traffic {
        traffic.end_well("beside those dialled as the client");
    }
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let last: u16 = range.split_whitespace().last().unwrap().parse().unwrap();
    let peers = echo.seen.peers();
    let ours = client.addresses().map(|ip| peers.iter().filter(|peer| peer.ip() == ip).count());
    assert!(ours.iter().all(|count| *count >= 100), "{ours:?}");
    let apart = peers.iter().filter(|peer| peer.port() > last).count();
    // Few of the ports are taken by those that ended: hardly ever are two tries in vain.
    assert!(apart * 10 > peers.len() * 9, "{apart} of {} beyond {last}", peers.len());
    mesh.finish();
}
