//! Authorization policies as a waypoint evaluates them: those that name it, its class, or a service behind it.
//!
//! Policies with a selector, or without any target, are the node proxies'. What cannot be evaluated here closes what it is
//! for and says so; as long as it would enforce nothing, in a dry run or as AUDIT, it is a warning only.

use std::collections::HashMap;
use std::sync::Arc;

use super::Mesh;
use super::principals::expanded;
use crate::model::l7::{
    self, Access, Condition, Effect, PathMatch, Policies, Policy, PolicyFault, PolicyRule, Texts,
};
use crate::model::{Condition as StatusCondition, Status, StringMatch};
use crate::source::kube::authorization;
use crate::source::kube::authorization_policy::{AuthorizationPolicy, PolicyAction};
use crate::source::kube::authorization_rule::{self as written, Blocks, Strings, Test};
use crate::source::kube::object::Meta;
use crate::source::kube::request_authentication::RequestAuthentication;
use crate::source::kube::target::{Target, TargetKind};
use crate::types::{PolicyKey, ServiceKey};

const ACCEPTED: &str = "WaypointAccepted";

/// All policies with a target that is here, read once.
pub(super) struct Bindings {
    /// Of the Gateway and its class.
    wide: Policies,
    /// Of one service each.
    of: HashMap<ServiceKey, Policies>,
    pub(super) statuses: Vec<Status>,
}

impl Bindings {
    pub(super) fn read(mesh: &Mesh<'_>, bound: &dyn Fn(&ServiceKey) -> bool) -> Self {
        let mut all = Self { wide: Policies::default(), of: HashMap::new(), statuses: Vec::new() };
        let mut policies: Vec<&AuthorizationPolicy> = mesh.objects.authorization_policies.iter().collect();
        policies.sort_by_key(|policy| authorization::key(policy));
        for policy in policies {
            let AuthorizationPolicy { meta, targets, .. } = policy;
            let object = Object { kind: "AuthorizationPolicy", meta, targets };
            all.add(mesh, &object, bound, &|| outcome(mesh, policy));
        }
        for RequestAuthentication { meta, targets } in &mesh.objects.request_authentications {
            let fault = || Outcome::Broken("tokens are not verified here yet".into());
            let object = Object { kind: "RequestAuthentication", meta, targets };
            all.add(mesh, &object, bound, &fault);
        }
        all
    }

    /// The policies of the Gateway and its class, and those of `service`.
    pub(super) fn of(&self, service: Option<&ServiceKey>) -> Policies {
        let mut policies = self.wide.clone();
        let Some(more) = service.and_then(|service| self.of.get(service)) else { return policies };
        for (all, more) in [
            (&mut policies.deny, &more.deny),
            (&mut policies.allow, &more.allow),
            (&mut policies.audit, &more.audit),
        ] {
            all.extend(more.iter().cloned());
            all.sort_by(|a, b| a.key.cmp(&b.key));
            all.dedup_by(|a, b| a.key == b.key);
        }
        policies.broken.extend(more.broken.iter().cloned());
        policies.broken.sort_by(|a, b| a.key.cmp(&b.key));
        policies.broken.dedup();
        policies
    }

    fn add(
        &mut self,
        mesh: &Mesh<'_>,
        object: &Object<'_>,
        bound: &dyn Fn(&ServiceKey) -> bool,
        outcome: &dyn Fn() -> Outcome,
    ) {
        let Object { kind, meta, targets } = *object;
        if targets.is_empty() {
            return;
        }
        let found: Vec<Attached> = targets.iter().map(|target| attach(mesh, meta, target, bound)).collect();
        self.statuses.extend(status(object, &found));
        if !found.iter().any(Attached::is_here) {
            return;
        }
        let key = PolicyKey { namespace: Arc::clone(&meta.namespace), name: Arc::clone(&meta.name) };
        let outcome = outcome();
        if let Outcome::Broken(reason) = &outcome {
            let seen = format!("{reason}; a {kind} that cannot be evaluated closes what it is for");
            mesh.report.warning(meta.at.about("spec", seen, "everything there is denied"));
        }
        for at in found {
            match at {
                Attached::Wide => outcome.put(kind, &key, &mut self.wide),
                Attached::Services(services) => {
                    for service in services {
                        outcome.put(kind, &key, self.of.entry(service).or_default());
                    }
                }
                Attached::Elsewhere | Attached::Unbound | Attached::Unknown => {}
            }
        }
    }
}

/// An object that is bound to targets.
struct Object<'a> {
    kind: &'static str,
    meta: &'a Meta,
    targets: &'a [Target],
}

/// What a target comes to.
enum Attached {
    /// It is this waypoint, or its class.
    Wide,
    /// Services that are bound to this waypoint.
    Services(Vec<ServiceKey>),
    /// It is another waypoint's, or another gateway: they have a say, not this one.
    Elsewhere,
    /// It is there, without any waypoint.
    Unbound,
    /// It is not there.
    Unknown,
}

impl Attached {
    fn is_here(&self) -> bool {
        matches!(self, Self::Wide | Self::Services(_))
    }
}

