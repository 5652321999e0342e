//! What happens to connections that are open when policy or trust changes: those whose answer changed are reset, at both
//! ends, and the others do not notice.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use culvert::lab::{Agent, Pod, PodSpec, wait_until};
use culvert_tests::documents::{pods, policy};
use culvert_tests::mesh::{Mesh, SOON, access, log_of};
use culvert_tests::net::{Acceptor, End, Pattern, connect, exchange, read_to_end, try_out};
use culvert_tests::net::{Server, canonical};
use culvert_tests::traffic::Traffic;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

/// Reached over IPv4 and over IPv6.
const PORTS: [u16; 2] = [8080, 8081];
const CLIENTS: [&str; 3] = ["alice", "mallory", "outsider"];

/// What is in force when connections are opened, what then changes, and which of them go on.
struct Case {
    name: &'static str,
    before: String,
    after: String,
    /// A label of the server that changes with the documents.
    label: [&'static str; 2],
    /// By client and port: `None` where no connection is possible before.
    goes_on: [[Option<bool>; 2]; 3],
    /// What cuts the others.
    by: &'static str,
}

const ON: [Option<bool>; 2] = [Some(true); 2];
const CUT: [Option<bool>; 2] = [Some(false); 2];
const NEVER: [Option<bool>; 2] = [None; 2];

fn authorization(name: &str, spec: &str) -> String {
    policy("AuthorizationPolicy", "default", name, spec)
}

fn from(account: &str) -> String {
    format!("rules: [{{from: [{{source: {{principals: [cluster.local/ns/default/sa/{account}]}}}}]}}]")
}

fn cases() -> Vec<Case> {
    let case = |name, [before, after]: [String; 2], goes_on, by| Case {
        name,
        before,
        after,
        label: ["server", "server"],
        goes_on,
        by,
    };
    let allow = |account: &str| {
        authorization(&format!("allow-{account}"), &format!("action: ALLOW\n{}", from(account)))
    };
    let deny =
        |selector: &str| authorization("no-mallory", &format!("{selector}action: DENY\n{}", from("mallory")));
    let guarded = deny("selector: {matchLabels: {app: guarded}}\n");
    let strict = policy("PeerAuthentication", "default", "default", "mtls: {mode: STRICT}");
    let none = String::new;
    vec![
        case("DENY added", [none(), deny("")], [ON, CUT, ON], "no-mallory"),
        case(
            "ALLOW removed",
            [allow("alice") + &allow("mallory"), allow("alice")],
            [ON, CUT, NEVER],
            "allow-alice",
        ),
        case("namespace turns STRICT", [none(), strict], [ON, ON, CUT], "strict"),
        Case {
            label: ["server", "guarded"],
            ..case("label moves under a DENY", [guarded.clone(), guarded], [ON, CUT, ON], "no-mallory")
        },
        case(
            "DENY of a port",
            [
                none(),
                authorization("no-8080", "action: DENY\nrules: [{to: [{operation: {ports: [\"8080\"]}}]}]"),
            ],
            [[Some(false), Some(true)]; 3],
            "no-8080",
        ),
        case(
            "a policy that says the same",
            [deny(""), deny("").replace("no-mallory", "none-of-mallory")],
            [ON, NEVER, ON],
            "",
        ),
        case("ALLOW nothing", [none(), authorization("nothing", "{}")], [CUT; 3], "nothing"),
    ]
}

/// A connection with both its ends, and who it is.
struct Open {
    client: usize,
    port: usize,
    goes_on: bool,
    ends: (TcpStream, TcpStream),
}

impl Open {
    /// Bytes there and back, more than a frame.
    fn talk(&mut self, seed: u64) -> std::io::Result<()> {
        let sent = Pattern::bytes(seed, 48 * 1024);
        let mut got = vec![0; sent.len()];
        let (client, server) = &mut self.ends;
        client.write_all(&sent)?;
        server.read_exact(&mut got)?;
        assert_eq!(got, sent, "to the server");
        server.write_all(&got)?;
        client.read_exact(&mut got)?;
        assert_eq!(got, sent, "to the client");
        Ok(())
    }
}

struct World {
    mesh: Mesh,
    clients: [Pod; 3],
    server: Pod,
}

impl World {
    fn put(&self, policies: &str, label: &str) {
        let mut server = self.server.clone();
        server.spec.labels = [("app".to_owned(), label.to_owned())].into_iter().collect();
        let all = self.clients.iter().chain([&server]);
        for (name, text) in [("pods.yaml", pods(all, &[])), ("policies.yaml", policies.to_owned())] {
            // Documents that are the same make no new revision.
            let before = std::fs::read_to_string(self.mesh.lab.config_dir().join(name)).unwrap_or_default();
            if before != text {
                self.mesh.settle(|| self.mesh.put(name, &text));
            }
        }
    }

    fn changed(&self) -> f64 {
        let labels = ["reporter=\"destination\"", "class=\"policy-change\""];
        self.mesh.agent("b").metric("culvert_refusals_total", &labels).unwrap()
    }

