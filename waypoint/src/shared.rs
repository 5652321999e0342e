//! What all workers share: settings that do not change, state, certificates, telemetry.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_common::crypto::random;
use culvert_common::hbone::budget::Budget;
use culvert_common::hbone::{Http2, Limits};
use culvert_common::identity::Certs;
use culvert_common::model::l7::Fraction;
use culvert_common::state::State;
use culvert_common::telemetry::{Metrics, Spans, Telemetry};
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
    /// Requests that have a span where no caller has decided.
    pub(crate) trace_sampling: Fraction,
    pub(crate) spans: Spans,
    pub(crate) budget: Arc<Budget>,
    /// Of the tunnels that clients open.
    pub(crate) from_clients: Http2,
    /// Of the tunnels to endpoints.
    pub(crate) to_endpoints: Http2,
    pub(crate) limits: Limits,
    /// A connection without requests is ended after so long.
    pub(crate) idle: Duration,
    /// One that has none in a drain, after so long.
    pub(crate) last_call: Duration,
    /// How long a tunnel waits for the first certificate.
    pub(crate) certificate_wait: Duration,
    /// Clients whose `x-forwarded-for` is believed.
    pub(crate) trusted_proxies: Vec<SpiffeId>,
    /// How many proxies are before the mesh, each of which adds to it.
    pub(crate) trusted_hops: u32,
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

/// Whether a request is one of this share of all.
pub(crate) fn drawn(share: Fraction) -> bool {
    share.includes(u32::try_from(random() % 1_000_000).unwrap_or_default())
}
