//! How much of something a peer may do that brings it no further.

use std::time::{Duration, Instant};

/// A bucket of tokens that fills with time and with what the peer earns. The clock is read only when it is empty.
#[derive(Debug)]
pub(super) struct Allowance {
    tokens: u64,
    /// What time alone fills it to.
    burst: u64,
    /// What earning fills it to.
    most: u64,
    /// One token comes back in so long.
    pause: Duration,
    filled: Instant,
}

impl Allowance {
    /// A full bucket.
    pub(super) const fn new(now: Instant, burst: u64, pause: Duration) -> Self {
        Self { tokens: burst, burst, most: burst, pause, filled: now }
    }

    /// Earned tokens may come to `most`.
    pub(super) const fn up_to(mut self, most: u64) -> Self {
        self.most = most;
        self
    }

    /// The peer has done something useful.
    pub(super) fn earn(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.most.max(self.tokens));
    }

    /// Whether `cost` is still allowed; it is taken if so.
    pub(super) fn spend(&mut self, cost: u64, now: impl FnOnce() -> Instant) -> bool {
        if self.tokens < cost {
            self.fill(now());
        }
        match self.tokens.checked_sub(cost) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let pause = self.pause.as_nanos().max(1);
        let back = u64::try_from(passed.as_nanos() / pause).unwrap_or(u64::MAX);
        if back > 0 {
            self.filled = now;
            self.tokens = self.tokens.saturating_add(back).min(self.burst.max(self.tokens));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(10);

    #[test]
    fn a_burst_then_a_rate() {
        let start = Instant::now();
        let mut bucket = Allowance::new(start, 5, PAUSE);
        assert!((0..5).all(|_| bucket.spend(1, || panic!("the clock is not needed yet"))));
        assert!(!bucket.spend(1, || start));
        assert!(!bucket.spend(1, || start + PAUSE / 2));
        assert!(bucket.spend(1, || start + PAUSE));
        assert!(!bucket.spend(1, || start + PAUSE + PAUSE / 2));
        let later = start + 1000 * PAUSE;
        assert_eq!((0..20).filter(|_| bucket.spend(1, || later)).count(), 5, "no more than the burst");
    }

    #[test]
    fn slow_use_is_allowed_for_ever() {
        let start = Instant::now();
        let mut bucket = Allowance::new(start, 5, PAUSE);
        assert!((1..1000).all(|n| bucket.spend(1, || start + n * PAUSE)));
    }

    #[test]
    fn what_is_earned_counts_up_to_a_bound() {
        let now = Instant::now();
        let mut bucket = Allowance::new(now, 2, PAUSE).up_to(10);
        bucket.earn(1000);
        assert_eq!((0..20).filter(|_| bucket.spend(1, || now)).count(), 10);
        assert!(!bucket.spend(3, || now + 100 * PAUSE), "time alone fills it to the burst");
        assert!(bucket.spend(2, || now + 100 * PAUSE));
    }
}
