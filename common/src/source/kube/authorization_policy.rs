//! AuthorizationPolicy: reading it. What L4 makes of it is in [`super::authorization`].
//!
//! A field that does not exist is a problem here, unlike in other kinds: a mistyped condition would widen a policy.

use ipnet::IpNet;

use super::object::Meta;
use super::reader::{Field, Labels, parse_port};
use crate::model::{ServiceAccountMatch, StringMatch};

/// What is needed of an AuthorizationPolicy.
#[derive(Debug)]
pub(super) struct AuthorizationPolicy {
    pub(super) meta: Meta,
    /// Labels of the workloads that it applies to; `Some` of none is all of them, yet by selector.
    pub(super) selector: Option<Labels>,
    /// Bound to a waypoint, Service or gateway: not for L4.
    pub(super) has_target: bool,
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

/// One of `spec.rules`.
#[derive(Debug)]
pub(super) struct PolicyRule {
    /// Path for reports.
    pub(super) path: String,
    pub(super) from: Vec<Source>,
    pub(super) to: Vec<Operation>,
    pub(super) when: Vec<Condition>,
}

/// `from[].source`; `http` are the names of its fields that L4 cannot see.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) principals: Strings,
    pub(super) namespaces: Strings,
    pub(super) service_accounts: (Vec<ServiceAccountMatch>, Vec<ServiceAccountMatch>),
    pub(super) ip_blocks: (Option<Vec<IpNet>>, Option<Vec<IpNet>>),
    pub(super) http: Vec<&'static str>,
}

/// `to[].operation`; `http` are the names of its fields that L4 cannot see.
#[derive(Debug, Default)]
pub(super) struct Operation {
    pub(super) ports: (Vec<u16>, Vec<u16>),
    pub(super) http: Vec<&'static str>,
}

/// One of `when`.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    SourceIp(Option<Vec<IpNet>>, Option<Vec<IpNet>>),
    SourceNamespace(Strings),
    SourcePrincipal(Strings),
    DestinationIp(Option<Vec<IpNet>>, Option<Vec<IpNet>>),
    DestinationPort(Vec<u16>, Vec<u16>),
    /// A key that L4 cannot see.
    Http(String),
}

/// Values and values that must not be.
pub(super) type Strings = (Vec<StringMatch>, Vec<StringMatch>);

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
            has_target: false,
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
        policy.has_target = spec.get("targetRef").is_some() || !spec.items("targetRefs").is_empty();
        if let Some(action) = spec.get("action").and_then(|action| action.one_of(&ACTIONS)) {
            policy.action = action;
        }
        policy.rules = spec.items("rules").iter().map(rule).collect();
        policy
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

fn rule(field: &Field<'_>) -> PolicyRule {
    field.only(&["from", "to", "when"]);
    PolicyRule {
        path: field.path().to_owned(),
        from: filled(field, "from")
            .iter()
            .filter_map(|item| only_child(item, "source"))
            .map(source)
            .collect(),
        to: filled(field, "to")
            .iter()
            .filter_map(|item| only_child(item, "operation"))
            .map(operation)
            .collect(),
        when: filled(field, "when").iter().filter_map(condition).collect(),
    }
}

/// The items of a list that says nothing, and is a mistake, when it is there without items.
fn filled<'a>(field: &Field<'a>, key: &str) -> Vec<Field<'a>> {
    let items = field.items(key);
    if let Some(list) = field.get(key).filter(|list| list.is_empty()) {
        list.problem("an empty list", "allowed: at least one item, or no such field");
    }
    items
}

/// The one thing that an item of `from` or `to` holds.
fn only_child<'a>(item: &Field<'a>, key: &str) -> Option<Field<'a>> {
    item.only(&[key]);
    let child = item.get(key).filter(|child| !child.is_empty());
    if child.is_none() {
        item.problem("an item that says nothing", format!("allowed: {key} with at least one field"));
    }
    child
}

const SOURCE: [&str; 12] = [
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];
const SOURCE_HTTP: [&str; 4] =
    ["requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"];

fn source(field: Field<'_>) -> Source {
    field.only(&SOURCE);
    let source = Source {
        principals: (strings(&field, "principals"), strings(&field, "notPrincipals")),
        namespaces: (strings(&field, "namespaces"), strings(&field, "notNamespaces")),
        service_accounts: (accounts(&field, "serviceAccounts"), accounts(&field, "notServiceAccounts")),
        ip_blocks: (blocks(&field, "ipBlocks"), blocks(&field, "notIpBlocks")),
        http: http(&field, &SOURCE_HTTP),
    };
    for key in ["remoteIpBlocks", "notRemoteIpBlocks"] {
        blocks(&field, key);
    }
    let accounts = &source.service_accounts;
    let by_account = !accounts.0.is_empty() || !accounts.1.is_empty();
    let named = |(some, not): &Strings| !some.is_empty() || !not.is_empty();
    if by_account && (named(&source.principals) || named(&source.namespaces)) {
        field.problem(
            "serviceAccounts together with principals or namespaces",
            "allowed: serviceAccounts alone, or principals and namespaces",
        );
    }
    source
}

