//! Service: virtual addresses, ports, how an endpoint is chosen.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Settings;
use super::object::{Meta, Objects};
use super::port_protocol;
use super::reader::{Field, Labels, Report};
use crate::model::l7::Protocol;
use crate::model::{self, HealthPolicy, IpFamilies, LoadBalancing, LocalityScope, Mode, Visibility};
use crate::types::ServiceKey;

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// What is needed of a Service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) meta: Meta,
    /// Labels of its pods; none if its endpoints are named by EndpointSlices only.
    pub(super) selector: Option<Labels>,
    vips: Vec<IpAddr>,
    pub(super) ports: Vec<Port>,
    ip_families: IpFamilies,
    local_only: bool,
    distribution: Option<Distribution>,
    publish_not_ready: bool,
}

/// A TCP port of a Service.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) port: u16,
    pub(super) name: Arc<str>,
    pub(super) target: Target,
    pub(super) protocol: Protocol,
}

/// Where a port leads in a pod.
#[derive(Debug)]
pub(super) enum Target {
    Number(u16),
    Name(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    SameZone,
    SameNode,
}

const DISTRIBUTIONS: [(&str, Distribution); 3] = [
    ("PreferClose", Distribution::SameZone),
    ("PreferSameZone", Distribution::SameZone),
    ("PreferSameNode", Distribution::SameNode),
];

impl Service {
    /// None for ExternalName: it is a name only, and istiod does not send it either.
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Option<Self> {
        let Some(spec) = root.get("spec") else {
            root.problem("no spec", "allowed: a Service with spec.ports");
            return None;
        };
        let kinds = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].map(|kind| (kind, kind));
        if spec.get("type").and_then(|kind| kind.one_of(&kinds)) == Some("ExternalName") {
            return None;
        }
        let policy = spec.get("internalTrafficPolicy");
        let distribution = spec.get("trafficDistribution").and_then(|field| field.one_of(&DISTRIBUTIONS));
        let annotated = || annotated_distribution(&meta.annotations);
        Some(Self {
            selector: Some(spec.labels("selector")).filter(|selector| !selector.is_empty()),
            vips: vips(&spec),
            ports: ports(&spec),
            ip_families: ip_families(&spec),
            local_only: policy
                .and_then(|p| p.one_of(&[("Cluster", false), ("Local", true)]))
                .unwrap_or(false),
            distribution: distribution.or_else(annotated),
            publish_not_ready: spec.flag_at("publishNotReadyAddresses"),
            meta,
        })
    }

    /// Key of the service.
    pub(super) fn key(&self, settings: &Settings) -> ServiceKey {
        let Meta { namespace, name, .. } = &self.meta;
        ServiceKey {
            namespace: Arc::clone(namespace),
            hostname: format!("{name}.{namespace}.svc.{}", settings.cluster_domain).into(),
        }
    }

    /// The service as the model has it, without endpoints and waypoint.
    pub(super) fn model(&self, objects: &Objects, settings: &Settings) -> model::Service {
        let target = |port: &Port| match port.target {
            Target::Number(number) => number,
            Target::Name(_) => 0,
        };
        let port = |p: &Port| (p.port, model::ServicePort { target: target(p), name: Arc::clone(&p.name) });
        model::Service {
            key: self.key(settings),
            name: Arc::clone(&self.meta.name),
            vips: self.vips.clone(),
            ports: self.ports.iter().map(port).collect(),
            subject_alt_names: Vec::new(),
            cidr_vips: vec![],
            elsewhere: vec![],
            waypoint: None,
            weighted_waypoints: vec![],
            load_balancing: self.load_balancing(objects),
            ip_families: self.ip_families,
            canonical: true,
            visibility: Visibility::Public,
            endpoints: Vec::new(),
        }
    }

    /// `internalTrafficPolicy` first, then the Service's distribution, then that of its namespace.
    fn load_balancing(&self, objects: &Objects) -> LoadBalancing {
        use LocalityScope::{Network, Node, Region, Subzone, Zone};
        let of_namespace =
            || annotated_distribution(&objects.namespaces.get(&self.meta.namespace)?.annotations);
        let (mode, routing_preference) = match (self.local_only, self.distribution.or_else(of_namespace)) {
            (true, _) => (Mode::Strict, vec![Node]),
            (false, Some(Distribution::SameZone)) => (Mode::Failover, vec![Network, Region, Zone]),
            (false, Some(Distribution::SameNode)) => {
                (Mode::Failover, vec![Network, Region, Zone, Subzone, Node])
            }
            (false, None) => (Mode::Standard, Vec::new()),
        };
        let health_policy = match self.publish_not_ready {
            true => HealthPolicy::AllowAll,
            false => HealthPolicy::OnlyHealthy,
        };
        LoadBalancing { routing_preference, mode, health_policy }
    }
}

