//! One agent takes over another's listening sockets, so that no connection finds a port closed while they change places.
//!
//! The running agent listens at a root-only socket. A new one connects, and gets every listening socket by descriptor:
//! of pods by UID, namespace and port, of its own pages by name. Both hold the same open sockets, so what waits in their
//! queues is lost to nobody. The new agent accepts from them only when it is ready; it says so, and only then the old
//! one stops accepting, drains and ends. If the new one dies before, the old one just goes on.
//!
//! Neither the CNI agent nor Kubernetes is asked. Messages are one line of text a packet, since an agent talks to
//! versions of itself. Start with [`claim`] (the new side), then [`Heir::run`] and [`Estate::run`] (the old side).

use std::collections::HashMap;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use culvert_common::admin::{Pending, Readiness};
use culvert_common::net::netns::NetNs;
use culvert_common::net::seqpacket::{SeqPacket, SeqPacketListener};
use culvert_common::net::socket::{ListenOptions, adopt};
use culvert_common::task::Scope;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{interval, sleep, timeout};

use crate::dns;
use crate::inpod::Ask;

/// What readiness waits for in a new agent.
pub(crate) const PENDING: &str = "predecessor";

/// Limit of each message that is due.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest message in bytes: a pod's UID and some numbers.
const MESSAGE_MAX: usize = 4096;
/// Sockets that may wait for a successor.
const LATER: usize = 256;
/// How often a new agent looks whether it is ready.
const LOOK: Duration = Duration::from_millis(10);
/// Pause after the socket could not be made, or a connection not be taken.
const RETRY: Duration = Duration::from_secs(1);

/// Which listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// One of the agent's own pages.
    Host(String),
    /// One of a pod's ports; the namespace is told by device and inode.
    Pod { uid: Arc<str>, netns: (u64, u64), port: u16 },
    /// One of the sockets that take a pod's DNS queries.
    Dns { uid: Arc<str>, netns: (u64, u64), kind: dns::Kind },
}

impl Key {
    pub(crate) fn pod(uid: &Arc<str>, netns: (u64, u64), port: u16) -> Self {
        Self::Pod { uid: Arc::clone(uid), netns, port }
    }

    pub(crate) fn dns(uid: &Arc<str>, netns: (u64, u64), kind: dns::Kind) -> Self {
        Self::Dns { uid: Arc::clone(uid), netns, kind }
    }
}

/// A listening socket on its way to the next agent.
#[derive(Debug)]
pub(crate) struct Heirloom {
    pub(crate) key: Key,
    pub(crate) socket: OwnedFd,
}

/// Listening sockets of a predecessor that nothing here uses yet.
#[derive(Debug, Default)]
pub(crate) struct Inheritance(HashMap<Key, OwnedFd>);

impl Inheritance {
    pub(crate) fn keep(&mut self, heirloom: Heirloom) {
        self.0.insert(heirloom.key, heirloom.socket);
    }

    pub(crate) fn take(&mut self, key: &Key) -> Option<OwnedFd> {
        self.0.remove(key)
    }

    /// The socket of one of the agent's pages, if it is in this network namespace and where it is wanted.
    pub(crate) fn page(&mut self, name: &str, wanted: SocketAddr) -> Option<TcpListener> {
        let socket = self.take(&Key::Host(name.to_owned()))?;
        let is_here = || Ok::<_, io::Error>(NetNs::of_socket(&socket)? == NetNs::current()?);
        if !is_here().unwrap_or(false) {
            return None;
        }
        let (listener, _) = adopt(socket, &ListenOptions::default()).ok()?;
        let found = listener.local_addr().ok()?;
        let same_ip =
            found.ip() == wanted.ip() || found.ip().is_unspecified() && wanted.ip().is_unspecified();
        (same_ip && found.port() == wanted.port()).then_some(listener)
    }
}

