//! Pod: reading it, and what can be said of it alone (owner, telemetry names, whether it is to be captured).

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Settings;
use super::namespace::Namespace;
use super::object::Meta;
use super::reader::{Field, Report};
use crate::model::{Enrolment, Health, LocalPod, NotCaptured, WorkloadType};
use crate::types::WorkloadUid;

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const REDIRECTION: &str = "ambient.istio.io/redirection";
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
const NETNS: &str = "culvert.dev/netns";

/// What is needed of a Pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) meta: Meta,
    pub(super) node: Arc<str>,
    pub(super) service_account: Arc<str>,
    /// The primary address first.
    pub(super) ips: Vec<IpAddr>,
    pub(super) host_network: bool,
    pub(super) health: Health,
    /// Phase Succeeded or Failed: it no longer runs.
    pub(super) over: bool,
    /// Kind and name of the owner that controls it.
    owner: Option<(Arc<str>, Arc<str>)>,
    /// TCP ports that its containers declare, with their names; empty for those without.
    ports: Vec<(Arc<str>, u16)>,
    netns: Option<PathBuf>,
    pub(super) bypass_inbound: bool,
    reroute_interfaces: Vec<Arc<str>>,
    dns: Option<bool>,
    /// An instance of a waypoint, as the Gateways say once all objects are read.
    pub(super) is_waypoint: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Pending,
    Running,
    Over,
    Unknown,
}

const PHASES: [(&str, Phase); 5] = [
    ("Pending", Phase::Pending),
    ("Running", Phase::Running),
    ("Succeeded", Phase::Over),
    ("Failed", Phase::Over),
    ("Unknown", Phase::Unknown),
];

impl Pod {
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Self {
        let spec = root.get("spec");
        let status = root.get("status");
        let spec_text = |key: &str| spec.as_ref().and_then(|spec| spec.text_at(key));
        let phase = status.as_ref().and_then(|s| s.get("phase")).and_then(|phase| phase.one_of(&PHASES));
        let ready = status.as_ref().map_or(Some(true), |status| is_ready(status, phase)).unwrap_or(false);
        let account = spec_text("serviceAccountName").or_else(|| spec_text("serviceAccount"));
        let ips = status.as_ref().map(addresses).unwrap_or_default();
        if ips.is_empty() && !matches!(phase, Some(Phase::Pending | Phase::Over)) {
            root.warning("no address in status.podIPs", "it takes no part until it has one");
        }
        Self {
            node: spec_text("nodeName").unwrap_or("").into(),
            service_account: account.unwrap_or("default").into(),
            ips,
            host_network: spec.as_ref().is_some_and(|spec| spec.flag_at("hostNetwork")),
            health: match (meta.deleting, ready) {
                (true, _) => Health::Terminating,
                (false, true) => Health::Healthy,
                (false, false) => Health::Unhealthy,
            },
            over: phase == Some(Phase::Over),
            owner: owner(root),
            ports: spec.as_ref().map(declared_ports).unwrap_or_default(),
            netns: netns(root),
            dns: annotation(root, DNS_CAPTURE).and_then(|f| f.go_bool()),
            bypass_inbound: annotation(root, BYPASS_INBOUND).and_then(|f| f.go_bool()).unwrap_or(false),
            reroute_interfaces: annotation(root, REROUTE_INTERFACES)
                .map(|f| interfaces(&f))
                .unwrap_or_default(),
            is_waypoint: false,
            meta,
        }
    }

    /// Whether it runs, or will, and has an address.
    pub(super) fn is_live(&self) -> bool {
        !self.over && !self.ips.is_empty()
    }

    /// Key of its workload.
    pub(super) fn uid(&self, settings: &Settings) -> WorkloadUid {
        WorkloadUid(format!("{}//Pod/{}", settings.cluster, self.meta.key()).into())
    }

