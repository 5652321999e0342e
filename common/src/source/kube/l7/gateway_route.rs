//! HTTPRoute and GRPCRoute: reading them, with what the API server checks. Where they count is in [`super::gateway_attach`].
//!
//! Source: Gateway API v1, HTTPRoute and GRPCRoute. What the API server would refuse is a problem here; what it takes and a
//! mesh cannot do is told in the route's conditions, and answered with 500.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::gateway_filters::{self, BackendRef, Filters, Place};
use super::values::{gateway_duration, integer, pattern, section_name};
use crate::model::l7::{
    BackOff, HeaderMatch, PathTest, Pattern, QueryMatch, RequestMatch, Retries, RetryOn, TextMatch,
};
use crate::source::kube::object::Meta;
use crate::source::kube::reader::Field;

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
const PARENTS_MAX: usize = 32;
const MATCHES_MAX: usize = 64;
const MATCHES_OF_ALL_MAX: usize = 128;
const ITEMS_MAX: usize = 16;

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::source::kube) enum RouteKind {
    Http,
    Grpc,
}

impl RouteKind {
    /// As an object's `kind`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }
}

/// What is needed of an HTTPRoute or GRPCRoute.
#[derive(Debug)]
pub(in crate::source::kube) struct GatewayRoute {
    pub(in crate::source::kube) meta: Meta,
    pub(super) kind: RouteKind,
    pub(super) parents: Vec<ParentRef>,
    pub(super) rules: Vec<Rule>,
}

/// One of `parentRefs` that is a service: others are for other controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParentRef {
    /// Path for reports.
    pub(super) path: String,
    /// `Service` or `ServiceEntry`.
    pub(super) kind: &'static str,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) port: Option<u16>,
    pub(super) section: Option<Arc<str>>,
}

/// One of `rules`.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: Option<Arc<str>>,
    pub(super) matches: Vec<RequestMatch>,
    pub(super) filters: Filters,
    pub(super) backends: Vec<BackendRef>,
    /// For the whole request.
    pub(super) timeout: Option<Duration>,
    /// For one try.
    pub(super) backend_timeout: Option<Duration>,
    pub(super) retries: Option<Retries>,
}

impl GatewayRoute {
    /// Reads it; what is wrong is reported.
    pub(in crate::source::kube) fn read(meta: Meta, root: &Field<'_>, kind: RouteKind) -> Self {
        let mut read = Self { kind, parents: Vec::new(), rules: Vec::new(), meta };
        root.only(&["apiVersion", "kind", "metadata", "spec", "status"]);
        let Some(spec) = root.get("spec") else {
            root.problem("no spec", "allowed: a route with parentRefs and rules");
            return read;
        };
        spec.only(&["parentRefs", "hostnames", "rules", "useDefaultGateways"]);
        let parents = limited(&spec, "parentRefs", PARENTS_MAX);
        read.parents = parents.iter().filter_map(|item| parent(item, &read.meta.namespace)).collect();
        check_parents(&parents, &read.parents);
        if let Some(hosts) = spec.get("hostnames").filter(|hosts| !hosts.is_empty())
            && !read.parents.is_empty()
        {
            hosts.warning("hostnames have no effect in a mesh", "match the Host header instead");
        }
        let rules = limited(&spec, "rules", ITEMS_MAX);
        read.rules = rules.iter().map(|item| rule(item, kind, &read.meta.namespace)).collect();
        if rules.is_empty() && kind == RouteKind::Http {
            // The API server puts this rule in: everything, to nowhere.
            read.rules.push(Rule::of_nothing());
        }
        let all: usize = read.rules.iter().map(|rule| rule.matches.len()).sum();
        if all > MATCHES_OF_ALL_MAX {
            spec.problem(format!("{all} matches in all"), format!("allowed: at most {MATCHES_OF_ALL_MAX}"));
        }
        check_names(&rules);
        read
    }
}

impl Rule {
    fn of_nothing() -> Self {
        Self {
            name: None,
            matches: vec![every_path()],
            filters: Filters::default(),
            backends: Vec::new(),
            timeout: None,
            backend_timeout: None,
            retries: None,
        }
    }
}

