//! Which waypoint stands before which service and workload, by labels. Source: l7.md §1.4.
//!
//! A label that names what cannot be used leaves its object without a waypoint, as Istio has it, with a warning and a
//! condition; the strict setting names the waypoint all the same, so that traffic is refused until it is there. A
//! Gateway that was ready once stays bound whatever becomes of its pods: then traffic is refused too.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use super::Settings;
use super::gateway::{Address, CLASS, Gateway, HBONE};
use super::object::{Meta, Objects};
use super::pod::Pod;
use super::reader::Report;
use crate::model::l7::{GatewayKey, Serves};
use crate::model::{Condition, GatewayAddress, GatewayDestination, Health, WeightedWaypoint};
use crate::types::ServiceKey;

const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const CANARY: &str = "istio.io/use-waypoint-canary";
const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// Says of a pod whose instance it is.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Says of what a controller made that it is a gateway's, and which kind of gateway's.
const MANAGED: &str = "gateway.istio.io/managed";
const MANAGED_WAYPOINTS: [&str; 3] =
    ["istio.io-mesh-controller", "istio.io-eastwest-controller", "culvert.dev-waypoint-controller"];
const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
const BOUND: &str = "istio.io/WaypointBound";

/// What is to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// A Service or ServiceEntry.
    Service,
    /// A Pod or WorkloadEntry.
    Workload,
}

impl Traffic {
    fn is_taken_by(self, serves: Serves) -> bool {
        match serves {
            Serves::Service => self == Self::Service,
            Serves::Workload => self == Self::Workload,
            Serves::All => true,
            Serves::Nothing => false,
        }
    }
}

/// One that may be used.
struct Waypoint<'o> {
    gateway: &'o Gateway,
    serves: Serves,
    /// None until it was ready.
    address: Option<GatewayAddress>,
}

/// All Gateways that are waypoints.
pub(super) struct Waypoints<'o> {
    of: BTreeMap<GatewayKey, Waypoint<'o>>,
    objects: &'o Objects,
    settings: &'o Settings,
}

/// What the labels of one object come to.
#[derive(Debug, Default)]
pub(super) struct Binding {
    /// Where its traffic goes.
    pub(super) waypoint: Option<Arc<GatewayAddress>>,
    /// Where it goes if two share it; then these count.
    pub(super) weighted: Vec<WeightedWaypoint>,
    /// The waypoints that know the object, ready or not.
    pub(super) known_to: Vec<GatewayKey>,
    /// None if no label names a waypoint for such an object.
    pub(super) condition: Option<Condition>,
}

/// A waypoint that labels name.
struct Wanted<'a> {
    key: GatewayKey,
    canary: Option<GatewayKey>,
    /// Label of the object itself; false: its namespace's.
    is_own: bool,
    weight: Option<&'a str>,
}

/// Why a waypoint cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unusable {
    Unknown,
    NotReady,
    Denied,
    OtherTraffic,
}

impl Unusable {
    fn reason(self) -> &'static str {
        match self {
            Self::Unknown | Self::NotReady => "WaypointIsNotReady",
            Self::Denied => "AttachmentDenied",
            Self::OtherTraffic => "UnsupportedTrafficType",
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "there is no Gateway of this name that is a waypoint",
            Self::NotReady => "it was never ready",
            Self::Denied => "its listener's allowedRoutes does not admit this namespace",
            Self::OtherTraffic => "its label istio.io/waypoint-for leaves such objects out",
        })
    }
}

