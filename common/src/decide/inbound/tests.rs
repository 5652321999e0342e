use super::*;
use crate::decide::world::{pod_of, world};

const WORLD: &str = "
pod shop/cart-0 10.0.0.2,fd00::2 hbone
pod shop/other-0 10.0.0.3 hbone
svc shop/cart 10.96.0.1 ports=80:8080,443:0,22:0,9:15008,10:15001
  ep shop/other-0 443:1111,22:2222
  ep shop/cart-0 443:9443
svc shop/second 10.96.0.2 ports=81:8080,82:7070
  ep shop/cart-0
svc shop/headless ports=5432:5432
  ep shop/cart-0 not-ready
svc shop/foreign 10.96.0.3 ports=80:8080
  ep shop/other-0
svc web/cart 10.96.0.4 ports=80:1
  ep shop/other-0
";

/// Target (and service), or status and error, of a CONNECT on a tunnel dialled at `destination`.
fn connect(destination: &str, authority: &str) -> String {
    let snapshot = world(WORLD);
    let pod = pod_of(&snapshot, "shop/cart-0");
    let authority = authority.parse().unwrap();
    match inbound_hbone(&snapshot, &pod, destination.parse().unwrap(), &authority) {
        Ok(InboundTarget { to, service: Some(service) }) => format!("{to} of {}", service.name),
        Ok(InboundTarget { to, service: None }) => to.to_string(),
        Err(error) => format!("{} {error}", error.status()),
    }
}

#[track_caller]
fn check(destination: &str, authority: &str, want: &str) {
    assert_eq!(connect(destination, authority), want, "CONNECT {authority} at {destination}");
}

#[test]
fn an_address_must_be_the_one_that_was_dialled() {
    check("10.0.0.2", "10.0.0.2:8080", "10.0.0.2:8080");
    check("10.0.0.2", "10.0.0.2:1", "10.0.0.2:1"); // not exposed by any service
    check("fd00::2", "[fd00::2]:8080", "[fd00::2]:8080");
    check("::ffff:10.0.0.2", "10.0.0.2:8080", "10.0.0.2:8080"); // as a dual-stack socket reports it
    for authority in
        ["10.0.0.3:80", "10.96.0.1:80", "[fd00::2]:80", "127.0.0.1:80", "192.0.2.1:80", "0.0.0.0:80"]
    {
        let address = authority.rsplit_once(':').unwrap().0.trim_matches(['[', ']']);
        let seen = format!("400 ip mismatch: CONNECT asks for {address} on a connection to 10.0.0.2");
        check("10.0.0.2", authority, &format!("{seen}; is the client's view of the pod stale?"));
    }
}

#[test]
fn what_listens_on_loopback_is_out_of_reach() {
    for (destination, authority) in
        [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("127.0.0.1", "cart.shop.svc.cluster.local:80")]
    {
        let want =
            format!("400 {destination} is no address of the pod's for others; dial the pod's own address");
        check(destination, authority, &want);
    }
}

#[test]
fn a_host_name_must_be_of_a_service_of_this_pod() {
    check("10.0.0.2", "cart.shop.svc.cluster.local:80", "10.0.0.2:8080 of cart");
    check("10.0.0.2", "CART.shop.svc.cluster.local:80", "10.0.0.2:8080 of cart");
    check("fd00::2", "cart.shop.svc.cluster.local:443", "[fd00::2]:9443 of cart");
    check("10.0.0.2", "headless.shop.svc.cluster.local:5432", "10.0.0.2:5432 of headless");
    let unknown = "is the client's view of it stale?";
    check(
        "10.0.0.2",
        "x.shop.svc.cluster.local:80",
        &format!("503 no service has the host name x.shop.svc.cluster.local; {unknown}"),
    );
    for (name, ns) in [("foreign", "shop"), ("cart", "web")] {
        let host = format!("{name}.{ns}.svc.cluster.local");
        let seen = format!("503 the pod is no endpoint of {ns}/{host}; check the selector of the service");
        check("10.0.0.2", &format!("{host}:80"), &seen);
    }
    for port in [22, 81] {
        let seen =
            format!("503 service shop/cart.shop.svc.cluster.local leads port {port} to no port of this pod");
        let want = format!("{seen}; check the service's ports");
        check("10.0.0.2", &format!("cart.shop.svc.cluster.local:{port}"), &want);
    }
}

#[test]
fn the_agents_own_ports_are_out_of_reach() {
    for (authority, port) in [
        ("10.0.0.2:15001", 15001),
        ("10.0.0.2:15006", 15006),
        ("10.0.0.2:15008", 15008),
        ("cart.shop.svc.cluster.local:9", 15008),
        ("cart.shop.svc.cluster.local:10", 15001),
    ] {
        let want = format!("503 port {port} is the agent's own; call the application's port");
        check("10.0.0.2", authority, &want);
    }
}

#[test]
fn plain_connections_go_to_their_original_destination() {
    let snapshot = world(WORLD);
    let pod = pod_of(&snapshot, "shop/cart-0");
    let at = |to: &str| inbound_plaintext(&snapshot, &pod, to.parse().unwrap());
    for (to, dialled, service) in [
        ("10.0.0.2:8080", "10.0.0.2:8080", Some("cart")),
        ("[::ffff:10.0.0.2]:7070", "10.0.0.2:7070", Some("second")),
        ("[fd00::2]:1234", "[fd00::2]:1234", None),
    ] {
        let got = at(to).unwrap();
        assert_eq!((got.to.to_string().as_str(), got.service.as_ref().map(|s| &*s.name)), (dialled, service));
    }
    for port in [15001, 15006, 15008] {
        assert_eq!(at(&format!("10.0.0.2:{port}")), Err(InboundRefusal::ReservedPort { port }));
    }
    assert!(matches!(at("127.0.0.1:80"), Err(InboundRefusal::LocalAddress { .. })));
    assert!(matches!(at("[::]:80"), Err(InboundRefusal::LocalAddress { .. })));
}

#[test]
fn a_forwarded_host_counts_only_if_it_is_the_pods() {
    let snapshot = world(WORLD);
    let pod = pod_of(&snapshot, "shop/cart-0");
    let guess = |host, port| inbound_service_guess(&snapshot, &pod, host, port).map(|s| s.name.to_string());
    for (host, port, want) in [
        (None, 8080, Some("cart")), // two lead there: the first
        (None, 9443, Some("cart")),
        (None, 7070, Some("second")),
        (None, 9999, None),
        (None, 1111, None), // another endpoint's
        (None, 0, None),    // an unmapped named port is no port
        (Some("second.shop.svc.cluster.local"), 8080, Some("second")),
        (Some("second.shop.svc.cluster.local"), 9999, Some("second")),
        (Some("foreign.shop.svc.cluster.local"), 8080, Some("cart")),
        (Some("\"><script>"), 9999, None),
    ] {
        assert_eq!(guess(host, port).as_deref(), want, "{host:?} {port}");
    }
}
