//! Whether one rule of a policy matches: AND over its parts, OR over the entries of a part, AND over the fields of an entry.

use std::cell::OnceCell;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::facts::{Connection, Facts};
use super::forms::Forms;
use super::trace::RuleTrace;
use crate::model::l7::{Access, Condition, Effect, Operation, PathMatch, PolicyRule, Source, Texts};
use crate::model::{ServiceAccountMatch, StringMatch};
use crate::types::SpiffeId;

/// What is known, in the form that rules compare with; what costs something is made when first asked for.
pub(super) struct Subject<'a> {
    connection: Connection<'a>,
    http: Option<Request<'a>>,
    /// Without `spiffe://`.
    principal: OnceCell<Option<String>>,
}

struct Request<'a> {
    facts: Facts<'a>,
    host: OnceCell<Forms<'a>>,
    path: OnceCell<Forms<'a>>,
}

impl<'a> Subject<'a> {
    pub(super) fn request(facts: &Facts<'a>) -> Self {
        let http = Request { facts: *facts, host: OnceCell::new(), path: OnceCell::new() };
        Self { http: Some(http), ..Self::connection(&facts.connection) }
    }

    pub(super) fn connection(connection: &Connection<'a>) -> Self {
        Self { connection: *connection, http: None, principal: OnceCell::new() }
    }

    /// A rule without parts matches everything.
    pub(super) fn is_match(&self, effect: Effect, rule: &PolicyRule) -> bool {
        let PolicyRule { from, to, when } = rule;
        if self.http.is_none() && effect == Effect::Allow && needs_http(rule) {
            return false;
        }
        (from.is_empty() || from.iter().any(|source| self.is_from(effect, source)))
            && (to.is_empty() || to.iter().any(|operation| self.is_to(effect, operation)))
            && when.iter().all(|condition| self.holds(effect, condition))
    }

    /// The parts of a rule, each looked at.
    pub(super) fn traced(&self, effect: Effect, rule: &PolicyRule) -> RuleTrace {
        let PolicyRule { from, to, when } = rule;
        RuleTrace {
            is_match: self.is_match(effect, rule),
            from: from.iter().map(|source| self.is_from(effect, source)).collect(),
            to: to.iter().map(|operation| self.is_to(effect, operation)).collect(),
            when: when.iter().map(|condition| self.holds(effect, condition)).collect(),
            needs_http: self.http.is_none() && effect == Effect::Allow && needs_http(rule),
        }
    }

    fn is_from(&self, effect: Effect, source: &Source) -> bool {
        // Written out, so that a new field has to be compared.
        let Source { principals, namespaces, service_accounts, trust_domains, ip_blocks, remote_ip_blocks } =
            source;
        self.is_principal(effect, principals)
            && self.is_of(effect, namespaces, SpiffeId::namespace)
            && self.is_account(service_accounts)
            && self.is_of(effect, trust_domains, SpiffeId::trust_domain)
            && is_within(ip_blocks, self.connection.source.ip())
            && is_within(remote_ip_blocks, self.connection.remote)
    }

    fn is_to(&self, effect: Effect, operation: &Operation) -> bool {
        let Operation { hosts, ports, methods, paths } = operation;
        if !one_of(ports, |port| *port == self.connection.destination.port()) {
            return false;
        }
        // Without HTTP the rest is left out of account; an ALLOW rule does not come here then.
        let Some(http) = &self.http else { return true };
        let host = || http.host.get_or_init(|| Forms::host(http.facts.authority));
        let path = || http.path.get_or_init(|| Forms::path(http.facts.path()));
        let method = || Forms::method(http.facts.method.as_str());
        (is_empty(methods) || method().are(methods, effect, text))
            && (is_empty(hosts) || host().are(hosts, effect, text_ignoring_case))
            && (is_empty(paths) || path().are(paths, effect, is_path))
    }

    fn holds(&self, effect: Effect, condition: &Condition) -> bool {
        match condition {
            Condition::RequestHeader { name, values } => self.has_header(effect, name, values),
            Condition::SourceIp(nets) => is_within(nets, self.connection.source.ip()),
            Condition::RemoteIp(nets) => is_within(nets, self.connection.remote),
            Condition::SourceNamespace(texts) => self.is_of(effect, texts, SpiffeId::namespace),
            Condition::SourcePrincipal(texts) => self.is_principal(effect, texts),
            Condition::SourceServiceAccount(accounts) => self.is_account(accounts),
            Condition::SourceTrustDomain(texts) => self.is_of(effect, texts, SpiffeId::trust_domain),
            Condition::DestinationIp(nets) => is_within(nets, self.connection.destination.ip()),
            Condition::DestinationPort(ports) => {
                one_of(ports, |port| *port == self.connection.destination.port())
            }
            Condition::ServerName(texts) => {
                let name = self.connection.server_name.unwrap_or_default();
                Forms::host(name).are(texts, effect, text_ignoring_case)
            }
        }
    }

