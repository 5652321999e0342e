//! What a person wrote, as workloads, services and addresses; with close matches for what does not exist.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{Service, Workload};
use crate::state::Snapshot;
use crate::types::WorkloadUid;

/// Names that a message lists.
const SHOWN: usize = 8;

/// A side of the connection could not be found out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUnderstood {
    /// The agent knows nothing yet.
    #[error("the agent has not read its configuration yet; ask again in a moment, or see its log")]
    Loading,
    /// Nothing has this name.
    #[error("the {side} {text:?} is no known pod, service or address{}{}", Close(close), Left(left_out))]
    Unknown {
        /// `source` or `destination`
        side: &'static str,
        /// What was asked for.
        text: String,
        /// Names like it.
        close: Vec<String>,
        /// Why an object of this name takes no part.
        left_out: Option<String>,
    },
    /// Several things have this name.
    #[error("the {side} {text:?} may be any of: {}; write one of these", all.join(", "))]
    Ambiguous {
        /// `source` or `destination`
        side: &'static str,
        /// What was asked for.
        text: String,
        /// All of them.
        all: Vec<String>,
    },
    /// The destination has several ports, or none that is known.
    #[error("{name} needs a port: {}", Ports(name, ports))]
    NoPort {
        /// The destination.
        name: String,
        /// Ports that are known, as `80 (http)`.
        ports: Vec<String>,
    },
    /// What follows the last colon is no port.
    #[error(
        "{0:?} ends in no port: write a number from 1 to 65535 after the colon, and an IPv6 address with a port as [address]:port"
    )]
    NotAPort(String),
    /// A pod or service without any address.
    #[error("{0} has no address, so nothing can be sent {1} it")]
    NoAddress(String, &'static str),
}

struct Close<'a>(&'a [String]);

impl std::fmt::Display for Close<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; did you mean {}?", self.0.join(", ")) }
    }
}

struct Left<'a>(&'a Option<String>);

impl std::fmt::Display for Left<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map_or(Ok(()), |left| write!(f, "; {left}"))
    }
}

struct Ports<'a>(&'a str, &'a [String]);

impl std::fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(name, ports) = self;
        match ports {
            [] => write!(f, "none is known, so write it, for example {name}:8080"),
            ports => write!(f, "it has {}; write {name}:<port>", ports.join(", ")),
        }
    }
}

/// Who connects.
pub(super) struct Source {
    pub(super) asked: String,
    /// The workload; none is somebody outside.
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) addresses: Vec<IpAddr>,
    /// The service that was asked for in place of one of its pods.
    pub(super) service: Option<Arc<Service>>,
}

/// Where to.
pub(super) struct Destination {
    pub(super) asked: String,
    /// The service that was named, or whose address was.
    pub(super) service: Option<Arc<Service>>,
    /// The workload that was named, or whose address was.
    pub(super) workload: Option<Arc<Workload>>,
    /// What an app would dial: one address, or each pod's of a headless service.
    pub(super) dialled: Vec<SocketAddr>,
}

enum Named {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
    Address(IpAddr),
}

/// Understands the source.
pub(super) fn source(snapshot: &Snapshot, text: &str) -> Result<Source, NotUnderstood> {
    let asked = text.to_owned();
    let named = named(snapshot, text, "source", None)?;
    let (workload, addresses, service) = match named {
        Named::Workload(workload) => (Some(Arc::clone(&workload)), workload.addresses.clone(), None),
        Named::Address(ip) => match snapshot.workload_by_ip(ip) {
            Some(workload) => (Some(Arc::clone(workload)), vec![ip], None),
            None => (None, vec![ip], None),
        },
        Named::Service(service) => {
            let mut pods = service.endpoints.iter().filter_map(|e| snapshot.workload(&e.workload));
            let Some(pod) = pods.next() else {
                return Err(NotUnderstood::NoAddress(format!("{} has no pods and", service.key), "from"));
            };
            (Some(Arc::clone(pod)), pod.addresses.clone(), Some(service))
        }
    };
    if addresses.is_empty() {
        return Err(NotUnderstood::NoAddress(asked, "from"));
    }
    Ok(Source { asked, workload, addresses, service })
}

