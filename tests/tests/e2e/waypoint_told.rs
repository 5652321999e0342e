//! What a waypoint tells of requests and connections: lines of the access log, metrics.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::time::Duration;

use culvert::lab::{Pod, http, wait_until};
use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::net::{Server, connect};
use culvert_tests::waypoint::{HTTP, Waypoint, answering, ask, bound, gateway, get, pod};

const VIP: &str = "10.96.0.20";

const ROUTES: &str = r#"---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - name: plain
    match: [{uri: {exact: /ok}}, {uri: {exact: /garbage}}, {uri: {exact: /hold}}, {uri: {prefix: /echo.Echo/}}, {uri: {exact: /late}}, {uri: {prefix: /admin}}]
    timeout: 2s
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /old}}]
    rewrite: {uri: /new, authority: other}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /v2}}]
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{uri: {exact: /direct}}]
    directResponse: {status: 203, body: {string: hello}}
  - match: [{uri: {exact: /redirect}}]
    redirect: {uri: /elsewhere}
  - match: [{uri: {exact: /fault}}]
    fault: {delay: {fixedDelay: 1ms, percentage: {value: 100}}, abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /slow}}]
    timeout: 100ms
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /dead}}]
    retries: {attempts: 1, retryOn: connect-failure, backoff: 1ms}
    route: [{destination: {host: dead}}]
  - match: [{uri: {exact: /refused}}]
    route: [{destination: {host: refused}}]
  - match: [{uri: {exact: /five}}]
    retries: {attempts: 1, retryOn: 5xx, backoff: 1ms}
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /empty}}]
    route: [{destination: {host: empty}}]
  - match: [{uri: {exact: /subset}}]
    route: [{destination: {host: shop, subset: none}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: default}
spec:
  host: shop
  subsets: [{name: v2, labels: {app: shop}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: default}
spec:
  targetRefs: [{kind: Service, group: "", name: shop}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin"]}}]}]
"#;

const SHOP: &str = "inbound-vip|80|http|shop.default.svc.cluster.local";

type Labels = &'static [(&'static str, &'static str)];

/// Request line; flags, details and reply's bytes; destination and route; labels of its metric.
struct Told {
    asked: &'static str,
    line: &'static str,
    to: &'static str,
    labels: Labels,
}

const PICKED: (&str, &str) = ("destination_workload", "shop");
const NOBODY: (&str, &str) = ("destination_workload", "unknown");

/// Each refusal of the table in `docs/waypoint.md` that a request can meet here, and what goes well.
const TABLE: &[Told] = &[
    Told {
        asked: "GET /ok",
        line: "200 - via_upstream - \"-\" 0 4 ",
        to: "\"10.244.2.10:8080\" inbound-vip|80|http|shop.default.svc.cluster.local ",
        labels: &[("response_code", "200"), ("response_flags", "-"), ("request_protocol", "http"), PICKED],
    },
    Told {
        asked: "GET /old",
        line: "200 - via_upstream - \"-\" 0 4 ",
        to: "\"other\" \"10.244.2.10:8080\" inbound-vip|80|http|shop.default.svc.cluster.local ",
        labels: &[],
    },
    Told {
        asked: "GET /v2",
        line: "200 - via_upstream ",
        to: "\"10.244.2.10:8080\" inbound-vip|80|http/v2|shop.default.svc.cluster.local ",
        labels: &[],
    },
    Told {
        asked: "GET /admin",
        line: "403 - rbac_access_denied_matched_policy[ns[default]-policy[no-admin]-rule[0]] - \"-\" 0 19 ",
        to: "\"-\" inbound-vip|80|http|shop.default.svc.cluster.local ",
        labels: &[("response_code", "403"), ("response_flags", "-"), NOBODY],
    },
    Told {
        asked: "GET /nowhere",
        line: "404 NR route_not_found - \"-\" 0 0 ",
        to: "\"-\" - - ",
        labels: &[("response_code", "404"), ("response_flags", "NR"), NOBODY],
    },
    Told {
        asked: "GET /direct",
        line: "203 - direct_response - \"-\" 0 5 ",
        to: "\"-\" - - ",
        labels: &[("response_code", "203"), ("response_flags", "-"), NOBODY],
    },
    Told {
        asked: "GET /redirect",
        line: "301 - direct_response - \"-\" 0 0 ",
        to: "\"-\" - - ",
        labels: &[("response_code", "301"), NOBODY],
    },
    Told {
        asked: "GET /fault",
        line: "418 DI,FI fault_filter_abort - \"-\" 0 18 ",
        to: "\"-\" inbound-vip|80|http|shop.default.svc.cluster.local ",
        labels: &[("response_code", "418"), ("response_flags", "DI,FI"), NOBODY],
    },
    Told {
        asked: "GET /slow",
        line: "504 UT response_timeout - \"-\" 0 24 ",
        to: "\"10.244.2.10:8080\" inbound-vip|80|http|shop.default.svc.cluster.local ",
        labels: &[("response_code", "504"), ("response_flags", "UT"), PICKED],
    },
    Told {
        asked: "GET /dead",
        line: "503 URX,UF upstream_reset_before_response_started{remote_connection_failure} - \"",
        to: "inbound-vip|80|http|dead.default.svc.cluster.local ",
        labels: &[
            ("response_code", "503"),
            ("response_flags", "URX,UF"),
            ("destination_workload", "outside"),
        ],
    },
    Told {
        asked: "GET /refused",
        line: "503 UC upstream_reset_before_response_started{connection_termination} - \"-\" 0 95 ",
        to: "\"10.244.2.10:8090\" inbound-vip|80|http|refused.default.svc.cluster.local ",
        labels: &[("response_code", "503"), ("response_flags", "UC"), PICKED],
    },
    Told {
        asked: "GET /five",
        line: "503 URX via_upstream - \"-\" 0 4 ",
        to: "\"10.244.2.10:8080\" inbound-vip|80|http|shop.default.svc.cluster.local ",
        labels: &[("response_code", "503"), ("response_flags", "URX"), PICKED],
    },
    Told {
        asked: "GET /garbage",
        line: "502 UPE upstream_reset_before_response_started{protocol_error} - \"",
        to: "\"10.244.2.10:8080\" inbound-vip|80|http|shop.default.svc.cluster.local ",
        labels: &[("response_code", "502"), ("response_flags", "UPE"), PICKED],
    },
    Told {
        asked: "GET /empty",
        line: "503 UH no_healthy_upstream - \"-\" 0 19 ",
        to: "\"-\" inbound-vip|80|http|empty.default.svc.cluster.local ",
        labels: &[("response_code", "503"), ("response_flags", "UH"), NOBODY],
    },
    Told {
        asked: "GET /subset",
        line: "503 NC cluster_not_found - \"-\" 0 0 ",
        to: "\"-\" - - ",
        labels: &[("response_code", "503"), ("response_flags", "NC"), NOBODY],
    },
    Told {
        asked: "GET /%00",
        line: "400 - path_normalization_failed - \"-\" 0 0 ",
        to: "\"-\" - - ",
        labels: &[("response_code", "400"), ("response_flags", "-"), NOBODY],
    },
    Told {
        asked: "OPTIONS *",
        line: "404 - absolute_path_rejected ",
        to: "\"-\" - - ",
        labels: &[("response_code", "404"), ("response_flags", "-"), NOBODY],
    },
];

/// What becomes of bytes that are no request, and what is told of them.
const MALFORMED: &[(&str, &str, Labels)] = &[
    (
        "GET / HTTP/1.1\r\nHost: shop\r\nHost: shop\r\n\r\n",
        "\"- - HTTP/1.1\" 400 DPE http1.codec_error ",
        &[("response_code", "400"), ("response_flags", "DPE"), NOBODY],
    ),
    (
        "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: gzip\r\n\r\n",
        "\"- - HTTP/1.1\" 501 DPE http1.invalid_transfer_encoding ",
        &[("response_code", "501"), ("response_flags", "DPE"), NOBODY],
    ),
    (
        "GET /up HTTP/1.1\r\nHost: shop\r\nConnection: upgrade, close\r\nUpgrade: foo\r\n\r\n",
        "\"GET /up HTTP/1.1\" 403 - upgrade_failed ",
        &[("response_code", "403"), ("response_flags", "-"), NOBODY],
    ),
    (
        "GET / HTTP/1.0\r\nHost: shop\r\n\r\n",
        "\"- - HTTP/1.1\" 426 - low_version ",
        &[("response_code", "426"), ("response_flags", "-"), NOBODY],
    ),
];

/// A page of the waypoint's loopback.
pub(crate) fn page(waypoint: &Waypoint, port: u16, path: &str) -> String {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let answer = waypoint.pod.run(|| http::get(to, path, Duration::from_secs(10))).unwrap();
    answer.map_or_else(|error| error.to_string(), |answer| answer.body)
}

/// The sum of a metric's samples that have all of these labels.
pub(crate) fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let head = format!("{name}{{");
    let has = |line: &&str| labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")));
    let values = text.lines().filter(|line| line.starts_with(&head)).filter(has);
    values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

fn answer(head: &str) -> String {
    if head.contains("/garbage") {
        return "what is this\r\n\r\n".to_owned();
    }
    if head.contains("/five") {
        return "HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nwell".to_owned();
    }
    if head.contains("/slow") || head.contains("/hold") {
        culvert::lab::pause(Duration::from_secs(3));
    }
    if head.contains("/echo.Echo/") {
        let body = "\0\0\0\0\u{1}a\0\0\0\0\0\0\0\0\0\u{2}bc";
        let head = "content-type: application/grpc\r\ngrpc-status: 5";
        return format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{head}\r\n\r\n{body}", body.len());
    }
    "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell".to_owned()
}

/// What the waypoint has told, against what it should have.
fn problems(waypoint: &Waypoint, client: &Pod, metrics: &str) -> Vec<String> {
    let (log, mut problems) = (waypoint.log(), Vec::new());
    let mut told = |asked: &str, line: &str, to: &str, labels: &[(&str, &str)]| {
        let lines: Vec<&str> = log.lines().filter(|text| text.contains(asked)).collect();
        let [found] = &lines[..] else { return problems.push(format!("{asked}: {lines:#?}")) };
        let from = format!("{VIP}:80 {}:", client.v4);
        if ![line, to, &from].iter().all(|part| found.contains(*part)) {
            problems.push(format!("{line} ... {to} ... {from}\n  {found}"));
        }
        let service = ("destination_service", "shop.default.svc.cluster.local");
        let own = [("reporter", "waypoint"), ("source_workload", "client"), service];
        let all: Vec<_> = own.into_iter().chain(labels.iter().copied()).collect();
        if metric(metrics, "istio_requests_total", &all) < 1.0 {
            problems.push(format!("no istio_requests_total with {all:?}"));
        }
    };
    for case in TABLE {
        told(&format!("\"{} HTTP/1.1\"", case.asked), case.line, case.to, case.labels);
    }
    for (_, line, labels) in MALFORMED {
        told(line, line, "\"-\" - - ", labels);
    }
    let grpc =
        [("request_protocol", "grpc"), ("response_code", "200"), ("grpc_response_status", "5"), PICKED];
    told("\"POST /echo.Echo/Say HTTP/1.1\"", "200 - via_upstream - \"-\" 13 18 ", SHOP, &grpc);
    problems
}

#[test]
fn each_request_is_told_as_envoy_and_istio_tell_it() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let _outside = mesh.outside("b", "outside");
    let place = pod(&mut mesh, "b");
    let _server = answering(&shop, 8080, answer);
    let services = [
        bound("shop", VIP, ("app", "shop"), HTTP),
        bound("dead", "10.96.0.21", ("app", "outside"), &[("http", 80, "8090")]),
        bound("refused", "10.96.0.23", ("app", "shop"), &[("http", 80, "8090")]),
        bound("empty", "10.96.0.22", ("app", "nobody"), HTTP),
    ];
    mesh.put("services.yaml", &services.concat());
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.put("routes.yaml", ROUTES);
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let to = (VIP.parse().unwrap(), 80);
    let logs = || waypoint.logs(&mesh);
    let send = |line: &str| {
        ask(
            &client,
            to,
            &format!("{line} HTTP/1.1\r\nHost: shop\r\nUser-Agent: me\r\nConnection: close\r\n\r\n"),
        )
    };
    let first = || send("GET /late").ok().filter(|answer| answer.contains("200 OK"));
    wait_until("an answer", SOON, first, logs).unwrap();
    for told in TABLE {
        send(told.asked).unwrap();
    }
    for (bytes, ..) in MALFORMED {
        ask(&client, to, bytes).unwrap();
    }
    let messages = "\0\0\0\0\u{3}abc\0\0\0\0\0";
    let grpc = format!(
        "POST /echo.Echo/Say HTTP/1.1\r\nHost: shop\r\nContent-Type: application/grpc\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{messages}",
        messages.len()
    );
    ask(&client, to, &grpc).unwrap();
    let mut gone = connect(&client, to).unwrap();
    gone.write_all(b"GET /hold HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
    drop(gone);

    let last = || waypoint.log().contains("\"GET /hold HTTP/1.1\" ").then_some(());
    wait_until("the last line", SOON, last, logs).unwrap();
    let (log, metrics) = (waypoint.log(), page(&waypoint, 15000, "/stats/prometheus"));
    let problems = problems(&waypoint, &client, &metrics);
    assert!(problems.is_empty(), "{}\n{metrics}\n{}", problems.join("\n"), logs());

    let gone = "\"GET /hold HTTP/1.1\" 0 DC downstream_remote_disconnect - ";
    let labels = [("response_code", "0"), ("response_flags", "DC")];
    assert!(
        log.contains(gone) && metric(&metrics, "istio_requests_total", &labels) == 1.0,
        "{metrics}\n{}",
        logs()
    );
    let well = log.lines().find(|line| line.contains("GET /ok ")).unwrap();
    assert!(well.ends_with(" - plain") && well.contains(" \"-\" \"me\" \""), "user agent and route: {well}");
    let id = well.split('"').nth(9).unwrap();
    assert_eq!((id.len(), id.matches('-').count()), (36, 4), "the id that was made: {well}");
    assert!(metrics.contains("connection_security_policy=\"mutual_tls\""), "{metrics}");
    for (name, count) in [("istio_request_messages_total", 2.0), ("istio_response_messages_total", 3.0)] {
        assert_eq!(metric(&metrics, name, &[("reporter", "waypoint"), PICKED]), count, "{metrics}");
    }
    let mirrored = page(&waypoint, 15020, "/metrics");
    assert!(mirrored.contains("istio_request_duration_milliseconds_bucket"), "the same on port 15020");
    drop(waypoint); // it keeps connections for the next request
    mesh.finish();
}

/// Checks the lines of the connections that the test has made.
fn lines_of_tcp(waypoint: &Waypoint, shop: &Pod) {
    let lines = || {
        let log = waypoint.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let lines: Vec<_> = lines.filter(|line| line.get("upstream_cluster").is_some()).collect();
        let is_told = |to: &str| lines.iter().any(|line| line["downstream_local_address"] == to);
        let all = ["10.96.0.23:9000", "10.96.0.23:9001", "10.96.0.23:9003", "10.96.0.24:9000"];
        all.into_iter().all(is_told).then_some(lines)
    };
    let lines = wait_until("a line of each", SOON, lines, || waypoint.log()).unwrap();
    let of = |cluster: &str| {
        let mut found = lines.iter().filter(|line| line["upstream_cluster"] == cluster);
        found.next().unwrap_or_else(|| panic!("a line of {cluster}: {lines:#?}"))
    };
    let well = of("inbound-vip|9000|tcp|raw.default.svc.cluster.local");
    for (key, value) in [
        ("response_flags", "-".into()),
        ("response_code", 0.into()),
        ("bytes_received", 5.into()),
        ("bytes_sent", 5.into()),
        ("upstream_host", format!("{}:9000", shop.v4).into()),
        ("downstream_local_address", "10.96.0.23:9000".into()),
        ("method", serde_json::Value::Null),
        ("connection_termination_details", serde_json::Value::Null),
    ] {
        assert_eq!(well[key], value, "{key} of {well}");
    }
    assert_eq!(of("inbound-vip|9003|tcp|raw.default.svc.cluster.local")["bytes_sent"], 9);
    let unreached = of("inbound-vip|9001|tcp|raw.default.svc.cluster.local");
    assert_eq!(unreached["response_flags"], "UF,URX", "{unreached}");
    assert!(unreached["upstream_transport_failure_reason"].is_string(), "{unreached}");
    let denied = lines.iter().find(|line| line["downstream_local_address"] == "10.96.0.24:9000").unwrap();
    let reason = "rbac_access_denied_matched_policy[ns[default]-policy[nobody]-rule[0]]";
    assert_eq!(denied["connection_termination_details"], reason, "{denied}");
}

#[test]
fn tcp_connections_are_told_while_they_live_and_once_at_their_end() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "raw"));
    let place = pod(&mut mesh, "b");
    let _echo = Server::echo(&shop, 9000);
    let _greeting = Server::greeting(&shop, 9003, "220 hello");
    let ports = [("tcp-echo", 9000, "9000"), ("tcp-none", 9001, "9001"), ("mine", 9003, "9003")];
    let shut = bound("shut", "10.96.0.24", ("app", "raw"), &[("tcp-echo", 9000, "9000")]);
    mesh.put("services.yaml", &format!("{}{shut}", bound("raw", "10.96.0.23", ("app", "raw"), &ports)));
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    let deny = "targetRefs: [{kind: Service, group: \"\", name: shut}]\naction: DENY\nrules: [{}]\n";
    let deny = culvert_tests::documents::policy("AuthorizationPolicy", "default", "nobody", deny);
    mesh.put("policy.yaml", &deny);
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &["--access-log", "json"]);
    let vip = |last: u8| [10, 96, 0, last].into();
    let named = |service: &str| format!("{service}.default.svc.cluster.local");
    let count = |metrics: &str, name: &str, service: &str, labels: &[(&str, &str)]| {
        let host = named(service);
        let own =
            [("reporter", "waypoint"), ("destination_service", host.as_str()), ("request_protocol", "tcp")];
        let all: Vec<_> = own.into_iter().chain(labels.iter().copied()).collect();
        metric(metrics, name, &all)
    };
    let mut stream = connect(&client, (vip(23), 9000)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    let metrics = page(&waypoint, 15020, "/stats/prometheus");
    let to = ("destination_workload", "raw");
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1.0),
        ("istio_tcp_connections_closed_total", 0.0),
        ("istio_tcp_received_bytes_total", 5.0),
        ("istio_tcp_sent_bytes_total", 5.0),
    ] {
        assert_eq!(
            count(&metrics, name, "raw", &[to, ("source_workload", "client")]),
            value,
            "{name} {metrics}"
        );
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut heard).unwrap(), 0);
    let _refused = ask(&client, (vip(23), 9001), "hello");
    let _denied = ask(&client, (vip(24), 9000), "hello");
    let mut first = connect(&client, (vip(23), 9003)).unwrap();
    let mut said = String::new();
    first.read_to_string(&mut said).unwrap();
    assert_eq!(said, "220 hello");
    drop(first);

    lines_of_tcp(&waypoint, &shop);
    let metrics = page(&waypoint, 15000, "/stats/prometheus");
    let closed = |service, flag| {
        count(&metrics, "istio_tcp_connections_closed_total", service, &[("response_flags", flag)])
    };
    assert_eq!(closed("raw", "-"), 2.0, "{metrics}");
    // The client's agent may try these again.
    assert!(closed("raw", "UF,URX") >= 1.0 && closed("shut", "-") >= 1.0, "{metrics}");
    let refusals =
        metric(&metrics, "culvert_refusals_total", &[("class", "policy"), ("reporter", "waypoint")]);
    assert_eq!(refusals, closed("shut", "-"), "{metrics}");
    assert_eq!(metric(&metrics, "istio_requests_total", &[]), 0.0, "no request was one");
    drop(waypoint);
    mesh.finish();
}

