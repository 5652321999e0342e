//! Which endpoint of a service takes a connection: readiness, traffic policy, locality, weight.
//!
//! **Source**: `istio.workload.LoadBalancing`; Kubernetes Service `internalTrafficPolicy`, `trafficDistribution`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::Outbound;
use super::downgrade::is_withheld;
use crate::model::{Endpoint, Health, IpFamilies, LoadBalancing, LocalityScope, Mode, Service, Workload};
use crate::state::Snapshot;
use crate::types::SpiffeId;

/// Why this endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The connection was to the workload's own address.
    Requested,
    /// Chosen among a service's endpoints.
    Balanced(Balance),
}

/// How the choice among a service's endpoints went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// The service's mode.
    pub mode: Mode,
    /// Rank of the chosen endpoint, higher is nearer; 0 in [`Mode::Standard`].
    pub rank: usize,
    /// Endpoints that shared this rank, among which weight decided.
    pub candidates: usize,
    /// Endpoints that could take the connection but ranked lower.
    pub farther: usize,
    /// Whether the chosen one was tried before, because nothing else was left.
    pub avoided: bool,
    /// Whether others failed at the chosen one a moment ago, and nothing better was left.
    pub failing: bool,
    /// Endpoints beside the chosen one that could take the connection and were not tried yet.
    pub untried: usize,
    /// Endpoints that could not take it.
    pub passed_over: PassedOver,
}

/// Endpoints of a service that could not take a connection, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassedOver {
    /// Listed by the service, but the workload is not known.
    pub unknown: u32,
    /// Not ready.
    pub unhealthy: u32,
    /// Being deleted.
    pub terminating: u32,
    /// Weight 0.
    pub no_weight: u32,
    /// No target for the port.
    pub no_port: u32,
    /// No address of a family that the service has.
    pub no_address: u32,
    /// In another network.
    pub other_network: u32,
    /// Outside the scope that the service insists on.
    pub out_of_scope: u32,
}

/// The endpoint to connect to.
pub(super) struct Chosen {
    pub(super) workload: Arc<Workload>,
    /// Without an address where the workload is found by its name.
    pub(super) target: SocketAddr,
    pub(super) choice: Choice,
}

/// An endpoint that can take the connection.
pub(super) struct Candidate<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) target: SocketAddr,
    /// Would get plaintext, which it may not.
    pub(super) withheld: bool,
    avoided: bool,
    failing: bool,
    pub(super) rank: usize,
}

impl Candidate<'_> {
    /// Those that are most preferred share the connections by weight. Those that cannot be had or failed come last,
    /// whatever their rank: another zone is better than the same failure.
    pub(super) fn preference(&self) -> (bool, bool, bool, usize) {
        (!self.withheld, !self.avoided, !self.failing, self.rank)
    }
}

/// Chooses an endpoint of `service` for a connection to its `port`.
///
/// **Errors**: none can take it; says why not.
pub(super) fn choose(
    snapshot: &Snapshot,
    service: &Service,
    facts: &Outbound<'_>,
) -> Result<Chosen, PassedOver> {
    let mut passed_over = PassedOver::default();
    let mut candidates = Vec::with_capacity(service.endpoints.len());
    for endpoint in &service.endpoints {
        match candidate(snapshot, service, endpoint, facts) {
            Ok(found) => candidates.push(found),
            Err(reason) => *reason.counter(&mut passed_over) += 1,
        }
    }

    let best = candidates.iter().map(Candidate::preference).max().ok_or(passed_over)?;
    let total = candidates.len();
    let untried = candidates.iter().filter(|c| !c.avoided && !c.withheld).count();
    candidates.retain(|c| c.preference() == best);

    let weight: u64 = candidates.iter().map(|c| u64::from(c.workload.capacity)).sum();
    let mut left = facts.pick.checked_rem(weight).ok_or(passed_over)?;
    let chosen = candidates.iter().find(|c| {
        let weight = u64::from(c.workload.capacity);
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    });
    let chosen = chosen.ok_or(passed_over)?;
    let balance = Balance {
        mode: service.load_balancing.mode,
        rank: chosen.rank,
        candidates: candidates.len(),
        farther: total - candidates.len(),
        avoided: chosen.avoided,
        failing: chosen.failing,
        untried: untried - usize::from(!chosen.avoided && !chosen.withheld),
        passed_over,
    };
    Ok(Chosen {
        workload: Arc::clone(chosen.workload),
        target: chosen.target,
        choice: Choice::Balanced(balance),
    })
}

/// Why an endpoint cannot take the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Unknown,
    Unhealthy,
    Terminating,
    NoWeight,
    NoPort,
    NoAddress,
    OtherNetwork,
    OutOfScope,
}

impl Reason {
    fn counter(self, counts: &mut PassedOver) -> &mut u32 {
        match self {
            Self::Unknown => &mut counts.unknown,
            Self::Unhealthy => &mut counts.unhealthy,
            Self::Terminating => &mut counts.terminating,
            Self::NoWeight => &mut counts.no_weight,
            Self::NoPort => &mut counts.no_port,
            Self::NoAddress => &mut counts.no_address,
            Self::OtherNetwork => &mut counts.other_network,
            Self::OutOfScope => &mut counts.out_of_scope,
        }
    }
}

