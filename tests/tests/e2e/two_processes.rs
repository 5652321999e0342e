//! The agent as two processes: one writes and guards rules, the other carries traffic; either may end and come back.

use std::time::Duration;

use culvert::lab::{Agent, Pod, wait_until};
use culvert_common::net::rules::{self, CaptureSpec};
use culvert_tests::enrolment::{Enrolment, socket, start_proxy};
use culvert_tests::mesh::{Mesh, SOON, log_of};
use culvert_tests::net::{End, Pattern, Server, connect, exchange, try_out};
use culvert_tests::traffic::Traffic;

const PORT: u16 = 8080;
const NODES: [&str; 2] = ["a", "b"];

/// A captured client on node a, a captured server on node b; on each node both processes.
struct World {
    mesh: Mesh,
    client: Pod,
    server: Pod,
    proxies: Vec<Agent>,
    enrolments: Vec<Enrolment>,
}

impl World {
    fn new() -> Self {
        let mut mesh = Mesh::new();
        let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
        mesh.lab.publish().expect("publish the pods");
        let enrolments: Vec<_> = NODES.iter().map(|node| Enrolment::start(&mesh, node, &[])).collect();
        let proxies = NODES.map(|node| start_proxy(&mesh, node, &[]));
        let proxies = proxies.into_iter().map(|proxy| proxy.wait_ready().expect("a proxy")).collect();
        enrolments.iter().for_each(|enrolment| enrolment.wait_captured(1));
        Self { mesh, client, server, proxies, enrolments }
    }

    fn traffic(&self) -> [Traffic; 2] {
        self.server.addresses().map(|ip| Traffic::start(&self.client, (ip, PORT), 2))
    }

    /// All processes end well, and nothing was refused that should not have been.
    fn finish(mut self) {
        for proxy in &mut self.proxies {
            let ended = proxy.terminate(SOON).expect("the proxy's end");
            assert!(ended.success(), "{ended}\n{}", log_of(proxy));
        }
        self.enrolments.into_iter().for_each(Enrolment::terminate);
        for node in NODES {
            assert!(!socket(&self.mesh, node).exists(), "a socket is left");
        }
        self.mesh.finish();
    }
}

fn is_captured(pod: &Pod) -> bool {
    pod.run(|| rules::verify(&CaptureSpec::default()).is_ok()).expect("enter the pod")
}

#[test]
fn two_processes_carry_traffic() {
    let world = World::new();
    let _echo = Server::echo(&world.server, PORT);
    for ip in world.server.addresses() {
        exchange(&world.client, (ip, PORT), b"through both").unwrap();
    }
    for (proxy, reporter) in world.proxies.iter().zip(["source", "destination"]) {
        let labels = [&format!("reporter=\"{reporter}\""), "connection_security_policy=\"mutual_tls\""];
        assert_eq!(proxy.metric("istio_tcp_connections_opened_total", &labels).unwrap(), 2.0, "{reporter}");
    }
    for enrolment in &world.enrolments {
        assert_eq!(enrolment.metric("culvert_zds_proxies_connected", &[]), Some(1.0));
        assert_eq!(enrolment.metric("culvert_capture_repairs_total", &[]), Some(0.0));
    }
    world.finish();
}

/// Nothing of what the pods do depends on the process that enrols them.
#[test]
fn enrolment_may_be_killed_under_traffic() {
    let mut world = World::new();
    let _echo = Server::echo(&world.server, PORT);
    let traffic = world.traffic();
    for _ in 0..3 {
        world.enrolments.drain(..).for_each(Enrolment::kill);
        traffic.iter().for_each(|traffic| traffic.more(10));
        world.enrolments = NODES.iter().map(|node| Enrolment::start(&world.mesh, node, &[])).collect();
        world.enrolments.iter().for_each(|enrolment| enrolment.wait_captured(1));
        traffic.iter().for_each(|traffic| traffic.more(10));
    }
    for enrolment in &world.enrolments {
        assert_eq!(enrolment.metric("culvert_capture_repairs_total", &[]), Some(0.0), "{}", enrolment.log());
    }
    for traffic in traffic {
        traffic.end_well("enrolment killed");
    }
    world.finish();
}

/// Captured pods are refused while no proxy is there, never bypassed, and served by the next one.
#[test]
fn a_proxy_may_be_killed() {
    for at in [0, 1] {
        let mut world = World::new();
        let echo = Server::echo(&world.server, PORT);
        exchange(&world.client, (world.server.v4.into(), PORT), b"before").unwrap();
        world.proxies.remove(at).kill();
        world.enrolments[at].wait_metric("culvert_capture_pods_failing", &["reason=\"no_proxy\""], 1.0);
        let reached = echo.seen.accepted();
        for ip in world.server.addresses() {
            let (_, bytes, end) = try_out(&world.client, (ip, PORT));
            assert!(bytes.is_empty() && end != End::Fin, "{bytes:?}, {end:?}");
        }
        assert_eq!(echo.seen.accepted(), reached, "past the proxy");
        assert!(is_captured(&world.client) && is_captured(&world.server));
        let next = start_proxy(&world.mesh, NODES[at], &[]).wait_ready().expect("a proxy");
        world.proxies.insert(at, next);
        world.enrolments[at].wait_captured(1);
        for ip in world.server.addresses() {
            exchange(&world.client, (ip, PORT), b"after").unwrap();
        }
        world.finish();
    }
}

