//! What holds for any `grpc-timeout`.

use std::time::Duration;

use culvert_common::l7::timeout::timeouts;
use http::{HeaderMap, HeaderValue};

/// `grpc-timeout`: what the upstream is told is never more.
pub(crate) fn grpc_timeout(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("grpc-timeout", value);
    let asked = timeouts(None, None, Some(&headers));
    let Some(time) = asked.request else { return };
    asked.announce(Duration::ZERO, true, &mut headers);
    let told = timeouts(None, None, Some(&headers)).request.expect("a time is told");
    assert!(!told.is_zero() && told <= time, "{time:?} is told as {told:?}");
    assert!(headers["x-envoy-expected-rq-timeout-ms"].to_str().is_ok_and(|text| text.parse::<u64>().is_ok()));
}
