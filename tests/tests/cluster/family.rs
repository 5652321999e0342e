//! Both address families: tunnels, policies, names and probes over IPv6. The lab is dual stack unless it is made otherwise.

use crate::kube::{SOON, agent_page, kubectl, logged, until};
use crate::policy::STRICT;
use crate::space::{IMAGE, Space};

/// The address of the first pod of an app that is IPv6.
#[track_caller]
fn pod_ip6(space: &Space, app: &str) -> String {
    let path = "jsonpath={.items[0].status.podIPs[*].ip}";
    let ips = space.kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", path]);
    let found = ips.split_whitespace().find(|ip| ip.contains(':'));
    found.unwrap_or_else(|| panic!("{app} has no IPv6 address ({ips}): make cluster IPV6=1")).to_owned()
}

/// A Service with addresses of both families, or of IPv6 alone.
fn service(name: &str, app: &str, rest: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {app}}}, {rest}, \
         ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}\n---\n"
    )
}

/// Tunnels over IPv6 on a node and across nodes, by pod address, by a Service of one family and of both; app and logs have the
/// client's own IPv6 address.
#[test]
fn tunnels_over_ipv6() {
    let space = Space::ambient("v6");
    space.apps(&[("web", 1, 1), ("near", 1, 1), ("far", 2, 1)]);
    space.captured(true);
    for app in ["web", "near", "far"] {
        space.apply(&format!(
            "{}{}",
            service(&format!("{app}-both"), app, "ipFamilyPolicy: RequireDualStack"),
            service(&format!("{app}-six"), app, "ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]")
        ));
    }
    for (from, from_node, to, to_node) in [("web", 1, "near", 1), ("web", 1, "far", 2), ("far", 2, "web", 1)]
    {
        let (source, destination) = (pod_ip6(&space, from), pod_ip6(&space, to));
        space.becomes(from, &format!("http://{to}-six/"), true);
        for url in [
            format!("http://[{destination}]:8080/"),
            format!("http://{to}-six/"),
            format!("http://{to}-both/"),
        ] {
            let said = space.answered(from, &url);
            assert!(said.contains("IP="), "{said}");
            if !url.contains("both") {
                assert!(said.contains(&format!("IP={source}")), "{to} sees {from}'s own address: {said}");
            }
        }
        let addresses =
            [format!("dst.addr=[{destination}]:15008"), format!("src.identity=\"{}\"", space.identity(from))];
        let words: Vec<&str> = addresses.iter().map(String::as_str).collect();
        logged(from_node, &[&words[..], &["direction=\"outbound\""]].concat());
        logged(to_node, &[&words[..], &["direction=\"inbound\""]].concat());
        let both =
            space.kubectl(&["get", "service", &format!("{to}-both"), "-o", "jsonpath={.spec.clusterIPs[1]}"]);
        space.answered(from, &format!("http://[{both}]/"));
    }
}

/// Blocks of IPv6 addresses in policies, and STRICT for plaintext over IPv6.
#[test]
fn policies_over_ipv6() {
    let (space, plain) = (Space::ambient("v6-policy"), Space::plain("v6-plain"));
    space.apps(&[("web", 1, 1), ("other", 1, 1), ("cart", 2, 1)]);
    plain.app("stranger", 1);
    space.captured(true);
    let url = format!("http://[{}]:8080/", pod_ip6(&space, "cart"));
    for caller in ["web", "other"] {
        space.becomes(caller, &url, true);
    }
    plain.becomes("stranger", &url, true);

    let policy = |action: &str, source: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: six}}, spec: {{action: {action}, \
             selector: {{matchLabels: {{app: cart}}}}, rules: [{{from: [{{source: {{{source}}}}}]}}]}}}}"
        )
    };
    let web = pod_ip6(&space, "web");
    space.apply(&policy("ALLOW", &format!("ipBlocks: ['{web}']")));
    space.becomes("other", &url, false);
    plain.becomes("stranger", &url, false);
    space.answered("web", &url);
    // The same callers over IPv4 are no IPv6 addresses.
    space.becomes("web", "http://cart/", false);
    space.apply(&policy("DENY", &format!("notIpBlocks: ['{web}/128', '10.244.0.0/16']")));
    space.becomes("other", "http://cart/", true);
    space.becomes("other", &url, false);
    space.answered("web", &url);
    space.kubectl(&["delete", "authorizationpolicy", "six"]);
    plain.becomes("stranger", &url, true);

    space.apply(STRICT);
    plain.becomes("stranger", &url, false);
    space.answered("web", &url);
    space.answered("other", "http://cart/");
}

