//! How long a request and each of its tries may take, and what the upstream is told of it.
//!
//! **Source**: Envoy, HTTP router timeouts, `x-envoy-expected-rq-timeout-ms`; gRPC over HTTP/2, `grpc-timeout`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::types::push_number;

const EXPECTED: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How long a request may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// All of it, from the end of the request on; none: no limit.
    pub request: Option<Duration>,
    /// Each try; none: as long as the request.
    pub per_try: Option<Duration>,
}

/// What the route says, and for gRPC what the client asks for, which can only be less.
///
/// **Shape**: `grpc` has the headers of a gRPC request. A time of zero is no limit.
pub fn timeouts(route: Option<Duration>, per_try: Option<Duration>, grpc: Option<&HeaderMap>) -> Timeouts {
    let some = |time: Option<Duration>| time.filter(|time| !time.is_zero());
    let asked = some(grpc.and_then(grpc_timeout));
    let request = match (some(route), asked) {
        (Some(most), Some(asked)) => Some(most.min(asked)),
        (most, asked) => most.or(asked),
    };
    let is_less = |try_time: &Duration| request.is_none_or(|all| *try_time < all);
    Timeouts { request, per_try: some(per_try).filter(is_less) }
}

impl Timeouts {
    /// What the upstream may take for a try that begins `elapsed` after the end of the request; none: no limit.
    pub fn of_try(&self, elapsed: Duration) -> Option<Duration> {
        let all = self.request.map(|all| all.saturating_sub(elapsed).max(Duration::from_millis(1)));
        match (self.per_try, all) {
            (Some(one), Some(all)) => Some(one.min(all)),
            (one, all) => one.or(all),
        }
    }

    /// Tells the upstream how long a try may take; gRPC is told in its own way as well.
    pub fn announce(&self, elapsed: Duration, is_grpc: bool, headers: &mut HeaderMap) {
        let Some(time) = self.of_try(elapsed) else { return };
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        headers.insert(EXPECTED, HeaderValue::from(millis));
        if is_grpc && let Ok(value) = HeaderValue::try_from(grpc_text(millis)) {
            headers.insert(GRPC_TIMEOUT, value);
        }
    }
}

/// `grpc-timeout`: up to eight digits and a unit, of `H M S m u n`. What is no such time is none.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.as_bytes();
    let (unit, digits) = text.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let millis = match unit {
        b'H' => number.checked_mul(3_600_000)?,
        b'M' => number.checked_mul(60_000)?,
        b'S' => number.checked_mul(1_000)?,
        b'm' => number,
        b'u' => number.div_ceil(1_000),
        b'n' => number.div_ceil(1_000_000),
        _ => return None,
    };
    Some(Duration::from_millis(millis))
}

/// The same of milliseconds: the smallest unit that has room for it.
fn grpc_text(millis: u64) -> String {
    const MOST: u64 = 99_999_999;
    let mut text = String::with_capacity(9);
    let units = [(1, 'm'), (1_000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let fits = units.into_iter().find(|(size, _)| millis / size <= MOST);
    let (number, unit) = fits.map_or((MOST, 'H'), |(size, unit)| (millis / size, unit));
    push_number(&mut text, number);
    text.push(unit);
    text
}
