use super::super::fixtures::*;
use super::super::{LogFormat, Side};
use super::*;

fn now() -> Instant {
    Instant::now()
}

/// Value of the one sample whose line starts so.
fn sample(telemetry: &Telemetry, start: &str) -> Option<u64> {
    let text = telemetry.metrics().encode(false);
    let line = text.lines().find(|l| l.starts_with(start))?;
    line.rsplit(' ').next().unwrap().parse().ok()
}

#[test]
fn a_good_connection_has_one_line_in_the_documented_order() {
    let (telemetry, sink) = telemetry(LogFormat::Plain, "info");
    let connection = telemetry.open(outbound(), now());
    connection.counts().add_received(84);
    connection.counts().add_sent(175);
    connection.finish(Ok(()));
    assert_eq!(
        sink.lines(telemetry.logger()),
        [
            "info\taccess\tconnection complete\tsrc.addr=10.0.0.1:40000 src.workload=\"web-0\" src.namespace=\"front\" \
          src.identity=\"spiffe://cluster.local/ns/front/sa/web\" src.cluster=\"Kubernetes\" \
          dst.addr=10.0.1.2:15008 dst.hbone_addr=10.0.1.2:8080 dst.service=\"cart.shop.svc.cluster.local\" \
          dst.workload=\"cart-0\" dst.namespace=\"shop\" dst.identity=\"spiffe://cluster.local/ns/shop/sa/cart\" \
          dst.cluster=\"Kubernetes\" direction=\"outbound\" bytes_sent=84 bytes_recv=175 duration=\"*\""
        ]
    );
}

#[test]
fn json_has_the_same_fields() {
    let (telemetry, sink) = telemetry(LogFormat::Json, "info");
    let mut flow = outbound();
    (flow.reporter, flow.trace) = (Reporter::Destination, Some(0x4bf9_2f35_77b3_4da6));
    let connection = telemetry.open(flow, now());
    connection.counts().add_received(84);
    connection.counts().add_sent(175);
    connection.finish(Err(denied()));
    assert_eq!(
        sink.lines(telemetry.logger()),
        ["{\"level\":\"error\",\"time\":\"*\",\"scope\":\"access\",\"message\":\"connection complete\",\
          \"src.addr\":\"10.0.0.1:40000\",\"src.workload\":\"web-0\",\"src.namespace\":\"front\",\
          \"src.identity\":\"spiffe://cluster.local/ns/front/sa/web\",\"src.cluster\":\"Kubernetes\",\
          \"dst.addr\":\"10.0.1.2:15008\",\"dst.hbone_addr\":\"10.0.1.2:8080\",\
          \"dst.service\":\"cart.shop.svc.cluster.local\",\"dst.workload\":\"cart-0\",\"dst.namespace\":\"shop\",\
          \"dst.identity\":\"spiffe://cluster.local/ns/shop/sa/cart\",\"dst.cluster\":\"Kubernetes\",\
          \"direction\":\"inbound\",\"bytes_sent\":175,\"bytes_recv\":84,\"duration\":\"*\",\
          \"error\":\"denied by policy shop/only-web\",\"denial.id\":\"0a1b2c3d\",\"denial.class\":\"policy\",\
          \"denial.policy\":\"shop/only-web\",\"trace.id\":\"00000000000000004bf92f3577b34da6\"}"]
    );
}

#[test]
fn what_is_not_known_is_left_out() {
    let (telemetry, sink) = telemetry(LogFormat::Plain, "info");
    telemetry.open(unknown(), now()).finish(Ok(()));
    assert_eq!(
        sink.lines(telemetry.logger()),
        ["info\taccess\tconnection complete\tsrc.addr=[fd00::1]:40000 dst.addr=[fd00::2]:80 \
          direction=\"outbound\" bytes_sent=0 bytes_recv=0 duration=\"*\""]
    );
}

#[test]
fn plaintext_shows_identities_only_when_it_was_denied() {
    for (result, expected) in [(Ok(()), false), (Err(denied()), true)] {
        let (telemetry, sink) = telemetry(LogFormat::Plain, "info");
        let flow = Flow { security: Security::Unknown, ..outbound() };
        telemetry.open(flow, now()).finish(result);
        let lines = sink.lines(telemetry.logger());
        assert_eq!(lines[0].contains("src.identity=\"spiffe://cluster.local/ns/front/sa/web\""), expected);
        assert_eq!(lines[0].contains("dst.identity=\"spiffe://cluster.local/ns/shop/sa/cart\""), expected);
    }
}

