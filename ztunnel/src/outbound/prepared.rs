//! What the CONNECTs from one workload to another have in common, kept by each worker so that a new connection builds
//! none of it. Decides nothing: it is found by the very objects that were decided on.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_common::hbone::client::{HandshakeError, OpenError};
use culvert_common::hbone::headers::baggage_of;
use culvert_common::hbone::pool::Key;
use culvert_common::model::Workload;
use culvert_common::types::SpiffeId;
use http::HeaderValue;
use http::uri::Authority;

/// Pairs that one worker remembers.
const SLOTS: usize = 256;

/// Who wants to talk to whom.
#[derive(Clone, Copy)]
pub(super) struct Between<'a> {
    /// UID of the captured pod.
    pub(super) pod: &'a Arc<str>,
    pub(super) source: &'a Arc<Workload>,
    pub(super) destination: &'a Arc<Workload>,
    pub(super) peer: SocketAddr,
    pub(super) authority: SocketAddr,
    pub(super) expected: &'a [SpiffeId],
}

/// One pair. It holds what it is found by, so that no address is used again for another.
pub(super) struct Prepared {
    source: Arc<Workload>,
    destination: Arc<Workload>,
    to: SocketAddr,
    /// Of the pair's tunnels.
    pub(super) key: Key,
    /// Target of the CONNECT.
    pub(super) authority: Authority,
    /// The source's.
    pub(super) baggage: HeaderValue,
}

/// The pairs that a worker has met. Not `Send`.
///
/// Direct-mapped: a collision costs what is built anew, and the size is bounded without any bookkeeping.
#[derive(Default)]
pub(crate) struct Routes {
    hasher: RandomState,
    slots: RefCell<Vec<Option<Rc<Prepared>>>>,
}

impl Routes {
    /// What is kept for the pair, made if it is new.
    ///
    /// **Errors**: the source's description cannot be said in a header.
    pub(super) fn prepared(&self, between: Between<'_>) -> Result<Rc<Prepared>, OpenError> {
        let Between { source, destination, authority, .. } = between;
        let mut slots = self.slots.borrow_mut();
        if slots.is_empty() {
            slots.resize_with(SLOTS, || None);
        }
        let hash = self.hasher.hash_one((Arc::as_ptr(source), Arc::as_ptr(destination), authority));
        let slot = slots.get_mut((hash as usize) % SLOTS);
        if let Some(met) = slot.as_deref().and_then(Option::as_ref).filter(|met| met.is_of(&between)) {
            return Ok(Rc::clone(met));
        }
        let made = Rc::new(Prepared::new(&between)?);
        if let Some(slot) = slot {
            *slot = Some(Rc::clone(&made));
        }
        Ok(made)
    }
}

impl Prepared {
    fn new(between: &Between<'_>) -> Result<Self, OpenError> {
        let Between { pod, source, destination, peer, authority, expected } = *between;
        let failed = |cause: String| HandshakeError::Http2 { peer, cause };
        let (uid, identity) = (destination.uid.clone(), source.identity.clone());
        Ok(Self {
            source: Arc::clone(source),
            destination: Arc::clone(destination),
            to: authority,
            key: Key::new(Arc::clone(pod), identity, uid, peer, expected.to_vec()),
            authority: authority.to_string().parse().map_err(|e| failed(format!("{e}")))?,
            baggage: HeaderValue::try_from(baggage_of(source)).map_err(|e| failed(e.to_string()))?,
        })
    }

    fn is_of(&self, between: &Between<'_>) -> bool {
        Arc::ptr_eq(&self.source, between.source)
            && Arc::ptr_eq(&self.destination, between.destination)
            && Arc::ptr_eq(&self.key.source, between.pod)
            && self.to == between.authority
            && self.key.peer == between.peer
            && self.key.expected == between.expected
    }
}
