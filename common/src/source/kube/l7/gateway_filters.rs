//! Filters and backends of HTTPRoute and GRPCRoute.

use std::sync::Arc;
use std::time::Duration;

use super::actions::{authority_value, is_header, is_method, joined, redirect_code};
use super::gateway_route::{RouteKind, limited};
use super::headers::{BothEdits, Side, modifier};
use super::values::{integer, path_text};
use crate::model::l7::{
    Cors, Fraction, PathRewrite, Pattern, Redirect, RedirectPath, RedirectPort, Rewrite, TextMatch,
    UnmatchedPreflight,
};
use crate::source::kube::reader::Field;

/// What the filters of a rule, or of one of its backends, do.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    pub(super) headers: BothEdits,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Rewrite,
    pub(super) mirrors: Vec<(BackendRef, Fraction)>,
    pub(super) cors: Option<Cors>,
    /// What cannot be done: requests are answered with 500.
    pub(super) refused: Option<Arc<str>>,
}

impl Filters {
    /// Whether one of them puts something in place of the prefix that matched.
    pub(super) fn replaces_prefix(&self) -> bool {
        let redirects =
            self.redirect.as_ref().is_some_and(|r| matches!(r.path, RedirectPath::PrefixSegments(_)));
        redirects || matches!(self.rewrite.path, Some(PathRewrite::PrefixSegments(_)))
    }

    /// Says that something cannot be done; the first such thing stays the reason.
    pub(super) fn refuse(&mut self, field: &Field<'_>, reason: &str) {
        field.warning(reason, "requests of this rule are answered with 500");
        if self.refused.is_none() {
            self.refused = Some(format!("{}: {reason}", field.path()).into());
        }
    }
}

/// Where filters stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Rule,
    Backend,
}

/// A backend, or one that gets copies.
#[derive(Clone, Debug)]
pub(super) struct BackendRef {
    /// Path for reports.
    pub(super) path: String,
    pub(super) to: RefTo,
    pub(super) port: Option<u16>,
    pub(super) weight: u32,
    pub(super) filters: Filters,
}

/// What a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RefTo {
    /// Namespace and name of a Service.
    Service(Arc<str>, Arc<str>),
    /// A host name that any object defines.
    Hostname(Arc<str>),
    /// Something that is no backend here.
    Unknown(Arc<str>),
}

/// Reads `filters`.
pub(super) fn read(parent: &Field<'_>, kind: RouteKind, place: Place, own: &Arc<str>) -> Filters {
    let mut filters = Filters::default();
    let mut seen: Vec<&str> = Vec::new();
    for item in limited(parent, "filters", 16) {
        let Some(kind_field) = item.get("type") else {
            item.problem("no type", "allowed: a filter with a type");
            continue;
        };
        let Some(name) = kind_field.text() else { continue };
        if seen.contains(&name) && !matches!(name, "RequestMirror" | "ExtensionRef") {
            kind_field.problem(format!("{name} for the second time"), "allowed: once");
        }
        seen.push(name);
        let is_http = kind == RouteKind::Http;
        let body = |key: &str| {
            let body = item.get(key);
            if body.is_none() {
                item.problem(format!("no {key}"), format!("allowed: {key} beside type {name}"));
            }
            item.only(&["type", key]);
            body
        };
        match name {
            "RequestHeaderModifier" => {
                let edits = body("requestHeaderModifier").map(|f| modifier(&f, Side::Request));
                filters.headers.request = edits.unwrap_or_default();
            }
            "ResponseHeaderModifier" => {
                let edits = body("responseHeaderModifier").map(|f| modifier(&f, Side::Response));
                filters.headers.response = edits.unwrap_or_default();
            }
            "RequestMirror" => {
                filters.mirrors.extend(body("requestMirror").and_then(|f| mirror(&f, own)));
            }
            "RequestRedirect" if is_http && place == Place::Backend => {
                filters.refuse(&item, "RequestRedirect on a backend is not built");
            }
            "RequestRedirect" if is_http => {
                filters.redirect = body("requestRedirect").and_then(|f| redirect(&f));
            }
            "URLRewrite" if is_http => {
                filters.rewrite = body("urlRewrite").map(|f| rewrite(&f)).unwrap_or_default();
            }
            "CORS" if is_http && place == Place::Backend => {
                filters.refuse(&item, "CORS on a backend is not built");
            }
            "CORS" if is_http => filters.cors = body("cors").map(|f| cors(&f)),
            "ExternalAuth" if is_http => filters.refuse(&item, "ExternalAuth is not built"),
            "ExtensionRef" => {
                let seen = match body("extensionRef") {
                    Some(reference) => {
                        reference.only(&["group", "kind", "name"]);
                        let said = |key| reference.text_at(key).unwrap_or("?");
                        format!("no filter {} {} is known", said("kind"), said("name"))
                    }
                    None => continue,
                };
                filters.refuse(&item, &seen);
            }
            _ => kind_field.refuse(known(kind)),
        }
    }
    if seen.contains(&"RequestRedirect") && seen.contains(&"URLRewrite") {
        parent.problem("URLRewrite beside RequestRedirect", "allowed: one of them");
    }
    filters
}

