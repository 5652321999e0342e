//! The agent is rolled over, restarted and killed under traffic.

use std::time::Duration;

use crate::change::println_to_log;
use crate::kube::{agent_on, inside, kubectl, pause, settled, try_kubectl, until};
use crate::space::Space;
use crate::traffic::{Connections, Traffic};

const NAMESPACE: &str = "istio-system";

fn apps(name: &str) -> Space {
    let space = Space::ambient(name);
    space.apps(&[("web", 1, 1), ("near", 1, 1), ("far", 2, 1)]);
    space.captured(true);
    space
}

/// kubectl rolls the DaemonSet over, one pod more than wanted at a time: new connections never fail.
#[test]
fn a_roll_over_by_kubectl_fails_no_request() {
    let space = apps("roll-over");
    let near = Traffic::start(&space, "web", "http://near/", 30, Connections::New);
    let far = Traffic::start(&space, "web", "http://far/", 30, Connections::New);
    let before = agent_on(1);
    kubectl(&["-n", NAMESPACE, "rollout", "restart", "ds/ztunnel"]);
    settled();
    assert_ne!(before, agent_on(1));
    pause(Duration::from_secs(3));
    let (near, far) = (near.stop(), far.stop());
    println_to_log(&format!("roll-over: on the node {near}, across nodes {far}"));
    assert_eq!((near.failed, far.failed), (0, 0), "{near} {far}");
}

/// The agent's process is killed. What is open breaks, and new connections work again as soon as kubelet has started it:
/// nothing passes in plaintext meanwhile.
#[test]
fn a_killed_agent_comes_back() {
    let space = apps("kill");
    space.apply(crate::policy::STRICT);
    let far = Traffic::start(&space, "web", "http://far/", 30, Connections::New);
    let pod = agent_on(1);
    let restarts = || {
        let path = "jsonpath={.status.containerStatuses[0].restartCount}";
        kubectl(&["-n", NAMESPACE, "get", "pod", &pod, "-o", path])
    };
    let before = restarts();
    // In the node's own pid namespace; the name is that of the process.
    let killed = inside(1).args(["pkill", "-KILL", "-x", "ztunnel"]).status().unwrap();
    assert!(killed.success());
    until("kubelet starts it again", Duration::from_secs(60), || {
        let now = restarts();
        if now == before { Err(now) } else { Ok(()) }
    });
    settled();
    space.becomes("web", "http://far/", true);
    space.becomes("web", "http://near/", true);
    let counted = far.stop();
    println_to_log(&format!("killed: {counted}"));
}

/// The agent's pod is deleted, as a drain of the node does.
#[test]
fn a_deleted_agent_is_replaced() {
    let space = apps("delete");
    let far = Traffic::start(&space, "web", "http://far/", 30, Connections::New);
    let pod = agent_on(1);
    kubectl(&["-n", NAMESPACE, "delete", "pod", &pod, "--wait=true", "--timeout=60s"]);
    settled();
    space.becomes("web", "http://far/", true);
    let counted = far.stop();
    println_to_log(&format!("deleted: {counted}"));
}

/// istio-cni restarts: what is captured stays, and pods that come afterwards are captured.
#[test]
fn istio_cni_restarts() {
    let space = apps("cni");
    let far = Traffic::start(&space, "web", "http://far/", 30, Connections::New);
    kubectl(&["-n", NAMESPACE, "rollout", "restart", "ds/istio-cni-node"]);
    settled();
    space.app("late", 2);
    space.captured(true);
    space.becomes("web", "http://late/", true);
    far.none_failed("a restart of istio-cni");
    let rest = try_kubectl(&["-n", NAMESPACE, "get", "pods"]);
    assert!(rest.ok, "{rest:?}");
}