    /// A header that is missing matches none of the values, and none of those that are forbidden.
    fn has_header(&self, effect: Effect, name: &str, texts: &Texts) -> bool {
        let Some(http) = &self.http else { return true };
        let is = |one: &StringMatch, value: &[u8]| *one == StringMatch::Presence || text(one, value);
        let mut values = http.facts.values(name);
        let Some(first) = values.next() else { return texts.values.is_empty() };
        let mut forms = Forms::only(first);
        let rest: Vec<&[u8]> = values.collect();
        if rest.is_empty() {
            return forms.are(texts, effect, is);
        }
        // Repeated: each value is one that it has, and so is the joined one to who joins them.
        let any = |list: &[StringMatch]| {
            list.iter().any(|one| is(one, first) || rest.iter().any(|value| is(one, value)))
        };
        if effect != Effect::Deny {
            let joined = http.facts.joined(name).unwrap_or_default();
            let is_forbidden = any(&texts.not_values)
                || (effect == Effect::Allow && texts.not_values.iter().any(|one| is(one, &joined)));
            return (texts.values.is_empty() || any(&texts.values)) && !is_forbidden;
        }
        forms.others = rest.into_iter().map(Into::into).chain(http.facts.joined(name)).collect();
        forms.are(texts, effect, is)
    }

    fn is_principal(&self, effect: Effect, texts: &Texts) -> bool {
        if is_empty(texts) {
            return true;
        }
        let principal = self.principal.get_or_init(|| self.connection.peer.map(SpiffeId::principal));
        identity(effect, texts, principal.as_deref())
    }

    fn is_of(&self, effect: Effect, texts: &Texts, part: impl Fn(&SpiffeId) -> &str) -> bool {
        is_empty(texts) || identity(effect, texts, self.connection.peer.map(part))
    }

    fn is_account(&self, accounts: &Access<ServiceAccountMatch>) -> bool {
        one_of(accounts, |one| {
            self.connection.peer.is_some_and(|peer| {
                *one.namespace == *peer.namespace() && *one.service_account == *peer.service_account()
            })
        })
    }
}

/// Nobody proved an identity: that is none of those wanted, nor of those unwanted.
fn identity(effect: Effect, texts: &Texts, identity: Option<&str>) -> bool {
    match identity {
        Some(identity) => Forms::only(identity.as_bytes()).are(texts, effect, text),
        None => texts.values.is_empty(),
    }
}

fn needs_http(rule: &PolicyRule) -> bool {
    rule.to.iter().any(Operation::needs_http)
        || rule.when.iter().any(|condition| matches!(condition, Condition::RequestHeader { .. }))
}

fn is_empty<T>(access: &Access<T>) -> bool {
    access.values.is_empty() && access.not_values.is_empty()
}

fn one_of<T>(access: &Access<T>, is: impl Fn(&T) -> bool) -> bool {
    (access.values.is_empty() || access.values.iter().any(&is)) && !access.not_values.iter().any(&is)
}

fn is_within(nets: &Access<IpNet>, ip: IpAddr) -> bool {
    // A dual-stack listener reports IPv4 peers as ::ffff:a.b.c.d, which no IPv4 block contains.
    let ip = ip.to_canonical();
    one_of(nets, |net| canonical(*net).contains(&ip))
}

/// A block of IPv4-mapped addresses as the IPv4 block it means.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let mapped = v6.network().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped.and_then(|(ip, len)| Ipv4Net::new(ip, len).ok()).map_or(net, IpNet::V4)
}

fn is_path(one: &PathMatch, path: &[u8]) -> bool {
    match one {
        PathMatch::Text(one) => text(one, path),
        PathMatch::Template { text: _, pattern } => pattern.is_match(path),
    }
}

fn text(one: &StringMatch, text: &[u8]) -> bool {
    match one {
        StringMatch::Exact(want) => want.as_bytes() == text,
        StringMatch::Prefix(want) => text.starts_with(want.as_bytes()),
        StringMatch::Suffix(want) => text.ends_with(want.as_bytes()),
        StringMatch::Presence => !text.is_empty(),
    }
}

fn text_ignoring_case(one: &StringMatch, text: &[u8]) -> bool {
    let same =
        |part: Option<&[u8]>, want: &str| part.is_some_and(|part| part.eq_ignore_ascii_case(want.as_bytes()));
    match one {
        StringMatch::Exact(want) => same(Some(text), want),
        StringMatch::Prefix(want) => same(text.get(..want.len()), want),
        StringMatch::Suffix(want) => {
            same(text.len().checked_sub(want.len()).and_then(|at| text.get(at..)), want)
        }
        StringMatch::Presence => !text.is_empty(),
    }
}