/// What a waypoint has under way when it is ended is told of too.
#[test]
fn a_drain_tells_of_what_it_cuts() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let place = pod(&mut mesh, "b");
    let silent = Server::start(&shop, 8080, |mut stream, seen| {
        let mut head = [0; 64];
        seen.add(stream.read(&mut head).unwrap_or(0));
        let _rest = stream.read_to_end(&mut Vec::new());
    });
    mesh.put("services.yaml", &bound("shop", VIP, ("app", "shop"), HTTP));
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.start(&[]);
    let mut waypoint = Waypoint::start(&mesh, place, &["--termination-deadline", "1s"]);
    let mut stream = connect(&client, (VIP.parse().unwrap(), 80)).unwrap();
    stream.write_all(get("/under-way", "").as_bytes()).unwrap();
    let arrived = || (silent.seen.bytes() > 0).then_some(());
    wait_until("the request", SOON, arrived, || waypoint.log()).unwrap();
    waypoint.process.terminate(SOON).unwrap();
    let log = waypoint.log();
    let told: Vec<&str> =
        log.lines().filter(|line| line.contains("\"GET /under-way HTTP/1.1\" 0 ")).collect();
    assert_eq!(told.len(), 1, "{log}");
    drop((stream, waypoint));
    mesh.finish();
}

