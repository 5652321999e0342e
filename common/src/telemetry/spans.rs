//! The newest spans of this process, kept until somebody fetches them: in memory, bounded, in the form in which collectors
//! take them.
//!
//! **Source**: OpenTelemetry Protocol, JSON encoding of `ExportTraceServiceRequest`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Threads that record without waiting for each other.
const SHARDS: usize = 4;
/// Spans that one of them keeps.
const KEPT: usize = 128;
/// Longest text of a span, as Envoy cuts paths.
const TEXT_MAX: usize = 256;
/// A span at the side of the server. Source: OTLP, `SPAN_KIND_SERVER`.
const KIND: u8 = 2;

/// A span of this process.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its trace.
    pub trace: u128,
    /// Itself.
    pub id: u64,
    /// The caller's; none: it begins the trace.
    pub parent: Option<u64>,
    /// What it is of.
    pub name: String,
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Whether it failed.
    pub is_error: bool,
    /// What is known of it; longer texts are cut.
    pub tags: Vec<(&'static str, String)>,
}

thread_local! {
    /// Which shard this thread adds to.
    static SHARD: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed) % SHARDS
    };
}

/// The newest spans.
#[derive(Debug, Default)]
pub struct Spans {
    shards: [Mutex<VecDeque<Span>>; SHARDS],
    recorded: AtomicU64,
}

impl Spans {
    /// Keeps a span; the oldest of this thread's gives way.
    pub fn record(&self, mut span: Span) {
        cut(&mut span.name);
        span.tags.iter_mut().for_each(|(_, text)| cut(text));
        self.recorded.fetch_add(1, Relaxed);
        let Some(shard) = self.shards.get(SHARD.with(|shard| *shard)) else { return };
        let mut kept = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(span);
    }

    /// Spans that were ever recorded.
    pub fn recorded(&self) -> u64 {
        self.recorded.load(Relaxed)
    }

    /// The newest `count` spans, or those of one trace, the newest first, as OTLP has them; `resource` says whose they are.
    pub fn export(&self, resource: &[(&str, String)], trace: Option<u128>, count: usize) -> Value {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        }
        all.retain(|span| trace.is_none_or(|trace| span.trace == trace));
        all.sort_by_key(|span| std::cmp::Reverse(span.start));
        let spans: Vec<Value> = all.iter().take(count).map(one).collect();
        let scope = json!({ "name": "culvert" });
        json!({
            "resourceSpans": [{
                "resource": { "attributes": attributes(resource) },
                "scopeSpans": [{ "scope": scope, "spans": spans }],
            }],
        })
    }
}

fn one(span: &Span) -> Value {
    let since = span.start.duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = |time: Duration| time.as_nanos().to_string();
    let mut shown = json!({
        "traceId": format!("{:032x}", span.trace),
        "spanId": format!("{:016x}", span.id),
        "name": &span.name,
        "kind": KIND,
        "startTimeUnixNano": nanos(since),
        "endTimeUnixNano": nanos(since + span.took),
        "attributes": attributes(&span.tags),
        "status": if span.is_error { json!({ "code": 2 }) } else { json!({}) },
    });
    if let (Some(parent), Value::Object(fields)) = (span.parent, &mut shown) {
        fields.insert("parentSpanId".to_owned(), format!("{parent:016x}").into());
    }
    shown
}

fn attributes(all: &[(&str, String)]) -> Value {
    let one = |(key, value): &(&str, String)| json!({ "key": key, "value": { "stringValue": value } });
    Value::Array(all.iter().map(one).collect())
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(TEXT_MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(number: u64) -> Span {
        Span {
            trace: 0xabc,
            id: number,
            parent: (number != 1).then_some(1),
            name: "cart:80/*".into(),
            start: UNIX_EPOCH + Duration::from_millis(number),
            took: Duration::from_micros(5),
            is_error: number == 1,
            tags: vec![("http.method", "GET".into()), ("http.url", "é".repeat(TEXT_MAX))],
        }
    }

    fn spans(exported: &Value) -> &Vec<Value> {
        exported["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap()
    }

    #[test]
    fn spans_are_exported_as_collectors_take_them() {
        let all = Spans::default();
        all.record(span(1));
        all.record(Span { trace: 0xdef, ..span(2) });
        let exported = all.export(&[("service.name", "waypoint.shop".into())], Some(0xabc), 10);
        assert_eq!(
            exported["resourceSpans"][0]["resource"]["attributes"],
            json!([{ "key": "service.name", "value": { "stringValue": "waypoint.shop" } }])
        );
        let [only] = &spans(&exported)[..] else { panic!("{exported}") };
        assert_eq!(
            (&only["traceId"], &only["spanId"], &only["parentSpanId"]),
            (&json!("00000000000000000000000000000abc"), &json!("0000000000000001"), &Value::Null)
        );
        assert_eq!(
            (&only["startTimeUnixNano"], &only["endTimeUnixNano"]),
            (&json!("1000000"), &json!("1005000"))
        );
        assert_eq!((&only["status"], &only["kind"]), (&json!({ "code": 2 }), &json!(2)));
        let url = only["attributes"][1]["value"]["stringValue"].as_str().unwrap();
        assert!(url.len() <= TEXT_MAX, "cut: {}", url.len());
        assert_eq!(
            spans(&all.export(&[], None, 1))[0]["parentSpanId"],
            "0000000000000001",
            "the newest first"
        );
    }

    #[test]
    fn the_oldest_give_way() {
        let all = Spans::default();
        (1..=2 * KEPT as u64).for_each(|number| all.record(span(number)));
        let exported = all.export(&[], None, usize::MAX);
        assert_eq!((spans(&exported).len(), all.recorded()), (KEPT, 2 * KEPT as u64));
        assert_eq!(spans(&exported)[KEPT - 1]["spanId"], format!("{:016x}", KEPT + 1));
    }
}
