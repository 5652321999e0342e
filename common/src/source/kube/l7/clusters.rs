//! How each destination is reached: which DestinationRule counts for it, and what its settings come to.
//!
//! Looked for in the waypoint's namespace, then the service's, then the root namespace; the first with a rule for the host
//! decides, and in it the most specific host. Source: Istio, destination rule look-up and merge.

use std::collections::HashSet;
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
pub(super) fn cluster(key: &ClusterKey, rules: &[DestinationRule], world: &World<'_>) -> Option<Cluster> {
    let service = world.service(&key.service)?;
    let port = service.ports.get(&key.port)?;
    let merged = look_up(service, rules, world);
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
        refused: settings.refused(),
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

/// The rules that count for a service; none if there are none.
fn look_up<'a>(service: &Known, rules: &'a [DestinationRule], world: &World<'_>) -> Option<Merged<'a>> {
    let own = &*world.gateway.namespace;
    let root = &*world.settings.root_namespace;
    let usable = || rules.iter().filter(|rule| !rule.has_selector && !rule.host.is_empty());
    // A waypoint in the root namespace would see the rules for the whole mesh before a service's own.
    let local = usable().filter(|rule| {
        *rule.meta.namespace == *own && (own != root || rule.export_to.is_private(&rule.meta.namespace))
    });
    let exported_from = |namespace: &str| {
        let of = usable().filter(|rule| *rule.meta.namespace == *namespace);
        of.filter(|rule| rule.export_to.is_visible_in(own)).collect::<Vec<_>>()
    };
    merge(local.collect(), service, world)
        .or_else(|| merge(exported_from(&service.key.namespace), service, world))
        .or_else(|| merge(exported_from(root), service, world))
}

/// Merges those with the most specific host that means the service.
fn merge<'a>(rules: Vec<&'a DestinationRule>, service: &Known, world: &World<'_>) -> Option<Merged<'a>> {
    let host =
        |rule: &DestinationRule| full_name(&rule.host, &rule.meta.namespace, &world.settings.cluster_domain);
    let mut meaning: Vec<(Arc<str>, &DestinationRule)> =
        rules.into_iter().map(|rule| (host(rule), rule)).collect();
    meaning.retain(|(host, _)| host_matches(host, &service.key.hostname));
    // A whole name before one with a *, then the longest; the oldest rule first, as Istio breaks ties: by name.
    let age = |rule: &DestinationRule| {
        (Arc::clone(&rule.meta.created), Arc::clone(&rule.meta.name), Arc::clone(&rule.meta.namespace))
    };
    let best = meaning.iter().map(|(host, _)| (!host.starts_with('*'), host.len())).max()?;
    meaning.retain(|(host, _)| (!host.starts_with('*'), host.len()) == best);
    meaning.sort_by_key(|(_, rule)| age(rule));
    let first = meaning.first()?.1;
    let mut merged = Merged { first, policy: None, subsets: Vec::new(), failure_percent: None };
    for (_, rule) in &meaning {
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
