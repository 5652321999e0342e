//! The waypoint that a connection goes through: which one, and which of its endpoints.
//!
//! What is addressed to a service goes through the service's waypoint, what is addressed to a workload through the
//! workload's; an endpoint that was chosen has no say. A waypoint that is named is never left out: if it is not known or
//! none of its endpoints is ready, the connection is refused. **Source**: l4.md §3.9.

use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoint::{self, Chosen, expected};
use super::next_hop::other_network;
use super::{Choice, NextHop, Outbound, OutboundRefusal, PassedOver};
use crate::model::{GatewayAddress, GatewayDestination, Health, Service, Workload};
use crate::state::Snapshot;

/// A waypoint on the way, and what it stands before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waypoint {
    /// As the service or workload names it.
    pub gateway: GatewayAddress,
    /// The service of which an endpoint was chosen; none if the waypoint is one workload.
    pub service: Option<Arc<Service>>,
    /// The workload that was addressed; none if a service was.
    pub workload: Option<Arc<Workload>>,
}

/// What was addressed and has a waypoint.
#[derive(Clone, Copy)]
pub(super) enum Before<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

/// What a gateway's name or address leads to.
#[derive(Clone, Copy)]
pub(super) enum Found<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

impl Found<'_> {
    /// Whether this workload is the gateway, or one of its endpoints.
    pub(super) fn has(self, workload: &Workload) -> bool {
        match self {
            Self::Service(service) => service.endpoints.iter().any(|e| e.workload == workload.uid),
            Self::Workload(found) => found.uid == workload.uid,
        }
    }
}

/// Services come before workloads; who may see a service does not matter, as the control plane has named it.
pub(super) fn find<'a>(snapshot: &'a Snapshot, gateway: &GatewayDestination) -> Option<Found<'a>> {
    match gateway {
        GatewayDestination::Address { ip, .. } => {
            let at = snapshot.services_at(*ip);
            let service = at.iter().find(|s| s.canonical).or(at.first()).map(Found::Service);
            service.or_else(|| snapshot.workload_by_ip(*ip).map(Found::Workload))
        }
        GatewayDestination::Hostname(key) => {
            let service = snapshot.service(key).map(Found::Service);
            service.or_else(|| snapshot.workload_by_host(key).map(Found::Workload))
        }
    }
}

/// All waypoints that `service` names, those without weight too.
pub(super) fn all_of(service: &Service) -> impl Iterator<Item = &GatewayAddress> {
    service.weighted_waypoints.iter().map(|w| &w.gateway).chain(service.waypoint.as_deref())
}

/// Each waypoint that a connection to `service` may be given to, with the least number that chooses it.
pub(super) fn picks(service: &Service) -> Vec<(&GatewayAddress, u64)> {
    let mut next = 0_u64;
    let weighted = service.weighted_waypoints.iter().map(|w| (&w.gateway, u64::from(w.weight)));
    let chosen = weighted.filter(|(_, weight)| *weight != 0).map(|(gateway, weight)| {
        let first = next;
        next += weight;
        (gateway, first << 32)
    });
    let chosen: Vec<_> = chosen.collect();
    if chosen.is_empty() {
        service.waypoint.as_deref().map(|one| (one, 0)).into_iter().collect()
    } else {
        chosen
    }
}

/// The waypoint of a connection to `service`: among weighted ones `pick` decides.
fn of_service(service: &Service, pick: u64) -> Option<&GatewayAddress> {
    let all = service.weighted_waypoints.as_slice();
    let total: u64 = all.iter().map(|w| u64::from(w.weight)).sum();
    // Other bits than those that decide among endpoints.
    let Some(mut left) = (pick >> 32).checked_rem(total) else { return service.waypoint.as_deref() };
    let chosen = all.iter().find(|w| {
        let weight = u64::from(w.weight);
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    });
    chosen.map(|w| &w.gateway)
}

