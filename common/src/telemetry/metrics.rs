//! All metrics of a process behind small typed methods. `docs/metrics.md` describes each.

pub(super) mod groups;
mod identity;
mod times;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::resource::{Resource, getrlimit};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};
use tokio::runtime::RuntimeMetrics;

use self::groups::{Budgets, Config, Pods, Process, Tunnels, counter, counters, gauges};
use self::identity::IdentityMetrics;
use self::times::{ConfigTimes, Runtimes};
use super::capture::CaptureMetrics;
use super::connection::Reporter;
use super::discovery::DiscoveryMetrics;
use super::dns::DnsMetrics;
use super::encode::{Kind, Scrape, push_label};
use super::logging::Logger;
use super::reach::ReachMetrics;
use super::requests::Requests;
use super::traffic::Traffic;
use crate::task::Scope;
use crate::types::SpiffeId;

const NO_LABELS: [&str; 0] = [];
const RESETS: &str = "Stalled streams reset because the byte budget was used up.";
/// Identities whose certificates are told apart.
const MAX_CERTIFICATES: usize = 1000;

/// The end of a tunnel that this agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It dialled.
    Client,
    /// It accepted.
    Server,
}

impl Side {
    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// How the set-up of a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// TLS and HTTP/2 are up.
    Complete,
    /// The peer's certificate is not valid now.
    Expired,
    /// The peer's certificate leads to no root that is trusted here.
    UntrustedRoot,
    /// The peer proved to be somebody else than it may be, or is not meant for its part.
    WrongIdentity,
    /// The peer's certificate names no identity, or several.
    BadName,
    /// The peer showed no certificate.
    NoPeerCertificate,
    /// The peer refused ours, or something else that we said.
    Refused,
    /// The peer went away, or the network did.
    Closed,
    /// TLS failed otherwise.
    Tls,
    /// HTTP/2 failed.
    Http2,
    /// One of them took too long.
    Timeout,
    /// There was no certificate to present.
    NoCertificate,
    /// The peer's certificate was revoked, or that cannot be checked.
    Revoked,
}

impl Handshake {
    /// Every result.
    pub const ALL: [Self; 13] = [
        Self::Complete,
        Self::Expired,
        Self::UntrustedRoot,
        Self::WrongIdentity,
        Self::BadName,
        Self::NoPeerCertificate,
        Self::Refused,
        Self::Closed,
        Self::Tls,
        Self::Http2,
        Self::Timeout,
        Self::NoCertificate,
        Self::Revoked,
    ];

    /// Value of the label `result`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Expired => "expired",
            Self::UntrustedRoot => "untrusted_root",
            Self::WrongIdentity => "wrong_identity",
            Self::BadName => "bad_name",
            Self::NoPeerCertificate => "no_peer_certificate",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::Tls => "tls",
            Self::Http2 => "http2",
            Self::Timeout => "timeout",
            Self::NoCertificate => "no_certificate",
            Self::Revoked => "revoked",
        }
    }
}

/// Counts what peers did that no right peer does.
#[derive(Clone)]
pub struct PeerViolations(IntCounterVec);

impl PeerViolations {
    /// Once for each tunnel that was ended for it, and for each stream. `kind` is one of a bounded set.
    pub fn count(&self, side: Side, kind: &'static str) {
        self.0.with_label_values(&[side.as_str(), kind]).inc();
    }
}

/// Something that a gauge counts for as long as this lives.
#[must_use = "it is counted only while this lives"]
pub struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// All metrics of a process.
pub struct Metrics {
    /// The families that [`super::Telemetry`] counts.
    pub(super) traffic: Traffic,
    /// Those of a waypoint's requests.
    pub(super) requests: Requests,
    reach: ReachMetrics,
    capture: CaptureMetrics,
    dns: DnsMetrics,
    discovery: DiscoveryMetrics,
    registry: Registry,
    sockets: IntGaugeVec,
    /// Children of `sockets`, looked up once: every connection needs one.
    sockets_of: [OnceLock<IntGauge>; 3],
    pods: Pods,
    process: Process,
    identity: IdentityMetrics,
    refusals: IntCounterVec,
    early_failures: IntCounterVec,
    tunnels: Tunnels,
    /// Children of the streams' family, looked up once: every stream needs one.
    streams_of: [OnceLock<IntGauge>; 2],
    budget_resets: IntCounter,
    budget: Budgets,
    dry_runs: IntCounterVec,
    policy_holds: IntCounterVec,
    admin_refused: IntCounterVec,
    runtimes: Mutex<Runtimes>,
    config: Config,
    violations: IntCounterVec,
    config_times: Mutex<ConfigTimes>,
    certificates: Mutex<BTreeMap<String, SystemTime>>,
    log: OnceLock<Logger>,
}

