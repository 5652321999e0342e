//! A policy of the file: a list of rules, each a list of clauses, each a list of matches.

use ipnet::IpNet;

use super::super::kube::reader::Field;
use super::super::kube::yaml::{Kind, LocalTag};
use super::required;
use crate::model::{
    Action, Authorization, Clause, Match, PortSet, Rule, Scope, ServiceAccountMatch, StringMatch,
};
use crate::types::PolicyKey;

pub(super) fn read(of: &Field<'_>) -> Option<Authorization> {
    of.only(&["name", "namespace", "scope", "action", "rules", "dryRun"]);
    for key in ["scope", "action", "rules", "dryRun"] {
        if of.get(key).is_none() {
            of.problem(format!("no {key}"), format!("required: {key}"));
        }
    }
    let scopes = [
        ("Global", Scope::Global),
        ("Namespace", Scope::Namespace),
        ("WorkloadSelector", Scope::WorkloadSelector),
    ];
    let actions = [("Allow", Action::Allow), ("Deny", Action::Deny)];
    let (name, namespace) = (required(of, "name"), required(of, "namespace"));
    let (scope, action) = (of.get("scope")?.one_of(&scopes), of.get("action")?.one_of(&actions));
    let rules = of
        .items("rules")
        .into_iter()
        .map(|field| Rule { clauses: field.list().iter().map(clause).collect() });
    let rules = rules.collect();
    Some(Authorization {
        key: PolicyKey { namespace: namespace?.into(), name: name?.into() },
        scope: scope?,
        action: action?,
        dry_run: of.flag_at("dryRun"),
        rules,
    })
}

fn clause(of: &Field<'_>) -> Clause {
    Clause { matches: of.list().iter().map(one_match).collect() }
}

fn one_match(of: &Field<'_>) -> Match {
    of.only(&[
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "principals",
        "notPrincipals",
        "sourceIps",
        "notSourceIps",
        "destinationIps",
        "notDestinationIps",
        "destinationPorts",
        "notDestinationPorts",
    ]);
    Match {
        namespaces: strings(of, "namespaces"),
        not_namespaces: strings(of, "notNamespaces"),
        principals: strings(of, "principals"),
        not_principals: strings(of, "notPrincipals"),
        service_accounts: accounts(of, "serviceAccounts"),
        not_service_accounts: accounts(of, "notServiceAccounts"),
        source_ips: blocks(of, "sourceIps"),
        not_source_ips: blocks(of, "notSourceIps"),
        destination_ips: blocks(of, "destinationIps"),
        not_destination_ips: blocks(of, "notDestinationIps"),
        destination_ports: port_set(of, "destinationPorts"),
        not_destination_ports: port_set(of, "notDestinationPorts"),
    }
}

fn strings(of: &Field<'_>, key: &str) -> Vec<StringMatch> {
    of.items(key).iter().filter_map(string).collect()
}

fn string(field: &Field<'_>) -> Option<StringMatch> {
    let text = match &field.node().kind {
        Kind::Scalar { text, .. } => Some(text),
        Kind::Sequence(_) | Kind::Mapping(_) => None,
    };
    match (field.node().tag, text) {
        (Some(LocalTag::Exact), Some(text)) => Some(StringMatch::Exact((**text).into())),
        (Some(LocalTag::Prefix), Some(text)) => Some(StringMatch::Prefix((**text).into())),
        (Some(LocalTag::Suffix), Some(text)) => Some(StringMatch::Suffix((**text).into())),
        (Some(LocalTag::Presence), _) => Some(StringMatch::Presence),
        _ => {
            field.refuse("!Exact text, !Prefix text, !Suffix text, !Presence []");
            None
        }
    }
}

fn accounts(of: &Field<'_>, key: &str) -> Vec<ServiceAccountMatch> {
    let one = |field: &Field<'_>| {
        field.only(&["namespace", "serviceAccount"]);
        let (namespace, account) = (required(field, "namespace"), required(field, "serviceAccount"));
        Some(ServiceAccountMatch { namespace: namespace?.into(), service_account: account?.into() })
    };
    of.items(key).iter().filter_map(one).collect()
}

fn blocks(of: &Field<'_>, key: &str) -> Option<Vec<IpNet>> {
    let all = of.items(key);
    (!all.is_empty()).then(|| all.iter().filter_map(Field::block).collect())
}

fn port_set(of: &Field<'_>, key: &str) -> PortSet {
    of.items(key).iter().filter_map(Field::port).collect()
}
