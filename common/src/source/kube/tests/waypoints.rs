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
        ["settings: Gateway shop/wp: there is no Gateway of a waypoint; allowed: a Gateway \
             (gateway.networking.k8s.io/v1) with gatewayClassName culvert-waypoint"]
    );
}

#[test]
fn without_a_name_it_is_the_only_waypoint() {
    let of = |name: &str, class: &str| {
        gateway("", "", "").replace("name: wp", &format!("name: {name}")).replace("culvert-waypoint", class)
    };
    for (objects, expected) in [
        (of("a", "culvert-waypoint"), Some("shop/a")),
        (of("a", "istio-waypoint"), Some("shop/a")),
        (of("a", "istio-waypoint") + &of("b", "culvert-waypoint") + &of("c", "istio"), Some("shop/b")),
        (of("a", "culvert-waypoint") + &of("b", "culvert-waypoint"), None),
        (of("a", "istio"), None),
        (String::new(), None),
    ] {
        let documents = [Document { file: "a.yaml", text: &objects }];
        let found = translate_waypoint(&documents, &Settings::default(), &GatewayKey::default());
        let found = found.map(|translated| translated.waypoint.gateway.to_string());
        assert_eq!(found.as_deref().ok(), expected, "{objects}");
        if let Err(problems) = found {
            let said = &lines(&problems)[0];
            let several = "several Gateways are waypoints: shop/a, shop/b; allowed: the namespace and name";
            assert!(said.contains(several) || said.contains("there is no Gateway of a waypoint"), "{said}");
        }
    }
}

#[test]
fn agents_send_bound_traffic_to_the_waypoint() {
    let model = model(&[gateway("", "", READY), service("cart", USES)].concat());
    let waypoint = model.services[0].waypoint.as_ref().unwrap();
    assert_eq!(waypoint.destination.to_string(), "shop/wp.shop.svc.cluster.local");
    assert_eq!(waypoint.port, 15008);
}

/// Where connections to `cart` go, as `<waypoint>`, or with several as `<waypoint>*<weight> …`; `-` is directly.
fn to_cart(model: &Model) -> String {
    let cart = model.services.iter().find(|service| &*service.name == "cart").unwrap();
    let shown = |gateway: &crate::model::GatewayAddress| gateway.destination.to_string();
    if cart.weighted_waypoints.is_empty() {
        return cart.waypoint.as_ref().map_or("-".into(), |gateway| shown(gateway));
    }
    let all = cart.weighted_waypoints.iter();
    all.map(|w| format!("{}*{}", shown(&w.gateway), w.weight)).collect::<Vec<_>>().join(" ")
}

const WP: &str = "shop/wp.shop.svc.cluster.local";

fn instance(status: &str) -> String {
    pod("wp-0", "10.0.9.1", "labels: {gateway.networking.k8s.io/gateway-name: wp}", "", status)
}

#[test]
fn a_gateway_is_found_by_its_status_its_spec_or_its_service() {
    let ip = "status: {addresses: [{type: IPAddress, value: 10.96.0.9}]}";
    let both = "status: {addresses: [{value: 10.96.0.9}, {type: Hostname, value: w.example}]}";
    let wanted = "}], addresses: [{value: 10.9.9.9";
    let service = || service("wp", "").replace("port: 80", "port: 15008");
    let ready = "conditions: [{type: Ready, status: 'True'}]";
    for (objects, expected) in [
        (gateway("", "", ip), "/10.96.0.9"),
        (gateway("", "", both), "shop/w.example"),
        (gateway("", "", READY), WP),
        (gateway("", wanted, ""), "/10.9.9.9"),
        (gateway("", wanted, ip), "/10.96.0.9"),
        (gateway("", "", "") + &service() + &instance(ready), WP),
        // Of its own instances one must have been ready.
        (gateway("", "", "") + &service(), "-"),
        (gateway("", "", "") + &service() + &instance("conditions: []"), "-"),
        (gateway("", wanted, "") + &instance("conditions: []"), "-"),
    ] {
        let model = model(&(objects.clone() + &self::service("cart", USES)));
        assert_eq!(to_cart(&model), expected, "{objects}");
    }
}

