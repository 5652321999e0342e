use std::net::IpAddr;

use super::*;
use crate::model::*;
use crate::types::{PolicyKey, ServiceKey, SpiffeId, WorkloadUid};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn full_workload() -> Workload {
    let (uid, identity) = ("c1//Pod/shop/cart-0", SpiffeId::new("cluster.local", "shop", "cart").unwrap());
    Workload {
        addresses: vec![ip("10.20.0.5"), ip("fd00::5")],
        protocol: TunnelProtocol::Hbone,
        enrolment: Enrolment::Labelled,
        node: "node-1".into(),
        canonical_name: "cart".into(),
        canonical_revision: "v2".into(),
        workload_name: "cart".into(),
        cluster: "c1".into(),
        network: "net-a".into(),
        locality: Locality { region: "r1".into(), zone: "z1".into(), subzone: "".into() },
        capacity: 3,
        authorization_policies: vec![PolicyKey { namespace: "shop".into(), name: "only-web".into() }],
        ..Workload::new(WorkloadUid(uid.into()), "cart-0", identity)
    }
}

fn bare_workload() -> Workload {
    let (uid, identity) =
        ("c1/a/WorkloadEntry/ops/x", SpiffeId::new("cluster.local", "ops", "cart").unwrap());
    Workload {
        cluster: "c1".into(),
        workload_type: WorkloadType::Pod,
        health: Health::Terminating,
        host_network: true,
        capacity: 0,
        ..Workload::new(WorkloadUid(uid.into()), "", identity)
    }
}

fn full_service() -> Service {
    let port = |target| ServicePort { target, name: "".into() };
    let key = ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() };
    Service {
        vips: vec![ip("10.96.1.1"), ip("fd00:96::1")],
        ports: [(80, port(8080)), (443, port(0))].into(),
        subject_alt_names: vec![SpiffeId::new("cluster.local", "shop", "cart").unwrap()],
        load_balancing: LoadBalancing {
            routing_preference: vec![LocalityScope::Network, LocalityScope::Region, LocalityScope::Zone],
            mode: Mode::Failover,
            health_policy: HealthPolicy::OnlyHealthy,
        },
        ip_families: IpFamilies::Dual,
        canonical: true,
        visibility: Visibility::Namespace,
        endpoints: vec![Endpoint {
            workload: full_workload().uid,
            ports: [(443, 8443)].into(),
            health: Health::Unhealthy,
        }],
        ..Service::new(key, "cart")
    }
}

fn bare_service() -> Service {
    Service::new(ServiceKey { namespace: "ops".into(), hostname: "alpha.example".into() }, "alpha")
}

fn policies() -> [Authorization; 2] {
    let full = Match {
        namespaces: vec![StringMatch::Suffix("-admin".into())],
        not_namespaces: vec![StringMatch::Presence],
        principals: vec![StringMatch::Exact("cluster.local/ns/shop/sa/web".into())],
        not_principals: vec![StringMatch::Prefix("cluster.local/ns/ops/".into())],
        service_accounts: vec![ServiceAccountMatch {
            namespace: "shop".into(),
            service_account: "web".into(),
        }],
        source_ips: Some(vec!["10.0.0.0/8".parse().unwrap()]),
        not_source_ips: Some(Vec::new()),
        destination_ports: vec![8080],
        not_destination_ports: vec![1, 2],
        ..Match::default()
    };
    let rule =
        Rule { clauses: vec![Clause { matches: vec![full, Match::default()] }, Clause { matches: vec![] }] };
    let key = |name: &str| PolicyKey { namespace: "shop".into(), name: name.into() };
    let one = Authorization {
        key: key("only-web"),
        scope: Scope::WorkloadSelector,
        action: Action::Allow,
        dry_run: true,
        rules: vec![rule],
    };
    let other = Authorization {
        key: key("deny-none"),
        scope: Scope::Global,
        action: Action::Deny,
        dry_run: false,
        rules: vec![],
    };
    [one, other]
}

fn nothing() -> DumpParts {
    DumpParts {
        network: "".into(),
        version: Value::Null,
        config: Value::Null,
        is_static: false,
        certificates: json!([]),
        workload_state: Box::new(std::iter::empty()),
    }
}

fn text(snapshot: &Snapshot, parts: DumpParts) -> String {
    let pieces: Vec<Bytes> = pieces(snapshot, parts).collect();
    String::from_utf8(pieces.concat()).unwrap()
}

