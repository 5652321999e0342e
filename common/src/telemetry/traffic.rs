//! The five `istio_tcp_*` families: counters of one pair of workloads, and the bounded table of all pairs.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::ResponseFlag;
use super::by_labels::{ByLabels, Labelled};
use super::connection::{Flow, Reporter, Security};
use super::encode::{Kind, Scrape, push_label};
use crate::model::Workload;

/// Pairs that are counted apart. Beyond that, idle ones are forgotten, and new ones counted together.
const MAX_PAIRS: usize = 10_000;
/// A pair is forgotten only if none of its connections is open and none was opened for this many seconds.
const IDLE_SECONDS: u32 = 600;
/// What was not used for so long is forgotten at the next scrape, full table or not: its pods are gone, or might be.
const FORGET_SECONDS: u32 = 6 * 3600;
/// A full table is searched for idle pairs at most once in this many seconds.
const SWEEP_SECONDS: u32 = 10;

/// Longest label value in bytes: a client that is in no configuration describes itself. An identity is never cut.
const MAX_LABEL: usize = 256;
/// Threads that count bytes without sharing a cache line.
const SHARDS: usize = 4;

const FLAGS: usize = ResponseFlag::ALL.len();
const NAMES: [(&str, &str); 5] = [
    ("istio_tcp_connections_opened_total", "TCP connections opened."),
    ("istio_tcp_connections_closed_total", "TCP connections closed, by how they ended."),
    ("istio_tcp_received_bytes_total", "Bytes from client to server."),
    ("istio_tcp_sent_bytes_total", "Bytes from server to client."),
    ("istio_tcp_connections_failed_total", "TCP connections that did not end well."),
];

/// Counters of all connections that share their labels. The labels are rendered once.
///
/// Opened connections and bytes are counted under the flag `-`, as the flag is not known before the end.
pub(super) struct Pair {
    /// All labels but `response_flags`, which belongs at `flag_at`.
    labels: Box<str>,
    flag_at: usize,
    /// Counts what found no place of its own; not to be remembered, so that a pair gets one once there is room.
    pub(super) shared: bool,
    opened: AtomicU64,
    bytes: [Shard; SHARDS],
    closed: [AtomicU64; FLAGS],
    failed: [AtomicU64; FLAGS],
    /// Seconds since the start of the table.
    used: AtomicU32,
}

/// Bytes that the threads of one shard moved.
#[derive(Default)]
#[repr(align(64))]
struct Shard {
    received: AtomicU64,
    sent: AtomicU64,
}

thread_local! {
    /// Which shard this thread adds to.
    static SHARD: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed) % SHARDS
    };
}

impl Pair {
    fn new((labels, flag_at): (String, usize), used: u32) -> Self {
        Self {
            labels: labels.into(),
            flag_at,
            shared: false,
            opened: AtomicU64::new(0),
            bytes: Default::default(),
            closed: Default::default(),
            failed: Default::default(),
            used: AtomicU32::new(used),
        }
    }

    fn overflow(reporter: Reporter) -> Self {
        Self { shared: true, ..Self::new(render_overflow(reporter), 0) }
    }

    pub(super) fn open(&self, seconds: u32) {
        self.opened.fetch_add(1, Relaxed);
        self.used.store(seconds, Relaxed);
    }

    /// Adds bytes from client to server. Some nanoseconds: the cache line belongs to this thread.
    pub(super) fn add_received(&self, bytes: u64) {
        if let Some(shard) = self.bytes.get(SHARD.with(|n| *n)) {
            shard.received.fetch_add(bytes, Relaxed);
        }
    }

    /// Adds bytes from server to client.
    pub(super) fn add_sent(&self, bytes: u64) {
        if let Some(shard) = self.bytes.get(SHARD.with(|n| *n)) {
            shard.sent.fetch_add(bytes, Relaxed);
        }
    }

    fn sum(&self, of: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.bytes.iter().map(|shard| of(shard).load(Relaxed)).fold(0, u64::wrapping_add)
    }

    pub(super) fn close(&self, flag: ResponseFlag) {
        let at = flag as usize;
        if let Some(closed) = self.closed.get(at) {
            closed.fetch_add(1, Relaxed);
        }
        if flag != ResponseFlag::None
            && let Some(failed) = self.failed.get(at)
        {
            failed.fetch_add(1, Relaxed);
        }
    }

