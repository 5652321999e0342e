//! The tunnels of one worker, by who talks to whom.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::client::{AnswerWait, Connect, OpenError, Slot, Tunnel};
use super::relay::Stream;
use crate::types::{SpiffeId, WorkloadUid};

/// Which streams may share a tunnel. The destination's UID is part of it, so that a reused address never meets an old
/// tunnel, and so is the source's: a tunnel's TCP source address is its pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Of all that follows, computed once: a key is looked up for each new connection.
    hash: u64,
    /// Pod whose traffic it is.
    pub source: Arc<str>,
    /// Identity it proves.
    pub identity: SpiffeId,
    /// Workload at the other end.
    pub destination: WorkloadUid,
    /// Its HBONE address.
    pub peer: SocketAddr,
    /// Identities accepted there.
    pub expected: Vec<SpiffeId>,
}

impl Key {
    /// Streams of `source` as `identity` to the `destination` at `peer`, which must prove one of `expected`.
    pub fn new(
        source: Arc<str>,
        identity: SpiffeId,
        destination: WorkloadUid,
        peer: SocketAddr,
        expected: Vec<SpiffeId>,
    ) -> Self {
        static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let hash = SECRET.hash_one((&source, &identity, &destination, peer, &expected));
        Self { hash, source, identity, destination, peer, expected }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// An open stream; holds its place in the tunnel until it is dropped.
pub struct Opened {
    /// To relay with.
    pub stream: Stream,
    /// The place.
    pub slot: Slot,
}

/// Tries on a tunnel that ended before it answered.
const TRIES: usize = 3;

/// A tunnel beside the first of its pair is kept unused for so long: each holds about 100 KiB, and a burst opens many.
const FURTHER_IDLE: Duration = Duration::from_secs(5);
/// A stream beside bulk gets a tunnel of its own, if there are not as many already.
const TUNNELS_BESIDE_BULK: usize = 2;

/// All tunnels that a worker has opened. Not `Send`.
#[derive(Default)]
pub struct Pool {
    pairs: RefCell<HashMap<Key, Rc<Pair>>>,
    /// Connections that waited for a new tunnel, and for how long together, since they were last taken.
    waits: Cell<(u64, Duration)>,
}

/// The tunnels of one key.
struct Pair {
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    streams_learned: Rc<Cell<usize>>,
    dial: RefCell<Option<Rc<Dial>>>,
}

impl Default for Pair {
    fn default() -> Self {
        let streams_learned = Rc::new(Cell::new(usize::MAX));
        Self { tunnels: RefCell::default(), streams_learned, dial: RefCell::default() }
    }
}

/// One establishment under way; everybody who waits for it gets its result.
#[derive(Default)]
struct Dial {
    done: Cell<bool>,
    failed: RefCell<Option<OpenError>>,
    ended: Notify,
}

/// Ends a [`Dial`] however its owner's future ends.
struct DialGuard<'a> {
    pair: &'a Pair,
    dial: Rc<Dial>,
}

impl Drop for DialGuard<'_> {
    fn drop(&mut self) {
        self.dial.done.set(true);
        self.pair.dial.borrow_mut().take();
        self.dial.ended.notify_waiters();
    }
}

/// A connection that waits for a new tunnel; counted when it ends, however it does.
struct Wait<'a> {
    pool: &'a Pool,
    began: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let (waits, waited) = self.pool.waits.get();
        self.pool.waits.set((waits + 1, waited + self.began.elapsed()));
    }
}

