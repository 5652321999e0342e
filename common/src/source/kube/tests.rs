//! YAML in, model out.

use super::*;

fn translated(text: &str, settings: &Settings) -> Translated {
    translate(&[Document { file: "a.yaml", text }], settings).unwrap_or_else(|problems| {
        panic!("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })
}

#[test]
fn a_labelled_pod_behind_a_service() {
    let text = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-0, namespace: shop, labels: {app: cart}, annotations: {culvert.dev/netns: /run/netns/cart}}
spec: {nodeName: n1, serviceAccountName: cart, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.5}, {ip: "fd00::5"}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{port: 80, targetPort: http}]}
"#;
    let Translated { model, warnings } = translated(text, &Settings::default());
    assert_eq!(warnings, []);
    assert_eq!(model.workloads[0].protocol, TunnelProtocol::Hbone);
    assert_eq!(&*model.workloads[0].uid.0, "Kubernetes//Pod/shop/cart-0");
    assert_eq!(model.services[0].endpoints[0].ports.get(&80), Some(&8080));
    assert_eq!(model.pods[0].netns.as_deref(), Some(std::path::Path::new("/run/netns/cart")));
}
