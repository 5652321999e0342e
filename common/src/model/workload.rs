//! A workload: something with an address and an identity.

use std::net::IpAddr;
use std::sync::Arc;

use super::{ApplicationTunnel, GatewayAddress};
use crate::types::{PolicyKey, SpiffeId, WorkloadUid};

/// A pod or another endpoint. Source: `istio.workload.Workload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Primary key, in istiod's form.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Identity its certificate must prove.
    pub identity: SpiffeId,
    /// Addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// How others reach it.
    pub protocol: TunnelProtocol,
    /// Whether it is meant to be in the mesh, captured or not.
    pub enrolment: Enrolment,
    /// Name of its node; empty if unknown.
    pub node: Arc<str>,
    /// For telemetry: label `service.istio.io/canonical-name`, or what Istio derives for it.
    pub canonical_name: Arc<str>,
    /// For telemetry: label `service.istio.io/canonical-revision`, or what Istio derives for it.
    pub canonical_revision: Arc<str>,
    /// Kind of the object that owns it.
    pub workload_type: WorkloadType,
    /// Name of the object that owns it.
    pub workload_name: Arc<str>,
    /// Cluster id.
    pub cluster: Arc<str>,
    /// Network id; empty in a single network.
    pub network: Arc<str>,
    /// Region and zone of its node.
    pub locality: Locality,
    /// Ready and not terminating.
    pub health: Health,
    /// Shares its node's addresses, so no address leads to it alone.
    pub host_network: bool,
    /// Weight in load balancing; 0 takes no traffic.
    pub capacity: u32,
    /// Found by this name where it has no address; empty otherwise.
    pub hostname: Arc<str>,
    /// Its waypoint: what is addressed to the workload itself goes through it.
    pub waypoint: Option<Arc<GatewayAddress>>,
    /// The way to it from other networks.
    pub network_gateway: Option<Arc<GatewayAddress>>,
    /// How its application wants what comes out of a tunnel.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// It ends HBONE itself, as waypoints and gateways do.
    pub native_tunnel: bool,
    /// Policies that select it by label, those translated from PeerAuthentication included.
    pub authorization_policies: Vec<PolicyKey>,
}

impl Workload {
    /// One of which no more is known than who it is: healthy, in plaintext, in the single network. For those that say the rest
    /// themselves; a source names every field, so that a new one is not forgotten there.
    pub fn new(uid: WorkloadUid, name: impl Into<Arc<str>>, identity: SpiffeId) -> Self {
        let none = || Arc::<str>::from("");
        Self {
            uid,
            name: name.into(),
            namespace: identity.namespace().into(),
            identity,
            addresses: Vec::new(),
            protocol: TunnelProtocol::Tcp,
            enrolment: Enrolment::Unknown,
            node: none(),
            canonical_name: none(),
            canonical_revision: none(),
            workload_type: WorkloadType::Deployment,
            workload_name: none(),
            cluster: none(),
            network: none(),
            locality: Locality::default(),
            health: Health::Healthy,
            host_network: false,
            capacity: 1,
            hostname: none(),
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            native_tunnel: false,
            authorization_policies: Vec::new(),
        }
    }
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelProtocol {
    /// Plain TCP: it is not captured.
    Tcp,
    /// HBONE on port 15008.
    Hbone,
}

/// Whether a workload is meant to be in the mesh. Whether it is captured says [`TunnelProtocol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Labelled, itself or by its namespace: it should be captured.
    Labelled,
    /// Not labelled, or labelled as outside.
    NotLabelled,
    /// Never captured: network of its node, sidecar, excluded namespace, or no pod.
    Exempt,
    /// The source does not say.
    Unknown,
}

/// Kind of the owner, as telemetry names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadType {
    /// `deployment`, and every owner that is none of the others.
    Deployment,
    /// `cronjob`
    CronJob,
    /// `pod`
    Pod,
    /// `job`
    Job,
}

impl WorkloadType {
    /// The name in baggage, lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Whether a workload may be given traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Not ready; takes traffic only where a service publishes not-ready addresses.
    Unhealthy,
    /// Being deleted, or its phase is over: takes no new traffic.
    Terminating,
}

/// Region, zone and sub-zone; empty where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Label `topology.kubernetes.io/region` of the node.
    pub region: Arc<str>,
    /// Label `topology.kubernetes.io/zone` of the node.
    pub zone: Arc<str>,
    /// Label `topology.istio.io/subzone` of the node.
    pub subzone: Arc<str>,
}
