use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;

const SOON: Duration = Duration::from_secs(5);

/// Two nodes with a pod each.
fn small() -> (Lab, Pod, Pod) {
    let mut lab = Lab::new(LabOptions::default()).unwrap();
    let a = lab.node("a").unwrap();
    let b = lab.node("b").unwrap();
    let one = lab.pod(a, PodSpec::new("one")).unwrap();
    let two = lab.pod(b, PodSpec::new("two")).unwrap();
    (lab, one, two)
}

#[test]
fn pods_of_two_nodes_talk_and_the_wire_sees_it() {
    let (lab, one, two) = small();
    let tap = lab.tap(&[b"marker-text", b"absent-text"]).unwrap();
    for address in two.addresses() {
        let to = SocketAddr::new(address, 9000);
        let listener = two.run(|| TcpListener::bind(to)).unwrap().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            (text, peer.ip())
        });
        one.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, SOON).unwrap();
            stream.write_all(b"a marker-text").unwrap();
        })
        .unwrap();
        let (text, peer) = server.join().unwrap();
        assert_eq!(text, "a marker-text");
        assert!(one.addresses().contains(&peer), "no address translation on the way: {peer}");
    }
    let seen = tap.seen().unwrap();
    assert_eq!(seen.missed, 0);
    assert_eq!(seen.markers, [2, 0]);
    assert_eq!(seen.port(9000).bytes, 26);
}

#[test]
fn two_nodes_and_eight_pods_are_up_in_a_moment() {
    let start = Instant::now();
    let mut lab = Lab::new(LabOptions::default()).unwrap();
    let nodes = [lab.node("a").unwrap(), lab.node("b").unwrap()];
    for (number, node) in (0..8).zip(nodes.into_iter().cycle()) {
        lab.pod(node, PodSpec::new(&format!("p{number}"))).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(lab.pods().len(), 8);
}

#[test]
fn dropping_a_lab_leaves_no_process_no_namespace_no_file() {
    let (lab, one, two) = small();
    let (dir, paths) = (lab.dir().to_owned(), [one.netns_path(), two.netns_path(), lab.wire().netns_path()]);
    let mut process = one.command("sh").args(["-c", "sleep 1000 & sleep 1000"]).spawn().unwrap();
    assert!(process.ended().is_none());
    drop(lab);
    assert!(process.ended().is_some(), "killed with the lab");
    assert!(!dir.exists());
    assert!(paths.iter().all(|p| !p.exists()));
    assert!(matches!(one.run(|| ()), Err(LabError::Io { .. })), "nothing to enter any more");
}

#[test]
fn a_panic_inside_a_pod_reaches_the_test_and_the_lab_is_removed() {
    let dir = std::panic::catch_unwind(|| {
        let (lab, one, _two) = small();
        let dir = lab.dir().to_owned();
        one.run(|| std::panic::panic_any(dir)).unwrap();
    })
    .unwrap_err();
    assert!(!dir.downcast::<PathBuf>().unwrap().exists());
}

#[test]
fn leftovers_of_a_dead_run_are_swept_and_those_of_a_live_one_kept() {
    // Prefixes of their own, so that tests side by side do not sweep each other.
    let prefix = format!("culvert-sweep{}", std::process::id());
    let (dead, alive) = (format!("{prefix}-4194303-abc-x"), format!("{prefix}-{}-abc-x", std::process::id()));
    netns::ip(&format!("netns add {dead}\nnetns add {alive}\n")).unwrap();
    let lab = Lab::new(LabOptions { prefix });
    let kept = netns::path(&alive).exists();
    netns::ip(&format!("netns del {alive}\n")).unwrap();
    lab.unwrap();
    assert!(!netns::path(&dead).exists(), "no process has that id");
    assert!(kept);
}

#[test]
fn a_removed_pod_gives_its_address_back() {
    let (mut lab, one, _two) = small();
    let v4 = one.v4;
    lab.remove_pod("one").unwrap();
    assert!(!one.netns_path().exists());
    let again = lab.pod(NodeId(0), PodSpec { host: Some(10), ..PodSpec::new("again") }).unwrap();
    assert_eq!(again.v4, v4);
}

#[test]
fn programs_run_to_their_end_and_not_longer_than_allowed() {
    let (_lab, one, _two) = small();
    let done = one.command("sh").args(["-c", "echo out; echo err >&2; exit 3"]).finish(SOON).unwrap();
    assert_eq!((done.status.code(), done.stdout.as_str(), done.stderr.as_str()), (Some(3), "out\n", "err\n"));
    let late = one.command("sleep").arg("1000").finish(Duration::from_millis(50));
    assert!(matches!(late, Err(LabError::Timeout { .. })));
    one.wait_empty(SOON).unwrap();
    let missing = one.command("no-such-program").spawn();
    assert!(matches!(missing, Err(LabError::Missing { .. })));
}

#[test]
fn a_listener_is_found_without_connecting() {
    let (_lab, one, _two) = small();
    assert!(!one.is_listening(9001));
    let listener = one.run(|| TcpListener::bind("[::]:9001")).unwrap().unwrap();
    one.wait_for(9001, SOON).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody connected");
}

#[test]
fn documents_describe_what_was_built() {
    let (lab, one, _two) = small();
    lab.publish().unwrap();
    let pods = fs::read_to_string(lab.config_dir().join("pods.yaml")).unwrap();
    for wanted in ["podIP: 10.244.1.10\n", "fd00:244:1::10", "nodeName: a\n", "istio.io/dataplane-mode"] {
        let expected = wanted != "istio.io/dataplane-mode";
        assert_eq!(pods.contains(wanted), expected, "{wanted}: {pods}");
    }
    assert!(pods.contains(&one.netns_path().display().to_string()));
    let nodes = fs::read_to_string(lab.config_dir().join("nodes.yaml")).unwrap();
    assert!(nodes.contains("address: 10.0.0.2\n") && nodes.contains("- fd00:244:2::/64"), "{nodes}");
}
