//! AuthorizationPolicy: reading it, once for both. What L4 makes of it is in [`super::authorization`], what waypoints make
//! of it in [`super::l7`]; its rules are in [`super::authorization_rule`].
//!
//! A field that does not exist is a problem here, unlike in other kinds: a mistyped condition would widen a policy.

use super::authorization_rule::PolicyRule;
use super::object::Meta;
use super::reader::{Field, Labels};
use super::target::{self, Target};

/// What is needed of an AuthorizationPolicy.
#[derive(Debug)]
pub(super) struct AuthorizationPolicy {
    pub(super) meta: Meta,
    /// Labels of the workloads that it applies to; `Some` of none is all of them, yet by selector.
    pub(super) selector: Option<Labels>,
    /// Bound to a waypoint, Service or gateway: not for L4.
    pub(super) targets: Vec<Target>,
    pub(super) action: PolicyAction,
    pub(super) dry_run: bool,
    pub(super) rules: Vec<PolicyRule>,
}

/// `spec.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PolicyAction {
    Allow,
    Deny,
    Audit,
    Custom,
}

const ACTIONS: [(&str, PolicyAction); 4] = [
    ("ALLOW", PolicyAction::Allow),
    ("DENY", PolicyAction::Deny),
    ("AUDIT", PolicyAction::Audit),
    ("CUSTOM", PolicyAction::Custom),
];

/// Fields of the object itself.
pub(super) const OBJECT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

const DRY_RUN: &str = "istio.io/dry-run";

impl AuthorizationPolicy {
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Self {
        let mut policy = Self {
            selector: None,
            targets: Vec::new(),
            action: PolicyAction::Allow,
            dry_run: dry_run(root),
            rules: Vec::new(),
            meta,
        };
        root.only(&OBJECT);
        // Without a spec it is an ALLOW without rules: nothing is allowed.
        let Some(spec) = root.get("spec") else { return policy };
        spec.only(&["selector", "targetRef", "targetRefs", "action", "provider", "rules"]);
        policy.selector = selector(&spec);
        policy.targets = target::read(&spec);
        if let Some(action) = spec.get("action").and_then(|action| action.one_of(&ACTIONS)) {
            policy.action = action;
        }
        policy.rules = spec.items("rules").iter().map(PolicyRule::read).collect();
        policy.check(&spec);
        policy
    }

    /// What Istio's admission would refuse of a policy for waypoints.
    fn check(&self, spec: &Field<'_>) {
        if self.targets.is_empty() {
            return; // node proxies are told of these as they are
        }
        let is_custom = self.action == PolicyAction::Custom;
        if self.rules.is_empty() && (is_custom || self.action == PolicyAction::Deny) {
            let seen = "no rules, so that it would never match";
            spec.problem(seen, "allowed: at least one; rules: [{}] matches everything");
        }
        if is_custom != spec.get("provider").is_some() {
            let seen = if is_custom { "CUSTOM without a provider" } else { "a provider without CUSTOM" };
            spec.problem(seen, "allowed: action CUSTOM together with provider.name");
        }
    }
}

/// `spec.selector.matchLabels`, shared with PeerAuthentication.
pub(super) fn selector(spec: &Field<'_>) -> Option<Labels> {
    let selector = spec.get("selector")?;
    selector.only(&["matchLabels"]);
    Some(selector.labels("matchLabels"))
}

fn dry_run(root: &Field<'_>) -> bool {
    let field = root.dig(&["metadata", "annotations", DRY_RUN]);
    field.and_then(|field| field.one_of(&[("true", true), ("false", false)])).unwrap_or(false)
}
