//! Where HTTPRoutes and GRPCRoutes count, in which order, and what their status says.
//!
//! All routes of one port of a service are merged, of both kinds, and their matches are sorted by one precedence over all
//! of them. Source: Gateway API, GEP-1294 and HTTPRouteRule.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::gateway_filters::{BackendRef, Filters, RefTo};
use super::gateway_route::{GatewayRoute, ParentRef, Rule};
use super::world::{Known, World};
use crate::model::l7::{
    Backend, ClusterKey, DirectResponse, Fault, Mirror, Origin, PathTest, RequestMatch, Route, RouteAction,
    TextMatch, Weighted,
};
use crate::model::{Condition, Status};
use crate::source::kube::reader::Report;
use crate::types::ServiceKey;

/// The routes of each port of each service.
pub(super) type Attached<'a> = BTreeMap<(ServiceKey, u16), Vec<&'a GatewayRoute>>;

/// Why a parent does not take a route.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    reason: &'static str,
    message: String,
}

/// Finds out where each route counts.
pub(super) fn attach<'a>(
    routes: &'a [GatewayRoute],
    world: &World<'_>,
    report: &Report,
) -> (Attached<'a>, Vec<Status>) {
    let mut attached: Attached<'a> = BTreeMap::new();
    let mut statuses = Vec::new();
    // Without a parent here a route is for other controllers.
    for route in routes.iter().filter(|route| !route.parents.is_empty()) {
        let resolved = resolved(route, world, report);
        for parent in &route.parents {
            let found = ports(route, parent, world);
            match &found {
                Ok(ports) => {
                    for key in ports {
                        let of_port = attached.entry(key.clone()).or_default();
                        if !of_port.iter().any(|other| std::ptr::eq(*other, route)) {
                            of_port.push(route);
                        }
                    }
                }
                Err(refusal) => report.warning(route.meta.at.about(
                    &parent.path,
                    refusal.message.as_str(),
                    "the route has no effect there",
                )),
            }
            statuses.push(status(route, parent, &found, &resolved, world));
        }
    }
    (attached, statuses)
}

/// The ports that a parent means, or why it means none.
fn ports(
    route: &GatewayRoute,
    parent: &ParentRef,
    world: &World<'_>,
) -> Result<BTreeSet<(ServiceKey, u16)>, Refusal> {
    let refuse = |reason, message| Err(Refusal { reason, message });
    let services: Vec<&Known> = world.of_object(parent.kind, &parent.namespace, &parent.name).collect();
    if services.is_empty() {
        let message = format!("no {} {}/{} is known", parent.kind, parent.namespace, parent.name);
        return refuse("NoMatchingParent", message);
    }
    let own = &*route.meta.namespace;
    if own != &*parent.namespace && own != &*world.gateway.namespace {
        let message = format!(
            "a route in namespace {own} for {} in {}: routes for the clients of one namespace are not built; at a \
             waypoint a route counts in the namespace of the service or of the waypoint",
            parent.name, parent.namespace
        );
        return refuse("NotAllowedByListeners", message);
    }
    let mut found = BTreeSet::new();
    for service in services {
        let means = |number: u16, name: &str| {
            parent.port.is_none_or(|port| port == number)
                && parent.section.as_deref().is_none_or(|s| s == name)
        };
        let ports = service.ports.iter().filter(|(number, port)| means(**number, &port.name));
        found.extend(ports.map(|(number, _)| (service.key.clone(), *number)));
    }
    if found.is_empty() {
        let port = parent.port.map(|port| format!(" {port}")).unwrap_or_default();
        let name = parent.section.as_ref().map(|name| format!(" named {name:?}")).unwrap_or_default();
        let message = format!("{} {} has no TCP port{port}{name}", parent.kind, parent.name);
        return refuse("NoMatchingParent", message);
    }
    Ok(found)
}

/// What is wrong with the backends and filters of a route.
struct Resolved {
    /// Reason and message of the first backend that cannot be used.
    backend: Option<(&'static str, String)>,
    /// What cannot be done, and whether no rule is left.
    filters: Option<(String, bool)>,
}

fn resolved<'r>(route: &'r GatewayRoute, world: &World<'_>, report: &Report) -> Resolved {
    let mut backend = None;
    for rule in &route.rules {
        let own = rule.backends.iter();
        let mirrors = rule.filters.mirrors.iter().map(|(to, _)| to);
        let of_backends = rule.backends.iter().flat_map(|b| b.filters.mirrors.iter().map(|(to, _)| to));
        for to in own.chain(mirrors).chain(of_backends) {
            if let Err((reason, message)) = find(to, route, world) {
                let effect = match to.weight {
                    0 => "it has weight 0, so nothing would go there",
                    _ => "its share of the requests is answered with 500",
                };
                report.warning(route.meta.at.about(&to.path, message.as_str(), effect));
                backend.get_or_insert((reason, message));
            }
        }
    }
    let of_backends = |rule: &'r Rule| rule.backends.iter().filter_map(|to| to.filters.refused.as_ref());
    let mut reasons =
        route.rules.iter().flat_map(|rule| rule.filters.refused.iter().chain(of_backends(rule)));
    let is_all = route.rules.iter().all(|rule| rule.filters.refused.is_some());
    Resolved { backend, filters: reasons.next().map(|first| (first.to_string(), is_all)) }
}

