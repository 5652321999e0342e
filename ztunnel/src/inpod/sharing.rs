//! Ports of pods that this agent shares with another one's sockets, while a node changes hands between them.
//!
//! A socket that others may stand beside is open to any root process of the pod as well, and stays so when the option is
//! taken back. So it lasts as short as can be: once no other socket listens on the port, this agent's is closed and
//! opened anew for itself alone.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use culvert_common::net::netns::NetNs;
use culvert_common::net::socket;
use culvert_common::task::Scope;

use super::listeners::{self, ListenSettings, StartError};
use crate::shared::Pod;
use crate::worker::{Port, Workers};

/// How often shared ports are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// What waits in a socket's queue is taken within this time.
const CLOSING: Duration = Duration::from_secs(1);

/// A listening socket of a pod that others may stand beside.
pub(super) struct SharedPort {
    pub(super) port: Port,
    /// Ends the accepting from it.
    pub(super) until: Scope,
}

/// Takes those out of `shared` on whose ports no other socket listens any more.
pub(super) fn left_alone(netns: &NetNs, shared: &mut Vec<SharedPort>) -> Vec<SharedPort> {
    let is_alone = |one: &mut SharedPort| {
        let count = netns.run(|| socket::listeners_on(one.port.number())).and_then(|count| count);
        count.is_ok_and(|count| count <= 1)
    };
    shared.extract_if(.., is_alone).collect()
}

/// Closes a shared socket and opens it anew. The answer is a copy of the new one, and what it still shares.
///
/// All other copies of the old one must have been closed. Between the two the port is closed for some microseconds.
pub(super) async fn open_anew(
    (pod, workers): (&Arc<Pod>, &Workers),
    settings: &ListenSettings,
    shared: SharedPort,
) -> Result<(OwnedFd, Option<SharedPort>), StartError> {
    shared.until.shut_down(CLOSING).await;
    let (listener, _) = listeners::open_one(&pod.netns, settings, shared.port)?;
    let copy = listener.try_clone().map_err(StartError::Copy)?.into();
    Ok((copy, listen((pod, workers), shared.port, listener).await))
}

/// Has a socket accepted from, in a way that can be ended if it is shared.
pub(super) async fn listen(
    (pod, workers): (&Arc<Pod>, &Workers),
    port: Port,
    listener: TcpListener,
) -> Option<SharedPort> {
    if !socket::is_shared(&listener).unwrap_or(false) {
        workers.listen(pod, port, listener).await;
        return None;
    }
    let until = pod.scope.child();
    workers.listen_until(pod, port, listener, until.clone()).await;
    Some(SharedPort { port, until })
}
