//! A workload of the file, and the services that it is behind.

use std::collections::BTreeMap;

use super::super::kube::reader::Field;
use super::{number, optional_gateway, policy_key, ports, required, service_key, text_or};
use crate::model::{
    ApplicationTunnel, Enrolment, Health, Locality, TunnelPreamble, TunnelProtocol, Workload, WorkloadType,
};
use crate::types::{ServiceKey, SpiffeId, WorkloadUid};

const KEYS: [&str; 24] = [
    "uid",
    "name",
    "namespace",
    "trustDomain",
    "serviceAccount",
    "workloadIps",
    "protocol",
    "networkMode",
    "network",
    "networkGateway",
    "node",
    "nativeTunnel",
    "workloadName",
    "workloadType",
    "canonicalName",
    "canonicalRevision",
    "hostname",
    "clusterId",
    "status",
    "capacity",
    "locality",
    "authorizationPolicies",
    "waypoint",
    "applicationTunnel",
];

type Services = Vec<(ServiceKey, BTreeMap<u16, u16>)>;

pub(super) fn read(of: &Field<'_>) -> Option<(Workload, Services)> {
    let known: Vec<&str> = KEYS.into_iter().chain(["services"]).collect();
    of.only(&known);
    let namespace = required(of, "namespace");
    for key in ["workloadIps", "services"] {
        if of.get(key).is_none() {
            of.problem(format!("no {key}"), format!("required: {key}, empty if there are none"));
        }
    }
    let addresses = of.items("workloadIps").iter().filter_map(Field::ip).collect();
    let services = of.get("services").map(|field| field.entries()).unwrap_or_default();
    let services =
        services.into_iter().filter_map(|(key, list)| Some((service_key(&list, key)?, ports(&list))));
    let services = services.collect();
    let (namespace, name) = (namespace?, text_or(of, "name", ""));
    let account = text_or(of, "serviceAccount", "default");
    let identity = SpiffeId::new(&text_or(of, "trustDomain", "cluster.local"), namespace, &account);
    let identity = identity.map_err(|error| of.problem(error.to_string(), "")).ok()?;
    let cluster = text_or(of, "clusterId", "Kubernetes");
    let uid = match of.text_at("uid") {
        Some(uid) => uid.into(),
        None => format!("{cluster}//Pod/{namespace}/{name}").into(),
    };
    let workload = Workload {
        uid: WorkloadUid(uid),
        name,
        namespace: namespace.into(),
        identity,
        addresses,
        protocol: one_of(of, "protocol", &PROTOCOLS, TunnelProtocol::Tcp),
        enrolment: Enrolment::Unknown,
        node: text_or(of, "node", ""),
        canonical_name: text_or(of, "canonicalName", ""),
        canonical_revision: text_or(of, "canonicalRevision", ""),
        workload_type: one_of(of, "workloadType", &TYPES, WorkloadType::Deployment),
        workload_name: text_or(of, "workloadName", ""),
        cluster,
        network: text_or(of, "network", ""),
        locality: of.get("locality").map(|field| locality(&field)).unwrap_or_default(),
        health: one_of(
            of,
            "status",
            &[("Healthy", Health::Healthy), ("Unhealthy", Health::Unhealthy)],
            Health::Healthy,
        ),
        host_network: one_of(of, "networkMode", &[("Standard", false), ("HostNetwork", true)], false),
        capacity: of.get("capacity").and_then(|field| number(&field)).unwrap_or(1),
        hostname: text_or(of, "hostname", ""),
        waypoint: optional_gateway(of, "waypoint"),
        network_gateway: optional_gateway(of, "networkGateway"),
        application_tunnel: of.get("applicationTunnel").and_then(|field| application_tunnel(&field)),
        native_tunnel: of.flag_at("nativeTunnel"),
        authorization_policies: of.items("authorizationPolicies").iter().filter_map(policy_key).collect(),
    };
    Some((workload, services))
}

const PROTOCOLS: [(&str, TunnelProtocol); 2] =
    [("HBONE", TunnelProtocol::Hbone), ("TCP", TunnelProtocol::Tcp)];
const TYPES: [(&str, WorkloadType); 4] = [
    ("deployment", WorkloadType::Deployment),
    ("cronjob", WorkloadType::CronJob),
    ("pod", WorkloadType::Pod),
    ("job", WorkloadType::Job),
];

fn one_of<T: Copy>(of: &Field<'_>, key: &str, table: &[(&str, T)], default: T) -> T {
    of.get(key).and_then(|field| field.one_of(table)).unwrap_or(default)
}

fn locality(of: &Field<'_>) -> Locality {
    of.only(&["region", "zone", "subzone"]);
    Locality {
        region: text_or(of, "region", ""),
        zone: text_or(of, "zone", ""),
        subzone: text_or(of, "subzone", ""),
    }
}

fn application_tunnel(of: &Field<'_>) -> Option<ApplicationTunnel> {
    of.only(&["protocol", "port"]);
    let known = [("NONE", TunnelPreamble::None), ("PROXY", TunnelPreamble::Proxy)];
    let protocol = of.get("protocol").map_or(Some(TunnelPreamble::None), |field| field.one_of(&known))?;
    let port = of.get("port").map_or(Some(0), |field| field.port())?;
    Some(ApplicationTunnel { protocol, port })
}