/// Whichever process is killed at whatever moment: what is refused meanwhile is refused, the pods are served again, and
/// the rules are as they were.
#[test]
fn either_process_may_be_killed_at_any_moment() {
    let mut world = World::new();
    let _echo = Server::echo(&world.server, PORT);
    for (round, byte) in Pattern::bytes(5, 20).into_iter().enumerate() {
        let (node, is_proxy, open) = (usize::from(byte & 1), byte & 2 == 0, byte >> 5);
        let load: Vec<_> =
            (0..open).map(|_| connect(&world.client, (world.server.v4.into(), PORT))).collect();
        if is_proxy {
            world.proxies.remove(node).kill();
        } else {
            world.enrolments.remove(node).kill();
        }
        let to = (world.server.addresses()[round % 2], PORT);
        if is_proxy {
            let (_, bytes, end) = try_out(&world.client, to);
            assert!(bytes.is_empty() && end != End::Fin, "{round}: {bytes:?}, {end:?}");
        } else {
            exchange(&world.client, to, b"meanwhile").unwrap_or_else(|e| panic!("{round}: {e}"));
        }
        drop(load);
        if is_proxy {
            world
                .proxies
                .insert(node, start_proxy(&world.mesh, NODES[node], &[]).wait_ready().expect("a proxy"));
        } else {
            world.enrolments.insert(node, Enrolment::start(&world.mesh, NODES[node], &[]));
        }
        world.enrolments[node].wait_captured(1);
        for ip in world.server.addresses() {
            exchange(&world.client, (ip, PORT), b"served again").unwrap_or_else(|e| panic!("{round}: {e}"));
        }
        assert!(is_captured(&world.client) && is_captured(&world.server), "{round}");
    }
    world.finish();
}

/// What another hand changes in a pod is put right, counted by part and logged, and the pod is served as before.
#[test]
fn changed_rules_are_mended() {
    let world = World::new();
    let _echo = Server::echo(&world.server, PORT);
    let enrolment = &world.enrolments[0];
    let pod = &world.client;
    let repairs = |what: &str| {
        enrolment.metric("culvert_capture_repairs_total", &[&format!("what=\"{what}\"")]).unwrap_or(0.0)
    };
    for (command, what) in [
        ("nft delete table inet culvert-nat", "redirects"),
        ("nft flush chain inet culvert-nat output", "redirects"),
        ("nft insert rule inet culvert-nat output accept", "redirects"),
        ("nft delete table inet culvert-mangle", "marks"),
        ("nft flush ruleset", "redirects"),
        ("ip rule del pref 32764", "policy_rule"),
        ("ip -6 rule del pref 32764", "policy_rule"),
        ("ip route flush table 100", "route"),
        ("ip -6 route flush table 100", "route"),
    ] {
        let before = repairs(what);
        let words: Vec<&str> = command.split(' ').collect();
        let done = pod.command(words[0]).args(&words[1..]).finish(Duration::from_secs(20)).expect(command);
        assert!(done.status.success(), "{command}");
        let mended = || (repairs(what) > before && is_captured(pod)).then_some(());
        wait_until(command, SOON, mended, || enrolment.log()).unwrap_or_else(|e| panic!("{e}"));
        for ip in world.server.addresses() {
            exchange(pod, (ip, PORT), b"as before").unwrap_or_else(|e| panic!("{command}: {e}"));
        }
    }
    for part in ["another hand had changed", "table culvert-nat is missing", "IPv6 policy rule"] {
        enrolment.wait_log(part);
    }
    let opened = ["reporter=\"source\"", "connection_security_policy=\"mutual_tls\""];
    let through = world.proxies[0].metric("istio_tcp_connections_opened_total", &opened).unwrap();
    assert_eq!(through, 18.0, "each of them went through a tunnel");
    world.finish();
}

#[test]
fn a_pod_with_a_wrong_path_harms_no_other() {
    let mut world = World::new();
    let _echo = Server::echo(&world.server, PORT);
    let ghost = world.mesh.captured("a", "ghost");
    world.mesh.lab.publish().expect("publish the pods");
    world.enrolments.remove(0).terminate();
    let wrong = format!("{}/{}=/nowhere", ghost.spec.namespace, ghost.spec.name);
    let enrolment = Enrolment::start(&world.mesh, "a", &["--pod", &wrong]);
    enrolment.wait_captured(1);
    enrolment.wait_metric("culvert_capture_pods_failing", &["reason=\"namespace\""], 1.0);
    exchange(&world.client, (world.server.v6.into(), PORT), b"hello").unwrap();
    enrolment.wait_log("cannot open its network namespace /nowhere");
    // Right again, it joins without a restart of anything else.
    enrolment.terminate();
    let enrolment = Enrolment::start(&world.mesh, "a", &[]);
    enrolment.wait_captured(2);
    exchange(&ghost, (world.server.v4.into(), PORT), b"hello").unwrap();
    world.enrolments.insert(0, enrolment);
    world.finish();
}
