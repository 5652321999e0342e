//! Pods, services, slices, nodes: what becomes of them.

use super::*;
use crate::model::{Enrolment, HealthPolicy, IpFamilies, LocalityScope, Mode, WorkloadType};

#[test]
fn the_examples_are_translated_without_a_warning() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join("manifests/examples/shop");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (shop, policies) = (read("shop.yaml"), read("policies.yaml"));
    let documents =
        [Document { file: "shop.yaml", text: &shop }, Document { file: "policies.yaml", text: &policies }];
    let Translated { model, warnings, .. } = translate(&documents, &Settings::default()).unwrap();
    assert_eq!(warnings, []);
    let cart = model.workloads.iter().find(|w| &*w.name == "cart-0").unwrap();
    assert_eq!(&*cart.uid.0, "Kubernetes//Pod/shop/cart-0");
    assert_eq!(cart.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(cart.protocol, TunnelProtocol::Hbone);
    assert_eq!((&*cart.locality.region, &*cart.locality.zone), ("eu", "eu-a"));
    assert_eq!((&*cart.canonical_name, &*cart.canonical_revision), ("cart", "v2"));
    let listed: Vec<String> = cart.authorization_policies.iter().map(ToString::to_string).collect();
    assert_eq!(listed, ["shop/only-web", "istio-system/istio_converted_static_strict"]);
    let service = &model.services[0];
    assert_eq!(&*service.key.hostname, "cart.shop.svc.cluster.local");
    assert_eq!(
        (service.vips.len(), service.ip_families, service.ports[&80].target),
        (2, IpFamilies::Dual, 0)
    );
    assert_eq!(shown(&service.endpoints), ["Kubernetes//Pod/shop/cart-0 {80: 8080} Healthy"]);
    let pods: Vec<_> = model.pods.iter().map(|p| (&*p.uid, p.netns.clone().unwrap())).collect();
    assert_eq!(
        pods,
        [
            ("shop/web-0", PathBuf::from("/run/netns/web-0")),
            ("shop/cart-0", PathBuf::from("/run/netns/cart-0"))
        ]
    );
}

#[test]
fn which_pods_are_captured() {
    use Enrolment::{Exempt, Labelled, NotLabelled};
    let table = [
        ("", "", TunnelProtocol::Hbone, Labelled),
        ("labels: {istio.io/dataplane-mode: none}", "", TunnelProtocol::Tcp, NotLabelled),
        ("labels: {istio.io/dataplane-mode: ambient}", "", TunnelProtocol::Hbone, Labelled),
        ("labels: {istio.io/dataplane-mode: other}", "", TunnelProtocol::Hbone, Labelled),
        ("annotations: {sidecar.istio.io/status: '{}'}", "", TunnelProtocol::Tcp, Exempt),
        ("annotations: {ambient.istio.io/redirection: enabled}", "", TunnelProtocol::Hbone, Labelled),
        ("annotations: {ambient.istio.io/redirection: pending}", "", TunnelProtocol::Tcp, Labelled),
        ("annotations: {ambient.istio.io/redirection: disabled}", "", TunnelProtocol::Tcp, Labelled),
        ("", "hostNetwork: true", TunnelProtocol::Tcp, Exempt),
        (
            "labels: {istio.io/dataplane-mode: none, networking.istio.io/tunnel: http}",
            "",
            TunnelProtocol::Hbone,
            NotLabelled,
        ),
    ];
    for (meta, spec, expected, enrolment) in table {
        let model = model(&format!("{SHOP}{}", pod("a", "10.0.0.1", meta, spec, "")));
        assert_eq!(model.workloads[0].protocol, expected, "{meta} {spec}");
        assert_eq!(model.workloads[0].enrolment, enrolment, "{meta} {spec}");
        // Nobody else proves its identity for it.
        assert_eq!(model.workloads[0].native_tunnel, meta.contains("tunnel: http"), "{meta} {spec}");
    }
    let outside = pod("a", "10.0.0.1", "", "", "");
    let is = |w: &Workload| (w.protocol, w.enrolment);
    assert_eq!(
        is(&model(&outside).workloads[0]),
        (TunnelProtocol::Tcp, NotLabelled),
        "namespace without label"
    );
    let excluded = Settings { excluded_namespaces: vec!["shop".into()], ..Settings::default() };
    let labelled = pod("a", "10.0.0.1", "labels: {istio.io/dataplane-mode: ambient}", "", "");
    assert_eq!(is(&translated(&labelled, &excluded).model.workloads[0]), (TunnelProtocol::Tcp, Exempt));
    let own = Settings { root_namespace: "shop".into(), ..Settings::default() };
    let proxy = pod("a", "10.0.0.1", "labels: {istio.io/dataplane-mode: ambient, app: ztunnel}", "", "");
    assert_eq!(is(&translated(&proxy, &own).model.workloads[0]), (TunnelProtocol::Tcp, Exempt));
}

