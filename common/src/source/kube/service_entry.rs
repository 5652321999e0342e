//! ServiceEntry: services that Kubernetes does not know. Reading it; its endpoints are joined in [`super::entries`].

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::object::Meta;
use super::port_protocol;
use super::reader::{Field, Labels};
use super::workload_entry::{Entry, EntryAddress};
use crate::model::l7::Protocol;
use crate::model::{
    self, HealthPolicy, IpFamilies, LoadBalancing, LocalityScope, Mode, ServicePort, Visibility,
};
use crate::types::{ServiceKey, SpiffeId};

/// What is needed of a ServiceEntry.
#[derive(Debug)]
pub(super) struct ServiceEntry {
    pub(super) meta: Meta,
    /// In lower case; may begin with `*.`.
    pub(super) hosts: Vec<Arc<str>>,
    addresses: Vec<IpNet>,
    /// Addresses that a controller gave, with the host each is for; none: for all.
    allocated: Vec<(IpAddr, Option<Arc<str>>)>,
    pub(super) ports: Vec<EntryPort>,
    pub(super) resolution: Resolution,
    /// Inline endpoints, with a path for reports.
    pub(super) endpoints: Vec<Entry>,
    /// Labels of pods and WorkloadEntries of its namespace.
    pub(super) selector: Option<Labels>,
    subject_alt_names: Vec<SpiffeId>,
    visibility: Visibility,
    pub(super) distribution: LoadBalancing,
}

/// A TCP port of a ServiceEntry.
#[derive(Debug)]
pub(super) struct EntryPort {
    pub(super) number: u16,
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) target: u16,
}

/// `spec.resolution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    /// What is dialled is where it goes.
    None,
    /// To its endpoints.
    Static,
    /// To its endpoints, or to itself, by DNS.
    Dns,
    /// To whatever host a request names.
    DynamicDns,
}

const RESOLUTIONS: [(&str, Resolution); 5] = [
    ("NONE", Resolution::None),
    ("STATIC", Resolution::Static),
    ("DNS", Resolution::Dns),
    ("DNS_ROUND_ROBIN", Resolution::Dns),
    ("DYNAMIC_DNS", Resolution::DynamicDns),
];

const SPEC: [&str; 9] = [
    "hosts",
    "addresses",
    "ports",
    "location",
    "resolution",
    "endpoints",
    "workloadSelector",
    "exportTo",
    "subjectAltNames",
];

impl ServiceEntry {
    /// None, with a report, without hosts or ports.
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Option<Self> {
        let Some(spec) = root.get("spec") else {
            root.problem("no spec", "allowed: a ServiceEntry with spec.hosts and spec.ports");
            return None;
        };
        spec.only(&SPEC);
        let hosts: Vec<Arc<str>> = spec.items("hosts").iter().filter_map(host).collect();
        if spec.items("hosts").is_empty() {
            spec.problem("no hosts", "allowed: at least one host name");
        }
        let locations = [("MESH_EXTERNAL", ()), ("MESH_INTERNAL", ())];
        spec.get("location").and_then(|location| location.one_of(&locations));
        let resolution = spec.get("resolution").map_or(Some(Resolution::None), |r| r.one_of(&RESOLUTIONS))?;
        let selector = spec.get("workloadSelector");
        if let Some(selector) = &selector {
            selector.only(&["labels"]);
        }
        let entry = Self {
            addresses: spec.items("addresses").iter().filter_map(Field::block).collect(),
            allocated: root.get("status").map(|status| allocated(&status)).unwrap_or_default(),
            ports: ports(&spec),
            endpoints: spec.items("endpoints").iter().filter_map(Entry::read).collect(),
            selector: selector.map(|selector| selector.labels("labels")),
            subject_alt_names: subject_alt_names(&spec),
            visibility: visibility(&spec),
            distribution: load_balancing(resolution, &meta),
            hosts,
            resolution,
            meta,
        };
        let strategy = root.dig(&["metadata", "annotations", "istio.io/connect-strategy"]);
        if let Some(strategy) = strategy.filter(|s| s.text() == Some("RACE_FIRST_TCP_CONNECT")) {
            strategy
                .warning("racing connections is not supported", "addresses are tried one after the other");
        }
        entry.check(&spec);
        Some(entry)
    }

