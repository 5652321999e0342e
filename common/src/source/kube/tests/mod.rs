//! YAML in, model out, as text that is short enough to read. One module per kind of question.

mod background;
mod entries;
mod objects;
mod policies;
mod problems;
mod robust;
mod waypoint_policies;
mod waypoints;

use super::*;
use crate::model::{Authorization, Endpoint, Health, Match, Scope, StringMatch};

/// Translates one file that must be good.
fn translated(text: &str, settings: &Settings) -> Translated {
    translate(&[Document { file: "a.yaml", text }], settings)
        .unwrap_or_else(|problems| panic!("{}", lines(&problems).join("\n")))
}

fn model(text: &str) -> Model {
    translated(text, &Settings::default()).model
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// The warnings of one good file.
fn warnings(text: &str) -> Vec<String> {
    lines(&translated(text, &Settings::default()).warnings)
}

/// The problems of one bad file.
fn problems(text: &str) -> Vec<String> {
    match translate(&[Document { file: "a.yaml", text }], &Settings::default()) {
        Ok(_) => panic!("no problem in\n{text}"),
        Err(problems) => lines(&problems),
    }
}

/// A namespace in the mesh.
const SHOP: &str =
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}";

/// A pod of `shop`, with `meta` in its metadata, `spec` in its spec and `status` in its status.
fn pod(name: &str, ip: &str, meta: &str, spec: &str, status: &str) -> String {
    format!(
        "\n---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, {meta}}}, spec: {{{spec}}}, \
         status: {{podIPs: [{{ip: \"{ip}\"}}], {status}}}}}\n"
    )
}

fn object(kind: &str, name: &str, rest: &str) -> String {
    let version = match kind {
        "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io/v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        _ => "v1",
    };
    format!(
        "\n---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n{rest}\n"
    )
}

/// `<uid>@<port map> <health>` of each endpoint.
fn shown(endpoints: &[Endpoint]) -> Vec<String> {
    let mut all: Vec<String> =
        endpoints.iter().map(|e| format!("{} {:?} {:?}", e.workload, e.ports, e.health)).collect();
    all.sort();
    all
}

/// A policy in one line: `action scope [rule OR rule]`, a rule being `clause & clause`, a clause `match | match`.
fn policy(policy: &Authorization) -> String {
    let rules: Vec<String> = policy
        .rules
        .iter()
        .map(|rule| {
            let clause = |c: &crate::model::Clause| c.matches.iter().map(one).collect::<Vec<_>>().join(" | ");
            rule.clauses.iter().map(clause).collect::<Vec<_>>().join(" & ")
        })
        .collect();
    let dry = if policy.dry_run { " dry" } else { "" };
    let scope = match policy.scope {
        Scope::Global => "global",
        Scope::Namespace => "namespace",
        Scope::WorkloadSelector => "selector",
    };
    format!("{} {:?} {scope}{dry} [{}]", policy.key, policy.action, rules.join(" OR "))
}

fn one(of: &Match) -> String {
    let mut parts = Vec::new();
    let text = |s: &StringMatch| match s {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => "*".into(),
    };
    for (name, list) in [
        ("ns", &of.namespaces),
        ("!ns", &of.not_namespaces),
        ("principal", &of.principals),
        ("!principal", &of.not_principals),
    ] {
        if !list.is_empty() {
            parts.push(format!("{name}={}", list.iter().map(text).collect::<Vec<_>>().join(",")));
        }
    }
    for (name, list) in [("sa", &of.service_accounts), ("!sa", &of.not_service_accounts)] {
        if !list.is_empty() {
            let list: Vec<_> =
                list.iter().map(|s| format!("{}/{}", s.namespace, s.service_account)).collect();
            parts.push(format!("{name}={}", list.join(",")));
        }
    }
    for (name, list) in [
        ("src", &of.source_ips),
        ("!src", &of.not_source_ips),
        ("dst", &of.destination_ips),
        ("!dst", &of.not_destination_ips),
    ] {
        if let Some(list) = list {
            let list: Vec<_> = list.iter().map(ToString::to_string).collect();
            parts.push(format!("{name}={}", list.join(",")));
        }
    }
    for (name, list) in [("port", &of.destination_ports), ("!port", &of.not_destination_ports)] {
        if !list.is_empty() {
            let list: Vec<_> = list.iter().map(ToString::to_string).collect();
            parts.push(format!("{name}={}", list.join(",")));
        }
    }
    if parts.is_empty() { "nothing".into() } else { parts.join(" ") }
}
