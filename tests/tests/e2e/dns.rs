//! The pods' DNS queries: what is answered by the agent, and what reaches the server the pod was asking, as it was asked.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use culvert::lab::{Pod, PodSpec};
use culvert_tests::dns::{
    A, AAAA, NameServer, SRV, TXT, Way, addresses, ask, ask_all, odd_reply, query, summary,
};
use culvert_tests::documents::Service;
use culvert_tests::enrolment::{Enrolment, start_proxy};
use culvert_tests::mesh::{Mesh, SOON};

const WAYS: [Way; 2] = [Way::Udp, Way::Tcp];
/// An address where nobody answers: what is answered all the same is answered by the agent.
const NOWHERE: [&str; 2] = ["192.0.2.53", "2001:db8::53"];

/// A captured client and a StatefulSet's pods on node a, name servers outside on node b.
struct World {
    mesh: Mesh,
    client: Pod,
    server: Pod,
    other: Pod,
    db: [Pod; 2],
}

impl World {
    fn new() -> Self {
        let mut mesh = Mesh::new();
        let client = mesh.captured("a", "client");
        let db =
            ["db-0", "db-1"].map(|name| mesh.pod("a", PodSpec::new(name).captured(false).label("app", "db")));
        let (server, other) = (mesh.outside("b", "server"), mesh.outside("b", "other"));
        let services = [
            Service::new("web", &["10.96.0.10", "fd00:96::10"]).port(80, "80"),
            Service::new("four", &["10.96.0.11"]).port(80, "80"),
            Service::new("db", &[]).selects("app", "db").port(5432, "5432"),
            Service::new("none", &[]).selects("app", "nobody").port(80, "80"),
        ];
        mesh.put("services.yaml", &services.map(|service| service.yaml()).concat());
        Self { mesh, client, server, other, db }
    }

    fn answered(&self, way: Way, to: IpAddr, name: &str, kind: u16) -> Vec<u8> {
        let query = query(0xbeef, name, kind, false);
        let reply = ask(&self.client, to, way, &query, SOON);
        let reply = reply.unwrap_or_else(|e| panic!("{name} by {way:?} to {to}: {e}"));
        assert_eq!(reply[..2], query[..2], "{name}: the id");
        assert_eq!(reply[2] & 0x84, 0x84, "{name}: an answer with authority");
        reply
    }

    /// What the mesh has is answered, whatever server is asked.
    fn check_answers(&self) {
        let db: Vec<String> = self.db.iter().map(|pod| pod.v4.to_string()).collect();
        let first = [self.db[0].v4.to_string()];
        for to in NOWHERE.map(|ip| ip.parse::<IpAddr>().unwrap()) {
            for way in WAYS {
                for (name, kind, want) in [
                    ("web.default.svc.cluster.local", A, &["10.96.0.10".to_owned()][..]),
                    ("WEB.default.svc.cluster.local", AAAA, &["fd00:96::10".to_owned()]),
                    ("web", A, &["10.96.0.10".to_owned()]),
                    (
                        "web.default.svc.cluster.local.default.svc.cluster.local",
                        A,
                        &["10.96.0.10".to_owned()],
                    ),
                    ("four.default", AAAA, &[]),
                    ("none.default.svc.cluster.local", A, &[]),
                    ("db.default.svc.cluster.local", A, &db),
                    ("db-0.db.default.svc.cluster.local", A, &first),
                ] {
                    let reply = self.answered(way, to, name, kind);
                    let mut want = want.to_vec();
                    want.sort();
                    assert_eq!(addresses(&reply), want, "{name} by {way:?} to {to}");
                    let (code, _, authorities, cut) = summary(&reply);
                    // What has no addresses comes with a start of authority.
                    assert_eq!((code, authorities, cut), (0, u8::from(want.is_empty()), false), "{name}");
                }
            }
        }
    }

