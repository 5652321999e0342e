//! How each destination is reached: which DestinationRule counts for it, and what its settings come to.
//!
//! Looked for in the waypoint's namespace, then the service's, then the root namespace; the first with a rule for the host
//! decides, and in it the most specific host. Source: Istio, destination rule look-up and merge.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::destination_rule::{DestinationRule, SubsetRule};
use super::traffic_policy::{Block, Blocks, TrafficPolicy};
use super::values::{full_name, host_matches};
use super::world::{Known, World};
use crate::model::l7::{Balance, Cluster, ClusterKey, Outliers, RetryBudget, Subset};
use crate::source::kube::reader::selects;

/// The rules of one host, merged: the oldest with a policy says it, the subsets of all count.
struct Merged<'a> {
    first: &'a DestinationRule,
    policy: Option<&'a TrafficPolicy>,
    subsets: Vec<(&'a SubsetRule, &'a DestinationRule)>,
    failure_percent: Option<u32>,
}

/// How one destination is reached; none if there is no such service, port or subset.
pub(super) fn cluster(key: &ClusterKey, rules: &Rules<'_>, world: &World<'_>) -> Option<Cluster> {
    let service = world.service(&key.service)?;
    let port = service.ports.get(&key.port)?;
    let merged = rules.look_up(service, world);
    let subset = match &key.subset {
        None => None,
        Some(name) => Some(*merged.as_ref()?.subsets.iter().find(|(subset, _)| subset.name == *name)?),
    };
    let mut settings = Settings::default();
    if let Some(merged) = &merged {
        settings.apply(merged.policy, key.port);
        if let Some((subset, _)) = subset {
            settings.apply(subset.policy.as_ref(), key.port);
        }
    }
    let percent = merged.as_ref().and_then(|merged| merged.failure_percent);
    let rule = merged.as_ref().map(|merged| subset.map_or(merged.first, |(_, rule)| rule));
    Some(Cluster {
        key: key.clone(),
        subset: subset.map(|(subset, _)| members(subset, service)),
        protocol: port.protocol,
        balance: match &settings.blocks.balance {
            _ if service.is_passthrough => Balance::Passthrough,
            Some(block) => block.value,
            None => Balance::default(),
        },
        outliers: outliers(settings.blocks.outliers.as_ref(), percent),
        retry_budget: settings.retry_budget.as_ref().map(|block| block.value),
        refused: service.refused.clone().or_else(|| settings.refused()),
        pool: settings.blocks.pool.map(|block| block.value).unwrap_or_default(),
        rule: rule.map(|rule| rule.meta.key().into()),
    })
}

/// Endpoints with all labels of the subset.
fn members(subset: &SubsetRule, service: &Known) -> Subset {
    let of = service.endpoints.iter().filter(|(_, labels)| selects(&subset.labels, labels));
    Subset { members: Arc::new(of.map(|(uid, _)| uid.clone()).collect::<HashSet<_>>()) }
}

/// With the annotation alone, nothing else ejects.
fn outliers(block: Option<&Block<Outliers>>, failure_percent: Option<u32>) -> Option<Outliers> {
    let block = block.map(|block| block.value.clone());
    let alone = || Outliers {
        consecutive_5xx: 0,
        consecutive_gateway: 0,
        consecutive_local: None,
        interval: std::time::Duration::from_secs(10),
        base_ejection: std::time::Duration::from_secs(30),
        max_ejection_percent: None,
        min_health_percent: 0,
        failure_percent: None,
    };
    let outliers = block.or_else(|| failure_percent.map(|_| alone()))?;
    Some(Outliers { failure_percent, ..outliers })
}

/// What policies come to, one after the other.
#[derive(Default)]
struct Settings {
    blocks: Blocks,
    retry_budget: Option<Block<RetryBudget>>,
    tunnel: Option<Block<()>>,
}

impl Settings {
    /// A block that is said replaces one before. What is said for the port replaces all four, said or not.
    fn apply(&mut self, policy: Option<&TrafficPolicy>, port: u16) {
        let Some(policy) = policy else { return };
        let Blocks { balance, pool, outliers, tls } = policy.blocks.clone();
        self.blocks = Blocks {
            balance: balance.or(self.blocks.balance.take()),
            pool: pool.or(self.blocks.pool.take()),
            outliers: outliers.or(self.blocks.outliers.take()),
            tls: tls.or(self.blocks.tls.take()),
        };
        if let Some(budget) = &policy.retry_budget {
            self.retry_budget = Some(budget.clone());
        }
        if let Some(tunnel) = &policy.tunnel {
            self.tunnel = Some(tunnel.clone());
        }
        if let Some((_, blocks)) = policy.ports.iter().find(|(number, _)| *number == port) {
            self.blocks = blocks.clone();
        }
    }

