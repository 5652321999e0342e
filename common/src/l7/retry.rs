//! Whether a try is repeated, and after which pause.
//!
//! **Source**: Envoy, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`, retry policy; Istio `HTTPRetry`; GEP-1731.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::failure::Reset;
use crate::model::l7::{BackOff, Retries, RetryBudget, RetryOn};

/// How a try ended.
#[derive(Clone, Copy, Debug)]
pub enum Tried<'a> {
    /// With the head of an answer.
    Answered(StatusCode, &'a HeaderMap),
    /// Without one.
    Reset {
        /// Why.
        reason: Reset,
        /// Whether the head of the request was on its way to the upstream.
        was_sent: bool,
    },
    /// Its own timeout passed.
    TimedOut {
        /// Whether the head of the request was on its way to the upstream.
        was_sent: bool,
    },
}

/// What follows a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one, if the number of retries under way allows it: else it is as it ended, with the flag `UO`.
    Again,
    /// Nothing: it is as it ended.
    Done,
    /// Nothing, though it would be worth another: it is as it ended, with the flag `URX`.
    UsedUp,
}

/// What follows a try that ended so, after `made` repetitions.
pub fn next(retries: &Retries, made: u32, tried: Tried<'_>) -> Next {
    match made < retries.attempts {
        _ if retries.attempts == 0 || !is_worth_it(&retries.on, tried) => Next::Done,
        true => Next::Again,
        false => Next::UsedUp,
    }
}

/// Whether a try that ended so is worth repeating; whether it may be is for the number of tries and for the budget.
pub fn is_worth_it(on: &RetryOn, tried: Tried<'_>) -> bool {
    match tried {
        Tried::Answered(status, headers) => is_worth_it_answered(on, status, headers),
        Tried::Reset { reason, was_sent } => is_worth_it_reset(on, reason, was_sent),
        Tried::TimedOut { was_sent } => is_worth_it_reset(on, Reset::LocalReset, was_sent),
    }
}

fn is_worth_it_answered(on: &RetryOn, status: StatusCode, headers: &HeaderMap) -> bool {
    // Written out, so that a new token has to be looked at.
    let RetryOn {
        five_xx,
        gateway_error,
        reset: _,
        reset_before_request: _,
        connect_failure: _,
        refused_stream: _,
        retriable_4xx,
        envoy_ratelimited,
        statuses,
        grpc_statuses,
    } = on;
    if headers.contains_key("x-envoy-ratelimited") {
        return *envoy_ratelimited;
    }
    (*five_xx && status.is_server_error())
        || (*gateway_error && matches!(status.as_u16(), 502..=504))
        || (*retriable_4xx && status == StatusCode::CONFLICT)
        || statuses.contains(&status)
        || grpc_status(headers).is_some_and(|status| grpc_statuses.contains(&status))
}

fn is_worth_it_reset(on: &RetryOn, reason: Reset, was_sent: bool) -> bool {
    match reason {
        // What a breaker keeps out would be kept out again.
        Reset::Overflow => false,
        _ if on.five_xx || on.gateway_error || on.reset => true,
        _ if on.reset_before_request && !was_sent => true,
        Reset::ConnectionFailure | Reset::ConnectionTimeout => on.connect_failure,
        Reset::RefusedStream => on.refused_stream,
        Reset::ConnectionTermination | Reset::RemoteReset | Reset::LocalReset | Reset::ProtocolError => false,
    }
}

/// gRPC status in headers, or in trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The pause before the `n`th repetition, from 1 on, for any `random` number.
pub fn pause(back_off: BackOff, n: u32, random: u64) -> Duration {
    const MOST: u64 = 10;
    let times = 2_u64.saturating_pow(n).saturating_sub(1).min(MOST);
    let upto = |base: Duration| {
        let nanos = u64::try_from(base.as_nanos()).unwrap_or(u64::MAX).saturating_mul(times);
        Duration::from_nanos(random.checked_rem(nanos).unwrap_or(0))
    };
    match back_off {
        BackOff::Jittered { base } => upto(base),
        BackOff::AtLeast(least) => least.saturating_add(upto(least)),
    }
}

