//! What VirtualServices mean for one port of a service: HTTP and TCP routes in the order in which they are tried.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::values::{full_name, host_matches};
use super::virtual_service::{Action, Destination, HttpRule, L4Rule, MirrorTo, Split, VirtualService};
use super::world::{Known, To, World};
use crate::model::l7::{
    Mirror, Origin, PathRewrite, PathTest, RequestMatch, Rewrite, Route, RouteAction, TcpMatch, TcpRoute,
    TextMatch, Weighted,
};
use crate::source::kube::reader::Report;

/// Kind of the objects, as origins have it.
pub(super) const KIND: &str = "VirtualService";

/// A VirtualService with the rules of its delegates.
#[derive(Debug)]
pub(super) struct Expanded<'a> {
    pub(super) of: &'a VirtualService,
    /// Its hosts in full.
    pub(super) hosts: Vec<Arc<str>>,
    pub(super) http: Vec<HttpRule>,
}

/// Which service and port routes are made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct For<'a> {
    pub(super) world: &'a World<'a>,
    pub(super) service: &'a Known,
    pub(super) port: u16,
}

/// Whether a VirtualService that means this service counts at this waypoint: it is in the namespace of either, and is
/// exported to the waypoint's.
pub(super) fn counts(vs: &VirtualService, service: &Known, world: &World<'_>) -> bool {
    let namespace = &*vs.meta.namespace;
    let near = namespace == &*world.gateway.namespace || namespace == &*service.key.namespace;
    near && vs.export_to.is_visible_in(&world.gateway.namespace)
}

/// The VirtualServices for the mesh, found by what their hosts mean.
#[derive(Debug)]
pub(super) struct Index<'a> {
    /// The oldest first.
    all: Vec<Expanded<'a>>,
    by_host: HashMap<Arc<str>, Vec<usize>>,
    /// Those with a host that begins with `*`.
    wild: Vec<usize>,
}

impl<'a> Index<'a> {
    /// Indexes `all`, which are in the order in which they count.
    pub(super) fn new(all: Vec<Expanded<'a>>) -> Self {
        let mut by_host: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        let mut wild = Vec::new();
        for (place, vs) in all.iter().enumerate() {
            for host in &vs.hosts {
                match host.starts_with('*') {
                    true => wild.push(place),
                    false => by_host.entry(Arc::clone(host)).or_default().push(place),
                }
            }
        }
        Self { all, by_host, wild }
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Expanded<'a>] {
        &self.all
    }

    /// Those with a host that means the service, in their order, with their places in [`Self::all`].
    pub(super) fn meaning(&self, service: &Known) -> impl Iterator<Item = (usize, &Expanded<'a>)> {
        let name = &service.key.hostname;
        let exact = self.by_host.get(name).into_iter().flatten();
        let is_meant = |place: &&usize| {
            let hosts = self.all.get(**place).map(|vs| &vs.hosts[..]).unwrap_or_default();
            hosts.iter().any(|host| host_matches(host, name))
        };
        let places: BTreeSet<usize> = exact.chain(self.wild.iter().filter(is_meant)).copied().collect();
        places.into_iter().filter_map(|place| Some((place, self.all.get(place)?)))
    }
}

/// The HTTP routes of one VirtualService. What comes after a route for everything is left out.
pub(super) fn http(vs: &Expanded<'_>, to: For<'_>) -> Vec<Route> {
    let mut routes = Vec::new();
    for (index, rule) in vs.http.iter().enumerate() {
        let counting = rule.matches.iter().filter(|m| {
            m.only_for.counts_in(&to.world.gateway.namespace)
                && m.test.port.is_none_or(|port| port == to.port)
        });
        let counting: Vec<_> = counting.collect();
        if counting.is_empty() && !rule.matches.is_empty() {
            continue;
        }
        let is_named = counting.iter().any(|m| m.name.is_some());
        let base = route(rule, index, vs, to);
        let is_last = counting.is_empty() || counting.iter().any(|m| is_for_all(&m.test));
        if is_named {
            // Logs name the match, so each is a route of its own.
            for m in counting {
                let name = match &m.name {
                    Some(name) => format!("{}.{name}", base.name).into(),
                    None => Arc::clone(&base.name),
                };
                routes.push(Route { name, matches: vec![m.test.clone()], ..base.clone() });
            }
        } else {
            let matches = counting.into_iter().map(|m| m.test.clone()).collect();
            routes.push(Route { matches, ..base });
        }
        if is_last {
            break;
        }
    }
    routes
}

