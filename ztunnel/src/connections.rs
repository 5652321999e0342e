//! The open connections of one worker: what the admin page lists, and what is decided again when policy or trust changes.
//!
//! Each worker has its own table, so that no lock is shared. A connection enters it when it has been routed, before the
//! first await after its decision, and leaves it when its [`Open`] is dropped; relaying a byte costs it nothing. Whoever
//! ends a connection leaves a reason ([`Entry::close`]) and wakes its task, which looks in [`Open::closed`]. Decides
//! nothing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use culvert_common::authz;
use culvert_common::hbone::orders::Orders;
use culvert_common::telemetry::{ByteCounts, Connection, DenialNote, Failure, ResponseFlag};
use culvert_common::types::SpiffeId;
use tokio::time::Instant;

use crate::shared::Pod;

/// Which path a connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From the pod, in plaintext.
    OutboundTcp,
    /// From the pod, through a tunnel.
    OutboundHbone,
    /// To the pod, in plaintext.
    InboundTcp,
    /// To the pod, a stream of a tunnel.
    InboundHbone,
}

impl Kind {
    pub(crate) fn is_inbound(self) -> bool {
        matches!(self, Self::InboundTcp | Self::InboundHbone)
    }
}

/// Why an open connection was ended. The peer gets a reset and learns nothing else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    /// Policies as they are now would not let it in.
    #[error("connection closed due to policy change: {denial}")]
    Policy { denial: authz::Denial, id: String },
    /// The other end of its tunnel has proven itself by a root that is trusted no longer.
    #[error("connection closed due to a change of the trusted roots: the peer's certificate: {cause}")]
    Trust { cause: String, id: String },
    /// The other end of its tunnel has proven itself with what is revoked now.
    #[error("connection closed due to a change of the revocation lists: {cause}")]
    Revoked { cause: String, id: String },
    /// Its pod has left, and with it the rules by which the app's answers came back.
    #[error(
        "connection closed: the pod has left the mesh, and its app's answers do not come back here any more"
    )]
    Unsteered { id: String },
}

impl Closed {
    /// Id of this one end, random.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Policy { id, .. }
            | Self::Trust { id, .. }
            | Self::Revoked { id, .. }
            | Self::Unsteered { id } => id,
        }
    }

    pub(crate) fn failure(&self) -> Failure {
        let (flag, class, policy) = match self {
            Self::Policy { denial, .. } => (ResponseFlag::Deny, "policy-change", Some(denial.policies())),
            Self::Trust { .. } => (ResponseFlag::TlsFailure, "trust-change", None),
            Self::Revoked { .. } => (ResponseFlag::CertRevoked, "revoked", None),
            Self::Unsteered { .. } => (ResponseFlag::Connect, "draining", None),
        };
        let denial = Some(DenialNote { id: self.id().to_owned(), class, policy });
        Failure { flag, error: self.to_string(), denial }
    }
}

/// One open connection.
pub(crate) struct Entry {
    /// Place in its table; not before it is in one.
    id: u64,
    pub(crate) kind: Kind,
    /// The captured pod whose connection it is.
    pub(crate) pod: Arc<Pod>,
    pub(crate) src: SocketAddr,
    /// Where the app wanted to go; of an incoming stream the port's own address says it all.
    pub(crate) original: Option<SocketAddr>,
    /// What was dialled.
    pub(crate) actual: SocketAddr,
    /// Identity that the peer of an incoming stream has proven.
    pub(crate) peer: Option<SpiffeId>,
    /// Host name of the service that it was meant for, as far as that is known.
    service: Option<Arc<str>>,
    counts: Rc<ByteCounts>,
    since: Instant,
    /// Revision by which it was last allowed.
    pub(crate) allowed_at: Cell<u64>,
    /// The tunnel that it is a stream of.
    tunnel: RefCell<Option<Rc<Orders>>>,
    closed: RefCell<(Option<Rc<Closed>>, Option<Waker>)>,
}

impl Entry {
    /// A connection that telemetry has opened and that `revision` allows. `actual` is what is dialled for it.
    pub(crate) fn new(kind: Kind, pod: &Arc<Pod>, connection: &Connection, actual: SocketAddr) -> Self {
        let flow = connection.flow();
        Self {
            id: 0,
            kind,
            pod: Arc::clone(pod),
            src: flow.src_addr,
            original: None,
            actual,
            peer: flow.source_identity.clone().filter(|_| kind == Kind::InboundHbone),
            service: flow.service.as_ref().map(|s| Arc::clone(&s.key.hostname)),
            counts: connection.counts(),
            since: Instant::now(),
            allowed_at: Cell::new(0),
            tunnel: RefCell::default(),
            closed: RefCell::default(),
        }
    }

