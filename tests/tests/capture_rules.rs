//! The capture rules against the real kernel: what they redirect, what they leave alone, and how they come and go.
//!
//! Each test makes network namespaces of its own, without names; they vanish with the test. Needs root, `ip` and `nft`
//! (as an independent reader of what was written).

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use culvert_common::net::netns::NetNs;
use culvert_common::net::rules::{self, CaptureSpec};
use nix::sched::{CloneFlags, unshare};

/// A namespace kept alive by a thread in it, so that `ip` can name it by the thread's path.
struct Namespace {
    net: NetNs,
    path: String,
    done: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Namespace {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root: the test makes network namespaces");
        let (ready, made) = channel();
        let (done, wait) = channel::<()>();
        let keeper = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs CAP_SYS_ADMIN)");
            let (pid, tid) = (std::process::id(), nix::unistd::gettid());
            let path = format!("/proc/{pid}/task/{tid}/ns/net");
            ready.send((NetNs::open(Path::new(&path)).unwrap(), path)).unwrap();
            // Ends when the sender is dropped.
            let _ = wait.recv();
        });
        let (net, path) = made.recv().unwrap();
        let made = Self { net, path, done: Some(done), keeper: Some(keeper) };
        made.sh("ip link set lo up");
        made
    }

    fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        self.net.run(work).unwrap()
    }

    /// Runs a command in the namespace; its output.
    fn sh(&self, command: &str) -> String {
        let mut words = command.split(' ');
        let output = self.run(|| Command::new(words.next().unwrap()).args(words).output().expect(command));
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.done.take();
        let _ = self.keeper.take().map(JoinHandle::join);
    }
}

/// A pod and the node next to it, joined by a veth pair; the node is the pod's default route.
struct World {
    pod: Namespace,
    node: Namespace,
}

const POD: [&str; 2] = ["10.77.0.2", "fd77::2"];
const NODE: [&str; 2] = ["10.77.0.1", "fd77::1"];

impl World {
    fn new() -> Self {
        let (pod, node) = (Namespace::new(), Namespace::new());
        pod.sh(&format!("ip link add eth0 type veth peer name pod0 netns {}", node.path));
        for (namespace, link, [v4, v6]) in [(&pod, "eth0", POD), (&node, "pod0", NODE)] {
            namespace.sh(&format!("ip addr add {v4}/24 dev {link}"));
            namespace.sh(&format!("ip addr add {v6}/64 dev {link} nodad"));
            namespace.sh(&format!("ip link set {link} up"));
        }
        for via in NODE {
            pod.sh(&format!("ip {} route add default via {via}", family_flag(via)));
        }
        Self { pod, node }
    }
}

fn family_flag(ip: &str) -> &'static str {
    if ip.contains(':') { "-6" } else { "-4" }
}

/// All that `install` may leave behind, as other programs see it.
fn residue(namespace: &Namespace) -> String {
    let mut seen = namespace.sh("nft list ruleset");
    for family in ["-4", "-6"] {
        seen += &namespace.sh(&format!("ip {family} route show table all"));
        seen += &namespace.sh(&format!("ip {family} rule show"));
    }
    seen
}

#[test]
fn install_is_complete_idempotent_and_removed_without_trace() {
    let world = World::new();
    let before = residue(&world.pod);
    let spec = CaptureSpec::default();
    let first = world.pod.run(|| rules::install(&spec)).unwrap();
    assert!(first.changed && first.ipv6 && first.adopted.is_empty());
    world.pod.run(|| rules::verify(&spec)).unwrap();
    let second = world.pod.run(|| rules::install(&spec)).unwrap();
    assert!(!second.changed);
    assert!(world.node.sh("nft list ruleset").is_empty());
    for _ in 0..2 {
        world.pod.run(rules::remove).unwrap();
        assert_eq!(residue(&world.pod), before);
    }
}
