//! Policies, labels and pods change while requests run.

use crate::kube::pause;
use crate::policy::{STRICT, policy, principal};
use crate::space::Space;
use crate::traffic::{Connections, Traffic};

/// Policies that allow the caller come and go, and nothing fails.
#[test]
fn policies_change_under_traffic() {
    let space = Space::ambient("policy-change");
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    space.captured(true);
    let new = Traffic::start(&space, "web", "http://cart/", 40, Connections::New);
    let kept = Traffic::start(&space, "web", "http://cart/", 40, Connections::Kept);
    for round in 0..3 {
        space.apply(&policy("callers", "ALLOW", "cart", &principal(&space, "web"), ""));
        space.apply(&policy("not-others", "DENY", "cart", &format!("cluster.local/ns/none/sa/{round}"), ""));
        space.apply(STRICT);
        pause(std::time::Duration::from_secs(2));
        space.kubectl(&["delete", "authorizationpolicy", "callers", "not-others"]);
        space.kubectl(&["delete", "peerauthentication", "strict"]);
        pause(std::time::Duration::from_secs(1));
    }
    kept.none_failed("policies that allow the caller");
    new.none_failed("policies that allow the caller");
}

/// A namespace joins and leaves the mesh under requests on new connections. istio-cni takes about 0.4 s to remove its rules
/// before it tells the agent, and a connection that is open or comes meanwhile may break: docs/cluster-lab.md.
#[test]
fn labels_change_under_traffic() {
    let (space, callers) = (Space::plain("label-change"), Space::ambient("label-callers"));
    space.apps(&[("near", 1, 1), ("far", 2, 1)]);
    callers.app("web", 1);
    callers.captured(true);
    let near = Traffic::start(&callers, "web", &format!("http://near.{}/", space.name), 40, Connections::New);
    for _ in 0..2 {
        space.label("istio.io/dataplane-mode=ambient");
        space.captured(true);
        pause(std::time::Duration::from_secs(3));
        space.label("istio.io/dataplane-mode=none");
        space.captured(false);
        pause(std::time::Duration::from_secs(3));
    }
    let counted = near.stop();
    println_to_log(&format!("two rounds of capture and release: {counted}"));
    assert!(counted.failed <= counted.answered / 10, "{counted}");
}

/// An app rolls over under requests; its pods end as Kubernetes recommends, a moment after they left the endpoints.
#[test]
fn an_app_rolls_over_under_traffic() {
    let space = Space::ambient("roll-out");
    space.apps(&[("web", 1, 1), ("cart", 2, 2)]);
    let patch = r#"{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":8,"containers":[{"name":"app","lifecycle":{"preStop":{"exec":{"command":["sleep","5"]}}}}]}}}}"#;
    space.kubectl(&["patch", "deploy/cart", "-p", patch]);
    space.rolled_out("deploy/cart");
    space.captured(true);
    let new = Traffic::start(&space, "web", "http://cart/", 40, Connections::New);
    for _ in 0..2 {
        space.kubectl(&["rollout", "restart", "deploy/cart"]);
        space.rolled_out("deploy/cart");
        pause(std::time::Duration::from_secs(7));
    }
    new.none_failed("a roll-out of the app");
}

/// A figure for whoever reads the test's output.
pub(crate) fn println_to_log(text: &str) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "{text}").ok();
}
