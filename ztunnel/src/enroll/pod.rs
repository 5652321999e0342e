//! One pod that is to be captured: how far it is, and the steps in its namespace.

use std::sync::Arc;
use std::time::Duration;

use culvert_common::model::LocalPod;
use culvert_common::net::changes::Changes;
use culvert_common::net::netns::NetNs;
use culvert_common::net::rules::{self, CaptureSpec, Mended, RulesError};
use culvert_common::task::Scope;
use culvert_common::zds::WorkloadInfo;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};

use super::namespace::{self, Uncaptured};
use super::proxies::{Ask, ProxyId};

/// Changes of one namespace are looked at no more often.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// The same repair is not logged again within this time.
const QUIET: Duration = Duration::from_secs(10);

/// A wanted pod.
pub(super) struct Enrolled {
    pub(super) local: Arc<LocalPod>,
    pub(super) info: WorkloadInfo,
    pub(super) stage: Stage,
    /// The proxy that has been asked to serve it and has not answered.
    pub(super) asked: Option<ProxyId>,
    /// The proxy that has said that it serves it.
    pub(super) served: Option<ProxyId>,
    /// Why it is not captured, as last seen.
    pub(super) problem: Option<Uncaptured>,
    /// What was last logged of it.
    said: String,
    /// Rules of another mesh that have been told of.
    foreign: Vec<String>,
    repair: Option<(String, Instant)>,
}

/// How far a pod is.
pub(super) enum Stage {
    /// Its namespace is not at hand.
    Wanted,
    /// Its namespace is known to be its own; no rules yet.
    Opened(NetNs),
    /// Its rules are in force, or were and are being mended.
    Held {
        netns: NetNs,
        spec: CaptureSpec,
        /// Ends the watch over its namespace.
        watch: Scope,
    },
}

impl Enrolled {
    pub(super) fn new(local: Arc<LocalPod>, info: WorkloadInfo) -> Self {
        Self {
            local,
            info,
            stage: Stage::Wanted,
            asked: None,
            served: None,
            problem: None,
            said: String::new(),
            foreign: Vec::new(),
            repair: None,
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.local.namespace, self.local.name)
    }

