use super::super::encode::Scrape;
use super::super::fixtures::*;
use super::*;
use crate::telemetry::table::{FORGET_SECONDS, IDLE_SECONDS};

fn text(traffic: &Traffic) -> String {
    let mut scrape = Scrape::new(false);
    traffic.encode(&mut scrape);
    scrape.finish()
}

#[test]
fn labels_have_the_names_order_and_sources_of_the_reference() {
    let traffic = Traffic::new();
    let pair = traffic.pair(&outbound(), 0);
    pair.open(0);
    pair.add_received(84);
    pair.add_sent(175);
    pair.close(ResponseFlag::Deny);
    let labels = |flag: &str| {
        format!(
            "reporter=\"source\",source_workload=\"web-deploy\",source_canonical_service=\"web-app\",\
             source_canonical_revision=\"v2\",source_workload_namespace=\"front\",\
             source_principal=\"spiffe://cluster.local/ns/front/sa/web\",source_app=\"web-app\",\
             source_version=\"v2\",source_cluster=\"Kubernetes\",\
             destination_service=\"cart.shop.svc.cluster.local\",destination_service_namespace=\"shop\",\
             destination_service_name=\"cart\",destination_workload=\"cart-deploy\",\
             destination_canonical_service=\"cart-app\",destination_canonical_revision=\"v2\",\
             destination_workload_namespace=\"shop\",\
             destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",destination_app=\"cart-app\",\
             destination_version=\"v2\",destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",\
             response_flags=\"{flag}\",connection_security_policy=\"mutual_tls\",source_region=\"eu\",\
             source_zone=\"eu-1\",destination_region=\"eu\",destination_zone=\"unknown\""
        )
    };
    let (open, denied) = (labels("-"), labels("DENY"));
    assert_eq!(
        text(&traffic),
        format!(
            "# HELP istio_tcp_connections_opened_total TCP connections opened.\n\
             # TYPE istio_tcp_connections_opened_total counter\n\
             istio_tcp_connections_opened_total{{{open}}} 1\n\
             # HELP istio_tcp_connections_closed_total TCP connections closed, by how they ended.\n\
             # TYPE istio_tcp_connections_closed_total counter\n\
             istio_tcp_connections_closed_total{{{denied}}} 1\n\
             # HELP istio_tcp_received_bytes_total Bytes from client to server.\n\
             # TYPE istio_tcp_received_bytes_total counter\n\
             istio_tcp_received_bytes_total{{{open}}} 84\n\
             # HELP istio_tcp_sent_bytes_total Bytes from server to client.\n\
             # TYPE istio_tcp_sent_bytes_total counter\n\
             istio_tcp_sent_bytes_total{{{open}}} 175\n\
             # HELP istio_tcp_connections_failed_total TCP connections that did not end well.\n\
             # TYPE istio_tcp_connections_failed_total counter\n\
             istio_tcp_connections_failed_total{{{denied}}} 1\n"
        )
    );
}

#[test]
fn nothing_known_is_unknown_and_has_no_locality() {
    let traffic = Traffic::new();
    traffic.pair(&unknown(), 0).open(0);
    let text = text(&traffic);
    let line = text.lines().nth(2).unwrap();
    let unknowns: Vec<&str> = line.split(',').filter(|l| l.contains("=\"unknown\"")).collect();
    assert_eq!(unknowns.len(), 8 + 3 + 8 + 1, "{line}");
    assert!(line.ends_with(
        "request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"unknown\"} 1"
    ));
}

#[test]
fn hostile_label_values_are_escaped() {
    let mut flow = outbound();
    let mut workload = (*workload("front", "web", "eu-1")).clone();
    workload.cluster = "a\\b\"c\nd} 7".into();
    flow.source = Some(workload.into());
    let traffic = Traffic::new();
    traffic.pair(&flow, 0).open(0);
    let text = text(&traffic);
    assert!(text.contains(",source_cluster=\"a\\\\b\\\"c\\nd} 7\",destination_service="), "{text}");
    assert_eq!(text.lines().filter(|l| !l.starts_with('#')).count(), 3);
}

fn numbered(n: usize) -> Flow {
    Flow { destination_identity: Some(identity("shop", &format!("cart-{n}"))), ..unknown() }
}

