//! One agent takes another's place under traffic: no connection is refused, reset or cut short, before any retry.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use culvert::lab::{Pod, wait_until};
use culvert_common::net::seqpacket::SeqPacket;
use culvert_tests::mesh::{Mesh, SOON, fds, log_of};
use culvert_tests::net::{Acceptor, Server, exchange};
use culvert_tests::traffic::Traffic;

const PORT: u16 = 8080;
/// Old agents keep their connections longer than any test takes.
const PATIENT: [&str; 2] = ["--termination-deadline", "60s"];

/// A captured client on node a, a captured server on node b.
fn world() -> (Mesh, Pod, Pod) {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&PATIENT);
    (mesh, client, server)
}

/// Where a node's agent waits for its successor.
fn successor_socket(mesh: &Mesh, node: &str) -> PathBuf {
    use std::os::unix::fs::MetadataExt as _;
    let netns = mesh.lab.host(mesh.node(node)).expect("a node").netns_path();
    let inode = fs::metadata(netns).expect("its namespace").ino();
    PathBuf::from(format!("/run/culvert/net-{inode}.sock"))
}

/// Sends a word and reads it back.
fn ping((client, server): &mut (TcpStream, TcpStream)) {
    let mut word = [0; 4];
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut word).unwrap();
    server.write_all(&word).unwrap();
    client.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
}

#[test]
fn roll_outs_under_load_lose_nothing() {
    let (mut mesh, client, server) = world();
    let _echo = Server::echo(&server, PORT);
    let acceptors =
        server.addresses().map(|ip| Acceptor::new(&server, (ip, if ip.is_ipv6() { 9006 } else { 9004 })));
    for ip in server.addresses() {
        exchange(&client, (ip, PORT), b"first").unwrap();
    }
    let idle = ["a", "b"].map(|node| fds(mesh.agent(node).pid()));
    let traffic = server.addresses().map(|ip| Traffic::start(&client, (ip, PORT), 2));
    for round in 0..5 {
        // Open before, in the old agents' hands until they end.
        let mut long: Vec<_> = acceptors.iter().map(|acceptor| acceptor.pair(&client)).collect();
        let mut before = Vec::new();
        for node in ["a", "b"] {
            traffic.iter().for_each(|traffic| traffic.more(40));
            before.push((node, mesh.replace(node, &PATIENT)));
        }
        traffic.iter().for_each(|traffic| traffic.more(40));
        for (node, agent) in &mut before {
            assert!(agent.process().ended().is_none(), "round {round}: {node} ended before its connections");
        }
        long.iter_mut().for_each(ping);
        drop(long);
        for (node, mut agent) in before {
            let ended = agent.process().wait(SOON).unwrap_or_else(|e| panic!("round {round}, {node}: {e}"));
            assert!(ended.success(), "round {round}, {node}: {ended}\n{}", log_of(&agent));
        }
    }
    for traffic in traffic {
        traffic.end_well("roll-out");
    }
    for (node, idle) in ["a", "b"].into_iter().zip(idle) {
        let pid = mesh.agent(node).pid();
        let what = format!("no more descriptors at {node} after five roll-outs than before, which is {idle}");
        wait_until(&what, SOON, || (fds(pid) <= idle).then_some(()), || format!("{}", fds(pid))).unwrap();
    }
    drop(acceptors);
    mesh.finish();
}

/// A successor's side, by hand.
struct Heir(SeqPacket);

impl Heir {
    /// Needs a runtime.
    fn connect(path: &Path) -> Self {
        let connected =
            wait_until("the successor socket", SOON, || SeqPacket::connect(path).ok(), String::new);
        Self(connected.unwrap())
    }

    async fn say(&self, text: &str) {
        self.0.send(text.as_bytes(), &[]).await.unwrap();
    }

