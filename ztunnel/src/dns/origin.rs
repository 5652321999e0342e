//! Where a pod was asking before the rules redirected its query.
//!
//! A redirected TCP connection tells it; a datagram does not, only the kernel's connection tracking knows, and that is
//! asked over netlink. A process that parses what strangers send must not open netlink sockets (`sandbox.rs`): they are the
//! way to the rules that hold the pods. So such a process starts, before it is confined, a second one that can do nothing
//! but this look-up, reads fixed requests, and is confined itself. Without it a query goes where the pod last asked by a
//! way that was told, or to the agent's own name servers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use culvert_common::net::conntrack::udp_destination;
use culvert_common::net::netns::NetNs;
use culvert_common::net::seqpacket::{Packet, SeqPacket};
use culvert_common::task::Scope;
use socket2::{Domain, Socket, Type};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::sandbox::{self, Role};
use crate::shared::Pod;

/// The command under which the second process runs.
pub(crate) const COMMAND: &str = "udp-destinations";

/// Look-ups that wait for the second process.
const WAITING_MAX: usize = 256;
/// The program that runs.
const SELF: &str = "/proc/self/exe";
/// It answers in microseconds.
const LIMIT: Duration = Duration::from_secs(1);
/// Longest message: two addresses.
const MESSAGE_MAX: usize = 256;

/// How destinations are found.
pub(crate) enum Origins {
    /// By this process.
    Direct,
    /// By another one.
    Asked(mpsc::Sender<Asked>),
    /// Not at all.
    Unknown,
}

/// A look-up on its way to the other process.
pub(crate) struct Asked {
    netns: NetNs,
    ends: (SocketAddr, SocketAddr),
    found: oneshot::Sender<Option<SocketAddr>>,
}

impl Origins {
    /// Where a datagram from `client` that arrived at `local` was going.
    pub(super) async fn of(&self, pod: &Pod, local: SocketAddr, client: SocketAddr) -> Option<SocketAddr> {
        match self {
            Self::Unknown => None,
            Self::Direct => look_up(&pod.netns, local, client),
            Self::Asked(asked) => {
                let (found, is_found) = oneshot::channel();
                asked.try_send(Asked { netns: pod.netns.clone(), ends: (local, client), found }).ok()?;
                is_found.await.ok().flatten()
            }
        }
    }
}

fn look_up(netns: &NetNs, local: SocketAddr, client: SocketAddr) -> Option<SocketAddr> {
    let found =
        netns.run(|| udp_destination(local, client).map_err(io::Error::other)).and_then(|found| found);
    found
        .inspect_err(
            |error| tracing::debug!(target: "dns", %client, %error, "a query's destination cannot be told"),
        )
        .ok()
        .flatten()
}

/// The second process, from outside.
#[derive(Debug)]
pub(crate) struct Helper {
    socket: OwnedFd,
    child: Child,
}

impl Helper {
    /// Starts it. Call it before this process is confined.
    ///
    /// **Errors**: no second process can be started.
    pub(crate) fn start() -> io::Result<Self> {
        let (own, its) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        // By its own path, so that it is listed as this program; a replaced file is not this program any more.
        let path = std::fs::read_link(SELF).ok().filter(|path| path.is_file());
        let mut command = Command::new(path.as_deref().unwrap_or(Path::new(SELF)));
        command.arg(COMMAND).env_clear().stdin(OwnedFd::from(its)).stdout(Stdio::null());
        Ok(Self { child: command.spawn()?, socket: own.into() })
    }

    /// Passes look-ups on until `scope` drains or the other process ends; it ends with this one.
    pub(crate) fn run(self, scope: &Scope) -> Origins {
        let socket = match SeqPacket::from_fd(self.socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "destinations of DNS queries cannot be looked up");
                return Origins::Unknown;
            }
        };
        let (ask, mut asked) = mpsc::channel::<Asked>(WAITING_MAX);
        let (mut child, end) = (self.child, scope.clone());
        scope.spawn(async move {
            loop {
                let Asked { netns, ends: (local, client), found } = tokio::select! {
                    () = end.ended() => return,
                    asked = asked.recv() => match asked {
                        Some(asked) => asked,
                        None => return,
                    },
                };
                match timeout(LIMIT, converse(&socket, &netns, local, client)).await {
                    Ok(Ok(destination)) => drop(found.send(destination)),
                    Ok(Err(error)) => {
                        tracing::warn!(
                            "destinations of DNS queries cannot be looked up any more, as the process that did has \
                             ended ({error}): queries go to the server a pod asked last, or the agent's own"
                        );
                        break;
                    }
                    Err(_elapsed) => {
                        tracing::warn!("destinations of DNS queries cannot be looked up any more: no answer");
                        break;
                    }
                }
            }
            drop(socket);
            // It ends when its socket closes; it may have done so before.
            let _ended = child.kill().and_then(|()| child.wait());
        });
        Origins::Asked(ask)
    }
}

async fn converse(
    socket: &SeqPacket,
    netns: &NetNs,
    local: SocketAddr,
    client: SocketAddr,
) -> io::Result<Option<SocketAddr>> {
    let request = format!("{local} {client}");
    socket.send(request.as_bytes(), &[netns.as_fd()]).await?;
    let packet = socket.recv(MESSAGE_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(String::from_utf8_lossy(&packet.bytes).parse().ok())
}

/// The second process: answers look-ups until its socket closes.
///
/// **Errors**: it cannot be confined; nothing has been read then.
pub(crate) fn serve() -> io::Result<()> {
    sandbox::enter(Role::Lookup, true).map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let socket = SeqPacket::from_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
        while let Some(packet) = socket.recv(MESSAGE_MAX).await? {
            let found = answer(packet).map_or_else(|| "-".to_owned(), |found| found.to_string());
            socket.send(found.as_bytes(), &[]).await?;
        }
        Ok(())
    })
}

fn answer(mut packet: Packet) -> Option<SocketAddr> {
    let netns = NetNs::from_fd(packet.fds.pop()?).ok()?;
    let text = std::str::from_utf8(&packet.bytes).ok()?;
    let (local, client) = text.split_once(' ')?;
    look_up(&netns, local.parse().ok()?, client.parse().ok()?)
}
