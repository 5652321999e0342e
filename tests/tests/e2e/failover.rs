//! One of two endpoints is dead, in one way after the other: no connection fails, and few notice.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use culvert::lab::{Place, Pod, PodSpec, wait_until};
use culvert_tests::documents::{Service, pods};
use culvert_tests::mesh::{Mesh, SOON, log_of};
use culvert_tests::net::{self, exchange};
use culvert_tests::peer::raw::{Frame, kind};
use culvert_tests::peer::server::{Server, Session};
use culvert_tests::peer::world::World;
use culvert_tests::peer::{pki::Claims, tls};
use culvert_tests::traffic::Traffic;
use h2::Reason;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

/// Connections of each case, from so many clients at a time.
const CONNECTIONS: u64 = 200;
const CLIENTS: u64 = 8;

/// How the other endpoint is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dead {
    PortClosed,
    PacketsDropped,
    SilentTls,
    GarbageForTls,
    WrongIdentity,
    NoHttp2,
    ConnectUnanswered,
    NoRoomForStreams,
    Unavailable,
    StreamsRefused,
    GoAwayAtOnce,
    Closes,
    Denies,
}

/// Each way to be dead, and how its failovers are counted; a refusal by policy is none.
const WAYS: [(Dead, Option<&str>); 13] = [
    (Dead::PortClosed, Some("refused")),
    (Dead::PacketsDropped, Some("timeout")),
    (Dead::SilentTls, Some("tls")),
    (Dead::GarbageForTls, Some("tls")),
    (Dead::WrongIdentity, Some("tls")),
    (Dead::NoHttp2, Some("http2")),
    (Dead::ConnectUnanswered, Some("no_answer")),
    (Dead::NoRoomForStreams, Some("no_answer")),
    (Dead::Unavailable, Some("unavailable")),
    (Dead::StreamsRefused, Some("lost")),
    (Dead::GoAwayAtOnce, Some("lost")),
    (Dead::Closes, Some("lost")),
    (Dead::Denies, None),
];

/// A service of its own for each way, over `twin`, which works, and `peer`, which does not.
fn services(world: &World) -> String {
    let ports = |n: usize| {
        let (vip, port) = (format!("10.96.1.{n}"), 9000 + n);
        let service = Service::new(&format!("way-{n}"), &[&vip]).port(80, &port.to_string()).yaml();
        let endpoint = |pod: &Pod| {
            format!(
                "- addresses: [\"{}\"]\n  conditions: {{ready: true}}\n  targetRef: {{kind: Pod, namespace: default, name: {}}}\n",
                pod.v4, pod.spec.name
            )
        };
        format!(
            "{service}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: way-{n}\n  namespace: default\n  \
             labels: {{kubernetes.io/service-name: way-{n}}}\naddressType: IPv4\nports:\n- {{name: p80, port: {port}}}\nendpoints:\n{}{}",
            endpoint(&world.twin),
            endpoint(&world.peer)
        )
    };
    (0..WAYS.len()).map(ports).collect()
}

/// Plays the dead endpoint's port 15008 until it is dropped.
async fn play(world: &World, how: Dead) -> JoinSet<()> {
    let mut playing = JoinSet::new();
    let config = match how {
        Dead::PortClosed | Dead::PacketsDropped => return playing,
        Dead::WrongIdentity => tls::server(&world.pki.issue(&Claims::account("other")), &world.pki, &["h2"]),
        Dead::NoHttp2 => tls::server(&world.leaf(), &world.pki, &[]),
        _ => tls::server(&world.leaf(), &world.pki, &["h2"]),
    };
    let server = Arc::new(Server::with(world, config));
    // Several at a time, so that a slow one does not stand for all.
    for _ in 0..16 {
        let server = Arc::clone(&server);
        playing.spawn(async move {
            let mut open = Vec::new();
            loop {
                open.push(play_one(&server, how).await);
            }
        });
    }
    playing
}

/// What a tunnel leaves open.
type Left = Box<dyn std::any::Any + Send>;

