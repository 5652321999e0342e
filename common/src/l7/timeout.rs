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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::fixtures::{asked, lines};

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn grpc(timeout: &str) -> HeaderMap {
        asked("POST /").with(&format!("grpc-timeout: {timeout}")).headers
    }

    #[test]
    fn a_grpc_client_may_ask_for_less() {
        for (route, asked, want) in [
            (None, None, None),
            (Some(S(5)), None, Some(S(5))),
            (Some(S(5)), Some("1S"), Some(S(1))),
            (Some(S(5)), Some("9S"), Some(S(5))),
            (None, Some("2M"), Some(S(120))),
            (None, Some("1H"), Some(S(3600))),
            (None, Some("1500m"), Some(Duration::from_millis(1500))),
            (None, Some("1u"), Some(Duration::from_millis(1))),
            (None, Some("2000001n"), Some(Duration::from_millis(3))),
            (None, Some("0S"), None),
            (Some(S(5)), Some("0S"), Some(S(5))),
            (Some(S(5)), Some("bad"), Some(S(5))),
            (None, Some("S"), None),
            (None, Some("123456789S"), None),
            (None, Some("-1S"), None),
            (None, Some("+1S"), None),
            (None, Some("1s"), None),
            (Some(S(0)), None, None),
        ] {
            let headers = asked.map(grpc);
            assert_eq!(timeouts(route, None, headers.as_ref()).request, want, "{route:?} {asked:?}");
        }
    }

    #[test]
    fn a_try_takes_no_longer_than_what_is_left() {
        let of = |request, per_try| timeouts(request, per_try, None);
        assert_eq!(of(None, None).of_try(S(9)), None);
        assert_eq!(of(None, Some(S(2))).of_try(S(9)), Some(S(2)));
        assert_eq!(of(Some(S(5)), Some(S(2))).of_try(S(0)), Some(S(2)));
        assert_eq!(of(Some(S(5)), Some(S(2))).of_try(S(4)), Some(S(1)), "it shrinks");
        assert_eq!(of(Some(S(5)), None).of_try(S(1)), Some(S(4)));
        assert_eq!(of(Some(S(5)), None).of_try(S(7)), Some(Duration::from_millis(1)));
        assert_eq!(of(Some(S(5)), Some(S(5))).per_try, None, "as long as all of it is none");
        assert_eq!(of(Some(S(5)), Some(S(0))).per_try, None);
    }

    /// What Envoy 1.40 sends.
    #[test]
    fn the_upstream_is_told_how_long_it_may_take() {
        let told = |request, per_try, is_grpc: bool, headers: HeaderMap| {
            let mut headers = headers;
            let asked = is_grpc.then_some(&headers);
            timeouts(request, per_try, asked).announce(Duration::ZERO, is_grpc, &mut headers);
            lines(&headers)
        };
        let none = HeaderMap::new;
        assert_eq!(told(None, None, false, none()), [""; 0]);
        let want = ["x-envoy-expected-rq-timeout-ms: 2000"];
        assert_eq!(told(Some(S(5)), Some(S(2)), false, none()), want);
        let want = ["grpc-timeout: 2000m", "x-envoy-expected-rq-timeout-ms: 2000"];
        assert_eq!(told(Some(S(5)), Some(S(2)), true, none()), want);
        assert_eq!(told(Some(S(5)), Some(S(2)), true, grpc("bad")), want);
        let want = ["grpc-timeout: 1000m", "x-envoy-expected-rq-timeout-ms: 1000"];
        assert_eq!(told(Some(S(5)), Some(S(2)), true, grpc("1S")), want);
        assert_eq!(told(None, None, false, grpc("1S")), ["grpc-timeout: 1S"], "no gRPC");
    }

    #[test]
    fn long_times_are_told_in_larger_units() {
        for (millis, want) in [
            (1, "1m"),
            (99_999_999, "99999999m"),
            (100_000_000, "100000S"),
            (99_999_999_000, "99999999S"),
            (100_000_000_000, "1666666M"),
            (u64::MAX, "99999999H"),
        ] {
            assert_eq!(grpc_text(millis), want);
        }
    }
}
