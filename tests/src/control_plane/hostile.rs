//! What a broken or hostile discovery server does.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use culvert_common::xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use culvert_common::xds::proto::workload::Workload;
use h2::SendStream;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::discovery::{World, framed};
use super::lock;
use super::resources::{ADDRESS, POLICY, Said as _, resource};

/// Resources in one push of a flood.
const MANY: usize = 200;

/// Ways of being no good server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hostile {
    /// Takes TCP connections and closes them.
    ClosesBefore,
    /// Announces a message of 2 GiB.
    Giant,
    /// Sends a message of the largest size that may be announced, of nothing but zeros, and another one.
    Endless,
    /// Pushes workloads that nobody has, for as long as anybody listens.
    Flood,
    /// The same few names in and out, with other content each time.
    Contradictory,
    /// Answers what nobody asked, under nonces that come again, of wrong types.
    OutOfOrder,
    /// Half a message, then the end of the stream without a status.
    HalfClosed,
    /// Half a message, then nothing more.
    HalfSent,
    /// Bytes that are no message.
    Garbage,
}

impl Hostile {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::ClosesBefore,
        Self::Giant,
        Self::Endless,
        Self::Flood,
        Self::Contradictory,
        Self::OutOfOrder,
        Self::HalfClosed,
        Self::HalfSent,
        Self::Garbage,
    ];
}

/// One stream's worth of it.
pub(super) async fn misbehave(
    hostile: Hostile,
    send: &mut SendStream<Bytes>,
    mut requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    world: &Mutex<World>,
) {
    let is_over = || lock(world).hostile != Some(hostile);
    let did = || lock(world).misdeeds += 1;
    let mut turn = 0usize;
    loop {
        let bytes = match hostile {
            Hostile::ClosesBefore => return,
            Hostile::Giant => Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3]),
            Hostile::Endless => endless(),
            Hostile::Flood => framed(&flood(turn).encode_to_vec()),
            Hostile::Contradictory => framed(&contradiction(turn).encode_to_vec()),
            Hostile::OutOfOrder => framed(&out_of_order(turn).encode_to_vec()),
            Hostile::HalfClosed | Hostile::HalfSent => Bytes::from_static(&[0, 0, 0, 1, 0, 0x12, 0x10]),
            Hostile::Garbage => framed(&[0xff; 512]),
        };
        let has_sent = send_all(send, bytes).await;
        did();
        turn += 1;
        match hostile {
            Hostile::HalfClosed => {
                let _reset_before = send.send_data(Bytes::new(), true);
                return;
            }
            Hostile::Giant | Hostile::HalfSent | Hostile::Garbage => {
                // Held open until the client goes.
                while !is_over() {
                    if let Ok(None) = timeout(Duration::from_millis(50), requests.recv()).await {
                        return;
                    }
                }
                return;
            }
            _ => {}
        }
        while requests.try_recv().is_ok() {}
        if !has_sent || is_over() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// As much as the client takes; false when it takes no more.
async fn send_all(send: &mut SendStream<Bytes>, mut bytes: Bytes) -> bool {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len().min(64 << 10));
        let room = match std::future::poll_fn(|context| send.poll_capacity(context)).await {
            Some(Ok(room)) => room.min(bytes.len()),
            Some(Err(_)) | None => return false,
        };
        if send.send_data(bytes.split_to(room), false).is_err() {
            return false;
        }
    }
    true
}

/// A message of nearly 4 MiB.
fn endless() -> Bytes {
    framed(&vec![0; (4 << 20) - 1])
}

fn push(kind: &str, nonce: usize, resources: Vec<Resource>, removed: Vec<String>) -> DeltaDiscoveryResponse {
    let nonce = nonce.to_string();
    DeltaDiscoveryResponse { resources, type_url: kind.to_owned(), nonce, removed_resources: removed }
}

fn made_up(n: usize) -> Resource {
    let [_, a, b, c] = u32::try_from(n % (1 << 24)).unwrap_or(0).to_be_bytes();
    let workload = Workload {
        uid: format!("Kubernetes//Pod/made-up/w{n}"),
        name: format!("w{n}"),
        namespace: "made-up".to_owned(),
        addresses: vec![vec![11, a, b, c]],
        workload_name: "x".repeat(1000),
        ..Workload::default()
    };
    let (kind, name, _, body) = workload.said();
    resource(kind, &name, &format!("{n:x}"), body)
}

fn flood(turn: usize) -> DeltaDiscoveryResponse {
    push(ADDRESS, turn, (turn * MANY..(turn + 1) * MANY).map(made_up).collect(), Vec::new())
}

fn contradiction(turn: usize) -> DeltaDiscoveryResponse {
    let (kind, one) = (if turn.is_multiple_of(2) { ADDRESS } else { POLICY }, made_up(turn));
    let names = [one.name.clone(), "Kubernetes//Pod/made-up/same".to_owned(), "/".to_owned(), String::new()];
    let same = Resource { name: names[1].clone(), ..made_up(turn + 1) };
    push(kind, turn, vec![one.clone(), one, same.clone(), same], names.to_vec())
}

fn out_of_order(turn: usize) -> DeltaDiscoveryResponse {
    let kinds = [
        "type.googleapis.com/istio.workload.Workload",
        "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "",
        POLICY,
    ];
    let empty = Resource { name: "default/nothing".to_owned(), ..Resource::default() };
    push(kinds[turn % kinds.len()], turn % 3, vec![made_up(turn), empty], vec!["default/nothing".to_owned()])
}
