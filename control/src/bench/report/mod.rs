//! What people see of a recording: a table for the terminal, one HTML page with plots, plots on their own, sentences.
//!
//! Everything is a pure function of [`Recording`]: a report can be made again from the JSON, on any machine. What a work
//! is (requests, bulk, memory…) is told by the measures that its samples have, so that new works need no change here.
//! Nothing here knows how anything was measured, and no text of a recording is trusted: names come from files of users.
//!
//! Start at `view`: which works are of a kind, which measure is the cost, who is compared with whom. `table` and `grid`
//! write for the terminal; `html` puts `plots` (which there are), `charts` (bars and lines) and `svg` (elements, colours,
//! escaping) on a page; `quote` makes the sentences, `waypoints` holds those of a run against each other.

mod charts;
pub(super) mod figures;
pub(super) mod grid;
mod html;
mod plots;
mod quote;
mod svg;
mod table;
mod view;
mod waypoints;

use self::svg::Frame;
use self::view::{DIRECT, View};
use super::record::{Measure, ModeRecord, Recording};
use super::statistics::Spread;

/// Whether the terminal shows colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text only.
    Plain,
    /// With escape codes.
    Colour,
}

/// What a ratio of the reference to another mode says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Unclear,
}

/// Only where every round says the same, and there are enough of them to say something. Nobody is judged by being dearer
/// than nothing.
fn verdict(share: &Spread, measure: Measure, other: &ModeRecord) -> Verdict {
    let (less, more) = (share.max < 1.0, share.min > 1.0);
    match (share.rounds, measure.more_is_better()) {
        (0..3, _) => Verdict::Unclear,
        _ if other.name == DIRECT => Verdict::Unclear,
        (_, true) if more => Verdict::Better,
        (_, false) if less => Verdict::Better,
        _ if less || more => Verdict::Worse,
        _ => Verdict::Unclear,
    }
}

impl Verdict {
    /// Class in the page.
    fn class(self) -> &'static str {
        match self {
            Self::Better => "good",
            Self::Worse => "bad",
            Self::Unclear => "",
        }
    }

    fn tone(self) -> grid::Tone {
        match self {
            Self::Better => grid::Tone::Good,
            Self::Worse => grid::Tone::Bad,
            Self::Unclear => grid::Tone::Plain,
        }
    }
}

/// The table for the terminal, at most 110 columns wide, with a line feed at its end.
pub fn table(recording: &Recording, style: Style) -> String {
    table::table(recording, style)
}

/// The report as one HTML page that needs nothing else.
pub fn html(recording: &Recording) -> String {
    html::page(&View::of(recording))
}

/// Plots as files of their own, name (`cpu-per-request.svg`) and text; those that the recording has figures for.
pub fn plots(recording: &Recording) -> Vec<(&'static str, String)> {
    let view = View::of(recording);
    let all = [("cpu-per-request.svg", plots::cpu_file(&view)), ("latency.svg", plots::latency_file(&view))];
    all.into_iter().filter_map(|(name, chart)| Some((name, chart?.draw(Frame::File)))).collect()
}

/// What one would quote, each sentence with its conditions; empty where the recording does not support any.
pub fn quotes(recording: &Recording) -> Vec<String> {
    quote::quotes(&View::of(recording)).iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
