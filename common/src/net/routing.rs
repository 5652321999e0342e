//! The way back of the app's answers: a policy rule per family, and a table that delivers everything locally.

use nix::errno::Errno;
use nix::libc;

use super::netlink::{AttrWriter, Header, Netlink, NetlinkError, Writer, attrs, find_attr, flag, u32_at};
use super::rules::{Difference, Family, MARK_MASK, Part as RulesPart, RETURN_MARK, RulesError, step};

const TABLE: u8 = 100;
const PREFERENCE: u32 = 32764;
/// In every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Equal rules removed at most: more than one exists only when somebody added them.
const EQUAL_RULES_MAX: usize = 8;

const GET_LINK: u16 = libc::RTM_GETLINK;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;
/// Ours to know it by; the kernel gives it no meaning.
const PROTOCOL_STATIC: u8 = 4;

/// `fib_rule_hdr` and its attributes, `FRA_…`.
mod rule {
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const MARK: u16 = 10;
    pub(super) const TABLE: u16 = 15;
    pub(super) const MASK: u16 = 16;
    pub(super) const HEAD: usize = 12;
}

/// `rtmsg` and its attributes, `RTA_…`.
mod route {
    pub(super) const OUT_INTERFACE: u16 = 4;
    pub(super) const TABLE: u16 = 15;
    pub(super) const HEAD: usize = 12;
}

/// `ifinfomsg` and its attributes, `IFLA_…`.
mod link {
    pub(super) const PER_FAMILY: u16 = 26;
    pub(super) const IPV6_SETTINGS: u16 = 2;
    pub(super) const HEAD: usize = 16;
    /// Index of `DEVCONF_DISABLE_IPV6` in the settings, an array of 4-byte numbers.
    pub(super) const DISABLE_IPV6: usize = 26;
}

/// Whether the loopback interface of the namespace has IPv6.
pub(super) fn ipv6_enabled(netlink: &mut Netlink) -> Result<bool, NetlinkError> {
    let mut head = [0; link::HEAD];
    if let Some(place) = head.get_mut(4..8) {
        place.copy_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    }
    let about = netlink.get(GET_LINK, &head)?;
    let attributes = about.get(link::HEAD..).unwrap_or_default();
    let disabled = find_attr(attributes, link::PER_FAMILY)
        .and_then(|families| find_attr(families.value, family_number(Family::V6).into()))
        .and_then(|ipv6| find_attr(ipv6.value, link::IPV6_SETTINGS))
        .and_then(|settings| u32_at(settings.value, link::DISABLE_IPV6 * 4));
    Ok(disabled == Some(0))
}

/// Writes routes, then policy rules; those that exist are left.
pub(super) fn install(netlink: &mut Netlink, ipv6: bool) -> Result<(), RulesError> {
    for &family in families(ipv6) {
        let flags = flag::CREATE | flag::REPLACE;
        step("writing the return route", request(netlink, libc::RTM_NEWROUTE, flags, Part::Route(family)))?;
    }
    for &family in families(ipv6) {
        let flags = flag::CREATE | flag::EXCLUSIVE;
        match request(netlink, libc::RTM_NEWRULE, flags, Part::Rule(family)) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            other => step("writing the policy rule", other)?,
        }
    }
    Ok(())
}

/// Removes policy rules, then routes, of both families.
pub(super) fn remove(netlink: &mut Netlink) -> Result<(), RulesError> {
    for &family in families(true) {
        for _ in 0..EQUAL_RULES_MAX {
            let done = request(netlink, libc::RTM_DELRULE, 0, Part::Rule(family));
            if !existed("removing the policy rule", done)? {
                break;
            }
        }
    }
    for &family in families(true) {
        existed("removing the return route", request(netlink, libc::RTM_DELROUTE, 0, Part::Route(family)))?;
    }
    Ok(())
}