/// Retries that a budget lets be under way at once while so many requests are.
pub fn allowed(budget: &RetryBudget, requests: u32) -> u32 {
    let share = (f64::from(requests) * budget.percent / 100.0).floor();
    // A float that is too large, or none, becomes the nearest number.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    let share = share as u32;
    share.max(budget.min_concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(change: impl Fn(&mut RetryOn)) -> RetryOn {
        let mut on = RetryOn::default();
        change(&mut on);
        on
    }

    /// Each token, with what it repeats and what it does not.
    #[test]
    fn each_token_repeats_what_it_names() {
        use Reset::*;
        let statuses = |on: &RetryOn| -> Vec<u16> {
            [200, 409, 429, 500, 501, 502, 503, 504]
                .into_iter()
                .filter(|status| {
                    let status = StatusCode::from_u16(*status).unwrap();
                    is_worth_it(on, Tried::Answered(status, &HeaderMap::new()))
                })
                .collect()
        };
        let all = [
            ConnectionFailure,
            ConnectionTimeout,
            ConnectionTermination,
            RefusedStream,
            RemoteReset,
            LocalReset,
            Overflow,
            ProtocolError,
        ];
        let resets = |on: &RetryOn, was_sent| -> Vec<Reset> {
            all.into_iter()
                .filter(|reason| is_worth_it(on, Tried::Reset { reason: *reason, was_sent }))
                .collect()
        };
        let but_overflow: Vec<Reset> = all.into_iter().filter(|reason| *reason != Overflow).collect();
        let none: &[Reset] = &[];
        for (on, answered, sent, unsent) in [
            (on(|_| ()), &[][..], none, none),
            (on(|on| on.five_xx = true), &[500, 501, 502, 503, 504], &but_overflow, &but_overflow),
            (on(|on| on.gateway_error = true), &[502, 503, 504], &but_overflow, &but_overflow),
            (on(|on| on.reset = true), &[], &but_overflow, &but_overflow),
            (on(|on| on.reset_before_request = true), &[], none, &but_overflow),
            (
                on(|on| on.connect_failure = true),
                &[],
                &[ConnectionFailure, ConnectionTimeout],
                &[ConnectionFailure, ConnectionTimeout],
            ),
            (on(|on| on.refused_stream = true), &[], &[RefusedStream], &[RefusedStream]),
            (on(|on| on.retriable_4xx = true), &[409], none, none),
            (
                on(|on| on.statuses = vec![StatusCode::NOT_IMPLEMENTED, StatusCode::OK]),
                &[200, 501],
                none,
                none,
            ),
            (on(|on| on.envoy_ratelimited = true), &[], none, none),
            (on(|on| on.grpc_statuses = vec![14]), &[], none, none),
        ] {
            assert_eq!(statuses(&on), answered, "{on:?}");
            assert_eq!(resets(&on, true), sent, "{on:?}");
            assert_eq!(resets(&on, false), unsent, "{on:?}");
            let timed_out = is_worth_it(&on, Tried::TimedOut { was_sent: true });
            assert_eq!(timed_out, on.five_xx || on.gateway_error || on.reset, "{on:?}");
        }
    }

    /// What Envoy 1.40 logs.
    #[test]
    fn retries_are_used_up_only_where_one_more_would_be_worth_it() {
        let retries = |attempts| Retries {
            attempts,
            on: on(|on| on.five_xx = true),
            per_try_timeout: None,
            back_off: BackOff::Jittered { base: Duration::from_millis(25) },
            ignore_previous_hosts: None,
            remote_localities: false,
        };
        let none = HeaderMap::new();
        let bad = Tried::Answered(StatusCode::SERVICE_UNAVAILABLE, &none);
        let good = Tried::Answered(StatusCode::OK, &none);
        for (attempts, made, tried, want) in [
            (2, 0, bad, Next::Again),
            (2, 1, bad, Next::Again),
            (2, 2, bad, Next::UsedUp),
            (2, 0, good, Next::Done),
            (2, 2, good, Next::Done),
            (0, 0, bad, Next::Done),
        ] {
            assert_eq!(next(&retries(attempts), made, tried), want, "{attempts} {made} {tried:?}");
        }
    }

    #[test]
    fn headers_of_an_answer_decide_too() {
        let answered = |on: &RetryOn, status, name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, http::HeaderValue::from_static(value));
            is_worth_it(on, Tried::Answered(status, &headers))
        };
        let (ok, unavailable, limited) =
            (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS);
        let grpc = on(|on| on.grpc_statuses = vec![1, 14]);
        for (status, want) in
            [("1", true), ("14", true), ("4", false), ("0", false), ("x", false), ("999", false)]
        {
            assert_eq!(answered(&grpc, ok, "grpc-status", status), want, "{status}");
        }
        let five_xx = on(|on| on.five_xx = true);
        assert!(answered(&five_xx, unavailable, "x-envoy-overloaded", "true"), "as Envoy 1.40 does");
        assert!(!answered(&five_xx, unavailable, "x-envoy-ratelimited", "true"));
        assert!(answered(&on(|on| on.envoy_ratelimited = true), limited, "x-envoy-ratelimited", "true"));
    }

    #[test]
    fn pauses_grow_up_to_ten_times_the_base() {
        let ms = Duration::from_millis;
        let longest = |back_off, n| (0..1000).map(|i| pause(back_off, n, i * 1_000_003)).max().unwrap();
        let jittered = BackOff::Jittered { base: ms(25) };
        for (n, most) in [(1, 25), (2, 75), (3, 175), (4, 250), (40, 250), (u32::MAX, 250)] {
            let longest = longest(jittered, n);
            assert!(longest < ms(most) && longest > ms(most) * 9 / 10, "{n}: {longest:?}");
        }
        assert_eq!(pause(jittered, 1, 0), Duration::ZERO);
        assert_eq!(pause(BackOff::Jittered { base: Duration::ZERO }, 3, 7), Duration::ZERO);
        let at_least = BackOff::AtLeast(ms(100));
        assert_eq!(pause(at_least, 1, 0), ms(100));
        assert!(longest(at_least, 1) < ms(200) && longest(at_least, 9) < ms(1100));
        let forever = BackOff::AtLeast(Duration::MAX);
        assert_eq!(pause(forever, 3, u64::MAX), Duration::MAX);
    }

    #[test]
    fn a_budget_grows_with_the_requests_under_way() {
        let budget = |percent| RetryBudget { percent, min_concurrency: 3 };
        for (percent, requests, want) in [
            (20.0, 0, 3),
            (20.0, 14, 3),
            (20.0, 20, 4),
            (20.0, 24, 4),
            (100.0, 50, 50),
            (0.0, 1000, 3),
            (1e9, u32::MAX, u32::MAX),
            (f64::NAN, 100, 3),
        ] {
            assert_eq!(allowed(&budget(percent), requests), want, "{percent} {requests}");
        }
    }
}
