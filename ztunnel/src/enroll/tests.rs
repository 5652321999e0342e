//! The agent's side against hand-made proxies, over real sockets and in real network namespaces: needs root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use culvert_common::model::Model;
use culvert_common::net::rules::{CaptureSpec, RulesError};
use culvert_common::net::seqpacket::{SeqPacket, SeqPacketListener};
use culvert_common::types::WorkloadUid;
use culvert_common::zds::{Ack, Channel, Request, ZdsError};
use nix::sched::{CloneFlags, unshare};
use tokio::time::timeout;

use super::*;

/// What open connections of a pod that leaves get.
const GRACE: Duration = Duration::from_secs(3);
/// Longest wait for what should happen; the clock is paused, so only the agent's own limits ever pass.
const SOON: Duration = Duration::from_secs(60);

/// A network namespace with a path, as long as it lives.
struct Namespace {
    path: PathBuf,
    netns: NetNs,
    end: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    fn new() -> Self {
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: this test needs root");
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("the program ip");
            assert!(up.success());
            tell.send(nix::unistd::gettid()).unwrap();
            let _end = ended.recv();
        });
        let path = PathBuf::from(format!("/proc/self/task/{}/ns/net", told.recv().unwrap()));
        let netns = NetNs::open(&path).unwrap();
        Self { path, netns, end: Some(end), thread: Some(thread) }
    }

    fn is_captured(&self) -> bool {
        match self.netns.run(|| rules::verify(&CaptureSpec::default())).unwrap() {
            Ok(()) => true,
            Err(RulesError::Differs(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().map(JoinHandle::join);
    }
}

fn pod(name: &str, netns: &Path) -> LocalPod {
    LocalPod {
        uid: format!("uid-{name}").into(),
        workload: WorkloadUid(format!("Kubernetes//Pod/shop/{name}").into()),
        namespace: "shop".into(),
        name: name.into(),
        addresses: Vec::new(),
        netns: Some(netns.to_owned()),
        bypass_inbound: false,
        reroute_interfaces: Vec::new(),
        dns: None,
    }
}

/// Enrolment at a socket of its own.
struct Node {
    state: Arc<State>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    scope: Scope,
    socket: PathBuf,
}

impl Node {
    fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("culvert-enroll-{}-{number}", std::process::id()));
        Self::start_at(folder.join("zds.sock"))
    }

    fn start_at(socket: PathBuf) -> Self {
        let node = Self {
            state: State::new(),
            metrics: Metrics::new("test"),
            readiness: Readiness::new(),
            scope: Scope::new(),
            socket,
        };
        let peers = Peers::Listener(SeqPacketListener::bind(&node.socket, 0o600).unwrap());
        node.run(peers);
        node
    }

    fn run(&self, peers: Peers) {
        let options = EnrollOptions {
            ipv6: true,
            mark: 0x539,
            adopt: false,
            grace: GRACE,
            audit: Duration::from_secs(10),
            dns: Some(DnsCapture { port: 15053, default: true }),
        };
        let owned = (self.readiness.clone(), self.scope.clone());
        let enroll = Enroll::new(options, Arc::clone(&self.state), Arc::clone(&self.metrics), owned, peers);
        self.scope.spawn(enroll.run());
    }

    fn publish(&self, pods: &[LocalPod]) {
        self.state.publish(Model { pods: pods.to_vec(), ..Model::default() });
    }

    /// A proxy that has said hello.
    async fn proxy(&self) -> Channel {
        let channel = Channel::new(SeqPacket::connect(&self.socket).unwrap());
        channel.send_hello().await.unwrap();
        channel
    }

    fn metric(&self, line: &str) -> Option<f64> {
        let text = self.metrics.encode(false);
        text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
    }

    /// Waits until a metric has a value.
    async fn sees(&self, line: &str, value: f64) {
        let seen = async {
            while self.metric(line).is_none_or(|now| (now - value).abs() > 0.1) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = timeout(SOON, seen).await.is_ok();
        assert!(in_time, "{line} is {:?}, not {value}", self.metric(line));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.scope.cut();
        let _gone = self.socket.parent().map(std::fs::remove_dir_all);
    }
}

/// Takes the next request, as words, and answers it.
async fn next(proxy: &Channel, answer: Ack) -> String {
    let request = timeout(SOON, proxy.recv_request()).await.expect("a request in time").unwrap();
    let words = match request.expect("a request, not the end") {
        Request::Add { uid, info, netns } => {
            NetNs::from_fd(netns).unwrap();
            format!("add {uid} {}/{}/{}", info.namespace, info.name, info.service_account)
        }
        Request::Keep { uid } => format!("keep {uid}"),
        Request::Del { uid, grace } => {
            assert_eq!(grace, Some(GRACE), "how long the rest of the rules stays");
            format!("del {uid}")
        }
        Request::SnapshotSent => "snapshot sent".into(),
    };
    proxy.send_ack(&answer).await.unwrap();
    words
}

async fn takes(proxy: &Channel, requests: &[&str]) {
    for wanted in requests {
        assert_eq!(next(proxy, Ok(())).await, *wanted);
    }
}

/// Waits for the end of a connection.
async fn ends(proxy: &Channel) {
    let ended = timeout(SOON, async {
        loop {
            match proxy.recv_request().await {
                Ok(None) | Err(ZdsError::Socket(_)) => return,
                _ => {}
            }
        }
    });
    ended.await.expect("the connection is ended");
}

#[tokio::test(start_paused = true)]
async fn pods_are_handed_over_before_they_are_captured() {
    let (one, other, node) = (Namespace::new(), Namespace::new(), Node::start());
    let proxy = node.proxy().await;
    node.publish(&[pod("a", &one.path), pod("b", &other.path)]);
    assert!(!one.is_captured());
    takes(&proxy, &["add uid-a shop/a/", "add uid-b shop/b/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 2.0).await;
    assert!(one.is_captured() && other.is_captured() && node.readiness.is_ready());
    // Live, from here on.
    let third = Namespace::new();
    node.publish(&[pod("a", &one.path), pod("c", &third.path)]);
    takes(&proxy, &["del uid-b", "add uid-c shop/c/"]).await;
    node.sees("culvert_capture_pods_captured", 2.0).await;
    node.sees("culvert_zds_answers_total{request=\"del\",result=\"ack\"}", 1.0).await;
    assert!(third.is_captured() && !other.is_captured());
    let marks = || other.netns.run(rules::is_capturing).unwrap().unwrap();
    assert!(!marks(), "redirects go at once");
    assert_eq!(node.metric("culvert_zds_proxies_connected"), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn without_a_proxy_pods_wait_and_captured_ones_stay() {
    let (one, other, node) = (Namespace::new(), Namespace::new(), Node::start());
    node.publish(&[pod("a", &one.path)]);
    node.sees("culvert_capture_pods_failing{reason=\"no_proxy\"}", 1.0).await;
    assert!(!one.is_captured() && !node.readiness.is_ready());
    let proxy = node.proxy().await;
    takes(&proxy, &["add uid-a shop/a/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    drop(proxy);
    node.sees("culvert_capture_pods_failing{reason=\"no_proxy\"}", 1.0).await;
    node.publish(&[pod("a", &one.path), pod("b", &other.path)]);
    node.sees("culvert_capture_pods_failing{reason=\"no_proxy\"}", 2.0).await;
    assert!(one.is_captured() && !other.is_captured());
    let again = node.proxy().await;
    takes(&again, &["add uid-a shop/a/", "add uid-b shop/b/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 2.0).await;
    assert!(one.is_captured() && other.is_captured());
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_its_namespace_harms_no_other() {
    let (good, node) = (Namespace::new(), Node::start());
    let mut wrong = pod("wrong", &good.path);
    wrong.addresses = vec!["192.0.2.1".parse().unwrap()];
    let missing = pod("missing", Path::new("/nowhere"));
    let file = pod("file", Path::new("/dev/null"));
    node.publish(&[wrong, missing, file, pod("z", &good.path)]);
    let proxy = node.proxy().await;
    let snapshot =
        ["keep uid-file", "keep uid-missing", "keep uid-wrong", "add uid-z shop/z/", "snapshot sent"];
    takes(&proxy, &snapshot).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    node.sees("culvert_capture_pods_wanted", 4.0).await;
    node.sees("culvert_capture_pods_failing{reason=\"namespace\"}", 3.0).await;
    assert!(good.is_captured() && !node.readiness.is_ready());
}

#[tokio::test(start_paused = true)]
async fn one_namespace_is_one_pods() {
    let (shared, node) = (Namespace::new(), Node::start());
    let mut other = pod("b", &shared.path);
    other.addresses = vec!["192.0.2.1".parse().unwrap()];
    node.publish(&[pod("a", &shared.path), pod("b", &shared.path)]);
    let proxy = node.proxy().await;
    takes(&proxy, &["add uid-a shop/a/", "keep uid-b", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_failing{reason=\"namespace\"}", 1.0).await;
    // With the first gone, the other is looked at for itself.
    node.publish(&[other]);
    takes(&proxy, &["del uid-a"]).await;
    node.sees("culvert_capture_pods_failing{reason=\"address\"}", 1.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_pod_is_asked_for_again() {
    let (one, other, node) = (Namespace::new(), Namespace::new(), Node::start());
    node.publish(&[pod("a", &one.path), pod("b", &other.path)]);
    let proxy = node.proxy().await;
    assert_eq!(next(&proxy, Err("port 15001 is taken".into())).await, "add uid-a shop/a/");
    takes(&proxy, &["add uid-b shop/b/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_failing{reason=\"refused\"}", 1.0).await;
    assert!(!one.is_captured() && other.is_captured());
    assert_eq!(next(&proxy, Err("port 15001 is taken".into())).await, "add uid-a shop/a/");
    takes(&proxy, &["add uid-a shop/a/"]).await;
    node.sees("culvert_capture_pods_captured", 2.0).await;
    assert!(one.is_captured());
    assert_eq!(node.metric("culvert_zds_answers_total{request=\"add\",result=\"nack\"}"), Some(2.0));
}

#[tokio::test(start_paused = true)]
async fn bad_proxies_are_dropped_and_good_ones_served() {
    let (one, node) = (Namespace::new(), Node::start());
    node.publish(&[pod("a", &one.path)]);
    // One says nothing, one never answers, one speaks out of turn, one talks nonsense, one another version.
    let mute = Channel::new(SeqPacket::connect(&node.socket).unwrap());
    let silent = node.proxy().await;
    assert!(matches!(silent.recv_request().await, Ok(Some(Request::Add { .. }))));
    let early = node.proxy().await;
    early.send_ack(&Ok(())).await.unwrap();
    early.send_ack(&Ok(())).await.unwrap();
    let nonsense = SeqPacket::connect(&node.socket).unwrap();
    nonsense.send(&[0xff; 2000], &[]).await.unwrap();
    let newer = SeqPacket::connect(&node.socket).unwrap();
    newer.send(&[8, 9], &[]).await.unwrap();
    for bad in [&mute, &silent, &early, &Channel::new(nonsense), &Channel::new(newer)] {
        ends(bad).await;
    }
    assert!(!one.is_captured());
    let good = node.proxy().await;
    takes(&good, &["add uid-a shop/a/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    for _ in 0..3 {
        let flood = node.proxy().await;
        for _ in 0..100 {
            if flood.send_ack(&Err("x".repeat(1000))).await.is_err() {
                break;
            }
        }
        ends(&flood).await;
    }
    node.sees("culvert_capture_pods_captured", 1.0).await;
    assert!(one.is_captured());
}

/// As in an upgrade: new pods go to the newest connection, deletions to all, and when the newest ends the other serves.
#[tokio::test(start_paused = true)]
async fn the_newest_proxy_gets_new_pods_and_all_get_deletions() {
    let (one, other, node) = (Namespace::new(), Namespace::new(), Node::start());
    node.publish(&[pod("a", &one.path)]);
    let old = node.proxy().await;
    takes(&old, &["add uid-a shop/a/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    let new = node.proxy().await;
    assert_eq!(next(&new, Err("not yet".into())).await, "add uid-a shop/a/");
    takes(&new, &["snapshot sent", "add uid-a shop/a/"]).await;
    node.sees("culvert_zds_proxies_connected", 2.0).await;
    node.publish(&[pod("a", &one.path), pod("b", &other.path)]);
    takes(&new, &["add uid-b shop/b/"]).await;
    node.sees("culvert_capture_pods_captured", 2.0).await;
    node.publish(&[pod("b", &other.path)]);
    takes(&new, &["del uid-a"]).await;
    takes(&old, &["del uid-a"]).await;
    drop(new);
    takes(&old, &["add uid-b shop/b/"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    assert!(other.is_captured());
}

#[tokio::test(start_paused = true)]
async fn what_another_hand_changes_is_mended_and_counted() {
    let (one, node) = (Namespace::new(), Node::start());
    node.publish(&[pod("a", &one.path)]);
    let proxy = node.proxy().await;
    takes(&proxy, &["add uid-a shop/a/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    let spec = CaptureSpec { inbound: false, ..CaptureSpec::default() };
    assert!(one.netns.run(|| rules::install(&spec)).unwrap().unwrap().changed);
    node.sees("culvert_capture_repairs_total{what=\"redirects\"}", 1.0).await;
    assert!(one.is_captured());
    one.netns.run(rules::remove).unwrap().unwrap();
    for part in ["redirects", "marks", "policy_rule", "route"] {
        let count = if part == "redirects" { 2.0 } else { 1.0 };
        node.sees(&format!("culvert_capture_repairs_total{{what=\"{part}\"}}"), count).await;
    }
    assert!(one.is_captured());
}

/// Another mesh's rules are left alone; chains that would redirect first make the pod fail until they have gone.
#[tokio::test(start_paused = true)]
async fn rules_of_others_are_told_of() {
    let (one, node) = (Namespace::new(), Node::start());
    node.publish(&[pod("a", &one.path)]);
    let proxy = node.proxy().await;
    takes(&proxy, &["add uid-a shop/a/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    let nft = |args: &str| {
        let run = || Command::new("nft").arg(args).status().expect("the program nft");
        assert!(one.netns.run(run).unwrap().success(), "{args}");
    };
    nft("add table inet istio-ambient-nat");
    node.sees("culvert_capture_foreign_rules_total", 1.0).await;
    assert_eq!(node.metric("culvert_capture_pods_captured"), Some(1.0), "ours stand before them");
    nft("add chain inet istio-ambient-nat first { type nat hook output priority -150 ; }");
    node.sees("culvert_capture_pods_failing{reason=\"foreign_mesh\"}", 1.0).await;
    assert!(one.is_captured() && !node.readiness.is_ready());
    nft("delete table inet istio-ambient-nat");
    node.sees("culvert_capture_pods_captured", 1.0).await;
    assert!(node.readiness.is_ready());
    assert_eq!(node.metric("culvert_capture_repairs_total{what=\"redirects\"}"), None);
}

#[tokio::test(start_paused = true)]
async fn a_restart_finds_what_was_captured_and_leaves_it_alone() {
    let (one, fresh, node) = (Namespace::new(), Namespace::new(), Node::start());
    one.netns.run(|| rules::install(&CaptureSpec::default())).unwrap().unwrap();
    node.publish(&[pod("a", &one.path), pod("b", &fresh.path)]);
    node.sees("culvert_capture_pods_failing{reason=\"no_proxy\"}", 2.0).await;
    assert!(one.is_captured() && !fresh.is_captured());
    assert_eq!(node.metric("culvert_capture_repairs_total{what=\"redirects\"}"), None);
    // Also without a proxy its rules are guarded.
    one.netns.run(rules::remove_redirects).unwrap().unwrap();
    node.sees("culvert_capture_repairs_total{what=\"redirects\"}", 1.0).await;
    assert!(one.is_captured());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_left_is_clean_after_its_grace_unless_it_came_back() {
    let (one, node) = (Namespace::new(), Node::start());
    let proxy = node.proxy().await;
    node.publish(&[pod("a", &one.path)]);
    takes(&proxy, &["add uid-a shop/a/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    node.publish(&[]);
    takes(&proxy, &["del uid-a"]).await;
    node.publish(&[pod("a", &one.path)]);
    takes(&proxy, &["add uid-a shop/a/"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(one.is_captured(), "the rest of the first capture is not taken away");
    node.publish(&[]);
    takes(&proxy, &["del uid-a"]).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let left = one.netns.run(|| rules::verify(&CaptureSpec::default())).unwrap().unwrap_err().to_string();
    assert!(left.contains("table culvert-mangle is missing") && left.contains("IPv4 policy rule"), "{left}");
}

#[tokio::test(start_paused = true)]
async fn both_sides_of_one_process_talk_the_same() {
    let one = Namespace::new();
    let node = Node {
        state: State::new(),
        metrics: Metrics::new("test"),
        readiness: Readiness::new(),
        scope: Scope::new(),
        socket: PathBuf::from("none"),
    };
    let (dialer, peers) = Peers::local();
    node.run(peers);
    node.publish(&[pod("a", &one.path)]);
    for _ in 0..2 {
        let proxy = Channel::new(dialer.connect().unwrap());
        proxy.send_hello().await.unwrap();
        takes(&proxy, &["add uid-a shop/a/", "snapshot sent"]).await;
        node.sees("culvert_capture_pods_captured", 1.0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_leaves_all_rules() {
    let (one, node) = (Namespace::new(), Node::start());
    node.publish(&[pod("a", &one.path)]);
    let proxy = node.proxy().await;
    takes(&proxy, &["add uid-a shop/a/", "snapshot sent"]).await;
    node.sees("culvert_capture_pods_captured", 1.0).await;
    assert_eq!(node.scope.shut_down(SOON).await, 1, "its conversation is cut, nothing else is left");
    ends(&proxy).await;
    assert!(one.is_captured());
}
