//! A service of the file.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::kube::reader::Field;
use super::super::kube::yaml;
use super::{gateway, number, optional_gateway, ports, required, texts};
use crate::model::{
    HealthPolicy, IpFamilies, LoadBalancing, LocalityScope, Mode, Service, ServicePort, Visibility,
    WeightedWaypoint,
};
use crate::types::ServiceKey;

const KEYS: [&str; 13] = [
    "name",
    "namespace",
    "hostname",
    "vips",
    "cidrVips",
    "ports",
    "subjectAltNames",
    "waypoint",
    "weightedWaypoints",
    "loadBalancer",
    "ipFamilies",
    "canonical",
    "visibility",
];

pub(super) fn read(of: &Field<'_>, network: &str) -> Option<Service> {
    of.only(&KEYS);
    let (name, namespace, hostname) =
        (required(of, "name"), required(of, "namespace"), required(of, "hostname"));
    for key in ["vips", "ports"] {
        if of.get(key).is_none() {
            of.problem(format!("no {key}"), format!("required: {key}, empty if there are none"));
        }
    }
    let is_here = |of: &str| network.is_empty() || of == network;
    let vips =
        of.items("vips").iter().filter_map(vip).filter(|(of, _)| is_here(of)).map(|(_, ip)| ip).collect();
    let ranges = of.items("cidrVips");
    let cidr_vips =
        ranges.iter().filter_map(range).filter(|(of, _)| is_here(of)).map(|(_, range)| range.trunc());
    let cidr_vips = cidr_vips.collect();
    let singles =
        of.items("vips").iter().filter_map(vip).map(|(of, ip)| (of, IpNet::from(ip))).collect::<Vec<_>>();
    let elsewhere =
        singles.into_iter().chain(ranges.iter().filter_map(range).map(|(of, range)| (of, range.trunc())));
    let elsewhere = elsewhere.filter(|(of, _)| !is_here(of)).map(|(of, range)| (of.into(), range)).collect();
    let port = |(port, target)| (port, ServicePort { target, name: "".into() });
    let ports =
        of.get("ports").map(|field| ports(&field)).unwrap_or_default().into_iter().map(port).collect();
    let families = [("IPv4", IpFamilies::V4), ("IPv6", IpFamilies::V6), ("Dual", IpFamilies::Dual)];
    let visibilities = [("Public", Visibility::Public), ("Namespace", Visibility::Namespace)];
    let ip_families = of.get("ipFamilies").and_then(|field| field.one_of(&families));
    let visibility = of.get("visibility").and_then(|field| field.one_of(&visibilities));
    Some(Service {
        key: ServiceKey { namespace: namespace?.into(), hostname: hostname?.into() },
        name: name?.into(),
        vips,
        cidr_vips,
        elsewhere,
        ports,
        subject_alt_names: texts(of, "subjectAltNames").iter().filter_map(|name| name.parse().ok()).collect(),
        waypoint: optional_gateway(of, "waypoint"),
        weighted_waypoints: of.items("weightedWaypoints").iter().filter_map(weighted).collect(),
        load_balancing: of.get("loadBalancer").and_then(|field| load_balancing(&field)).unwrap_or_default(),
        ip_families: ip_families.unwrap_or(IpFamilies::Automatic),
        canonical: of.flag_at("canonical"),
        visibility: visibility.unwrap_or(Visibility::Public),
        endpoints: Vec::new(),
    })
}

/// `<network>/<address>`, where the network may be empty.
fn vip<'a>(field: &Field<'a>) -> Option<(&'a str, IpAddr)> {
    let (network, ip) = field.text()?.split_once('/').unwrap_or_default();
    let found = ip.parse().ok();
    if found.is_none() {
        field.refuse("<network>/<address>, for example /10.96.1.1");
    }
    Some((network, found?))
}

/// `{network: …, cidr: …}`, or `<network>/<range>`.
fn range<'a>(field: &Field<'a>) -> Option<(&'a str, IpNet)> {
    if let yaml::Kind::Mapping(_) = &field.node().kind {
        field.only(&["network", "cidr"]);
        required(field, "cidr")?;
        return Some((field.text_at("network").unwrap_or(""), field.get("cidr")?.block()?));
    }
    let (network, range) = field.text()?.split_once('/').unwrap_or_default();
    let found = range.parse().ok();
    if found.is_none() {
        field.refuse("{network: <network>, cidr: <range>}");
    }
    Some((network, found?))
}

fn weighted(of: &Field<'_>) -> Option<WeightedWaypoint> {
    of.only(&["destination", "weight"]);
    let gateway = gateway(&of.get("destination")?)?;
    Some(WeightedWaypoint { gateway, weight: of.get("weight").map_or(Some(0), |field| number(&field))? })
}

fn load_balancing(of: &Field<'_>) -> Option<LoadBalancing> {
    of.only(&["routingPreferences", "mode", "healthPolicy"]);
    let scopes = [
        ("Region", LocalityScope::Region),
        ("Zone", LocalityScope::Zone),
        ("Subzone", LocalityScope::Subzone),
        ("Node", LocalityScope::Node),
        ("Cluster", LocalityScope::Cluster),
        ("Network", LocalityScope::Network),
    ];
    let modes = [
        ("Standard", Mode::Standard),
        ("Strict", Mode::Strict),
        ("Failover", Mode::Failover),
        ("Passthrough", Mode::Passthrough),
    ];
    let policies = [("OnlyHealthy", HealthPolicy::OnlyHealthy), ("AllowAll", HealthPolicy::AllowAll)];
    for key in ["routingPreferences", "mode", "healthPolicy"] {
        if of.get(key).is_none() {
            of.problem(format!("no {key}"), format!("required: {key}"));
        }
    }
    Some(LoadBalancing {
        routing_preference: of.items("routingPreferences").iter().filter_map(|f| f.one_of(&scopes)).collect(),
        mode: of.get("mode")?.one_of(&modes)?,
        health_policy: of.get("healthPolicy")?.one_of(&policies)?,
    })
}