impl Metrics {
    /// Metrics of a node agent of this version, all at zero.
    pub fn new(version: &str) -> Arc<Self> {
        Self::of("ztunnel", version)
    }

    /// Metrics of a waypoint of this version, all at zero.
    pub fn of_waypoint(version: &str) -> Arc<Self> {
        Self::of("proxy", version)
    }

    fn of(component: &str, version: &str) -> Arc<Self> {
        let registry = Registry::new();
        let r = &registry;
        gauges(r, "istio_build", "Istio component build info.", &["component", "tag"])
            .with_label_values(&[component, version])
            .set(1);
        gauges(r, "culvert_build_info", "Version of Culvert.", &["version"])
            .with_label_values(&[version])
            .set(1);
        Arc::new(Self {
            traffic: Traffic::new(),
            requests: Requests::new(),
            reach: ReachMetrics::new(r),
            capture: CaptureMetrics::new(r),
            dns: DnsMetrics::new(r),
            discovery: DiscoveryMetrics::new(r),
            sockets: gauges(r, "istio_tcp_sockets_open", "Accepted sockets that are open.", &["reporter"]),
            sockets_of: Default::default(),
            pods: Pods::new(r),
            process: Process::new(r),
            identity: IdentityMetrics::new(r),
            refusals: counters(
                r,
                "culvert_refusals_total",
                "Connections refused, by class, those refused before they were routed included.",
                &["reporter", "class"],
            ),
            early_failures: counters(
                r,
                "culvert_early_failures_total",
                "Connections that failed before they were routed, by class.",
                &["reporter", "class"],
            ),
            tunnels: Tunnels::new(r),
            streams_of: Default::default(),
            budget_resets: counter(r, "culvert_hbone_budget_resets_total", RESETS),
            violations: counters(
                r,
                "culvert_peer_violations_total",
                "Tunnels ended and streams reset because the peer broke a rule of HTTP/2 or flooded.",
                &["side", "kind"],
            ),
            budget: Budgets::new(r),
            dry_runs: counters(
                r,
                "culvert_policy_dry_run_total",
                "What policies that are only tried out would have done.",
                &["verdict"],
            ),
            policy_holds: counters(
                r,
                "culvert_policy_holds_total",
                "Connections that waited for a policy that their destination names and that was not known.",
                &["result"],
            ),
            admin_refused: counters(
                r,
                "culvert_admin_refused_total",
                "Requests to the admin pages that were refused.",
                &["reason"],
            ),
            runtimes: Mutex::default(),
            config: Config::new(r),
            config_times: Mutex::default(),
            certificates: Mutex::default(),
            log: OnceLock::new(),
            registry,
        })
    }

    /// Counts a refusal under its class.
    pub fn refused(&self, reporter: Reporter, class: &'static str) {
        self.refusals.with_label_values(&[reporter.as_str(), class]).inc();
    }

    /// Counts a connection that failed before it was routed, under the class of its refusal.
    pub(super) fn failed_early(&self, reporter: Reporter, class: &'static str) {
        self.early_failures.with_label_values(&[reporter.as_str(), class]).inc();
    }

    /// Counts an accepted socket for as long as the answer lives.
    pub fn socket(&self, reporter: Reporter) -> Counted {
        let child = || self.sockets.with_label_values(&[reporter.as_str()]);
        let [source, destination, waypoint] = &self.sockets_of;
        let known = match reporter {
            Reporter::Source => source,
            Reporter::Destination => destination,
            Reporter::Waypoint => waypoint,
        };
        Counted::new(known.get_or_init(child).clone())
    }

    /// Counts an open tunnel for as long as the answer lives.
    pub fn tunnel(&self, side: Side) -> Counted {
        Counted::new(self.tunnels.open.with_label_values(&[side.as_str()]))
    }

    /// Counts an open stream of a tunnel for as long as the answer lives.
    pub fn stream(&self, side: Side) -> Counted {
        let child = || self.tunnels.streams.with_label_values(&[side.as_str()]);
        let [client, server] = &self.streams_of;
        let known = match side {
            Side::Client => client,
            Side::Server => server,
        };
        Counted::new(known.get_or_init(child).clone())
    }

