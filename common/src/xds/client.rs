//! The task that keeps the state what the discovery server says: connections, streams, publications.
//!
//! One stream at a time; when it ends the state stays and the next one asks for what differs. Publishing makes the whole
//! snapshot anew, so it is given a bounded share of this thread: a lone change is published at once, a flood of them now
//! and then. Nothing the server does ends this task. Start with [`Client::run`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backoff::Backoff;
use super::journal::{Journal, Told};
use super::on_demand::{Asks, Interest};
use super::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
pub use super::session::Scope;
use super::session::{Session, interest};
use super::store::{Kind, Log, Store};
use super::translate::Options;
use super::wire::{Garbage, Response};
use crate::grpc::{self, CallError, Code, ConnectError, Limits, Target};
use crate::net::memory;
use crate::state::{Completeness, State};
use crate::telemetry::{Metrics, Termination};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Limit for the answers to a stream's first requests, and for the server to take a request.
const ANSWER: Duration = Duration::from_secs(60);
/// A stream that lived so long was in order.
const LONG_LIVED: Duration = Duration::from_secs(10);
/// How long the server may be away before what is unknown may exist.
const AWAY: Duration = Duration::from_secs(10);
/// A publication waits for so many times what the last one took.
const PAUSE: u32 = 4;
/// Time after which nobody decides from an earlier snapshot any more.
const SETTLED: Duration = Duration::from_secs(3);
/// Time between looks at what nobody asks for any more.
const TIDY: Duration = Duration::from_secs(10);
/// Time between writes of the kept state.
const FLUSH: Duration = Duration::from_secs(1);
/// Bytes of messages that leave memory worth giving back.
const WORTH_GIVING_BACK: usize = 256 << 10;

/// What the client needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server.
    pub target: Target,
    /// Limits of its connections.
    pub limits: Limits,
    /// What this agent says of itself.
    pub node: Node,
    /// For the translation.
    pub options: Options,
    /// Whether to know everything, or what is asked for.
    pub scope: Scope,
    /// Where the last state is kept, and whose it is.
    pub kept: Option<(PathBuf, String)>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the discovery server ended the stream")]
    Clean,
    #[error("the discovery server sent something that is no answer: {0}")]
    Garbage(#[from] Garbage),
    #[error("the discovery server has not answered within {ANSWER:?}; is it overloaded?")]
    Silent,
    #[error("the discovery server has taken no request within {ANSWER:?}; is it overloaded?")]
    NotReading,
}

impl End {
    fn termination(&self, was_answered: bool) -> Termination {
        match self {
            Self::Connect(_) => Termination::ConnectionError,
            Self::Clean => Termination::Complete,
            Self::Call(_) if !was_answered => Termination::ConnectionError,
            Self::Call(CallError::Broken { .. } | CallError::Ended) => Termination::Reconnect,
            Self::Call(CallError::Status { code, .. }) if is_passing(*code) => Termination::Reconnect,
            Self::Call(_) | Self::Garbage(_) | Self::Silent | Self::NotReading => Termination::Error,
        }
    }
}

/// Statuses of a server that goes away, as servers do: UNKNOWN, CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE.
fn is_passing(code: Code) -> bool {
    matches!(code, Code(1 | 2 | 4) | Code::UNAVAILABLE)
}

/// The discovery client.
pub struct Client {
    settings: Settings,
    store: Store,
    state: Arc<State>,
    metrics: Arc<Metrics>,
    /// Whether something can be in force: every type has been answered once, now or before the last restart.
    usable: watch::Sender<bool>,
    /// Whether every type has been answered once in this process's life.
    was_synced: bool,
    journal: Option<Journal>,
    flush_at: Option<Instant>,
    pace: Pace,
    backoff: Backoff,
    /// Questions, and what they led to; neither is used where everything is known.
    asks: Asks,
    interest: Interest,
    /// When the last stream ended.
    away_since: Option<Instant>,
    last_logged: String,
}

/// When to publish.
#[derive(Default)]
struct Pace {
    /// What is in the store differs from what is published.
    is_due: bool,
    not_before: Option<Instant>,
    /// Bytes of messages since memory was given back.
    bytes: usize,
    settled_at: Option<Instant>,
}