    /// What the mesh has not reaches the server that is asked, and its reply comes back, both byte for byte.
    fn check_relay(&self) {
        let servers = [(&self.server, "server"), (&self.other, "other")]
            .map(|(pod, says)| (pod.addresses(), says, NameServer::start(pod, says)));
        let mut id = 0x1000;
        for (ips, says, server) in &servers {
            for (family, ip) in ips.iter().enumerate() {
                for way in WAYS {
                    for (kind, what, edns) in
                        [(A, "a", false), (AAAA, "aaaa", true), (SRV, "srv", true), (TXT, "txt", false)]
                    {
                        id += 1;
                        let name = format!("{what}-{family}-{way:?}.Example.ORG");
                        let asked = query(id, &name, kind, edns);
                        let reply = ask(&self.client, *ip, way, &asked, SOON);
                        let reply = reply.unwrap_or_else(|e| panic!("{name} to {says}: {e}"));
                        let seen = server.asked(&name);
                        let [(by, seen)] = &seen[..] else { panic!("{name} at {says}: {seen:?}") };
                        assert_eq!(*by, way, "{name}");
                        assert_eq!(seen[2..], asked[2..], "{name} to {says}: the query");
                        let mut want = odd_reply(seen, says);
                        want.splice(..2, asked[..2].iter().copied());
                        assert_eq!(reply, want, "{name} to {says}: the reply");
                    }
                }
            }
        }
        // Names of the mesh, asked for what the agent does not answer.
        for kind in [SRV, TXT] {
            let asked = query(7, "web.default.svc.cluster.local", kind, false);
            let reply = ask(&self.client, self.server.v4.into(), Way::Udp, &asked, SOON).unwrap();
            assert_eq!(reply, odd_reply(&asked, "server"));
        }
        self.check_odd_servers();
    }

    fn check_odd_servers(&self) {
        let to = self.server.v4.into();
        let ask = |name: &str, way, limit| ask(&self.client, to, way, &query(9, name, A, true), limit);
        let odd = |name: &str| odd_reply(&query(9, name, A, true), "server");
        for way in WAYS {
            let large = ask("large.example.org", way, SOON).unwrap();
            assert_eq!((large.len(), large.starts_with(&odd("large.example.org"))), (3000, true), "{way:?}");
            let cut = ask("cut.example.org", way, SOON).unwrap();
            assert_eq!((summary(&cut).3, &cut[4..]), (true, &odd("cut.example.org")[4..]), "{way:?}");
            assert_eq!(ask("slow.example.org", way, SOON).unwrap(), odd("slow.example.org"), "{way:?}");
        }
        // Nobody answers in time: the pod hears of it. Nobody listens: at once.
        let failed = ask("never.example.org", Way::Udp, SOON).unwrap();
        assert_eq!(summary(&failed), (2, 0, 0, false));
        // Queries do not wait for each other.
        let names = ["slow.example.org", "web.default.svc.cluster.local", "quick.example.org"];
        let queries: Vec<_> = (1..).zip(names).map(|(id, name)| query(id, name, A, false)).collect();
        let replies = ask_all(&self.client, to, &queries, SOON).unwrap();
        let ids: Vec<u8> = replies.iter().map(|reply| reply[1]).collect();
        assert_eq!(ids.iter().filter(|id| [1, 2, 3].contains(*id)).count(), 3, "{ids:?}");
        assert_eq!(addresses(&replies[0]), ["10.96.0.10"], "what is known does not wait");
        let refused = query(9, "refused.example.org", A, false);
        let refused =
            culvert_tests::dns::ask(&self.client, self.db[0].v4.into(), Way::Udp, &refused, SOON).unwrap();
        assert_eq!(summary(&refused), (2, 0, 0, false), "nobody listens there");
    }