#[test]
fn the_table_is_bounded_and_forgets_idle_pairs_only() {
    let traffic = Traffic::new();
    let open = traffic.pair(&numbered(0), 0);
    for n in 1..MAX_PAIRS {
        traffic.pair(&numbered(n), 0);
    }
    let over = traffic.pair(&numbered(MAX_PAIRS), 1);
    over.open(1);
    assert!(over.shared);
    assert!(Arc::ptr_eq(&over, &traffic.pair(&numbered(MAX_PAIRS + 1), 1)));
    assert!(!traffic.pair(&numbered(7), 1).shared, "a pair that is known keeps its place");
    let overflow = text(&traffic);
    let line = overflow.lines().find(|l| l.contains("destination_workload=\"overflow\"")).unwrap();
    assert!(line.ends_with(
        "destination_cluster=\"overflow\",request_protocol=\"tcp\",response_flags=\"-\",\
         connection_security_policy=\"unknown\"} 1"
    ));

    let later = IDLE_SECONDS + 1;
    let fresh = traffic.pair(&numbered(MAX_PAIRS), later);
    assert!(!fresh.shared, "idle pairs made room");
    assert_eq!(traffic.0.sorted().len(), 3, "two pairs, and what has found no place");
    assert!(Arc::ptr_eq(&open, &traffic.pair(&numbered(0), later)), "an open one is kept");
}

#[test]
fn what_a_client_says_of_itself_is_bounded() {
    let mut said = (*workload("front", "web", "eu-1")).clone();
    said.cluster = "é".repeat(10_000).into();
    said.identity = identity(&"n".repeat(253), &"s".repeat(253));
    let flow = Flow { destination: Some(said.into()), ..outbound() };
    let (labels, _) = render(&flow);
    assert!(labels.contains(&format!("destination_cluster=\"{}\"", "é".repeat(128))), "{labels}");
    assert!(labels.contains(&"s".repeat(253)), "{labels}");
    assert!(labels.len() < 4096);
}

#[test]
fn bytes_of_many_threads_add_up() {
    let traffic = Traffic::new();
    let pair = traffic.pair(&outbound(), 0);
    std::thread::scope(|scope| {
        for _ in 0..2 * SHARDS {
            scope.spawn(|| (0..1000).for_each(|_| (pair.add_received(2), pair.add_sent(3)).0));
        }
    });
    let text = text(&traffic);
    let value = |name: &str| text.lines().find(|l| l.starts_with(name)).unwrap().rsplit(' ').next().unwrap();
    assert_eq!(value("istio_tcp_received_bytes_total{"), "16000");
    assert_eq!(value("istio_tcp_sent_bytes_total{"), "24000");
}

#[test]
fn what_nobody_uses_for_hours_is_forgotten_unless_it_is_open() {
    let traffic = Traffic::new();
    let open = traffic.pair(&outbound(), 0);
    open.open(0);
    traffic.pair(&unknown(), 0).open(0);
    let series =
        || text(&traffic).lines().filter(|l| l.starts_with("istio_tcp_connections_opened_total{")).count();
    traffic.forget(FORGET_SECONDS - 1);
    assert_eq!(series(), 2);
    traffic.forget(FORGET_SECONDS);
    assert_eq!(series(), 1);
    drop(open);
    traffic.forget(FORGET_SECONDS);
    assert_eq!(series(), 0);
    traffic.pair(&unknown(), FORGET_SECONDS).open(FORGET_SECONDS);
    assert_eq!(series(), 1);
}

/// A waypoint's connections have the labels that Istio's waypoint gives them, and none of a locality.
#[test]
fn a_waypoint_says_what_istio_says_there() {
    let traffic = Traffic::new();
    let known = Flow { reporter: Reporter::Waypoint, ..outbound() };
    let stranger = Flow { source: None, source_identity: Some(identity("far", "away")), ..known.clone() };
    for flow in [&known, &stranger] {
        let pair = traffic.pair(flow, 0);
        pair.open(0);
        pair.close(ResponseFlag::NoHealthyUpstream);
    }
    let text = text(&traffic);
    for part in [
        "reporter=\"waypoint\",source_workload=\"web-deploy\",source_canonical_service=\"web-app\",\
         source_canonical_revision=\"v2\",source_workload_namespace=\"front\",",
        "reporter=\"waypoint\",source_workload=\"unknown\",source_canonical_service=\"unknown\",\
         source_canonical_revision=\"latest\",source_workload_namespace=\"far\",\
         source_principal=\"spiffe://cluster.local/ns/far/sa/away\",source_app=\"unknown\",source_version=\"unknown\"",
        "response_flags=\"UH\",connection_security_policy=\"mutual_tls\"} 1",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("_region"), "{text}");
}
