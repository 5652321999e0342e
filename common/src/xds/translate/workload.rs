//! `istio.workload.Workload` → [`Workload`] and its services.

use std::sync::Arc;

use super::{Address, Membership, Unusable, ip, optional_gateway, port, service_key};
use crate::model::{
    ApplicationTunnel, Enrolment, Health, Locality, TunnelPreamble, TunnelProtocol, Workload, WorkloadType,
};
use crate::types::{PolicyKey, SpiffeId, WorkloadUid};
use crate::xds::proto::workload as proto;

const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_CLUSTER: &str = "Kubernetes";

pub(super) fn translate(message: proto::Workload) -> Result<Address, Unusable> {
    if message.uid.is_empty() {
        return Err(Unusable::Missing("uid"));
    }
    let identity = SpiffeId::new(
        or(&message.trust_domain, DEFAULT_TRUST_DOMAIN),
        &message.namespace,
        or(&message.service_account, DEFAULT_SERVICE_ACCOUNT),
    )?;
    let addresses = message.addresses.iter().map(|bytes| ip("addresses", bytes));
    let addresses = addresses.filter(|ip| !ip.as_ref().is_ok_and(|ip| ip.is_unspecified()));
    let services = message.services.into_iter().map(membership).collect::<Result<_, _>>()?;
    let workload = Workload {
        uid: WorkloadUid(message.uid.into()),
        name: message.name.into(),
        namespace: message.namespace.into(),
        identity,
        addresses: addresses.collect::<Result<_, _>>()?,
        protocol: protocol(message.tunnel_protocol)?,
        enrolment: Enrolment::Unknown,
        node: message.node.into(),
        canonical_name: message.canonical_name.into(),
        canonical_revision: message.canonical_revision.into(),
        workload_type: workload_type(message.workload_type),
        workload_name: message.workload_name.into(),
        cluster: or(&message.cluster_id, DEFAULT_CLUSTER).into(),
        network: message.network.into(),
        locality: locality(message.locality.unwrap_or_default()),
        health: health(message.status)?,
        host_network: host_network(message.network_mode)?,
        capacity: message.capacity.map_or(1, |capacity| capacity.value),
        hostname: message.hostname.into(),
        waypoint: optional_gateway("waypoint", message.waypoint)?,
        network_gateway: optional_gateway("network_gateway", message.network_gateway)?,
        application_tunnel: message.application_tunnel.map(application_tunnel).transpose()?,
        native_tunnel: message.native_tunnel,
        authorization_policies: message.authorization_policies.iter().map(|name| policy_key(name)).collect(),
    };
    Ok(Address::Workload(Box::new(workload), services))
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn membership((name, list): (String, proto::PortList)) -> Result<Membership, Unusable> {
    let mut ports = Vec::with_capacity(list.ports.len());
    for one in list.ports {
        ports.push((port("service_port", one.service_port)?, port("target_port", one.target_port)?));
    }
    Ok(Membership { service: service_key(&name)?, ports })
}

fn protocol(value: i32) -> Result<TunnelProtocol, Unusable> {
    match value {
        0 => Ok(TunnelProtocol::Tcp),
        1 => Ok(TunnelProtocol::Hbone),
        2 => Err(Unusable::NotSupported("tunnel_protocol LEGACY_ISTIO_MTLS")),
        value => Err(Unusable::UnknownValue { field: "tunnel_protocol", value }),
    }
}

/// Only telemetry reads it.
fn workload_type(value: i32) -> WorkloadType {
    match value {
        1 => WorkloadType::CronJob,
        2 => WorkloadType::Pod,
        3 => WorkloadType::Job,
        _ => WorkloadType::Deployment,
    }
}

fn health(value: i32) -> Result<Health, Unusable> {
    match value {
        0 => Ok(Health::Healthy),
        1 => Ok(Health::Unhealthy),
        value => Err(Unusable::UnknownValue { field: "status", value }),
    }
}

fn host_network(value: i32) -> Result<bool, Unusable> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(Unusable::UnknownValue { field: "network_mode", value }),
    }
}

fn application_tunnel(message: proto::ApplicationTunnel) -> Result<ApplicationTunnel, Unusable> {
    let protocol = match message.protocol {
        0 => TunnelPreamble::None,
        1 => TunnelPreamble::Proxy,
        value => return Err(Unusable::UnknownValue { field: "application_tunnel.protocol", value }),
    };
    Ok(ApplicationTunnel { protocol, port: port("application_tunnel.port", message.port)? })
}

fn locality(message: proto::Locality) -> Locality {
    let proto::Locality { region, zone, subzone } = message;
    Locality { region: region.into(), zone: zone.into(), subzone: subzone.into() }
}

/// A name that is none of a policy stays: it is missing then, and what is missing is not taken for harmless.
fn policy_key(name: &str) -> PolicyKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let [namespace, name] = [namespace, name].map(Arc::from);
    PolicyKey { namespace, name }
}