    fn count(&self, node: &str, result: &str) -> f64 {
        let labels = [format!("result=\"{result}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        self.mesh.agent(node).metric("culvert_dns_answers_total", &labels).unwrap()
    }
}

#[test]
fn queries_are_answered_or_relayed() {
    let mut world = World::new();
    world.mesh.start(&[]);
    world.check_answers();
    assert_eq!(world.count("a", "forwarded") + world.count("a", "forwarding failed"), 0.0);
    assert!(world.count("a", "success") > 0.0 && world.count("a", "no records") > 0.0);
    world.check_relay();
    assert_eq!(world.count("a", "forwarding failed"), 2.0);
    let found = |source: &str| {
        let label = format!("source=\"{source}\"");
        world.mesh.agent("a").metric("culvert_dns_relay_destinations_total", &[&label]).unwrap()
    };
    assert_eq!((found("last query"), found("resolv.conf")), (0.0, 0.0), "all destinations are known");
    world.mesh.finish();
}

/// The process that carries traffic may not open netlink sockets: another one finds the destinations.
#[test]
fn a_proxy_of_its_own_relays_to_where_the_pod_asked() {
    let world = World::new();
    world.mesh.lab.publish().unwrap();
    let enrolment = Enrolment::start(&world.mesh, "a", &[]);
    let mut proxy = start_proxy(&world.mesh, "a", &[]).wait_ready().unwrap();
    enrolment.wait_captured(1);
    world.check_answers();
    world.check_relay();
    let direct = proxy.metric("culvert_dns_relay_destinations_total", &["source=\"query\""]).unwrap();
    let all = proxy.metric("culvert_dns_relay_destinations_total", &[]).unwrap();
    assert!(direct > 30.0 && direct == all, "{direct} of {all}");
    assert!(proxy.terminate(SOON).unwrap().success());
    enrolment.terminate();
    world.mesh.finish();
}

/// glibc's resolver with the search list that Kubernetes gives.
#[test]
fn the_resolver_of_the_c_library_finds_names() {
    let mut world = World::new();
    world.mesh.start(&[]);
    let file = world.mesh.lab.dir().join("resolv.conf");
    let text = "nameserver 192.0.2.53\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
    std::fs::write(&file, text).unwrap();
    for (name, want) in [
        ("web", "10.96.0.10"),
        ("web.default", "10.96.0.10"),
        ("web.default.svc.cluster.local", "10.96.0.10"),
        ("four", "10.96.0.11"),
        ("db-1.db", &world.db[1].v4.to_string()),
    ] {
        let script = format!("mount --bind {} /etc/resolv.conf && exec getent ahosts {name}", file.display());
        let ended = world.client.command("unshare").args(["-m", "sh", "-c", &script]).finish(SOON).unwrap();
        assert!(ended.stdout.contains(want), "{name}: {ended:?}");
    }
    world.mesh.finish();
}

/// A pod may keep its queries to itself, and the other way round.
#[test]
fn an_annotation_leaves_queries_alone() {
    let mut mesh = Mesh::new();
    let pod = |name: &str, dns: &str| {
        PodSpec::new(name).captured(true).annotation("ambient.istio.io/dns-capture", dns)
    };
    let (alone, plain) = (mesh.pod("a", pod("alone", "false")), mesh.captured("a", "plain"));
    let server = mesh.outside("b", "server");
    mesh.put("services.yaml", &Service::new("web", &["10.96.0.10"]).port(80, "80").yaml());
    mesh.start(&[]);
    let _server = NameServer::start(&server, "server");
    let asked = query(1, "web.default.svc.cluster.local", A, false);
    for way in WAYS {
        let reply = |from: &Pod| ask(from, server.v4.into(), way, &asked, SOON).unwrap();
        assert_eq!(reply(&alone), odd_reply(&asked, "server"), "{way:?}");
        assert_eq!(addresses(&reply(&plain)), ["10.96.0.10"], "{way:?}");
    }
    mesh.finish();
}

/// Queries go on while one agent takes another's place.
#[test]
fn a_successor_takes_the_queries_over() {
    let mut world = World::new();
    world.mesh.start(&[]);
    let server = NameServer::start(&world.server, "server");
    let client = world.client.clone();
    let to = world.server.v4.into();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_over = std::sync::Arc::clone(&stop);
    let asking = std::thread::spawn(move || {
        let mut answers = 0;
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            for (name, way) in [("web", Way::Udp), ("web", Way::Tcp), ("x.example.org", Way::Udp)] {
                let reply = ask(&client, to, way, &query(3, name, A, false), Duration::from_secs(10));
                assert!(matches!(summary(&reply.unwrap()).0, 0 | 3), "{name} by {way:?}");
                answers += 1;
            }
        }
        answers
    });
    for _ in 0..2 {
        let mut before = world.mesh.replace("a", &[]);
        drop(before.terminate(SOON));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(asking.join().unwrap() > 10);
    assert!(!server.asked("x.example.org").is_empty());
    world.mesh.finish();
}

/// Endpoints of a headless service on a node without an agent.
fn many(count: u8) -> String {
    let pod = |n| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: many-{n}\n  namespace: default\n  uid: many-{n}\n  \
             labels: {{app: many}}\nspec:\n  nodeName: elsewhere\n  serviceAccountName: default\nstatus:\n  \
             phase: Running\n  conditions: [{{type: Ready, status: 'True'}}]\n  podIP: 10.250.0.{n}\n  \
             podIPs: [{{ip: 10.250.0.{n}}}]\n"
        )
    };
    let service = Service::new("many", &[]).selects("app", "many").port(80, "80").yaml();
    (1..=count).map(pod).chain([service]).collect()
}

