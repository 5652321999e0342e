//! The rules of an AuthorizationPolicy: everything that they may ask for, whoever can see it.

use std::sync::Arc;

use ipnet::IpNet;

use super::reader::{Field, parse_port};
use crate::model::l7::{PathMatch, Pattern};
use crate::model::{ServiceAccountMatch, StringMatch};

/// One of `spec.rules`.
#[derive(Debug)]
pub(super) struct PolicyRule {
    /// Path for reports.
    pub(super) path: String,
    pub(super) from: Vec<Source>,
    pub(super) to: Vec<Operation>,
    pub(super) when: Vec<Condition>,
}

/// `from[].source`.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) principals: Strings,
    pub(super) namespaces: Strings,
    pub(super) service_accounts: Accounts,
    pub(super) trust_domains: Strings,
    pub(super) ip_blocks: Blocks,
    pub(super) remote_ip_blocks: Blocks,
    /// Asks for what a token says.
    pub(super) needs_token: bool,
    /// Names of its fields that L4 cannot see.
    pub(super) http: Vec<&'static str>,
}

/// `to[].operation`.
#[derive(Debug, Default)]
pub(super) struct Operation {
    pub(super) ports: (Vec<u16>, Vec<u16>),
    pub(super) hosts: Strings,
    pub(super) methods: Strings,
    pub(super) paths: (Vec<PathMatch>, Vec<PathMatch>),
    /// Names of its fields that L4 cannot see.
    pub(super) http: Vec<&'static str>,
}

/// One of `when`.
#[derive(Debug)]
pub(super) struct Condition {
    /// As it was written.
    pub(super) key: String,
    pub(super) test: Test,
}

/// What a condition asks for.
#[derive(Clone, Debug)]
pub(super) enum Test {
    SourceIp(Blocks),
    SourceNamespace(Strings),
    SourcePrincipal(Strings),
    DestinationIp(Blocks),
    DestinationPort(Vec<u16>, Vec<u16>),
    // L4 cannot see the rest.
    SourceServiceAccount(Accounts),
    SourceTrustDomain(Strings),
    RemoteIp(Blocks),
    ServerName(Strings),
    RequestHeader(Arc<str>, Strings),
    /// What a token says.
    Token,
    /// What filters of Envoy's left in its metadata.
    EnvoyMetadata,
}

/// Values and values that must not be.
pub(super) type Strings = (Vec<StringMatch>, Vec<StringMatch>);
/// The same of service accounts.
pub(super) type Accounts = (Vec<ServiceAccountMatch>, Vec<ServiceAccountMatch>);
/// The same of addresses; none where the field is absent.
pub(super) type Blocks = (Option<Vec<IpNet>>, Option<Vec<IpNet>>);

