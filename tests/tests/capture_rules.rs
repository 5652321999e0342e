//! The capture rules against the real kernel: what they redirect, what they leave alone, and how they come and go.
//!
//! Each test makes network namespaces of its own, without names; they vanish with the test. Needs root, `ip` and `nft`
//! (as an independent reader of what was written).
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert_common::net::netns::NetNs;
use culvert_common::net::rules::{self, CaptureSpec, RulesError};
use culvert_common::net::socket::{DialOptions, ListenOptions, dial_socket, listen, original_destination};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// A namespace kept alive by a thread in it, so that `ip` can name it by the thread's path.
struct Namespace {
    net: NetNs,
    path: String,
    done: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Namespace {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root: the test makes network namespaces");
        let (ready, made) = channel();
        let (done, wait) = channel::<()>();
        let keeper = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs CAP_SYS_ADMIN)");
            let (pid, tid) = (std::process::id(), nix::unistd::gettid());
            let path = format!("/proc/{pid}/task/{tid}/ns/net");
            ready.send((NetNs::open(Path::new(&path)).unwrap(), path)).unwrap();
            // Ends when the sender is dropped.
            let _ = wait.recv();
        });
        let (net, path) = made.recv().unwrap();
        let made = Self { net, path, done: Some(done), keeper: Some(keeper) };
        made.sh("ip link set lo up");
        made
    }

    fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        self.net.run(work).unwrap()
    }

    /// Runs a command in the namespace; its output.
    fn sh(&self, command: &str) -> String {
        let mut words = command.split(' ');
        let output = self.run(|| Command::new(words.next().unwrap()).args(words).output().expect(command));
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.done.take();
        let _ = self.keeper.take().map(JoinHandle::join);
    }
}

/// A pod and the node next to it, joined by a veth pair; the node is the pod's default route.
struct World {
    pod: Namespace,
    node: Namespace,
}

const POD: [&str; 2] = ["10.77.0.2", "fd77::2"];
const NODE: [&str; 2] = ["10.77.0.1", "fd77::1"];
const LIMIT: Duration = Duration::from_secs(5);

impl World {
    fn new() -> Self {
        let (pod, node) = (Namespace::new(), Namespace::new());
        pod.sh(&format!("ip link add eth0 type veth peer name pod0 netns {}", node.path));
        for (namespace, link, [v4, v6]) in [(&pod, "eth0", POD), (&node, "pod0", NODE)] {
            namespace.sh(&format!("ip addr add {v4}/24 dev {link}"));
            namespace.sh(&format!("ip addr add {v6}/64 dev {link} nodad"));
            namespace.sh(&format!("ip link set {link} up"));
        }
        for via in NODE {
            pod.sh(&format!("ip {} route add default via {via}", family_flag(via)));
        }
        Self { pod, node }
    }

    /// With the default rules in force.
    fn captured() -> Self {
        let world = Self::new();
        world.pod.run(|| rules::install(&CaptureSpec::default())).unwrap();
        world
    }
}

fn family_flag(ip: &str) -> &'static str {
    if ip.contains(':') { "-6" } else { "-4" }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// A listener as the agent opens it.
fn agent(namespace: &Namespace, port: u16) -> TcpListener {
    let options = ListenOptions {
        mark: Some(0x539),
        transparent: true,
        reset_on_drop: true,
        ..ListenOptions::default()
    };
    let (listener, transparent) = namespace.run(|| listen(at("::", port), &options)).unwrap();
    assert!(transparent);
    patient(listener)
}

/// A listener as an app opens it.
fn app(namespace: &Namespace, addr: SocketAddr) -> TcpListener {
    patient(namespace.run(|| TcpListener::bind(addr)).unwrap())
}

/// Blocking, but not for ever.
fn patient(listener: TcpListener) -> TcpListener {
    listener.set_nonblocking(false).unwrap();
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(5)).unwrap();
    listener
}