#[test]
fn refusals_are_remembered_with_both_ends_and_good_ends_are_not() {
    let (telemetry, _sink) = telemetry(LogFormat::Plain, "off");
    telemetry.open(outbound(), now()).finish(Ok(()));
    let broken = |flag, error: &str| Err(Failure { flag, error: error.into(), denial: None });
    telemetry.open(outbound(), now()).finish(broken(ResponseFlag::Connect, "the app hung up"));
    assert_eq!(telemetry.denials().recent(9), []);
    telemetry.open(outbound(), now()).finish(Err(denied()));
    telemetry.open(unknown(), now()).finish(broken(ResponseFlag::TlsFailure, "somebody else"));
    early(&telemetry, &denied());
    let recent = telemetry.denials().recent(9);
    assert_eq!(recent.iter().map(|d| d.class).collect::<Vec<_>>(), ["policy", "tls", "policy"]);
    let found = telemetry.denials().find("0a1b2c3d");
    assert_eq!(found.len(), 2, "the routed one and the early one");
    let routed = &found[1];
    assert_eq!(routed.source.workload.as_deref(), Some("front/web-0"));
    assert_eq!(routed.source.identity.as_ref(), Some(&identity("front", "web")));
    assert_eq!(routed.destination.workload.as_deref(), Some("shop/cart-0"));
    assert_eq!(routed.service.as_deref(), Some("cart.shop.svc.cluster.local"));
    assert_eq!(routed.policy.as_deref(), Some("shop/only-web"));
    assert_eq!((recent[1].id.as_deref(), recent[1].policy.as_deref()), (None, None));
}

#[test]
fn opening_is_told_at_debug_only() {
    let (telemetry, sink) = telemetry(LogFormat::Plain, "access=debug");
    telemetry.open(unknown(), now()).finish(Ok(()));
    let lines = sink.lines(telemetry.logger());
    assert_eq!(lines.len(), 2);
    assert_eq!(
        lines[0],
        "debug\taccess\tconnection opened\tsrc.addr=[fd00::1]:40000 dst.addr=[fd00::2]:80 direction=\"outbound\""
    );
}

#[test]
fn the_filter_silences_the_access_log_and_nothing_else() {
    for (filter, lines) in [("access=off", 0), ("off", 0), ("error", 1), ("warn", 2), ("off,access=info", 3)]
    {
        let (telemetry, sink) = telemetry(LogFormat::Plain, filter);
        telemetry.open(outbound(), now()).finish(Ok(()));
        telemetry.open(outbound(), now()).finish(Err(denied()));
        early(&telemetry, &denied());
        assert_eq!(sink.lines(telemetry.logger()).len(), lines, "{filter}");
        let opened = sample(&telemetry, "istio_tcp_connections_opened_total{reporter=\"source\"");
        assert_eq!(opened, Some(2), "{filter}");
    }
}

fn early(telemetry: &Telemetry, failure: &Failure) {
    let client = identity("front", "web");
    telemetry.early_failure(&Early {
        reporter: Reporter::Destination,
        src_addr: "10.0.0.1:40000".parse().unwrap(),
        dst_addr: Some("10.0.1.2:15008".parse().unwrap()),
        source_identity: Some(&client),
        destination_identity: None,
        failure,
    });
}

