//! The pods' DNS queries: those for names of the mesh are answered from the snapshot, all others relayed as they are.
//!
//! Each captured pod has sockets at 15053 on its loopback addresses, UDP and TCP; the rules in the pod redirect what it
//! sends to port 53 there. What is relayed goes to where the pod was asking, byte for byte, so that a pod with name
//! servers of its own keeps them. Served by a traffic worker, in tasks that hold nothing of the TCP path.
//!
//! Decides nothing about names: that is `culvert_common::dns`. Start with [`serve`], then `decide`; `udp` and `tcp` carry
//! messages, `origin` finds where a pod was asking, `servers` knows the agent's own name servers, `resolve` asks them on
//! behalf of workloads that are host names.

mod origin;
mod resolve;
mod servers;
mod sockets;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_common::crypto::random;
use culvert_common::dns::{self, Asker, Code, Naming, Query};
use culvert_common::model::Workload;
use culvert_common::task::Scope;
use culvert_common::telemetry::DnsQuery;
use culvert_common::xds::on_demand::Lookup;

pub(crate) use origin::{COMMAND, Helper, Origins, serve as look_up_destinations};
pub(crate) use resolve::{ResolveError, Resolver};
pub(crate) use sockets::{DnsSocket, Kind, is_alone, open, open_one};

use crate::settings::control_plane::DnsAddress;
use crate::shared::{Pod, Shared};
use crate::worker::Worker;
use servers::Servers;

/// How long a relayed query waits for its answer, and a TCP connection for anything at all.
const LIMIT: Duration = Duration::from_secs(5);

/// How long the control plane is waited for when it is asked for a name.
const ON_DEMAND: Duration = Duration::from_secs(1);

/// What the DNS proxy works with.
pub(crate) struct Dns {
    pub(crate) naming: Naming,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) origins: Origins,
    servers: Servers,
}

impl Dns {
    pub(crate) fn new(naming: Naming, listen: DnsAddress, origins: Origins) -> Self {
        let addresses = match listen {
            DnsAddress::At(addr) => vec![addr],
            DnsAddress::Localhost(port) => {
                let v6 = naming.ipv6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST));
                let all = std::iter::once(IpAddr::V4(Ipv4Addr::LOCALHOST)).chain(v6);
                all.map(|ip| SocketAddr::new(ip, port)).collect()
            }
        };
        Self { naming, addresses, origins, servers: Servers::default() }
    }

    /// The port to which queries are redirected; none without an address to listen at.
    pub(crate) fn port(&self) -> Option<u16> {
        self.addresses.first().map(SocketAddr::port)
    }
}

/// Where a pod's queries went lately; kept for queries that cannot be told.
#[derive(Debug, Default)]
pub(crate) struct LastServer(Mutex<Option<SocketAddr>>);

impl LastServer {
    fn set(&self, server: SocketAddr) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
    }

    fn get(&self) -> Option<SocketAddr> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one of a pod's sockets until the pod drains, or `until`, which is of the pod's scope.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, socket: DnsSocket, until: Scope) {
    let failed = match socket {
        DnsSocket::Udp(socket) => udp::serve(worker, &pod, socket, &until).await,
        DnsSocket::Tcp(listener) => tcp::serve(worker, &pod, listener, &until).await,
    };
    if let Err(error) = failed {
        tracing::error!(pod = pod.local.to_string(), %error, "cannot watch a DNS socket");
    }
}

/// What is done with a query.
enum Verdict {
    Say(Vec<u8>),
    Relay,
}

/// A query's source and type, for metrics, while it is relayed.
struct Labels {
    kind: &'static str,
    protocol: &'static str,
    source: Option<Arc<Workload>>,
}

impl Labels {
    fn query(&self) -> DnsQuery<'_> {
        DnsQuery { kind: self.kind, protocol: self.protocol, source: self.source.as_deref() }
    }
}

/// Counts a query, once.
fn asked(shared: &Shared, pod: &Pod, query: &Query<'_>, protocol: &'static str) -> Labels {
    let source = pod.workload(&shared.state.snapshot()).ok();
    let labels = Labels { kind: query.kind(), protocol, source };
    shared.telemetry.metrics().dns().request(&labels.query());
    labels
}

