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
/// It answers in microseconds, unless the machine has stopped for a moment.
const LIMIT: Duration = Duration::from_secs(1);
/// After so many look-ups in a row without an answer it is not asked any more.
const SILENT_MAX: u32 = 5;
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
            tokio::select! {
                () = end.ended() => {}
                why = pass_on(&socket, &mut asked) => tracing::warn!(
                    "destinations of DNS queries cannot be looked up any more: {why}; queries go to the server a pod asked \
                     last, or the agent's own"
                ),
            }
            drop((socket, asked));
            // It ends when its socket closes; it may have done so before.
            let _ended = child.kill().and_then(|()| child.wait());
        });
        Origins::Asked(ask)
    }
}

/// Why the second process is asked no more.
#[derive(Debug, thiserror::Error)]
enum HelperError {
    #[error("the process that did has ended ({0})")]
    Ended(#[from] io::Error),
    #[error("the process that did has not answered {SILENT_MAX} times in a row, each within {LIMIT:?}")]
    Silent,
}

/// Passes look-ups on, one by one, until that is of no use any more.
async fn pass_on(socket: &SeqPacket, asked: &mut mpsc::Receiver<Asked>) -> HelperError {
    let (mut number, mut silent) = (0_u64, 0);
    while let Some(Asked { netns, ends, found }) = asked.recv().await {
        number += 1;
        match timeout(LIMIT, converse(socket, number, &netns, ends)).await {
            Ok(Ok(destination)) => {
                silent = 0;
                let _gone = found.send(destination); // who asked may have given up
            }
            Ok(Err(error)) => return error.into(),
            Err(_elapsed) => silent += 1,
        }
        if silent >= SILENT_MAX {
            return HelperError::Silent;
        }
    }
    io::Error::from(io::ErrorKind::BrokenPipe).into()
}

/// One look-up. What comes late, to one that was given up, is passed over by its number.
async fn converse(
    socket: &SeqPacket,
    number: u64,
    netns: &NetNs,
    (local, client): (SocketAddr, SocketAddr),
) -> io::Result<Option<SocketAddr>> {
    let request = format!("{number} {local} {client}");
    socket.send(request.as_bytes(), &[netns.as_fd()]).await?;
    loop {
        let packet = socket.recv(MESSAGE_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let reply = String::from_utf8_lossy(&packet.bytes);
        if let Some((of, found)) = reply.split_once(' ')
            && of.parse() == Ok(number)
        {
            return Ok(found.parse().ok());
        }
    }
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
            let Some(reply) = answer(packet) else { continue };
            socket.send(reply.as_bytes(), &[]).await?;
        }
        Ok(())
    })
}

/// The reply to a request; none to what is no request.
fn answer(mut packet: Packet) -> Option<String> {
    let netns = NetNs::from_fd(packet.fds.pop()?).ok()?;
    let text = std::str::from_utf8(&packet.bytes).ok()?;
    let (number, ends) = text.split_once(' ')?;
    let (local, client) = ends.split_once(' ')?;
    let found = look_up(&netns, local.parse().ok()?, client.parse().ok()?);
    Some(format!("{number} {}", found.map_or_else(|| "-".to_owned(), |found| found.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "127.0.0.1:15053";

    fn ask(number: u16) -> (Asked, oneshot::Receiver<Option<SocketAddr>>) {
        let (found, is_found) = oneshot::channel();
        let ends = (LOCAL.parse().unwrap(), SocketAddr::new([10, 0, 0, 1].into(), number));
        (Asked { netns: NetNs::current().unwrap(), ends, found }, is_found)
    }

    async fn request(socket: &SeqPacket) -> String {
        String::from_utf8(socket.recv(MESSAGE_MAX).await.unwrap().unwrap().bytes).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_late_costs_one_look_up_and_is_nobody_elses() {
        let (here, there) = SeqPacket::pair().unwrap();
        let (asks, mut asked) = mpsc::channel(4);
        let ((one, first), (two, second)) = (ask(1), ask(2));
        asks.send(one).await.unwrap();
        asks.send(two).await.unwrap();
        let helper = async {
            assert_eq!(request(&there).await, format!("1 {LOCAL} 10.0.0.1:1"));
            assert!(first.await.is_err(), "given up");
            there.send(b"1 10.96.0.1:53", &[]).await.unwrap();
            assert_eq!(request(&there).await, format!("2 {LOCAL} 10.0.0.1:2"));
            there.send(b"2 10.96.0.2:53", &[]).await.unwrap();
            second.await.unwrap()
        };
        tokio::select! {
            found = helper => assert_eq!(found, Some("10.96.0.2:53".parse().unwrap())),
            why = pass_on(&here, &mut asked) => panic!("{why}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stays_silent_or_ends_is_asked_no_more() {
        let (here, _there) = SeqPacket::pair().unwrap();
        let (asks, mut asked) = mpsc::channel(16);
        for number in 0..10 {
            asks.send(ask(number).0).await.unwrap();
        }
        assert!(matches!(pass_on(&here, &mut asked).await, HelperError::Silent));
        assert_eq!(asked.len(), 10 - SILENT_MAX as usize, "the others need not wait");
        let (here, there) = SeqPacket::pair().unwrap();
        drop(there);
        assert!(matches!(pass_on(&here, &mut asked).await, HelperError::Ended(_)));
    }
}