/// The headers of a trace go through as they came; a span is kept if the caller's trace is recorded, else by chance.
#[test]
fn traces_go_through_and_spans_are_kept() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let place = pod(&mut mesh, "b");
    let _server = culvert_tests::waypoint::server(&shop, 8080, "shop");
    mesh.put("services.yaml", &bound("shop", VIP, ("app", "shop"), HTTP));
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &["--trace-sampling", "0"]);
    let logs = || waypoint.logs(&mesh);
    let send = |path: &str, headers: &str| ask(&client, (VIP.parse().unwrap(), 80), &get(path, headers));
    let first = || send("/", "").ok().filter(|answer| answer.contains("200 OK"));
    wait_until("an answer", SOON, first, logs).unwrap();
    let spans = |query: &str| {
        let text = page(&waypoint, 15000, &format!("/culvert/spans?{query}"));
        let page: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        page["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
    };
    let id = |last: u8| format!("0af7651916cd43dd8448eb211c8031{last:02x}");
    let parent = "b7ad6b7169203331";
    for (last, headers, is_kept) in [
        (1, format!("traceparent: 00-{}-{parent}-01\r\ntracestate: a=b,c=d\r\n", id(1)), true),
        (2, format!("traceparent: 00-{}-{parent}-00\r\n", id(2)), false),
        (3, format!("b3: {}-{parent}-1\r\n", id(3)), true),
        (4, format!("x-b3-traceid: {}\r\nx-b3-spanid: {parent}\r\nx-b3-sampled: 1\r\n", id(4)), true),
        (5, format!("x-b3-traceid: {}\r\nx-b3-spanid: {parent}\r\n", id(5)), false),
    ] {
        let answer = send("/x?y", &headers).unwrap();
        for line in headers.lines() {
            assert!(answer.contains(line), "{line} goes through: {answer}");
        }
        let kept = || {
            let spans = spans(&format!("trace={}", id(last)));
            (spans.len() == usize::from(is_kept)).then_some(spans)
        };
        let kept = wait_until("the span", SOON, kept, logs).unwrap();
        let Some(span) = kept.first() else { continue };
        assert_eq!((&span["parentSpanId"], &span["traceId"]), (&parent.into(), &id(last).into()), "{span}");
        assert_eq!(span["name"], "shop.default.svc.cluster.local:80/*");
        let has = |key: &str, value: &str| {
            let all = span["attributes"].as_array().unwrap();
            all.iter().any(|one| one["key"] == key && one["value"]["stringValue"] == value)
        };
        for (key, value) in [
            ("http.status_code", "200"),
            ("http.url", "http://shop/x?y"),
            ("upstream_cluster", SHOP),
            ("istio.source_workload", "client"),
            ("istio.destination_workload", "shop"),
        ] {
            assert!(has(key, value), "{key}={value} in {span}");
        }
    }
    assert_eq!(spans("").len(), 3, "nothing by chance");
    drop(waypoint);
    mesh.finish();
}

