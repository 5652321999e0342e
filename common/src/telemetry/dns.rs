//! DNS: queries of pods, and what became of them. **Source**: l4.md §7.4.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Registry};

use super::labels::{SOURCE, known, values};
use super::metrics::groups::{counters, register};
use crate::model::Workload;

const LABELS: [&str; 4] =
    ["request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"];
/// Seconds.
const BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// Families of the DNS proxy.
pub struct DnsMetrics {
    requests: IntCounterVec,
    upstream_requests: IntCounterVec,
    upstream_failures: IntCounterVec,
    upstream_seconds: HistogramVec,
    answers: IntCounterVec,
    destinations: IntCounterVec,
    on_demand: IntCounterVec,
}

/// One query, for its labels.
#[derive(Clone, Copy, Debug)]
pub struct DnsQuery<'a> {
    /// The asked type: one of a few names.
    pub kind: &'static str,
    /// `udp` or `tcp`.
    pub protocol: &'static str,
    /// The pod that asks; none while it is not known.
    pub source: Option<&'a Workload>,
}

impl DnsQuery<'_> {
    fn labels(&self) -> [&str; 4] {
        let of = |field: fn(&Workload) -> &str| known(self.source.map(field));
        [self.kind, self.protocol, of(|w| &w.canonical_name), of(|w| &w.canonical_revision)]
    }
}

impl DnsMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let seconds = "Seconds until another name server's answer.";
        let seconds = HistogramOpts::new("istio_dns_upstream_request_duration_seconds", seconds);
        Self {
            requests: counters(r, "istio_dns_requests_total", "DNS queries of pods.", &LABELS),
            upstream_requests: counters(
                r,
                "istio_dns_upstream_requests_total",
                "DNS queries relayed to other name servers.",
                &LABELS,
            ),
            upstream_failures: counters(
                r,
                "istio_dns_upstream_failures_total",
                "Relayed DNS queries that got no answer.",
                &LABELS,
            ),
            upstream_seconds: register(r, HistogramVec::new(seconds.buckets(BUCKETS.to_vec()), &LABELS)),
            answers: counters(
                r,
                "culvert_dns_answers_total",
                "DNS queries by what became of them.",
                &["result"],
            ),
            destinations: counters(
                r,
                "culvert_dns_relay_destinations_total",
                "Relayed DNS queries by how the name server was found.",
                &["source"],
            ),
            on_demand: counters(
                r,
                "istio_on_demand_dns_total",
                "Look-ups of host names that workloads have in place of an address.",
                &[&SOURCE[..], &["hostname"]].concat(),
            ),
        }
    }

    /// A pod has asked.
    pub fn request(&self, query: &DnsQuery<'_>) {
        self.requests.with_label_values(&query.labels()).inc();
    }

    /// It was asked on.
    pub fn upstream_request(&self, query: &DnsQuery<'_>) {
        self.upstream_requests.with_label_values(&query.labels()).inc();
    }

    /// Nobody answered that.
    pub fn upstream_failure(&self, query: &DnsQuery<'_>) {
        self.upstream_failures.with_label_values(&query.labels()).inc();
    }

    /// Somebody did, after `took`.
    pub fn upstream_answer(&self, query: &DnsQuery<'_>, took: Duration) {
        self.upstream_seconds.with_label_values(&query.labels()).observe(took.as_secs_f64());
    }

    /// What became of a query: one of a few words.
    pub fn result(&self, result: &'static str) {
        self.answers.with_label_values(&[result]).inc();
    }

    /// How the server was found that a query was relayed to: one of a few words.
    pub fn relayed_to(&self, source: &'static str) {
        self.destinations.with_label_values(&[source]).inc();
    }

    /// A workload's host name was looked up for `source`.
    pub fn on_demand(&self, source: &Workload, hostname: &str) {
        let identity = source.identity.to_string();
        let of_source = values(Some(source), None, Some(&identity)).map(known);
        self.on_demand.with_label_values(&[&of_source[..], &[known(Some(hostname))]].concat()).inc();
    }
}
