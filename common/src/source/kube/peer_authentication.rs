//! PeerAuthentication: whether a workload takes plaintext, and the DENY policies that L4 makes of it, as istiod does.
//!
//! Mesh, then namespace, then workload: the narrower one wins, UNSET inherits, of several on one level the oldest counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Settings;
use super::authorization_policy::{OBJECT, selector};
use super::object::{Meta, Objects};
use super::pod::Pod;
use super::reader::{Field, Labels, Report, parse_port, selects};
use crate::model::{Action, Authorization, Clause, Match, PeerMode, Rule, Scope, StringMatch};
use crate::types::PolicyKey;

/// Name of the policy, in the root namespace, that denies all plaintext.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// What is needed of a PeerAuthentication.
#[derive(Debug)]
pub(super) struct PeerAuthentication {
    meta: Meta,
    /// Labels of the workloads that it applies to; none, or an empty one, is the whole namespace or mesh.
    selector: Option<Labels>,
    mode: Mtls,
    /// By port of the workload, not of a service.
    ports: BTreeMap<u16, Mtls>,
}

/// `mtls.mode`. DISABLE behaves as PERMISSIVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mtls {
    Unset,
    Strict,
    Permissive,
}

const MODES: [(&str, Mtls); 4] = [
    ("UNSET", Mtls::Unset),
    ("DISABLE", Mtls::Permissive),
    ("PERMISSIVE", Mtls::Permissive),
    ("STRICT", Mtls::Strict),
];

impl PeerAuthentication {
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Self {
        let mut policy = Self { selector: None, mode: Mtls::Unset, ports: BTreeMap::new(), meta };
        if !policy.meta.created.is_empty() && !is_utc(&policy.meta.created) {
            let created = root.dig(&["metadata", "creationTimestamp"]);
            created.into_iter().for_each(|field| field.refuse("a time such as 2024-05-01T12:00:00Z"));
        }
        root.only(&OBJECT);
        let Some(spec) = root.get("spec") else { return policy };
        spec.only(&["selector", "mtls", "portLevelMtls"]);
        policy.selector = selector(&spec).filter(|selector| !selector.is_empty());
        policy.mode = spec.get("mtls").map_or(Mtls::Unset, |mtls| mode(&mtls));
        for (port, mtls) in spec.get("portLevelMtls").map(|ports| ports.entries()).unwrap_or_default() {
            match parse_port(port) {
                Some(port) => drop(policy.ports.insert(port, mode(&mtls))),
                None => mtls.problem(format!("{port:?} as a key"), "allowed: a port number, 1 to 65535"),
            }
        }
        if policy.selector.is_none()
            && let Some(ports) = spec.get("portLevelMtls").filter(|_| !policy.ports.is_empty())
        {
            ports.problem(
                "portLevelMtls without a selector",
                "allowed: together with selector.matchLabels only",
            );
        }
        policy
    }

    fn is_workload_level(&self) -> bool {
        self.selector.is_some()
    }

    fn key(&self) -> PolicyKey {
        let name = format!("converted_peer_authentication_{}", self.meta.name);
        PolicyKey { namespace: Arc::clone(&self.meta.namespace), name: name.into() }
    }

    /// The DENY policy for the ports that differ from the rest of the workload; none if none does.
    fn exceptions(&self, is_base_strict: bool) -> Option<Authorization> {
        let of_mode =
            |wanted: Mtls| self.ports.iter().filter(move |(_, mode)| **mode == wanted).map(|(p, _)| *p);
        let rules: Vec<Rule> = if is_base_strict {
            let open = of_mode(Mtls::Permissive)
                .map(|port| Match { not_destination_ports: vec![port], ..Match::default() });
            let open: Vec<Match> = open.collect();
            let all = std::iter::once(plaintext()).chain(open.clone());
            let clauses = all.map(|one| Clause { matches: vec![one] }).collect();
            if open.is_empty() { Vec::new() } else { vec![Rule { clauses }] }
        } else {
            let closed =
                of_mode(Mtls::Strict).map(|port| Match { destination_ports: vec![port], ..plaintext() });
            closed.map(|one| Rule { clauses: vec![Clause { matches: vec![one] }] }).collect()
        };
        (!rules.is_empty()).then(|| deny(self.key(), rules))
    }
}

fn mode(field: &Field<'_>) -> Mtls {
    field.only(&["mode"]);
    field.get("mode").and_then(|mode| mode.one_of(&MODES)).unwrap_or(Mtls::Unset)
}

/// Times of the API server are in UTC to the second, so that they sort as texts.
fn is_utc(time: &str) -> bool {
    let form = "dddd-dd-ddTdd:dd:ddZ";
    let fits = |(c, f): (char, char)| if f == 'd' { c.is_ascii_digit() } else { c == f };
    time.len() == form.len() && time.chars().zip(form.chars()).all(fits)
}