    /// Samples of the family at this place in [`NAMES`].
    fn samples(&self, family: usize) -> Vec<(ResponseFlag, u64)> {
        let by_flag = |counts: &[AtomicU64; FLAGS]| {
            let loaded = counts.iter().map(|count| count.load(Relaxed));
            ResponseFlag::ALL.into_iter().zip(loaded).filter(|(_, count)| *count > 0).collect()
        };
        match family {
            0 => vec![(ResponseFlag::None, self.opened.load(Relaxed))],
            1 => by_flag(&self.closed),
            2 => vec![(ResponseFlag::None, self.sum(|shard| &shard.received))],
            3 => vec![(ResponseFlag::None, self.sum(|shard| &shard.sent))],
            _ => by_flag(&self.failed),
        }
    }

    fn sample(&self, scrape: &mut Scrape, name: &str, flag: ResponseFlag, count: u64) {
        let (head, tail) = self.labels.split_at_checked(self.flag_at).unwrap_or((&self.labels, ""));
        let flag = format!(",response_flags=\"{}\"", flag.as_str());
        scrape.sample(name, &[head, &flag, tail], count);
    }
}

impl Labelled for Pair {
    fn labels(&self) -> &str {
        &self.labels
    }
}

/// All pairs of the process.
pub(super) struct Traffic {
    table: Mutex<Table>,
    start: Instant,
}

#[derive(Default)]
struct Table {
    pairs: HashSet<ByLabels<Pair>>,
    /// Where new pairs go while the table is full of used ones, by reporter.
    overflow: [Option<Arc<Pair>>; 3],
    swept: u32,
}

impl Traffic {
    pub(super) fn new() -> Self {
        Self { table: Mutex::default(), start: Instant::now() }
    }

