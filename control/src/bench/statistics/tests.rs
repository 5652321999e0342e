use proptest::prelude::*;

use super::*;

fn rounds(values: &[f64]) -> Series {
    Series { by_round: (1..).zip(values.iter().copied()).collect(), only_disturbed: false }
}

fn sample(round: u32, cpu: f64) -> Sample {
    let values = BTreeMap::from([(Measure::CpuUsPerRequest, cpu)]);
    Sample { round, mode: "culvert".into(), work: "c64".into(), values, ..Sample::default() }
}

fn recording(samples: Vec<Sample>) -> Recording {
    Recording {
        format: crate::bench::record::FORMAT,
        about: crate::bench::record::About::default(),
        modes: Vec::new(),
        works: Vec::new(),
        samples,
    }
}

fn of(recording: &Recording) -> Series {
    series(recording, "culvert", "c64", Measure::CpuUsPerRequest)
}

#[test]
fn median_and_range_are_those_of_the_rounds() {
    let spread = |values: &[f64]| Spread::of(values.iter().copied()).map(|s| (s.median, s.min, s.max));
    assert_eq!(spread(&[]), None);
    assert_eq!(spread(&[3.0]), Some((3.0, 3.0, 3.0)));
    assert_eq!(spread(&[5.0, 1.0, 2.0]), Some((2.0, 1.0, 5.0)));
    assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), Some((3.0, 1.0, 9.0)));
    assert_eq!(spread(&[1.0, f64::NAN]), None, "what is no number is no figure");
    assert_eq!(spread(&[1.0, f64::INFINITY]), None);
}

#[test]
fn few_rounds_have_no_interval() {
    let interval = |n: u32| Spread::of((1..=n).map(f64::from)).unwrap().interval;
    for n in 1..6 {
        assert_eq!(interval(n), None, "{n} rounds cover the median with less than 95 %");
    }
    // Order statistics of the sign test, as in its tables.
    for (n, low, high) in [(6, 1.0, 6.0), (8, 1.0, 8.0), (9, 2.0, 8.0), (12, 3.0, 10.0), (20, 6.0, 15.0)] {
        assert_eq!(interval(n), Some((low, high)), "{n} rounds");
    }
    assert!(interval(2_000).is_some(), "no overflow");
}

#[test]
fn ratios_are_taken_inside_rounds() {
    // The machine was twice as slow in the second round, for both.
    let (ours, theirs) = (rounds(&[10.0, 20.0, 11.0]), rounds(&[40.0, 80.0, 40.0]));
    let ratio = ours.ratio(&theirs).unwrap();
    assert_eq!((ratio.median, ratio.min, ratio.max, ratio.rounds), (0.25, 0.25, 0.275, 3));
    let fewer = rounds(&[40.0]);
    assert_eq!(ours.ratio(&fewer).unwrap().rounds, 1, "only rounds that both have");
    assert_eq!(ours.ratio(&Series::default()), None);
    assert_eq!(ours.ratio(&rounds(&[0.0, 0.0, 0.0])), None, "nothing is a multiple of nothing");
}

#[test]
fn disturbed_and_failed_samples_are_left_out_and_counted() {
    let disturbed = Sample { disturbed: Some("a compiler".into()), ..sample(1, 99.0) };
    let failed = Sample { failed: Some("no route".into()), ..sample(2, 1.0) };
    let recording = recording(vec![disturbed, sample(1, 10.0), failed, sample(3, 12.0)]);
    let series = of(&recording);
    assert_eq!(series.by_round, BTreeMap::from([(1, 10.0), (3, 12.0)]));
    assert!(!series.only_disturbed);
    let counts = counts(&recording, "culvert", "c64");
    assert_eq!(counts, Counts { clean: 2, disturbed: 1, failed: 1 });
}