async fn play_one(server: &Server, how: Dead) -> Left {
    match how {
        Dead::SilentTls => Box::new(server.tcp.accept().await),
        Dead::GarbageForTls => {
            let (mut tcp, _) = server.tcp.accept().await;
            let _gone = tcp.write_all(&[0xff; 4096]).await;
            Box::new(tcp)
        }
        Dead::WrongIdentity | Dead::NoHttp2 => Box::new(server.accept().await.is_ok()),
        Dead::GoAwayAtOnce => {
            let (mut raw, _) = server.raw(&[]).await;
            let _gone = raw.send(&Frame::goaway(0, Reason::NO_ERROR)).await;
            Box::new(raw)
        }
        Dead::NoRoomForStreams => {
            let (mut raw, _) = server.raw(&[(3, 0)]).await;
            while raw.find(|f| f.kind == kind::HEADERS).await.is_some() {}
            Box::new(raw)
        }
        Dead::Closes => Box::new(server.raw(&[]).await.1),
        Dead::ConnectUnanswered | Dead::Unavailable | Dead::StreamsRefused | Dead::Denies => {
            let mut session = server.session().await;
            answer_all(&mut session, how).await;
            Box::new(session)
        }
        Dead::PortClosed | Dead::PacketsDropped => unreachable!("nothing is played"),
    }
}

/// Answers each CONNECT of a tunnel that stays.
async fn answer_all(session: &mut Session, how: Dead) {
    let mut kept = Vec::new();
    while let Some((_, mut stream)) = session.next().await {
        match how {
            Dead::Unavailable => stream.refuse(503, &[]),
            Dead::Denies => stream.refuse(401, &[]),
            Dead::StreamsRefused => stream.reset(Reason::REFUSED_STREAM),
            _ => {}
        }
        kept.push(stream);
    }
}

/// Asks so often, from several clients at a time; what failed.
fn ask_often(from: &Place, to: (IpAddr, u16)) -> Vec<String> {
    let (bad, asked) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while asked.fetch_add(1, Ordering::Relaxed) < CONNECTIONS {
                    match exchange(from, to, b"hello") {
                        Ok((_, answer)) if answer == b"hello" => {}
                        other => bad.lock().unwrap().push(format!("{other:?}")),
                    }
                }
            });
        }
    });
    bad.into_inner().unwrap()
}

#[tokio::test]
async fn with_one_of_two_endpoints_dead_no_connection_fails() {
    let world = World::new(&[]);
    world.lab.put("ways.yaml", &services(&world)).unwrap();
    let loaded = || world.metric("culvert_config_revision", &[]) > 1.5;
    wait_until("the services", SOON, || loaded().then_some(()), || "not loaded".to_owned()).unwrap();
    let failovers = |labels: &[&str]| world.metric("culvert_failovers_total", labels);
    for (n, (how, reason)) in WAYS.into_iter().enumerate() {
        let _good = net::Server::echo(&world.twin, 9000 + u16::try_from(n).unwrap());
        let mut playing = play(&world, how).await;
        let route = format!("route add blackhole {}\n", world.pod.v4);
        if how == Dead::PacketsDropped {
            world.peer.ip(&route).unwrap();
        }
        let labels = reason.map(|reason| format!("reason=\"{reason}\""));
        let before = (failovers(&[]), labels.as_deref().map(|label| failovers(&[label])));
        let vip = (format!("10.96.1.{n}").parse().unwrap(), 80);
        let pod = world.pod.clone();
        let bad = tokio::task::spawn_blocking(move || ask_often(&pod, vip)).await.unwrap();
        let gone = (failovers(&[]) - before.0, labels.as_deref().map(|label| failovers(&[label])));
        match (before.1, gone.1) {
            (Some(before), Some(after)) => {
                assert!(bad.is_empty(), "{how:?}: {} of {CONNECTIONS} failed: {:?}", bad.len(), bad.first());
                assert!(after > before, "{how:?}: none was sent elsewhere as {reason:?}");
                // Those that were under way together, and those that came while they failed; not one in two.
                assert!(gone.0 <= (3 * CLIENTS) as f64, "{how:?}: {} tried the dead one first", gone.0);
            }
            _ => {
                assert!(!bad.is_empty(), "{how:?}: a refusal by policy is an answer");
                assert!(gone.0 < 0.5, "{how:?}: it was asked elsewhere");
            }
        }
        playing.shutdown().await;
        if how == Dead::PacketsDropped {
            world.peer.ip(&route.replace("add", "del")).unwrap();
        }
    }
    world.settle().await;
}

/// A captured client, one endpoint on its node and one on the other, behind a service of both families.
fn two(args: &[&str]) -> (Mesh, Pod, [Pod; 2]) {
    let mut mesh = Mesh::new();
    let web = |name: &str| PodSpec::new(name).captured(true).label("app", "web");
    let client = mesh.captured("a", "client");
    let (near, far) = (mesh.pod("a", web("near")), mesh.pod("b", web("far")));
    let service = Service::new("web", &["10.96.0.10", "fd00:96::10"]).selects("app", "web").port(80, "8080");
    mesh.put("services.yaml", &service.yaml());
    mesh.start(args);
    (mesh, client, [near, far])
}