/// Understands the destination, as `from` would.
pub(super) fn destination(
    snapshot: &Snapshot,
    text: &str,
    from: &Source,
) -> Result<Destination, NotUnderstood> {
    let (name, port) = split(text)?;
    let namespace = from.workload.as_ref().map_or("", |w| &*w.namespace);
    let named = named(snapshot, name, "destination", Some(namespace))?;
    let no_port = |ports| NotUnderstood::NoPort { name: name.to_owned(), ports };
    let asked = text.to_owned();
    let (service, workload) = match &named {
        Named::Workload(workload) => (None, Some(Arc::clone(workload))),
        Named::Service(service) => (Some(Arc::clone(service)), None),
        Named::Address(ip) => {
            let service = snapshot.service_by_vip(*ip, namespace).cloned();
            let workload = snapshot.workload_by_ip(*ip).filter(|_| service.is_none()).cloned();
            (service, workload)
        }
    };
    let port = match (port, &service, &workload) {
        (Some(port), ..) => port,
        (None, Some(service), _) => only(&service_ports(service)).map_err(no_port)?,
        (None, None, Some(workload)) => only(&pod_ports(snapshot, workload)).map_err(no_port)?,
        (None, None, None) => return Err(no_port(Vec::new())),
    };
    let family = |ips: &[IpAddr]| {
        let same = ips.iter().find(|ip| from.addresses.iter().any(|own| own.is_ipv4() == ip.is_ipv4()));
        same.or(ips.first()).copied()
    };
    let dialled: Vec<SocketAddr> = match &named {
        Named::Address(ip) => vec![SocketAddr::new(*ip, port)],
        Named::Workload(w) => family(&w.addresses).map(|ip| SocketAddr::new(ip, port)).into_iter().collect(),
        Named::Service(s) => match family(&s.vips) {
            Some(vip) => vec![SocketAddr::new(vip, port)],
            None => headless(snapshot, s, port, family),
        },
    };
    if dialled.is_empty() && service.is_none() {
        return Err(NotUnderstood::NoAddress(name.to_owned(), "to"));
    }
    Ok(Destination { asked, service, workload, dialled })
}

/// What the name of a service without address leads to: its pods themselves.
fn headless(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    family: impl Fn(&[IpAddr]) -> Option<IpAddr>,
) -> Vec<SocketAddr> {
    let address = |endpoint: &crate::model::Endpoint| {
        let ip = family(&snapshot.workload(&endpoint.workload)?.addresses)?;
        Some(SocketAddr::new(ip, port)) // DNS knows no target ports: the app dials the port that it was told
    };
    service.endpoints.iter().filter_map(address).collect()
}

fn only(ports: &[(u16, String)]) -> Result<u16, Vec<String>> {
    match ports {
        [(port, _)] => Ok(*port),
        ports => Err(ports.iter().map(|(port, what)| format!("{port}{what}")).collect()),
    }
}

fn service_ports(service: &Service) -> Vec<(u16, String)> {
    let name = |name: &str| if name.is_empty() { String::new() } else { format!(" ({name})") };
    service.ports.iter().map(|(port, p)| (*port, name(&p.name))).collect()
}

/// Ports of a pod that services lead to; nothing else is known of them.
fn pod_ports(snapshot: &Snapshot, workload: &Workload) -> Vec<(u16, String)> {
    let mut found: Vec<(u16, String)> = Vec::new();
    for service in snapshot.services_of(&workload.uid) {
        for endpoint in service.endpoints.iter().filter(|e| e.workload == workload.uid) {
            for port in service.ports.keys().filter_map(|port| service.target_port(endpoint, *port)) {
                if !found.iter().any(|(known, _)| *known == port) {
                    found.push((port, format!(" (of service {})", service.name)));
                }
            }
        }
    }
    found.sort();
    found
}

