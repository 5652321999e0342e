//! Puts waypoints before services and workloads, as labels say, and keeps which waypoint knows what.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::Settings;
use super::object::{Meta, Objects};
use super::reader::Report;
use super::service_entry::ServiceEntry;
use super::waypoint::{Binding, Traffic, Waypoints};
use crate::model::l7::GatewayKey;
use crate::model::{Condition, Model, Service, Status, Workload};
use crate::types::{ServiceKey, WorkloadUid};

const MISSING: &str = "istio.io/WaypointMissing";
const VISIBILITY: &str = "istio.io/VisibilityApplied";

/// What is bound to which waypoint.
#[derive(Debug, Default)]
pub(super) struct Bound {
    pub(super) services: BTreeMap<GatewayKey, BTreeSet<ServiceKey>>,
    pub(super) workloads: BTreeMap<GatewayKey, HashSet<WorkloadUid>>,
    /// Of all objects with a label, or with a namespace that has one.
    pub(super) statuses: Vec<Status>,
}

/// Sets the waypoints of all services and workloads of `model`.
pub(super) fn bind(
    model: &mut Model,
    objects: &Objects,
    waypoints: &Waypoints<'_>,
    settings: &Settings,
    report: &Report,
) -> Bound {
    let mut bound = Bound::default();
    let mut services: HashMap<ServiceKey, &mut Service> =
        model.services.iter_mut().map(|service| (service.key.clone(), service)).collect();
    for service in &objects.services {
        let binding = waypoints.bind(&service.meta, Traffic::Service, report);
        let key = service.key(settings);
        bound.add_service(&key, &binding, services.get_mut(&key));
        bound.add_status("Service", &service.meta, &binding);
    }
    for entry in &objects.service_entries {
        let binding = waypoints.bind(&entry.meta, Traffic::Service, report);
        for host in &entry.hosts {
            let key = entry.key(host);
            bound.add_service(&key, &binding, services.get_mut(&key));
        }
        bound.add_status("ServiceEntry", &entry.meta, &binding);
        bound.check_wildcards(entry, &binding, report);
        let reason = entry.visibility_reason();
        bound.push("ServiceEntry", &entry.meta, Condition::yes(VISIBILITY, reason, "as spec.exportTo says"));
    }
    let mut workloads: HashMap<WorkloadUid, &mut Workload> =
        model.workloads.iter_mut().map(|workload| (workload.uid.clone(), workload)).collect();
    for pod in objects.pods.iter().filter(|pod| !pod.is_waypoint) {
        let uid = pod.uid(settings);
        let Some(workload) = workloads.get_mut(&uid) else { continue };
        let binding = waypoints.bind(&pod.meta, Traffic::Workload, report);
        bound.add_workload(&binding, workload);
    }
    for entry in &objects.workload_entries {
        let Some(workload) = workloads.get_mut(&entry.uid(settings)) else { continue };
        let binding = waypoints.bind(&entry.meta, Traffic::Workload, report);
        bound.add_workload(&binding, workload);
        bound.add_status("WorkloadEntry", &entry.meta, &binding);
    }
    bound
}

impl Bound {
    /// Whether the service is known to this waypoint.
    pub(super) fn has(&self, gateway: &GatewayKey, service: &ServiceKey) -> bool {
        self.services.get(gateway).is_some_and(|services| services.contains(service))
    }

    fn add_service(&mut self, key: &ServiceKey, binding: &Binding, service: Option<&mut &mut Service>) {
        let Some(service) = service else { return };
        service.waypoint = binding.waypoint.clone();
        service.weighted_waypoints.clone_from(&binding.weighted);
        for waypoint in &binding.known_to {
            self.services.entry(waypoint.clone()).or_default().insert(key.clone());
        }
    }

    fn add_workload(&mut self, binding: &Binding, workload: &mut Workload) {
        workload.waypoint = binding.waypoint.clone();
        for waypoint in &binding.known_to {
            self.workloads.entry(waypoint.clone()).or_default().insert(workload.uid.clone());
        }
    }

    /// A name with a wildcard stands for no address: only a waypoint can tell its hosts apart.
    fn check_wildcards(&mut self, entry: &ServiceEntry, binding: &Binding, report: &Report) {
        if binding.waypoint.is_some() || !entry.hosts.iter().any(|host| host.starts_with('*')) {
            return;
        }
        let message = "a wildcard host without a waypoint leads nowhere";
        report.warning(entry.meta.at.about("spec.hosts", message, "label it with istio.io/use-waypoint"));
        self.push(
            "ServiceEntry",
            &entry.meta,
            Condition::yes(MISSING, "NoWaypointForWildcardService", message),
        );
    }

    fn add_status(&mut self, kind: &'static str, meta: &Meta, binding: &Binding) {
        if let Some(condition) = &binding.condition {
            self.push(kind, meta, condition.clone());
        }
    }

    fn push(&mut self, kind: &'static str, meta: &Meta, condition: Condition) {
        if let Some(last) =
            self.statuses.last_mut().filter(|last| last.is_of(kind, &meta.namespace, &meta.name))
        {
            return last.conditions.push(condition);
        }
        self.statuses.push(Status {
            kind,
            namespace: Arc::clone(&meta.namespace),
            name: Arc::clone(&meta.name),
            part: None,
            conditions: vec![condition],
        });
    }
}
