//! What is refused, and in which words.

use super::*;

#[test]
#[expect(clippy::too_many_lines, reason = "one flat table")]
fn each_problem_names_file_line_object_field_and_what_is_allowed() {
    let pod_at = |status: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop}}\n{status}\n")
    };
    let policy = |spec: &str| object("AuthorizationPolicy", "p", spec);
    let rule = |rule: &str| policy(&format!("spec: {{rules: [{rule}]}}"));
    let peer = |spec: &str| object("PeerAuthentication", "p", spec);
    let service = |spec: &str| object("Service", "s", &format!("spec: {spec}"));
    let table = [
        (
            pod_at("status: {podIPs: [{ip: 10.0}]}"),
            "4: Pod shop/a: status.podIPs[0].ip: 10.0; allowed: a text; put it in quotes",
        ),
        (
            pod_at("status: {podIPs: [{ip: 10.0.0.x}]}"),
            "4: Pod shop/a: status.podIPs[0].ip: \"10.0.0.x\"; allowed: an IP address",
        ),
        (pod_at("status: {podIPs: 10.0.0.1}"), "4: Pod shop/a: status.podIPs: \"10.0.0.1\"; allowed: a list"),
        (
            pod_at("status:\n  phase: running"),
            "5: Pod shop/a: status.phase: \"running\"; allowed: Pending, Running, Succeeded, Failed, Unknown",
        ),
        (pod_at("status: []"), "4: Pod shop/a: status: a list; allowed: a mapping"),
        (
            pod_at("spec: {hostNetwork: \"yes\"}"),
            "4: Pod shop/a: spec.hostNetwork: \"yes\"; allowed: true, false",
        ),
        (
            pod_at("spec: {serviceAccountName: 'a b'}\nstatus: {podIP: 10.0.0.1}"),
            "1: Pod shop/a: spec.serviceAccountName: \"spiffe://cluster.local/ns/shop/sa/a b\" is no identity of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>; allowed: names out of a-z A-Z 0-9 - . _",
        ),
        (
            pod_at("spec: {containers: [{ports: [{name: x, containerPort: 70000}]}]}"),
            "4: Pod shop/a: spec.containers[0].ports[0].containerPort: 70000; allowed: a port number, 1 to 65535",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {culvert.dev/netns: x}}}".into(),
            "1: Pod default/a: metadata.annotations.culvert.dev/netns: \"x\"; allowed: an absolute path of a network namespace, such as /run/netns/shop-cart",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {v: 1.0}}}".into(),
            "1: Pod default/a: metadata.labels.v: 1.0; allowed: a text; put it in quotes",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: A}}".into(),
            "1: Pod default/A: metadata.name: \"A\"; allowed: 1 to 253 characters out of a-z 0-9 - .",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: 5}}".into(),
            "1: Pod default/: metadata.name: 5; allowed: 1 to 253 characters out of a-z 0-9 - .",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {}}".into(),
            "1: Pod default/: metadata: no name; allowed: 1 to 253 characters out of a-z 0-9 - .",
        ),
        (
            "{apiVersion: v1, kind: Pod}".into(),
            "1: Pod default/: no metadata.name; allowed: an object with a name",
        ),
        ("{kind: Pod}".into(), "1: no kind or no apiVersion; allowed: a Kubernetes object"),
        ("- a".into(), "1: a list; allowed: a mapping"),
        (
            "{apiVersion: v1beta1, kind: Pod, metadata: {name: a}}".into(),
            "1: Pod default/a: apiVersion: \"v1beta1\"; allowed: v1",
        ),
        (
            "{apiVersion: security.istio.io/v2, kind: PeerAuthentication, metadata: {name: a}}".into(),
            "1: PeerAuthentication default/a: apiVersion: \"security.istio.io/v2\"; allowed: security.istio.io/v1, security.istio.io/v1beta1",
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDR: 10.0.0.0/40}}".into(),
            "1: Node n: spec.podCIDR: \"10.0.0.0/40\"; allowed: an IP address or a CIDR block such as 10.0.0.0/8",
        ),
        (
            service("{ports: [{port: 0}]}"),
            "6: Service shop/s: spec.ports[0].port: 0; allowed: a port number, 1 to 65535",
        ),
        (
            service("{ports: [{name: x}]}"),
            "6: Service shop/s: spec.ports[0]: no port; allowed: a port with a number",
        ),
        (
            service("{ports: [{port: 80, targetPort: 'x.'}, {port: 80}]}"),
            "6: Service shop/s: spec.ports[1].port: 80 for the second time; allowed: each TCP port once",
        ),
        (
            service("{ports: [{port: 80, targetPort: '80'}]}"),
            "6: Service shop/s: spec.ports[0].targetPort: \"80\"; allowed: a port number, 1 to 65535, or the name of a container's port",
        ),
        (
            service("{type: Cluster}"),
            "6: Service shop/s: spec.type: \"Cluster\"; allowed: ClusterIP, NodePort, LoadBalancer, ExternalName",
        ),
        (
            service("{trafficDistribution: Near}"),
            "6: Service shop/s: spec.trafficDistribution: \"Near\"; allowed: PreferClose, PreferSameZone, PreferSameNode",
        ),
        (
            service("{internalTrafficPolicy: local}"),
            "6: Service shop/s: spec.internalTrafficPolicy: \"local\"; allowed: Cluster, Local",
        ),
        (
            service("{ipFamilies: [IPv5]}"),
            "6: Service shop/s: spec.ipFamilies[0]: \"IPv5\"; allowed: IPv4, IPv6",
        ),
        (
            service("{clusterIP: 10.96.0.300}"),
            "6: Service shop/s: spec.clusterIP: \"10.96.0.300\"; allowed: an IP address",
        ),
        (
            object("EndpointSlice", "e", ""),
            "3: EndpointSlice shop/e: no addressType; allowed: IPv4, IPv6, FQDN",
        ),
        (
            policy("spec: {action: allow}"),
            "6: AuthorizationPolicy shop/p: spec.action: \"allow\"; allowed: ALLOW, DENY, AUDIT, CUSTOM",
        ),
        (
            policy("spec: {rule: []}"),
            "6: AuthorizationPolicy shop/p: spec.rule: no such field; allowed: selector, targetRef, targetRefs, action, provider, rules",
        ),
        (
            policy("specs: {}"),
            "6: AuthorizationPolicy shop/p: specs: no such field; allowed: apiVersion, kind, metadata, spec, status",
        ),
        (
            policy("spec: {selector: {matchLabel: {a: b}}}"),
            "6: AuthorizationPolicy shop/p: spec.selector.matchLabel: no such field; allowed: matchLabels",
        ),
        (
            rule("{form: []}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].form: no such field; allowed: from, to, when",
        ),
        (
            rule("{from: []}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from: an empty list; allowed: at least one item, or no such field",
        ),
        (
            rule("{from: [{}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0]: an item that says nothing; allowed: source with at least one field",
        ),
        (
            rule("{from: [{source: {principal: [x]}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.principal: no such field; allowed: principals, notPrincipals, requestPrincipals, notRequestPrincipals, namespaces, notNamespaces, serviceAccounts, notServiceAccounts, trustDomains, notTrustDomains, ipBlocks, notIpBlocks, remoteIpBlocks, notRemoteIpBlocks",
        ),
        (
            rule("{from: [{source: {principals: [x, '']}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.principals[1]: \"\"; allowed: a text that is not empty",
        ),
        (
            rule("{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/33\"; allowed: an IP address or a CIDR block such as 10.0.0.0/8",
        ),
        (
            rule("{from: [{source: {serviceAccounts: ['/a']}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.serviceAccounts[0]: \"/a\"; allowed: <service account> or <namespace>/<service account>, without *",
        ),
        (
            rule("{from: [{source: {serviceAccounts: [a/]}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.serviceAccounts[0]: \"a/\"; allowed: <service account> or <namespace>/<service account>, without *",
        ),
        (
            rule("{from: [{source: {serviceAccounts: [a/b/c]}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.serviceAccounts[0]: \"a/b/c\"; allowed: <service account> or <namespace>/<service account>, without *",
        ),
        (
            rule("{from: [{source: {serviceAccounts: ['a/*']}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.serviceAccounts[0]: \"a/*\"; allowed: <service account> or <namespace>/<service account>, without *",
        ),
        (
            rule("{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].from[0].source: serviceAccounts together with principals or namespaces; allowed: serviceAccounts alone, or principals and namespaces",
        ),
        (
            rule("{to: [{operation: {ports: [80]}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.ports[0]: 80; allowed: a text; put it in quotes",
        ),
        (
            rule("{to: [{operation: {ports: ['0']}}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.ports[0]: \"0\"; allowed: a port number in quotes, \"1\" to \"65535\"",
        ),
        (
            rule("{when: [{key: source.port, values: ['1']}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].when[0].key: \"source.port\"; allowed: source.ip, source.namespace, source.principal, source.serviceAccount, source.trustDomain, destination.ip, destination.port, remote.ip, connection.sni, request.headers[..], request.auth.principal, request.auth.audiences, request.auth.presenter, request.auth.claims[..], experimental.envoy.filters...",
        ),
        (
            rule("{when: [{key: source.ip}]}"),
            "6: AuthorizationPolicy shop/p: spec.rules[0].when[0]: neither values nor notValues; allowed: at least one of the two",
        ),
        (
            peer("spec: {mtls: {mode: Strict}}"),
            "6: PeerAuthentication shop/p: spec.mtls.mode: \"Strict\"; allowed: UNSET, DISABLE, PERMISSIVE, STRICT",
        ),
        (
            peer("spec: {mtls: {mod: STRICT}}"),
            "6: PeerAuthentication shop/p: spec.mtls.mod: no such field; allowed: mode",
        ),
        (
            peer("spec: {portLevelMtls: {'80': {mode: STRICT}}}"),
            "6: PeerAuthentication shop/p: spec.portLevelMtls: portLevelMtls without a selector; allowed: together with selector.matchLabels only",
        ),
        (
            peer("spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}"),
            "6: PeerAuthentication shop/p: spec.portLevelMtls.http: \"http\" as a key; allowed: a port number, 1 to 65535",
        ),
        ("a: [".into(), "no YAML"),
        (
            "a: 1\na: 2".into(),
            "2: the key \"a\" stands twice in one mapping; allowed: Kubernetes objects in YAML or JSON",
        ),
        (
            "a: &x {b: c}\nd: {<<: *x}".into(),
            "2: merge keys (<<) are not read; write the fields out; allowed: Kubernetes objects in YAML or JSON",
        ),
    ];
    let mut missed = Vec::new();
    for (text, expected) in table {
        let found = problems(&text);
        let hit = found.iter().any(|line| {
            *line == format!("a.yaml:{expected}") || (expected == "no YAML" && line.contains(expected))
        });
        if !hit {
            missed.push(format!("expected\n  a.yaml:{expected}\nfound\n  {}", found.join("\n  ")));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn all_problems_of_all_files_come_at_once() {
    let one =
        object("AuthorizationPolicy", "p", "spec: {action: X, rules: [{to: [{operation: {port: ['1']}}]}]}");
    let documents = [
        Document { file: "1.yaml", text: &one },
        Document { file: "2.yaml", text: "a: [" },
        Document {
            file: "3.yaml",
            text: "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: x}}",
        },
    ];
    let problems = translate(&documents, &Settings::default()).unwrap_err();
    let files: Vec<&str> = problems.iter().map(|p| &*p.file).collect();
    assert_eq!(files, ["1.yaml", "1.yaml", "2.yaml", "3.yaml"], "{:#?}", lines(&problems));
}

#[test]
fn objects_that_contradict_each_other() {
    let one = "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 10.0.0.1}}";
    let documents = [Document { file: "1.yaml", text: one }, Document { file: "2.yaml", text: one }];
    assert_eq!(
        lines(&translate(&documents, &Settings::default()).unwrap_err()),
        [
            "2.yaml:1: Pod default/a: metadata.name: a second Pod of this name; the first is 1.yaml:1; allowed: each object once"
        ]
    );
    let service = |name: &str| object("Service", name, "spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}");
    assert_eq!(
        problems(&(service("s") + &service("t"))),
        [
            "a.yaml:9: Service shop/t: spec.clusterIP: 10.96.0.1, which Service shop/s (a.yaml:3) has as well; allowed: an address of its own"
        ]
    );
    let netns = "labels: {istio.io/dataplane-mode: ambient}, annotations: {culvert.dev/netns: /run/netns/x}";
    let text = pod("a", "10.0.0.1", netns, "", "") + &pod("b", "10.0.0.2", netns, "", "");
    assert_eq!(
        problems(&text),
        [
            "a.yaml:6: Pod shop/b: metadata.annotations: /run/netns/x, which Pod shop/a has as well; allowed: a network namespace of its own"
        ]
    );
}

#[test]
fn what_is_only_doubtful_is_a_warning() {
    assert_eq!(
        warnings("{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}"),
        [
            "a.yaml:1: Deployment default/a: kind: Deployment of apps/v1 is not read, so it has no effect; read are Namespace, \
          Node, Pod, Service, EndpointSlice, ServiceEntry, WorkloadEntry, GatewayClass, Gateway, AuthorizationPolicy, PeerAuthentication, RequestAuthentication, VirtualService, DestinationRule, HTTPRoute, GRPCRoute"
        ]
    );
    let two = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}\n---\n\
               {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}";
    assert_eq!(warnings(two).len(), 1, "once per file");
    assert_eq!(warnings("{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}").len(), 1);
    assert_eq!(
        warnings(&(pod("a", "10.0.0.1", "", "", "") + &pod("b", "10.0.0.1", "", "", ""))),
        [
            "a.yaml:6: Pod shop/b: status.podIPs: 10.0.0.1, which Pod shop/a (a.yaml:3) has as well; connections to it reach \
          either; give each pod an address of its own"
        ]
    );
    let host = |name: &str| pod(name, "10.0.0.1", "", "hostNetwork: true", "");
    assert_eq!(warnings(&(host("a") + &host("b"))), Vec::<String>::new(), "pods of a node share its address");
    assert_eq!(warnings("{apiVersion: v1, kind: Pod, metadata: {name: a}}").len(), 1, "no address");
    assert_eq!(
        warnings("{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {phase: Pending}}").len(),
        0
    );
    let range = Settings { service_range: vec!["10.96.0.0/16".parse().unwrap()], ..Settings::default() };
    let service = object("Service", "s", "spec: {clusterIP: 10.97.0.1, ports: [{port: 80}]}");
    assert_eq!(
        lines(&translated(&service, &range).warnings),
        [
            "a.yaml:3: Service shop/s: spec.clusterIP: 10.97.0.1 is outside the service range 10.96.0.0/16; pods reach it only \
          if their routes lead there"
        ]
    );
}