/// Whether a match holds for every request of its port.
pub(super) fn is_for_all(test: &RequestMatch) -> bool {
    let path = match &test.path {
        None => true,
        Some(PathTest::Text { text: TextMatch::Prefix(prefix), .. }) => matches!(&**prefix, "" | "/"),
        Some(PathTest::Segments(prefix)) => prefix.is_empty(),
        Some(PathTest::Text { .. }) => false,
    };
    path && RequestMatch { path: None, port: None, ..test.clone() } == RequestMatch::default()
}

fn route(rule: &HttpRule, index: usize, vs: &Expanded<'_>, to: For<'_>) -> Route {
    let headers = rule.headers.clone().unwrap_or_default();
    let action = match &rule.action {
        Action::Forward(splits) => RouteAction::Forward(weighted(splits, to)),
        Action::Redirect(redirect) => RouteAction::Redirect(redirect.clone()),
        Action::Respond(answer) => RouteAction::Respond(answer.clone()),
        // A delegate's rule has an action of its own, or reading it was a problem.
        Action::Delegated => RouteAction::Forward(Vec::new()),
    };
    let mirror = |mirror: &MirrorTo| Mirror {
        backend: to.world.backend(&target(&mirror.to), to.port),
        share: mirror.share,
    };
    Route {
        name: rule.name.clone().unwrap_or_else(|| "".into()),
        origin: origin(vs.of, index),
        matches: Vec::new(),
        action,
        request_headers: headers.request,
        response_headers: headers.response,
        rewrite: rule.rewrite.clone().unwrap_or_default(),
        timeout: rule.timeout,
        retries: rule.retries.clone().unwrap_or_default(),
        fault: rule.fault.clone().unwrap_or_default(),
        mirrors: rule.mirrors.iter().flatten().map(mirror).collect(),
        cors: rule.cors.clone(),
    }
}

fn origin(vs: &VirtualService, rule: usize) -> Origin {
    Origin { kind: KIND, namespace: Arc::clone(&vs.meta.namespace), name: Arc::clone(&vs.meta.name), rule }
}

fn target(to: &Destination) -> To<'_> {
    To { namespace: &to.namespace, host: &to.host, subset: to.subset.as_ref(), port: to.port }
}

/// One destination gets everything. Of several one with weight 0 gets nothing, but the order of edits is that of several.
fn weighted(splits: &[Split], to: For<'_>) -> Vec<Weighted> {
    let alone = splits.len() == 1;
    let one = |split: &Split| Weighted {
        backend: to.world.backend(&target(&split.to), to.port),
        weight: if alone { 1 } else { split.weight },
        request_headers: split.headers.request.clone(),
        response_headers: split.headers.response.clone(),
        rewrite: Rewrite::default(),
        mirrors: Vec::new(),
    };
    splits.iter().map(one).collect()
}

/// The TLS and TCP routes of one VirtualService; TLS routes come first.
pub(super) fn tcp(vs: &VirtualService, to: For<'_>) -> Vec<TcpRoute> {
    let tls = vs.tls.iter().enumerate().filter_map(|(i, rule)| l4(rule, i, vs, to));
    let tcp = vs.tcp.iter().enumerate().filter_map(|(i, rule)| l4(rule, i, vs, to));
    tls.chain(tcp).collect()
}

