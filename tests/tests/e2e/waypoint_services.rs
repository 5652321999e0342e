//! What stands behind a waypoint: pods that are not captured, host names, mirrors; whom it believes about a client.

use std::sync::{Arc, Mutex};

use culvert::lab::wait_until;
use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::waypoint::{Waypoint, answering, ask, gateway, get, pod, server};

/// A service whose requests are copied, an application that is not captured, and one that is a host name.
const SERVICES: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: default, labels: {istio.io/use-waypoint: waypoint}}
spec: {clusterIP: 10.96.0.30, selector: {app: plain}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: copy, namespace: default}
spec: {clusterIP: 10.96.0.31, selector: {app: copy}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: plain, namespace: default}
spec:
  hosts: [plain]
  http:
  - {match: [{uri: {prefix: /mirror}}], mirror: {host: copy}, route: [{destination: {host: plain}}]}
  - route: [{destination: {host: plain}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: foreign, namespace: default}
spec:
  targetRefs: [{kind: Service, group: "", name: plain}]
  action: DENY
  rules: [{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: default, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [far.example]
  addresses: [10.99.0.9]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9090}]
  endpoints: [{address: localhost}]
"#;

#[test]
fn what_is_not_captured_is_reached_and_who_is_trusted_is_believed() {
    let mut mesh = Mesh::new();
    let (proxy, client) = (mesh.captured("a", "proxy"), mesh.captured("a", "client"));
    let (plain, copy) = (mesh.outside("b", "plain"), mesh.captured("b", "copy"));
    let place = pod(&mut mesh, "b");
    let _plain = server(&plain, 8080, "uncaptured");
    // The waypoint's own host name is the only one that every machine knows.
    let _far = server(&place, 9090, "named");
    let copies = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&copies);
    let _copy = answering(&copy, 8080, move |head| {
        seen.lock().unwrap().push(head.to_owned());
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()
    });
    mesh.put("services.yaml", SERVICES);
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &["--trusted-proxies=default/proxy", "--path-strict"]);
    let logs = || waypoint.logs(&mesh);
    let send = |from, last: [u8; 4], path: &str, headers: &str| {
        ask(from, (last.into(), 80), &get(path, headers)).unwrap_or_default()
    };
    let (plain, far) = ([10, 96, 0, 30], [10, 99, 0, 9]);
    for (to, text) in [(plain, "uncaptured"), (far, "named")] {
        let answered = || send(&client, to, "/", "").contains(text).then_some(());
        wait_until("an answer of each service", SOON, answered, logs).unwrap();
    }
    let forwarded = "x-forwarded-for: 198.51.100.1, 192.0.2.9\r\n";
    for (from, headers, wanted) in [
        (&proxy, forwarded, " 403 "),
        (&proxy, "x-forwarded-for: 192.0.2.9, 198.51.100.1\r\n", " 200 "),
        (&proxy, "", " 200 "),
        // Anybody may write such a header.
        (&client, forwarded, " 200 "),
    ] {
        let answer = send(from, plain, "/", headers);
        assert!(answer.contains(wanted), "{headers}: {answer}\n{}", logs());
    }
    let answer = send(&client, plain, "/../above", "");
    assert!(answer.contains(" 400 "), "{answer}\n{}", logs());
    assert!(send(&client, plain, "/mirror?q", "x-a: b\r\n").contains(" 200 "), "{}", logs());
    let copied = || copies.lock().unwrap().first().cloned();
    let copied = wait_until("a copy of a request", SOON, copied, logs).unwrap();
    let copied = copied.to_ascii_lowercase();
    assert!(copied.starts_with("get /mirror?q http/1.1\r\n"), "{copied}");
    assert!(copied.contains("\r\nhost: shop\r\n") && copied.contains("\r\nx-a: b\r\n"), "{copied}");
    drop(waypoint); // it keeps connections for the next request
    mesh.finish();
}
