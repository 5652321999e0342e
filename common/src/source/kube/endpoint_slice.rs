//! EndpointSlice: endpoints that are no pods, and what is known of the readiness of those that are.

use std::net::IpAddr;
use std::sync::Arc;

use super::object::Meta;
use super::reader::Field;
use crate::model::Health;

/// What is needed of an EndpointSlice.
#[derive(Debug)]
pub(super) struct EndpointSlice {
    pub(super) meta: Meta,
    /// Name of the service, in the same namespace.
    pub(super) service: Arc<str>,
    pub(super) endpoints: Vec<SliceEndpoint>,
    /// Ports of all its endpoints, by the name that they have in the Service.
    pub(super) ports: Vec<(Arc<str>, u16)>,
}

/// One endpoint of a slice.
#[derive(Debug)]
pub(super) struct SliceEndpoint {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) health: Health,
    /// `<namespace>/<name>` of the pod that it is said to be.
    pub(super) pod: Option<String>,
    pub(super) node: Arc<str>,
    /// Path for reports.
    pub(super) path: String,
}

impl EndpointSlice {
    /// None for names instead of addresses, and, with a warning, for a slice of no service.
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Option<Self> {
        let kinds = [("IPv4", true), ("IPv6", true), ("FQDN", false)];
        let Some(kind) = root.get("addressType") else {
            root.problem("no addressType", "allowed: IPv4, IPv6, FQDN");
            return None;
        };
        if !kind.one_of(&kinds)? {
            kind.warning("FQDN is not read, so the slice has no effect", "read are IPv4, IPv6");
            return None;
        }
        let Some(service) = meta.labels.get("kubernetes.io/service-name").cloned() else {
            root.warning("no label kubernetes.io/service-name, so the slice has no effect", "");
            return None;
        };
        let endpoints = root.items("endpoints").iter().map(|item| endpoint(item, &meta)).collect();
        let tcp = |port: &Field<'_>| matches!(port.text_at("protocol"), None | Some("TCP"));
        let port =
            |port: &Field<'_>| Some((port.text_at("name").unwrap_or("").into(), port.get("port")?.port()?));
        let ports = root.items("ports").iter().filter(|p| tcp(p)).filter_map(port).collect();
        Some(Self { meta, service, endpoints, ports })
    }

    /// The port that this slice gives to the service port of this name.
    pub(super) fn port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|(n, _)| &**n == name).map(|(_, port)| *port)
    }
}

fn endpoint(item: &Field<'_>, meta: &Meta) -> SliceEndpoint {
    let conditions = item.get("conditions");
    let condition = |name: &str| conditions.as_ref().and_then(|c| c.maybe_flag_at(name));
    let health = match (condition("terminating"), condition("ready")) {
        (Some(true), _) => Health::Terminating,
        (_, Some(false)) => Health::Unhealthy,
        _ => Health::Healthy, // absent means ready
    };
    let pod = item.get("targetRef").filter(|target| target.text_at("kind") == Some("Pod"));
    let pod = pod.and_then(|target| {
        let namespace = target.text_at("namespace").unwrap_or(&meta.namespace);
        Some(format!("{namespace}/{}", target.text_at("name")?))
    });
    SliceEndpoint {
        addresses: item.items("addresses").iter().filter_map(|address| address.ip()).collect(),
        health,
        pod,
        node: item.text_at("nodeName").unwrap_or("").into(),
        path: item.path().to_owned(),
    }
}
