//! Namespace: labels and annotations that its objects inherit.

use super::object::Meta;
use super::reader::Labels;

/// What is needed of a Namespace.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
}

impl Namespace {
    pub(super) fn read(meta: Meta) -> Self {
        Self { labels: meta.labels, annotations: meta.annotations }
    }
}
