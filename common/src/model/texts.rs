//! A model moved into memory of its own, with each text once.
//!
//! Names of namespaces, nodes, service accounts and clusters repeat in every workload. And a piece of a model that lies
//! where documents were read keeps the memory around it from going back to the system when they are dropped.
//! Types are taken apart field by field, so that a new field has to say what it holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::{
    Authorization, Background, Clause, Endpoint, GatewayAddress, GatewayDestination, LeftOut, LocalPod,
    Locality, Match, Model, NotCaptured, PeerMode, Rule, Service, ServiceAccountMatch, ServicePort,
    StringMatch, WeightedWaypoint, Workload,
};
use crate::types::{PolicyKey, ServiceKey, SpiffeId, WorkloadUid};

/// The texts so far.
#[derive(Default)]
pub(crate) struct Texts(HashSet<Arc<str>>);

impl Texts {
    /// The same in new memory, with texts that are known already shared.
    pub(crate) fn settle<T: Holder>(&mut self, one: T) -> T {
        shared(one, self)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Lets go of the texts that nobody else has any more.
    pub(crate) fn forget_unused(&mut self) {
        self.0.retain(|text| Arc::strong_count(text) > 1);
    }

    fn share(&mut self, text: &mut Arc<str>) {
        *text = match self.0.get(&**text) {
            Some(known) => Arc::clone(known),
            None => {
                let own: Arc<str> = Arc::from(&**text);
                self.0.insert(Arc::clone(&own));
                own
            }
        };
    }
}

/// What may hold texts.
pub(crate) trait Holder {
    fn share(&mut self, texts: &mut Texts);
}

impl Model {
    /// The same model in new memory, without reserves in its lists, equal texts being one.
    pub fn settle(mut self) -> Self {
        self.share(&mut Texts::default());
        self
    }
}

/// Shares the texts of these fields, or items.
macro_rules! share {
    ($texts:ident: $($field:expr),+) => { $(Holder::share($field, $texts);)+ };
}

impl Holder for Model {
    fn share(&mut self, texts: &mut Texts) {
        let Self { workloads, services, policies, pods, background, waypoint: _ } = self;
        share!(texts: workloads, services, policies, pods, background);
    }
}

impl Holder for Workload {
    fn share(&mut self, texts: &mut Texts) {
        let Self {
            uid,
            name,
            namespace,
            identity,
            addresses,
            protocol: _,
            enrolment: _,
            node,
            canonical_name,
            canonical_revision,
            workload_type: _,
            workload_name,
            cluster,
            network,
            locality: Locality { region, zone, subzone },
            health: _,
            host_network: _,
            capacity: _,
            hostname,
            waypoint,
            network_gateway,
            application_tunnel: _,
            native_tunnel: _,
            authorization_policies,
        } = self;
        share!(texts: uid, name, namespace, identity, node, canonical_name, canonical_revision, workload_name, cluster);
        share!(texts: network, region, zone, subzone, hostname, waypoint, network_gateway, authorization_policies);
        again(addresses);
    }
}

impl Holder for Service {
    fn share(&mut self, texts: &mut Texts) {
        let Self {
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
            ip_families: _,
            canonical: _,
            visibility: _,
            endpoints,
        } = self;
        share!(texts: key, name, subject_alt_names, waypoint, weighted_waypoints, endpoints);
        for ServicePort { target: _, name } in ports.values_mut() {
            share!(texts: name);
        }
        *ports = std::mem::take(ports).into_iter().collect();
        again(vips);
        again(cidr_vips);
        elsewhere.iter_mut().for_each(|(network, _)| texts.share(network));
        again(&mut load_balancing.routing_preference);
    }
}

impl Holder for Endpoint {
    fn share(&mut self, texts: &mut Texts) {
        let Self { workload, ports, health: _ } = self;
        share!(texts: workload);
        *ports = std::mem::take(ports).into_iter().collect();
    }
}

impl Holder for GatewayAddress {
    fn share(&mut self, texts: &mut Texts) {
        match &mut self.destination {
            GatewayDestination::Address { network, ip: _ } => texts.share(network),
            GatewayDestination::Hostname(key) => Holder::share(key, texts),
        }
    }
}

impl Holder for WeightedWaypoint {
    fn share(&mut self, texts: &mut Texts) {
        let Self { gateway, weight: _ } = self;
        share!(texts: gateway);
    }
}

impl Holder for Authorization {
    fn share(&mut self, texts: &mut Texts) {
        let Self { key, scope: _, action: _, dry_run: _, rules } = self;
        share!(texts: key, rules);
    }
}

impl Holder for Rule {
    fn share(&mut self, texts: &mut Texts) {
        share!(texts: &mut self.clauses);
    }
}

impl Holder for Clause {
    fn share(&mut self, texts: &mut Texts) {
        share!(texts: &mut self.matches);
    }
}

impl Holder for Match {
    fn share(&mut self, texts: &mut Texts) {
        let Self {
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            service_accounts,
            not_service_accounts,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = self;
        let blocks = [source_ips, not_source_ips, destination_ips, not_destination_ips];
        blocks.into_iter().flatten().for_each(again);
        again(destination_ports);
        again(not_destination_ports);
        share!(texts: namespaces, not_namespaces, principals, not_principals, service_accounts, not_service_accounts);
    }
}

impl Holder for StringMatch {
    fn share(&mut self, texts: &mut Texts) {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => texts.share(text),
            Self::Presence => {}
        }
    }
}

impl Holder for ServiceAccountMatch {
    fn share(&mut self, texts: &mut Texts) {
        let Self { namespace, service_account } = self;
        share!(texts: namespace, service_account);
    }
}

impl Holder for LocalPod {
    fn share(&mut self, texts: &mut Texts) {
        let Self {
            uid,
            workload,
            namespace,
            name,
            addresses,
            netns: _,
            bypass_inbound: _,
            reroute_interfaces,
            dns: _,
        } = self;
        again(addresses);
        share!(texts: uid, workload, namespace, name, reroute_interfaces);
    }
}

impl Holder for Background {
    fn share(&mut self, texts: &mut Texts) {
        let Self {
            policy_selectors,
            rules_left_out,
            service_selectors,
            port_names,
            not_captured,
            declared_ports,
            bypass_inbound,
            peer_authentication,
            left_out,
            selected_left_out,
            staged,
            remarks,
        } = self;
        share!(texts: policy_selectors, rules_left_out, service_selectors, port_names, not_captured, declared_ports);
        share!(texts: peer_authentication, left_out, selected_left_out, staged, remarks);
        *bypass_inbound = std::mem::take(bypass_inbound).into_iter().map(|key| shared(key, texts)).collect();
    }
}

impl Holder for PeerMode {
    fn share(&mut self, texts: &mut Texts) {
        let Self { is_strict: _, by, ports_by } = self;
        [by, ports_by].into_iter().flatten().for_each(|text| texts.share(text));
    }
}

impl Holder for LeftOut {
    fn share(&mut self, texts: &mut Texts) {
        let Self { pod, why } = self;
        share!(texts: pod, why);
    }
}

impl Holder for SpiffeId {
    fn share(&mut self, texts: &mut Texts) {
        self.texts_mut().into_iter().for_each(|text| texts.share(text));
    }
}

impl Holder for WorkloadUid {
    fn share(&mut self, texts: &mut Texts) {
        texts.share(&mut self.0);
    }
}

impl Holder for ServiceKey {
    fn share(&mut self, texts: &mut Texts) {
        let Self { namespace, hostname } = self;
        share!(texts: namespace, hostname);
    }
}

impl Holder for PolicyKey {
    fn share(&mut self, texts: &mut Texts) {
        let Self { namespace, name } = self;
        share!(texts: namespace, name);
    }
}

impl Holder for Arc<str> {
    fn share(&mut self, texts: &mut Texts) {
        texts.share(self);
    }
}

/// Is in a map of its own, once.
impl Holder for String {
    fn share(&mut self, _texts: &mut Texts) {
        *self = self.as_str().to_owned();
    }
}

impl Holder for u16 {
    fn share(&mut self, _texts: &mut Texts) {}
}

impl Holder for usize {
    fn share(&mut self, _texts: &mut Texts) {}
}

impl Holder for NotCaptured {
    fn share(&mut self, _texts: &mut Texts) {}
}

impl<A: Holder, B: Holder> Holder for (A, B) {
    fn share(&mut self, texts: &mut Texts) {
        share!(texts: &mut self.0, &mut self.1);
    }
}

impl<T: Holder> Holder for Vec<T> {
    fn share(&mut self, texts: &mut Texts) {
        *self = self.drain(..).map(|one| shared(one, texts)).collect();
    }
}

impl<K: Holder + Ord, V: Holder> Holder for BTreeMap<K, V> {
    fn share(&mut self, texts: &mut Texts) {
        *self = std::mem::take(self).into_iter().map(|entry| shared(entry, texts)).collect();
    }
}

impl<K: Holder + Hash + Eq, V: Holder> Holder for HashMap<K, V> {
    fn share(&mut self, texts: &mut Texts) {
        *self = std::mem::take(self).into_iter().map(|entry| shared(entry, texts)).collect();
    }
}

/// One of its own, even where others have the same.
impl<T: Holder + Clone> Holder for Option<Arc<T>> {
    fn share(&mut self, texts: &mut Texts) {
        *self = self.take().map(|one| Arc::new(shared(T::clone(&one), texts)));
    }
}

/// A list of what holds no texts.
fn again<T: Copy>(list: &mut Vec<T>) {
    *list = list.as_slice().to_vec();
}

fn shared<T: Holder>(mut one: T, texts: &mut Texts) -> T {
    one.share(texts);
    one
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PolicyKey;

    fn policy(name: &str) -> Authorization {
        let principal = |text: &str| StringMatch::Exact(text.into());
        let one = Match {
            principals: vec![principal("td/ns/shop/sa/cart"), StringMatch::Presence],
            destination_ports: vec![80, 443],
            ..Match::default()
        };
        Authorization {
            key: PolicyKey { namespace: "shop".into(), name: name.into() },
            scope: crate::model::Scope::WorkloadSelector,
            action: crate::model::Action::Allow,
            dry_run: false,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![one] }] }],
        }
    }

    #[test]
    fn a_settled_model_says_the_same_with_each_text_once() {
        let mut background = Background::default();
        background.declared_ports.insert(WorkloadUid("c//Pod/shop/a".into()), vec![80]);
        background.bypass_inbound.insert(WorkloadUid("c//Pod/shop/a".into()));
        let policies = vec![policy("one"), policy("two")];
        let model = Model { policies: policies.clone(), background: background.clone(), ..Model::default() };
        let settled = model.settle();
        assert_eq!((&settled.policies, &settled.background), (&policies, &background));
        let [one, two] = &settled.policies[..] else { panic!("{settled:?}") };
        assert!(Arc::ptr_eq(&one.key.namespace, &two.key.namespace));
        assert!(!Arc::ptr_eq(&one.key.namespace, &policies[0].key.namespace), "texts of its own");
        let principal = |policy: &Authorization| match &policy.rules[0].clauses[0].matches[0].principals[0] {
            StringMatch::Exact(text) => Arc::clone(text),
            other => panic!("{other:?}"),
        };
        assert!(Arc::ptr_eq(&principal(one), &principal(two)));
        let uid = settled.background.declared_ports.keys().next().unwrap();
        assert!(settled.background.bypass_inbound.iter().all(|other| Arc::ptr_eq(&uid.0, &other.0)));
    }
}
