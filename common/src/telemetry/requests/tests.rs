use super::*;
use crate::telemetry::fixtures::{identity, request, service, workload};
use crate::telemetry::table::FORGET_SECONDS;

fn text(requests: &Requests) -> String {
    requests.pieces(false).collect()
}

#[test]
fn a_request_is_counted_under_the_labels_of_its_way() {
    let requests = Requests::new();
    let (web, cart, shop) = (workload("front", "web", ""), workload("shop", "cart", ""), service());
    let between = Between { destination: Some(&cart), service: Some(&shop), ..request(&web).between };
    let ended = EndedRequest { between, status: 200, grpc: None, flags: "-", ..request(&web) };
    requests.count(&ended, Instant::now());
    requests.count(&ended, Instant::now());
    let text = text(&requests);
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
    assert_eq!(
        line,
        "istio_requests_total{reporter=\"waypoint\",source_workload=\"web-deploy\",source_canonical_service=\"web-app\",\
         source_canonical_revision=\"v2\",source_workload_namespace=\"front\",\
         source_principal=\"spiffe://cluster.local/ns/front/sa/web\",source_app=\"web-app\",source_version=\"v2\",\
         source_cluster=\"Kubernetes\",destination_workload=\"cart-deploy\",destination_workload_namespace=\"shop\",\
         destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",destination_app=\"cart-app\",\
         destination_version=\"v2\",destination_service=\"cart.shop.svc.cluster.local\",\
         destination_canonical_service=\"cart-app\",destination_canonical_revision=\"v2\",\
         destination_service_name=\"cart\",destination_service_namespace=\"shop\",destination_cluster=\"Kubernetes\",\
         request_protocol=\"http\",response_code=\"200\",response_flags=\"-\",\
         connection_security_policy=\"mutual_tls\"} 2"
    );
    for (name, bound, count) in [
        ("istio_request_duration_milliseconds", "1", 0),
        ("istio_request_duration_milliseconds", "5", 2),
        ("istio_request_bytes", "250", 0),
        ("istio_request_bytes", "500", 2),
        ("istio_response_bytes", "60000", 0),
        ("istio_response_bytes", "300000", 2),
        ("istio_response_bytes", "+Inf", 2),
    ] {
        let of = |line: &&str| {
            line.starts_with(&format!("{name}_bucket")) && line.contains(&format!("le=\"{bound}\""))
        };
        let line = text.lines().find(of).unwrap();
        assert!(line.ends_with(&format!(" {count}")), "{line}");
    }
    assert!(text.contains("} 180000\n") && text.contains("} 600\n") && text.contains("} 3\n"), "sums");
}

#[test]
fn what_is_not_known_says_so() {
    let requests = Requests::new();
    let (stranger, web) = (identity("far", "away"), workload("front", "web", ""));
    let ended = EndedRequest {
        between: Between { source: None, source_identity: &stranger, ..request(&web).between },
        status: 0,
        grpc: Some(GrpcStatus::from(99)),
        flags: "DC",
        ..request(&web)
    };
    requests.count(&ended, Instant::now());
    let text = text(&requests);
    for part in [
        "source_workload=\"unknown\",source_canonical_service=\"unknown\",source_canonical_revision=\"latest\",\
         source_workload_namespace=\"far\",source_principal=\"spiffe://cluster.local/ns/far/sa/away\"",
        "destination_service=\"unknown\"",
        "destination_workload=\"unknown\"",
        "request_protocol=\"grpc\",response_code=\"0\",grpc_response_status=\"unknown\",response_flags=\"DC\"",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn the_number_of_series_is_bounded() {
    let requests = Requests::new();
    let web = workload("front", "web", "");
    let flags: Vec<String> = (0..MAX_SERIES + 50).map(|number| number.to_string()).collect();
    for flags in &flags {
        requests.count(&EndedRequest { flags, ..request(&web) }, Instant::now());
    }
    let text = text(&requests);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
    assert_eq!(lines.len(), MAX_SERIES + 1);
    let rest = lines.iter().find(|line| line.contains("response_flags=\"overflow\"")).unwrap();
    assert!(rest.ends_with("} 50"), "{rest}");
}

#[test]
fn idle_series_give_way_to_new_ones() {
    let requests = Requests::new();
    let web = workload("front", "web", "");
    let later = Instant::now() + Duration::from_secs(u64::from(FORGET_SECONDS) + 60);
    requests.count(&EndedRequest { flags: "UF", ..request(&web) }, Instant::now());
    requests.0.forget(requests.0.seconds(later));
    requests.count(&EndedRequest { flags: "UF", ..request(&web) }, later);
    let text = text(&requests);
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
    assert!(line.ends_with("} 1"), "counted anew: {line}");
}

#[test]
fn messages_are_counted_while_a_request_lives() {
    let requests = Requests::new();
    let (web, cart) = (workload("front", "web", ""), workload("shop", "cart", ""));
    let between = Between { destination: Some(&cart), ..request(&web).between };
    let one = requests.messages(&between, Instant::now());
    one.add_requests(2);
    requests.messages(&between, Instant::now()).add_responses(5);
    let later = Instant::now() + Duration::from_secs(u64::from(FORGET_SECONDS) + 60);
    requests.0.forget(requests.0.seconds(later));
    let text = text(&requests);
    assert!(!text.contains("istio_requests_total"), "nothing has ended: {text}");
    for (name, count) in [("istio_request_messages_total", 2), ("istio_response_messages_total", 5)] {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
        assert!(line.ends_with(&format!("destination_cluster=\"Kubernetes\"}} {count}")), "{line}");
        assert!(line.contains("destination_workload=\"cart-deploy\""), "{line}");
    }
    drop(one);
    requests.0.forget(requests.0.seconds(later));
    assert_eq!(self::text(&requests), "", "forgotten once nobody counts");
}

#[test]
fn a_grpc_request_has_its_own_labels() {
    for (grpc, wanted) in [
        (None, "request_protocol=\"http\",response_code=\"503\",response_flags=\"UH\""),
        (
            Some(GrpcStatus::Known(14)),
            "request_protocol=\"grpc\",response_code=\"503\",grpc_response_status=\"14\",response_flags=\"UH\"",
        ),
        (
            Some(GrpcStatus::from(17)),
            "request_protocol=\"grpc\",response_code=\"503\",grpc_response_status=\"unknown\",response_flags",
        ),
        (Some(GrpcStatus::None), "request_protocol=\"grpc\",response_code=\"503\",response_flags=\"UH\""),
    ] {
        let requests = Requests::new();
        let web = workload("front", "web", "");
        requests.count(&EndedRequest { grpc, ..request(&web) }, Instant::now());
        assert!(text(&requests).contains(wanted), "{grpc:?}: {}", text(&requests));
    }
}
