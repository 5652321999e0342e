//! What L4 makes of AuthorizationPolicy and PeerAuthentication.

use super::*;

/// The L4 policies of one AuthorizationPolicy `p` with this spec, and its warnings.
fn authorization(spec: &str, settings: &Settings) -> (Vec<String>, Vec<String>) {
    let Translated { model, warnings, .. } = translated(&object("AuthorizationPolicy", "p", spec), settings);
    (model.policies.iter().map(policy).collect(), lines(&warnings))
}

/// The rules of a policy `p` with this action and this one rule, and how many warnings there are.
fn rules(action: &str, rule: &str, strict: bool) -> (String, usize) {
    let settings = Settings { policy_strict: strict, ..Settings::default() };
    let (policies, warnings) =
        authorization(&format!("spec: {{action: {action}, rules: [{rule}]}}"), &settings);
    let rules = policies[0].split_once('[').unwrap().1.trim_end_matches(']').to_owned();
    (rules, warnings.len())
}

#[test]
fn conditions_that_l4_sees() {
    let table = [
        ("{}", ""),
        ("{from: [{source: {principals: ['*']}}]}", "principal=*"),
        ("{from: [{source: {principals: [a/ns/b/sa/c, 'a/*', '*/c']}}]}", "principal=a/ns/b/sa/c,a/*,*/c"),
        ("{from: [{source: {notPrincipals: ['*']}}]}", "!principal=*"),
        ("{from: [{source: {namespaces: [a], notNamespaces: ['b*']}}]}", "ns=a !ns=b*"),
        (
            "{from: [{source: {serviceAccounts: [x, a/y], notServiceAccounts: [z]}}]}",
            "sa=shop/x,a/y !sa=shop/z",
        ),
        (
            "{from: [{source: {ipBlocks: [10.0.0.0/8, '::1'], notIpBlocks: [10.1.2.3]}}]}",
            "src=10.0.0.0/8,::1/128 !src=10.1.2.3/32",
        ),
        ("{from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}]}", "ns=a | ns=b"),
        ("{to: [{operation: {ports: ['80', '81'], notPorts: ['82']}}]}", "port=80,81 !port=82"),
        ("{to: [{operation: {ports: ['80']}}], from: [{source: {namespaces: [a]}}]}", "port=80 & ns=a"),
        (
            "{when: [{key: source.ip, values: [10.0.0.0/8]}, {key: source.namespace, notValues: [a]}]}",
            "src=10.0.0.0/8 & !ns=a",
        ),
        ("{when: [{key: source.principal, values: ['*']}]}", "principal=*"),
        (
            "{when: [{key: destination.ip, values: ['fd00::/8'], notValues: ['fd00::1']}]}",
            "dst=fd00::/8 !dst=fd00::1/128",
        ),
        ("{when: [{key: destination.port, values: ['80'], notValues: ['81']}]}", "port=80 !port=81"),
    ];
    for (rule, expected) in table {
        for action in ["ALLOW", "DENY"] {
            assert_eq!(rules(action, rule, false), (expected.into(), 0), "{action} {rule}");
        }
    }
}

#[test]
fn conditions_that_only_http_sees() {
    // rule, ALLOW, DENY, DENY with the strict setting; `nothing` is a match that never holds
    let table = [
        ("{to: [{operation: {paths: [/x]}}]}", "nothing", ""),
        ("{to: [{operation: {paths: [/x], ports: ['80']}}]}", "port=80", "port=80"),
        ("{to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]}", "nothing | port=80", ""),
        (
            "{to: [{operation: {notHosts: [a]}}], from: [{source: {namespaces: [b]}}]}",
            "nothing & ns=b",
            "ns=b",
        ),
        ("{from: [{source: {requestPrincipals: ['*']}}]}", "nothing", ""),
        ("{from: [{source: {remoteIpBlocks: [10.0.0.0/8], namespaces: [b]}}]}", "ns=b", "ns=b"),
        (
            "{when: [{key: 'request.headers[x]', values: [y]}, {key: source.namespace, values: [b]}]}",
            "nothing & ns=b",
            "ns=b",
        ),
        ("{when: [{key: connection.sni, values: [y]}]}", "nothing", ""),
    ];
    for (rule, deny, strict) in table {
        let (policies, warnings) = authorization(&format!("spec: {{rules: [{rule}]}}"), &Settings::default());
        assert_eq!(policies, ["shop/p Allow namespace []"], "an ALLOW rule is left out: {rule}");
        assert_eq!(warnings.len(), 1, "{rule}");
        assert_eq!(rules("DENY", rule, false), (deny.into(), 1), "{rule}");
        assert_eq!(rules("DENY", rule, true), (strict.into(), 1), "strict: {rule}");
    }
    let rule = "spec: {action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}";
    assert_eq!(
        authorization(rule, &Settings::default()).1,
        [
            "a.yaml:3: AuthorizationPolicy shop/p: spec.rules[0]: L4 cannot see paths; the rule has no effect on the node \
          proxy; a waypoint or the strict setting enforces it"
        ]
    );
}

