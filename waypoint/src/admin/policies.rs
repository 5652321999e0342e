//! Policies as JSON, with the names that an AuthorizationPolicy has.

use std::fmt::Display;

use culvert_common::model::l7::{
    Access, Condition, Operation, PathMatch, Policies, Policy, PolicyRule, Source,
};
use serde_json::{Map, Value, json};

use super::routes::{list, object};

pub(super) fn policies(policies: &Policies) -> Value {
    let Policies { deny, allow, audit, broken } = policies;
    let broken = list(
        broken,
        |fault| json!({ "kind": fault.kind, "policy": fault.key.to_string(), "reason": &*fault.reason }),
    );
    let all = |of: &[std::sync::Arc<Policy>]| list(of, |one| policy(one));
    object([("broken", broken), ("deny", all(deny)), ("allow", all(allow)), ("audit", all(audit))])
}

fn policy(policy: &Policy) -> Value {
    object([
        ("policy", json!(policy.key.to_string())),
        ("dryRun", if policy.dry_run { json!(true) } else { Value::Null }),
        ("rules", list(&policy.rules, rule)),
    ])
}

fn rule(rule: &PolicyRule) -> Value {
    let PolicyRule { from, to, when } = rule;
    object([("from", list(from, source)), ("to", list(to, operation)), ("when", list(when, condition))])
}

/// Adds `name` and `notName`, if there is any of them.
fn put<T>(fields: &mut Map<String, Value>, name: &str, access: &Access<T>, text: impl Fn(&T) -> String) {
    let mut put = |name: String, values: &[T]| {
        if !values.is_empty() {
            fields.insert(name, json!(values.iter().map(&text).collect::<Vec<_>>()));
        }
    };
    put(name.to_owned(), &access.values);
    let mut letters = name.chars();
    let capital = letters.next().map(|letter| letter.to_ascii_uppercase());
    put(format!("not{}{}", capital.unwrap_or_default(), letters.as_str()), &access.not_values);
}

fn text<T: Display>(value: &T) -> String {
    value.to_string()
}

fn source(source: &Source) -> Value {
    let Source { principals, namespaces, service_accounts, trust_domains, ip_blocks, remote_ip_blocks } =
        source;
    let mut fields = Map::new();
    put(&mut fields, "principals", principals, text);
    put(&mut fields, "namespaces", namespaces, text);
    put(&mut fields, "serviceAccounts", service_accounts, text);
    put(&mut fields, "trustDomains", trust_domains, text);
    put(&mut fields, "ipBlocks", ip_blocks, text);
    put(&mut fields, "remoteIpBlocks", remote_ip_blocks, text);
    Value::Object(fields)
}

fn operation(operation: &Operation) -> Value {
    let Operation { hosts, ports, methods, paths } = operation;
    let mut fields = Map::new();
    put(&mut fields, "hosts", hosts, text);
    put(&mut fields, "ports", ports, text);
    put(&mut fields, "methods", methods, text);
    put(&mut fields, "paths", paths, |path| match path {
        PathMatch::Text(text) => text.to_string(),
        PathMatch::Template { text, .. } => text.to_string(),
    });
    Value::Object(fields)
}

fn condition(condition: &Condition) -> Value {
    fn of<T: Display>(key: impl Into<String>, access: &Access<T>) -> Value {
        let mut fields = Map::new();
        fields.insert("key".to_owned(), Value::String(key.into()));
        put(&mut fields, "values", access, text);
        Value::Object(fields)
    }
    match condition {
        Condition::RequestHeader { name, values } => of(format!("request.headers[{name}]"), values),
        Condition::SourceIp(nets) => of("source.ip", nets),
        Condition::RemoteIp(nets) => of("remote.ip", nets),
        Condition::SourceNamespace(texts) => of("source.namespace", texts),
        Condition::SourcePrincipal(texts) => of("source.principal", texts),
        Condition::SourceServiceAccount(accounts) => of("source.serviceAccount", accounts),
        Condition::SourceTrustDomain(texts) => of("source.trustDomain", texts),
        Condition::DestinationIp(nets) => of("destination.ip", nets),
        Condition::DestinationPort(ports) => of("destination.port", ports),
        Condition::ServerName(texts) => of("connection.sni", texts),
    }
}