impl<'o> Waypoints<'o> {
    pub(super) fn of(objects: &'o Objects, settings: &'o Settings) -> Self {
        let gateways =
            objects.gateways.iter().filter(|gateway| gateway.is_waypoint(&objects.gateway_classes));
        let waypoint = |gateway: &'o Gateway| {
            let is_ready = is_ready(gateway, objects) || settings.bound.contains(&gateway.key());
            let address = is_ready.then(|| address(gateway, settings));
            (gateway.key(), Waypoint { gateway, serves: gateway.serves(&objects.gateway_classes), address })
        };
        Self { of: gateways.map(waypoint).collect(), objects, settings }
    }

    /// Those that are ready or were, for the next translation to know.
    pub(super) fn bound(&self) -> BTreeSet<GatewayKey> {
        let bound = self.of.iter().filter(|(_, waypoint)| waypoint.address.is_some());
        bound.map(|(key, _)| key.clone()).collect()
    }

    /// The waypoint's Gateway.
    pub(super) fn gateway(&self, key: &GatewayKey) -> Option<&'o Gateway> {
        self.of.get(key).map(|waypoint| waypoint.gateway)
    }

    /// Whether one of its instances is ready, or was before.
    pub(super) fn is_ready(&self, key: &GatewayKey) -> bool {
        self.of.get(key).is_some_and(|waypoint| is_ready(waypoint.gateway, self.objects))
    }

    /// Reports waypoints that nobody can reach: those that are found by a Service which is not there.
    pub(super) fn check(&self, report: &Report) {
        for (key, waypoint) in &self.of {
            let gateway = waypoint.gateway;
            if !gateway.assigned.is_empty() || !gateway.wanted.is_empty() || waypoint.address.is_none() {
                continue;
            }
            let mut services = self.objects.services.iter().map(|service| (&service.meta, &service.ports));
            let own = services.find(|(meta, _)| meta.name == key.name && meta.namespace == key.namespace);
            let seen = match own {
                None => format!("no address, and no Service {key}"),
                Some((_, ports)) if ports.iter().all(|port| port.port != HBONE) => {
                    format!("no address, and Service {key} has no port {HBONE}")
                }
                Some(_) => continue,
            };
            let what = "what is bound to it is refused";
            report.warning(gateway.meta.at.about("status.addresses", seen, what));
        }
    }

    /// Whether it is the Service before a waypoint's pods, or before those of another gateway for tunnels.
    fn is_before_one(&self, meta: &Meta) -> bool {
        is_managed(meta)
            || meta.at.object.starts_with("Service ") && self.of.contains_key(&named(meta, &meta.name))
    }

    /// What becomes of an object with these labels.
    pub(super) fn bind(&self, meta: &Meta, traffic: Traffic, report: &Report) -> Binding {
        if traffic == Traffic::Service && self.is_before_one(meta) {
            return Binding::default();
        }
        let Some(wanted) = self.wanted(meta) else { return Binding::default() };
        // A namespace's waypoint is for its services, as a rule: its pods say nothing against that.
        let serves = self.of.get(&wanted.key).map(|waypoint| waypoint.serves).unwrap_or_default();
        if !wanted.is_own && !traffic.is_taken_by(serves) {
            return Binding::default();
        }
        let usable = self.usable(&wanted.key, meta, traffic);
        let mut binding = Binding::default();
        if !matches!(usable, Err(Unusable::Unknown | Unusable::Denied | Unusable::OtherTraffic)) {
            binding.known_to.push(wanted.key.clone());
        }
        match usable {
            Ok(address) => {
                binding.waypoint = Some(Arc::new(address.clone()));
                let accepted = format!("Successfully attached to waypoint {}", wanted.key);
                binding.condition = Some(Condition::yes(BOUND, "WaypointAccepted", accepted));
                self.share(&wanted, meta, traffic, &mut binding);
            }
            Err(why) => {
                binding.condition =
                    Some(Condition::no(BOUND, why.reason(), format!("{}: {why}", wanted.key)));
                if self.settings.policy_strict {
                    let named = conventional(&wanted.key, self.settings);
                    binding.waypoint = Some(Arc::new(GatewayAddress { destination: named, port: HBONE }));
                }
            }
        }
        self.warn(&wanted, meta, &binding, report);
        binding
    }

    /// Says what did not go as the labels have it.
    fn warn(&self, wanted: &Wanted<'_>, meta: &Meta, binding: &Binding, report: &Report) {
        let Some(condition) = binding.condition.as_ref().filter(|condition| !condition.holds) else { return };
        let what = match (binding.waypoint.is_some(), self.settings.policy_strict) {
            (true, false) => "all connections go to the first waypoint",
            (true, true) => "connections to it are refused",
            (false, _) => "connections to it pass the waypoint by; the strict setting refuses them",
        };
        let from = if wanted.is_own { "" } else { ", the waypoint of its namespace" };
        let seen = format!("{}{from}", condition.message);
        report.warning(meta.at.about("metadata.labels", seen, what));
    }

    /// What the object's label names, or that of its namespace.
    fn wanted<'a>(&'a self, meta: &'a Meta) -> Option<Wanted<'a>> {
        let own = meta.labels.get(USE).map(|name| (name, &meta.labels, &meta.annotations, true));
        let namespace = self.objects.namespaces.get(&meta.namespace);
        let (name, labels, annotations, is_own) = own.or_else(|| {
            let of = namespace?;
            Some((of.labels.get(USE)?, &of.labels, &of.annotations, false))
        })?;
        let key = |name: &Arc<str>, namespace: &str| GatewayKey {
            namespace: labels.get(namespace).unwrap_or(&meta.namespace).clone(),
            name: Arc::clone(name),
        };
        (&**name != "none").then(|| Wanted {
            key: key(name, USE_NAMESPACE),
            canary: labels.get(CANARY).map(|canary| key(canary, CANARY_NAMESPACE)),
            is_own,
            weight: annotations.get(CANARY_WEIGHT).map(|weight| &**weight),
        })
    }

    fn usable(&self, key: &GatewayKey, meta: &Meta, traffic: Traffic) -> Result<&GatewayAddress, Unusable> {
        let waypoint = self.of.get(key).ok_or(Unusable::Unknown)?;
        let namespace = self.objects.namespaces.get(&meta.namespace).map(|n| &n.labels);
        if !waypoint.gateway.allows(&meta.namespace, namespace) {
            return Err(Unusable::Denied);
        }
        if !traffic.is_taken_by(waypoint.serves) {
            return Err(Unusable::OtherTraffic);
        }
        waypoint.address.as_ref().ok_or(Unusable::NotReady)
    }

    /// Lets a canary have its share of a service's connections.
    fn share(&self, wanted: &Wanted<'_>, meta: &Meta, traffic: Traffic, binding: &mut Binding) {
        let Some(canary) = wanted.canary.as_ref().filter(|_| traffic == Traffic::Service) else { return };
        let refuse = |reason, message: String| Some(Condition::no(BOUND, reason, message));
        if *canary == wanted.key {
            let message = format!("the canary is the waypoint {canary} itself");
            binding.condition = refuse("CanarySameAsPrimary", message);
            return;
        }
        let weight = wanted.weight.map_or(Some(0), |text| text.parse::<u32>().ok().filter(|w| *w <= 100));
        let Some(weight) = weight else {
            let message = format!("{CANARY_WEIGHT} is {:?}, not 0 to 100", wanted.weight.unwrap_or(""));
            binding.condition = refuse("CanaryInvalidWeight", message);
            return;
        };
        let usable = self.usable(canary, meta, traffic);
        if matches!(usable, Ok(_) | Err(Unusable::NotReady)) {
            binding.known_to.push(canary.clone());
        }
        match (usable, &binding.waypoint) {
            (Ok(address), Some(primary)) => {
                let part =
                    |gateway: &GatewayAddress, weight| WeightedWaypoint { gateway: gateway.clone(), weight };
                binding.weighted = vec![part(primary, 100 - weight), part(address, weight)];
            }
            (Err(why), _) => {
                let message = format!(
                    "Successfully attached to waypoint {}; the canary {canary} takes no part: {why}",
                    wanted.key
                );
                binding.condition = Some(Condition::yes(BOUND, "WaypointAccepted", message));
            }
            (Ok(_), None) => {}
        }
    }
}