#[test]
fn once_ready_it_is_bound_and_otherwise_only_the_strict_setting_waits_for_it() {
    let text = gateway("", "", "") + &service("cart", USES);
    let never = translated(&text, &Settings::default());
    assert_eq!(to_cart(&never.model), "-");
    assert_eq!(never.bound, [].into());
    assert_eq!(
        lines(&never.warnings),
        [
            "a.yaml:6: Service shop/cart: metadata.labels: shop/wp: it was never ready; connections to it pass the waypoint \
          by; the strict setting refuses them"
        ]
    );
    let strict = Settings { policy_strict: true, ..Settings::default() };
    assert_eq!(to_cart(&translated(&text, &strict).model), WP);
    let was = Settings { bound: [key()].into(), ..Settings::default() };
    let again = translated(&text, &was);
    assert_eq!(to_cart(&again.model), WP);
    assert!(lines(&again.warnings)[0].contains("no address, and no Service shop/wp"));
    assert_eq!(again.bound, [key()].into());
    // A Gateway that is deleted is forgotten, as Istio has it.
    let gone = translated(&service("cart", USES), &was);
    assert_eq!((to_cart(&gone.model).as_str(), gone.bound.len()), ("-", 0));
}

#[test]
fn labels_name_the_waypoint() {
    let elsewhere = gateway("", ", allowedRoutes: {namespaces: {from: All}}", READY)
        .replace("name: wp, namespace: shop", "name: far, namespace: infra");
    let namespace = |labels: &str| {
        format!(
            "\n---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{{labels}}}}}}}\n"
        )
    };
    let here = gateway("", "", READY);
    let of_namespace = namespace("istio.io/use-waypoint: wp");
    for (objects, meta, expected, reason) in [
        (here.clone(), "", "-", ""),
        (here.clone(), USES, WP, "WaypointAccepted"),
        (here.clone() + &of_namespace, "", WP, "WaypointAccepted"),
        (here.clone() + &of_namespace, "labels: {istio.io/use-waypoint: none}", "-", ""),
        // No way back to the namespace's waypoint.
        (here.clone() + &of_namespace, "labels: {istio.io/use-waypoint: x}", "-", "WaypointIsNotReady"),
        (elsewhere.clone(), "labels: {istio.io/use-waypoint: far}", "-", "WaypointIsNotReady"),
        (
            elsewhere.clone(),
            "labels: {istio.io/use-waypoint: far, istio.io/use-waypoint-namespace: infra}",
            WP,
            "WaypointAccepted",
        ),
        (
            elsewhere.replace("from: All", "from: Same"),
            "labels: {istio.io/use-waypoint: far, istio.io/use-waypoint-namespace: infra}",
            "-",
            "AttachmentDenied",
        ),
        (
            elsewhere.clone()
                + &namespace("istio.io/use-waypoint: far, istio.io/use-waypoint-namespace: infra"),
            "",
            WP,
            "WaypointAccepted",
        ),
        (
            gateway("labels: {istio.io/waypoint-for: workload}", "", READY),
            USES,
            "-",
            "UnsupportedTrafficType",
        ),
        (gateway("labels: {istio.io/waypoint-for: none}", "", READY), USES, "-", "UnsupportedTrafficType"),
        (gateway("labels: {istio.io/waypoint-for: all}", "", READY), USES, WP, "WaypointAccepted"),
        (gateway("labels: {istio.io/waypoint-for: workload}", "", READY) + &of_namespace, "", "-", ""),
        (here.replace("culvert-waypoint", "istio-waypoint"), USES, WP, "WaypointAccepted"),
        (here.replace("culvert-waypoint", "istio"), USES, "-", "WaypointIsNotReady"),
    ] {
        let text = objects.clone() + &service("cart", meta);
        let translated = translated(&text, &Settings::default());
        assert_eq!(to_cart(&translated.model), expected, "{text}");
        let found = translated.statuses.iter().find(|s| s.kind == "Service" && &*s.name == "cart");
        assert_eq!(found.map_or("", |status| status.conditions[0].reason), reason, "{text}");
    }
}