/// Whether `endpoint` can take the connection, or why not.
pub(super) fn candidate<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    endpoint: &Endpoint,
    facts: &Outbound<'_>,
) -> Result<Candidate<'a>, Reason> {
    let workload = snapshot.workload(&endpoint.workload).ok_or(Reason::Unknown)?;
    if !service.is_ready(endpoint.health) {
        let is_going = endpoint.health == Health::Terminating;
        return Err(if is_going { Reason::Terminating } else { Reason::Unhealthy });
    }
    if workload.capacity == 0 {
        return Err(Reason::NoWeight);
    }
    let asked = facts.destination.port();
    // Behind an application's tunnel the port of the tunnel counts, whatever the service says.
    let tunnelled = workload.application_tunnel.map(|_| asked);
    let port = service.target_port(endpoint, asked).or(tunnelled).ok_or(Reason::NoPort)?;
    if workload.network != facts.source.network {
        return Err(Reason::OtherNetwork);
    }
    let ip = address(service.ip_families, workload, facts.destination.ip().to_canonical());
    let ip = ip.or_else(|| by_name(workload)).ok_or(Reason::NoAddress)?;
    let rank = rank(&service.load_balancing, facts.source, workload).ok_or(Reason::OutOfScope)?;
    let target = SocketAddr::new(ip, port);
    let withheld = is_withheld(snapshot, workload, target);
    let avoided = facts.avoid.contains(&workload.uid);
    let failing = facts.failing.iter().any(|(uid, at)| *at == target && *uid == workload.uid);
    Ok(Candidate { workload, target, withheld, avoided, failing, rank })
}

/// In place of the address of a workload that is found by its name, until somebody has asked for it.
fn by_name(workload: &Workload) -> Option<IpAddr> {
    let is_named = workload.addresses.is_empty() && !workload.hostname.is_empty();
    is_named.then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// Identities that the destination may prove. Sorted and without repetition, because the pool's key holds them.
pub(super) fn expected(workload: &Workload, service: Option<&Service>) -> Vec<SpiffeId> {
    let mut others: Vec<SpiffeId> = service.map_or(&[][..], |s| &s.subject_alt_names).to_vec();
    others.retain(|id| *id != workload.identity);
    others.sort();
    others.dedup();
    others.insert(0, workload.identity.clone());
    others
}

/// The address asked for if the workload owns it, else one that the service may use, of the caller's family if it can be.
fn address(families: IpFamilies, workload: &Workload, requested: IpAddr) -> Option<IpAddr> {
    if workload.addresses.contains(&requested) {
        return Some(requested);
    }
    let usable = |ip: &&IpAddr| match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::V4 => ip.is_ipv4(),
        IpFamilies::V6 => ip.is_ipv6(),
    };
    let usable = workload.addresses.iter().filter(usable);
    let same_family = usable.clone().find(|ip| ip.is_ipv4() == requested.is_ipv4());
    same_family.or_else(|| usable.clone().next()).copied()
}

/// Nearness by the service's preference: scopes count in order up to the first that differs. A leading network scope
/// outweighs all others together and does not end the count, so that remote endpoints are ranked among each other.
///
/// `None`: outside what [`Mode::Strict`] allows.
fn rank(balancing: &LoadBalancing, source: &Workload, endpoint: &Workload) -> Option<usize> {
    let preference = match balancing.mode {
        Mode::Standard | Mode::Passthrough => return Some(0),
        Mode::Strict | Mode::Failover => balancing.routing_preference.as_slice(),
    };
    if balancing.mode == Mode::Strict {
        return preference.iter().all(|s| same(*s, source, endpoint)).then_some(preference.len());
    }
    let (network, rest) = match preference {
        [LocalityScope::Network, rest @ ..] => (same(LocalityScope::Network, source, endpoint), rest),
        all => (false, all),
    };
    let near = rest.iter().take_while(|s| same(**s, source, endpoint)).count();
    Some(near + if network { preference.len() } else { 0 })
}

fn same(scope: LocalityScope, a: &Workload, b: &Workload) -> bool {
    match scope {
        LocalityScope::Region => a.locality.region == b.locality.region,
        LocalityScope::Zone => a.locality.zone == b.locality.zone,
        LocalityScope::Subzone => a.locality.subzone == b.locality.subzone,
        LocalityScope::Node => a.node == b.node,
        LocalityScope::Cluster => a.cluster == b.cluster,
        LocalityScope::Network => a.network == b.network,
    }
}

impl PassedOver {
    /// How many there are.
    pub fn total(&self) -> u32 {
        self.named().iter().map(|(_, count)| count).sum()
    }

    fn named(&self) -> [(&'static str, u32); 8] {
        [
            ("not ready", self.unhealthy),
            ("terminating", self.terminating),
            ("unknown", self.unknown),
            ("with weight 0", self.no_weight),
            ("without the port", self.no_port),
            ("without a usable address", self.no_address),
            ("in another network", self.other_network),
            ("out of the service's traffic policy", self.out_of_scope),
        ]
    }
}

/// `2 not ready, 1 terminating`; `no endpoints` where there are none.
impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total() == 0 {
            return f.write_str("no endpoints");
        }
        let mut comma = "";
        for (name, count) in self.named().into_iter().filter(|(_, count)| *count != 0) {
            write!(f, "{comma}{count} {name}")?;
            comma = ", ";
        }
        Ok(())
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Balanced(b) = self else { return f.write_str("address of the workload itself") };
        write!(f, "one of {} with rank {} ({:?})", b.candidates, b.rank, b.mode)?;
        if b.farther != 0 {
            write!(f, ", {} less preferred", b.farther)?;
        }
        if b.avoided {
            f.write_str(", tried before")?;
        } else if b.failing {
            f.write_str(", failed a moment ago")?;
        }
        match b.passed_over.total() {
            0 => Ok(()),
            _ => write!(f, ", passed over: {}", b.passed_over),
        }
    }
}

#[cfg(test)]
mod tests;
