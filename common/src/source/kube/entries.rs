//! Services and endpoints that Kubernetes does not know: ServiceEntries, and WorkloadEntries behind services of any kind.
//!
//! What the cluster gave to pods and Services is theirs: a ServiceEntry cannot take their addresses or names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Settings;
use super::endpoints::Pods;
use super::object::Objects;
use super::reader::{Labels, Report, selects};
use super::service::{Service, Target};
use super::service_entry::{EntryPort, Resolution, ServiceEntry};
use super::workload_entry::{Entry, EntryAddress, WorkloadEntry};
use crate::model::{self, Endpoint, Health, Model};
use crate::types::{ServiceKey, WorkloadUid};

/// Puts ServiceEntries and WorkloadEntries into the model, which has the Services and pods.
pub(super) fn add(
    objects: &Objects,
    pods: &Pods<'_>,
    settings: &Settings,
    report: &Report,
    model: &mut Model,
) {
    for entry in &objects.workload_entries {
        model.workloads.extend(entry.workload(settings));
    }
    add_to_services(objects, settings, model);
    let taken = taken(model);
    let owners = owners(objects);
    let mut known = HashSet::new();
    for entry in &objects.service_entries {
        for host in &entry.hosts {
            let owner = owners.get(host).copied();
            let is_owner = owner.is_some_and(|owner| std::ptr::eq(owner, entry));
            if let Some(other) =
                owner.filter(|owner| !is_owner && owner.meta.namespace == entry.meta.namespace)
            {
                let seen = format!("{host}, which the older {} has", other.meta.at.object);
                report.warning(entry.meta.at.about("spec.hosts", seen, "it is left out here"));
                continue;
            }
            let Some(mut service) = service(entry, host, &taken, settings, report) else { continue };
            service.canonical = is_owner;
            service.endpoints = match &entry.selector {
                Some(selector) => selected(entry, selector, objects, pods, settings),
                None => inline(entry, host, settings, model, &mut known),
            };
            model.services.push(service);
        }
    }
}

/// WorkloadEntries that a Service selects are its endpoints, as pods are.
fn add_to_services(objects: &Objects, settings: &Settings, model: &mut Model) {
    let mut entries: HashMap<&str, Vec<(&WorkloadEntry, Labels)>> = HashMap::new();
    for entry in &objects.workload_entries {
        entries.entry(&entry.meta.namespace).or_default().push((entry, entry.labels()));
    }
    if entries.is_empty() {
        return;
    }
    let mut services: HashMap<ServiceKey, &mut model::Service> =
        model.services.iter_mut().map(|service| (service.key.clone(), service)).collect();
    for service in &objects.services {
        let (Some(selector), Some(entries)) = (&service.selector, entries.get(&*service.meta.namespace))
        else {
            continue;
        };
        let Some(of_model) = services.get_mut(&service.key(settings)) else { continue };
        let behind = entries.iter().filter(|(_, labels)| selects(selector, labels));
        of_model.endpoints.extend(behind.map(|(entry, _)| Endpoint {
            workload: entry.uid(settings),
            ports: ports_of_service(service, &entry.entry),
            health: entry.health,
        }));
    }
}

/// A target port that is named is what the entry gives that name; a number stays. Source: Istio's address index.
fn ports_of_service(service: &Service, entry: &Entry) -> BTreeMap<u16, u16> {
    let target = |port: &super::service::Port| match &port.target {
        Target::Name(name) => entry.ports.get(name).copied(),
        Target::Number(_) => None,
    };
    service.ports.iter().filter_map(|port| Some((port.port, target(port)?))).collect()
}

/// Addresses that a ServiceEntry cannot have, with their owners.
fn taken(model: &Model) -> HashMap<IpAddr, Arc<str>> {
    let is_pod = |workload: &&model::Workload| workload.uid.0.contains("//Pod/") && !workload.host_network;
    let pods = model.workloads.iter().filter(is_pod);
    let of_pods = pods.flat_map(|pod| pod.addresses.iter().map(|ip| (*ip, Arc::from(pod.uid.to_string()))));
    let services = model.services.iter();
    let of_services =
        services.flat_map(|s| s.vips.iter().map(|ip| (*ip, Arc::from(format!("Service {}", s.key)))));
    of_pods.chain(of_services).collect()
}

