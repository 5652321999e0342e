//! When requests are due. Pure: time is an argument, in nanoseconds.

/// One request after another at a constant rate: request `n` is due `n / rate` seconds after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    start: u64,
    rate: u32,
}

impl Schedule {
    pub(super) fn new(start: u64, rate: u32) -> Self {
        Self { start, rate: rate.max(1) }
    }

    /// When a request is due, exactly: no error adds up over a long run.
    pub(super) fn due(self, number: u64) -> u64 {
        let after = u128::from(number) * 1_000_000_000 / u128::from(self.rate);
        self.start.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }

    /// How many requests are due before `time`.
    pub(super) fn count_before(self, time: u64) -> u64 {
        let Some(after) = time.checked_sub(self.start) else {
            return 0;
        };
        let count = (u128::from(after) * u128::from(self.rate)).div_ceil(1_000_000_000);
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_spread_evenly() {
        let schedule = Schedule::new(500, 3);
        assert_eq!([0, 1, 2, 3].map(|n| schedule.due(n)), [500, 333_333_833, 666_667_166, 1_000_000_500]);
        assert_eq!([0, 500, 501].map(|time| schedule.count_before(time)), [0, 0, 1]);
    }

    proptest! {
        /// Counting and dating agree, and after a day a rate is still exact.
        #[test]
        fn a_request_is_due_before_any_later_moment(rate in 1_u32..1_000_000, number in 0_u64..1 << 40) {
            let schedule = Schedule::new(7, rate);
            let due = schedule.due(number);
            prop_assert!(schedule.count_before(due) <= number);
            prop_assert!(schedule.count_before(due + 1) > number);
            prop_assert!(schedule.due(number + 1) > due);
            prop_assert_eq!(schedule.due(u64::from(rate) * 86_400), 7 + 86_400 * 1_000_000_000);
        }
    }
}
