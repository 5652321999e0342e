//! Whose certificates this node needs, and how they stand.

use std::collections::HashSet;

use culvert_common::identity::CertState;
use culvert_common::model::{Health, TunnelProtocol};
use culvert_common::types::SpiffeId;

use super::Pods;

impl Pods {
    /// Identities of the pods that are served, and of those that will be, as far as the state tells: the first connection
    /// of a pod need not wait then.
    pub(super) fn wanted_identities(&self) -> HashSet<SpiffeId> {
        let snapshot = self.shared.state.snapshot();
        let pods = self.running.values().map(|running| &running.pod).chain(&self.own);
        let served = pods.filter_map(|pod| pod.workload(&snapshot).ok());
        let node = self.options.node.as_deref().filter(|node| !node.is_empty());
        let coming = snapshot.workloads().filter(|workload| {
            node == Some(&*workload.node)
                && workload.protocol == TunnelProtocol::Hbone
                && !workload.native_tunnel
                && workload.health != Health::Terminating
        });
        served.map(|workload| workload.identity.clone()).chain(coming.map(|w| w.identity.clone())).collect()
    }

    /// Readiness waits until each local workload has its first certificate or a stated reason why not.
    pub(super) fn report_certificates(&mut self) {
        let (statuses, metrics) = (self.shared.certs.status(), self.shared.telemetry.metrics());
        let mut certified = HashSet::new();
        for status in &statuses {
            if let Some(not_after) = status.not_after {
                metrics.certificate(&status.identity, not_after);
                certified.insert(status.identity.clone());
            }
        }
        let (of, told) =
            (|state| statuses.iter().filter(|s| s.wanted && s.state == state).count(), metrics.identity());
        use CertState::{Available, Initializing, Unavailable};
        told.states(&[
            ("available", of(Available)),
            ("initializing", of(Initializing)),
            ("unavailable", of(Unavailable)),
        ]);
        for (result, count) in self.shared.certs.take_ended() {
            told.requests(result, count);
        }
        if let Some(lists) = self.shared.certs.revocation() {
            let status = lists.status();
            told.lists((status.lists, status.overdue), status.problem.is_some());
        }
        self.certified.difference(&certified).for_each(|gone| metrics.certificate_gone(gone));
        self.certified = certified;
        // A refusal is an answer; a CA that is away is none, and a roll-out must not go on from node to node meanwhile.
        let waiting = statuses
            .iter()
            .any(|s| s.wanted && s.not_after.is_none() && (s.error.is_none() || !s.is_refused));
        if self.is_told
            && !self.is_stale
            && !waiting
            && let Some(uncertified) = self.uncertified.take()
        {
            uncertified.ready();
        }
    }
}
