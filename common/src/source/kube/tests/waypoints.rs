//! What makes a waypoint, what is bound to it, and what becomes of bindings that do not work.

use super::*;
use crate::model::l7::{ClusterKey, GatewayKey, Serves};

/// A Gateway of `shop`, with `meta` in its metadata, `spec` in its spec, and `rest` after that.
pub(super) fn gateway(meta: &str, spec: &str, rest: &str) -> String {
    format!(
        "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: wp, namespace: shop, {meta}}}, \
         spec: {{gatewayClassName: culvert-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE{spec}}}]}}, {rest}}}\n"
    )
}

const READY: &str = "status: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}";

pub(super) fn service(name: &str, meta: &str) -> String {
    let ip = name.len();
    format!(
        "\n---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop, {meta}}}, \
         spec: {{clusterIP: 10.96.0.{ip}, ports: [{{name: http, port: 80, targetPort: 8080}}], selector: {{app: {name}}}}}}}\n"
    )
}

fn key() -> GatewayKey {
    GatewayKey { namespace: "shop".into(), name: "wp".into() }
}

/// One good file for the waypoint.
pub(super) fn for_waypoint(text: &str) -> TranslatedWaypoint {
    for_waypoint_with(text, &Settings::default())
}

pub(super) fn for_waypoint_with(text: &str, settings: &Settings) -> TranslatedWaypoint {
    let documents = [Document { file: "a.yaml", text }];
    translate_waypoint(&documents, settings, &key())
        .unwrap_or_else(|problems| panic!("{}", lines(&problems).join("\n")))
}

pub(super) const USES: &str = "labels: {istio.io/use-waypoint: wp}";

#[test]
fn a_waypoint_has_the_services_and_workloads_that_are_bound_to_it() {
    let text = [
        SHOP.to_owned(),
        gateway("labels: {istio.io/waypoint-for: all}", "", ""),
        service("cart", USES),
        service("web", ""),
        pod("cart-0", "10.0.0.1", USES, "", ""),
    ];
    let TranslatedWaypoint { waypoint, model, .. } = for_waypoint(&text.concat());
    assert_eq!((waypoint.gateway, waypoint.serves), (key(), Serves::All));
    let services: Vec<String> = waypoint.services.keys().map(ToString::to_string).collect();
    assert_eq!(services, ["shop/cart.shop.svc.cluster.local"]);
    let bound = waypoint.services.values().next().unwrap();
    let port = &bound.ports[&80];
    assert_eq!((port.http.len(), port.tcp.len()), (1, 0), "http only");
    let clusters: Vec<String> = waypoint.clusters.keys().map(ClusterKey::to_string).collect();
    assert_eq!(clusters, ["outbound|80||cart.shop.svc.cluster.local"]);
    assert_eq!(waypoint.workloads.len(), 1);
    assert_eq!(model.services.len(), 2);
}

#[test]
fn a_waypoint_that_is_not_there_is_a_problem() {
    let documents = [Document { file: "a.yaml", text: SHOP }];
    let problems = translate_waypoint(&documents, &Settings::default(), &key()).unwrap_err();
    assert_eq!(
        lines(&problems),
        [
            "settings: Gateway shop/wp: no waypoint of this name; allowed: a Gateway (gateway.networking.k8s.io/v1) of this \
          namespace and name with gatewayClassName culvert-waypoint"
        ]
    );
}

#[test]
fn agents_send_bound_traffic_to_the_waypoint() {
    let model = model(&[gateway("", "", READY), service("cart", USES)].concat());
    let waypoint = model.services[0].waypoint.as_ref().unwrap();
    assert_eq!(waypoint.destination.to_string(), "shop/wp.shop.svc.cluster.local");
    assert_eq!(waypoint.port, 15008);
}