impl PolicyRule {
    pub(super) fn read(field: &Field<'_>) -> Self {
        field.only(&["from", "to", "when"]);
        let from = filled(field, "from");
        let to = filled(field, "to");
        Self {
            path: field.path().to_owned(),
            from: from.iter().filter_map(|item| only_child(item, "source")).map(source).collect(),
            to: to.iter().filter_map(|item| only_child(item, "operation")).map(operation).collect(),
            when: filled(field, "when").iter().filter_map(condition).collect(),
        }
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

const SOURCE: [&str; 14] = [
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];
const SOURCE_TOKEN: [&str; 2] = ["requestPrincipals", "notRequestPrincipals"];
const SOURCE_HTTP: [&str; 6] = [
    "requestPrincipals",
    "notRequestPrincipals",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "trustDomains",
    "notTrustDomains",
];

fn source(field: Field<'_>) -> Source {
    field.only(&SOURCE);
    let source = Source {
        principals: (strings(&field, "principals"), strings(&field, "notPrincipals")),
        namespaces: (strings(&field, "namespaces"), strings(&field, "notNamespaces")),
        service_accounts: (accounts(&field, "serviceAccounts"), accounts(&field, "notServiceAccounts")),
        trust_domains: (strings(&field, "trustDomains"), strings(&field, "notTrustDomains")),
        ip_blocks: (blocks(&field, "ipBlocks"), blocks(&field, "notIpBlocks")),
        remote_ip_blocks: (blocks(&field, "remoteIpBlocks"), blocks(&field, "notRemoteIpBlocks")),
        needs_token: !said(&field, &SOURCE_TOKEN).is_empty(),
        http: said(&field, &SOURCE_HTTP),
    };
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
    let paths = |key: &str| filled(&field, key).iter().filter_map(path_match).collect();
    Operation {
        ports: (ports("ports"), ports("notPorts")),
        hosts: (strings(&field, "hosts"), strings(&field, "notHosts")),
        methods: (strings(&field, "methods"), strings(&field, "notMethods")),
        paths: (paths("paths"), paths("notPaths")),
        http: said(&field, &OPERATION_HTTP),
    }
}

/// A text, or a template with `{*}` for one segment and `{**}` for any number of them.
fn path_match(field: &Field<'_>) -> Option<PathMatch> {
    let text = field.text()?;
    let is_template = text.contains("{*}") || text.contains("{**}");
    if !is_template && !text.contains(['{', '}']) {
        return string_match(field).map(PathMatch::Text);
    }
    let pattern = template(text);
    if pattern.is_none() {
        field.refuse(
            "{*} and {**}, each alone between slashes, {**} as the last of them, without other *, { or }",
        );
    }
    Some(PathMatch::Template { text: text.into(), pattern: pattern? })
}

/// Characters of a segment. Source: RFC 3986 appendix A, as Envoy's templates have them.
const SEGMENT: &str = "a-zA-Z0-9\\-._~%!$&'()+,;:@=";

fn template(text: &str) -> Option<Pattern> {
    let literal = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b);
    let mut pattern = String::new();
    let mut any = false;
    let inner = text.strip_prefix('/')?;
    let (inner, tail) = inner.strip_suffix('/').map_or((inner, ""), |inner| (inner, "/"));
    for segment in inner.split('/') {
        pattern.push('/');
        match segment {
            "{*}" | "{**}" if any => return None,
            "{*}" => pattern.push_str(&format!("[{SEGMENT}]+")),
            "{**}" => {
                any = true;
                pattern.push_str(&format!("[{SEGMENT}/]*"));
            }
            _ if !segment.is_empty() && segment.bytes().all(literal) => {
                pattern.push_str(&regex::escape(segment));
            }
            _ => return None,
        }
    }
    pattern.push_str(tail);
    Pattern::new(&pattern).ok()
}

/// Those of `keys` that are said; each item must be a text.
fn said(field: &Field<'_>, keys: &[&'static str]) -> Vec<&'static str> {
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

const KEYS: &str = "source.ip, source.namespace, source.principal, source.serviceAccount, source.trustDomain, \
                    destination.ip, destination.port, remote.ip, connection.sni, request.headers[..], \
                    request.auth.principal, request.auth.audiences, request.auth.presenter, \
                    request.auth.claims[..], experimental.envoy.filters...";

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
    let accounts = || (accounts(field, "values"), accounts(field, "notValues"));
    let ports = |key: &str| filled(field, key).iter().filter_map(port).collect();
    let in_brackets = |start: &str| {
        let inner = name.strip_prefix(start)?.strip_prefix('[')?.strip_suffix(']')?;
        (!inner.is_empty()).then_some(inner)
    };
    let test = match name {
        "source.ip" => Test::SourceIp(blocks()),
        "source.namespace" => Test::SourceNamespace(strings()),
        "source.principal" => Test::SourcePrincipal(strings()),
        "source.serviceAccount" => Test::SourceServiceAccount(accounts()),
        "source.trustDomain" => Test::SourceTrustDomain(strings()),
        "destination.ip" => Test::DestinationIp(blocks()),
        "destination.port" => Test::DestinationPort(ports("values"), ports("notValues")),
        "remote.ip" => Test::RemoteIp(blocks()),
        "connection.sni" => Test::ServerName(strings()),
        "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter" => Test::Token,
        _ if in_brackets("request.auth.claims").is_some() => Test::Token,
        _ if name.starts_with("experimental.envoy.filters.") => Test::EnvoyMetadata,
        _ => match in_brackets("request.headers") {
            Some(header) => Test::RequestHeader(header.to_ascii_lowercase().into(), strings()),
            None => {
                key.refuse(KEYS);
                return None;
            }
        },
    };
    said(field, &["values", "notValues"]);
    Some(Condition { key: name.to_owned(), test })
}
