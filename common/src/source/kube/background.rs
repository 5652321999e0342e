//! What objects say beyond what decisions need, for `culvert why`: selectors, why a pod is left out, what is doubtful.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Settings;
use super::authorization_policy::AuthorizationPolicy;
use super::labelled::Labelled;
use super::object::Objects;
use super::pod::Pod;
use super::reader::Labels;
use super::service::{Service, Target};
use super::{authorization, peer_authentication};
use crate::config::Problem;
use crate::model::{Background, LeftOut};
use crate::types::ServiceKey;

/// Labels that are told of where a selector matches no pod.
const NEAR: usize = 5;

/// All of it; `warnings` are those of the translation.
pub(super) fn of(objects: &Objects, warnings: &[Problem], settings: &Settings) -> Background {
    let mut background = Background::default();
    for pod in &objects.pods {
        background.add_pod(pod, objects, settings);
    }
    let pods = Labelled::new(objects.pods.iter());
    for policy in &objects.authorization_policies {
        let namespace = &*policy.meta.namespace;
        let is_root = *namespace == *settings.root_namespace;
        let among = if is_root { pods.namespaces().collect() } else { vec![namespace] };
        background.add_policy(policy, (&pods, &among));
    }
    for service in &objects.services {
        let key = service.model(objects, settings).key;
        background.add_service(service, &key, &pods);
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

    fn add_policy(&mut self, policy: &AuthorizationPolicy, pods: (&Labelled<'_>, &[&str])) {
        let key = authorization::key(policy);
        let left_out = authorization::rules_left_out(policy);
        if !left_out.is_empty() {
            self.rules_left_out.insert(key.clone(), left_out);
        }
        if let Some(selector) = &policy.selector {
            self.check_selector(&policy.meta.at.object, selector, pods);
            self.policy_selectors.insert(key, text(selector));
        }
    }

    fn add_service(&mut self, service: &Service, key: &ServiceKey, pods: &Labelled<'_>) {
        for port in &service.ports {
            if let Target::Name(name) = &port.target {
                self.port_names.insert((key.clone(), port.port), Arc::clone(name));
            }
        }
        let Some(selector) = &service.selector else { return };
        let namespace = &*key.namespace;
        self.check_selector(&service.meta.at.object, selector, (pods, &[namespace]));
        for pod in pods.selected(namespace, selector) {
            if let Some(why) = self.left_out.get(&format!("Pod {}", pod.meta.key())).cloned() {
                let of_service = self.selected_left_out.entry(key.clone()).or_default();
                of_service.push(LeftOut { pod: pod.meta.key().into(), why });
            }
        }
        self.service_selectors.insert(key.clone(), text(selector));
    }

    /// Remarks on a selector that finds no pod in these namespaces, with what pods have in place of it.
    fn check_selector(
        &mut self,
        object: &Arc<str>,
        selector: &Labels,
        (pods, among): (&Labelled<'_>, &[&str]),
    ) {
        if among.iter().any(|namespace| pods.selected(namespace, selector).next().is_some()) {
            return;
        }
        let near = among.iter().flat_map(|namespace| pods.near(namespace, selector, NEAR));
        let near: BTreeSet<String> = near.collect();
        let near: Vec<String> = near.into_iter().take(NEAR).collect();
        let others = if near.is_empty() { String::new() } else { format!("; pods have {}", near.join(", ")) };
        let line = format!("{object}: the selector {} matches no pod{others}", text(selector));
        self.remarks.push((Arc::clone(object), line.into()));
    }
}

fn text(selector: &Labels) -> Arc<str> {
    let pairs: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { "(any pod)".into() } else { pairs.join(",").into() }
}
