//! Whether one policy matches: OR over rules, AND over clauses, OR over matches, AND over fields.

use std::fmt::Display;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::Facts;
use super::trace::{Compared, Field, Observer, Side};
use crate::model::{Action, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch};
use crate::types::SpiffeId;

/// The facts in the form that matches compare with.
pub(super) struct Subject<'a> {
    pub(super) peer: Option<&'a SpiffeId>,
    /// Without `spiffe://`; made once, policies may name thousands of principals.
    pub(super) principal: Option<String>,
    pub(super) source_ip: IpAddr,
    pub(super) destination_ip: IpAddr,
    pub(super) destination_port: u16,
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
pub(super) fn policy<O: Observer>(policy: &Authorization, subject: &Subject<'_>, observer: &mut O) -> bool {
    let held = any(&policy.rules, observer, |r, o| rule(r, policy.action, subject, o));
    observer.policy(policy, held);
    held
}

/// A rule without clauses matches everything.
fn rule<O: Observer>(rule: &Rule, action: Action, subject: &Subject<'_>, observer: &mut O) -> bool {
    let mut held = true;
    for one in &rule.clauses {
        held &= clause(one, action, subject, observer);
        if !held && !O::THOROUGH {
            break;
        }
    }
    observer.rule(held);
    held
}

/// A clause without matches is true; matches that say nothing are skipped, so a clause of only such is false.
fn clause<O: Observer>(clause: &Clause, action: Action, subject: &Subject<'_>, observer: &mut O) -> bool {
    let said = clause.matches.iter().filter(|m| says_something(m));
    let held = clause.matches.is_empty() || any(said, observer, |m, o| one_match(m, action, subject, o));
    observer.clause(held);
    held
}

/// Whether one of `items` holds; the rest is looked at only for a thorough observer.
fn any<T, O: Observer>(
    items: impl IntoIterator<Item = T>,
    observer: &mut O,
    mut holds: impl FnMut(T, &mut O) -> bool,
) -> bool {
    let mut held = false;
    for item in items {
        held |= holds(item, observer);
        if held && !O::THOROUGH {
            break;
        }
    }
    held
}

fn says_something(m: &Match) -> bool {
    m != &Match::default()
}

fn one_match<O: Observer>(m: &Match, action: Action, subject: &Subject<'_>, observer: &mut O) -> bool {
    let Subject { peer, principal, source_ip, destination_ip, destination_port } = subject;
    let namespace = peer.map_or("", SpiffeId::namespace); // plaintext: the empty text
    let principal_is = |m: &StringMatch| principal.as_deref().is_some_and(|p| text(m, p));
    let account_is = |m: &ServiceAccountMatch| {
        peer.is_some_and(|p| *m.namespace == *p.namespace() && *m.service_account == *p.service_account())
    };
    let unreadable = action == Action::Deny;
    let inside = |ip: &IpAddr| {
        let ip = *ip;
        move |net: &IpNet| canonical(*net).contains(&ip)
    };

    let mut fields = Fields { observer, held: true };
    let of = |field| Compared { field, subject };
    fields.list(of(Field::Namespaces), &m.namespaces, &m.not_namespaces, |m| text(m, namespace));
    fields.list(of(Field::Principals), &m.principals, &m.not_principals, principal_is);
    fields.list(of(Field::ServiceAccounts), &m.service_accounts, &m.not_service_accounts, account_is);
    fields.list(of(Field::Ports), &m.destination_ports, &m.not_destination_ports, |p| p == destination_port);
    let (some, not) = (&m.source_ips, &m.not_source_ips);
    fields.addresses(of(Field::SourceIps), (some, not), unreadable, inside(source_ip));
    let (some, not) = (&m.destination_ips, &m.not_destination_ips);
    fields.addresses(of(Field::DestinationIps), (some, not), unreadable, inside(destination_ip));
    let held = fields.held;
    observer.one_match(held);
    held
}

/// The fields of one match, AND over all.
struct Fields<'o, O> {
    observer: &'o mut O,
    held: bool,
}

impl<O: Observer> Fields<'_, O> {
    /// No positive or any positive, and no negative.
    fn list<T: Display>(
        &mut self,
        of: Compared<'_>,
        positive: &[T],
        negative: &[T],
        is: impl Fn(&T) -> bool,
    ) {
        if !positive.is_empty() {
            self.field(of, Side::Wanted, positive, || positive.iter().any(&is));
        }
        if !negative.is_empty() {
            self.field(of, Side::Unwanted, negative, || !negative.iter().any(&is));
        }
    }

    /// As [`Self::list`], but a list of which nothing could be read decides against the peer: it never holds in an
    /// ALLOW policy and always in a DENY policy.
    fn addresses(
        &mut self,
        of: Compared<'_>,
        (positive, negative): (&Option<Vec<IpNet>>, &Option<Vec<IpNet>>),
        unreadable: bool,
        is: impl Fn(&IpNet) -> bool,
    ) {
        match positive.as_deref() {
            None => {}
            Some([]) => self.field::<IpNet>(of, Side::Wanted, &[], || unreadable),
            Some(nets) => self.field(of, Side::Wanted, nets, || nets.iter().any(&is)),
        }
        match negative.as_deref() {
            None => {}
            Some([]) => self.field::<IpNet>(of, Side::Unwanted, &[], || unreadable),
            Some(nets) => self.field(of, Side::Unwanted, nets, || !nets.iter().any(&is)),
        }
    }

    fn field<T: Display>(&mut self, of: Compared<'_>, side: Side, list: &[T], holds: impl FnOnce() -> bool) {
        if self.held || O::THOROUGH {
            let held = holds();
            self.observer.field(of, side, list, held);
            self.held &= held;
        }
    }
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
