//! The proxies that are connected over ZDS, each asked and answered in a task of its own, so that one that is silent,
//! floods or breaks off holds up nobody else.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use culvert_common::net::netns::NetNs;
use culvert_common::net::seqpacket::{SeqPacket, SeqPacketListener};
use culvert_common::task::Scope;
use culvert_common::zds::{Ack, Channel, Request, WorkloadInfo, ZdsError};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, sleep_until, timeout};

/// Limit of a proxy's hello, and of each answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Connections are taken at most so often.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// After an error of the listener: it may be out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// Connections at a time: one proxy, its successor, and a few that are ending.
const PROXIES_MAX: usize = 16;
/// Lots of requests that may wait for one proxy.
const LOTS: usize = 256;
/// Answers that may wait for being looked at.
const EVENTS: usize = 256;

/// Where proxies come from.
pub(crate) enum Peers {
    /// Another process.
    Listener(SeqPacketListener),
    /// This process.
    Local(Receiver<SeqPacket>),
}

/// Connects the proxy side of the same process.
#[derive(Clone, Debug)]
pub(crate) struct LocalDialer(Sender<SeqPacket>);

impl Peers {
    /// For both sides in one process.
    pub(crate) fn local() -> (LocalDialer, Self) {
        let (dialer, peers) = mpsc::channel(1);
        (LocalDialer(dialer), Self::Local(peers))
    }

    async fn accept(&mut self) -> io::Result<SeqPacket> {
        match self {
            Self::Listener(listener) => listener.accept().await,
            Self::Local(peers) => match peers.recv().await {
                Some(peer) => Ok(peer),
                // The proxy side has ended, and so does the process.
                None => std::future::pending().await,
            },
        }
    }
}

impl LocalDialer {
    /// A connection to the other side.
    ///
    /// **Errors**: the kernel's; `WouldBlock` when the last one was not taken yet.
    pub(crate) fn connect(&self) -> io::Result<SeqPacket> {
        let (here, there) = SeqPacket::pair()?;
        self.0.try_send(there).map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        Ok(here)
    }
}

/// Stands for one connection; later ones are greater.
pub(super) type ProxyId = u64;

/// A request to a proxy.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Add { uid: Arc<str>, info: WorkloadInfo, netns: NetNs },
    Keep { uid: Arc<str> },
    Del { uid: Arc<str>, grace: Duration },
    SnapshotSent,
}

impl Ask {
    fn request(&self) -> io::Result<Request> {
        Ok(match self {
            Self::Add { uid, info, netns } => {
                let netns = netns.as_fd().try_clone_to_owned()?;
                Request::Add { uid: uid.to_string(), info: info.clone(), netns }
            }
            Self::Keep { uid } => Request::Keep { uid: uid.to_string() },
            Self::Del { uid, grace } => Request::Del { uid: uid.to_string(), grace: Some(*grace) },
            Self::SnapshotSent => Request::SnapshotSent,
        })
    }

    /// As a label's value.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Keep { .. } => "keep",
            Self::Del { .. } => "del",
            Self::SnapshotSent => "snapshot_sent",
        }
    }
}

/// What a proxy did.
#[derive(Debug)]
pub(super) enum Event {
    /// It has connected and waits for its snapshot.
    Hello,
    /// It has answered.
    Answer { from: ProxyId, ask: Ask, answer: Ack },
    /// It is not connected any more.
    Gone { who: ProxyId, why: Ending },
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ending {
    #[error("{0}")]
    Zds(#[from] ZdsError),
    #[error("it did not answer {asked} within {ANSWER:?}")]
    Silent { asked: &'static str },
    #[error("it sent something where nothing was asked")]
    Unasked,
    #[error("it takes requests too slowly, {LOTS} wait")]
    Slow,
}

enum Told {
    Hello(ProxyId),
    Other(Event),
}

struct Proxy {
    lots: Sender<Vec<Ask>>,
    /// Ends the conversation.
    scope: Scope,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Silent,
    Greeted,
    /// The snapshot was sent, or at least put in line.
    Informed,
}

/// All connections.
pub(super) struct Proxies {
    peers: Peers,
    scope: Scope,
    connected: BTreeMap<ProxyId, Proxy>,
    last: ProxyId,
    told: (Sender<Told>, Receiver<Told>),
    next_accept: Instant,
    /// Hung up on, and not told yet.
    dropped: Vec<ProxyId>,
}

impl Proxies {
    pub(super) fn new(peers: Peers, scope: Scope) -> Self {
        Self {
            peers,
            scope,
            connected: BTreeMap::new(),
            last: 0,
            told: mpsc::channel(EVENTS),
            next_accept: Instant::now(),
            dropped: Vec::new(),
        }
    }

    /// Waits for the next event, taking new connections meanwhile. Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            if let Some(who) = self.dropped.pop() {
                return Event::Gone { who, why: Ending::Slow };
            }
            let (next, has_room) = (self.next_accept, self.connected.len() < PROXIES_MAX);
            let accepted = async {
                sleep_until(next).await;
                self.peers.accept().await
            };
            tokio::select! {
                Some(told) = self.told.1.recv() => match told {
                    Told::Hello(who) => {
                        if let Some(proxy) = self.connected.get_mut(&who) {
                            proxy.stage = Stage::Greeted;
                            return Event::Hello;
                        }
                    }
                    Told::Other(Event::Gone { who, why }) => {
                        // None: it was hung up on, which is told above.
                        if self.connected.remove(&who).is_some() {
                            return Event::Gone { who, why };
                        }
                    }
                    Told::Other(event) => return event,
                },
                accepted = accepted, if has_room => match accepted {
                    Ok(socket) => {
                        self.next_accept = Instant::now() + ACCEPT_PAUSE;
                        self.admit(socket);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot take ZDS connections");
                        self.next_accept = Instant::now() + ACCEPT_RETRY;
                    }
                },
            }
        }
    }

