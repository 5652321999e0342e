//! What policies let through, seen from both sides: a refused app gets a reset, the server nothing at all, and both
//! agents' log lines are joined by the denial's id.

use std::net::IpAddr;

use culvert::lab::{Agent, Pod};
use culvert_tests::documents::policy;
use culvert_tests::mesh::{Mesh, one_access, one_access_since};
use culvert_tests::net::{End, Server, exchange, try_out};

const PORTS: [u16; 2] = [8080, 9090];

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Allowed,
    /// By a policy whose name contains this.
    Denied(&'static str),
}

use Verdict::{Allowed, Denied};

/// Documents in force, and what each client then gets on each port.
struct Case {
    name: &'static str,
    documents: String,
    /// alice, mallory, the client outside the mesh; ports 8080 and 9090.
    wanted: [[Verdict; 2]; 3],
}

fn peers(name: &str, namespace: &str, spec: &str) -> String {
    policy("PeerAuthentication", namespace, name, spec)
}

fn authorization(name: &str, spec: &str) -> String {
    policy("AuthorizationPolicy", "default", name, spec)
}

fn dry_run(document: String) -> String {
    document.replacen("metadata: {", "metadata: {annotations: {istio.io/dry-run: \"true\"}, ", 1)
}

const SERVER: &str = "selector: {matchLabels: {app: server}}\n";
const ALLOWED: [Verdict; 2] = [Allowed; 2];

fn strict(name: &'static str) -> [[Verdict; 2]; 3] {
    [ALLOWED, ALLOWED, [Denied(name); 2]]
}

#[expect(clippy::too_many_lines, reason = "one table")]
fn cases() -> Vec<Case> {
    let alice = "rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/alice]}}]}]";
    let mallory = "rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/mallory]}}]}]";
    let case = |name, documents: &[String], wanted| Case { name, documents: documents.concat(), wanted };
    vec![
        case("mesh STRICT", &[peers("default", "istio-system", "mtls: {mode: STRICT}")], strict("strict")),
        case("namespace STRICT", &[peers("default", "default", "mtls: {mode: STRICT}")], strict("strict")),
        case(
            "namespace PERMISSIVE under mesh STRICT",
            &[
                peers("default", "istio-system", "mtls: {mode: STRICT}"),
                peers("default", "default", "mtls: {mode: PERMISSIVE}"),
            ],
            [ALLOWED; 3],
        ),
        case(
            "workload DISABLE under namespace STRICT",
            &[
                peers("default", "default", "mtls: {mode: STRICT}"),
                peers("server", "default", &format!("{SERVER}mtls: {{mode: DISABLE}}")),
            ],
            [ALLOWED; 3],
        ),
        case(
            "workload STRICT",
            &[peers("server", "default", &format!("{SERVER}mtls: {{mode: STRICT}}"))],
            strict(""),
        ),
        case(
            "port PERMISSIVE under workload STRICT",
            &[peers(
                "server",
                "default",
                &format!("{SERVER}mtls: {{mode: STRICT}}\nportLevelMtls: {{9090: {{mode: PERMISSIVE}}}}"),
            )],
            [ALLOWED, ALLOWED, [Denied("server"), Allowed]],
        ),
        case(
            "port STRICT under workload PERMISSIVE",
            &[peers(
                "server",
                "default",
                &format!("{SERVER}mtls: {{mode: PERMISSIVE}}\nportLevelMtls: {{9090: {{mode: STRICT}}}}"),
            )],
            [ALLOWED, ALLOWED, [Allowed, Denied("server")]],
        ),
        case(
            "ALLOW one identity",
            &[authorization("only-alice", &format!("action: ALLOW\n{alice}"))],
            [ALLOWED, [Denied("only-alice"); 2], [Denied("only-alice"); 2]],
        ),
        case(
            "ALLOW a port",
            &[authorization("only-9090", "action: ALLOW\nrules: [{to: [{operation: {ports: [\"9090\"]}}]}]")],
            [[Denied("only-9090"), Allowed]; 3],
        ),
        case(
            "DENY one identity",
            &[authorization("no-mallory", &format!("action: DENY\n{mallory}"))],
            [ALLOWED, [Denied("no-mallory"); 2], ALLOWED],
        ),
        case(
            "DENY wins over ALLOW",
            &[
                authorization("only-alice", &format!("action: ALLOW\n{alice}")),
                authorization("not-8080", "action: DENY\nrules: [{to: [{operation: {ports: [\"8080\"]}}]}]"),
            ],
            [
                [Denied("not-8080"), Allowed],
                [Denied("not-8080"), Denied("only-alice")],
                [Denied("not-8080"), Denied("only-alice")],
            ],
        ),
        case(
            "DENY everyone with an empty rule",
            &[authorization("nobody", "action: DENY\nrules: [{}]")],
            [[Denied("nobody"); 2]; 3],
        ),
        case("ALLOW nothing", &[authorization("nothing", "{}")], [[Denied("nothing"); 2]; 3]),
        case(
            "dry-run changes nothing",
            &[
                dry_run(authorization("tried", &format!("action: DENY\n{mallory}"))),
                dry_run(authorization(
                    "tried-too",
                    "action: ALLOW\nrules: [{from: [{source: {namespaces: [none]}}]}]",
                )),
            ],
            [ALLOWED; 3],
        ),
        case("taken away", &[], [ALLOWED; 3]),
    ]
}

