use std::collections::BTreeMap;

use super::*;
use crate::bench::record::{ModeRecord, Sample, WorkRecord};

const EXAMPLE: &str = include_str!("../../../tests/data/bench/example.json");

/// A spread of 3 %, each time the same one: rounds in a fixed order of places between the ends.
const PLACES: [f64; 8] = [0.1, -0.8, 0.6, -0.3, 1.0, -1.0, 0.4, -0.5];

/// Two modes and one work: what the modes cost, what the machine spent on the direct way, how good the day was.
struct Run {
    rounds: usize,
    culvert: f64,
    day: f64,
    /// Which place comes first.
    turn: usize,
}

impl Run {
    fn recording(&self) -> Recording {
        let mut samples = Vec::new();
        for (round, nth) in (1..).zip(0..self.rounds) {
            let noise = |turn: usize| 1.0 + 0.03 * PLACES.iter().cycle().nth(nth + turn).unwrap();
            let mut add = |mode: &str, values: &[(Measure, f64)]| {
                let values: BTreeMap<Measure, f64> = values.iter().copied().collect();
                samples.push(Sample {
                    round,
                    mode: mode.into(),
                    work: "c64".into(),
                    values,
                    ..Sample::default()
                });
            };
            add(
                "direct",
                &[
                    (Measure::MachineCpu, 20.0 * self.day * noise(self.turn + 3)),
                    (Measure::RequestsPerSecond, 9e4),
                ],
            );
            add("culvert", &[(Measure::CpuUsPerRequest, self.culvert * self.day * noise(self.turn))]);
        }
        let mode =
            |name: &str| ModeRecord { name: name.into(), title: String::new(), deviations: Vec::new() };
        Recording {
            format: FORMAT,
            about: About { rounds: self.rounds as u32, ..About::default() },
            modes: vec![mode("direct"), mode("culvert")],
            works: vec![WorkRecord { name: "c64".into(), title: String::new() }],
            samples,
        }
    }
}

fn run(culvert: f64) -> Run {
    Run { rounds: 6, culvert, day: 1.0, turn: 0 }
}

#[track_caller]
fn cpu(a: &Recording, b: &Recording) -> Row {
    let comparison = compare(a, b);
    comparison.rows.into_iter().find(|r| r.measure == Measure::CpuUsPerRequest).unwrap()
}

#[track_caller]
fn verdict(a: &Run, b: &Run) -> Verdict {
    cpu(&a.recording(), &b.recording()).verdict
}

#[test]
fn a_run_against_itself_shows_no_change() {
    let recording = parse("example.json", EXAMPLE).unwrap();
    let comparison = compare(&recording, &recording);
    assert!(comparison.rows.len() > 100 && comparison.differences.is_empty() && comparison.same_machine);
    for row in &comparison.rows {
        assert!(matches!(row.verdict, Verdict::Noise | Verdict::TooFew), "{row:?}");
        assert!(row.raw.ratio.is_none_or(|ratio| ratio == 1.0) && row.raw.probability == 1.0, "{row:?}");
    }
    assert!(comparison.text(Style::Plain).contains("Nothing changed by more than noise"));
}

#[test]
fn a_fifth_more_is_found_above_a_spread_of_three_percent() {
    let later = Run { turn: 2, ..run(12.0) };
    assert_eq!(verdict(&run(10.0), &later), Verdict::Worse);
    assert_eq!(verdict(&later, &run(10.0)), Verdict::Better);
    let row = cpu(&run(10.0).recording(), &later.recording());
    assert!((row.raw.ratio.unwrap() - 1.2).abs() < 0.03 && row.raw.probability <= LEVEL, "{row:?}");
    let anchored = row.anchored.unwrap();
    assert_eq!((anchored.by.as_str(), anchored.measure), ("direct", Measure::MachineCpu));
}

#[test]
fn noise_is_not_found() {
    for turn in 0..8 {
        assert_eq!(verdict(&run(10.0), &Run { turn, ..run(10.0) }), Verdict::Noise, "turn {turn}");
    }
    assert_eq!(verdict(&run(10.0), &run(10.2)), Verdict::Noise, "2 % is of no interest, even if it is real");
}

#[test]
fn few_rounds_claim_little() {
    for (rounds, want) in [
        (1, Verdict::TooFew),
        (2, Verdict::TooFew),
        (3, Verdict::PerhapsWorse),
        (4, Verdict::PerhapsWorse),
        (5, Verdict::Worse),
        (6, Verdict::Worse),
    ] {
        let of = |culvert| Run { rounds, ..run(culvert) };
        assert_eq!(verdict(&of(10.0), &of(12.0)), want, "{rounds} rounds");
        assert_eq!(verdict(&of(10.0), &of(10.0)), if rounds < 3 { Verdict::TooFew } else { Verdict::Noise });
    }
}

#[test]
fn a_bad_day_of_the_machine_is_the_machines() {
    let bad_day = Run { day: 1.3, ..run(10.0) };
    assert_eq!(verdict(&run(10.0), &bad_day), Verdict::Machine);
    // And a loss that a good day hides is found by the anchor.
    let hidden = Run { day: 0.8, ..run(12.6) };
    let row = cpu(&run(10.0).recording(), &hidden.recording());
    assert!(row.anchored.unwrap().change.ratio.unwrap() > 1.2);
}

