//! Kubernetes objects of all files, by kind: documents and lists are taken apart, metadata is read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::endpoint_slice::EndpointSlice;
use super::gateway::{Gateway, GatewayClass};
use super::reader::{At, Field, Labels, Report};
use super::request_authentication::RequestAuthentication;
use super::service_entry::ServiceEntry;
use super::workload_entry::WorkloadEntry;
use super::yaml::Node;
use super::{Document, l7, waypoint, yaml};
use super::{authorization_policy::AuthorizationPolicy, peer_authentication::PeerAuthentication};
use super::{namespace::Namespace, node, pod::Pod, service::Service};
use crate::config::Problem;
use crate::model::l7::GatewayKey;

/// What every object has.
#[derive(Clone, Debug)]
pub(super) struct Meta {
    pub(super) at: At,
    /// Empty for kinds without namespace.
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) uid: Option<Arc<str>>,
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
    /// RFC 3339 in UTC, which sorts as text; empty, thus oldest, if the document has none.
    pub(super) created: Arc<str>,
    pub(super) deleting: bool,
}

impl Meta {
    /// `<namespace>/<name>`.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(|value| &**value)
    }
}

/// All objects that were read.
#[derive(Default)]
pub(super) struct Objects {
    pub(super) namespaces: HashMap<Arc<str>, Namespace>,
    pub(super) nodes: HashMap<Arc<str>, node::Node>,
    pub(super) pods: Vec<Pod>,
    pub(super) services: Vec<Service>,
    pub(super) slices: Vec<EndpointSlice>,
    pub(super) service_entries: Vec<ServiceEntry>,
    pub(super) workload_entries: Vec<WorkloadEntry>,
    pub(super) authorization_policies: Vec<AuthorizationPolicy>,
    /// Places of these by namespace: each pod looks for those that select it.
    policies_of: HashMap<Arc<str>, Vec<usize>>,
    pub(super) peer_authentications: Vec<PeerAuthentication>,
    pub(super) request_authentications: Vec<RequestAuthentication>,
    pub(super) gateways: Vec<Gateway>,
    pub(super) gateway_classes: HashMap<Arc<str>, GatewayClass>,
    /// Read for waypoints alone.
    pub(super) l7: l7::Objects,
    pub(super) reader: Reader,
    /// To find objects that are defined twice.
    seen: HashMap<String, At>,
    /// Files and kinds that were skipped, to say so once.
    skipped: HashSet<(Arc<str>, String)>,
}

/// For whom objects are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reader {
    /// A node agent: kinds that only waypoints act on are passed over.
    #[default]
    Agent,
    Waypoint,
}

/// A kind that is read.
struct Kind {
    name: &'static str,
    /// API versions, all of one group.
    versions: &'static [&'static str],
    has_namespace: bool,
    /// Only waypoints act on it.
    is_l7: bool,
}

const fn kind(name: &'static str, versions: &'static [&'static str]) -> Kind {
    Kind { name, versions, has_namespace: true, is_l7: false }
}

const NETWORKING: &[&str] =
    &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
const GATEWAY_API: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];

