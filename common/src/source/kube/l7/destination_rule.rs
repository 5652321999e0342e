//! DestinationRule: reading it, with what CRD and webhook check. Which one counts is in [`super::clusters`].
//!
//! Source: Istio DestinationRule reference.

use std::sync::Arc;

use super::traffic_policy::{self, TrafficPolicy};
use super::values::{ExportTo, host, labels_at, name};
use crate::source::kube::object::Meta;
use crate::source::kube::reader::{Field, Labels};

/// Part of failed answers within an interval that ejects an endpoint, in percent: a setting of ours.
const FAILURE_PERCENTAGE: &str = "policy.culvert.dev/failure-percentage";

/// What is needed of a DestinationRule.
#[derive(Debug)]
pub(in crate::source::kube) struct DestinationRule {
    pub(in crate::source::kube) meta: Meta,
    /// As written, in lower case; empty if it could not be read.
    pub(super) host: Arc<str>,
    pub(super) export_to: ExportTo,
    /// For the proxies of some workloads, thus not for a waypoint.
    pub(super) has_selector: bool,
    pub(super) policy: Option<TrafficPolicy>,
    pub(super) subsets: Vec<SubsetRule>,
    pub(super) failure_percent: Option<u32>,
}

/// One of `subsets`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SubsetRule {
    pub(super) name: Arc<str>,
    pub(super) labels: Labels,
    pub(super) policy: Option<TrafficPolicy>,
}

impl DestinationRule {
    /// Reads it; what is wrong is reported.
    pub(in crate::source::kube) fn read(meta: Meta, root: &Field<'_>) -> Self {
        let mut read = Self {
            host: "".into(),
            export_to: ExportTo::default(),
            has_selector: false,
            policy: None,
            subsets: Vec::new(),
            failure_percent: failure_percent(root),
            meta,
        };
        root.only(&["apiVersion", "kind", "metadata", "spec", "status"]);
        let Some(spec) = root.get("spec") else {
            root.problem("no spec", "allowed: a DestinationRule with a host");
            return read;
        };
        spec.only(&["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"]);
        match spec.get("host") {
            Some(field) => read.host = host(&field).unwrap_or_default(),
            None => spec.problem("no host", "allowed: the name of a service"),
        }
        read.export_to = ExportTo::read(&spec, &read.meta.namespace);
        if let Some(selector) = spec.get("workloadSelector") {
            selector.only(&["matchLabels"]);
            selector.warning("a rule for the proxies of some workloads", "it has no effect at a waypoint");
            read.has_selector = true;
            if let Some(exported) = spec.get("exportTo").filter(|list| !list.is_empty())
                && !read.export_to.is_private(&read.meta.namespace)
            {
                exported.problem("other namespaces, beside a workloadSelector", "allowed: . alone");
            }
        }
        read.policy = traffic_policy::read(&spec);
        for item in spec.items("subsets") {
            let Some(subset) = subset(&item) else { continue };
            if read.subsets.iter().any(|other| other.name == subset.name) {
                item.problem(format!("{} for the second time", subset.name), "allowed: each name once");
            }
            read.subsets.push(subset);
        }
        read
    }
}

fn failure_percent(root: &Field<'_>) -> Option<u32> {
    let field = root.dig(&["metadata", "annotations", FAILURE_PERCENTAGE])?;
    let percent = field.text()?.parse::<u32>().ok().filter(|percent| (1..=100).contains(percent));
    match percent {
        Some(_) => field.warning(
            "endpoints are also ejected by their percentage of failed answers",
            "this is Culvert's own: Istio does not act on it",
        ),
        None => field.refuse("\"1\" to \"100\""),
    }
    percent
}

fn subset(item: &Field<'_>) -> Option<SubsetRule> {
    item.only(&["name", "labels", "trafficPolicy"]);
    let Some(field) = item.get("name") else {
        item.problem("no name", "allowed: a name for the subset");
        return None;
    };
    Some(SubsetRule {
        name: name(&field)?,
        labels: labels_at(item, "labels"),
        policy: traffic_policy::read(item),
    })
}