#[test]
fn where_nothing_is_clean_disturbed_figures_are_marked() {
    let disturbed = |round, cpu| Sample { disturbed: Some("a compiler".into()), ..sample(round, cpu) };
    let series = of(&recording(vec![disturbed(1, 10.0), disturbed(1, 14.0), disturbed(2, 11.0)]));
    assert!(series.only_disturbed);
    assert_eq!(
        series.by_round,
        BTreeMap::from([(1, 12.0), (2, 11.0)]),
        "several tries of a round are one figure"
    );
    let clean = rounds(&[1.0, 1.0]);
    assert!(
        series.per(&clean).only_disturbed && clean.less(&series).only_disturbed,
        "and what comes of them"
    );
}

#[test]
fn what_was_not_measured_is_empty() {
    let empty = recording(Vec::new());
    assert_eq!(of(&empty), Series::default());
    assert_eq!(of(&empty).spread(), None);
    let other = series(&recording(vec![sample(1, 1.0)]), "culvert", "c64", Measure::P50Us);
    assert_eq!(other, Series::default());
}

fn figures() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(0.001..1e9_f64, 1..12)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

proptest! {
    /// In which order rounds came says nothing.
    #[test]
    fn order_does_not_matter(values in figures(), by in 0..12_usize) {
        let mut turned = values.clone();
        turned.rotate_left(by % values.len());
        prop_assert_eq!(Spread::of(values.clone()), Spread::of(turned.clone()));
        prop_assert_eq!(Spread::of_ratios(values), Spread::of_ratios(turned));
    }

    /// Other units are other figures of the same shape. Powers of two, so that nothing is rounded.
    #[test]
    fn scale_does_not_matter(values in figures(), power in -8..8_i32) {
        let unit = 2_f64.powi(power);
        let (a, b) = (Spread::of(values.clone()).unwrap(), Spread::of(values.iter().map(|v| v * unit)).unwrap());
        prop_assert!(close(a.median * unit, b.median) && close(a.min * unit, b.min) && close(a.max * unit, b.max));
        prop_assert!(close(a.relative(), b.relative()));
        prop_assert_eq!(a.interval.is_some(), b.interval.is_some());
    }

    /// The median and its interval lie among the rounds.
    #[test]
    fn the_middle_is_between_the_ends(values in figures()) {
        for spread in [Spread::of(values.clone()).unwrap(), Spread::of_ratios(values.clone()).unwrap()] {
            prop_assert!(spread.min <= spread.median * (1.0 + 1e-12) && spread.median <= spread.max * (1.0 + 1e-12));
            if let Some((low, high)) = spread.interval {
                prop_assert!(spread.min <= low && low <= spread.median && spread.median <= high && high <= spread.max);
            }
        }
    }

    /// A mode is exactly as good as itself.
    #[test]
    fn the_ratio_to_oneself_is_one(values in figures()) {
        let ratio = rounds(&values).ratio(&rounds(&values)).unwrap();
        prop_assert_eq!((ratio.median, ratio.min, ratio.max), (1.0, 1.0, 1.0));
    }

    /// Whoever is asked, the answer is the same.
    #[test]
    fn a_ratio_upside_down_is_its_reciprocal(pairs in prop::collection::vec((0.001..1e6_f64, 0.001..1e6_f64), 1..12)) {
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let (up, down) = (rounds(&a).ratio(&rounds(&b)).unwrap(), rounds(&b).ratio(&rounds(&a)).unwrap());
        prop_assert!(close(up.median * down.median, 1.0), "{} {}", up.median, down.median);
        prop_assert!(close(up.min * down.max, 1.0) && close(up.max * down.min, 1.0));
    }

    /// A slow round of the machine changes no ratio.
    #[test]
    fn a_slow_round_cancels(pairs in prop::collection::vec((1.0..1e6_f64, 1.0..1e6_f64, 1.0..4.0_f64), 1..12)) {
        let a: Vec<f64> = pairs.iter().map(|p| p.0).collect();
        let b: Vec<f64> = pairs.iter().map(|p| p.1).collect();
        let slow = |values: &[f64]| rounds(&values.iter().zip(&pairs).map(|(v, p)| v * p.2).collect::<Vec<_>>());
        let (still, moved) = (rounds(&a).ratio(&rounds(&b)).unwrap(), slow(&a).ratio(&slow(&b)).unwrap());
        prop_assert!(close(still.median, moved.median) && close(still.max, moved.max));
    }
}
