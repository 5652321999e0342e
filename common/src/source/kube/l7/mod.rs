//! What one waypoint does, from the objects that concern it: [`translate_waypoint`], beside [`super::translate`].
//!
//! One file per kind reads it and makes routes, clusters or policies of it; this one says which services, ports and
//! destinations there are and puts everything together. The L4 model is made as for node agents: endpoints, identities
//! and bindings are read nowhere else. Istio's objects and Gateway API's end in the same data. What cannot be done is a
//! problem with object, field and reason; a policy that cannot be evaluated closes what it is for.

mod actions;
mod clusters;
mod delegate;
mod destination_rule;
mod gateway_attach;
mod gateway_filters;
mod gateway_route;
mod headers;
mod http_match;
mod policies;
mod principals;
mod routes;
mod traffic_policy;
mod values;
mod virtual_routes;
mod virtual_service;
mod world;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use self::destination_rule::DestinationRule;
use self::gateway_route::{GatewayRoute, RouteKind};
use self::routes::{Kinds, Routing};
use self::virtual_service::VirtualService;
use self::world::{Known, KnownPort, World};
use super::binding::Bound;
use super::gateway::{CLASS, Gateway, HBONE, SANDWICH};
use super::object::{Meta, Objects as AllObjects, Reader};
use super::reader::{Field, Labels, Report};
use super::service_entry::Resolution;
use super::waypoint::{self, Waypoints};
use super::{Document, Settings, entries, mesh, object};
use crate::config::Problem;
use crate::model::l7::{BoundPort, GatewayKey, Protocol, Waypoint};
use crate::model::{Condition, Endpoint, Mode, Model, Service, ServicePort, Status, l7};
use crate::types::{ServiceKey, SpiffeId, WorkloadUid};

/// What objects mean for one waypoint.
#[derive(Clone, Debug, Default)]
pub struct TranslatedWaypoint {
    /// Workloads, services and bindings, as node agents have them.
    pub model: Model,
    /// What the waypoint does.
    pub waypoint: Waypoint,
    /// What a controller writes back.
    pub statuses: Vec<Status>,
    /// What has no effect or probably not the wanted one.
    pub warnings: Vec<Problem>,
}

/// Objects that only waypoints act on.
#[derive(Default)]
pub(super) struct Objects {
    /// Routes, and rules about destinations.
    kinds: Kinds,
}

impl Objects {
    /// Reads an object of such a kind.
    pub(super) fn keep(&mut self, kind: &str, meta: Meta, root: &Field<'_>) {
        let kinds = &mut self.kinds;
        match kind {
            "VirtualService" => kinds.virtual_services.push(VirtualService::read(meta, root)),
            "DestinationRule" => kinds.destination_rules.push(DestinationRule::read(meta, root)),
            "HTTPRoute" => kinds.gateway_routes.push(GatewayRoute::read(meta, root, RouteKind::Http)),
            "GRPCRoute" => kinds.gateway_routes.push(GatewayRoute::read(meta, root, RouteKind::Grpc)),
            _ => root.problem(format!("{kind} is not read yet"), "take it out of the directory"),
        }
    }
}

/// Translates all objects of all `documents` for the waypoint whose Gateway this is; one without a name is the only one.
///
/// **Errors**: all problems of all documents, in the order of files and lines; or that there is no such Gateway.
pub fn translate_waypoint(
    documents: &[Document<'_>],
    settings: &Settings,
    gateway: &GatewayKey,
) -> Result<TranslatedWaypoint, Vec<Problem>> {
    let report = Report::default();
    let objects = object::read(documents, Reader::Waypoint, &report);
    let Some(gateway) = waypoint::own(&objects, gateway) else {
        report.problem(no_gateway(gateway, &objects));
        return Err(report.finish().0);
    };
    let gateway = &gateway;
    // It serves what is bound to it before it is ready: how else could it become so.
    let mut settings = settings.clone();
    settings.bound.insert(gateway.clone());
    let waypoints = Waypoints::of(&objects, &settings);
    let (model, bound) = mesh(&objects, &waypoints, &settings, &report);
    let Some(of) = waypoints.gateway(gateway) else {
        report.problem(no_gateway(gateway, &objects));
        return Err(report.finish().0);
    };
    let mesh = Mesh::new(&objects, &model, of, &settings, &report);
    let policies = policies::Bindings::read(&mesh, &|key| bound.has(gateway, key));
    let world = World::new(&settings, gateway, known(&mesh, &bound));
    let routing = Routing::new(&objects.l7.kinds, &world, &report);
    let waypoint = waypoint(&mesh, &bound, &policies, &routing);
    let mut statuses = bound.statuses;
    statuses.extend(routing.statuses);
    statuses.extend(gateway_statuses(&mesh, waypoints.is_ready(gateway)));
    statuses.extend(policies.statuses);
    statuses.sort();
    match report.finish() {
        (problems, warnings) if problems.is_empty() => {
            Ok(TranslatedWaypoint { waypoint, statuses, warnings, model: model.settle() })
        }
        (problems, _) => Err(problems),
    }
}

fn no_gateway(gateway: &GatewayKey, objects: &AllObjects) -> Problem {
    let is_named = !gateway.name.is_empty();
    let mut all: Vec<String> = waypoint::all(objects).map(|gateway| gateway.key().to_string()).collect();
    all.sort();
    let seen = match all.as_slice() {
        [] => "there is no Gateway of a waypoint".to_owned(),
        all if is_named => format!("no waypoint has this name; there are {}", all.join(", ")),
        all => format!("several Gateways are waypoints: {}", all.join(", ")),
    };
    let of_class = format!("a Gateway (gateway.networking.k8s.io/v1) with gatewayClassName {CLASS}");
    Problem {
        file: "settings".into(),
        line: 0,
        object: if is_named { format!("Gateway {gateway}") } else { "Gateway".into() },
        field: String::new(),
        seen,
        allowed: match all.len() {
            0 => format!("allowed: {of_class}"),
            _ => "allowed: the namespace and name of one of them (--gateway)".into(),
        },
    }
}

/// What the files of this folder look things up in.
pub(super) struct Mesh<'a> {
    pub(super) objects: &'a AllObjects,
    pub(super) model: &'a Model,
    pub(super) gateway: &'a Gateway,
    pub(super) settings: &'a Settings,
    pub(super) report: &'a Report,
    protocols: HashMap<(ServiceKey, u16), Protocol>,
    labels: HashMap<WorkloadUid, Cow<'a, Labels>>,
}

