//! The families of HTTP requests that a waypoint counts: series of one set of labels each, in a bounded table.
//!
//! A worker finds the series of a request in a small table of its thread and adds to a dozen numbers; labels are rendered
//! once. Requests are counted when they end, messages of gRPC as they pass, under the labels that are known by then.
//! **Source**: l7.md §8.1, §8.2; Istio's filter `istio_stats`.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::connection::Security;
use super::encode::{Kind, Scrape, push_label};
use super::labels::{SOURCE, push_known, values};
use super::table::{self, Table};
use crate::model::{Service, Workload};
use crate::types::SpiffeId;

/// Sets of labels that are counted apart.
const MAX_SERIES: usize = 5_000;
/// Series that one worker remembers.
const CACHE_SLOTS: usize = 256;

/// Upper bounds of all histograms. Source: Istio, default buckets.
const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];
const HISTOGRAMS: [(&str, &str); 3] = [
    ("istio_request_duration_milliseconds", "Milliseconds from a request's first byte to its answer's last."),
    ("istio_request_bytes", "Bytes of requests, heads included."),
    ("istio_response_bytes", "Bytes of answers, heads included."),
];
const TOTAL: (&str, &str) = ("istio_requests_total", "HTTP requests that have ended.");
const MESSAGES: [(&str, &str); 2] = [
    ("istio_request_messages_total", "Messages of gRPC requests."),
    ("istio_response_messages_total", "Messages of gRPC answers."),
];

/// Between whom a request is.
#[derive(Clone, Copy, Debug)]
pub struct Between<'a> {
    /// The client's workload.
    pub source: Option<&'a Arc<Workload>>,
    /// The client, as TLS has proven it.
    pub source_identity: &'a SpiffeId,
    /// The endpoint that was chosen last.
    pub destination: Option<&'a Arc<Workload>>,
    /// The service that was asked for.
    pub service: Option<&'a Arc<Service>>,
}

/// A request that has ended.
#[derive(Clone, Copy, Debug)]
pub struct EndedRequest<'a> {
    /// Between whom it was.
    pub between: Between<'a>,
    /// Status of the answer; 0: the client had gone before there was one.
    pub status: u16,
    /// Of a gRPC request, what its answer says.
    pub grpc: Option<GrpcStatus>,
    /// Response flags, `-` without any.
    pub flags: &'a str,
    /// How long it took.
    pub took: Duration,
    /// Bytes of the request and of the answer.
    pub bytes: (u64, u64),
}

/// How a gRPC request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrpcStatus {
    /// The client had gone before there was an answer.
    None,
    /// The answer has something that no status is.
    Unknown,
    /// 0 to 16.
    Known(u8),
}

impl From<u32> for GrpcStatus {
    fn from(status: u32) -> Self {
        match u8::try_from(status) {
            Ok(status) if status <= 16 => Self::Known(status),
            _ => Self::Unknown,
        }
    }
}

/// Where messages of one gRPC request are counted.
pub struct GrpcMessages(Arc<Series>);

impl GrpcMessages {
    /// Adds messages of the client.
    pub fn add_requests(&self, count: u64) {
        self.add(0, count);
    }

    /// Adds messages of the server.
    pub fn add_responses(&self, count: u64) {
        self.add(1, count);
    }

    fn add(&self, way: usize, count: u64) {
        if let Numbers::Messages(both) = &self.0.numbers
            && let Some(one) = both.get(way)
        {
            one.fetch_add(count, Relaxed);
        }
    }
}

/// Numbers of one set of labels.
struct Series {
    labels: Box<str>,
    numbers: Numbers,
    /// Seconds since the start of the table.
    used: AtomicU32,
    /// Counts what found no place of its own.
    is_shared: bool,
}

/// What is counted under one set of labels.
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
enum Numbers {
    Requests {
        total: AtomicU64,
        histograms: [Histogram; 3],
    },
    /// Of clients and of servers.
    Messages([AtomicU64; 2]),
}

#[derive(Default)]
struct Histogram {
    /// One more than there are bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// In thousandths.
    sum: AtomicU64,
}

impl Histogram {
    fn add(&self, thousandths: u64) {
        let value = thousandths as f64 / 1e3;
        let at = BOUNDS.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(thousandths, Relaxed);
    }

    fn write(&self, scrape: &mut Scrape, name: &str, labels: &str) {
        let mut seen = 0;
        let counts = self.counts.iter().map(|count| {
            seen += count.load(Relaxed);
            seen
        });
        let counts: Vec<u64> = counts.collect();
        let buckets = BOUNDS.into_iter().zip(counts.iter().copied());
        scrape.histogram(name, labels, buckets, (seen, self.sum.load(Relaxed) as f64 / 1e3));
    }
}

impl Series {
    fn new(labels: String, numbers: Numbers, is_shared: bool) -> Self {
        Self { labels: labels.into(), numbers, used: AtomicU32::new(0), is_shared }
    }

