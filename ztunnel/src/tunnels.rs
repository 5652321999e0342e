//! Trust that lives: when roots change, the tunnels that are open are looked at again.
//!
//! A tunnel whose other end leads to no root that is trusted now is cut, with the connections in it. One whose own
//! certificate has got another signer retires: what is open goes on, new streams use a new tunnel. Each worker looks
//! after its own, both those that it dialled and those that it accepted.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use culvert_common::hbone::orders::{Order, Orders};
use culvert_common::identity::{Chain, Distrust, Role, Trust, WorkloadCert};
use culvert_common::telemetry::{Reporter, denial_id};
use culvert_common::types::SpiffeId;

use crate::connections::Closed;
use crate::shared::Shared;
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
    /// Revision of the revocation lists by which it was last looked at; `None` before the first look.
    lists: Cell<Option<u64>>,
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
            lists: Cell::new(None),
            orders: Rc::downgrade(orders),
        });
        if chain.is_empty() && shared.certs.revocation().is_some() {
            shared.telemetry.metrics().identity().untracked(reporter(role));
        }
        // Roots and lists may have changed during the handshake. Nothing uses the tunnel yet.
        if let Some(distrust) = tracked.look(shared) {
            tracked.count(shared, &distrust);
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
    fn look(&self, shared: &Shared) -> Option<Distrust> {
        // Without a valid certificate of our own there is nothing new to go by.
        let certificate = shared.certs.current(&self.identity)?;
        let now = certificate.trust();
        let before = self.trust.replace(Arc::clone(now));
        let lists = shared.certs.revocation().map(|lists| lists.revision());
        let same_lists = self.lists.replace(lists) == lists;
        if same_lists && (Arc::ptr_eq(&before, now) || before == *now) {
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

    fn count(&self, shared: &Shared, distrust: &Distrust) {
        if matches!(distrust, Distrust::Revoked(_)) {
            shared.telemetry.metrics().identity().rejected(reporter(self.role));
        }
    }
}

/// Who tells of a tunnel whose other end plays this role.
fn reporter(peer: Role) -> Reporter {
    match peer {
        Role::Client => Reporter::Destination,
        Role::Server => Reporter::Source,
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
fn cut(worker: &Worker, tunnel: &Tracked, orders: &Rc<Orders>, cause: &Distrust) {
    let mut closed = 0;
    worker.connections.on_tunnel(orders, |entry| {
        closed += 1;
        let id = denial_id();
        entry.close(match cause {
            Distrust::Roots(cause) => Closed::Trust { cause: cause.clone(), id },
            Distrust::Revoked(cause) => Closed::Revoked { cause: cause.clone(), id },
        });
    });
    tunnel.count(&worker.shared, cause);
    tracing::info!(identity = %tunnel.identity, peer = ?tunnel.role, closed, %cause, "a tunnel's other end is trusted no longer");
    orders.give(Order::Cut);
}
