//! All routes and destinations of one waypoint: VirtualServices, HTTPRoutes and GRPCRoutes together.
//!
//! Routes of several objects for one service are tried in the order in which the objects were created; all routes of
//! Gateway API in one namespace for one port of a service count as one such object, as old as the oldest of them. Before all
//! that come, as with istiod, what is exported to the waypoint's namespace alone, and Gateway API's routes in it. Only a
//! service without any has the default route.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::clusters::{self, Rules};
use super::delegate;
use super::destination_rule::DestinationRule;
use super::gateway_attach::{self, Attached};
use super::gateway_route::GatewayRoute;
use super::values::full_name;
use super::virtual_routes::{self, Expanded, For, Index};
use super::virtual_service::VirtualService;
use super::world::{Known, World};
use crate::model::Status;
use crate::model::l7::{
    Backend, Cluster, ClusterKey, Fault, HeaderEdits, Origin, Retries, Rewrite, Route, RouteAction, TcpRoute,
    Weighted,
};
use crate::source::kube::object::Meta;
use crate::source::kube::reader::Report;

/// The objects that routes and destinations come from.
#[derive(Debug, Default)]
pub(in crate::source::kube) struct Kinds {
    pub(in crate::source::kube) virtual_services: Vec<VirtualService>,
    pub(in crate::source::kube) destination_rules: Vec<DestinationRule>,
    pub(in crate::source::kube) gateway_routes: Vec<GatewayRoute>,
}

/// What the objects mean for one waypoint.
pub(in crate::source::kube) struct Routing<'a> {
    world: &'a World<'a>,
    rules: Rules<'a>,
    virtual_services: Index<'a>,
    attached: Attached<'a>,
    /// What a controller writes back of HTTPRoutes and GRPCRoutes.
    pub(in crate::source::kube) statuses: Vec<Status>,
}

