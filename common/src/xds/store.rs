//! What the control plane has said so far, by name: versions, workloads, services with their endpoints, policies.
//!
//! A push changes what it names and nothing else: all other items stay the very same objects, so that a publication
//! copies pointers. Services learn their endpoints from the workloads, which may come first. An item that cannot be
//! used leaves what was there before. Knows no streams and no clock. Start with [`Store::apply`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::proto::discovery::Resource;
use super::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use super::translate::{self, Address, Membership, Options, Unusable};
use crate::model::{Authorization, Background, Endpoint, Parts, Service, Texts, Workload};
use crate::types::{PolicyKey, ServiceKey, WorkloadUid};

/// Texts that may be held needlessly before they are looked through.
const SPARE_TEXTS: usize = 4096;
/// Rejections that are told one by one.
const TOLD_MAX: usize = 32;

/// The types of resources that this agent asks for, in the order in which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl Kind {
    /// Every type, policies last: what they apply to is there by then.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// Its type URL.
    pub fn url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
        }
    }

    /// The type of this URL, if it is asked for.
    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// Whoever wants to know what was taken, such as a copy on disk.
pub trait Log {
    /// It is in force, or what stands in for it.
    fn there(&mut self, kind: Kind, resource: &Resource);
    /// It is gone.
    fn gone(&mut self, kind: Kind, name: &str);
}

/// Nobody.
impl Log for () {
    fn there(&mut self, _: Kind, _: &Resource) {}
    fn gone(&mut self, _: Kind, _: &str) {}
}

/// What a resource changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Version,
    Content,
}

/// Resources by name.
#[derive(Default)]
pub struct Store {
    options: Options,
    /// Bytes on the wire of all that is held.
    held: usize,
    workloads: BTreeMap<WorkloadUid, HeldWorkload>,
    services: BTreeMap<ServiceKey, HeldService>,
    policies: BTreeMap<PolicyKey, HeldPolicy>,
    /// Workloads behind each service, known or not.
    members: BTreeMap<ServiceKey, BTreeSet<WorkloadUid>>,
    /// Services whose endpoints are to be made again.
    touched: BTreeSet<ServiceKey>,
    texts: Texts,
    /// Texts that were left when unused ones were forgotten last.
    texts_used: usize,
    ports: HashSet<Arc<[(u16, u16)]>>,
}

struct HeldWorkload {
    item: Arc<Workload>,
    member_of: Box<[Member]>,
    origin: Origin,
}

/// Of which service, and its ports.
#[derive(PartialEq)]
struct Member {
    service: ServiceKey,
    ports: Arc<[(u16, u16)]>,
}

struct HeldService {
    /// With its endpoints as of the last publication.
    item: Arc<Service>,
    origin: Origin,
}

struct HeldPolicy {
    item: Arc<Authorization>,
    origin: Origin,
}

/// Where an item came from.
struct Origin {
    version: Version,
    /// Bytes on the wire.
    size: usize,
}

impl Origin {
    fn renew(&mut self, new: Self) -> Change {
        let is_same = self.version == new.version;
        *self = new;
        if is_same { Change::Nothing } else { Change::Version }
    }
}

/// Versions are 64-bit hashes where the control plane is istiod: kept as such.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    Hash(u64),
    Text(Box<str>),
}

impl Version {
    fn new(text: &str) -> Self {
        match u64::from_str_radix(text, 16) {
            Ok(hash) if format!("{hash:x}") == text => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Hash(hash) => format!("{hash:x}"),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// What one push did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether anything is different now.
    pub changed: bool,
    /// Resources that could not be used, up to 32 of them.
    pub rejected: Vec<Rejection>,
    /// How many there were.
    pub rejected_count: usize,
}

/// A resource that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: Unusable,
}

impl Applied {
    /// The text of a NACK; none if all could be used.
    pub fn nack(&self) -> Option<String> {
        if self.rejected.is_empty() {
            return None;
        }
        let told: Vec<_> = self.rejected.iter().map(|one| format!("{}: {}", one.name, one.reason)).collect();
        let more = match self.rejected_count - self.rejected.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        Some(told.join("; ") + &more)
    }

