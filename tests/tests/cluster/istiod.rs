//! istiod restarts, is away, and its certificates are short.

use std::time::Duration;

use crate::kube::{
    SOON, agent_page, agent_process, find_agent, inside, kubectl, pause, settled, try_kubectl, until,
};
use crate::policy::{policy, principal};
use crate::space::Space;
use crate::traffic::{Connections, Traffic};

const NAMESPACE: &str = "istio-system";

/// Puts istiod and the agents back as they were, also after a failure.
struct Restore(&'static [&'static [&'static str]]);

impl Drop for Restore {
    fn drop(&mut self) {
        for args in self.0 {
            try_kubectl(&[&["-n", NAMESPACE], *args].concat());
        }
        for object in ["deploy/istiod", "ds/ztunnel"] {
            try_kubectl(&["-n", NAMESPACE, "rollout", "status", object, "--timeout=120s"]);
        }
    }
}

/// istiod is rolled over: nothing fails, and what changes afterwards arrives.
#[test]
fn istiod_restarts_under_traffic() {
    let space = Space::ambient("istiod-restart");
    space.apps(&[("web", 1, 1), ("other", 1, 1), ("cart", 2, 1)]);
    space.captured(true);
    space.becomes("other", "http://cart/", true);
    let new = Traffic::start(&space, "web", "http://cart/", 40, Connections::New);
    let kept = Traffic::start(&space, "web", "http://cart/", 20, Connections::Kept);
    kubectl(&["-n", NAMESPACE, "rollout", "restart", "deploy/istiod"]);
    settled();
    space.apply(&policy("callers", "ALLOW", "cart", &principal(&space, "web"), ""));
    space.becomes("other", "http://cart/", false);
    kept.none_failed("a restart of istiod");
    new.none_failed("a restart of istiod");
}

/// istiod is away: what runs goes on with the last state, a restarted agent waits instead of sending plaintext, and what
/// changed meanwhile arrives when istiod is back.
#[test]
fn istiod_is_away_for_a_while() {
    let space = Space::ambient("istiod-away");
    space.apps(&[("web", 1, 1), ("other", 1, 1), ("cart", 2, 1)]);
    space.captured(true);
    space.becomes("other", "http://cart/", true);
    let new = Traffic::start(&space, "web", "http://cart/", 40, Connections::New);
    let _restore = Restore(&[&["scale", "deploy/istiod", "--replicas=1"]]);
    kubectl(&["-n", NAMESPACE, "scale", "deploy/istiod", "--replicas=0"]);
    kubectl(&["-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", "app=istiod", "--timeout=60s"]);
    // Its webhook that checks policies is away as well: Kubernetes takes them unchecked.
    let away = Duration::from_secs(60);
    pause(away);
    space.answered("other", "http://cart/");
    space.apply(&policy("callers", "ALLOW", "cart", &principal(&space, "web"), ""));
    kubectl(&["-n", NAMESPACE, "scale", "deploy/istiod", "--replicas=1"]);
    settled();
    space.becomes("other", "http://cart/", false);
    new.none_failed("a minute without istiod");
}

/// An agent that starts while istiod is away has the last state from its disk: names resolve and plaintext passes at once. What
/// is for the mesh needs a certificate, which nobody signs: it is refused, and never sent in plaintext.
#[test]
fn an_agent_starts_while_istiod_is_away() {
    let (space, plain) = (Space::ambient("away-start"), Space::plain("away-plain"));
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    plain.app("legacy", 2);
    space.captured(true);
    let legacy = format!("http://legacy.{}/", plain.name);
    for url in ["http://cart/", &legacy] {
        space.becomes("web", url, true);
    }
    let _restore = Restore(&[&["scale", "deploy/istiod", "--replicas=1"]]);
    kubectl(&["-n", NAMESPACE, "scale", "deploy/istiod", "--replicas=0"]);
    kubectl(&["-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", "app=istiod", "--timeout=60s"]);
    let before = agent_process(1);
    assert!(inside(1).args(["kill", "-KILL", &before]).status().unwrap().success());
    until("kubelet starts the agent again", SOON, || {
        let now = find_agent(1).ok_or("none")?;
        if now == before { Err(now) } else { Ok(()) }
    });
    space.becomes("web", &legacy, true);
    for _ in 0..3 {
        let said = space.ask("web", "http://cart/");
        assert!(!said.ok, "in plaintext, as there is no certificate: {said:?}");
    }
    space.answered("web", &legacy);
    kubectl(&["-n", NAMESPACE, "scale", "deploy/istiod", "--replicas=1"]);
    settled();
    space.becomes("web", "http://cart/", true);
    space.answered("web", &legacy);
}

/// Serial numbers of the certificates of an identity, as the agent's page has them.
fn serials(node: u32, identity: &str) -> Vec<String> {
    let dump: serde_json::Value = serde_json::from_str(&agent_page(node, "15000/config_dump")).unwrap();
    let items = dump["certificates"].as_array().cloned().unwrap_or_default();
    let of_it = items.iter().filter(|item| item["identity"] == identity);
    of_it.filter_map(|item| item["certChain"][0]["serialNumber"].as_str().map(str::to_owned)).collect()
}

/// Certificates that live for a minute are renewed again and again, and no request fails.
#[test]
fn short_certificates_are_renewed_under_traffic() {
    let _restore = Restore(&[
        &["set", "env", "deploy/istiod", "DEFAULT_WORKLOAD_CERT_TTL-", "MAX_WORKLOAD_CERT_TTL-"],
        &["set", "env", "ds/ztunnel", "SECRET_TTL-"],
    ]);
    kubectl(&[
        "-n",
        NAMESPACE,
        "set",
        "env",
        "deploy/istiod",
        "DEFAULT_WORKLOAD_CERT_TTL=60s",
        "MAX_WORKLOAD_CERT_TTL=60s",
    ]);
    settled();
    kubectl(&["-n", NAMESPACE, "set", "env", "ds/ztunnel", "SECRET_TTL=60s"]);
    settled();
    let space = Space::ambient("renewal");
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    space.captured(true);
    let new = Traffic::start(&space, "web", "http://cart/", 30, Connections::New);
    let kept = Traffic::start(&space, "web", "http://cart/", 10, Connections::Kept);
    let identity = space.identity("cart");
    let mut seen: Vec<String> = Vec::new();
    until("three certificates of one identity", SOON * 3, || {
        let now = serials(2, &identity);
        seen.extend(now.into_iter().filter(|serial| !seen.contains(serial)).collect::<Vec<_>>());
        if seen.len() >= 3 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    new.none_failed("two renewals");
    let kept = kept.stop();
    // A tunnel is drained before its certificate expires, and the app's connections on it with it.
    crate::change::println_to_log(&format!("kept connections over two renewals: {kept}"));
}