impl<'a> Routing<'a> {
    /// Finds out which objects count where, and reports what has no effect.
    pub(in crate::source::kube) fn new(kinds: &'a Kinds, world: &'a World<'a>, report: &Report) -> Self {
        let delegates = delegate::index(&kinds.virtual_services);
        let mut roots: Vec<&VirtualService> =
            kinds.virtual_services.iter().filter(|vs| !vs.hosts.is_empty() && vs.in_mesh).collect();
        roots.sort_by_key(|vs| age(&vs.meta));
        let domain = &world.settings.cluster_domain;
        let expanded = |of: &'a VirtualService| Expanded {
            of,
            hosts: of.hosts.iter().map(|host| full_name(host, &of.meta.namespace, domain)).collect(),
            http: delegate::expand(of, &delegates, report),
        };
        let virtual_services = Index::new(roots.into_iter().map(expanded).collect());
        let (attached, statuses) = gateway_attach::attach(&kinds.gateway_routes, world, report);
        let rules = Rules::new(&kinds.destination_rules, world);
        let routing = Self { world, rules, virtual_services, attached, statuses };
        routing.warn(report);
        routing
    }

    /// The services that are bound to the waypoint.
    pub(in crate::source::kube) fn bound(&self) -> impl Iterator<Item = &'a Known> {
        self.world.services().filter(|service| service.is_bound)
    }

    /// Reports VirtualServices without effect, and in those with an effect what does nothing.
    fn warn(&self, report: &Report) {
        let all = self.virtual_services.all();
        // For each a service for which it counts, and one that it means.
        let mut found: Vec<(Option<&Known>, Option<&Known>)> = vec![(None, None); all.len()];
        for service in self.bound() {
            for (place, vs) in self.virtual_services.meaning(service) {
                let Some((counting, meant)) = found.get_mut(place) else { continue };
                meant.get_or_insert(service);
                if virtual_routes::counts(vs.of, service, self.world) {
                    counting.get_or_insert(service);
                }
            }
        }
        for (vs, found) in all.iter().zip(found) {
            match found {
                (Some(service), _) => {
                    virtual_routes::warn(vs, service, self.world, report);
                    self.warn_of_subsets(vs, report);
                }
                (None, Some(service)) => {
                    let seen =
                        format!("{} is bound to waypoint {}", service.key.hostname, self.world.gateway);
                    let what = "this VirtualService has no effect there: it must be in the namespace of the service \
                                or of the waypoint, and exported to the waypoint's";
                    report.warning(vs.of.meta.at.about("", seen, what));
                }
                (None, None) => {}
            }
        }
    }

    fn warn_of_subsets(&self, vs: &Expanded<'_>, report: &Report) {
        for to in virtual_routes::destinations(vs) {
            let Some(subset) = &to.subset else { continue };
            let Some(service) = self.world.by_host(&to.host, &to.namespace) else { continue };
            if !self.rules.has_subset(service, subset, self.world) {
                let seen = format!("no DestinationRule that counts here defines subset {subset}");
                let what = "what is sent there is answered with 503";
                report.warning(vs.of.meta.at.about(&to.path, seen, what));
            }
        }
    }

    /// Those that count for a service.
    fn counting(&self, service: &Known) -> impl Iterator<Item = &Expanded<'a>> {
        let all = self.virtual_services.meaning(service).map(|(_, vs)| vs);
        all.filter(|vs| virtual_routes::counts(vs.of, service, self.world))
    }

    /// HTTP routes of one port of a service, in the order in which they are tried.
    pub(in crate::source::kube) fn http(&self, service: &Known, port: u16) -> Vec<Route> {
        let to = For { world: self.world, service, port };
        let mut groups: Vec<((Tier, Age), Vec<Route>)> = Vec::new();
        for vs in self.counting(service) {
            groups.push(((self.tier(vs), age(&vs.of.meta)), virtual_routes::http(vs, to)));
        }
        let mut of_namespace: BTreeMap<&str, Vec<&GatewayRoute>> = BTreeMap::new();
        for route in self.attached.get(&(service.key.clone(), port)).into_iter().flatten() {
            of_namespace.entry(&route.meta.namespace).or_default().push(route);
        }
        for (namespace, routes) in of_namespace {
            let is_own = *namespace == *self.world.gateway.namespace;
            let tier = if is_own { Tier::OwnGatewayApi } else { Tier::Other };
            if let Some(oldest) = routes.iter().map(|route| age(&route.meta)).min() {
                groups.push(((tier, oldest), gateway_attach::http(&routes, self.world)));
            }
        }
        groups.sort_by(|(a, _), (b, _)| a.cmp(b));
        let routes: Vec<Route> = groups.into_iter().flat_map(|(_, routes)| routes).collect();
        if routes.is_empty() { vec![default_route(service, port)] } else { routes }
    }

    fn tier(&self, vs: &Expanded<'_>) -> Tier {
        let own = &*self.world.gateway.namespace;
        match vs.of.export_to.is_for_all() {
            true => Tier::Other,
            false if *vs.of.meta.namespace == *own => Tier::Private,
            false => Tier::Exported,
        }
    }

    /// TCP routes of one port of a service; the default route is the last.
    pub(in crate::source::kube) fn tcp(&self, service: &Known, port: u16) -> Vec<TcpRoute> {
        let to = For { world: self.world, service, port };
        let mut routes: Vec<TcpRoute> =
            self.counting(service).flat_map(|vs| virtual_routes::tcp(vs.of, to)).collect();
        // What looks at the name that a TLS client asks for comes before what does not.
        routes.sort_by_key(|route| !route.matches.iter().any(|m| !m.server_names.is_empty()));
        routes.push(TcpRoute {
            name: DEFAULT.into(),
            origin: default_origin(),
            matches: Vec::new(),
            backends: vec![(own(service, port), 1)],
        });
        routes
    }

    /// How the destinations of these routes are reached; what has no service, port or subset is left out.
    pub(in crate::source::kube) fn clusters<'r>(
        &self,
        http: impl Iterator<Item = &'r Route>,
        tcp: impl Iterator<Item = &'r TcpRoute>,
    ) -> BTreeMap<ClusterKey, Arc<Cluster>> {
        let mut keys: BTreeSet<&ClusterKey> = BTreeSet::new();
        for route in http {
            let mut backends: Vec<&Backend> = route.mirrors.iter().map(|mirror| &mirror.backend).collect();
            if let RouteAction::Forward(all) = &route.action {
                for weighted in all {
                    backends.push(&weighted.backend);
                    backends.extend(weighted.mirrors.iter().map(|mirror| &mirror.backend));
                }
            }
            keys.extend(backends.into_iter().filter_map(key));
        }
        keys.extend(tcp.flat_map(|route| &route.backends).filter_map(|(backend, _)| key(backend)));
        let one = |key: &ClusterKey| {
            let cluster = clusters::cluster(key, &self.rules, self.world)?;
            Some((key.clone(), Arc::new(cluster)))
        };
        keys.into_iter().filter_map(one).collect()
    }
}

fn key(backend: &Backend) -> Option<&ClusterKey> {
    match backend {
        Backend::Cluster(key) => Some(key),
        Backend::Invalid { .. } => None,
    }
}

/// What is tried before age counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// A VirtualService in the waypoint's namespace that is exported to few.
    Private,
    /// One of another namespace that is exported to the waypoint's.
    Exported,
    OwnGatewayApi,
    Other,
}

/// The oldest first; of one age by name, as Istio does.
type Age = (Arc<str>, Arc<str>, Arc<str>);

fn age(meta: &Meta) -> Age {
    (Arc::clone(&meta.created), Arc::clone(&meta.name), Arc::clone(&meta.namespace))
}

const DEFAULT: &str = "default";

fn default_origin() -> Origin {
    Origin { kind: "", namespace: "".into(), name: "".into(), rule: 0 }
}

/// The service's own endpoints.
fn own(service: &Known, port: u16) -> Backend {
    Backend::Cluster(ClusterKey { service: service.key.clone(), port, subset: None })
}

/// Everything to the service, without a limit of time, with the retries that everybody gets.
fn default_route(service: &Known, port: u16) -> Route {
    Route {
        name: DEFAULT.into(),
        origin: default_origin(),
        matches: Vec::new(),
        action: RouteAction::Forward(vec![Weighted {
            backend: own(service, port),
            weight: 1,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            rewrite: Rewrite::default(),
            mirrors: Vec::new(),
        }]),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        rewrite: Rewrite::default(),
        timeout: None,
        retries: Retries::default(),
        fault: Fault::default(),
        mirrors: Vec::new(),
        cors: None,
    }
}
