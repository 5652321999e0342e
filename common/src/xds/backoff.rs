//! How long to wait before the next try. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(15);

/// Doubles from 10 ms to 15 s, with jitter, until something worked for a while; from four times as much each time that it
/// worked for a moment only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    last: Option<Duration>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: FIRST, last: None }
    }
}

impl Backoff {
    /// Something worked, and for a while.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Something worked for a moment. A server that restarts is soon asked again, and one that breaks whatever it begins
    /// is not asked for everything without a pause.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { first: self.first.saturating_mul(4).min(LONGEST), last: None };
    }

    /// Between half of the step and all of it; `random` is any number.
    pub(super) fn next(&mut self, random: u64) -> Duration {
        let step = self.last.map_or(self.first, |last| last.saturating_mul(2).min(LONGEST));
        self.last = Some(step);
        let half = step / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(random % span.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..14).map(|n| (n, backoff.next(u64::from(n) * 7_919_000))).collect();
        for (n, wait) in waits {
            let step = (FIRST * 2u32.pow(n)).min(LONGEST);
            assert!((step / 2..=step).contains(&wait), "{n}: {wait:?} of {step:?}");
        }
        backoff.reset();
        assert!(backoff.next(u64::MAX) <= FIRST);
    }

    #[test]
    fn what_works_for_a_moment_only_is_tried_more_and_more_seldom() {
        let mut backoff = Backoff::default();
        for moments in 1..8 {
            backoff.begin_anew();
            let step = (FIRST * 4u32.pow(moments)).min(LONGEST);
            for step in [step, (step * 2).min(LONGEST)] {
                assert!((step / 2..=step).contains(&backoff.next(u64::MAX / 3)), "{moments}: {step:?}");
            }
        }
        backoff.reset();
        assert!(backoff.next(0) <= FIRST);
    }
}