/// `name:port`, `[v6]:port`, or without a port.
fn split(text: &str) -> Result<(&str, Option<u16>), NotUnderstood> {
    let wrong = || NotUnderstood::NotAPort(text.to_owned());
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None));
    }
    if let Some((ip, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Ok((ip, None)),
            None => Err(wrong()),
            Some(port) => Ok((ip, Some(parse_port(port).ok_or_else(wrong)?))),
        };
    }
    match text.rsplit_once(':') {
        Some((name, port)) => Ok((name, Some(parse_port(port).ok_or_else(wrong)?))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// What has this name. A bare name is looked for in `namespace` first; there a service comes first for a destination
/// and a pod for a source, as each would be meant.
fn named(
    snapshot: &Snapshot,
    text: &str,
    side: &'static str,
    namespace: Option<&str>,
) -> Result<Named, NotUnderstood> {
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(Named::Address(ip.to_canonical()));
    }
    if let Some(workload) = snapshot.workload(&WorkloadUid(text.into())) {
        return Ok(Named::Workload(Arc::clone(workload)));
    }
    let mut pods: Vec<&Arc<Workload>> = snapshot.workloads().filter(|w| is_pod(w, text)).collect();
    let mut services: Vec<&Arc<Service>> = snapshot.services().filter(|s| is_service(s, text)).collect();
    if let Some(own) = namespace {
        if pods.iter().any(|w| &*w.namespace == own) || services.iter().any(|s| &*s.key.namespace == own) {
            pods.retain(|w| &*w.namespace == own);
            services.retain(|s| &*s.key.namespace == own);
        }
        if !services.is_empty() {
            pods.clear();
        }
    } else if !pods.is_empty() {
        services.clear();
    }
    match (&pods[..], &services[..]) {
        ([pod], []) => Ok(Named::Workload(Arc::clone(pod))),
        ([], [service]) => Ok(Named::Service(Arc::clone(service))),
        ([], []) => Err(unknown(snapshot, text, side)),
        _ => {
            let pods = pods.iter().map(|w| format!("{}/{}", w.namespace, w.name));
            let mut all: Vec<String> = pods.chain(services.iter().map(|s| short(s))).collect();
            all.sort();
            all.truncate(SHOWN);
            Err(NotUnderstood::Ambiguous { side, text: text.to_owned(), all })
        }
    }
}

fn is_pod(workload: &Workload, text: &str) -> bool {
    match text.split_once('/') {
        Some((namespace, name)) => *workload.namespace == *namespace && *workload.name == *name,
        None => *workload.name == *text,
    }
}

/// `cart`, `cart.shop`, `cart.shop.svc`, the full host name, or `shop/cart`.
fn is_service(service: &Service, text: &str) -> bool {
    let (host, namespace) = (&*service.key.hostname, &*service.key.namespace);
    if let Some((ns, name)) = text.split_once('/') {
        return ns == namespace && (name == &*service.name || name == host);
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    host.eq_ignore_ascii_case(text)
        || text == &*service.name
        || text
            .strip_prefix(&*service.name)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|rest| rest == namespace || rest.strip_suffix(".svc") == Some(namespace))
}

/// The shortest name of a service that is not ambiguous.
fn short(service: &Service) -> String {
    format!("{}.{}", service.name, service.key.namespace)
}

fn unknown(snapshot: &Snapshot, text: &str, side: &'static str) -> NotUnderstood {
    let bare = text.rsplit('/').next().unwrap_or(text);
    let bare = if text.contains('/') { bare } else { bare.split('.').next().unwrap_or(bare) };
    let pods = snapshot.workloads().map(|w| (&*w.name, format!("{}/{}", w.namespace, w.name)));
    let services = snapshot.services().map(|s| (&*s.name, short(s)));
    let mut close: Vec<(usize, String)> =
        pods.chain(services).filter_map(|(name, full)| Some((nearness(bare, name)?, full))).collect();
    close.sort();
    close.truncate(SHOWN);
    let pod = |(object, why): (&String, &Arc<str>)| {
        let name = object.strip_prefix("Pod ")?;
        let same = name == text || name.split_once('/').is_some_and(|(_, name)| name == text);
        same.then(|| format!("{object} takes no part: {why}"))
    };
    NotUnderstood::Unknown {
        side,
        text: text.to_owned(),
        close: close.into_iter().map(|(_, name)| name).collect(),
        left_out: snapshot.background().left_out.iter().find_map(pod),
    }
}

/// How far a name is from what was asked for; none if it is not alike.
fn nearness(asked: &str, name: &str) -> Option<usize> {
    if asked.len() > 253 || asked.is_empty() {
        return None;
    }
    if name.starts_with(asked) || asked.starts_with(name) {
        return Some(0);
    }
    let distance = distance(asked, name);
    (distance <= 1 + asked.len() / 4).then_some(distance)
}

/// Letters to add, take away or replace.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let up = *cell;
            *cell = (diagonal + usize::from(x != y)).min(up + 1).min(left + 1);
            (diagonal, left) = (up, *cell);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
