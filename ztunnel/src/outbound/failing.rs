//! A worker's short memory of endpoints that could not be reached, so that the next connections choose them last.
//!
//! When the time is over one connection tries the endpoint again; until it knows, others still choose it last. Decides
//! nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use culvert_common::types::WorkloadUid;
use tokio::time::Instant;

/// An endpoint that failed is chosen last for so long.
const MEMORY: Duration = Duration::from_secs(10);
/// Whoever tries one again gets so long before the next does.
const PROBE: Duration = Duration::from_secs(3);
/// Endpoints remembered; of more, those that come free first are forgotten.
const COUNT_MAX: usize = 256;

/// Workload, and the address and port of its app: a name that comes back elsewhere is another endpoint, and so is each port.
pub(crate) type Endpoint = (WorkloadUid, SocketAddr);

/// Endpoints that failed, and until when they are chosen last. Not `Send`.
#[derive(Default)]
pub(crate) struct Failing {
    until: RefCell<HashMap<Endpoint, Instant>>,
}

impl Failing {
    /// Those to choose last now; nearly always none.
    pub(super) fn now(&self) -> Vec<Endpoint> {
        let until = self.until.borrow();
        if until.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        until.iter().filter(|(_, until)| **until > now).map(|(endpoint, _)| endpoint.clone()).collect()
    }

    /// It was chosen: whoever comes while it is being tried again waits for the result elsewhere.
    pub(super) fn chosen(&self, uid: &WorkloadUid, at: SocketAddr) {
        let mut until = self.until.borrow_mut();
        if until.is_empty() {
            return;
        }
        let now = Instant::now();
        if let Some(until) = until.get_mut(&(uid.clone(), at)).filter(|until| **until <= now) {
            *until = now + PROBE;
        }
    }

    /// It could not be reached.
    pub(super) fn failed(&self, uid: &WorkloadUid, at: SocketAddr) {
        let mut until = self.until.borrow_mut();
        if until.len() >= COUNT_MAX
            && let Some(oldest) = until.iter().min_by_key(|(_, until)| **until).map(|(e, _)| e.clone())
        {
            until.remove(&oldest);
        }
        until.insert((uid.clone(), at), Instant::now() + MEMORY);
    }

    /// It works.
    pub(super) fn works(&self, uid: &WorkloadUid, at: SocketAddr) {
        let mut until = self.until.borrow_mut();
        if !until.is_empty() {
            until.remove(&(uid.clone(), at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: usize) -> WorkloadUid {
        WorkloadUid(format!("pod-{n}").into())
    }

    const AT: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 80);

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_for_a_while_and_one_connection_tries_again() {
        let failing = Failing::default();
        failing.chosen(&uid(1), AT);
        assert_eq!(failing.now(), []);
        failing.failed(&uid(1), AT);
        assert_eq!(failing.now(), [(uid(1), AT)]);
        tokio::time::advance(MEMORY - Duration::from_millis(1)).await;
        failing.chosen(&uid(1), AT);
        assert_eq!(failing.now().len(), 1, "also when nothing else was left");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(failing.now(), []);
        failing.chosen(&uid(1), AT);
        assert_eq!(failing.now().len(), 1, "it is being tried");
        failing.works(&uid(1), AT);
        assert_eq!(failing.now(), []);
        failing.failed(&uid(1), AT);
        tokio::time::advance(MEMORY).await;
        failing.chosen(&uid(1), AT);
        tokio::time::advance(PROBE).await;
        assert_eq!(failing.now(), [], "whoever tried it has gone: the next one does");
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded_and_forgets_the_oldest() {
        let failing = Failing::default();
        for n in 0..COUNT_MAX + 10 {
            failing.failed(&uid(n), AT);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let now = failing.now();
        assert_eq!(now.len(), COUNT_MAX);
        assert!(!now.contains(&(uid(9), AT)) && now.contains(&(uid(10), AT)));
        failing.works(&uid(COUNT_MAX), SocketAddr::new(AT.ip(), 81));
        assert_eq!(failing.now().len(), COUNT_MAX, "another port is another endpoint");
    }
}