/// What an HTTPRoute matches that says nothing else.
fn every_path() -> RequestMatch {
    RequestMatch { path: Some(PathTest::Segments("".into())), ..RequestMatch::default() }
}

/// The items of a list with a limit.
pub(super) fn limited<'a>(field: &Field<'a>, key: &str, max: usize) -> Vec<Field<'a>> {
    let items = field.items(key);
    if items.len() > max
        && let Some(list) = field.get(key)
    {
        list.problem(format!("{} items", items.len()), format!("allowed: at most {max}"));
    }
    items
}

/// Two references to one parent differ in port or section.
fn check_parents(items: &[Field<'_>], parents: &[ParentRef]) {
    let whole = |p: &ParentRef| (p.kind, p.namespace.clone(), p.name.clone(), p.port, p.section.clone());
    let mut seen = HashSet::new();
    for parent in parents.iter().filter(|parent| !seen.insert(whole(parent))) {
        if let Some(item) = items.iter().find(|item| item.path() == parent.path) {
            item.problem("the same parent for the second time", "allowed: another port or sectionName");
        }
    }
}

fn check_names(rules: &[Field<'_>]) {
    let mut seen = HashSet::new();
    for rule in rules {
        if let Some(field) = rule.get("name")
            && let Some(name) = field.text()
            && !seen.insert(name)
        {
            field.problem(format!("{name} for the second time"), "allowed: each name once");
        }
    }
}

/// None for what is no service.
fn parent(item: &Field<'_>, own: &Arc<str>) -> Option<ParentRef> {
    item.only(&["group", "kind", "namespace", "name", "port", "sectionName"]);
    let group = item.get("group").map_or(Some("gateway.networking.k8s.io"), |group| group.text())?;
    let kind = match (group, item.text_at("kind").unwrap_or("Gateway")) {
        ("", "Service") => "Service",
        ("networking.istio.io", "ServiceEntry") => "ServiceEntry",
        (group, kind) => {
            let known = group == "gateway.networking.k8s.io";
            let hint = if kind == "Service" {
                "write group: \"\" for a Service"
            } else {
                "it has no effect in a mesh"
            };
            if !known || kind == "Service" {
                item.warning(format!("parent of kind {kind} in group {group:?}"), hint);
            }
            return None;
        }
    };
    let Some(object) = item.text_at("name") else {
        item.problem("no name", "allowed: the name of a Service");
        return None;
    };
    Some(ParentRef {
        path: item.path().to_owned(),
        kind,
        namespace: item.text_at("namespace").map_or_else(|| Arc::clone(own), Arc::from),
        name: object.into(),
        port: item.get("port").and_then(|port| port.port()),
        section: item.text_at("sectionName").map(Arc::from),
    })
}

fn rule(field: &Field<'_>, kind: RouteKind, own: &Arc<str>) -> Rule {
    let known: &[&str] = match kind {
        RouteKind::Http => {
            &["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"]
        }
        RouteKind::Grpc => &["name", "matches", "filters", "backendRefs", "sessionPersistence"],
    };
    field.only(known);
    let items = limited(field, "matches", MATCHES_MAX);
    let mut matches: Vec<RequestMatch> = items
        .iter()
        .map(|item| match kind {
            RouteKind::Http => http_match(item),
            RouteKind::Grpc => grpc_match(item),
        })
        .collect();
    if matches.is_empty() {
        matches.push(if kind == RouteKind::Http { every_path() } else { RequestMatch::default() });
    }
    let mut filters = gateway_filters::read(field, kind, Place::Rule, own);
    if let Some(persistence) = field.get("sessionPersistence") {
        filters.refuse(&persistence, "sessionPersistence is not built");
    }
    let backends: Vec<BackendRef> = limited(field, "backendRefs", ITEMS_MAX)
        .iter()
        .map(|item| gateway_filters::backend(item, kind, own))
        .collect();
    check_prefixes(field, &matches, &filters);
    if filters.redirect.is_some() && !backends.is_empty() {
        field.problem("backendRefs beside RequestRedirect", "allowed: one of them");
    }
    let (timeout, backend_timeout) = timeouts(field);
    Rule {
        name: field.get("name").and_then(|field| section_name(&field)),
        matches,
        filters,
        backends,
        timeout,
        backend_timeout,
        retries: field.get("retry").map(|retry| read_retry(&retry)),
    }
}

/// What replaces a prefix needs one prefix that is replaced.
fn check_prefixes(field: &Field<'_>, matches: &[RequestMatch], filters: &Filters) {
    let one_prefix = matches!(matches, [RequestMatch { path: Some(PathTest::Segments(_)), .. }]);
    if filters.replaces_prefix() && !one_prefix {
        let list = field.get("filters").unwrap_or_else(|| field.clone());
        list.problem(
            "ReplacePrefixMatch without exactly one match of type PathPrefix",
            "allowed: with exactly one match, of type PathPrefix",
        );
    }
}

fn timeouts(field: &Field<'_>) -> (Option<Duration>, Option<Duration>) {
    let Some(timeouts) = field.get("timeouts") else { return (None, None) };
    timeouts.only(&["request", "backendRequest"]);
    let read = |key: &str| gateway_duration(&timeouts.get(key)?);
    // 0s stands for no limit.
    let said = |duration: Option<Duration>| duration.filter(|d| !d.is_zero());
    let (request, backend) = (read("request"), read("backendRequest"));
    if let (Some(request), Some(backend)) = (said(request), backend)
        && backend > request
    {
        timeouts.problem("backendRequest is longer than request", "allowed: at most as long");
    }
    (said(request), said(backend))
}

fn read_retry(field: &Field<'_>) -> Retries {
    field.only(&["codes", "attempts", "backoff"]);
    let mut on = RetryOn::usual();
    for code in field.items("codes") {
        let number = integer(&code, 400, 599).and_then(|n| u16::try_from(n).ok());
        on.statuses.extend(number.and_then(|n| http::StatusCode::from_u16(n).ok()));
    }
    let attempts = field.get("attempts").and_then(|n| integer(&n, 1, i32::MAX.into()));
    let pause = field.get("backoff").and_then(|pause| gateway_duration(&pause)).filter(|p| !p.is_zero());
    let unset = Retries::default();
    Retries {
        attempts: attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(unset.attempts),
        on,
        back_off: pause.map_or(unset.back_off, BackOff::AtLeast),
        ..unset
    }
}

fn http_match(field: &Field<'_>) -> RequestMatch {
    field.only(&["path", "headers", "queryParams", "method"]);
    let path = match field.get("path") {
        Some(path) => path_test(&path),
        None => every_path().path,
    };
    let methods = METHODS.map(|method| (method, method));
    let method = field.get("method").and_then(|method| method.one_of(&methods));
    let query = named_values(field, "queryParams").into_iter();
    RequestMatch {
        path,
        method: method.map(|method| TextMatch::Exact(method.into())),
        headers: headers(field),
        query: query.map(|(name, value)| QueryMatch { name: name.into(), value }).collect(),
        ..RequestMatch::default()
    }
}

fn headers(field: &Field<'_>) -> Vec<HeaderMatch> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (name, value) in named_values(field, "headers") {
        let name = name.to_ascii_lowercase();
        // Of names that differ in case only the first counts.
        if seen.insert(name.clone()) {
            found.push(HeaderMatch { name: name.into(), value });
        }
    }
    found
}

/// Names and tests of their values.
fn named_values<'a>(field: &Field<'a>, key: &str) -> Vec<(&'a str, TextMatch)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for item in limited(field, key, ITEMS_MAX) {
        item.only(&["type", "name", "value"]);
        let Some((name, value)) = item.text_at("name").zip(item.get("value")) else {
            item.problem("no name or no value", "allowed: a name and a value");
            continue;
        };
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            item.problem(format!("name {name:?}"), "allowed: characters that a header's name may have");
        }
        if !seen.insert(name) {
            item.problem(format!("{name} for the second time"), "allowed: each name once");
        }
        let kinds = [("Exact", true), ("RegularExpression", false)];
        let is_exact = item.get("type").map_or(Some(true), |kind| kind.one_of(&kinds));
        let test = match is_exact {
            Some(true) => value.text().map(|text| TextMatch::Exact(text.into())),
            Some(false) => pattern(&value).map(TextMatch::Regex),
            None => None,
        };
        found.extend(test.map(|test| (name, test)));
    }
    found
}