/// AAAA beside A, for services of one family and of both, headless ones and ServiceEntries.
#[test]
fn names_with_ipv6_addresses() {
    let space = Space::ambient("v6-dns");
    space.apps(&[("web", 1, 1), ("cart", 2, 1)]);
    space.captured(true);
    space.apply(&format!(
        "{}{}{}{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: named}}, spec: {{hosts: [named.example], \
         addresses: ['fd00:250::1', 10.250.0.1], resolution: STATIC, ports: [{{number: 80, name: http, protocol: TCP}}], \
         endpoints: [{{address: '{}'}}]}}}}",
        service("both", "cart", "ipFamilyPolicy: RequireDualStack"),
        service("six", "cart", "ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]"),
        service("headless", "cart", "clusterIP: None, ipFamilyPolicy: RequireDualStack"),
        pod_ip6(&space, "cart"),
    ));
    let both = space.kubectl(&["get", "service", "both", "-o", "jsonpath={.spec.clusterIPs[*]}"]);
    let six = space.kubectl(&["get", "service", "six", "-o", "jsonpath={.spec.clusterIP}"]);
    let (four, both_six) = both.split_once(' ').unwrap();
    let pods = (space.pod_ip("cart"), pod_ip6(&space, "cart"));
    let wanted: [(&str, &str, &[&str]); 8] = [
        ("both", "a", &[four]),
        ("both", "aaaa", &[both_six]),
        ("six", "aaaa", &[&six]),
        ("six", "a", &[]),
        ("headless", "a", &[&pods.0]),
        ("headless", "aaaa", &[&pods.1]),
        ("named.example", "aaaa", &["fd00:250::1"]),
        ("cart", "aaaa", &[]),
    ];
    for (name, kind, addresses) in wanted {
        crate::dns::resolves(&space, "web", kind, name, addresses);
    }
}

/// kubelet probes captured pods under STRICT at the address that is their first, also where that is IPv6's; and hosts reach
/// a node's port over IPv6.
#[test]
fn the_agent_serves_both_families() {
    let space = Space::ambient("v6-agent");
    space.apply(STRICT);
    space.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: probed, labels: {{app: probed}}}}, spec: {{terminationGracePeriodSeconds: 1, \
         containers: [{{name: app, image: '{IMAGE}', command: [server, --port=8080], \
         readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}}}]}}}}"
    ));
    space.kubectl(&["wait", "--for=condition=Ready", "pod/probed", "--timeout=60s"]);
    space.captured(true);
    let six = pod_ip6(&space, "probed");
    // As kubelet of a node whose first address is IPv6 does: a socket of the host, to the pod's own address.
    let node = kubectl(&["-n", &space.name, "get", "pod", "probed", "-o", "jsonpath={.spec.nodeName}"]);
    let node: u32 = node.trim_start_matches("node-").parse().unwrap();
    until("a probe over IPv6", SOON, || {
        let url = format!("http://[{six}]:8080/");
        let output = crate::kube::inside(node)
            .args(["timeout", "5", "busybox", "wget", "-qO-", &url])
            .output()
            .unwrap();
        let said = crate::kube::Said::from(output);
        if said.ok && said.out.contains("Hostname=probed") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let dump: serde_json::Value = serde_json::from_str(&agent_page(node, "15000/config_dump")).unwrap();
    let pod =
        dump["workloads"].as_array().unwrap().iter().find(|workload| workload["name"] == "probed").unwrap();
    let ips: Vec<&str> = pod["workloadIps"].as_array().unwrap().iter().filter_map(|ip| ip.as_str()).collect();
    assert!(ips.len() == 2 && ips.contains(&&six[..]), "{pod}");
}