fn status(
    route: &GatewayRoute,
    parent: &ParentRef,
    found: &Result<BTreeSet<(ServiceKey, u16)>, Refusal>,
    resolved: &Resolved,
    world: &World<'_>,
) -> Status {
    let mut conditions = Vec::new();
    conditions.push(match (found, &resolved.filters) {
        (Err(refusal), _) => Condition::no("Accepted", refusal.reason, refusal.message.as_str()),
        (Ok(_), Some((reason, true))) => Condition::no("Accepted", "UnsupportedValue", reason.as_str()),
        (Ok(_), _) => Condition::yes("Accepted", "Accepted", "Route was valid"),
    });
    if let (Ok(_), Some((reason, false))) = (found, &resolved.filters) {
        conditions.push(Condition::yes("PartiallyInvalid", "UnsupportedValue", reason.as_str()));
    }
    conditions.push(match &resolved.backend {
        Some((reason, message)) => Condition::no("ResolvedRefs", reason, message.as_str()),
        None => Condition::yes("ResolvedRefs", "ResolvedRefs", "All references resolved"),
    });
    if let Ok(ports) = found {
        let is_bound = |key: &ServiceKey| world.service(key).is_some_and(|service| service.is_bound);
        let message = match ports.iter().any(|(key, _)| is_bound(key)) {
            true => format!("{} goes through waypoint {}", parent.name, world.gateway),
            false => format!(
                "{} is not bound to waypoint {}, so the route has no effect there; label it istio.io/use-waypoint",
                parent.name, world.gateway
            ),
        };
        conditions.push(Condition::yes("ResolvedWaypoints", "ResolvedWaypoints", message));
    }
    let port = parent.port.map(|port| format!(":{port}")).unwrap_or_default();
    let section = parent.section.as_ref().map(|section| format!("#{section}")).unwrap_or_default();
    Status {
        kind: route.kind.name(),
        namespace: Arc::clone(&route.meta.namespace),
        name: Arc::clone(&route.meta.name),
        part: Some(format!("{} {}/{}{port}{section}", parent.kind, parent.namespace, parent.name).into()),
        conditions,
    }
}

/// The destination that a reference is to, or reason and message of a condition.
fn find(
    to: &BackendRef,
    route: &GatewayRoute,
    world: &World<'_>,
) -> Result<ClusterKey, (&'static str, String)> {
    let service = match &to.to {
        RefTo::Unknown(what) => return Err(("InvalidKind", what.to_string())),
        RefTo::Service(namespace, name) => world
            .of_object("Service", namespace, name)
            .next()
            .ok_or_else(|| ("BackendNotFound", format!("no Service {namespace}/{name} is known")))?,
        RefTo::Hostname(host) => world
            .by_host(host, &route.meta.namespace)
            .ok_or_else(|| ("BackendNotFound", format!("no service {host} is known")))?,
    };
    let sole = || service.ports.keys().next().copied().filter(|_| service.ports.len() == 1);
    let Some(port) = to.port.or_else(sole) else {
        return Err(("InvalidDestination", format!("no port for {}", service.key.hostname)));
    };
    if !service.ports.contains_key(&port) {
        return Err(("InvalidDestination", format!("{} has no TCP port {port}", service.key.hostname)));
    }
    Ok(ClusterKey { service: service.key.clone(), port, subset: None })
}

fn backend(to: &BackendRef, route: &GatewayRoute, world: &World<'_>) -> Backend {
    match find(to, route, world) {
        Ok(key) => Backend::Cluster(key),
        Err((_, message)) => {
            Backend::Invalid { status: StatusCode::INTERNAL_SERVER_ERROR, reason: message.into() }
        }
    }
}

/// What decides which of two matches is tried first: the smaller. No two matches have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Exact paths, then prefixes, then expressions; of each the longest.
    path: Reverse<(u8, usize)>,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    /// The oldest object, then by namespace, name and kind.
    created: Arc<str>,
    namespace: Arc<str>,
    name: Arc<str>,
    kind: &'static str,
    rule: usize,
    place: usize,
}

