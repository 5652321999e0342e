//! The agent and a discovery server, seen from outside: what is asked on demand, hostile servers, a server and a
//! certificate authority that are away, also over a restart of the agent.

use std::time::Duration;

use culvert::lab::{Agent, Pod, wait_until};
use culvert_common::xds::proto::workload::Workload;
use culvert_tests::control_plane::authority::Authority;
use culvert_tests::control_plane::discovery::Discovery;
use culvert_tests::control_plane::hostile::Hostile;
use culvert_tests::control_plane::resources::{behind, hostname, service, strict, uid, workload};
use culvert_tests::dns::{A, Way, addresses, ask, query};
use culvert_tests::enrolment::{Enrolment, socket};
use culvert_tests::mesh::{Mesh, SOON, log_of, options, private, rss};
use culvert_tests::net::{End, Server, exchange, try_out};

const PORT: u16 = 8080;
/// Where nobody answers DNS: what is answered all the same is answered by the agent.
const NOWHERE: &str = "192.0.2.53";
/// Longest message and most state that the agent of these tests takes from the server.
const BYTES_MAX: &str = "4194304";

/// A captured client on node a, whose agent asks the test's server; a captured and two plain pods on node b.
struct World {
    mesh: Mesh,
    client: Pod,
    server: Pod,
    plain: Pod,
    other: Pod,
    discovery: Discovery,
    enrolment: Enrolment,
    env: Vec<(String, String)>,
    servers: Vec<Server>,
}

impl World {
    /// The server has told of all pods but `other`; no agent of node a yet.
    fn new() -> Self {
        let mut mesh = Mesh::new();
        let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
        let (plain, other) = (mesh.outside("b", "plain"), mesh.outside("b", "other"));
        mesh.lab.publish().expect("publish the pods");
        mesh.start_node("b", &[]);
        let host = mesh.lab.host(mesh.node("a")).expect("the node").clone();
        let discovery = Discovery::start(&host);
        for pod in [&client, &plain] {
            discovery.say(&workload(pod));
        }
        discovery.say(&behind(workload(&server), &format!("default/{}", hostname("web")), PORT));
        discovery.say(&service("web", &["10.96.0.10", "fd00:96::10"], PORT));
        let far = mesh.lab.host(mesh.node("b")).expect("the node").clone();
        let servers = [&*server, &*plain, &*other, &far].map(|place| Server::echo(place, PORT)).into();
        let enrolment = Enrolment::start(&mesh, "a", &[]);
        let env = [("XDS_ADDRESS", Discovery::url()), ("CA_ADDRESS", String::new())];
        let env = env.map(|(name, value)| (name.to_owned(), value)).into();
        Self { mesh, client, server, plain, other, discovery, enrolment, env, servers }
    }

    /// Starts the agent of node a; it need not be ready.
    fn launch(&self, args: &[&str]) -> Agent {
        let socket = socket(&self.mesh, "a").display().to_string();
        let ranges = ["--pod-range", "10.244.0.0/16,fd00:244::/32", "--zds-socket", &socket];
        let mut options = options(&[&ranges, args].concat());
        options.part = Some("proxy".to_owned());
        options.env.clone_from(&self.env);
        self.mesh.lab.start_agent(self.mesh.node("a"), &options).expect("start an agent")
    }

    fn start(&self, args: &[&str]) -> Agent {
        let agent = self.launch(args).wait_ready().unwrap_or_else(|e| panic!("{e}"));
        self.wait_served(&agent);
        agent
    }

    /// Waits until the client is captured and served.
    fn wait_served(&self, agent: &Agent) {
        let is_up = || agent.metric("workload_manager_active_proxy_count", &[]).ok().filter(|n| *n > 0.5);
        wait_until("the client served", SOON, is_up, || log_of(agent)).unwrap_or_else(|e| panic!("{e}"));
        self.enrolment.wait_captured(1);
    }

