//! Workloads, services and policies in the form of the dump. What is empty is left out where the reference leaves it out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};

use crate::model::{
    Action, ApplicationTunnel, Authorization, Background, Clause, Endpoint, GatewayAddress, Health,
    HealthPolicy, IpFamilies, LoadBalancing, Locality, LocalityScope, Match, Mode, Scope, Service,
    ServiceAccountMatch, StringMatch, TunnelPreamble, TunnelProtocol, Visibility, Workload,
};

fn none(text: &&str) -> bool {
    text.is_empty()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkloadShape<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<Value>,
    protocol: &'static str,
    network_mode: &'static str,
    uid: &'a str,
    #[serde(skip_serializing_if = "none")]
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "none")]
    trust_domain: &'a str,
    #[serde(skip_serializing_if = "none")]
    service_account: &'a str,
    #[serde(skip_serializing_if = "none")]
    network: &'a str,
    #[serde(skip_serializing_if = "none")]
    workload_name: &'a str,
    workload_type: &'static str,
    #[serde(skip_serializing_if = "none")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "none")]
    canonical_revision: &'a str,
    #[serde(skip_serializing_if = "none")]
    node: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<String>,
    status: &'static str,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    capacity: u32,
    #[serde(skip_serializing_if = "none")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native_tunnel: bool,
}

pub(super) fn workload<'a>(w: &'a Workload, services: &[Arc<Service>]) -> WorkloadShape<'a> {
    let mut services: Vec<String> = services.iter().map(|s| s.key.to_string()).collect();
    services.sort();
    WorkloadShape {
        workload_ips: &w.addresses,
        waypoint: w.waypoint.as_deref().map(gateway),
        network_gateway: w.network_gateway.as_deref().map(gateway),
        protocol: match w.protocol {
            TunnelProtocol::Hbone => "HBONE",
            TunnelProtocol::Tcp => "TCP",
        },
        network_mode: if w.host_network { "HostNetwork" } else { "Standard" },
        uid: &w.uid.0,
        name: &w.name,
        namespace: &w.namespace,
        trust_domain: w.identity.trust_domain(),
        service_account: w.identity.service_account(),
        network: &w.network,
        workload_name: &w.workload_name,
        workload_type: w.workload_type.as_str(),
        canonical_name: &w.canonical_name,
        canonical_revision: &w.canonical_revision,
        node: &w.node,
        authorization_policies: w.authorization_policies.iter().map(ToString::to_string).collect(),
        status: status(w.health),
        cluster_id: &w.cluster,
        locality: (w.locality != Locality::default()).then(|| {
            json!({"region": *w.locality.region, "zone": *w.locality.zone, "subzone": *w.locality.subzone})
        }),
        application_tunnel: w.application_tunnel.map(application_tunnel),
        services,
        capacity: w.capacity,
        hostname: &w.hostname,
        native_tunnel: w.native_tunnel,
    }
}

fn gateway(gateway: &GatewayAddress) -> Value {
    json!({"destination": gateway.destination.to_string(), "hboneMtlsPort": gateway.port})
}

fn application_tunnel(tunnel: ApplicationTunnel) -> Value {
    let protocol = match tunnel.protocol {
        TunnelPreamble::None => "NONE",
        TunnelPreamble::Proxy => "PROXY",
    };
    json!({"protocol": protocol, "port": Some(tunnel.port).filter(|port| *port != 0)})
}

fn status(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy | Health::Terminating => "Unhealthy",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceShape<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<Value>,
    ports: BTreeMap<u16, u16>,
    endpoints: BTreeMap<&'a str, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subject_alt_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: &'static str,
}

pub(super) fn service<'a>(s: &'a Service, network: &str) -> ServiceShape<'a> {
    ServiceShape {
        name: &s.name,
        namespace: &s.key.namespace,
        hostname: &s.key.hostname,
        vips: vips(s, network),
        cidr_vips: ranges(s, network),
        ports: s.ports.iter().map(|(port, to)| (*port, to.target)).collect(),
        endpoints: s.endpoints.iter().map(|e| (&*e.workload.0, endpoint(s, e))).collect(),
        subject_alt_names: s.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: s.waypoint.as_deref().map(gateway),
        weighted_waypoints: s
            .weighted_waypoints
            .iter()
            .map(|one| json!({"destination": gateway(&one.gateway), "weight": one.weight}))
            .collect(),
        load_balancer: (s.load_balancing != LoadBalancing::default())
            .then(|| load_balancer(&s.load_balancing)),
        ip_families: match s.ip_families {
            IpFamilies::Automatic => None,
            IpFamilies::V4 => Some("IPv4"),
            IpFamilies::V6 => Some("IPv6"),
            IpFamilies::Dual => Some("Dual"),
        },
        canonical: s.canonical,
        visibility: match s.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        },
    }
}

fn is_single(range: IpNet) -> bool {
    range.prefix_len() == range.max_prefix_len()
}

fn vips(s: &Service, network: &str) -> Vec<String> {
    let others = s.elsewhere.iter().filter(|(_, range)| is_single(*range));
    let others = others.map(|(network, range)| format!("{network}/{}", range.addr()));
    s.vips.iter().map(|ip| format!("{network}/{ip}")).chain(others).collect()
}

fn ranges(s: &Service, network: &str) -> Vec<Value> {
    let here = s.cidr_vips.iter().map(|range| (network, range));
    let others = s.elsewhere.iter().filter(|(_, range)| !is_single(*range));
    let all = here.chain(others.map(|(network, range)| (&**network, range)));
    all.map(|(network, range)| json!({"network": network, "cidr": range.to_string()})).collect()
}