impl Client {
    /// A client that publishes into the state; the answer turns true once something is in force.
    pub fn new(
        settings: Settings,
        asks: Asks,
        (state, metrics): (Arc<State>, Arc<Metrics>),
    ) -> (Self, watch::Receiver<bool>) {
        let (usable, is_usable) = watch::channel(false);
        let kept = settings.kept.clone().map(|(dir, owner)| match settings.scope {
            Scope::Everything => (dir, owner),
            // What was asked for is not everything: it is of no use to an agent that knows all, nor the other way.
            Scope::OnDemand => (dir, owner + " on demand"),
        });
        let client = Self {
            store: Store::new(settings.options.clone()),
            settings,
            state,
            metrics,
            usable,
            was_synced: false,
            journal: kept.map(|(dir, owner)| Journal::new(dir, &owner)),
            flush_at: None,
            pace: Pace::default(),
            backoff: Backoff::default(),
            asks,
            interest: Interest::default(),
            away_since: None,
            last_logged: String::new(),
        };
        (client, is_usable)
    }

    /// Runs until dropped.
    ///
    /// **Cancel safety**: what was published stays.
    pub async fn run(mut self) {
        self.away_since = Some(Instant::now());
        let age = self.restore().unwrap_or_default();
        let now = std::time::Instant::now();
        self.metrics.discovery().disconnected(now.checked_sub(age).unwrap_or(now));
        loop {
            let began = Instant::now();
            let mut session = None;
            let end = match Box::pin(self.stream(&mut session)).await {
                Ok(()) => End::Clean,
                Err(end) => end,
            };
            let was_synced = session.as_ref().is_some_and(Session::is_synced);
            let was_answered = session.as_ref().is_some_and(Session::is_answered);
            self.ended(&end, was_answered, was_synced);
            let in_order = was_synced && began.elapsed() >= LONG_LIVED;
            if in_order {
                self.backoff.reset();
            } else if was_synced {
                self.backoff.begin_anew();
            }
            if !(in_order && matches!(end, End::Clean)) {
                sleep(self.backoff.next(getrandom::u64().unwrap_or_default())).await;
            }
        }
    }

    /// Begins with what was kept before the last restart; returns how old it is.
    fn restore(&mut self) -> Option<Duration> {
        let (journal, store, mut is_complete) = (self.journal.as_ref()?, &mut self.store, false);
        let scope = self.settings.scope;
        // Of each resource that is there in the end, one key that leads to it.
        let mut keys = BTreeMap::new();
        let is_asked = |kind| scope == Scope::OnDemand && kind == Kind::Address;
        let loaded = journal.load(|told| match told {
            Told::There(kind, resource) => {
                if is_asked(kind) {
                    let key = resource.aliases.first().unwrap_or(&resource.name);
                    keys.insert(resource.name.clone(), key.clone());
                }
                let _told_before =
                    store.apply(kind, std::iter::empty(), std::iter::once(Ok(resource)), &mut ());
            }
            Told::Gone(kind, name) => {
                if is_asked(kind) {
                    keys.remove(&name);
                }
                let _told_before = store.apply(kind, std::iter::once(&*name), std::iter::empty(), &mut ());
            }
            Told::Complete => is_complete = true,
        });
        let age = loaded.unwrap_or_else(|error| {
            tracing::warn!(target: "xds", "{error}");
            None
        })?;
        self.interest.begin_with(keys, Instant::now());
        self.pace.bytes = self.store.held();
        if is_complete {
            tracing::info!(target: "xds", ?age, "the state from before the last restart is in force");
            self.usable.send_replace(true);
            self.publish();
        }
        Some(age)
    }

