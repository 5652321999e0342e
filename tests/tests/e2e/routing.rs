//! Where a captured pod's connections go: services, pods, what is unknown, what is the agent's own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Shutdown, SocketAddr};

use culvert::lab::{LogLine, Place, Pod, PodSpec};
use culvert_tests::documents::{Service, pods};
use culvert_tests::mesh::{Mesh, is_access, one_access};
use culvert_tests::net::{End, Server, connect, exchange, read_to_end, try_out};

/// Both addresses of a service.
fn vip(number: u8) -> [IpAddr; 2] {
    [format!("10.96.0.{number}").parse().unwrap(), format!("fd00:96::{number}").parse().unwrap()]
}

fn service(name: &str, number: u8) -> Service {
    let [v4, v6] = vip(number).map(|ip| ip.to_string());
    Service::new(name, &[&v4, &v6])
}

/// A pod with a server that says its name.
fn named(mesh: &mut Mesh, node: &str, spec: PodSpec, port: u16) -> (Pod, Server) {
    let pod = mesh.pod(node, spec);
    let server = Server::greeting(&pod, port, &pod.spec.name);
    (pod, server)
}

/// What the app gets.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// A server's name.
    From(&'static str),
    /// A reset, and this in the agent's log.
    Refused(&'static str),
}

struct Row<'a> {
    name: &'a str,
    from: &'a Pod,
    to: (IpAddr, u16),
    wanted: Outcome,
    /// Fields of the source agent's line.
    logged: &'a [(&'a str, &'a str)],
}

type Fields<'a> = &'a [(&'a str, &'a str)];

fn row<'a>(name: &'a str, from: &'a Pod, to: (IpAddr, u16), wanted: Outcome, logged: Fields<'a>) -> Row<'a> {
    Row { name, from, to, wanted, logged }
}

