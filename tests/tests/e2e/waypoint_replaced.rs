//! Replacement, replicas and changes of a waypoint while requests go through it: none of them fails.

use std::fmt::Write as _;
use std::time::Duration;

use culvert::lab::{Pod, PodSpec, pause, wait_until};
use culvert_tests::documents;
use culvert_tests::mesh::Mesh;
use culvert_tests::mesh::SOON;
use culvert_tests::stand::{Asking, How, Stand, gateway, routes, service};
use culvert_tests::waypoint::{NAME, Waypoint, pod, server};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
/// All kinds of clients, each twice.
const ALL: [How; 6] = [How::New, How::Again, How::Http2, How::New, How::Again, How::Http2];

/// Another instance of the same Gateway.
fn second_pod(mesh: &mut Mesh) -> Pod {
    let spec = PodSpec::new("waypoint-2").service_account(NAME).captured(false);
    mesh.pod("a", spec.label("gateway.networking.k8s.io/gateway-name", NAME))
}

/// A mesh with two pods for the waypoint, of which `unready` are not ready.
fn two(unready: &[&str]) -> (Mesh, Pod, Pod, [Pod; 2]) {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let places = [pod(&mut mesh, "b"), second_pod(&mut mesh)];
    mesh.put("service.yaml", &service("http"));
    mesh.put("gateway.yaml", &gateway());
    mesh.put("routes.yaml", &routes(""));
    mesh.start(&[]);
    if !unready.is_empty() {
        mesh.settle(|| mesh.put("pods.yaml", &documents::pods(mesh.lab.pods(), unready)));
    }
    (mesh, client, shop, places)
}

#[test]
fn a_waypoint_is_replaced_and_no_request_fails() {
    let (mesh, client, shop, [first, second]) = two(&["waypoint-2"]);
    let _server = server(&shop, 8080, "one");
    let waypoint = Waypoint::start(&mesh, first, &[]);
    let mut stand = Stand { mesh, client, shop: shop.clone(), waypoint };
    stand.wait_bound();
    let asking = Asking::start(&stand.client, &ALL, |n| format!("/{n}"));
    asking.more(100);
    let ready = |stand: &Stand, unready: &[&str]| {
        let pods = documents::pods(stand.mesh.lab.pods(), unready);
        stand.mesh.settle(|| stand.mesh.put("pods.yaml", &pods));
    };
    let next = Waypoint::start(&stand.mesh, second, &[]);
    ready(&stand, &[]);
    asking.more(50);
    // The old one is told to go; that it is not ready any more the agents hear while it drains.
    let mut old = std::mem::replace(&mut stand.waypoint, next);
    old.process.signal(Signal::SIGTERM).unwrap();
    ready(&stand, &["waypoint"]);
    let ended = old.process.wait(SOON).unwrap_or_else(|e| panic!("{e}\n{}", old.log()));
    assert!(ended.success() && old.log().contains("\"tasks_cut\":0"), "{ended}\n{}", old.log());
    asking.more(100);
    let (good, bad) = asking.stop();
    assert!(
        bad.is_empty(),
        "{} of {good} failed: {:?}\n{}\n{}",
        bad.len(),
        &bad[..bad.len().min(5)],
        old.log(),
        stand.logs()
    );
    drop(old);
    stand.finish();
}

#[test]
fn replicas_share_the_load_and_one_may_die() {
    let (mesh, client, shop, [first, second]) = two(&[]);
    let _server = server(&shop, 8080, "one");
    let mut other = Waypoint::start(&mesh, second, &[]);
    let waypoint = Waypoint::start(&mesh, first, &[]);
    let stand = Stand { mesh, client, shop: shop.clone(), waypoint };
    stand.wait_bound();
    let answered = |waypoint: &Waypoint| waypoint.log().matches("\" 200 ").count();
    let both = || {
        let _either = stand.ask("/");
        ([&stand.waypoint, &other].iter().all(|one| answered(one) > 3)).then_some(())
    };
    wait_until("both to have requests", SOON, both, || stand.logs()).unwrap();
    let before = answered(&stand.waypoint);
    other.process.kill();
    // What was on its way through it is lost; what comes after that finds the other one.
    let through = || stand.ask("/").ok().filter(|answer| answer.contains("200 OK"));
    wait_until("an answer", SOON, through, || stand.logs()).unwrap();
    for n in 0..20 {
        let answer = stand.ask("/").unwrap_or_else(|error| error.to_string());
        assert!(answer.contains("200 OK"), "request {n}: {answer}\n{}", stand.logs());
    }
    let told = || (answered(&stand.waypoint) >= before + 20).then_some(());
    wait_until("their lines in the log", SOON, told, || stand.logs()).unwrap();
    drop(other);
    stand.finish();
}

