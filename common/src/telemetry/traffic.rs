//! The five `istio_tcp_*` families: counters of one pair of workloads, and the bounded table of all pairs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::ResponseFlag;
use super::connection::{Flow, Reporter, Security};
use super::encode::{Kind, Scrape, push_label};
use super::labels::{SOURCE, push_known, values};
use super::table::{Series, Table};

/// Pairs that are counted apart.
const MAX_PAIRS: usize = 10_000;
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
    fn new((labels, flag_at): (String, usize)) -> Self {
        Self {
            labels: labels.into(),
            flag_at,
            shared: false,
            opened: AtomicU64::new(0),
            bytes: Default::default(),
            closed: Default::default(),
            failed: Default::default(),
            used: AtomicU32::new(0),
        }
    }

    fn overflow(reporter: Reporter) -> Self {
        Self { shared: true, ..Self::new(render_overflow(reporter)) }
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

impl Series for Pair {
    fn labels(&self) -> &str {
        &self.labels
    }

    fn used(&self) -> &AtomicU32 {
        &self.used
    }
}

/// All pairs of the process; those that find no place are counted together by reporter.
pub(super) struct Traffic(Table<Pair, 3>);

impl Traffic {
    pub(super) fn new() -> Self {
        Self(Table::new(MAX_PAIRS))
    }

    pub(super) fn seconds(&self, now: Instant) -> u32 {
        self.0.seconds(now)
    }

    /// The counters for `flow`, made if there are none. A worker keeps what it gets: this renders all labels.
    pub(super) fn pair(&self, flow: &Flow, seconds: u32) -> Arc<Pair> {
        let (labels, flag_at) = render(flow);
        let overflow = (flow.reporter as usize, || Pair::overflow(flow.reporter));
        self.0.series(labels, seconds, |labels| Pair::new((labels, flag_at)), overflow)
    }

    /// Forgets pairs that have no open connection and had no new one for hours.
    pub(super) fn forget(&self, seconds: u32) {
        self.0.forget(seconds);
    }

    /// Writes the five families.
    pub(super) fn encode(&self, scrape: &mut Scrape) {
        let pairs = self.0.sorted();
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
    push_known(&mut out, SOURCE, values(source, stranger, source_principal.as_deref()));
    let of_service =
        [service.map(|s| &*s.key.hostname), service.map(|s| &*s.key.namespace), service.map(|s| &*s.name)];
    push_known(&mut out, SERVICE, of_service);
    push_known(&mut out, DESTINATION, values(destination, None, destination_principal.as_deref()));
    let flag_at = push_transport(&mut out, flow.security);
    if !is_waypoint && (source.is_some() || destination.is_some()) {
        let (from, to) = (source.map(|w| &w.locality), destination.map(|w| &w.locality));
        let of =
            [from.map(|l| &*l.region), from.map(|l| &*l.zone), to.map(|l| &*l.region), to.map(|l| &*l.zone)];
        push_known(&mut out, LOCALITY, of);
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

const SERVICE: [&str; 3] =
    ["destination_service", "destination_service_namespace", "destination_service_name"];
const LOCALITY: [&str; 4] = ["source_region", "source_zone", "destination_region", "destination_zone"];
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

fn push_transport(out: &mut String, security: Security) -> usize {
    push_label(out, "request_protocol", "tcp");
    let flag_at = out.len();
    push_label(out, "connection_security_policy", security.as_str());
    flag_at
}

#[cfg(test)]
mod tests;