fn named(meta: &Meta, name: &Arc<str>) -> GatewayKey {
    GatewayKey { namespace: Arc::clone(&meta.namespace), name: Arc::clone(name) }
}

fn is_managed(meta: &Meta) -> bool {
    meta.labels.get(MANAGED).is_some_and(|managed| MANAGED_WAYPOINTS.contains(&&**managed))
}

/// All Gateways that are waypoints.
pub(super) fn all(objects: &Objects) -> impl Iterator<Item = &Gateway> {
    objects.gateways.iter().filter(|gateway| gateway.is_waypoint(&objects.gateway_classes))
}

/// The Gateway of this name if it is a waypoint. Without a name: the only one of our class, or the only waypoint at all.
pub(super) fn own(objects: &Objects, wanted: &GatewayKey) -> Option<GatewayKey> {
    let all = || all(objects);
    if !wanted.name.is_empty() {
        return all().map(Gateway::key).find(|key| key == wanted);
    }
    let only = |keys: Vec<GatewayKey>| <[GatewayKey; 1]>::try_from(keys).ok().map(|[key]| key);
    let ours = all().filter(|gateway| &*gateway.class == CLASS).map(Gateway::key).collect();
    only(ours).or_else(|| only(all().map(Gateway::key).collect()))
}

/// The service account of its instances; before there are any, that which its annotation or its own name says.
pub(super) fn account<'o>(gateway: &'o Gateway, objects: &'o Objects, report: &Report) -> &'o str {
    let mut accounts: Vec<&str> = instances(gateway, &objects.pods)
        .filter(|pod| pod.is_live())
        .map(|pod| &*pod.service_account)
        .collect();
    accounts.sort_unstable();
    accounts.dedup();
    if let [_, _, ..] = accounts[..] {
        let seen = format!("its pods have the service accounts {}", accounts.join(", "));
        report.warning(gateway.meta.at.about("metadata.name", seen, "it goes by the first of them"));
    }
    let named = || gateway.meta.annotation(SERVICE_ACCOUNT).unwrap_or(&gateway.meta.name);
    accounts.first().copied().unwrap_or_else(named)
}

