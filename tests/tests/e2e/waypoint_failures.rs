//! Requests that fail, each asked for in HTTP and in gRPC: what the client hears, and what log and metrics say of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert::lab::{Place, pause, wait_until};
use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::net::Server;
use culvert_tests::waypoint::{HTTP, Waypoint, answering, ask, bound, gateway, get, pod};

use crate::waypoint_told::{metric, page};

const VIP: &str = "10.96.0.20";

const ROUTES: &str = r#"---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {exact: /ok}}]
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /admin}}]
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /fault}}]
    fault: {abort: {httpStatus: 429, percentage: {value: 100}}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /hold}}, {uri: {exact: /narrow}}]
    route: [{destination: {host: narrow}}]
  - match: [{uri: {exact: /slow}}]
    timeout: 100ms
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /tries}}]
    retries: {attempts: 1, perTryTimeout: 100ms, retryOn: reset, backoff: 1ms}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /try}}]
    timeout: 30s
    retries: {attempts: 1, perTryTimeout: 100ms, retryOn: connect-failure}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /dead}}]
    retries: {attempts: 0}
    route: [{destination: {host: dead}}]
  - match: [{uri: {exact: /reset}}]
    route: [{destination: {host: shop, port: {number: 81}}}]
  - match: [{uri: {exact: /refuse}}]
    retries: {attempts: 1, retryOn: refused-stream, backoff: 1ms}
    route: [{destination: {host: shop, port: {number: 81}}}]
  - match: [{uri: {exact: /ends}}]
    route: [{destination: {host: refused}}]
  - match: [{uri: {exact: /garbage}}]
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /empty}}]
    route: [{destination: {host: empty}}]
  - match: [{uri: {exact: /subset}}]
    route: [{destination: {host: shop, subset: none}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: narrow, namespace: default}
spec:
  host: narrow
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: default}
spec:
  targetRefs: [{kind: Service, group: "", name: shop}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin"]}}]}]
"#;

/// A request that fails.
struct Failing {
    path: &'static str,
    /// Of the answer in HTTP.
    status: u16,
    /// Flags and details in the log, whichever of the two it was.
    told: &'static str,
    /// How the body begins, which is the message in gRPC too.
    body: &'static str,
    /// What gRPC hears.
    grpc: u8,
}

const RESET: &str = "upstream connect error or disconnect/reset before headers. ";

const FAILING: &[Failing] = &[
    Failing { path: "/nowhere", status: 404, told: "NR route_not_found ", body: "", grpc: 12 },
    Failing {
        path: "/admin",
        status: 403,
        told: "- rbac_access_denied_matched_policy[ns[default]-policy[no-admin]-rule[0]] ",
        body: "RBAC: access denied",
        grpc: 7,
    },
    Failing {
        path: "/fault",
        status: 429,
        told: "FI fault_filter_abort ",
        body: "fault filter abort",
        grpc: 14,
    },
    Failing { path: "/subset", status: 503, told: "NC cluster_not_found ", body: "", grpc: 14 },
    Failing {
        path: "/empty",
        status: 503,
        told: "UH no_healthy_upstream ",
        body: "no healthy upstream",
        grpc: 14,
    },
    Failing {
        path: "/slow",
        status: 504,
        told: "UT response_timeout ",
        body: "upstream request timeout",
        grpc: 14,
    },
    Failing {
        path: "/try",
        status: 504,
        told: "UT upstream_per_try_timeout ",
        body: "upstream request timeout",
        grpc: 14,
    },
    Failing {
        path: "/tries",
        status: 504,
        told: "URX,UT upstream_per_try_timeout ",
        body: "upstream request timeout",
        grpc: 14,
    },
    Failing {
        path: "/narrow",
        status: 503,
        told: "UO upstream_reset_before_response_started{overflow} ",
        body: "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        grpc: 14,
    },
    Failing {
        path: "/dead",
        status: 503,
        told: "UF upstream_reset_before_response_started{remote_connection_failure} ",
        body: RESET,
        grpc: 14,
    },
    Failing {
        path: "/reset",
        status: 503,
        told: "UR upstream_reset_before_response_started{remote_reset} ",
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
        grpc: 14,
    },
    Failing {
        path: "/refuse",
        status: 503,
        told: "URX,UR upstream_reset_before_response_started{remote_refused_stream_reset} ",
        body: "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote \
               refused stream reset",
        grpc: 14,
    },
    Failing {
        path: "/ends",
        status: 503,
        told: "UC upstream_reset_before_response_started{connection_termination} ",
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        grpc: 14,
    },
    Failing {
        path: "/garbage",
        status: 502,
        told: "UPE upstream_reset_before_response_started{protocol_error} ",
        body: "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        grpc: 14,
    },
];

/// A server of HTTP/2 that resets each request: with REFUSED_STREAM if its path says so.
fn resetting(place: &Place, port: u16) -> Server {
    Server::start(place, port, |stream, seen| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        stream.set_nonblocking(true).expect("a stream for a runtime");
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream).expect("a stream of the runtime");
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                seen.add(1);
                let is_refused = request.uri().path() == "/refuse";
                respond.send_reset(if is_refused { h2::Reason::REFUSED_STREAM } else { h2::Reason::CANCEL });
            }
        });
    })
}

