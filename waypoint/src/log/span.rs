//! The span of a request: begun if the caller's trace is recorded, or by chance where nobody has decided; kept at its end.
//!
//! The headers of a trace go through as they are: the application's spans are the caller's children, as this one is.
//! **Source**: l7.md §8.5; Envoy's and Istio's names of tags.

use culvert_common::crypto::random;
use culvert_common::l7::trace_context;
use culvert_common::telemetry::{GrpcStatus, Span};
use http::header::USER_AGENT;

use super::{Line, Meant, REQUEST_ID, Subject, grpc};
use crate::message::Request;
use crate::request::Told;
use crate::serve::Stage;
use crate::shared::drawn;

/// A span that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    trace: u128,
    id: u64,
    parent: Option<u64>,
}

/// Begins a span, if this request is to have one.
pub(crate) fn begin(stage: &Stage, request: &Request) -> Option<Begun> {
    let context = trace_context(&request.headers);
    if !context.sampled.unwrap_or_else(|| drawn(stage.worker.shared.trace_sampling)) {
        return None;
    }
    let id = random() as u64 | 1;
    Some(match context.parent {
        Some((trace, parent)) => Begun { trace, id, parent: Some(parent) },
        None => Begun { trace: random() | 1, id, parent: None },
    })
}

/// Keeps the span of a request that is over.
pub(super) fn end(stage: &Stage, told: &Told, request: &Request, begun: Begun) {
    let Begun { trace, id, parent } = begun;
    let status = told.status.map_or(0, |status| status.as_u16());
    let is_error = told.status.is_none_or(|status| status.is_server_error());
    let name = format!("{}/*", Meant(stage));
    let tags = tags(stage, told, request, is_error);
    let tags = tags.into_iter().chain([("http.status_code", status.to_string())]).collect();
    let (start, took) = (told.started, told.began.elapsed());
    stage.worker.shared.spans.record(Span { trace, id, parent, name, start, took, is_error, tags });
}

fn tags(stage: &Stage, told: &Told, request: &Request, is_error: bool) -> Vec<(&'static str, String)> {
    let header = |name| request.headers.get(name).map(|value| lossy(value.as_bytes()));
    let line = Line { stage, told, subject: Subject::Request(request) };
    let scheme = if request.is_https { "https" } else { "http" };
    let path = lossy(line.path().unwrap_or_default());
    let url = format!("{scheme}://{}{path}", lossy(request.authority.as_bytes()));
    let workload = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
    let from = stage.source.as_ref().map(|from| workload(&from.namespace, &from.workload_name));
    let to = told.endpoint.as_ref().map(|to| workload(&to.workload.namespace, &to.workload.workload_name));
    let (from_namespace, from_workload) = from.unzip();
    let (to_namespace, to_workload) = to.unzip();
    let grpc = match grpc(told) {
        Some(GrpcStatus::Known(status)) => Some(status.to_string()),
        Some(GrpcStatus::None | GrpcStatus::Unknown) | None => None,
    };
    let all = [
        ("component", Some("proxy".to_owned())),
        ("http.method", Some(request.method.to_string())),
        ("http.url", Some(url)),
        ("http.protocol", Some(request.version.as_str().to_owned())),
        ("user_agent", header(&USER_AGENT)),
        ("guid:x-request-id", header(&REQUEST_ID)),
        ("request_size", Some(told.received.to_string())),
        ("response_size", Some(told.sent.to_string())),
        ("response_flags", Some(told.flags.to_string())),
        ("upstream_cluster", line.cluster()),
        ("peer.address", Some(stage.client.address.ip().to_string())),
        ("grpc.status_code", grpc),
        ("error", is_error.then(|| "true".to_owned())),
        ("istio.source_namespace", from_namespace),
        ("istio.source_workload", from_workload),
        ("istio.destination_namespace", to_namespace),
        ("istio.destination_workload", to_workload),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// Text of a stranger; what is long is cut when it is kept.
fn lossy(text: &[u8]) -> String {
    const MAX: usize = 512;
    String::from_utf8_lossy(text.get(..MAX).unwrap_or(text)).into_owned()
}
