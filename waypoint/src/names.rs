//! Addresses of endpoints that the configuration has by host name: asked for when it changes, and again each minute.
//!
//! What is known stays in use until something else is: a name server that does not answer takes no endpoint away.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use culvert_common::state::Snapshot;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// How often all names are asked for. Source: Istio, `dnsRefreshRate`.
const EVERY: Duration = Duration::from_secs(60);
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Questions that are under way at once.
const AT_ONCE: usize = 16;
/// Names that are asked for; more are without endpoints.
const NAMES_MAX: usize = 4096;

type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// All host names and their addresses.
pub(crate) struct Names {
    known: HashMap<Arc<str>, Vec<IpAddr>>,
    due: VecDeque<Arc<str>>,
    asked: Vec<(Arc<str>, Answer)>,
    timer: Interval,
}

impl Names {
    pub(crate) fn new() -> Self {
        let mut timer = interval(EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { known: HashMap::new(), due: VecDeque::new(), asked: Vec::new(), timer }
    }

    /// Takes over the names of a new configuration; those that are new are due.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.known);
        for workload in snapshot.workloads() {
            let name = &workload.hostname;
            if name.is_empty() || !workload.addresses.is_empty() || self.known.contains_key(name) {
                continue;
            }
            if self.known.len() >= NAMES_MAX {
                tracing::warn!(
                    most = NAMES_MAX,
                    "too many endpoints are host names; the others are left out"
                );
                break;
            }
            let (name, addresses) = before.remove_entry(name).unwrap_or_else(|| {
                self.due.push_back(Arc::clone(name));
                (Arc::clone(name), Vec::new())
            });
            self.known.insert(name, addresses);
        }
    }

    /// What is known of a name.
    pub(crate) fn of(&self, name: &str) -> &[IpAddr] {
        self.known.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Waits until a name has other addresses than before. **Cancel safety**: questions go on the next time.
    pub(crate) async fn changed(&mut self) {
        poll_fn(|cx| self.poll_changed(cx)).await;
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.poll_tick(cx).is_ready() {
            let (known, due) = (&self.known, &mut self.due);
            let fresh = known.keys().filter(|name| !due.contains(name));
            let fresh: Vec<Arc<str>> = fresh.cloned().collect();
            due.extend(fresh);
        }
        loop {
            while self.asked.len() < AT_ONCE
                && let Some(name) = self.due.pop_front()
            {
                let answer = Box::pin(ask(Arc::clone(&name)));
                self.asked.push((name, answer));
            }
            let mut is_changed = false;
            let known = &mut self.known;
            let before = self.asked.len();
            self.asked.retain_mut(|(name, answer)| {
                let Poll::Ready(answer) = answer.as_mut().poll(cx) else { return true };
                match (known.get_mut(name), answer) {
                    (Some(addresses), Ok(found)) => {
                        is_changed |= *addresses != found;
                        *addresses = found;
                    }
                    (Some(_), Err(error)) => {
                        tracing::warn!(%name, %error, "the name of an endpoint was not resolved")
                    }
                    (None, _) => {}
                }
                false
            });
            if is_changed {
                return Poll::Ready(());
            }
            if self.asked.len() == before || self.due.is_empty() {
                return Poll::Pending;
            }
        }
    }
}

/// Addresses of IPv4, or where there are none those of IPv6, in an order that stays.
async fn ask(name: Arc<str>) -> io::Result<Vec<IpAddr>> {
    let found = timeout(LIMIT, tokio::net::lookup_host((&*name, 0))).await;
    let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let mut all: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    if all.iter().any(IpAddr::is_ipv4) {
        all.retain(IpAddr::is_ipv4);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use culvert_common::model::{Model, Workload};
    use culvert_common::state::State;
    use culvert_common::types::{SpiffeId, WorkloadUid};

    use super::*;

    fn snapshot(names: &[&str]) -> Arc<Snapshot> {
        let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/default".parse().unwrap();
        let one = |name: &&str| {
            let uid = WorkloadUid((*name).into());
            Workload { hostname: (*name).into(), ..Workload::new(uid, *name, identity.clone()) }
        };
        let state = State::new();
        state.publish(Model { workloads: names.iter().map(one).collect(), ..Model::default() });
        state.snapshot()
    }

    #[tokio::test]
    async fn names_are_asked_for_and_what_is_known_stays() {
        let mut names = Names::new();
        names.follow(&snapshot(&["127.0.0.9", "::9"]));
        assert!(names.of("127.0.0.9").is_empty());
        while names.of("127.0.0.9").is_empty() || names.of("::9").is_empty() {
            names.changed().await;
        }
        assert_eq!(names.of("127.0.0.9"), ["127.0.0.9".parse::<IpAddr>().unwrap()]);
        // An address is its own answer, in either family.
        assert_eq!(names.of("::9"), ["::9".parse::<IpAddr>().unwrap()]);
        names.follow(&snapshot(&["127.0.0.9"]));
        assert_eq!(names.of("127.0.0.9").len(), 1, "kept over a change");
        assert!(names.of("::9").is_empty(), "gone with its endpoint");
        assert!(names.due.is_empty());
    }
}
