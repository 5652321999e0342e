//! What counts for a service that is behind a waypoint of another namespace.

use super::*;

/// `bank` of `money` behind the waypoint of `shop`, which lets it.
fn mesh() -> String {
    let bank = "name: bank, namespace: money";
    let listener = "protocol: HBONE";
    assert!(MESH.contains(bank) && MESH.contains(listener));
    let labels = "labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}";
    let open = "allowedRoutes: {namespaces: {from: All}}";
    MESH.replacen(bank, &format!("{bank}, {labels}"), 1).replacen(listener, &format!("{listener}, {open}"), 1)
}

fn outcome(objects: &str) -> String {
    world_of(&mesh(), objects, &Settings::default()).outcome("GET /a\nto: 10.96.0.3:80")
}

const OPEN: &str = "GET svc/a > bank-1:80";
const BANK: &str = "bank.money.svc.cluster.local";
const PARENT: &str = "group: '', kind: Service, name: bank, namespace: money";

/// What each object comes to in the waypoint's namespace, in the service's, and in one that is neither.
#[test]
fn objects_count_beside_the_waypoint_or_the_service() {
    assert_eq!(outcome(""), OPEN);
    let away = "302 location: http://b.c/a";
    let redirect = "type: RequestRedirect, requestRedirect: {hostname: b.c}";
    let policy = "action: DENY, rules: [{}]";
    let denied = "403 \"RBAC: access denied\"";
    for (kind, spec, wanted) in [
        (
            "VirtualService",
            format!("hosts: [{BANK}], http: [{{redirect: {{authority: b.c, redirectCode: 302}}}}]"),
            [away, away, OPEN],
        ),
        (
            "HTTPRoute",
            format!("parentRefs: [{{{PARENT}}}], rules: [{{filters: [{{{redirect}}}]}}]"),
            [away, away, OPEN],
        ),
        (
            "DestinationRule",
            format!("host: {BANK}, trafficPolicy: {{tls: {{mode: SIMPLE}}}}"),
            ["503", "503", OPEN],
        ),
        (
            "AuthorizationPolicy",
            format!("targetRefs: [{{kind: Service, group: '', name: bank}}], {policy}"),
            [OPEN, denied, OPEN],
        ),
        (
            "AuthorizationPolicy",
            format!("targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: wp}}], {policy}"),
            [denied, OPEN, OPEN],
        ),
    ] {
        for (namespace, wanted) in ["shop", "money", "else"].into_iter().zip(wanted) {
            let text = object(kind, namespace, "name: a", &spec);
            let outcome = outcome(&text);
            let is_right = if wanted == "503" { outcome.starts_with("503 NC") } else { outcome == wanted };
            assert!(is_right, "{outcome}, not {wanted}: {text}");
        }
    }
}