    fn admit(&mut self, socket: SeqPacket) {
        // The socket's file is root's alone; this is for the case that somebody opened it up.
        let own = nix::unistd::geteuid().as_raw();
        match socket.peer_uid() {
            Ok(uid) if uid == 0 || uid == own => {}
            other => {
                let uid = other.map_or_else(|error| error.to_string(), |uid| uid.to_string());
                return tracing::warn!(
                    uid,
                    "ZDS connection refused: only root may have the pods' namespaces"
                );
            }
        }
        self.last += 1;
        let (who, scope) = (self.last, self.scope.child());
        let (lots, to_send) = mpsc::channel(LOTS);
        self.connected.insert(who, Proxy { lots, scope: scope.clone(), stage: Stage::Silent });
        let told = self.told.0.clone();
        scope.spawn(async move {
            let why = match converse(who, &Channel::new(socket), to_send, &told).await {
                Err(why) => why,
                Ok(never) => match never {},
            };
            // Nobody hears it when enrolment has ended.
            let _ended = told.send(Told::Other(Event::Gone { who, why })).await;
        });
    }

    /// The proxy that gets new pods: the last that has connected and got its snapshot.
    pub(super) fn newest(&self) -> Option<ProxyId> {
        self.connected.iter().rev().find(|(_, proxy)| proxy.stage == Stage::Informed).map(|(who, _)| *who)
    }

    /// Those that wait for their snapshot.
    pub(super) fn uninformed(&self) -> Vec<ProxyId> {
        let greeted = self.connected.iter().filter(|(_, proxy)| proxy.stage == Stage::Greeted);
        greeted.map(|(who, _)| *who).collect()
    }

    pub(super) fn is_connected(&self, who: ProxyId) -> bool {
        self.connected.contains_key(&who)
    }

    pub(super) fn len(&self) -> usize {
        self.connected.values().filter(|proxy| proxy.stage != Stage::Silent).count()
    }

    /// Has `asks` asked in this order; a snapshot ends with [`Ask::SnapshotSent`].
    pub(super) fn ask(&mut self, who: ProxyId, asks: Vec<Ask>) {
        let Some(proxy) = self.connected.get_mut(&who).filter(|_| !asks.is_empty()) else { return };
        if matches!(asks.last(), Some(Ask::SnapshotSent)) {
            proxy.stage = Stage::Informed;
        }
        if proxy.lots.try_send(asks).is_err() {
            proxy.scope.cut();
            self.connected.remove(&who);
            self.dropped.push(who);
        }
    }

    /// Has all proxies that got their snapshot asked.
    pub(super) fn ask_all(&mut self, ask: &Ask) {
        let informed = self.connected.iter().filter(|(_, proxy)| proxy.stage == Stage::Informed);
        for who in informed.map(|(who, _)| *who).collect::<Vec<_>>() {
            self.ask(who, vec![ask.clone()]);
        }
    }
}

enum Never {}

async fn converse(
    who: ProxyId,
    channel: &Channel,
    mut to_send: Receiver<Vec<Ask>>,
    told: &Sender<Told>,
) -> Result<Never, Ending> {
    timeout(ANSWER, channel.recv_hello()).await.map_err(|_| Ending::Silent { asked: "with a hello" })??;
    let _ended = told.send(Told::Hello(who)).await;
    loop {
        let asks = tokio::select! {
            asks = to_send.recv() => asks,
            // Nothing is due: the end of the connection is all that may come.
            unasked = channel.recv_ack() => return Err(unasked.map_or_else(Ending::Zds, |_| Ending::Unasked)),
        };
        let Some(asks) = asks else { return std::future::pending().await }; // hung up on, and about to be cut
        for ask in asks {
            let answer = exchange(channel, &ask).await?;
            let _ended = told.send(Told::Other(Event::Answer { from: who, ask, answer })).await;
        }
    }
}

async fn exchange(channel: &Channel, ask: &Ask) -> Result<Ack, Ending> {
    // What cannot be sent concerns this pod only.
    let request = match ask.request() {
        Ok(request) => request,
        Err(error) => return Ok(Err(format!("its namespace cannot be handed over: {error}"))),
    };
    let asked = async {
        channel.send_request(&request).await?;
        channel.recv_ack().await
    };
    match timeout(ANSWER, asked).await {
        Ok(Err(error @ ZdsError::TooLong { .. })) => Ok(Err(error.to_string())),
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Ending::Silent { asked: ask.name() }),
    }
}
