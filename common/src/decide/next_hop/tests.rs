use super::*;
use crate::decide::world::{pod_of, uid, world};

const WORLD: &str = "
pod web/client 10.0.0.1,fd00::1 hbone
pod web/second 10.0.0.5 hbone
pod shop/cart-0 10.0.0.2,fd00::2 hbone
pod shop/plain-0 10.0.0.3
pod shop/far-0 10.9.0.1 hbone network=net-b
pod kube/node-0 192.168.0.1 host-network
svc shop/cart 10.96.0.1,fd96::1 ports=80:8080,443:0,7:15008
  ep shop/cart-0 443:9443
svc shop/plain 10.96.0.2 ports=80:8080
  ep shop/plain-0
svc shop/outside 10.96.0.3 ports=443:443 mode=Passthrough
svc shop/empty 10.96.0.4 ports=80:8080
svc shop/asleep 10.96.0.5 ports=80:8080
  ep shop/cart-0 not-ready
  ep shop/plain-0 terminating
  ep shop/gone-0
svc shop/far 10.96.0.6 ports=80:8080
  ep shop/far-0
svc shop/sans 10.96.0.7 ports=80:8080 san=z,cart,a,z
  ep shop/cart-0
svc shop/private 10.96.0.8 ports=80:8080 private
  ep shop/cart-0
svc web/own 10.96.0.9 ports=80:8080,81:15001
  ep web/client
svc shop/nothing 10.96.0.10
svc kube/api 10.96.0.11 ports=443:6443
  ep kube/node-0
svc shop/unnamed 10.96.0.12 ports=80:0
  ep shop/cart-0
svc shop/v6 10.96.0.13 ports=80:8080 family=v6
  ep shop/cart-0
  ep shop/plain-0
svc shop/mixed 10.96.0.14 ports=80:8080
  ep shop/far-0
  ep shop/plain-0
svc shop/claims-a-pod 10.0.0.5 ports=80:8080
  ep shop/plain-0
";

const CART: &str = "spiffe://td/ns/shop/sa/cart";

#[track_caller]
fn check(to: &str, want: &str) {
    let snapshot = world(WORLD);
    let source = pod_of(&snapshot, "web/client");
    let facts =
        Outbound { source: &source, destination: to.parse().unwrap(), avoid: &[], failing: &[], pick: 0 };
    let got = match next_hop(&snapshot, &facts) {
        Ok(hop) => hop.to_string(),
        Err(error) => format!("error: {error}"),
    };
    assert_eq!(got, want, "connecting to {to}");
}

#[test]
fn a_call_to_the_agent_itself_is_refused() {
    let own = |to: &str| {
        let call = "is the agent's own port; call the application's port";
        check(to, &format!("error: attempted recursive call to ourselves: {to} {call}"));
    };
    for port in [15001, 15006, 15008] {
        for ip in ["127.0.0.1", "127.0.0.2", "[::1]", "0.0.0.0", "[::]", "10.0.0.1", "[fd00::1]"] {
            own(&format!("{ip}:{port}"));
        }
    }
    check(
        "10.96.0.9:81",
        "error: attempted recursive call to ourselves: 10.96.0.9:81 is the agent's own port; call the application's port",
    );
    check("127.0.0.1:8080", "passthrough 127.0.0.1:8080: unknown destination");
}

#[test]
fn unknown_destinations_pass_through() {
    check("192.0.2.7:443", "passthrough 192.0.2.7:443: unknown destination");
    check("192.0.2.7:15008", "passthrough 192.0.2.7:15008: unknown destination");
    check("[2001:db8::1]:443", "passthrough [2001:db8::1]:443: unknown destination");
    check("192.168.0.1:22", "passthrough 192.168.0.1:22: unknown destination"); // host network: no address of its own
    check("10.96.0.8:80", "passthrough 10.96.0.8:80: unknown destination"); // a service that web may not see
}

#[test]
fn a_workload_is_reached_as_it_can_be() {
    let own = "address of the workload itself";
    check("10.0.0.2:5432", &format!("hbone 10.0.0.2:15008 for 10.0.0.2:5432 as {CART}: {own}"));
    check("[fd00::2]:80", &format!("hbone [fd00::2]:15008 for [fd00::2]:80 as {CART}: {own}"));
    check("[::ffff:10.0.0.2]:80", &format!("hbone 10.0.0.2:15008 for 10.0.0.2:80 as {CART}: {own}"));
    check("10.0.0.3:80", &format!("tcp 10.0.0.3:80: {own}"));
    check(
        "10.9.0.1:80",
        "error: no valid routing destination: 10.9.0.1:80 is in network \"net-b\", the source in \"\"; networks are not connected",
    );
}