/// The hop to the waypoint of what was addressed; none if it has none, or if the source is that waypoint.
pub(super) fn hop(
    snapshot: &Snapshot,
    facts: &Outbound<'_>,
    before: Before<'_>,
) -> Option<Result<NextHop, OutboundRefusal>> {
    let gateway = match before {
        Before::Service(service) => of_service(service, facts.pick),
        Before::Workload(workload) => workload.waypoint.as_deref(),
    }?;
    let Some(found) = find(snapshot, &gateway.destination) else {
        let waypoint = gateway.destination.clone();
        return Some(Err(OutboundRefusal::UnknownWaypoint { destination: facts.destination, waypoint }));
    };
    // What a waypoint sends has been through it.
    (!found.has(facts.source)).then(|| through(snapshot, facts, before, (gateway, found)))
}

fn through(
    snapshot: &Snapshot,
    facts: &Outbound<'_>,
    before: Before<'_>,
    (gateway, found): (&GatewayAddress, Found<'_>),
) -> Result<NextHop, OutboundRefusal> {
    let destination = facts.destination;
    // The family of the app's own connection is preferred, whatever its address.
    let at = &Outbound { destination: SocketAddr::new(destination.ip(), gateway.port), ..*facts };
    let (chosen, service) = match found {
        Found::Service(service) => {
            let chosen = endpoint::choose(snapshot, service, at).map_err(|candidates| {
                let mut remote = service.endpoints.iter().filter_map(|e| snapshot.workload(&e.workload));
                match remote.find(|w| w.network != facts.source.network) {
                    Some(workload) if candidates.other_network != 0 => other_network(facts, workload),
                    _ => not_ready(destination, gateway, candidates),
                }
            })?;
            (chosen, Some(service))
        }
        Found::Workload(workload) => {
            if workload.network != facts.source.network {
                return Err(other_network(facts, workload));
            }
            let chosen = itself(at, gateway, workload);
            (chosen.map_err(|candidates| not_ready(destination, gateway, candidates))?, None)
        }
    };
    let Chosen { workload, target: peer, choice: why } = chosen;
    if peer.ip().is_unspecified() {
        let candidates = PassedOver { no_address: 1, ..PassedOver::default() };
        return Err(not_ready(destination, gateway, candidates));
    }
    let expected = expected(&workload, service.map(|s| &**s));
    let (addressed, behind) = match before {
        Before::Service(service) => (Some(Arc::clone(service)), None),
        Before::Workload(workload) => (None, Some(Arc::clone(workload))),
    };
    let waypoint = Waypoint { gateway: gateway.clone(), service: service.cloned(), workload: behind };
    Ok(NextHop::Hbone {
        peer,
        authority: destination,
        expected,
        workload,
        service: addressed,
        why,
        waypoint: Some(Box::new(waypoint)),
    })
}

/// A waypoint that is one workload and not a service of several.
fn itself(
    facts: &Outbound<'_>,
    gateway: &GatewayAddress,
    workload: &Arc<Workload>,
) -> Result<Chosen, PassedOver> {
    let none = PassedOver::default();
    match workload.health {
        Health::Healthy => {}
        Health::Unhealthy => return Err(PassedOver { unhealthy: 1, ..none }),
        Health::Terminating => return Err(PassedOver { terminating: 1, ..none }),
    }
    let named = match gateway.destination {
        GatewayDestination::Address { ip, .. } => Some(ip),
        GatewayDestination::Hostname(_) => None,
    };
    let wanted = facts.destination.ip();
    let near = workload.addresses.iter().find(|ip| ip.is_ipv4() == wanted.is_ipv4());
    let ip = named.or_else(|| near.or(workload.addresses.first()).copied());
    let ip = ip.ok_or(PassedOver { no_address: 1, ..none })?;
    let target = SocketAddr::new(ip, gateway.port);
    Ok(Chosen { workload: Arc::clone(workload), target, choice: Choice::Requested })
}

fn not_ready(destination: SocketAddr, gateway: &GatewayAddress, candidates: PassedOver) -> OutboundRefusal {
    let waypoint = gateway.destination.clone();
    OutboundRefusal::NoHealthyWaypoint { destination, waypoint, candidates }
}

#[cfg(test)]
mod tests;