impl Rank {
    /// Rank of one match of one rule.
    pub(super) fn of(route: &GatewayRoute, rule: usize, place: usize, test: &RequestMatch) -> Self {
        let path = match &test.path {
            None => (0, 0),
            Some(PathTest::Text { text: TextMatch::Exact(path), .. }) => (3, path.len()),
            Some(PathTest::Text { text: TextMatch::Prefix(path), .. }) => (2, path.len()),
            // Of `/` nothing is left without its last slash.
            Some(PathTest::Segments(prefix)) => (2, prefix.len().max(1)),
            Some(PathTest::Text { text: TextMatch::Regex(pattern), .. }) => (1, pattern.as_str().len()),
            Some(PathTest::Text { text: TextMatch::Present, .. }) => (1, 0),
        };
        Self {
            path: Reverse(path),
            method: Reverse(test.method.is_some()),
            headers: Reverse(test.headers.len()),
            query: Reverse(test.query.len()),
            created: Arc::clone(&route.meta.created),
            namespace: Arc::clone(&route.meta.namespace),
            name: Arc::clone(&route.meta.name),
            kind: route.kind.name(),
            rule,
            place,
        }
    }
}

/// The routes of one port, one for each match, in the order in which they are tried.
pub(super) fn http(routes: &[&GatewayRoute], world: &World<'_>) -> Vec<Route> {
    let mut ranked: Vec<(Rank, Route)> = Vec::new();
    for of in routes {
        for (index, rule) in of.rules.iter().enumerate() {
            let base = route(of, index, rule, world);
            for (place, test) in rule.matches.iter().enumerate() {
                let matches = vec![test.clone()];
                ranked.push((Rank::of(of, index, place, test), Route { matches, ..base.clone() }));
            }
        }
    }
    ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
    ranked.into_iter().map(|(_, route)| route).collect()
}

fn route(of: &GatewayRoute, index: usize, rule: &Rule, world: &World<'_>) -> Route {
    let Filters { headers, redirect, rewrite, mirrors, cors, .. } = rule.filters.clone();
    let action = match (&rule.filters.refused, redirect) {
        (Some(_), _) => internal_error(),
        (None, Some(redirect)) => RouteAction::Redirect(redirect),
        (None, None) => forward(of, rule, world),
    };
    let retries = rule.retries.clone();
    // With retries the limit for a backend is one for each try, without it is one for all.
    let (timeout, per_try) = match &retries {
        Some(_) => (rule.timeout, rule.backend_timeout),
        None => (rule.backend_timeout.or(rule.timeout), None),
    };
    let mut retries = retries.unwrap_or_default();
    retries.per_try_timeout = per_try;
    let name = || format!("{}.{}.{index}", of.meta.namespace, of.meta.name).into();
    Route {
        name: rule.name.clone().unwrap_or_else(name),
        origin: Origin {
            kind: of.kind.name(),
            namespace: Arc::clone(&of.meta.namespace),
            name: Arc::clone(&of.meta.name),
            rule: index,
        },
        matches: Vec::new(),
        action,
        request_headers: headers.request,
        response_headers: headers.response,
        rewrite,
        timeout,
        retries,
        fault: Fault::default(),
        mirrors: copies(&mirrors, of, world),
        cors,
    }
}

fn copies(
    mirrors: &[(BackendRef, crate::model::l7::Fraction)],
    of: &GatewayRoute,
    world: &World<'_>,
) -> Vec<Mirror> {
    let one = |(to, share): &(BackendRef, _)| Mirror { backend: backend(to, of, world), share: *share };
    mirrors.iter().map(one).collect()
}

/// By weight; 500 if there is nobody.
fn forward(of: &GatewayRoute, rule: &Rule, world: &World<'_>) -> RouteAction {
    let one = |to: &BackendRef| {
        let backend = match &to.filters.refused {
            Some(reason) => {
                Backend::Invalid { status: StatusCode::INTERNAL_SERVER_ERROR, reason: Arc::clone(reason) }
            }
            None => backend(to, of, world),
        };
        Weighted {
            backend,
            weight: to.weight,
            request_headers: to.filters.headers.request.clone(),
            response_headers: to.filters.headers.response.clone(),
            rewrite: to.filters.rewrite.clone(),
            mirrors: copies(&to.filters.mirrors, of, world),
        }
    };
    let all: Vec<Weighted> = rule.backends.iter().filter(|to| to.weight > 0).map(one).collect();
    if all.is_empty() { internal_error() } else { RouteAction::Forward(all) }
}

fn internal_error() -> RouteAction {
    RouteAction::Respond(DirectResponse { status: StatusCode::INTERNAL_SERVER_ERROR, body: Bytes::new() })
}