/// Whether a query is answered here, and how, in at most `limit` bytes.
///
/// The pod should be known by now ([`Pod::known`]): who it is decides what it may see.
fn decide(
    shared: &Shared,
    dns: &Dns,
    pod: &Pod,
    query: &Query<'_>,
    (protocol, limit): (&'static str, usize),
) -> (Verdict, Labels) {
    let labels = asked(shared, pod, query, protocol);
    if labels.source.is_none() {
        shared.telemetry.metrics().dns().result("unknown source");
        tracing::debug!(target: "dns", pod = pod.local.to_string(), "query of a pod that is not known: SERVFAIL");
        return (Verdict::Say(dns::failure(query, Code::ServFail)), labels);
    }
    let verdict = match find(shared, dns, pod, query, (&labels, limit)) {
        Some(answer) => Verdict::Say(answer),
        None => Verdict::Relay,
    };
    (verdict, labels)
}

/// The answer to a query for a name of the mesh.
fn find(
    shared: &Shared,
    dns: &Dns,
    pod: &Pod,
    query: &Query<'_>,
    (labels, limit): (&Labels, usize),
) -> Option<Vec<u8>> {
    let (question, source) = (query.question()?, labels.source.as_deref()?);
    let asker = Asker { namespace: &source.namespace, network: &source.network };
    let seed = u64::try_from(random() >> 64).unwrap_or_default();
    let found = dns::answer(&shared.state.snapshot(), &dns.naming, asker, &question, seed)?;
    let bytes = query.answered(&found.answer, limit)?;
    shared.telemetry.metrics().dns().result(found.outcome.as_str());
    tracing::debug!(
        target: "dns", pod = pod.local.to_string(), query = question.name, kind = labels.kind,
        protocol = labels.protocol, records = found.answer.addresses.len(), result = found.outcome.as_str(),
        "query answered"
    );
    Some(bytes)
}

/// As [`find`] for a name that the state does not have and the control plane can be asked for, where it is asked at all.
async fn find_on_demand(
    shared: &Shared,
    dns: &Dns,
    pod: &Pod,
    query: &Query<'_>,
    (labels, limit): (&Labels, usize),
) -> Option<Vec<u8>> {
    let on_demand = shared.on_demand.as_ref()?;
    let (question, source) = (query.question()?, labels.source.as_deref()?);
    let asker = Asker { namespace: &source.namespace, network: &source.network };
    for key in dns::keys(&dns.naming, asker, &question.name) {
        // A control plane that does not answer in time leaves the question to the pod's name server, which knows too.
        if on_demand.service(&key, ON_DEMAND).await == Lookup::Known
            && let Some(answer) = find(shared, dns, pod, query, (labels, limit))
        {
            return Some(answer);
        }
    }
    None
}

/// Whether `decide` has to wait for the pod's workload first.
fn is_waiting(pod: &Pod) -> bool {
    !pod.is_known.load(Ordering::Relaxed)
}

/// Why a query was not relayed, or got no answer.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("no name server is known: the query's destination cannot be told and /etc/resolv.conf has none")]
    NoServer,
    #[error("cannot ask {to}: {source}")]
    Io { to: SocketAddr, source: std::io::Error },
    #[error("no answer from {to} within {LIMIT:?}")]
    Timeout { to: SocketAddr },
    #[error("too many queries of the pod wait for answers")]
    Full,
}

/// Tells of a query that was relayed.
fn relayed(shared: &Shared, pod: &Pod, labels: &Labels, result: Result<Duration, &RelayError>) {
    let metrics = shared.telemetry.metrics().dns();
    let (pod, kind, protocol) = (pod.local.to_string(), labels.kind, labels.protocol);
    match result {
        Ok(took) => {
            metrics.result("forwarded");
            metrics.upstream_answer(&labels.query(), took);
            tracing::debug!(target: "dns", pod, kind, protocol, result = "forwarded", "query answered");
        }
        Err(error) => {
            metrics.result("forwarding failed");
            // One that was not asked on has not failed there.
            if !matches!(error, RelayError::Full) {
                metrics.upstream_failure(&labels.query());
            }
            tracing::debug!(target: "dns", pod, kind, protocol, result = %format_args!("forwarding failed ({error})"), "query failed");
        }
    }
}

/// The servers to relay to: where the pod was asking, else where it asked last, else the agent's own, in this order.
fn destinations(shared: &Shared, dns: &Dns, pod: &Pod, asked: Option<SocketAddr>) -> Vec<SocketAddr> {
    let (source, found) = match (asked, pod.name_server.get()) {
        (Some(asked), _) => {
            pod.name_server.set(asked);
            ("query", vec![asked])
        }
        (None, Some(last)) => ("last query", vec![last]),
        (None, None) => ("resolv.conf", dns.servers.list()),
    };
    shared.telemetry.metrics().dns().relayed_to(source);
    found
}
