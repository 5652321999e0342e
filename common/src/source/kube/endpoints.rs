//! Which workloads stand behind which service, on which ports and how healthy: selectors and EndpointSlices together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Settings;
use super::endpoint_slice::{EndpointSlice, SliceEndpoint};
use super::labelled::Labelled;
use super::object::Objects;
use super::pod::Pod;
use super::reader::Report;
use super::service::{Service, Target};
use crate::model::{self, Endpoint, Enrolment, Health, Model, TunnelProtocol, Workload, WorkloadType};
use crate::types::{SpiffeId, WorkloadUid};

/// Look-ups over the pods that run.
pub(super) struct Pods<'o> {
    /// By their labels.
    pub(super) labelled: Labelled<'o>,
    by_key: HashMap<String, &'o Pod>,
    by_ip: HashMap<IpAddr, &'o Pod>,
}

impl<'o> Pods<'o> {
    /// Indexes `pods`, and warns of addresses that two of them have.
    pub(super) fn index(pods: &[&'o Pod], report: &Report) -> Self {
        let labelled = Labelled::new(pods.iter().copied());
        let mut all = Self { labelled, by_key: HashMap::new(), by_ip: HashMap::new() };
        for pod in pods {
            all.by_key.insert(pod.meta.key(), pod);
            for ip in pod.ips.iter().filter(|_| !pod.host_network) {
                if let Some(other) = all.by_ip.insert(*ip, pod) {
                    let at = &other.meta.at;
                    let seen = format!("{ip}, which {} ({}:{}) has as well", at.object, at.file, at.line);
                    let what = "connections to it reach either; give each pod an address of its own";
                    report.warning(pod.meta.at.about("status.podIPs", seen, what));
                }
            }
        }
        all
    }

    /// The pod that a slice's endpoint is: by reference, else by address.
    fn of(&self, endpoint: &SliceEndpoint) -> Option<&'o Pod> {
        match &endpoint.pod {
            Some(key) => self.by_key.get(key).copied(),
            None => endpoint.addresses.iter().find_map(|ip| self.by_ip.get(ip)).copied(),
        }
    }
}

/// Puts all services into the model, with their endpoints and the workloads that only EndpointSlices know.
pub(super) fn add_services(
    objects: &Objects,
    pods: &Pods<'_>,
    settings: &Settings,
    report: &Report,
    model: &mut Model,
) {
    let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in &objects.slices {
        slices.entry((&slice.meta.namespace, &slice.service)).or_default().push(slice);
    }
    let mut known: HashSet<WorkloadUid> = HashSet::new();
    for service in &objects.services {
        let slices = slices.remove(&(&*service.meta.namespace, &*service.meta.name)).unwrap_or_default();
        let behind = Behind::new(service, &slices, pods, settings);
        let mut of_model = service.model(objects, settings);
        of_model.endpoints = behind.pods_endpoints();
        let others = behind.others(objects, report);
        of_model.endpoints.extend(others.iter().map(|(_, endpoint)| endpoint.clone()));
        let new = others.into_iter().map(|(workload, _)| workload).filter(|w| known.insert(w.uid.clone()));
        model.workloads.extend(new);
        model.services.push(of_model);
    }
    for slice in slices.into_values().flatten() {
        let seen = format!("slice of {}/{}, which is no known Service", slice.meta.namespace, slice.service);
        report.warning(slice.meta.at.about("metadata.labels", seen, "it has no effect"));
    }
}

/// One service and everything that may stand behind it.
struct Behind<'a, 'o> {
    service: &'o Service,
    slices: &'a [&'o EndpointSlice],
    pods: &'a Pods<'o>,
    settings: &'a Settings,
    /// What slices say of pods, by `<namespace>/<name>`.
    said: HashMap<String, Vec<(&'o EndpointSlice, Health)>>,
}

