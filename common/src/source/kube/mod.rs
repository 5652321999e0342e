//! Kubernetes objects to the model: one pure function, [`translate`], for files and for a cluster alike.
//!
//! Its L4 output equals istiod's for the same objects. One file per kind reads that kind's fields (`pod`, `service`, …);
//! `endpoints` joins Services, Pods and EndpointSlices, `authorization` makes L4 policies. `yaml` and
//! `reader` bound what foreign text may do and remember lines and paths for reports. Policies fail closed: what is not
//! understood is a problem, and problems keep the whole state from being used. Knows no files, sockets or clocks.

mod authorization;
mod authorization_policy;
mod authorization_rule;
mod background;
mod binding;
mod endpoint_slice;
mod endpoints;
mod entries;
mod gateway;
mod l7;
mod labelled;
mod namespace;
mod node;
mod object;
mod peer_authentication;
mod pod;
mod port_protocol;
pub(super) mod reader;
mod request_authentication;
mod selector;
mod service;
mod service_entry;
mod target;
pub mod tree;
mod waypoint;
mod workload_entry;
pub(super) mod yaml;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use self::binding::Bound;
use self::endpoints::Pods;
pub use self::l7::{TranslatedWaypoint, translate_waypoint};
use self::object::{Objects, Reader};
use self::pod::Pod;
use self::reader::Report;
use self::waypoint::Waypoints;
use crate::config::Problem;
use crate::model::l7::{AboveRoot, GatewayKey, Normalization};
use crate::model::{LocalPod, Model, Status, TunnelProtocol, Workload};
use crate::types::{PolicyKey, SpiffeId};

/// What the translation needs to know and no object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cluster id, for example `Kubernetes`.
    pub cluster: Arc<str>,
    /// Trust domain of all identities.
    pub trust_domain: Arc<str>,
    /// Domain of service names, for example `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Namespace whose policies apply to the whole mesh, for example `istio-system`.
    pub root_namespace: Arc<str>,
    /// Network id; empty in a single network.
    pub network: Arc<str>,
    /// This node; none takes the pods of all nodes for its own.
    pub node: Option<Arc<str>>,
    /// A DENY rule of which L4 enforces nothing denies everything it might mean.
    pub policy_strict: bool,
    /// Ranges of service addresses; empty if unknown.
    pub service_range: Vec<IpNet>,
    /// Namespaces whose pods are never captured.
    pub excluded_namespaces: Vec<Arc<str>>,
    /// Paths of network namespaces by `<namespace>/<name>`; they win over the annotation `culvert.dev/netns`.
    pub netns_overrides: HashMap<String, PathBuf>,
    /// Dedicated mode: the one workload that the agent's own network namespace belongs to.
    pub dedicated: Option<Dedicated>,
    /// Waypoints that were ready before: what they stand before is refused, not let past, when they are gone.
    pub bound: BTreeSet<GatewayKey>,
    /// Who reads, if that is a waypoint: what it does is then part of the model.
    pub waypoint: Option<GatewayKey>,
    /// Further trust domains of this mesh.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// How waypoints make paths plain.
    pub normalization: Normalization,
    /// What they do with paths that climb above their root.
    pub above_root: AboveRoot,
}

/// The workload of an agent in dedicated mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dedicated {
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub name: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            network: "".into(),
            node: None,
            policy_strict: false,
            service_range: Vec::new(),
            excluded_namespaces: vec!["kube-system".into()],
            netns_overrides: HashMap::new(),
            dedicated: None,
            bound: BTreeSet::new(),
            waypoint: None,
            trust_domain_aliases: Vec::new(),
            normalization: Normalization::default(),
            above_root: AboveRoot::default(),
        }
    }
}

/// A file's text; it may hold several YAML documents.
#[derive(Clone, Copy, Debug)]
pub struct Document<'a> {
    /// Name for reports.
    pub file: &'a str,
    /// YAML or JSON.
    pub text: &'a str,
}

/// What objects mean, and what is doubtful in them.
#[derive(Clone, Debug, Default)]
pub struct Translated {
    /// Everything that was understood, which is everything.
    pub model: Model,
    /// What has no effect or probably not the wanted one.
    pub warnings: Vec<Problem>,
    /// What a controller writes back of services, workloads and what they are bound to.
    pub statuses: Vec<Status>,
    /// Waypoints that are ready or were, for the next translation's [`Settings::bound`].
    pub bound: BTreeSet<GatewayKey>,
}

