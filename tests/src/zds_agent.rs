//! The agent's side of ZDS, by hand: for proxies whose agent does as a test likes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use culvert::lab::Pod;
use culvert_common::net::seqpacket::{SeqPacket, SeqPacketListener};
use culvert_common::zds::{Ack, Channel, Request, WorkloadInfo, ZdsError};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::mesh::SOON;

/// Listens where a proxy looks for its agent.
#[derive(Debug)]
pub struct ZdsAgent {
    runtime: Runtime,
    listener: SeqPacketListener,
}

/// A proxy that has connected.
#[derive(Debug)]
pub struct ZdsProxy<'a> {
    runtime: &'a Runtime,
    channel: Channel,
}

impl ZdsAgent {
    /// Listens at `path`.
    pub fn new(path: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener =
            runtime.block_on(async { SeqPacketListener::bind(path, 0o600) }).expect("the ZDS socket");
        Self { runtime, listener }
    }

    /// The next proxy that connects and says hello.
    pub fn accept(&self) -> ZdsProxy<'_> {
        let channel = Channel::new(self.accept_raw());
        self.runtime.block_on(limited(channel.recv_hello())).expect("a hello");
        ZdsProxy { runtime: &self.runtime, channel }
    }

    /// The next connection, of which nothing has been read.
    pub fn accept_raw(&self) -> SeqPacket {
        self.runtime.block_on(limited(self.listener.accept())).expect("a connection")
    }

    /// Sends a packet and reads the answer; `None` when the proxy hangs up.
    pub fn exchange(&self, socket: &SeqPacket, bytes: &[u8], fds: &[OwnedFd]) -> Option<Vec<u8>> {
        let fds: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
        self.runtime.block_on(async {
            socket.send(bytes, &fds).await.ok()?;
            limited(socket.recv(4096)).await.ok()?.map(|packet| packet.bytes)
        })
    }

    /// Reads one packet; `None` when the proxy hangs up.
    pub fn read(&self, socket: &SeqPacket) -> Option<Vec<u8>> {
        self.runtime.block_on(limited(socket.recv(4096))).ok()?.map(|packet| packet.bytes)
    }
}

impl ZdsProxy<'_> {
    /// Asks and waits for the answer.
    ///
    /// **Errors**: the proxy hung up or answered something else.
    pub fn ask(&self, request: &Request) -> Result<Ack, ZdsError> {
        self.runtime.block_on(async {
            limited(self.channel.send_request(request)).await?;
            limited(self.channel.recv_ack()).await
        })
    }

    /// Asks for something that must be done.
    pub fn done(&self, request: &Request) {
        assert_eq!(self.ask(request).unwrap_or_else(|e| panic!("{request:?}: {e}")), Ok(()), "{request:?}");
    }

    /// Whether the proxy has hung up.
    pub fn is_over(&self) -> bool {
        matches!(
            self.runtime.block_on(limited(self.channel.recv_ack())),
            Err(ZdsError::Ended | ZdsError::Socket(_))
        )
    }
}

async fn limited<T>(work: impl Future<Output = T>) -> T {
    timeout(SOON + Duration::from_secs(10), work).await.expect("something from the proxy")
}

/// The request that has a pod served, by its own name.
pub fn add(uid: &str, pod: &Pod) -> Request {
    add_in(uid, pod, pod)
}

/// As [`add`], with the namespace of another pod.
pub fn add_in(uid: &str, pod: &Pod, namespace_of: &Pod) -> Request {
    let info = WorkloadInfo {
        name: pod.spec.name.clone(),
        namespace: pod.spec.namespace.clone(),
        service_account: pod.spec.service_account.clone(),
    };
    let netns = File::open(namespace_of.netns_path()).expect("the pod's namespace").into();
    Request::Add { uid: uid.to_owned(), info, netns }
}