    fn reject(&mut self, name: &str, reason: Unusable) {
        self.rejected_count += 1;
        if self.rejected.len() < TOLD_MAX {
            self.rejected.push(Rejection { name: name.chars().take(256).collect(), reason });
        }
    }
}

impl Store {
    /// Empty.
    pub fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Takes a push: first what is gone, then what is there. What is wrong with one resource concerns that one only.
    pub fn apply<'a>(
        &mut self,
        kind: Kind,
        removed: impl Iterator<Item = &'a str>,
        resources: impl Iterator<Item = Result<Resource, (String, Unusable)>>,
        log: &mut dyn Log,
    ) -> Applied {
        let mut applied = Applied::default();
        for name in removed {
            if self.remove(kind, name) {
                applied.changed = true;
                log.gone(kind, name);
            }
        }
        for resource in resources {
            let (resource, outcome) = match resource {
                Ok(resource) => {
                    let outcome = self.insert(kind, &resource);
                    (resource, outcome)
                }
                Err((name, reason)) => (Resource { name, ..Resource::default() }, Err(reason)),
            };
            match outcome {
                Ok(change) => {
                    applied.changed |= change == Change::Content;
                    if change != Change::Nothing {
                        log.there(kind, &resource);
                    }
                }
                Err(reason) => {
                    if self.close(kind, &resource) {
                        applied.changed = true;
                        log.there(kind, &resource);
                    }
                    applied.reject(&resource.name, reason);
                }
            }
        }
        if self.texts.len() > self.texts_used * 2 + SPARE_TEXTS {
            self.texts.forget_unused();
            self.ports.retain(|ports| Arc::strong_count(ports) > 1);
            self.texts_used = self.texts.len();
        }
        applied
    }

    fn insert(&mut self, kind: Kind, resource: &Resource) -> Result<Change, Unusable> {
        let body = resource.resource.as_ref().ok_or(Unusable::Empty)?;
        if body.type_url != kind.url() {
            return Err(Unusable::OtherType(body.type_url.chars().take(256).collect()));
        }
        let origin = Origin { version: Version::new(&resource.version), size: body.value.len() };
        // What is being replaced counts still: it stays if the new one is refused.
        if self.held.saturating_add(origin.size) > self.options.bytes_max {
            return Err(Unusable::TooMuch { limit: self.options.bytes_max });
        }
        Ok(match kind {
            Kind::Address => match translate::address(&body.value, &self.options)? {
                Address::Workload(item, member_of) => self.insert_workload(*item, member_of, origin),
                Address::Service(item) => self.insert_service(*item, origin),
            },
            Kind::Authorization => {
                let item = translate::authorization(&body.value)?;
                self.insert_policy(item, origin)
            }
        })
    }

    fn insert_workload(&mut self, item: Workload, member_of: Vec<Membership>, origin: Origin) -> Change {
        let member_of: Box<[Member]> = member_of.into_iter().map(|one| self.member(one)).collect();
        if let Some(held) = self.workloads.get_mut(&item.uid)
            && *held.item == item
            && held.member_of == member_of
        {
            self.held = self.held - held.origin.size + origin.size;
            return held.origin.renew(origin);
        }
        self.leave_services(&item.uid);
        let item = Arc::new(self.texts.settle(item));
        for member in &member_of {
            self.members.entry(member.service.clone()).or_default().insert(item.uid.clone());
            self.touched.insert(member.service.clone());
        }
        let size = origin.size;
        let before = self.workloads.insert(item.uid.clone(), HeldWorkload { item, member_of, origin });
        self.holds(before.map(|held| held.origin), size)
    }

    fn member(&mut self, Membership { service, ports }: Membership) -> Member {
        let service = self.texts.settle(service);
        let ports = match self.ports.get(&*ports) {
            Some(known) => Arc::clone(known),
            None => {
                let new: Arc<[_]> = ports.into();
                self.ports.insert(Arc::clone(&new));
                new
            }
        };
        Member { service, ports }
    }

