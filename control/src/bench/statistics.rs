//! Medians, spreads and ratios of what a recording has.
//!
//! Pure, and honest about few rounds: a spread is what was seen, from the smallest to the largest round, and an interval
//! for the median is only there from six rounds on. Ratios are taken inside a round, because the machine differs more
//! between rounds than the modes do; their middle is taken of logarithms, so that a ratio upside down is its reciprocal.

use std::collections::BTreeMap;

use serde::Serialize;

use super::record::{Measure, Recording, Sample};

/// Several rounds in a few figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Rounds.
    pub rounds: usize,
    /// The middle one; between the two middle ones where they are even.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Where the true median is with at least 95 % confidence, whatever the distribution: between two of the rounds, by
    /// the binomial distribution of how many lie below it. `None` with fewer than six rounds, which cannot tell.
    pub interval: Option<(f64, f64)>,
}

/// How two middle values become one.
#[derive(Clone, Copy)]
enum Middle {
    Arithmetic,
    Geometric,
}

impl Spread {
    /// Of figures in any order; `None` if there is none, or one that is no number.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Self::with(values.into_iter().collect(), Middle::Arithmetic)
    }

    /// Of ratios: the middle of their logarithms.
    pub fn of_ratios(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Self::with(values.into_iter().collect(), Middle::Geometric)
    }

    fn with(mut values: Vec<f64>, middle: Middle) -> Option<Self> {
        if values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (*values.get((n - 1) / 2)?, *values.get(n / 2)?);
        let median = match middle {
            _ if low == high => low,
            Middle::Geometric if low > 0.0 => low.sqrt() * high.sqrt(),
            Middle::Geometric | Middle::Arithmetic => low / 2.0 + high / 2.0,
        };
        let interval = ranks(n).and_then(|k| Some((*values.get(k)?, *values.get(n - 1 - k)?)));
        Some(Self { rounds: n, median, min, max, interval })
    }

    /// Half of the range, as a share of the median; 0 where that is 0.
    pub fn relative(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median.abs() }
    }
}

/// How many of `n` sorted values may be left out at each end so that the rest still covers the median with 95 %.
fn ranks(n: usize) -> Option<usize> {
    // Probability that at most k of n values lie below the median, each with one half.
    let total = 2_f64.powi(i32::try_from(n).ok()?);
    let (mut ways, mut below, mut best) = (1.0, 0.0, None);
    for k in 0..n / 2 {
        below += ways;
        if 2.0 * below / total > 0.05 {
            break;
        }
        best = Some(k);
        ways = ways * (n - k) as f64 / (k + 1) as f64;
    }
    best
}

/// What one mode did with one work: its figures by round, and what was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// By round; the median where a round has several.
    pub by_round: BTreeMap<u32, f64>,
    /// No round was without foreign load: the figures are those of disturbed samples, for orientation only.
    pub only_disturbed: bool,
}

impl Series {
    /// Its spread; `None` without figures.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(self.by_round.values().copied())
    }

    /// The spread of this one divided by `other`, round by round.
    pub fn ratio(&self, other: &Self) -> Option<Spread> {
        Spread::of_ratios(self.per(other).by_round.into_values())
    }

    /// This one divided by `other`, round by round, for the rounds that both have.
    pub fn per(&self, other: &Self) -> Self {
        let both = self.by_round.iter().filter_map(|(r, a)| Some((*r, *a, *other.by_round.get(r)?)));
        let by_round = both.filter(|(.., b)| *b != 0.0).map(|(r, a, b)| (r, a / b)).collect();
        Self { by_round, only_disturbed: self.only_disturbed || other.only_disturbed }
    }

    /// This one less `other`, round by round, for the rounds that both have.
    pub fn less(&self, other: &Self) -> Self {
        let both = self.by_round.iter().filter_map(|(r, a)| Some((*r, a - other.by_round.get(r)?)));
        Self { by_round: both.collect(), only_disturbed: self.only_disturbed || other.only_disturbed }
    }
}

/// How many samples of one mode and work there were, and how many count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Samples whose figures count.
    pub clean: usize,
    /// Samples with foreign load on the machine.
    pub disturbed: usize,
    /// Samples without a figure.
    pub failed: usize,
}

/// The samples of one mode and work, in the order they were taken.
pub fn samples<'a>(
    recording: &'a Recording,
    mode: &'a str,
    work: &'a str,
) -> impl Iterator<Item = &'a Sample> {
    recording.samples.iter().filter(move |s| s.mode == mode && s.work == work)
}

/// Counts the samples of one mode and work.
pub fn counts(recording: &Recording, mode: &str, work: &str) -> Counts {
    let mut counts = Counts::default();
    for sample in samples(recording, mode, work) {
        match (&sample.failed, &sample.disturbed) {
            (Some(_), _) => counts.failed += 1,
            (None, Some(_)) => counts.disturbed += 1,
            (None, None) => counts.clean += 1,
        }
    }
    counts
}

/// One measure of one mode and work.
pub fn series(recording: &Recording, mode: &str, work: &str, measure: Measure) -> Series {
    series_of(recording, (mode, work), |sample| sample.values.get(&measure).copied())
}

/// Whatever `figure` takes from the samples of one mode and work.
pub fn series_of(
    recording: &Recording,
    (mode, work): (&str, &str),
    figure: impl Fn(&Sample) -> Option<f64>,
) -> Series {
    let collect = |only_disturbed: bool| {
        let mut rounds: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        let taken = samples(recording, mode, work)
            .filter(|s| s.failed.is_none() && s.disturbed.is_some() == only_disturbed);
        for (round, value) in taken.filter_map(|s| Some((s.round, figure(s)?))) {
            rounds.entry(round).or_default().push(value);
        }
        let by_round = rounds.into_iter().filter_map(|(r, v)| Some((r, Spread::of(v)?.median))).collect();
        Series { by_round, only_disturbed }
    };
    let clean = collect(false);
    if !clean.by_round.is_empty() {
        return clean;
    }
    let disturbed = collect(true);
    if disturbed.by_round.is_empty() { Series::default() } else { disturbed }
}

#[cfg(test)]
mod tests;
