//! A waypoint between real agents: what is bound to it goes through it, and nothing else.

use culvert_tests::documents::Service;
use culvert_tests::mesh::{Mesh, SOON, log_of};
use culvert_tests::waypoint::{Waypoint, ask, gateway, get, pod, server};

const VIP: &str = "10.96.0.20";

/// A client on one node, a server and the waypoint on the other.
#[test]
fn a_request_goes_through_the_waypoint() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let place = pod(&mut mesh, "b");
    let _server = server(&shop, 8080, "one");
    let service = Service::new("shop", &[VIP]).selects("app", "shop").port(80, "8080").yaml();
    let service = service.replace(
        "metadata: {name: shop, namespace: default}",
        "metadata: {name: shop, namespace: default, labels: {istio.io/use-waypoint: waypoint}}",
    );
    mesh.put("service.yaml", &service.replace("name: p80", "name: http"));
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let answer =
        || ask(&client, (VIP.parse().unwrap(), 80), &get("/a", "")).ok().filter(|a| a.contains("200 OK"));
    let logs = || format!("{}\n{}\n{}", waypoint.log(), log_of(mesh.agent("a")), log_of(mesh.agent("b")));
    let answer = culvert::lab::wait_until("an answer", SOON, answer, logs).unwrap();
    assert!(answer.contains("x-envoy-upstream-service-time"), "not through the waypoint: {answer}");
    assert!(answer.contains("\none\n") || answer.contains("\r\n\r\none\nGET /a HTTP/1.1"), "{answer}");
    assert!(answer.contains("x-request-id"), "{answer}");
    drop(waypoint); // it keeps connections for the next request
    mesh.finish();
}
