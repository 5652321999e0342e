//! What one waypoint does, from the objects that concern it: [`translate_waypoint`], beside [`super::translate`].
//!
//! One file per kind reads it and makes routes, clusters or policies of it; this one says which services, ports and
//! destinations there are and puts everything together. The L4 model is made as for node agents: endpoints, identities
//! and bindings are read nowhere else. Istio's objects and Gateway API's end in the same data. What cannot be done is a
//! problem with object, field and reason; a policy that cannot be evaluated closes what it is for.

mod policies;
mod principals;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::binding::Bound;
use super::gateway::{CLASS, Gateway, HBONE, SANDWICH};
use super::object::{Meta, Objects as AllObjects, Reader};
use super::reader::{Field, Labels, Report};
use super::waypoint::Waypoints;
use super::{Document, Settings, entries, mesh, object};
use crate::config::Problem;
use crate::model::l7::{
    BackOff, Backend, BoundPort, Cluster, ClusterKey, Fault, GatewayKey, HeaderEdits, Origin, Protocol,
    Retries, RetryOn, Rewrite, Route, RouteAction, TcpRoute, Waypoint, Weighted,
};
use crate::model::{Condition, Mode, Model, Service, Status, l7};
use crate::types::{ServiceKey, WorkloadUid};

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
pub(super) struct Objects {}

impl Objects {
    /// Reads an object of such a kind.
    pub(super) fn keep(&mut self, kind: &str, _meta: Meta, root: &Field<'_>) {
        root.problem(format!("{kind} is not read yet"), "take it out of the directory");
    }
}

/// Translates all objects of all `documents` for the waypoint whose Gateway this is.
///
/// **Errors**: all problems of all documents, in the order of files and lines; or that there is no such Gateway.
pub fn translate_waypoint(
    documents: &[Document<'_>],
    settings: &Settings,
    gateway: &GatewayKey,
) -> Result<TranslatedWaypoint, Vec<Problem>> {
    let report = Report::default();
    let objects = object::read(documents, Reader::Waypoint, &report);
    // It serves what is bound to it before it is ready: how else could it become so.
    let mut settings = settings.clone();
    settings.bound.insert(gateway.clone());
    let waypoints = Waypoints::of(&objects, &settings);
    let (model, bound) = mesh(&objects, &waypoints, &settings, &report);
    let Some(of) = waypoints.gateway(gateway) else {
        report.problem(no_gateway(gateway));
        return Err(report.finish().0);
    };
    let mesh = Mesh::new(&objects, &model, of, &settings, &report);
    let policies = policies::Bindings::read(&mesh, &|key| bound.has(gateway, key));
    let waypoint = waypoint(&mesh, &bound, &policies);
    let mut statuses = bound.statuses;
    statuses.extend(gateway_statuses(&mesh));
    statuses.extend(policies.statuses);
    statuses.sort();
    match report.finish() {
        (problems, warnings) if problems.is_empty() => {
            Ok(TranslatedWaypoint { waypoint, statuses, warnings, model: model.settle() })
        }
        (problems, _) => Err(problems),
    }
}

fn no_gateway(gateway: &GatewayKey) -> Problem {
    Problem {
        file: "settings".into(),
        line: 0,
        object: format!("Gateway {gateway}"),
        field: String::new(),
        seen: "no waypoint of this name".into(),
        allowed: format!(
            "allowed: a Gateway (gateway.networking.k8s.io/v1) of this namespace and name with gatewayClassName {CLASS}"
        ),
    }
}

/// What the files of this folder look things up in.
pub(super) struct Mesh<'a> {
    pub(super) objects: &'a AllObjects,
    pub(super) model: &'a Model,
    pub(super) gateway: &'a Gateway,
    pub(super) settings: &'a Settings,
    pub(super) report: &'a Report,
    #[allow(dead_code, reason = "for the readers of routes and rules")]
    services: HashMap<&'a str, Vec<&'a Service>>,
    protocols: HashMap<(ServiceKey, u16), Protocol>,
    #[allow(dead_code, reason = "for the readers of routes and rules")]
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
        let mut services: HashMap<&str, Vec<&Service>> = HashMap::new();
        for service in &model.services {
            services.entry(&service.key.hostname).or_default().push(service);
        }
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
            services,
            protocols: protocols.collect(),
            labels: labels.collect(),
            objects,
            model,
            gateway,
            settings,
            report,
        }
    }

    #[allow(dead_code, reason = "for the readers of routes and rules")]
    /// The whole host name that `host` means in an object of `namespace`: one without a dot is a Service beside it.
    pub(super) fn hostname(&self, host: &str, namespace: &str) -> String {
        match host.contains('.') {
            true => host.to_ascii_lowercase(),
            false => format!("{host}.{namespace}.svc.{}", self.settings.cluster_domain).to_ascii_lowercase(),
        }
    }

    #[allow(dead_code, reason = "for the readers of routes and rules")]
    /// The service of a whole host name: a Kubernetes Service first, then that of `namespace`, then any.
    pub(super) fn service(&self, hostname: &str, namespace: &str) -> Option<&'a Service> {
        let all = self.services.get(hostname)?;
        let canonical = all.iter().find(|service| service.canonical);
        canonical.or_else(|| all.iter().find(|s| *s.key.namespace == *namespace)).or(all.first()).copied()
    }

    /// What is spoken on a service's port.
    pub(super) fn protocol(&self, service: &ServiceKey, port: u16) -> Protocol {
        self.protocols.get(&(service.clone(), port)).copied().unwrap_or_default()
    }

    #[allow(dead_code, reason = "for the readers of routes and rules")]
    /// Labels of a workload, by which subsets choose.
    pub(super) fn labels(&self, workload: &WorkloadUid) -> Option<&Labels> {
        self.labels.get(workload).map(|labels| &**labels)
    }
}