/// So many routes, each of which sets a header to `round`.
fn many_routes(count: usize, round: usize) -> String {
    let mut first = String::new();
    for n in 0..count {
        let _infallible = write!(
            first,
            "  - match: [{{uri: {{exact: /r{n}}}}}]\n    headers: {{response: {{set: {{x-round: r{round}}}}}}}\n    \
             route: [{{destination: {{host: shop}}}}]\n"
        );
    }
    routes(&first)
}

/// A thousand routes change ten times a second; no request fails, connections to endpoints stay, memory is given back.
#[test]
fn a_storm_of_changes_fails_no_request() {
    const ROUTES: usize = 1000;
    const ROUNDS: usize = 100;
    let stand = Stand::new(true, "http", "", &["--worker-threads", "1"]);
    let server = server(&stand.shop, 8080, "one");
    stand.mesh.put("routes.yaml", &many_routes(ROUTES, 0));
    let round = |path: &str| {
        let answer = stand.ask(path).unwrap_or_default().to_ascii_lowercase();
        answer.lines().find_map(|line| line.strip_prefix("x-round: r")?.trim().parse::<usize>().ok())
    };
    wait_until("the routes", SOON, || round("/r999"), || stand.logs()).unwrap();
    let (before, connections) = (stand.rss(), server.seen.accepted());
    let asking =
        Asking::start(&stand.client, &[How::New, How::Again, How::Http2], |n| format!("/r{}", n % ROUTES));
    let mut most = 0;
    for n in 1..=ROUNDS {
        stand.mesh.put("routes.yaml", &many_routes(ROUTES, n));
        pause(Duration::from_millis(100));
        most = most.max(stand.rss());
    }
    let last = || (round("/r0")? == ROUNDS && round("/r999")? == ROUNDS).then_some(());
    wait_until("the last change", SOON, last, || stand.logs()).unwrap();
    asking.more(100);
    let (good, bad) = asking.stop();
    assert!(
        bad.is_empty(),
        "{} of {good} failed: {:?}\n{}",
        bad.len(),
        &bad[..bad.len().min(5)],
        stand.logs()
    );
    let opened = server.seen.accepted() - connections;
    println!(
        "{good} requests, {opened} connections, {} MiB before and {} MiB at the most",
        before / MIB,
        most / MIB
    );
    // No more than were ever needed at once: a change closes none.
    assert!(opened <= 8, "{opened} connections to the endpoint");
    assert!(most < before + 48 * MIB, "{before} bytes before, {most} at the most");
    drop(server);
    stand.finish();
}

/// A waypoint that was ready once stands between, also when it is gone, and for an agent that has been restarted.
#[test]
fn what_is_bound_is_refused_when_the_waypoint_is_gone() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let place = pod(&mut mesh, "b");
    mesh.put("service.yaml", &service("http"));
    mesh.put("gateway.yaml", &gateway());
    mesh.put("routes.yaml", &routes(""));
    mesh.start(&[]);
    let server = server(&shop, 8080, "one");
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let mut stand = Stand { mesh, client, shop, waypoint };
    stand.wait_bound();
    assert!(stand.ask("/").unwrap().contains("200 OK"));
    let served = server.seen.bytes();

    stand.waypoint.process.kill();
    let pods = documents::pods(stand.mesh.lab.pods(), &["waypoint"]);
    stand.mesh.settle(|| stand.mesh.put("pods.yaml", &pods));
    let refused = |stand: &Stand, when: &str| {
        for _ in 0..3 {
            let answer = stand.ask("/").unwrap_or_default();
            assert!(!answer.contains("200 OK"), "{when}: {answer}");
        }
    };
    refused(&stand, "gone");
    for node in ["a", "b"] {
        let mut agent = stand.mesh.forget(node);
        agent.terminate(SOON).unwrap();
        drop(agent);
        stand.mesh.start_node(node, &[]);
    }
    refused(&stand, "gone, after a restart of the agents");
    assert_eq!(server.seen.bytes(), served, "it was never let past");

    stand.waypoint = Waypoint::start(&stand.mesh, stand.waypoint.pod.clone(), &[]);
    let pods = documents::pods(stand.mesh.lab.pods(), &[]);
    stand.mesh.settle(|| stand.mesh.put("pods.yaml", &pods));
    let back = || stand.ask("/").ok().filter(|answer| answer.contains("200 OK"));
    wait_until("the waypoint to be back", SOON, back, || stand.logs()).unwrap();
    drop(server);
    stand.finish();
}
