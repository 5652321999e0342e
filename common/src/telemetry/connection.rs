//! One captured connection, logged once and counted once, however it ends.

use std::cell::Cell;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tracing::Level;

use super::ResponseFlag;
use super::denials::{Denial, Denials};
use super::line::Line;
use super::logging::{LogFormat, Logger};
use super::metrics::Metrics;
use super::pairs::{Known, Parts, known};
use super::requests::{Between, EndedRequest, GrpcMessages};
use super::traffic::Pair;
use crate::model::{Service, Workload};
use crate::types::SpiffeId;

/// Scope of the access log.
const SCOPE: &str = "access";

/// On which side of the connection this agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's: outbound.
    Source,
    /// The server's: inbound.
    Destination,
    /// Between them: a waypoint.
    Waypoint,
}

impl Reporter {
    /// Value of the label `reporter`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Waypoint => "waypoint",
        }
    }

    /// Value of the log field `direction`.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination | Self::Waypoint => "inbound",
        }
    }
}

/// How the connection crosses the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// As the app sent it.
    Unknown,
    /// In a tunnel with both identities proven.
    MutualTls,
}

impl Security {
    /// Value of the label `connection_security_policy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::MutualTls => "mutual_tls",
        }
    }
}

/// What is known of a connection when it has been routed.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Our side.
    pub reporter: Reporter,
    /// The client's workload.
    pub source: Option<Arc<Workload>>,
    /// The client's identity: proven by TLS, or outbound the pod's own. Never from a header.
    pub source_identity: Option<SpiffeId>,
    /// The server's workload.
    pub destination: Option<Arc<Workload>>,
    /// The server's identity, where it differs from its workload's.
    pub destination_identity: Option<SpiffeId>,
    /// The service that the client meant.
    pub service: Option<Arc<Service>>,
    /// How it crosses the network.
    pub security: Security,
    /// The client's address.
    pub src_addr: SocketAddr,
    /// Outbound the next hop that is dialled, inbound the pod's address that was met.
    pub dst_addr: SocketAddr,
    /// Target of the CONNECT, where there is one.
    pub hbone_addr: Option<Target>,
    /// Trace id of the CONNECT, to join the log lines of both agents.
    pub trace: Option<u128>,
}

/// Target of a CONNECT.
#[derive(Clone, Debug)]
pub enum Target {
    /// As we chose it.
    Addr(SocketAddr),
    /// As the peer wrote it.
    Text(Box<str>),
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Why a connection did not end well.
#[derive(Clone, Debug)]
pub struct Failure {
    /// For metrics.
    pub flag: ResponseFlag,
    /// For people.
    pub error: String,
    /// Where a policy, a budget or a drain refused it, here or at the other agent.
    pub denial: Option<DenialNote>,
}

/// What joins the two agents' log lines of one refusal.
#[derive(Clone, Debug)]
pub struct DenialNote {
    /// Random id, as the peer was told.
    pub id: String,
    /// Class, as the peer was told.
    pub class: &'static str,
    /// The policy that refused; known to the destination only.
    pub policy: Option<String>,
}

/// A connection that failed before it was routed.
#[derive(Clone, Copy, Debug)]
pub struct Early<'a> {
    /// Our side.
    pub reporter: Reporter,
    /// The client's address.
    pub src_addr: SocketAddr,
    /// The address that it met or asked for, if that is known.
    pub dst_addr: Option<SocketAddr>,
    /// The client's identity, if TLS has proven it.
    pub source_identity: Option<&'a SpiffeId>,
    /// The server's identity, if it is known.
    pub destination_identity: Option<&'a SpiffeId>,
    /// Why.
    pub failure: &'a Failure,
}

/// Where connections are counted and logged. One a process, shared by all workers.
pub struct Telemetry {
    metrics: Arc<Metrics>,
    logger: Logger,
    denials: Denials,
    /// Whether connections have lines in the log; a waypoint writes lines of its own.
    writes: bool,
}

impl Telemetry {
    /// Joins metrics and log; the metrics then also tell how many log lines were lost.
    pub fn new(metrics: Arc<Metrics>, logger: Logger) -> Arc<Self> {
        metrics.watch_log(&logger);
        Arc::new(Self { metrics, logger, denials: Denials::default(), writes: true })
    }

    /// As [`Telemetry::new`], for a waypoint: connections are counted, and the caller writes the lines that tell of them.
    pub fn of_waypoint(metrics: Arc<Metrics>, logger: Logger) -> Arc<Self> {
        metrics.watch_log(&logger);
        Arc::new(Self { metrics, logger, denials: Denials::default(), writes: false })
    }

