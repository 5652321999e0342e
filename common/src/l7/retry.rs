//! Whether a try is repeated, and after which pause.
//!
//! **Source**: Envoy, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`, retry policy; Istio `HTTPRetry`; GEP-1731.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::failure::Reset;
use crate::model::l7::{BackOff, RetryBudget, RetryOn};

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
    if headers.contains_key("x-envoy-overloaded") {
        return false;
    }
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