    pub(super) fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX)
    }

    /// The counters for `flow`, made if there are none. A worker keeps what it gets: this renders all labels.
    pub(super) fn pair(&self, flow: &Flow, seconds: u32) -> Arc<Pair> {
        let labels = render(flow);
        let mut table = self.lock();
        if let Some(found) = table.pairs.get(labels.0.as_str()) {
            return Arc::clone(&found.0);
        }
        if table.pairs.len() >= MAX_PAIRS && !table.sweep(seconds) {
            let pair = table.overflow[flow.reporter as usize]
                .get_or_insert_with(|| Arc::new(Pair::overflow(flow.reporter)));
            return Arc::clone(pair);
        }
        let pair = Arc::new(Pair::new(labels, seconds));
        table.pairs.insert(ByLabels(Arc::clone(&pair)));
        pair
    }

    /// Forgets pairs that have no open connection and had no new one for hours.
    pub(super) fn forget(&self, seconds: u32) {
        self.lock().retain_used_within(FORGET_SECONDS, seconds);
    }

    /// Writes the five families.
    pub(super) fn encode(&self, scrape: &mut Scrape) {
        // Only the handles are taken under the lock, so that no worker waits for the rendering.
        let mut pairs: Vec<Arc<Pair>> = {
            let table = self.lock();
            let all = table.pairs.iter().map(|p| &p.0).chain(table.overflow.iter().flatten());
            all.cloned().collect()
        };
        pairs.sort_by(|a, b| a.labels.cmp(&b.labels));
        for (at, (name, help)) in NAMES.into_iter().enumerate() {
            let mut named = false;
            for pair in &pairs {
                for (flag, count) in pair.samples(at) {
                    if !std::mem::replace(&mut named, true) {
                        scrape.family(name, Kind::Counter, help);
                    }
                    pair.sample(scrape, name, flag, count);
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Forgets idle pairs. Returns whether there is room.
    fn sweep(&mut self, seconds: u32) -> bool {
        if self.swept != 0 && seconds.saturating_sub(self.swept) < SWEEP_SECONDS {
            return false;
        }
        self.swept = seconds.max(1);
        self.retain_used_within(IDLE_SECONDS, seconds);
        self.pairs.len() < MAX_PAIRS
    }

    fn retain_used_within(&mut self, limit: u32, seconds: u32) {
        self.pairs.retain(|pair| {
            let idle = seconds.saturating_sub(pair.0.used.load(Relaxed));
            // Workers' caches hold weak references, so a second strong one is an open connection.
            Arc::strong_count(&pair.0) > 1 || idle < limit
        });
    }
}

/// Labels of `flow` in the order that l4.md gives, and where `response_flags` belongs.
fn render(flow: &Flow) -> (String, usize) {
    let (source, destination) = (flow.source.as_deref(), flow.destination.as_deref());
    let source_principal = flow.source_identity.as_ref().map(ToString::to_string);
    let destination_principal =
        flow.destination_identity.as_ref().or(destination.map(|w| &w.identity)).map(ToString::to_string);
    let service = flow.service.as_deref();
    let mut out = String::with_capacity(1400);
    push_label(&mut out, "reporter", flow.reporter.as_str());
    let is_waypoint = flow.reporter == Reporter::Waypoint;
    // What a waypoint says of a client without a workload, as of requests.
    let stranger = flow.source_identity.as_ref().filter(|_| is_waypoint);
    let stranger = stranger.map(|identity| (identity.namespace(), "latest"));
    push_workload(&mut out, SOURCE, (source, stranger), source_principal.as_deref());
    let of_service =
        [service.map(|s| &*s.key.hostname), service.map(|s| &*s.key.namespace), service.map(|s| &*s.name)];
    for (name, value) in SERVICE.into_iter().zip(of_service) {
        push_known(&mut out, name, value);
    }
    push_workload(&mut out, DESTINATION, (destination, None), destination_principal.as_deref());
    let flag_at = push_transport(&mut out, flow.security);
    if !is_waypoint && (source.is_some() || destination.is_some()) {
        let (from, to) = (source.map(|w| &w.locality), destination.map(|w| &w.locality));
        push_known(&mut out, "source_region", from.map(|l| &*l.region));
        push_known(&mut out, "source_zone", from.map(|l| &*l.zone));
        push_known(&mut out, "destination_region", to.map(|l| &*l.region));
        push_known(&mut out, "destination_zone", to.map(|l| &*l.zone));
    }
    (out, flag_at)
}

/// Labels of what is counted together: the same names, so that sums over a reporter stay exact.
fn render_overflow(reporter: Reporter) -> (String, usize) {
    let mut out = String::new();
    push_label(&mut out, "reporter", reporter.as_str());
    for name in SOURCE.into_iter().chain(SERVICE).chain(DESTINATION) {
        push_label(&mut out, name, "overflow");
    }
    let flag_at = push_transport(&mut out, Security::Unknown);
    (out, flag_at)
}

const SOURCE: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];
const SERVICE: [&str; 3] =
    ["destination_service", "destination_service_namespace", "destination_service_name"];
const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

/// `unknown` is namespace and revision of one that is not known.
fn push_workload(
    out: &mut String,
    names: [&str; 8],
    (workload, unknown): (Option<&Workload>, Option<(&str, &str)>),
    principal: Option<&str>,
) {
    let (namespace, revision) = (unknown.map(|(namespace, _)| namespace), unknown.map(|(_, last)| last));
    let values = [
        workload.map(|w| &*w.workload_name),
        workload.map(|w| &*w.canonical_name),
        workload.map(|w| &*w.canonical_revision).or(revision),
        namespace.or(workload.map(|w| &*w.namespace)),
        principal,
        workload.map(|w| &*w.canonical_name),
        workload.map(|w| &*w.canonical_revision),
        workload.map(|w| &*w.cluster),
    ];
    for (name, value) in names.into_iter().zip(values) {
        push_known(out, name, value);
    }
}

fn push_transport(out: &mut String, security: Security) -> usize {
    push_label(out, "request_protocol", "tcp");
    let flag_at = out.len();
    push_label(out, "connection_security_policy", security.as_str());
    flag_at
}

pub(super) fn push_known(out: &mut String, name: &str, value: Option<&str>) {
    let value = value.filter(|v| !v.is_empty()).unwrap_or("unknown");
    let cut = if name.ends_with("_principal") { value.len() } else { value.floor_char_boundary(MAX_LABEL) };
    push_label(out, name, value.get(..cut).unwrap_or(value));
}

#[cfg(test)]
mod tests;
