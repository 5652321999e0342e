//! Cross-origin requests: preflights that are answered here, and what is added to other answers.
//!
//! **Source**: Fetch, CORS protocol; Istio `CorsPolicy`; Gateway API `HTTPCORSFilter`.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method};

use crate::authz::http::Facts;
use crate::model::l7::{Cors, UnmatchedPreflight};

/// What a request is to the policy of its route.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// Nothing: it has no origin, or a foreign one that is let through.
    None,
    /// It is from an origin that may ask: its answer gets [`allow`]'s headers.
    Allowed(&'a HeaderValue),
    /// It is a preflight to be answered with 200 and [`preflight`]'s headers; the origin, if it may ask.
    Preflight(Option<&'a HeaderValue>),
}

/// What a request is to this policy.
pub fn check<'a>(cors: &Cors, facts: &Facts<'a>) -> Origin<'a> {
    let named = |name| facts.headers.get(name).filter(|value: &&HeaderValue| !value.is_empty());
    let Some(origin) = named(ORIGIN) else { return Origin::None };
    let is_allowed = cors.origins.iter().any(|one| one.is_match(b"*") || one.is_match(origin.as_bytes()));
    let allowed = is_allowed.then_some(origin);
    let is_preflight = *facts.method == Method::OPTIONS && named(ACCESS_CONTROL_REQUEST_METHOD).is_some();
    match (is_preflight, allowed) {
        (true, None) if cors.unmatched == UnmatchedPreflight::Forward => Origin::None,
        (true, allowed) => Origin::Preflight(allowed),
        (false, Some(origin)) => Origin::Allowed(origin),
        (false, None) => Origin::None,
    }
}

/// Headers of the answer to a preflight; that of a foreign origin says all but that it may ask.
pub fn preflight(cors: &Cors, origin: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    let max_age = cors.max_age.map(|age| HeaderValue::from(age.as_secs()));
    let said = [
        (ACCESS_CONTROL_ALLOW_ORIGIN, origin.cloned()),
        (ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials(cors)),
        (ACCESS_CONTROL_ALLOW_METHODS, cors.methods.clone()),
        (ACCESS_CONTROL_ALLOW_HEADERS, cors.headers.clone()),
        (ACCESS_CONTROL_MAX_AGE, max_age),
    ];
    headers.extend(said.into_iter().filter_map(|(name, value)| Some((name, value?))));
    headers
}

/// Adds to an answer that its origin may read it, in place of what the upstream says of that.
pub fn allow(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if let Some(credentials) = credentials(cors) {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials);
    }
    if let Some(expose) = &cors.expose {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
    }
}

fn credentials(cors: &Cors) -> Option<HeaderValue> {
    cors.credentials.then(|| HeaderValue::from_static("true"))
}
