//! What a waypoint does with single requests: YAML and request in, upstream request or answer out, between real agents.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use culvert::lab::{Pod, PodSpec, wait_until};
use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::net::Server;
use culvert_tests::waypoint::{HTTP, Waypoint, answering, ask, bound, gateway, get, pod, server};

const VIP: &str = "10.96.0.20";

/// What one waypoint is configured with; the first route that matches a case's path is meant.
const ROUTES: &str = r#"---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /headers}}]
    headers:
      request: {set: {x-set: route, x-made: "%REQ(x-in)%-%PROTOCOL%"}, add: {x-both: route}, remove: [x-gone]}
      response: {set: {x-answer: route}}
    route:
    - destination: {host: shop}
      headers: {request: {set: {x-set: destination}, add: {x-both: destination}}}
  - match: [{uri: {prefix: /old}}]
    rewrite: {uri: /new, authority: other}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /redirect}}]
    redirect: {uri: /elsewhere, redirectCode: 308}
  - match: [{uri: {exact: /direct}}]
    directResponse: {status: 203, body: {string: hello}}
    headers: {response: {set: {x-answer: direct}}}
  - match: [{uri: {exact: /fault}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    headers: {response: {set: {x-answer: fault}}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /cors}}]
    corsPolicy: {allowOrigins: [{exact: "http://ok"}], allowMethods: [GET], maxAge: 7s}
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /cors/}}]
    corsPolicy: &cors {allowOrigins: [{exact: "http://ok"}], allowMethods: [GET], unmatchedPreflights: IGNORE}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /cors-fault}}]
    corsPolicy: *cors
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /cors-redirect}}]
    corsPolicy: *cors
    redirect: {uri: /elsewhere}
  - match: [{uri: {exact: /cors-direct}}]
    corsPolicy: *cors
    directResponse: {status: 203}
  - match: [{uri: {exact: /delayed}}]
    timeout: 2s
    fault: {delay: {fixedDelay: 3s, percentage: {value: 100}}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /timeout}}]
    timeout: 5s
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /admin}}]
    headers: {response: {set: {x-answer: admin}}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /empty}}]
    headers: {response: {set: {x-answer: empty}}}
    route: [{destination: {host: empty}}]
  - match: [{uri: {exact: /subset}}]
    route: [{destination: {host: shop, subset: none}}]
  - match: [{uri: {exact: /user}, headers: {x-user: {exact: b}}, withoutHeaders: {x-no: {exact: ""}}}]
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /query}, queryParams: {a: {exact: "1"}}}]
    route: [{destination: {host: shop}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: default}
spec:
  targetRefs: [{kind: Service, group: "", name: shop}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin", "/cors/admin"]}}]}]
"#;

/// Request line and headers; texts that the answer has; texts that it has not. An echoed line is `name: value`.
type Case = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

const PREFLIGHT: &[&str] = &["origin: http://ok", "access-control-request-method: GET"];

const CASES: &[Case] = &[
    (
        "GET /headers/x",
        &["x-in: 1", "x-gone: 1", "x-both: client"],
        &[
            "200 OK",
            "GET /headers/x HTTP/1.1",
            "x-set: destination",
            "x-made: 1-HTTP/1.1",
            "x-both: client",
            "x-both: route",
            "x-both: destination",
            "x-answer: route",
        ],
        &["x-gone", "x-set: route"],
    ),
    (
        "GET /oldest?q=1",
        &[],
        &["GET /newest?q=1 HTTP/1.1", "host: other", "x-envoy-original-path: /oldest?q=1"],
        &[],
    ),
    ("GET /redirect?q", &[], &["308 ", "location: http://shop/elsewhere?q"], &["GET "]),
    ("GET /direct", &[], &["203 ", "x-answer: direct", "hello"], &["x-envoy-upstream-service-time"]),
    ("GET /fault", &[], &["418 ", "fault filter abort", "x-answer: fault"], &["x-server"]),
    (
        "OPTIONS /cors",
        &["origin: http://ok", "access-control-request-method: GET"],
        &[
            "200 OK",
            "access-control-allow-origin: http://ok",
            "access-control-allow-methods: GET",
            "max-age: 7",
        ],
        &["x-server"],
    ),
    (
        "OPTIONS /cors",
        &["origin: http://no", "access-control-request-method: GET"],
        &["x-server"],
        &["allow-origin"],
    ),
    ("GET /cors", &["origin: http://ok"], &["x-server", "access-control-allow-origin: http://ok"], &[]),
    (
        "OPTIONS /cors/unmatched",
        &["origin: http://no", "access-control-request-method: GET"],
        &["200 OK", "access-control-allow-methods: GET"],
        &["allow-origin", "x-server"],
    ),
    // Policies and faults come before CORS; redirects and answers of a route have none.
    ("OPTIONS /cors/admin", PREFLIGHT, &["403 ", "RBAC"], &["access-control", "x-server"]),
    ("GET /cors/admin", PREFLIGHT, &["403 ", "RBAC"], &["access-control", "x-server"]),
    ("OPTIONS /cors-fault", PREFLIGHT, &["418 "], &["access-control", "x-server"]),
    ("OPTIONS /cors-redirect", PREFLIGHT, &["301 "], &["access-control", "x-server"]),
    ("GET /cors-redirect", PREFLIGHT, &["301 "], &["access-control", "x-server"]),
    ("OPTIONS /cors-direct", PREFLIGHT, &["203 "], &["access-control", "x-server"]),
    // The delay is none of the route's time.
    ("GET /delayed", &[], &["200 OK", "x-server"], &[]),
    ("GET /timeout", &[], &["x-envoy-expected-rq-timeout-ms: 5000"], &["grpc-timeout"]),
    (
        "POST /timeout",
        &["content-type: application/grpc", "grpc-timeout: 1S"],
        &["x-envoy-expected-rq-timeout-ms: 1000", "grpc-timeout: 1000m"],
        &[],
    ),
    ("GET /admin", &[], &["403 ", "RBAC: access denied", "x-answer: admin"], &["x-server"]),
    ("GET //admin", &[], &["403 "], &["x-server"]),
    ("GET /admin;x", &[], &["403 "], &["x-server"]),
    ("GET /x/..%2fadmin", &[], &["403 "], &["x-server"]),
    ("GET /%61dmin", &[], &["403 "], &["x-server"]),
    ("GET /administrator", &[], &["200 OK", "x-answer: admin"], &[]),
    (
        "POST /admin",
        &["content-type: application/grpc"],
        &["200 OK", "grpc-status: 7", "grpc-message: RBAC"],
        &["x-server"],
    ),
    ("GET /empty", &[], &["503 ", "no healthy upstream", "x-answer: empty"], &[]),
    ("GET /subset", &[], &["503 "], &["x-server"]),
    ("GET /user", &["x-user: a", "x-user: b", "x-no: 1"], &["200 OK"], &[]),
    ("GET /user", &["x-user: a,b", "x-no: 1"], &["404 "], &["x-server"]),
    ("GET /user", &["x-user: b"], &["404 "], &["x-server"]),
    ("GET /query?a=1&a=2", &[], &["200 OK"], &[]),
    ("GET /query?a=2&a=1", &[], &["404 "], &["x-server"]),
    ("GET /headers/../nowhere", &[], &["404 "], &["x-server"]),
    ("GET /%00", &[], &["400 "], &["x-server"]),
    ("OPTIONS *", &[], &["404 "], &["x-server"]),
    ("GET /headers", &["connection: host"], &["400 "], &["x-server"]),
    (
        "GET /headers",
        &[
            "x-envoy-max-retries: 9",
            "x-forwarded-client-cert: By=me",
            "x-request-id: mine",
            "te: gzip, trailers",
        ],
        &["x-request-id: mine", "x-forwarded-proto: http", "te: trailers"],
        &["x-envoy-max-retries", "x-forwarded-client-cert"],
    ),
];

#[test]
fn each_request_is_done_what_its_route_says() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let place = pod(&mut mesh, "b");
    let _server = server(&shop, 8080, "one");
    let service = bound("shop", VIP, ("app", "shop"), HTTP);
    let empty = bound("empty", "10.96.0.21", ("app", "nobody"), HTTP);
    mesh.put("service.yaml", &format!("{service}{empty}"));
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.put("routes.yaml", ROUTES);
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let to = (VIP.parse().unwrap(), 80);
    let send = |line: &str, headers: &[&str]| {
        let close = if headers.iter().any(|header| header.starts_with("connection:")) { "" } else { "close" };
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let request = format!("{line} HTTP/1.1\r\nHost: shop\r\n{headers}");
        let request = if close.is_empty() { request } else { format!("{request}Connection: {close}\r\n") };
        ask(&client, to, &format!("{request}\r\n"))
    };
    let logs = || waypoint.logs(&mesh);
    let first = || send("GET /direct", &[]).ok().filter(|answer| answer.contains("hello"));
    wait_until("an answer", SOON, first, logs).unwrap();
    let mut problems = Vec::new();
    for (line, headers, has, has_not) in CASES {
        let answer = send(line, headers).unwrap_or_else(|error| error.to_string());
        let missing: Vec<_> = has.iter().filter(|text| !answer.contains(**text)).collect();
        let present: Vec<_> = has_not.iter().filter(|text| answer.contains(**text)).collect();
        if !missing.is_empty() || !present.is_empty() {
            problems.push(format!("{line} {headers:?}: lacks {missing:?}, has {present:?}:\n{answer}"));
        }
    }
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n---\n"), logs());
    drop(waypoint); // it keeps connections for the next request
    mesh.finish();
}

/// Two endpoints of which one always fails, behind three services.
const FAILING: &str = r#"---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: retried, namespace: default}
spec:
  hosts: [retried]
  http: [{retries: {attempts: 1, retryOn: "503", backoff: 1ms}, route: [{destination: {host: retried}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: watched, namespace: default}
spec:
  hosts: [watched]
  http: [{retries: {attempts: 0}, route: [{destination: {host: watched}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: watched, namespace: default}
spec:
  host: watched
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 600s, maxEjectionPercent: 50}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: narrow, namespace: default}
spec:
  host: narrow
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}
"#;

/// What a request to `/hold` waits for.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn wait(&self) {
        let is_open = self.is_open.lock().unwrap();
        let waited = self.opened.wait_timeout_while(is_open, Duration::from_secs(30), |is_open| !*is_open);
        drop(waited);
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

fn endpoints(good: &Pod, bad: &Pod, gate: &Arc<Gate>) -> [Server; 2] {
    let gate = Arc::clone(gate);
    let well = move |head: &str| {
        if head.starts_with("GET /hold") {
            gate.wait();
        }
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood".to_owned()
    };
    let ill = |head: &str| {
        let hint = if head.starts_with("GET /hinted") { "HTTP/1.1 103 Early Hints\r\n\r\n" } else { "" };
        format!("{hint}HTTP/1.1 503 No\r\ncontent-length: 3\r\n\r\nbad")
    };
    [answering(good, 8080, well), answering(bad, 8080, ill)]
}

#[test]
fn failures_are_hidden_left_alone_and_bounded() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let mut api = |name: &str| mesh.pod("b", PodSpec::new(name).captured(true).label("api", "yes"));
    let (good, bad) = (api("good"), api("bad"));
    let place = pod(&mut mesh, "b");
    let gate = Arc::new(Gate::default());
    let servers = endpoints(&good, &bad, &gate);
    let services = [
        bound("retried", "10.96.0.21", ("api", "yes"), HTTP),
        bound("watched", "10.96.0.22", ("api", "yes"), HTTP),
        bound("narrow", "10.96.0.23", ("app", "good"), HTTP),
    ];
    mesh.put("services.yaml", &services.concat());
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.put("routes.yaml", FAILING);
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let send = |last: u8, path: &str| {
        ask(&client, ([10, 96, 0, last].into(), 80), &get(path, "")).unwrap_or_default()
    };
    let logs = || waypoint.logs(&mesh);
    wait_until("an answer", SOON, || send(21, "/").contains("200 OK").then_some(()), logs).unwrap();

    for _ in 0..20 {
        let answer = send(21, "/");
        assert!(answer.contains("200 OK"), "a retry goes elsewhere: {answer}\n{}", logs());
    }
    let told = || Some(send(21, "/hinted")).filter(|answer| answer.contains("103 "));
    let answer = wait_until("a hint", SOON, told, logs).unwrap();
    assert!(
        answer.contains("503 ") && answer.contains("bad"),
        "no other try after a hint: {answer}\n{}",
        logs()
    );
    let answers: Vec<String> = (0..30).map(|_| send(22, "/")).collect();
    let failed = answers.iter().filter(|answer| answer.contains("503 ") && answer.contains("bad")).count();
    assert_eq!(failed, 3, "three failures in a row, then it is left alone: {answers:?}\n{}", logs());
    assert!(answers[10..].iter().all(|answer| answer.contains("200 OK")), "{answers:?}");

    std::thread::scope(|scope| {
        let before = servers[0].seen.bytes();
        let held = scope.spawn(|| send(23, "/hold"));
        wait_until("the request", SOON, || (servers[0].seen.bytes() > before).then_some(()), logs).unwrap();
        let answer = send(23, "/");
        assert!(
            answer.contains("503 ") && answer.contains("x-envoy-overloaded: true"),
            "{answer}\n{}",
            logs()
        );
        gate.open();
        assert!(held.join().unwrap().contains("200 OK"), "what was under way ends well");
    });
    let answer = || send(23, "/").contains("200 OK").then_some(());
    wait_until("the circuit to be closed again", SOON, answer, logs).unwrap();
    drop(waypoint); // it keeps connections for the next request
    mesh.finish();
}
