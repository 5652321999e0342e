//! What a source knows of objects beyond what decisions need: for people who ask why. No decision reads it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::Endpoint;
use crate::types::{PolicyKey, ServiceKey, WorkloadUid};

/// What a source knows of objects beyond what decisions need; all of it may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Background {
    /// Labels that a policy selects its workloads by, as `app=cart,tier=web`.
    pub policy_selectors: BTreeMap<PolicyKey, Arc<str>>,
    /// Positions, from 0, of a policy's rules that are left out because L4 cannot see what they ask for.
    pub rules_left_out: BTreeMap<PolicyKey, Vec<usize>>,
    /// Labels that a service selects its pods by.
    pub service_selectors: BTreeMap<ServiceKey, Arc<str>>,
    /// Names of target ports by service and service port, where they are no numbers.
    pub port_names: BTreeMap<(ServiceKey, u16), Arc<str>>,
    /// Why a workload is not captured, for each that is not.
    pub not_captured: HashMap<WorkloadUid, NotCaptured>,
    /// TCP ports that a pod's containers declare, for pods that declare any; an app may listen on others.
    pub declared_ports: HashMap<WorkloadUid, Vec<u16>>,
    /// Workloads to which plaintext is not redirected, by their annotation.
    pub bypass_inbound: HashSet<WorkloadUid>,
    /// Which PeerAuthentication decides for a workload, where there is one.
    pub peer_authentication: HashMap<WorkloadUid, PeerMode>,
    /// Objects that take no part, by kind and name, with the reason.
    pub left_out: BTreeMap<String, Arc<str>>,
    /// Pods that a service selects and that take no part.
    pub selected_left_out: BTreeMap<ServiceKey, Vec<LeftOut>>,
    /// Workloads behind services that are not known.
    pub staged: BTreeMap<ServiceKey, Vec<Endpoint>>,
    /// What is doubtful in an object: kind and name, and one line.
    pub remarks: Vec<(Arc<str>, Arc<str>)>,
}

/// A pod that takes no part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// `<namespace>/<name>`
    pub pod: Arc<str>,
    /// Why, as the end of a sentence.
    pub why: Arc<str>,
}

/// Why a workload is not captured. `Display` ends the sentence "it is not captured: ".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCaptured {
    /// Neither it nor its namespace asks for it.
    NotLabelled,
    /// Its own label says no.
    LabelledNone,
    /// It has its node's network namespace.
    HostNetwork,
    /// It has a sidecar.
    Sidecar,
    /// The agent's settings leave its namespace out.
    ExcludedNamespace,
    /// It is a node agent.
    NodeAgent,
    /// It is an instance of a waypoint.
    Waypoint,
    /// The annotation `ambient.istio.io/redirection` says no.
    RedirectionOff,
}

impl fmt::Display for NotCaptured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLabelled => {
                "neither the pod nor its namespace has the label istio.io/dataplane-mode=ambient"
            }
            Self::LabelledNone => "the pod's own label istio.io/dataplane-mode=none keeps it out",
            Self::HostNetwork => "it uses its node's network (hostNetwork), where pods cannot be told apart",
            Self::Sidecar => "it has a sidecar (annotation sidecar.istio.io/status)",
            Self::ExcludedNamespace => "its namespace is among those that the agent leaves out",
            Self::NodeAgent => "it is a node agent itself",
            Self::Waypoint => "it is a waypoint itself, which ends tunnels and begins its own",
            Self::RedirectionOff => "its annotation ambient.istio.io/redirection is not \"enabled\"",
        })
    }
}

/// Whether a workload takes plaintext, and which object says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMode {
    /// `STRICT` or not, where no port says otherwise.
    pub is_strict: bool,
    /// Kind and name of the object that sets the mode; none is the default, PERMISSIVE.
    pub by: Option<Arc<str>>,
    /// Kind and name of the object that makes exceptions for ports.
    pub ports_by: Option<Arc<str>>,
}
