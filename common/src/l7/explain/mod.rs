//! Why a waypoint does with one HTTP request what it does: route, filters, policies, destination, endpoints.
//!
//! Nothing is decided here. Each step is a call of the function that decides it for traffic (`find`, `authz::http`, `cors`,
//! `rewritten`, `location`) on the same data; to tell which part of a match or of a rule fails, the part is asked alone. It
//! sees the configuration: what was ejected, or how long an endpoint takes, it does not know.
//!
//! Start with [`explain`]; the answer as data is in `answer`, matches and actions are told in `routes`, rules in `policies`,
//! destinations and their endpoints in `backends`.

mod answer;
mod backends;
mod policies;
mod routes;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};

pub use answer::{BackendView, CandidateView, HttpExplanation, PassedRoute, PolicyView, RouteView, Verdict};

use super::cors::{self, Origin};
use super::{Connection, Facts, Failure, Found, find, normalize};
use crate::authz::http::{Denial, authorize, authorize_tcp};
use crate::model::Service;
use crate::model::l7::{Bound, BoundPort, Fraction, Policies, Protocol, Route, RouteAction, Waypoint};
use crate::state::Snapshot;
use crate::types::SpiffeId;

/// A request that somebody asks about.
#[derive(Clone, Debug)]
pub struct Question {
    /// Identity that the client proves.
    pub peer: Option<SpiffeId>,
    /// Namespace of the client.
    pub namespace: String,
    /// Address of the client.
    pub source: SocketAddr,
    /// What the client dials.
    pub destination: SocketAddr,
    /// Its method.
    pub method: Method,
    /// Its host.
    pub authority: String,
    /// Its path with query.
    pub target: String,
    /// Its other headers.
    pub headers: HeaderMap,
}

/// What the waypoint does with the request; none: what is dialled is not bound to it.
///
/// **Shape**: `snapshot` is that of the same documents.
pub fn explain(snapshot: &Snapshot, waypoint: &Waypoint, question: &Question) -> Option<HttpExplanation> {
    let ip = question.destination.ip().to_canonical();
    let service = snapshot.service_by_vip(ip, &question.namespace);
    let bound = match service {
        Some(service) => Some((service, waypoint.services.get(&service.key)?)),
        None => {
            let workload = snapshot.workload_by_ip(ip)?;
            waypoint.workloads.contains(&workload.uid).then_some(None)?
        }
    };
    let mut answer = HttpExplanation {
        waypoint: waypoint.gateway.to_string(),
        identity: waypoint.identity.as_ref().map(ToString::to_string),
        request: format!("{} {}{}", question.method, question.authority, question.target),
        ..HttpExplanation::default()
    };
    let Ok(target) = normalize(question.target.as_bytes(), waypoint.normalization, waypoint.above_root)
    else {
        answer.fail(&Failure::BadPath, "the path cannot be made plain".to_owned());
        return Some(answer);
    };
    if *target != question.target {
        answer.plain_path = Some(target.clone().into_owned());
    }
    let facts = facts(question, &target);
    let asked = Asked { snapshot, waypoint, facts };
    match bound {
        Some((service, bound)) => asked.of_service(service, bound, &mut answer),
        None => asked.of_workload(&mut answer),
    }
    Some(answer)
}

fn facts<'a>(question: &'a Question, target: &'a str) -> Facts<'a> {
    Facts {
        connection: Connection {
            peer: question.peer.as_ref(),
            source: question.source,
            remote: question.source.ip(),
            destination: question.destination,
            server_name: None,
        },
        method: &question.method,
        scheme: "http",
        authority: &question.authority,
        target,
        headers: &question.headers,
    }
}

/// A request and what is known around it.
struct Asked<'a> {
    snapshot: &'a Snapshot,
    waypoint: &'a Waypoint,
    facts: Facts<'a>,
}