#[test]
fn scopes_actions_and_targets() {
    let root = Settings { root_namespace: "shop".into(), ..Settings::default() };
    let plain = Settings::default();
    let table = [
        ("", &plain, "shop/p Allow namespace []"),
        ("spec: {}", &plain, "shop/p Allow namespace []"),
        ("spec: {}", &root, "shop/p Allow global []"),
        ("spec: {selector: {matchLabels: {a: b}}}", &root, "shop/p Allow selector []"),
        ("spec: {selector: {}}", &plain, "shop/p Allow selector []"),
        ("spec: {action: DENY, rules: [{}]}", &plain, "shop/p Deny namespace []"),
    ];
    for (spec, settings, expected) in table {
        assert_eq!(authorization(spec, settings), (vec![expected.into()], vec![]), "{spec}");
    }
    assert_eq!(
        model(&object("AuthorizationPolicy", "p", "spec: {action: DENY, rules: [{}]}")).policies[0]
            .rules
            .len(),
        1,
        "an empty rule is a rule that matches everything"
    );
    for spec in [
        "spec: {action: AUDIT}",
        "spec: {action: CUSTOM, provider: {name: x}}",
        "spec: {targetRefs: [{kind: Service, name: x}]}",
        "spec: {targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: x}}",
    ] {
        let (policies, warnings) = authorization(spec, &plain);
        assert_eq!((policies.len(), warnings.len()), (0, 1), "{spec}");
    }
    let dry = "{apiVersion: security.istio.io/v1beta1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop, \
               annotations: {istio.io/dry-run: 'true'}}, spec: {}}";
    assert_eq!(policy(&model(dry).policies[0]), "shop/p Allow namespace dry []");
}

#[test]
fn workloads_list_the_policies_that_select_them() {
    let of = |namespace: &str, name: &str, selector: &str| {
        format!(
            "\n---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: \
             {namespace}}}, spec: {{selector: {{matchLabels: {{{selector}}}}}}}}}"
        )
    };
    let text = pod("a", "10.0.0.1", "labels: {app: cart, tier: back}", "", "")
        + &of("shop", "one", "app: cart")
        + &of("shop", "both", "app: cart, tier: back")
        + &of("shop", "other", "app: web")
        + &of("shop", "everybody", "")
        + &of("istio-system", "mesh", "tier: back")
        + &of("elsewhere", "foreign", "app: cart")
        + &object("AuthorizationPolicy", "wide", "spec: {}")
        + &object(
            "AuthorizationPolicy",
            "audit",
            "spec: {action: AUDIT, selector: {matchLabels: {app: cart}}}",
        );
    let listed = &model(&text).workloads[0].authorization_policies;
    let listed: Vec<String> = listed.iter().map(ToString::to_string).collect();
    assert_eq!(listed, ["shop/one", "shop/both", "shop/everybody", "istio-system/mesh"]);
}

const STATIC: &str = "istio-system/istio_converted_static_strict";

