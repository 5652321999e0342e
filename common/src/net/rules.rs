//! The capture rules of one pod: what they are, how they get into its namespace, whether they are still there.
//!
//! The reference's matches, actions and order (nftables form), in tables of our own. Base chains stand one before the
//! standard priorities, so the first redirect a packet meets is ours, whoever registered first. An `accept` here only ends
//! our own chain: chains of other tables at later priorities still see the packet, and may still drop it; for a nat rule
//! the translation chosen here stays.
//!
//! A packet that the node agent sends carries [`CaptureSpec::mark`] and is never redirected. Where the agent connects to
//! the pod's app with a foreign source address, the connection gets [`RETURN_MARK`]; the app's answers take the mark over,
//! and the policy rule sends them to a table that delivers everything locally, back to the agent.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::netlink::{Netlink, NetlinkError};
use super::{conntrack, nft, routing};

mod audit;

pub use audit::{Difference, Mended, Part, is_capturing, mend};

/// Mark of connections whose answers must come back to the agent.
pub const RETURN_MARK: u32 = 0x111;
/// The bits of a mark that the rules look at.
pub const MARK_MASK: u32 = 0xfff;
/// Table of address translation rules.
pub const NAT_TABLE: &str = "culvert-nat";
/// Table of rules that set marks.
pub const MANGLE_TABLE: &str = "culvert-mangle";

/// Interfaces that [`CaptureSpec::reroute_interfaces`] may name.
const REROUTE_MAX: usize = 32;
/// Things of one kind named in one message.
const NAMED_MAX: usize = 8;
/// Before whatever stands at the standard priority of address translation.
const NAT_PRIORITY: i32 = -101;
/// Before whatever stands at the standard priority of marks.
const MANGLE_PRIORITY: i32 = -151;
/// Before the kernel's connection tracking, and whatever stands at the standard priority there.
const ZONE_PRIORITY: i32 = -301;
/// Zone of connection tracking for the agent's own DNS queries: the pod's, which have the same addresses and may have the
/// same ports, are in the other.
const DNS_ZONE: u16 = 1;
const DNS_PORT: u16 = 53;
/// How the tables and chains begin that other meshes leave in a pod.
const FOREIGN_TABLES: [&str; 1] = ["istio-ambient-"];
const FOREIGN_CHAINS: [&str; 2] = ["ISTIO_", "PROXY_INIT_"];

/// What is to be captured in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSpec {
    /// Capture IPv6 too.
    pub ipv6: bool,
    /// Redirect what arrives; false for pods that take their inbound traffic themselves (ingress mode).
    pub inbound: bool,
    /// Interfaces of virtual machines or nested containers: what arrives there counts as outbound.
    pub reroute_interfaces: Vec<Arc<str>>,
    /// Mark of the agent's own sockets.
    pub mark: u32,
    /// Source address of the kubelet's probes, never redirected.
    pub probe_v4: Ipv4Addr,
    /// The same for IPv6.
    pub probe_v6: Ipv6Addr,
    /// Where the agent takes what the pod sends.
    pub outbound_port: u16,
    /// Where the agent takes what arrives outside a tunnel.
    pub inbound_port: u16,
    /// Where the agent takes tunnels; what arrives for it is not redirected.
    pub hbone_port: u16,
    /// Where the agent takes the pod's DNS queries, by UDP and TCP; none leaves them alone.
    pub dns_port: Option<u16>,
    /// Go on beside the rules of another mesh instead of refusing; nothing of theirs is touched.
    pub adopt: bool,
}

impl Default for CaptureSpec {
    fn default() -> Self {
        Self {
            ipv6: true,
            inbound: true,
            reroute_interfaces: Vec::new(),
            mark: 0x539,
            probe_v4: Ipv4Addr::new(169, 254, 7, 127),
            probe_v6: Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff),
            outbound_port: 15001,
            inbound_port: 15006,
            hbone_port: 15008,
            dns_port: Some(15053),
            adopt: false,
        }
    }
}

