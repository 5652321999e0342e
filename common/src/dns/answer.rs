//! Which addresses a name has for the pod that asks.

use std::net::IpAddr;
use std::sync::Arc;

use super::message::{Answer, Family, Question};
use super::names::{Candidate, candidates, wildcards};
use crate::model::{IpFamilies, Service, Visibility, Workload, WorkloadType};
use crate::state::Snapshot;
use crate::types::ServiceKey;

/// How names are formed here, the same for every pod.
#[derive(Clone, Debug)]
pub struct Naming {
    /// Domain of the cluster, in lower case.
    pub domain: Arc<str>,
    /// Namespace whose services win among several of one host name, after the client's own and the canonical one.
    pub preferred_namespace: Option<Arc<str>>,
    /// Whether IPv6 addresses are told.
    pub ipv6: bool,
}

/// The pod that asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its network.
    pub network: &'a str,
}

/// What became of a name of the mesh. **Source**: l4.md §7.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has addresses of this kind.
    Success,
    /// It has none of this kind now.
    NoRecords,
    /// It never has addresses of this kind.
    Unsupported,
}

impl Outcome {
    /// As logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::NoRecords => "no records",
            Self::Unsupported => "service does not support this record type",
        }
    }
}

/// The answer for a name of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What is said.
    pub answer: Answer,
    /// What became of it.
    pub outcome: Outcome,
}

/// The answer, if the mesh has the name; none when somebody else is to be asked.
///
/// `random` decides the order of the addresses.
pub fn answer(
    snapshot: &Snapshot,
    naming: &Naming,
    asker: Asker<'_>,
    question: &Question,
    random: u64,
) -> Option<Resolved> {
    let looked = Look { snapshot, naming, asker };
    candidates(&question.name, asker.namespace, &naming.domain)
        .into_iter()
        .find_map(|candidate| looked.resolve(candidate, question, random))
}

/// Keys of services that a name may mean and that a control plane can be asked for: the Kubernetes forms, which tell the
/// namespace.
pub fn keys(naming: &Naming, asker: Asker<'_>, name: &str) -> Vec<ServiceKey> {
    let key = |candidate: Candidate| {
        let rest = candidate.name.strip_suffix(&*naming.domain)?.strip_suffix(".svc.")?;
        let (name, namespace) = rest.rsplit_once('.')?;
        let service = match name.split_once('.') {
            None => name,
            // A pod of a StatefulSet is found by its service.
            Some((pod, service)) => Some(service).filter(|it| is_numbered(pod) && !it.contains('.'))?,
        };
        let hostname = format!("{service}.{namespace}.svc.{}", naming.domain);
        Some(ServiceKey { namespace: namespace.into(), hostname: hostname.into() })
    };
    let mut keys: Vec<_> =
        candidates(name, asker.namespace, &naming.domain).into_iter().filter_map(key).collect();
    keys.dedup();
    keys.truncate(KEYS_MAX);
    keys
}

/// A name has few forms; a control plane is not asked for more of them.
const KEYS_MAX: usize = 4;

struct Look<'a> {
    snapshot: &'a Snapshot,
    naming: &'a Naming,
    asker: Asker<'a>,
}