#[test]
fn other_machines_are_judged_by_the_anchor_alone() {
    let other = |run: &Run| {
        let mut recording = run.recording();
        recording.about.machine.model = "another".into();
        recording
    };
    let faster = Run { day: 0.5, ..run(10.0) };
    assert_eq!(cpu(&run(10.0).recording(), &other(&faster)).verdict, Verdict::Noise);
    let faster_but_dearer = Run { day: 0.5, ..run(14.0) };
    assert_eq!(cpu(&run(10.0).recording(), &other(&faster_but_dearer)).verdict, Verdict::Worse);
    let mut without = other(&faster);
    without.samples.retain(|s| s.mode != "direct");
    assert_eq!(cpu(&run(10.0).recording(), &without).verdict, Verdict::NotComparable);
    let comparison = compare(&run(10.0).recording(), &other(&faster));
    assert!(!comparison.same_machine && comparison.text(Style::Plain).contains("Different machines"));
}

#[test]
fn disturbed_rounds_are_not_compared() {
    let mut disturbed = run(12.0).recording();
    disturbed.samples.iter_mut().for_each(|s| s.disturbed = Some("a compiler".into()));
    assert_eq!(cpu(&run(10.0).recording(), &disturbed).verdict, Verdict::NotComparable);
}

#[test]
fn what_differs_between_the_runs_is_told() {
    let a = parse("example.json", EXAMPLE).unwrap();
    let mut b = a.clone();
    b.about.commit = Some("fffffff".into());
    b.about.machine.kernel = "7.0".into();
    b.about.tools.insert("wrk".into(), "5".into());
    b.modes.retain(|m| m.name != "envoy-sidecar-tcp");
    b.samples.retain(|s| s.mode != "envoy-sidecar-tcp");
    b.works.retain(|w| w.name != "bulk4");
    b.samples.retain(|s| s.work != "bulk4");
    if let Some(mode) = b.modes.iter_mut().find(|m| m.name == "envoy-sidecar") {
        mode.deviations = vec!["one worker".into()];
    }
    let comparison = compare(&a, &b);
    let whats: Vec<&str> = comparison.differences.iter().map(|d| d.what.as_str()).collect();
    for what in [
        "commit",
        "kernel",
        "program wrk",
        "mode envoy-sidecar-tcp",
        "work bulk4",
        "deviations of envoy-sidecar",
    ] {
        assert!(whats.contains(&what), "{what} is not in {whats:?}");
    }
    assert!(!whats.contains(&"version") && !comparison.same_machine);
    let text = comparison.text(Style::Plain);
    assert!(text.contains("b245978") && text.contains("fffffff") && text.contains("bulk4"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
}

#[test]
fn runs_with_nothing_in_common_say_so() {
    let a = run(10.0).recording();
    let b = Recording { modes: Vec::new(), works: Vec::new(), samples: Vec::new(), ..a.clone() };
    assert!(compare(&a, &b).rows.is_empty());
    assert!(compare(&a, &b).text(Style::Plain).contains("no mode and work in common"));
    assert!(compare(&b, &a).rows.is_empty());
}

#[test]
fn failures_that_appear_are_a_change_from_nothing() {
    let with = |failed: f64| {
        let mut recording = run(10.0).recording();
        for sample in &mut recording.samples {
            sample.values.insert(Measure::Failed, failed);
        }
        recording
    };
    let rows = |a: &Recording, b: &Recording| {
        let rows = compare(a, b).rows.into_iter();
        rows.filter(|r| r.measure == Measure::Failed && r.mode == "culvert").collect::<Vec<_>>()
    };
    assert!(rows(&with(0.0), &with(0.0)).is_empty(), "nothing failed: no line");
    let appeared = rows(&with(0.0), &with(7.0));
    assert!(
        matches!(&appeared[..], [row] if row.verdict == Verdict::Worse && row.raw.ratio.is_none()),
        "{appeared:?}"
    );
    let gone = rows(&with(7.0), &with(0.0));
    assert!(matches!(&gone[..], [row] if row.verdict == Verdict::Better), "{gone:?}");
}

#[test]
fn other_files_are_refused_with_what_to_check() {
    let refused = |json: &str| parse("a.json", json).unwrap_err().to_string();
    assert!(refused("nginx").starts_with("a.json is no recording of `culvert bench`"));
    assert!(refused("{}").contains("missing field `format`"));
    assert!(refused("[1]").contains("is it the JSON of a run?"));
    assert_eq!(
        refused(r#"{"format": 2, "everything": "else"}"#),
        "a.json has format 2, this program reads 1; use the version of culvert that wrote it"
    );
    assert!(refused(r#"{"format": 1}"#).contains("missing field `about`"));
    assert!(parse("example.json", EXAMPLE).is_ok());
}

#[test]
fn it_is_told_as_json_too() {
    let comparison = compare(&run(10.0).recording(), &run(12.0).recording());
    let json = serde_json::to_value(&comparison).unwrap();
    let rows = json.get("rows").and_then(|r| r.as_array()).unwrap();
    let cpu = rows.iter().find(|r| r["measure"] == "cpu_us_per_request").unwrap();
    assert_eq!(cpu["verdict"], "worse");
    assert_eq!(cpu["raw"]["evidence"], "changed");
    assert_eq!(cpu["unit"], "µs/request");
}
