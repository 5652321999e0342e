//! Rules that are in force already: whether another hand has changed them, and putting them right.

use std::fmt;

use super::{CaptureSpec, NAMED_MAX, NAT_PRIORITY, NAT_TABLE, RulesError};
use super::{differences, foreign, has_ipv6, ruleset, step, write};
use crate::net::netlink::Netlink;
use crate::net::nft;

/// A part of what capture needs in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The table that redirects.
    Redirects,
    /// The table that marks.
    Marks,
    /// The policy rule of a family.
    PolicyRule,
    /// The route of a family.
    Route,
}

impl Part {
    /// As a label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redirects => "redirects",
            Self::Marks => "marks",
            Self::PolicyRule => "policy_rule",
            Self::Route => "route",
        }
    }
}

/// One thing that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub part: Part,
    /// What was seen, in words.
    pub seen: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.seen)
    }
}

/// The first few of them.
pub(super) fn list(found: &[Difference]) -> String {
    let mut words: Vec<String> = found.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if found.len() > NAMED_MAX {
        words.push(format!("{} more", found.len() - NAMED_MAX));
    }
    words.join("; ")
}

/// What [`mend`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What differed and is right again.
    pub repaired: Vec<Difference>,
    /// Tables and chains of another mesh; they are left alone, and ours stand before them.
    pub foreign: Vec<String>,
    /// Chains of others that may redirect a connection before ours see it; they are left alone.
    pub overtaking: Vec<String>,
}

impl Mended {
    /// The repairs in one line, the first few of them.
    pub fn summary(&self) -> String {
        list(&self.repaired)
    }
}

/// Puts what another hand has changed right, as [`super::install`] would write it, in one transaction: at no moment are
/// there fewer redirects than before. When nothing differs it only reads. Call it inside `NetNs::run`.
///
/// Errors: as for `install`, but for rules of another mesh: they are no reason to leave ours broken.
pub fn mend(spec: &CaptureSpec) -> Result<Mended, RulesError> {
    let set = ruleset(spec)?;
    let mut netfilter = step("opening netfilter", Netlink::netfilter())?;
    let mut route = step("opening rtnetlink", Netlink::route())?;
    let ipv6 = has_ipv6(spec, &mut route)?;
    let repaired = differences(&set, ipv6, &mut netfilter, &mut route)?;
    if !repaired.is_empty() {
        write(&set, ipv6, &mut netfilter, &mut route)?;
    }
    let foreign = foreign(&mut netfilter)?;
    let mut overtaking = step("listing chains", nft::redirecting_before(&mut netfilter, NAT_PRIORITY))?;
    overtaking.truncate(NAMED_MAX);
    Ok(Mended { repaired, foreign, overtaking })
}

/// Whether rules of ours are in the current namespace that may redirect, whatever else is right or wrong about them.
pub fn is_capturing() -> Result<bool, RulesError> {
    let mut netfilter = step("opening netfilter", Netlink::netfilter())?;
    step("reading the rules", nft::has_rules(&mut netfilter, NAT_TABLE))
}
