//! `targetRef` and `targetRefs`: what a policy is bound to. Source: Istio, PolicyTargetReference.

use std::sync::Arc;

use super::Settings;
use super::object::{Meta, Objects};
use super::reader::{Field, Report};
use crate::model::Model;

/// What one reference names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) kind: TargetKind,
    pub(super) name: Arc<str>,
    /// Path for reports.
    pub(super) path: String,
}

/// Of which kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetKind {
    Gateway,
    GatewayClass,
    Service,
    ServiceEntry,
}

const KINDS: [(&str, &str, TargetKind); 5] = [
    ("gateway.networking.k8s.io", "Gateway", TargetKind::Gateway),
    ("gateway.networking.k8s.io", "GatewayClass", TargetKind::GatewayClass),
    ("", "Service", TargetKind::Service),
    ("core", "Service", TargetKind::Service),
    ("networking.istio.io", "ServiceEntry", TargetKind::ServiceEntry),
];
const ALLOWED: &str =
    "Gateway or GatewayClass of gateway.networking.k8s.io, Service, ServiceEntry of networking.istio.io";
/// Most targets of one policy.
const TARGETS_MAX: usize = 16;

/// All targets of a spec; a policy with a selector has none.
pub(super) fn read(spec: &Field<'_>) -> Vec<Target> {
    let several = spec.items("targetRefs");
    let one = spec.get("targetRef");
    let is_said = one.is_some() || !several.is_empty();
    if is_said && spec.get("selector").is_some() {
        spec.problem("both selector and targetRefs", "allowed: one of the two");
    }
    if one.is_some() && !several.is_empty() {
        spec.problem("both targetRef and targetRefs", "allowed: targetRefs with all of them");
    }
    if several.len() > TARGETS_MAX {
        spec.problem(format!("{} targetRefs", several.len()), format!("allowed: at most {TARGETS_MAX}"));
    }
    one.iter().chain(&several).filter_map(target).collect()
}

fn target(field: &Field<'_>) -> Option<Target> {
    field.only(&["group", "kind", "name", "namespace"]);
    let group = field.text_at("group").unwrap_or("");
    let kind = field.text_at("kind").unwrap_or("");
    let Some((.., kind)) = KINDS.iter().find(|(g, k, _)| (*g, *k) == (group, kind)) else {
        field.problem(format!("kind {kind:?} of group {group:?}"), format!("allowed: {ALLOWED}"));
        return None;
    };
    if let Some(namespace) = field.get("namespace").filter(|n| n.text().is_some_and(|text| !text.is_empty()))
    {
        namespace.refuse("no such field: a policy is for what is in its own namespace");
    }
    let Some(name) = field.text_at("name") else {
        field.problem("no name", "allowed: the name of what the policy is for");
        return None;
    };
    Some(Target { kind: *kind, name: name.into(), path: field.path().to_owned() })
}

/// What targets may be.
pub(super) struct Known<'a> {
    pub(super) objects: &'a Objects,
    pub(super) settings: &'a Settings,
    pub(super) model: &'a Model,
}

/// Reports targets of all policies that cannot be, and those that no waypoint stands before: nobody evaluates these.
pub(super) fn check(known: &Known<'_>, report: &Report) {
    let Known { objects, settings, .. } = known;
    let policies = objects.authorization_policies.iter().map(|policy| (&policy.meta, &policy.targets));
    let tokens = objects.request_authentications.iter().map(|object| (&object.meta, &object.targets));
    for (meta, targets) in policies.chain(tokens) {
        for target in targets {
            let is_root = meta.namespace == settings.root_namespace;
            if target.kind == TargetKind::GatewayClass && !is_root {
                let seen = format!("a GatewayClass in namespace {}", meta.namespace);
                let root = &settings.root_namespace;
                let what =
                    format!("nobody evaluates the policy for it; allowed: in the root namespace {root}");
                report.warning(meta.at.about(&target.path, seen, what));
            } else if let Some(seen) = nobody(meta, target, known) {
                report.warning(meta.at.about(&target.path, seen, "nobody evaluates the policy for it"));
            }
        }
    }
}

/// Why nobody evaluates a policy for this target.
fn nobody(meta: &Meta, target: &Target, known: &Known<'_>) -> Option<String> {
    let Known { objects, settings, model } = known;
    let is_it = |of: &Meta| of.name == target.name && of.namespace == meta.namespace;
    let is_bound = |key| model.services.iter().any(|s| s.key == key && s.waypoint.is_some());
    let found = match target.kind {
        // One that is no waypoint is somebody else's, who evaluates policies as well.
        TargetKind::Gateway => objects.gateways.iter().find(|of| is_it(&of.meta)).map(|_| true),
        TargetKind::GatewayClass => {
            let mut of_class = objects.gateways.iter().filter(|of| of.class == target.name);
            of_class.next().map(|_| true)
        }
        TargetKind::Service => {
            objects.services.iter().find(|of| is_it(&of.meta)).map(|of| is_bound(of.key(settings)))
        }
        TargetKind::ServiceEntry => objects
            .service_entries
            .iter()
            .find(|of| is_it(&of.meta))
            .map(|of| of.hosts.iter().any(|host| is_bound(of.key(host)))),
    };
    let name = &target.name;
    match found {
        Some(true) => None,
        Some(false) => Some(format!("{:?} {name} has no waypoint", target.kind)),
        None if target.kind == TargetKind::GatewayClass => Some(format!("no Gateway of class {name}")),
        None => Some(format!("no {:?} {name} in namespace {}", target.kind, meta.namespace)),
    }
}
