//! Routes in words: where one is written, why a match holds or not, what is done with a request.

use std::time::Duration;

use super::answer::{PassedRoute, RouteView};
use crate::l7::{Facts, Found, is_match};
use crate::model::l7::{
    BackOff, Backend, Fraction, HeaderEdits, HeaderMatch, Mirror, Origin, PathTest, QueryMatch, RequestMatch,
    Retries, RetryOn, Route, RouteAction, TextMatch,
};

/// Object and rule, the rule as the path of its field.
pub(super) fn field(origin: &Origin) -> String {
    let list = match origin.kind {
        "" => return "the default route".to_owned(),
        "VirtualService" => "http",
        _ => "rules",
    };
    format!("{} {}/{} {list}[{}]", origin.kind, origin.namespace, origin.name, origin.rule)
}

fn list_of_matches(origin: &Origin) -> &'static str {
    if origin.kind == "VirtualService" { "match" } else { "matches" }
}

/// A route that does not match, and why.
pub(super) fn passed(route: &Route, facts: &Facts<'_>) -> PassedRoute {
    let list = list_of_matches(&route.origin);
    let one = |(at, one): (usize, &RequestMatch)| {
        let unmet: Vec<String> = parts(one)
            .into_iter()
            .filter(|part| !is_match(&part.alone, facts))
            .map(|part| format!("{}, found {}", part.wanted, part.found(facts)))
            .collect();
        format!("{list}[{at}]: {}", unmet.join("; "))
    };
    PassedRoute { origin: field(&route.origin), why: route.matches.iter().enumerate().map(one).collect() }
}

/// The route that matches.
pub(super) fn view(found: &Found<'_>, facts: &Facts<'_>) -> RouteView {
    let Found { route, by, .. } = *found;
    let at = by.and_then(|by| route.matches.iter().position(|one| std::ptr::eq(one, by)));
    let matched = match (at, by) {
        (Some(at), Some(by)) => {
            let wanted: Vec<String> = parts(by).into_iter().map(|part| part.wanted).collect();
            let wanted = if wanted.is_empty() { "every request".to_owned() } else { wanted.join("; ") };
            format!("{}[{at}]: {wanted}", list_of_matches(&route.origin))
        }
        _ => "every request".to_owned(),
    };
    RouteView {
        origin: field(&route.origin),
        name: route.name.to_string(),
        matched,
        actions: actions(route, facts),
    }
}

/// One test of a match.
struct Part {
    /// What it asks for.
    wanted: String,
    looks_at: LooksAt,
    /// The test as a match of its own.
    alone: RequestMatch,
}

enum LooksAt {
    Path,
    Method,
    Scheme,
    Authority,
    Header(String),
    Query(String),
    Port,
}

impl Part {
    fn found(&self, facts: &Facts<'_>) -> String {
        match &self.looks_at {
            LooksAt::Path => format!("{:?}", facts.path()),
            LooksAt::Method => format!("{:?}", facts.method.as_str()),
            LooksAt::Scheme => format!("{:?}", facts.scheme),
            LooksAt::Authority => format!("{:?}", facts.authority),
            LooksAt::Header(name) => match facts.joined(name) {
                Some(value) => format!("{:?}", String::from_utf8_lossy(&value)),
                None => "none".to_owned(),
            },
            LooksAt::Query(name) => {
                facts.query_parameter(name).map_or_else(|| "none".to_owned(), |value| format!("{value:?}"))
            }
            LooksAt::Port => facts.port().to_string(),
        }
    }
}

fn parts(one: &RequestMatch) -> Vec<Part> {
    // Written out, so that a new field has to be told.
    let RequestMatch { path, method, scheme, authority, headers, without_headers, query, port } = one;
    let mut all = Vec::new();
    let mut add = |wanted, looks_at, alone| all.push(Part { wanted, looks_at, alone });
    let none = RequestMatch::default;
    if let Some(path) = path {
        let alone = RequestMatch { path: Some(path.clone()), ..none() };
        add(format!("path {}", path_test(path)), LooksAt::Path, alone);
    }
    if let Some(test) = method {
        let alone = RequestMatch { method: Some(test.clone()), ..none() };
        add(format!("method {}", text(test)), LooksAt::Method, alone);
    }
    if let Some(test) = scheme {
        let alone = RequestMatch { scheme: Some(test.clone()), ..none() };
        add(format!("scheme {}", text(test)), LooksAt::Scheme, alone);
    }
    if let Some(test) = authority {
        let alone = RequestMatch { authority: Some(test.clone()), ..none() };
        add(format!("authority {}", text(test)), LooksAt::Authority, alone);
    }
    for header in headers {
        let HeaderMatch { name, value } = header;
        let alone = RequestMatch { headers: vec![header.clone()], ..none() };
        add(format!("header {name} {}", text(value)), LooksAt::Header(name.to_string()), alone);
    }
    for header in without_headers {
        let HeaderMatch { name, value } = header;
        let alone = RequestMatch { without_headers: vec![header.clone()], ..none() };
        add(format!("header {name} not {}", text(value)), LooksAt::Header(name.to_string()), alone);
    }
    for parameter in query {
        let QueryMatch { name, value } = parameter;
        let alone = RequestMatch { query: vec![parameter.clone()], ..none() };
        add(format!("query {name} {}", text(value)), LooksAt::Query(name.to_string()), alone);
    }
    if let Some(number) = port {
        let alone = RequestMatch { port: *port, ..none() };
        add(format!("port {number}"), LooksAt::Port, alone);
    }
    all
}

