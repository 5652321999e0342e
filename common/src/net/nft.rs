//! Rules as nf_tables messages (`linux/netfilter/nf_tables.h`), and what the kernel holds read back.
//!
//! Everything goes through register 1. Expressions are written the way the kernel lists them, so that reading back gives
//! equal values; what we never write is read as [`Expr::Other`] and equals nothing.

use nix::errno::Errno;

use super::netlink::{Attr, AttrWriter, Header, Netlink, NetlinkError, Writer, attrs, find_attr, flag};
use super::rules::{Chain, ChainKind, Hook, MANGLE_TABLE, NAT_TABLE, Table};

mod expr;

pub use expr::{Expr, compile, decode, encode};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = NEW_TABLE | 1;
const DELETE_TABLE: u16 = NEW_TABLE | 2;
const NEW_CHAIN: u16 = NEW_TABLE | 3;
const GET_CHAIN: u16 = NEW_TABLE | 4;
const NEW_RULE: u16 = NEW_TABLE | 6;
const GET_RULE: u16 = NEW_TABLE | 7;

/// `nfgenmsg`: family, version, resource.
const HEAD: usize = 4;
const INET: [u8; HEAD] = [1, 0, 0, 0];
const ALL_FAMILIES: [u8; HEAD] = [0; HEAD];
/// inet, IPv4, IPv6.
const IP_FAMILIES: [u8; 3] = [1, 2, 10];
const BATCH: [u8; HEAD] = [0, 0, 0, 10];

/// `NFTA_TABLE_…`.
mod table {
    pub(super) const NAME: u16 = 1;
    pub(super) const FLAGS: u16 = 2;
}

/// `NFTA_CHAIN_…` and `NFTA_HOOK_…`.
mod chain {
    pub(super) const TABLE: u16 = 1;
    pub(super) const NAME: u16 = 3;
    pub(super) const HOOK: u16 = 4;
    pub(super) const POLICY: u16 = 5;
    pub(super) const KIND: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
}

/// `NFTA_RULE_…`.
mod rule {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const EXPRESSIONS: u16 = 4;
}

/// `NF_ACCEPT`.
const ACCEPT: i32 = 1;

/// Puts `set` in the place of whatever the tables hold, in one transaction.
pub(super) fn replace(netlink: &mut Netlink, set: &[Table]) -> Result<(), NetlinkError> {
    replacement(netlink.next_seq(), set).commit(netlink)
}

fn replacement(first: u32, set: &[Table]) -> Batch {
    let mut batch = Batch::new(first);
    for table in set {
        batch.delete_table(table.name);
        batch.add(NEW_TABLE, flag::CREATE, |out| out.put_str(table::NAME, table.name));
        for chain in &table.chains {
            batch.add(NEW_CHAIN, flag::CREATE, |out| write_chain(table.name, chain, out));
            for rule in &chain.rules {
                let flags = flag::CREATE | flag::APPEND;
                batch.add(NEW_RULE, flags, |out| write_rule(table.name, chain.name, &compile(rule), out));
            }
        }
    }
    batch
}

/// Removes a table with all it holds, if it exists.
pub(super) fn remove(netlink: &mut Netlink, table: &str) -> Result<(), NetlinkError> {
    let mut batch = Batch::new(netlink.next_seq());
    batch.delete_table(table);
    batch.commit(netlink)
}

/// A transaction in the making.
struct Batch {
    messages: Writer,
    /// Number of the last message.
    seq: u32,
}

impl Batch {
    fn new(first: u32) -> Self {
        let mut messages = Writer::default();
        messages.message(Header { kind: BATCH_BEGIN, flags: flag::REQUEST, seq: first }, &BATCH, |_| {});
        Self { messages, seq: first }
    }

    fn add(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut AttrWriter<'_>)) {
        self.seq = self.seq.wrapping_add(1);
        self.messages.message(Header { kind, flags: flags | flag::REQUEST, seq: self.seq }, &INET, fill);
    }