fn path_test(field: &Field<'_>) -> Option<PathTest> {
    field.only(&["type", "value"]);
    let kinds = ["Exact", "PathPrefix", "RegularExpression"].map(|kind| (kind, kind));
    let kind = field.get("type").map_or(Some("PathPrefix"), |kind| kind.one_of(&kinds))?;
    let text = match field.get("value") {
        Some(value) if kind == "RegularExpression" => {
            return Some(PathTest::Text { text: TextMatch::Regex(pattern(&value)?), ignore_case: false });
        }
        Some(value) => {
            let text = value.text()?;
            if !is_path(text) {
                value
                    .refuse("a path that begins with / and has neither //, /./, /../, # nor encoded slashes");
            }
            text
        }
        None if kind == "RegularExpression" => {
            field.problem("no value", "allowed: a regular expression");
            return None;
        }
        None => "/",
    };
    Some(match kind {
        "Exact" => PathTest::Text { text: TextMatch::Exact(text.into()), ignore_case: false },
        _ => PathTest::Segments(text.trim_end_matches('/').into()),
    })
}

/// Whether the API server takes this for an exact path or a prefix.
fn is_path(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let parts = ["//", "/./", "/../", "%2f", "#"];
    let char = |b: u8| b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%".contains(&b);
    text.starts_with('/')
        && text.len() <= 1024
        && parts.iter().all(|part| !lower.contains(part))
        && !text.ends_with("/..")
        && !text.ends_with("/.")
        && text.bytes().all(char)
}