/// A server of HTTP/1.1; `/hold` is answered once the gate is open.
fn plain(place: &Place, gate: &Arc<AtomicBool>) -> Server {
    let gate = Arc::clone(gate);
    answering(place, 8080, move |head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path {
            "/hold" => {
                let mut waited = 0;
                while !gate.load(Ordering::SeqCst) && waited < 1000 {
                    pause(Duration::from_millis(50));
                    waited += 1;
                }
            }
            "/slow" | "/try" | "/tries" => pause(Duration::from_secs(2)),
            "/garbage" => return "what is this\r\n\r\n".to_owned(),
            _ => {}
        }
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell".to_owned()
    })
}

/// A call of gRPC without messages.
fn call(path: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: shop\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

/// What is wrong with the two answers, HTTP's first.
fn wrong(case: &Failing, [http, grpc]: &[String; 2]) -> Option<String> {
    let Failing { path, status, body, grpc: code, .. } = case;
    let is_whole = |answer: &str| match path {
        &"/narrow" => answer.contains("\r\nx-envoy-overloaded: true\r\n"),
        _ => !answer.contains("x-envoy-overloaded"),
    };
    let text = http.split_once("\r\n\r\n").map_or("no body", |(_, text)| text);
    let right_http = http.starts_with(&format!("HTTP/1.1 {status} "))
        && text.starts_with(body)
        && text.is_empty() == body.is_empty()
        && is_whole(http);
    let message =
        if body.is_empty() { "\r\ncontent-type".into() } else { format!("\r\ngrpc-message: {body}") };
    let right_grpc = grpc.starts_with("HTTP/1.1 200 ")
        && grpc.contains("\r\ncontent-type: application/grpc\r\n")
        && grpc.contains(&format!("\r\ngrpc-status: {code}\r\n"))
        && grpc.contains(&message)
        && grpc.contains("grpc-message") != body.is_empty()
        && grpc.ends_with("\r\n\r\n")
        && is_whole(grpc);
    (!right_http || !right_grpc).then(|| format!("{path}:\n{http}\n{grpc}"))
}

/// What is wrong with what was told of both requests.
fn untold(case: &Failing, log: &str, metrics: &str) -> Option<String> {
    let Failing { path, status, told, grpc, .. } = case;
    let flags = told.split(' ').next().unwrap_or_default();
    let lines =
        [format!("\"GET {path} HTTP/1.1\" {status} {told}"), format!("\"POST {path} HTTP/1.1\" 200 {told}")];
    let (http, grpc) = (status.to_string(), grpc.to_string());
    let of_grpc = [("response_flags", flags), ("response_code", "200"), ("grpc_response_status", &*grpc)];
    let is_told = lines.iter().all(|line| log.contains(line.as_str()))
        && metric(metrics, "istio_requests_total", &[("response_flags", flags), ("response_code", &*http)])
            >= 1.0
        && metric(metrics, "istio_requests_total", &of_grpc) >= 1.0;
    (!is_told).then(|| {
        let found: Vec<_> = log.lines().filter(|line| line.contains(&format!(" {path} HTTP"))).collect();
        format!("{lines:?} {of_grpc:?}\n  {}", found.join("\n  "))
    })
}

#[test]
fn each_failure_is_heard_and_told_in_http_and_in_grpc() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let _outside = mesh.outside("b", "outside");
    let place = pod(&mut mesh, "b");
    let gate = Arc::new(AtomicBool::new(false));
    let (server, _resetting) = (plain(&shop, &gate), resetting(&shop, 8081));
    let services = [
        bound("shop", VIP, ("app", "shop"), &[("http", 80, "8080"), ("http2", 81, "8081")]),
        bound("narrow", "10.96.0.21", ("app", "shop"), HTTP),
        bound("dead", "10.96.0.22", ("app", "outside"), &[("http", 80, "8090")]),
        bound("refused", "10.96.0.23", ("app", "shop"), &[("http", 80, "8090")]),
        bound("empty", "10.96.0.24", ("app", "nobody"), HTTP),
    ];
    mesh.put("services.yaml", &services.concat());
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.put("routes.yaml", ROUTES);
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let logs = || waypoint.logs(&mesh);
    let send = |text: &str| {
        ask(&client, (VIP.parse().unwrap(), 80), text).unwrap_or_else(|error| format!("no answer: {error}"))
    };
    wait_until("an answer", SOON, || send(&get("/ok", "")).contains("200 OK").then_some(()), logs).unwrap();

    let problems: Vec<String> = std::thread::scope(|scope| {
        let before = server.seen.bytes();
        let held = scope.spawn(|| send(&get("/hold", "")));
        wait_until("the request", SOON, || (server.seen.bytes() > before).then_some(()), logs).unwrap();
        let answers = |case: &Failing| [send(&get(case.path, "")), send(&call(case.path))];
        let problems = FAILING.iter().filter_map(|case| wrong(case, &answers(case))).collect();
        gate.store(true, Ordering::SeqCst);
        assert!(held.join().unwrap().contains("200 OK"), "what was under way ends well");
        problems
    });
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n"), logs());
    // A line is written behind the answer.
    let untold = || {
        let (log, metrics) = (waypoint.log(), page(&waypoint, 15000, "/stats/prometheus"));
        FAILING.iter().filter_map(|case| untold(case, &log, &metrics)).collect::<Vec<_>>()
    };
    let told = || untold().is_empty().then_some(());
    wait_until("lines and metrics", SOON, told, || format!("{}\n{}", untold().join("\n"), logs())).unwrap();
    drop(waypoint); // it keeps connections for the next request
    mesh.finish();
}