impl<'a> Mesh<'a> {
    fn new(
        objects: &'a AllObjects,
        model: &'a Model,
        gateway: &'a Gateway,
        settings: &'a Settings,
        report: &'a Report,
    ) -> Self {
        let protocols = objects.services.iter().flat_map(|service| {
            let key = service.key(settings);
            service.ports.iter().map(move |port| ((key.clone(), port.port), port.protocol))
        });
        let entries = objects.service_entries.iter();
        let protocols = protocols.chain(entries.clone().flat_map(|entry| {
            let ports = move |host| entry.ports.iter().map(move |port| (entry.key(host), port));
            entry.hosts.iter().flat_map(ports).map(|(key, port)| ((key, port.number), port.protocol))
        }));
        let labels = objects.pods.iter().map(|pod| (pod.uid(settings), Cow::Borrowed(&pod.meta.labels)));
        let labels = labels.chain(
            objects.workload_entries.iter().map(|entry| (entry.uid(settings), Cow::Owned(entry.labels()))),
        );
        let labels = labels.chain(entries.flat_map(|entry| {
            let uid = move |of| entries::uid_of_inline(entry, of, settings);
            entry.endpoints.iter().map(move |of| (uid(of), Cow::Borrowed(&of.labels)))
        }));
        Self {
            protocols: protocols.collect(),
            labels: labels.collect(),
            objects,
            model,
            gateway,
            settings,
            report,
        }
    }

    /// What is spoken on a service's port.
    pub(super) fn protocol(&self, service: &ServiceKey, port: u16) -> Protocol {
        self.protocols.get(&(service.clone(), port)).copied().unwrap_or_default()
    }

    /// Labels of a workload, by which subsets choose.
    pub(super) fn labels(&self, workload: &WorkloadUid) -> Option<&Labels> {
        self.labels.get(workload).map(|labels| &**labels)
    }
}

/// All services, as routes and rules see them.
fn known(mesh: &Mesh<'_>, bound: &Bound) -> Vec<Known> {
    let gateway = mesh.gateway.key();
    let objects: HashSet<ServiceKey> =
        mesh.objects.services.iter().map(|service| service.key(mesh.settings)).collect();
    let dynamic =
        mesh.objects.service_entries.iter().filter(|entry| entry.resolution == Resolution::DynamicDns);
    let refused: HashMap<ServiceKey, Arc<str>> = dynamic
        .flat_map(|entry| {
            let why = format!("{}: spec.resolution DYNAMIC_DNS is not built yet", entry.meta.at.object);
            let why: Arc<str> = why.into();
            entry.hosts.iter().map(move |host| (entry.key(host), Arc::clone(&why)))
        })
        .collect();
    let one = |service: &Service| {
        let port = |(number, port): (&u16, &ServicePort)| {
            let protocol = mesh.protocol(&service.key, *number);
            (*number, KnownPort { name: Arc::clone(&port.name), protocol })
        };
        let labels = |endpoint: &Endpoint| {
            let labels = mesh.labels(&endpoint.workload).cloned().unwrap_or_default();
            (endpoint.workload.clone(), labels)
        };
        Known {
            key: service.key.clone(),
            kind: if objects.contains(&service.key) { "Service" } else { "ServiceEntry" },
            object: Arc::clone(&service.name),
            ports: service.ports.iter().map(port).collect(),
            endpoints: service.endpoints.iter().map(labels).collect(),
            is_bound: bound.has(&gateway, &service.key),
            is_passthrough: service.load_balancing.mode == Mode::Passthrough,
            refused: refused.get(&service.key).cloned(),
        }
    };
    mesh.model.services.iter().map(one).collect()
}

