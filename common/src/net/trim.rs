//! When memory that load has used goes back to the system: once the load is over, never while it runs.
//!
//! Told each second how much processor time a worker has used so far, [`Trim::tick`] gives back when it is time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A second in which a worker used less is quiet.
const QUIET: Duration = Duration::from_millis(20);
/// After less work than this there is nothing to give back. Giving back costs a fiftieth of it.
const WORK: Duration = Duration::from_millis(50);
/// Quiet seconds after which it is done once more: what the load has left idle is closed by then.
const ONCE_MORE: u32 = 7;

/// One worker's recent past.
#[derive(Debug, Default)]
pub struct Trim {
    /// Processor time when it was last looked at, and when memory was last given back.
    seen: Duration,
    given_back: Duration,
    /// Quiet seconds since then, while it is to be done once more.
    quiet: Option<u32>,
}

impl Trim {
    /// Gives memory back if now is the time. To be called once a second by the worker itself.
    pub fn tick(&mut self) {
        // Of this thread; fails on no kernel that has namespaces.
        let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
        if self.is_due(used) {
            super::memory::give_back();
        }
    }

    /// Whether memory should be given back now. To be asked once a second with the worker's processor time so far.
    fn is_due(&mut self, used: Duration) -> bool {
        let last = used.saturating_sub(std::mem::replace(&mut self.seen, used));
        if last > QUIET {
            self.quiet = None;
            return false;
        }
        if used.saturating_sub(self.given_back) > WORK {
            (self.given_back, self.quiet) = (used, Some(0));
            return true;
        }
        self.quiet = self.quiet.map(|quiet| quiet + 1).filter(|quiet| *quiet <= ONCE_MORE);
        let due = self.quiet == Some(ONCE_MORE);
        if due {
            self.given_back = used;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds, from 0, at which memory is given back by a worker that uses so many milliseconds in each.
    fn due(used: &[u64]) -> Vec<usize> {
        let (mut trim, mut sum) = (Trim::default(), 0);
        let each = used.iter().enumerate().filter(|(_, used)| {
            sum += **used;
            trim.is_due(Duration::from_millis(sum))
        });
        each.map(|(second, _)| second).collect()
    }

    #[test]
    fn memory_goes_back_when_load_is_over_and_once_more() {
        let quiet = |n: usize| vec![0; n];
        let load = |n: usize| vec![600; n];
        for (what, used, expected) in [
            ("nothing was done", quiet(30), vec![]),
            ("load goes on", load(30), vec![]),
            ("a burst", [load(3), quiet(30)].concat(), vec![3, 10]),
            ("two bursts", [load(1), quiet(3), load(1), quiet(20)].concat(), vec![1, 5, 12]),
            ("a pause that is none", [load(1), vec![30], load(1), quiet(20)].concat(), vec![3, 10]),
            ("a little now and then", vec![1; 120], vec![50, 57, 108, 115]),
            ("a steady trickle", vec![15; 20], vec![3, 7, 11, 15, 19]),
        ] {
            assert_eq!(due(&used), expected, "{what}");
        }
    }
}
