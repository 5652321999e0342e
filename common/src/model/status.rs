//! What a controller writes back of an object: whether it took effect, and if not, why.

use std::sync::Arc;

/// The conditions of one object, or of one of its parents. Source: `status.conditions` of Kubernetes objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Status {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its namespace; empty for a GatewayClass.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Which parent of a route, or which listener of a Gateway; none: the object itself.
    pub part: Option<Arc<str>>,
    /// One of each type.
    pub conditions: Vec<Condition>,
}

impl Status {
    /// Whether it is of this object itself.
    pub fn is_of(&self, kind: &str, namespace: &str, name: &str) -> bool {
        self.kind == kind && *self.namespace == *namespace && *self.name == *name && self.part.is_none()
    }
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// For example `Accepted`, `ResolvedRefs` or `istio.io/WaypointBound`.
    pub kind: &'static str,
    /// Status `True` or `False`.
    pub holds: bool,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: Arc<str>,
}

impl Condition {
    /// One that is `True`.
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<Arc<str>>) -> Self {
        Self { kind, holds: true, reason, message: message.into() }
    }

    /// One that is `False`.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<Arc<str>>) -> Self {
        Self { kind, holds: false, reason, message: message.into() }
    }
}
