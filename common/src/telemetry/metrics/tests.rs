use std::time::Duration;

use super::super::encode::tests::read;
use super::super::fixtures::*;
use super::super::{DnsQuery, Early, Failure, HoldResult, LogFormat, ResponseFlag, Telemetry, Termination};
use super::*;

/// Metrics of which every family has a sample.
fn all() -> Arc<Telemetry> {
    let (telemetry, _sink) = telemetry(LogFormat::Plain, "off");
    let metrics = telemetry.metrics();
    telemetry.open(outbound(), Instant::now()).finish(Err(denied()));
    telemetry.request(&request(&workload("front", "web", "eu-1")), Instant::now());
    telemetry.messages(&request(&workload("front", "web", "eu-1")).between, Instant::now()).add_requests(1);
    drop(metrics.socket(Reporter::Source));
    drop((metrics.tunnel(Side::Client), metrics.stream(Side::Client)));
    metrics.handshake(Side::Client, Handshake::Complete, Duration::from_millis(1500));
    metrics.pool_waits(2, Duration::from_millis(2500));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    metrics.watch_worker(0, runtime.metrics());
    metrics.watch_tasks(&Scope::new());
    let failure = Failure { flag: ResponseFlag::TlsFailure, error: "x".into(), denial: None };
    let (src_addr, dst_addr) = ("10.0.0.1:1".parse().unwrap(), None);
    let (source_identity, destination_identity, reporter) = (None, None, Reporter::Destination);
    let early =
        Early { reporter, src_addr, dst_addr, source_identity, destination_identity, failure: &failure };
    telemetry.early_failure(&early);
    metrics.config_loaded(0, 0);
    metrics.reach().held("not_captured", HoldResult::Passed);
    metrics.reach().failover("timeout");
    metrics.reach().downgrade("strict");
    metrics.peer_violations().count(Side::Client, "protocol");
    metrics.capture().pods(2, 1, [("namespace", 1)]);
    metrics.capture().repaired("redirects");
    metrics.capture().answered("add", "ack");
    metrics.config_refused(3);
    metrics.admin_refused("host");
    metrics.budget_limit("memory", 1000);
    metrics.budget_refused("pod-rate");
    metrics.dry_run("would_deny");
    metrics.policy_hold(true);
    metrics.certificate(&identity("shop", "cart"), SystemTime::now() + Duration::from_millis(90_500));
    metrics.identity().states(&[("available", 2), ("unavailable", 0)]);
    metrics.identity().requests("issued", 3);
    metrics.identity().rejected(Reporter::Source);
    metrics.identity().untracked(Reporter::Destination);
    metrics.identity().lists((2, 1), true);
    let discovery = metrics.discovery();
    discovery.connected();
    discovery.message("type.googleapis.com/istio.workload.Address", 100, 1);
    discovery.resources([("workload", 1), ("service", 1), ("policy", 1)]);
    discovery.terminated(Termination::Complete);
    let (source, dns) = (workload("front", "web", "eu-1"), metrics.dns());
    let query = DnsQuery { kind: "A", protocol: "udp", source: Some(&source) };
    dns.request(&query);
    dns.upstream_request(&query);
    dns.upstream_failure(&query);
    dns.upstream_answer(&query, Duration::from_millis(2));
    dns.result("forwarded");
    dns.relayed_to("query");
    dns.on_demand(&source, "db.example.com");
    telemetry
}

fn families(text: &str) -> Vec<(&str, &str)> {
    let types = text.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    types.map(|l| l.split_once(' ').unwrap()).collect()
}