    /// The container port of this name.
    pub(super) fn port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|(n, _)| &**n == name).map(|(_, port)| *port)
    }

    /// TCP ports that its containers declare.
    pub(super) fn declared_ports(&self) -> Vec<u16> {
        self.ports.iter().map(|(_, port)| *port).collect()
    }

    /// Kind and name of what owns it, as telemetry names them. Only ReplicaSets of Deployments, Jobs and CronJobs are
    /// told apart; all others are pods, as istiod has it.
    pub(super) fn owner(&self) -> (WorkloadType, Arc<str>) {
        let pod = || (WorkloadType::Pod, Arc::clone(&self.meta.name));
        let Some((kind, name)) = &self.owner else { return pod() };
        match &**kind {
            "ReplicaSet" => {
                let hash = self.meta.labels.get("pod-template-hash").filter(|hash| !hash.is_empty());
                let stem = hash.and_then(|hash| name.strip_suffix(&**hash));
                match stem.map(|stem| stem.strip_suffix('-').unwrap_or(stem)) {
                    Some(deployment) => (WorkloadType::Deployment, deployment.into()),
                    None => pod(),
                }
            }
            "Job" => match name.rsplit_once('-') {
                // A CronJob names its Jobs with the time in seconds or minutes: 8 to 10 digits.
                Some((cron, time))
                    if !cron.is_empty()
                        && (8..=10).contains(&time.len())
                        && time.bytes().all(|b| b.is_ascii_digit()) =>
                {
                    (WorkloadType::CronJob, cron.into())
                }
                _ => (WorkloadType::Job, Arc::clone(name)),
            },
            _ => pod(),
        }
    }

    /// Canonical name and revision for telemetry.
    pub(super) fn canonical(&self, workload_name: &Arc<str>) -> (Arc<str>, Arc<str>) {
        let first = |keys: [&str; 3], or: &Arc<str>| {
            keys.iter().find_map(|key| self.meta.labels.get(*key)).unwrap_or(or).clone()
        };
        let name = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        (first(name, workload_name), first(revision, &"latest".into()))
    }

    /// Whether the pod is to be captured, and thus is reached over HBONE: enrolled, and not said to be without redirection.
    pub(super) fn is_captured(&self, namespace: Option<&Namespace>, settings: &Settings) -> bool {
        self.not_captured(namespace, settings).is_none()
    }

    /// Whether the pod is meant to be in the mesh: labelled itself, or by its namespace unless it says `none`, and not
    /// of those that are never captured.
    pub(super) fn enrolment(&self, namespace: Option<&Namespace>, settings: &Settings) -> Enrolment {
        match self.not_captured(namespace, settings) {
            None | Some(NotCaptured::RedirectionOff) => Enrolment::Labelled,
            Some(NotCaptured::NotLabelled | NotCaptured::LabelledNone) => Enrolment::NotLabelled,
            Some(
                NotCaptured::HostNetwork
                | NotCaptured::Sidecar
                | NotCaptured::ExcludedNamespace
                | NotCaptured::NodeAgent
                | NotCaptured::Waypoint,
            ) => Enrolment::Exempt,
        }
    }

    /// Why the pod is not to be captured; none if it is.
    pub(super) fn not_captured(
        &self,
        namespace: Option<&Namespace>,
        settings: &Settings,
    ) -> Option<NotCaptured> {
        let mode = self.meta.labels.get(DATAPLANE_MODE).map(|mode| &**mode);
        let of_namespace = namespace.and_then(|n| n.labels.get(DATAPLANE_MODE)).map(|mode| &**mode);
        let own_proxy = self.meta.namespace == settings.root_namespace
            && self.meta.labels.get("app").is_some_and(|app| &**app == "ztunnel");
        if self.host_network {
            Some(NotCaptured::HostNetwork)
        } else if self.meta.annotation("sidecar.istio.io/status").is_some() {
            Some(NotCaptured::Sidecar)
        } else if settings.excluded_namespaces.contains(&self.meta.namespace) {
            Some(NotCaptured::ExcludedNamespace)
        } else if own_proxy {
            Some(NotCaptured::NodeAgent)
        } else if self.is_waypoint {
            Some(NotCaptured::Waypoint)
        } else if mode != Some("ambient") && of_namespace != Some("ambient") {
            Some(NotCaptured::NotLabelled)
        } else if mode == Some("none") {
            Some(NotCaptured::LabelledNone)
        } else if self.meta.annotation(REDIRECTION).is_some_and(|redirection| redirection != "enabled") {
            Some(NotCaptured::RedirectionOff)
        } else {
            None
        }
    }

    /// Whether it terminates HBONE itself.
    pub(super) fn is_native_tunnel(&self) -> bool {
        self.meta.labels.get("networking.istio.io/tunnel").is_some_and(|tunnel| &**tunnel == "http")
    }

    /// The pod as one to capture on this node; none, with a warning, if the path of its network namespace is unknown.
    pub(super) fn local(&self, settings: &Settings, report: &Report) -> Option<LocalPod> {
        let netns = settings.netns_overrides.get(&self.meta.key()).or(self.netns.as_ref());
        if netns.is_none() {
            let seen = "to be captured on this node, but its network namespace is unknown";
            let what = format!("name its path in the annotation {NETNS}, or as a setting of the agent");
            report.warning(self.meta.at.about("metadata.annotations", seen, what));
        }
        Some(self.local_in(Some(netns?.clone()), settings))
    }

    /// The pod as one to capture in this network namespace.
    pub(super) fn local_in(&self, netns: Option<PathBuf>, settings: &Settings) -> LocalPod {
        LocalPod {
            uid: self.meta.uid.clone().unwrap_or_else(|| self.meta.key().into()),
            workload: self.uid(settings),
            namespace: Arc::clone(&self.meta.namespace),
            name: Arc::clone(&self.meta.name),
            addresses: self.ips.clone(),
            netns,
            bypass_inbound: self.bypass_inbound,
            reroute_interfaces: self.reroute_interfaces.clone(),
            dns: self.dns,
        }
    }
}