fn waypoint(mesh: &Mesh<'_>, bound: &Bound, policies: &policies::Bindings) -> Waypoint {
    let gateway = mesh.gateway.key();
    let services = bound.services.get(&gateway).into_iter().flatten();
    let of_model = |key: &ServiceKey| mesh.model.services.iter().find(|service| service.key == *key);
    let services: BTreeMap<ServiceKey, l7::Bound> = services
        .filter_map(|key| Some((key.clone(), bound_service(mesh, of_model(key)?, policies))))
        .collect();
    Waypoint {
        serves: mesh.gateway.serves(&mesh.objects.gateway_classes),
        workloads: bound.workloads.get(&gateway).cloned().unwrap_or_default(),
        policies: Arc::new(policies.of(None)),
        clusters: clusters(mesh, &services),
        services,
        forwards_identity: mesh.gateway.forwards_identity,
        normalization: mesh.settings.normalization,
        gateway,
    }
}

fn bound_service(mesh: &Mesh<'_>, service: &Service, policies: &policies::Bindings) -> l7::Bound {
    let port = |port: &u16| {
        let protocol = mesh.protocol(&service.key, *port);
        let (is_http, is_tcp) = match protocol {
            Protocol::Http1 | Protocol::Http2 => (true, false),
            Protocol::Tcp | Protocol::Tls => (false, true),
            Protocol::Unknown => (true, true),
        };
        let http = if is_http { http_routes(mesh, service, *port) } else { Vec::new() };
        let tcp = if is_tcp { tcp_routes(mesh, service, *port) } else { Vec::new() };
        (*port, BoundPort { protocol, http: http.into(), tcp: tcp.into() })
    };
    l7::Bound {
        ports: service.ports.keys().map(port).collect(),
        policies: Arc::new(policies.of(Some(&service.key))),
    }
}

/// Routes of one port in their order. Only if no object has any is there the default route.
fn http_routes(_mesh: &Mesh<'_>, service: &Service, port: u16) -> Vec<Route> {
    vec![default_route(&service.key, port)]
}

/// Routes of one port in their order; the default route is the last.
fn tcp_routes(_mesh: &Mesh<'_>, service: &Service, port: u16) -> Vec<TcpRoute> {
    vec![default_tcp_route(&service.key, port)]
}

