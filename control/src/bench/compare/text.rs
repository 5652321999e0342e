//! A comparison for people: what differs between the runs, then the figures that matter and those that changed.

use std::collections::BTreeSet;

use super::{CHANGE_MIN, Comparison, LEVEL, Row, Verdict};
use crate::bench::record::{About, Measure};
use crate::bench::report::Style;
use crate::bench::report::figures::{name, number, plain, short, when, wrap};
use crate::bench::report::grid::{Cell, Grid, Tone, WIDTH};
use crate::bench::statistics::Spread;

/// Characters of what differs.
const VALUE_MAX: usize = 38;

pub(super) fn text(comparison: &Comparison, style: Style) -> String {
    let mut out = String::new();
    let mut line = |tone: Tone, text: &str| {
        for piece in wrap(text, WIDTH) {
            out.push_str(&tone.paint(style, &piece));
            out.push('\n');
        }
    };
    line(Tone::Plain, &format!("A: {}", run(&comparison.a)));
    line(Tone::Plain, &format!("B: {}", run(&comparison.b)));
    if !comparison.same_machine {
        line(
            Tone::Bad,
            "Different machines: only figures held against an anchor are judged; the rest is for orientation.",
        );
    }
    differences(comparison, &mut out, style);
    let changed: Vec<&Row> = comparison.rows.iter().filter(|row| is_change(row.verdict)).collect();
    heading(
        &mut out,
        style,
        if changed.is_empty() { "Nothing changed by more than noise" } else { "What changed" },
    );
    if !changed.is_empty() {
        grid(changed.iter().copied(), true).write(&mut out, style);
    }
    let main = || comparison.rows.iter().filter(|row| is_main(row.measure));
    for work in works(comparison) {
        heading(&mut out, style, &plain(work));
        grid(main().filter(|row| row.work == work), false).write(&mut out, style);
    }
    out.push('\n');
    for sentence in summary(comparison, main().count()) {
        for piece in wrap(&sentence, WIDTH) {
            out.push_str(&piece);
            out.push('\n');
        }
    }
    out
}

fn heading(out: &mut String, style: Style, text: &str) {
    out.push('\n');
    out.push_str(&Tone::Strong.paint(style, text));
    out.push('\n');
}

fn run(about: &About) -> String {
    let commit = about.commit.as_ref().map_or("no commit".to_owned(), |c| format!("commit {}", plain(c)));
    let end = if about.complete { "" } else { ", interrupted" };
    format!("{commit}, {}, {} rounds{end}: {}", when(&about.started), about.rounds, plain(&about.command))
}

fn differences(comparison: &Comparison, out: &mut String, style: Style) {
    if comparison.differences.is_empty() {
        return;
    }
    out.push('\n');
    let mut grid = Grid::new(["what differs", "A", "B"]);
    for difference in &comparison.differences {
        let value = |text: &str| match text {
            "" => Cell::new("–"),
            text => Cell::new(short(text, VALUE_MAX)),
        };
        grid.row(vec![
            Cell::new(short(&difference.what, VALUE_MAX)),
            value(&difference.a),
            value(&difference.b),
        ]);
    }
    grid.write(out, style);
}

/// Works that have something to tell, in their order.
fn works(comparison: &Comparison) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    comparison.rows.iter().map(|row| row.work.as_str()).filter(|work| seen.insert(*work)).collect()
}

/// Figures that everybody asks for; of the others only changes are told.
fn is_main(measure: Measure) -> bool {
    matches!(
        measure,
        Measure::CpuUsPerRequest
            | Measure::CpuUsPerConnection
            | Measure::CpuSPerGib
            | Measure::RequestsPerSecond
            | Measure::ConnectionsPerSecond
            | Measure::GbitPerSecond
            | Measure::P50Us
            | Measure::RssMib
            | Measure::StartMs
    )
}

fn is_change(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Better | Verdict::Worse | Verdict::PerhapsBetter | Verdict::PerhapsWorse)
}