/// An endpoint dies while tunnels to it are open: they are told from those that live by answering nothing.
#[test]
fn an_endpoint_that_freezes_or_vanishes_behind_open_tunnels_costs_no_connection() {
    let (mesh, client, [near, far]) = two(&[]);
    let _echoes = [&near, &far].map(|pod| net::Server::echo(pod, 8080));
    let vips = ["10.96.0.10", "fd00:96::10"].map(|vip| (vip.parse().unwrap(), 80));
    let failovers = || mesh.agent("a").metric("culvert_failovers_total", &[]).unwrap();
    let pid = Pid::from_raw(mesh.agent("b").pid().try_into().unwrap());
    let routes = |what: &str| {
        let all = client.addresses().map(|ip| format!("route {what} blackhole {ip}\n"));
        far.ip(&all.concat()).unwrap();
    };
    let dies = |frozen: bool| if frozen { kill(pid, Signal::SIGSTOP).unwrap() } else { routes("add") };
    let lives = |frozen: bool| if frozen { kill(pid, Signal::SIGCONT).unwrap() } else { routes("del") };
    for (how, frozen) in [("frozen", true), ("vanished", false)] {
        for to in vips {
            let from = far_served(&mesh);
            wait_until(
                "an open tunnel to the other node",
                SOON,
                || {
                    exchange(&client, to, b"hello").unwrap();
                    (far_served(&mesh) > from).then_some(())
                },
                || log_of(mesh.agent("a")),
            )
            .unwrap();
        }
        dies(frozen);
        let before = failovers();
        let bad: Vec<String> = vips.into_iter().flat_map(|to| ask_often(&client, to)).collect();
        lives(frozen);
        let lines = mesh.agent("a").log().into_iter().filter(|line| line.field("error").is_some());
        let lines: String = lines.map(|line| format!("{}\n", line.as_str())).collect();
        assert!(bad.is_empty(), "{how}: {} failed, {:?}\n{lines}", bad.len(), bad.first());
        assert!(failovers() > before, "{how}: nothing noticed");
    }
    mesh.finish();
}

/// Connections that the agent of node b has served.
fn far_served(mesh: &Mesh) -> f64 {
    let labels = ["reporter=\"destination\"", "destination_workload=\"far\""];
    mesh.agent("b").metric("istio_tcp_connections_opened_total", &labels).unwrap()
}

/// Pods are replaced one by one under load; an app stops when its pod is known to be ending and it has answered all.
#[test]
fn a_roll_out_loses_nothing() {
    let (mut mesh, client, mut running) = two(&[]);
    let mut echoes = running.each_ref().map(|pod| net::Server::echo(pod, 8080));
    let vips = ["10.96.0.10", "fd00:96::10"].map(|vip| (vip.parse().unwrap(), 80));
    let traffic = vips.map(|vip| Traffic::start(&client, vip, 3));
    for round in 0..3 {
        for (at, node) in ["a", "b"].into_iter().enumerate() {
            let name = format!("{}-{round}", ["near", "far"][at]);
            let new = mesh.pod(node, PodSpec::new(&name).captured(true).label("app", "web"));
            let echo = net::Server::echo(&new, 8080);
            let publish = |ending: &[&str]| {
                let text = pods(mesh.lab.pods(), &[]);
                let text = ending.iter().fold(text, |text, name| terminating(&text, name));
                mesh.settle(|| mesh.put("pods.yaml", &text));
            };
            let anew = || traffic.iter().for_each(Traffic::all_anew);
            publish(&[]);
            anew();
            let old = std::mem::replace(&mut running[at], new).spec.name;
            publish(&[&old]);
            anew();
            drop(std::mem::replace(&mut echoes[at], echo));
            anew();
            mesh.lab.remove_pod(&old).unwrap();
            let rest = pods(mesh.lab.pods(), &[]);
            mesh.settle(|| mesh.put("pods.yaml", &rest));
        }
    }
    for traffic in traffic {
        traffic.end_well("roll-out");
    }
    mesh.finish();
}

/// The documents with this pod being deleted.
fn terminating(text: &str, name: &str) -> String {
    let line = format!("  name: {name}\n");
    text.replace(&line, &format!("{line}  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n"))
}