#[test]
fn samples_of_the_small_families() {
    let telemetry = all();
    let metrics = telemetry.metrics();
    metrics.pods(5, 2);
    metrics.pod_started();
    metrics.pod_stopped();
    metrics.budget_reset();
    metrics.certificate(&identity("shop", "old"), SystemTime::now() - Duration::from_millis(500));
    metrics.config_refused(3);
    let text = metrics.encode(false);
    for line in [
        "istio_build{component=\"ztunnel\",tag=\"1.2.3\"} 1",
        "culvert_build_info{version=\"1.2.3\"} 1",
        "culvert_refusals_total{class=\"policy\",reporter=\"source\"} 1",
        "istio_tcp_sockets_open{reporter=\"source\"} 0",
        "culvert_hbone_tunnels_open{side=\"client\"} 0",
        "culvert_hbone_handshakes_total{result=\"complete\",side=\"client\"} 1",
        "culvert_hbone_budget_resets_total 1",
        "culvert_peer_violations_total{kind=\"protocol\",side=\"client\"} 1",
        "culvert_policy_dry_run_total{verdict=\"would_deny\"} 1",
        "culvert_policy_holds_total{result=\"came\"} 1",
        "culvert_config_last_reload_successful 0",
        "culvert_config_problems 3",
        "culvert_config_revision 0",
        "workload_manager_active_proxy_count 5",
        "workload_manager_pending_proxy_count 2",
        "workload_manager_proxies_started_total 1",
        "workload_manager_proxies_stopped_total 1",
        "tokio_num_workers 1",
        "tokio_global_queue_depth 0",
        "tokio_num_alive_tasks 0",
        "tokio_worker_park_count_total{worker=\"0\"} 0",
        "culvert_early_failures_total{class=\"tls\",reporter=\"destination\"} 1",
        "culvert_hbone_streams_open{side=\"client\"} 0",
        "culvert_hbone_handshake_seconds_total{side=\"client\"} 1.5",
        "culvert_hbone_pool_waits_total 2",
        "culvert_hbone_pool_wait_seconds_total 2.5",
        "culvert_config_age_seconds 0",
        "culvert_config_stale_seconds 0",
        "culvert_certificate_expiry_seconds{identity=\"spiffe://cluster.local/ns/shop/sa/cart\"} 90",
        "culvert_certificates{state=\"available\"} 2",
        "culvert_certificates{state=\"unavailable\"} 0",
        "culvert_certificate_requests_total{result=\"issued\"} 3",
        "istio_crl_policy_rejections_total{reporter=\"source\"} 1",
        "culvert_crl_lists 2",
        "culvert_crl_load_failed 1",
        "culvert_certificate_expiry_seconds{identity=\"spiffe://cluster.local/ns/shop/sa/old\"} -1",
        "culvert_log_lines_dropped_total 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let value = |name: &str| -> f64 {
        text.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().parse().unwrap()
    };
    assert!(value("process_open_fds ") >= 3.0);
    assert!(value("process_max_fds ") >= value("process_open_fds "));

    metrics.config_loaded(9, 0);
    metrics.certificate_gone(&identity("shop", "old"));
    let text = metrics.encode(false);
    assert!(text.contains("\nculvert_config_last_reload_successful 1\n"));
    assert!(text.contains("\nculvert_config_revision 9\n"));
    assert!(text.contains("\nculvert_config_problems 0\n"));
    assert!(!text.contains("/sa/old"));
}

#[test]
fn more_certificates_than_are_told_apart_show_the_first_to_expire() {
    let metrics = Metrics::new("1");
    let now = SystemTime::now();
    for n in 0..MAX_CERTIFICATES + 5 {
        let days = if n == MAX_CERTIFICATES + 2 { 2 } else { 9 };
        let not_after = now + Duration::from_secs(86_400 * days + 3600);
        metrics.certificate(&identity("shop", &format!("account-{n:05}")), not_after);
    }
    let text = metrics.encode(false);
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("culvert_certificate_expiry")).collect();
    assert_eq!(lines.len(), MAX_CERTIFICATES + 1);
    let last =
        lines.last().unwrap().strip_prefix("culvert_certificate_expiry_seconds{identity=\"overflow\"} ");
    let seconds: f64 = last.expect("the rest together").parse().unwrap();
    assert!((2.0 * 86_400.0..3.0 * 86_400.0).contains(&seconds), "{seconds}");
}

#[test]
fn families_without_samples_are_left_out() {
    let text = Metrics::new("1").encode(false);
    for absent in ["istio_tcp_", "culvert_refusals", "last_reload", "culvert_certificate", "log_lines"] {
        assert!(!text.contains(absent), "{absent} is in\n{text}");
    }
}

#[test]
fn a_strict_reader_takes_both_forms_and_finds_the_same_in_them() {
    let telemetry = all();
    let mut hostile = outbound();
    let mut workload = (*workload("front", "web", "eu-1")).clone();
    workload.cluster = "a\\b\"c\nd} 7\r\t\u{0}\u{2028}# EOF".into();
    hostile.source = Some(workload.into());
    telemetry.open(hostile, Instant::now()).finish(Ok(()));
    let [plain, open] = [false, true].map(|openmetrics| {
        let text = telemetry.metrics().encode(openmetrics);
        read(&text, openmetrics).unwrap_or_else(|e| panic!("{e}\n{text}"))
    });
    assert!(plain.len() > 20 && plain.len() == open.len());
    let moving = ["process_open_fds", "culvert_certificate_expiry_seconds"];
    for (plain, open) in plain.iter().zip(&open) {
        assert_eq!((&plain.kind, &plain.help), (&open.kind, &open.help));
        assert!(moving.contains(&&*plain.name) || plain.samples == open.samples, "{}", plain.name);
    }
    let clusters: Vec<&str> = plain
        .iter()
        .flat_map(|family| &family.samples)
        .flat_map(|sample| &sample.labels)
        .filter(|(name, _)| name == "source_cluster")
        .map(|(_, value)| value.as_str())
        .collect();
    assert!(clusters.contains(&"a\\b\"c\nd} 7\r\t\u{0}\u{2028}# EOF"), "{clusters:?}");
    let bytes = open.iter().find(|f| f.name == "istio_tcp_sent_bytes").expect("named without _total");
    assert_eq!(bytes.unit.as_deref(), Some("bytes"));
}