impl<'a, 'o> Behind<'a, 'o> {
    fn new(
        service: &'o Service,
        slices: &'a [&'o EndpointSlice],
        pods: &'a Pods<'o>,
        settings: &'a Settings,
    ) -> Self {
        let mut said: HashMap<String, Vec<_>> = HashMap::new();
        for slice in slices {
            for endpoint in &slice.endpoints {
                if let Some(pod) = pods.of(endpoint) {
                    said.entry(pod.meta.key()).or_default().push((*slice, endpoint.health));
                }
            }
        }
        Self { service, slices, pods, settings, said }
    }

    /// Endpoints that are pods: those that the selector finds, or, without a selector, those that slices name.
    fn pods_endpoints(&self) -> Vec<Endpoint> {
        let found: Vec<&'o Pod> = match &self.service.selector {
            Some(selector) => self.pods.labelled.selected(&self.service.meta.namespace, selector).collect(),
            None => {
                let mut seen = HashSet::new();
                let named = self.slices.iter().flat_map(|slice| &slice.endpoints);
                named.filter_map(|e| self.pods.of(e)).filter(|pod| seen.insert(pod.meta.key())).collect()
            }
        };
        found.into_iter().map(|pod| self.pod_endpoint(pod)).collect()
    }

    fn pod_endpoint(&self, pod: &Pod) -> Endpoint {
        let said = self.said.get(&pod.meta.key()).map_or(&[][..], Vec::as_slice);
        let slices: Vec<&EndpointSlice> = said.iter().map(|(slice, _)| *slice).collect();
        Endpoint {
            workload: pod.uid(self.settings),
            ports: self.ports(Some(pod), &slices),
            health: said.iter().map(|(_, health)| *health).fold(pod.health, worse),
        }
    }

    /// Target ports that are not those of the service's own mapping. A port that is named and that nobody gives a number
    /// stays out: this endpoint does not serve it.
    fn ports(&self, pod: Option<&Pod>, slices: &[&EndpointSlice]) -> BTreeMap<u16, u16> {
        let of_slices = |name: &str| slices.iter().find_map(|slice| slice.port(name));
        let target = |port: &super::service::Port| match (&port.target, pod, &self.service.selector) {
            // Slices of a service with selector follow from its pods; without one they say where the ports lead.
            (Target::Number(_), Some(_), Some(_)) => None,
            (Target::Number(number), ..) => of_slices(&port.name).filter(|other| other != number),
            (Target::Name(name), ..) => pod.and_then(|pod| pod.port(name)).or_else(|| of_slices(&port.name)),
        };
        self.service.ports.iter().filter_map(|port| Some((port.port, target(port)?))).collect()
    }

    /// Endpoints of slices that are no pods, and the workloads that stand for them.
    fn others(&self, objects: &Objects, report: &Report) -> Vec<(Workload, Endpoint)> {
        let mut found: BTreeMap<WorkloadUid, (Workload, Endpoint)> = BTreeMap::new();
        for slice in self.slices {
            for endpoint in slice.endpoints.iter().filter(|e| self.pods.of(e).is_none()) {
                if let Some(pod) = &endpoint.pod {
                    let at = &slice.meta.at;
                    let seen = format!("Pod {pod} is not known");
                    report.warning(at.about(
                        &format!("{}.targetRef", endpoint.path),
                        seen,
                        "the endpoint is left out",
                    ));
                    continue;
                }
                for ip in &endpoint.addresses {
                    let Some(workload) = self.workload(slice, endpoint, *ip, objects) else { continue };
                    let ports = self.ports(None, &[slice]);
                    let of = Endpoint { workload: workload.uid.clone(), ports, health: endpoint.health };
                    found.entry(workload.uid.clone()).or_insert((workload, of));
                }
            }
        }
        found.into_values().collect()
    }

    /// Nothing is known of such an address but that it is there, so no address look-up leads to it (as with the host's).
    fn workload(
        &self,
        slice: &EndpointSlice,
        endpoint: &SliceEndpoint,
        ip: IpAddr,
        objects: &Objects,
    ) -> Option<Workload> {
        let of =
            format!("{}/discovery.k8s.io/EndpointSlice/{}/{ip}", self.settings.cluster, slice.meta.key());
        let node = objects.nodes.get(&endpoint.node);
        Some(Workload {
            uid: WorkloadUid(of.into()),
            name: Arc::clone(&slice.meta.name),
            namespace: Arc::clone(&slice.meta.namespace),
            identity: SpiffeId::new(&self.settings.trust_domain, &slice.meta.namespace, "default").ok()?,
            addresses: vec![ip],
            protocol: TunnelProtocol::Tcp,
            enrolment: Enrolment::Exempt,
            node: Arc::clone(&endpoint.node),
            canonical_name: Arc::clone(&self.service.meta.name),
            canonical_revision: "latest".into(),
            workload_type: WorkloadType::Pod,
            workload_name: Arc::clone(&slice.meta.name),
            cluster: Arc::clone(&self.settings.cluster),
            network: Arc::clone(&self.settings.network),
            locality: node.map(|node| node.locality.clone()).unwrap_or_default(),
            health: endpoint.health,
            host_network: true,
            capacity: 1,
            hostname: "".into(),
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            native_tunnel: false,
            authorization_policies: Vec::new(),
        })
    }
}

/// The worse of two healths.
fn worse(one: Health, other: Health) -> Health {
    use model::Health::{Healthy, Terminating, Unhealthy};
    match (one, other) {
        (Terminating, _) | (_, Terminating) => Terminating,
        (Unhealthy, _) | (_, Unhealthy) => Unhealthy,
        (Healthy, Healthy) => Healthy,
    }
}
