//! The memory of recent refusals, from which an operator learns what a refused peer is not told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::connection::{Early, Failure, Flow, Reporter};
use super::flag::ResponseFlag;
use crate::crypto;
use crate::model::Workload;
use crate::types::SpiffeId;

/// What they may take together.
const BYTES_MAX: usize = 4 << 20;
/// Longest text that is kept of one of them; names of peers and the errors of libraries have no limit of their own.
const TEXT_MAX: usize = 1024;

/// A new id of a denial: 128 random bits in hex.
pub fn denial_id() -> String {
    format!("{:032x}", crypto::random())
}

/// One refusal, or one connection that could not be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// When it ended.
    pub at: SystemTime,
    /// Random id, as the peer was told or told us; none where nobody said no but something did not work.
    pub id: Option<String>,
    /// As `culvert_refusals_total` counts it.
    pub class: &'static str,
    /// As the other metrics count it.
    pub flag: ResponseFlag,
    /// Which side this agent is on.
    pub reporter: Reporter,
    /// The client.
    pub source: Party,
    /// The server: at the source the next hop, at the destination the pod.
    pub destination: Party,
    /// Host name of the service that the client meant.
    pub service: Option<String>,
    /// Target of the CONNECT, where there is one.
    pub authority: Option<String>,
    /// The policies that refused; known at the destination only.
    pub policy: Option<String>,
    /// For people.
    pub error: String,
}

/// One end of a refused connection, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Party {
    /// Its address.
    pub addr: Option<SocketAddr>,
    /// `namespace/name` of its workload.
    pub workload: Option<String>,
    /// Proven by TLS, or the workload's own at its own agent; of the other end what the configuration says.
    pub identity: Option<SpiffeId>,
}

impl Denial {
    /// Of a connection that had been routed.
    pub(super) fn of_flow(flow: &Flow, failure: &Failure, at: SystemTime) -> Self {
        let known = flow.destination_identity.as_ref().or(flow.destination.as_ref().map(|w| &w.identity));
        Self {
            source: Party::new(Some(flow.src_addr), flow.source.as_deref(), flow.source_identity.as_ref()),
            destination: Party::new(Some(flow.dst_addr), flow.destination.as_deref(), known),
            service: flow.service.as_ref().map(|s| text(&s.key.hostname)),
            authority: flow.hbone_addr.as_ref().map(|target| text(&target.to_string())),
            ..Self::new(flow.reporter, failure, at)
        }
    }

    /// Of a connection that failed before that.
    pub(super) fn of_early(early: &Early<'_>, at: SystemTime) -> Self {
        Self {
            source: Party::new(Some(early.src_addr), None, early.source_identity),
            destination: Party::new(early.dst_addr, None, early.destination_identity),
            ..Self::new(early.reporter, early.failure, at)
        }
    }

    fn new(reporter: Reporter, failure: &Failure, at: SystemTime) -> Self {
        let note = failure.denial.as_ref();
        Self {
            at,
            id: note.map(|n| text(&n.id)).filter(|id| !id.is_empty()),
            class: failure.class(),
            flag: failure.flag,
            reporter,
            source: Party::default(),
            destination: Party::default(),
            service: None,
            authority: None,
            policy: note.and_then(|n| n.policy.as_deref()).map(text),
            error: text(&failure.error),
        }
    }

    /// Bytes that it takes, about.
    fn cost(&self) -> usize {
        let known = [&self.id, &self.service, &self.authority, &self.policy];
        let parties = [&self.source.workload, &self.destination.workload];
        let texts = known.into_iter().chain(parties).flatten().map(String::capacity);
        size_of::<Self>() + self.error.capacity() + texts.sum::<usize>()
    }
}

impl Party {
    fn new(addr: Option<SocketAddr>, workload: Option<&Workload>, identity: Option<&SpiffeId>) -> Self {
        let named = |w: &Workload| text(&format!("{}/{}", w.namespace, w.name));
        Self { addr, workload: workload.map(named), identity: identity.cloned() }
    }
}

