//! What is captured on this node, and what was done to keep it so.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::metrics::as_gauge;
use super::metrics::groups::{counter, counters, gauge, gauges};

/// Families of the side that writes capture rules.
pub struct CaptureMetrics {
    wanted: IntGauge,
    captured: IntGauge,
    failing: IntGaugeVec,
    repairs: IntCounterVec,
    foreign: IntCounter,
    proxies: IntGauge,
    answers: IntCounterVec,
}

impl CaptureMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let r = registry;
        Self {
            wanted: gauge(r, "culvert_capture_pods_wanted", "Pods of this node that should be captured."),
            captured: gauge(
                r,
                "culvert_capture_pods_captured",
                "Pods whose rules are in force and that a proxy serves.",
            ),
            failing: gauges(
                r,
                "culvert_capture_pods_failing",
                "Pods that should be captured and are not, by reason.",
                &["reason"],
            ),
            repairs: counters(
                r,
                "culvert_capture_repairs_total",
                "Parts of capture rules that another hand had changed and that were put right.",
                &["what"],
            ),
            foreign: counter(
                r,
                "culvert_capture_foreign_rules_total",
                "Times that rules of another mesh were found in a captured pod.",
            ),
            proxies: gauge(r, "culvert_zds_proxies_connected", "Proxies connected over ZDS."),
            answers: counters(
                r,
                "culvert_zds_answers_total",
                "Answers of proxies to ZDS requests.",
                &["request", "result"],
            ),
        }
    }

    /// How many pods should be captured, how many are, and how many are not for each of all possible reasons.
    pub fn pods(
        &self,
        wanted: usize,
        captured: usize,
        failing: impl IntoIterator<Item = (&'static str, usize)>,
    ) {
        self.wanted.set(as_gauge(wanted));
        self.captured.set(as_gauge(captured));
        for (reason, count) in failing {
            self.failing.with_label_values(&[reason]).set(as_gauge(count));
        }
    }

    /// A part of a pod's rules was put right.
    pub fn repaired(&self, what: &'static str) {
        self.repairs.with_label_values(&[what]).inc();
    }

    /// Rules of another mesh have appeared in a captured pod.
    pub fn foreign_rules(&self) {
        self.foreign.inc();
    }

    /// How many proxies are connected.
    pub fn proxies(&self, connected: usize) {
        self.proxies.set(as_gauge(connected));
    }

    /// A proxy has answered a request; both values are of fixed sets.
    pub fn answered(&self, request: &'static str, result: &'static str) {
        self.answers.with_label_values(&[request, result]).inc();
    }
}