fn attach(mesh: &Mesh<'_>, meta: &Meta, target: &Target, bound: &dyn Fn(&ServiceKey) -> bool) -> Attached {
    let known = |exists: bool| if exists { Attached::Elsewhere } else { Attached::Unknown };
    let has_waypoint =
        |key: &ServiceKey| mesh.model.services.iter().any(|s| s.key == *key && s.waypoint.is_some());
    let keys: Vec<ServiceKey> = match target.kind {
        TargetKind::Gateway => {
            let own = &mesh.gateway.meta;
            if own.name == target.name && own.namespace == meta.namespace {
                return Attached::Wide;
            }
            let mut others = mesh.objects.gateways.iter().map(|gateway| &gateway.meta);
            return known(others.any(|of| of.name == target.name && of.namespace == meta.namespace));
        }
        TargetKind::GatewayClass => {
            // Elsewhere than in the root namespace it counts for nobody.
            if meta.namespace != mesh.settings.root_namespace {
                return Attached::Unknown;
            }
            if mesh.gateway.class == target.name {
                return Attached::Wide;
            }
            return known(mesh.objects.gateway_classes.contains_key(&target.name));
        }
        TargetKind::Service => {
            let mut services = mesh.objects.services.iter();
            let of = services.find(|s| s.meta.name == target.name && s.meta.namespace == meta.namespace);
            of.map(|service| service.key(mesh.settings)).into_iter().collect()
        }
        TargetKind::ServiceEntry => {
            let mut entries = mesh.objects.service_entries.iter();
            let of = entries.find(|e| e.meta.name == target.name && e.meta.namespace == meta.namespace);
            of.map(|entry| entry.hosts.iter().map(|host| entry.key(host)).collect()).unwrap_or_default()
        }
    };
    match keys.iter().filter(|key| bound(key)).cloned().collect::<Vec<_>>() {
        here if !here.is_empty() => Attached::Services(here),
        _ if !keys.is_empty() && !keys.iter().any(has_waypoint) => Attached::Unbound,
        _ => known(!keys.is_empty()),
    }
}

/// One condition for all targets; none if all are others'. Source: Istio, WaypointAccepted.
fn status(object: &Object<'_>, found: &[Attached]) -> Option<Status> {
    if found.iter().all(|found| matches!(found, Attached::Elsewhere)) {
        return None;
    }
    let Object { kind, meta, targets } = *object;
    let named = |is: fn(&Attached) -> bool| -> Vec<String> {
        let some = targets.iter().zip(found).filter(|(_, found)| is(found));
        some.map(|(target, _)| format!("{:?} {}/{}", target.kind, meta.namespace, target.name)).collect()
    };
    let here = named(Attached::is_here);
    let unknown = named(|found| matches!(found, Attached::Unknown));
    let unbound = named(|found| matches!(found, Attached::Unbound));
    let condition = match (here.is_empty(), unknown.is_empty()) {
        (false, true) => StatusCondition::yes(ACCEPTED, "Accepted", format!("bound to {}", here.join(", "))),
        (false, false) => {
            let message = format!("bound to {}; not found: {}", here.join(", "), unknown.join(", "));
            StatusCondition::no(ACCEPTED, "PartiallyInvalid", message)
        }
        (true, false) => {
            StatusCondition::no(ACCEPTED, "TargetNotFound", format!("not found: {}", unknown.join(", ")))
        }
        (true, true) => {
            let message = format!("not bound to any waypoint: {}", unbound.join(", "));
            StatusCondition::no(ACCEPTED, "AncestorNotBound", message)
        }
    };
    Some(Status {
        kind,
        namespace: Arc::clone(&meta.namespace),
        name: Arc::clone(&meta.name),
        part: None,
        conditions: vec![condition],
    })
}

/// What becomes of a policy.
enum Outcome {
    Policy(Arc<Policy>),
    Broken(Arc<str>),
    Nothing,
}

impl Outcome {
    fn put(&self, kind: &'static str, key: &PolicyKey, policies: &mut Policies) {
        match self {
            Self::Policy(policy) => {
                let list = match policy.effect {
                    Effect::Deny => &mut policies.deny,
                    Effect::Allow => &mut policies.allow,
                    Effect::Audit => &mut policies.audit,
                };
                if !list.iter().any(|other| other.key == policy.key) {
                    list.push(Arc::clone(policy));
                }
            }
            Self::Broken(reason) => {
                let fault = PolicyFault { kind, key: key.clone(), reason: Arc::clone(reason) };
                if !policies.broken.contains(&fault) {
                    policies.broken.push(fault);
                }
            }
            Self::Nothing => {}
        }
    }
}