    /// A message, and how many descriptors came with it; empty when the agent has hung up.
    async fn hear(&self) -> (String, usize) {
        let heard = tokio::time::timeout(SOON, self.0.recv(4096)).await.expect("an answer").unwrap();
        heard.map_or_else(Default::default, |p| (String::from_utf8(p.bytes).unwrap(), p.fds.len()))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_successor_that_dies_half_way_changes_nothing() {
    let (mut mesh, client, server) = world();
    let _echo = Server::echo(&server, PORT);
    let traffic = server.addresses().map(|ip| Traffic::start(&client, (ip, PORT), 1));
    let more = || traffic.iter().for_each(|traffic| traffic.more(15));
    let path = successor_socket(&mesh, "b");
    let mode = fs::metadata(&path).expect("the successor socket");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    let pid = mesh.agent("b").pid();

    runtime().block_on(async {
        for hello in ["culvert-successor 2", "ready", "\u{1}", "pod 1 2 3 4"] {
            let stranger = Heir::connect(&path);
            stranger.say(hello).await;
            let (answer, _) = stranger.hear().await;
            assert!(answer.is_empty() || answer.starts_with("refused"), "{hello}: {answer}");
        }
        let heir = Heir::connect(&path);
        heir.say("culvert-successor 1").await;
        let mut sockets = Vec::new();
        loop {
            match heir.hear().await {
                (all, 0) if all == "all" => break,
                (socket, 1) => sockets.push(socket),
                other => panic!("{other:?}"),
            }
        }
        let of = |kind: &str| sockets.iter().filter(|s| s.starts_with(kind)).count();
        assert_eq!((of("pod 15001 "), of("pod 15006 "), of("pod 15008 ")), (1, 1, 1), "{sockets:?}");
        assert!(of("host metrics@") == 1 && of("host readiness@") == 1, "{sockets:?}");
        let second = Heir::connect(&path);
        assert!(second.hear().await.0.starts_with("refused another successor"));
        more();
        drop(heir); // dies before it is ready
    });
    more();
    // A whole agent that never gets ready: one of its pods has no namespace.
    let mut stuck = mesh.successor("b", &["--pod", "default/server=/nowhere"]);
    let has_all = |agent: &culvert::lab::Agent| {
        agent.log().iter().any(|l| l.as_str().contains("sockets of the agent that runs already received"))
    };
    wait_until(
        "the second agent to have the sockets",
        SOON,
        || has_all(&stuck).then_some(()),
        || log_of(&stuck),
    )
    .unwrap();
    more();
    stuck.kill();
    more();
    assert!(mesh.agent("b").pid() == pid && mesh.agent_mut("b").process().ended().is_none());
    let goes_on = |l: &culvert::lab::LogLine| l.as_str().contains("a successor did not take over");
    let count = || mesh.agent("b").log().iter().filter(|line| goes_on(line)).count();
    wait_until(
        "six that did not take over",
        SOON,
        || (count() == 6).then_some(()),
        || log_of(mesh.agent("b")),
    )
    .unwrap();

    let mut before = mesh.replace("b", &PATIENT);
    more();
    assert!(before.process().wait(SOON).unwrap().success());
    for traffic in traffic {
        traffic.end_well("successors that died");
    }
    mesh.finish();
}

#[test]
fn a_socket_that_a_killed_agent_left_is_in_nobodys_way() {
    let (mut mesh, client, server) = world();
    let _echo = Server::echo(&server, PORT);
    let path = successor_socket(&mesh, "b");
    wait_until("the successor socket", SOON, || path.exists().then_some(()), String::new).unwrap();
    mesh.forget("b").kill();
    assert!(path.exists(), "left behind");
    mesh.start_node("b", &PATIENT);
    exchange(&client, (server.v4.into(), PORT), b"again").unwrap();
    let mut before = mesh.replace("b", &PATIENT);
    assert!(before.process().wait(SOON).unwrap().success());
    exchange(&client, (server.v6.into(), PORT), b"and again").unwrap();
    let mut last = mesh.forget("b");
    assert!(last.terminate(SOON).unwrap().success());
    assert!(!path.exists(), "taken away at an orderly end");
    mesh.finish();
}

/// Where nothing answers at the successor socket, a second agent does not get as far as the pods.
#[test]
fn a_second_agent_that_cannot_take_over_is_refused() {
    let (mesh, client, server) = world();
    let _echo = Server::echo(&server, PORT);
    let mut second = mesh.successor("b", &["--successor-socket", "/run/culvert/nobody.sock"]);
    let ended = second.process().wait(SOON).unwrap();
    assert_eq!(ended.code(), Some(1));
    let said = second.process().stderr();
    assert!(said.contains("is another agent running in this network namespace?"), "{said}");
    exchange(&client, (server.v4.into(), PORT), b"served by the first").unwrap();
    mesh.finish();
}

/// Pods that come and leave while a successor has the sockets and is not ready.
#[test]
fn pods_that_change_in_between_are_right_in_the_end() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let (stays, leaves) = (mesh.captured("b", "stays"), mesh.captured("b", "leaves"));
    let comes = mesh.outside("b", "comes");
    mesh.start(&PATIENT);
    let pods = [&stays, &leaves, &comes];
    let _echoes = pods.map(|pod| Server::echo(pod, PORT));
    let path = successor_socket(&mesh, "b");
    let runtime = runtime();
    let heir = runtime.block_on(async {
        let heir = Heir::connect(&path);
        heir.say("culvert-successor 1").await;
        while heir.hear().await.0 != "all" {}
        heir
    });
    let documents: String = [(&client, true), (&stays, true), (&leaves, false), (&comes, true)]
        .map(|(pod, captured)| {
            let mut pod = pod.clone();
            pod.spec.captured = Some(captured);
            pod.document(true)
        })
        .concat();
    mesh.settle(|| mesh.put("pods.yaml", &documents));
    let mut later: Vec<_> = (0..3).map(|_| runtime.block_on(heir.hear())).collect();
    later.sort();
    let ports = [15001, 15006, 15008];
    for ((text, fds), port) in later.iter().zip(ports) {
        assert!(text.starts_with(&format!("pod {port} ")) && text.contains("comes") && *fds == 1, "{text}");
    }
    drop(heir);
    let mut before = mesh.replace("b", &PATIENT);
    assert!(before.process().wait(SOON).unwrap().success(), "{}", log_of(&before));
    for pod in pods {
        for ip in pod.addresses() {
            exchange(&client, (ip, PORT), b"x").unwrap_or_else(|e| panic!("{} {ip}: {e}", pod.spec.name));
        }
    }
    let served = |pod: &Pod| ports.map(|port| pod.is_listening(port));
    assert_eq!((served(&stays), served(&comes), served(&leaves)), ([true; 3], [true; 3], [false; 3]));
    mesh.finish();
}