    fn run(&self, case: &Case) {
        let name = case.name;
        self.put(&case.before, case.label[0]);
        let [v4, v6] = self.server.addresses();
        let acceptors =
            [Acceptor::new(&self.server, (v4, PORTS[0])), Acceptor::new(&self.server, (v6, PORTS[1]))];
        let mut open = Vec::new();
        for (client, goes_on) in case.goes_on.iter().enumerate() {
            for (port, goes_on) in goes_on.iter().enumerate() {
                if let Some(goes_on) = *goes_on {
                    let ends = acceptors[port].pair(&self.clients[client]);
                    open.push(Open { client, port, goes_on, ends });
                }
            }
        }
        open.iter_mut().for_each(|open| open.talk(1).unwrap());
        let (counted, from) = (self.changed(), self.mesh.agent("b").log_len());
        self.put(&case.after, case.label[1]);
        let mut cut = 0;
        for open in &mut open {
            let who = format!("{name}: {} to port {}", CLIENTS[open.client], PORTS[open.port]);
            if open.goes_on {
                open.talk(2).unwrap_or_else(|e| panic!("{who}: {e}\n{}", log_of(self.mesh.agent("b"))));
                continue;
            }
            cut += 1;
            for (end, stream) in [("client", &mut open.ends.0), ("server", &mut open.ends.1)] {
                assert_eq!(read_to_end(stream), (Vec::new(), End::Reset), "{who}, the {end}'s end");
            }
            let (_, bytes, end) =
                try_out(&self.clients[open.client], ([v4, v6][open.port], PORTS[open.port]));
            assert!(bytes.is_empty() && end == End::Reset, "{who}, anew: {bytes:?}, {end:?}");
        }
        self.told(case, from, cut);
        assert_eq!(self.changed() - counted, f64::from(cut), "{name}: counted");
        // What was not cut at once is not cut by the next revision either.
        self.put(&format!("{}# the same\n", case.after), case.label[1]);
        open.iter_mut().filter(|open| open.goes_on).for_each(|open| open.talk(3).unwrap());
        drop((open, acceptors));
    }

    /// One line for each connection that was cut, with its cause.
    fn told(&self, case: &Case, from: usize, cut: u32) {
        let agent = self.mesh.agent("b");
        let fields = [("direction", "inbound"), ("denial.class", "policy-change")];
        let lines = || {
            let lines = agent.log().split_off(from);
            lines.into_iter().filter(|line| line.has(&fields)).collect::<Vec<_>>()
        };
        let enough = || (lines().len() == cut as usize).then_some(());
        wait_until("lines of the cut", SOON, enough, || log_of(agent))
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        for line in lines() {
            let policy = line.field("denial.policy").unwrap_or_default();
            assert!(
                policy.contains(case.by) && line.field("denial.id").is_some(),
                "{}: {}",
                case.name,
                line.as_str()
            );
            assert!(line.as_str().contains("connection closed due to policy change"), "{}", line.as_str());
        }
    }
}

#[test]
fn a_changed_policy_resets_what_it_no_longer_allows() {
    let mut mesh = Mesh::new();
    let clients = [mesh.captured("a", "alice"), mesh.captured("a", "mallory"), mesh.outside("a", "outsider")];
    let server = mesh.pod("b", PodSpec::new("server").captured(true).label("app", "server"));
    mesh.start(&[]);
    let world = World { mesh, clients, server };
    for case in cases() {
        world.run(&case);
    }
    world.mesh.finish();
}

#[test]
fn dry_run_policies_are_counted_and_change_nothing() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "alice"), mesh.captured("b", "server"));
    let _echo = Server::echo(&server, PORTS[0]);
    mesh.start(&[]);
    let tried = |name: &str, spec: &str| {
        let of = "metadata: {";
        authorization(name, spec).replacen(
            of,
            &format!("{of}annotations: {{istio.io/dry-run: \"true\"}}, "),
            1,
        )
    };
    let documents = tried("deny", &format!("action: DENY\n{}", from("alice")))
        + &tried("allow", &format!("action: ALLOW\n{}", from("somebody")));
    mesh.settle(|| mesh.put("policies.yaml", &documents));
    let count = |verdict: &str| {
        let label = format!("verdict=\"{verdict}\"");
        mesh.agent("b").metric("culvert_policy_dry_run_total", &[&label]).unwrap()
    };
    for (n, ip) in server.addresses().into_iter().enumerate() {
        exchange(&client, (ip, PORTS[0]), b"allowed").unwrap();
        let wanted = [("would_deny", n + 1), ("none_would_allow", n + 1), ("would_allow", 0)];
        for (verdict, wanted) in wanted {
            assert_eq!(count(verdict), wanted as f64, "{verdict}");
        }
    }
    mesh.finish();
}