fn outcome(mesh: &Mesh<'_>, policy: &AuthorizationPolicy) -> Outcome {
    let effect = match policy.action {
        PolicyAction::Allow => Some(Effect::Allow),
        PolicyAction::Deny => Some(Effect::Deny),
        PolicyAction::Audit => Some(Effect::Audit),
        PolicyAction::Custom => None,
    };
    let rules: Result<Vec<PolicyRule>, String> =
        policy.rules.iter().map(|rule| of_rule(rule, mesh.settings)).collect();
    let why = match (effect, rules) {
        (Some(effect), Ok(rules)) => {
            let key = authorization::key(policy);
            return Outcome::Policy(Arc::new(Policy { key, effect, dry_run: policy.dry_run, rules }));
        }
        (None, _) => "external authorization (CUSTOM) is not built yet".to_owned(),
        (_, Err(why)) => why,
    };
    if policy.dry_run || effect == Some(Effect::Audit) {
        let what = "the policy has no effect; it would enforce nothing anyhow";
        mesh.report.warning(policy.meta.at.about("spec", why, what));
        return Outcome::Nothing;
    }
    Outcome::Broken(why.into())
}

/// **Errors**: what it asks for that is not built yet.
fn of_rule(rule: &written::PolicyRule, settings: &super::Settings) -> Result<PolicyRule, String> {
    if rule.from.iter().any(|source| source.needs_token) {
        return Err(format!(
            "{} asks for request principals, and tokens are not verified here yet",
            rule.path
        ));
    }
    let when: Result<Vec<Condition>, String> =
        rule.when.iter().map(|condition| of_condition(rule, condition, settings)).collect();
    Ok(PolicyRule {
        from: rule.from.iter().map(|source| of_source(source, settings)).collect(),
        to: rule.to.iter().map(of_operation).collect(),
        when: when?,
    })
}

fn of_source(source: &written::Source, settings: &super::Settings) -> l7::Source {
    l7::Source {
        principals: principals(&source.principals, settings),
        namespaces: access(&source.namespaces),
        service_accounts: access(&source.service_accounts),
        trust_domains: trust_domains(&source.trust_domains, settings),
        ip_blocks: blocks(&source.ip_blocks),
        remote_ip_blocks: blocks(&source.remote_ip_blocks),
    }
}

fn of_operation(operation: &written::Operation) -> l7::Operation {
    l7::Operation {
        hosts: Access { values: lower(&operation.hosts.0), not_values: lower(&operation.hosts.1) },
        ports: access(&operation.ports),
        methods: access(&operation.methods),
        paths: Access::<PathMatch> {
            values: operation.paths.0.clone(),
            not_values: operation.paths.1.clone(),
        },
    }
}

fn of_condition(
    rule: &written::PolicyRule,
    condition: &written::Condition,
    settings: &super::Settings,
) -> Result<Condition, String> {
    Ok(match &condition.test {
        Test::SourceIp(of) => Condition::SourceIp(blocks(of)),
        Test::SourceNamespace(of) => Condition::SourceNamespace(access(of)),
        Test::SourcePrincipal(of) => Condition::SourcePrincipal(principals(of, settings)),
        Test::SourceServiceAccount(of) => Condition::SourceServiceAccount(access(of)),
        Test::SourceTrustDomain(of) => Condition::SourceTrustDomain(trust_domains(of, settings)),
        Test::DestinationIp(of) => Condition::DestinationIp(blocks(of)),
        Test::DestinationPort(some, not) => {
            Condition::DestinationPort(Access { values: some.clone(), not_values: not.clone() })
        }
        Test::RemoteIp(of) => Condition::RemoteIp(blocks(of)),
        Test::ServerName(of) => Condition::ServerName(access(of)),
        Test::RequestHeader(name, of) => {
            Condition::RequestHeader { name: Arc::clone(name), values: access(of) }
        }
        Test::Token => {
            let key = &condition.key;
            return Err(format!("{} asks for {key}, and tokens are not verified here yet", rule.path));
        }
        Test::EnvoyMetadata => {
            let key = &condition.key;
            return Err(format!("{} asks for {key}, which only filters of Envoy's know", rule.path));
        }
    })
}

fn access<T: Clone>((values, not_values): &(Vec<T>, Vec<T>)) -> Access<T> {
    Access { values: values.clone(), not_values: not_values.clone() }
}

fn blocks((values, not_values): &Blocks) -> Access<ipnet::IpNet> {
    let of = |list: &Option<Vec<ipnet::IpNet>>| list.clone().unwrap_or_default();
    Access { values: of(values), not_values: of(not_values) }
}

fn principals((values, not_values): &Strings, settings: &super::Settings) -> Texts {
    Access { values: expanded(values, settings), not_values: expanded(not_values, settings) }
}

/// The local trust domain by its name in policies.
fn trust_domains((values, not_values): &Strings, settings: &super::Settings) -> Texts {
    let local = |texts: &[StringMatch]| super::principals::of_trust_domains(texts, settings);
    Access { values: local(values), not_values: local(not_values) }
}

/// Host names know no case.
fn lower(texts: &[StringMatch]) -> Vec<StringMatch> {
    let lower = |text: &Arc<str>| Arc::from(text.to_ascii_lowercase());
    let one = |text: &StringMatch| match text {
        StringMatch::Exact(text) => StringMatch::Exact(lower(text)),
        StringMatch::Prefix(text) => StringMatch::Prefix(lower(text)),
        StringMatch::Suffix(text) => StringMatch::Suffix(lower(text)),
        StringMatch::Presence => StringMatch::Presence,
    };
    texts.iter().map(one).collect()
}