    fn talk(&self, to: std::net::IpAddr, what: &str) -> Result<(), String> {
        let said = format!("{what} to {to}");
        match exchange(&self.client, (to, PORT), said.as_bytes()) {
            Ok((_, heard)) if heard == said.as_bytes() => Ok(()),
            Ok((_, heard)) => Err(format!("heard {:?}", String::from_utf8_lossy(&heard))),
            Err(error) => Err(error.to_string()),
        }
    }

    fn talks(&self, agent: &Agent, to: std::net::IpAddr, what: &str) {
        self.talk(to, what).unwrap_or_else(|e| panic!("{what} to {to}: {e}\n{}", log_of(agent)));
    }

    /// Refused with a reset, and the log says why.
    fn is_refused(&self, agent: &Agent, to: std::net::IpAddr, reason: &str) {
        let (own, heard, end) = try_out(&self.client, (to, PORT));
        assert_eq!((heard, end), (Vec::new(), End::Reset), "{to}\n{}", log_of(agent));
        let own = own.to_string();
        let told = |line: &culvert::lab::LogLine| {
            line.has(&[("src.addr", &own)]) && line.field("error").is_some_and(|e| e.contains(reason))
        };
        agent.wait_log(0, reason, told).unwrap_or_else(|e| panic!("{to}: {reason}: {e}"));
    }

    /// The client asks for the service by name.
    fn resolves(&self) {
        let asked = query(7, &hostname("web"), A, false);
        let reply = ask(&self.client, NOWHERE.parse().unwrap(), Way::Udp, &asked, SOON);
        assert_eq!(addresses(&reply.expect("an answer")), ["10.96.0.10"]);
    }

    /// Everything ends well and nothing is left.
    fn finish(self, mut agent: Agent) {
        let ended = agent.terminate(SOON).expect("the agent's end");
        assert!(ended.success(), "{ended}\n{}", log_of(&agent));
        self.enrolment.terminate();
        drop((self.discovery, self.servers));
        self.mesh.finish();
    }
}

/// Connections that this agent has carried in tunnels so far.
fn tunnelled(agent: &Agent) -> f64 {
    let labels = ["connection_security_policy=\"mutual_tls\""];
    agent.metric("istio_tcp_connections_opened_total", &labels).expect("the metrics page")
}

