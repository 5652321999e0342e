//! One node without an agent: its pods stay plain, and talk to those of the other in both directions.

use crate::kube::{SOON, agent_on, agents, kubectl, settled, try_kubectl, until};
use crate::policy::STRICT;
use crate::space::Space;

const KEEP_OFF: &str = r#"{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"lab.culvert.dev/agent","operator":"NotIn","values":["none"]}]}]}}}}}}}"#;
const BACK: &str = r#"[{"op":"remove","path":"/spec/template/spec/affinity"}]"#;

/// Brings the agent back to node-2, also after a failure.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        try_kubectl(&["label", "node", "node-2", "lab.culvert.dev/agent-"]);
        try_kubectl(&["-n", "istio-system", "patch", "ds", "ztunnel", "--type=json", "-p", BACK]);
        settled();
    }
}

#[test]
fn plain_pods_on_a_node_without_an_agent() {
    let _back = Back;
    kubectl(&["-n", "istio-system", "patch", "ds", "ztunnel", "-p", KEEP_OFF]);
    kubectl(&["label", "node", "node-2", "lab.culvert.dev/agent=none", "--overwrite"]);
    settled();
    until("no agent on node-2", SOON, || {
        let names = agents(&["--field-selector=spec.nodeName=node-2", "-o", "name"]);
        if names.trim().is_empty() { Ok(()) } else { Err(names) }
    });
    agent_on(1);
    let (space, plain) = (Space::ambient("mixed"), Space::plain("mixed-plain"));
    space.apps(&[("web", 1, 1), ("cart", 1, 1)]);
    plain.apps(&[("legacy", 2, 1), ("caller", 2, 1)]);
    space.captured(true);
    let legacy = format!("http://legacy.{}/", plain.name);
    let cart = format!("http://cart.{}/", space.name);
    space.becomes("web", "http://cart/", true);
    space.becomes("web", &legacy, true);
    plain.becomes("caller", &cart, true);
    space.apply(STRICT);
    plain.becomes("caller", &cart, false);
    space.answered("web", "http://cart/");
    space.answered("web", &legacy);
}