/// Files of a root that is valid until `seconds` from now.
fn root(name: &str, seconds: i64) -> [(String, String); 2] {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (
        OffsetDateTime::now_utc() - Duration::seconds(1),
        OffsetDateTime::now_utc() + Duration::seconds(seconds),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    [(format!("{name}-cert.pem"), cert.pem()), (format!("{name}-key.pem"), key.serialize_pem())]
}

/// Puts a file of a root in its place, whole.
fn put(mesh: &Mesh, (name, text): &(String, String)) {
    use std::os::unix::fs::PermissionsExt as _;
    let draft = mesh.lab.ca_dir().join("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&draft, mesh.lab.ca_dir().join(name)).unwrap();
}

/// Waits until both agents have said so once more.
fn said(mesh: &Mesh, text: &str, change: impl FnOnce()) {
    let agents = ["a", "b"].map(|node| mesh.agent(node));
    let from = agents.map(Agent::log_len);
    change();
    for (agent, from) in agents.iter().zip(from) {
        agent.wait_log(from, text, |line| line.as_str().contains(text)).unwrap_or_else(|e| panic!("{e}"));
    }
}

const CHANGED: &str = "the roots have changed";

#[test]
fn the_root_rotates_under_load() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    let _echo = Server::echo(&server, PORTS[0]);
    let acceptor = Acceptor::new(&server, (server.v6.into(), PORTS[1]));
    mesh.start(&[]);
    let traffic = server.addresses().map(|ip| Traffic::start(&client, (ip, PORTS[0]), 1));
    let more = |n: u64| traffic.iter().for_each(|traffic| traffic.more(n));
    let pair = || Open { client: 0, port: 1, goes_on: true, ends: acceptor.pair(&client) };
    let mut old = pair();
    old.talk(1).unwrap();
    let [cert, key] = root("root-2", 3600);
    // Half of it first: nothing is taken, the log names the file.
    let half = (cert.0.clone(), cert.1.chars().take(100).collect());
    said(&mesh, "root-2-cert.pem", || put(&mesh, &half));
    more(5);
    said(&mesh, CHANGED, || put(&mesh, &cert));
    more(20);
    old.talk(2).expect("a root more changes nothing for what is open");
    said(&mesh, CHANGED, || put(&mesh, &key));
    more(20);
    old.talk(3).expect("the old root is still trusted");
    let mut new = pair();
    new.talk(1).unwrap();
    said(&mesh, CHANGED, || {
        for name in ["root-key.pem", "root-cert.pem"] {
            std::fs::remove_file(mesh.lab.ca_dir().join(name)).unwrap();
        }
    });
    more(20);
    for stream in [&mut old.ends.0, &mut old.ends.1] {
        assert_eq!(
            read_to_end(stream),
            (Vec::new(), End::Reset),
            "proven by a root that is trusted no longer"
        );
    }
    let told = || ["a", "b"].map(|node| access(mesh.agent(node), &[("denial.class", "trust-change")]).len());
    // Whoever looks first cuts the tunnel; the other may only see that it is gone.
    let enough = || (told().iter().sum::<usize>() >= 1).then_some(());
    wait_until("a line of who cut it", SOON, enough, || log_of(mesh.agent("b"))).unwrap();
    new.talk(2).expect("proven by the new root");
    for traffic in traffic {
        traffic.end_well("root rotation");
    }
    drop((old, new, acceptor));
    mesh.finish();
}

/// While no root is valid certificates run out: new connections are refused and counted, what is open goes on; with a
/// root that is valid all is well again.
#[test]
fn certificates_run_out_and_come_back() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    let _echo = Server::echo(&server, PORTS[0]);
    let acceptor = Acceptor::new(&server, (server.v4.into(), PORTS[1]));
    std::fs::set_permissions(mesh.lab.ca_dir(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    culvert_tests::binary::ztunnel(); // built before the time runs
    root("root", 20).iter().rev().for_each(|file| put(&mesh, file));
    mesh.start(&[]);
    let mut open = Open { client: 0, port: 1, goes_on: true, ends: acceptor.pair(&client) };
    open.talk(1).unwrap();
    let flags = ["reporter=\"source\"", "response_flags=\"IDENTITY_ERROR\""];
    let to = (server.v6.into(), PORTS[0]);
    let refused = || {
        let stream = connect(&client, to).and_then(|s| s.local_addr()).map(canonical);
        let failed = mesh.agent("a").metric("istio_tcp_connections_failed_total", &flags).unwrap();
        (stream.is_err() || failed > 0.0).then_some(())
    };
    wait_until("expired certificates", SOON, refused, || log_of(mesh.agent("a"))).unwrap();
    let (_, bytes, end) = try_out(&client, to);
    assert!(bytes.is_empty() && end == End::Reset, "{bytes:?}, {end:?}");
    let results = ["side=\"client\"", "result=\"no_certificate\""];
    assert!(mesh.agent("a").metric("culvert_hbone_handshakes_total", &results).unwrap() >= 1.0);
    let expiry = mesh.agent("a").metric("culvert_certificate_expiry_seconds", &[]).unwrap();
    assert!(expiry <= 0.0, "{expiry}");
    open.talk(2).expect("open while the certificates were good");
    root("root-2", 3600).iter().for_each(|file| put(&mesh, file));
    let again = || exchange(&client, to, b"again").ok().filter(|(_, answer)| answer == b"again");
    wait_until("service again", SOON, again, || log_of(mesh.agent("a"))).unwrap();
    drop((open, acceptor));
    mesh.finish();
}
