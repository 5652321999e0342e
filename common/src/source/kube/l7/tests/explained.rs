//! What is told of a request is what becomes of it.

use ::http::{HeaderMap, HeaderValue, Method};

use super::*;
use crate::l7::explain::{HttpExplanation, Question, explain};
use crate::state::State;

/// What is told of a preflight for `cart`, whose route does this.
fn preflight(action: &str) -> HttpExplanation {
    let cors = "corsPolicy: {allowOrigins: [{exact: 'http://x'}]}";
    let of = translated(&virtual_service(&format!("{{{action}, {cors}}}")));
    let state = State::new();
    state.publish(of.model.clone());
    let mut headers = HeaderMap::new();
    headers.insert("origin", HeaderValue::from_static("http://x"));
    headers.insert("access-control-request-method", HeaderValue::from_static("PUT"));
    let question = Question {
        peer: None,
        namespace: "shop".into(),
        source: "10.0.0.9:1".parse().unwrap(),
        destination: "10.96.0.1:80".parse().unwrap(),
        method: Method::OPTIONS,
        authority: "cart".into(),
        target: "/".into(),
        headers,
    };
    explain(&state.snapshot(), &of.waypoint, &question).unwrap()
}

#[test]
fn a_preflight_is_answered_where_it_would_go_on() {
    for (action, status, is_told) in [
        ("route: [{destination: {host: cart}}]", 200, true),
        ("redirect: {uri: /b}", 301, false),
        ("directResponse: {status: 418}", 418, false),
    ] {
        let told = preflight(action);
        assert_eq!(told.status, Some(status), "{action}: {told:?}");
        let actions = told.route.map(|route| route.actions.join("; ")).unwrap_or_default();
        assert_eq!(actions.contains("CORS"), is_told, "{action}: {actions}");
    }
}
