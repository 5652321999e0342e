//! The path and authority that the upstream sees in place of the client's.
//!
//! **Source**: Istio `HTTPRewrite`; Gateway API `HTTPURLRewriteFilter`, its table of ReplacePrefixMatch.

use std::borrow::Cow;

use http::HeaderValue;

use super::matching::after_segments;
use crate::model::l7::{
    HeaderEdits, PathRewrite, PathTest, RequestMatch, Rewrite, Route, TextMatch, Weighted,
};

/// The new path with the query of `target`. What does not apply leaves it as it is.
///
/// **Shape**: `by` is the match that held, as `find` tells it. The result begins with `/` unless what was configured does not.
pub fn rewritten<'t>(rewrite: &PathRewrite, by: Option<&RequestMatch>, target: &'t str) -> Cow<'t, str> {
    let (path, query) = parts(target);
    match rewrite {
        PathRewrite::PrefixText(new) => prefix_replaced(new, by, target),
        PathRewrite::PrefixSegments(new) => segments_replaced(new, by, target),
        PathRewrite::Full(new) => Cow::Owned(format!("{new}{query}")),
        PathRewrite::Regex { pattern, substitution } => {
            let new = pattern.replace(path.as_bytes(), substitution);
            Cow::Owned(format!("{}{query}", String::from_utf8_lossy(&new)))
        }
    }
}

/// What is sent as authority in place of the client's: what an edit sets, else what a rewrite says; the destination's
/// before the route's.
pub fn new_authority<'r>(route: &'r Route, backend: &'r Weighted) -> Option<&'r HeaderValue> {
    let says = |edits: &'r HeaderEdits, rewrite: &'r Rewrite| {
        edits.authority.as_ref().or(rewrite.authority.as_ref())
    };
    says(&backend.request_headers, &backend.rewrite).or_else(|| says(&route.request_headers, &route.rewrite))
}

/// How the path is changed on the way to this destination.
pub fn path_rewrite<'r>(route: &'r Route, backend: &'r Weighted) -> Option<&'r PathRewrite> {
    backend.rewrite.path.as_ref().or(route.rewrite.path.as_ref())
}

/// The path, and the query with its `?`.
pub(super) fn parts(target: &str) -> (&str, &str) {
    target.split_at(target.find('?').unwrap_or(target.len()))
}

/// `new` in place of the prefix that matched, as a text; of the whole path if it was compared otherwise.
pub(super) fn prefix_replaced<'t>(new: &str, by: Option<&RequestMatch>, target: &'t str) -> Cow<'t, str> {
    let (path, _) = parts(target);
    let matched = match by.and_then(|by| by.path.as_ref()) {
        Some(PathTest::Text { text: TextMatch::Prefix(prefix), .. }) => prefix.len(),
        Some(PathTest::Segments(prefix)) => prefix.trim_end_matches('/').len(),
        Some(PathTest::Text {
            text: TextMatch::Exact(_) | TextMatch::Regex(_) | TextMatch::Present, ..
        }) => path.len(),
        None => 1,
    };
    Cow::Owned(format!("{new}{}", target.get(matched..).unwrap_or_default()))
}

/// `new` in place of the segments that matched, of the whole path if it was compared otherwise; slashes are kept right.
pub(super) fn segments_replaced<'t>(new: &str, by: Option<&RequestMatch>, target: &'t str) -> Cow<'t, str> {
    let (path, query) = parts(target);
    let rest = match by.and_then(|by| by.path.as_ref()) {
        Some(PathTest::Segments(prefix)) => after_segments(path, prefix).unwrap_or_default(),
        None => path,
        Some(PathTest::Text { .. }) => "",
    };
    let (new, slash) = match (new.trim_end_matches('/'), rest) {
        ("", "") => ("", "/"),
        (new, _) => (new, ""),
    };
    Cow::Owned(format!("{new}{slash}{rest}{query}"))
}