    /// With the address that the app asked for.
    pub(crate) fn with_original(self, original: SocketAddr) -> Self {
        Self { original: Some(original), ..self }
    }

    /// With the revision that allowed it.
    pub(crate) fn allowed_at(self, revision: u64) -> Self {
        self.allowed_at.set(revision);
        self
    }

    /// As a stream of a tunnel.
    pub(crate) fn through(self, tunnel: &Rc<Orders>) -> Self {
        self.tunnel.replace(Some(Rc::clone(tunnel)));
        self
    }

    /// Ends the connection; the first reason stays.
    pub(crate) fn close(&self, why: Closed) {
        let (reason, waker) = &mut *self.closed.borrow_mut();
        reason.get_or_insert_with(|| Rc::new(why));
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }

    /// What others may see of it.
    fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            pod: Arc::clone(&self.pod.local.uid),
            kind: self.kind,
            src: self.src,
            original: self.original,
            actual: self.actual,
            peer: self.peer.clone(),
            service: self.service.clone(),
            sent: self.counts.sent(),
            received: self.counts.received(),
            age: self.since.elapsed(),
        }
    }
}

/// One open connection, as of the moment it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    /// UID of the captured pod whose connection it is.
    pub(crate) pod: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) src: SocketAddr,
    /// Where the app wanted to go; outbound only.
    pub(crate) original: Option<SocketAddr>,
    /// What was dialled: outbound the next hop, inbound the app.
    pub(crate) actual: SocketAddr,
    /// Identity that the client has proven; inbound HBONE only.
    pub(crate) peer: Option<SpiffeId>,
    /// Host name of the service that it was meant for.
    pub(crate) service: Option<Arc<str>>,
    /// Bytes from server to client so far.
    pub(crate) sent: u64,
    /// Bytes from client to server so far.
    pub(crate) received: u64,
    pub(crate) age: Duration,
}

/// All open connections of a worker. Not `Send`.
#[derive(Default)]
pub(crate) struct Connections {
    /// By a number that only grows, so that a walk in pieces finds its place again.
    open: Rc<RefCell<BTreeMap<u64, Rc<Entry>>>>,
    next: Cell<u64>,
}

impl Connections {
    /// Lists a connection for as long as the answer lives.
    pub(crate) fn open(&self, entry: Entry) -> Open {
        let id = self.next.replace(self.next.get() + 1);
        let entry = Rc::new(Entry { id, ..entry });
        self.open.borrow_mut().insert(id, Rc::clone(&entry));
        Open { table: Rc::clone(&self.open), entry }
    }

    /// Up to `count` connections with numbers from `from` on, and the number to go on with; `None` at the end.
    pub(crate) fn piece(&self, from: u64, count: usize) -> (Vec<Rc<Entry>>, Option<u64>) {
        let open = self.open.borrow();
        let mut rest = open.range(from..);
        let piece = rest.by_ref().take(count).map(|(_, entry)| Rc::clone(entry)).collect();
        (piece, rest.next().map(|(&id, _)| id))
    }

    /// Tells `each` of the connections that are streams of a tunnel.
    pub(crate) fn on_tunnel(&self, tunnel: &Rc<Orders>, mut each: impl FnMut(&Entry)) {
        let is_on =
            |entry: &&Rc<Entry>| entry.tunnel.borrow().as_ref().is_some_and(|t| Rc::ptr_eq(t, tunnel));
        self.open.borrow().values().filter(is_on).for_each(|entry| each(entry));
    }

    /// What is open now.
    pub(crate) fn list(&self) -> Vec<ConnectionInfo> {
        self.open.borrow().values().map(|entry| entry.info()).collect()
    }
}

/// A listed connection; dropped, it leaves the list.
pub(crate) struct Open {
    table: Rc<RefCell<BTreeMap<u64, Rc<Entry>>>>,
    entry: Rc<Entry>,
}

impl Open {
    /// From now on it is a stream of this tunnel.
    pub(crate) fn through(&self, tunnel: &Rc<Orders>) {
        self.entry.tunnel.replace(Some(Rc::clone(tunnel)));
    }

    /// Resolves when somebody has ended the connection. Cancel-safe.
    pub(crate) async fn closed(&self) -> Rc<Closed> {
        poll_fn(|cx| {
            let (reason, waker) = &mut *self.entry.closed.borrow_mut();
            if let Some(reason) = reason {
                return Poll::Ready(Rc::clone(reason));
            }
            // Polled with each wake-up of the connection's task, whose waker stays the same.
            if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.table.borrow_mut().remove(&self.entry.id);
    }
}