    /// Counts an HTTP request that has ended. Costs a look-up in a table of this thread once its kind is known to it.
    pub fn request(&self, ended: &EndedRequest<'_>, now: Instant) {
        self.metrics.requests.count(ended, now);
    }

    /// Where the messages of a gRPC request are counted as they pass; as cheap as [`Telemetry::request`].
    pub fn messages(&self, between: &Between<'_>, now: Instant) -> GrpcMessages {
        self.metrics.requests.messages(between, now)
    }

    /// Remembers a refusal, and counts it under its class.
    pub fn refused(&self, denial: Denial) {
        self.metrics.refused(denial.reporter, denial.class);
        self.denials.push(denial);
    }

    fn logs(&self, level: Level) -> bool {
        self.writes && self.logger.logs_access(level)
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The log.
    pub fn logger(&self) -> &Logger {
        &self.logger
    }

    /// The newest refusals.
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    /// Counts `flow` as opened. The caller ends it with [`Connection::finish`].
    ///
    /// Costs a look-up in a table of this thread once the pair of workloads is known to it.
    pub fn open(self: &Arc<Self>, flow: Flow, now: Instant) -> Connection {
        let traffic = &self.metrics.traffic;
        let seconds = traffic.seconds(now);
        let (pair, known) = known(self, &flow, seconds);
        pair.open(seconds);
        if self.logs(Level::DEBUG) {
            self.logger.line(Level::DEBUG, (SCOPE, "connection opened"), |line| {
                flow.log(line, false, &known);
                flow.log_trace(line);
            });
        }
        let counts = ByteCounts { sent: Cell::new(0), received: Cell::new(0), pair };
        Connection {
            telemetry: Arc::clone(self),
            flow,
            start: now,
            counts: Rc::new(counts),
            known,
            open: true,
        }
    }

    /// Logs and counts a connection that failed before it was routed; it appears in no other family.
    pub fn early_failure(&self, early: &Early<'_>) {
        let failure = early.failure;
        self.metrics.refused(early.reporter, failure.class());
        self.metrics.failed_early(early.reporter, failure.class());
        self.denials.push(Denial::of_early(early, SystemTime::now()));
        if !self.logs(Level::WARN) {
            return;
        }
        self.logger.line(Level::WARN, (SCOPE, "connection failed"), |line| {
            line.address("src.addr", early.src_addr);
            if let Some(identity) = early.source_identity {
                line.text("src.identity", &identity.to_string());
            }
            if let Some(addr) = early.dst_addr {
                line.address("dst.addr", addr);
            }
            if let Some(identity) = early.destination_identity {
                line.text("dst.identity", &identity.to_string());
            }
            line.text("direction", early.reporter.direction());
            failure.log(line);
        });
    }
}

/// Bytes of one connection, for its log line; the metrics learn them at the same time. One thread owns it.
pub struct ByteCounts {
    sent: Cell<u64>,
    received: Cell<u64>,
    pair: Arc<Pair>,
}

impl ByteCounts {
    /// Adds bytes from server to client.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        self.pair.add_sent(bytes);
    }

    /// Adds bytes from client to server.
    pub fn add_received(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        self.pair.add_received(bytes);
    }

    /// Bytes from server to client so far.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Bytes from client to server so far.
    pub fn received(&self) -> u64 {
        self.received.get()
    }
}

/// A connection that has been routed. Dropped without [`Connection::finish`] it counts as cut by the drain.
#[must_use = "a connection that is not finished is logged as cut"]
pub struct Connection {
    telemetry: Arc<Telemetry>,
    flow: Flow,
    start: Instant,
    counts: Rc<ByteCounts>,
    /// What its log lines have in common with those of others.
    known: Rc<Known>,
    open: bool,
}

impl Connection {
    /// The byte counts, for the relay.
    pub fn counts(&self) -> Rc<ByteCounts> {
        Rc::clone(&self.counts)
    }

    /// What is known of it.
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Ends it: one log line, one closed connection.
    pub fn finish(mut self, result: Result<(), Failure>) {
        if let Err(failure) = &result {
            let refused = failure.is_refusal();
            if refused {
                self.telemetry.metrics.refused(self.flow.reporter, failure.class());
            }
            if refused || failure.is_of_setup() {
                self.telemetry.denials.push(Denial::of_flow(&self.flow, failure, SystemTime::now()));
            }
        }
        self.end(result.as_ref().err());
    }

    fn end(&mut self, failure: Option<&Failure>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        self.counts.pair.close(failure.map_or(ResponseFlag::None, |f| f.flag));
        let level = if failure.is_some() { Level::ERROR } else { Level::INFO };
        if self.telemetry.logs(level) {
            let head = (SCOPE, "connection complete");
            self.telemetry.logger.line(level, head, |line| self.log_end(line, failure));
        }
    }

