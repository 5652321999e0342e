//! What `culvert why --waypoint` asks of a request: what the configuration says, and what the waypoint has learned since, such
//! as ejections and open circuits.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_common::admin::{Answer, Request, Route, json_answer, text};
use culvert_common::l7::breaker::Kind;
use culvert_common::l7::explain::{BackendView, HttpExplanation, Question, Verdict, explain};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use super::dump;
use crate::current::{Current, Live};
use crate::shared::Shared;

/// Headers of a request that is asked about.
const HEADERS_MAX: usize = 100;

/// The page that follows a request.
pub(super) fn page(shared: &Arc<Shared>) -> Route {
    let shared = Arc::clone(shared);
    Route::read(
        "/culvert/why/request",
        "what is done with a request (culvert why --waypoint asks it)",
        move |request| std::future::ready(why_request(&shared, &request)),
    )
}

fn why_request(shared: &Shared, request: &Request) -> Answer {
    let Some(question) = question(request) else {
        let help = "say source=IP:PORT, destination=IP:PORT, method, path, and if need be peer, namespace, authority and \
                    headers (name: value, one a line)\n";
        return text(StatusCode::BAD_REQUEST, help);
    };
    let current = shared.current();
    let mut http = explain(&current.snapshot, &current.waypoint, &question);
    if let Some(http) = &mut http {
        learned(&current, http);
    }
    let unmet = dump::unmet(&current.waypoint);
    json_answer(StatusCode::OK, &json!({ "http": http, "conditions": unmet }))
}

/// What is asked; none: something of it is missing, or is none of what it should be.
fn question(request: &Request) -> Option<Question> {
    let query = |name: &str| request.query(name).filter(|value| !value.is_empty());
    let destination: SocketAddr = query("destination")?.parse().ok()?;
    let mut headers = HeaderMap::new();
    for line in query("headers").unwrap_or_default().lines().take(HEADERS_MAX) {
        let (name, value) = line.split_once(':')?;
        let (name, value): (HeaderName, HeaderValue) =
            (name.trim().parse().ok()?, value.trim().parse().ok()?);
        headers.append(name, value);
    }
    Some(Question {
        peer: query("peer").map(|peer| peer.parse().ok()).map_or(Some(None), |peer| peer.map(Some))?,
        namespace: query("namespace").unwrap_or_default(),
        source: query("source")?.parse().ok()?,
        destination,
        method: query("method")?.parse().ok()?,
        authority: query("authority").unwrap_or_else(|| destination.to_string()),
        target: query("path").filter(|path| path.starts_with('/'))?,
        headers,
    })
}

/// Adds what the configuration does not say.
fn learned(current: &Current, http: &mut HttpExplanation) {
    for backend in &mut http.backends {
        if let Some(live) = current.clusters().find(|live| live.cluster.key.to_string() == backend.cluster) {
            learned_of(live, backend);
        }
    }
    let failing = http.backends.iter().filter(|backend| backend.failure.is_some()).count();
    let [only] = &http.backends[..] else {
        if http.verdict == Verdict::Forwarded && failing > 0 {
            http.verdict = Verdict::Depends;
        }
        return;
    };
    if http.verdict == Verdict::Forwarded && failing > 0 {
        http.verdict = Verdict::Refused;
        (http.status, http.summary) = (only.failure, only.problem.clone());
        (http.flag, http.details) = (only.flag.clone(), only.details.clone());
    }
}

fn learned_of(live: &Live, backend: &mut BackendView) {
    for candidate in &mut backend.endpoints {
        let is_it = |address: SocketAddr| address.to_string() == candidate.target;
        let Some(node) = live.endpoints.list().iter().find(|node| is_it(node.address)) else { continue };
        let host = node.as_ref();
        match (host.is_ejected(), host.active()) {
            (true, _) => {
                candidate.is_in = false;
                "ejected: it has failed too often".clone_into(&mut candidate.reason);
            }
            (false, 0) => {}
            (false, active) => candidate.reason.push_str(&format!(", {active} requests under way")),
        }
    }
    if backend.failure.is_some() {
        return;
    }
    let limit = live.breaker.limit(Kind::Requests, &live.cluster);
    let is_any = backend.endpoints.iter().any(|candidate| candidate.is_in);
    let failure = if live.breaker.count(Kind::Requests) >= limit {
        let problem =
            format!("its circuit is open: {limit} requests are under way, which is as many as may be");
        Some((problem, "UO", "upstream_reset_before_response_started{overflow}"))
    } else if !is_any && !backend.endpoints.is_empty() {
        Some(("all of its endpoints are ejected".to_owned(), "UH", "no_healthy_upstream"))
    } else {
        None
    };
    if let Some((problem, flag, details)) = failure {
        (backend.problem, backend.failure) = (problem, Some(503));
        (backend.flag, backend.details) = (flag.to_owned(), details.to_owned());
    }
}
