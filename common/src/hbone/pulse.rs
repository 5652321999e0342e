//! Whether a tunnel's peer still answers at all, so that a CONNECT without an answer is told from a tunnel without life.

use std::cell::Cell;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::Limits;

/// When the peer of one tunnel was heard last.
pub(super) struct Pulse {
    heard: Cell<Instant>,
    answered: Cell<Instant>,
    doubt: Notify,
}

impl Pulse {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { heard: Cell::new(now), answered: Cell::new(now), doubt: Notify::new() }
    }

    /// A CONNECT was answered.
    pub(super) fn answered(&self) {
        let now = Instant::now();
        self.heard.set(now);
        self.answered.set(now);
    }

    /// Asks for a PING now.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Whether anything was answered since then, a PING included.
    pub(super) fn heard_since(&self, then: Instant) -> bool {
        self.heard.get() >= then
    }

    /// Whether a CONNECT was answered since then.
    pub(super) fn answered_since(&self, then: Instant) -> bool {
        self.answered.get() >= then
    }

    /// PINGs, regularly and in doubt, until one is not answered in time.
    pub(super) async fn watch(&self, mut pings: h2::PingPong, limits: &Limits) {
        loop {
            tokio::select! {
                () = sleep(limits.ping_interval) => {}
                () = self.doubt.notified() => {}
            }
            match timeout(limits.ping_timeout, pings.ping(h2::Ping::opaque())).await {
                Ok(Ok(_)) => self.heard.set(Instant::now()),
                Ok(Err(_)) => std::future::pending().await, // the connection's own end says why
                Err(_) => return,
            }
        }
    }
}