fn grpc_match(field: &Field<'_>) -> RequestMatch {
    field.only(&["method", "headers"]);
    let path = field.get("method").and_then(|method| grpc_method(&method));
    RequestMatch { path, headers: headers(field), ..RequestMatch::default() }
}

/// A method as the path that its requests have.
fn grpc_method(field: &Field<'_>) -> Option<PathTest> {
    field.only(&["type", "service", "method"]);
    let kinds = [("Exact", true), ("RegularExpression", false)];
    let is_exact = field.get("type").map_or(Some(true), |kind| kind.one_of(&kinds))?;
    let (service, method) = (field.text_at("service"), field.text_at("method"));
    let is_name = |text: &str, dots: bool| {
        let char = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (dots && matches!(b, b'.' | b'-'));
        text.bytes().all(char)
    };
    if is_exact && (service.is_some_and(|s| !is_name(s, true)) || method.is_some_and(|m| !is_name(m, false)))
    {
        field.problem(
            "characters that a name of gRPC does not have",
            "allowed: a-z A-Z 0-9 _ and, in a service, . -",
        );
        return None;
    }
    let text = match (is_exact, service, method) {
        (_, None, None) => {
            field.problem("neither service nor method", "allowed: one of them, or both");
            return None;
        }
        (true, Some(service), Some(method)) => TextMatch::Exact(format!("/{service}/{method}").into()),
        (true, Some(service), None) => return Some(PathTest::Segments(format!("/{service}").into())),
        (_, None, Some(method)) => TextMatch::Regex(compiled(field, &format!("/[^/]+/{method}"))?),
        (false, Some(service), None) => TextMatch::Regex(compiled(field, &format!("/{service}/.+"))?),
        (false, Some(service), Some(method)) => {
            TextMatch::Regex(compiled(field, &format!("/{service}/{method}"))?)
        }
    };
    Some(PathTest::Text { text, ignore_case: false })
}

fn compiled(field: &Field<'_>, text: &str) -> Option<Pattern> {
    Pattern::new(text)
        .map_err(|error| field.problem(error, "allowed: regular expressions in RE2's syntax"))
        .ok()
}