#[test]
fn health_of_a_pod() {
    let table = [
        ("", "phase: Running", Some(Health::Healthy)),
        ("", "", Some(Health::Healthy)),
        ("", "phase: Pending", Some(Health::Unhealthy)),
        ("", "phase: Unknown", Some(Health::Unhealthy)),
        ("", "phase: Running, conditions: []", Some(Health::Unhealthy)),
        ("", "conditions: [{type: Ready, status: \"True\"}]", Some(Health::Healthy)),
        ("", "conditions: [{type: Ready, status: \"False\"}]", Some(Health::Unhealthy)),
        ("", "conditions: [{type: Ready, status: Unknown}]", Some(Health::Unhealthy)),
        ("", "conditions: [{type: Initialized, status: \"True\"}]", Some(Health::Unhealthy)),
        ("deletionTimestamp: 2024-05-01T12:00:00Z", "", Some(Health::Terminating)),
        ("", "phase: Succeeded", None),
        ("", "phase: Failed", None),
    ];
    for (meta, status, expected) in table {
        let model = model(&pod("a", "10.0.0.1", meta, "", status));
        assert_eq!(model.workloads.first().map(|w| w.health), expected, "{meta} {status}");
    }
}

#[test]
fn owners_and_canonical_names() {
    let owner = |kind: &str, name: &str| {
        format!("ownerReferences: [{{kind: {kind}, name: {name}, controller: true}}], ")
    };
    let table = [
        (String::new(), WorkloadType::Pod, "a"),
        (
            owner("ReplicaSet", "cart-7d4f") + "labels: {pod-template-hash: 7d4f}",
            WorkloadType::Deployment,
            "cart",
        ),
        (owner("ReplicaSet", "cart-7d4f"), WorkloadType::Pod, "a"),
        (owner("StatefulSet", "db"), WorkloadType::Pod, "a"),
        (owner("DaemonSet", "agent"), WorkloadType::Pod, "a"),
        (owner("Job", "import"), WorkloadType::Job, "import"),
        (owner("Job", "import-28491040"), WorkloadType::CronJob, "import"),
        (owner("Job", "import-1234567"), WorkloadType::Job, "import-1234567"),
        ("ownerReferences: [{kind: Job, name: import}]".into(), WorkloadType::Pod, "a"),
    ];
    for (meta, kind, name) in table {
        let model = model(&pod("a", "10.0.0.1", &meta, "", ""));
        let workload = &model.workloads[0];
        assert_eq!((workload.workload_type, &*workload.workload_name), (kind, name), "{meta}");
        assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), (name, "latest"), "{meta}");
    }
    let table = [
        ("app: x", "x", "latest"),
        ("app: x, app.kubernetes.io/name: y, version: v1", "y", "v1"),
        (
            "app.kubernetes.io/name: y, service.istio.io/canonical-name: z, app.kubernetes.io/version: v2, version: v1",
            "z",
            "v2",
        ),
        ("service.istio.io/canonical-revision: v3, app.kubernetes.io/version: v2", "a", "v3"),
    ];
    for (labels, name, revision) in table {
        let model = model(&pod("a", "10.0.0.1", &format!("labels: {{{labels}}}"), "", ""));
        let workload = &model.workloads[0];
        assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), (name, revision), "{labels}");
    }
}

