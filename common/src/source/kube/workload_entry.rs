//! WorkloadEntry, and the inline endpoints of a ServiceEntry, which have the same fields: something outside the cluster,
//! or beside its pods, with an address and an identity.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Settings;
use super::object::Meta;
use super::reader::{Field, Labels};
use crate::model::{Enrolment, Health, Locality, TunnelProtocol, Workload, WorkloadType};
use crate::types::{SpiffeId, WorkloadUid};

/// A WorkloadEntry object.
#[derive(Debug)]
pub(super) struct WorkloadEntry {
    pub(super) meta: Meta,
    pub(super) entry: Entry,
    pub(super) health: Health,
}

/// The fields of a WorkloadEntry, of an object or inline.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) address: EntryAddress,
    /// Target ports by the names of service ports.
    pub(super) ports: BTreeMap<Arc<str>, u16>,
    pub(super) labels: Labels,
    network: Option<Arc<str>>,
    locality: Locality,
    weight: Option<u32>,
    service_account: Option<Arc<str>>,
}

/// Where an entry is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EntryAddress {
    Ip(IpAddr),
    /// A name that DNS knows.
    Hostname(Arc<str>),
}

const FIELDS: [&str; 7] = ["address", "ports", "labels", "network", "locality", "weight", "serviceAccount"];

impl WorkloadEntry {
    /// None, with a report, without an address.
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Option<Self> {
        let Some(spec) = root.get("spec") else {
            root.problem("no spec", "allowed: a WorkloadEntry with spec.address");
            return None;
        };
        let entry = Entry::read(&spec)?;
        let conditions = root.get("status").map(|status| status.items("conditions")).unwrap_or_default();
        let sick = conditions.iter().any(|condition| {
            condition.text_at("type") == Some("Healthy") && condition.text_at("status") == Some("False")
        });
        let health = match (meta.deleting, sick) {
            (true, _) => Health::Terminating,
            (false, true) => Health::Unhealthy,
            (false, false) => Health::Healthy,
        };
        Some(Self { meta, entry, health })
    }

    /// Labels by which services and subsets choose: those of the spec and those of the object.
    pub(super) fn labels(&self) -> Labels {
        let mut labels = self.meta.labels.clone();
        labels.extend(self.entry.labels.iter().map(|(key, value)| (Arc::clone(key), Arc::clone(value))));
        labels
    }

    pub(super) fn uid(&self, settings: &Settings) -> WorkloadUid {
        WorkloadUid(
            format!("{}/networking.istio.io/WorkloadEntry/{}", settings.cluster, self.meta.key()).into(),
        )
    }

    /// The workload; none if its service account is no name.
    pub(super) fn workload(&self, settings: &Settings) -> Option<Workload> {
        self.entry.workload(self.uid(settings), &self.meta, self.health, settings)
    }
}

impl Entry {
    /// None, with a report, without an address.
    pub(super) fn read(field: &Field<'_>) -> Option<Self> {
        field.only(&FIELDS);
        let Some(address) = field.get("address") else {
            field.problem("no address", "allowed: an IP address or a host name");
            return None;
        };
        let text = address.text()?;
        if text.starts_with("unix:") || text.is_empty() {
            address
                .refuse("an IP address or a host name; sockets of other kinds cannot be reached from here");
            return None;
        }
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_ip = text.parse::<IpAddr>().is_ok();
        if !is_ip && (text.len() > 253 || text.contains("..") || !text.bytes().all(of_name)) {
            address.refuse("an IP address or a host name");
            return None;
        }
        let ports = field.get("ports").map(|ports| ports.entries()).unwrap_or_default();
        let ports = ports.into_iter().filter_map(|(name, port)| Some((name.into(), port.port()?)));
        Some(Self {
            address: match text.parse() {
                Ok(ip) => EntryAddress::Ip(ip),
                Err(_) => EntryAddress::Hostname(text.to_ascii_lowercase().into()),
            },
            ports: ports.collect(),
            labels: field.labels("labels"),
            network: field.text_at("network").map(Arc::from),
            locality: field.text_at("locality").map(locality).unwrap_or_default(),
            weight: field.get("weight").and_then(|weight| weight.number()),
            service_account: field.text_at("serviceAccount").map(Arc::from),
        })
    }

    /// The endpoint that stands for a host name itself.
    pub(super) fn of_hostname(hostname: &Arc<str>) -> Self {
        Self {
            address: EntryAddress::Hostname(Arc::clone(hostname)),
            ports: BTreeMap::new(),
            labels: Labels::new(),
            network: None,
            locality: Locality::default(),
            weight: None,
            service_account: None,
        }
    }

    /// The workload, as an object with this metadata describes it.
    pub(super) fn workload(
        &self,
        uid: WorkloadUid,
        meta: &Meta,
        health: Health,
        settings: &Settings,
    ) -> Option<Workload> {
        let account = self.service_account.as_deref().unwrap_or("default");
        let label = |name: &str| meta.labels.get(name).or_else(|| self.labels.get(name));
        let first = |keys: [&str; 3]| keys.iter().find_map(|key| label(key)).cloned();
        let name = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        let is_native = label("networking.istio.io/tunnel").is_some_and(|tunnel| &**tunnel == "http");
        let is_captured = meta.annotation("ambient.istio.io/redirection") == Some("enabled");
        let tunnel = is_native || is_captured;
        let (addresses, hostname) = match &self.address {
            EntryAddress::Ip(ip) => (vec![*ip], "".into()),
            EntryAddress::Hostname(name) => (Vec::new(), Arc::clone(name)),
        };
        Some(Workload {
            uid,
            name: Arc::clone(&meta.name),
            namespace: Arc::clone(&meta.namespace),
            identity: SpiffeId::new(&settings.trust_domain, &meta.namespace, account).ok()?,
            addresses,
            protocol: if tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::Tcp },
            enrolment: if tunnel { Enrolment::Labelled } else { Enrolment::Exempt },
            node: "".into(),
            canonical_name: first(name).unwrap_or_else(|| Arc::clone(&meta.name)),
            canonical_revision: first(revision).unwrap_or_else(|| "latest".into()),
            workload_type: WorkloadType::Pod,
            workload_name: Arc::clone(&meta.name),
            cluster: Arc::clone(&settings.cluster),
            network: self.network.clone().unwrap_or_else(|| Arc::clone(&settings.network)),
            locality: self.locality.clone(),
            health,
            host_network: false,
            capacity: self.weight.unwrap_or(1),
            hostname,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            native_tunnel: is_native,
            authorization_policies: Vec::new(),
        })
    }
}

/// `region/zone/subzone`.
fn locality(text: &str) -> Locality {
    let mut parts = text.split('/').map(Arc::from);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), subzone: next() }
}