/// Why rules could not be written, checked or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// The kernel or the way to it.
    #[error(
        "{step}: {source}; check that the agent has CAP_NET_ADMIN and the kernel nf_tables with nat and redirect"
    )]
    Netlink {
        /// What was being done, for instance "listing tables".
        step: &'static str,
        /// What went wrong.
        source: NetlinkError,
    },
    /// What is in force is not what was asked for.
    #[error("the capture rules in force differ: {}; check what else changes them in this namespace", audit::list(.0))]
    Differs(Vec<Difference>),
    /// Rules of another mesh.
    #[error(
        "rules of another mesh are in this namespace ({}): take the pod out of that mesh and restart it, or set adopt",
        .seen.join(", ")
    )]
    ForeignMesh {
        /// Tables by name, chains as "table chain"; the first few.
        seen: Vec<String>,
    },
    /// No interface can have this name.
    #[error(
        "{name:?} is not an interface name (1 to 15 bytes, no space, no slash): check the pod's annotation"
    )]
    Interface {
        /// As given.
        name: Arc<str>,
    },
    /// More interfaces than a pod has.
    #[error("{found} interfaces to reroute, at most {REROUTE_MAX} allowed: check the pod's annotation")]
    Interfaces {
        /// How many were given.
        found: usize,
    },
}

/// What [`install`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// False when everything was in force already, and nothing was written.
    pub changed: bool,
    /// Whether IPv6 answers find their way back; false when IPv6 is off in the namespace or not wanted.
    pub ipv6: bool,
    /// What of another mesh was seen and left alone.
    pub adopted: Vec<String>,
    /// Connections that were open already and go on past the agent until they end.
    pub open_before: usize,
}

/// Puts the rules in force in the current namespace and checks them: routes, policy rules, then all redirects and marks
/// of both families in one transaction. Call it inside `NetNs::run`.
///
/// Repeating it changes nothing; older rules of ours are replaced in one step, without a moment between. Connections open
/// before the rules are not captured: they go on as they were.
/// It blocks the thread for some 10 ms, most of it the kernel's.
/// Errors: [`RulesError`]; after [`RulesError::Differs`] the rules are written, but something interferes.
pub fn install(spec: &CaptureSpec) -> Result<Installed, RulesError> {
    let set = ruleset(spec)?;
    let mut netfilter = step("opening netfilter", Netlink::netfilter())?;
    let mut route = step("opening rtnetlink", Netlink::route())?;
    let adopted = foreign(&mut netfilter)?;
    if !spec.adopt && !adopted.is_empty() {
        return Err(RulesError::ForeignMesh { seen: adopted });
    }
    let ipv6 = has_ipv6(spec, &mut route)?;
    let changed = !differences(&set, ipv6, &mut netfilter, &mut route)?.is_empty();
    let open_before = if changed { write(&set, ipv6, &mut netfilter, &mut route)? } else { 0 };
    Ok(Installed { changed, ipv6, adopted, open_before })
}

/// Writes everything and checks it; returns how many connections were open that the kernel did not track yet.
fn write(
    set: &[Table],
    ipv6: bool,
    netfilter: &mut Netlink,
    route: &mut Netlink,
) -> Result<usize, RulesError> {
    routing::install(route, ipv6)?;
    // Before the open connections are listed: those that come in between are tracked from their first packet.
    if !step("listing tables", nft::tables(netfilter))?.iter().any(|table| table == NAT_TABLE) {
        step("turning on connection tracking", nft::replace(netfilter, &without_redirects(set)))?;
    }
    let open_before = conntrack::keep_open(netfilter).unwrap_or_else(|error| {
        tracing::warn!(%error, "connections that are open already may hang: no connection tracking over netlink");
        0
    });
    step("writing the capture rules", nft::replace(netfilter, set))?;
    check(differences(set, ipv6, netfilter, route)?)?;
    Ok(open_before)
}

fn has_ipv6(spec: &CaptureSpec, route: &mut Netlink) -> Result<bool, RulesError> {
    Ok(spec.ipv6 && step("reading the loopback interface", routing::ipv6_enabled(route))?)
}

/// Whether exactly the rules of [`install`] are in force in the current namespace.
///
/// Errors: [`RulesError::Differs`] names what is missing, changed or too much.
pub fn verify(spec: &CaptureSpec) -> Result<(), RulesError> {
    let set = ruleset(spec)?;
    let mut netfilter = step("opening netfilter", Netlink::netfilter())?;
    let mut route = step("opening rtnetlink", Netlink::route())?;
    let ipv6 = has_ipv6(spec, &mut route)?;
    check(differences(&set, ipv6, &mut netfilter, &mut route)?)
}

/// Takes the redirects out of the current namespace: new connections go past us, those that are open still find their way
/// there and back. What is not there is no error.
///
/// The chains stay, empty: with its last chain the kernel would give up translating open connections too.
pub fn remove_redirects() -> Result<(), RulesError> {
    let mut netfilter = step("opening netfilter", Netlink::netfilter())?;
    if !step("listing tables", nft::tables(&mut netfilter))?.iter().any(|table| table == NAT_TABLE) {
        return Ok(());
    }
    let mut set = without_redirects(&ruleset(&CaptureSpec::default())?);
    set.retain(|table| table.name == NAT_TABLE);
    step("removing the redirects", nft::replace(&mut netfilter, &set))
}

