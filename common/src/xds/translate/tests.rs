//! Tables: a message, what it means, or why it cannot be used.

use super::proto::security as sec;
use super::proto::workload as wl;
use super::*;
use crate::model::{
    Action, Enrolment, Health, HealthPolicy, IpFamilies, LocalityScope, Match, Mode, Rule, Scope,
    StringMatch, TunnelPreamble, TunnelProtocol, Visibility, WorkloadType,
};

fn message() -> wl::Workload {
    wl::Workload {
        uid: "Kubernetes//Pod/shop/cart-0".into(),
        name: "cart-0".into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    }
}

fn service() -> wl::Service {
    wl::Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
        ..Default::default()
    }
}

fn address_of(kind: wl::Kind) -> Result<Address, Unusable> {
    address(&wl::Address { kind: Some(kind) }.encode_to_vec(), &Options::default())
}

fn workload_of(message: wl::Workload) -> Result<(Workload, Vec<Membership>), Unusable> {
    match address_of(wl::Kind::Workload(Box::new(message)))? {
        Address::Workload(workload, services) => Ok((*workload, services)),
        Address::Service(service) => panic!("{service:?}"),
    }
}

fn service_of(message: wl::Service) -> Result<Service, Unusable> {
    match address_of(wl::Kind::Service(Box::new(message)))? {
        Address::Service(service) => Ok(*service),
        Address::Workload(workload, _) => panic!("{workload:?}"),
    }
}

fn to(ip: &[u8]) -> wl::GatewayAddress {
    let address = wl::NetworkAddress { network: "n".into(), address: ip.to_vec(), length: None };
    wl::GatewayAddress { destination: Some(wl::Destination::Address(address)), hbone_mtls_port: 15008 }
}

#[test]
fn what_a_workload_does_not_say_has_the_protocols_defaults() {
    let (workload, services) = workload_of(message()).unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!((&*workload.cluster, &*workload.network, workload.capacity), ("Kubernetes", "", 1));
    assert_eq!((workload.protocol, workload.health), (TunnelProtocol::Tcp, Health::Healthy));
    assert_eq!((workload.workload_type, workload.enrolment), (WorkloadType::Deployment, Enrolment::Unknown));
    assert!(!workload.host_network && !workload.native_tunnel);
    assert!(workload.waypoint.is_none() && workload.application_tunnel.is_none() && services.is_empty());
}

