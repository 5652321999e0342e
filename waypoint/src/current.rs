//! One revision of the configuration, as requests use it: the snapshot, the waypoint's own part, and for each destination its
//! endpoints with what is kept of them over changes: requests under way, ejections, circuit breakers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use culvert_common::crypto::random;
use culvert_common::l7::balance::{Ask, Avoid, Endpoints, Host, NoEndpoint, Picked, is_member};
use culvert_common::l7::breaker::Breaker;
use culvert_common::l7::outlier::Detector;
use culvert_common::model::Workload;
use culvert_common::model::l7::{Cluster, ClusterKey, Waypoint};
use culvert_common::state::Snapshot;
use culvert_common::types::WorkloadUid;

use crate::dial::Endpoint;
use crate::names::Names;

/// A revision; requests take it once each.
#[derive(Default)]
pub(crate) struct Current {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) waypoint: Arc<Waypoint>,
    /// False until the first configuration was read.
    pub(crate) is_loaded: bool,
    clusters: HashMap<ClusterKey, Arc<Live>>,
}

/// A destination.
pub(crate) struct Live {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) endpoints: Endpoints<Node>,
}

impl Live {
    /// One of its endpoints for a request or a connection; `avoid` says which were tried for it before.
    ///
    /// **Errors**: none is healthy.
    pub(crate) fn pick(&self, avoid: Option<&Avoid<'_, Node>>) -> Result<Picked<'_, Node>, NoEndpoint> {
        let ask = Ask {
            balance: self.cluster.balance,
            outliers: self.cluster.outliers.as_ref(),
            random: [random() as u64, random() as u64],
            now: Instant::now(),
        };
        self.endpoints.pick(&ask, avoid)
    }
}

/// An endpoint of a destination.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    host: Arc<Host>,
    pub(crate) workload: Arc<Workload>,
    /// Of its application.
    pub(crate) address: SocketAddr,
}

impl Node {
    /// Where a connection to it goes.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint { workload: Arc::clone(&self.workload), address: self.address }
    }
}

impl AsRef<Host> for Node {
    fn as_ref(&self) -> &Host {
        &self.host
    }
}

/// What outlives a revision.
#[derive(Default)]
pub(crate) struct Kept {
    clusters: HashMap<ClusterKey, (Arc<Breaker>, Arc<Detector>)>,
    hosts: HashMap<(ClusterKey, WorkloadUid, SocketAddr, u32), Arc<Host>>,
}

impl Current {
    /// The destination of this name; none: no DestinationRule or service has it.
    pub(crate) fn cluster(&self, key: &ClusterKey) -> Option<&Arc<Live>> {
        self.clusters.get(key)
    }

    /// All destinations.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &Arc<Live>> {
        self.clusters.values()
    }

    /// The endpoint at an address that is taken as it was asked for. One that nobody knows is spoken to in plain TCP; none
    /// where only a name was asked for.
    pub(crate) fn asked(&self, address: SocketAddr) -> Option<Endpoint> {
        if let Some(workload) = self.snapshot.workload_by_ip(address.ip()) {
            return Some(Endpoint { workload: Arc::clone(workload), address });
        }
        let own = self.waypoint.identity.clone().filter(|_| !address.ip().is_unspecified())?;
        Some(Endpoint::of_address(address, own))
    }

    /// The next revision; `kept` is taken over from the last one.
    pub(crate) fn next(
        snapshot: Arc<Snapshot>,
        waypoint: Arc<Waypoint>,
        (kept, names): (&mut Kept, &Names),
        now: Instant,
    ) -> Self {
        let mut next = Kept::default();
        let clusters = waypoint.clusters.iter().map(|(key, cluster)| {
            let (breaker, detector) =
                kept.clusters.remove(key).unwrap_or_else(|| (Arc::default(), Arc::new(Detector::new(now))));
            next.clusters.insert(key.clone(), (Arc::clone(&breaker), Arc::clone(&detector)));
            let nodes = nodes(&snapshot, (cluster, names), |workload, address| {
                let id = (key.clone(), workload.uid.clone(), address, workload.capacity);
                let host = kept.hosts.remove(&id).unwrap_or_else(|| Arc::new(Host::new(workload.capacity)));
                Arc::clone(next.hosts.entry(id).or_insert(host))
            });
            let endpoints = Endpoints::new(nodes, detector);
            (key.clone(), Arc::new(Live { cluster: Arc::clone(cluster), breaker, endpoints }))
        });
        let clusters = clusters.collect();
        *kept = next;
        Self { snapshot, waypoint, is_loaded: true, clusters }
    }
}

/// The endpoints of a destination that may be given requests, in an order that stays.
fn nodes(
    snapshot: &Snapshot,
    (cluster, names): (&Cluster, &Names),
    mut host: impl FnMut(&Arc<Workload>, SocketAddr) -> Arc<Host>,
) -> Vec<Node> {
    let Some(service) = snapshot.service(&cluster.key.service) else { return Vec::new() };
    let mut nodes: Vec<Node> = service
        .endpoints
        .iter()
        .filter(|endpoint| {
            service.is_ready(endpoint.health) && is_member(cluster.subset.as_ref(), &endpoint.workload)
        })
        .filter_map(|endpoint| {
            let workload = snapshot.workload(&endpoint.workload)?;
            Some((workload, service.target_port(endpoint, cluster.key.port)?))
        })
        .flat_map(|(workload, port)| {
            let own = workload.addresses.first().map(std::slice::from_ref);
            own.unwrap_or_else(|| names.of(&workload.hostname)).iter().map(move |ip| (workload, *ip, port))
        })
        .map(|(workload, ip, port)| {
            let address = SocketAddr::new(ip, port);
            Node { host: host(workload, address), workload: Arc::clone(workload), address }
        })
        .collect();
    nodes.sort_by(|a, b| (&a.workload.uid, a.address).cmp(&(&b.workload.uid, b.address)));
    nodes
}
