//! The agent as a node of another mesh's Kubernetes knows it: its arguments, settings and log, and the change of places
//! with another agent.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use culvert::lab::{Agent, AgentOptions, Pod, wait_until};
use culvert_common::zds::Request;
use culvert_tests::binary;
use culvert_tests::dns::{A, Way, addresses, ask_at, query};
use culvert_tests::documents::Service;
use culvert_tests::mesh::{Mesh, SOON, log_of, options};
use culvert_tests::net::{Server, exchange};
use culvert_tests::zds_agent::{ZdsAgent, add};
use socket2::{Domain, Socket, Type};

const PORTS: [u16; 3] = [15001, 15006, 15008];

/// What the discovery server would tell of another agent's pod.
const OTHER_AGENT: &str = "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: zt-2\n  namespace: istio-system\n  \
    uid: uid-zt-2\nspec:\n  nodeName: a\n  serviceAccountName: ztunnel\nstatus:\n  phase: Running\n  podIP: 10.244.1.250\n  \
    podIPs: [{ip: 10.244.1.250}]\n";

/// A listening socket as the reference node proxy makes it.
fn foreign(pod: &Pod, port: u16) -> std::io::Result<TcpListener> {
    pod.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        socket.listen(128)?;
        Ok(socket.into())
    })
    .map_err(std::io::Error::other)?
}

/// Where a pod's DNS queries are redirected to.
const DNS: [&str; 2] = ["127.0.0.1:15053", "[::1]:15053"];