    fn insert_service(&mut self, item: Service, origin: Origin) -> Change {
        if let Some(held) = self.services.get_mut(&item.key)
            && is_same_but_for_endpoints(&held.item, &item)
        {
            self.held = self.held - held.origin.size + origin.size;
            return held.origin.renew(origin);
        }
        let item = Arc::new(self.texts.settle(item));
        self.touched.insert(item.key.clone());
        let size = origin.size;
        let before = self.services.insert(item.key.clone(), HeldService { item, origin });
        self.holds(before.map(|held| held.origin), size)
    }

    fn insert_policy(&mut self, item: Authorization, origin: Origin) -> Change {
        if let Some(held) = self.policies.get_mut(&item.key)
            && *held.item == item
        {
            self.held = self.held - held.origin.size + origin.size;
            return held.origin.renew(origin);
        }
        let item = Arc::new(self.texts.settle(item));
        let size = origin.size;
        let before = self.policies.insert(item.key.clone(), HeldPolicy { item, origin });
        self.holds(before.map(|held| held.origin), size)
    }

    /// Accounts for something new in the place of something, which is a change.
    fn holds(&mut self, before: Option<Origin>, size: usize) -> Change {
        self.held = self.held - before.map_or(0, |origin| origin.size) + size;
        Change::Content
    }

    /// Accounts for something that is gone; says whether it was there.
    fn let_go(&mut self, before: Option<Origin>) -> bool {
        self.held -= before.as_ref().map_or(0, |origin| origin.size);
        before.is_some()
    }

    /// Puts a refusal in the place of a policy that is new and cannot be used.
    fn close(&mut self, kind: Kind, resource: &Resource) -> bool {
        let known = policy_key(&resource.name).is_some_and(|key| self.policies.contains_key(&key));
        if kind != Kind::Authorization || known {
            return false;
        }
        let body = resource.resource.as_ref().map(|body| &*body.value).unwrap_or_default();
        match translate::closed(&resource.name, body) {
            Some(stand_in) => {
                let origin = Origin { version: Version::Text("".into()), size: 0 };
                self.insert_policy(stand_in, origin) == Change::Content
            }
            None => false,
        }
    }