    /// The first thing that cannot be done.
    fn refused(&self) -> Option<Arc<str>> {
        let Blocks { balance, pool, outliers, tls } = &self.blocks;
        let reason = [
            balance.as_ref().and_then(|block| block.refused.as_ref()),
            pool.as_ref().and_then(|block| block.refused.as_ref()),
            outliers.as_ref().and_then(|block| block.refused.as_ref()),
            tls.as_ref().and_then(|block| block.refused.as_ref()),
            self.tunnel.as_ref().and_then(|block| block.refused.as_ref()),
            self.retry_budget.as_ref().and_then(|block| block.refused.as_ref()),
        ];
        reason.into_iter().flatten().next().cloned()
    }
}

/// The rules of one namespace by the hosts that they mean.
#[derive(Debug, Default)]
struct OfNamespace<'a> {
    by_host: HashMap<Arc<str>, Vec<&'a DestinationRule>>,
    /// Hosts that begin with `*`.
    wild: Vec<(Arc<str>, &'a DestinationRule)>,
}

/// All rules that a waypoint may act on.
#[derive(Debug, Default)]
pub(super) struct Rules<'a> {
    namespaces: HashMap<Arc<str>, OfNamespace<'a>>,
}

impl<'a> Rules<'a> {
    /// Indexes `all`.
    pub(super) fn new(all: &'a [DestinationRule], world: &World<'_>) -> Self {
        let mut rules = Self::default();
        let mut usable: Vec<&DestinationRule> =
            all.iter().filter(|rule| !rule.has_selector && !rule.host.is_empty()).collect();
        // The oldest first; of one age by name, as Istio does.
        usable.sort_by(|a, b| (&a.meta.created, &a.meta.name).cmp(&(&b.meta.created, &b.meta.name)));
        for rule in usable {
            let of = rules.namespaces.entry(Arc::clone(&rule.meta.namespace)).or_default();
            let host = full_name(&rule.host, &rule.meta.namespace, &world.settings.cluster_domain);
            match host.starts_with('*') {
                true => of.wild.push((host, rule)),
                false => of.by_host.entry(host).or_default().push(rule),
            }
        }
        rules
    }

    /// Whether a rule that counts for the service defines this subset.
    pub(super) fn has_subset(&self, service: &Known, subset: &str, world: &World<'_>) -> bool {
        let merged = self.look_up(service, world);
        merged.is_some_and(|merged| merged.subsets.iter().any(|(other, _)| *other.name == *subset))
    }

    /// What the rules that count for a service come to; none if there are none.
    fn look_up(&self, service: &Known, world: &World<'_>) -> Option<Merged<'a>> {
        let own = &*world.gateway.namespace;
        let root = &*world.settings.root_namespace;
        // A waypoint in the root namespace would see the rules for the whole mesh before a service's own.
        let is_local = |rule: &DestinationRule| own != root || rule.export_to.is_private(own);
        let is_exported = |rule: &DestinationRule| rule.export_to.is_visible_in(own);
        self.of(own, service, is_local)
            .or_else(|| self.of(&service.key.namespace, service, is_exported))
            .or_else(|| self.of(root, service, is_exported))
    }

    /// Those of one namespace with the most specific host that means the service, merged.
    fn of(
        &self,
        namespace: &str,
        service: &Known,
        counts: impl Fn(&DestinationRule) -> bool,
    ) -> Option<Merged<'a>> {
        let of = self.namespaces.get(namespace)?;
        let name = &service.key.hostname;
        let exact = of.by_host.get(name).into_iter().flatten().copied();
        let exact: Vec<&DestinationRule> = exact.filter(|rule| counts(rule)).collect();
        if !exact.is_empty() {
            return merge(&exact);
        }
        let wild = || of.wild.iter().filter(|(host, rule)| host_matches(host, name) && counts(rule));
        let longest = wild().map(|(host, _)| host.len()).max()?;
        let best: Vec<_> = wild().filter(|(host, _)| host.len() == longest).map(|(_, rule)| *rule).collect();
        merge(&best)
    }
}

/// Merges rules for one host, the oldest of which comes first.
fn merge<'a>(rules: &[&'a DestinationRule]) -> Option<Merged<'a>> {
    let first = *rules.first()?;
    let mut merged = Merged { first, policy: None, subsets: Vec::new(), failure_percent: None };
    for rule in rules {
        merged.policy = merged.policy.or(rule.policy.as_ref());
        merged.failure_percent = merged.failure_percent.or(rule.failure_percent);
        for subset in &rule.subsets {
            if merged.subsets.iter().all(|(other, _)| other.name != subset.name) {
                merged.subsets.push((subset, rule));
            }
        }
    }
    Some(merged)
}
