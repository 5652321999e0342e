//! Node: where it is, as its topology labels say.

use super::object::Meta;
use super::reader::Field;
use crate::model::Locality;

/// What is needed of a Node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) locality: Locality,
}

impl Node {
    pub(super) fn read(meta: &Meta, root: &Field<'_>) -> Self {
        let label = |name: &str| meta.labels.get(name).cloned().unwrap_or_default();
        check(root);
        Self {
            locality: Locality {
                region: label("topology.kubernetes.io/region"),
                zone: label("topology.kubernetes.io/zone"),
                subzone: label("topology.istio.io/subzone"),
            },
        }
    }
}

/// Addresses and pod ranges are not part of the model; what does not parse is reported all the same.
fn check(root: &Field<'_>) {
    if let Some(spec) = root.get("spec") {
        let ranges = spec.get("podCIDR").into_iter().chain(spec.items("podCIDRs"));
        for range in ranges {
            range.block();
        }
    }
    for address in root.get("status").map(|status| status.items("addresses")).unwrap_or_default() {
        if address.text_at("type") == Some("InternalIP")
            && let Some(ip) = address.get("address")
        {
            ip.ip();
        }
    }
}
