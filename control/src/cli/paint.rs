//! Colours, where the terminal has them and nobody said no.

use std::fmt;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Plain,
    Colour,
}

/// Text in a style.
pub(super) struct Painted<T>(&'static str, T);

impl Paint {
    pub(super) fn bold<T>(self, text: T) -> Painted<T> {
        self.with("1", text)
    }

    pub(super) fn dim<T>(self, text: T) -> Painted<T> {
        self.with("2", text)
    }

    pub(super) fn green<T>(self, text: T) -> Painted<T> {
        self.with("32", text)
    }

    pub(super) fn red<T>(self, text: T) -> Painted<T> {
        self.with("1;31", text)
    }

    pub(super) fn cyan<T>(self, text: T) -> Painted<T> {
        self.with("36", text)
    }

    fn with<T>(self, code: &'static str, text: T) -> Painted<T> {
        match self {
            Self::Plain => Painted("", text),
            Self::Colour => Painted(code, text),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self("", text) => write!(f, "{text}"),
            Self(code, text) => write!(f, "\x1b[{code}m{text}\x1b[0m"),
        }
    }
}
