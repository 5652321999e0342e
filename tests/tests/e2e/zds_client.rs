//! A proxy of its own and an agent by hand: what ZDS asks is done, what it must not say harms nobody.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use culvert::lab::{Agent, AgentOptions, LogLine, Pod, http, wait_until};
use culvert_common::net::rules::{self, CaptureSpec};
use culvert_common::zds::Request;
use culvert_tests::mesh::{Mesh, SOON, log_of, options};
use culvert_tests::net::{Acceptor, End, Server, exchange, read_to_end};
use culvert_tests::zds_agent::{ZdsAgent, add, add_in};

const PORTS: [u16; 3] = [15001, 15006, 15008];

/// Options of a process that only carries traffic.
fn proxy_options(socket: &std::path::Path, args: &[&str]) -> AgentOptions {
    let mut options = options(args);
    options.part = Some("proxy".to_owned());
    options.args.extend(["--zds-socket".to_owned(), socket.display().to_string()]);
    options
}

/// Stop serving the pod, as the reference's agent says it.
fn del(uid: &str) -> Request {
    Request::Del { uid: uid.into(), grace: None }
}

/// Two pods on node a, whose proxy looks for its agent at the path.
fn world() -> (Mesh, Pod, Pod, PathBuf) {
    let mut mesh = Mesh::new();
    let (one, two) = (mesh.captured("a", "one"), mesh.captured("a", "two"));
    mesh.lab.publish().expect("publish the pods");
    let socket = mesh.lab.dir().join("zds").join("z.sock");
    (mesh, one, two, socket)
}

fn start(mesh: &Mesh, options: &AgentOptions) -> Agent {
    mesh.lab.start_agent(mesh.node("a"), options).expect("start a proxy")
}

/// What port 15021 says.
fn readiness(mesh: &Mesh) -> String {
    let place = mesh.lab.host(mesh.node("a")).expect("the node");
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 15021));
    let answer =
        place.run(|| http::get(to, "/healthz/ready", Duration::from_secs(2))).expect("enter the node");
    answer.map_or_else(|error| error.to_string(), |answer| answer.body)
}

fn wait_readiness(mesh: &Mesh, agent: &Agent, what: &str) {
    let is_it = || readiness(mesh).contains(what).then_some(());
    wait_until(&format!("readiness {what:?}"), SOON, is_it, || {
        format!("{}\n{}", readiness(mesh), log_of(agent))
    })
    .unwrap();
}

const UNREADY: &str = "workload proxy manager";
const READY: &str = "ready\n";

fn is_served(pod: &Pod) -> bool {
    let open = PORTS.map(|port| pod.is_listening(port));
    assert!(open == [true; 3] || open == [false; 3], "{open:?}");
    open == [true; 3]
}

fn wait_served(pod: &Pod, wanted: bool) {
    let is_it = || PORTS.iter().all(|port| pod.is_listening(*port) == wanted).then_some(());
    wait_until(&format!("{} served: {wanted}", pod.spec.name), SOON, is_it, String::new).unwrap();
}

#[test]
fn pods_follow_what_the_agent_says() {
    let (mesh, one, two, socket) = world();
    let mut proxy = start(&mesh, &proxy_options(&socket, &["--termination-deadline", "1s"]));
    wait_readiness(&mesh, &proxy, "workload proxy manager");
    let agent = ZdsAgent::new(&socket);
    let link = agent.accept();
    link.done(&add("u1", &one));
    assert!(is_served(&one) && readiness(&mesh).contains(UNREADY), "ready before all pods are known");
    link.done(&Request::SnapshotSent);
    wait_readiness(&mesh, &proxy, READY);
    let metric = |name: &str| proxy.metric(name, &[]).unwrap();
    let counts =
        || (metric("workload_manager_active_proxy_count"), metric("workload_manager_proxies_started_total"));
    // Idempotent.
    link.done(&add("u1", &one));
    assert_eq!(counts(), (1.0, 1.0));
    // A pod that the state does not know is served as far as it goes: its connections wait, then fail.
    link.done(&add("u2", &two));
    assert!(is_served(&two));
    // The same pod in another namespace: the old one is left.
    link.done(&del("u1"));
    wait_served(&one, false);
    link.done(&add_in("u2", &two, &one));
    wait_served(&two, false);
    wait_served(&one, true);
    assert_eq!(counts(), (1.0, 3.0));
    link.done(&del("nobody"));
    link.done(&del("u2"));
    wait_served(&one, false);

    // A port that is taken: refused with the reason, tried again, served when it is free.
    let taken = two.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15006))).unwrap().unwrap();
    let refused = link.ask(&add("u2", &two)).unwrap().unwrap_err();
    assert!(refused.contains("cannot listen on port 15006"), "{refused}");
    assert_eq!(metric("workload_manager_pending_proxy_count"), 1.0);
    wait_readiness(&mesh, &proxy, UNREADY);
    drop(taken);
    wait_readiness(&mesh, &proxy, READY);
    assert!(is_served(&two));

    // The agent restarts: what runs goes on, but nobody knows whether it is complete.
    drop(link);
    wait_readiness(&mesh, &proxy, UNREADY);
    let link = agent.accept();
    assert!(is_served(&two));
    link.done(&Request::Keep { uid: "u2".into() });
    link.done(&add("u1", &one));
    link.done(&Request::SnapshotSent);
    wait_readiness(&mesh, &proxy, READY);
    assert!(is_served(&one) && is_served(&two));
    drop(link);
    // One is not named any more.
    let link = agent.accept();
    link.done(&add("u1", &one));
    link.done(&Request::SnapshotSent);
    wait_served(&two, false);
    assert!(is_served(&one));
    assert!(proxy.terminate(SOON).unwrap().success());
    wait_served(&one, false);
    mesh.finish();
}

