//! Whether one policy matches: OR over rules, AND over clauses, OR over matches, AND over fields.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::Facts;
use crate::model::{Action, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch};
use crate::types::SpiffeId;

/// The facts in the form that matches compare with.
pub(super) struct Subject<'a> {
    peer: Option<&'a SpiffeId>,
    /// Without `spiffe://`; made once, policies may name thousands of principals.
    principal: Option<String>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Subject<'a> {
    pub(super) fn of(facts: &Facts<'a>) -> Self {
        Self {
            peer: facts.peer,
            principal: facts.peer.map(SpiffeId::principal),
            // A dual-stack listener reports IPv4 peers as ::ffff:a.b.c.d, which no IPv4 block contains.
            source_ip: facts.source_ip.to_canonical(),
            destination_ip: facts.destination_ip.to_canonical(),
            destination_port: facts.destination_port,
        }
    }
}

/// A policy without rules never matches.
pub(super) fn policy(policy: &Authorization, subject: &Subject<'_>) -> bool {
    policy.rules.iter().any(|r| rule(r, policy.action, subject))
}

/// A rule without clauses matches everything.
fn rule(rule: &Rule, action: Action, subject: &Subject<'_>) -> bool {
    rule.clauses.iter().all(|c| clause(c, action, subject))
}

/// A clause without matches is true; matches that say nothing are skipped, so a clause of only such is false.
fn clause(clause: &Clause, action: Action, subject: &Subject<'_>) -> bool {
    clause.matches.is_empty()
        || clause.matches.iter().filter(|m| says_something(m)).any(|m| one_match(m, action, subject))
}

fn says_something(m: &Match) -> bool {
    m != &Match::default()
}

fn one_match(m: &Match, action: Action, subject: &Subject<'_>) -> bool {
    let Subject { peer, principal, source_ip, destination_ip, destination_port } = subject;
    let namespace = peer.map_or("", SpiffeId::namespace); // plaintext: the empty text
    let principal_is = |m: &StringMatch| principal.as_deref().is_some_and(|p| text(m, p));
    let account_is = |m: &ServiceAccountMatch| {
        peer.is_some_and(|p| *m.namespace == *p.namespace() && *m.service_account == *p.service_account())
    };

    holds(&m.namespaces, &m.not_namespaces, |m| text(m, namespace))
        && holds(&m.principals, &m.not_principals, principal_is)
        && holds(&m.service_accounts, &m.not_service_accounts, account_is)
        && holds(&m.destination_ports, &m.not_destination_ports, |p| p == destination_port)
        && addresses(&m.source_ips, &m.not_source_ips, *source_ip, action)
        && addresses(&m.destination_ips, &m.not_destination_ips, *destination_ip, action)
}

/// No positive or any positive, and no negative.
fn holds<T>(positive: &[T], negative: &[T], is: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&is)) && !negative.iter().any(&is)
}

/// As [`holds`], but a list of which nothing could be read decides against the peer: it never holds in an ALLOW policy
/// and always in a DENY policy.
fn addresses(
    positive: &Option<Vec<IpNet>>,
    negative: &Option<Vec<IpNet>>,
    ip: IpAddr,
    action: Action,
) -> bool {
    let contains = |net: &IpNet| canonical(*net).contains(&ip);
    let unreadable = action == Action::Deny;
    let positive = match positive.as_deref() {
        None => true,
        Some([]) => unreadable,
        Some(nets) => nets.iter().any(contains),
    };
    let negative = match negative.as_deref() {
        None => true,
        Some([]) => unreadable,
        Some(nets) => !nets.iter().any(contains),
    };
    positive && negative
}

/// A block of IPv4-mapped addresses as the IPv4 block it means.
fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V4(_) => None,
        IpNet::V6(net) => net.network().to_ipv4_mapped().zip(net.prefix_len().checked_sub(96)),
    };
    match mapped.map(|(ip, len)| Ipv4Net::new(ip, len)) {
        Some(Ok(v4)) => IpNet::V4(v4),
        Some(Err(_)) | None => net,
    }
}

fn text(m: &StringMatch, value: &str) -> bool {
    match m {
        StringMatch::Exact(want) => value == &**want,
        StringMatch::Prefix(want) => value.starts_with(&**want),
        StringMatch::Suffix(want) => value.ends_with(&**want),
        StringMatch::Presence => !value.is_empty(),
    }
}
