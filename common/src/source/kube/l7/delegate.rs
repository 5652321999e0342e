//! VirtualServices that leave the rest of a route to another one.
//!
//! One level only. A delegate's route counts if its matches say no more requests than those of the root; what it leaves
//! open it takes from the root. Source: Istio, virtual service delegation.

use std::collections::HashMap;
use std::sync::Arc;

use super::http_match::HttpMatch;
use super::virtual_service::{HttpRule, VirtualService};
use crate::model::l7::{HeaderMatch, PathTest, QueryMatch, RequestMatch, TextMatch};
use crate::source::kube::reader::Report;

/// The delegates, by namespace and name.
pub(super) type Delegates<'a> = HashMap<(&'a str, &'a str), &'a VirtualService>;

/// VirtualServices without hosts.
pub(super) fn index(all: &[VirtualService]) -> Delegates<'_> {
    let delegates = all.iter().filter(|vs| vs.hosts.is_empty());
    delegates.map(|vs| ((&*vs.meta.namespace, &*vs.meta.name), vs)).collect()
}

/// The HTTP rules of `root` with those of its delegates in their places.
pub(super) fn expand(root: &VirtualService, delegates: &Delegates<'_>, report: &Report) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for rule in &root.http {
        let Some((namespace, name)) = &rule.delegate else {
            rules.push(rule.clone());
            continue;
        };
        let about = |seen: String| {
            let what = "requests of this rule go to the next one that matches";
            report.warning(root.meta.at.about(&format!("{}.delegate", rule.path), seen, what));
        };
        let Some(delegate) = delegates.get(&(&**namespace, &**name)) else {
            about(format!("no VirtualService {namespace}/{name} without hosts"));
            continue;
        };
        if !delegate.export_to.is_visible_in(&root.meta.namespace) {
            about(format!("{namespace}/{name} is not exported to {}", root.meta.namespace));
            continue;
        }
        for leaf in &delegate.http {
            match merge(rule, leaf) {
                Some(merged) => rules.push(merged),
                None => report.warning(delegate.meta.at.about(
                    &format!("{}.match", leaf.path),
                    format!("requests that {} does not leave to it", root.meta.at.object),
                    "the rule has no effect there; make its matches narrower",
                )),
            }
        }
    }
    rules
}

/// The rule of a delegate with what it leaves open; none if it matches more than its root.
fn merge(root: &HttpRule, leaf: &HttpRule) -> Option<HttpRule> {
    let mut merged = leaf.clone();
    merged.matches = merge_matches(&root.matches, &leaf.matches)?;
    merged.name = joined(root.name.as_ref(), leaf.name.as_ref());
    merged.rewrite = merged.rewrite.or_else(|| root.rewrite.clone());
    merged.timeout = merged.timeout.or(root.timeout);
    merged.retries = merged.retries.or_else(|| root.retries.clone());
    merged.fault = merged.fault.or_else(|| root.fault.clone());
    merged.mirrors = merged.mirrors.or_else(|| root.mirrors.clone());
    merged.cors = merged.cors.or_else(|| root.cors.clone());
    merged.headers = merged.headers.or_else(|| root.headers.clone());
    Some(merged)
}

fn joined(root: Option<&Arc<str>>, leaf: Option<&Arc<str>>) -> Option<Arc<str>> {
    match (root, leaf) {
        (Some(root), Some(leaf)) => Some(format!("{root}-{leaf}").into()),
        (one, other) => one.or(other).cloned(),
    }
}

