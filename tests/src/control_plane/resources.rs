//! Resources as a discovery server says them.

use std::net::IpAddr;

use culvert::lab::Pod;
use culvert_common::xds::proto::discovery::{Any, Resource};
use culvert_common::xds::proto::security::{
    Authorization, Clause, Empty, Match, MatchKind, Rule, StringMatch,
};
use culvert_common::xds::proto::workload::{
    Address, Kind, NetworkAddress, Port, PortList, Service, Workload,
};
use prost::Message;

/// Type of workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Type of policies.
pub const POLICY: &str = "type.googleapis.com/istio.security.Authorization";

/// Bytes of an address.
pub fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Key of a pod's workload.
pub fn uid(pod: &Pod) -> String {
    format!("Kubernetes//Pod/{}/{}", pod.spec.namespace, pod.spec.name)
}

/// A pod as a workload; with HBONE if it is captured.
pub fn workload(pod: &Pod) -> Workload {
    Workload {
        uid: uid(pod),
        name: pod.spec.name.clone(),
        namespace: pod.spec.namespace.clone(),
        service_account: pod.spec.service_account.clone(),
        addresses: pod.addresses().map(bytes).to_vec(),
        tunnel_protocol: i32::from(pod.spec.captured == Some(true)),
        trust_domain: "cluster.local".to_owned(),
        node: pod.node_name.clone(),
        cluster_id: "Kubernetes".to_owned(),
        workload_name: pod.spec.name.clone(),
        ..Workload::default()
    }
}

/// That a workload is behind a service, whose port 80 leads to `target`.
pub fn behind(mut workload: Workload, service: &str, target: u16) -> Workload {
    let port = Port { service_port: 80, target_port: target.into() };
    workload.services.insert(service.to_owned(), PortList { ports: vec![port] });
    workload
}

/// A service of namespace `default` with port 80.
pub fn service(name: &str, vips: &[&str], target: u16) -> Service {
    let vip = |text: &&str| NetworkAddress {
        address: bytes(text.parse().expect("an address")),
        ..NetworkAddress::default()
    };
    Service {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        hostname: hostname(name),
        addresses: vips.iter().map(vip).collect(),
        ports: vec![Port { service_port: 80, target_port: target.into() }],
        canonical: true,
        ..Service::default()
    }
}

/// Host name of a service of namespace `default`.
pub fn hostname(name: &str) -> String {
    format!("{name}.default.svc.cluster.local")
}

/// The policy that denies plaintext to every workload of a namespace.
pub fn strict(namespace: &str) -> Authorization {
    let any = StringMatch { kind: Some(MatchKind::Presence(Empty {})) };
    let without_identity = Match { not_principals: vec![any], ..Match::default() };
    Authorization {
        name: "strict".to_owned(),
        namespace: namespace.to_owned(),
        scope: 1,
        action: 1,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![without_identity] }] }],
        dry_run: false,
    }
}

/// What a server can say, with the type it is said under.
pub trait Said {
    /// Type, primary name, other names, body.
    fn said(&self) -> (&'static str, String, Vec<String>, Vec<u8>);
}

impl Said for Workload {
    fn said(&self) -> (&'static str, String, Vec<String>, Vec<u8>) {
        let body = Address { kind: Some(Kind::Workload(Box::new(self.clone()))) };
        let network = &self.network;
        let aliases = self.addresses.iter().map(|address| alias(network, address)).collect();
        (ADDRESS, self.uid.clone(), aliases, body.encode_to_vec())
    }
}

impl Said for Service {
    fn said(&self) -> (&'static str, String, Vec<String>, Vec<u8>) {
        let body = Address { kind: Some(Kind::Service(Box::new(self.clone()))) };
        let aliases = self.addresses.iter().map(|at| alias(&at.network, &at.address)).collect();
        (ADDRESS, format!("{}/{}", self.namespace, self.hostname), aliases, body.encode_to_vec())
    }
}

impl Said for Authorization {
    fn said(&self) -> (&'static str, String, Vec<String>, Vec<u8>) {
        (POLICY, format!("{}/{}", self.namespace, self.name), Vec::new(), self.encode_to_vec())
    }
}

/// `<network>/<address>`, as on-demand questions have it.
fn alias(network: &str, address: &[u8]) -> String {
    let ip = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(v4), _) => IpAddr::from(v4).to_string(),
        (_, Ok(v6)) => IpAddr::from(v6).to_string(),
        _ => "no address".to_owned(),
    };
    format!("{network}/{ip}")
}

/// A resource of this type and name.
pub fn resource(kind: &str, name: &str, version: &str, body: Vec<u8>) -> Resource {
    let body = Any { type_url: kind.to_owned(), value: body.into() };
    Resource { name: name.to_owned(), version: version.to_owned(), resource: Some(body), aliases: Vec::new() }
}