#[test]
fn every_flag_can_be_a_refusal_class() {
    let metrics = Metrics::new("1");
    for flag in ResponseFlag::ALL {
        metrics.refused(Reporter::Source, flag.class());
    }
    let text = metrics.encode(false);
    let classes: std::collections::BTreeSet<_> =
        ResponseFlag::ALL.into_iter().map(ResponseFlag::class).collect();
    assert_eq!(text.lines().filter(|l| l.starts_with("culvert_refusals_total{")).count(), classes.len());
}

const DOCS: &str = include_str!("../../../../docs/metrics.md");

/// First cell of each row of the tables whose header starts with `first`, without back quotes.
fn rows(first: &str) -> Vec<Vec<String>> {
    let cells = |l: &str| -> Vec<String> {
        let inner = l.trim_matches('|').split('|');
        inner.map(|c| c.trim().replace('`', "")).collect()
    };
    let mut table = DOCS.lines().skip_while(|l| !l.starts_with(&format!("| {first} |"))).skip(2);
    let rows: Vec<_> = table.by_ref().take_while(|l| l.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "docs/metrics.md has a table of {first}");
    rows
}

#[test]
fn the_documentation_names_every_family_with_its_labels() {
    let telemetry = all();
    let text = telemetry.metrics().encode(false);
    let mut exported = Vec::new();
    for (name, kind) in families(&text) {
        let sample = text.lines().find(|l| l.starts_with(name)).unwrap();
        let labels = sample.rsplit_once(' ').unwrap().0.strip_prefix(name).unwrap();
        let labels = labels.strip_prefix("_bucket").unwrap_or(labels);
        let names: Vec<&str> = labels
            .trim_matches(['{', '}'])
            .split("\",")
            .filter_map(|l| l.split_once('=').map(|(name, _)| name))
            .filter(|name| *name != "le")
            .collect();
        let names = names.join(", ");
        let names = if names.contains(", response_code, ") { "request".into() } else { names };
        let names = if names.ends_with(", destination_cluster") { "message".into() } else { names };
        let names = if names.starts_with("reporter, source_workload, ") { "traffic".into() } else { names };
        let names =
            if names.starts_with("hostname, source_app, ") { "hostname, source_*".into() } else { names };
        exported.push((name.to_owned(), kind.to_owned(), names));
    }
    let mut documented: Vec<_> =
        rows("Metric").into_iter().map(|r| (r[0].clone(), r[1].clone(), r[2].clone())).collect();
    exported.sort();
    documented.sort();
    assert_eq!(documented, exported);
}

#[test]
fn the_documentation_names_every_flag_and_traffic_label() {
    let documented: Vec<String> = rows("Flag").into_iter().map(|r| r[0].clone()).collect();
    assert_eq!(documented, ResponseFlag::ALL.map(|f| f.as_str().to_owned()));

    let results: Vec<String> = rows("Result").into_iter().map(|r| r[0].clone()).collect();
    assert_eq!(results, Handshake::ALL.map(|r| r.as_str().to_owned()));

    let classes: Vec<String> = rows("Class").into_iter().map(|r| r[0].clone()).collect();
    for flag in ResponseFlag::ALL.into_iter().filter(|f| *f != ResponseFlag::None) {
        assert!(classes.iter().any(|c| c == flag.class()), "{} is not described", flag.class());
    }

    let text = all().metrics().encode(false);
    let sample = text.lines().find(|l| l.starts_with("istio_tcp_connections_opened_total{")).unwrap();
    let exported: Vec<&str> =
        sample.split_once('{').unwrap().1.split("\",").map(|l| l.split('=').next().unwrap()).collect();
    assert_eq!(named("## Traffic labels"), exported);

    let sample = text.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
    let exported: Vec<&str> =
        sample.split_once('{').unwrap().1.split("\",").map(|l| l.split('=').next().unwrap()).collect();
    assert_eq!(named("## Request labels"), exported);
}

/// What the first paragraph below this heading has in back quotes.
fn named(heading: &str) -> Vec<&'static str> {
    let section = DOCS.split(heading).nth(1).unwrap().split("\n- ").next().unwrap();
    section.split('`').skip(1).step_by(2).filter(|n| *n != "unknown").collect()
}