/// Translates all objects of all `documents`.
///
/// **Errors**: all problems of all documents, in the order of files and lines. Nothing of them may be used then: half
/// of a policy is another policy.
pub fn translate(documents: &[Document<'_>], settings: &Settings) -> Result<Translated, Vec<Problem>> {
    let report = Report::default();
    let objects = object::read(documents, Reader::Agent, &report);
    let waypoints = Waypoints::of(&objects, settings);
    let (mut model, Bound { mut statuses, .. }) = mesh(&objects, &waypoints, settings, &report);
    statuses.extend(authorization::statuses(&objects));
    let live: Vec<&Pod> = objects.pods.iter().filter(|pod| pod.is_live()).collect();
    model.pods = local_pods(&live, &objects, settings, &report);

    match report.finish() {
        (problems, warnings) if problems.is_empty() => {
            model.background = background::of(&objects, &warnings, settings);
            // While the objects are still there: what stays lies beside itself, not in the gaps among them.
            let model = model.settle();
            Ok(Translated { model, warnings, statuses, bound: waypoints.bound() })
        }
        (problems, _) => Err(problems),
    }
}

impl From<TranslatedWaypoint> for Translated {
    fn from(translated: TranslatedWaypoint) -> Self {
        let TranslatedWaypoint { model, mut waypoint, statuses, warnings } = translated;
        waypoint.statuses = statuses.clone();
        let model = Model { waypoint: Some(Arc::new(waypoint)), ..model };
        Self { model, warnings, statuses, bound: BTreeSet::new() }
    }
}

/// What everybody knows of the mesh: workloads, services, L4 policies, and what is bound to which waypoint.
fn mesh(
    objects: &Objects,
    waypoints: &Waypoints<'_>,
    settings: &Settings,
    report: &Report,
) -> (Model, Bound) {
    let mut model = Model::default();
    let live: Vec<&Pod> = objects.pods.iter().filter(|pod| pod.is_live()).collect();
    let pods = Pods::index(&live, report);

    // What node proxies leave out of a policy is theirs to say.
    let quiet = Report::default();
    let of_agent = if objects.reader == Reader::Agent { report } else { &quiet };
    model.policies = authorization::translate(objects, settings, of_agent);
    model.policies.extend(peer_authentication::translate(objects, settings, report));
    model.workloads = live.iter().filter_map(|pod| workload(pod, objects, settings, report)).collect();
    service::check_vips(&objects.services, settings, report);
    endpoints::add_services(objects, &pods, settings, report, &mut model);
    entries::add(objects, &pods, settings, report, &mut model);
    waypoints.check(report);
    let bound = binding::bind(&mut model, objects, waypoints, settings, report);
    target::check(&target::Known { objects, settings, model: &model }, report);
    (model, bound)
}

fn workload(pod: &Pod, objects: &Objects, settings: &Settings, report: &Report) -> Option<Workload> {
    let namespace = objects.namespaces.get(&pod.meta.namespace);
    let identity = SpiffeId::new(&settings.trust_domain, &pod.meta.namespace, &pod.service_account)
        .map_err(|error| {
            let what = "allowed: names out of a-z A-Z 0-9 - . _";
            report.problem(pod.meta.at.about("spec.serviceAccountName", error.to_string(), what));
        })
        .ok()?;
    let (workload_type, workload_name) = pod.owner();
    let (canonical_name, canonical_revision) = pod.canonical(&workload_name);
    let tunnel = pod.is_captured(namespace, settings) || pod.is_native_tunnel();
    Some(Workload {
        uid: pod.uid(settings),
        name: Arc::clone(&pod.meta.name),
        namespace: Arc::clone(&pod.meta.namespace),
        identity,
        addresses: pod.ips.clone(),
        protocol: if tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::Tcp },
        enrolment: pod.enrolment(namespace, settings),
        node: Arc::clone(&pod.node),
        canonical_name,
        canonical_revision,
        workload_type,
        workload_name,
        cluster: Arc::clone(&settings.cluster),
        network: Arc::clone(&settings.network),
        locality: objects.nodes.get(&pod.node).map(|node| node.locality.clone()).unwrap_or_default(),
        health: pod.health,
        host_network: pod.host_network,
        capacity: 1,
        hostname: "".into(),
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: pod.is_waypoint || pod.is_native_tunnel(),
        authorization_policies: listed_policies(pod, objects, settings),
    })
}

/// The policies that select the pod by label: its own namespace's and the root namespace's, then what
/// PeerAuthentication makes of it.
fn listed_policies(pod: &Pod, objects: &Objects, settings: &Settings) -> Vec<PolicyKey> {
    let mut keys = authorization::selecting(pod, objects, settings);
    keys.extend(peer_authentication::selecting(pod, objects, settings));
    keys
}

/// The pods to capture on this node, or the one pod of dedicated mode.
fn local_pods(live: &[&Pod], objects: &Objects, settings: &Settings, report: &Report) -> Vec<LocalPod> {
    let Some(Dedicated { namespace, name, service_account }) = &settings.dedicated else {
        let here = |pod: &&&Pod| settings.node.as_ref().is_none_or(|node| *node == pod.node);
        let captured = |pod: &&&Pod| pod.is_captured(objects.namespaces.get(&pod.meta.namespace), settings);
        let pods = live.iter().filter(here).filter(captured);
        let pods: Vec<LocalPod> = pods.filter_map(|pod| pod.local(settings, report)).collect();
        check_netns(live, &pods, report);
        return pods;
    };
    let own = live.iter().find(|pod| {
        pod.meta.namespace == *namespace && pod.meta.name == *name && pod.service_account == *service_account
    });
    if own.is_none() {
        report.warning(Problem {
            file: "settings".into(),
            line: 0,
            object: format!("Pod {namespace}/{name}"),
            field: String::new(),
            seen: format!("no live pod of this name with service account {service_account}"),
            allowed: "nothing is captured until the files have it, with an address in status.podIPs".into(),
        });
    }
    own.map(|pod| pod.local_in(None, settings)).into_iter().collect()
}

/// Two pods cannot have one network namespace: the second would be captured as if it were the first.
fn check_netns(live: &[&Pod], pods: &[LocalPod], report: &Report) {
    let mut owners: HashMap<&Path, &LocalPod> = HashMap::new();
    for pod in pods {
        let Some(netns) = &pod.netns else { continue };
        if let Some(other) = owners.insert(netns, pod)
            && let Some(Pod { meta, .. }) =
                live.iter().find(|p| p.meta.name == pod.name && p.meta.namespace == pod.namespace)
        {
            let seen =
                format!("{}, which Pod {}/{} has as well", netns.display(), other.namespace, other.name);
            report.problem(meta.at.about(
                "metadata.annotations",
                seen,
                "allowed: a network namespace of its own",
            ));
        }
    }
}

#[cfg(test)]
mod tests;