/// As many as a node has: named in one go, kept through a reconnect, and one that cannot be served harms no other.
#[test]
fn a_hundred_pods_come_and_stay() {
    const PODS: usize = 100;
    let mut mesh = Mesh::new();
    let pods: Vec<_> = (0..PODS).map(|n| mesh.captured("a", &format!("pod-{n}"))).collect();
    mesh.lab.publish().expect("publish the pods");
    let socket = mesh.lab.dir().join("zds").join("z.sock");
    let proxy = start(&mesh, &proxy_options(&socket, &["--termination-deadline", "1s"]));
    let agent = ZdsAgent::new(&socket);
    let taken = pods[7].run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15006))).unwrap().unwrap();
    let link = agent.accept();
    for (n, pod) in pods.iter().enumerate() {
        assert_eq!(link.ask(&add(&format!("u{n}"), pod)).unwrap().is_ok(), n != 7, "pod {n}");
    }
    link.done(&Request::SnapshotSent);
    wait_readiness(&mesh, &proxy, UNREADY);
    drop(taken);
    wait_readiness(&mesh, &proxy, READY);
    assert!(pods.iter().all(is_served));
    drop(link);
    wait_readiness(&mesh, &proxy, UNREADY);
    let link = agent.accept();
    (0..PODS).for_each(|n| link.done(&Request::Keep { uid: format!("u{n}") }));
    link.done(&Request::SnapshotSent);
    wait_readiness(&mesh, &proxy, READY);
    assert!(pods.iter().all(is_served));
    let started = proxy.metric("workload_manager_proxies_started_total", &[]).unwrap();
    assert_eq!(started, 100.0, "none was started anew");
    drop((link, proxy));
    mesh.finish();
}

#[test]
fn what_the_agent_must_not_say_harms_nobody() {
    let (mesh, one, _two, socket) = world();
    let mut proxy = start(&mesh, &proxy_options(&socket, &[]));
    let agent = ZdsAgent::new(&socket);
    let begin = || {
        let link = agent.accept();
        link.done(&add("u1", &one));
        link.done(&Request::SnapshotSent);
        link
    };
    for misplaced in [Request::SnapshotSent, Request::Keep { uid: "u1".into() }] {
        let link = begin();
        let refused = link.ask(&misplaced).unwrap().unwrap_err();
        assert!(refused.contains("snapshot"), "{refused}");
        assert!(link.is_over() && is_served(&one));
    }
    // Bytes that are no message, messages with descriptors that do not belong there, and none where one does.
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    for (bytes, fds) in [
        (&[0xff; 20][..], vec![]),
        (&[0x2a, 3, 0x0a, 1, b'u'], vec![null()]),
        (&[0x0a, 0x0f, 0x0a, 1, b'u', 0x12, 0x0a, 0x0a, 1, b'n', 0x12, 1, b's', 0x1a, 2, b'a', b'b'], vec![]),
        (&[0x0a, 0x05, 0x0a, 1], vec![null(), null()]),
        (&[0x7a; 9000], vec![]),
    ] {
        let raw = agent.accept_raw();
        assert_eq!(agent.read(&raw).as_deref(), Some(&[8, 1][..]), "hello");
        let nack = agent.exchange(&raw, bytes, &fds).expect("a refusal before it hangs up");
        assert!(nack.len() > 4 && nack[0] == 0x0a, "{nack:?}");
        assert_eq!(agent.read(&raw), None, "hung up after {bytes:?}");
        assert!(is_served(&one), "served through all of it");
    }
    // An add that names nobody, or no network namespace, concerns that pod only.
    let link = begin();
    let Request::Add { netns, .. } = add("u1", &one) else { unreachable!() };
    let nobody = Request::Add { uid: "u3".into(), info: Default::default(), netns };
    assert!(link.ask(&nobody).unwrap().is_err());
    let Request::Add { uid, info, .. } = add("u4", &one) else { unreachable!() };
    let refused = link.ask(&Request::Add { uid, info, netns: null() }).unwrap().unwrap_err();
    assert!(refused.contains("not a network namespace"), "{refused}");
    link.done(&add("u1", &one));
    wait_readiness(&mesh, &proxy, READY);
    assert!(proxy.process().ended().is_none());
    assert!(proxy.terminate(SOON).unwrap().success());
    mesh.finish();
}

