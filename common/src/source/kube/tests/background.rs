//! What is kept for people who ask why.

use super::*;
use crate::model::{NotCaptured, PeerMode};
use crate::types::{ServiceKey, WorkloadUid};

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(format!("Kubernetes//Pod/shop/{name}").into())
}

fn key(name: &str) -> PolicyKey {
    PolicyKey { namespace: "shop".into(), name: name.into() }
}

fn cart() -> ServiceKey {
    ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() }
}

#[test]
fn each_reason_not_to_be_captured() {
    let table = [
        ("", "", None),
        ("labels: {istio.io/dataplane-mode: none}", "", Some(NotCaptured::LabelledNone)),
        ("", "hostNetwork: true", Some(NotCaptured::HostNetwork)),
        ("annotations: {sidecar.istio.io/status: x}", "", Some(NotCaptured::Sidecar)),
        ("annotations: {ambient.istio.io/redirection: disabled}", "", Some(NotCaptured::RedirectionOff)),
        ("labels: {networking.istio.io/tunnel: http, istio.io/dataplane-mode: none}", "", None),
    ];
    for (meta, spec, want) in table {
        let model = model(&(SHOP.to_owned() + &pod("p", "10.0.0.1", meta, spec, "")));
        assert_eq!(model.background.not_captured.get(&uid("p")).copied(), want, "{meta} {spec}");
        // Whoever is not captured gets no tunnel, and the other way round.
        let is_plain = model.workloads[0].protocol == TunnelProtocol::Tcp;
        assert_eq!(is_plain, want.is_some(), "{meta} {spec}");
    }
    let not_labelled = model(&pod("p", "10.0.0.1", "", "", ""));
    assert_eq!(not_labelled.background.not_captured.get(&uid("p")), Some(&NotCaptured::NotLabelled));
}

#[test]
fn selectors_that_find_nothing_are_remarked_on() {
    let of = |selector: &str| format!("spec: {{selector: {{matchLabels: {selector}}}, action: DENY}}");
    let text = [
        pod("web", "10.0.0.1", "labels: {app: web}", "", ""),
        object("AuthorizationPolicy", "right", &of("{app: web}")),
        object("AuthorizationPolicy", "wrong", &of("{app: wbe, tier: x}")),
        object(
            "Service",
            "cart",
            "spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{port: 80, targetPort: http}]}",
        ),
    ];
    let background = model(&text.concat()).background;
    let remarks: Vec<&str> = background.remarks.iter().map(|(_, line)| &**line).collect();
    let want = [
        "AuthorizationPolicy shop/wrong: the selector app=wbe,tier=x matches no pod; pods have app=web",
        "Service shop/cart: the selector app=cart matches no pod; pods have app=web",
    ];
    assert_eq!(remarks, want);
    assert_eq!(background.policy_selectors.get(&key("right")).map(|s| &**s), Some("app=web"));
    assert_eq!(background.service_selectors.get(&cart()).map(|s| &**s), Some("app=cart"));
    assert_eq!(background.port_names.get(&(cart(), 80)).map(|s| &**s), Some("http"));
}

#[test]
fn pods_that_take_no_part_are_known_to_their_service() {
    let text = [
        pod("over", "10.0.0.1", "labels: {app: cart}", "", "phase: Succeeded"),
        "\n---\n{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop, labels: {app: cart}}, status: {phase: Pending}}".to_owned(),
        object("Service", "cart", "spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{port: 80}]}"),
    ];
    let background = model(&text.concat()).background;
    let of_cart = background.selected_left_out.get(&cart()).unwrap();
    let told: Vec<_> = of_cart.iter().map(|out| (&*out.pod, &*out.why)).collect();
    assert_eq!(
        told,
        [("shop/over", "its phase is Succeeded or Failed"), ("shop/new", "it has no address yet")]
    );
    assert_eq!(background.left_out.len(), 2);
}

#[test]
fn rules_that_l4_cannot_see_keep_their_numbers() {
    let rules = "[{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [a]}}]}, {to: [{operation: {paths: [/]}}]}]";
    let text = ["ALLOW", "DENY"].map(|action| {
        object(
            "AuthorizationPolicy",
            &action.to_lowercase(),
            &format!("spec: {{action: {action}, rules: {rules}}}"),
        )
    });
    let model = model(&text.concat());
    assert_eq!(model.background.rules_left_out.get(&key("allow")), Some(&vec![0, 2]));
    assert_eq!(model.background.rules_left_out.get(&key("deny")), None, "DENY keeps its rules");
    for policy in &model.policies {
        let left_out = model.background.rules_left_out.get(&policy.key).map_or(0, Vec::len);
        assert_eq!(policy.rules.len() + left_out, 3, "{}", policy.key);
    }
}

#[test]
fn the_object_that_sets_the_mode_is_named() {
    let peers = |name: &str, spec: &str| object("PeerAuthentication", name, &format!("spec: {{{spec}}}"));
    let web = pod("web", "10.0.0.1", "labels: {app: web}", "", "");
    let own = "selector: {matchLabels: {app: web}}";
    let mode = |is_strict, by: Option<&str>, ports_by: Option<&str>| {
        let object = |name: &str| format!("PeerAuthentication shop/{name}").into();
        Some(PeerMode { is_strict, by: by.map(object), ports_by: ports_by.map(object) })
    };
    let strict = peers("all", "mtls: {mode: STRICT}");
    let table = [
        (vec![], None),
        (vec![strict.clone()], mode(true, Some("all"), None)),
        (
            vec![strict.clone(), peers("own", &format!("{own}, mtls: {{mode: PERMISSIVE}}"))],
            mode(false, Some("own"), None),
        ),
        (vec![strict.clone(), peers("own", own)], mode(true, Some("all"), None)),
        (
            vec![strict, peers("own", &format!("{own}, portLevelMtls: {{80: {{mode: PERMISSIVE}}}}"))],
            mode(true, Some("all"), Some("own")),
        ),
        (
            vec![peers("own", &format!("{own}, portLevelMtls: {{80: {{mode: STRICT}}}}"))],
            mode(false, None, Some("own")),
        ),
    ];
    for (objects, want) in table {
        let model = model(&(web.clone() + &objects.concat()));
        let got = model.background.peer_authentication.get(&uid("web")).cloned();
        assert_eq!(got, want, "{objects:?}");
        // What is said of the mode is what the policies do.
        let lists_any = !model.workloads[0].authorization_policies.is_empty();
        let is_any = want.is_some_and(|mode| mode.is_strict || mode.ports_by.is_some());
        assert_eq!(lists_any, is_any, "{objects:?}");
    }
}
