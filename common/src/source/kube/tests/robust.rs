//! Text from anywhere: it is translated or refused, in bounded time and memory, and never panics.

use proptest::prelude::*;

use super::*;

#[test]
fn bombs_are_refused() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let before = format!("*a{}", i - 1);
        laughs += &format!("a{i}: &a{i} [{}]\n", [&*before; 10].join(", "));
    }
    for (text, word) in [
        (laughs, "nodes"),
        ("[".repeat(100), "deeper"),
        ("[".repeat(100_000), "recursion"),
        ("{a: ".repeat(100), "deeper"),
        ("{a: ".repeat(100_000), ""),
        ((0..1000).map(|i| format!("{}a:\n", " ".repeat(i))).collect(), "deeper"),
        ("- ".repeat(10_000), "deeper"),
        ("a: &x [*x]".into(), "not complete"),
        ("? [a]\n: b".into(), "no text"),
    ] {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
    }
}

#[test]
fn aliases_within_bounds_are_read() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: &n a, namespace: *n, labels: &l {app: x}, annotations: *l}\n\
                status: {podIP: 10.0.0.1}";
    let model = model(text);
    assert_eq!(&*model.workloads[0].uid.0, "Kubernetes//Pod/a/a");
}

/// A large mesh stays a matter of seconds even without optimisation: nothing is quadratic in pods.
#[test]
fn thousands_of_pods_behind_one_service() {
    let mut text = object("Service", "s", "spec: {selector: {app: a}, ports: [{port: 80}]}");
    let mut slice = object("EndpointSlice", "e", "addressType: IPv4\nendpoints:")
        .replace("name: e,", "name: e, labels: {kubernetes.io/service-name: s},");
    for i in 0..3000 {
        let ip = format!("10.1.{}.{}", i / 200, i % 200 + 1);
        text += &pod(&format!("p{i}"), &ip, "labels: {app: a}", "", "");
        slice += &format!("- {{addresses: [{ip}], conditions: {{ready: {}}}}}\n", i % 2 == 0);
    }
    let start = std::time::Instant::now();
    let model = model(&(text + &slice));
    let healthy = model.services[0].endpoints.iter().filter(|e| e.health == Health::Healthy).count();
    assert_eq!((model.services[0].endpoints.len(), healthy), (3000, 1500));
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

/// Pieces of which the objects that are read are made, so that random text gets past the first check.
const PIECES: [&str; 64] = [
    "apiVersion: v1\n",
    "apiVersion: security.istio.io/v1\n",
    "apiVersion: discovery.k8s.io/v1\n",
    "apiVersion: networking.istio.io/v1\n",
    "apiVersion: gateway.networking.k8s.io/v1\n",
    "kind: Gateway\n",
    "kind: GatewayClass\n",
    "kind: ServiceEntry\n",
    "kind: WorkloadEntry\n",
    "kind: VirtualService\n",
    "kind: DestinationRule\n",
    "kind: HTTPRoute\n",
    "kind: GRPCRoute\n",
    "  gatewayClassName: culvert-waypoint\n",
    "  hosts: [a.example, '*.b']\n",
    "  endpoints: [{address: a}, {address: 10.0.0.1}]\n",
    "  targetRefs: [{kind: Service, name: a}]\n",
    "  labels: {istio.io/use-waypoint: a}\n",
    "  addresses: [{value: 10.0.0.1}]\n",
    "kind: Pod\n",
    "kind: Service\n",
    "kind: Node\n",
    "kind: Namespace\n",
    "kind: EndpointSlice\n",
    "kind: AuthorizationPolicy\n",
    "kind: PeerAuthentication\n",
    "kind: List\n",
    "metadata: {name: a, namespace: b}\n",
    "metadata:\n",
    "  name: c\n",
    "spec:\n",
    "status:\n",
    "  podIPs: [{ip: 10.0.0.1}]\n",
    "  podIPs:\n",
    "  - ip: ::1\n",
    "  rules:\n",
    "  - from:\n",
    "    - source:\n",
    "        principals: ['*']\n",
    "        ipBlocks: [1.2.3.4/33]\n",
    "    to: [{operation: {ports: [x]}}]\n",
    "    when: [{key: source.ip, values: [a]}]\n",
    "  selector: {matchLabels: {a: b}}\n",
    "  selector: {a: b}\n",
    "  mtls: {mode: STRICT}\n",
    "  portLevelMtls: {80: {mode: UNSET}}\n",
    "  ports: [{port: 80, targetPort: x}]\n",
    "  clusterIP: None\n",
    "addressType: IPv4\n",
    "endpoints: [{addresses: [10.0.0.1]}]\n",
    "items: [{}, [], 1]\n",
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "!!str ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "\t",
    "null\n",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_translated_or_refused(text in "\\PC{0,200}") {
        let _ = translate(&[Document { file: "a", text: &text }], &Settings::default());
    }

    #[test]
    fn any_lines_are_translated_or_refused(text in "[a-z:{}\\[\\]&*!|>#%@`'\"?,\\- \\n\\t\\\\0-9.~<]{0,200}") {
        let _ = translate(&[Document { file: "a", text: &text }], &Settings::default());
    }

    #[test]
    fn any_pieces_of_objects_are_translated_or_refused(pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..24)) {
        let text = pieces.concat();
        let gateway = GatewayKey { namespace: "b".into(), name: "a".into() };
        let documents = [Document { file: "a", text: &text }];
        if let Err(problems) = translate_waypoint(&documents, &Settings::default(), &gateway) {
            prop_assert!(!problems.is_empty());
        }
        match translate(&documents, &Settings::default()) {
            Ok(_) => {}
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    prop_assert!(!problem.to_string().contains('\n'));
                }
            }
        }
    }
}