    /// A table that does not exist cannot be deleted, so it is made first.
    fn delete_table(&mut self, name: &str) {
        self.add(NEW_TABLE, flag::CREATE, |out| out.put_str(table::NAME, name));
        self.add(DELETE_TABLE, 0, |out| out.put_str(table::NAME, name));
    }

    /// Closes the batch: the last message in it is acknowledged, which the kernel does after the commit.
    fn close(&mut self) {
        self.messages.acknowledge_last();
        let end = Header { kind: BATCH_END, flags: flag::REQUEST, seq: self.seq.wrapping_add(1) };
        self.messages.message(end, &BATCH, |_| {});
    }

    fn commit(mut self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        self.close();
        netlink.apply(&self.messages, self.seq)
    }
}

fn write_chain(table: &str, about: &Chain, out: &mut AttrWriter<'_>) {
    out.put_str(chain::TABLE, table);
    out.put_str(chain::NAME, about.name);
    out.nest(chain::HOOK, |out| {
        out.put_be32(chain::HOOK_NUMBER, hook_number(about.hook));
        out.put_be32(chain::HOOK_PRIORITY, about.priority.cast_unsigned());
    });
    out.put_be32(chain::POLICY, ACCEPT.cast_unsigned());
    out.put_str(chain::KIND, kind_name(about.kind));
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Output => 3,
    }
}

fn kind_name(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Route => "route",
        ChainKind::Nat => "nat",
    }
}

fn write_rule(table: &str, chain: &str, exprs: &[Expr], out: &mut AttrWriter<'_>) {
    out.put_str(rule::TABLE, table);
    out.put_str(rule::CHAIN, chain);
    out.nest(rule::EXPRESSIONS, |out| exprs.iter().for_each(|expr| encode(expr, out)));
}

/// Names of all tables, of every family.
pub(super) fn tables(netlink: &mut Netlink) -> Result<Vec<String>, NetlinkError> {
    let found = netlink.dump(GET_TABLE, &ALL_FAMILIES, |_| {})?;
    Ok(found.iter().map(|body| text(body, table::NAME)).collect())
}

/// Table and name of all chains, of every family.
pub(super) fn chains(netlink: &mut Netlink) -> Result<Vec<(String, String)>, NetlinkError> {
    let found = netlink.dump(GET_CHAIN, &ALL_FAMILIES, |_| {})?;
    Ok(found.iter().map(|body| (text(body, chain::TABLE), text(body, chain::NAME))).collect())
}

/// Chains of other tables that may redirect what a pod sends or receives, at `priority` or before it.
pub(super) fn redirecting_before(netlink: &mut Netlink, priority: i32) -> Result<Vec<String>, NetlinkError> {
    let found = netlink.dump(GET_CHAIN, &ALL_FAMILIES, |_| {})?;
    Ok(found.iter().filter_map(|body| overtaking(body, priority)).collect())
}

fn overtaking(body: &[u8], priority: i32) -> Option<String> {
    let hook = attr(body, chain::HOOK)?;
    let number = find_attr(hook.value, chain::HOOK_NUMBER)?.be32()?;
    let at = find_attr(hook.value, chain::HOOK_PRIORITY)?.be32()?.cast_signed();
    let (family, table, name) = (body.first()?, text(body, chain::TABLE), text(body, chain::NAME));
    let is_ours = [NAT_TABLE, MANGLE_TABLE].contains(&table.as_str());
    let redirects = text(body, chain::KIND) == kind_name(ChainKind::Nat)
        && [hook_number(Hook::Prerouting), hook_number(Hook::Output)].contains(&number)
        && IP_FAMILIES.contains(family);
    (redirects && !is_ours && at <= priority).then(|| format!("{table} {name} at priority {at}"))
}

/// Whether a table of ours holds any rule.
pub(super) fn has_rules(netlink: &mut Netlink, name: &str) -> Result<bool, NetlinkError> {
    let of_table = |out: &mut AttrWriter<'_>| out.put_str(rule::TABLE, name);
    match netlink.dump(GET_RULE, &INET, of_table) {
        // No such table.
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
        found => Ok(!found?.is_empty()),
    }
}