#[test]
#[expect(clippy::too_many_lines, reason = "one flat table")]
fn peer_authentication_of_mesh_namespace_and_workload() {
    let of = |namespace: &str, name: &str, created: &str, spec: &str| {
        let created =
            if created.is_empty() { String::new() } else { format!(", creationTimestamp: {created}") };
        format!(
            "\n---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {name}, namespace: \
             {namespace}{created}}}, spec: {{{spec}}}}}"
        )
    };
    let mesh = |mode: &str| of("istio-system", "m", "", &format!("mtls: {{mode: {mode}}}"));
    let ns = |mode: &str| of("shop", "n", "", &format!("mtls: {{mode: {mode}}}"));
    let own = |mode: &str, ports: &str| {
        let select = "selector: {matchLabels: {app: cart}}";
        of("shop", "w", "", &format!("{select}, mtls: {{mode: {mode}}}, portLevelMtls: {{{ports}}}"))
    };
    let (strict, open) = ("'80': {mode: STRICT}", "'81': {mode: PERMISSIVE}, 82: {mode: DISABLE}");
    let converted = "shop/converted_peer_authentication_w";
    let some = |rules: &str| Some(format!("{converted} Deny selector [{rules}]"));
    let exceptions = some("!principal=* & !port=81 & !port=82");
    let closed = some("!principal=* port=80");
    // objects, what the workload lists, the converted policy
    let table: Vec<(String, Option<&str>, Option<String>)> = vec![
        (mesh("STRICT"), Some(STATIC), None),
        (mesh("PERMISSIVE"), None, None),
        (ns("STRICT"), Some(STATIC), None),
        (mesh("STRICT") + &ns("PERMISSIVE"), None, None),
        (mesh("STRICT") + &ns("DISABLE"), None, None),
        (mesh("STRICT") + &ns("UNSET"), Some(STATIC), None),
        (mesh("PERMISSIVE") + &ns("STRICT"), Some(STATIC), None),
        (ns("STRICT") + &own("PERMISSIVE", ""), None, None),
        (ns("STRICT") + &own("UNSET", ""), Some(STATIC), None),
        (own("STRICT", ""), Some(STATIC), None),
        (own("STRICT", strict), Some(STATIC), None),
        (own("STRICT", open), Some(converted), exceptions.clone()),
        (own("STRICT", &format!("{strict}, {open}")), Some(converted), exceptions.clone()),
        (own("PERMISSIVE", strict), Some(converted), closed.clone()),
        (own("DISABLE", strict), Some(converted), closed.clone()),
        (own("PERMISSIVE", open), None, None),
        (own("UNSET", strict), Some(converted), closed.clone()),
        (own("UNSET", open), None, None),
        (mesh("STRICT") + &own("UNSET", open), Some(converted), exceptions.clone()),
        (mesh("STRICT") + &own("UNSET", strict), Some(STATIC), None),
        (mesh("STRICT") + &ns("PERMISSIVE") + &own("UNSET", strict), Some(converted), closed),
        (ns("STRICT") + &own("UNSET", "'83': {mode: UNSET}"), Some(STATIC), None),
        // of two on one level, the oldest counts; of one age, the first by name
        (
            of("shop", "x", "2024-05-02T00:00:00Z", "mtls: {mode: STRICT}")
                + &of("shop", "y", "2024-05-01T00:00:00Z", "mtls: {mode: PERMISSIVE}"),
            None,
            None,
        ),
        (
            of("shop", "x", "", "mtls: {mode: STRICT}") + &of("shop", "y", "", "mtls: {mode: PERMISSIVE}"),
            Some(STATIC),
            None,
        ),
        // other namespaces' and other workloads' policies do not count
        (of("elsewhere", "n", "", "mtls: {mode: STRICT}"), None, None),
        (of("shop", "v", "", "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}"), None, None),
        // a selector in the root namespace has no effect
        (
            of("istio-system", "v", "", "selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}"),
            None,
            None,
        ),
        // an empty selector is none
        (of("shop", "v", "", "selector: {matchLabels: {}}, mtls: {mode: STRICT}"), Some(STATIC), None),
    ];
    let pod = pod("a", "10.0.0.1", "labels: {app: cart}", "", "");
    for (policies, lists, extra) in table {
        let model = model(&format!("{pod}{policies}"));
        let listed = &model.workloads[0].authorization_policies;
        let listed: Vec<String> = listed.iter().map(ToString::to_string).collect();
        assert_eq!(listed, lists.into_iter().collect::<Vec<_>>(), "{policies}");
        let all: Vec<String> = model.policies.iter().map(policy).collect();
        let fixed = format!("{STATIC} Deny selector [!principal=*]");
        assert_eq!(all, std::iter::once(fixed).chain(extra).collect::<Vec<_>>(), "{policies}");
    }
    assert_eq!(model(&pod).policies, [], "no PeerAuthentication, no policy");
}