impl Look<'_> {
    fn resolve(&self, candidate: Candidate, question: &Question, random: u64) -> Option<Resolved> {
        let Candidate { name, stripped } = candidate;
        if let Some(service) = self.service(&name) {
            let addresses = self.of_service(service, question.family);
            return Some(self.resolved(addresses, stripped, question, random));
        }
        if let Some(workload) = self.stateful_pod(&name) {
            return Some(self.resolved(self.of_pod(workload, question.family), stripped, question, random));
        }
        let service = wildcards(&name).find_map(|wildcard| self.service(&wildcard))?;
        Some(self.resolved(self.of_service(service, question.family), None, question, random))
    }

    fn resolved(
        &self,
        addresses: Option<Vec<IpAddr>>,
        alias: Option<String>,
        question: &Question,
        random: u64,
    ) -> Resolved {
        let outcome = match &addresses {
            None => Outcome::Unsupported,
            Some(none) if none.is_empty() => Outcome::NoRecords,
            Some(_) => Outcome::Success,
        };
        let mut addresses = addresses.unwrap_or_default();
        shuffle(&mut addresses, random);
        // What stands for a name in the answer is what the negative part of it speaks for.
        let name = alias.as_deref().unwrap_or(&question.name);
        let is_below = name.strip_suffix(&*self.naming.domain).is_some_and(|rest| rest.ends_with('.'));
        let zone = if is_below { self.naming.domain.to_string() } else { name.to_owned() };
        let serial = u32::try_from(self.snapshot.revision & u64::from(u32::MAX)).unwrap_or_default();
        Resolved { answer: Answer { alias, addresses, zone, serial }, outcome }
    }

    /// The service of this host name that the asker may see and that has addresses to tell: own namespace, then
    /// canonical, then the preferred namespace, then the first.
    fn service(&self, name: &str) -> Option<&Service> {
        let all = self.snapshot.services_named(name).iter().map(|service| &**service);
        let fit = all.filter(|s| self.is_visible(s) && (!s.is_headless() || self.is_in_cluster(s)));
        let preferred = self.naming.preferred_namespace.as_deref();
        fit.min_by_key(|s| match () {
            () if *s.key.namespace == *self.asker.namespace => 0,
            () if s.canonical => 1,
            () if Some(&*s.key.namespace) == preferred => 2,
            () => 3,
        })
    }

    fn is_visible(&self, service: &Service) -> bool {
        service.visibility == Visibility::Public || *service.key.namespace == *self.asker.namespace
    }

    /// Whether it is a service of the cluster, which has addresses also when it is headless.
    fn is_in_cluster(&self, service: &Service) -> bool {
        let rest = service.key.hostname.strip_suffix(&*self.naming.domain);
        rest.is_some_and(|rest| rest.ends_with(".svc."))
    }

    /// None when it never has any of this family.
    fn of_service(&self, service: &Service, family: Family) -> Option<Vec<IpAddr>> {
        let excluded = match service.ip_families {
            IpFamilies::V4 => family == Family::V6,
            IpFamilies::V6 => family == Family::V4,
            IpFamilies::Automatic | IpFamilies::Dual => false,
        };
        if excluded || self.is_off(family) {
            return None;
        }
        if !service.is_headless() {
            return Some(service.vips.iter().copied().filter(|ip| family.has(*ip)).collect());
        }
        let ready = service.endpoints.iter().filter(|endpoint| service.is_ready(endpoint.health));
        let workloads = ready.filter_map(|endpoint| self.snapshot.workload(&endpoint.workload));
        let mut addresses: Vec<_> = workloads.filter_map(|workload| self.address(workload, family)).collect();
        // Pods that share their node's address have it once.
        addresses.sort_unstable();
        addresses.dedup();
        Some(addresses)
    }

    /// `pod-0.service.namespace.svc.domain`: the pod of a StatefulSet behind a headless service.
    ///
    /// Istiod names no StatefulSet: its pods stand for themselves, and are told by the number at the end. Names of other
    /// pods are none in Kubernetes' DNS.
    fn stateful_pod(&self, name: &str) -> Option<&Workload> {
        let (pod, host) = name.split_once('.')?;
        if !is_numbered(pod) {
            return None;
        }
        let service = self.service(host).filter(|s| s.is_headless() && self.is_in_cluster(s))?;
        let ready = service.endpoints.iter().filter(|endpoint| service.is_ready(endpoint.health));
        let mut workloads = ready.filter_map(|endpoint| self.snapshot.workload(&endpoint.workload));
        let is_it = |w: &&Arc<Workload>| {
            *w.name == *pod && w.namespace == service.key.namespace && w.workload_type == WorkloadType::Pod
        };
        workloads.find(is_it).map(|workload| &**workload)
    }

    fn of_pod(&self, workload: &Workload, family: Family) -> Option<Vec<IpAddr>> {
        (!self.is_off(family)).then(|| self.address(workload, family).into_iter().collect())
    }

    fn address(&self, workload: &Workload, family: Family) -> Option<IpAddr> {
        let is_near = *workload.network == *self.asker.network;
        workload.addresses.iter().copied().find(|ip| is_near && family.has(*ip))
    }

    fn is_off(&self, family: Family) -> bool {
        family == Family::V6 && !self.naming.ipv6
    }
}

/// Whether a pod's name ends with its number in a set. The random endings of other pods have five letters or digits.
fn is_numbered(pod: &str) -> bool {
    let number = pod.rsplit_once('-').map_or("", |(_, number)| number);
    (1..=4).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Fisher and Yates, with numbers that follow from the one.
fn shuffle(addresses: &mut [IpAddr], random: u64) {
    let mut state = random | 1; // never 0, which would stay 0
    for last in (1..addresses.len()).rev() {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let among = u64::try_from(last).unwrap_or(u64::MAX) + 1;
        addresses.swap(last, usize::try_from((state >> 11) % among).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