/// Takes everything out of the current namespace again: redirects, marks, policy rules, routes, in this order, so that no
/// connection is redirected whose answers could not come back. What is not there is no error. Drain first: captured
/// connections still open break, as the translation goes with the rules.
pub fn remove() -> Result<(), RulesError> {
    let mut netfilter = step("opening netfilter", Netlink::netfilter())?;
    step("removing the redirects", nft::remove(&mut netfilter, NAT_TABLE))?;
    step("removing the marks", nft::remove(&mut netfilter, MANGLE_TABLE))?;
    routing::remove(&mut step("opening rtnetlink", Netlink::route())?)
}

/// The same chains, but nothing is redirected: the kernel tracks connections and translates those that it did before.
fn without_redirects(set: &[Table]) -> Vec<Table> {
    let mut set = set.to_vec();
    let nat = set.iter_mut().filter(|table| table.name == NAT_TABLE);
    nat.flat_map(|table| &mut table.chains).for_each(|chain| chain.rules.clear());
    set
}

pub(super) fn step<T>(step: &'static str, result: Result<T, NetlinkError>) -> Result<T, RulesError> {
    result.map_err(|source| RulesError::Netlink { step, source })
}

fn check(differences: Vec<Difference>) -> Result<(), RulesError> {
    if differences.is_empty() { Ok(()) } else { Err(RulesError::Differs(differences)) }
}

fn differences(
    set: &[Table],
    ipv6: bool,
    netfilter: &mut Netlink,
    route: &mut Netlink,
) -> Result<Vec<Difference>, RulesError> {
    let mut found = Vec::new();
    for table in set {
        let part = if table.name == NAT_TABLE { Part::Redirects } else { Part::Marks };
        let seen = step("reading the rules", nft::differences(netfilter, table))?;
        found.extend(seen.into_iter().map(|seen| Difference { part, seen }));
    }
    found.extend(routing::differences(route, ipv6)?);
    Ok(found)
}

fn foreign(netfilter: &mut Netlink) -> Result<Vec<String>, RulesError> {
    let mut seen = step("listing tables", nft::tables(netfilter))?;
    seen.retain(|name| FOREIGN_TABLES.iter().any(|start| name.starts_with(start)));
    for (table, chain) in step("listing chains", nft::chains(netfilter))? {
        if FOREIGN_CHAINS.iter().any(|start| chain.starts_with(start)) {
            seen.push(format!("{table} {chain}"));
        }
    }
    seen.truncate(NAMED_MAX);
    Ok(seen)
}

/// A table of family `inet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// [`NAT_TABLE`] or [`MANGLE_TABLE`].
    pub name: &'static str,
    /// In the order they are written; their hooks and priorities decide when they run.
    pub chains: Vec<Chain>,
}

/// A base chain; its policy is accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Unique in its table.
    pub name: &'static str,
    /// What its rules may do.
    pub kind: ChainKind,
    /// Where packets meet it.
    pub hook: Hook,
    /// Among the chains of a hook the lowest runs first; the standard ones are -150 (mangle) and -100 (nat).
    pub priority: i32,
    /// Tried in this order.
    pub rules: Vec<Rule>,
}

/// What a chain's rules may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// As `Filter`, and the packet is routed anew when its mark changed.
    Route,
    /// Sees the first packet of each connection.
    Nat,
}