/// Source: RFC 1035 §4.2.1, RFC 6891 §6.2.3: a datagram holds 512 bytes, or what the client says.
#[test]
fn an_answer_too_long_for_a_datagram_is_cut_and_whole_by_tcp() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    mesh.put("many.yaml", &many(60));
    mesh.start(&[]);
    let to = NOWHERE[0].parse().unwrap();
    let asked = |way, edns| {
        let query = query(3, "many.default.svc.cluster.local", A, edns);
        ask(&client, to, way, &query, SOON).unwrap()
    };
    let cut = asked(Way::Udp, false);
    assert!(summary(&cut).3 && cut.len() <= 512, "{} bytes", cut.len());
    for (way, edns) in [(Way::Tcp, false), (Way::Udp, true), (Way::Tcp, true)] {
        let whole = asked(way, edns);
        assert_eq!((summary(&whole).3, addresses(&whole).len()), (false, 60), "{way:?}");
    }
    mesh.finish();
}

/// Several connections' worth of queries in one, and a thousand datagrams to a server that says nothing.
#[test]
fn many_queries_at_once_are_all_answered_and_bounded() {
    const FLOOD: u16 = 1000;
    /// As many wait at a time; of the others the kernel drops those that find its queue full.
    const TAKEN: usize = 256;
    let mut world = World::new();
    world.mesh.start(&[]);
    let _server = NameServer::start(&world.server, "server");
    let to: IpAddr = world.server.v4.into();
    // More than wait at a time, half of them the mesh's own.
    let name = |n: u16| if n.is_multiple_of(2) { "web".to_owned() } else { format!("x{n}.example.org") };
    let queries: Vec<_> = (0..300).map(|n| query(n, &name(n), A, false)).collect();
    let replies = ask_all(&world.client, to, &queries, SOON).unwrap();
    let mut ids: Vec<_> = replies.iter().map(|reply| [reply[0], reply[1]]).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..300_u16).map(u16::to_be_bytes).collect::<Vec<_>>());

    let fds = || culvert_tests::mesh::fds(world.mesh.agent("a").pid());
    let before = fds();
    let socket = world.client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((to, 53))?;
        socket.set_read_timeout(Some(SOON))?;
        Ok::<_, std::io::Error>(socket)
    });
    let socket = socket.unwrap().unwrap();
    // Heard as they come: the kernel keeps some hundred for a client that does not listen.
    let ears = socket.try_clone().unwrap();
    let heard = std::thread::spawn(move || {
        let (mut failed, mut buffer) = (std::collections::HashSet::new(), [0; 512]);
        while failed.len() < TAKEN {
            let length = ears.recv(&mut buffer).expect("an answer to each query that was taken");
            assert_eq!(summary(&buffer[..length]), (2, 0, 0, false));
            failed.insert([buffer[0], buffer[1]]);
        }
    });
    for n in 0..FLOOD {
        socket.send(&query(n, "never.example.org", A, false)).unwrap();
    }
    let open = fds().saturating_sub(before);
    assert!(open < 600, "{open} descriptors for queries on their way");
    // What is known is answered meanwhile, once the kernel has room for the question.
    let asked = query(9, "web", A, false);
    let reply =
        (0..50).find_map(|_| ask(&world.client, to, Way::Udp, &asked, Duration::from_millis(100)).ok());
    assert_eq!(addresses(&reply.expect("an answer")), ["10.96.0.10"]);
    heard.join().unwrap();
    world.mesh.finish();
}
