//! What one waypoint does with HTTP, gRPC and TCP: plain data, already valid.
//!
//! Made for one [`Waypoint`] from the objects that concern it, Istio's and Gateway API's alike: merged, sorted, names made
//! whole, defaults filled in. Nothing after that knows which kind of object a route came from, but for its [`Origin`].
//! Endpoints are not here: a [`Cluster`] names the service whose endpoints the snapshot has. Start with [`Waypoint`], then
//! [`Route`]; what a policy asks is in [`Policy`].

mod authorization;
mod cluster;
mod pattern;
mod route;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

pub use authorization::{
    Access, Condition, Effect, Operation, PathMatch, Policies, Policy, PolicyFault, PolicyRule, Source, Texts,
};
pub use cluster::{
    Balance, Cluster, ClusterKey, ConnectionPool, Keepalive, Outliers, Protocol, RetryBudget, Subset, Upgrade,
};
pub use pattern::{Pattern, TextMatch};
pub use route::{
    Abort, BackOff, Backend, Cors, Delay, DirectResponse, Fault, Fraction, HeaderEdits, HeaderMatch, Mirror,
    Origin, PathRewrite, PathTest, QueryMatch, Redirect, RedirectPath, RedirectPort, RequestMatch, Retries,
    RetryOn, Rewrite, Route, RouteAction, TcpMatch, TcpRoute, UnmatchedPreflight, Weighted,
};

use super::Status;
use crate::types::{ServiceKey, SpiffeId, WorkloadUid};

/// Everything that one waypoint needs beside the snapshot.
#[derive(Clone, Debug, Default)]
pub struct Waypoint {
    /// Its Gateway.
    pub gateway: GatewayKey,
    /// Whom it is to clients and endpoints; none: nobody says.
    pub identity: Option<SpiffeId>,
    /// What it may be bound to: annotation `istio.io/waypoint-for`.
    pub serves: Serves,
    /// The services that are bound to it.
    pub services: BTreeMap<ServiceKey, Bound>,
    /// The workloads that are bound to it.
    pub workloads: HashSet<WorkloadUid>,
    /// Policies on workload-addressed traffic: those of the Gateway and its class.
    pub policies: Arc<Policies>,
    /// How each destination is reached that a route, or the default route, leads to.
    pub clusters: BTreeMap<ClusterKey, Arc<Cluster>>,
    /// Whether the application learns who the client is: annotation `ambient.istio.io/xfcc-include-client-identity`.
    pub forwards_identity: bool,
    /// How paths are made plain before anything looks at them.
    pub normalization: Normalization,
    /// What becomes of paths that climb above their root.
    pub above_root: AboveRoot,
    /// What a controller writes back of its objects, for people who look at the waypoint.
    pub statuses: Vec<Status>,
}

/// Namespace and name of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// `<namespace>/<name>`
impl fmt::Display for GatewayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which traffic a waypoint takes. Source: label `istio.io/waypoint-for`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serves {
    /// What is addressed to services.
    #[default]
    Service,
    /// What is addressed to workloads.
    Workload,
    /// Both.
    All,
    /// Nothing: it runs and is never bound.
    Nothing,
}

/// A service that is bound to this waypoint.
#[derive(Clone, Debug)]
pub struct Bound {
    /// What is done on each of its ports; TCP ports only.
    pub ports: BTreeMap<u16, BoundPort>,
    /// Those of the Gateway and its class, and those that name the service.
    pub policies: Arc<Policies>,
}

/// One port of a bound service.
#[derive(Clone, Debug)]
pub struct BoundPort {
    /// What clients speak.
    pub protocol: Protocol,
    /// HTTP routes in the order in which they are tried. With none of any object, the one default route is in here.
    pub http: Arc<[Route]>,
    /// TCP routes in the order in which they are tried; the default route is the last.
    pub tcp: Arc<[TcpRoute]>,
}

/// How paths are made plain. Source: MeshConfig.pathNormalization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// As they came.
    None,
    /// RFC 3986: dot segments, `\` as `/`, encoded unreserved characters.
    #[default]
    Base,
    /// And `//` as `/`.
    MergeSlashes,
    /// And `%2f` and `%5c` before that.
    DecodeAndMergeSlashes,
}

/// What becomes of `..` at the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AboveRoot {
    /// It is dropped, as RFC 3986 has it.
    #[default]
    Dropped,
    /// The request is refused.
    Refused,
}