fn connect(namespace: &Namespace, to: SocketAddr) -> TcpStream {
    namespace.run(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap_or_else(|error| panic!("{to}: {error}"))
}

/// Connects with the agent's options; the stream blocks.
fn dial(namespace: &Namespace, to: SocketAddr, source: Option<IpAddr>) -> TcpStream {
    let source = source.map(|ip| SocketAddr::new(ip, 0));
    let options = DialOptions { mark: Some(0x539), source, ..DialOptions::default() };
    let socket = namespace.run(|| dial_socket(to, &options)).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.connect_timeout(&to.into(), LIMIT).unwrap_or_else(|error| panic!("{to}: {error}"));
    socket.into()
}

/// Says something each way.
fn talk(one: &TcpStream, other: &TcpStream) {
    for (mut from, mut to) in [(one, other), (other, one)] {
        from.write_all(b"hello").unwrap();
        to.set_read_timeout(Some(LIMIT)).unwrap();
        let mut heard = [0; 5];
        to.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}

/// Takes the next connection; its original destination and who it is from.
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr, SocketAddr) {
    let (stream, peer) = listener.accept().unwrap();
    let to = original_destination(&stream, peer).unwrap();
    (stream, to, SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}

/// All that `install` may leave behind, as other programs see it.
fn residue(namespace: &Namespace) -> String {
    let mut seen = namespace.sh("nft list ruleset");
    for family in ["-4", "-6"] {
        seen += &namespace.sh(&format!("ip {family} route show table all"));
        seen += &namespace.sh(&format!("ip {family} rule show"));
    }
    seen
}

#[test]
fn rules_are_written_once_and_removed_without_trace() {
    // No interfaces but lo: the kernel adds routes to others when it likes.
    let pod = Namespace::new();
    let before = residue(&pod);
    let spec = CaptureSpec::default();
    let first = pod.run(|| rules::install(&spec)).unwrap();
    assert!(first.changed && first.ipv6 && first.adopted.is_empty());
    pod.run(|| rules::verify(&spec)).unwrap();
    let second = pod.run(|| rules::install(&spec)).unwrap();
    assert!(!second.changed);
    for _ in 0..2 {
        pod.run(rules::remove).unwrap();
        assert_eq!(residue(&pod), before);
    }
}

#[test]
fn what_arrives_goes_to_the_inbound_port() {
    let world = World::captured();
    let listener = agent(&world.pod, 15006);
    for (pod, node) in POD.into_iter().zip(NODE) {
        let client = connect(&world.node, at(pod, 8080));
        let (stream, to, from) = accept(&listener);
        assert_eq!(to, at(pod, 8080));
        assert_eq!(from, at(node, client.local_addr().unwrap().port()));
        talk(&client, &stream);
    }
}

#[test]
fn what_leaves_goes_to_the_outbound_port() {
    let world = World::captured();
    let listener = agent(&world.pod, 15001);
    // Nobody has the second address: it is the rule that decides, not a route.
    for to in [at(NODE[0], 9090), at("203.0.113.7", 443), at(NODE[1], 9090), at("2001:db8::7", 443)] {
        let client = connect(&world.pod, to);
        let (stream, seen, from) = accept(&listener);
        assert_eq!(seen, to);
        assert_eq!(from.port(), client.local_addr().unwrap().port());
        talk(&client, &stream);
    }
}

#[test]
fn the_agents_own_connections_are_not_redirected() {
    let world = World::captured();
    for (pod, node) in POD.into_iter().zip(NODE) {
        let server = app(&world.node, at(node, 9090));
        let client = dial(&world.pod, at(node, 9090), None);
        let (stream, peer) = server.accept().unwrap();
        assert_eq!(peer, at(pod, client.local_addr().unwrap().port()));
        talk(&client, &stream);
    }
}

#[test]
fn the_tunnels_port_is_reached_directly() {
    let world = World::captured();
    let listener = agent(&world.pod, 15008);
    for pod in POD {
        let client = connect(&world.node, at(pod, 15008));
        let (stream, to, _) = accept(&listener);
        assert_eq!(to, at(pod, 15008));
        talk(&client, &stream);
    }
}

#[test]
fn probes_are_not_redirected_in_either_direction() {
    let world = World::captured();
    let spec = CaptureSpec::default();
    for (pod, probe) in POD.into_iter().zip([IpAddr::from(spec.probe_v4), spec.probe_v6.into()]) {
        let bits = if probe.is_ipv4() { 32 } else { 128 };
        let nodad = if probe.is_ipv4() { "" } else { " nodad" };
        world.node.sh(&format!("ip addr add {probe}/{bits} dev pod0{nodad}"));
        let server = app(&world.pod, at(pod, 8080));
        let client = dial(&world.node, at(pod, 8080), Some(probe));
        let (stream, peer) = server.accept().unwrap();
        assert_eq!(peer.ip(), probe);
        talk(&client, &stream);
        let back = app(&world.node, SocketAddr::new(probe, 7070));
        let client = connect(&world.pod, SocketAddr::new(probe, 7070));
        talk(&client, &back.accept().unwrap().0);
    }
}

#[test]
fn a_pod_calling_itself_is_not_redirected() {
    let world = World::captured();
    for ip in [POD[0], POD[1], "127.0.0.1", "127.0.0.2", "::1"] {
        let server = app(&world.pod, at(ip, 8080));
        let client = connect(&world.pod, at(ip, 8080));
        talk(&client, &server.accept().unwrap().0);
    }
}

#[test]
fn the_app_sees_its_client_and_its_answers_come_back() {
    let world = World::captured();
    for (pod, sources) in [(POD[0], ["198.51.100.9", NODE[0]]), (POD[1], ["2001:db8::9", NODE[1]])] {
        let server = app(&world.pod, at(pod, 8080));
        for source in sources {
            let client = dial(&world.pod, at(pod, 8080), Some(source.parse().unwrap()));
            let (stream, peer) = server.accept().unwrap();
            assert_eq!(peer, at(source, client.local_addr().unwrap().port()));
            talk(&client, &stream);
            talk(&stream, &client);
        }
    }
}

#[test]
fn many_clients_behind_one_source_address_fit() {
    // The port is chosen in connect(): 64 at once from a range of 40 ports need two destinations sharing them.
    let world = World::captured();
    world.pod.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40039")).unwrap();
    let servers = [8080, 8081].map(|port| app(&world.pod, at(POD[0], port)));
    let source = Some("198.51.100.9".parse().unwrap());
    let held: Vec<TcpStream> = (0..64).map(|n| dial(&world.pod, at(POD[0], 8080 + n % 2), source)).collect();
    for (n, client) in held.iter().enumerate() {
        talk(client, &servers[n % 2].accept().unwrap().0);
    }
}

#[test]
fn without_inbound_capture_the_app_is_reached() {
    let world = World::new();
    let spec = CaptureSpec { inbound: false, ..CaptureSpec::default() };
    world.pod.run(|| rules::install(&spec)).unwrap();
    let listener = agent(&world.pod, 15001);
    for (pod, node) in POD.into_iter().zip(NODE) {
        let server = app(&world.pod, at(pod, 8080));
        let client = connect(&world.node, at(pod, 8080));
        talk(&client, &server.accept().unwrap().0);
        let _client = connect(&world.pod, at(node, 9090));
        assert_eq!(accept(&listener).1, at(node, 9090));
    }
}

#[test]
fn what_arrives_from_a_rerouted_interface_counts_as_outbound() {
    let world = World::new();
    let spec = CaptureSpec { reroute_interfaces: vec!["eth0".into()], ..CaptureSpec::default() };
    world.pod.run(|| rules::install(&spec)).unwrap();
    let listener = agent(&world.pod, 15001);
    for (via, to) in POD.into_iter().zip(["203.0.113.7", "2001:db8::7"]) {
        world.node.sh(&format!("ip {} route add default via {via}", family_flag(via)));
        let client = connect(&world.node, at(to, 443));
        let (stream, seen, _) = accept(&listener);
        assert_eq!(seen, at(to, 443));
        talk(&client, &stream);
    }
}

#[test]
fn without_ipv6_only_ipv4_is_captured() {
    let world = World::new();
    let spec = CaptureSpec { ipv6: false, ..CaptureSpec::default() };
    let installed = world.pod.run(|| rules::install(&spec)).unwrap();
    assert!(!installed.ipv6);
    let listener = agent(&world.pod, 15001);
    let _client = connect(&world.pod, at(NODE[0], 9090));
    assert_eq!(accept(&listener).1, at(NODE[0], 9090));
    let server = app(&world.node, at(NODE[1], 9090));
    let client = connect(&world.pod, at(NODE[1], 9090));
    talk(&client, &server.accept().unwrap().0);
    assert!(world.pod.sh("ip -6 rule show").lines().all(|line| !line.contains("fwmark")));
}

#[test]
fn a_namespace_with_ipv6_off_is_captured_for_ipv4() {
    let world = World::new();
    let off = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    world.pod.run(|| std::fs::write(off, "1")).unwrap();
    let spec = CaptureSpec::default();
    let installed = world.pod.run(|| rules::install(&spec)).unwrap();
    assert!(installed.changed && !installed.ipv6);
    let listener = agent(&world.pod, 15001);
    let _client = connect(&world.pod, at(NODE[0], 9090));
    assert_eq!(accept(&listener).1, at(NODE[0], 9090));
    // Switched on later: the check says what is missing now, and repeating the install adds it.
    world.pod.run(|| std::fs::write(off, "0")).unwrap();
    let error = world.pod.run(|| rules::verify(&spec)).unwrap_err().to_string();
    assert!(error.contains("IPv6"), "{error}");
    assert!(world.pod.run(|| rules::install(&spec)).unwrap().ipv6);
    world.pod.run(rules::remove).unwrap();
}

#[test]
fn every_change_to_the_rules_is_noticed_and_repaired() {
    let world = World::captured();
    let spec = CaptureSpec::default();
    let handle = |chain: &str, what: &str| {
        let listed = world.pod.sh(&format!("nft -a list chain inet {chain}"));
        let line = listed.lines().find(|line| line.contains(what)).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    let redirect = || handle("culvert-nat output", "redirect to :15001");
    let nat = "inet culvert-nat";
    type Tampering<'a> = (&'a str, &'a dyn Fn() -> String, &'a str);
    let cases: [Tampering<'_>; 12] = [
        ("rule deleted", &|| format!("nft delete rule {nat} output handle {}", redirect()), "is not"),
        (
            "last rule deleted",
            &|| {
                let listed = world.pod.sh("nft -a list chain inet culvert-nat output");
                let last = listed.lines().rev().find(|line| line.contains("redirect")).unwrap();
                format!("nft delete rule {nat} output handle {}", last.rsplit(' ').next().unwrap())
            },
            "is missing",
        ),
        ("rule added", &|| format!("nft add rule {nat} output tcp dport 25 accept"), "1 more rules"),
        ("rule put first", &|| format!("nft insert rule {nat} output accept"), "rule 1 of"),
        (
            "rule replaced",
            &|| format!("nft replace rule {nat} output handle {} accept", redirect()),
            "is not",
        ),
        ("chain flushed", &|| format!("nft flush chain {nat} prerouting"), "is missing"),
        ("policy changed", &|| "nft chain inet culvert-mangle output { policy drop ; }".to_owned(), "policy"),
        ("table deleted", &|| "nft delete table inet culvert-mangle".to_owned(), "culvert-mangle is missing"),
        ("table dormant", &|| format!("nft add table {nat} {{ flags dormant ; }}"), "dormant"),
        (
            "chain added",
            &|| format!("nft add chain {nat} x {{ type nat hook output priority -150 ; }}"),
            "x is not ours",
        ),
        ("policy rule deleted", &|| "ip rule del pref 32764".to_owned(), "IPv4 policy rule"),
        ("route deleted", &|| "ip -6 route flush table 100".to_owned(), "IPv6 route"),
    ];
    for (name, command, says) in cases {
        world.pod.run(|| rules::verify(&spec)).unwrap();
        world.pod.sh(&command());
        let error = world.pod.run(|| rules::verify(&spec)).expect_err(name);
        assert!(matches!(error, RulesError::Differs(_)), "{name}: {error:?}");
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(world.pod.run(|| rules::install(&spec)).unwrap().changed, "{name}");
    }
}

#[test]
fn rules_of_another_mesh_are_refused_unless_adopted() {
    for (commands, says) in [
        (vec!["nft add table inet istio-ambient-nat"], "istio-ambient-nat"),
        (vec!["nft add table ip nat", "nft add chain ip nat ISTIO_OUTPUT"], "nat ISTIO_OUTPUT"),
        (vec!["nft add table ip6 mangle", "nft add chain ip6 mangle ISTIO_PRERT"], "mangle ISTIO_PRERT"),
    ] {
        let pod = Namespace::new();
        commands.iter().for_each(|command| drop(pod.sh(command)));
        let before = residue(&pod);
        let error = pod.run(|| rules::install(&CaptureSpec::default())).unwrap_err();
        assert!(matches!(&error, RulesError::ForeignMesh { seen } if seen == &[says]), "{error}");
        assert!(error.to_string().contains("set adopt"), "{error}");
        assert_eq!(residue(&pod), before);
        let spec = CaptureSpec { adopt: true, ..CaptureSpec::default() };
        assert_eq!(pod.run(|| rules::install(&spec)).unwrap().adopted, [says]);
        pod.run(rules::remove).unwrap();
        assert_eq!(residue(&pod), before);
    }
}

#[test]
fn a_changed_specification_replaces_the_rules_without_a_gap() {
    let world = World::captured();
    // Without resets: one that overtakes its own connect() would look like a gap.
    let listener = app(&world.pod, at("::", 15001));
    let server = app(&world.node, at(NODE[0], 9090));
    server.set_nonblocking(true).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let caller = {
        let (net, stop) = (world.pod.net.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                net.run(|| TcpStream::connect_timeout(&at(NODE[0], 9090), LIMIT)).unwrap().unwrap();
                calls += 1;
            }
            calls
        })
    };
    let taker = {
        let (listener, stop) = (listener.try_clone().unwrap(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok((stream, peer)) = listener.accept() {
                    assert_eq!(original_destination(&stream, peer).unwrap(), at(NODE[0], 9090));
                }
            }
        })
    };
    for round in 0..60 {
        let names = if round % 2 == 0 { vec!["tap0".into()] } else { Vec::new() };
        let spec = CaptureSpec { reroute_interfaces: names, ..CaptureSpec::default() };
        assert!(world.pod.run(|| rules::install(&spec)).unwrap().changed);
    }
    stop.store(true, Ordering::Relaxed);
    let calls: usize = caller.join().unwrap();
    // Wakes the taker.
    let _last = connect(&world.pod, at(NODE[0], 9090));
    taker.join().unwrap();
    assert!(calls > 0);
    // Not one of them got past the rules.
    assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "after {calls} calls");
}