const KINDS: [Kind; 16] = [
    Kind { has_namespace: false, ..kind("Namespace", &["v1"]) },
    Kind { has_namespace: false, ..kind("Node", &["v1"]) },
    kind("Pod", &["v1"]),
    kind("Service", &["v1"]),
    kind("EndpointSlice", &["discovery.k8s.io/v1"]),
    kind("ServiceEntry", NETWORKING),
    kind("WorkloadEntry", NETWORKING),
    Kind { has_namespace: false, ..kind("GatewayClass", GATEWAY_API) },
    kind("Gateway", GATEWAY_API),
    kind("AuthorizationPolicy", SECURITY),
    kind("PeerAuthentication", SECURITY),
    kind("RequestAuthentication", SECURITY),
    Kind { is_l7: true, ..kind("VirtualService", NETWORKING) },
    Kind { is_l7: true, ..kind("DestinationRule", NETWORKING) },
    Kind { is_l7: true, ..kind("HTTPRoute", GATEWAY_API) },
    Kind {
        is_l7: true,
        ..kind("GRPCRoute", &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"])
    },
];

/// Reads all objects of all documents.
pub(super) fn read(documents: &[Document<'_>], reader: Reader, report: &Report) -> Objects {
    let mut objects = Objects { reader, ..Objects::default() };
    for document in documents {
        let file: Arc<str> = document.file.into();
        for node in yaml::documents(document.text) {
            match node {
                Ok(node) => objects.read_node(&node, &file, None, report),
                Err(refused) => report.problem(Problem {
                    file: document.file.to_owned(),
                    line: refused.line,
                    object: String::new(),
                    field: String::new(),
                    seen: refused.reason,
                    allowed: "allowed: Kubernetes objects in YAML or JSON".into(),
                }),
            }
        }
    }
    objects.mark_waypoints();
    objects
}

impl Objects {
    /// Reads one object, or all objects of a list. In a list of one kind, items may leave their kind out.
    fn read_node(&mut self, node: &Node<'_>, file: &Arc<str>, of: Option<(&str, &str)>, report: &Report) {
        let mut at = At { file: Arc::clone(file), line: node.line, object: "".into() };
        let (kind, version) = {
            let root = Field::root(node, &at, report);
            let (of_kind, of_version) = of.unzip();
            let kind = root.get("kind").map_or(of_kind, |kind| kind.text()).map(str::to_owned);
            let version = root.get("apiVersion").map_or(of_version, |v| v.text()).map(str::to_owned);
            match (kind, version) {
                (Some(kind), Some(version)) => (kind, version),
                _ => {
                    let missing = at.about("", "no kind or no apiVersion", "allowed: a Kubernetes object");
                    return report.problem(missing);
                }
            }
        };
        let root = Field::root(node, &at, report);
        if let Some(of) = kind.strip_suffix("List")
            && root.get("items").is_some()
        {
            let of = Some((of, version.as_str())).filter(|(of, _)| !of.is_empty());
            return root.items("items").iter().for_each(|item| self.read_node(item.node(), file, of, report));
        }
        // What is wrong with the names is reported by `meta`, once the object can be named.
        let quiet = Report::default();
        let metadata = Field::root(node, &at, &quiet).get("metadata");
        let text = |key: &str| metadata.as_ref().and_then(|metadata| metadata.text_at(key));
        let name = text("name").unwrap_or("").to_owned();
        let namespaced =
            KINDS.iter().find(|known| known.name == kind).is_none_or(|known| known.has_namespace);
        let namespace = match text("namespace") {
            Some(namespace) if namespaced => namespace.to_owned(),
            None if namespaced => "default".to_owned(), // as kubectl does
            _ => String::new(),
        };
        at.object = match namespaced {
            true => format!("{kind} {namespace}/{name}").into(),
            false => format!("{kind} {name}").into(),
        };
        let root = Field::root(node, &at, report);
        if self.is_read(&root, &kind, &version)
            && let Some(meta) = meta(&root, &namespace, &name)
            && self.is_first(&kind, &meta, report)
        {
            self.keep(&kind, meta, &root);
        }
    }

    /// Whether the object's kind and version are read; reports what is not, unknown kinds once per file.
    fn is_read(&mut self, root: &Field<'_>, kind: &str, version: &str) -> bool {
        let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
        let known = KINDS.iter().find(|known| {
            known.name == kind && known.versions.iter().any(|known| group(known) == group(version))
        });
        let Some(Kind { versions, is_l7, .. }) = known else {
            let what = format!("{kind} of {version}");
            if self.skipped.insert((Arc::clone(&root.at().file), what.clone())) {
                let names: Vec<&str> = KINDS.iter().map(|known| known.name).collect();
                let seen = format!("{what} is not read, so it has no effect");
                let field = root.get("kind").unwrap_or_else(|| root.clone());
                field.warning(seen, format!("read are {}", names.join(", ")));
            }
            return false;
        };
        if *is_l7 && self.reader == Reader::Agent {
            return false;
        }
        let is_read = versions.contains(&version);
        if !is_read {
            match root.get("apiVersion") {
                Some(field) => field.refuse(&versions.join(", ")),
                None => {
                    root.problem(
                        format!("apiVersion {version}"),
                        format!("allowed: {}", versions.join(", ")),
                    );
                }
            }
        }
        is_read
    }

    /// The policies of these namespaces, which differ, in the order in which they were read.
    pub(super) fn policies_in(&self, namespaces: &[&str]) -> Vec<&AuthorizationPolicy> {
        let mut places: Vec<usize> =
            namespaces.iter().filter_map(|n| self.policies_of.get(*n)).flatten().copied().collect();
        places.sort_unstable();
        places.into_iter().filter_map(|place| self.authorization_policies.get(place)).collect()
    }

    /// Tells the pods of waypoints from others.
    fn mark_waypoints(&mut self) {
        let waypoints = self.gateways.iter().filter(|gateway| gateway.is_waypoint(&self.gateway_classes));
        let waypoints: HashSet<GatewayKey> = waypoints.map(Gateway::key).collect();
        for pod in &mut self.pods {
            pod.is_waypoint = waypoint::is_instance(&pod.meta, &waypoints);
        }
    }

    fn is_first(&mut self, kind: &str, meta: &Meta, report: &Report) -> bool {
        match self.seen.get(&*meta.at.object) {
            Some(first) => {
                let seen =
                    format!("a second {kind} of this name; the first is {}:{}", first.file, first.line);
                report.problem(meta.at.about("metadata.name", seen, "allowed: each object once"));
                false
            }
            None => {
                self.seen.insert(meta.at.object.to_string(), meta.at.clone());
                true
            }
        }
    }

    fn keep(&mut self, kind: &str, meta: Meta, root: &Field<'_>) {
        let name = Arc::clone(&meta.name);
        match kind {
            "Namespace" => drop(self.namespaces.insert(name, Namespace::read(meta))),
            "Node" => drop(self.nodes.insert(name, node::Node::read(&meta, root))),
            "Pod" => self.pods.push(Pod::read(meta, root)),
            "Service" => self.services.extend(Service::read(meta, root)),
            "EndpointSlice" => self.slices.extend(EndpointSlice::read(meta, root)),
            "ServiceEntry" => self.service_entries.extend(ServiceEntry::read(meta, root)),
            "WorkloadEntry" => self.workload_entries.extend(WorkloadEntry::read(meta, root)),
            "AuthorizationPolicy" => {
                let places = self.policies_of.entry(Arc::clone(&meta.namespace)).or_default();
                places.push(self.authorization_policies.len());
                self.authorization_policies.push(AuthorizationPolicy::read(meta, root));
            }
            "PeerAuthentication" => self.peer_authentications.push(PeerAuthentication::read(meta, root)),
            "RequestAuthentication" => {
                self.request_authentications.push(RequestAuthentication::read(meta, root));
            }
            "Gateway" => self.gateways.extend(Gateway::read(meta, root)),
            "GatewayClass" => {
                if let Some(class) = GatewayClass::read(root) {
                    self.gateway_classes.insert(name, class);
                }
            }
            _ => self.l7.keep(kind, meta, root), // `is_read` lets no kind through that nobody reads
        }
    }
}

/// The object's metadata; none, with a report, if its names cannot be used.
fn meta(root: &Field<'_>, namespace: &str, name: &str) -> Option<Meta> {
    let Some(metadata) = root.get("metadata") else {
        root.problem("no metadata.name", "allowed: an object with a name");
        return None;
    };
    let is_name = |text: &str| {
        let char = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        (1..=253).contains(&text.len()) && text.bytes().all(char)
    };
    let allowed = "1 to 253 characters out of a-z 0-9 - .";
    let mut good = true;
    for (key, value) in [("name", name), ("namespace", namespace)] {
        if !is_name(value) && (key == "name" || !value.is_empty()) {
            good = false;
            match metadata.get(key) {
                Some(field) => field.refuse(allowed),
                None => metadata.problem(format!("no {key}"), format!("allowed: {allowed}")),
            }
        }
    }
    Some(Meta {
        at: root.at().clone(),
        namespace: namespace.into(),
        name: name.into(),
        uid: metadata.text_at("uid").map(Arc::from),
        labels: metadata.labels("labels"),
        annotations: metadata.labels("annotations"),
        created: metadata.text_at("creationTimestamp").unwrap_or("").into(),
        deleting: metadata.get("deletionTimestamp").is_some(),
    })
    .filter(|_| good)
}
