//! What routes and rules are asked about: the services that are known, their ports, and who stands behind them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::values::full_name;
use crate::model::l7::{Backend, ClusterKey, GatewayKey, Protocol};
use crate::source::kube::Settings;
use crate::source::kube::reader::Labels;
use crate::types::{ServiceKey, WorkloadUid};

/// A service that is known.
#[derive(Debug)]
pub(in crate::source::kube) struct Known {
    pub(in crate::source::kube) key: ServiceKey,
    /// `Service` or `ServiceEntry`.
    pub(in crate::source::kube) kind: &'static str,
    /// Name of the object.
    pub(in crate::source::kube) object: Arc<str>,
    /// TCP ports.
    pub(in crate::source::kube) ports: BTreeMap<u16, KnownPort>,
    /// Who stands behind it, with labels.
    pub(in crate::source::kube) endpoints: Vec<(WorkloadUid, Labels)>,
    /// Whether it is bound to the waypoint in question.
    pub(in crate::source::kube) is_bound: bool,
    /// Whether requests go to the very address that they are for, whatever a rule says.
    pub(in crate::source::kube) is_passthrough: bool,
    /// Why nothing may be sent to it, with object and field.
    pub(in crate::source::kube) refused: Option<Arc<str>>,
}

/// A port of a service.
#[derive(Debug)]
pub(in crate::source::kube) struct KnownPort {
    /// Empty if it has none.
    pub(in crate::source::kube) name: Arc<str>,
    /// What is spoken on it.
    pub(in crate::source::kube) protocol: Protocol,
}

/// Kind, namespace and name.
type Object = (&'static str, Arc<str>, Arc<str>);

/// All services, found by key, by host name and by object.
#[derive(Debug)]
pub(in crate::source::kube) struct World<'a> {
    pub(super) settings: &'a Settings,
    /// The waypoint in question.
    pub(super) gateway: &'a GatewayKey,
    services: Vec<Known>,
    by_key: HashMap<ServiceKey, usize>,
    by_host: HashMap<Arc<str>, Vec<usize>>,
    /// By kind, namespace and name: a ServiceEntry may define several.
    by_object: HashMap<Object, Vec<usize>>,
}

impl<'a> World<'a> {
    /// Indexes `services`.
    pub(in crate::source::kube) fn new(
        settings: &'a Settings,
        gateway: &'a GatewayKey,
        mut services: Vec<Known>,
    ) -> Self {
        services.sort_by(|a, b| a.key.cmp(&b.key));
        let mut by_key = HashMap::new();
        let mut by_host: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        let mut by_object: HashMap<_, Vec<usize>> = HashMap::new();
        for (place, service) in services.iter().enumerate() {
            let object = (service.kind, Arc::clone(&service.key.namespace), Arc::clone(&service.object));
            by_object.entry(object).or_default().push(place);
            by_key.insert(service.key.clone(), place);
            by_host.entry(Arc::clone(&service.key.hostname)).or_default().push(place);
        }
        Self { settings, gateway, services, by_key, by_host, by_object }
    }

    /// All services, in the order of keys.
    pub(super) fn services(&'a self) -> impl Iterator<Item = &'a Known> {
        self.services.iter()
    }

    /// The service of this key.
    pub(super) fn service(&self, key: &ServiceKey) -> Option<&Known> {
        self.services.get(*self.by_key.get(key)?)
    }

    /// The service that an object of `namespace` means by `host`: of several with one name a Service, then that of its
    /// own namespace, then the first.
    pub(super) fn by_host(&self, host: &str, namespace: &str) -> Option<&Known> {
        let name = full_name(host, namespace, &self.settings.cluster_domain);
        let all = self.by_host.get(&name)?.iter().filter_map(|place| self.services.get(*place));
        all.min_by_key(|service| (service.kind != "Service", *service.key.namespace != *namespace))
    }

    /// The services that this object defines: a ServiceEntry may have several hosts.
    pub(super) fn of_object(
        &self,
        kind: &'static str,
        namespace: &Arc<str>,
        name: &Arc<str>,
    ) -> impl Iterator<Item = &Known> {
        let places = self.by_object.get(&(kind, Arc::clone(namespace), Arc::clone(name)));
        places.into_iter().flatten().filter_map(|place| self.services.get(*place))
    }

    /// What a destination of a VirtualService in `namespace` is, for requests to the port `listener`.
    ///
    /// Without a port it is the sole port of the service, else the one that was asked for.
    pub(super) fn backend(&self, to: &To<'_>, listener: u16) -> Backend {
        let Some(service) = self.by_host(to.host, to.namespace) else {
            let name = full_name(to.host, to.namespace, &self.settings.cluster_domain);
            return Backend::Invalid {
                status: http::StatusCode::SERVICE_UNAVAILABLE,
                reason: format!("no service {name} is known").into(),
            };
        };
        let sole = || match service.ports.len() {
            1 => service.ports.keys().next().copied(),
            _ => None,
        };
        let port = to.port.or_else(sole).unwrap_or(listener);
        Backend::Cluster(ClusterKey { service: service.key.clone(), port, subset: to.subset.cloned() })
    }
}

/// A destination that an object of `namespace` names.
#[derive(Clone, Copy, Debug)]
pub(super) struct To<'a> {
    pub(super) namespace: &'a str,
    pub(super) host: &'a str,
    pub(super) subset: Option<&'a Arc<str>>,
    pub(super) port: Option<u16>,
}