    fn log_end(&self, line: &mut Line<'_>, failure: Option<&Failure>) {
        self.flow.log(line, failure.is_some_and(|f| f.denial.is_some()), &self.known);
        // From the local pod's viewpoint: it is the client of an outbound connection, the server of an inbound one.
        let (to_server, to_client) = (self.counts.received(), self.counts.sent());
        let (sent, received) = match self.flow.reporter {
            Reporter::Source => (to_server, to_client),
            Reporter::Destination | Reporter::Waypoint => (to_client, to_server),
        };
        line.number("bytes_sent", sent);
        line.number("bytes_recv", received);
        line.milliseconds("duration", u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX));
        if let Some(failure) = failure {
            failure.log(line);
        }
        self.flow.log_trace(line);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.open {
            let cut = Failure {
                flag: ResponseFlag::Draining,
                error: "connection closed due to connection drain".into(),
                denial: None,
            };
            self.end(Some(&cut));
        }
    }
}

impl Failure {
    /// Whether somebody said no, rather than something broke.
    fn is_refusal(&self) -> bool {
        use ResponseFlag::{Budget, Deny, Draining, NotCaptured};
        self.denial.is_some() || matches!(self.flag, Deny | Budget | Draining | NotCaptured)
    }

    /// Whether the tunnel for it did not come up, which looks like a refusal to its app.
    fn is_of_setup(&self) -> bool {
        use ResponseFlag::{H2Handshake, Identity, NetworkPolicy, TlsFailure};
        matches!(self.flag, TlsFailure | H2Handshake | NetworkPolicy | Identity)
    }

    pub(super) fn class(&self) -> &'static str {
        self.denial.as_ref().map_or(self.flag.class(), |d| d.class)
    }

    fn log(&self, line: &mut Line<'_>) {
        line.text("error", &self.error);
        if let Some(denial) = &self.denial {
            line.text("denial.id", &denial.id);
            line.text("denial.class", denial.class);
            if let Some(policy) = &denial.policy {
                line.text("denial.policy", policy);
            }
        }
    }
}

impl Flow {
    /// The fields that say who talks to whom.
    fn log(&self, line: &mut Line<'_>, denied: bool, known: &Known) {
        let encrypted = self.security == Security::MutualTls;
        let identities = denied || encrypted;
        line.address("src.addr", self.src_addr);
        let (source, destination) = if identities == encrypted {
            known.parts(|| self.parts(line.format(), identities))
        } else {
            &self.parts(line.format(), identities)
        };
        line.fields(source);
        line.address("dst.addr", self.dst_addr);
        match &self.hbone_addr {
            Some(Target::Addr(target)) => line.address("dst.hbone_addr", *target),
            Some(Target::Text(target)) => line.address_or_text("dst.hbone_addr", target),
            None => {}
        }
        line.fields(destination);
    }

    /// The same for all connections of the pair: what stands behind the source's address, and behind the destination's.
    fn parts(&self, format: LogFormat, identities: bool) -> Parts {
        let (mut source, mut destination) = (String::new(), String::new());
        let source_identity = self.source_identity.as_ref().filter(|_| identities);
        let mut line = Line::part(&mut source, format);
        log_workload(&mut line, &SOURCE, self.source.as_deref(), source_identity);
        let mut line = Line::part(&mut destination, format);
        if let Some(service) = &self.service {
            line.text("dst.service", &service.key.hostname);
        }
        let known = self.destination_identity.as_ref().or(self.destination.as_ref().map(|w| &w.identity));
        log_workload(&mut line, &DESTINATION, self.destination.as_deref(), known.filter(|_| identities));
        line.text("direction", self.reporter.direction());
        (source.into(), destination.into())
    }

    fn log_trace(&self, line: &mut Line<'_>) {
        if let Some(id) = self.trace {
            line.hex("trace.id", id, 32);
        }
    }
}

const SOURCE: [&str; 4] = ["src.workload", "src.namespace", "src.identity", "src.cluster"];
const DESTINATION: [&str; 4] = ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"];

fn log_workload(
    line: &mut Line<'_>,
    keys: &[&str; 4],
    workload: Option<&Workload>,
    identity: Option<&SpiffeId>,
) {
    let [name_key, namespace_key, identity_key, cluster_key] = *keys;
    let mut known = |key, value: &str| {
        if !value.is_empty() {
            line.text(key, value);
        }
    };
    if let Some(w) = workload {
        known(name_key, if w.name.is_empty() { &w.canonical_name } else { &w.name });
        known(namespace_key, &w.namespace);
    }
    if let Some(identity) = identity {
        known(identity_key, &identity.to_string());
    }
    if let Some(w) = workload {
        known(cluster_key, &w.cluster);
    }
}

#[cfg(test)]
mod tests;