/// How a table in force differs from `table`, in words.
pub(super) fn differences(netlink: &mut Netlink, table: &Table) -> Result<Vec<String>, NetlinkError> {
    let tables = netlink.dump(GET_TABLE, &INET, |_| {})?;
    let Some(there) = tables.iter().find(|body| text(body, table::NAME) == table.name) else {
        return Ok(vec![format!("table {} is missing", table.name)]);
    };
    let mut found = Vec::new();
    if attr(there, table::FLAGS).and_then(|flags| flags.be32()).unwrap_or(0) != 0 {
        // Dormant: listed as ever, and without effect.
        found.push(format!("table {} has flags set (dormant?)", table.name));
    }
    let mut of_table = netlink.dump(GET_CHAIN, &INET, |_| {})?;
    of_table.retain(|body| text(body, chain::TABLE) == table.name);
    for body in &of_table {
        let name = text(body, chain::NAME);
        if !table.chains.iter().any(|chain| chain.name == name) {
            found.push(format!("chain {} {name} is not ours", table.name));
        }
    }
    for chain in &table.chains {
        let there = of_table.iter().find(|body| text(body, chain::NAME) == chain.name);
        match there {
            None => found.push(format!("chain {} {} is missing", table.name, chain.name)),
            Some(body) if !is_chain(body, chain) => {
                found.push(format!("chain {} {} has another hook, type or policy", table.name, chain.name));
            }
            Some(_) => rule_differences(netlink, table.name, chain, &mut found)?,
        }
    }
    Ok(found)
}

fn is_chain(body: &[u8], wanted: &Chain) -> bool {
    let hook = attr(body, chain::HOOK);
    let in_hook = |kind| find_attr(hook.as_ref()?.value, kind)?.be32();
    in_hook(chain::HOOK_NUMBER) == Some(hook_number(wanted.hook))
        && in_hook(chain::HOOK_PRIORITY) == Some(wanted.priority.cast_unsigned())
        && attr(body, chain::POLICY).and_then(|policy| policy.be32()) == Some(ACCEPT.cast_unsigned())
        && text(body, chain::KIND) == kind_name(wanted.kind)
}

fn rule_differences(
    netlink: &mut Netlink,
    table: &str,
    chain: &Chain,
    found: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    let there = netlink.dump(GET_RULE, &INET, |out| {
        out.put_str(rule::TABLE, table);
        out.put_str(rule::CHAIN, chain.name);
    })?;
    let mut there = there.iter().map(|body| read_rule(body));
    for (number, wanted) in chain.rules.iter().enumerate() {
        let place = || format!("rule {} of {table} {}", number + 1, chain.name);
        match there.next() {
            None => found.push(format!("{} ({wanted}) is missing", place())),
            Some(seen) if seen != compile(wanted) => {
                found.push(format!("{} is not ({wanted}), but {}", place(), describe(&seen)));
                // What follows is moved by one, most likely: naming it all helps nobody.
                return Ok(());
            }
            Some(_) => {}
        }
    }
    let more = there.count();
    if more > 0 {
        found.push(format!("{table} {} has {more} more rules than ours", chain.name));
    }
    Ok(())
}

/// The expressions of a listed rule.
pub fn read_rule(body: &[u8]) -> Vec<Expr> {
    let list = attr(body, rule::EXPRESSIONS).map(|attr| attr.value).unwrap_or_default();
    attrs(list)
        .map(|element| match element {
            Ok(element) => decode(element.value),
            Err(malformed) => Expr::Other(malformed.to_string()),
        })
        .collect()
}

fn describe(exprs: &[Expr]) -> String {
    format!("{exprs:x?}")
}

fn attr(body: &[u8], kind: u16) -> Option<Attr<'_>> {
    find_attr(body.get(HEAD..).unwrap_or_default(), kind)
}

fn text(body: &[u8], kind: u16) -> String {
    attr(body, kind).map(|attr| attr.text().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