fn grid<'a>(rows: impl Iterator<Item = &'a Row>, with_work: bool) -> Grid {
    let mut grid = Grid::new(["mode and measure", "A", "B", "change", "anchored", "chance", "verdict"]);
    for row in rows {
        let work = if with_work { format!("{}, ", plain(&row.work)) } else { String::new() };
        let unit = if row.measure == Measure::Failed { "" } else { row.unit };
        let anchored = row.anchored.as_ref();
        let chance = anchored.map_or(row.raw.probability, |a| a.change.probability.min(row.raw.probability));
        let is_judged = !matches!(row.verdict, Verdict::NotComparable | Verdict::TooFew);
        grid.row(vec![
            Cell::new(format!("{work}{} {} {unit}", plain(&row.mode), name(row.measure))),
            figure(&row.a),
            figure(&row.b),
            Cell::new(percent(row.raw.ratio)),
            Cell::new(anchored.map_or(String::new(), |a| percent(a.change.ratio))),
            Cell::new(if is_judged { number(chance) } else { String::new() }).tone(Tone::Dim),
            Cell::new(words(row.verdict)).tone(tone(row.verdict)),
        ]);
    }
    grid
}

/// The median, and half of the range as a share of it.
fn figure(spread: &Spread) -> Cell {
    let median = number(spread.median);
    let cell = match spread.rounds {
        0 | 1 => Cell::new(median.as_str()),
        _ => Cell::new(format!("{median} ±{:>2.0} %", spread.relative() * 100.0)),
    };
    cell.or(median)
}

/// A change as people say it.
fn percent(ratio: Option<f64>) -> String {
    match ratio {
        None => "from 0".to_owned(),
        Some(ratio) if ratio >= 10.0 => format!("{}x", number(ratio)),
        Some(ratio) => {
            let text = format!("{:+.1} %", (ratio - 1.0) * 100.0);
            if text == "-0.0 %" { "+0.0 %".to_owned() } else { text }
        }
    }
}

fn words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "WORSE",
        Verdict::PerhapsBetter => "perhaps better",
        Verdict::PerhapsWorse => "perhaps worse",
        Verdict::Noise => "noise",
        Verdict::Machine => "the machine",
        Verdict::TooFew => "too few rounds",
        Verdict::NotComparable => "not comparable",
    }
}

fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Better => Tone::Good,
        Verdict::Worse => Tone::Bad,
        Verdict::PerhapsBetter | Verdict::PerhapsWorse => Tone::Plain,
        Verdict::Noise | Verdict::Machine | Verdict::TooFew | Verdict::NotComparable => Tone::Dim,
    }
}

fn summary(comparison: &Comparison, told: usize) -> Vec<String> {
    let count =
        |wanted: &[Verdict]| comparison.rows.iter().filter(|row| wanted.contains(&row.verdict)).count();
    let mut all = vec![format!(
        "{} better, {} worse, {} perhaps, {} the machine's, {} noise, {} with too few rounds or nothing to compare with.",
        count(&[Verdict::Better]),
        count(&[Verdict::Worse]),
        count(&[Verdict::PerhapsBetter, Verdict::PerhapsWorse]),
        count(&[Verdict::Machine]),
        count(&[Verdict::Noise]),
        count(&[Verdict::TooFew, Verdict::NotComparable])
    )];
    if comparison.rows.is_empty() {
        return vec!["The two runs have no mode and work in common.".to_owned()];
    }
    let hidden = comparison.rows.len().saturating_sub(told);
    if hidden > 0 {
        all.push(format!("{hidden} further figures are told above only if they changed; -o json has all."));
    }
    all.push(format!(
        "More than noise: medians differ by {:.0} % or more, and the rounds by so much that chance alone would do it in at \
         most {:.0} of 100 cases (exact Mann-Whitney test; needs five rounds in each run). Perhaps: all rounds of one beyond \
         all of the other, three or four of them. ±: half of the range of the rounds. Anchored: divided by what the direct way did in the same round; \
         such a change counts as well. The machine: the anchor moved likewise. By chance alone at most {} of these \
         figures would pass.",
        CHANGE_MIN * 100.0,
        LEVEL * 100.0,
        number(comparison.by_chance)
    ));
    all
}