/// Where packets meet a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What arrives, before it is routed.
    Prerouting,
    /// What sockets in the namespace send, the agent's among them.
    Output,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One rule: what it holds for, and what it does. All rules count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// None: both.
    pub family: Option<Family>,
    /// All must hold.
    pub matches: Vec<Match>,
    /// What happens then.
    pub action: Action,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Arrived on the interface of exactly this name, at most 15 bytes.
    InInterface(Arc<str>),
    /// Leaves through the loopback interface.
    OutLoopback,
    /// Leaves through any other interface.
    NotOutLoopback,
    /// Comes from this address.
    Source(IpAddr),
    /// Goes to this address.
    Destination(IpAddr),
    /// Goes to any other address of the rule's family.
    NotDestination(IpAddr),
    /// Is TCP.
    Tcp,
    /// Is UDP.
    Udp,
    /// Comes from this port; stands after [`Match::Tcp`] or [`Match::Udp`].
    SourcePort(u16),
    /// Goes to this port; stands after [`Match::Tcp`] or [`Match::Udp`].
    DestinationPort(u16),
    /// Goes to any other port; stands after [`Match::Tcp`].
    NotDestinationPort(u16),
    /// The packet's mark, in the bits of [`MARK_MASK`].
    Mark(u32),
    /// The packet's mark is any other, in the bits of [`MARK_MASK`].
    NotMark(u32),
    /// The connection's mark, in the bits of [`MARK_MASK`].
    ConnectionMark(u32),
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To this port of the machine itself.
    Redirect(u16),
    /// Ends the chain; chains at later priorities still see the packet.
    Accept,
    /// Ends the chain, with its policy; that is accept.
    Return,
    /// Sets the connection's mark in the bits of [`MARK_MASK`].
    SetConnectionMark(u32),
    /// The packet takes over the connection's mark.
    RestoreMark,
    /// The packet's connection is tracked in this zone.
    SetZone(u16),
}

/// The rules for a specification, as data.
///
/// Errors: an interface name that cannot be one.
pub fn ruleset(spec: &CaptureSpec) -> Result<Vec<Table>, RulesError> {
    if spec.reroute_interfaces.len() > REROUTE_MAX {
        return Err(RulesError::Interfaces { found: spec.reroute_interfaces.len() });
    }
    let wrong = |name: &&Arc<str>| {
        let odd = |byte: u8| byte <= b' ' || byte == b'/' || byte == 0x7f;
        name.is_empty() || name.len() > 15 || name.bytes().any(odd)
    };
    if let Some(name) = spec.reroute_interfaces.iter().find(wrong) {
        return Err(RulesError::Interface { name: name.clone() });
    }
    let families: &[Family] = if spec.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
    let chain = |name, kind, hook, priority, rules| Chain { name, kind, hook, priority, rules };
    let nat = vec![
        chain("prerouting", ChainKind::Nat, Hook::Prerouting, NAT_PRIORITY, nat_prerouting(spec, families)),
        chain("output", ChainKind::Nat, Hook::Output, NAT_PRIORITY, nat_output(spec, families)),
    ];
    let set = Rule {
        family: None,
        matches: vec![Match::Mark(spec.mark)],
        action: Action::SetConnectionMark(RETURN_MARK),
    };
    let restore =
        Rule { family: None, matches: vec![Match::ConnectionMark(RETURN_MARK)], action: Action::RestoreMark };
    let mut mangle = vec![
        chain("prerouting", ChainKind::Filter, Hook::Prerouting, MANGLE_PRIORITY, vec![set]),
        chain("output", ChainKind::Route, Hook::Output, MANGLE_PRIORITY, vec![restore]),
    ];
    if spec.dns_port.is_some() {
        let [answers, queries] = dns_zones(spec);
        mangle.extend([
            chain("zone-prerouting", ChainKind::Filter, Hook::Prerouting, ZONE_PRIORITY, vec![answers]),
            chain("zone-output", ChainKind::Filter, Hook::Output, ZONE_PRIORITY, vec![queries]),
        ]);
    }
    Ok(vec![Table { name: MANGLE_TABLE, chains: mangle }, Table { name: NAT_TABLE, chains: nat }])
}

fn nat_prerouting(spec: &CaptureSpec, families: &[Family]) -> Vec<Rule> {
    let mut rules = Vec::new();
    let each = |rules: &mut Vec<Rule>, matches: &dyn Fn(Family) -> Vec<Match>, action| {
        rules.extend(families.iter().map(|&family| Rule {
            family: Some(family),
            matches: matches(family),
            action,
        }));
    };
    for name in &spec.reroute_interfaces {
        let arriving = |_| vec![Match::InInterface(name.clone()), Match::Tcp];
        each(&mut rules, &arriving, Action::Redirect(spec.outbound_port));
        // Never reached while the redirect stands before it; the reference has it too.
        each(&mut rules, &arriving, Action::Return);
    }
    if spec.inbound {
        each(&mut rules, &|family| vec![Match::Source(probe(spec, family)), Match::Tcp], Action::Accept);
        let inbound = |family| {
            vec![
                Match::NotDestination(localhost(family)),
                Match::Tcp,
                Match::NotDestinationPort(spec.hbone_port),
                Match::NotMark(spec.mark),
            ]
        };
        each(&mut rules, &inbound, Action::Redirect(spec.inbound_port));
    }
    rules
}

