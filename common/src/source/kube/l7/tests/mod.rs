//! YAML in, routes and destinations out. Each field has a row that says what it changes in the model.

mod destinations;
mod explained;
mod gateway_routes;
mod order;
mod outcomes;
mod refusals;
mod virtual_services;

use super::*;
use crate::model::l7::{Backend, Cluster, ClusterKey, Route, RouteAction, TcpRoute};

/// A mesh: `cart` and `echo` in `shop` behind waypoint `wp`, `bank` in another namespace without one.
const MESH: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}], selector: {app: cart}}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  clusterIP: 10.96.0.2
  ports: [{name: http, port: 80}, {name: grpc, port: 7070}, {name: tcp, port: 9090}, {name: tls, port: 9443}]
  selector: {app: echo}
---
apiVersion: v1
kind: Service
metadata: {name: bank, namespace: money}
spec: {clusterIP: 10.96.0.3, ports: [{name: http, port: 80}], selector: {app: bank}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart, version: v1}}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-2, namespace: shop, labels: {app: cart, version: v2}}
status: {podIPs: [{ip: "fd00::2"}]}
"#;

fn key() -> GatewayKey {
    GatewayKey { namespace: "shop".into(), name: "wp".into() }
}

fn result(objects: &str) -> Result<TranslatedWaypoint, Vec<String>> {
    let documents = [Document { file: "mesh.yaml", text: MESH }, Document { file: "a.yaml", text: objects }];
    translate_waypoint(&documents, &Settings::default(), &key())
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn translated(objects: &str) -> TranslatedWaypoint {
    result(objects).unwrap_or_else(|problems| panic!("{}\n{objects}", problems.join("\n")))
}

fn problems(objects: &str) -> Vec<String> {
    result(objects).err().unwrap_or_else(|| panic!("no problem in\n{objects}"))
}

fn warnings(objects: &str) -> Vec<String> {
    translated(objects).warnings.iter().map(ToString::to_string).collect()
}

/// An object of `namespace` with `spec`; `meta` goes into its metadata.
fn object(kind: &str, namespace: &str, meta: &str, spec: &str) -> String {
    let version = match kind {
        "VirtualService" | "DestinationRule" => "networking.istio.io/v1",
        "AuthorizationPolicy" => "security.istio.io/v1",
        _ => "gateway.networking.k8s.io/v1",
    };
    format!(
        "\n---\n{{apiVersion: {version}, kind: {kind}, metadata: {{namespace: {namespace}, {meta}}}, spec: {{{spec}}}}}\n"
    )
}

/// A VirtualService of `shop` for `cart` with these HTTP rules.
fn virtual_service(rules: &str) -> String {
    object("VirtualService", "shop", "name: vs", &format!("hosts: [cart], http: [{rules}]"))
}

/// HTTP routes of a service's port.
fn http(of: &TranslatedWaypoint, service: &str, port: u16) -> Vec<Route> {
    let found = of.waypoint.services.iter().find(|(key, _)| key.hostname.starts_with(&format!("{service}.")));
    found.unwrap_or_else(|| panic!("no {service}")).1.ports[&port].http.to_vec()
}

fn tcp(of: &TranslatedWaypoint, service: &str, port: u16) -> Vec<TcpRoute> {
    let found = of.waypoint.services.iter().find(|(key, _)| key.hostname.starts_with(&format!("{service}.")));
    found.unwrap_or_else(|| panic!("no {service}")).1.ports[&port].tcp.to_vec()
}

/// The destination of this name, as [`ClusterKey`] shows it.
fn cluster(of: &TranslatedWaypoint, name: &str) -> Option<Cluster> {
    let found = of.waypoint.clusters.iter().find(|(key, _)| key.to_string() == name);
    found.map(|(_, cluster)| Cluster::clone(cluster))
}

/// A destination in short: `<host>:<port>/<subset>`, or the status and why.
fn shown(backend: &Backend) -> String {
    match backend {
        Backend::Cluster(ClusterKey { service, port, subset }) => {
            let subset = subset.as_ref().map(|subset| format!("/{subset}")).unwrap_or_default();
            format!("{}:{port}{subset}", service.hostname.split('.').next().unwrap())
        }
        Backend::Invalid { status, reason } => format!("{}: {reason}", status.as_u16()),
    }
}

/// What becomes of a request in short.
fn action(route: &Route) -> String {
    match &route.action {
        RouteAction::Forward(all) => {
            let one = |w: &l7::Weighted| format!("{} {}", w.weight, shown(&w.backend));
            all.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        RouteAction::Respond(answer) => {
            format!("{} {:?}", answer.status.as_u16(), String::from_utf8_lossy(&answer.body))
        }
        other => format!("{other:?}"),
    }
}
