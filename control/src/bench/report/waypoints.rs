//! Modes with a waypoint side by side: what the waypoint's own process takes, apart from the agents', and what all of
//! a mode's proxies take.

use super::figures::plain;
use super::view::{Kind, View, WorkView, share_of_added};
use crate::bench::mode::waypoint::NAME;
use crate::bench::record::{Measure, ModeRecord};
use crate::bench::statistics::{Series, Spread, series_of};

/// One line: a figure of each mode.
pub(super) struct Line {
    /// Such as `c64: CPU µs/request`.
    pub(super) label: String,
    pub(super) measure: Measure,
    is_added: bool,
    /// One for each of [`modes`].
    pub(super) figures: Vec<Series>,
}

impl Line {
    /// What the first mode's figure is of that of the one at `index`.
    pub(super) fn share(&self, index: usize) -> Option<Spread> {
        let (first, other) = (self.figures.first()?, self.figures.get(index)?);
        if self.is_added { share_of_added(first, other) } else { first.ratio(other) }
    }
}

/// Modes with a process of that name; the first is the one that the others are held against.
pub(super) fn modes<'a>(view: &View<'a>) -> Vec<&'a ModeRecord> {
    let recording = view.recording;
    let has_one = |mode: &&ModeRecord| {
        recording.samples.iter().any(|s| s.mode == mode.name && s.by_process.contains_key(NAME))
    };
    recording.modes.iter().filter(has_one).collect()
}

/// What the waypoints alone take.
pub(super) fn alone(view: &View<'_>) -> Vec<Line> {
    lines(view, |mode, work, _| {
        series_of(view.recording, (mode, &work.record.name), |sample| sample.by_process.get(NAME).copied())
    })
}

/// What all proxies of these modes take, and what they add to latency.
pub(super) fn together(view: &View<'_>) -> Vec<Line> {
    let modes = modes(view);
    let mut all = lines(view, |mode, work, measure| view.series(mode, &work.record.name, measure));
    for work in view.of_kind(|kind| matches!(kind, Kind::Open(_))) {
        let figures: Vec<Series> = modes.iter().map(|m| view.added(&m.name, &work.record.name)).collect();
        let label = format!("{}: added p50 {}", plain(&work.record.name), Measure::P50Us.unit());
        all.push(Line { label, measure: Measure::P50Us, is_added: true, figures });
    }
    all.retain(has_figures);
    all
}

fn lines(view: &View<'_>, figure: impl Fn(&str, &WorkView<'_>, Measure) -> Series) -> Vec<Line> {
    let modes = modes(view);
    let of = |work: &WorkView<'_>| {
        // Start-up is told in milliseconds, its processes in MiB, and memory has works of its own.
        let measure = work.kind.cost().filter(|measure| *measure != Measure::StartMs)?;
        let label =
            format!("{}: {} {}", plain(&work.record.name), super::figures::name(measure), measure.unit());
        let figures = modes.iter().map(|mode| figure(&mode.name, work, measure)).collect();
        Some(Line { label, measure, is_added: false, figures })
    };
    view.works.iter().filter_map(of).filter(has_figures).collect()
}

fn has_figures(line: &Line) -> bool {
    line.figures.iter().any(|series| series.spread().is_some())
}
