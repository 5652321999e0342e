//! {captured, uncaptured} client × server × {same node, other node} × {v4, v6}, in shared and in dedicated mode.

use std::net::{IpAddr, SocketAddr};

use culvert::lab::{Agent, LogLine, Pod};
use culvert_tests::mesh::{Mesh, is_access, one_access, same_family};
use culvert_tests::net::{Server, exchange};

const PORT: u16 = 8080;

struct World {
    mesh: Mesh,
    clients: Vec<Pod>,
    servers: Vec<(Pod, Server)>,
}

fn world() -> World {
    let mut mesh = Mesh::new();
    let clients = vec![mesh.captured("a", "client-in"), mesh.outside("a", "client-out")];
    let pods = [
        mesh.captured("a", "near-in"),
        mesh.outside("a", "near-out"),
        mesh.captured("b", "far-in"),
        mesh.outside("b", "far-out"),
    ];
    let servers = pods.into_iter().map(|pod| (pod.clone(), Server::echo(&pod, PORT))).collect();
    World { mesh, clients, servers }
}

/// One row: a client, a server, the server's address.
struct Row<'a> {
    world: &'a World,
    client: &'a Pod,
    server: &'a Pod,
    seen: &'a Server,
    to: IpAddr,
}

impl Row<'_> {
    fn is_mutual(&self) -> bool {
        self.client.spec.captured == Some(true) && self.server.spec.captured == Some(true)
    }

    fn run(&self) -> Result<(), String> {
        let text = format!("from {} to {}", self.client.spec.name, self.to);
        let (own, answer) =
            exchange(self.client, (self.to, PORT), text.as_bytes()).map_err(|e| e.to_string())?;
        if answer != text.as_bytes() {
            return Err(format!("another answer: {:?}", String::from_utf8_lossy(&answer)));
        }
        let expected = same_family(self.client, self.to);
        match self.seen.seen.peers().last() {
            Some(peer) if peer.ip() == expected => {}
            peer => return Err(format!("the server saw {peer:?}, not {expected}")),
        }
        let length = text.len().to_string();
        let source = self.world.mesh.agent_of(self.client);
        let outbound = source.map(|agent| self.outbound(agent, own, &length)).transpose()?;
        let destination = self.world.mesh.agent_of(self.server);
        destination.map(|agent| self.inbound(agent, (own, outbound.as_ref()), &length)).transpose()?;
        Ok(())
    }

    fn outbound(&self, agent: &Agent, own: SocketAddr, length: &str) -> Result<LogLine, String> {
        let line = one_access(agent, &[("direction", "outbound"), ("src.addr", &own.to_string())])?;
        self.check(line, length)
    }

    fn inbound(
        &self,
        agent: &Agent,
        of: (SocketAddr, Option<&LogLine>),
        length: &str,
    ) -> Result<LogLine, String> {
        let own = of.0.to_string();
        let trace = of.1.and_then(|line| line.field("trace.id"));
        // Streams share a tunnel, whose address is not the app's: the trace joins the two lines.
        let key = trace.as_deref().map_or(("src.addr", own.as_str()), |trace| ("trace.id", trace));
        let line = one_access(agent, &[("direction", "inbound"), key])?;
        self.check(line, length)
    }

    fn check(&self, line: LogLine, length: &str) -> Result<LogLine, String> {
        let target = SocketAddr::new(self.to, PORT).to_string();
        let (client, server) = (self.client.identity(), self.server.identity());
        let tunnel = SocketAddr::new(self.to, 15008).to_string();
        let mut wanted = vec![
            ("src.workload", self.client.spec.name.as_str()),
            ("dst.workload", self.server.spec.name.as_str()),
        ];
        wanted.extend([("bytes_sent", length), ("bytes_recv", length)]);
        if self.is_mutual() {
            wanted.extend([("src.identity", client.as_str()), ("dst.identity", server.as_str())]);
            wanted.extend([("dst.addr", tunnel.as_str()), ("dst.hbone_addr", target.as_str())]);
        } else {
            wanted.push(("dst.addr", target.as_str()));
        }
        let wrong: Vec<_> =
            wanted.iter().filter(|(key, value)| line.field(key).as_deref() != Some(value)).collect();
        let odd = !self.is_mutual()
            && (line.field("src.identity").is_some() || line.field("dst.identity").is_some());
        if !wrong.is_empty() || odd || line.field("error").is_some() {
            return Err(format!(
                "the log line has not {wrong:?} (identities without a tunnel: {odd}): {}",
                line.as_str()
            ));
        }
        Ok(line)
    }

    /// Opened and closed counts of this pair at its agents: one each for IPv4 and IPv6.
    fn counters(&self) -> Result<(), String> {
        let security = if self.is_mutual() { "mutual_tls" } else { "unknown" };
        let sides = [("source", self.client), ("destination", self.server)];
        for (reporter, pod) in sides {
            let Some(agent) = self.world.mesh.agent_of(pod) else { continue };
            let labels = [
                format!("reporter=\"{reporter}\""),
                format!("source_workload=\"{}\"", self.client.spec.name),
                format!("destination_workload=\"{}\"", self.server.spec.name),
            ];
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let secured = format!("connection_security_policy=\"{security}\"");
            let with_security: Vec<&str> = labels.iter().copied().chain([secured.as_str()]).collect();
            for metric in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
                let count = |labels: &[&str]| agent.metric(metric, labels).map_err(|e| e.to_string());
                let counts = (count(&labels)?, count(&with_security)?);
                if counts != (2.0, 2.0) {
                    return Err(format!("{metric} at the {reporter}: {counts:?}, not 2 with {secured}"));
                }
            }
            let failed =
                agent.metric("istio_tcp_connections_failed_total", &labels).map_err(|e| e.to_string())?;
            if failed != 0.0 {
                return Err(format!("{failed} failed connections at the {reporter}"));
            }
        }
        Ok(())
    }
}

fn run(world: World) {
    let mut wrong = Vec::new();
    let mut lines = 0;
    for client in &world.clients {
        for (server, seen) in &world.servers {
            for to in server.addresses() {
                let row = Row { world: &world, client, server, seen, to };
                let family = if to.is_ipv4() { "v4" } else { "v6" };
                let name = format!("{} to {} over {family}", client.spec.name, server.spec.name);
                let sides = [client, server].iter().filter(|pod| pod.spec.captured == Some(true)).count();
                lines += sides;
                let result = row.run().and_then(|()| if to.is_ipv6() { row.counters() } else { Ok(()) });
                if let Err(error) = result {
                    wrong.push(format!("{name}: {error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} rows failed:\n{}", wrong.len(), wrong.join("\n"));
    let agents: Vec<&Agent> = {
        let pods = world.clients.iter().chain(world.servers.iter().map(|(pod, _)| pod));
        let mut agents: Vec<&Agent> = pods.filter_map(|pod| world.mesh.agent_of(pod)).collect();
        agents.sort_by_key(|agent| agent.pid());
        agents.dedup_by_key(|agent| agent.pid());
        agents
    };
    let logged: usize =
        agents.iter().map(|agent| agent.log().iter().filter(|line| is_access(line)).count()).sum();
    assert_eq!(logged, lines, "one line for each side of each connection and no other");
    drop(world.servers);
    world.mesh.finish();
}

#[test]
fn every_pair_talks_in_shared_mode() {
    let mut world = world();
    world.mesh.start(&[]);
    run(world);
}

#[test]
fn every_pair_talks_in_dedicated_mode() {
    let mut world = world();
    world.mesh.start_dedicated(&[]);
    run(world);
}
