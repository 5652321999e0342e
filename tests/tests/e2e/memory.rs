//! What an agent's memory grows by, and that it is given back. Bounds are generous: they tell a leak or a buffer for each
//! connection from a few KiB, not the last percent.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use culvert::lab::wait_until;
use culvert_tests::mesh::{Mesh, log_of, private};
use culvert_tests::net::{Acceptor, Server, connect, hash_all, send_pattern};

const MIB: u64 = 1 << 20;
/// Giving back takes a quiet worker and some seconds.
const GIVEN_BACK: Duration = Duration::from_secs(60);

/// Waits until both agents hold no more than `most` bytes beyond what they held before.
fn given_back(mesh: &Mesh, before: [u64; 2], most: u64) {
    for (node, before) in ["a", "b"].into_iter().zip(before) {
        let agent = mesh.agent(node);
        let grown = || private(agent.pid()).saturating_sub(before);
        wait_until(
            "memory given back",
            GIVEN_BACK,
            || (grown() <= most).then_some(()),
            || format!("{} bytes more in the agent of {node}\n{}", grown(), log_of(agent)),
        )
        .unwrap_or_else(|e| panic!("{e}"));
    }
}

fn held(mesh: &Mesh) -> [u64; 2] {
    ["a", "b"].map(|node| private(mesh.agent(node).pid()))
}

#[test]
fn a_thousand_idle_connections_cost_little_and_go_without_a_trace() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let echo = Server::echo(&server, 8080);
    let ask = |stream: &mut TcpStream| {
        let mut word = [0; 4];
        stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut word)).expect("an answer");
    };
    let open = || {
        let mut stream = connect(&client, (server.v4.into(), 8080)).expect("a connection");
        ask(&mut stream);
        stream
    };
    let warm: Vec<TcpStream> = (0..8).map(|_| open()).collect();
    let before = held(&mesh);
    let mut idle: Vec<TcpStream> = (0..1000).map(|_| open()).collect();
    for (node, (now, before)) in ["a", "b"].into_iter().zip(held(&mesh).into_iter().zip(before)) {
        let grown = now.saturating_sub(before);
        assert!(grown < 8 * MIB, "the agent of {node} has grown by {grown} bytes");
    }
    idle.iter_mut().for_each(ask);
    drop((idle, warm));
    given_back(&mesh, before, 2 * MIB);
    drop(echo);
    mesh.finish();
}

#[test]
fn memory_of_bulk_is_given_back() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let before = held(&mesh);
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let streams: Vec<_> = (0..4_u64)
        .map(|n| {
            let (mut near, mut far) = acceptor.pair(&client);
            let sending = std::thread::spawn(move || send_pattern(&mut near, n, 64 * MIB).expect("send"));
            (sending, std::thread::spawn(move || hash_all(&mut far).expect("read")))
        })
        .collect();
    for (sending, reading) in streams {
        let hash = sending.join().unwrap();
        assert_eq!(reading.join().unwrap(), (hash, 64 * MIB));
    }
    drop(acceptor);
    given_back(&mesh, before, 3 * MIB);
    mesh.finish();
}

/// Documents of so many pods, ten to a service and to a policy.
fn documents(pods: usize) -> String {
    let mut text = String::new();
    for pod in 0..pods {
        let (of, team) = (pod / 10, pod / 100);
        if pod % 10 == 0 {
            let _infallible = write!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: app-{of}, namespace: team-{team}}}\n\
                 spec: {{clusterIP: 10.97.{}.{}, selector: {{app: app-{of}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n\
                 ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: app-{of}, namespace: team-{team}}}\n\
                 spec: {{selector: {{matchLabels: {{app: app-{of}}}}}, action: ALLOW, \
                 rules: [{{from: [{{source: {{principals: [\"cluster.local/ns/team-{team}/sa/app-1\"]}}}}]}}]}}\n",
                of / 256,
                of % 256,
            );
        }
        let _infallible = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: app-{of}-{pod}\n  namespace: team-{team}\n  \
             labels: {{app: app-{of}, istio.io/dataplane-mode: ambient}}\nspec: {{nodeName: far-{team}, serviceAccountName: app-{of}}}\n\
             status: {{phase: Running, podIPs: [{{ip: 10.128.{}.{}}}]}}\n",
            pod / 250,
            pod % 250 + 1,
        );
    }
    text
}

#[test]
fn a_workload_costs_a_kilobyte_and_reading_it_leaves_nothing() {
    const PODS: usize = 4000;
    let mut mesh = Mesh::new();
    mesh.captured("a", "client");
    mesh.start(&["--service-range", "10.0.0.0/8"]);
    let before = held(&mesh);
    mesh.settle(|| mesh.put("world.yaml", &documents(PODS)));
    given_back(&mesh, before, 3 * MIB + 1700 * PODS as u64);
    // Once more, beside what is in force.
    let more = documents(PODS) + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: new}\n";
    mesh.settle(|| mesh.put("world.yaml", &more));
    given_back(&mesh, before, 3 * MIB + 1700 * PODS as u64);
    mesh.finish();
}