/// Whoever has no identity.
fn plaintext() -> Match {
    Match { not_principals: vec![StringMatch::Presence], ..Match::default() }
}

fn deny(key: PolicyKey, rules: Vec<Rule>) -> Authorization {
    Authorization { key, scope: Scope::WorkloadSelector, action: Action::Deny, dry_run: false, rules }
}

fn static_strict_key(settings: &Settings) -> PolicyKey {
    PolicyKey { namespace: Arc::clone(&settings.root_namespace), name: STATIC_STRICT.into() }
}

/// The DENY policies for all PeerAuthentications; the one that denies all plaintext is there as soon as there is any.
pub(super) fn translate(objects: &Objects, settings: &Settings, report: &Report) -> Vec<Authorization> {
    let all = &objects.peer_authentications;
    if all.is_empty() {
        return Vec::new();
    }
    let everything = Rule { clauses: vec![Clause { matches: vec![plaintext()] }] };
    let mut policies = vec![deny(static_strict_key(settings), vec![everything])];
    for policy in all.iter().filter(|policy| policy.is_workload_level()) {
        if policy.meta.namespace == settings.root_namespace {
            let seen = "a selector in the root namespace";
            report.warning(policy.meta.at.about("spec.selector", seen, "it has no effect, as in Istio"));
            continue;
        }
        policies.extend(policy.exceptions(base(Some(policy), &policy.meta.namespace, objects, settings)));
    }
    policies
}

/// The policies that `pod` lists: that it takes no plaintext, or on which ports not.
pub(super) fn selecting(pod: &Pod, objects: &Objects, settings: &Settings) -> Vec<PolicyKey> {
    let own = of_workload(pod, objects, settings);
    let is_strict = base(own, &pod.meta.namespace, objects, settings);
    match own.and_then(|own| own.exceptions(is_strict)) {
        Some(exceptions) => vec![exceptions.key], // has the rest of a strict workload in it
        None if is_strict => vec![static_strict_key(settings)],
        None => Vec::new(),
    }
}

/// Which objects decide for `pod`; none if there are no such objects at all.
pub(super) fn mode_of(pod: &Pod, objects: &Objects, settings: &Settings) -> Option<PeerMode> {
    if objects.peer_authentications.is_empty() {
        return None;
    }
    let own = of_workload(pod, objects, settings);
    let by = deciding(own, &pod.meta.namespace, objects, settings);
    let is_strict = by.is_some_and(|by| by.mode == Mtls::Strict);
    let ports_by = own.filter(|own| own.exceptions(is_strict).is_some());
    let object = |policy: &PeerAuthentication| Arc::clone(&policy.meta.at.object);
    Some(PeerMode { is_strict, by: by.map(object), ports_by: ports_by.map(object) })
}

/// The object that selects `pod` by label.
fn of_workload<'o>(pod: &Pod, objects: &'o Objects, settings: &Settings) -> Option<&'o PeerAuthentication> {
    let namespace = &pod.meta.namespace;
    let own = |policy: &&PeerAuthentication| {
        policy.meta.namespace == *namespace
            && *namespace != settings.root_namespace
            && policy.selector.as_ref().is_some_and(|selector| selects(selector, &pod.meta.labels))
    };
    oldest(objects.peer_authentications.iter().filter(own))
}

/// Whether a workload of `namespace` that `own` applies to is strict where no port says otherwise.
fn base(own: Option<&PeerAuthentication>, namespace: &str, objects: &Objects, settings: &Settings) -> bool {
    deciding(own, namespace, objects, settings).is_some_and(|policy| policy.mode == Mtls::Strict)
}

/// The object whose mode counts: of the narrowest level that has one.
fn deciding<'o>(
    own: Option<&'o PeerAuthentication>,
    namespace: &str,
    objects: &'o Objects,
    settings: &Settings,
) -> Option<&'o PeerAuthentication> {
    let of = |namespace: &str| {
        let wide = |p: &&PeerAuthentication| !p.is_workload_level() && &*p.meta.namespace == namespace;
        oldest(objects.peer_authentications.iter().filter(wide))
    };
    let levels = [own, of(namespace), of(&settings.root_namespace)];
    levels.into_iter().flatten().find(|policy| policy.mode != Mtls::Unset)
}

fn oldest<'a>(policies: impl Iterator<Item = &'a PeerAuthentication>) -> Option<&'a PeerAuthentication> {
    policies.min_by(|a, b| (&a.meta.created, &a.meta.name).cmp(&(&b.meta.created, &b.meta.name)))
}
