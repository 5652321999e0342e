//! What is told of certificates and of revocation.

use prometheus::{IntCounterVec, IntGaugeVec, Registry};

use super::groups::{counters, gauges};
use crate::telemetry::Reporter;

const NONE: [&str; 0] = [];

/// Certificates of this node's workloads, the CA, and the peers' revocation.
pub struct IdentityMetrics {
    states: IntGaugeVec,
    requests: IntCounterVec,
    rejections: IntCounterVec,
    untracked: IntCounterVec,
    lists: IntGaugeVec,
    overdue: IntGaugeVec,
    load_failed: IntGaugeVec,
}

impl IdentityMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        Self {
            states: gauges(
                r,
                "culvert_certificates",
                "Identities of this node's pods, by the state of their certificate.",
                &["state"],
            ),
            requests: counters(
                r,
                "culvert_certificate_requests_total",
                "Certificates asked for, by what became of it.",
                &["result"],
            ),
            rejections: counters(
                r,
                "istio_crl_policy_rejections_total",
                "Tunnels refused or closed because a certificate was revoked, or could not be checked.",
                &["reporter"],
            ),
            untracked: counters(
                r,
                "istio_crl_untracked_connections_total",
                "Tunnels that a change of the revocation lists cannot close.",
                &["reporter"],
            ),
            lists: gauges(r, "culvert_crl_lists", "Revocation lists in force.", &NONE),
            overdue: gauges(
                r,
                "culvert_crl_overdue",
                "Revocation lists past their next update; they still count.",
                &NONE,
            ),
            load_failed: gauges(
                r,
                "culvert_crl_load_failed",
                "1 while the file of the revocation lists cannot be used; those before stay in force.",
                &NONE,
            ),
        }
    }

    /// Identities by state; each state that there is, so that one that is left goes to 0.
    pub fn states(&self, counts: &[(&'static str, usize)]) {
        for (state, count) in counts {
            self.states.with_label_values(&[state]).set(super::as_gauge(*count));
        }
    }

    /// So many requests more ended like this; one of a bounded set.
    pub fn requests(&self, result: &'static str, count: u64) {
        self.requests.with_label_values(&[result]).inc_by(count);
    }

    /// Counts a tunnel that was refused or closed for revocation's sake.
    pub fn rejected(&self, reporter: Reporter) {
        self.rejections.with_label_values(&[reporter.as_str()]).inc();
    }

    /// Counts a tunnel whose chain is not known.
    pub fn untracked(&self, reporter: Reporter) {
        self.untracked.with_label_values(&[reporter.as_str()]).inc();
    }

    /// How the lists stand; not called where there are to be none.
    pub fn lists(&self, (count, overdue): (usize, usize), is_failing: bool) {
        self.lists.with_label_values(&NONE).set(super::as_gauge(count));
        self.overdue.with_label_values(&NONE).set(super::as_gauge(overdue));
        self.load_failed.with_label_values(&NONE).set(i64::from(is_failing));
    }
}