    pub(super) fn netns(&self) -> Option<&NetNs> {
        match &self.stage {
            Stage::Wanted => None,
            Stage::Opened(netns) | Stage::Held { netns, .. } => Some(netns),
        }
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Held { .. })
    }

    /// The request that has a proxy serve it.
    pub(super) fn add(&self) -> Option<Ask> {
        let netns = self.netns()?.clone();
        Some(Ask::Add { uid: Arc::clone(&self.local.uid), info: self.info.clone(), netns })
    }

    /// Whether the path now leads to another namespace than the one that is open: the pod's sandbox was made anew.
    pub(super) fn has_moved(&self) -> bool {
        let now = namespace::open(&self.local);
        matches!((self.netns(), now), (Some(then), Ok(now)) if *then != now)
    }

    /// Whether an earlier agent has left rules in the namespace that redirect.
    pub(super) fn was_held(&self) -> Result<bool, Uncaptured> {
        match self.netns() {
            Some(netns) => Ok(netns.run(rules::is_capturing)??),
            None => Ok(false),
        }
    }

    /// Puts the rules in force; `changed` is told when another hand changes them. The proxy listens by now.
    pub(super) fn capture(
        &mut self,
        spec: CaptureSpec,
        scope: &Scope,
        changed: Sender<Arc<str>>,
    ) -> Result<(), Uncaptured> {
        let Stage::Opened(netns) = &self.stage else { return Ok(()) };
        let was_held = self.was_held()?;
        let watch = scope.child();
        // Before the rules are read, so that no change falls in between.
        self.watch(netns, &watch, changed)?;
        let done = netns.run(|| {
            // What an earlier agent captured stays captured, whatever else is there by now.
            if was_held { rules::mend(&spec).map(|mended| (0, mended)) } else { install(&spec) }
        });
        let done = done.map_err(Uncaptured::Enter).and_then(|done| Ok(done?));
        let (open_before, mended) = done.inspect_err(|_| watch.cut())?;
        let pod = self.name();
        if was_held {
            let mended = mended.summary();
            tracing::info!(pod, mended, "capture rules of an earlier agent taken over");
        } else {
            tracing::info!(pod, connections_left_alone = open_before, "capture rules in force");
        }
        self.foreign = mended.foreign;
        self.stage = Stage::Held { netns: netns.clone(), spec, watch };
        Ok(())
    }

    fn watch(&self, netns: &NetNs, scope: &Scope, changed: Sender<Arc<str>>) -> Result<(), Uncaptured> {
        let uid = Arc::clone(&self.local.uid);
        match netns.run(Changes::watch)? {
            Ok(changes) => scope.spawn(async move {
                while changes.next().await.is_ok() && changed.send(Arc::clone(&uid)).await.is_ok() {
                    sleep(LOOK_PAUSE).await;
                }
            }),
            // It is looked at from time to time all the same.
            Err(error) => tracing::warn!(pod = self.name(), %error, "changes of rules are not told at once"),
        }
        Ok(())
    }

    /// Looks at the rules and puts them right.
    pub(super) fn audit(&mut self, now: Instant) -> Result<Audited, Uncaptured> {
        let Stage::Held { netns, spec, .. } = &self.stage else { return Ok(Audited::default()) };
        let mended = netns.run(|| rules::mend(spec))??;
        let mut parts: Vec<_> = mended.repaired.iter().map(|difference| difference.part.as_str()).collect();
        parts.sort_unstable();
        parts.dedup();
        if !parts.is_empty() {
            self.say_repaired(mended.summary(), now);
        }
        let Mended { foreign, overtaking, .. } = mended;
        let new: Vec<_> = foreign.iter().filter(|name| !self.foreign.contains(name)).collect();
        let has_new_foreign = !new.is_empty();
        if has_new_foreign {
            tracing::warn!(pod = self.name(), seen = ?new, "rules of another mesh have appeared in the pod");
        }
        self.foreign = foreign;
        Ok(Audited { parts, has_new_foreign, overtaking })
    }

    fn say_repaired(&mut self, seen: String, now: Instant) {
        match &self.repair {
            Some((said, when)) if *said == seen && now < *when + QUIET => {}
            _ => {
                tracing::warn!(
                    pod = self.name(),
                    seen,
                    "another hand had changed the capture rules; they are right again"
                );
                self.repair = Some((seen, now));
            }
        }
    }

    /// Writes other rules than those that are in force, in one step.
    pub(super) fn respecify(&mut self, wanted: CaptureSpec) -> Result<(), Uncaptured> {
        match &mut self.stage {
            Stage::Held { netns, spec, .. } if *spec != wanted => {
                *spec = wanted;
                netns.run(|| rules::mend(spec))??;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Ends the redirection, if there is any; what else is in force stays for the connections that are open.
    pub(super) fn release(&mut self) -> Option<NetNs> {
        let Stage::Held { netns, watch, .. } = std::mem::replace(&mut self.stage, Stage::Wanted) else {
            return None;
        };
        watch.cut();
        let removed = netns.run(rules::remove_redirects).map_err(Uncaptured::Enter);
        if let Err(error) = removed.and_then(|done| Ok(done?)) {
            tracing::warn!(pod = self.name(), "cannot remove the redirects: {error}");
        }
        Some(netns)
    }

    /// Remembers why the pod is not captured; said once, until it is another reason.
    pub(super) fn fail(&mut self, problem: Uncaptured) {
        let text = problem.to_string();
        // Of a proxy that is away or busy the whole node is told, not each pod.
        let is_own = !matches!(problem, Uncaptured::NoProxy | Uncaptured::Unanswered);
        if is_own && self.said != text {
            tracing::error!(pod = self.name(), "the pod is not captured: {text}");
            self.said = text;
        }
        self.problem = Some(problem);
    }

    /// Nothing is wrong any more.
    pub(super) fn recover(&mut self) {
        if self.problem.take().is_some() && !std::mem::take(&mut self.said).is_empty() {
            tracing::info!(pod = self.name(), "the pod is captured now");
        }
    }
}

/// What an audit found.
#[derive(Debug, Default)]
pub(super) struct Audited {
    /// Parts that were put right.
    pub(super) parts: Vec<&'static str>,
    /// Rules of another mesh that were not there before.
    pub(super) has_new_foreign: bool,
    /// Chains that may redirect before ours.
    pub(super) overtaking: Vec<String>,
}

fn install(spec: &CaptureSpec) -> Result<(usize, Mended), RulesError> {
    let installed = rules::install(spec)?;
    Ok((installed.open_before, Mended { foreign: installed.adopted, ..Mended::default() }))
}
