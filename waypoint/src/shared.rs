//! What all workers share: settings that do not change, state, certificates, telemetry.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_common::hbone::budget::Budget;
use culvert_common::hbone::{Http2, Limits};
use culvert_common::identity::Certs;
use culvert_common::state::State;
use culvert_common::telemetry::{Metrics, Telemetry};
use culvert_common::types::SpiffeId;

use crate::current::Current;
use crate::log::Form;

/// Shared by all workers, read-only.
pub(crate) struct Shared {
    pub(crate) state: Arc<State>,
    /// What requests use of it.
    pub(crate) current: ArcSwap<Current>,
    pub(crate) certs: Arc<Certs>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) telemetry: Arc<Telemetry>,
    /// In which form requests are logged; none: not at all.
    pub(crate) access_log: Option<Form>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) http2: Http2,
    pub(crate) limits: Limits,
    /// How long a tunnel waits for the first certificate.
    pub(crate) certificate_wait: Duration,
}

impl Shared {
    /// Whom it proves to be to everybody: its pods' service account. None before the first configuration.
    pub(crate) fn identity(&self) -> Option<SpiffeId> {
        self.current.load().waypoint.identity.clone()
    }

    /// The configuration as it is now.
    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }
}

/// A random number; not for secrets' sake but so that ids and choices do not repeat.
pub(crate) fn random() -> u128 {
    thread_local! {
        /// From the kernel, many at a time, as each request takes some.
        static NUMBERS: RefCell<Vec<u128>> = const { RefCell::new(Vec::new()) };
    }
    NUMBERS.with_borrow_mut(|numbers| {
        if numbers.is_empty() {
            let mut bytes = [0; 512];
            // Without the kernel's randomness there is no TLS either: this cannot fail on a running waypoint.
            let _filled = getrandom::fill(&mut bytes);
            numbers.extend(bytes.as_chunks().0.iter().copied().map(u128::from_ne_bytes));
        }
        numbers.pop().unwrap_or_default()
    })
}
