//! `culvert why` beside real connections: for each row of the decision tables (out, in by HBONE, in by plaintext) a
//! connection is made, and both the configuration directory and the running agent must explain what it got.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert::lab::{Agent, Pod, PodSpec};
use culvert_common::decide::explain::{Explanation, Outcome, RouteKind};
use culvert_tests::binary;
use culvert_tests::documents::{Service, policy};
use culvert_tests::mesh::{Mesh, one_access};
use culvert_tests::net::{Server, try_out};

/// Limit of one run of `culvert why`, which takes a moment.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs `culvert why` in the namespace of a node; exit status and what it printed.
fn culvert(mesh: &Mesh, node: &str, args: &[&str]) -> (i32, String, String) {
    let host = mesh.lab.host(mesh.node(node)).unwrap();
    let program = binary::culvert();
    let command = host.command(program.to_str().unwrap()).arg("why").args(args);
    let done = command.finish(LIMIT).unwrap();
    (done.status.code().unwrap(), done.stdout.clone(), done.stderr.clone())
}

/// What both ways of asking say of a pair; they must agree.
fn why(mesh: &Mesh, source: &str, destination: &str) -> Result<Explanation, String> {
    let config = mesh.lab.config_dir().display().to_string();
    let offline = ["--config", config.as_str()];
    let answers = [&offline[..], &["--agent", "127.0.0.1:15000"]].map(|how| {
        let args = [&[source, destination, "-o", "json"], how].concat();
        let (status, out, err) = culvert(mesh, "a", &args);
        let answer: Explanation =
            serde_json::from_str(&out).map_err(|e| format!("{args:?}: {status}: {e}: {out}{err}"))?;
        let right = i32::from(answer.verdict != Outcome::Allowed);
        if status == right { Ok(answer) } else { Err(format!("{args:?} ended with {status}: {answer}")) }
    });
    let [offline, live] = answers;
    let (mut offline, live) = (offline?, live?);
    offline.revision = live.revision;
    offline.remarks.clone_from(&live.remarks); // the agent also warns of namespaces that it cannot find
    offline.recent.clone_from(&live.recent); // a directory remembers nothing
    if offline != live {
        return Err(format!("the directory says\n{offline}\nthe agent says\n{live}"));
    }
    Ok(live)
}

struct Row<'a> {
    /// Number in the decision tables, and what it is about.
    name: &'a str,
    from: &'a Pod,
    to: SocketAddr,
    /// How it leaves, if it does.
    kind: RouteKind,
    wanted: Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Allowed,
    Refused,
    /// By this policy, at the destination.
    By(&'static str),
}

fn check(mesh: &Mesh, row: &Row<'_>, server: &Pod) -> Result<(), String> {
    let name = format!("default/{}", row.from.spec.name);
    let answer = why(mesh, &name, &row.to.to_string())?;
    let (own, bytes, end) = try_out(row.from, (row.to.ip(), row.to.port()));
    let allowed = !bytes.is_empty();
    let told = answer.verdict == Outcome::Allowed;
    let wanted = row.wanted == Wanted::Allowed;
    if (allowed, told) != (wanted, wanted) {
        return Err(format!("not {wanted}: the app got {bytes:?} and {end:?}, and why says\n{answer}"));
    }
    let route = &answer.routes[0];
    if route.kind != row.kind {
        return Err(format!("not {:?}: {answer}", row.kind));
    }
    let Some(source) = mesh.agent_of(row.from) else { return by_policy(mesh, row, server, &answer, own) };
    let line = one_access(source, &[("direction", "outbound"), ("src.addr", &own.to_string())])?;
    // The path that was taken is the one that was told.
    let hbone = line.field("dst.hbone_addr");
    if hbone.is_some() != (row.kind == RouteKind::Hbone) || hbone.is_some_and(|to| to != route.target) {
        return Err(format!("another path: {}\n{answer}", line.as_str()));
    }
    if row.kind == RouteKind::Refused && !line.field("error").is_some_and(|e| e.contains(&route.decision)) {
        return Err(format!("another reason: {}\n{answer}", line.as_str()));
    }
    by_policy(mesh, row, server, &answer, own)
}