    fn add(&self, ended: &EndedRequest<'_>) {
        let Numbers::Requests { total, histograms } = &self.numbers else { return };
        total.fetch_add(1, Relaxed);
        let took = u64::try_from(ended.took.as_micros()).unwrap_or(u64::MAX);
        let (request, response) = ended.bytes;
        let values = [took, request.saturating_mul(1000), response.saturating_mul(1000)];
        for (histogram, value) in histograms.iter().zip(values) {
            histogram.add(value);
        }
    }

    /// Its samples of a family; none if it has no part in it.
    fn write(&self, family: Family, scrape: &mut Scrape) -> Option<()> {
        let name = family.named().0;
        match (family, &self.numbers) {
            (Family::Total, Numbers::Requests { total, .. }) => {
                scrape.sample(name, &[&self.labels], total.load(Relaxed));
            }
            (Family::Histogram(at), Numbers::Requests { histograms, .. }) => {
                histograms.get(at)?.write(scrape, name, &self.labels);
            }
            (Family::Messages(way), Numbers::Messages(both)) => {
                scrape.sample(name, &[&self.labels], both.get(way)?.load(Relaxed));
            }
            _ => return None,
        }
        Some(())
    }
}

/// One family, by its place among those of its kind.
#[derive(Clone, Copy)]
enum Family {
    Total,
    Histogram(usize),
    Messages(usize),
}

impl Family {
    const ALL: [Self; 6] = [
        Self::Total,
        Self::Histogram(0),
        Self::Histogram(1),
        Self::Histogram(2),
        Self::Messages(0),
        Self::Messages(1),
    ];

    /// Its name and help.
    fn named(self) -> (&'static str, &'static str) {
        match self {
            Self::Total => TOTAL,
            Self::Histogram(at) => HISTOGRAMS.get(at).copied().unwrap_or(TOTAL),
            Self::Messages(way) => MESSAGES.get(way).copied().unwrap_or(TOTAL),
        }
    }

    fn has(self, series: &Series) -> bool {
        matches!(self, Self::Messages(_)) == matches!(series.numbers, Numbers::Messages(_))
    }
}

impl table::Series for Series {
    fn labels(&self) -> &str {
        &self.labels
    }

    fn used(&self) -> &AtomicU32 {
        &self.used
    }
}

/// What is known of a request that has ended; none of this of one whose messages are counted as they pass.
#[derive(Clone, Copy, PartialEq)]
struct End<'a> {
    status: u16,
    grpc: Option<GrpcStatus>,
    flags: &'a str,
}

/// What of a request decides where it is counted.
struct Slot {
    source: Option<Arc<Workload>>,
    source_identity: SpiffeId,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    end: Option<(u16, Option<GrpcStatus>, Box<str>)>,
    /// Weak, so that what the table has given up is looked up anew.
    series: Weak<Series>,
}

impl Slot {
    fn new(between: &Between<'_>, end: Option<End<'_>>, series: &Arc<Series>) -> Self {
        Self {
            source: between.source.cloned(),
            source_identity: between.source_identity.clone(),
            destination: between.destination.cloned(),
            service: between.service.cloned(),
            end: end.map(|end| (end.status, end.grpc, end.flags.into())),
            series: Arc::downgrade(series),
        }
    }

    fn is_for(&self, between: &Between<'_>, end: Option<End<'_>>) -> bool {
        fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
            a.map(Arc::as_ptr) == b.map(Arc::as_ptr)
        }
        let own = self.end.as_ref().map(|(status, grpc, flags)| End { status: *status, grpc: *grpc, flags });
        own == end
            && same(self.source.as_ref(), between.source)
            && same(self.destination.as_ref(), between.destination)
            && same(self.service.as_ref(), between.service)
            && self.source_identity == *between.source_identity
    }
}

thread_local! {
    /// Direct-mapped, as the pairs of workloads are: a collision costs the slow look-up and nothing else.
    static CACHE: RefCell<(RandomState, Vec<Option<Box<Slot>>>)> = RefCell::default();
}

/// All series of the process; what finds no place is counted together: requests, and messages.
pub(super) struct Requests(Table<Series, 2>);

impl Requests {
    pub(super) fn new() -> Self {
        Self(Table::new(MAX_SERIES))
    }

    /// Counts a request.
    pub(super) fn count(&self, ended: &EndedRequest<'_>, now: Instant) {
        let end = End { status: ended.status, grpc: ended.grpc, flags: ended.flags };
        self.found(&ended.between, Some(end), now).add(ended);
    }

    /// Where the messages of a gRPC request are counted.
    pub(super) fn messages(&self, between: &Between<'_>, now: Instant) -> GrpcMessages {
        GrpcMessages(self.found(between, None, now))
    }