/// An endpoint that fails once is left alone; a route of which one parent is not there.
const EJECTS: &str = r#"---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: default}
spec:
  host: shop
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 600s, maxEjectionPercent: 100}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: default}
spec:
  parentRefs: [{group: "", kind: Service, name: shop}, {group: "", kind: Service, name: gone}]
  rules: [{name: all, backendRefs: [{name: shop, port: 80}]}]
"#;

/// Checks the pages of the waypoint whose only endpoint is ejected.
fn pages_of_ejected(waypoint: &Waypoint) {
    let json = |path: &str| serde_json::from_str::<serde_json::Value>(&page(waypoint, 15000, path)).unwrap();
    let clusters = json("/clusters");
    let own = clusters.as_array().unwrap().iter().find(|cluster| cluster["name"] == SHOP).unwrap();
    assert_eq!((&own["ejected"], &own["endpoints"][0]["isEjected"]), (&1.into(), &true.into()), "{own:#}");
    let dump = json("/config_dump");
    assert_eq!(
        dump["services"][0]["ports"][0]["routes"][0]["from"], "HTTPRoute default/shop rule 0",
        "{dump:#}"
    );
    let statuses = json("/culvert/statuses");
    let route = statuses.as_array().unwrap().iter().find(|one| one["kind"] == "HTTPRoute").unwrap();
    let parents = route["parents"].as_array().unwrap();
    assert_eq!(parents.len(), 2, "{route:#}");
    let accepted = |parent: &serde_json::Value| {
        let all = parent["conditions"].as_array().unwrap();
        all.iter().find(|one| one["type"] == "Accepted").unwrap()["status"].clone()
    };
    let mut both: Vec<_> = parents.iter().map(accepted).map(|status| status.to_string()).collect();
    both.sort();
    assert_eq!(both, ["\"False\"", "\"True\""], "{route:#}");
    let index = page(waypoint, 15000, "/");
    assert!(index.contains("<title>Culvert waypoint</title>") && index.contains("/culvert/spans"), "{index}");
}