/// The policy that the destination's log names is the one that is told.
fn by_policy(
    mesh: &Mesh,
    row: &Row<'_>,
    server: &Pod,
    answer: &Explanation,
    own: SocketAddr,
) -> Result<(), String> {
    let Wanted::By(policy) = row.wanted else { return Ok(()) };
    let inbound = answer.routes[0].inbound.as_ref().ok_or("no inbound decision")?;
    let names = inbound.refused_by.join(", ");
    let destination = mesh.agent_of(server).ok_or("no agent")?;
    let line = match mesh.agent_of(row.from) {
        None => one_access(destination, &[("direction", "inbound"), ("src.addr", &own.to_string())])?,
        Some(source) => one_access(destination, &[("denial.id", &denial_id(source, own)?)])?,
    };
    let error = line.field("error").unwrap_or_default();
    if !names.contains(policy)
        || line.field("denial.policy").as_deref() != Some(&names)
        || !error.contains(&inbound.verdict)
    {
        return Err(format!("not {policy}: {}\n{answer}", line.as_str()));
    }
    Ok(())
}

fn denial_id(source: &Agent, own: SocketAddr) -> Result<String, String> {
    let line = one_access(source, &[("direction", "outbound"), ("src.addr", &own.to_string())])?;
    line.field("denial.id").ok_or_else(|| format!("no denial.id: {}", line.as_str()))
}

/// Both addresses of a service.
fn vip(number: u8) -> [IpAddr; 2] {
    [format!("10.96.0.{number}").parse().unwrap(), format!("fd00:96::{number}").parse().unwrap()]
}

fn service(name: &str, number: u8) -> Service {
    let [v4, v6] = vip(number).map(|ip| ip.to_string());
    Service::new(name, &[&v4, &v6])
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table and the world it speaks of")]
fn each_row_of_the_decision_tables_is_explained_as_it_happens() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let outside = mesh.outside("a", "outside");
    let server = mesh.captured("b", "server");
    let strict = mesh.captured("b", "strict");
    let raw = mesh.outside("b", "raw");
    let closed = mesh.outside("b", "closed");
    let off = PodSpec::new("held").captured(true).annotation("ambient.istio.io/redirection", "disabled");
    let held = mesh.pod("b", off);
    let node = mesh.lab.host(mesh.node("b")).unwrap().clone();
    let node_addresses = mesh.lab.host_addresses(mesh.node("b"));
    let _host = Server::greeting(&node, 8080, "hello");
    let servers: Vec<Server> =
        [(&server, 8080), (&server, 9090), (&strict, 8080), (&raw, 8080), (&closed, 8080)]
            .map(|(pod, port)| Server::greeting(pod, port, "hello"))
            .into();
    mesh.put(
        "services.yaml",
        &[
            service("server", 10).selects("app", "server").port(80, "8080"),
            service("raw", 11).selects("app", "raw").port(80, "8080"),
            service("empty", 12).selects("app", "nobody").port(80, "8080"),
            service("nameless", 13).selects("app", "server").port(80, "web"),
            service("own", 14).selects("app", "client").port(80, "15001"),
        ]
        .map(|service| service.yaml())
        .concat(),
    );
    let of = |name: &str, spec: &str| policy("AuthorizationPolicy", "default", name, spec);
    let peers = |name: &str| {
        let spec = format!("selector: {{matchLabels: {{app: {name}}}}}\nmtls: {{mode: STRICT}}");
        policy("PeerAuthentication", "default", name, &spec)
    };
    let not_9090 = "selector: {matchLabels: {app: server}}\naction: DENY\nrules: [{to: [{operation: {ports: [\"9090\"]}}]}]";
    mesh.put("policies.yaml", &[of("not-9090", not_9090), peers("strict"), peers("closed")].concat());
    mesh.start(&[]);
    // Where nobody has told the mesh of it.
    let stranger = mesh.pod("b", PodSpec::new("stranger"));
    let _hello = Server::greeting(&stranger, 8080, "hello");

    let mut wrong = Vec::new();
    for v in [0, 1] {
        use RouteKind::{Direct, Hbone, Held, Passthrough, Plaintext, Refused as Stays};
        use Wanted::{Allowed, By, Refused};
        let to = |pod: &Pod, port: u16| SocketAddr::new(pod.addresses()[v], port);
        let at = |number: u8, port: u16| SocketAddr::new(vip(number)[v], port);
        let row = |name, from, to, kind, wanted| Row { name, from, to, kind, wanted };
        let rows = [
            row("9.1 #1 own address, the agent's port", &client, to(&client, 15001), Stays, Refused),
            row("9.1 #1 by a service", &client, at(14, 80), Stays, Refused),
            row("9.1 #5 no endpoint", &client, at(12, 80), Stays, Refused),
            row("9.1 #5 no such port", &client, at(10, 81), Stays, Refused),
            row("9.1 #5 no target port", &client, at(13, 80), Stays, Refused),
            row("9.1 #8 service", &client, at(10, 80), Hbone, Allowed),
            row("9.1 #8 pod", &client, to(&server, 8080), Hbone, Allowed),
            row("9.1 #9 service", &client, at(11, 80), Plaintext, Allowed),
            row("9.1 #9 pod", &client, to(&raw, 8080), Plaintext, Allowed),
            row("9.1 #9 STRICT and not captured", &client, to(&closed, 8080), Stays, Refused),
            row("9.1 #9 labelled and not captured", &client, to(&held, 8080), Held, Refused),
            row("9.1 #10 a node", &client, SocketAddr::new(node_addresses[v], 8080), Passthrough, Allowed),
            row("9.1 #10 unknown", &client, to(&stranger, 8080), Passthrough, Allowed),
            row("9.2 #5 port of the agent", &client, to(&server, 15006), Hbone, Refused),
            row("9.2 #6 policy", &client, to(&server, 9090), Hbone, By("default/not-9090")),
            row("9.2 #6 STRICT", &client, to(&strict, 8080), Hbone, Allowed),
            row("9.3 #1 port of the agent", &outside, to(&server, 15001), Direct, Refused),
            row("9.3 #3 policy", &outside, to(&server, 9090), Direct, By("default/not-9090")),
            row("9.3 #3 STRICT", &outside, to(&strict, 8080), Direct, By("istio_converted_static_strict")),
            row("9.3 #5 plaintext", &outside, to(&server, 8080), Direct, Allowed),
            row("neither side", &outside, to(&raw, 8080), Direct, Allowed),
        ];
        for row in &rows {
            if let Err(error) =
                check(&mesh, row, if row.to.ip() == strict.addresses()[v] { &strict } else { &server })
            {
                wrong.push(format!("{} {}: {error}", row.name, row.to));
            }
        }
    }
    assert!(wrong.is_empty(), "{} rows differ:\n{}", wrong.len(), wrong.join("\n"));
    drop(servers);
    mesh.finish();
}