#[test]
fn an_early_failure_is_logged_and_counted_as_a_refusal_only() {
    let (telemetry, sink) = telemetry(LogFormat::Plain, "info");
    early(&telemetry, &denied());
    let tls = Failure { flag: ResponseFlag::TlsFailure, error: "bad \"cert\"\n".into(), denial: None };
    early(&telemetry, &tls);
    let head = "warn\taccess\tconnection failed\tsrc.addr=10.0.0.1:40000 \
                src.identity=\"spiffe://cluster.local/ns/front/sa/web\" dst.addr=10.0.1.2:15008 \
                direction=\"inbound\" error=";
    assert_eq!(
        sink.lines(telemetry.logger()),
        [
            format!(
                "{head}\"denied by policy shop/only-web\" denial.id=\"0a1b2c3d\" denial.class=\"policy\" \
                 denial.policy=\"shop/only-web\""
            ),
            format!("{head}\"bad \\\"cert\\\"\\n\""),
        ]
    );
    let text = telemetry.metrics().encode(false);
    assert!(!text.contains("istio_tcp_"), "{text}");
    assert!(
        text.contains("\nculvert_refusals_total{class=\"policy\",reporter=\"destination\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("\nculvert_refusals_total{class=\"tls\",reporter=\"destination\"} 1\n"), "{text}");
}

#[test]
fn a_connection_ends_once() {
    let (telemetry, sink) = telemetry(LogFormat::Plain, "info");
    telemetry.open(outbound(), now()).finish(Ok(()));
    telemetry.open(outbound(), now()).finish(Err(denied()));
    drop(telemetry.open(outbound(), now()));
    let lines = sink.lines(telemetry.logger());
    assert_eq!(lines.len(), 3);
    assert!(lines[2].starts_with("error\taccess\tconnection complete\t"));
    assert!(lines[2].ends_with(" error=\"connection closed due to connection drain\""), "{}", lines[2]);

    let text = telemetry.metrics().encode(false);
    let ends = |name: &str| {
        let of = |line: &&str| line.starts_with(&format!("{name}{{"));
        let flag = |line: &str| {
            line.split("response_flags=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
        };
        let value = |line: &str| line.rsplit(' ').next().unwrap().to_owned();
        text.lines().filter(of).map(|l| (flag(l), value(l))).collect::<Vec<_>>()
    };
    let pairs =
        |all: &[(&str, &str)]| all.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Vec<_>>();
    assert_eq!(ends("istio_tcp_connections_opened_total"), pairs(&[("-", "3")]));
    assert_eq!(
        ends("istio_tcp_connections_closed_total"),
        pairs(&[("-", "1"), ("DENY", "1"), ("CULVERT_DRAINING", "1")])
    );
    assert_eq!(
        ends("istio_tcp_connections_failed_total"),
        pairs(&[("DENY", "1"), ("CULVERT_DRAINING", "1")])
    );
    // A connection that the drain cuts was not refused.
    assert!(text.contains("\nculvert_refusals_total{class=\"policy\",reporter=\"source\"} 1\n"), "{text}");
    assert!(!text.contains("class=\"draining\""), "{text}");
}

#[test]
fn byte_counters_are_exact_underway_and_at_the_end() {
    let (telemetry, sink) = telemetry(LogFormat::Plain, "info");
    let told = || {
        let of = |name: &str| sample(&telemetry, &format!("istio_tcp_{name}_bytes_total{{")).unwrap();
        (of("received"), of("sent"))
    };
    let (connection, other) = (telemetry.open(outbound(), now()), telemetry.open(outbound(), now()));
    let counts = connection.counts();
    assert_eq!(told(), (0, 0));
    counts.add_received(1000);
    counts.add_sent(7);
    assert_eq!(told(), (1000, 7));
    other.counts().add_sent(5 << 30);
    counts.add_received(0);
    assert_eq!(told(), (1000, 7 + (5 << 30)));
    assert_eq!((counts.received(), counts.sent()), (1000, 7));
    counts.add_sent(3);
    connection.finish(Ok(()));
    drop(other);
    assert_eq!(told(), (1000, 10 + (5 << 30)));
    let lines = sink.lines(telemetry.logger());
    assert!(lines[0].contains(" bytes_sent=1000 bytes_recv=10 "), "{}", lines[0]);
    assert!(lines[1].contains(" bytes_sent=0 bytes_recv=5368709120 "), "{}", lines[1]);
}

#[test]
fn workers_share_the_counters_of_a_pair_and_processes_do_not() {
    let (one, _sink) = telemetry(LogFormat::Plain, "off");
    let (other, _sink) = telemetry(LogFormat::Plain, "off");
    let flow = outbound();
    for _ in 0..3 {
        one.open(flow.clone(), now()).finish(Ok(()));
        other.open(flow.clone(), now()).finish(Ok(()));
        // The same labels out of another revision of the state.
        one.open(outbound(), now()).finish(Ok(()));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| one.open(flow.clone(), now()).finish(Ok(())));
    });
    assert_eq!(sample(&one, "istio_tcp_connections_opened_total{"), Some(7));
    assert_eq!(sample(&other, "istio_tcp_connections_opened_total{"), Some(3));
}

#[test]
fn what_differs_in_any_label_is_counted_apart() {
    let (telemetry, _sink) = telemetry(LogFormat::Plain, "off");
    let base = outbound();
    let others = [
        base.clone(),
        Flow { reporter: Reporter::Destination, ..base.clone() },
        Flow { security: Security::Unknown, ..base.clone() },
        Flow { source: None, ..base.clone() },
        Flow { source_identity: None, ..base.clone() },
        Flow { source_identity: Some(identity("front", "other")), ..base.clone() },
        Flow { destination: None, ..base.clone() },
        Flow { destination_identity: Some(identity("front", "other")), ..base.clone() },
        Flow { service: None, ..base.clone() },
    ];
    for _ in 0..2 {
        for flow in &others {
            telemetry.open(flow.clone(), now()).finish(Ok(()));
        }
    }
    let text = telemetry.metrics().encode(false);
    let opened = text.lines().filter(|l| l.starts_with("istio_tcp_connections_opened_total{"));
    let values: Vec<_> = opened.map(|l| l.rsplit(' ').next().unwrap()).collect();
    assert_eq!(values, vec!["2"; others.len()]);
}

#[test]
fn what_lives_is_counted_until_it_is_dropped() {
    let (telemetry, _sink) = telemetry(LogFormat::Plain, "off");
    let metrics = telemetry.metrics();
    let (socket, tunnel) = (metrics.socket(Reporter::Source), metrics.tunnel(Side::Server));
    assert_eq!(sample(&telemetry, "istio_tcp_sockets_open{reporter=\"source\"} "), Some(1));
    assert_eq!(sample(&telemetry, "culvert_hbone_tunnels_open{side=\"server\"} "), Some(1));
    drop((socket, tunnel));
    assert_eq!(sample(&telemetry, "istio_tcp_sockets_open{reporter=\"source\"} "), Some(0));
    assert_eq!(sample(&telemetry, "culvert_hbone_tunnels_open{side=\"server\"} "), Some(0));
}