#[test]
fn allowed_routes_look_at_the_labels_of_a_namespace() {
    for (selector, is_allowed) in [
        ("matchLabels: {team: a}", true),
        ("matchLabels: {team: b}", false),
        ("matchExpressions: [{key: team, operator: In, values: [a, b]}]", true),
        ("matchExpressions: [{key: team, operator: NotIn, values: [a, b]}]", false),
        ("matchExpressions: [{key: team, operator: Exists}]", true),
        ("matchExpressions: [{key: team, operator: DoesNotExist}]", false),
        ("matchLabels: {team: a}, matchExpressions: [{key: x, operator: DoesNotExist}]", true),
    ] {
        let far = format!(", allowedRoutes: {{namespaces: {{from: Selector, selector: {{{selector}}}}}}}");
        let text = gateway("", &far, READY).replace("namespace: shop", "namespace: infra")
            + "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}"
            + &service("cart", "labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra}");
        assert_eq!(to_cart(&model(&text)) != "-", is_allowed, "{selector}");
    }
    // What another listener says is not of tunnels.
    let open = gateway("", ", allowedRoutes: {namespaces: {from: All}}", READY)
        .replace("namespace: shop", "namespace: infra")
        + &service("cart", "labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra}");
    for (listener, is_allowed) in [
        ("port: 15008, protocol: HBONE", true),
        ("port: 15009, protocol: HBONE", false),
        ("port: 15008, protocol: HTTP", false),
    ] {
        let text = open.replace("port: 15008, protocol: HBONE", listener);
        assert_eq!(to_cart(&model(&text)) != "-", is_allowed, "{listener}");
    }
}

#[test]
fn classes_may_say_what_their_gateways_are_and_serve() {
    let class = |controller: &str, label: &str| {
        format!(
            "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {{name: own, labels: \
             {{{label}}}}}, spec: {{controllerName: {controller}}}}}\n"
        )
    };
    let text = |class: &str| {
        gateway("", "", READY).replace("culvert-waypoint", "own") + class + &service("cart", USES)
    };
    assert_eq!(to_cart(&model(&text(""))), "-");
    assert_eq!(to_cart(&model(&text(&class("istio.io/mesh-controller", "")))), WP);
    assert_eq!(to_cart(&model(&text(&class("culvert.dev/waypoint-controller", "")))), WP);
    assert_eq!(to_cart(&model(&text(&class("istio.io/gateway-controller", "")))), "-");
    let workloads = class("istio.io/mesh-controller", "istio.io/waypoint-for: workload");
    assert_eq!(to_cart(&model(&text(&workloads))), "-");
}

#[test]
fn a_canary_has_its_share() {
    let canary = |status: &str| gateway("", "", status).replace("name: wp", "name: next");
    let ready = "status: {addresses: [{type: Hostname, value: next.example}]}";
    let meta = |weight: &str| {
        format!(
            "labels: {{istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: next}}, annotations: \
             {{istio.io/use-waypoint-canary-weight: '{weight}'}}"
        )
    };
    let same = "labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: wp}";
    let both = |weight: u32| format!("{WP}*{} shop/next.example*{weight}", 100 - weight);
    for (objects, meta, expected, reason) in [
        (canary(ready), meta("10"), both(10), "WaypointAccepted"),
        (canary(ready), meta("100"), both(100), "WaypointAccepted"),
        (canary(ready), meta("1").replace("-weight", "-other"), both(0), "WaypointAccepted"),
        (canary(""), meta("10"), WP.to_owned(), "WaypointAccepted"),
        (String::new(), meta("10"), WP.to_owned(), "WaypointAccepted"),
        (canary(ready), meta("101"), WP.to_owned(), "CanaryInvalidWeight"),
        (canary(ready), meta("ten"), WP.to_owned(), "CanaryInvalidWeight"),
        (String::new(), same.to_owned(), WP.to_owned(), "CanarySameAsPrimary"),
    ] {
        let text = gateway("", "", READY) + &objects + &service("cart", &meta);
        let translated = translated(&text, &Settings::default());
        assert_eq!(to_cart(&translated.model), expected, "{meta}");
        assert_eq!(translated.statuses[0].conditions[0].reason, reason, "{meta}");
    }
    // Both know the service's policies and routes, also before the canary is ready.
    let text = gateway("", "", READY) + &canary("") + &service("cart", &meta("10"));
    let next = GatewayKey { namespace: "shop".into(), name: "next".into() };
    let document = [Document { file: "a.yaml", text: &text }];
    let of_canary = translate_waypoint(&document, &Settings::default(), &next).unwrap();
    assert_eq!((of_canary.waypoint.services.len(), for_waypoint(&text).waypoint.services.len()), (1, 1));
}

