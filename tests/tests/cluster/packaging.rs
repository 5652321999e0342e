//! The image of `hack/image.sh` and the kustomize base as users apply them, and the commands of `docs/kubernetes.md` that put
//! the agent into the place of another and back.

use std::process::Stdio;

use crate::kube::{Said, agent_process, agents, folder, inside, kubectl, settled, try_kubectl};
use crate::space::Space;
use crate::traffic::{Connections, Traffic};

const PAGE: &str = include_str!("../../../docs/kubernetes.md");
const OVERLAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/manifests/agent");
const NEXT: &str = "localhost/culvert-lab/ztunnel:next";

/// The base runs as it says: two capabilities, no new privileges, system calls filtered, a root that nobody writes to.
#[test]
fn the_base_runs_with_what_it_asks_for() {
    for node in 1..=crate::kube::nodes() {
        let process = agent_process(node);
        let file = |name: &str| {
            let output = inside(node).args(["cat", &format!("/proc/{process}/{name}")]).output().unwrap();
            Said::from(output).out
        };
        let status = file("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches(':').split_whitespace().next().unwrap_or_default().to_owned()
        };
        let net_admin_and_sys_admin = 1_u64 << 12 | 1 << 21;
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let set = u64::from_str_radix(&field(set), 16).unwrap();
            assert_eq!(set & !net_admin_and_sys_admin, 0, "{status}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".to_owned(), "2".to_owned()), "{status}");
        let mounts = file("mounts");
        let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap_or_default();
        assert!(root.split(' ').nth(3).is_some_and(|options| options.starts_with("ro")), "{root}");
    }
    let pods = agents(&["-o", "jsonpath={.items[*].spec.containers[*].image}"]);
    assert!(pods.split_whitespace().all(|image| image == "localhost/culvert-lab/ztunnel:lab"), "{pods}");
}

/// The command of the page that begins so, as one shell line.
#[track_caller]
fn command(begins: &str) -> String {
    let at = PAGE.find(begins).unwrap_or_else(|| panic!("docs/kubernetes.md has no {begins}"));
    let rest = PAGE.get(at..).unwrap();
    rest.get(..rest.find("\n```").unwrap()).unwrap().to_owned()
}

/// Runs it on a node as a person would.
#[track_caller]
fn as_the_page_says(script: &str) {
    let path = format!("{}:{}", folder().join("bin").display(), std::env::var("PATH").unwrap());
    let output = inside(1)
        .args([
            "env",
            &format!("PATH={path}"),
            &format!("KUBECONFIG={}", folder().join("run/admin.conf").display()),
        ])
        .args(["sh", "-ec", script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = Said::from(output);
    assert!(said.ok, "{script}: {said:?}");
}

fn image() -> String {
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    kubectl(&["-n", "istio-system", "get", "ds", "ztunnel", "-o", path])
}

/// Leaves the base behind, as the lab had it.
struct Base;

impl Drop for Base {
    fn drop(&mut self) {
        try_kubectl(&["-n", "istio-system", "delete", "ds", "ztunnel", "--wait=true", "--timeout=60s"]);
        try_kubectl(&["apply", "-k", OVERLAY]);
        settled();
    }
}

/// A DaemonSet of Istio's chart gets our image by the page's command and its own back by the other, then the base on top of it:
/// no request fails, and no pod of an app restarts. (Its own image is ours too: there is no other here.)
#[test]
fn the_charts_daemon_set_is_replaced_and_comes_back() {
    let _base = Base;
    for node in 1..=crate::kube::nodes() {
        let tag =
            ["ctr", "-n", "k8s.io", "images", "tag", "--force", "localhost/culvert-lab/ztunnel:lab", NEXT];
        assert!(inside(node).args(tag).stdout(Stdio::null()).status().unwrap().success());
    }
    kubectl(&["-n", "istio-system", "delete", "ds", "ztunnel", "--wait=true", "--timeout=60s"]);
    let chart = folder().join("run/ztunnel-chart.yaml");
    kubectl(&["apply", "--server-side", "--force-conflicts", "-f", chart.to_str().unwrap()]);
    settled();
    let space = Space::ambient("replace");
    space.apps(&[("web", 1, 1), ("near", 1, 1), ("far", 2, 1)]);
    space.captured(true);
    let traffic = ["near", "far"]
        .map(|app| Traffic::start(&space, "web", &format!("http://{app}/"), 20, Connections::New));
    let (own, ours) = (image(), "registry.example.com/culvert/ztunnel:0.1.0");
    let replace = command("kubectl -n istio-system patch daemonset ztunnel");
    assert!(replace.contains(ours), "{replace}");
    as_the_page_says(&replace.replace(ours, NEXT));
    settled();
    assert_eq!(image(), NEXT);
    as_the_page_says(&command("kubectl -n istio-system rollout undo daemonset ztunnel"));
    settled();
    assert_eq!(image(), own);
    kubectl(&["apply", "--server-side", "--force-conflicts", "-k", OVERLAY]);
    settled();
    for traffic in traffic {
        traffic.none_failed("the replacement of the agent");
    }
    let restarts = space.kubectl(&[
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    ]);
    assert!(restarts.split_whitespace().all(|count| count == "0"), "{restarts}");
}
