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
pod shop/wp-0 10.0.9.1,fd00::91 hbone
pod shop/wp-1 10.0.9.2 hbone
pod shop/edge-0 10.0.9.3 hbone host=edge.example
pod shop/tunnel-0 10.0.9.4,fd00::94 hbone tunnel=proxy:15088
pod shop/port-0 10.0.9.5 hbone tunnel=none:9000
pod shop/same-0 10.0.9.6 hbone tunnel=proxy:0
pod shop/looped-0 10.0.9.7 hbone tunnel=proxy:15006
pod shop/by-wp-0 10.0.1.1,fd00::11 hbone waypoint=shop/wp
pod shop/by-ip-0 10.0.1.2 hbone waypoint=@10.0.9.3
pod shop/by-vip-0 10.0.1.3 hbone waypoint=@10.96.9.1
pod shop/by-name-0 10.0.1.4 hbone waypoint=shop/=edge.example
pod shop/lost-0 10.0.1.5 hbone waypoint=shop/nobody
svc shop/wp 10.96.9.1 ports=15008:15008
  ep shop/wp-0
  ep shop/wp-1 not-ready
svc shop/one 10.96.1.1,fd96::11 ports=80:8080,81:0 waypoint=shop/wp
  ep shop/other-0
svc web/one 10.96.1.1 ports=80:8080 waypoint=shop/=edge.example private
svc shop/some 10.96.1.2 ports=80:8080 weights=shop/wp*1,@10.0.9.3*0
svc shop/range 10.97.0.0/16 ports=80:8080 waypoint=shop/wp
svc shop/bare ports=80:8080
  ep shop/tunnel-0
svc shop/v6-only fd96::12 ports=80:8080
  ep shop/tunnel-0
svc shop/two fd96::13,10.96.1.3 ports=80:8080
  ep shop/tunnel-0
";

/// Target, service and what the app is told; or status and error, of a CONNECT on a tunnel dialled at `destination`.
fn connect_to(pod: &str, destination: &str, authority: &str) -> String {
    let snapshot = world(WORLD);
    let pod = pod_of(&snapshot, pod);
    let authority = authority.parse().unwrap();
    match inbound_hbone(&snapshot, &pod, destination.parse().unwrap(), &authority) {
        Ok(InboundTarget { to, service, told }) => {
            let service = service.map(|s| format!(" of {}", s.name)).unwrap_or_default();
            let told = told.map(|told| format!(" told {told}")).unwrap_or_default();
            format!("{to}{service}{told}")
        }
        Err(error) => format!("{} {error}", error.status()),
    }
}

fn connect(destination: &str, authority: &str) -> String {
    connect_to("shop/cart-0", destination, authority)
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

/// A pod in front of others is asked for their addresses; what is dialled is its own.
#[test]
fn a_waypoint_that_is_captured_is_asked_for_others() {
    let mismatch = |ip: &str, met: &str| {
        format!(
            "400 ip mismatch: CONNECT asks for {ip} on a connection to {met}; is the client's view of the pod stale?"
        )
    };
    let all =
        ["10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5", "10.96.1.1", "10.96.1.2", "10.97.3.4"];
    let of_wp: &[&str] = &["10.0.1.1", "10.0.1.3", "10.96.1.1", "10.96.1.2", "10.97.3.4"];
    let of_edge: &[&str] = &["10.0.1.2", "10.0.1.4", "10.96.1.1", "10.96.1.2"];
    let table: [(&str, &str, &[&str]); 4] = [
        ("shop/wp-0", "10.0.9.1", of_wp),
        ("shop/wp-1", "10.0.9.2", of_wp), // not ready is its clients' business
        ("shop/edge-0", "10.0.9.3", of_edge),
        ("shop/other-0", "10.0.0.3", &[]), // an endpoint of a service is not its waypoint
    ];
    for (pod, met, its) in table {
        for ip in all {
            let want = if its.contains(&ip) { format!("{met}:80") } else { mismatch(ip, met) };
            assert_eq!(connect_to(pod, met, &format!("{ip}:80")), want, "{pod} asked for {ip}");
        }
    }
    assert_eq!(connect_to("shop/wp-0", "fd00::91", "[fd96::11]:80"), "[fd00::91]:80");
    assert_eq!(connect_to("shop/wp-0", "10.0.9.1", "[fd00::11]:80"), "10.0.9.1:80");
    // By host name, with the service's own port map.
    let one = "one.shop.svc.cluster.local";
    assert_eq!(connect_to("shop/wp-0", "10.0.9.1", &format!("{one}:80")), "10.0.9.1:8080 of one");
    let refused = connect_to("shop/wp-0", "10.0.9.1", &format!("{one}:81"));
    assert!(refused.starts_with("503") && refused.contains("leads port 81 to no port"), "{refused}");
    let refused = connect_to("shop/edge-0", "10.0.9.3", &format!("{one}:80"));
    assert!(refused.starts_with("503") && refused.contains("is no endpoint of"), "{refused}");
}

#[test]
fn an_application_tunnel_has_its_own_port_and_may_be_told() {
    let at = |pod: &str, met: &str, authority: &str| connect_to(&format!("shop/{pod}-0"), met, authority);
    assert_eq!(at("tunnel", "10.0.9.4", "10.96.1.1:80"), "10.0.9.4:15088 told 10.96.1.1:80");
    assert_eq!(at("tunnel", "10.0.9.4", "10.0.9.4:80"), "10.0.9.4:15088 told 10.0.9.4:80");
    assert_eq!(at("tunnel", "10.0.9.4", "192.0.2.1:443"), "10.0.9.4:15088 told 192.0.2.1:443");
    assert_eq!(at("tunnel", "fd00::94", "10.96.1.1:80"), "[fd00::94]:15088 told 10.96.1.1:80");
    assert_eq!(at("same", "10.0.9.6", "10.96.1.1:8443"), "10.0.9.6:8443 told 10.96.1.1:8443");
    assert_eq!(at("port", "10.0.9.5", "10.96.1.1:80"), "10.0.9.5:9000");
    // By host name: the service's address, IPv4 first, and its port.
    let host = |name: &str| format!("{name}.shop.svc.cluster.local:80");
    assert_eq!(at("tunnel", "10.0.9.4", &host("one")), "10.0.9.4:15088 of one told 10.96.1.1:80");
    assert_eq!(at("tunnel", "10.0.9.4", &host("v6-only")), "10.0.9.4:15088 of v6-only told [fd96::12]:80");
    assert_eq!(at("tunnel", "10.0.9.4", &host("two")), "10.0.9.4:15088 of two told 10.96.1.3:80");
    assert_eq!(at("port", "10.0.9.5", &host("one")), "10.0.9.5:9000 of one");
    let refused = at("tunnel", "10.0.9.4", &host("bare"));
    assert!(refused.starts_with("503 service shop/bare.shop.svc.cluster.local has no address"), "{refused}");
    // The agent's own ports, as they are asked for and as they would be dialled.
    for port in [15001, 15006, 15008] {
        let want = format!("503 port {port} is the agent's own; call the application's port");
        assert_eq!(at("tunnel", "10.0.9.4", &format!("10.96.1.1:{port}")), want);
        assert_eq!(at("same", "10.0.9.6", &format!("10.96.1.1:{port}")), want);
    }
    assert!(at("looped", "10.0.9.7", "10.96.1.1:80").starts_with("503 port 15006 is the agent's own"));
    let local = at("tunnel", "127.0.0.1", "10.96.1.1:80");
    assert!(local.starts_with("400 127.0.0.1 is no address of the pod's"), "{local}");
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
