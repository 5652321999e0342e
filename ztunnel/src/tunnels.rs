//! Trust that lives: when roots change, the tunnels that are open are looked at again.
//!
//! A tunnel whose other end leads to no root that is trusted now is cut, with the connections in it. One whose own
//! certificate has got another signer retires: what is open goes on, new streams use a new tunnel. Each worker looks
//! after its own, both those that it dialled and those that it accepted.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use culvert_common::hbone::orders::{Order, Orders};
use culvert_common::identity::{Chain, Role, Trust, WorkloadCert};
use culvert_common::types::SpiffeId;

use crate::connections::Closed;
use crate::shared::{Shared, denial_id};
use crate::worker::Worker;

/// Chains that are verified before others get their turn: each costs some 100 microseconds.
const PIECE: usize = 16;

/// All open tunnels of a worker. Not `Send`.
#[derive(Default)]
pub(crate) struct Tunnels {
    open: RefCell<Vec<Rc<Tracked>>>,
}

struct Tracked {
    /// Ours.
    identity: SpiffeId,
    /// What the other end is.
    role: Role,
    /// What it has proven itself with.
    chain: Chain,
    /// By which it was last found good.
    trust: RefCell<Arc<Trust>>,
    /// Gone with the tunnel.
    orders: Weak<Orders>,
}

impl Tunnels {
    /// Looks after a tunnel that `certificate` was used for, until it ends.
    pub(crate) fn track(
        &self,
        shared: &Shared,
        certificate: &WorkloadCert,
        (role, chain): (Role, &Chain),
        orders: &Rc<Orders>,
    ) {
        let tracked = Rc::new(Tracked {
            identity: certificate.identity.clone(),
            role,
            chain: chain.clone(),
            trust: RefCell::new(Arc::clone(certificate.trust())),
            orders: Rc::downgrade(orders),
        });
        // The roots may have changed during the handshake. Nothing uses the tunnel yet.
        if tracked.look(shared).is_some() {
            orders.give(Order::Cut);
        }
        self.open.borrow_mut().push(tracked);
    }

    /// Forgets those that have ended.
    pub(crate) fn sweep(&self) {
        self.open.borrow_mut().retain(|tunnel| tunnel.orders.strong_count() > 0);
    }
}

impl Tracked {
    /// Why the other end is trusted no longer. A tunnel of another signer is asked to retire.
    fn look(&self, shared: &Shared) -> Option<String> {
        // Without a valid certificate of our own there is nothing new to go by.
        let certificate = shared.certs.current(&self.identity)?;
        let now = certificate.trust();
        let before = self.trust.replace(Arc::clone(now));
        if Arc::ptr_eq(&before, now) || before == *now {
            return None;
        }
        if let Err(cause) = now.verify(&self.chain, self.role) {
            return Some(cause);
        }
        if !now.has_signer_of(&before)
            && let Some(orders) = self.orders.upgrade()
        {
            orders.give(Order::Retire);
        }
        None
    }
}

/// Looks at all tunnels again whenever trust has changed, for as long as the worker lives.
pub(crate) async fn run(worker: &Worker) {
    let mut changes = worker.shared.certs.trust_changed();
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await; // the worker holds the certificates: it ends first
        }
        worker.tunnels.sweep();
        let all = worker.tunnels.open.borrow().clone();
        for (n, tunnel) in all.iter().enumerate() {
            if let Some(cause) = tunnel.look(&worker.shared)
                && let Some(orders) = tunnel.orders.upgrade()
            {
                cut(worker, tunnel, &orders, &cause);
            }
            if n % PIECE == PIECE - 1 {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The connections first, so that their logs tell why.
fn cut(worker: &Worker, tunnel: &Tracked, orders: &Rc<Orders>, cause: &str) {
    let mut closed = 0;
    worker.connections.on_tunnel(orders, |entry| {
        closed += 1;
        entry.close(Closed::Trust { cause: cause.to_owned(), id: denial_id() });
    });
    tracing::info!(identity = %tunnel.identity, peer = ?tunnel.role, closed, cause, "a tunnel's other end is trusted no longer");
    orders.give(Order::Cut);
}