/// An agent that does not listen yet is waited for; a successor of a proxy gets its pods under the same agent.
#[test]
fn a_proxy_succeeds_another_under_any_agent() {
    let (mut mesh, one, two, socket) = world();
    let agent = ZdsAgent::new(&socket);
    let peer = mesh.captured("b", "peer");
    mesh.lab.publish().unwrap();
    mesh.start_node("b", &[]);
    // Without rules in the pod, answers to a client's own address would not come back.
    let settings = ["--termination-deadline", "60s", "--original-source", "false"];
    let mut first = start(&mesh, &proxy_options(&socket, &settings));
    let link = agent.accept();
    for (uid, pod) in [("u1", &one), ("u2", &two)] {
        link.done(&add(uid, pod));
    }
    link.done(&Request::SnapshotSent);
    wait_readiness(&mesh, &first, READY);
    let _echo = Server::echo(&one, 8080);
    // Its rules are nobody's here: another captured pod reaches port 15008 all the same.
    exchange(&peer, (one.v4.into(), 8080), b"by the first").unwrap();
    let second = start(&mesh, &proxy_options(&socket, &settings));
    let newer = agent.accept();
    newer.done(&add("u1", &one));
    newer.done(&Request::Keep { uid: "u2".into() });
    exchange(&peer, (one.v6.into(), 8080), b"not ready: still the first").unwrap();
    newer.done(&Request::SnapshotSent);
    assert!(first.process().wait(SOON).unwrap().success(), "{}\n{}", log_of(&first), log_of(&second));
    exchange(&peer, (one.v4.into(), 8080), b"by the second").unwrap();
    // Named, but never handed over: with the first proxy its sockets are gone.
    wait_served(&two, false);
    assert!(is_served(&one));
    drop((link, newer, second));
    mesh.finish();
}

/// Both directions of a connection.
#[track_caller]
fn passes((client, server): &mut (TcpStream, TcpStream)) {
    for (what, from, to) in [("from the client", &*client, &*server), ("from the server", &*server, &*client)]
    {
        let (mut from, mut to, mut got) = (from, to, [0; 5]);
        from.write_all(b"hello").unwrap_or_else(|e| panic!("{what}: {e}"));
        to.read_exact(&mut got).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(&got, b"hello");
    }
}

/// An agent of another kind removes a pod's rules before it says that the pod has left: with the last of them the kernel
/// gives up tracking and translating, and the app's answers go to its clients past the proxy. Ours leaves open connections
/// their way back, and says for how long.
#[test]
fn relays_end_with_the_rules_that_steer_them() {
    let (mut mesh, one, _two, socket) = world();
    let (peer, outside) = (mesh.captured("b", "peer"), mesh.outside("b", "outside"));
    mesh.lab.publish().unwrap();
    mesh.start_node("b", &[]);
    let proxy = start(&mesh, &proxy_options(&socket, &["--termination-deadline", "60s"]));
    let agent = ZdsAgent::new(&socket);
    let link = agent.accept();
    link.done(&Request::SnapshotSent);
    let ends = || {
        let is_it = |line: &&LogLine| line.as_str().contains("do not come back here any more");
        proxy.log().iter().filter(is_it).count()
    };
    for grace in [Some(Duration::from_secs(60)), None] {
        link.done(&add("u1", &one));
        one.run(|| rules::install(&CaptureSpec::default()).map(drop)).unwrap().unwrap();
        let mut open = Vec::new();
        for (from, own) in [(&peer, 8080), (&outside, 8082)] {
            for (ip, port) in one.addresses().into_iter().zip(own..) {
                let acceptor = Acceptor::new(&one, (ip, port));
                let mut pair = acceptor.pair(from);
                passes(&mut pair);
                open.push((pair, acceptor));
            }
        }
        let removed = one.run(|| if grace.is_some() { rules::remove_redirects() } else { rules::remove() });
        removed.unwrap().unwrap();
        link.done(&Request::Del { uid: "u1".into(), grace });
        for (n, (pair, _)) in open.iter_mut().enumerate() {
            match grace {
                Some(_) => passes(pair),
                None => {
                    assert_eq!(read_to_end(&mut pair.1), (Vec::new(), End::Reset), "the app");
                    // Of what is not translated any more the pod's kernel knows nothing: it says so when it is asked.
                    // A reset that is there already is told once, by the write.
                    let ended = match pair.0.write_all(b"still there?") {
                        Ok(()) => read_to_end(&mut pair.0),
                        Err(error) => (Vec::new(), End::of(&error)),
                    };
                    assert_eq!(ended, (Vec::new(), End::Reset), "client {n}");
                }
            }
        }
        let wanted = if grace.is_some() { 0 } else { open.len() };
        wait_until("the ends in the log", SOON, || (ends() == wanted).then_some(()), || log_of(&proxy))
            .unwrap();
        drop(open);
        wait_served(&one, false);
    }
    drop((link, proxy));
    mesh.finish();
}