#[test]
fn the_shape_is_the_references() {
    let model = Model {
        workloads: vec![full_workload(), bare_workload()],
        services: vec![full_service(), bare_service()],
        policies: policies().into(),
        pods: Vec::new(),
        ..Model::default()
    };
    let parts = DumpParts {
        network: "net-a".into(),
        version: json!({"version": "1"}),
        config: json!({"clusterId": "c1"}),
        is_static: false,
        certificates: json!([]),
        workload_state: Box::new([("uid-1".to_owned(), json!({"state": "Up"}))].into_iter()),
    };
    let got = text(&Snapshot::build(1, model), parts);
    assert_eq!(got, include_str!("golden.json"));
    // What a person's tools print is what any printer of JSON makes of it, but for the order of keys.
    let value: Value = serde_json::from_str(&got).unwrap();
    assert_eq!(serde_json::to_string_pretty(&value).unwrap().len() + 1, got.len());
}

#[test]
fn an_empty_state_is_a_whole_dump() {
    let value: Value = serde_json::from_str(&text(&Snapshot::default(), nothing())).unwrap();
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "certificates",
            "config",
            "policies",
            "services",
            "stagedServices",
            "staticConfig",
            "version",
            "workloadState",
            "workloads"
        ]
    );
}

#[tokio::test]
async fn a_list_is_whole_however_long() {
    use http_body_util::BodyExt;
    for count in [0_usize, 1, 2, 20_000] {
        let answer = json_list("numbers", (0..count).collect(), |n| json!({"n": n}));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["numbers"].as_array().unwrap().len(), count);
    }
}

#[test]
fn hostile_names_stay_inside_their_quotes() {
    let mut hostile = full_workload();
    hostile.name = "a\"\n\u{1b}\\ \u{2028}".into();
    let model = Model { workloads: vec![hostile.clone()], ..Model::default() };
    let got = text(&Snapshot::build(1, model), nothing());
    let value: Value = serde_json::from_str(&got).unwrap();
    assert_eq!(value["workloads"][0]["name"], &*hostile.name);
}

#[test]
fn a_large_state_is_made_piece_by_piece_in_order() {
    let workloads = (0..3000)
        .map(|n| Workload { uid: WorkloadUid(format!("c1//Pod/shop/{n:05}").into()), ..full_workload() });
    let model = Model { workloads: workloads.collect(), ..Model::default() };
    let pieces: Vec<Bytes> = pieces(&Snapshot::build(1, model), nothing()).collect();
    assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.len() < 2 * PIECE));
    let value: Value = serde_json::from_slice(&pieces.concat()).unwrap();
    let all = value["workloads"].as_array().unwrap();
    assert_eq!(all.len(), 3000);
    assert!(all.is_sorted_by_key(|w| w["uid"].as_str().unwrap().to_owned()));
}

#[test]
fn certificates_are_shown_without_their_key() {
    use crate::identity::{Ca, EmbeddedCa, EmbeddedOptions};
    use crate::types::SystemClock;
    let dir = std::env::temp_dir().join(format!("culvert-dump-{}", std::process::id()));
    let ca = EmbeddedCa::open_or_create(&dir, EmbeddedOptions::new("cluster.local")).unwrap();
    let certs = Certs::new(Ca::Embedded(ca), Arc::new(SystemClock));
    let id = SpiffeId::new("cluster.local", "shop", "cart").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        certs.want([id.clone()].into());
        assert_eq!(dump_certificates(&certs)[0]["state"], "Initializing");
        let (run, wait) = (Arc::clone(&certs).run(), certs.wait(&id, std::time::Duration::from_secs(20)));
        tokio::select! {
            () = run => unreachable!("it runs until it is dropped"),
            got = wait => drop(got.unwrap()),
        }
    });
    let shown = dump_certificates(&certs);
    std::fs::remove_dir_all(&dir).unwrap();
    let one = &shown[0];
    assert_eq!(one["identity"], "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(one["state"], "Available");
    for list in ["certChain", "rootCerts"] {
        let cert = &one[list][0];
        let pem = String::from_utf8(STANDARD.decode(cert["pem"].as_str().unwrap()).unwrap()).unwrap();
        let lines: Vec<&str> = pem.lines().collect();
        assert_eq!(lines[0], "-----BEGIN CERTIFICATE-----");
        assert!(lines.iter().all(|line| line.len() <= 64));
        assert!(cert["serialNumber"].as_str().unwrap().bytes().all(|b| b.is_ascii_digit()));
        for time in ["validFrom", "expirationTime"] {
            let time = cert[time].as_str().unwrap();
            assert!(time.len() == "2026-01-01T00:00:00Z".len() && time.ends_with('Z'), "{time}");
        }
    }
    assert!(!shown.to_string().contains("PRIVATE"));
    // Nor encoded: every three bytes are four characters.
    let secret = STANDARD.encode("PRIVATE K");
    assert!(!shown.to_string().contains(&secret));
}