impl Pool {
    /// A stream to `key`: on a tunnel with room, or on a new one that `establish` makes. A tunnel that ends, or
    /// answers nothing, is replaced a bounded number of times; nothing has been relayed by then.
    ///
    /// **Errors**: see [`OpenError`]; one failed establishment answers all who wait for it. **Cancel safety**: safe;
    /// others who wait start over.
    pub async fn open<F>(
        &self,
        key: &Key,
        connect: &Connect<'_>,
        wait: AnswerWait,
        establish: impl Fn() -> F,
    ) -> Result<Opened, OpenError>
    where
        F: Future<Output = Result<Rc<Tunnel>, OpenError>>,
    {
        let (began, mut last) = (Instant::now(), None);
        for _ in 0..TRIES {
            let slot = self.claim(key, &establish).await?;
            // There is nothing better than a tunnel that was just made: it gets all the time.
            let patience = if slot.is_newer_than(began) { wait.limit } else { wait.patience };
            match Tunnel::open(&slot, connect, AnswerWait { patience, ..wait }).await {
                Ok(stream) => return Ok(Opened { stream, slot }),
                Err(error @ OpenError::Lost { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(OpenError::AnswerTimeout { peer: key.peer, limit: wait.limit }))
    }

    async fn claim<F>(&self, key: &Key, establish: &impl Fn() -> F) -> Result<Slot, OpenError>
    where
        F: Future<Output = Result<Rc<Tunnel>, OpenError>>,
    {
        let pair = {
            let mut pairs = self.pairs.borrow_mut();
            match pairs.get(key) {
                Some(pair) => Rc::clone(pair),
                None => Rc::clone(pairs.entry(key.clone()).or_default()),
            }
        };
        if let Some(slot) = pair.free_slot() {
            return Ok(slot);
        }
        let _waits = Wait { pool: self, began: Instant::now() };
        loop {
            if let Some(slot) = pair.free_slot() {
                return Ok(slot);
            }
            let running = pair.dial.borrow().clone();
            if let Some(dial) = running {
                let ended = dial.ended.notified(); // before the check: an end in between is not missed
                if !dial.done.get() {
                    ended.await;
                }
                if let Some(error) = dial.failed.borrow().clone() {
                    return pair.any_slot().ok_or(error);
                }
                continue;
            }
            let dial = Rc::new(Dial::default());
            pair.dial.borrow_mut().replace(Rc::clone(&dial));
            let guard = DialGuard { pair: &pair, dial };
            match establish().await {
                Ok(tunnel) => {
                    tunnel.share(&pair.streams_learned);
                    pair.tunnels.borrow_mut().push(tunnel);
                }
                Err(error) => {
                    guard.dial.failed.replace(Some(error.clone()));
                    return pair.any_slot().ok_or(error);
                }
            }
        }
    }

    /// Forgets tunnels that are closed, expired or unused for `idle` (further ones of a pair for less), and those for which `keep` is false: their open
    /// streams go on, new ones are not accepted, and they close behind the last.
    pub fn sweep(&self, idle: Duration, keep: impl Fn(&Key) -> bool) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        self.pairs.borrow_mut().retain(|key, pair| {
            let wanted = keep(key);
            let mut limit = idle;
            pair.tunnels.borrow_mut().retain(|t| {
                let usable = wanted && !t.is_closed() && !t.is_expired(wall) && !t.is_idle(now, limit);
                if usable {
                    limit = idle.min(FURTHER_IDLE);
                }
                usable
            });
            !pair.tunnels.borrow().is_empty() || pair.dial.borrow().is_some()
        });
    }

    /// How many connections found no tunnel with room since this was last asked, and how long they waited together.
    pub fn take_waits(&self) -> (u64, Duration) {
        self.waits.take()
    }

    /// Tunnels that may take streams.
    pub fn len(&self) -> usize {
        self.pairs.borrow().values().map(|pair| pair.tunnels.borrow().len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Pair {
    /// A place beside no bulk, or beside bulk if a new tunnel would be one too many.
    fn free_slot(&self) -> Option<Slot> {
        let now = SystemTime::now();
        let mut tunnels = self.tunnels.borrow_mut();
        tunnels.retain(|tunnel| !tunnel.is_closed());
        let calm = tunnels.iter().filter(|tunnel| !tunnel.is_bulk()).find_map(|tunnel| tunnel.claim(now));
        let enough = tunnels.len() >= TUNNELS_BESIDE_BULK;
        drop(tunnels);
        calm.or_else(|| enough.then(|| self.any_slot()).flatten())
    }

    fn any_slot(&self) -> Option<Slot> {
        let now = SystemTime::now();
        self.tunnels.borrow().iter().find_map(|tunnel| tunnel.claim(now))
    }
}

#[cfg(test)]
mod tests;
