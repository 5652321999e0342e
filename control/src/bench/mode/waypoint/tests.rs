use culvert_common::model::l7::{GatewayKey, Protocol};
use culvert_common::source::kube::{Document, Settings, translate, translate_waypoint};

use super::*;
use crate::bench::mode::BULK_PORT;

/// What the waypoint and the agents make of the documents is what `envoy.yaml` says: three routes, one policy, TCP beside.
#[test]
fn the_service_has_three_routes_and_one_policy() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: server, namespace: default, uid: u, labels: {app: server}}\n\
        spec: {nodeName: b, serviceAccountName: server}\nstatus: {phase: Running, podIP: 10.244.2.10, \
        podIPs: [{ip: 10.244.2.10}], conditions: [{type: Ready, status: \"True\"}]}\n---\n";
    for class in ["culvert-waypoint", "istio-waypoint"] {
        let at = "10.244.3.10".parse().unwrap();
        let client = "spiffe://cluster.local/ns/default/sa/client";
        let text = format!("{pod}{}", documents::text(class, at, ("server", client)));
        let document = Document { file: documents::FILE, text: &text };
        let agents = translate(&[document], &Settings::default()).unwrap();
        assert_eq!(agents.warnings.len(), 0, "{class}: {:?}", agents.warnings);
        if class == "istio-waypoint" {
            continue;
        }
        let document = Document { file: documents::FILE, text: &text };
        let gateway = GatewayKey::default();
        let waypoint = translate_waypoint(&[document], &Settings::default(), &gateway).unwrap().waypoint;
        let bound = waypoint.services.values().next().unwrap();
        let (http, tcp) = (&bound.ports[&HTTP_PORT], &bound.ports[&BULK_PORT]);
        assert_eq!((http.http.len(), http.protocol, tcp.protocol), (3, Protocol::Http1, Protocol::Tcp));
        assert_eq!(bound.policies.allow.len(), 1);
    }
}