fn known(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::Http => {
            "RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, RequestRedirect, URLRewrite, CORS, \
             ExternalAuth, ExtensionRef"
        }
        RouteKind::Grpc => "RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, ExtensionRef",
    }
}

/// Reads one of `backendRefs`.
pub(super) fn backend(item: &Field<'_>, kind: RouteKind, own: &Arc<str>) -> BackendRef {
    item.only(&["group", "kind", "namespace", "name", "port", "weight", "filters"]);
    let weight = item.get("weight").map_or(Some(1), |weight| integer(&weight, 0, 1_000_000));
    BackendRef {
        weight: weight.and_then(|w| u32::try_from(w).ok()).unwrap_or(0),
        filters: read(item, kind, Place::Backend, own),
        ..reference(item, own)
    }
}

/// Which object a reference is to.
fn reference(item: &Field<'_>, own: &Arc<str>) -> BackendRef {
    let name: Arc<str> = item.text_at("name").unwrap_or("").into();
    if name.is_empty() {
        item.problem("no name", "allowed: the name of a Service");
    }
    let group = item.get("group").and_then(|group| group.text()).unwrap_or("");
    let kind = item.text_at("kind").unwrap_or("Service");
    let namespace = item.text_at("namespace");
    let to = match (group, kind) {
        ("" | "core", "Service") if name.contains('.') => {
            RefTo::Unknown(format!("Service {name}: the object's name is needed, not its host name").into())
        }
        ("" | "core", "Service") => {
            if item.get("port").is_none() {
                item.problem("no port", "allowed: a port of the Service");
            }
            RefTo::Service(namespace.map_or_else(|| Arc::clone(own), Arc::from), name)
        }
        ("networking.istio.io", "Hostname") if namespace.is_some() => {
            RefTo::Unknown(format!("Hostname {name}: it has no namespace").into())
        }
        ("networking.istio.io", "Hostname") => RefTo::Hostname(name),
        (group, kind) => RefTo::Unknown(format!("{kind} of group {group:?} is no backend here").into()),
    };
    BackendRef {
        path: item.path().to_owned(),
        to,
        port: item.get("port").and_then(|port| port.port()),
        weight: 1,
        filters: Filters::default(),
    }
}

/// None if nobody gets a copy.
fn mirror(field: &Field<'_>, own: &Arc<str>) -> Option<(BackendRef, Fraction)> {
    field.only(&["backendRef", "percent", "fraction"]);
    let Some(to) = field.get("backendRef") else {
        field.problem("no backendRef", "allowed: who gets the copies");
        return None;
    };
    to.only(&["group", "kind", "namespace", "name", "port"]);
    let share = match (field.get("percent"), field.get("fraction")) {
        (Some(_), Some(fraction)) => {
            fraction.problem("fraction beside percent", "allowed: one of them");
            None
        }
        (Some(percent), None) => {
            let percent = integer(&percent, 0, 100)?;
            Some(Fraction(u32::try_from(percent).ok()? * 10_000))
        }
        (None, Some(fraction)) => share(&fraction),
        (None, None) => Some(Fraction::ALL),
    }?;
    (share > Fraction(0)).then(|| (reference(&to, own), share))
}

fn share(field: &Field<'_>) -> Option<Fraction> {
    field.only(&["numerator", "denominator"]);
    let Some(numerator) = field.get("numerator") else {
        field.problem("no numerator", "allowed: a numerator and perhaps a denominator");
        return None;
    };
    let of = field.get("denominator").map_or(Some(100), |of| integer(&of, 1, i32::MAX.into()))?;
    let part = integer(&numerator, 0, of)?;
    // Both are below 2^31.
    u32::try_from(part * 1_000_000 / of).ok().map(Fraction)
}

