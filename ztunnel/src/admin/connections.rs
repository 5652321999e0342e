//! What is open, in the form of the dump and on a page of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_common::admin::{Answer, json_list};
use serde_json::{Value, json};

use crate::connections::{ConnectionInfo, Kind};
use crate::shared::{PodName, Serving};
use crate::worker::Workers;

/// None of a pod that is leaving.
type Known = Option<(PodName, Serving)>;

/// Served pods by UID, sorted, each with its open connections.
pub(crate) fn by_pod(
    served: Vec<(PodName, Serving)>,
    open: Vec<ConnectionInfo>,
) -> impl Iterator<Item = (String, Value)> + Send {
    let mut pods: BTreeMap<Arc<str>, (Known, Vec<ConnectionInfo>)> = BTreeMap::new();
    for (name, serving) in served {
        pods.insert(Arc::clone(&name.uid), (Some((name, serving)), Vec::new()));
    }
    for one in open {
        // A pod that is leaving has connections and is served no more.
        pods.entry(Arc::clone(&one.pod)).or_default().1.push(one);
    }
    pods.into_iter().map(|(uid, (pod, open))| {
        let side = |inbound: bool| -> Vec<Value> {
            open.iter().filter(|one| one.kind.is_inbound() == inbound).map(connection).collect()
        };
        let state = match pod {
            Some((_, Serving::Pending)) => "Pending",
            Some((_, Serving::Up)) | None => "Up",
        };
        let info = pod.map(|(pod, _)| {
            json!({"name": *pod.name, "namespace": *pod.namespace, "serviceAccount": *pod.service_account})
        });
        let connections = json!({"inbound": side(true), "outbound": side(false)});
        (uid.to_string(), json!({"state": state, "connections": connections, "info": info}))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn pod(name: &str) -> PodName {
        let info = culvert_common::zds::WorkloadInfo {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
        };
        PodName::new(format!("uid-{name}").into(), "c1", info)
    }

    fn open(pod: &str, kind: Kind) -> ConnectionInfo {
        ConnectionInfo {
            pod: pod.into(),
            kind,
            src: "10.0.0.1:1".parse().unwrap(),
            original: (!kind.is_inbound()).then(|| "[fd00::9]:80".parse().unwrap()),
            actual: "10.0.0.2:15008".parse().unwrap(),
            peer: None,
            service: kind.is_inbound().then(|| "cart.shop".into()),
            sent: 1,
            received: 2,
            age: Duration::from_secs(3),
        }
    }

    #[test]
    fn each_pod_has_its_connections_by_side() {
        let served = vec![(pod("b"), Serving::Up), (pod("a"), Serving::Pending)];
        let connections =
            [Kind::OutboundHbone, Kind::InboundTcp, Kind::InboundHbone].map(|kind| open("uid-b", kind));
        let leaving = open("uid-c", Kind::OutboundTcp);
        let shown: Vec<_> = by_pod(served, connections.into_iter().chain([leaving]).collect()).collect();
        let uids: Vec<&str> = shown.iter().map(|(uid, _)| uid.as_str()).collect();
        assert_eq!(uids, ["uid-a", "uid-b", "uid-c"]);
        let [a, b, c] = [0, 1, 2].map(|n| &shown[n].1);
        assert_eq!((&a["state"], &a["info"]["name"]), (&json!("Pending"), &json!("a")));
        assert_eq!(a["connections"], json!({"inbound": [], "outbound": []}));
        assert_eq!((&b["state"], &b["info"]["serviceAccount"]), (&json!("Up"), &json!("cart")));
        let outbound = json!({
            "src": "10.0.0.1:1", "originalDst": "[fd00::9]:80", "actualDst": "10.0.0.2:15008", "protocol": "HBONE",
        });
        assert_eq!(b["connections"]["outbound"], json!([outbound]));
        assert_eq!(b["connections"]["inbound"].as_array().unwrap().len(), 2);
        assert_eq!(b["connections"]["inbound"][0]["originalDst"], "cart.shop");
        assert_eq!((&c["info"], &c["connections"]["outbound"][0]["protocol"]), (&Value::Null, &json!("TCP")));
    }
}
