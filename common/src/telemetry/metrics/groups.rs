//! Families that belong together, and how a family is registered.

use prometheus::core::Collector;
use prometheus::{Counter, CounterVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Capture of pods.
pub(super) struct Pods {
    pub(super) active: IntGauge,
    pub(super) pending: IntGauge,
    pub(super) started: IntCounter,
    pub(super) stopped: IntCounter,
}

impl Pods {
    pub(super) fn new(r: &Registry) -> Self {
        let (active, pending) =
            ("workload_manager_active_proxy_count", "workload_manager_pending_proxy_count");
        let (started, stopped) =
            ("workload_manager_proxies_started_total", "workload_manager_proxies_stopped_total");
        Self {
            active: gauge(r, active, "Pods that are captured."),
            pending: gauge(r, pending, "Pods that should be captured and are not yet."),
            started: counter(r, started, "Pods whose capture was begun."),
            stopped: counter(r, stopped, "Pods whose capture was ended."),
        }
    }
}

/// Limits on memory and connections.
pub(super) struct Budgets {
    pub(super) held: IntGauge,
    pub(super) limit: IntGaugeVec,
    pub(super) refusals: IntCounterVec,
    pub(super) accepts_reset: IntCounter,
}

impl Budgets {
    pub(super) fn new(r: &Registry) -> Self {
        let refused = "Connections, tunnels and streams refused because a limit was reached, by limit.";
        let reset = "Waiting connections reset because the process was out of file descriptors.";
        Self {
            held: gauge(r, "culvert_budget_held_bytes", "Bytes that count against the memory budget now."),
            limit: gauges(r, "culvert_budget_limit", "Limits in bytes or in numbers, by limit.", &["limit"]),
            refusals: counters(r, "culvert_budget_refusals_total", refused, &["limit"]),
            accepts_reset: counter(r, "culvert_accepts_reset_total", reset),
        }
    }
}

/// What the operating system and the runtime say of the process.
pub(super) struct Process {
    pub(super) open_fds: IntGauge,
    pub(super) max_fds: IntGauge,
}

impl Process {
    pub(super) fn new(r: &Registry) -> Self {
        Self {
            open_fds: gauge(r, "process_open_fds", "Open file descriptors."),
            max_fds: gauge(r, "process_max_fds", "Limit on open file descriptors."),
        }
    }
}

/// Tunnels: how many, how they came up, what waited for them.
pub(super) struct Tunnels {
    pub(super) open: IntGaugeVec,
    pub(super) streams: IntGaugeVec,
    pub(super) handshakes: IntCounterVec,
    pub(super) handshake_seconds: CounterVec,
    pub(super) waits: IntCounter,
    pub(super) wait_seconds: Counter,
}

impl Tunnels {
    pub(super) fn new(r: &Registry) -> Self {
        let (took, waited) = (
            "Seconds that all attempts to set a tunnel up took, the TCP connect included at the client.",
            "Outgoing connections that found no tunnel with room and waited for a new one.",
        );
        Self {
            open: gauges(r, "culvert_hbone_tunnels_open", "HBONE tunnels that are open.", &["side"]),
            streams: gauges(r, "culvert_hbone_streams_open", "Streams open in all tunnels.", &["side"]),
            handshakes: counters(
                r,
                "culvert_hbone_handshakes_total",
                "HBONE tunnels set up or attempted, by result.",
                &["side", "result"],
            ),
            handshake_seconds: register(
                r,
                CounterVec::new(Opts::new("culvert_hbone_handshake_seconds_total", took), &["side"]),
            ),
            waits: counter(r, "culvert_hbone_pool_waits_total", waited),
            wait_seconds: register(
                r,
                Counter::new("culvert_hbone_pool_wait_seconds_total", "Seconds that all of them waited."),
            ),
        }
    }
}

/// The configuration's reloads.
pub(super) struct Config {
    pub(super) revision: IntGauge,
    /// Without labels; a vector only so that nothing is said before the first reload.
    pub(super) successful: IntGaugeVec,
    pub(super) problems: IntGauge,
}

impl Config {
    pub(super) fn new(r: &Registry) -> Self {
        let successful =
            "1 if the last reload of the configuration was taken, 0 if the one before stays in force.";
        Self {
            revision: gauge(r, "culvert_config_revision", "Revision of the configuration that is in force."),
            successful: gauges(r, "culvert_config_last_reload_successful", successful, &[]),
            problems: gauge(r, "culvert_config_problems", "Problems in the configuration as last read."),
        }
    }
}

pub(in crate::telemetry) fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

pub(in crate::telemetry) fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

pub(in crate::telemetry) fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

pub(in crate::telemetry) fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

pub(in crate::telemetry) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> C {
    let collector = made.expect("names and labels of metrics are constants that the tests check");
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}