/// What the two agents say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    /// New to old, first.
    Hello,
    /// Old to new, with the socket.
    Socket(Key),
    /// Old to new: these were all sockets; later ones follow as they are opened.
    All,
    /// New to old: accept no more.
    Ready,
    /// Old to new: it drains.
    Released,
    /// Old to new: no.
    Refused(String),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello => f.write_str("culvert-successor 1"),
            Self::Socket(Key::Host(name)) => write!(f, "host {name}"),
            Self::Socket(Key::Pod { uid, netns: (dev, ino), port }) => {
                write!(f, "pod {port} {dev} {ino} {uid}")
            }
            Self::Socket(Key::Dns { uid, netns: (dev, ino), kind }) => {
                write!(f, "dns {} {dev} {ino} {uid}", kind.as_str())
            }
            Self::All => f.write_str("all"),
            Self::Ready => f.write_str("ready"),
            Self::Released => f.write_str("released"),
            Self::Refused(why) => write!(f, "refused {why}"),
        }
    }
}

impl FromStr for Message {
    type Err = HandOverError;

    fn from_str(text: &str) -> Result<Self, HandOverError> {
        let unknown = || HandOverError::Message { text: text.chars().take(80).collect() };
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        Ok(match (kind, rest) {
            ("culvert-successor", "1") => Self::Hello,
            ("all", "") => Self::All,
            ("ready", "") => Self::Ready,
            ("released", "") => Self::Released,
            ("refused", why) => Self::Refused(why.to_owned()),
            ("host", name) if !name.is_empty() => Self::Socket(Key::Host(name.to_owned())),
            ("pod" | "dns", rest) => {
                let mut parts = rest.splitn(4, ' ');
                let mut next = || parts.next().filter(|part| !part.is_empty()).ok_or_else(unknown);
                let which = next()?;
                let netns =
                    (next()?.parse().map_err(|_| unknown())?, next()?.parse().map_err(|_| unknown())?);
                let uid = next()?.into();
                Self::Socket(if kind == "pod" {
                    Key::Pod { uid, netns, port: which.parse().map_err(|_| unknown())? }
                } else {
                    let found = dns::Kind::ALL.into_iter().find(|kind| kind.as_str() == which);
                    Key::Dns { uid, netns, kind: found.ok_or_else(unknown)? }
                })
            }
            _ => return Err(unknown()),
        })
    }
}

/// Why nothing is handed over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandOverError {
    #[error("the agent that runs already does not hand its sockets over: {0}")]
    Refused(String),
    #[error("the other agent says nothing for {LIMIT:?}; is it stopped or stuck?")]
    Silent,
    #[error("the other agent says {text:?}, which is not understood; are their versions too far apart?")]
    Message { text: String },
    #[error("a message of the other agent is cut off, or this process is out of descriptors")]
    Truncated,
    #[error("{0} came with {1} descriptors")]
    Descriptors(String, usize),
    #[error("the other agent runs as user {0}")]
    Stranger(u32),
    #[error("the other agent hung up")]
    Ended,
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
}

/// A conversation between two agents.
struct Link(SeqPacket);

impl Link {
    fn new(socket: SeqPacket) -> Result<Self, HandOverError> {
        // The file is root's alone; this is for the case that somebody opened its folder up.
        match socket.peer_uid()? {
            uid if uid == 0 || uid == nix::unistd::geteuid().as_raw() => Ok(Self(socket)),
            uid => Err(HandOverError::Stranger(uid)),
        }
    }

    async fn say(&self, message: &Message, socket: Option<&OwnedFd>) -> Result<(), HandOverError> {
        let (text, socket) = (message.to_string(), socket.map(AsFd::as_fd));
        let bytes = text.as_bytes();
        let sent = self.0.send(bytes.get(..MESSAGE_MAX).unwrap_or(bytes), socket.as_slice());
        Ok(timeout(LIMIT, sent).await.map_err(|_| HandOverError::Silent)??)
    }

    /// The next message, and the socket beside it. Cancel-safe.
    async fn hear(&self) -> Result<(Message, Option<OwnedFd>), HandOverError> {
        let packet = self.0.recv(MESSAGE_MAX).await?.ok_or(HandOverError::Ended)?;
        if packet.truncated {
            return Err(HandOverError::Truncated);
        }
        let message: Message = String::from_utf8_lossy(&packet.bytes).parse()?;
        let (found, mut fds) = (packet.fds.len(), packet.fds);
        match (&message, found) {
            (Message::Socket(_), 1) => Ok((message, fds.pop())),
            (Message::Socket(_), _) | (_, 1..) => Err(HandOverError::Descriptors(message.to_string(), found)),
            (_, 0) => Ok((message, None)),
        }
    }