/// Sockets for DNS queries as the reference node proxy makes them.
fn foreign_dns(pod: &Pod) -> std::io::Result<Vec<Socket>> {
    let bind = |addr: &str, kind| {
        let addr: SocketAddr = addr.parse().map_err(std::io::Error::other)?;
        let socket = Socket::new(Domain::for_address(addr), kind, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        if kind == Type::STREAM {
            socket.listen(128)?;
        }
        Ok(socket)
    };
    let all = || DNS.iter().flat_map(|at| [Type::DGRAM, Type::STREAM].map(|kind| bind(at, kind))).collect();
    pod.run(all).map_err(std::io::Error::other)?
}

/// Whether a name of the mesh is answered, by both families and both ways.
fn answers(pod: &Pod) {
    let asked = query(7, "web.default.svc.cluster.local", A, false);
    for at in DNS {
        let at: SocketAddr = at.parse().unwrap();
        for way in [Way::Udp, Way::Tcp] {
            let reply = ask_at(pod, at, way, &asked, SOON).unwrap_or_else(|e| panic!("{at} by {way:?}: {e}"));
            assert_eq!(addresses(&reply), ["10.96.0.10"], "{at} by {way:?}");
        }
    }
}

fn proxy(mesh: &Mesh, socket: &Path, args: &[&str]) -> Agent {
    let own = ["--termination-deadline", "1s", "--original-source", "false"];
    let mut options = AgentOptions { part: Some("proxy".to_owned()), ..options(&own) };
    options.args.extend(["--zds-socket".to_owned(), socket.display().to_string()]);
    options.args.extend(args.iter().map(|&arg| arg.to_owned()));
    mesh.lab.start_agent(mesh.node("a"), &options).expect("start a proxy")
}

fn wait_log(agent: &Agent, wanted: &str) {
    let is_there = || agent.log().iter().any(|line| line.as_str().contains(wanted)).then_some(());
    wait_until(wanted, SOON, is_there, || log_of(agent)).unwrap();
}

#[test]
fn ports_are_shared_with_another_agent_only_while_it_is_there() {
    let mut mesh = Mesh::new();
    let (pod, peer) = (mesh.captured("a", "one"), mesh.captured("b", "peer"));
    mesh.put("services.yaml", &Service::new("web", &["10.96.0.10"]).port(80, "80").yaml());
    mesh.lab.publish().unwrap();
    mesh.start_node("b", &[]);
    let socket = mesh.lab.dir().join("zds").join("z.sock");
    let held: Vec<_> = PORTS.iter().map(|port| foreign(&pod, *port).unwrap()).collect();
    let held = (held, foreign_dns(&pod).unwrap());
    // Unless told otherwise: no. What would help is said.
    let agent = ZdsAgent::new(&socket);
    let alone = proxy(&mesh, &socket, &[]);
    let refused = agent.accept().ask(&add("u1", &pod)).unwrap().unwrap_err();
    assert!(refused.contains("INPOD_PORT_REUSE"), "{refused}");
    drop(alone);

    let own = ["--pod-name", "zt-1", "--pod-namespace", "istio-system", "--service-account", "ztunnel"];
    let mut shares = proxy(&mesh, &socket, &[&["--port-reuse", "true"][..], &own].concat());
    let link = agent.accept();
    link.done(&add("u1", &pod));
    link.done(&Request::SnapshotSent);
    wait_log(&shares, "another agent's sockets are in this pod too");
    drop(foreign(&pod, 15006).expect("a shared port is open to all"));
    drop(foreign_dns(&pod).expect("as are those for DNS"));
    // The other agent goes: the ports are this one's alone, and served.
    drop(held);
    wait_log(&shares, "this agent's alone again");
    for port in PORTS {
        assert_eq!(foreign(&pod, port).unwrap_err().kind(), std::io::ErrorKind::AddrInUse, "{port}");
    }
    let is_alone = || foreign_dns(&pod).is_err().then_some(());
    wait_until("the DNS ports are this agent's", SOON, is_alone, || log_of(&shares)).unwrap();
    answers(&pod);
    let _echo = Server::echo(&pod, 8080);
    exchange(&peer, (pod.v4.into(), 8080), b"after the ports were opened anew").unwrap();

    // Back: another agent's pod comes to the node, and may stand beside this one until it goes again.
    mesh.put("other-agent.yaml", OTHER_AGENT);
    wait_log(&shares, "another agent of this node may use the pod's ports");
    let held: Vec<_> = PORTS.iter().map(|port| foreign(&pod, *port).unwrap()).collect();
    drop((held, foreign_dns(&pod).unwrap()));
    exchange(&peer, (pod.v4.into(), 8080), b"while the ports are shared").unwrap();
    mesh.put("other-agent.yaml", "");
    let is_alone = || (foreign(&pod, 15006).is_err() && foreign_dns(&pod).is_err()).then_some(());
    wait_until("the ports are this agent's again", SOON, is_alone, || log_of(&shares)).unwrap();
    exchange(&peer, (pod.v4.into(), 8080), b"once more").unwrap();
    answers(&pod);
    assert!(shares.terminate(SOON).unwrap().success());
    mesh.finish();
}

#[test]
fn the_log_says_in_plain_lines_what_is_not_supported() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    mesh.lab.publish().unwrap();
    let env =
        [("TLS12_ENABLED", "true"), ("UNSTABLE_ENABLE_SOCKS5", "true"), ("COMPLIANCE_POLICY", "fips-140-2")];
    let mut options = AgentOptions { part: Some("proxy".to_owned()), ..options(&[]) };
    options.args.retain(|arg| arg != "--log-format" && arg != "json");
    options.env.extend(env.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let agent = mesh.lab.start_agent(node, &options).unwrap();
    for (name, value) in env {
        wait_log(&agent, &format!("{name}={value} is not supported"));
    }
    // RFC 3339 time, level, scope, message; then fields.
    let log = agent.log();
    let line = log.iter().find(|line| line.as_str().contains("TLS12_ENABLED")).unwrap().as_str();
    let columns: Vec<_> = line.split('\t').collect();
    assert_eq!(&columns[1..3], ["warn", "app"], "{line}");
    assert!(columns[0].len() == 27 && columns[0].ends_with('Z'), "{line}");
    drop(agent);
    mesh.finish();
}

#[test]
fn an_agent_that_is_no_proxy_leaves_pods_alone() {
    let mut mesh = Mesh::new();
    let (pod, peer) = (mesh.captured("a", "one"), mesh.outside("b", "peer"));
    mesh.start(&["--enable-proxy", "false"]);
    wait_log(mesh.agent("a"), "Task 'state manager' complete");
    let _echo = Server::echo(&pod, 8080);
    exchange(&peer, (pod.v4.into(), 8080), b"around the agent").unwrap();
    assert!(PORTS.iter().all(|port| !pod.is_listening(*port)));
    let metric = |name: &str| mesh.agent("a").metric(name, &[]).unwrap();
    assert_eq!(metric("istio_tcp_connections_opened_total"), 0.0);
    assert!(metric("culvert_config_revision") > 0.0, "the state is followed");
    mesh.finish();
}

/// What the reference's chart says, and what is wrong in it, before anything is touched.
#[test]
fn settings_that_cannot_be_used_are_named() {
    for (args, env, wanted) in [
        (&["proxy", "ztunnel"][..], ("INPOD_PORT_REUSE", "maybe"), "INPOD_PORT_REUSE"),
        (&["proxy", "ztunnel"], ("FAKE_CA", "true"), "FAKE_CA is true"),
        (&["proxy", "ztunnel"], ("XDS_ADDRESS", "not a url"), "XDS_ADDRESS"),
        (&["proxy", "ztunnel"], ("PROXY_CONFIG", "concurrency: many"), "concurrency of PROXY_CONFIG"),
        (&["proxy", "ztunnel"], ("ISTIO_METAJSON_LABELS", "{"), "ISTIO_METAJSON_LABELS"),
        (&["proxy", "sidecar"], ("RUST_LOG", "info"), "possible values: ztunnel"),
    ] {
        let output = Command::new(binary::ztunnel()).args(args).env(env.0, env.1).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(wanted), "{args:?} {env:?}: {told}");
    }
}
