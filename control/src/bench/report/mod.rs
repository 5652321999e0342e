//! What people see of a recording: a table for the terminal, one HTML page with plots, plots on their own, a sentence.
//!
//! Everything is a pure function of [`Recording`]: a report can be made again from the JSON, on any machine. What a work
//! is (requests, bulk, memory…) is told by the measures that its samples have, so that new works need no change here.

use super::record::Recording;

/// Whether the terminal shows colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text only.
    Plain,
    /// With escape codes.
    Colour,
}

/// The table for the terminal, at most 110 columns wide, with a line feed at its end.
pub fn table(_recording: &Recording, _style: Style) -> String {
    String::new()
}

/// The report as one HTML page that needs nothing else.
pub fn html(_recording: &Recording) -> String {
    String::new()
}

/// Plots as files of their own, name (`cpu-per-request.svg`) and text; those that the recording has figures for.
pub fn plots(_recording: &Recording) -> Vec<(&'static str, String)> {
    Vec::new()
}

/// What one would quote, each sentence with its conditions; empty where the recording does not support any.
pub fn quotes(_recording: &Recording) -> Vec<String> {
    Vec::new()
}