fn redirect(field: &Field<'_>) -> Option<Redirect> {
    field.only(&["scheme", "hostname", "path", "port", "statusCode"]);
    let schemes = ["http", "https"].map(|scheme| (scheme, scheme));
    let scheme = field.get("scheme").and_then(|scheme| scheme.one_of(&schemes));
    let port = match field.get("port") {
        Some(port) => port.port().map_or(RedirectPort::OfRequest, RedirectPort::Number),
        // Of the scheme that is said, else the one that was asked for.
        None if scheme.is_some() => RedirectPort::OfScheme,
        None => RedirectPort::OfRequest,
    };
    let path = match field.get("path").and_then(|path| path_modifier(&path)) {
        Some(PathRewrite::Full(full)) => RedirectPath::Full(full),
        Some(PathRewrite::PrefixSegments(prefix)) => RedirectPath::PrefixSegments(prefix),
        _ => RedirectPath::Same,
    };
    Some(Redirect {
        status: redirect_code(field, "statusCode", 302)?,
        scheme: scheme.map(Arc::from),
        authority: hostname(field).map(Arc::from),
        port,
        path,
    })
}

fn rewrite(field: &Field<'_>) -> Rewrite {
    field.only(&["hostname", "path"]);
    Rewrite {
        path: field.get("path").and_then(|path| path_modifier(&path)),
        authority: hostname(field).and(field.get("hostname")).and_then(|host| authority_value(&host)),
    }
}

/// `hostname`, which is precise.
fn hostname<'a>(field: &Field<'a>) -> Option<&'a str> {
    let host = field.get("hostname")?;
    let text = host.text()?;
    let good = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
    if !good {
        host.refuse("a host name in lower case, without *");
    }
    good.then_some(text)
}

fn path_modifier(field: &Field<'_>) -> Option<PathRewrite> {
    field.only(&["type", "replaceFullPath", "replacePrefixMatch"]);
    let kinds = ["ReplaceFullPath", "ReplacePrefixMatch"].map(|kind| (kind, kind));
    let Some(kind) = field.get("type") else {
        field.problem("no type", "allowed: ReplaceFullPath, ReplacePrefixMatch");
        return None;
    };
    let (key, other) = match kind.one_of(&kinds)? {
        "ReplaceFullPath" => ("replaceFullPath", "replacePrefixMatch"),
        _ => ("replacePrefixMatch", "replaceFullPath"),
    };
    if let Some(other) = field.get(other) {
        other.problem("a field of another type", format!("allowed: {key}"));
    }
    if field.get(key).is_none() {
        field.problem(format!("no {key}"), format!("allowed: {key}"));
    }
    let text = path_text(field, key)?;
    Some(match key {
        "replaceFullPath" => PathRewrite::Full(text),
        _ => PathRewrite::PrefixSegments(text),
    })
}

fn cors(field: &Field<'_>) -> Cors {
    field.only(&[
        "allowOrigins",
        "allowCredentials",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
        "maxAge",
    ]);
    // Five seconds unless something else is said.
    let seconds = field.get("maxAge").map_or(Some(5), |age| integer(&age, 1, i32::MAX.into()));
    Cors {
        origins: field.items("allowOrigins").iter().filter_map(origin).collect(),
        methods: joined(field, "allowMethods", is_method),
        headers: joined(field, "allowHeaders", is_header),
        expose: joined(field, "exposeHeaders", is_header),
        max_age: seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs),
        credentials: field.flag_at("allowCredentials"),
        unmatched: UnmatchedPreflight::Answer,
    }
}

/// `*`, or scheme and host; a `*` at the beginning of the host stands for labels.
fn origin(field: &Field<'_>) -> Option<TextMatch> {
    let text = field.text()?;
    if text == "*" {
        return Some(TextMatch::Prefix("".into()));
    }
    let Some((scheme, rest)) = text.split_once("://").filter(|(s, rest)| !s.is_empty() && !rest.is_empty())
    else {
        field.refuse("*, or an origin such as https://*.example.com");
        return None;
    };
    match rest.strip_prefix('*') {
        None => Some(TextMatch::Exact(text.into())),
        Some(end) => {
            let text = format!("{}://.+{}", regex::escape(scheme), regex::escape(end));
            Pattern::new(&text).ok().map(TextMatch::Regex)
        }
    }
}
