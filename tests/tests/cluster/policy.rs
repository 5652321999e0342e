//! Policies written with kubectl.

use crate::kube::{SOON, logged, metric, until};
use crate::space::Space;

pub(crate) const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
";

/// An AuthorizationPolicy for one app and one caller.
pub(crate) fn policy(name: &str, action: &str, to: &str, from: &str, annotations: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec:
  action: {action}
  selector: {{matchLabels: {{app: {to}}}}}
  rules: [{{from: [{{source: {{principals: ['{from}']}}}}]}}]
"
    )
}

/// As the principals of a policy have it.
pub(crate) fn principal(space: &Space, app: &str) -> String {
    space.identity(app).replacen("spiffe://", "", 1)
}

/// STRICT refuses plaintext from outside, says so, and lets the mesh pass; without it plaintext passes again.
#[test]
fn strict_refuses_plaintext() {
    let (space, plain) = (Space::ambient("strict"), Space::plain("strict-outside"));
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    plain.app("stranger", 1);
    space.captured(true);
    let url = format!("http://cart.{}/", space.name);
    plain.becomes("stranger", &url, true);

    space.apply(STRICT);
    plain.becomes("stranger", &url, false);
    space.answered("web", "http://cart/");
    logged(2, &["direction=\"inbound\"", "dst.workload=\"cart", "error="]);

    space.kubectl(&["delete", "peerauthentication", "strict"]);
    plain.becomes("stranger", &url, true);
}

/// ALLOW lets only those named pass, DENY wins over it, and removing both opens the app again.
#[test]
fn allow_and_deny_by_identity() {
    let space = Space::ambient("authz");
    space.apps(&[("web", 1, 1), ("other", 1, 1), ("cart", 2, 1)]);
    space.captured(true);
    space.becomes("web", "http://cart/", true);
    space.becomes("other", "http://cart/", true);

    space.apply(&policy("callers", "ALLOW", "cart", &principal(&space, "web"), ""));
    space.becomes("other", "http://cart/", false);
    space.answered("web", "http://cart/");
    let other = format!("src.identity=\"{}\"", space.identity("other"));
    logged(2, &["direction=\"inbound\"", &other, "error="]);

    space.apply(&policy("not-web", "DENY", "cart", &principal(&space, "web"), ""));
    space.becomes("web", "http://cart/", false);

    space.kubectl(&["delete", "authorizationpolicy", "callers", "not-web"]);
    space.becomes("web", "http://cart/", true);
    space.becomes("other", "http://cart/", true);
}

/// Ports, namespaces and a policy of the whole namespace.
#[test]
fn policies_by_port_and_namespace() {
    let (space, friends) = (Space::ambient("authz-ns"), Space::ambient("authz-friends"));
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    friends.app("web", 1);
    space.captured(true);
    friends.captured(true);
    let url = format!("http://cart.{}/", space.name);
    friends.becomes("web", &url, true);
    space.apply(&format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: friends}}
spec:
  action: ALLOW
  rules:
  - from: [{{source: {{namespaces: ['{}']}}}}]
    to: [{{operation: {{ports: ['8080']}}}}]
",
        friends.name
    ));
    space.becomes("web", "http://cart/", false);
    friends.answered("web", &url);
    friends.becomes("web", &format!("grpc://cart.{}:7070", space.name), false);
}

/// A policy in dry run refuses nothing and is counted.
#[test]
fn a_dry_run_only_counts() {
    let space = Space::ambient("dry-run");
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    space.captured(true);
    space.becomes("web", "http://cart/", true);
    let dry = "istio.io/dry-run: 'true'";
    space.apply(&policy("not-web", "DENY", "cart", &principal(&space, "web"), dry));
    let counted = || metric(2, "culvert_policy_dry_run_total", &["would_deny"]);
    until("a dry run is counted", SOON, || {
        space.answered("web", "http://cart/");
        let now = counted();
        if now > 0.0 { Ok(()) } else { Err(format!("{now}")) }
    });
}