/// Each match of the delegate with each of the root that leaves it such requests.
fn merge_matches(root: &[HttpMatch], leaf: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(leaf.to_vec());
    }
    if leaf.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for leaf in leaf {
        let before = merged.len();
        let fitting = root.iter().filter(|root| !conflicts(&root.test, &leaf.test));
        merged.extend(fitting.map(|root| merge_match(root, leaf)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatch, leaf: &HttpMatch) -> HttpMatch {
    let (of_root, of_leaf) = (&root.test, &leaf.test);
    let text = |leaf: &Option<TextMatch>, root: &Option<TextMatch>| leaf.clone().or_else(|| root.clone());
    HttpMatch {
        path: leaf.path.clone(),
        name: joined(root.name.as_ref(), leaf.name.as_ref()),
        only_for: root.only_for.clone(),
        test: RequestMatch {
            path: of_leaf.path.clone().or_else(|| of_root.path.clone()),
            method: text(&of_leaf.method, &of_root.method),
            scheme: text(&of_leaf.scheme, &of_root.scheme),
            authority: text(&of_leaf.authority, &of_root.authority),
            headers: merge_headers(&of_root.headers, &of_leaf.headers),
            without_headers: merge_headers(&of_root.without_headers, &of_leaf.without_headers),
            query: merge_query(&of_root.query, &of_leaf.query),
            port: of_leaf.port.or(of_root.port),
        },
    }
}

fn merge_headers(root: &[HeaderMatch], leaf: &[HeaderMatch]) -> Vec<HeaderMatch> {
    let of_root = root.iter().filter(|r| leaf.iter().all(|l| l.name != r.name));
    let mut merged: Vec<HeaderMatch> = of_root.chain(leaf).cloned().collect();
    merged.sort_by(|a, b| a.name.cmp(&b.name));
    merged
}

fn merge_query(root: &[QueryMatch], leaf: &[QueryMatch]) -> Vec<QueryMatch> {
    let of_root = root.iter().filter(|r| leaf.iter().all(|l| l.name != r.name));
    let mut merged: Vec<QueryMatch> = of_root.chain(leaf).cloned().collect();
    merged.sort_by(|a, b| a.name.cmp(&b.name));
    merged
}

/// Whether the delegate's match may mean requests that the root's does not.
fn conflicts(root: &RequestMatch, leaf: &RequestMatch) -> bool {
    let header = |roots: &[HeaderMatch], leaf: &HeaderMatch| {
        let of_root = roots.iter().find(|root| root.name == leaf.name);
        widens(of_root.map(|root| &root.value), Some(&leaf.value))
    };
    let query = |leaf: &QueryMatch| {
        let of_root = root.query.iter().find(|root| root.name == leaf.name);
        widens(of_root.map(|root| &root.value), Some(&leaf.value))
    };
    widens_path(root.path.as_ref(), leaf.path.as_ref())
        || widens(root.scheme.as_ref(), leaf.scheme.as_ref())
        || widens(root.method.as_ref(), leaf.method.as_ref())
        || widens(root.authority.as_ref(), leaf.authority.as_ref())
        || leaf.headers.iter().any(|leaf| header(&root.headers, leaf))
        || leaf.without_headers.iter().any(|leaf| header(&root.without_headers, leaf))
        || leaf.query.iter().any(query)
        || root.port.zip(leaf.port).is_some_and(|(root, leaf)| root != leaf)
}

fn widens_path(root: Option<&PathTest>, leaf: Option<&PathTest>) -> bool {
    match (root, leaf) {
        (
            Some(PathTest::Text { text: root, ignore_case: of_root }),
            Some(PathTest::Text { text: leaf, ignore_case: of_leaf }),
        ) => of_root != of_leaf || widens(Some(root), Some(leaf)),
        // What only the case of letters is said of is left to the other.
        (Some(PathTest::Text { ignore_case, .. }), None)
        | (None, Some(PathTest::Text { ignore_case, .. })) => *ignore_case,
        _ => false,
    }
}

/// Whether `leaf` may mean texts that `root` does not. Regular expressions always may.
fn widens(root: Option<&TextMatch>, leaf: Option<&TextMatch>) -> bool {
    let (Some(root), Some(leaf)) = (root, leaf) else { return false };
    match (root, leaf) {
        (TextMatch::Exact(root), TextMatch::Exact(leaf)) => root != leaf,
        (TextMatch::Prefix(root), TextMatch::Prefix(leaf) | TextMatch::Exact(leaf)) => {
            !leaf.starts_with(&**root)
        }
        _ => true,
    }
}