fn waypoint(
    mesh: &Mesh<'_>,
    bound: &Bound,
    policies: &policies::Bindings,
    routing: &Routing<'_>,
) -> Waypoint {
    let gateway = mesh.gateway.key();
    let services: BTreeMap<ServiceKey, l7::Bound> = routing
        .bound()
        .map(|service| (service.key.clone(), bound_service(service, policies, routing)))
        .collect();
    let ports = || services.values().flat_map(|service| service.ports.values());
    let (http, tcp) = (ports().flat_map(|p| p.http.iter()), ports().flat_map(|p| p.tcp.iter()));
    Waypoint {
        serves: mesh.gateway.serves(&mesh.objects.gateway_classes),
        identity: identity(mesh),
        workloads: bound.workloads.get(&gateway).cloned().unwrap_or_default(),
        policies: Arc::new(policies.of(None)),
        clusters: routing.clusters(http, tcp),
        services,
        forwards_identity: mesh.gateway.forwards_identity,
        normalization: mesh.settings.normalization,
        above_root: mesh.settings.above_root,
        statuses: Vec::new(),
        gateway,
    }
}

/// That of its instances' service account.
fn identity(mesh: &Mesh<'_>) -> Option<SpiffeId> {
    let account = waypoint::account(mesh.gateway, mesh.objects, mesh.report);
    let namespace = &mesh.gateway.meta.namespace;
    let identity = SpiffeId::new(&mesh.settings.trust_domain, namespace, account).map_err(|error| {
        let what = "allowed: names out of a-z A-Z 0-9 - . _";
        mesh.report.problem(mesh.gateway.meta.at.about("metadata.annotations", error.to_string(), what));
    });
    identity.ok()
}

fn bound_service(service: &Known, policies: &policies::Bindings, routing: &Routing<'_>) -> l7::Bound {
    let port = |(number, port): (&u16, &KnownPort)| {
        let (is_http, is_tcp) = match port.protocol {
            Protocol::Http1 | Protocol::Http2 => (true, false),
            Protocol::Tcp | Protocol::Tls => (false, true),
            Protocol::Unknown => (true, true),
        };
        let http = if is_http { routing.http(service, *number) } else { Vec::new() };
        let tcp = if is_tcp { routing.tcp(service, *number) } else { Vec::new() };
        (*number, BoundPort { protocol: port.protocol, http: http.into(), tcp: tcp.into() })
    };
    l7::Bound {
        ports: service.ports.iter().map(port).collect(),
        policies: Arc::new(policies.of(Some(&service.key))),
    }
}

/// Conditions of the waypoint's own Gateway.
fn gateway_statuses(mesh: &Mesh<'_>, is_ready: bool) -> Vec<Status> {
    let meta = &mesh.gateway.meta;
    let status = |part: Option<Arc<str>>, conditions| Status {
        kind: "Gateway",
        namespace: Arc::clone(&meta.namespace),
        name: Arc::clone(&meta.name),
        part,
        conditions,
    };
    if mesh.gateway.is_sandwiched {
        let seen = format!("{SANDWICH} is not supported");
        let what = "allowed: no such annotation; a waypoint ends the tunnels of its clients itself";
        mesh.report.problem(meta.at.about("metadata.annotations", seen, what));
    }
    let listeners = &mesh.gateway.listeners;
    let is_right = |port: u16, protocol: &str| listeners.len() == 1 && port == HBONE && protocol == "HBONE";
    let expected = format!("expected a single listener on {HBONE} with protocol \"HBONE\"");
    if !listeners.iter().any(|l| l.port == HBONE && &*l.protocol == "HBONE") || listeners.len() != 1 {
        let what = "it is served all the same; only its own namespace may use it unless such a listener says otherwise";
        mesh.report.warning(meta.at.about("spec.listeners", expected.clone(), what));
    }
    let of_listener = |listener: &super::gateway::Listener| {
        let condition = match is_right(listener.port, &listener.protocol) {
            true => Condition::yes("Accepted", "Accepted", "No errors found"),
            false => Condition::no("Accepted", "UnsupportedProtocol", expected.as_str()),
        };
        status(Some(Arc::clone(&listener.name)), vec![condition])
    };
    let accepted = Condition::yes("Accepted", "Accepted", "Resource accepted");
    let programmed = match is_ready {
        true => Condition::yes("Programmed", "Programmed", "an instance is ready, or was"),
        false => Condition::no("Programmed", "Pending", "no instance was ready yet"),
    };
    let own = status(None, vec![accepted, programmed]);
    let class = mesh.objects.gateway_classes.contains_key(&mesh.gateway.class).then(|| Status {
        kind: "GatewayClass",
        namespace: "".into(),
        name: Arc::clone(&mesh.gateway.class),
        part: None,
        conditions: vec![Condition::yes("Accepted", "Accepted", "a class of waypoints")],
    });
    std::iter::once(own).chain(class).chain(listeners.iter().map(of_listener)).collect()
}

#[cfg(test)]
mod tests;