/// Of several ServiceEntries with one host, the oldest has it.
fn owners(objects: &Objects) -> HashMap<Arc<str>, &ServiceEntry> {
    let age = |entry: &ServiceEntry| (Arc::clone(&entry.meta.created), entry.meta.key());
    let mut owners: HashMap<Arc<str>, &ServiceEntry> = HashMap::new();
    for entry in &objects.service_entries {
        for host in &entry.hosts {
            match owners.get(host) {
                Some(other) if age(other) <= age(entry) => {}
                _ => drop(owners.insert(Arc::clone(host), entry)),
            }
        }
    }
    owners
}

/// The service of one host; none, with a warning, if the name is the cluster's.
fn service(
    entry: &ServiceEntry,
    host: &Arc<str>,
    taken: &HashMap<IpAddr, Arc<str>>,
    settings: &Settings,
    report: &Report,
) -> Option<model::Service> {
    let at = &entry.meta.at;
    if entry.resolution == Resolution::DynamicDns {
        let seen = "DYNAMIC_DNS is not supported";
        let what = "waypoints send nothing to its hosts, rather than otherwise; name each host, with DNS";
        report.warning(at.about("spec.resolution", seen, what));
    }
    if host.ends_with(&format!(".svc.{}", settings.cluster_domain)) {
        let seen = format!("{host} is a name of the cluster's");
        report.warning(at.about("spec.hosts", seen, "it has no effect: only Services have such names"));
        return None;
    }
    let takes = |ip: IpAddr| match taken.get(&ip) {
        None => true,
        Some(owner) => {
            let seen = format!("{ip}, which {owner} has");
            report.warning(at.about(
                "spec.addresses",
                seen,
                "it is left out; allowed: an address of its own",
            ));
            false
        }
    };
    Some(entry.model(host, takes))
}

/// Endpoints that the object itself has, or the host name as one, and the workloads that stand for them.
fn inline(
    entry: &ServiceEntry,
    host: &Arc<str>,
    settings: &Settings,
    model: &mut Model,
    known: &mut HashSet<WorkloadUid>,
) -> Vec<Endpoint> {
    let implicit =
        (entry.resolution == Resolution::Dns && entry.endpoints.is_empty()).then(|| Entry::of_hostname(host));
    let mut endpoints = Vec::new();
    for of in entry.endpoints.iter().chain(&implicit) {
        let uid = uid_of_inline(entry, of, settings);
        let Some(workload) = of.workload(uid.clone(), &entry.meta, Health::Healthy, settings) else {
            continue;
        };
        endpoints.push(Endpoint { workload: uid.clone(), ports: ports(entry, of), health: Health::Healthy });
        if known.insert(uid) {
            model.workloads.push(workload);
        }
    }
    endpoints
}

/// Key of the workload that an inline endpoint is.
pub(super) fn uid_of_inline(entry: &ServiceEntry, of: &Entry, settings: &Settings) -> WorkloadUid {
    let address = match &of.address {
        EntryAddress::Ip(ip) => ip.to_string(),
        EntryAddress::Hostname(name) => name.to_string(),
    };
    let key = entry.meta.key();
    WorkloadUid(format!("{}/networking.istio.io/ServiceEntry/{key}/{address}", settings.cluster).into())
}

/// Ports that an entry has in place of the service's own targets.
fn ports(entry: &ServiceEntry, of: &Entry) -> BTreeMap<u16, u16> {
    let other = |port: &EntryPort| of.ports.get(&port.name).copied().filter(|other| *other != port.target);
    entry.ports.iter().filter_map(|port| Some((port.number, other(port)?))).collect()
}

/// Pods and WorkloadEntries of its namespace that have these labels; without any demand, none.
fn selected(
    entry: &ServiceEntry,
    selector: &Labels,
    objects: &Objects,
    pods: &Pods<'_>,
    settings: &Settings,
) -> Vec<Endpoint> {
    if selector.is_empty() {
        return Vec::new();
    }
    let of_pods = pods.labelled.selected(&entry.meta.namespace, selector).map(|pod| Endpoint {
        workload: pod.uid(settings),
        ports: BTreeMap::new(),
        health: pod.health,
    });
    let entries = objects
        .workload_entries
        .iter()
        .filter(|of| of.meta.namespace == entry.meta.namespace && selects(selector, &of.labels()));
    let of_entries = entries.map(|of| Endpoint {
        workload: of.uid(settings),
        ports: ports(entry, &of.entry),
        health: of.health,
    });
    of_pods.chain(of_entries).collect()
}