/// Reports addresses that two services claim, and those outside the service range.
pub(super) fn check_vips(services: &[Service], settings: &Settings, report: &Report) {
    let mut owners: HashMap<IpAddr, &Service> = HashMap::new();
    for service in services {
        for vip in &service.vips {
            if let Some(other) = owners.insert(*vip, service) {
                let at = &other.meta.at;
                let seen = format!("{vip}, which {} ({}:{}) has as well", at.object, at.file, at.line);
                report.problem(service.meta.at.about(
                    "spec.clusterIP",
                    seen,
                    "allowed: an address of its own",
                ));
            }
            if !settings.service_range.is_empty() && !settings.service_range.iter().any(|r| r.contains(vip)) {
                let ranges: Vec<String> = settings.service_range.iter().map(ToString::to_string).collect();
                let seen = format!("{vip} is outside the service range {}", ranges.join(", "));
                let what = "pods reach it only if their routes lead there";
                report.warning(service.meta.at.about("spec.clusterIP", seen, what));
            }
        }
    }
}

fn vips(spec: &Field<'_>) -> Vec<IpAddr> {
    let all = spec.items("clusterIPs");
    let first = spec.get("clusterIP").filter(|_| all.is_empty());
    let said = |field: &Field<'_>| field.text().is_some_and(|text| !matches!(text, "" | "None"));
    all.into_iter().chain(first).filter(said).filter_map(|field| field.ip()).collect()
}

/// The TCP ports; the mesh carries nothing else.
fn ports(spec: &Field<'_>) -> Vec<Port> {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    let protocols = [("TCP", true), ("UDP", false), ("SCTP", false)];
    for item in spec.items("ports") {
        if item.get("protocol").and_then(|protocol| protocol.one_of(&protocols)) == Some(false) {
            continue;
        }
        let Some(port) = item.get("port") else {
            item.problem("no port", "allowed: a port with a number");
            continue;
        };
        let Some(number) = port.port() else { continue };
        let Some(target) = item.get("targetPort").map_or(Some(Target::Number(number)), |t| target(&t)) else {
            continue;
        };
        let name: Arc<str> = item.text_at("name").unwrap_or("").into();
        let protocol = port_protocol::of(item.text_at("appProtocol"), &name, number);
        if ports.insert(number, Port { port: number, name, target, protocol }).is_some() {
            port.problem(format!("{number} for the second time"), "allowed: each TCP port once");
        }
    }
    ports.into_values().collect()
}

/// A number, or the name of a container's port.
fn target(field: &Field<'_>) -> Option<Target> {
    if field.is_number() {
        return field.port().map(Target::Number);
    }
    let name = field.text()?;
    let good = (1..=63).contains(&name.len()) && name.bytes().any(|b| b.is_ascii_alphabetic());
    if !good {
        field.refuse("a port number, 1 to 65535, or the name of a container's port");
    }
    Some(Target::Name(name.into())).filter(|_| good)
}

fn ip_families(spec: &Field<'_>) -> IpFamilies {
    let families = spec.items("ipFamilies");
    let one = |f: &Field<'_>| f.one_of(&[("IPv4", IpFamilies::V4), ("IPv6", IpFamilies::V6)]);
    let families: Vec<IpFamilies> = families.iter().filter_map(one).collect();
    match families[..] {
        [] => IpFamilies::Automatic,
        [one] => one,
        _ => IpFamilies::Dual,
    }
}

/// The annotation, in any case of letters; a value that it does not know means no preference, as istiod has it.
fn annotated_distribution(annotations: &Labels) -> Option<Distribution> {
    let value = annotations.get(TRAFFIC_DISTRIBUTION)?;
    DISTRIBUTIONS.iter().find(|(name, _)| name.eq_ignore_ascii_case(value)).map(|(_, d)| *d)
}