#[test]
fn workloads_have_waypoints_of_their_own() {
    let to_pod = |text: &str| {
        let model = model(text);
        let workload = model.workloads.iter().find(|w| &*w.name == "cart-0").unwrap().clone();
        workload.waypoint.map_or("-".into(), |gateway| gateway.destination.to_string())
    };
    let labelled = pod("cart-0", "10.0.0.1", USES, "", "");
    let plain = pod("cart-0", "10.0.0.1", "", "", "");
    let namespace = "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}}";
    let of = |serves: &str| gateway(&format!("labels: {{istio.io/waypoint-for: {serves}}}"), "", READY);
    assert_eq!(to_pod(&(of("all") + &labelled)), WP);
    assert_eq!(to_pod(&(of("workload") + &labelled)), WP);
    assert_eq!(to_pod(&(of("service") + &labelled)), "-");
    assert_eq!(to_pod(&(of("workload") + &plain + namespace)), WP);
    assert_eq!(to_pod(&(of("service") + &plain + namespace)), "-");
    assert_eq!(to_pod(&(plain.clone() + namespace)), "-");
    assert_eq!(warnings(&(plain.clone() + namespace)), Vec::<String>::new(), "its services say it");
    let said = warnings(&(of("service") + &plain + namespace));
    assert_eq!(said, Vec::<String>::new(), "a namespace's waypoint is mostly for its services");
    let entry = "\n---\n{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: cart-0, namespace: shop, \
                 labels: {istio.io/use-waypoint: wp}}, spec: {address: 10.0.0.1}}";
    assert_eq!(to_pod(&(of("all") + entry)), WP);
}

#[test]
fn a_waypoint_is_never_captured_and_never_behind_a_waypoint() {
    let namespace = "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: \
                     ambient, istio.io/use-waypoint: wp}}}";
    let text = gateway("labels: {istio.io/waypoint-for: all}", "", READY)
        + namespace
        + &pod("wp-0", "10.0.9.1", "labels: {gateway.networking.k8s.io/gateway-name: wp}", "", "")
        + &pod("other-0", "10.0.9.2", "labels: {gateway.networking.k8s.io/gateway-name: ingress}", "", "")
        + &service("wp", "");
    let model = model(&text);
    let of = |name: &str| model.workloads.iter().find(|w| &*w.name == name).unwrap();
    let instance = of("wp-0");
    assert!(instance.native_tunnel && instance.waypoint.is_none());
    assert_eq!(instance.enrolment, crate::model::Enrolment::Exempt);
    assert!(!of("other-0").native_tunnel && of("other-0").waypoint.is_some());
    let service = model.services.iter().find(|service| &*service.name == "wp").unwrap();
    assert!(service.waypoint.is_none());
    assert!(model.pods.iter().all(|pod| &*pod.name != "wp-0"));
    assert_eq!(
        model.background.not_captured[&instance.uid].to_string(),
        "it is a waypoint itself, which ends tunnels and begins its own"
    );
}