#[test]
fn connections_open_before_the_rules_go_on() {
    let world = World::new();
    let mut open = Vec::new();
    for (pod, node) in POD.into_iter().zip(NODE) {
        for (client, server, addr) in
            [(&world.node, &world.pod, at(pod, 8080)), (&world.pod, &world.node, at(node, 9090))]
        {
            let listener = app(server, addr);
            let stream = connect(client, addr);
            open.push((stream, listener.accept().unwrap().0));
        }
    }
    let installed = world.pod.run(|| rules::install(&CaptureSpec::default())).unwrap();
    assert_eq!(installed.open_before, open.len());
    let (outbound, inbound) = (agent(&world.pod, 15001), agent(&world.pod, 15006));
    for (one, other) in &open {
        talk(one, other);
        talk(other, one);
    }
    // What comes after them is captured.
    for (pod, node) in POD.into_iter().zip(NODE) {
        let _client = connect(&world.pod, at(node, 9090));
        assert_eq!(accept(&outbound).1, at(node, 9090));
        let _client = connect(&world.node, at(pod, 8080));
        assert_eq!(accept(&inbound).1, at(pod, 8080));
    }
}

#[test]
fn nothing_stays_open() {
    let pod = Namespace::new();
    let net = pod.net.clone();
    std::thread::spawn(move || {
        // A descriptor table of its own: other tests run beside this one.
        unshare(CloneFlags::CLONE_FILES).unwrap();
        let count = || std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
        // The first visit opens the thread's own namespace, once.
        net.run(|| ()).unwrap();
        let before = count();
        for _ in 0..5 {
            net.run(|| {
                rules::install(&CaptureSpec::default()).unwrap();
                rules::verify(&CaptureSpec::default()).unwrap();
                drop(listen(at("::", 15001), &ListenOptions::default()).unwrap());
                rules::remove().unwrap();
            })
            .unwrap();
        }
        assert_eq!(count(), before);
    })
    .join()
    .unwrap();
}