    /// What contradicts itself. Source: Istio, validation of ServiceEntry.
    fn check(&self, spec: &Field<'_>) {
        let wildcards = self.hosts.iter().any(|host| host.starts_with('*'));
        match self.resolution {
            Resolution::None if !self.endpoints.is_empty() => {
                spec.problem("endpoints with resolution NONE", "allowed: STATIC or DNS with endpoints");
            }
            Resolution::Static if self.endpoints.is_empty() && self.selector.is_none() => {
                let seen = "resolution STATIC without endpoints";
                spec.warning(
                    seen,
                    "there is nowhere to send its traffic; give endpoints or a workloadSelector",
                );
            }
            Resolution::Dns if wildcards && self.endpoints.is_empty() => {
                let seen = "a wildcard host with resolution DNS";
                spec.problem(seen, "allowed: resolution NONE with it, or host names that DNS knows");
            }
            _ => {}
        }
        let has_blocks = self.addresses.iter().any(|net| net.prefix_len() < net.max_prefix_len());
        if has_blocks && self.resolution == Resolution::Dns {
            spec.problem("a CIDR block with resolution DNS", "allowed: single addresses, or NONE or STATIC");
        }
        self.check_endpoints(spec);
        if !self.endpoints.is_empty() && self.selector.is_some() {
            spec.problem("both endpoints and workloadSelector", "allowed: one of the two");
        }
    }

    /// What its inline endpoints cannot have.
    fn check_endpoints(&self, spec: &Field<'_>) {
        for (item, endpoint) in spec.items("endpoints").iter().zip(&self.endpoints) {
            if let (Resolution::Static, EntryAddress::Hostname(name)) = (self.resolution, &endpoint.address) {
                item.problem(
                    format!("address {name:?} with resolution STATIC"),
                    "allowed: an IP address, or DNS",
                );
            }
            let is_known = |name: &Arc<str>| self.ports.iter().any(|port| port.name == *name);
            if let Some(name) = endpoint.ports.keys().find(|name| !is_known(name)) {
                item.problem(format!("a port {name:?}"), "allowed: names of the object's own ports");
            }
        }
    }

    /// Who may use it, as a condition's reason.
    pub(super) fn visibility_reason(&self) -> &'static str {
        match self.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        }
    }

    /// Key of the service that one of its hosts is.
    pub(super) fn key(&self, host: &Arc<str>) -> ServiceKey {
        ServiceKey { namespace: Arc::clone(&self.meta.namespace), hostname: Arc::clone(host) }
    }

    /// The service of `host`, without endpoints and waypoint; `takes` says which addresses it may have.
    pub(super) fn model(&self, host: &Arc<str>, takes: impl Fn(IpAddr) -> bool) -> model::Service {
        let is_one = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
        let said = self.addresses.iter().filter(is_one).map(IpNet::addr);
        let of_host =
            |(ip, of): &(IpAddr, Option<Arc<str>>)| of.as_ref().is_none_or(|of| of == host).then_some(*ip);
        let vips: Vec<IpAddr> = match self.addresses.is_empty() {
            true => self.allocated.iter().filter_map(of_host).collect(),
            false => said.collect(),
        };
        let port = |p: &EntryPort| (p.number, ServicePort { target: p.target, name: Arc::clone(&p.name) });
        model::Service {
            key: self.key(host),
            name: Arc::clone(&self.meta.name),
            vips: vips.into_iter().filter(|ip| takes(*ip)).collect(),
            cidr_vips: self.addresses.iter().filter(|net| !is_one(net)).copied().collect(),
            ports: self.ports.iter().map(port).collect(),
            subject_alt_names: self.subject_alt_names.clone(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: self.distribution.clone(),
            ip_families: IpFamilies::Automatic,
            canonical: false,
            visibility: self.visibility,
            elsewhere: Vec::new(),
            endpoints: Vec::new(),
        }
    }
}