#[test]
fn a_refusal_that_has_happened_is_found_by_its_id() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let server = mesh.captured("b", "server");
    let _server = Server::greeting(&server, 8080, "hello");
    let nobody = "selector: {matchLabels: {app: server}}\naction: ALLOW\nrules: [{from: [{source: {principals: [cluster.local/ns/x/sa/y]}}]}]";
    mesh.put("policies.yaml", &policy("AuthorizationPolicy", "default", "only-y", nobody));
    mesh.start(&[]);
    let (own, ..) = try_out(&client, (server.addresses()[0], 8080));
    let id = denial_id(mesh.agent("a"), own).unwrap();
    one_access(mesh.agent("b"), &[("denial.id", &id)]).unwrap();

    // The destination's agent knows who, what and which policy; the explanation is of now.
    let ask = |node: &str| culvert(&mesh, node, &["--denial", &id]);
    let (status, out, err) = ask("b");
    assert_eq!(status, 1, "{out}{err}");
    for part in [
        id.as_str(),
        "from the agent of the destination",
        "default/client",
        "spiffe://cluster.local/ns/default/sa/client",
        "default/server",
        "policy      default/only-y",
        "The same pair now: still refused",
        "add \"cluster.local/ns/default/sa/client\" to principals",
    ] {
        assert!(out.contains(part), "no {part:?} in\n{out}");
    }
    // Who asks about the pair is told of it as well.
    let (_, out, err) = culvert(&mesh, "b", &["client", "server:8080", "--agent", "127.0.0.1:15000"]);
    assert!(out.contains("Failed lately") && out.contains(&id), "{out}{err}");
    // The source's agent knows the same id, but not the policy.
    let (status, out, _) = ask("a");
    assert_eq!(status, 1, "{out}");
    assert!(out.contains("from the agent of the source") && !out.contains("policy      "), "{out}");

    // Once the policy allows it, the memory stays and the explanation changes.
    mesh.settle(|| mesh.lab.take_away("policies.yaml").unwrap());
    let (status, out, _) = ask("b");
    assert_eq!(status, 0, "{out}");
    assert!(out.contains("only-y") && out.contains("let through, so something has changed since"), "{out}");

    // An id that nobody remembers, and an agent that is not there.
    let args = ["--denial", "00ff", "--agent", "127.0.0.1:15000", "--agent", "127.0.0.1:1"];
    let (status, _, err) = culvert(&mesh, "b", &args);
    assert_eq!(status, 2, "{err}");
    assert!(err.contains("127.0.0.1:15000: it remembers 1 refusals since "), "{err}");
    assert!(err.contains("127.0.0.1:1: no agent answers"), "{err}");
    mesh.finish();
}
