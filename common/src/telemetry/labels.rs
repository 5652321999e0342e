//! Labels of workloads, alike in all families.

use super::encode::push_label;
use crate::model::Workload;

/// Longest label value in bytes: a client that is in no configuration describes itself. An identity is never cut.
const MAX_LABEL: usize = 256;

/// Of a client, in the order of [`values`].
pub(super) const SOURCE: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];

/// What labels say of a workload, or of what is known without one: `unknown` is its namespace and revision.
pub(super) fn values<'a>(
    workload: Option<&'a Workload>,
    unknown: Option<(&'a str, &'a str)>,
    principal: Option<&'a str>,
) -> [Option<&'a str>; 8] {
    let (namespace, revision) = unknown.unzip();
    [
        workload.map(|w| &*w.workload_name),
        workload.map(|w| &*w.canonical_name),
        workload.map(|w| &*w.canonical_revision).or(revision),
        namespace.or(workload.map(|w| &*w.namespace)),
        principal,
        workload.map(|w| &*w.canonical_name),
        workload.map(|w| &*w.canonical_revision),
        workload.map(|w| &*w.cluster),
    ]
}

/// What a label says of something that is not known, or has no name.
pub(super) fn known(value: Option<&str>) -> &str {
    value.filter(|value| !value.is_empty()).unwrap_or("unknown")
}

/// Adds labels with their values.
pub(super) fn push_known<const N: usize>(out: &mut String, names: [&str; N], values: [Option<&str>; N]) {
    for (name, value) in names.into_iter().zip(values) {
        let value = known(value);
        let cut =
            if name.ends_with("_principal") { value.len() } else { value.floor_char_boundary(MAX_LABEL) };
        push_label(out, name, value.get(..cut).unwrap_or(value));
    }
}