    /// By the name of its resource: a workload's UID, or `<namespace>/<host name>`, or `<namespace>/<name>`.
    fn remove(&mut self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Authorization => {
                let before = policy_key(name).and_then(|key| self.policies.remove(&key));
                self.let_go(before.map(|held| held.origin))
            }
            Kind::Address => {
                let uid = WorkloadUid(name.into());
                if self.workloads.contains_key(&uid) {
                    self.leave_services(&uid);
                    let before = self.workloads.remove(&uid);
                    return self.let_go(before.map(|held| held.origin));
                }
                let Ok(key) = translate::service_key(name) else { return false };
                self.touched.remove(&key);
                let before = self.services.remove(&key);
                self.let_go(before.map(|held| held.origin))
            }
        }
    }

    fn leave_services(&mut self, uid: &WorkloadUid) {
        let Some(held) = self.workloads.get(uid) else { return };
        for member in &held.member_of {
            if let Some(members) = self.members.get_mut(&member.service) {
                members.remove(uid);
                if members.is_empty() {
                    self.members.remove(&member.service);
                }
            }
            self.touched.insert(member.service.clone());
        }
    }

    /// All of it, to be published. What has not changed since the last call are the same objects.
    pub fn parts(&mut self) -> Parts {
        for key in std::mem::take(&mut self.touched) {
            let Some(service) = self.services.get(&key) else { continue };
            let endpoints = self.endpoints(&service.item);
            if service.item.endpoints != endpoints {
                let item = Arc::new(Service { endpoints, ..Service::clone(&service.item) });
                self.services.entry(key).and_modify(|held| held.item = item);
            }
        }
        Parts {
            workloads: self.workloads.values().map(|held| Arc::clone(&held.item)).collect(),
            services: self.services.values().map(|held| Arc::clone(&held.item)).collect(),
            policies: self.policies.values().map(|held| Arc::clone(&held.item)).collect(),
            pods: Vec::new(),
            background: Arc::new(Background { staged: self.staged(), ..Background::default() }),
            waypoint: None,
        }
    }

    /// Workloads behind services that nobody has told of yet.
    fn staged(&self) -> BTreeMap<ServiceKey, Vec<Endpoint>> {
        let unknown = self.members.iter().filter(|(key, _)| !self.services.contains_key(*key));
        let endpoint = |uid: &WorkloadUid, key: &ServiceKey| {
            let held = self.workloads.get(uid)?;
            let own = held.member_of.iter().filter(|member| member.service == *key);
            let ports =
                own.flat_map(|member| member.ports.iter().copied()).filter(|(_, to)| *to != 0).collect();
            Some(Endpoint { workload: held.item.uid.clone(), ports, health: held.item.health })
        };
        let of = |(key, members): (&ServiceKey, &BTreeSet<WorkloadUid>)| {
            (key.clone(), members.iter().filter_map(|uid| endpoint(uid, key)).collect())
        };
        unknown.map(of).collect()
    }

    fn endpoints(&self, service: &Service) -> Vec<Endpoint> {
        let members = self.members.get(&service.key).into_iter().flatten();
        let endpoint = |uid: &WorkloadUid| {
            let held = self.workloads.get(uid)?;
            let own = held.member_of.iter().filter(|member| member.service == service.key);
            let own = own.flat_map(|member| member.ports.iter().copied());
            let differs =
                |(port, target): &(u16, u16)| service.ports.get(port).is_none_or(|of| of.target != *target);
            let ports = own.filter(|(_, target)| *target != 0).filter(differs).collect();
            Some(Endpoint { workload: held.item.uid.clone(), ports, health: held.item.health })
        };
        members.filter_map(endpoint).collect()
    }

    /// Name and version of everything of this type, for a server that is to send only what differs.
    pub fn versions(&self, kind: Kind) -> impl Iterator<Item = (String, String)> {
        let of = move |wanted| kind == wanted;
        let workloads =
            self.workloads.iter().map(|(uid, held)| (uid.to_string(), held.origin.version.text()));
        let services = self.services.iter().map(|(key, held)| (key.to_string(), held.origin.version.text()));
        let policies = self.policies.iter().map(|(key, held)| (key.to_string(), held.origin.version.text()));
        let addresses = workloads.chain(services).filter(move |_| of(Kind::Address));
        addresses.chain(policies.filter(move |_| of(Kind::Authorization)))
    }

    /// Whether a workload or service of this name is held.
    pub fn has_address(&self, name: &str) -> bool {
        let is_service = || translate::service_key(name).is_ok_and(|key| self.services.contains_key(&key));
        self.workloads.contains_key(&WorkloadUid(name.into())) || is_service()
    }

    /// Bytes on the wire of all that is held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.services.is_empty() && self.policies.is_empty()
    }
}

fn is_same_but_for_endpoints(held: &Service, new: &Service) -> bool {
    // Taken apart, so that a new field has to say whether it counts.
    let Service {
        key,
        name,
        vips,
        cidr_vips,
        elsewhere,
        ports,
        subject_alt_names,
        waypoint,
        weighted_waypoints,
        load_balancing,
        ip_families,
        canonical,
        visibility,
        endpoints: _,
    } = held;
    (key, name, vips, cidr_vips, elsewhere)
        == (&new.key, &new.name, &new.vips, &new.cidr_vips, &new.elsewhere)
        && (ports, subject_alt_names) == (&new.ports, &new.subject_alt_names)
        && (waypoint, weighted_waypoints, load_balancing)
            == (&new.waypoint, &new.weighted_waypoints, &new.load_balancing)
        && (ip_families, canonical, visibility) == (&new.ip_families, &new.canonical, &new.visibility)
}

fn policy_key(name: &str) -> Option<PolicyKey> {
    let (namespace, name) = name.split_once('/')?;
    Some(PolicyKey { namespace: namespace.into(), name: name.into() })
}

#[cfg(test)]
mod tests;