#[test]
fn a_service_is_balanced() {
    let one = "one of 1 with rank 0 (Standard)";
    check("10.96.0.1:80", &format!("hbone 10.0.0.2:15008 for 10.0.0.2:8080 as {CART}: {one}"));
    check("10.96.0.1:443", &format!("hbone 10.0.0.2:15008 for 10.0.0.2:9443 as {CART}: {one}"));
    check("10.96.0.1:7", &format!("hbone 10.0.0.2:15008 for 10.0.0.2:15008 as {CART}: {one}")); // refused over there
    check("[fd96::1]:80", &format!("hbone [fd00::2]:15008 for [fd00::2]:8080 as {CART}: {one}"));
    check("10.96.0.2:80", &format!("tcp 10.0.0.3:8080: {one}"));
    check("10.96.0.11:443", &format!("tcp 192.168.0.1:6443: {one}"));
    check("10.96.0.3:443", "passthrough 10.96.0.3:443: service shop/outside.shop.svc.cluster.local");
    let identities = format!("{CART} or spiffe://td/ns/shop/sa/a or spiffe://td/ns/shop/sa/z");
    check("10.96.0.7:80", &format!("hbone 10.0.0.2:15008 for 10.0.0.2:8080 as {identities}: {one}"));
    // Its own endpoint: through the tunnel as any other.
    let client = "spiffe://td/ns/web/sa/client";
    check("10.96.0.9:80", &format!("hbone 10.0.0.1:15008 for 10.0.0.1:8080 as {client}: {one}"));
    // Service before workload.
    check("10.0.0.5:80", &format!("tcp 10.0.0.3:8080: {one}"));
    // A v4 VIP whose service is v6 only; the endpoint that has none is passed over.
    let passed = "passed over: 1 without a usable address";
    check("10.96.0.13:80", &format!("hbone [fd00::2]:15008 for [fd00::2]:8080 as {CART}: {one}, {passed}"));
    check("10.96.0.14:80", &format!("tcp 10.0.0.3:8080: {one}, passed over: 1 in another network"));
}

#[test]
fn a_service_that_cannot_serve_is_refused() {
    let none = |to: &str, name: &str, seen: &str| {
        let service = format!("service shop/{name}.shop.svc.cluster.local");
        let check_what = "check its endpoints' readiness";
        check(to, &format!("error: no healthy upstream: {to}: {service} has {seen}; {check_what}"));
    };
    none("10.96.0.4:80", "empty", "no endpoints");
    none("10.96.0.5:80", "asleep", "1 not ready, 1 terminating, 1 unknown");
    none("10.96.0.12:80", "unnamed", "1 without the port");
    check(
        "10.96.0.1:81",
        "error: no healthy upstream: 10.96.0.1:81: service shop/cart.shop.svc.cluster.local has no port 81, only 7, 80, 443",
    );
    check(
        "10.96.0.10:80",
        "error: no healthy upstream: 10.96.0.10:80: service shop/nothing.shop.svc.cluster.local has no port 80, only none at all",
    );
    check(
        "10.96.0.6:80",
        "error: no valid routing destination: 10.96.0.6:80 is in network \"net-b\", the source in \"\"; networks are not connected",
    );
}

#[test]
fn visibility_is_that_of_the_caller() {
    let snapshot = world(WORLD);
    let source = pod_of(&snapshot, "shop/plain-0");
    let destination = "10.96.0.8:80".parse().unwrap();
    let hop =
        next_hop(&snapshot, &Outbound { source: &source, destination, avoid: &[], failing: &[], pick: 0 })
            .unwrap();
    let NextHop::Hbone { service: Some(service), authority, .. } = hop else { panic!("{hop}") };
    assert_eq!((&*service.name, authority.to_string().as_str()), ("private", "10.0.0.2:8080"));
}

#[test]
fn only_an_address_of_its_own_is_a_self_call() {
    let snapshot = world(WORLD);
    let source = pod_of(&snapshot, "web/client");
    let destination = "10.0.0.2:15001".parse().unwrap(); // another pod's: the other side refuses
    let facts =
        Outbound { source: &source, destination, avoid: &[uid("shop/cart-0")], failing: &[], pick: 0 };
    assert!(matches!(next_hop(&snapshot, &facts), Ok(NextHop::Hbone { .. })));
}

#[test]
fn an_empty_snapshot_passes_everything_but_self_calls() {
    let snapshot = world(WORLD);
    let source = pod_of(&snapshot, "web/client");
    let at = |to: &str| {
        let facts =
            Outbound { source: &source, destination: to.parse().unwrap(), avoid: &[], failing: &[], pick: 0 };
        next_hop(&Snapshot::default(), &facts)
    };
    assert!(matches!(at("10.96.0.1:80"), Ok(NextHop::Passthrough { .. })));
    assert!(matches!(at("10.0.0.1:15001"), Err(OutboundRefusal::SelfCall { .. })));
}
