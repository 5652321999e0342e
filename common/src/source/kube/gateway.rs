//! Gateway and GatewayClass: reading those that may be waypoints. What is bound to them is in [`super::waypoint`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::object::Meta;
use super::reader::{Field, Labels};
use super::selector::Selector;
use crate::model::l7::{GatewayKey, Serves};

/// The port on which waypoints are reached.
pub(super) const HBONE: u16 = 15008;
/// Our class.
pub(super) const CLASS: &str = "culvert-waypoint";
/// Istio's class: what is bound to such a waypoint is the same, whoever runs it.
const ISTIO_CLASS: &str = "istio-waypoint";
/// Controllers whose classes, whatever their names, are of waypoints.
const CONTROLLERS: [&str; 2] = ["culvert.dev/waypoint-controller", "istio.io/mesh-controller"];
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Lets a node proxy end the tunnels of a waypoint.
pub(super) const SANDWICH: &str = "ambient.istio.io/waypoint-inbound-binding";
const FORWARDS_IDENTITY: &str = "ambient.istio.io/xfcc-include-client-identity";

/// What is needed of a Gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) meta: Meta,
    pub(super) class: Arc<str>,
    pub(super) listeners: Vec<Listener>,
    /// What the object says it serves; none: as its class says.
    serves: Option<Serves>,
    /// `status.addresses`: it is ready, or was.
    pub(super) assigned: Vec<Address>,
    /// `spec.addresses`.
    pub(super) wanted: Vec<Address>,
    /// Whether the application learns who the client is.
    pub(super) forwards_identity: bool,
    /// Its annotation for a node proxy that ends tunnels in its place.
    pub(super) is_sandwiched: bool,
}

/// One of `spec.listeners`.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) name: Arc<str>,
    pub(super) port: u16,
    pub(super) protocol: Arc<str>,
    allowed: Allowed,
}

/// `allowedRoutes.namespaces`: from where objects may use the waypoint.
#[derive(Debug)]
enum Allowed {
    Same,
    All,
    Labelled(Selector),
}

/// Address or name of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Ip(IpAddr),
    Hostname(Arc<str>),
}

/// What is needed of a GatewayClass.
#[derive(Debug)]
pub(super) struct GatewayClass {
    controller: Arc<str>,
    serves: Option<Serves>,
}

const SERVES: [(&str, Serves); 4] = [
    ("service", Serves::Service),
    ("workload", Serves::Workload),
    ("all", Serves::All),
    ("none", Serves::Nothing),
];

impl Gateway {
    /// None, with a report, without a spec.
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Option<Self> {
        let Some(spec) = root.get("spec") else {
            root.problem("no spec", "allowed: a Gateway with spec.gatewayClassName and spec.listeners");
            return None;
        };
        let Some(class) = spec.text_at("gatewayClassName") else {
            spec.problem("no gatewayClassName", format!("allowed: {CLASS} for a waypoint"));
            return None;
        };
        let annotation = |name: &str| root.dig(&["metadata", "annotations", name]);
        let forwards = annotation(FORWARDS_IDENTITY);
        let status = root.get("status");
        Some(Self {
            class: class.into(),
            listeners: spec.items("listeners").iter().filter_map(listener).collect(),
            serves: serves(root),
            assigned: status.map(|status| addresses(&status)).unwrap_or_default(),
            wanted: addresses(&spec),
            forwards_identity: forwards.and_then(|f| f.go_bool()).unwrap_or(false),
            is_sandwiched: annotation(SANDWICH).is_some(),
            meta,
        })
    }

    pub(super) fn key(&self) -> GatewayKey {
        GatewayKey { namespace: Arc::clone(&self.meta.namespace), name: Arc::clone(&self.meta.name) }
    }

    /// Whether it is a waypoint, by its class.
    pub(super) fn is_waypoint(&self, classes: &HashMap<Arc<str>, GatewayClass>) -> bool {
        match classes.get(&self.class) {
            Some(class) => CONTROLLERS.contains(&&*class.controller),
            None => [CLASS, ISTIO_CLASS].contains(&&*self.class),
        }
    }

    /// Which traffic it takes: as it says, else as its class says, else what is addressed to services.
    pub(super) fn serves(&self, classes: &HashMap<Arc<str>, GatewayClass>) -> Serves {
        let of_class = || classes.get(&self.class).and_then(|class| class.serves);
        self.serves.or_else(of_class).unwrap_or_default()
    }

    /// Whether an object of this namespace may use it.
    pub(super) fn allows(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        let listener = self.listeners.iter().find(|l| l.port == HBONE && &*l.protocol == "HBONE");
        match listener.map(|listener| &listener.allowed) {
            Some(Allowed::All) => true,
            Some(Allowed::Labelled(selector)) => labels.is_some_and(|labels| selector.selects(labels)),
            Some(Allowed::Same) | None => *namespace == *self.meta.namespace,
        }
    }
}

impl GatewayClass {
    /// None, with a report, without a controller.
    pub(super) fn read(root: &Field<'_>) -> Option<Self> {
        let controller = root.get("spec").and_then(|spec| spec.text_at("controllerName"));
        if controller.is_none() {
            root.problem("no spec.controllerName", "allowed: the name of a controller");
        }
        Some(Self { controller: controller?.into(), serves: serves(root) })
    }
}

fn serves(root: &Field<'_>) -> Option<Serves> {
    root.dig(&["metadata", "labels", WAYPOINT_FOR])?.one_of(&SERVES)
}

fn listener(item: &Field<'_>) -> Option<Listener> {
    let name = item.text_at("name").unwrap_or("").into();
    let Some(port) = item.get("port") else {
        item.problem("no port", format!("allowed: a listener with port {HBONE} and protocol HBONE"));
        return None;
    };
    let protocol = item.text_at("protocol").unwrap_or("").into();
    let namespaces = item.dig(&["allowedRoutes", "namespaces"]);
    let kinds = [("Same", "Same"), ("All", "All"), ("Selector", "Selector")];
    let from = namespaces.as_ref().and_then(|n| n.get("from")).map(|from| from.one_of(&kinds));
    let allowed = match from {
        None | Some(Some("Same")) => Allowed::Same,
        Some(Some("All")) => Allowed::All,
        Some(_) => match namespaces.as_ref().and_then(|n| n.get("selector")) {
            Some(selector) => Allowed::Labelled(Selector::read(&selector)),
            None => Allowed::Same,
        },
    };
    Some(Listener { name, port: port.port()?, protocol, allowed })
}

/// `addresses` of a spec or status: IP addresses and host names.
fn addresses(of: &Field<'_>) -> Vec<Address> {
    let one = |item: &Field<'_>| {
        let value = item.get("value")?;
        match item.text_at("type").unwrap_or("IPAddress") {
            "IPAddress" => value.ip().map(Address::Ip),
            "Hostname" => value.text().map(|name| Address::Hostname(name.into())),
            _ => {
                item.get("type")?.refuse("IPAddress, Hostname");
                None
            }
        }
    };
    of.items("addresses").iter().filter_map(one).collect()
}
