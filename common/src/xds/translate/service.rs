//! `istio.workload.Service` → [`Service`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Options, Unusable, gateway, ip, optional_gateway, port};
use crate::model::{
    HealthPolicy, IpFamilies, LoadBalancing, LocalityScope, Mode, Service, ServicePort, Visibility,
    WeightedWaypoint,
};
use crate::types::ServiceKey;
use crate::xds::proto::workload as proto;

pub(super) fn translate(message: proto::Service, options: &Options) -> Result<Service, Unusable> {
    if message.hostname.is_empty() {
        return Err(Unusable::Missing("hostname"));
    }
    let Addresses { vips, cidr_vips, elsewhere } = addresses(&message.addresses, options)?;
    Ok(Service {
        key: ServiceKey { namespace: message.namespace.into(), hostname: message.hostname.into() },
        name: message.name.into(),
        vips,
        cidr_vips,
        elsewhere,
        ports: message.ports.iter().map(service_port).collect::<Result<BTreeMap<_, _>, _>>()?,
        // Endpoints here prove SPIFFE identities only; names of other kinds widen nothing.
        subject_alt_names: message.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect(),
        waypoint: optional_gateway("waypoint", message.waypoint)?,
        weighted_waypoints: message.weighted_waypoints.into_iter().map(weighted).collect::<Result<_, _>>()?,
        load_balancing: message
            .load_balancing
            .map_or_else(|| Ok(LoadBalancing::default()), load_balancing)?,
        ip_families: ip_families(message.ip_families)?,
        canonical: message.canonical,
        visibility: visibility(message.visibility),
        endpoints: Vec::new(),
    })
}

#[derive(Default)]
struct Addresses {
    vips: Vec<IpAddr>,
    cidr_vips: Vec<IpNet>,
    elsewhere: Vec<(Arc<str>, IpNet)>,
}

/// An address means something in its own network only: those of others are no addresses that a pod here can dial.
fn addresses(messages: &[proto::NetworkAddress], options: &Options) -> Result<Addresses, Unusable> {
    const FIELD: &str = "addresses";
    let mut all = Addresses::default();
    for message in messages {
        let address = ip(FIELD, &message.address)?;
        let full = if address.is_ipv4() { 32 } else { 128 };
        let length = message.length.unwrap_or(full);
        let too_long = Unusable::PrefixLength { field: FIELD, length };
        let bits = u8::try_from(length).map_err(|_| too_long.clone())?;
        let range = IpNet::new(address, bits).map_err(|_| too_long)?;
        if !options.network.is_empty() && *message.network != *options.network {
            all.elsewhere.push((message.network.as_str().into(), range.trunc()));
            continue;
        }
        match length == full {
            true if address.is_unspecified() => {} // stands for a service without an address
            true => all.vips.push(address),
            false => all.cidr_vips.push(range.trunc()),
        }
    }
    Ok(all)
}

fn service_port(message: &proto::Port) -> Result<(u16, ServicePort), Unusable> {
    let target = port("target_port", message.target_port)?;
    Ok((port("service_port", message.service_port)?, ServicePort { target, name: "".into() }))
}

fn weighted(message: proto::WeightedWaypoint) -> Result<WeightedWaypoint, Unusable> {
    const FIELD: &str = "weighted_waypoints.destination";
    let destination = message.destination.ok_or(Unusable::Missing(FIELD))?;
    Ok(WeightedWaypoint { gateway: gateway(FIELD, destination)?, weight: message.weight })
}

fn load_balancing(message: proto::LoadBalancing) -> Result<LoadBalancing, Unusable> {
    let mode = match message.mode {
        0 => Mode::Standard,
        1 => Mode::Strict,
        2 => Mode::Failover,
        3 => Mode::Passthrough,
        value => return Err(Unusable::UnknownValue { field: "load_balancing.mode", value }),
    };
    let health_policy = match message.health_policy {
        0 => HealthPolicy::OnlyHealthy,
        1 => HealthPolicy::AllowAll,
        value => return Err(Unusable::UnknownValue { field: "load_balancing.health_policy", value }),
    };
    let routing_preference = message.routing_preference.into_iter().map(scope).collect::<Result<_, _>>()?;
    Ok(LoadBalancing { routing_preference, mode, health_policy })
}

fn scope(value: i32) -> Result<LocalityScope, Unusable> {
    Ok(match value {
        1 => LocalityScope::Region,
        2 => LocalityScope::Zone,
        3 => LocalityScope::Subzone,
        4 => LocalityScope::Node,
        5 => LocalityScope::Cluster,
        6 => LocalityScope::Network,
        value => return Err(Unusable::UnknownValue { field: "load_balancing.routing_preference", value }),
    })
}

fn ip_families(value: i32) -> Result<IpFamilies, Unusable> {
    Ok(match value {
        0 => IpFamilies::Automatic,
        1 => IpFamilies::V4,
        2 => IpFamilies::V6,
        3 => IpFamilies::Dual,
        value => return Err(Unusable::UnknownValue { field: "ip_families", value }),
    })
}

/// What is unknown is public, as the protocol has it.
fn visibility(value: i32) -> Visibility {
    match value {
        1 => Visibility::Namespace,
        _ => Visibility::Public,
    }
}