/// A running waypoint is asked what it does with a request; it knows more than its files say.
#[test]
fn a_running_waypoint_says_why_and_what_it_has() {
    let mut mesh = Mesh::new();
    let (client, shop) = (mesh.captured("a", "client"), mesh.captured("b", "shop"));
    let place = pod(&mut mesh, "b");
    let _server = answering(&shop, 8080, |_| "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned());
    mesh.put("services.yaml", &bound("shop", VIP, ("app", "shop"), HTTP));
    mesh.put("gateway.yaml", &gateway(&place, "all"));
    mesh.put("rule.yaml", EJECTS);
    mesh.start(&[]);
    let waypoint = Waypoint::start(&mesh, place, &[]);
    let why = |path: &str| {
        let program = culvert_tests::binary::culvert();
        let command = waypoint.pod.command(program.to_str().unwrap());
        let args = [
            "why",
            "default/client",
            "shop.default:80",
            "--path",
            path,
            "--waypoint",
            "127.0.0.1",
            "-o",
            "json",
        ];
        let done = command.args(args).finish(Duration::from_secs(30)).unwrap();
        let answer = serde_json::from_str::<serde_json::Value>(&done.stdout);
        (done.status.code(), answer.unwrap_or_else(|e| panic!("{e}: {}{}", done.stdout, done.stderr)))
    };
    let (status, before) = why("/x");
    assert_eq!((status, &before["http"][0]["verdict"]), (Some(0), &"forwarded".into()), "{before:#}");
    assert_eq!(before["http"][0]["route"]["origin"], "HTTPRoute default/shop rules[0]", "{before:#}");
    let unmet = before["conditions"].to_string();
    assert!(unmet.contains("HTTPRoute default/shop") && unmet.contains("gone"), "{unmet}");

    let failed = || {
        let answer = ask(&client, (VIP.parse().unwrap(), 80), &get("/x", "")).ok()?;
        answer.contains("no healthy upstream").then_some(())
    };
    wait_until("the only endpoint to be ejected", SOON, failed, || waypoint.log()).unwrap();
    let (status, after) = why("/x");
    let http = &after["http"][0];
    assert_eq!(
        (status, &http["verdict"], &http["flag"]),
        (Some(1), &"refused".into(), &"UH".into()),
        "{after:#}"
    );
    assert!(http["backends"][0]["endpoints"].to_string().contains("ejected"), "{after:#}");

    pages_of_ejected(&waypoint);
    drop(waypoint);
    mesh.finish();
}