fn nat_output(spec: &CaptureSpec, families: &[Family]) -> Vec<Rule> {
    let each = |matches: &dyn Fn(Family) -> Vec<Match>, action| -> Vec<Rule> {
        let rule = |&family: &Family| Rule { family: Some(family), matches: matches(family), action };
        families.iter().map(rule).collect()
    };
    let mut rules = each(&|family| vec![Match::Destination(probe(spec, family)), Match::Tcp], Action::Accept);
    rules.extend(dns_redirects(spec, families));
    rules.push(Rule {
        family: None,
        matches: vec![Match::Tcp, Match::Mark(RETURN_MARK)],
        action: Action::Accept,
    });
    let to_itself = |family| vec![Match::NotDestination(localhost(family)), Match::OutLoopback];
    rules.extend(each(&to_itself, Action::Accept));
    let outbound =
        |family| vec![Match::NotDestination(localhost(family)), Match::Tcp, Match::NotMark(spec.mark)];
    rules.extend(each(&outbound, Action::Redirect(spec.outbound_port)));
    rules
}

/// The redirects of queries, before those of other connections.
fn dns_redirects(spec: &CaptureSpec, families: &[Family]) -> Vec<Rule> {
    let Some(port) = spec.dns_port else { return Vec::new() };
    let udp =
        [Match::NotOutLoopback, Match::Udp, Match::DestinationPort(DNS_PORT), Match::NotMark(spec.mark)];
    let mut rules = vec![Rule { family: None, matches: udp.into(), action: Action::Redirect(port) }];
    rules.extend(families.iter().map(|&family| Rule {
        family: Some(family),
        matches: vec![
            Match::NotDestination(localhost(family)),
            Match::Tcp,
            Match::DestinationPort(DNS_PORT),
            Match::NotMark(spec.mark),
        ],
        action: Action::Redirect(port),
    }));
    rules
}

/// What keeps the agent's queries apart from the pod's: answers that arrive, queries that leave.
fn dns_zones(spec: &CaptureSpec) -> [Rule; 2] {
    let rule = |matches: [Match; 3]| Rule {
        family: None,
        matches: matches.into(),
        action: Action::SetZone(DNS_ZONE),
    };
    [
        rule([Match::Udp, Match::SourcePort(DNS_PORT), Match::NotMark(spec.mark)]),
        rule([Match::Udp, Match::DestinationPort(DNS_PORT), Match::Mark(spec.mark)]),
    ]
}

/// The one address per family that stays local: not 127.0.0.0/8, as with the reference.
fn localhost(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn probe(spec: &CaptureSpec, family: Family) -> IpAddr {
    match family {
        Family::V4 => spec.probe_v4.into(),
        Family::V6 => spec.probe_v6.into(),
    }
}

impl fmt::Display for Rule {
    /// As `nft` would print it, roughly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Some(Family::V4) => f.write_str("ip ")?,
            Some(Family::V6) => f.write_str("ip6 ")?,
            None => {}
        }
        for matched in &self.matches {
            match matched {
                Match::InInterface(name) => write!(f, "iifname {name} "),
                Match::OutLoopback => write!(f, "oif lo "),
                Match::NotOutLoopback => write!(f, "oif != lo "),
                Match::Source(ip) => write!(f, "saddr {ip} "),
                Match::Destination(ip) => write!(f, "daddr {ip} "),
                Match::NotDestination(ip) => write!(f, "daddr != {ip} "),
                Match::Tcp => write!(f, "tcp "),
                Match::Udp => write!(f, "udp "),
                Match::SourcePort(port) => write!(f, "sport {port} "),
                Match::DestinationPort(port) => write!(f, "dport {port} "),
                Match::NotDestinationPort(port) => write!(f, "dport != {port} "),
                Match::Mark(mark) => write!(f, "mark & {MARK_MASK:#x} == {mark:#x} "),
                Match::NotMark(mark) => write!(f, "mark & {MARK_MASK:#x} != {mark:#x} "),
                Match::ConnectionMark(mark) => write!(f, "ct mark & {MARK_MASK:#x} == {mark:#x} "),
            }?;
        }
        match self.action {
            Action::Redirect(port) => write!(f, "redirect to :{port}"),
            Action::Accept => f.write_str("accept"),
            Action::Return => f.write_str("return"),
            Action::SetConnectionMark(mark) => {
                write!(f, "ct mark set ct mark & {:#x} | {mark:#x}", !MARK_MASK)
            }
            Action::RestoreMark => f.write_str("mark set ct mark"),
            Action::SetZone(zone) => write!(f, "ct zone set {zone}"),
        }
    }
}

#[cfg(test)]
mod tests;
