//! Matches of an HTTP route of a VirtualService.

use std::sync::Arc;

use super::values::{Lax, labels_at, name, string_match, warn_unused};
use crate::model::l7::{HeaderMatch, PathTest, QueryMatch, RequestMatch, TextMatch};
use crate::source::kube::reader::Field;

/// Header names with this beginning are claims of a token.
const CLAIM: &str = "@request.auth.claims";

/// One of `match`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HttpMatch {
    /// Path for reports.
    pub(super) path: String,
    pub(super) name: Option<Arc<str>>,
    pub(super) test: RequestMatch,
    pub(super) only_for: OnlyFor,
}

/// For which proxies a match counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OnlyFor {
    /// `gateways` without `mesh`.
    pub(super) gateways: bool,
    /// `sourceLabels` or `sourceSubnet`: of the client's own proxy, thus never here.
    pub(super) sources: bool,
    /// `sourceNamespace`, which is compared with the namespace of the waypoint.
    pub(super) namespace: Option<Arc<str>>,
}

impl OnlyFor {
    /// Reads the fields that HTTP, TLS and TCP matches share.
    pub(super) fn read(field: &Field<'_>) -> Self {
        let gateways: Vec<Field<'_>> = field.items("gateways");
        let by_source = ["sourceLabels", "sourceSubnet"]
            .iter()
            .find_map(|key| field.get(key).filter(|source| !source.is_empty()));
        labels_at(field, "sourceLabels");
        if let Some(source) = &by_source {
            source.warning(
                "a test of the client's own proxy",
                "this match is dropped at a waypoint; use an AuthorizationPolicy, or a header",
            );
        }
        let source = field.get("sourceNamespace").filter(|n| n.text() != Some(""));
        if let Some(source) = &source {
            source.warning(
                "at a waypoint this is compared with the namespace of the waypoint",
                "it does not tell clients apart there",
            );
        }
        let namespace = source.and_then(|source| name(&source));
        Self {
            gateways: !gateways.is_empty() && !gateways.iter().any(|g| g.text() == Some("mesh")),
            sources: by_source.is_some(),
            namespace,
        }
    }

    /// Whether the match counts at a waypoint of this namespace.
    pub(super) fn counts_in(&self, namespace: &str) -> bool {
        !self.gateways && !self.sources && self.namespace.as_deref().is_none_or(|n| n == namespace)
    }
}

const FIELDS: [&str; 14] = [
    "name",
    "uri",
    "scheme",
    "method",
    "authority",
    "headers",
    "port",
    "sourceLabels",
    "gateways",
    "queryParams",
    "ignoreUriCase",
    "withoutHeaders",
    "sourceNamespace",
    "statPrefix",
];

/// Reads one of `match`; `in_mesh` if the VirtualService counts outside of ingress gateways.
pub(super) fn read(field: &Field<'_>, in_mesh: bool) -> HttpMatch {
    field.only(&FIELDS);
    warn_unused(field, "statPrefix", "it names statistics of Envoy");
    let ignore_case = field.flag_at("ignoreUriCase");
    let text = |key: &str| string_match(&field.get(key)?, Lax::No);
    let uri = field.get("uri").and_then(|uri| string_match(&uri, Lax::EmptyPrefix));
    let test = RequestMatch {
        // A match of nothing is as if it were not there.
        path: uri.filter(|uri| *uri != TextMatch::Present).map(|text| PathTest::Text { text, ignore_case }),
        method: text("method"),
        scheme: text("scheme"),
        authority: text("authority"),
        headers: headers(field, "headers", in_mesh),
        without_headers: headers(field, "withoutHeaders", in_mesh),
        query: query(field),
        port: field.get("port").and_then(|port| port.port()),
    };
    HttpMatch {
        path: field.path().to_owned(),
        name: field.text_at("name").map(Arc::from),
        test,
        only_for: OnlyFor::read(field),
    }
}

/// Tests of headers in the order of their names.
fn headers(field: &Field<'_>, key: &str, in_mesh: bool) -> Vec<HeaderMatch> {
    let lax = if key == "withoutHeaders" { Lax::Star } else { Lax::No };
    let mut found: Vec<HeaderMatch> = Vec::new();
    for (name, value) in field.get(key).map(|field| field.entries()).unwrap_or_default() {
        if name.starts_with(CLAIM) {
            if in_mesh {
                value.problem(
                    format!("{name}: routing by claims of a token"),
                    "allowed: in a VirtualService for gateways only; it is not built for the mesh",
                );
            }
            continue;
        }
        let pseudo = [":authority", ":method", ":path", ":scheme"].contains(&name);
        if !pseudo && (name == "*" || !super::actions::is_header(name)) {
            value.problem(format!("header {name:?}"), "allowed: a name out of a-z A-Z 0-9 - _");
            continue;
        }
        let Some(test) = string_match(&value, lax) else { continue };
        found.push(HeaderMatch { name: name.to_ascii_lowercase().into(), value: test });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn query(field: &Field<'_>) -> Vec<QueryMatch> {
    let entries = field.get("queryParams").map(|field| field.entries()).unwrap_or_default();
    let one = |(name, value): (&str, Field<'_>)| {
        Some(QueryMatch { name: name.into(), value: string_match(&value, Lax::No)? })
    };
    let mut found: Vec<QueryMatch> = entries.into_iter().filter_map(one).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}
