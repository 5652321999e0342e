//! Network namespaces that look like a cluster: a wire between nodes, nodes with a pod network, pods with real programs.
//!
//! Decides names, addresses, routes and who is cleaned up; knows nothing of what runs inside, except how to start an
//! agent ([`Agent`]) and which documents describe what was built ([`Lab::publish`]). Nothing is changed in the
//! caller's own network namespace but the names under `/var/run/netns`.
//!
//! Topology: one namespace `wire` with a bridge; each node a namespace with an uplink into it and a bridge for its
//! pods; each pod a namespace behind that bridge, its default route through the node. Addresses are the same in every
//! lab (they never leave it): node n is 10.0.0.n and fd00::n, its pods 10.244.n.0/24 and fd00:244:n::/64, services
//! 10.96.0.0/16 and fd00:96::/112.
//!
//! Start reading at [`Lab`]; `place.rs` runs things inside a namespace, `netns.rs` makes and removes them.

mod agent;
mod documents;
mod error;
pub mod http;
mod log_line;
mod netns;
mod place;
mod poll;
mod process;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use agent::{Agent, AgentOptions, find_ztunnel};
pub use error::LabError;
pub use log_line::LogLine;
pub use netns::{kill_children, remove_all};
pub use place::{Place, PlaceCommand};
pub use poll::{pause, wait_until};
pub use process::{Finished, Process, find_program, package_of};
pub use wire::{PortCount, Seen, Tap};

use error::At;
use netns::Ground;

/// Service range every lab routes into its pods' nodes, IPv4 and IPv6.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// How a lab is made.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Start of every name the lab makes; leftovers of dead runs with the same prefix are removed at start.
    pub prefix: String,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { prefix: "culvert".to_owned() }
    }
}

/// One of the lab's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(usize);

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Name, unique in the lab.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations beside the one that names its network namespace.
    pub annotations: BTreeMap<String, String>,
    /// `Some(true)` labels the pod `ambient`, `Some(false)` `none`; `None` leaves it to its namespace.
    pub captured: Option<bool>,
    /// Host part of its addresses (10 to 250), the next free one when `None`.
    pub host: Option<u8>,
}

impl PodSpec {
    /// A pod in namespace `default`, with a service account of its own name and the label `app`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            service_account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            annotations: BTreeMap::new(),
            captured: None,
            host: None,
        }
    }

    /// Sets the namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Sets the service account.
    pub fn service_account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.service_account);
        self
    }

    /// Sets one label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets one annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Labels the pod itself as inside or outside the mesh.
    pub fn captured(mut self, captured: bool) -> Self {
        self.captured = Some(captured);
        self
    }
}

/// A pod that exists: its namespace has addresses and routes. Dereferences to its [`Place`].
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it was asked to be.
    pub spec: PodSpec,
    /// Its node.
    pub node: NodeId,
    /// Name of its node.
    pub node_name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    place: Place,
}

impl Pod {
    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Its SPIFFE identity in trust domain `cluster.local`.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.spec.namespace, self.spec.service_account)
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

#[derive(Debug)]
struct Node {
    name: String,
    place: Place,
    next_host: u8,
    links: u32,
}

impl Node {
    /// Number of the node, from 1, as it stands in addresses.
    fn addresses(index: usize) -> (Ipv4Addr, Ipv6Addr) {
        let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
        (Ipv4Addr::new(10, 0, 0, number), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()))
    }

    fn pod_address(index: usize, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
        // The same digits in both families: fd00:244:1::10 is the pod with 10.244.1.10.
        let digits = u16::from_str_radix(&host.to_string(), 16).unwrap_or(u16::from(host));
        let subnet = u16::from_str_radix(&number.to_string(), 16).unwrap_or(u16::from(number));
        (Ipv4Addr::new(10, 244, number, host), Ipv6Addr::new(0xfd00, 0x244, subnet, 0, 0, 0, 0, digits))
    }
}

/// A cluster made of network namespaces. Dropping it kills every process in them and removes them.
#[derive(Debug)]
pub struct Lab {
    ground: Arc<Ground>,
    wire: Place,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
}

impl Lab {
    /// An empty lab with its wire; sweeps what dead runs left behind.
    ///
    /// **Errors:** not root, `ip` missing, namespaces not allowed: each says what to do.
    pub fn new(options: LabOptions) -> Result<Self, LabError> {
        let ground = Ground::new(&options.prefix)?;
        for sub in ["config", "logs", "ca", "run"] {
            let path = ground.dir().join(sub);
            fs::create_dir(&path).at(|| format!("create {}", path.display()))?;
        }
        private(&ground.dir().join("ca"))?;
        let wire = ground.place("wire")?;
        wire.ip("link add name br0 type bridge\nlink set br0 up\n")?;
        Ok(Self { ground, wire, nodes: Vec::new(), pods: Vec::new() })
    }