impl Asked<'_> {
    fn of_workload(&self, answer: &mut HttpExplanation) {
        "HTTP".clone_into(&mut answer.protocol);
        if self.is_denied(&self.waypoint.policies, answer) {
            return;
        }
        let to = self.facts.connection.destination;
        let name = self.snapshot.workload_by_ip(to.ip()).map(|w| format!("{}/{}", w.namespace, w.name));
        answer.pass(format!("sent on to {} at {to}: routes are for services", name.unwrap_or_default()));
    }

    fn of_service(&self, service: &Service, bound: &Bound, answer: &mut HttpExplanation) {
        let Some(port) = bound.ports.get(&self.facts.port()) else {
            let ports: Vec<String> = bound.ports.keys().map(ToString::to_string).collect();
            let why = format!(
                "service {} has no port {}, only {}",
                service.key,
                self.facts.port(),
                ports.join(", ")
            );
            return answer.fail(&Failure::NoRoute, why);
        };
        protocol(port.protocol).clone_into(&mut answer.protocol);
        answer.routes = port.http.len();
        if matches!(port.protocol, Protocol::Tcp | Protocol::Tls) {
            return self.tcp(&bound.policies, port, answer);
        }
        let found = find(&port.http, &self.facts);
        let before = found.as_ref().map_or(port.http.len(), |found| found.index);
        answer.passed_over =
            port.http.iter().take(before).map(|route| routes::passed(route, &self.facts)).collect();
        answer.route = found.as_ref().map(|found| routes::view(found, &self.facts));
        if self.is_denied(&bound.policies, answer) {
            return;
        }
        if found.as_ref().is_some_and(|found| self.is_filtered(found.route, answer)) {
            return;
        }
        let Some(found) = found else {
            let why = match port.http.len() {
                0 => "no route is there".to_owned(),
                1 => "the one route that is there does not match".to_owned(),
                all => format!("none of {all} routes matches"),
            };
            return answer.fail(&Failure::NoRoute, why);
        };
        self.act(&found, answer);
    }

    /// What the route does with it.
    fn act(&self, found: &Found<'_>, answer: &mut HttpExplanation) {
        let by = routes::field(&found.route.origin);
        match &found.route.action {
            RouteAction::Respond(direct) => {
                answer.reply(direct.status, format!("{by} answers it directly"));
            }
            RouteAction::Redirect(redirect) => {
                let to = super::location(redirect, found.by, &self.facts);
                answer.reply(redirect.status, format!("{by} redirects it to {to}"));
            }
            RouteAction::Forward(all) => {
                let total: u64 = all.iter().map(|one| u64::from(one.weight)).sum();
                let counting = all.iter().filter(|one| one.weight > 0 || all.len() == 1);
                answer.backends = counting.map(|one| self.backend(found, one, total)).collect();
                backends::judge(answer, &by);
            }
        }
    }

    /// TCP is not looked into: only policies that need no HTTP, and where it goes.
    fn tcp(&self, policies: &Policies, port: &BoundPort, answer: &mut HttpExplanation) {
        let decision = authorize_tcp(policies, &self.facts.connection);
        answer.advice.push(format!(
            "the waypoint takes port {} for {}, and looks at no HTTP there: name the port http (or http2, grpc), or set \
             appProtocol, for routes and policies on requests",
            self.facts.port(),
            answer.protocol
        ));
        if let Some(denial) = decision.denial() {
            return answer.refuse(None, policies::told(&denial, policies, &self.facts));
        }
        let to = self.facts.connection.destination;
        let matched = port.tcp.iter().find(|route| {
            route.matches.is_empty() || route.matches.iter().any(|one| one.is_match(to.ip(), to.port()))
        });
        match matched {
            Some(route) => answer.pass(format!("sent on as TCP by {}", routes::field(&route.origin))),
            None => answer.refuse(None, "no TCP route matches".to_owned()),
        }
    }

    /// Whether policies end it; tells all of them.
    fn is_denied(&self, policies: &Arc<Policies>, answer: &mut HttpExplanation) -> bool {
        let decision = authorize(policies, &self.facts);
        answer.policies = policies::views(policies, &self.facts, &decision);
        let Some(denial) = decision.denial() else { return false };
        let why = policies::told(&denial, policies, &self.facts);
        answer.fail(&Failure::Denied(denial.id()), why);
        if let Denial::NoneAllowed(_) = denial {
            let who =
                self.facts.connection.peer.map_or_else(|| "this client".to_owned(), SpiffeId::principal);
            answer.advice.push(format!(
                "widen a rule, or add an ALLOW policy with targetRefs for {who} and this request"
            ));
        }
        true
    }

    /// Whether a fault or the answer to a preflight ends it always.
    fn is_filtered(&self, route: &Route, answer: &mut HttpExplanation) -> bool {
        let by = routes::field(&route.origin);
        if let Some(abort) = &route.fault.abort
            && abort.share >= Fraction::ALL
        {
            answer.fail(&Failure::Abort(abort.status), format!("{by} makes this fault on purpose"));
            return true;
        }
        // What a route answers itself says nothing of origins.
        let cors = route.cors.as_ref().filter(|_| matches!(route.action, RouteAction::Forward(_)));
        let Some(Origin::Preflight(origin)) = cors.map(|cors| cors::check(cors, &self.facts)) else {
            return false;
        };
        let whom = if origin.is_some() { "an origin that may ask" } else { "an origin that may not ask" };
        answer.reply(
            http::StatusCode::OK,
            format!("a preflight of {whom}, answered by the CORS policy of {by}"),
        );
        true
    }
}

fn protocol(of: Protocol) -> &'static str {
    match of {
        Protocol::Http1 => "HTTP",
        Protocol::Http2 => "HTTP/2",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Unknown => "whatever the first bytes look like",
    }
}