/// A workload as a local file has it: with its ports behind each service.
pub(super) fn local_workload(w: &Workload, services: &[Arc<Service>]) -> Value {
    let behind = services.iter().map(|s| {
        let own = s.endpoints.iter().filter(|endpoint| endpoint.workload == w.uid);
        let ports: BTreeMap<u16, u16> = own.flat_map(|endpoint| ports(s, endpoint)).collect();
        (s.key.to_string(), json!(ports))
    });
    let mut shown = json!(workload(w, &[]));
    if let Value::Object(keys) = &mut shown {
        keys.insert("services".to_owned(), Value::Object(behind.collect()));
    }
    shown
}

/// A service as a local file has it.
pub(super) fn local_service(s: &Service, network: &str) -> Value {
    let mut shown = json!(service(s, network));
    if let Value::Object(keys) = &mut shown {
        keys.remove("endpoints");
    }
    shown
}

/// Endpoints of services that are not known.
pub(super) fn staged(background: &Background) -> Value {
    let one = |e: &Endpoint| (e.workload.0.to_string(), endpoint_of(e, &e.ports));
    let of = |all: &Vec<Endpoint>| Value::Object(all.iter().map(one).collect());
    Value::Object(background.staged.iter().map(|(key, all)| (key.to_string(), of(all))).collect())
}

fn ports<'a>(service: &'a Service, endpoint: &'a Endpoint) -> impl Iterator<Item = (u16, u16)> + 'a {
    let own = |port: &u16| endpoint.ports.get(port).copied();
    service.ports.iter().filter_map(move |(port, to)| {
        Some((*port, own(port).or(Some(to.target).filter(|target| *target != 0))?))
    })
}

fn endpoint_of(endpoint: &Endpoint, ports: &BTreeMap<u16, u16>) -> Value {
    let ports: BTreeMap<String, u16> = ports.iter().map(|(port, to)| (port.to_string(), *to)).collect();
    json!({"workloadUid": *endpoint.workload.0, "port": ports, "status": status(endpoint.health)})
}

fn endpoint(service: &Service, endpoint: &Endpoint) -> Value {
    endpoint_of(endpoint, &ports(service, endpoint).collect())
}

fn load_balancer(lb: &LoadBalancing) -> Value {
    let scopes = lb.routing_preference.iter().map(|scope| match scope {
        LocalityScope::Region => "Region",
        LocalityScope::Zone => "Zone",
        LocalityScope::Subzone => "Subzone",
        LocalityScope::Node => "Node",
        LocalityScope::Cluster => "Cluster",
        LocalityScope::Network => "Network",
    });
    let mode = match lb.mode {
        Mode::Standard => "Standard",
        Mode::Strict => "Strict",
        Mode::Failover => "Failover",
        Mode::Passthrough => "Passthrough",
    };
    let health = match lb.health_policy {
        HealthPolicy::OnlyHealthy => "OnlyHealthy",
        HealthPolicy::AllowAll => "AllowAll",
    };
    json!({"routingPreferences": scopes.collect::<Vec<_>>(), "mode": mode, "healthPolicy": health})
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyShape<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: &'static str,
    action: &'static str,
    rules: Vec<Vec<Vec<MatchShape<'a>>>>,
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchShape<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<Value>,
    // A list of which nothing could be read is an empty one here: it decides, so it is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_ips: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_source_ips: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_ips: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_destination_ips: Option<Vec<String>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ports: &'a [u16],
}

pub(super) fn policy(p: &Authorization) -> PolicyShape<'_> {
    PolicyShape {
        name: &p.key.name,
        namespace: &p.key.namespace,
        scope: match p.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        },
        action: match p.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        },
        rules: p.rules.iter().map(|rule| rule.clauses.iter().map(clause).collect()).collect(),
        dry_run: p.dry_run,
    }
}

fn clause(c: &Clause) -> Vec<MatchShape<'_>> {
    c.matches.iter().map(matches).collect()
}

fn blocks(all: &Option<Vec<IpNet>>) -> Option<Vec<String>> {
    all.as_ref().map(|all| all.iter().map(ToString::to_string).collect())
}

fn matches(m: &Match) -> MatchShape<'_> {
    let texts = |all: &[StringMatch]| all.iter().map(text).collect();
    let accounts = |all: &[ServiceAccountMatch]| all.iter().map(account).collect();
    MatchShape {
        namespaces: texts(&m.namespaces),
        not_namespaces: texts(&m.not_namespaces),
        principals: texts(&m.principals),
        not_principals: texts(&m.not_principals),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
        source_ips: blocks(&m.source_ips),
        not_source_ips: blocks(&m.not_source_ips),
        destination_ips: blocks(&m.destination_ips),
        not_destination_ips: blocks(&m.not_destination_ips),
        destination_ports: &m.destination_ports,
        not_destination_ports: &m.not_destination_ports,
    }
}

fn text(matcher: &StringMatch) -> Value {
    match matcher {
        StringMatch::Exact(text) => json!({"Exact": **text}),
        StringMatch::Prefix(text) => json!({"Prefix": **text}),
        StringMatch::Suffix(text) => json!({"Suffix": **text}),
        StringMatch::Presence => json!({"Presence": []}),
    }
}

fn account(of: &ServiceAccountMatch) -> Value {
    json!({"namespace": *of.namespace, "serviceAccount": *of.service_account})
}