    /// Counts the set-up of a tunnel, whether it came up or not, and how long it took.
    pub fn handshake(&self, side: Side, result: Handshake, took: Duration) {
        self.tunnels.handshakes.with_label_values(&[side.as_str(), result.as_str()]).inc();
        self.tunnels.handshake_seconds.with_label_values(&[side.as_str()]).inc_by(took.as_secs_f64());
    }

    /// So many connections more waited for a new tunnel, together for so long.
    pub fn pool_waits(&self, waits: u64, waited: Duration) {
        self.tunnels.waits.inc_by(waits);
        self.tunnels.wait_seconds.inc_by(waited.as_secs_f64());
    }

    /// Counts a stalled stream that was reset for the budget's sake.
    pub fn budget_reset(&self) {
        self.budget_resets.inc();
    }

    /// What the process's byte budget holds now.
    pub fn budget_held(&self, bytes: u64) {
        self.budget.held.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Limit of a budget or of a count of connections.
    pub fn budget_limit(&self, scope: &'static str, limit: u64) {
        self.budget.limit.with_label_values(&[scope]).set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// Counts a connection, tunnel or stream that was refused at such a limit.
    pub fn budget_refused(&self, scope: &'static str) {
        self.budget.refusals.with_label_values(&[scope]).inc();
    }

    /// Counts waiting connections that were reset for want of a descriptor.
    pub fn accepts_reset(&self, count: usize) {
        self.budget.accepts_reset.inc_by(count as u64);
    }

    /// Counts a request to the admin pages that was refused for this reason.
    pub fn admin_refused(&self, reason: &'static str) {
        self.admin_refused.with_label_values(&[reason]).inc();
    }

    /// A counter to be kept by each tunnel.
    pub fn peer_violations(&self) -> PeerViolations {
        PeerViolations(self.violations.clone())
    }

    /// Counts what a policy that is only tried out would have done.
    pub fn dry_run(&self, verdict: &'static str) {
        self.dry_runs.with_label_values(&[verdict]).inc();
    }

    /// Counts a connection that waited for a policy, by whether it came.
    pub fn policy_hold(&self, came: bool) {
        self.policy_holds.with_label_values(&[if came { "came" } else { "absent" }]).inc();
    }

    /// How many pods are captured, and how many should be and are not.
    pub fn pods(&self, active: usize, pending: usize) {
        self.pods.active.set(as_gauge(active));
        self.pods.pending.set(as_gauge(pending));
    }

    /// The capture of a pod was begun.
    pub fn pod_started(&self) {
        self.pods.started.inc();
    }

    /// The capture of a pod was ended.
    pub fn pod_stopped(&self) {
        self.pods.stopped.inc();
    }

    /// How outgoing connections found their way.
    pub fn reach(&self) -> &ReachMetrics {
        &self.reach
    }

    /// Also tell how busy the runtime of the traffic worker with this number is.
    pub fn watch_worker(&self, number: usize, runtime: RuntimeMetrics) {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).workers.insert(number, runtime);
    }

    /// Also tell how many tasks this scope has.
    pub fn watch_tasks(&self, scope: &Scope) {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).tasks = Some(scope.clone());
    }

    /// Families of the DNS proxy.
    pub fn dns(&self) -> &DnsMetrics {
        &self.dns
    }

    /// What is told of the discovery server.
    pub fn discovery(&self) -> &DiscoveryMetrics {
        &self.discovery
    }

    /// What is told of capture.
    pub fn capture(&self) -> &CaptureMetrics {
        &self.capture
    }

    /// A certificate of ours is valid until `not_after`. It is forgotten by [`Metrics::certificate_gone`].
    pub fn certificate(&self, identity: &SpiffeId, not_after: SystemTime) {
        self.certificates().insert(identity.to_string(), not_after);
    }

    /// What is told of certificates and of revocation.
    pub fn identity(&self) -> &IdentityMetrics {
        &self.identity
    }

    /// The identity is no longer ours.
    pub fn certificate_gone(&self, identity: &SpiffeId) {
        self.certificates().remove(&identity.to_string());
    }

    /// A reload was taken: its revision, and how many problems did not keep it from being taken.
    pub fn config_loaded(&self, revision: u64, problems: usize) {
        self.config.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.config.problems.set(as_gauge(problems));
        self.config.successful.with_label_values(&NO_LABELS).set(1);
        self.config_times().taken(Instant::now());
    }