fn wait_metric(agent: &Agent, name: &str, holds: impl Fn(f64) -> bool) {
    let is_it = || agent.metric(name, &[]).ok().filter(|value| holds(*value)).map(|_| ());
    wait_until(name, SOON, is_it, || format!("{:?}\n{}", agent.metric(name, &[]), log_of(agent)))
        .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn on_demand_what_is_late_missing_or_unanswered_is_told_apart() {
    let mut world = World::new();
    world.env.push(("XDS_ON_DEMAND".to_owned(), "true".to_owned()));
    let args = ["--hold-timeout", "4s"];
    let mut agent = world.start(&args);
    assert!(!world.discovery.was_asked(&uid(&world.server)), "nothing that nobody needs");
    // A hit, of both families; by a service's address too.
    for to in world.server.addresses().into_iter().chain(["10.96.0.10".parse().unwrap()]) {
        let before = tunnelled(&agent);
        match to.is_ipv4() && to.to_string().starts_with("10.96") {
            true => drop(exchange(&world.client, (to, 80), b"by service").expect("by service")),
            false => world.talks(&agent, to, "a hit"),
        }
        assert!(tunnelled(&agent) > before, "{to} in a tunnel");
    }
    // Answered late: the connection waits.
    let plain = world.plain.addresses();
    let name = format!("/{}", plain[0]);
    world.discovery.mute(&name, true);
    std::thread::scope(|scope| {
        let late = scope.spawn(|| world.talk(plain[0], "late"));
        let is_asked = || world.discovery.was_asked(&name).then_some(());
        wait_until("the question", SOON, is_asked, || log_of(&agent)).unwrap();
        assert!(!late.is_finished(), "not before the answer");
        world.discovery.mute(&name, false);
        late.join().expect("a thread").unwrap_or_else(|e| panic!("late: {e}\n{}", log_of(&agent)));
    });
    // Never answered: no address of the mesh is dialled, any other is.
    let others = world.other.addresses();
    let far = world.mesh.lab.host_addresses(world.mesh.node("b"));
    for ip in others.into_iter().chain(far) {
        world.discovery.mute(&format!("/{ip}"), true);
    }
    world.is_refused(&agent, others[0], "nobody is known at");
    world.talks(&agent, far[1], "outside");
    // Answered that there is no such thing.
    world.discovery.mute(&format!("/{}", others[1]), false);
    world.talks(&agent, others[1], "missing");

    // What was asked for is kept over a restart without the server.
    assert!(agent.terminate(SOON).unwrap().success());
    world.discovery.stop();
    let _before = world.discovery.take_heard();
    let mut agent = world.start(&args);
    world.talks(&agent, world.server.addresses()[1], "from the kept state");
    assert!(tunnelled(&agent) > 0.5, "in a tunnel");
    world.talks(&agent, plain[0], "in plaintext, as before");
    world.is_refused(&agent, others[0], "nobody is known at");
    // And asked for again when the server is back, which has changed its mind meanwhile.
    world.discovery.mute(&format!("/{}", others[0]), false);
    world.discovery.take_back(&workload(&world.plain));
    world.discovery.start_again();
    let agent_is_current = || {
        let heard = world.discovery.take_heard();
        heard.iter().any(|r| r.initial_resource_versions.contains_key(&uid(&world.server))).then_some(())
    };
    wait_until("the versions of what is known", SOON, agent_is_current, || log_of(&agent)).unwrap();
    wait_metric(&agent, "culvert_xds_connected", |n| n > 0.5);
    world.talks(&agent, others[0], "a new question");
    assert!(agent.terminate(SOON).unwrap().success());
    let agent = world.start(&args);
    world.finish(agent);
}

#[test]
fn no_discovery_server_takes_the_last_good_state_or_the_memory() {
    let world = World::new();
    let mut agent = None;
    for (n, hostile) in (1..).zip(Hostile::ALL) {
        // A new agent for each, as tries get rarer; it begins with what the one before has kept.
        if let Some(mut before) = agent.take() {
            assert!(Agent::terminate(&mut before, SOON).unwrap().success());
        }
        let new = agent.insert(world.start(&["--xds-message-max", BYTES_MAX, "--xds-state-max", BYTES_MAX]));
        meets(&world, new, (n, hostile));
    }
    world.finish(agent.expect("the last one"));
}

/// The server turns hostile, and good again.
fn meets(world: &World, agent: &Agent, (n, hostile): (u8, Hostile)) {
    world.talks(agent, world.server.v4.into(), "before");
    let (base, mut most) = (rss(agent.pid()), 0);
    world.discovery.turn(Some(hostile));
    // What is held open is one stream.
    let enough = if hostile == Hostile::HalfSent { 1 } else { 3 };
    let had_its_turn = || {
        most = most.max(rss(agent.pid()));
        (world.discovery.misdeeds() >= enough).then_some(())
    };
    wait_until(&format!("{hostile:?}"), SOON, had_its_turn, || log_of(agent)).unwrap();
    for _ in 0..20 {
        culvert::lab::pause(Duration::from_millis(20));
        most = most.max(rss(agent.pid()));
    }
    let before = tunnelled(agent);
    world.talks(agent, world.server.v6.into(), &format!("{hostile:?}"));
    world.talks(agent, world.plain.v4.into(), &format!("{hostile:?}"));
    assert!(tunnelled(agent) > before, "{hostile:?}: in a tunnel");
    // 4 MiB of state, a message of as much, and what both cost decoded.
    assert!(most < base + (96 << 20), "{hostile:?}: {} MiB of {} MiB", most >> 20, base >> 20);
    // A good server again: the agent has what it says, and nothing else.
    world.discovery.turn(None);
    world.discovery.say(&service(&format!("news-{n}"), &[&format!("10.96.1.{n}")], PORT));
    let count = |kind: &str| agent.metric("culvert_xds_resources", &[&format!("kind=\"{kind}\"")]).ok();
    let is_there = || {
        let now = (count("workload")?, count("service")?);
        (now == (3.0, f64::from(n) + 1.0)).then_some(())
    };
    let seen = || format!("{:?} {:?}\n{}", count("workload"), count("service"), log_of(agent));
    wait_until(&format!("a good server after {hostile:?}"), SOON, is_there, seen)
        .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_restarted_agent_goes_on_while_its_control_plane_is_away() {
    let mut world = World::new();
    let host = world.mesh.lab.host(world.mesh.node("a")).expect("the node").clone();
    let pods = [&world.client.clone()];
    let authority = Authority::start(&world.mesh.lab, &host, &pods);
    world.env.retain(|(name, _)| name != "CA_ADDRESS");
    world.env.extend(Authority::settings(&world.mesh.lab));
    let args = ["--certificate-wait", "2s"];
    let mut agent = world.start(&args);
    world.talks(&agent, world.server.v4.into(), "before");
    world.resolves();
    assert!(agent.terminate(SOON).unwrap().success());
    world.discovery.stop();
    drop(authority);

    // Both are away.
    let mut agent = world.launch(&args);
    world.wait_served(&agent);
    world.resolves();
    for to in world.plain.addresses() {
        world.talks(&agent, to, "plaintext from the kept state");
    }
    assert_eq!(agent.metric("culvert_xds_connected", &[]).unwrap(), 0.0);
    wait_metric(&agent, "culvert_xds_state_age_seconds", |age| age > 0.0);
    let marker = b"never in plaintext";
    let tap = world.mesh.lab.tap(&[marker]).unwrap();
    let sent = exchange(&world.client, (world.server.v4.into(), PORT), marker);
    assert!(sent.is_err(), "no certificate, no connection");
    assert_eq!(tap.seen().unwrap().marked(), 0, "nothing of it on the wire");
    drop(tap);
    world.is_refused(&agent, world.server.v4.into(), "certificate");

    // The authority is back: what is held goes on. The discovery server is away still.
    std::thread::scope(|scope| {
        let held = scope.spawn(|| {
            let soon = || world.talk(world.server.v4.into(), "as soon as the CA answers").ok();
            wait_until("HBONE", SOON, soon, || log_of(&agent))
        });
        let authority = Authority::start(&world.mesh.lab, &host, &pods);
        held.join().expect("a thread").unwrap_or_else(|e| panic!("{e}"));
        // The CA away over a restart, the discovery server there.
        drop(authority);
    });
    assert!(agent.terminate(SOON).unwrap().success());
    world.discovery.start_again();
    world.discovery.say(&service("news", &["10.96.0.11"], PORT));
    let mut agent = world.launch(&args);
    world.wait_served(&agent);
    wait_metric(&agent, "culvert_xds_connected", |n| n > 0.5);
    world.talks(&agent, world.plain.v4.into(), "plaintext without a CA");
    world.is_refused(&agent, world.server.v6.into(), "certificate");
    // Nor does anybody get in without one: the other agent cannot open a tunnel.
    let _echo = Server::echo(&world.client, PORT);
    let (_, _, end) = try_out(&world.server, (world.client.v4.into(), PORT));
    assert_eq!(end, End::Reset);
    let _authority = Authority::start(&world.mesh.lab, &host, &pods);
    agent = agent.wait_ready().unwrap_or_else(|e| panic!("{e}"));
    world.talks(&agent, world.server.v6.into(), "with a certificate");
    exchange(&world.server, (world.client.v4.into(), PORT), b"inbound").expect("inbound, with a certificate");
    world.finish(agent);
}

#[test]
fn a_server_that_restarts_or_is_replaced_is_found_again() {
    let mut world = World::new();
    let agent = world.start(&[]);
    world.talks(&agent, world.plain.v4.into(), "before");
    for round in 1..=3u8 {
        world.discovery.stop();
        wait_metric(&agent, "culvert_xds_connected", |n| n < 0.5);
        world.talks(&agent, world.server.v4.into(), "while it is away");
        // What is told after the restart is in force: a policy this time, or its end.
        let plain = workload(&world.plain);
        match round % 2 {
            1 => world.discovery.take_back(&plain),
            _ => world.discovery.say(&plain),
        }
        world.discovery.say(&strict(&format!("ns-{round}")));
        let streams = world.discovery.streams();
        world.discovery.start_again();
        wait_metric(&agent, "culvert_xds_connected", |n| n > 0.5);
        let policies = || agent.metric("culvert_xds_resources", &["kind=\"policy\""]).ok();
        let is_current = || policies().filter(|n| *n == f64::from(round)).map(|_| ());
        wait_until("the new policy", SOON, is_current, || log_of(&agent)).unwrap();
        assert_eq!(world.discovery.streams(), streams + 1, "one stream for one restart");
    }
    // Taken connections that are never answered are given up, and the tries stay few.
    let tries = || agent.metric("istio_xds_connection_terminations_total", &[]).unwrap();
    let before = tries();
    world.discovery.stop();
    for _ in 0..40 {
        culvert::lab::pause(Duration::from_millis(50));
    }
    let made = tries() - before;
    assert!((1.0..=12.0).contains(&made), "{made} tries within two seconds: 10 ms, doubling");
    world.discovery.start_again();
    wait_metric(&agent, "culvert_xds_connected", |n| n > 0.5);
    world.finish(agent);
}

/// Memory of an agent whose server tells of a large mesh, and that its pods' DNS is answered beside it.
#[test]
fn a_workload_from_the_server_costs_little() {
    const WORKLOADS: usize = 20_000;
    let world = World::new();
    let agent = world.start(&[]);
    world.resolves();
    let before = private(agent.pid());
    let said = (0..WORKLOADS).map(|number| {
        let [_, a, b, c] = u32::try_from(number).unwrap_or_default().to_be_bytes();
        let service = format!("default/{}", hostname(&format!("app-{}", number / 10)));
        let one = Workload {
            uid: format!("Kubernetes//Pod/default/app-{}-{number}", number / 10),
            name: format!("app-{}-{number}", number / 10),
            service_account: format!("app-{}", number / 10),
            workload_name: format!("app-{}", number / 10),
            addresses: vec![vec![10, 128 + a, b, c]],
            ..workload(&world.server)
        };
        behind(one, &service, PORT)
    });
    world.discovery.say_all(said.collect::<Vec<_>>().iter());
    let services: Vec<_> = (0..WORKLOADS / 10)
        .map(|number| {
            service(&format!("app-{number}"), &[&format!("10.97.{}.{}", number / 250, number % 250)], PORT)
        })
        .collect();
    world.discovery.say_all(services.iter());
    let known = || {
        agent.metric("culvert_xds_resources", &["kind=\"workload\""]).ok().filter(|n| *n >= WORKLOADS as f64)
    };
    wait_until("all workloads known", 2 * SOON, known, || log_of(&agent)).unwrap();
    // What reading took is given back soon.
    let most = before + 1536 * WORKLOADS as u64;
    let held = || private(agent.pid());
    wait_until(
        "memory given back",
        SOON,
        || (held() < most).then_some(()),
        || format!("{} KiB before, {} KiB after", before >> 10, held() >> 10),
    )
    .unwrap();
    println!(
        "{} KiB before, {} KiB after; all of the process {} KiB",
        before >> 10,
        held() >> 10,
        rss(agent.pid()) >> 10
    );
    world.resolves();
    world.talks(&agent, world.server.v4.into(), "beside a large mesh");
    world.finish(agent);
}