    /// Adds a node and routes it to all others.
    pub fn node(&mut self, name: &str) -> Result<NodeId, LabError> {
        let index = self.nodes.len();
        if index >= 99 {
            return Err(LabError::Full { what: "nodes" });
        }
        let place = self.ground.place(name)?;
        place.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let port = format!("n{}", index + 1);
        self.wire.ip(&format!(
            "link add name {port} type veth peer name eth0 netns {}\nlink set {port} master br0\nlink set {port} up\n",
            place.netns()
        ))?;
        let (v4, v6) = Node::addresses(index);
        let (gateway4, gateway6) = Node::pod_address(index, 1);
        // An address of its own: else the bridge has its ports' lowest, and changes it as pods come and go, while the others
        // keep sending to the old one for as long as their neighbour entry is good.
        let mut batch = format!(
            "link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
             link add name pods address 02:00:00:00:00:01 type bridge\nlink set pods up\n\
             addr add {gateway4}/24 dev pods\naddr add {gateway6}/64 dev pods nodad\n"
        );
        for other in 0..index {
            batch.push_str(&routes(other));
        }
        place.ip(&batch)?;
        for node in &self.nodes {
            node.place.ip(&routes(index))?;
        }
        self.nodes.push(Node { name: name.to_owned(), place, next_host: 10, links: 0 });
        Ok(NodeId(index))
    }

    /// Adds a pod to a node: addresses of both families, default route through the node.
    pub fn pod(&mut self, node: NodeId, spec: PodSpec) -> Result<Pod, LabError> {
        let NodeId(index) = node;
        let place = self.ground.place(&spec.name)?;
        let owner = self.nodes.get_mut(index).ok_or(LabError::Full { what: "nodes" })?;
        let host = match spec.host {
            Some(host) => host,
            None => {
                let host = owner.next_host;
                owner.next_host =
                    host.checked_add(1).filter(|h| *h <= 250).ok_or(LabError::Full { what: "pods" })?;
                host
            }
        };
        owner.links += 1;
        let link = format!("v{}", owner.links);
        owner.place.ip(&format!(
            "link add name {link} type veth peer name eth0 netns {}\nlink set {link} master pods\nlink set {link} up\n",
            place.netns()
        ))?;
        let (v4, v6) = Node::pod_address(index, host);
        let (gateway4, gateway6) = Node::pod_address(index, 1);
        place.ip(&format!(
            "link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
             route add default via {gateway4}\nroute add default via {gateway6}\n"
        ))?;
        let pod = Pod { node, node_name: owner.name.clone(), v4, v6, place, spec };
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Takes a pod away: its processes are killed, its namespace is gone. Its address may be used again.
    pub fn remove_pod(&mut self, name: &str) -> Result<(), LabError> {
        let Some(at) = self.pods.iter().position(|p| p.spec.name == name) else {
            return Ok(());
        };
        let pod = self.pods.remove(at);
        self.ground.remove_place(pod.netns())
    }

    /// The node's own namespace: what runs there is host network.
    ///
    /// **Errors:** the id belongs to another lab.
    pub fn host(&self, node: NodeId) -> Result<&Place, LabError> {
        self.nodes.get(node.0).map(|n| &n.place).ok_or(LabError::Full { what: "nodes" })
    }

    /// The node's own addresses.
    pub fn host_addresses(&self, node: NodeId) -> [IpAddr; 2] {
        let (v4, v6) = Node::addresses(node.0);
        [v4.into(), v6.into()]
    }

    /// The node's name.
    pub fn node_name(&self, node: NodeId) -> &str {
        self.nodes.get(node.0).map_or("", |n| n.name.as_str())
    }

    /// The namespace of the network between nodes.
    pub fn wire(&self) -> &Place {
        &self.wire
    }

    /// All pods, in the order they were made.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Watches the wire; payloads are searched for `markers`.
    pub fn tap(&self, markers: &[&[u8]]) -> Result<Tap, LabError> {
        Tap::start(&self.wire, markers)
    }

    /// Directory of everything the lab keeps on disk; gone with it.
    pub fn dir(&self) -> &Path {
        self.ground.dir()
    }

    /// Directory of the mesh's documents, given to agents as `--config`.
    pub fn config_dir(&self) -> PathBuf {
        self.dir().join("config")
    }

    /// Directory of the shared CA, given to agents as `--ca-dir`; mode 0700.
    pub fn ca_dir(&self) -> PathBuf {
        self.dir().join("ca")
    }

    /// Start of this lab's namespace names, with a trailing dash.
    pub fn netns_prefix(&self) -> String {
        format!("{}-", self.ground.prefix())
    }
}

/// Routes to a node's pods, for the other nodes.
fn routes(index: usize) -> String {
    let (v4, v6) = Node::addresses(index);
    let (pods4, pods6) = Node::pod_address(index, 0);
    format!("route add {pods4}/24 via {v4}\nroute add {pods6}/64 via {v6}\n")
}

fn private(path: &Path) -> Result<(), LabError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .at(|| format!("set the mode of {}", path.display()))
}

#[cfg(test)]
mod tests;
