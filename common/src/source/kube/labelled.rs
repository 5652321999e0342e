//! Pods by their labels: thousands of services and policies select from thousands of pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::pod::Pod;
use super::reader::{Labels, selects};

/// Look-ups over pods, each of which gives them in the order of their documents.
#[derive(Default)]
pub(super) struct Labelled<'o> {
    namespaces: HashMap<&'o str, OfNamespace<'o>>,
}

#[derive(Default)]
struct OfNamespace<'o> {
    all: Vec<&'o Pod>,
    /// By name and value of each label.
    by_label: HashMap<&'o str, BTreeMap<&'o str, Vec<&'o Pod>>>,
}

impl<'o> Labelled<'o> {
    pub(super) fn new(pods: impl Iterator<Item = &'o Pod>) -> Self {
        let mut labelled = Self::default();
        for pod in pods {
            let of = labelled.namespaces.entry(&pod.meta.namespace).or_default();
            of.all.push(pod);
            for (name, value) in &pod.meta.labels {
                of.by_label.entry(name).or_default().entry(value).or_default().push(pod);
            }
        }
        labelled
    }

    /// Those of one namespace with all labels of the selector.
    pub(super) fn selected<'s>(
        &'s self,
        namespace: &str,
        selector: &'s Labels,
    ) -> impl Iterator<Item = &'o Pod> + use<'s, 'o> {
        let fewest = self.namespaces.get(namespace).map_or(&[][..], |of| of.fewest(selector));
        fewest.iter().copied().filter(move |pod| selects(selector, &pod.meta.labels))
    }

    /// What pods of a namespace have in place of what a selector asks for: the first `most` in order, as `name=value`.
    pub(super) fn near(&self, namespace: &str, selector: &Labels, most: usize) -> Vec<String> {
        let Some(of) = self.namespaces.get(namespace) else { return Vec::new() };
        let values = |name: &Arc<str>| of.by_label.get(&**name).map(|values| (Arc::clone(name), values));
        let near = selector
            .keys()
            .filter_map(values)
            .flat_map(|(name, values)| values.keys().take(most).map(move |value| format!("{name}={value}")));
        let mut near: Vec<String> = near.collect();
        near.sort();
        near.truncate(most);
        near
    }

    /// All namespaces that have pods.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &'o str> {
        self.namespaces.keys().copied()
    }
}

impl<'o> OfNamespace<'o> {
    /// Pods with that label of the selector which the fewest have.
    fn fewest(&self, selector: &Labels) -> &[&'o Pod] {
        let with = |(name, value): (&Arc<str>, &Arc<str>)| {
            let pods = self.by_label.get(&**name).and_then(|values| values.get(&**value));
            pods.map_or(&[][..], Vec::as_slice)
        };
        selector.iter().map(with).min_by_key(|pods| pods.len()).unwrap_or(&self.all)
    }
}