#[test]
fn every_field_of_a_workload_is_taken() {
    let port = wl::Port { service_port: 80, target_port: 8080 };
    let services = [("shop/cart.shop.svc.cluster.local".to_owned(), wl::PortList { ports: vec![port] })];
    let (workload, services) = workload_of(wl::Workload {
        addresses: vec![vec![10, 0, 0, 1], vec![0; 15].into_iter().chain([1]).collect(), vec![0; 4]],
        network: "net".into(),
        tunnel_protocol: 1,
        trust_domain: "td".into(),
        service_account: "cart".into(),
        waypoint: Some(wl::GatewayAddress { hbone_mtls_port: 0, ..to(&[10, 0, 0, 9]) }),
        network_gateway: Some(to(&[0; 16])),
        node: "node".into(),
        canonical_name: "cn".into(),
        canonical_revision: "cr".into(),
        workload_type: 3,
        workload_name: "job".into(),
        native_tunnel: true,
        authorization_policies: vec!["shop/only-web".into(), "odd".into()],
        status: 1,
        cluster_id: "c1".into(),
        hostname: "example.com".into(),
        services: services.into(),
        application_tunnel: Some(wl::ApplicationTunnel { protocol: 1, port: 15088 }),
        locality: Some(wl::Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() }),
        network_mode: 1,
        capacity: Some(wl::UInt32Value { value: 0 }),
        ..message()
    })
    .unwrap();
    assert_eq!(workload.addresses, ["10.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(workload.identity.to_string(), "spiffe://td/ns/shop/sa/cart");
    let waypoint = workload.waypoint.as_ref().unwrap();
    assert_eq!((waypoint.destination.to_string(), waypoint.port), ("n/10.0.0.9".into(), 15008));
    assert_eq!((workload.protocol, workload.health), (TunnelProtocol::Hbone, Health::Unhealthy));
    assert_eq!((workload.workload_type, workload.capacity), (WorkloadType::Job, 0));
    assert!(workload.host_network && workload.native_tunnel);
    let tunnel = workload.application_tunnel.unwrap();
    assert_eq!((tunnel.protocol, tunnel.port), (TunnelPreamble::Proxy, 15088));
    let policies: Vec<_> = workload.authorization_policies.iter().map(ToString::to_string).collect();
    assert_eq!(policies, ["shop/only-web", "/odd"], "what is no policy's name is missing, not harmless");
    assert_eq!(services[0].service.to_string(), "shop/cart.shop.svc.cluster.local");
    assert_eq!(services[0].ports, [(80, 8080)]);
}

#[test]
fn workloads_that_cannot_be_used_say_why() {
    let unknown = |field, value| Unusable::UnknownValue { field, value };
    let services = |name: &str| [(name.to_owned(), wl::PortList::default())].into();
    let cases = [
        (wl::Workload { uid: String::new(), ..message() }, Unusable::Missing("uid")),
        (
            wl::Workload { tunnel_protocol: 2, ..message() },
            Unusable::NotSupported("tunnel_protocol LEGACY_ISTIO_MTLS"),
        ),
        (wl::Workload { tunnel_protocol: 3, ..message() }, unknown("tunnel_protocol", 3)),
        (wl::Workload { status: 2, ..message() }, unknown("status", 2)),
        (wl::Workload { network_mode: -1, ..message() }, unknown("network_mode", -1)),
        (
            wl::Workload {
                application_tunnel: Some(wl::ApplicationTunnel { protocol: 2, port: 0 }),
                ..message()
            },
            unknown("application_tunnel.protocol", 2),
        ),
        (
            wl::Workload { addresses: vec![vec![1; 5]], ..message() },
            Unusable::NotAnAddress { field: "addresses", length: 5 },
        ),
        (
            wl::Workload { waypoint: Some(wl::GatewayAddress::default()), ..message() },
            Unusable::Missing("waypoint"),
        ),
        (
            wl::Workload {
                waypoint: Some(wl::GatewayAddress { hbone_mtls_port: 70000, ..to(&[1; 4]) }),
                ..message()
            },
            Unusable::NotAPort { field: "waypoint", port: 70000 },
        ),
        (wl::Workload { services: services("cart"), ..message() }, Unusable::NotAServiceName("cart".into())),
    ];
    for (message, wanted) in cases {
        assert_eq!(workload_of(message).unwrap_err(), wanted);
    }
    let nameless = wl::Workload { namespace: String::new(), ..message() };
    assert!(matches!(workload_of(nameless), Err(Unusable::Identity(_))));
    let odd_type = wl::Workload { workload_type: 9, ..message() };
    assert_eq!(
        workload_of(odd_type).unwrap().0.workload_type,
        WorkloadType::Deployment,
        "only telemetry reads it"
    );
}

#[test]
fn every_field_of_a_service_is_taken() {
    let vip = |address: &[u8], length| wl::NetworkAddress {
        network: "n".into(),
        address: address.to_vec(),
        length,
    };
    let service = service_of(wl::Service {
        addresses: vec![
            vip(&[10, 1, 0, 1], None),
            vip(&[10, 1, 0, 2], Some(32)),
            vip(&[10, 2, 3, 4], Some(16)),
            vip(&[0; 4], None),
        ],
        ports: vec![
            wl::Port { service_port: 80, target_port: 8080 },
            wl::Port { service_port: 443, target_port: 0 },
        ],
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".into(), "example.com".into()],
        load_balancing: Some(wl::LoadBalancing {
            routing_preference: vec![6, 1, 4],
            mode: 2,
            health_policy: 1,
        }),
        ip_families: 3,
        canonical: true,
        weighted_waypoints: vec![wl::WeightedWaypoint { destination: Some(to(&[1; 4])), weight: 7 }],
        visibility: 1,
        ..service()
    })
    .unwrap();
    assert_eq!(service.vips, ["10.1.0.1", "10.1.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(service.cidr_vips[0].to_string(), "10.2.0.0/16");
    assert_eq!(service.ports.iter().map(|(p, t)| (*p, t.target)).collect::<Vec<_>>(), [(80, 8080), (443, 0)]);
    assert_eq!(service.subject_alt_names.len(), 1, "names that no endpoint can prove widen nothing");
    let balancing = &service.load_balancing;
    assert_eq!(
        balancing.routing_preference,
        [LocalityScope::Network, LocalityScope::Region, LocalityScope::Node]
    );
    assert_eq!((balancing.mode, balancing.health_policy), (Mode::Failover, HealthPolicy::AllowAll));
    assert_eq!((service.ip_families, service.visibility), (IpFamilies::Dual, Visibility::Namespace));
    assert_eq!((service.canonical, service.weighted_waypoints[0].weight), (true, 7));
    let odd = service_of(wl::Service { visibility: 5, ..self::service() }).unwrap();
    assert_eq!(odd.visibility, Visibility::Public);
}

#[test]
fn a_service_has_the_addresses_of_the_agents_network() {
    let vip = |network: &str, last| wl::NetworkAddress {
        network: network.into(),
        address: vec![10, 0, 0, last],
        length: None,
    };
    let message = wl::Service { addresses: vec![vip("a", 1), vip("b", 2)], ..service() };
    let body = wl::Address { kind: Some(wl::Kind::Service(Box::new(message))) }.encode_to_vec();
    for (network, wanted) in [("", 2), ("a", 1), ("c", 0)] {
        let options = Options { network: network.into(), ..Options::default() };
        let Ok(Address::Service(service)) = address(&body, &options) else { panic!() };
        assert_eq!((service.vips.len(), service.elsewhere.len()), (wanted, 2 - wanted), "{network:?}");
        assert!(!service.is_headless());
    }
}

#[test]
fn services_that_cannot_be_used_say_why() {
    let unknown = |field, value| Unusable::UnknownValue { field, value };
    let balancing = |scope, mode, health_policy| {
        let message = wl::LoadBalancing { routing_preference: vec![scope], mode, health_policy };
        wl::Service { load_balancing: Some(message), ..service() }
    };
    let vip = |length| wl::NetworkAddress {
        address: vec![10, 0, 0, 1],
        length: Some(length),
        ..Default::default()
    };
    let cases = [
        (wl::Service { hostname: String::new(), ..service() }, Unusable::Missing("hostname")),
        (balancing(0, 0, 0), unknown("load_balancing.routing_preference", 0)),
        (balancing(1, 4, 0), unknown("load_balancing.mode", 4)),
        (balancing(1, 0, 2), unknown("load_balancing.health_policy", 2)),
        (wl::Service { ip_families: 4, ..service() }, unknown("ip_families", 4)),
        (
            wl::Service { addresses: vec![vip(33)], ..service() },
            Unusable::PrefixLength { field: "addresses", length: 33 },
        ),
        (
            wl::Service { addresses: vec![vip(300)], ..service() },
            Unusable::PrefixLength { field: "addresses", length: 300 },
        ),
        (
            wl::Service { ports: vec![wl::Port { service_port: 65536, target_port: 1 }], ..service() },
            Unusable::NotAPort { field: "service_port", port: 65536 },
        ),
        (
            wl::Service { weighted_waypoints: vec![wl::WeightedWaypoint::default()], ..service() },
            Unusable::Missing("weighted_waypoints.destination"),
        ),
    ];
    for (message, wanted) in cases {
        assert_eq!(service_of(message).unwrap_err(), wanted);
    }
}

#[test]
fn an_address_of_another_kind_or_garbage_is_named() {
    assert_eq!(address(b"", &Options::default()), Err(Unusable::NeitherKind));
    assert_eq!(address(b"\x1a\x00", &Options::default()), Err(Unusable::NeitherKind), "a kind of the future");
    assert!(matches!(address(b"\x0a\xff", &Options::default()), Err(Unusable::Undecodable(_))));
    assert!(matches!(authorization(b"\xff"), Err(Unusable::Undecodable(_))));
}

fn policy(of: sec::Match) -> sec::Authorization {
    let clause = sec::Clause { matches: vec![of] };
    let rules = vec![sec::Rule { clauses: vec![clause] }];
    sec::Authorization { name: "p".into(), namespace: "shop".into(), scope: 1, rules, ..Default::default() }
}

fn match_of(message: sec::Match) -> Result<Match, Unusable> {
    let policy = authorization(&policy(message).encode_to_vec())?;
    Ok(policy.rules[0].clauses[0].matches[0].clone())
}

#[test]
fn every_field_of_a_policy_is_taken() {
    let text = |kind| sec::StringMatch { kind: Some(kind) };
    let block = |address: &[u8], length| sec::Address { address: address.to_vec(), length };
    let found = match_of(sec::Match {
        namespaces: vec![text(sec::MatchKind::Exact("a".into()))],
        not_namespaces: vec![text(sec::MatchKind::Prefix("b".into()))],
        principals: vec![text(sec::MatchKind::Suffix("c".into()))],
        not_principals: vec![text(sec::MatchKind::Presence(sec::Empty {}))],
        source_ips: vec![block(&[10, 0, 0, 0], 8)],
        not_source_ips: vec![block(&[0; 16], 64)],
        destination_ips: vec![block(&[10, 0, 0, 1], 32)],
        not_destination_ips: vec![block(&[10, 0, 0, 1], 0)],
        destination_ports: vec![80],
        not_destination_ports: vec![443],
        service_accounts: vec![sec::ServiceAccountMatch {
            namespace: "n".into(),
            service_account: "s".into(),
        }],
        not_service_accounts: vec![],
    })
    .unwrap();
    assert_eq!(found.namespaces, [StringMatch::Exact("a".into())]);
    assert_eq!(found.not_namespaces, [StringMatch::Prefix("b".into())]);
    assert_eq!(found.principals, [StringMatch::Suffix("c".into())]);
    assert_eq!(found.not_principals, [StringMatch::Presence]);
    assert_eq!(found.source_ips.unwrap()[0].to_string(), "10.0.0.0/8");
    assert_eq!(found.not_source_ips.unwrap()[0].to_string(), "::/64");
    assert_eq!(found.destination_ips.unwrap().len() + found.not_destination_ips.unwrap().len(), 2);
    assert_eq!((found.destination_ports, found.not_destination_ports), (vec![80], vec![443]));
    assert_eq!(found.service_accounts[0].to_string(), "n/s");
    let policy = sec::Authorization { scope: 2, action: 1, dry_run: true, ..policy(sec::Match::default()) };
    let policy = authorization(&policy.encode_to_vec()).unwrap();
    assert_eq!((policy.scope, policy.action, policy.dry_run), (Scope::WorkloadSelector, Action::Deny, true));
}

#[test]
fn a_list_with_a_block_that_cannot_be_read_decides_against_the_peer() {
    let block = |address: &[u8], length| sec::Address { address: address.to_vec(), length };
    let good = block(&[10, 0, 0, 0], 8);
    for bad in [block(&[1, 2, 3], 8), block(&[10, 0, 0, 0], 33), block(&[0; 16], 129), block(&[0; 4], 1000)] {
        let blocks = vec![good.clone(), bad];
        let found = match_of(sec::Match { not_source_ips: blocks, ..Default::default() }).unwrap();
        assert_eq!((found.source_ips, found.not_source_ips), (None, Some(vec![])));
    }
}

#[test]
fn policies_that_cannot_be_used_say_why_and_deny_to_whom_they_would_apply() {
    let base = policy(sec::Match::default());
    let unknown = |field, value| Unusable::UnknownValue { field, value };
    let matcher = sec::Match { principals: vec![sec::StringMatch::default()], ..Default::default() };
    let port = sec::Match { destination_ports: vec![65536], ..Default::default() };
    let what = "a text matcher other than exact, prefix, suffix or presence";
    let cases = [
        (sec::Authorization { scope: 3, ..base.clone() }, unknown("scope", 3), Some(Scope::Namespace)),
        (sec::Authorization { action: 2, ..base.clone() }, unknown("action", 2), Some(Scope::Namespace)),
        (
            sec::Authorization { action: 2, scope: 0, ..base.clone() },
            unknown("action", 2),
            Some(Scope::Global),
        ),
        (sec::Authorization { action: 2, scope: 2, ..base.clone() }, unknown("action", 2), None),
        (sec::Authorization { action: 2, dry_run: true, ..base.clone() }, unknown("action", 2), None),
        (policy(matcher), Unusable::NotSupported(what), Some(Scope::Namespace)),
        (
            policy(port),
            Unusable::NotAPort { field: "destination_ports", port: 65536 },
            Some(Scope::Namespace),
        ),
    ];
    for (message, wanted, scope) in cases {
        let body = message.encode_to_vec();
        assert_eq!(authorization(&body).unwrap_err(), wanted);
        let stand_in = closed("shop/p", &body);
        assert_eq!(stand_in.as_ref().map(|policy| policy.scope), scope);
        assert!(stand_in.is_none_or(|p| p.action == Action::Deny && p.rules == [Rule::default()]));
    }
    assert_eq!(closed("shop/p", b"\xff").unwrap().scope, Scope::Namespace);
    assert!(closed("nowhere", b"\xff").is_none());
}
