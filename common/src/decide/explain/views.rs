//! Both sides as they were understood, and each endpoint of the service with the reason it is in or out.

use std::net::{IpAddr, SocketAddr};

use super::answer::{EndpointView, Party};
use super::names::{Destination, Source};
use super::route::{is_captured, name_of, stranger};
use crate::decide::Outbound;
use crate::decide::endpoint::{Candidate, Reason, candidate};
use crate::model::{Endpoint, Service, Workload};
use crate::state::Snapshot;

pub(super) fn source_party(snapshot: &Snapshot, from: &Source) -> Party {
    let addresses = from.addresses.iter().map(ToString::to_string).collect();
    match &from.workload {
        Some(workload) => {
            let mut party =
                Party { asked: from.asked.clone(), addresses, ..workload_party(snapshot, workload) };
            if let Some(service) = &from.service {
                party.enrolment.push_str(&format!(" (one of the pods of service {})", service.name));
            }
            party
        }
        None => Party {
            asked: from.asked.clone(),
            kind: "address".into(),
            name: from.addresses.first().map(ToString::to_string).unwrap_or_default(),
            addresses,
            enrolment: "unknown to the mesh: outside the cluster, a node, or a pod with its node's network"
                .into(),
            ..Party::default()
        },
    }
}

fn workload_party(snapshot: &Snapshot, workload: &Workload) -> Party {
    let not = snapshot.background().not_captured.get(&workload.uid);
    Party {
        kind: "pod".into(),
        name: name_of(workload),
        identity: is_captured(workload).then(|| workload.identity.to_string()),
        enrolment: match not {
            _ if is_captured(workload) => "in the mesh".to_owned(),
            Some(why) => format!("outside the mesh: {why}"),
            None => "outside the mesh".to_owned(),
        },
        node: workload.node.to_string(),
        ..Party::default()
    }
}

pub(super) fn destination_party(snapshot: &Snapshot, to: &Destination) -> Party {
    let asked = to.asked.clone();
    let addresses: Vec<String> = to.dialled.iter().map(ToString::to_string).collect();
    match (&to.service, &to.workload) {
        (Some(service), _) => Party {
            asked,
            kind: "service".into(),
            name: format!("{}.{}", service.name, service.key.namespace),
            addresses,
            ..Party::default()
        },
        (None, Some(workload)) => Party { asked, addresses, ..workload_party(snapshot, workload) },
        (None, None) => Party {
            asked,
            kind: "address".into(),
            name: addresses.first().cloned().unwrap_or_default(),
            addresses,
            enrolment: "unknown to the mesh".into(),
            ..Party::default()
        },
    }
}

/// Each endpoint of the service, with the reason it may be chosen or not.
pub(super) fn endpoints(snapshot: &Snapshot, from: &Source, to: &Destination) -> Vec<EndpointView> {
    let Some(service) = &to.service else { return Vec::new() };
    let fallback = SocketAddr::new(from.addresses.first().copied().unwrap_or(IpAddr::from([0; 4])), 0);
    let destination = to.dialled.first().copied().unwrap_or(fallback);
    let Some(source) = from.workload.clone().or_else(|| stranger(snapshot, service, from)) else {
        return Vec::new();
    };
    let facts = Outbound { source: &source, destination, avoid: &[], failing: &[], pick: 0 };
    let looked: Vec<_> = service
        .endpoints
        .iter()
        .map(|endpoint| (endpoint, candidate(snapshot, service, endpoint, &facts)))
        .collect();
    let nearest = looked.iter().filter_map(|(_, found)| found.as_ref().ok()).map(Candidate::preference).max();
    let view = |(endpoint, found): &(&Endpoint, Result<Candidate<'_>, Reason>)| {
        let workload = snapshot.workload(&endpoint.workload);
        let name = workload.map_or_else(|| endpoint.workload.to_string(), |w| name_of(w));
        match found {
            Ok(found) => {
                let is_in = Some(found.preference()) == nearest && !found.withheld;
                let reason = match (is_in, found.withheld) {
                    (true, _) => "ready",
                    (false, true) => "ready, but outside the mesh, and may not get plaintext",
                    (false, false) => "ready, but farther away: only if no nearer one is left",
                };
                EndpointView {
                    workload: name,
                    target: found.target.to_string(),
                    is_in,
                    reason: reason.to_owned(),
                    fix: String::new(),
                }
            }
            Err(reason) => {
                let (reason, fix) = out(snapshot, service, *reason, (&name, destination.port()));
                EndpointView { workload: name, target: String::new(), is_in: false, reason, fix }
            }
        }
    };
    looked.iter().map(view).collect()
}

/// Why an endpoint is out, and what would bring it in.
fn out(
    snapshot: &Snapshot,
    service: &Service,
    reason: Reason,
    (name, port): (&str, u16),
) -> (String, String) {
    let target = snapshot.background().port_names.get(&(service.key.clone(), port));
    let both = |reason: &str, fix: String| (reason.to_owned(), fix);
    match (reason, target) {
        (Reason::Unknown, _) => both("nothing is known of this workload", String::new()),
        (Reason::Unhealthy, _) => both(
            "not ready",
            format!("make {name} ready: see its readiness probe and its log (kubectl describe pod)"),
        ),
        (Reason::Terminating, _) => both(
            "terminating: it is being deleted",
            format!("wait for the pod that replaces {name}, or see why none does"),
        ),
        (Reason::NoWeight, _) => both("its weight is 0", format!("give {name} a weight above 0")),
        (Reason::NoPort, Some(target)) => (
            format!("none of its containers has a port named {target:?}, which is the targetPort of {port}"),
            format!(
                "name a container port of {name} {target:?}, or write the port's number as targetPort of {port} in \
                 Service {}/{}",
                service.key.namespace, service.name
            ),
        ),
        (Reason::NoPort, None) => {
            (format!("port {port} of the service leads to no port of it"), String::new())
        }
        (Reason::NoAddress, _) => both(
            "it has no address of a family that the service uses",
            format!("set ipFamilies of Service {}/{} to the pods' own", service.key.namespace, service.name),
        ),
        (Reason::OtherNetwork, _) => {
            both("it is in another network, and networks are not connected", String::new())
        }
        (Reason::OutOfScope, _) => both(
            "the service keeps to endpoints near the source (internalTrafficPolicy: Local)",
            format!(
                "run a pod of it on the source's node, or set internalTrafficPolicy of Service {}/{} to Cluster",
                service.key.namespace, service.name
            ),
        ),
    }
}
