//! Look-up tables over a [`Model`]. Pure: no clock, no I/O.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::ranges::Ranges;
use crate::model::{
    Authorization, Background, Health, LocalPod, NoDowngrade, Parts, Scope, Service, TunnelProtocol,
    Visibility, Workload, l7,
};
use crate::types::{PolicyKey, ServiceKey, WorkloadUid};

/// Everything a decision needs, at one revision.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each publication; 0 is the empty state before the first.
    pub revision: u64,
    /// Whether what is not in here does not exist.
    pub completeness: Completeness,
    /// What is never sent in plaintext.
    pub no_downgrade: Arc<NoDowngrade>,
    /// Workloads that were captured under their UID and are not now.
    captured_before: HashSet<WorkloadUid>,
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    workloads_by_ip: HashMap<IpAddr, Arc<Workload>>,
    workloads_by_host: HashMap<Arc<str>, Vec<Arc<Workload>>>,
    services: HashMap<ServiceKey, Arc<Service>>,
    services_by_vip: HashMap<IpAddr, Vec<Arc<Service>>>,
    services_by_range: Ranges,
    services_by_host: HashMap<Arc<str>, Vec<Arc<Service>>>,
    services_by_workload: HashMap<WorkloadUid, Vec<Arc<Service>>>,
    policies: HashMap<PolicyKey, Arc<Authorization>>,
    wide_policies: Vec<Arc<Authorization>>,
    pods: Vec<Arc<LocalPod>>,
    background: Arc<Background>,
    waypoint: Option<Arc<l7::Waypoint>>,
}

/// Whether what a snapshot does not have does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completeness {
    /// Nothing has been heard of the source yet.
    #[default]
    Loading,
    /// The source said more than could be read, or cannot be asked: this is what was known before.
    Stale,
    /// All that the source knows.
    Complete,
}

impl fmt::Display for Completeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loading => "loading",
            Self::Stale => "stale",
            Self::Complete => "complete",
        })
    }
}

/// The policies that apply to one workload.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// Global ones, those of its namespace, those it lists.
    pub all: Vec<Arc<Authorization>>,
    /// Named by the workload but not known: the evaluator fails closed on these.
    pub missing: Vec<PolicyKey>,
}

impl Snapshot {
    /// Indexes a whole [`Model`](crate::model::Model), or its parts.
    pub fn build(revision: u64, parts: impl Into<Parts>) -> Self {
        let parts = parts.into();
        let mut next = Self { revision, completeness: Completeness::Complete, ..Self::default() };
        for workload in parts.workloads {
            next.add_workload(workload);
        }
        for service in parts.services {
            next.add_service(service);
        }
        for policy in parts.policies {
            if policy.scope != Scope::WorkloadSelector {
                next.wide_policies.push(Arc::clone(&policy));
            }
            next.policies.insert(policy.key.clone(), policy);
        }
        next.wide_policies.sort_by(|a, b| a.key.cmp(&b.key));
        next.pods = parts.pods;
        next.background = parts.background;
        next.waypoint = parts.waypoint;
        next
    }

    /// The same, with these workloads as captured before.
    pub(crate) fn having_captured(mut self, before: HashSet<WorkloadUid>) -> Self {
        self.captured_before = before;
        self
    }

    fn add_workload(&mut self, workload: Arc<Workload>) {
        if !workload.host_network {
            for ip in &workload.addresses {
                // Two workloads with one address: one that runs beats one that ends, whose address may have been
                // given away; a pod beats another object; a captured one beats one that is not.
                let rank = |w: &Workload| {
                    let runs = w.health != Health::Terminating;
                    (runs, w.uid.0.contains("//Pod/"), w.protocol == TunnelProtocol::Hbone)
                };
                match self.workloads_by_ip.get(ip) {
                    Some(other) if rank(other) >= rank(&workload) => {}
                    _ => drop(self.workloads_by_ip.insert(*ip, Arc::clone(&workload))),
                }
            }
        }
        if !workload.hostname.is_empty() {
            let of = self.workloads_by_host.entry(Arc::clone(&workload.hostname));
            of.or_default().push(Arc::clone(&workload));
        }
        self.workloads.insert(workload.uid.clone(), workload);
    }