#[test]
fn load_balancing_of_a_service() {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    let zone = vec![Network, Region, Zone];
    let node = vec![Network, Region, Zone, Subzone, Node];
    let table = [
        ("", "", Mode::Standard, vec![]),
        ("internalTrafficPolicy: Cluster", "", Mode::Standard, vec![]),
        ("internalTrafficPolicy: Local", "", Mode::Strict, vec![Node]),
        ("trafficDistribution: PreferClose", "", Mode::Failover, zone.clone()),
        ("trafficDistribution: PreferSameZone", "", Mode::Failover, zone.clone()),
        ("trafficDistribution: PreferSameNode", "", Mode::Failover, node.clone()),
        ("internalTrafficPolicy: Local, trafficDistribution: PreferClose", "", Mode::Strict, vec![Node]),
        ("", "preferclose", Mode::Failover, zone),
        ("", "PreferSameNode", Mode::Failover, node.clone()),
        ("trafficDistribution: PreferSameNode", "PreferClose", Mode::Failover, node),
        ("", "whatever", Mode::Standard, vec![]),
    ];
    for (spec, annotation, mode, preference) in table {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s, annotations: {{networking.istio.io/traffic-distribution: \
             '{annotation}'}}}}, spec: {{ports: [{{port: 80}}], {spec}}}}}"
        );
        let lb = &model(&text).services[0].load_balancing;
        assert_eq!((lb.mode, &lb.routing_preference), (mode, &preference), "{spec} {annotation}");
        assert_eq!(lb.health_policy, HealthPolicy::OnlyHealthy);
    }
    let text = object("Service", "s", "spec: {ports: [{port: 80}], publishNotReadyAddresses: true}");
    assert_eq!(model(&text).services[0].load_balancing.health_policy, HealthPolicy::AllowAll);
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: \
                {networking.istio.io/traffic-distribution: PreferClose}}}"
        .to_owned()
        + &object("Service", "s", "spec: {ports: [{port: 80}]}");
    assert_eq!(model(&text).services[0].load_balancing.mode, Mode::Failover, "of the namespace");
}

#[test]
fn addresses_and_ports_of_a_service() {
    let text = object(
        "Service",
        "s",
        "spec: {clusterIP: 10.96.0.1, ipFamilies: [IPv4], ports: [{port: 80, name: a}, {port: 53, protocol: UDP}, \
         {port: 81, targetPort: 8081}, {port: 82, targetPort: web}]}",
    );
    let model = model(&text);
    let ports: Vec<_> = model.services[0].ports.iter().map(|(p, t)| (*p, t.target, &*t.name)).collect();
    assert_eq!(ports, [(80, 80, "a"), (81, 8081, ""), (82, 0, "")]);
    assert_eq!(model.services[0].ip_families, IpFamilies::V4);
    for (spec, vips) in [
        ("clusterIP: None", 0),
        ("clusterIPs: [None]", 0),
        ("type: ClusterIP", 0),
        ("clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1']", 2),
    ] {
        let text = object("Service", "s", &format!("spec: {{{spec}, ports: [{{port: 80}}]}}"));
        assert_eq!(super::model(&text).services[0].vips.len(), vips, "{spec}");
    }
    let external = object("Service", "s", "spec: {type: ExternalName, externalName: example.com}");
    assert_eq!(super::model(&external).services, []);
}

const CART: &str = "spec: {selector: {app: cart}, ports: [{name: web, port: 80, targetPort: http}, {name: n, port: 90, targetPort: 9090}]}";

