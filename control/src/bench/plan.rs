//! Which work goes through which mode when, and how long that takes. Pure.

use std::time::Duration;

use super::work::{Kind, Work};

/// How often and how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Rounds of each work.
    pub rounds: u32,
    /// Seconds of one sample; the load programs know whole ones only.
    pub seconds: u32,
    /// Share of the whole run's time that may go into the repetition of disturbed samples.
    pub repeats: f64,
}

impl Pace {
    /// A full run: long enough to be quoted.
    pub const FULL: Self = Self { rounds: 5, seconds: 2, repeats: 0.15 };
    /// A first answer.
    pub const QUICK: Self = Self { rounds: 3, seconds: 1, repeats: 0.1 };
}

/// Rounds of works that restart a mode: memory differs little between them, and each takes long.
const RESTART_ROUNDS: u32 = 2;
/// How long the memory work waits after load.
pub const LATER: Duration = Duration::from_secs(10);
/// Around each sample: counters, the start of the load program.
const AROUND: Duration = Duration::from_millis(450);
/// Building one mode's lab and starting it, with its warm-up.
const BUILD: Duration = Duration::from_secs(3);

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// From 1.
    pub round: u32,
    /// Index of the mode.
    pub mode: usize,
    /// Index of the work.
    pub work: usize,
}

/// All samples in their order.
///
/// In each round every work goes through all modes one after the other, forwards in odd rounds and backwards in even ones:
/// what changes slowly on the machine meets all of them alike. Works that restart a mode come last, so that what is
/// measured with everything running is measured first.
pub fn steps(works: &[Work], modes: usize, rounds: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    for (late, rounds) in [(false, rounds), (true, rounds.min(RESTART_ROUNDS))] {
        for round in 1..=rounds {
            for work in (0..works.len()).filter(|w| works.get(*w).is_some_and(|w| restarts(w) == late)) {
                let step = |mode| Step { round, mode, work };
                match round % 2 {
                    1 => steps.extend((0..modes).map(step)),
                    _ => steps.extend((0..modes).rev().map(step)),
                }
            }
        }
    }
    steps
}

/// Whether the work restarts the mode.
pub fn restarts(work: &Work) -> bool {
    matches!(work.kind, Kind::Memory { .. } | Kind::Start { .. })
}

/// How long load is applied for one sample.
pub fn length(work: &Work, seconds: u32) -> Duration {
    // A high percentile needs more requests than a constant rate gives in the time of the other works.
    let seconds = if matches!(work.kind, Kind::Open { .. }) { (seconds * 3).div_ceil(2) } else { seconds };
    Duration::from_secs(seconds.into())
}

/// How long one sample takes in all.
pub fn cost(work: &Work, seconds: u32) -> Duration {
    match work.kind {
        Kind::Memory { .. } => Duration::from_secs(5) + Duration::from_secs(seconds.into()) * 2 + LATER,
        Kind::Start { workloads } => Duration::from_secs(3) + Duration::from_micros(300) * workloads,
        _ => length(work, seconds) + AROUND,
    }
}

/// How long the whole run takes without repetitions.
pub fn estimate(works: &[Work], steps: &[Step], modes: usize, seconds: u32) -> Duration {
    let of = |step: &Step| works.get(step.work).map(|work| cost(work, seconds)).unwrap_or_default();
    let built = u32::try_from(modes).unwrap_or(u32::MAX);
    BUILD * built + steps.iter().map(of).sum::<Duration>()
}

/// `about 20 minutes`, `40 s`.
pub fn about(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=99 => format!("{seconds} s"),
        _ => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn work(name: &str, kind: Kind) -> Work {
        Work { name: name.to_owned(), title: String::new(), kind }
    }

    fn two() -> Vec<Work> {
        vec![
            work("memory", Kind::Memory { idle: 10 }),
            work("c1", Kind::Closed { connections: 1, body: 100 }),
        ]
    }

    #[test]
    fn modes_alternate_forwards_and_backwards() {
        let order: Vec<_> = steps(&two(), 3, 2).into_iter().map(|s| (s.work, s.round, s.mode)).collect();
        let plain = [(1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 2, 2), (1, 2, 1), (1, 2, 0)];
        let restarting = [(0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 2, 2), (0, 2, 1), (0, 2, 0)];
        assert_eq!(order, [plain, restarting].concat());
    }

    #[test]
    fn every_mode_does_every_work_in_every_round_once() {
        let steps = steps(&two(), 4, 5);
        let mut count: BTreeMap<(usize, usize), BTreeSet<u32>> = BTreeMap::new();
        for step in &steps {
            assert!(count.entry((step.work, step.mode)).or_default().insert(step.round));
        }
        for mode in 0..4 {
            assert_eq!(count[&(1, mode)], (1..=5).collect());
            assert_eq!(count[&(0, mode)], (1..=RESTART_ROUNDS).collect(), "restarts take long");
        }
        assert_eq!(steps.len(), 4 * 5 + 4 * 2);
    }

    #[test]
    fn nothing_to_do_is_no_step() {
        assert!(steps(&[], 3, 3).is_empty());
        assert!(steps(&two(), 0, 3).is_empty());
        assert!(steps(&two(), 3, 0).is_empty());
    }

    #[test]
    fn open_loops_last_longer() {
        let open = work("o", Kind::Open { rate: 1, connections: 1 });
        assert_eq!([1, 2].map(|s| length(&open, s).as_secs()), [2, 3]);
        let bulk = work("b", Kind::Bulk { streams: 1, down: false });
        assert_eq!(cost(&bulk, 2), Duration::from_secs(2) + AROUND);
    }

    /// What the help promises.
    #[test]
    fn a_first_answer_takes_less_than_two_minutes_and_all_less_than_half_an_hour() {
        let time = |works: &[Work], modes: usize, pace: Pace| {
            let planned = estimate(works, &steps(works, modes, pace.rounds), modes, pace.seconds);
            planned.mul_f64(1.0 + pace.repeats).as_secs()
        };
        let quick = time(&super::super::work::quick(), 3, Pace::QUICK);
        assert!((45..110).contains(&quick), "{quick} s");
        let all = time(&super::super::work::all(), 6, Pace::FULL);
        assert!((20 * 60..30 * 60).contains(&all), "{all} s");
    }

    #[test]
    fn time_is_told_roughly() {
        for (seconds, text) in [(0, "0 s"), (99, "99 s"), (100, "2 min"), (89 * 60, "89 min")] {
            assert_eq!(about(Duration::from_secs(seconds)), text);
        }
    }
}
