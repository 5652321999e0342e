//! A service: virtual addresses and the endpoints behind them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{GatewayAddress, Health, WeightedWaypoint};
use crate::types::{ServiceKey, SpiffeId, WorkloadUid};

/// A service with its endpoints. Source: `istio.workload.Service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Primary key.
    pub key: ServiceKey,
    /// Name of the object.
    pub name: Arc<str>,
    /// Virtual addresses; empty if headless.
    pub vips: Vec<IpAddr>,
    /// Ranges of virtual addresses; an address of [`Service::vips`] of any service comes before them.
    pub cidr_vips: Vec<IpNet>,
    /// Its addresses in other networks, each with its network: shown to people, never looked up.
    pub elsewhere: Vec<(Arc<str>, IpNet)>,
    /// Ports by service port.
    pub ports: BTreeMap<u16, ServicePort>,
    /// Further identities that its endpoints may prove.
    pub subject_alt_names: Vec<SpiffeId>,
    /// Its waypoint: what is addressed to the service goes through it.
    pub waypoint: Option<Arc<GatewayAddress>>,
    /// Several waypoints that share its connections; they count before [`Service::waypoint`].
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Families of its addresses.
    pub ip_families: IpFamilies,
    /// Preferred owner of its host name and addresses; true for every Kubernetes Service.
    pub canonical: bool,
    /// Who may use it.
    pub visibility: Visibility,
    /// All endpoints, healthy or not, in no particular order.
    pub endpoints: Vec<Endpoint>,
}

impl Service {
    /// One that everybody may use, without addresses, ports and endpoints. For those that say the rest themselves; see
    /// [`Workload::new`](super::Workload::new).
    pub fn new(key: ServiceKey, name: impl Into<Arc<str>>) -> Self {
        Self {
            key,
            name: name.into(),
            vips: Vec::new(),
            cidr_vips: Vec::new(),
            elsewhere: Vec::new(),
            ports: BTreeMap::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: false,
            visibility: Visibility::Public,
            endpoints: Vec::new(),
        }
    }

    /// Whether an endpoint of it that is in this state may be given anything: one that is ready, or any if readiness is not
    /// asked for; never one that is going.
    pub fn is_ready(&self, health: Health) -> bool {
        match self.load_balancing.health_policy {
            HealthPolicy::OnlyHealthy => health == Health::Healthy,
            HealthPolicy::AllowAll => health != Health::Terminating,
        }
    }

    /// Port of the endpoint's workload behind a port of the service; none where there is none.
    pub fn target_port(&self, endpoint: &Endpoint, port: u16) -> Option<u16> {
        let own = endpoint.ports.get(&port).copied();
        own.or_else(|| self.ports.get(&port).map(|port| port.target)).filter(|port| *port != 0)
    }

    /// Whether it has no virtual address in any network: its name stands for its endpoints.
    pub fn is_headless(&self) -> bool {
        self.vips.is_empty()
            && !self.elsewhere.iter().any(|(_, range)| range.prefix_len() == range.max_prefix_len())
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port of the endpoints; 0 where it is named and each endpoint has its own.
    pub target: u16,
    /// Name of the port; empty if it has none.
    pub name: Arc<str>,
}

/// One workload behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Key of the workload.
    pub workload: WorkloadUid,
    /// Target port by service port, where it differs from the service's own mapping.
    pub ports: BTreeMap<u16, u16>,
    /// The worse of the workload's health and what an EndpointSlice says of it.
    pub health: Health,
}

/// How an endpoint is chosen. Source: `istio.workload.LoadBalancing`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancing {
    /// Scopes to prefer, the widest first; empty in [`Mode::Standard`].
    pub routing_preference: Vec<LocalityScope>,
    /// What the preference means.
    pub mode: Mode,
    /// Whether endpoints that are not ready count.
    pub health_policy: HealthPolicy,
}

impl Default for LoadBalancing {
    fn default() -> Self {
        Self {
            routing_preference: Vec::new(),
            mode: Mode::Standard,
            health_policy: HealthPolicy::OnlyHealthy,
        }
    }
}

/// What a routing preference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Any endpoint, by weight.
    Standard,
    /// Only endpoints that match every scope.
    Strict,
    /// Those that match most scopes.
    Failover,
    /// No choice: the original destination.
    Passthrough,
}

/// One scope of a routing preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the scopes")]
pub enum LocalityScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// Whether endpoints that are not ready count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPolicy {
    /// Only ready endpoints.
    OnlyHealthy,
    /// `publishNotReadyAddresses`: all but terminating ones.
    AllowAll,
}

/// IP families of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamilies {
    /// Not said: any.
    Automatic,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

/// Who may use a service by its virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody.
    Public,
    /// Workloads of its own namespace.
    Namespace,
}
