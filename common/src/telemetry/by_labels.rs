//! Series in a set, found by their rendered labels.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What is counted under labels of its own.
pub(super) trait Labelled {
    /// Rendered, and never another.
    fn labels(&self) -> &str;
}

/// A series in a table.
pub(super) struct ByLabels<T>(pub(super) Arc<T>);

impl<T: Labelled> Borrow<str> for ByLabels<T> {
    fn borrow(&self) -> &str {
        self.0.labels()
    }
}

impl<T: Labelled> PartialEq for ByLabels<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.labels() == other.0.labels()
    }
}

impl<T: Labelled> Eq for ByLabels<T> {}

impl<T: Labelled> Hash for ByLabels<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.labels().hash(state);
    }
}