/// Condition Ready. A pod without any conditions was written by hand: it is ready if it may run.
fn is_ready(status: &Field<'_>, phase: Option<Phase>) -> Option<bool> {
    if status.get("conditions").is_none() {
        return Some(phase.is_none_or(|phase| phase == Phase::Running));
    }
    let conditions = status.items("conditions");
    let ready = conditions.iter().find(|condition| condition.text_at("type") == Some("Ready"))?;
    ready.get("status")?.one_of(&[("True", true), ("False", false), ("Unknown", false)])
}

fn addresses(status: &Field<'_>) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    let primary = status.get("podIP").filter(|_| status.text_at("podIP").is_some());
    let all = status.items("podIPs").into_iter().filter_map(|item| item.get("ip"));
    for ip in primary.into_iter().chain(all).filter_map(|ip| ip.ip()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

fn owner(root: &Field<'_>) -> Option<(Arc<str>, Arc<str>)> {
    let owners = root.get("metadata")?.items("ownerReferences");
    let owner = owners.iter().find(|owner| owner.flag_at("controller"))?;
    Some((owner.text_at("kind")?.into(), owner.text_at("name")?.into()))
}

fn declared_ports(spec: &Field<'_>) -> Vec<(Arc<str>, u16)> {
    // An init container that restarts always is a sidecar: it runs as long as the others.
    let sidecars = spec.items("initContainers").into_iter();
    let sidecars = sidecars.filter(|container| container.text_at("restartPolicy") == Some("Always"));
    let containers = spec.items("containers").into_iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.items("ports"));
    let tcp = ports.filter(|port| matches!(port.text_at("protocol"), None | Some("TCP")));
    let named = |port: &Field<'_>| port.text_at("name").unwrap_or("").into();
    tcp.filter_map(|port| Some((named(&port), port.get("containerPort")?.port()?))).collect()
}

fn annotation<'a>(root: &Field<'a>, name: &str) -> Option<Field<'a>> {
    root.dig(&["metadata", "annotations", name])
}

fn netns(root: &Field<'_>) -> Option<PathBuf> {
    let field = annotation(root, NETNS)?;
    let path = PathBuf::from(field.text()?);
    if path.is_absolute() {
        return Some(path);
    }
    field.refuse("an absolute path of a network namespace, such as /run/netns/shop-cart");
    None
}

fn interfaces(field: &Field<'_>) -> Vec<Arc<str>> {
    let names = field.text().unwrap_or("").split(',').map(str::trim).filter(|name| !name.is_empty());
    let good = |name: &&str| {
        let good = name.len() < 16 && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !good {
            field.refuse("names of network interfaces, at most 15 characters each, with commas between");
        }
        good
    };
    names.filter(good).map(Arc::from).collect()
}
