//! What holds for anything that a discovery server sends.

use culvert_common::state::Snapshot;
use culvert_common::xds::store::{Kind, Store};
use culvert_common::xds::wire::Response;

/// A response is taken as both types. What is kept is no more than what came, endpoints are workloads that are known, and
/// the same again leads to the same.
pub(crate) fn responses(bytes: &[u8]) {
    let Ok(response) = Response::read(bytes.to_vec().into()) else { return };
    let mut store = Store::default();
    let take = |store: &mut Store| {
        for kind in Kind::ALL {
            let applied = store.apply(kind, response.removed(), response.resources(), &mut ());
            assert_eq!(applied.nack().is_some(), applied.rejected_count > 0);
            assert!(applied.nack().is_none_or(|text| text.len() < 64 << 10), "a NACK without end");
        }
        store.parts()
    };
    let first = take(&mut store);
    assert!(store.held() <= bytes.len(), "more is kept than came");
    let second = take(&mut store);
    assert_eq!(
        (&first.workloads, &first.services, &first.policies),
        (&second.workloads, &second.services, &second.policies)
    );
    let snapshot = Snapshot::build(1, first);
    let known = snapshot.services().flat_map(|service| &service.endpoints);
    assert!(known.into_iter().all(|endpoint| snapshot.workload(&endpoint.workload).is_some()));
}
