//! What the mesh is: workloads, services, policies and the pods of this node. Plain data, already valid.
//!
//! Sources build these from YAML or xDS and check while they do; nothing after that parses text again.
//! Start with [`Workload`], then [`Service`].

use std::sync::Arc;

mod background;
mod downgrade;
mod gateway;
pub mod l7;
mod pod;
mod policy;
mod service;
mod status;
mod texts;
mod workload;

pub use background::{Background, LeftOut, NotCaptured, PeerMode};
pub use downgrade::{DowngradeMode, NoDowngrade};
pub use gateway::{ApplicationTunnel, GatewayAddress, GatewayDestination, TunnelPreamble, WeightedWaypoint};
pub use pod::LocalPod;
pub use policy::{
    Action, Authorization, Clause, Match, PortSet, Rule, Scope, ServiceAccountMatch, StringMatch,
};
pub use service::{
    Endpoint, HealthPolicy, IpFamilies, LoadBalancing, LocalityScope, Mode, Service, ServicePort, Visibility,
};
pub use status::{Condition, Status};
pub(crate) use texts::Texts;
pub use workload::{Enrolment, Health, Locality, TunnelProtocol, Workload, WorkloadType};

/// Everything one source knows, before it is indexed. `state::Snapshot::build` turns it into look-up tables.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Pods and other endpoints, of all nodes.
    pub workloads: Vec<Workload>,
    /// Services with their endpoints.
    pub services: Vec<Service>,
    /// Authorization policies that L4 enforces, those translated from PeerAuthentication included.
    pub policies: Vec<Authorization>,
    /// Pods of this node that are to be captured and whose network namespace is known.
    pub pods: Vec<LocalPod>,
    /// For people who ask why.
    pub background: Background,
    /// What a waypoint does, where the source is read for one.
    pub waypoint: Option<Arc<l7::Waypoint>>,
}

/// A [`Model`] whose items are shared: a source that keeps them publishes again without copying what stayed.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// See [`Model::workloads`].
    pub workloads: Vec<Arc<Workload>>,
    /// See [`Model::services`].
    pub services: Vec<Arc<Service>>,
    /// See [`Model::policies`].
    pub policies: Vec<Arc<Authorization>>,
    /// See [`Model::pods`].
    pub pods: Vec<Arc<LocalPod>>,
    /// See [`Model::background`].
    pub background: Arc<Background>,
    /// See [`Model::waypoint`].
    pub waypoint: Option<Arc<l7::Waypoint>>,
}

impl From<Model> for Parts {
    fn from(model: Model) -> Self {
        let Model { workloads, services, policies, pods, background, waypoint } = model;
        Self {
            workloads: workloads.into_iter().map(Arc::new).collect(),
            services: services.into_iter().map(Arc::new).collect(),
            policies: policies.into_iter().map(Arc::new).collect(),
            pods: pods.into_iter().map(Arc::new).collect(),
            background: Arc::new(background),
            waypoint,
        }
    }
}
