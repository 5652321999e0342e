//! What objects say beyond what decisions need, for `culvert why`: selectors, why a pod is left out, what is doubtful.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Settings;
use super::object::{Meta, Objects};
use super::pod::Pod;
use super::reader::{Labels, selects};
use super::service::Target;
use super::{authorization, peer_authentication};
use crate::config::Problem;
use crate::model::{Background, LeftOut};
use crate::types::ServiceKey;

/// All of it; `warnings` are those of the translation.
pub(super) fn of(objects: &Objects, warnings: &[Problem], settings: &Settings) -> Background {
    let mut background = Background::default();
    for pod in &objects.pods {
        background.add_pod(pod, objects, settings);
    }
    for policy in &objects.authorization_policies {
        let left_out = authorization::rules_left_out(policy);
        if !left_out.is_empty() {
            background.rules_left_out.insert(authorization::key(policy), left_out);
        }
        let Some(selector) = &policy.selector else { continue };
        let Meta { namespace, at, .. } = &policy.meta;
        let is_root = *namespace == settings.root_namespace;
        let pods = || objects.pods.iter().filter(|pod| is_root || pod.meta.namespace == *namespace);
        background.check_selector(&at.object, selector, pods());
        background.policy_selectors.insert(authorization::key(policy), text(selector));
    }
    for service in &objects.services {
        let Meta { namespace, at, .. } = &service.meta;
        let key: ServiceKey = service.model(objects, settings).key;
        for port in &service.ports {
            if let Target::Name(name) = &port.target {
                background.port_names.insert((key.clone(), port.port), Arc::clone(name));
            }
        }
        let Some(selector) = &service.selector else { continue };
        let pods = objects.pods.iter().filter(|pod| pod.meta.namespace == *namespace);
        background.check_selector(&at.object, selector, pods.clone());
        for pod in pods.filter(|pod| selects(selector, &pod.meta.labels)) {
            if let Some(why) = background.left_out.get(&format!("Pod {}", pod.meta.key())).cloned() {
                let of_service = background.selected_left_out.entry(key.clone()).or_default();
                of_service.push(LeftOut { pod: pod.meta.key().into(), why });
            }
        }
        background.service_selectors.insert(key, text(selector));
    }
    let remark = |problem: &Problem| (problem.object.as_str().into(), problem.to_string().into());
    background.remarks.extend(warnings.iter().map(remark));
    background
}

impl Background {
    fn add_pod(&mut self, pod: &Pod, objects: &Objects, settings: &Settings) {
        if pod.over || pod.ips.is_empty() {
            let why = if pod.over { "its phase is Succeeded or Failed" } else { "it has no address yet" };
            self.left_out.insert(format!("Pod {}", pod.meta.key()), why.into());
            return;
        }
        let uid = pod.uid(settings);
        if !pod.is_native_tunnel()
            && let Some(why) = pod.not_captured(objects.namespaces.get(&pod.meta.namespace), settings)
        {
            self.not_captured.insert(uid.clone(), why);
        }
        let declared = pod.declared_ports();
        if !declared.is_empty() {
            self.declared_ports.insert(uid.clone(), declared);
        }
        if pod.bypass_inbound {
            self.bypass_inbound.insert(uid.clone());
        }
        if let Some(mode) = peer_authentication::mode_of(pod, objects, settings) {
            self.peer_authentication.insert(uid, mode);
        }
    }

    /// Remarks on a selector that finds no pod, with what pods have in place of it.
    fn check_selector<'o>(
        &mut self,
        object: &Arc<str>,
        selector: &Labels,
        pods: impl Iterator<Item = &'o Pod> + Clone,
    ) {
        if pods.clone().any(|pod| selects(selector, &pod.meta.labels)) {
            return;
        }
        let near = |pod: &'o Pod| {
            selector.keys().filter_map(|key| Some(format!("{key}={}", pod.meta.labels.get(key)?)))
        };
        let near: BTreeSet<String> = pods.flat_map(near).collect();
        let near: Vec<String> = near.into_iter().take(5).collect();
        let others = if near.is_empty() { String::new() } else { format!("; pods have {}", near.join(", ")) };
        let line = format!("{object}: the selector {} matches no pod{others}", text(selector));
        self.remarks.push((Arc::clone(object), line.into()));
    }
}

fn text(selector: &Labels) -> Arc<str> {
    let pairs: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { "(any pod)".into() } else { pairs.join(",").into() }
}