#[test]
fn nobody_can_bind_beside_the_agent() {
    let world = World::captured();
    for port in [15001, 15006, 15008] {
        let _listener = agent(&world.pod, port);
        for ip in ["::", "0.0.0.0", POD[0], POD[1], "127.0.0.1", "::1"] {
            for (reuse_port, reuse_addr) in [(false, false), (true, false), (false, true), (true, true)] {
                let taken = world.pod.run(|| bind_as_root(at(ip, port), reuse_port, reuse_addr));
                assert_eq!(
                    taken.err(),
                    Some(nix::Error::EADDRINUSE),
                    "{ip}:{port} {reuse_port} {reuse_addr}"
                );
            }
        }
    }
}

#[test]
fn a_port_taken_before_the_agent_is_refused_not_shared() {
    let world = World::new();
    for ip in ["::", "0.0.0.0", POD[0], "::1"] {
        let early = world.pod.run(|| bind_as_root(at(ip, 15006), true, true)).unwrap();
        nix::sys::socket::listen(&early, Backlog::new(8).unwrap()).unwrap();
        let refused = world.pod.run(|| listen(at("::", 15006), &ListenOptions::default())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrInUse, "{ip}");
    }
    // Bound, but not listening yet: the agent gets the port, and the other can never listen.
    let early = world.pod.run(|| bind_as_root(at(POD[0], 15006), true, true)).unwrap();
    let _listener = agent(&world.pod, 15006);
    let late = nix::sys::socket::listen(&early, Backlog::new(8).unwrap());
    assert_eq!(late, Err(nix::Error::EADDRINUSE));
}

/// What a hostile root process in the pod would try.
fn bind_as_root(addr: SocketAddr, reuse_port: bool, reuse_addr: bool) -> nix::Result<std::os::fd::OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReusePort, &reuse_port)?;
    setsockopt(&fd, sockopt::ReuseAddr, &reuse_addr)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(addr))?;
    Ok(fd)
}