fn check(mesh: &Mesh, row: &Row<'_>) -> Result<(), String> {
    let (own, bytes, end) = try_out(row.from, row.to);
    let (text, own) = (String::from_utf8_lossy(&bytes).into_owned(), own.to_string());
    let line =
        one_access(mesh.agent_of(row.from).unwrap(), &[("src.addr", &own), ("direction", "outbound")])?;
    let right = match &row.wanted {
        Outcome::From(name) => text == *name && end == End::Fin && line.field("error").is_none(),
        Outcome::Refused(why) => {
            text.is_empty()
                && end == End::Reset
                && line.field("error").is_some_and(|error| error.contains(why))
        }
    };
    if !right || !line.has(row.logged) {
        return Err(format!(
            "not {:?} with {:?} but {text:?}, {end:?}, {}",
            row.wanted,
            row.logged,
            line.as_str()
        ));
    }
    Ok(())
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table and the world it speaks of")]
fn each_kind_of_destination() {
    let mut mesh = Mesh::new();
    let web = |name: &str| PodSpec::new(name).captured(true).label("app", "web");
    let client = mesh.captured("a", "client");
    let (one, _s1) = named(&mut mesh, "a", web("web-1").label("only", "web-1"), 8080);
    let (two, _s2) = named(&mut mesh, "b", web("web-2"), 8081);
    let (raw, _s3) = named(&mut mesh, "b", PodSpec::new("raw").captured(false), 8080);
    let host = mesh.lab.host(mesh.node("b")).unwrap().clone();
    let _s4 = Server::greeting(&host, 8080, "host");
    let ports = |pod: &Pod, port: u16| {
        let containers = format!(
            "spec:\n  containers:\n  - {{name: c, ports: [{{name: http, containerPort: {port}}}]}}\n"
        );
        pod.document(true).replacen("spec:\n", &containers, 1)
    };
    let on_host = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: on-host\n  namespace: default\n  labels: {{istio.io/dataplane-mode: ambient}}\n\
         spec:\n  hostNetwork: true\n  nodeName: b\n  serviceAccountName: on-host\nstatus:\n  phase: Running\n  podIP: {ip}\n  \
         podIPs: [{{ip: {ip}}}]\n  conditions: [{{type: Ready, status: \"True\"}}]\n",
        ip = mesh.lab.host_addresses(mesh.node("b"))[0]
    );
    mesh.start(&[]);
    // Where nobody has told the mesh of it.
    let (stranger, _s5) = named(&mut mesh, "b", PodSpec::new("stranger"), 8080);
    mesh.settle(|| {
        let texts = [pods([&client, &raw], &[]), ports(&one, 8080), ports(&two, 8081), on_host];
        mesh.put("pods.yaml", &texts.concat());
        let services = [
            service("web", 10).selects("app", "web").port(80, "http"),
            service("one", 11).selects("only", "web-1").port(80, "8080"),
            service("raw", 12).selects("app", "raw").port(80, "8080"),
            service("empty", 13).selects("app", "nobody").port(80, "8080"),
            Service::new("headless", &[]).selects("app", "web").port(8080, "8080"),
        ];
        mesh.put("services.yaml", &services.map(|service| service.yaml()).concat());
    });
    let mut wrong = Vec::new();
    for (family, v) in [("v4", 0), ("v6", 1)] {
        use Outcome::{From, Refused};
        let (client, node) = (&client, mesh.lab.host_addresses(mesh.node("b"))[v]);
        let mutual = &[("src.identity", "spiffe://cluster.local/ns/default/sa/client")][..];
        let tunnel = SocketAddr::new(two.addresses()[v], 15008).to_string();
        let service = [("dst.service", "web.default.svc.cluster.local"), ("dst.addr", &tunnel)];
        let node_addr = SocketAddr::new(node, 8080).to_string();
        let raw_addr = SocketAddr::new(raw.addresses()[v], 8080).to_string();
        let host = [("dst.addr", node_addr.as_str())];
        let plain = [("dst.addr", raw_addr.as_str()), ("dst.service", "raw.default.svc.cluster.local")];
        let rows = [
            row("service of one pod", client, (vip(11)[v], 80), From("web-1"), mutual),
            row(
                "a pod of a headless service",
                client,
                (two.addresses()[v], 8081),
                From("web-2"),
                &service[1..],
            ),
            row("service whose endpoint is outside", client, (vip(12)[v], 80), From("raw"), &plain),
            row("pod outside", client, (raw.addresses()[v], 8080), From("raw"), &plain[..1]),
            row("service without endpoints", client, (vip(13)[v], 80), Refused("no healthy upstream"), &[]),
            row("port not in service", client, (vip(10)[v], 99), Refused("has no port 99, only 80"), &[]),
            row("unknown destination", client, (stranger.addresses()[v], 8080), From("stranger"), &[]),
            row("node and its host-network pod", client, (node, 8080), From("host"), &host),
            row("itself through its service", &one, (vip(11)[v], 80), From("web-1"), &[]),
            row("nobody listens", client, (one.addresses()[v], 9), Refused("503"), &[]),
            row("nobody listens outside", client, (raw.addresses()[v], 9), Refused("onnection refused"), &[]),
            row("the agent's port of another pod", client, (two.addresses()[v], 15008), Refused("503"), &[]),
        ];
        for row in &rows {
            if let Err(error) = check(&mesh, row) {
                wrong.push(format!("{} over {family}: {error}", row.name));
            }
        }
        // The pods declare the port's name with different numbers.
        let named: BTreeMap<String, u32> = counts(client, (vip(10)[v], 80), 30);
        if named.len() != 2 || named.contains_key("") {
            wrong.push(format!("service with a named target over {family}: {named:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} rows failed:\n{}", wrong.len(), wrong.join("\n"));
    mesh.finish();
}

/// Answers of `n` connections, by text.
fn counts(from: &Place, to: (IpAddr, u16), n: u32) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        let (_, bytes, _) = try_out(from, to);
        *counts.entry(String::from_utf8_lossy(&bytes).into_owned()).or_insert(0) += 1;
    }
    counts
}

#[test]
fn endpoints_are_chosen_by_readiness_and_nearness() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let far_client = mesh.captured("b", "far-client");
    let web = |name: &str| PodSpec::new(name).captured(true).label("app", "web");
    let _servers = [("a", "near-1"), ("a", "near-2"), ("b", "far-1")]
        .map(|(node, name)| named(&mut mesh, node, web(name), 8080).1);
    mesh.start(&[]);
    let services = [
        service("all", 20).selects("app", "web").port(80, "8080"),
        service("local", 21).selects("app", "web").port(80, "8080").with("internalTrafficPolicy", "Local"),
        service("node", 22)
            .selects("app", "web")
            .port(80, "8080")
            .with("trafficDistribution", "PreferSameNode"),
        service("zone", 23).selects("app", "web").port(80, "8080").with("trafficDistribution", "PreferClose"),
    ];
    mesh.settle(|| mesh.put("services.yaml", &services.map(|service| service.yaml()).concat()));
    let (all, near, far) = (&["far-1", "near-1", "near-2"][..], &["near-1", "near-2"][..], &["far-1"][..]);
    let none = &[""][..];
    let mut wrong = Vec::new();
    let mut phase = |phase: &str, rows: &[(&Pod, u8, &[&str])]| {
        for (from, number, wanted) in rows {
            let answers = counts(from, (vip(*number)[0], 80), 40);
            let names: Vec<&str> = answers.keys().map(String::as_str).collect();
            // Of 40 picks each of three misses fewer than 3 once in a million.
            if names != *wanted || answers.values().any(|n| *n < 3) {
                wrong.push(format!(
                    "{phase}, service {number} from {}: {answers:?}, not {wanted:?}",
                    from.spec.name
                ));
            }
        }
    };
    let near_rows: [(&Pod, u8, &[&str]); 5] = [
        (&client, 20, all),
        (&client, 21, near),
        (&client, 22, near),
        (&client, 23, near),
        (&far_client, 21, far),
    ];
    phase("all ready", &near_rows);
    let publish = |unready: &[&str]| {
        let text = pods(mesh.lab.pods(), unready);
        mesh.settle(|| mesh.put("pods.yaml", &text));
    };
    publish(&["near-1"]);
    let one: &[&str] = &["near-2"];
    phase("near-1 unready", &[(&client, 20, &["far-1", "near-2"]), (&client, 21, one), (&client, 22, one)]);
    publish(&["near-1", "near-2"]);
    phase("none near", &[(&client, 20, far), (&client, 21, none), (&client, 22, far), (&client, 23, far)]);
    publish(&[]);
    phase("all ready again", &near_rows);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    mesh.finish();
}

/// Direct connections to the agent's own ports reach no app, loop nowhere and harm nobody.
#[test]
fn the_agents_ports_are_no_way_in() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let outside = mesh.outside("a", "outside");
    let target = mesh.captured("b", "target");
    let server = Server::echo(&target, 8080);
    mesh.start(&[]);
    let lines =
        |mesh: &Mesh| ["a", "b"].map(|node| mesh.agent(node).log().iter().filter(|l| is_access(l)).count());
    let mut tries = 0;
    let loopback: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    for port in [15001, 15006, 15008] {
        let from_outside =
            [&client, &outside].into_iter().flat_map(|from| target.addresses().map(|to| (from, to)));
        let from_inside = target.addresses().into_iter().chain(loopback).map(|to| (&target, to));
        for (from, to) in from_outside.chain(from_inside) {
            tries += 1;
            let name = format!("{} to {to}:{port}", from.spec.name);
            let Ok(mut stream) = connect(from, (to, port)) else { continue };
            let _refused =
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.shutdown(Shutdown::Write));
            let (bytes, end) = read_to_end(&mut stream);
            // A TLS alert is an answer of the agent's, nothing of the app's.
            assert!(bytes.len() < 10, "{name}: {:?}", String::from_utf8_lossy(&bytes));
            assert!(matches!(end, End::Reset | End::Fin), "{name}: {end:?}");
        }
    }
    assert_eq!(server.seen.accepted(), 0, "the app was reached");
    // A loop would have written lines without end; each try has at most one at each agent.
    let counted = lines(&mesh);
    assert!(counted.iter().all(|n| *n <= 2 * tries), "{counted:?} log lines of {tries} tries");
    let (_, answer) = exchange(&client, (target.addresses()[0], 8080), b"still here").unwrap();
    assert_eq!(answer, b"still here");
    let recursive =
        |line: &LogLine| line.field("error").is_some_and(|error| error.contains("recursive call"));
    mesh.agent("b").wait_log(0, "a recursive call", recursive).unwrap();
    mesh.finish();
}