    /// Counts, logs and publishes what the end of a stream leaves.
    fn ended(&mut self, end: &End, was_answered: bool, was_synced: bool) {
        self.metrics.discovery().terminated(end.termination(was_answered));
        if self.pace.is_due {
            self.publish();
        }
        self.flush();
        let now = Instant::now();
        if was_synced || self.away_since.is_none() {
            self.away_since = Some(now);
            self.metrics.discovery().disconnected(now.into_std());
        }
        // istiod ends each stream after half an hour: a moment without it is nothing.
        if self.away_since.is_some_and(|since| now - since >= AWAY) {
            self.state.mark_stale();
        }
        let text = end.to_string();
        if matches!(end, End::Clean) {
            tracing::debug!(target: "xds", "{text}");
        } else if text != self.last_logged {
            tracing::warn!(target: "xds", address = %self.settings.target.address, "{text}");
            self.last_logged = text;
        } else {
            tracing::debug!(target: "xds", "{text}");
        }
    }

    /// One connection and its stream, from the first request to the end.
    async fn stream(&mut self, session: &mut Option<Session>) -> Result<(), End> {
        let channel = grpc::connect(&self.settings.target, self.settings.limits).await?;
        let (requests, mut responses) =
            channel.stream::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>(METHOD)?;
        let (node, scope) = (self.settings.node.clone(), self.settings.scope);
        let (opened, first) = Session::open(node, &self.store, scope, self.interest.names());
        let session = session.insert(opened);
        for request in first {
            send(&requests, &request).await?;
        }
        memory::give_back(); // the first requests name everything
        let answered_by = Instant::now() + ANSWER;
        let mut tidy_at = Instant::now() + TIDY;
        loop {
            let publish_at = self.pace.publish_at().filter(|_| *self.usable.borrow());
            let settled_at = self.pace.settled_at;
            let flush_at = self.flush_at;
            tokio::select! {
                message = responses.bytes() => match message? {
                    None => return Ok(()),
                    Some(bytes) => {
                        for request in self.receive(session, bytes)? {
                            send(&requests, &request).await?;
                        }
                    }
                },
                Some(ask) = self.asks.recv(), if scope == Scope::OnDemand => {
                    let mut names = Vec::from_iter(self.interest.ask(ask, Instant::now()));
                    while let Ok(more) = self.asks.try_recv() {
                        names.extend(self.interest.ask(more, Instant::now()));
                    }
                    self.tell();
                    if self.interest.is_full() {
                        tidy_at = Instant::now();
                    }
                    if !names.is_empty() {
                        send(&requests, &interest(names, Vec::new())).await?;
                    }
                }
                () = sleep_until(tidy_at), if scope == Scope::OnDemand => {
                    tidy_at = Instant::now() + TIDY;
                    let names = self.give_up();
                    if !names.is_empty() {
                        send(&requests, &interest(Vec::new(), names)).await?;
                    }
                }
                () = until(publish_at), if publish_at.is_some() => self.publish(),
                () = until(flush_at), if flush_at.is_some() => self.flush(),
                () = until(settled_at), if settled_at.is_some() => {
                    self.pace.settled_at = None;
                    memory::give_back();
                }
                () = sleep_until(answered_by), if !session.is_synced() => return Err(End::Silent),
            }
        }
    }

    /// Takes an answer; returns what is said in return.
    fn receive(&mut self, session: &mut Session, bytes: Bytes) -> Result<Vec<DeltaDiscoveryRequest>, End> {
        let was_synced = session.is_synced();
        let response = Response::read(bytes)?;
        let size = response.size();
        self.pace.bytes = self.pace.bytes.saturating_add(size);
        let received = match &mut self.journal {
            Some(journal) => session.receive(&response, &mut self.store, journal),
            None => session.receive(&response, &mut self.store, &mut ()),
        };
        let Some(received) = received else {
            self.metrics.discovery().message("other", size, 0);
            tracing::debug!(target: "xds", kind = response.type_url, "a type that nobody asked for");
            return Ok(Vec::new());
        };
        let applied = received.applied;
        self.metrics.discovery().message(received.kind.url(), size, applied.rejected_count);
        for rejection in &applied.rejected {
            tracing::warn!(target: "xds", resource = rejection.name, "cannot be used: {}", rejection.reason);
        }
        self.pace.is_due |= applied.changed;
        if session.is_synced() && !was_synced {
            self.synced();
        }
        self.plan_flush();
        let mut requests = Vec::from_iter(received.reply);
        if self.settings.scope == Scope::OnDemand && received.kind == Kind::Address {
            let lost = self.interest.answered(&response, |name| self.store.has_address(name));
            if !lost.is_empty() {
                requests.push(interest(Vec::new(), lost));
            }
            self.tell();
        }
        Ok(requests)
    }

