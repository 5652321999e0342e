//! `istio.security.Authorization` → [`Authorization`].

use ipnet::IpNet;
use prost::Message;

use super::{Unusable, ip, port};
use crate::model::{
    Action, Authorization, Clause, Match, PortSet, Rule, Scope, ServiceAccountMatch, StringMatch,
};
use crate::types::PolicyKey;
use crate::xds::proto::security as proto;

pub(super) fn translate(message: proto::Authorization) -> Result<Authorization, Unusable> {
    if message.name.is_empty() {
        return Err(Unusable::Missing("name"));
    }
    let scope = match message.scope {
        0 => Scope::Global,
        1 => Scope::Namespace,
        2 => Scope::WorkloadSelector,
        value => return Err(Unusable::UnknownValue { field: "scope", value }),
    };
    let action = match message.action {
        0 => Action::Allow,
        1 => Action::Deny,
        value => return Err(Unusable::UnknownValue { field: "action", value }),
    };
    Ok(Authorization {
        key: PolicyKey { namespace: message.namespace.into(), name: message.name.into() },
        scope,
        action,
        dry_run: message.dry_run,
        rules: message.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
    })
}

/// What stands in for a policy that cannot be used and of which no earlier version is known: it denies everything to
/// whom the policy would apply, so that nothing gets in because this agent did not understand.
///
/// `None`: whoever lists it fails closed anyway, or it only logs, or nothing tells to whom it applies.
pub(in crate::xds) fn closed(resource: &str, body: &[u8]) -> Option<Authorization> {
    let (namespace, name) = resource.split_once('/')?;
    let said = proto::Authorization::decode(body)
        .unwrap_or(proto::Authorization { scope: -1, ..Default::default() });
    let scope = match said.scope {
        0 => Scope::Global,
        2 => return None,
        _ => Scope::Namespace,
    };
    let key = PolicyKey { namespace: namespace.into(), name: name.into() };
    let rules = vec![Rule::default()];
    (!said.dry_run).then_some(Authorization { key, scope, action: Action::Deny, dry_run: false, rules })
}

fn rule(message: proto::Rule) -> Result<Rule, Unusable> {
    Ok(Rule { clauses: message.clauses.into_iter().map(clause).collect::<Result<_, _>>()? })
}

fn clause(message: proto::Clause) -> Result<Clause, Unusable> {
    Ok(Clause { matches: message.matches.into_iter().map(one_match).collect::<Result<_, _>>()? })
}

fn one_match(message: proto::Match) -> Result<Match, Unusable> {
    Ok(Match {
        namespaces: strings(message.namespaces)?,
        not_namespaces: strings(message.not_namespaces)?,
        principals: strings(message.principals)?,
        not_principals: strings(message.not_principals)?,
        service_accounts: accounts(message.service_accounts),
        not_service_accounts: accounts(message.not_service_accounts),
        source_ips: blocks(&message.source_ips),
        not_source_ips: blocks(&message.not_source_ips),
        destination_ips: blocks(&message.destination_ips),
        not_destination_ips: blocks(&message.not_destination_ips),
        destination_ports: ports("destination_ports", &message.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &message.not_destination_ports)?,
    })
}

fn strings(messages: Vec<proto::StringMatch>) -> Result<Vec<StringMatch>, Unusable> {
    let one = |message: proto::StringMatch| match message.kind {
        Some(proto::MatchKind::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(proto::MatchKind::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(proto::MatchKind::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(proto::MatchKind::Presence(_)) => Ok(StringMatch::Presence),
        None => Err(Unusable::NotSupported("a text matcher other than exact, prefix, suffix or presence")),
    };
    messages.into_iter().map(one).collect()
}

fn accounts(messages: Vec<proto::ServiceAccountMatch>) -> Vec<ServiceAccountMatch> {
    let one = |message: proto::ServiceAccountMatch| ServiceAccountMatch {
        namespace: message.namespace.into(),
        service_account: message.service_account.into(),
    };
    messages.into_iter().map(one).collect()
}

/// A list with a block that cannot be read is one of which nothing could be read, see [`Match`]: without that block a
/// list of exceptions would let more in, and so would a list of whom to deny.
fn blocks(messages: &[proto::Address]) -> Option<Vec<IpNet>> {
    let one = |message: &proto::Address| {
        let bits = u8::try_from(message.length).ok()?;
        IpNet::new(ip("", &message.address).ok()?, bits).ok()
    };
    (!messages.is_empty()).then(|| messages.iter().map(one).collect::<Option<_>>().unwrap_or_default())
}

fn ports(field: &'static str, all: &[u32]) -> Result<PortSet, Unusable> {
    all.iter().map(|one| port(field, *one)).collect()
}