#[test]
fn a_gateway_that_cannot_be_served_as_written_is_said() {
    let text = gateway("annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY}", "", "");
    let document = [Document { file: "a.yaml", text: &text }];
    let problems = lines(&translate_waypoint(&document, &Settings::default(), &key()).unwrap_err());
    assert!(problems[0].contains("waypoint-inbound-binding is not supported"), "{problems:?}");
    let odd = gateway("", "", "").replace("port: 15008", "port: 80");
    let translated = for_waypoint(&odd);
    assert_eq!(translated.statuses[0].conditions[0].reason, "Accepted");
    assert!(lines(&translated.warnings)[0].contains("expected a single listener on 15008"));
    let reasons: Vec<_> = translated.statuses.iter().map(|s| s.conditions[0].reason).collect();
    assert_eq!(reasons, ["Accepted", "UnsupportedProtocol"]);
    let class = "\n---\n{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: culvert-waypoint}, spec: \
                 {controllerName: culvert.dev/waypoint-controller}}";
    let statuses = for_waypoint(&(gateway("", "", "") + class)).statuses;
    assert!(
        statuses.iter().any(|status| status.kind == "GatewayClass" && &*status.name == "culvert-waypoint")
    );
    for (gateway, expected) in [
        (
            gateway("labels: {istio.io/waypoint-for: everything}", "", ""),
            "allowed: service, workload, all, none",
        ),
        (gateway("", ", allowedRoutes: {namespaces: {from: Some}}", ""), "allowed: Same, All, Selector"),
        (gateway("", "", "status: {addresses: [{type: Named, value: x}]}"), "allowed: IPAddress, Hostname"),
        (gateway("", "", "status: {addresses: [{value: x}]}"), "allowed: an IP address"),
        (
            gateway("annotations: {ambient.istio.io/xfcc-include-client-identity: x}", "", ""),
            "\"true\", \"false\"",
        ),
    ] {
        assert!(super::problems(&gateway)[0].contains(expected), "{expected}");
    }
    let forwards = gateway("annotations: {ambient.istio.io/xfcc-include-client-identity: 'true'}", "", "");
    assert!(for_waypoint(&forwards).waypoint.forwards_identity);
}

#[test]
fn node_agents_pass_over_what_only_waypoints_act_on() {
    for (kind, version) in [
        ("VirtualService", "networking.istio.io/v1"),
        ("DestinationRule", "networking.istio.io/v1beta1"),
        ("HTTPRoute", "gateway.networking.k8s.io/v1"),
        ("GRPCRoute", "gateway.networking.k8s.io/v1"),
    ] {
        let text =
            format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: a}}, spec: {{any: thing}}}}");
        assert_eq!(warnings(&text), Vec::<String>::new(), "{kind}");
    }
}

/// Where a connection of `web` to the service `cart` goes, as its agent decides it from these objects.
fn decided(text: &str, settings: &Settings) -> String {
    use crate::decide::{Outbound, next_hop};
    let snapshot = crate::state::Snapshot::build(1, translated(text, settings).model);
    let source = snapshot.workloads().find(|workload| &*workload.name == "web").unwrap();
    let destination = "10.96.0.4:80".parse().unwrap();
    let facts = Outbound { source, destination, avoid: &[], failing: &[], pick: 0 };
    match next_hop(&snapshot, &facts) {
        Ok(hop) => hop.to_string(),
        Err(error) => format!("refused: {error}"),
    }
}

#[test]
fn what_was_bound_goes_through_the_waypoint_or_nowhere() {
    let mesh = |ready: &str| {
        let service = service("wp", "").replace("name: http, port: 80, targetPort: 8080", "port: 15008");
        let instance = pod(
            "wp-0",
            "10.0.9.1",
            "labels: {gateway.networking.k8s.io/gateway-name: wp, app: wp}",
            "",
            &format!("conditions: [{{type: Ready, status: '{ready}'}}]"),
        );
        [
            SHOP.to_owned(),
            gateway("", "", ""),
            service,
            instance,
            self::service("cart", USES),
            pod("cart-0", "10.0.0.1", "labels: {app: cart}", "", ""),
            pod("web", "10.0.0.2", "", "", ""),
        ]
        .concat()
    };
    let plain = Settings::default();
    let was = Settings { bound: [key()].into(), ..Settings::default() };
    let strict = Settings { policy_strict: true, ..Settings::default() };
    let through = decided(&mesh("True"), &plain);
    assert!(through.contains("10.0.9.1:15008") && through.contains("10.96.0.4:80"), "{through}");
    for settings in [&was, &strict] {
        let refused = decided(&mesh("False"), settings);
        assert!(
            refused.starts_with("refused: ") && refused.contains("wp.shop.svc.cluster.local"),
            "{refused}"
        );
    }
    let direct = decided(&mesh("False"), &plain);
    assert!(direct.contains("10.0.0.1:15008"), "it was never ready: {direct}");
}