    /// Tells whoever waits what is published; what is not yet is told after that.
    fn tell(&mut self) {
        if !self.pace.is_due && *self.usable.borrow() {
            self.interest.tell();
        }
    }

    /// Gives up what nobody needs any more; returns the names.
    fn give_up(&mut self) -> Vec<String> {
        let (names, behind) = self.interest.give_up(Instant::now());
        let gone = behind.iter().map(String::as_str);
        let mut nobody = ();
        let log: &mut dyn Log = match &mut self.journal {
            Some(journal) => journal,
            None => &mut nobody,
        };
        self.pace.is_due |= self.store.apply(Kind::Address, gone, std::iter::empty(), log).changed;
        self.plan_flush();
        names
    }

    /// Every type has been answered on this stream: the state is what the server has.
    fn synced(&mut self) {
        tracing::info!(target: "xds", address = %self.settings.target.address, "connected to the discovery server");
        self.last_logged.clear();
        self.away_since = None;
        self.metrics.discovery().connected();
        let is_first = !std::mem::replace(&mut self.was_synced, true);
        self.usable.send_replace(true);
        if let Some(journal) = self.journal.as_mut().filter(|_| is_first) {
            journal.complete();
            self.flush();
        }
        if is_first || self.pace.is_due {
            self.publish();
        } else {
            self.state.confirm();
        }
    }

    /// What waits for the disk is written in a while, or now if it is much.
    fn plan_flush(&mut self) {
        let Some(journal) = &self.journal else { return };
        if journal.is_full() {
            self.flush();
        } else if journal.is_pending() && self.flush_at.is_none() {
            self.flush_at = Some(Instant::now() + FLUSH);
        }
    }

    fn flush(&mut self) {
        self.flush_at = None;
        if let Some(journal) = &mut self.journal {
            journal.flush(self.store.held());
            // Another agent has the folder.
            self.flush_at = journal.is_pending().then(|| Instant::now() + FLUSH);
        }
    }

    fn publish(&mut self) {
        // Before the first answers something may be missing: then nothing is in force.
        if !*self.usable.borrow() {
            return;
        }
        let began = Instant::now();
        let parts = self.store.parts();
        let counts = [
            ("workload", parts.workloads.len()),
            ("service", parts.services.len()),
            ("policy", parts.policies.len()),
        ];
        let completeness =
            if self.away_since.is_none() { Completeness::Complete } else { Completeness::Stale };
        let revision = self.state.publish_as(parts, completeness);
        self.metrics.discovery().resources(counts);
        self.metrics.config_loaded(revision, 0);
        let now = Instant::now();
        self.pace.published(now, now - began);
        self.interest.tell();
        if self.pace.bytes >= WORTH_GIVING_BACK {
            memory::give_back();
            self.pace.bytes = 0;
            self.pace.settled_at = Some(now + SETTLED);
        }
    }
}

/// An agent that ends in order leaves what it knew.
impl Drop for Client {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Pace {
    fn publish_at(&self) -> Option<Instant> {
        self.is_due.then(|| self.not_before.unwrap_or_else(Instant::now))
    }

    fn published(&mut self, now: Instant, took: Duration) {
        self.is_due = false;
        self.not_before = Some(now + took * PAUSE);
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A server that takes no request within the limit is as good as away.
async fn send(
    requests: &grpc::Requests<DeltaDiscoveryRequest>,
    request: &DeltaDiscoveryRequest,
) -> Result<(), End> {
    match timeout(ANSWER, requests.send(request)).await {
        // The stream has ended: its responses, which are read next, tell why.
        Ok(Ok(()) | Err(_)) => Ok(()),
        Err(_) => Err(End::NotReading),
    }
}

#[cfg(test)]
mod tests;
