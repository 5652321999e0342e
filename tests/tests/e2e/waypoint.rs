//! A waypoint between real agents: what is bound to it goes through it, and nothing else.

use std::io::{Read as _, Write as _};

use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::net::{Server, connect};
use culvert_tests::waypoint::{HTTP, Waypoint, ask, bound, gateway, get, pod, server};

const VIP: &str = "10.96.0.20";

/// A client on one node, a server and the waypoint on the other.
#[test]
fn a_request_goes_through_the_waypoint() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let place = pod(&mut mesh, "b");
    let _server = server(&shop, 8080, "one");
    mesh.put("service.yaml", &bound("shop", VIP, ("app", "shop"), HTTP));
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let answer =
        || ask(&client, (VIP.parse().unwrap(), 80), &get("/a", "")).ok().filter(|a| a.contains("200 OK"));
    let logs = || waypoint.logs(&mesh);
    let answer = culvert::lab::wait_until("an answer", SOON, answer, logs).unwrap();
    assert!(answer.contains("x-envoy-upstream-service-time"), "not through the waypoint: {answer}");
    assert!(answer.contains("\none\n") || answer.contains("\r\n\r\none\nGET /a HTTP/1.1"), "{answer}");
    assert!(answer.contains("x-request-id"), "{answer}");
    drop(waypoint); // it keeps connections for the next request
    mesh.finish();
}

/// A server that would answer never hears that its client has gone, unless the waypoint tells it.
#[test]
fn a_client_that_goes_ends_its_request() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let place = pod(&mut mesh, "b");
    let silent = Server::start(&shop, 8080, |mut stream, seen| {
        let mut rest = Vec::new();
        let _either = stream.read_to_end(&mut rest);
        seen.add(1);
    });
    mesh.put("service.yaml", &bound("shop", VIP, ("app", "shop"), HTTP));
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let logs = || waypoint.logs(&mesh);
    let accepted = || {
        let mut stream = connect(&client, (VIP.parse().unwrap(), 80)).ok()?;
        stream.write_all(get("/", "").as_bytes()).ok()?;
        let arrived = || (silent.seen.accepted() > 0).then_some(());
        culvert::lab::wait_until("the request to arrive", SOON, arrived, logs).unwrap();
        Some(stream)
    };
    let stream = culvert::lab::wait_until("a connection", SOON, accepted, logs).unwrap();
    assert_eq!(silent.seen.bytes(), 0, "the request is under way");
    drop(stream);
    let ended = || (silent.seen.bytes() > 0).then_some(());
    culvert::lab::wait_until("the server to be told", SOON, ended, logs).unwrap();
    drop(waypoint);
    mesh.finish();
}
