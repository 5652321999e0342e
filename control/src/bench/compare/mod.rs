//! What changed between two runs, and whether it is more than noise.

use serde::Serialize;

use super::record::{FORMAT, Recording};
use super::report::Style;

/// A file that is no recording this program reads.
#[derive(Debug, thiserror::Error)]
pub enum NotARecording {
    /// Not JSON, or other JSON.
    #[error("{file} is no recording of `culvert bench`: {source}; is it the JSON of a run?")]
    Shape {
        /// As the user named it.
        file: String,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// From another version of the program.
    #[error("{file} has format {got}, this program reads {FORMAT}; use the version of culvert that wrote it")]
    Format {
        /// As the user named it.
        file: String,
        /// What it says.
        got: u32,
    },
}

/// Reads a recording from the text of `file`.
///
/// **Errors:** it is something else, or of another format.
pub fn parse(file: &str, json: &str) -> Result<Recording, NotARecording> {
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
    }
    let shape = |source| NotARecording::Shape { file: file.to_owned(), source };
    // First the number alone: another format may have another shape.
    let Head { format: got } = serde_json::from_str(json).map_err(shape)?;
    if got != FORMAT {
        return Err(NotARecording::Format { file: file.to_owned(), got });
    }
    serde_json::from_str(json).map_err(shape)
}

/// Two runs side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {}

/// Compares `b` with `a`, the older one.
pub fn compare(_a: &Recording, _b: &Recording) -> Comparison {
    Comparison {}
}

impl Comparison {
    /// For people, at most 110 columns wide, with a line feed at its end.
    pub fn text(&self, _style: Style) -> String {
        String::new()
    }
}