    fn found(&self, between: &Between<'_>, end: Option<End<'_>>, now: Instant) -> Arc<Series> {
        let seconds = self.0.seconds(now);
        let found = CACHE.with_borrow_mut(|(hasher, slots)| {
            if slots.is_empty() {
                slots.resize_with(CACHE_SLOTS, || None);
            }
            let key = (
                between.source.map(Arc::as_ptr),
                between.destination.map(Arc::as_ptr),
                between.service.map(Arc::as_ptr),
                end.map(|end| (end.status, end.grpc)),
            );
            let at = (hasher.hash_one(key) as usize) % CACHE_SLOTS;
            let slot = slots.get_mut(at);
            let met = slot.as_deref().and_then(Option::as_ref).filter(|slot| slot.is_for(between, end));
            if let Some(series) = met.and_then(|slot| slot.series.upgrade()) {
                return series;
            }
            let series = self.series(between, end, seconds);
            if let Some(slot) = slot.filter(|_| !series.is_shared) {
                *slot = Some(Box::new(Slot::new(between, end, &series)));
            }
            series
        });
        found.used.store(seconds, Relaxed);
        found
    }

    fn series(&self, between: &Between<'_>, end: Option<End<'_>>, seconds: u32) -> Arc<Series> {
        let labels = render(between, end);
        let numbers = || match end {
            Some(_) => Numbers::Requests { total: AtomicU64::new(0), histograms: Default::default() },
            None => Numbers::Messages(Default::default()),
        };
        let shared = || Series::new(render_overflow(end.is_some()), numbers(), true);
        let make = |labels| Series::new(labels, numbers(), false);
        self.0.series(labels, seconds, make, (usize::from(end.is_none()), shared))
    }

    /// The families, in pieces: the text of all would be large.
    pub(super) fn pieces(&self, openmetrics: bool) -> impl Iterator<Item = String> + Send + use<> {
        self.0.forget(self.0.seconds(Instant::now()));
        let all: Arc<[Arc<Series>]> = self.0.sorted().into();
        Family::ALL.into_iter().flat_map(move |family| {
            let (name, help) = family.named();
            let kind = if matches!(family, Family::Histogram(_)) { Kind::Histogram } else { Kind::Counter };
            let head = all.iter().any(|series| family.has(series)).then(|| {
                let mut head = Scrape::new(openmetrics);
                head.family(name, kind, help);
                head.part()
            });
            let all = Arc::clone(&all);
            head.into_iter().chain((0..all.len()).filter_map(move |index| {
                let mut part = Scrape::new(openmetrics);
                all.get(index)?.write(family, &mut part)?;
                Some(part.part())
            }))
        })
    }
}

const DESTINATION: [&str; 11] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
];

/// **Source**: Istio `istio_stats`: the namespace is that of the identity, a revision that is not known is the latest.
fn render(between: &Between<'_>, end: Option<End<'_>>) -> String {
    let mut out = String::with_capacity(1400);
    push_label(&mut out, "reporter", "waypoint");
    let (source, to) = (between.source.map(|w| &**w), between.destination.map(|w| &**w));
    let client = between.source_identity.to_string();
    let stranger = Some((between.source_identity.namespace(), "latest"));
    push_known(&mut out, SOURCE, values(source, stranger, Some(&client)));
    let (service, server) = (between.service.map(|s| &**s), to.map(|w| w.identity.to_string()));
    let values = [
        to.map(|w| &*w.workload_name),
        to.map(|w| &*w.namespace),
        server.as_deref(),
        to.map(|w| &*w.canonical_name),
        to.map(|w| &*w.canonical_revision),
        service.map(|s| &*s.key.hostname),
        to.map(|w| &*w.canonical_name),
        to.map(|w| &*w.canonical_revision),
        service.map(|s| &*s.name),
        service.map(|s| &*s.key.namespace),
        to.map(|w| &*w.cluster),
    ];
    push_known(&mut out, DESTINATION, values);
    let Some(end) = end else { return out };
    push_label(&mut out, "request_protocol", if end.grpc.is_some() { "grpc" } else { "http" });
    push_label(&mut out, "response_code", &end.status.to_string());
    match end.grpc {
        Some(GrpcStatus::Known(status)) => push_label(&mut out, "grpc_response_status", &status.to_string()),
        Some(GrpcStatus::Unknown) => push_label(&mut out, "grpc_response_status", "unknown"),
        Some(GrpcStatus::None) | None => {}
    }
    push_label(&mut out, "response_flags", end.flags);
    push_label(&mut out, "connection_security_policy", Security::MutualTls.as_str());
    out
}

/// Labels of what is counted together.
fn render_overflow(has_ended: bool) -> String {
    const REST: [&str; 4] =
        ["request_protocol", "response_code", "response_flags", "connection_security_policy"];
    let mut out = String::new();
    push_label(&mut out, "reporter", "waypoint");
    let rest = if has_ended { &REST[..] } else { &[] };
    for name in SOURCE.into_iter().chain(DESTINATION).chain(rest.iter().copied()) {
        push_label(&mut out, name, "overflow");
    }
    out
}

#[cfg(test)]
mod tests;
