//! The service behind the waypoint, its three routes and one policy, as objects.

use std::net::Ipv4Addr;

use super::NAME;
use crate::bench::mode::{BULK_PORT, HTTP_PORT};

/// File of the lab's directory.
pub(super) const FILE: &str = "waypoint.yaml";
/// The service's address, in the lab's range of services.
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
/// Name of the service, in namespace `default`.
pub(super) const SERVICE: &str = "app";
/// A method that the policy does not allow.
pub(super) const DENIED: &str = "DELETE";
/// What the routes look at before the last one, which takes all the load sends: a header, and the start of a path.
pub(super) const CANARY: (&str, &str) = ("x-canary", "always");
pub(super) const ADMIN: &str = "/admin";

/// The documents: a Gateway at this address, a Service of the pods with this label `app`, and the only client it has.
pub(super) fn text(class: &str, waypoint: Ipv4Addr, (app, client): (&str, &str)) -> String {
    let client = client.trim_start_matches("spiffe://");
    let (name, value) = CANARY;
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: {NAME}\n  namespace: default\n  \
         labels: {{istio.io/waypoint-for: service}}\nspec:\n  gatewayClassName: {class}\n  \
         listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\nstatus:\n  \
         addresses: [{{type: IPAddress, value: {waypoint}}}]\n\
         ---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {SERVICE}\n  namespace: default\n  \
         labels: {{istio.io/use-waypoint: {NAME}}}\nspec:\n  clusterIP: {VIP}\n  clusterIPs: [{VIP}]\n  \
         selector: {{app: {app}}}\n  ports:\n  - {{name: http, port: {HTTP_PORT}, targetPort: {HTTP_PORT}}}\n  \
         - {{name: tcp-bulk, port: {BULK_PORT}, targetPort: {BULK_PORT}}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {SERVICE}, namespace: default}}\n\
         spec:\n  hosts: [{SERVICE}]\n  http:\n  - match: [{{headers: {{{name}: {{exact: {value}}}}}}}]\n    \
         headers: {{response: {{set: {{x-version: canary}}}}}}\n    route: [{{destination: {{host: {SERVICE}}}}}]\n  \
         - match: [{{uri: {{prefix: {ADMIN}}}}}]\n    rewrite: {{uri: /}}\n    timeout: 5s\n    \
         route: [{{destination: {{host: {SERVICE}}}}}]\n  - route: [{{destination: {{host: {SERVICE}}}}}]\n\
         ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {SERVICE}, namespace: default}}\nspec:\n  \
         targetRefs: [{{kind: Service, group: \"\", name: {SERVICE}}}]\n  action: ALLOW\n  rules:\n  \
         - from: &from [{{source: {{principals: [\"{client}\"]}}}}]\n    to: [{{operation: {{methods: [GET]}}}}]\n  \
         - from: *from\n    to: [{{operation: {{ports: [\"{BULK_PORT}\"]}}}}]\n",
    )
}