/// None if no match counts here.
fn l4(rule: &L4Rule, index: usize, vs: &VirtualService, to: For<'_>) -> Option<TcpRoute> {
    let own_name = |name: &&Arc<str>| name.eq_ignore_ascii_case(&to.service.key.hostname);
    let counting = rule.matches.iter().filter(|m| {
        m.only_for.counts_in(&to.world.gateway.namespace)
            && m.port.is_none_or(|port| port == to.port)
            && (m.server_names.is_empty() || m.server_names.iter().any(|name| own_name(&name)))
    });
    let matches: Vec<TcpMatch> = counting
        .map(|m| TcpMatch {
            destinations: m.destinations.clone(),
            port: m.port,
            server_names: m.server_names.iter().filter(own_name).cloned().collect(),
        })
        .collect();
    if matches.is_empty() && !rule.matches.is_empty() {
        return None;
    }
    let alone = rule.to.len() == 1;
    let counting = rule.to.iter().filter(|(_, weight)| alone || *weight > 0);
    let backends =
        counting.map(|(d, weight)| (to.world.backend(&target(d), to.port), if alone { 1 } else { *weight }));
    Some(TcpRoute { name: "".into(), origin: origin(vs, index), matches, backends: backends.collect() })
}

/// Reports what a VirtualService says and a waypoint does not do, or does not as one may expect.
pub(super) fn warn(vs: &Expanded<'_>, service: &Known, world: &World<'_>, report: &Report) {
    let at = &vs.of.meta.at;
    for m in vs.of.tls.iter().flat_map(|rule| &rule.matches) {
        for name in m.server_names.iter().filter(|name| !name.eq_ignore_ascii_case(&service.key.hostname)) {
            report.warning(at.about(
                &format!("{}.sniHosts", m.path),
                format!("{name}, which is not the name of {}", service.key.hostname),
                "at a waypoint only the service's own name is compared: this one has no effect",
            ));
        }
    }
    for rule in &vs.http {
        let text_prefix = |rewrite: &Rewrite| matches!(rewrite.path, Some(PathRewrite::PrefixText(_)));
        let without_path = rule.matches.is_empty() || rule.matches.iter().any(|m| m.test.path.is_none());
        if rule.rewrite.as_ref().is_some_and(text_prefix) && without_path {
            report.warning(at.about(
                &format!("{}.rewrite.uri", rule.path),
                "a rewrite without a match of the path",
                "it stands in place of the / at the beginning: with /bar, /foo becomes /barfoo",
            ));
        }
    }
    if let Some(place) = vs.http.iter().position(|rule| rule.matches.is_empty())
        && let Some(next) = vs.http.get(place + 1)
    {
        let seen = "a rule behind one for every request";
        report.warning(at.about(&next.path, seen, "it has no effect; a rule without match comes last"));
    }
    destinations(vs).for_each(|to| warn_unknown(to, vs.of, world, report));
}

/// Everything that a VirtualService may send to.
pub(super) fn destinations<'v>(vs: &'v Expanded<'_>) -> impl Iterator<Item = &'v Destination> {
    let http = vs.http.iter().flat_map(|rule| {
        let splits = match &rule.action {
            Action::Forward(splits) => &splits[..],
            _ => &[],
        };
        let mirrors = rule.mirrors.iter().flatten().map(|mirror| &mirror.to);
        splits.iter().map(|split| &split.to).chain(mirrors)
    });
    let l4 = vs.of.tls.iter().chain(&vs.of.tcp).flat_map(|rule| rule.to.iter().map(|(to, _)| to));
    http.chain(l4)
}

fn warn_unknown(to: &Destination, vs: &VirtualService, world: &World<'_>, report: &Report) {
    let Some(service) = world.by_host(&to.host, &to.namespace) else {
        let name = full_name(&to.host, &to.namespace, &world.settings.cluster_domain);
        let seen = format!("no service {name} is known");
        return report.warning(vs.meta.at.about(&to.path, seen, "what is sent there is answered with 503"));
    };
    if let Some(port) = to.port.filter(|port| !service.ports.contains_key(port)) {
        let seen = format!("{} has no TCP port {port}", service.key.hostname);
        report.warning(vs.meta.at.about(&to.path, seen, "what is sent there is answered with 503"));
    }
}