    fn add_service(&mut self, service: Arc<Service>) {
        for vip in &service.vips {
            self.services_by_vip.entry(*vip).or_default().push(Arc::clone(&service));
        }
        for range in &service.cidr_vips {
            self.services_by_range.add(*range, &service);
        }
        self.services_by_host
            .entry(Arc::clone(&service.key.hostname))
            .or_default()
            .push(Arc::clone(&service));
        for endpoint in &service.endpoints {
            // Most workloads are behind one service.
            let of = self.services_by_workload.entry(endpoint.workload.clone());
            let of = of.or_insert_with(|| Vec::with_capacity(1));
            // An endpoint may be listed twice; its service counts once.
            if !of.last().is_some_and(|last| Arc::ptr_eq(last, &service)) {
                of.push(Arc::clone(&service));
            }
        }
        self.services.insert(service.key.clone(), service);
    }

    /// What a waypoint does, where the source is read for one.
    pub fn waypoint(&self) -> Option<&Arc<l7::Waypoint>> {
        self.waypoint.as_ref()
    }

    /// The workload with this key.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// All workloads, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The workload that owns this address; never a host-network one.
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_ip.get(&ip)
    }

    /// The workload that is found by this name, of that namespace.
    pub fn workload_by_host(&self, key: &ServiceKey) -> Option<&Arc<Workload>> {
        self.workloads_by_host.get(&key.hostname)?.iter().find(|w| w.namespace == key.namespace)
    }

    /// The service with this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service that owns this virtual address, as seen from `client_namespace`: of those that have the address itself
    /// and are visible, one of the same namespace, then the canonical one, then the first; if none is visible, of those
    /// with a range that holds it.
    pub fn service_by_vip(&self, vip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let visible =
            |s: &&Arc<Service>| s.visibility == Visibility::Public || &*s.key.namespace == client_namespace;
        let exact = self.services_by_vip.get(&vip);
        exact
            .and_then(|all| preferred(all.iter().filter(visible), client_namespace))
            .or_else(|| self.services_by_range.find(vip, client_namespace, visible))
    }

    /// All services with exactly this virtual address, whoever may see them.
    pub fn services_at(&self, vip: IpAddr) -> &[Arc<Service>] {
        self.services_by_vip.get(&vip).map_or(&[], Vec::as_slice)
    }

    /// All services with a range of virtual addresses that holds this one, whoever may see them; the narrowest first.
    pub fn services_around(&self, vip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_range.holding(vip).map(|(_, service)| service)
    }

    /// The service with this host name: own namespace, then canonical, then first. Visibility does not matter here.
    pub fn service_by_host(&self, hostname: &str, own_namespace: &str) -> Option<&Arc<Service>> {
        preferred(self.services_by_host.get(hostname)?.iter(), own_namespace)
    }

    /// All services with this host name, in no particular order.
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        self.services_by_host.get(hostname).map_or(&[], Vec::as_slice)
    }

    /// Services of which this workload is an endpoint.
    pub fn services_of(&self, uid: &WorkloadUid) -> &[Arc<Service>] {
        self.services_by_workload.get(uid).map_or(&[], Vec::as_slice)
    }

    /// All services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, in no particular order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.policies.values()
    }

    /// The policies that apply to `workload`.
    pub fn policies_for(&self, workload: &Workload) -> Policies {
        let mut found = Policies::default();
        let wide = self.wide_policies.iter().filter(|p| {
            p.scope == Scope::Global || (p.scope == Scope::Namespace && p.key.namespace == workload.namespace)
        });
        found.all.extend(wide.cloned());
        for (i, key) in workload.authorization_policies.iter().enumerate() {
            match self.policies.get(key) {
                _ if workload.authorization_policies.iter().take(i).any(|earlier| earlier == key) => {}
                Some(policy) if policy.scope == Scope::WorkloadSelector => found.all.push(Arc::clone(policy)),
                Some(_) => {} // listed although it applies anyway
                None => found.missing.push(key.clone()),
            }
        }
        found
    }

    /// The policy with this key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Authorization>> {
        self.policies.get(key)
    }

    /// Whether a workload that is not captured was so under this UID.
    pub fn was_captured(&self, uid: &WorkloadUid) -> bool {
        self.captured_before.contains(uid)
    }

    /// What the source knows beyond what decisions need.
    pub fn background(&self) -> &Background {
        &self.background
    }

    /// Pods of this node that are to be captured.
    pub fn pods(&self) -> &[Arc<LocalPod>] {
        &self.pods
    }
}

fn preferred<'a>(
    services: impl Iterator<Item = &'a Arc<Service>> + Clone,
    namespace: &str,
) -> Option<&'a Arc<Service>> {
    services
        .clone()
        .find(|s| &*s.key.namespace == namespace)
        .or_else(|| services.clone().find(|s| s.canonical))
        .or_else(|| services.clone().next())
}