const OPERATION: [&str; 8] =
    ["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"];
const OPERATION_HTTP: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];

fn operation(field: Field<'_>) -> Operation {
    field.only(&OPERATION);
    let ports = |key: &str| filled(&field, key).iter().filter_map(port).collect();
    Operation { ports: (ports("ports"), ports("notPorts")), http: http(&field, &OPERATION_HTTP) }
}

/// Those of `keys` that are said; their values are read only to see that they are lists of texts.
fn http(field: &Field<'_>, keys: &[&'static str]) -> Vec<&'static str> {
    let said = |key: &&str| {
        let items = filled(field, key);
        for item in &items {
            item.text(); // only reported if it is none
        }
        !items.is_empty()
    };
    keys.iter().copied().filter(said).collect()
}

/// Ports are texts in a policy: `"8080"`.
fn port(field: &Field<'_>) -> Option<u16> {
    let port = parse_port(field.text()?);
    if port.is_none() {
        field.refuse("a port number in quotes, \"1\" to \"65535\"");
    }
    port
}

fn strings(field: &Field<'_>, key: &str) -> Vec<StringMatch> {
    filled(field, key).iter().filter_map(string_match).collect()
}

/// `*` is anything that is not empty, `x*` a prefix, `*x` a suffix.
fn string_match(field: &Field<'_>) -> Option<StringMatch> {
    let text = field.text()?;
    Some(match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text.is_empty() => {
            field.refuse("a text that is not empty");
            return None;
        }
        (Some(""), _) => StringMatch::Presence,
        (Some(suffix), _) => StringMatch::Suffix(suffix.into()),
        (None, Some(prefix)) => StringMatch::Prefix(prefix.into()),
        (None, None) => StringMatch::Exact(text.into()),
    })
}

/// `<namespace>/<service account>`, or a service account of the policy's own namespace.
fn accounts(field: &Field<'_>, key: &str) -> Vec<ServiceAccountMatch> {
    let account = |item: &Field<'_>| {
        let text = item.text()?;
        let own = item.at().object.split_once(' ').and_then(|(_, key)| key.split_once('/'));
        let own = own.map_or("default", |(namespace, _)| namespace);
        let (namespace, name) = text.split_once('/').unwrap_or((own, text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') || text.contains('*') {
            item.refuse("<service account> or <namespace>/<service account>, without *");
            return None;
        }
        Some(ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() })
    };
    filled(field, key).iter().filter_map(account).collect()
}

/// None if the field is absent.
fn blocks(field: &Field<'_>, key: &str) -> Option<Vec<IpNet>> {
    let items = filled(field, key);
    (!items.is_empty()).then(|| items.iter().filter_map(Field::block).collect())
}

/// The keys that exist. Those that end in `[` take a name in brackets.
const KEYS_HTTP: [&str; 8] = [
    "request.headers[",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[",
    "remote.ip",
    "connection.sni",
    "experimental.envoy.filters.",
];

fn condition(field: &Field<'_>) -> Option<Condition> {
    field.only(&["key", "values", "notValues"]);
    let Some(key) = field.get("key") else {
        field.problem("no key", "allowed: key with values or notValues");
        return None;
    };
    let name = key.text()?;
    if field.items("values").is_empty() && field.items("notValues").is_empty() {
        field.problem("neither values nor notValues", "allowed: at least one of the two");
    }
    let blocks = || (blocks(field, "values"), blocks(field, "notValues"));
    let strings = || (strings(field, "values"), strings(field, "notValues"));
    Some(match name {
        "source.ip" => {
            let (some, not) = blocks();
            Condition::SourceIp(some, not)
        }
        "destination.ip" => {
            let (some, not) = blocks();
            Condition::DestinationIp(some, not)
        }
        "source.namespace" => Condition::SourceNamespace(strings()),
        "source.principal" => Condition::SourcePrincipal(strings()),
        "destination.port" => {
            let ports = |key: &str| filled(field, key).iter().filter_map(port).collect();
            Condition::DestinationPort(ports("values"), ports("notValues"))
        }
        _ if KEYS_HTTP
            .iter()
            .any(|known| known.ends_with(['[', '.']) && name.starts_with(known) || name == *known) =>
        {
            http(field, &["values", "notValues"]);
            Condition::Http(name.to_owned())
        }
        _ => {
            key.refuse(
                "source.ip, source.namespace, source.principal, destination.ip, destination.port, remote.ip, \
                 connection.sni, request.headers[..], request.auth.principal, request.auth.audiences, \
                 request.auth.presenter, request.auth.claims[..], experimental.envoy.filters...",
            );
            return None;
        }
    })
}
