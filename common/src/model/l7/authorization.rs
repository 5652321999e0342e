//! Authorization policies as a waypoint evaluates them.

use std::sync::Arc;

use ipnet::IpNet;

use super::Pattern;
use crate::model::{ServiceAccountMatch, StringMatch};
use crate::types::PolicyKey;

/// The policies of one target, by what a match means; each list in the order of keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// A match denies.
    pub deny: Vec<Arc<Policy>>,
    /// A match allows; once any is here, what none matches is denied.
    pub allow: Vec<Arc<Policy>>,
    /// A match is logged.
    pub audit: Vec<Arc<Policy>>,
    /// What cannot be evaluated: everything is denied, with the first of these as the reason.
    pub broken: Vec<PolicyFault>,
}

/// A policy that cannot be evaluated here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFault {
    /// Kind of the object: AuthorizationPolicy or RequestAuthentication.
    pub kind: &'static str,
    /// The object.
    pub key: PolicyKey,
    /// Why.
    pub reason: Arc<str>,
}

/// One policy. Source: Istio AuthorizationPolicy reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub key: PolicyKey,
    /// What a match means.
    pub effect: Effect,
    /// Told, not enforced.
    pub dry_run: bool,
    /// One must match; none: never matches.
    pub rules: Vec<PolicyRule>,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is allowed.
    Allow,
    /// It is denied, whatever else allows.
    Deny,
    /// It is logged.
    Audit,
}

/// AND over its three parts; each is true if empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyRule {
    /// Who asks: one must match.
    pub from: Vec<Source>,
    /// For what: one must match.
    pub to: Vec<Operation>,
    /// All must hold.
    pub when: Vec<Condition>,
}

/// Values of which one must match, and values of which none may; both true if empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Access<T> {
    /// One must match.
    pub values: Vec<T>,
    /// None may match.
    pub not_values: Vec<T>,
}

impl<T> Default for Access<T> {
    fn default() -> Self {
        Self { values: Vec::new(), not_values: Vec::new() }
    }
}

/// Values that are texts.
pub type Texts = Access<StringMatch>;

/// AND over its fields.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the names are those of Source in AuthorizationPolicy")]
pub struct Source {
    /// `<trust domain>/ns/<namespace>/sa/<service account>`, trust-domain aliases expanded.
    pub principals: Texts,
    pub namespaces: Texts,
    pub service_accounts: Access<ServiceAccountMatch>,
    pub trust_domains: Texts,
    /// `ipBlocks`: the client that the tunnel is from.
    pub ip_blocks: Access<IpNet>,
    /// `remoteIpBlocks`: the same, or what a trusted hop says.
    pub remote_ip_blocks: Access<IpNet>,
}

/// AND over its fields.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the names are those of Operation in AuthorizationPolicy")]
pub struct Operation {
    pub hosts: Texts,
    pub ports: Access<u16>,
    pub methods: Texts,
    pub paths: Access<PathMatch>,
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// As a text.
    Text(StringMatch),
    /// With `{*}` for one segment and `{**}` for any number.
    Template {
        /// As it was written.
        text: Arc<str>,
        /// What it means.
        pattern: Pattern,
    },
}

/// One of `when`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are the keys")]
pub enum Condition {
    /// `request.headers[x]`; the name is in lower case.
    RequestHeader {
        name: Arc<str>,
        values: Texts,
    },
    SourceIp(Access<IpNet>),
    RemoteIp(Access<IpNet>),
    SourceNamespace(Texts),
    SourcePrincipal(Texts),
    SourceServiceAccount(Access<ServiceAccountMatch>),
    SourceTrustDomain(Texts),
    DestinationIp(Access<IpNet>),
    DestinationPort(Access<u16>),
    /// `connection.sni`
    ServerName(Texts),
}

impl Source {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Operation {
    /// Whether it asks for something that only HTTP has: hosts, methods, paths.
    pub fn needs_http(&self) -> bool {
        let texts = |texts: &Texts| !texts.values.is_empty() || !texts.not_values.is_empty();
        texts(&self.hosts) || texts(&self.methods) || self.paths != Access::default()
    }
}