/// Keys as `istioctl ztunnel-config` reads them.
#[test]
fn what_stands_between_is_shown() {
    let host = |name: &str| {
        let key = ServiceKey {
            namespace: "shop".into(),
            hostname: format!("{name}.shop.svc.cluster.local").into(),
        };
        GatewayAddress { destination: GatewayDestination::Hostname(key), port: 15008 }
    };
    let address = |network: &str, text: &str| {
        let destination = GatewayDestination::Address { network: network.into(), ip: ip(text) };
        GatewayAddress { destination, port: 15443 }
    };
    let workload = Workload {
        waypoint: Some(host("wp").into()),
        network_gateway: Some(address("net-b", "203.0.113.7").into()),
        application_tunnel: Some(ApplicationTunnel { protocol: TunnelPreamble::Proxy, port: 15088 }),
        hostname: "cart.example".into(),
        native_tunnel: true,
        ..full_workload()
    };
    let shown = serde_json::to_value(shapes::workload(&workload, &[])).unwrap();
    assert_eq!(
        shown["waypoint"],
        json!({"destination": "shop/wp.shop.svc.cluster.local", "hboneMtlsPort": 15008})
    );
    assert_eq!(shown["networkGateway"], json!({"destination": "net-b/203.0.113.7", "hboneMtlsPort": 15443}));
    assert_eq!(shown["applicationTunnel"], json!({"protocol": "PROXY", "port": 15088}));
    assert_eq!((&shown["hostname"], &shown["nativeTunnel"]), (&json!("cart.example"), &json!(true)));
    let tunnel = ApplicationTunnel { protocol: TunnelPreamble::None, port: 0 };
    let workload = Workload { application_tunnel: Some(tunnel), ..full_workload() };
    let shown = serde_json::to_value(shapes::workload(&workload, &[])).unwrap();
    assert_eq!(shown["applicationTunnel"], json!({"protocol": "NONE", "port": null}));
    let service = Service {
        waypoint: Some(address("", "fd96::9").into()),
        weighted_waypoints: vec![WeightedWaypoint { gateway: host("wp2"), weight: 10 }],
        cidr_vips: vec!["10.97.0.0/16".parse().unwrap()],
        elsewhere: ["10.9.0.1/32", "10.98.0.0/16"]
            .map(|range| ("net-b".into(), range.parse().unwrap()))
            .into(),
        ..full_service()
    };
    let shown = serde_json::to_value(shapes::service(&service, "net-a")).unwrap();
    assert_eq!(shown["waypoint"], json!({"destination": "/fd96::9", "hboneMtlsPort": 15443}));
    let weighted = json!({"destination": {"destination": "shop/wp2.shop.svc.cluster.local", "hboneMtlsPort": 15008}, "weight": 10});
    assert_eq!(shown["weightedWaypoints"], json!([weighted]));
    let ranges = [("net-a", "10.97.0.0/16"), ("net-b", "10.98.0.0/16")];
    assert_eq!(
        shown["cidrVips"],
        json!(ranges.map(|(network, cidr)| json!({"network": network, "cidr": cidr})))
    );
    assert_eq!(shown["vips"], json!(["net-a/10.96.1.1", "net-a/fd00:96::1", "net-b/10.9.0.1"]));
}

#[test]
fn a_local_file_and_what_waits_for_its_service_are_shown() {
    let key = ServiceKey { namespace: "shop".into(), hostname: "unknown.shop".into() };
    let endpoint =
        Endpoint { workload: full_workload().uid, ports: [(80, 8080)].into(), health: Health::Healthy };
    let staged = [(key, vec![endpoint])].into();
    let model = Model {
        workloads: vec![full_workload()],
        services: vec![full_service()],
        policies: policies().into(),
        background: Background { staged, ..Default::default() },
        ..Model::default()
    };
    let shown = text(&Snapshot::build(1, model), DumpParts { is_static: true, ..nothing() });
    let value: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(serde_json::to_string_pretty(&value).unwrap().len() + 1, shown.len(), "{shown}");
    let uid = full_workload().uid.to_string();
    assert_eq!(
        value["stagedServices"]["shop/unknown.shop"][&uid],
        json!({"workloadUid": uid, "port": {"80": 8080}, "status": "Healthy"})
    );
    let fixed = &value["staticConfig"];
    assert_eq!(fixed["workloads"][0]["uid"], json!(uid));
    assert!(fixed["workloads"][0]["services"].is_object(), "{fixed}");
    assert_eq!(fixed["services"][0]["vips"], value["services"][0]["vips"]);
    assert!(fixed["services"][0].get("endpoints").is_none());
    assert_eq!(fixed["policies"], value["policies"]);
}