fn existed(what: &'static str, done: Result<(), NetlinkError>) -> Result<bool, RulesError> {
    match done.as_ref().err().and_then(NetlinkError::errno) {
        // The last two: a kernel without IPv6.
        Some(Errno::ENOENT | Errno::ESRCH | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => Ok(false),
        _ => step(what, done).map(|()| true),
    }
}

/// What is missing of rules and routes.
pub(super) fn differences(netlink: &mut Netlink, ipv6: bool) -> Result<Vec<Difference>, RulesError> {
    let mut missing = Vec::new();
    for &family in families(ipv6) {
        let name = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        if !step("reading the policy rules", has_rule(netlink, family))? {
            let wanted = format!("fwmark {RETURN_MARK:#x}/{MARK_MASK:#x} lookup {TABLE}");
            let seen = format!("the {name} policy rule {PREFERENCE} ({wanted}) is missing");
            missing.push(Difference { part: RulesPart::PolicyRule, seen });
        }
        if !step("reading the return route", has_route(netlink, family))? {
            let seen = format!("table {TABLE} lacks the {name} route \"local default dev lo\"");
            missing.push(Difference { part: RulesPart::Route, seen });
        }
    }
    Ok(missing)
}

fn has_rule(netlink: &mut Netlink, family: Family) -> Result<bool, NetlinkError> {
    let mut head = [0; rule::HEAD];
    head[0] = family_number(family);
    let found = netlink.dump(libc::RTM_GETRULE, &head, |_| {})?;
    Ok(found.iter().any(|body| is_our_rule(body)))
}

fn is_our_rule(body: &[u8]) -> bool {
    let Some((head, attributes)) = body.split_at_checked(rule::HEAD) else { return false };
    let has = |kind, wanted| find_attr(attributes, kind).and_then(|attr| attr.u32()) == Some(wanted);
    // Source and destination length, TOS, flags (inverted): a rule narrower than ours is not ours.
    let plain = [1, 2, 3, 8, 9, 10, 11].iter().all(|&at| head.get(at) == Some(&0));
    plain
        && head.get(7) == Some(&TO_TABLE)
        && has(rule::PRIORITY, PREFERENCE)
        && has(rule::MARK, RETURN_MARK)
        && has(rule::MASK, MARK_MASK)
        && has(rule::TABLE, TABLE.into())
        // Interfaces, uids, protocols and ports.
        && attrs(attributes).map_while(Result::ok).all(|attr| ![3, 17, 20, 22, 23, 24].contains(&attr.kind))
}

fn has_route(netlink: &mut Netlink, family: Family) -> Result<bool, NetlinkError> {
    let mut head = [0; route::HEAD];
    head[0] = family_number(family);
    let in_table = |out: &mut AttrWriter<'_>| out.put_u32(route::TABLE, TABLE.into());
    let found = match netlink.dump(libc::RTM_GETROUTE, &head, in_table) {
        // No such table: no route was ever in it.
        Err(error) if error.errno() == Some(Errno::ENOENT) => Vec::new(),
        found => found?,
    };
    Ok(found.iter().any(|body| is_our_route(body)))
}

fn is_our_route(body: &[u8]) -> bool {
    let Some((head, attributes)) = body.split_at_checked(route::HEAD) else { return false };
    let has = |kind, wanted| find_attr(attributes, kind).and_then(|attr| attr.u32()) == Some(wanted);
    // Destination and source length, TOS.
    let everything = [1, 2, 3].iter().all(|&at| head.get(at) == Some(&0));
    everything
        && head.get(7) == Some(&libc::RTN_LOCAL)
        && has(route::TABLE, TABLE.into())
        && has(route::OUT_INTERFACE, LOOPBACK_INDEX)
}

fn families(ipv6: bool) -> &'static [Family] {
    if ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[derive(Clone, Copy)]
enum Part {
    Rule(Family),
    Route(Family),
}

fn request(netlink: &mut Netlink, kind: u16, flags: u16, part: Part) -> Result<(), NetlinkError> {
    let seq = netlink.next_seq();
    netlink.apply(&message(Header { kind, flags: flags | flag::REQUEST | flag::ACK, seq }, part), seq)
}

fn message(header: Header, part: Part) -> Writer {
    let mut out = Writer::default();
    match part {
        Part::Rule(family) => {
            let head = [family_number(family), 0, 0, 0, TABLE, 0, 0, TO_TABLE, 0, 0, 0, 0];
            out.message(header, &head, |out| {
                out.put_u32(rule::PRIORITY, PREFERENCE);
                out.put_u32(rule::MARK, RETURN_MARK);
                out.put_u32(rule::MASK, MARK_MASK);
                out.put_u32(rule::TABLE, TABLE.into());
            });
        }
        Part::Route(family) => {
            let scope = match family {
                Family::V4 => libc::RT_SCOPE_HOST,
                // IPv6 routes have no scope.
                Family::V6 => libc::RT_SCOPE_UNIVERSE,
            };
            let head =
                [family_number(family), 0, 0, 0, TABLE, PROTOCOL_STATIC, scope, libc::RTN_LOCAL, 0, 0, 0, 0];
            out.message(header, &head, |out| {
                out.put_u32(route::TABLE, TABLE.into());
                out.put_u32(route::OUT_INTERFACE, LOOPBACK_INDEX);
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message without its header.
    fn body(part: Part) -> Vec<u8> {
        let message = message(Header { kind: 0, flags: 0, seq: 0 }, part);
        message.bytes()[16..].to_vec()
    }

    #[test]
    fn what_is_written_is_recognized() {
        for family in [Family::V4, Family::V6] {
            assert!(is_our_rule(&body(Part::Rule(family))));
            assert!(is_our_route(&body(Part::Route(family))));
        }
    }

    #[test]
    fn every_changed_byte_that_matters_is_noticed() {
        // Not compared: the family (asked for), the table's short form, reserved bytes, a route's origin and scope.
        for (part, ours, ignored) in [
            (Part::Rule(Family::V4), is_our_rule as fn(&[u8]) -> bool, vec![0, 4, 5, 6]),
            (Part::Route(Family::V4), is_our_route, vec![0, 4, 5, 6, 8, 9, 10, 11]),
        ] {
            let good = body(part);
            for at in (0..good.len()).filter(|at| !ignored.contains(at)) {
                let mut bad = good.clone();
                bad[at] ^= 1;
                assert!(!ours(&bad), "byte {at} of {good:x?}");
            }
            (0..good.len()).for_each(|cut| assert!(!ours(&good[..cut])));
        }
    }
}