/// Whether a pod is one of a waypoint's instances.
pub(super) fn is_instance(pod: &Meta, waypoints: &HashSet<GatewayKey>) -> bool {
    is_managed(pod) || pod.labels.get(GATEWAY_NAME).is_some_and(|name| waypoints.contains(&named(pod, name)))
}

/// The pods that are instances of a Gateway.
fn instances<'o>(gateway: &'o Gateway, pods: &'o [Pod]) -> impl Iterator<Item = &'o Pod> {
    let is_one = |pod: &&Pod| {
        pod.meta.namespace == gateway.meta.namespace
            && pod.meta.labels.get(GATEWAY_NAME) == Some(&gateway.meta.name)
    };
    pods.iter().filter(is_one)
}

/// An address in its status says that it was ready. Without, its instances count; if it has none and an address of its
/// own, that is not for us to know.
fn is_ready(gateway: &Gateway, objects: &Objects) -> bool {
    let mut instances = instances(gateway, &objects.pods).peekable();
    !gateway.assigned.is_empty()
        || instances.peek().is_none() && !gateway.wanted.is_empty()
        || instances.any(|pod| pod.health == Health::Healthy && !pod.over && !pod.ips.is_empty())
}

/// Its status comes first, then its spec, then the Service of its name. A host name comes before addresses.
fn address(gateway: &Gateway, settings: &Settings) -> GatewayAddress {
    let said = if gateway.assigned.is_empty() { &gateway.wanted } else { &gateway.assigned };
    let hostname = said.iter().find(|address| matches!(address, Address::Hostname(_)));
    let destination = match hostname.or(said.first()) {
        Some(Address::Hostname(name)) => GatewayDestination::Hostname(of_name(name, gateway, settings)),
        Some(Address::Ip(ip)) => {
            GatewayDestination::Address { network: Arc::clone(&settings.network), ip: *ip }
        }
        None => conventional(&gateway.key(), settings),
    };
    GatewayAddress { destination, port: HBONE }
}

/// The service of this host name: its namespace is in the name, or it is the Gateway's.
fn of_name(name: &Arc<str>, gateway: &Gateway, settings: &Settings) -> ServiceKey {
    let of_cluster = name.strip_suffix(&format!(".svc.{}", settings.cluster_domain));
    let namespace =
        of_cluster.and_then(|rest| rest.split_once('.')).map(|(_, namespace)| Arc::from(namespace));
    let namespace = namespace.unwrap_or_else(|| Arc::clone(&gateway.meta.namespace));
    ServiceKey { namespace, hostname: Arc::clone(name) }
}

/// The Service that has the Gateway's name.
fn conventional(key: &GatewayKey, settings: &Settings) -> GatewayDestination {
    GatewayDestination::Hostname(ServiceKey {
        namespace: Arc::clone(&key.namespace),
        hostname: hostname(&key.name, &key.namespace, settings).into(),
    })
}

fn hostname(name: &str, namespace: &str, settings: &Settings) -> String {
    format!("{name}.{namespace}.svc.{}", settings.cluster_domain)
}