#[test]
fn a_waypoint_goes_by_the_service_account_of_its_pods() {
    let identity =
        |objects: &str| for_waypoint(&(gateway("", "", "") + objects)).waypoint.identity.unwrap().to_string();
    let instance = |name: &str, account: &str| {
        let labels = "labels: {gateway.networking.k8s.io/gateway-name: wp}";
        pod(name, &format!("10.0.9.{}", name.len()), labels, &format!("serviceAccountName: {account}"), "")
    };
    assert_eq!(identity(""), "spiffe://cluster.local/ns/shop/sa/wp");
    assert_eq!(identity(&instance("a", "own")), "spiffe://cluster.local/ns/shop/sa/own");
    let annotated = gateway("annotations: {gateway.istio.io/service-account: other}", "", "");
    let of = for_waypoint(&annotated).waypoint.identity.unwrap().to_string();
    assert_eq!(of, "spiffe://cluster.local/ns/shop/sa/other");
    let two = gateway("", "", "") + &instance("a", "x") + &instance("bb", "y");
    let said = lines(&for_waypoint(&two).warnings);
    assert!(said.iter().any(|line| line.contains("service accounts x, y")), "{said:?}");
}

#[test]
fn a_waypoint_that_nobody_can_reach_is_said() {
    let instance = instance("conditions: [{type: Ready, status: 'True'}]");
    let lost = gateway("", "", "") + &instance;
    assert!(
        warnings(&lost)[0].contains("no address, and no Service shop/wp; what is bound to it is refused")
    );
    // One of another namespace is not its Service.
    let elsewhere =
        service("wp", "").replace("namespace: shop", "namespace: money").replace("port: 80", "port: 15008");
    assert!(warnings(&(lost.clone() + &elsewhere))[0].contains("no Service shop/wp"));
    let portless = lost + &service("wp", "");
    assert!(warnings(&portless)[0].contains("Service shop/wp has no port 15008"));
    assert_eq!(warnings(&portless.replace("port: 80", "port: 15008")), Vec::<String>::new());
}

#[test]
fn statuses_are_those_that_a_controller_writes() {
    let text = gateway("", "", "")
        + &service("cart", USES)
        + &object("AuthorizationPolicy", "l4", "spec: {rules: [{from: [{source: {namespaces: [a]}}]}]}")
        + &object(
            "AuthorizationPolicy",
            "l7",
            "spec: {rules: [{to: [{operation: {methods: [GET], paths: [/]}}]}]}",
        )
        + &object("AuthorizationPolicy", "audit", "spec: {action: AUDIT, rules: [{}]}");
    let shown = |statuses: &[Status]| -> Vec<String> {
        let one = |status: &Status| {
            let conditions: Vec<_> =
                status.conditions.iter().map(|c| format!("{}={} {}", c.kind, c.holds, c.reason)).collect();
            let part = status.part.as_deref().map(|part| format!("[{part}]")).unwrap_or_default();
            format!("{} {}{part}: {}", status.kind, status.name, conditions.join(", "))
        };
        statuses.iter().map(one).collect()
    };
    assert_eq!(
        shown(&translated(&text, &Settings::default()).statuses),
        [
            "Service cart: istio.io/WaypointBound=false WaypointIsNotReady",
            "AuthorizationPolicy l4: ZtunnelAccepted=true Accepted",
            "AuthorizationPolicy l7: ZtunnelAccepted=false UnsupportedValue",
            "AuthorizationPolicy audit: ZtunnelAccepted=false UnsupportedValue",
        ]
    );
    assert_eq!(
        shown(&for_waypoint(&text).statuses),
        [
            "Gateway wp: Accepted=true Accepted, Programmed=false Pending",
            "Gateway wp[mesh]: Accepted=true Accepted",
            "Service cart: istio.io/WaypointBound=true WaypointAccepted",
        ]
    );
}
