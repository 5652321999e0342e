//! Which route a request takes, and which of the route's destinations.
//!
//! **Source**: Istio `HTTPMatchRequest`; Gateway API `HTTPRouteMatch`; Envoy `RouteMatch`.

use crate::authz::http::Facts;
use crate::model::l7::{HeaderMatch, PathTest, QueryMatch, RequestMatch, Route, TextMatch, Weighted};

/// The route of a request.
#[derive(Clone, Copy, Debug)]
pub struct Found<'r> {
    /// The first whose matches hold.
    pub route: &'r Route,
    /// Which of them it is.
    pub index: usize,
    /// Which of its matches held: rewrites need its prefix. None: it is for every request.
    pub by: Option<&'r RequestMatch>,
}

/// The first route that matches; none: 404.
pub fn find<'r>(routes: &'r [Route], facts: &Facts<'_>) -> Option<Found<'r>> {
    let path = facts.path();
    routes.iter().enumerate().find_map(|(index, route)| {
        if route.matches.is_empty() {
            return Some(Found { route, index, by: None });
        }
        let by = route.matches.iter().find(|one| holds(one, facts, path))?;
        Some(Found { route, index, by: Some(by) })
    })
}

/// Whether all parts of a match hold.
pub fn is_match(one: &RequestMatch, facts: &Facts<'_>) -> bool {
    holds(one, facts, facts.path())
}

fn holds(one: &RequestMatch, facts: &Facts<'_>, asked: &str) -> bool {
    // Written out, so that a new field has to be compared.
    let RequestMatch { path, method, scheme, authority, headers, without_headers, query, port } = one;
    let is = |test: &Option<TextMatch>, text: &str| {
        test.as_ref().is_none_or(|test| test.is_match(text.as_bytes()))
    };
    port.is_none_or(|port| port == facts.port())
        && is(method, facts.method.as_str())
        && is(scheme, facts.scheme)
        && is(authority, facts.authority)
        && path.as_ref().is_none_or(|path| is_path(path, asked))
        && headers.iter().all(|header| has(header, facts))
        && !without_headers.iter().any(|header| has_or_lacks(header, facts))
        && query.iter().all(|parameter| asks(parameter, facts))
}

fn is_path(test: &PathTest, path: &str) -> bool {
    match test {
        PathTest::Text { text, ignore_case: false } => text.is_match(path.as_bytes()),
        PathTest::Text { text, ignore_case: true } => text.is_match_ignoring_case(path.as_bytes()),
        PathTest::Segments(prefix) => after_segments(path, prefix).is_some(),
    }
}

/// What follows a prefix of whole segments: nothing, or from the next `/` on. Slashes at the prefix's end are not part of it.
pub(super) fn after_segments<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    path.strip_prefix(prefix.trim_end_matches('/')).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Any of the header's values is meant; they are never joined.
fn has(test: &HeaderMatch, facts: &Facts<'_>) -> bool {
    facts.values(&test.name).any(|value| test.value.is_match(value))
}

/// The same, with a header that is missing as an empty one, unless it only has to be there.
fn has_or_lacks(test: &HeaderMatch, facts: &Facts<'_>) -> bool {
    if has(test, facts) {
        return true;
    }
    let is_missing = || facts.values(&test.name).next().is_none();
    test.value != TextMatch::Present && is_missing() && test.value.is_match(b"")
}

fn asks(test: &QueryMatch, facts: &Facts<'_>) -> bool {
    facts.query_parameter(&test.name).is_some_and(|value| test.value.is_match(value.as_bytes()))
}

/// One of several destinations by weight, for any `random` number.
pub(super) fn pick(backends: &[Weighted], random: u64) -> Option<&Weighted> {
    by_weight(backends, |one| one.weight, random)
}

/// One of several by weight, for any `random` number; the only one whatever it weighs.
pub fn by_weight<T>(all: &[T], weight: impl Fn(&T) -> u32, random: u64) -> Option<&T> {
    if let [only] = all {
        return Some(only);
    }
    let total: u64 = all.iter().map(|one| u64::from(weight(one))).sum();
    let mut left = random.checked_rem(total)?;
    all.iter().find(|one| {
        let weight = u64::from(weight(one));
        let is_here = left < weight;
        left = left.saturating_sub(weight);
        is_here
    })
}

#[cfg(test)]
mod tests;
