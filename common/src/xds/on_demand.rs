//! Names that somebody needs: who waits for which, what has been asked, what was answered.
//!
//! A node that knows only what its pods use asks the discovery server when a connection needs an address. The server
//! answers under the resource's own name and lists the key that was asked for among its aliases, or says that the key is
//! gone. [`OnDemand`] is what the data path holds; `Interest` is the client's side, pure. A time-out is never a miss.
//! **Source**: l4.md §4.2.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::wire::Response;
use crate::types::{ServiceKey, WorkloadUid};

/// Questions that may wait for the client.
const QUEUE: usize = 256;
/// Names that are asked for at a time; with more, the oldest are given up.
const NAMES_MAX: usize = 8192;
/// So many more do not wait for the next regular look: a pod can make up names as fast as it can ask.
const NAMES_SPARE: usize = 1024;
/// Connections that may wait for one name; the others time out.
const WAITERS_MAX: usize = 1024;
/// How long a miss is remembered.
const MISS: Duration = Duration::from_secs(10);

/// How a look-up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is in the snapshot that is published now.
    Known,
    /// The server has no such thing.
    Missing,
    /// Nobody has answered yet: it may exist.
    TimedOut,
}

/// Asks for what the snapshot does not have. Clones share the questions.
#[derive(Clone, Debug)]
pub struct OnDemand(mpsc::Sender<Ask>);

/// One question.
#[derive(Debug)]
pub struct Ask {
    name: String,
    /// Whether it is there.
    reply: oneshot::Sender<bool>,
}

/// What the client receives.
pub type Asks = mpsc::Receiver<Ask>;

impl OnDemand {
    /// A handle, and where its questions come out.
    pub fn new() -> (Self, Asks) {
        let (asks, to_answer) = mpsc::channel(QUEUE);
        (Self(asks), to_answer)
    }

    /// Asks for the workload or service that has this address.
    ///
    /// **Cancel safety**: a dropped call waits no more.
    pub async fn address(&self, network: &str, ip: IpAddr, limit: Duration) -> Lookup {
        self.ask(format!("{network}/{ip}"), limit).await
    }

    /// Asks for a service.
    ///
    /// **Cancel safety**: as [`OnDemand::address`].
    pub async fn service(&self, key: &ServiceKey, limit: Duration) -> Lookup {
        self.ask(key.to_string(), limit).await
    }

    /// Asks for a workload.
    ///
    /// **Cancel safety**: as [`OnDemand::address`].
    pub async fn workload(&self, uid: &WorkloadUid, limit: Duration) -> Lookup {
        self.ask(uid.to_string(), limit).await
    }

    async fn ask(&self, name: String, limit: Duration) -> Lookup {
        let asking = async {
            let (reply, answer) = oneshot::channel();
            self.0.send(Ask { name, reply }).await.ok()?;
            answer.await.ok()
        };
        match timeout(limit, asking).await {
            Ok(Some(true)) => Lookup::Known,
            Ok(Some(false)) => Lookup::Missing,
            Ok(None) | Err(_) => Lookup::TimedOut,
        }
    }
}

/// Everything that is asked for.
#[derive(Default)]
pub(super) struct Interest {
    asked: BTreeMap<Arc<str>, Asked>,
    /// The same by time, for those to be given up.
    by_time: BTreeSet<(Instant, Arc<str>)>,
    /// Answered, to be told once the answer is published.
    told: Vec<(oneshot::Sender<bool>, bool)>,
}

struct Asked {
    since: Instant,
    state: State,
}

enum State {
    Waiting(Vec<oneshot::Sender<bool>>),
    /// Under the resource's own name.
    Known(Arc<str>),
    Missing,
}

impl Interest {
    /// Takes a question; the answer is a name to subscribe to.
    pub(super) fn ask(&mut self, Ask { name, reply }: Ask, now: Instant) -> Option<String> {
        match self.asked.get_mut(&*name).map(|asked| &mut asked.state) {
            Some(State::Waiting(waiters)) => {
                waiters.retain(|waiter| !waiter.is_closed());
                if waiters.len() < WAITERS_MAX {
                    waiters.push(reply);
                }
                None
            }
            Some(State::Known(_)) => {
                self.told.push((reply, true));
                None
            }
            Some(State::Missing) => {
                self.told.push((reply, false));
                None
            }
            None => {
                let key: Arc<str> = name.as_str().into();
                self.by_time.insert((now, Arc::clone(&key)));
                self.asked.insert(key, Asked { since: now, state: State::Waiting(vec![reply]) });
                Some(name)
            }
        }
    }