#[test]
fn endpoints_of_a_selector() {
    let labels = "labels: {app: cart}";
    let named = "containers: [{ports: [{name: http, containerPort: 8080}, {name: http, containerPort: 1}]}]";
    let sidecar = "initContainers: [{restartPolicy: Always, ports: [{name: http, containerPort: 8081}]}]";
    let text = object("Service", "cart", CART)
        + &pod("a", "10.0.0.1", labels, named, "")
        + &pod("b", "10.0.0.2", labels, sidecar, "conditions: []")
        + &pod("c", "10.0.0.3", labels, "", "")
        + &pod("d", "10.0.0.4", labels, "hostNetwork: true", "")
        + &pod("e", "10.0.0.5", "labels: {app: other}", "", "")
        + &pod("f", "10.0.0.6", labels, "", "phase: Succeeded");
    assert_eq!(
        shown(&model(&text).services[0].endpoints),
        [
            "Kubernetes//Pod/shop/a {80: 8080} Healthy",
            "Kubernetes//Pod/shop/b {80: 8081} Unhealthy",
            "Kubernetes//Pod/shop/c {} Healthy", // no port of that name: it does not serve port 80
            "Kubernetes//Pod/shop/d {} Healthy",
        ]
    );
}

#[test]
fn slices_lower_the_health_of_pods_and_name_ports() {
    let slice = |endpoints: &str| {
        format!(
            "\n---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: cart-x, \
             namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}, ports: [{{name: web, port: 8088}}], \
             endpoints: [{endpoints}]}}"
        )
    };
    let labels = "labels: {app: cart}";
    let table = [
        ("{addresses: [10.0.0.1]}", "Healthy"),
        ("{addresses: [10.0.0.1], conditions: {ready: true, serving: true, terminating: false}}", "Healthy"),
        ("{addresses: [10.0.0.1], conditions: {ready: null}}", "Healthy"),
        ("{addresses: [10.0.0.1], conditions: {ready: false}}", "Unhealthy"),
        (
            "{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}",
            "Terminating",
        ),
        (
            "{addresses: [10.9.9.9], targetRef: {kind: Pod, name: a, namespace: shop}, conditions: {ready: false}}",
            "Unhealthy",
        ),
    ];
    for (endpoint, health) in table {
        let text = object("Service", "cart", CART) + &pod("a", "10.0.0.1", labels, "", "") + &slice(endpoint);
        let model = model(&text);
        let expected = format!("Kubernetes//Pod/shop/a {{80: 8088}} {health}");
        assert_eq!(shown(&model.services[0].endpoints), [expected], "{endpoint}");
        assert_eq!(model.workloads.len(), 1);
        assert_eq!(model.workloads[0].health, Health::Healthy, "for this service only");
    }
}

#[test]
fn slices_of_a_service_without_selector() {
    let text = object("Service", "db", "spec: {clusterIP: 10.96.0.9, ports: [{port: 5432}]}")
        + &pod("a", "10.0.0.1", "", "", "")
        + "\n---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: db-1, \
           namespace: shop, labels: {kubernetes.io/service-name: db}}, ports: [{port: 15432}], endpoints: [\
           {addresses: [10.0.0.1]}, {addresses: [192.0.2.7], conditions: {ready: false}}, \
           {addresses: [10.0.0.8], targetRef: {kind: Pod, name: gone, namespace: shop}}]}";
    let Translated { model, warnings, .. } = translated(&text, &Settings::default());
    assert_eq!(
        shown(&model.services[0].endpoints),
        [
            "Kubernetes//Pod/shop/a {5432: 15432} Healthy",
            "Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.7 {5432: 15432} Unhealthy",
        ]
    );
    let other = &model.workloads[1];
    assert!(other.host_network && other.protocol == TunnelProtocol::Tcp);
    assert_eq!(
        lines(&warnings),
        [
            "a.yaml:12: EndpointSlice shop/db-1: endpoints[2].targetRef: Pod shop/gone is not known; the endpoint is left out"
        ]
    );
}