fn host(field: &Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    let name = text.strip_prefix("*.").unwrap_or(text);
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
    if name.is_empty() || name.len() > 253 || !name.bytes().all(good) || name.contains("..") {
        field.refuse("a host name, or *. and a host name");
        return None;
    }
    Some(text.to_ascii_lowercase().into())
}

/// The TCP ports; the mesh carries nothing else.
fn ports(spec: &Field<'_>) -> Vec<EntryPort> {
    let mut ports: BTreeMap<u16, EntryPort> = BTreeMap::new();
    let mut names = HashSet::new();
    for item in spec.items("ports") {
        item.only(&["number", "protocol", "name", "targetPort"]);
        let Some(number) = item.get("number") else {
            item.problem("no number", "allowed: a port with a number");
            continue;
        };
        let name = item.text_at("name").unwrap_or("");
        if !names.insert(name) {
            item.problem(format!("port name {name:?} for the second time"), "allowed: each name once");
        }
        let protocol = item.text_at("protocol").unwrap_or("").to_ascii_lowercase();
        let (Some(port), false) = (number.port(), protocol == "udp") else { continue };
        let spoken = port_protocol::named(&protocol);
        if let (None, Some(field)) = (spoken, item.get("protocol").filter(|_| !protocol.is_empty())) {
            field.refuse("HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, REDIS, MYSQL, UDP");
        }
        let target = item.get("targetPort").map_or(Some(port), |target| target.port());
        let of = EntryPort {
            number: port,
            name: name.into(),
            protocol: spoken.unwrap_or_default(),
            target: target.unwrap_or(port),
        };
        if ports.insert(port, of).is_some() {
            number.problem(format!("{port} for the second time"), "allowed: each port once");
        }
    }
    ports.into_values().collect()
}

fn allocated(status: &Field<'_>) -> Vec<(IpAddr, Option<Arc<str>>)> {
    let one = |item: &Field<'_>| {
        let host = item.text_at("host").map(|host| host.to_ascii_lowercase().into());
        Some((item.get("value")?.ip()?, host))
    };
    status.items("addresses").iter().filter_map(one).collect()
}

/// Those that are identities of workloads; names of another kind are for TLS that is not begun here.
fn subject_alt_names(spec: &Field<'_>) -> Vec<SpiffeId> {
    let names = spec.items("subjectAltNames");
    let one = |name: &Field<'_>| {
        let text = name.text()?;
        if !text.starts_with("spiffe://") {
            return None;
        }
        let id = text.parse().ok();
        if id.is_none() {
            name.refuse("spiffe://<trust domain>/ns/<namespace>/sa/<service account>, or a DNS name");
        }
        id
    };
    names.iter().filter_map(one).collect()
}

fn visibility(spec: &Field<'_>) -> Visibility {
    let to = spec.items("exportTo");
    let texts: Vec<&str> = to.iter().filter_map(|item| item.text()).collect();
    for (field, text) in to.iter().zip(&texts) {
        match *text {
            "~" => field.refuse("., *, or names of namespaces; ~ would make the object useless"),
            "." | "*" => {}
            _ => field.warning(
                format!("the namespace {text:?}"),
                "everybody may use it: only . and * are told apart",
            ),
        }
    }
    if !texts.is_empty() && texts.iter().all(|text| *text == ".") {
        Visibility::Namespace
    } else {
        Visibility::Public
    }
}

fn load_balancing(resolution: Resolution, meta: &Meta) -> LoadBalancing {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    if matches!(resolution, Resolution::None | Resolution::DynamicDns) {
        return LoadBalancing {
            routing_preference: Vec::new(),
            mode: Mode::Passthrough,
            health_policy: HealthPolicy::AllowAll,
        };
    }
    let distribution = meta.annotation("networking.istio.io/traffic-distribution").unwrap_or("");
    let routing_preference = match distribution.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => vec![Network, Region, Zone],
        "prefersamenode" => vec![Network, Region, Zone, Subzone, Node],
        _ => return LoadBalancing::default(),
    };
    LoadBalancing { routing_preference, mode: Mode::Failover, health_policy: HealthPolicy::OnlyHealthy }
}