    /// A reload was refused for these problems; what was in force stays.
    pub fn config_refused(&self, problems: usize) {
        self.config.problems.set(as_gauge(problems));
        self.config.successful.with_label_values(&NO_LABELS).set(0);
        self.config_times().refused(Instant::now());
    }

    fn config_times(&self) -> std::sync::MutexGuard<'_, ConfigTimes> {
        self.config_times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Also tell how many lines this logger lost.
    pub(super) fn watch_log(&self, logger: &Logger) {
        let _told_before = self.log.set(logger.clone());
    }

    /// The text of a scrape: OpenMetrics 1.0, or Prometheus 0.0.4. Families without samples are left out.
    ///
    /// Reads `/proc/self/fd`; for the control runtime, not for a worker.
    pub fn encode(&self, openmetrics: bool) -> String {
        self.pieces(openmetrics).collect()
    }

    /// The same in pieces, as those of a waypoint's requests may be many and large.
    pub fn pieces(&self, openmetrics: bool) -> impl Iterator<Item = String> + Send + use<> {
        self.requests.pieces(openmetrics).chain(std::iter::once(self.encode_rest(openmetrics)))
    }

    fn encode_rest(&self, openmetrics: bool) -> String {
        self.read_descriptors();
        let mut scrape = Scrape::new(openmetrics);
        let now = Instant::now();
        self.traffic.forget(self.traffic.seconds(now));
        self.traffic.encode(&mut scrape);
        self.encode_registry(&mut scrape);
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).encode(&mut scrape);
        self.config_times().encode(&mut scrape, now);
        self.discovery.encode(&mut scrape, now);
        self.encode_certificates(&mut scrape, SystemTime::now());
        if let Some(log) = self.log.get() {
            let name = "culvert_log_lines_dropped_total";
            scrape.family(name, Kind::Counter, "Log lines lost because the output did not keep up.");
            scrape.sample(name, &[], log.dropped());
            let name = "culvert_panics_total";
            scrape.family(name, Kind::Counter, "Panics, each of which ended one connection or task.");
            scrape.sample(name, &[], log.panics());
        }
        scrape.finish()
    }

    fn read_descriptors(&self) {
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            self.process.open_fds.set(as_gauge(entries.count().saturating_sub(1))); // the directory's own
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            self.process.max_fds.set(i64::try_from(soft).unwrap_or(i64::MAX));
        }
    }

    fn encode_registry(&self, scrape: &mut Scrape) {
        use prometheus::proto::MetricType;
        for family in self.registry.gather() {
            let kind = match family.get_field_type() {
                MetricType::COUNTER => Kind::Counter,
                MetricType::HISTOGRAM => Kind::Histogram,
                _ => Kind::Gauge,
            };
            let counter = kind == Kind::Counter;
            scrape.family(family.name(), kind, family.help());
            for metric in family.get_metric() {
                let mut labels = String::new();
                for label in metric.get_label() {
                    push_label(&mut labels, label.name(), label.value());
                }
                if kind == Kind::Histogram {
                    let seen = metric.get_histogram();
                    let buckets = seen.get_bucket().iter().map(|b| (b.upper_bound(), b.cumulative_count()));
                    let total = (seen.get_sample_count(), seen.get_sample_sum());
                    scrape.histogram(family.name(), &labels, buckets, total);
                    continue;
                }
                let value =
                    if counter { metric.get_counter().get_value() } else { metric.get_gauge().get_value() };
                scrape.sample(family.name(), &[&labels], value);
            }
        }
    }

    fn encode_certificates(&self, scrape: &mut Scrape, now: SystemTime) {
        let certificates = self.certificates();
        if certificates.is_empty() {
            return;
        }
        let name = "culvert_certificate_expiry_seconds";
        scrape.family(name, Kind::Gauge, "Seconds until the certificate expires; negative if it has.");
        let of = |identity: &str, not_after: &SystemTime| {
            let mut labels = String::new();
            push_label(&mut labels, "identity", identity);
            let seconds = match not_after.duration_since(now) {
                Ok(left) => left.as_secs_f64().floor(),
                Err(over) => -over.duration().as_secs_f64().ceil(),
            };
            (labels, seconds)
        };
        let told = certificates.iter().take(MAX_CERTIFICATES).map(|(identity, at)| of(identity, at));
        // Of the rest the one that matters.
        let rest = certificates.values().skip(MAX_CERTIFICATES).min().map(|at| of("overflow", at));
        for (labels, seconds) in told.chain(rest) {
            scrape.sample(name, &[&labels], seconds);
        }
    }

    fn certificates(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, SystemTime>> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
