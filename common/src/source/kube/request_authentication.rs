//! RequestAuthentication: which tokens are believed. Only what it is for is read: nothing here verifies tokens yet, so a
//! waypoint denies what such an object is for.

use super::object::Meta;
use super::reader::Field;
use super::target::{self, Target};

/// What is needed of a RequestAuthentication.
#[derive(Debug)]
pub(super) struct RequestAuthentication {
    pub(super) meta: Meta,
    pub(super) targets: Vec<Target>,
}

impl RequestAuthentication {
    pub(super) fn read(meta: Meta, root: &Field<'_>) -> Self {
        let targets = root.get("spec").map(|spec| target::read(&spec)).unwrap_or_default();
        if targets.is_empty() {
            root.warning("tokens are not verified here", "without targetRefs the object has no effect");
        }
        Self { meta, targets }
    }
}
