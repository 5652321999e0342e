//! An authorization policy, in the form that istiod sends to a node proxy.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::types::PolicyKey;

/// A policy: OR over rules, AND over clauses, OR over matches. Source: `istio.security.Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// Primary key.
    pub key: PolicyKey,
    /// To whom it applies.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Log only.
    pub dry_run: bool,
    /// No rule: never matches.
    pub rules: Vec<Rule>,
}

/// To whom a policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every workload.
    Global,
    /// Every workload of its namespace.
    Namespace,
    /// The workloads that list it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A match allows; once any exists, what none matches is denied.
    Allow,
    /// A match denies, whatever else allows.
    Deny,
}

/// AND over clauses; without clauses it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// All must match.
    pub clauses: Vec<Clause>,
}

/// OR over matches; without matches it is true, with only empty ones it is false.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// One must match.
    pub matches: Vec<Match>,
}

/// AND over its fields: each field that says something must hold (no positive or any positive, and no negative).
///
/// Address fields are `Option`: `Some` of an empty list is a list of which nothing could be read, and decides against
/// the peer: it never holds in an ALLOW policy and always in a DENY policy, so that nothing more gets through because
/// an IP block did not parse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of istio.security.Match")]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    pub source_ips: Option<Vec<IpNet>>,
    pub not_source_ips: Option<Vec<IpNet>>,
    pub destination_ips: Option<Vec<IpNet>>,
    pub not_destination_ips: Option<Vec<IpNet>>,
    pub destination_ports: PortSet,
    pub not_destination_ports: PortSet,
}

/// Ports of a match; few, so a list.
pub type PortSet = Vec<u16>;

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// The whole text.
    Exact(Arc<str>),
    /// Its beginning.
    Prefix(Arc<str>),
    /// Its end.
    Suffix(Arc<str>),
    /// Not empty.
    Presence,
}

/// A service account of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub service_account: Arc<str>,
}

/// As an AuthorizationPolicy writes it: `web`, `web*`, `*web`, `*`.
impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Presence => f.write_str("*"),
        }
    }
}

/// `<namespace>/<service account>`
impl fmt::Display for ServiceAccountMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}
