//! Cross-origin requests: preflights that are answered here, and what is added to other answers.
//!
//! **Source**: Fetch, CORS protocol; Istio `CorsPolicy`; Gateway API `HTTPCORSFilter`.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN,
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

/// Headers of the answer to a preflight; that of a foreign origin does not say that it may ask. Where credentials go with
/// requests a `*` would say nothing to browsers: what was asked for stands in its place.
pub fn preflight(cors: &Cors, origin: Option<&HeaderValue>, facts: &Facts<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    let said_of = |configured: &Option<HeaderValue>, asked: HeaderName| match configured {
        Some(any) if any == "*" && cors.credentials => {
            Some(facts.headers.get(asked).cloned().unwrap_or(HeaderValue::from_static("")))
        }
        configured => configured.clone(),
    };
    let max_age = cors.max_age.map(|age| HeaderValue::from(age.as_secs()));
    let said = [
        (ACCESS_CONTROL_ALLOW_ORIGIN, origin.cloned()),
        (ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials(cors)),
        (ACCESS_CONTROL_ALLOW_METHODS, said_of(&cors.methods, ACCESS_CONTROL_REQUEST_METHOD)),
        (ACCESS_CONTROL_ALLOW_HEADERS, said_of(&cors.headers, ACCESS_CONTROL_REQUEST_HEADERS)),
        (ACCESS_CONTROL_MAX_AGE, max_age),
        (ACCESS_CONTROL_EXPOSE_HEADERS, origin.and(cors.expose.clone())),
    ];
    headers.extend(said.into_iter().filter_map(|(name, value)| Some((name, value?))));
    headers
}

/// Adds to an answer that its origin may read it, in place of what the upstream says of that; also to a failure that is
/// answered here after this check.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::l7::fixtures::{asked, lines};
    use crate::model::l7::{Pattern, TextMatch};

    fn policy() -> Cors {
        Cors {
            origins: vec![TextMatch::Exact("http://ok".into())],
            methods: Some(HeaderValue::from_static("GET")),
            headers: Some(HeaderValue::from_static("ah")),
            expose: Some(HeaderValue::from_static("eh")),
            max_age: Some(Duration::from_secs(7)),
            credentials: true,
            unmatched: UnmatchedPreflight::Answer,
        }
    }

    /// What Envoy 1.40 answers.
    #[test]
    fn preflights_are_answered() {
        let preflight_from = |origin: &str| {
            asked("OPTIONS /").with(&format!("origin: {origin}")).with("access-control-request-method: GET")
        };
        let request = preflight_from("http://ok");
        let Origin::Preflight(Some(origin)) = check(&policy(), &request.facts()) else { panic!() };
        let want = [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: ah",
            "access-control-allow-methods: GET",
            "access-control-allow-origin: http://ok",
            "access-control-expose-headers: eh",
            "access-control-max-age: 7",
        ];
        assert_eq!(lines(&preflight(&policy(), Some(origin), &request.facts())), want);

        let request = preflight_from("http://no");
        assert!(matches!(check(&policy(), &request.facts()), Origin::Preflight(None)));
        let want = [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: ah",
            "access-control-allow-methods: GET",
            "access-control-max-age: 7",
        ];
        assert_eq!(lines(&preflight(&policy(), None, &request.facts())), want);
        let forward = Cors { unmatched: UnmatchedPreflight::Forward, ..policy() };
        assert!(matches!(check(&forward, &request.facts()), Origin::None));
        let request = preflight_from("http://ok");
        assert!(matches!(check(&forward, &request.facts()), Origin::Preflight(Some(_))));
    }

    /// What Envoy 1.40 answers.
    #[test]
    fn a_star_beside_credentials_stands_for_what_was_asked() {
        let star = Some(HeaderValue::from_static("*"));
        let any = Cors { methods: star.clone(), headers: star, expose: None, max_age: None, ..policy() };
        let request = asked("OPTIONS /").with("origin: http://ok").with("access-control-request-method: PUT");
        let got = lines(&preflight(&any, None, &request.facts()));
        let credentials = "access-control-allow-credentials: true";
        assert_eq!(got, [credentials, "access-control-allow-headers: ", "access-control-allow-methods: PUT"]);
        let request = request.with("access-control-request-headers: x-y");
        let got = lines(&preflight(&any, None, &request.facts()));
        assert_eq!(
            got,
            [credentials, "access-control-allow-headers: x-y", "access-control-allow-methods: PUT"]
        );
        let without = Cors { credentials: false, ..any };
        let got = lines(&preflight(&without, None, &request.facts()));
        assert_eq!(got, ["access-control-allow-headers: *", "access-control-allow-methods: *"]);
    }

    #[test]
    fn answers_to_an_origin_that_may_ask_say_so() {
        let request = asked("GET /").with("origin: http://ok");
        let Origin::Allowed(origin) = check(&policy(), &request.facts()) else { panic!() };
        let mut answer = HeaderMap::new();
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("upstream"));
        allow(&policy(), origin, &mut answer);
        let want = [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: http://ok",
            "access-control-expose-headers: eh",
        ];
        assert_eq!(lines(&answer), want);
        let bare = Cors { expose: None, credentials: false, ..policy() };
        let mut answer = HeaderMap::new();
        allow(&bare, origin, &mut answer);
        assert_eq!(lines(&answer), ["access-control-allow-origin: http://ok"]);
    }

    #[test]
    fn what_asks_for_nothing_gets_nothing() {
        for request in [
            asked("GET /"),
            asked("GET /").with("origin:"),
            asked("GET /").with("origin: http://no"),
            asked("OPTIONS /").with("access-control-request-method: GET"),
        ] {
            assert!(matches!(check(&policy(), &request.facts()), Origin::None), "{:?}", request.headers);
        }
        let options = asked("OPTIONS /").with("origin: http://ok");
        assert!(
            matches!(check(&policy(), &options.facts()), Origin::Allowed(_)),
            "no preflight without a method"
        );
    }

    #[test]
    fn origins_are_texts_patterns_or_any() {
        let request = asked("GET /").with("origin: https://a.example.com");
        for (origin, want) in [
            (TextMatch::Exact("*".into()), true),
            (TextMatch::Prefix("https://a.".into()), true),
            (TextMatch::Regex(Pattern::new(r"https://.*\.example\.com").unwrap()), true),
            (TextMatch::Exact("https://example.com".into()), false),
        ] {
            let policy = Cors { origins: vec![origin], ..policy() };
            assert_eq!(matches!(check(&policy, &request.facts()), Origin::Allowed(_)), want, "{policy:?}");
        }
    }
}