/// The first part of a text that has no limit.
fn text(of: &str) -> String {
    of.get(..of.floor_char_boundary(TEXT_MAX)).unwrap_or(of).to_owned()
}

/// The newest refusals of this process. Full, it forgets the oldest.
///
/// A lock that workers share, taken for a moment when a connection is refused; one that is served never meets it.
#[derive(Debug, Default)]
pub struct Denials {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Arc<Denial>>,
    bytes: usize,
}

impl Denials {
    /// Refusals that are kept at most.
    pub const CAPACITY: usize = 4096;

    /// Keeps one.
    pub(super) fn push(&self, denial: Denial) {
        let denial = Arc::new(denial);
        let mut forgotten = Vec::new(); // freed without the lock
        let mut ring = self.ring();
        ring.bytes += denial.cost();
        ring.kept.push_back(denial);
        while ring.kept.len() > Denials::CAPACITY || ring.bytes > BYTES_MAX {
            let Some(oldest) = ring.kept.pop_front() else { break };
            ring.bytes = ring.bytes.saturating_sub(oldest.cost());
            forgotten.push(oldest);
        }
        drop(ring);
    }

    /// Those with this id, newest first: two where this agent serves both ends, else at most one.
    pub fn find(&self, id: &str) -> Vec<Arc<Denial>> {
        let ring = self.ring();
        ring.kept.iter().rev().filter(|d| d.id.as_deref() == Some(id)).cloned().collect()
    }

    /// The newest, at most `count` of them, newest first.
    pub fn recent(&self, count: usize) -> Vec<Arc<Denial>> {
        self.ring().kept.iter().rev().take(count).cloned().collect()
    }

    /// A panic while it was held leaves at worst a wrong sum of bytes.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::DenialNote;

    fn denial(id: &str, error: &str) -> Denial {
        let note = DenialNote { id: id.into(), class: "policy", policy: Some("shop/deny".into()) };
        let failure = Failure { flag: ResponseFlag::Deny, error: error.into(), denial: Some(note) };
        Denial::new(Reporter::Destination, &failure, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn the_newest_are_kept_and_found() {
        let denials = Denials::default();
        for n in 0..Denials::CAPACITY + 10 {
            denials.push(denial(&format!("id-{n}"), "no"));
        }
        assert_eq!(denials.recent(usize::MAX).len(), Denials::CAPACITY);
        let newest = format!("id-{}", Denials::CAPACITY + 9);
        assert_eq!(denials.recent(1)[0].id.as_deref(), Some(&*newest));
        assert_eq!(denials.find(&newest).len(), 1);
        assert!(denials.find("id-9").is_empty(), "forgotten");
        assert_eq!(denials.find("id-10").len(), 1, "the oldest that is kept");
        assert!(denials.find("").is_empty());
    }

    #[test]
    fn both_ends_of_one_refusal_are_found() {
        let denials = Denials::default();
        denials.push(denial("same", "at the destination"));
        denials.push(denial("other", ""));
        denials.push(denial("same", "at the source"));
        let found: Vec<_> = denials.find("same").iter().map(|d| d.error.clone()).collect();
        assert_eq!(found, ["at the source", "at the destination"]);
    }

    #[test]
    fn long_texts_are_cut_and_all_together_bounded() {
        let long = "é".repeat(TEXT_MAX);
        let one = denial(&long, &long);
        assert!(one.error.len() <= TEXT_MAX && one.id.as_ref().is_some_and(|id| id.len() <= TEXT_MAX));
        let denials = Denials::default();
        for _ in 0..Denials::CAPACITY {
            denials.push(one.clone());
        }
        let ring = denials.ring();
        assert!(
            ring.bytes <= BYTES_MAX && ring.kept.len() < Denials::CAPACITY,
            "{} of them",
            ring.kept.len()
        );
        assert_eq!(ring.bytes, ring.kept.iter().map(|d| d.cost()).sum::<usize>());
    }
}
