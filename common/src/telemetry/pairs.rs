//! The pairs of workloads that a thread has met: their counters, and what all their log lines have in common.

use std::cell::{OnceCell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use super::connection::{Flow, Reporter, Security, Telemetry};
use super::traffic::Pair;
use crate::model::{Service, Workload};
use crate::types::SpiffeId;

/// Pairs that one worker remembers.
const CACHE_SLOTS: usize = 256;

/// One pair that this thread has met. It holds what it is found by, so that no address is used again for another.
struct Slot {
    telemetry: Weak<Telemetry>,
    reporter: Reporter,
    security: Security,
    source: Option<Arc<Workload>>,
    source_identity: Option<SpiffeId>,
    destination: Option<Arc<Workload>>,
    destination_identity: Option<SpiffeId>,
    service: Option<Arc<Service>>,
    /// Weak, so that the table sees from the strong ones whether a connection is open.
    pair: Weak<Pair>,
    known: Rc<Known>,
}

thread_local! {
    /// Direct-mapped: a collision only costs the slow look-up, and the size is bounded without any bookkeeping.
    static CACHE: RefCell<(RandomState, Vec<Option<Box<Slot>>>)> = RefCell::default();
}

/// What of a log line all connections of a pair share.
pub(super) type Parts = (Box<str>, Box<str>);

/// What is rendered once for a pair, with the first line that needs it.
#[derive(Default)]
pub(super) struct Known(OnceCell<Parts>);

impl Known {
    /// As `render` said it the first time.
    pub(super) fn parts(&self, render: impl FnOnce() -> Parts) -> &Parts {
        self.0.get_or_init(render)
    }
}

/// The counters of `flow` and what its log lines share.
pub(super) fn known(telemetry: &Arc<Telemetry>, flow: &Flow, seconds: u32) -> (Arc<Pair>, Rc<Known>) {
    CACHE.with_borrow_mut(|(hasher, slots)| {
        if slots.is_empty() {
            slots.resize_with(CACHE_SLOTS, || None);
        }
        let key = (
            flow.source.as_ref().map(Arc::as_ptr),
            flow.destination.as_ref().map(Arc::as_ptr),
            flow.service.as_ref().map(Arc::as_ptr),
            flow.reporter,
        );
        let at = (hasher.hash_one(key) as usize) % CACHE_SLOTS;
        let slot = slots.get_mut(at);
        let met = slot.as_deref().and_then(Option::as_ref).filter(|s| s.is_for(telemetry, flow));
        if let Some((pair, known)) = met.and_then(|s| Some((s.pair.upgrade()?, Rc::clone(&s.known)))) {
            return (pair, known);
        }
        let (pair, known) = (telemetry.metrics().traffic.pair(flow, seconds), Rc::default());
        if let Some(slot) = slot.filter(|_| !pair.shared) {
            *slot = Some(Box::new(Slot::new(telemetry, flow, (&pair, &known))));
        }
        (pair, known)
    })
}

impl Slot {
    fn new(telemetry: &Arc<Telemetry>, flow: &Flow, (pair, known): (&Arc<Pair>, &Rc<Known>)) -> Self {
        Self {
            telemetry: Arc::downgrade(telemetry),
            reporter: flow.reporter,
            security: flow.security,
            source: flow.source.clone(),
            source_identity: flow.source_identity.clone(),
            destination: flow.destination.clone(),
            destination_identity: flow.destination_identity.clone(),
            service: flow.service.clone(),
            pair: Arc::downgrade(pair),
            known: Rc::clone(known),
        }
    }

    fn is_for(&self, telemetry: &Arc<Telemetry>, flow: &Flow) -> bool {
        fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
            a.map(Arc::as_ptr) == b.map(Arc::as_ptr)
        }
        self.reporter == flow.reporter
            && self.security == flow.security
            && std::ptr::eq(self.telemetry.as_ptr(), Arc::as_ptr(telemetry))
            && same(self.source.as_ref(), flow.source.as_ref())
            && same(self.destination.as_ref(), flow.destination.as_ref())
            && same(self.service.as_ref(), flow.service.as_ref())
            && self.source_identity == flow.source_identity
            && self.destination_identity == flow.destination_identity
    }
}