#[test]
fn lists_as_kubectl_prints_them() {
    let list = "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, \
                status: {podIP: 10.0.0.1}}]}\n---\n{apiVersion: v1, kind: PodList, items: [{metadata: {name: b}, \
                status: {podIP: 10.0.0.2}}]}";
    let names: Vec<String> = model(list).workloads.iter().map(|w| w.uid.to_string()).collect();
    assert_eq!(names, ["Kubernetes//Pod/shop/a", "Kubernetes//Pod/default/b"]);
}

#[test]
fn pods_of_this_node() {
    let text = format!(
        "{SHOP}{}{}{}",
        pod(
            "a",
            "10.0.0.1",
            "uid: u-1, annotations: {culvert.dev/netns: /run/netns/a, ambient.istio.io/bypass-inbound-capture: 'true', \
             istio.io/reroute-virtual-interfaces: 'tap0, docker0'}",
            "nodeName: n1",
            ""
        ),
        pod("b", "10.0.0.2", "", "nodeName: n1", ""),
        pod("c", "10.0.0.3", "annotations: {culvert.dev/netns: /run/netns/c}", "nodeName: n2", ""),
    );
    let here = Settings { node: Some("n1".into()), ..Settings::default() };
    let Translated { model, warnings, .. } = translated(&text, &here);
    let [a] = &model.pods[..] else { panic!("{:?}", model.pods) };
    assert_eq!(
        (&*a.uid, a.netns.as_deref(), a.bypass_inbound),
        ("u-1", Some(Path::new("/run/netns/a")), true)
    );
    assert_eq!(a.reroute_interfaces, ["tap0".into(), "docker0".into()]);
    assert_eq!(
        lines(&warnings),
        [
            "a.yaml:6: Pod shop/b: metadata.annotations: to be captured on this node, but its network namespace is unknown; \
          name its path in the annotation culvert.dev/netns, or as a setting of the agent"
        ]
    );
    let overrides = HashMap::from([("shop/b".to_owned(), PathBuf::from("/run/netns/b"))]);
    let both = translated(&text, &Settings { netns_overrides: overrides, ..here.clone() });
    assert_eq!((both.model.pods.len(), both.warnings.len()), (2, 0));
    let dedicated = |sa: &str| {
        let one = Dedicated { namespace: "shop".into(), name: "b".into(), service_account: sa.into() };
        translated(&text, &Settings { dedicated: Some(one), ..here.clone() })
    };
    let Translated { model, warnings, .. } = dedicated("default");
    assert_eq!(
        (model.pods.len(), &*model.pods[0].name, &model.pods[0].netns, warnings.len()),
        (1, "b", &None, 0)
    );
    let Translated { model, warnings, .. } = dedicated("other");
    assert_eq!((model.pods.len(), warnings.len()), (0, 1));
}

