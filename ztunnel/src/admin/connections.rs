//! What is open, in the form of the dump and on a page of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_common::admin::{Answer, json_list};
use culvert_common::state::Snapshot;
use serde_json::{Value, json};

use crate::connections::{ConnectionInfo, Kind};
use crate::worker::Workers;

/// Captured pods by UID, sorted, each with its open connections.
pub(crate) fn by_pod(
    snapshot: &Snapshot,
    open: Vec<ConnectionInfo>,
) -> impl Iterator<Item = (String, Value)> + Send + use<> {
    let mut pods: BTreeMap<Arc<str>, (Value, Vec<ConnectionInfo>)> = BTreeMap::new();
    for pod in snapshot.pods() {
        let account = snapshot.workload(&pod.workload).map(|w| w.identity.service_account().to_owned());
        let info = json!({"name": *pod.name, "namespace": *pod.namespace, "serviceAccount": account});
        pods.insert(Arc::clone(&pod.uid), (info, Vec::new()));
    }
    for one in open {
        // A pod that is leaving has connections and no place in the state any more.
        pods.entry(Arc::clone(&one.pod)).or_default().1.push(one);
    }
    pods.into_iter().map(|(uid, (info, open))| {
        let side = |inbound: bool| -> Vec<Value> {
            open.iter().filter(|one| one.kind.is_inbound() == inbound).map(connection).collect()
        };
        let connections = json!({"inbound": side(true), "outbound": side(false)});
        (uid.to_string(), json!({"state": "Up", "connections": connections, "info": info}))
    })
}

/// Inbound, the original destination is the name that the client's agent forwarded, if any.
fn connection(one: &ConnectionInfo) -> Value {
    let original = match one.original {
        Some(addr) => json!(addr.to_string()),
        None => json!(one.service.as_deref()),
    };
    json!({
        "src": one.src.to_string(),
        "originalDst": original,
        "actualDst": one.actual.to_string(),
        "protocol": protocol(one.kind),
    })
}

fn protocol(kind: Kind) -> &'static str {
    match kind {
        Kind::OutboundTcp | Kind::InboundTcp => "TCP",
        Kind::OutboundHbone | Kind::InboundHbone => "HBONE",
    }
}

/// All open connections, those of a pod together, the oldest first.
pub(crate) async fn page(workers: Workers) -> Answer {
    let mut open = workers.connections().await;
    open.sort_by(|a, b| a.pod.cmp(&b.pod).then(b.age.cmp(&a.age)));
    json_list("connections", open, |one| {
        json!({
            "pod": *one.pod,
            "direction": if one.kind.is_inbound() { "inbound" } else { "outbound" },
            "protocol": protocol(one.kind),
            "src": one.src.to_string(),
            "originalDst": one.original.map(|addr| addr.to_string()),
            "actualDst": one.actual.to_string(),
            "service": one.service.as_deref(),
            "peer": one.peer.as_ref().map(ToString::to_string),
            "bytesToClient": one.sent,
            "bytesToServer": one.received,
            "ageSeconds": one.age.as_secs(),
        })
    })
}
