//! How long to wait before the next try. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(15);

/// Doubles from 10 ms to 15 s, with jitter, until something worked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }

    /// Between half of the step and all of it; `random` is any number.
    pub(super) fn next(&mut self, random: u64) -> Duration {
        let step = self.last.map_or(FIRST, |last| last.saturating_mul(2).min(LONGEST));
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
}