fn default_origin() -> Origin {
    Origin { kind: "", namespace: "".into(), name: "".into(), rule: 0 }
}

/// Everything to the service, without a limit of time, with the retries that everybody gets.
fn default_route(service: &ServiceKey, port: u16) -> Route {
    let backend = Backend::Cluster(ClusterKey { service: service.clone(), port, subset: None });
    Route {
        name: "default".into(),
        origin: default_origin(),
        matches: Vec::new(),
        action: RouteAction::Forward(vec![weighted(backend, 1)]),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        rewrite: Rewrite::default(),
        timeout: None,
        retries: default_retries(),
        fault: Fault::default(),
        mirrors: Vec::new(),
        cors: None,
    }
}

fn default_tcp_route(service: &ServiceKey, port: u16) -> TcpRoute {
    let backend = Backend::Cluster(ClusterKey { service: service.clone(), port, subset: None });
    TcpRoute {
        name: "default".into(),
        origin: default_origin(),
        matches: Vec::new(),
        backends: vec![(backend, 1)],
    }
}

/// A destination without edits of its own.
pub(super) fn weighted(backend: Backend, weight: u32) -> Weighted {
    Weighted {
        backend,
        weight,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        rewrite: Rewrite::default(),
        mirrors: Vec::new(),
    }
}

/// What is tried again where nothing is said of it. Source: Istio, default retry policy.
pub(super) fn default_retries() -> Retries {
    Retries {
        attempts: 2,
        on: RetryOn {
            connect_failure: true,
            refused_stream: true,
            grpc_statuses: vec![14, 1],
            ..RetryOn::default()
        },
        per_try_timeout: None,
        back_off: BackOff::Jittered { base: Duration::from_millis(25) },
        ignore_previous_hosts: None,
        remote_localities: false,
    }
}

/// How every destination of these services' routes is reached.
fn clusters(
    mesh: &Mesh<'_>,
    services: &BTreeMap<ServiceKey, l7::Bound>,
) -> BTreeMap<ClusterKey, Arc<Cluster>> {
    let mut keys: BTreeSet<ClusterKey> = BTreeSet::new();
    let mut add = |backend: &Backend| {
        if let Backend::Cluster(key) = backend {
            keys.insert(key.clone());
        }
    };
    for port in services.values().flat_map(|service| service.ports.values()) {
        for route in port.http.iter() {
            route.mirrors.iter().for_each(|mirror| add(&mirror.backend));
            let RouteAction::Forward(all) = &route.action else { continue };
            for weighted in all {
                add(&weighted.backend);
                weighted.mirrors.iter().for_each(|mirror| add(&mirror.backend));
            }
        }
        port.tcp.iter().flat_map(|route| &route.backends).for_each(|(backend, _)| add(backend));
    }
    keys.into_iter().filter_map(|key| Some((key.clone(), Arc::new(cluster(mesh, key)?)))).collect()
}

/// How one destination is reached; none if there is no such service, port or subset.
fn cluster(mesh: &Mesh<'_>, key: ClusterKey) -> Option<Cluster> {
    let service = mesh.model.services.iter().find(|service| service.key == key.service)?;
    if key.subset.is_some() || !service.ports.contains_key(&key.port) {
        return None;
    }
    let balance = match service.load_balancing.mode {
        Mode::Passthrough => l7::Balance::Passthrough,
        _ => l7::Balance::default(),
    };
    Some(Cluster {
        protocol: mesh.protocol(&key.service, key.port),
        key,
        subset: None,
        balance,
        pool: l7::ConnectionPool::default(),
        outliers: None,
        retry_budget: None,
        rule: None,
        refused: None,
    })
}

/// Conditions of the waypoint's own Gateway.
fn gateway_statuses(mesh: &Mesh<'_>) -> Vec<Status> {
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
    let own = status(None, vec![Condition::yes("Accepted", "Accepted", "Resource accepted")]);
    std::iter::once(own).chain(listeners.iter().map(of_listener)).collect()
}
