//! What becomes of a request once its route is found: destination, policies, filters, what the route does with it, in this
//! order.
//!
//! Who serves a request waits for a delay, tells, and sends; nothing of that changes what is decided here.

use std::time::Duration;

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::filters::{self, Context, Passed};
use super::hygiene::add_original_path;
use super::matching::{Found, pick};
use super::redirect::{location, own_location};
use super::rewrite::{new_authority, path_rewrite, rewritten};
use super::{Edits, Facts, Failure, Reply, Values};
use crate::authz::http::{Decision, authorize};
use crate::model::l7::{Backend, Cluster, ClusterKey, Policies, RouteAction, Weighted};

/// A route, and which of its destinations; one that answers itself has none.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'r> {
    /// The route.
    pub found: Found<'r>,
    /// The destination.
    pub backend: Option<&'r Weighted>,
}

/// What is decided of a request before anything is sent anywhere.
#[derive(Debug)]
pub struct Plan<'r> {
    /// The route and the destination whose edits an answer gets too that is made here.
    pub chosen: Option<Chosen<'r>>,
    /// What policies say.
    pub decision: Decision<'r>,
    /// Time that is lost on purpose before anything else.
    pub delay: Option<Duration>,
    /// Headers for the answer, whoever gives it.
    pub response: HeaderMap,
    /// Whether a filter answers.
    pub passed: Passed,
}

/// The destination on the route that was found, policies, filters; `draw` makes random numbers, the first for the destination.
pub fn plan<'r>(
    found: Option<Found<'r>>,
    policies: &'r Policies,
    facts: &Facts<'_>,
    mut draw: impl FnMut() -> u64,
) -> Plan<'r> {
    let chosen = found.map(|found| match &found.route.action {
        RouteAction::Forward(backends) => Chosen { found, backend: pick(backends, draw()) },
        RouteAction::Respond(_) | RouteAction::Redirect(_) => Chosen { found, backend: None },
    });
    let decision = authorize(policies, facts);
    let mut context = Context {
        facts,
        decision: &decision,
        route: found.map(|found| found.route),
        draw: &mut draw,
        delay: None,
        response: HeaderMap::new(),
    };
    let passed = filters::run(&mut context);
    let Context { delay, response, .. } = context;
    Plan { chosen, decision, delay, response, passed }
}

/// What a route does with a request that filters have let through.
#[derive(Debug)]
pub enum Act<'r, C> {
    /// It is answered here.
    Reply(Reply),
    /// It goes to this destination, as `clusters` knows it.
    Forward(Found<'r>, &'r Weighted, C),
}

impl<'r, C> Act<'r, C> {
    /// What the route does, if there is one; `cluster` finds what is known of a destination.
    pub fn of(
        chosen: Option<Chosen<'r>>,
        facts: &Facts<'_>,
        cluster: impl FnOnce(&'r ClusterKey) -> Option<(C, &'r Cluster)>,
    ) -> Self {
        let fail = |failure: &Failure| Self::Reply(Reply::failure(failure, facts.is_grpc()));
        let Some(Chosen { found, backend }) = chosen else { return fail(&Failure::NoRoute) };
        let (status, body, at) = match &found.route.action {
            RouteAction::Respond(direct) => {
                (direct.status, direct.body.clone(), own_location(direct.status, facts))
            }
            RouteAction::Redirect(redirect) => {
                (redirect.status, Bytes::new(), Some(location(redirect, found.by, facts)))
            }
            RouteAction::Forward(_) => {
                let invalid = Failure::InvalidBackend(StatusCode::INTERNAL_SERVER_ERROR);
                let Some(backend) = backend else { return fail(&invalid) };
                let known = match &backend.backend {
                    Backend::Invalid { status, .. } => return fail(&Failure::InvalidBackend(*status)),
                    Backend::Cluster(key) => cluster(key),
                };
                return match known {
                    None => fail(&Failure::NoCluster),
                    Some((_, cluster)) if cluster.refused.is_some() => fail(&Failure::Refused),
                    Some((known, _)) => Self::Forward(found, backend, known),
                };
            }
        };
        let mut reply = Reply::direct(status, body, facts.is_grpc());
        let at = at.and_then(|at| HeaderValue::try_from(at).ok());
        reply.headers.extend(at.map(|at| (LOCATION, at)));
        Self::Reply(reply)
    }
}

/// What route and destination change of a request.
#[derive(Debug)]
pub struct Changes<'r> {
    headers: Edits<'r>,
    path: Option<String>,
    authority: Option<&'r HeaderValue>,
}

impl<'r> Changes<'r> {
    /// Those of a request that goes to `backend`.
    pub fn of(found: Found<'r>, backend: &'r Weighted, values: &Values<'_>) -> Self {
        let Found { route, by, .. } = found;
        let path =
            path_rewrite(route, backend).map(|new| rewritten(new, by, values.facts.target).into_owned());
        let headers = Edits::of_request(route, backend, values);
        Self { headers, path, authority: new_authority(route, backend) }
    }

    /// Makes them; returns what stands in place of the authority, if anything does.
    pub fn apply(self, headers: &mut HeaderMap, target: &mut String) -> Option<&'r HeaderValue> {
        self.headers.apply(headers);
        if let Some(path) = self.path {
            add_original_path(headers, target);
            *target = path;
        }
        self.authority
    }
}
