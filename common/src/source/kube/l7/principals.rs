//! Principals of policies with the mesh's other names: a trust domain may have aliases, and `cluster.local` is the local
//! one whatever it is called. Source: Istio, trust domain migration.

use std::sync::Arc;

use crate::model::StringMatch;
use crate::source::kube::Settings;

/// Stands for the local trust domain.
const LOCAL: &str = "cluster.local";

/// The principals in all names of the mesh. Those of other trust domains, and what names none, stay as they are.
pub(super) fn expanded(principals: &[StringMatch], settings: &Settings) -> Vec<StringMatch> {
    let mut all: Vec<StringMatch> = Vec::new();
    for principal in principals {
        for one in in_all_names(principal, settings) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
    }
    all
}

fn in_all_names(principal: &StringMatch, settings: &Settings) -> Vec<StringMatch> {
    let text = principal.to_string();
    let parts: Vec<&str> = text.split('/').collect();
    let [domain, _, _, _, _] = parts[..] else { return vec![principal.clone()] };
    if domain == "*" || !is_local(domain, settings) {
        return vec![principal.clone()];
    }
    let rest = text.get(domain.len()..).unwrap_or_default();
    let of = |name: &Arc<str>| match domain.strip_prefix('*').is_some_and(|tail| name.ends_with(tail)) {
        true => principal.clone(),
        false => string_match(&format!("{name}{rest}")),
    };
    names(settings).map(of).collect()
}

/// Trust domains as policies name them: `cluster.local` is the local one, whatever it is called.
pub(super) fn of_trust_domains(texts: &[StringMatch], settings: &Settings) -> Vec<StringMatch> {
    let one = |text: &StringMatch| match text {
        StringMatch::Exact(name) if is_local(name, settings) => {
            names(settings).map(|name| StringMatch::Exact(Arc::clone(name))).collect()
        }
        _ => vec![text.clone()],
    };
    texts.iter().flat_map(one).collect()
}

fn names(settings: &Settings) -> impl Iterator<Item = &Arc<str>> {
    std::iter::once(&settings.trust_domain).chain(&settings.trust_domain_aliases)
}

fn is_local(domain: &str, settings: &Settings) -> bool {
    let is_name = |name: &Arc<str>| match domain.strip_prefix('*') {
        Some(tail) => name.ends_with(tail),
        None => **name == *domain,
    };
    domain == LOCAL || names(settings).any(is_name)
}

/// As a policy writes it.
fn string_match(text: &str) -> StringMatch {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(suffix), _) => StringMatch::Suffix(suffix.into()),
        (None, Some(prefix)) => StringMatch::Prefix(prefix.into()),
        (None, None) => StringMatch::Exact(text.into()),
    }
}