    /// Begins with resources that were known before the last restart, each with a key that leads to it: under that it is
    /// asked for, so that it is given up like any other.
    pub(super) fn begin_with(&mut self, resources: BTreeMap<String, String>, now: Instant) {
        for (name, key) in resources {
            let key: Arc<str> = key.into();
            self.by_time.insert((now, Arc::clone(&key)));
            self.asked.insert(key, Asked { since: now, state: State::Known(name.into()) });
        }
    }

    /// Takes an answer. `is_held` tells of a resource's own name whether it could be used. Names that have to be asked for
    /// anew when somebody needs them are returned.
    pub(super) fn answered(&mut self, response: &Response, is_held: impl Fn(&str) -> bool) -> Vec<String> {
        // One pass over what is asked for, however many are gone.
        let removed: HashSet<&str> = response.removed().collect();
        for name in &removed {
            self.settle(name, State::Missing);
        }
        let gone = |(key, asked): (&Arc<str>, &Asked)| match &asked.state {
            State::Known(under) if removed.contains(&**under) => Some(key.to_string()),
            _ => None,
        };
        let lost: Vec<String> =
            if removed.is_empty() { Vec::new() } else { self.asked.iter().filter_map(gone).collect() };
        for resource in response.resources().filter_map(Result::ok).filter(|one| is_held(&one.name)) {
            let under: Arc<str> = resource.name.as_str().into();
            for key in resource.aliases.iter().chain([&resource.name]) {
                self.settle(key, State::Known(Arc::clone(&under)));
            }
        }
        for name in &lost {
            self.forget(name);
        }
        lost
    }

    fn settle(&mut self, name: &str, state: State) {
        let Some(asked) = self.asked.get_mut(name) else { return };
        let is_there = matches!(state, State::Known(_));
        if let State::Waiting(waiters) = std::mem::replace(&mut asked.state, state) {
            self.told.extend(waiters.into_iter().map(|waiter| (waiter, is_there)));
        }
    }

    fn forget(&mut self, name: &str) -> Option<Asked> {
        let (key, asked) = self.asked.remove_entry(name)?;
        self.by_time.remove(&(asked.since, key));
        Some(asked)
    }

    /// Whether somebody is to be told.
    #[cfg(test)]
    fn has_answers(&self) -> bool {
        !self.told.is_empty()
    }

    /// Tells whoever waits for what has been published.
    pub(super) fn tell(&mut self) {
        for (waiter, is_there) in self.told.drain(..) {
            let _gone = waiter.send(is_there);
        }
    }

    /// Whether [`Interest::give_up`] should not wait.
    pub(super) fn is_full(&self) -> bool {
        self.asked.len() >= NAMES_MAX + NAMES_SPARE
    }

    /// Gives up what nobody needs: misses that are old, questions that nobody waits for any more, and the oldest names
    /// when there are too many. Returns the names, and the resources that stood behind them alone.
    pub(super) fn give_up(&mut self, now: Instant) -> (Vec<String>, Vec<String>) {
        let mut excess = self.asked.len().saturating_sub(NAMES_MAX);
        let mut names = Vec::new();
        for (since, name) in &self.by_time {
            let Some(asked) = self.asked.get(name) else { continue };
            let unneeded = match &asked.state {
                State::Missing => excess > 0 || now - *since >= MISS,
                State::Waiting(waiters) => waiters.iter().all(oneshot::Sender::is_closed),
                // A workload that was asked for by its own name is one of this node's.
                State::Known(under) => excess > 0 && under != name,
            };
            if unneeded {
                excess = excess.saturating_sub(1);
                names.push(name.to_string());
            }
        }
        let behind: BTreeSet<_> = names
            .iter()
            .filter_map(|name| match self.forget(name)?.state {
                State::Known(under) => Some(under),
                State::Waiting(_) | State::Missing => None,
            })
            .collect();
        let needed = |under: &Arc<str>| {
            self.asked.values().any(|asked| matches!(&asked.state, State::Known(other) if other == under))
        };
        let alone = behind.iter().filter(|under| !needed(under)).map(ToString::to_string).collect();
        (names, alone)
    }

    /// All names, to be asked for again on a new stream.
    pub(super) fn names(&self) -> Vec<String> {
        self.asked.keys().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests;