fn text(test: &TextMatch) -> String {
    match test {
        TextMatch::Exact(text) => format!("{text:?}"),
        TextMatch::Prefix(text) => format!("prefix {text:?}"),
        TextMatch::Regex(pattern) => format!("regex {:?}", pattern.as_str()),
        TextMatch::Present => "present".to_owned(),
    }
}

fn path_test(test: &PathTest) -> String {
    match test {
        PathTest::Text { text: of, ignore_case: false } => text(of),
        PathTest::Text { text: of, ignore_case: true } => format!("{} in any case", text(of)),
        PathTest::Segments(prefix) if prefix.is_empty() => "prefix \"/\"".to_owned(),
        PathTest::Segments(prefix) => format!("prefix {prefix:?} by segments"),
    }
}

/// Filters and limits of a route, in the order in which a request meets them.
fn actions(route: &Route, facts: &Facts<'_>) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(delay) = &route.fault.delay {
        all.push(format!("fault: delay of {:?} for {}", delay.fixed, share(delay.share)));
    }
    if let Some(abort) = &route.fault.abort {
        let grpc = abort.grpc_status.map(|status| format!(", grpc-status {status}")).unwrap_or_default();
        all.push(format!("fault: {}{grpc} for {}", abort.status.as_u16(), share(abort.share)));
    }
    // What a route answers itself says nothing of origins.
    let forwards = matches!(route.action, RouteAction::Forward(_));
    if let Some(cors) = route.cors.as_ref().filter(|_| forwards) {
        let origins: Vec<String> = cors.origins.iter().map(text).collect();
        let asked = match crate::l7::cors::check(cors, facts) {
            crate::l7::cors::Origin::None => "says nothing to this request",
            crate::l7::cors::Origin::Allowed(_) => "lets the origin of this request read the answer",
            crate::l7::cors::Origin::Preflight(_) => "answers this preflight",
        };
        all.push(format!("CORS for origins {}: {asked}", origins.join(", ")));
    }
    all.extend(edits("request headers", &route.request_headers));
    all.extend(edits("response headers", &route.response_headers));
    all.extend(route.timeout.filter(|time| !time.is_zero()).map(|time| format!("timeout: {time:?}")));
    all.extend(retries(&route.retries));
    all.extend(route.mirrors.iter().map(mirror));
    all
}

fn share(share: Fraction) -> String {
    if share >= Fraction::ALL {
        return "all requests".to_owned();
    }
    format!("{} % of requests", f64::from(share.0) / 10_000.0)
}

/// A copy of requests.
pub(super) fn mirror(mirror: &Mirror) -> String {
    let to = match &mirror.backend {
        Backend::Cluster(key) => key.to_string(),
        Backend::Invalid { reason, .. } => format!("nowhere: {reason}"),
    };
    format!("mirror: {} to {to}", share(mirror.share))
}

/// Edits in words; none if there are none.
pub(super) fn edits(of: &str, edits: &HeaderEdits) -> Option<String> {
    let HeaderEdits { set, add, remove, authority } = edits;
    let value = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut all: Vec<String> = remove.iter().map(|name| format!("remove {name}")).collect();
    all.extend(set.iter().map(|(name, v)| format!("set {name}: {}", value(v))));
    all.extend(add.iter().map(|(name, v)| format!("add {name}: {}", value(v))));
    all.extend(authority.iter().map(|v| format!("set host: {}", value(v))));
    (!all.is_empty()).then(|| format!("{of}: {}", all.join(", ")))
}

fn retries(retries: &Retries) -> Option<String> {
    let Retries { attempts, on, per_try_timeout, back_off, .. } = retries;
    if *attempts == 0 {
        return None;
    }
    let per_try = per_try_timeout.filter(|time| !time.is_zero());
    let per_try = per_try.map(|time| format!(", {time:?} for each try")).unwrap_or_default();
    let pause = match back_off {
        BackOff::Jittered { base } if *base == Duration::from_millis(25) => String::new(),
        BackOff::Jittered { base } => format!(", pauses from {base:?}"),
        BackOff::AtLeast(time) => format!(", pauses of at least {time:?}"),
    };
    Some(format!("retries: up to {attempts}, on {}{per_try}{pause}", tokens(on)))
}

fn tokens(on: &RetryOn) -> String {
    let mut all = on.tokens();
    all.extend(on.grpc_statuses.iter().map(|status| format!("grpc-status {status}")));
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}