    async fn hear_soon(&self) -> Result<(Message, Option<OwnedFd>), HandOverError> {
        timeout(LIMIT, self.hear()).await.map_err(|_| HandOverError::Silent)?
    }
}

/// The new agent's side, from the start to the end of the hand-over.
pub(crate) struct Heir {
    link: Link,
}

/// Asks the agent that answers at `path` for its sockets; `None` when none does.
///
/// **Errors**: one answers and does not hand over.
pub(crate) async fn claim(path: &Path) -> Result<Option<(Heir, Inheritance)>, HandOverError> {
    let link = match SeqPacket::connect(path) {
        Ok(socket) => Link::new(socket)?,
        // Nothing there, or what a killed agent left.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    link.say(&Message::Hello, None).await?;
    let mut inheritance = Inheritance::default();
    loop {
        match link.hear_soon().await {
            Ok((Message::Socket(key), Some(socket))) => inheritance.keep(Heirloom { key, socket }),
            Ok((Message::All, _)) => break,
            Ok((Message::Refused(why), _)) => return Err(HandOverError::Refused(why)),
            Ok((other, _)) => return Err(HandOverError::Message { text: other.to_string() }),
            // It ended just now: what it has handed over so far is good all the same.
            Err(HandOverError::Ended) => break,
            Err(error) => return Err(error),
        }
    }
    tracing::info!(sockets = inheritance.0.len(), "sockets of the agent that runs already received");
    Ok(Some((Heir { link }, inheritance)))
}

impl Heir {
    /// Waits until nothing but the predecessor is waited for, then takes its place; `pages` opens then too.
    ///
    /// Should the predecessor end earlier, its place is taken at once: its sockets are accepted from by nobody.
    pub(crate) async fn run(
        self,
        asks: mpsc::Sender<Ask>,
        readiness: Readiness,
        pending: Pending,
        pages: watch::Sender<bool>,
    ) {
        let mut look = interval(LOOK);
        loop {
            tokio::select! {
                heard = self.link.hear() => match heard {
                    Ok((Message::Socket(key), Some(socket))) => {
                        let _draining = asks.send(Ask::Inherited(Heirloom { key, socket })).await;
                    }
                    Ok((other, _)) => tracing::debug!(%other, "the predecessor says"),
                    Err(error) => {
                        tracing::info!("the predecessor has ended: {error}");
                        accept(&asks).await;
                        break;
                    }
                },
                _ = look.tick() => if readiness.waiting_for() == [PENDING] {
                    accept(&asks).await;
                    self.take_over().await;
                    break;
                }
            }
        }
        pages.send_replace(true);
        pending.ready();
    }

    async fn take_over(&self) {
        let released = async {
            self.link.say(&Message::Ready, None).await?;
            while self.link.hear_soon().await?.0 != Message::Released {}
            Ok::<_, HandOverError>(())
        };
        match released.await {
            Ok(()) => tracing::info!("taken over: the predecessor drains"),
            // Both accept from the same sockets then; nothing is lost.
            Err(error) => {
                tracing::warn!("taken over, but the predecessor did not say that it drains: {error}")
            }
        }
    }
}

async fn accept(asks: &mpsc::Sender<Ask>) {
    let (done, is_done) = oneshot::channel();
    let _draining = asks.send(Ask::Accept(done)).await;
    let _draining = is_done.await;
}

/// The old agent's side: what it would leave, and to whom.
pub(crate) struct Estate {
    pub(crate) path: PathBuf,
    /// Sockets of its own pages.
    pub(crate) pages: Vec<(String, OwnedFd)>,
    pub(crate) asks: mpsc::Sender<Ask>,
    /// Told when a successor has taken over.
    pub(crate) superseded: mpsc::Sender<()>,
    /// Drains once a successor has taken over, and not before.
    pub(crate) traffic: Scope,
}

impl Estate {
    /// Waits for a successor, until the agent drains.
    pub(crate) async fn run(self) {
        let mut said = false;
        while !self.traffic.is_draining() {
            let failed = match self.listen() {
                Ok(listener) => match self.serve(&listener).await {
                    Ok(link) => return self.hand_over(link, listener).await,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if self.traffic.is_draining() {
                return;
            }
            if !std::mem::replace(&mut said, true) {
                let path = self.path.display().to_string();
                tracing::warn!(path, error = %failed, "no successor could take this agent's sockets over now");
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                () = self.traffic.draining() => return,
            }
        }
    }

    fn listen(&self) -> io::Result<SeqPacketListener> {
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        SeqPacketListener::bind(&self.path, 0o600)
    }

    /// Serves successors until one is ready.
    ///
    /// **Errors**: the listener's, or the agent drains.
    async fn serve(&self, listener: &SeqPacketListener) -> io::Result<Link> {
        loop {
            let socket = tokio::select! {
                accepted = listener.accept() => accepted?,
                () = self.traffic.draining() => return Err(io::ErrorKind::Interrupted.into()),
            };
            let refused = match Link::new(socket) {
                Ok(link) => match self.converse(&link, listener).await {
                    Ok(()) => return Ok(link),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tracing::warn!("a successor did not take over: {refused}; this agent goes on");
        }
    }

    /// Gives everything to one successor, and waits until it is ready.
    async fn converse(&self, link: &Link, listener: &SeqPacketListener) -> Result<(), HandOverError> {
        match link.hear_soon().await? {
            (Message::Hello, _) => {}
            (other, _) => {
                let why = format!("{:?} is not how a successor begins", other.to_string());
                link.say(&Message::Refused(why), None).await?;
                return Err(HandOverError::Message { text: other.to_string() });
            }
        }
        let ready = async {
            let (now, all) = oneshot::channel();
            let (later, mut more) = mpsc::channel(LATER);
            let _draining = self.asks.send(Ask::Listeners { now, later }).await;
            for (name, socket) in &self.pages {
                link.say(&Message::Socket(Key::Host(name.clone())), Some(socket)).await?;
            }
            for heirloom in all.await.map_err(|_| HandOverError::Ended)? {
                link.say(&Message::Socket(heirloom.key), Some(&heirloom.socket)).await?;
            }
            link.say(&Message::All, None).await?;
            tracing::info!("a successor has this agent's sockets; it takes over when it is ready");
            loop {
                tokio::select! {
                    Some(heirloom) = more.recv() => {
                        link.say(&Message::Socket(heirloom.key), Some(&heirloom.socket)).await?;
                    }
                    heard = link.hear() => match heard?.0 {
                        Message::Ready => return Ok(()),
                        other => return Err(HandOverError::Message { text: other.to_string() }),
                    },
                    Ok(other) = listener.accept() => {
                        let busy = Message::Refused("another successor is about to take over".to_owned());
                        // It learns the same from being hung up on.
                        let _gone = Link(other).say(&busy, None).await;
                    }
                    () = self.traffic.draining() => return Err(HandOverError::Ended),
                }
            }
        };
        let ready = ready.await;
        if ready.is_err() {
            let _draining = self.asks.send(Ask::Anew).await;
        }
        ready
    }

    async fn hand_over(&self, link: Link, listener: SeqPacketListener) {
        drop(listener); // its path is the successor's now
        let _ended = self.superseded.send(()).await;
        self.traffic.draining().await;
        if let Err(error) = link.say(&Message::Released, None).await {
            tracing::warn!("the successor does not hear that this agent drains: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        let uid: Arc<str> = "default/a pod".into();
        for message in [
            Message::Hello,
            Message::Socket(Key::Host("metrics".into())),
            Message::Socket(Key::pod(&uid, (4, u64::MAX), 15008)),
            Message::All,
            Message::Ready,
            Message::Released,
            Message::Refused("another one".into()),
        ] {
            assert_eq!(message.to_string().parse::<Message>().unwrap(), message);
        }
        for text in [
            "",
            "culvert-successor 2",
            "pod",
            "pod 15008 4 5",
            "pod 99999 4 5 uid",
            "pod 15008 4 x uid",
            "pod 15008 -4 5 uid",
            "host ",
            "ready now",
            "anything else",
        ] {
            assert!(text.parse::<Message>().is_err(), "{text}");
        }
    }
}