struct World {
    mesh: Mesh,
    clients: [Pod; 3],
    server: Pod,
    servers: [Server; 2],
}

struct Row<'a> {
    world: &'a World,
    client: &'a Pod,
    to: (IpAddr, u16),
    app: &'a Server,
}

impl Row<'_> {
    fn run(&self, wanted: Verdict) -> Result<(), String> {
        match wanted {
            Allowed => {
                let (_, answer) = exchange(self.client, self.to, b"allowed").map_err(|e| e.to_string())?;
                if answer == b"allowed" { Ok(()) } else { Err(format!("another answer: {answer:?}")) }
            }
            Denied(by) => self.denied(by),
        }
    }

    fn denied(&self, by: &str) -> Result<(), String> {
        let destination = self.world.mesh.agent_of(&self.world.server).ok_or("no agent")?;
        let reached = || (self.app.seen.accepted(), self.app.seen.bytes());
        let before = (reached(), denials(destination, "destination", self.client));
        let from = destination.log().len();
        let from_source = self.world.mesh.agent_of(self.client).map(|source| source.log().len());
        let (own, bytes, end) = try_out(self.client, self.to);
        if !bytes.is_empty() || end != End::Reset {
            return Err(format!("the app got {bytes:?}, then {end:?}"));
        }
        let own = own.to_string();
        let inbound = match self.world.mesh.agent_of(self.client) {
            None => one_access_since(destination, from, &[("direction", "inbound"), ("src.addr", &own)])?,
            Some(source) => {
                let outbound = [("direction", "outbound"), ("src.addr", &*own)];
                let line = one_access_since(source, from_source.unwrap_or(0), &outbound)?;
                let wanted = [("denial.class", "policy"), ("src.identity", &self.client.identity())];
                if !line.has(&wanted) || line.field("denial.policy").is_some() {
                    return Err(format!(
                        "not {wanted:?}, or a policy's name, at the source: {}",
                        line.as_str()
                    ));
                }
                let id = line.field("denial.id").ok_or("no denial.id at the source")?;
                one_access(destination, &[("denial.id", &id)])?
            }
        };
        let identities = [("denial.class", "policy"), ("dst.identity", &self.world.server.identity())];
        let source = self.world.mesh.agent_of(self.client).map(|_| self.client.identity());
        let named = inbound.field("denial.policy").is_some_and(|policy| policy.contains(by));
        if !named || !inbound.has(&identities) || inbound.field("src.identity") != source {
            return Err(format!(
                "not {by:?}, {identities:?}, {source:?} at the destination: {}",
                inbound.as_str()
            ));
        }
        let after = (reached(), denials(destination, "destination", self.client));
        if after.0 != before.0 || after.1 != before.1 + 1.0 {
            return Err(format!("connections and bytes at the server, denials: {before:?}, then {after:?}"));
        }
        Ok(())
    }
}

/// Failed connections of a client with the flag of a denial.
fn denials(agent: &Agent, reporter: &str, client: &Pod) -> f64 {
    let labels = [
        format!("reporter=\"{reporter}\""),
        format!("source_workload=\"{}\"", client.spec.name),
        "response_flags=\"DENY\"".to_owned(),
    ];
    let labels = labels.each_ref().map(String::as_str);
    agent.metric("istio_tcp_connections_failed_total", &labels).unwrap()
}

#[test]
fn policies_hold_on_tunnels_and_plaintext() {
    let mut mesh = Mesh::new();
    let clients = [mesh.captured("a", "alice"), mesh.captured("a", "mallory"), mesh.outside("a", "outsider")];
    let server = mesh.captured("b", "server");
    let servers = PORTS.map(|port| Server::echo(&server, port));
    mesh.start(&["--log", "info,rbac=debug"]);
    let world = World { mesh, clients, server, servers };
    let mut wrong = Vec::new();
    let mut denied_at_source = 0;
    for case in cases() {
        world.mesh.settle(|| world.mesh.put("policies.yaml", &case.documents));
        for (client, wanted) in world.clients.iter().zip(case.wanted) {
            for ((port, app), wanted) in PORTS.iter().zip(&world.servers).zip(wanted) {
                for ip in world.server.addresses() {
                    let row = Row { world: &world, client, to: (ip, *port), app };
                    if let Err(error) = row.run(wanted) {
                        wrong.push(format!(
                            "{}, {} to {ip}:{port}, {wanted:?}: {error}",
                            case.name, client.spec.name
                        ));
                    }
                    denied_at_source +=
                        u32::from(matches!(wanted, Denied(_)) && client.spec.name != "outsider");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} rows failed:\n{}", wrong.len(), wrong.join("\n"));
    let source = world.mesh.agent("a");
    let counted: f64 = world.clients.iter().map(|client| denials(source, "source", client)).sum();
    assert_eq!(counted, f64::from(denied_at_source), "denials counted at the source");
    let tried = world.mesh.agent("b").log();
    let noted = |policy: &str| {
        tried.iter().any(|line| line.as_str().contains("dry-run") && line.as_str().contains(policy))
    };
    assert!(noted("deny policy match: default/tried") && noted("no allow policies match: default/tried-too"));
    drop(world.servers);
    world.mesh.finish();
}