/// As `kubectl get pods,services,endpointslices,authorizationpolicies -o yaml` prints: many more fields than are read.
const PRINTED: &str = r#"
apiVersion: v1
items:
- apiVersion: v1
  kind: Pod
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"v1","kind":"Pod","metadata":{"annotations":{},"name":"cart"}}
    creationTimestamp: "2024-05-01T12:00:00Z"
    generateName: cart-7d4f9c6b5-
    labels:
      app: cart
      pod-template-hash: 7d4f9c6b5
    name: cart-7d4f9c6b5-x2x9z
    namespace: shop
    ownerReferences:
    - apiVersion: apps/v1
      blockOwnerDeletion: true
      controller: true
      kind: ReplicaSet
      name: cart-7d4f9c6b5
      uid: 3f0f0f0e-0000-4000-8000-000000000001
    resourceVersion: "12345"
    uid: 3f0f0f0e-0000-4000-8000-000000000002
  spec:
    containers:
    - image: registry.example/cart:1.0
      name: cart
      ports:
      - containerPort: 8080
        name: http
        protocol: TCP
      resources:
        limits: {cpu: 500m, memory: 128Mi}
    dnsPolicy: ClusterFirst
    enableServiceLinks: true
    nodeName: node-1
    priority: 0
    serviceAccount: cart
    serviceAccountName: cart
    terminationGracePeriodSeconds: 30
    tolerations:
    - effect: NoExecute
      key: node.kubernetes.io/not-ready
      operator: Exists
      tolerationSeconds: 300
  status:
    conditions:
    - lastProbeTime: null
      lastTransitionTime: "2024-05-01T12:00:03Z"
      status: "True"
      type: Ready
    containerStatuses:
    - lastState: {}
      ready: true
      restartCount: 0
    hostIP: 192.0.2.11
    phase: Running
    podIP: 10.20.1.5
    podIPs:
    - ip: 10.20.1.5
    qosClass: Burstable
    startTime: "2024-05-01T12:00:00Z"
- apiVersion: v1
  kind: Service
  metadata: {name: cart, namespace: shop, resourceVersion: "9"}
  spec:
    clusterIP: 10.96.1.1
    clusterIPs:
    - 10.96.1.1
    internalTrafficPolicy: Cluster
    ipFamilies:
    - IPv4
    ipFamilyPolicy: SingleStack
    ports:
    - name: http
      nodePort: 30080
      port: 80
      protocol: TCP
      targetPort: http
    selector:
      app: cart
    sessionAffinity: None
    type: NodePort
  status:
    loadBalancer: {}
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints:
  - addresses:
    - 10.20.1.5
    conditions:
      ready: true
      serving: true
      terminating: false
    nodeName: node-1
    targetRef:
      kind: Pod
      name: cart-7d4f9c6b5-x2x9z
      namespace: shop
      uid: 3f0f0f0e-0000-4000-8000-000000000002
  kind: EndpointSlice
  metadata:
    labels:
      endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
      kubernetes.io/service-name: cart
    name: cart-abcde
    namespace: shop
  ports:
  - name: http
    port: 8080
    protocol: TCP
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata:
    creationTimestamp: "2024-05-01T12:00:00Z"
    generation: 1
    name: none
    namespace: shop
  spec: {}
  status:
    conditions:
    - message: attached to ztunnel
      reason: Accepted
      status: "True"
      type: ZtunnelAccepted
kind: List
metadata:
  resourceVersion: ""
"#;

#[test]
fn objects_with_all_that_a_cluster_adds() {
    let Translated { model, warnings, .. } = translated(PRINTED, &Settings::default());
    assert_eq!(warnings, []);
    let cart = &model.workloads[0];
    assert_eq!((cart.workload_type, &*cart.workload_name), (WorkloadType::Deployment, "cart"));
    assert_eq!((cart.health, cart.protocol), (Health::Healthy, TunnelProtocol::Tcp));
    let endpoints = shown(&model.services[0].endpoints);
    assert_eq!(endpoints, ["Kubernetes//Pod/shop/cart-7d4f9c6b5-x2x9z {80: 8080} Healthy"]);
    assert_eq!(model.policies.len(), 1);
}

#[test]
fn json_is_read_as_kubectl_and_the_api_print_it() {
    let object = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"x":"1","y":"a: b # c","z":"\u00e9\/\""}},
        "spec":{"hostNetwork":false,"containers":[]},"status":{"podIP":"10.0.0.1","conditions":[{"type":"Ready","status":"True"}]}}"#;
    for text in [
        object.to_owned(),
        object.replace('\n', ""),
        object.replace(',', ",\n\t"),
        object.replace(':', " :\r\n "),
    ] {
        let model = model(&text);
        assert_eq!((model.workloads.len(), model.workloads[0].health), (1, Health::Healthy), "{text}");
    }
}
