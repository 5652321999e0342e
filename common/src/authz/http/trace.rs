//! What an evaluation looked at, for people who ask why: the parts of each rule, by the very code that decides.

use super::matches::Subject;
use super::{Connection, Facts};
use crate::model::l7::{Policies, Policy};

/// One policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyTrace<'p> {
    /// The policy.
    pub policy: &'p Policy,
    /// Its rules, in order; one must match.
    pub rules: Vec<RuleTrace>,
}

/// One rule: it matches if all of its parts hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleTrace {
    /// Whether it matched.
    pub is_match: bool,
    /// Whether each entry of `from` holds; one must, if there is any.
    pub from: Vec<bool>,
    /// Whether each entry of `to` holds; one must, if there is any.
    pub to: Vec<bool>,
    /// Whether each entry of `when` holds; all must.
    pub when: Vec<bool>,
    /// It allows by what only HTTP has, and this is TCP.
    pub needs_http: bool,
}

impl PolicyTrace<'_> {
    /// Whether one of its rules matches.
    pub fn is_match(&self) -> bool {
        self.rules.iter().any(|rule| rule.is_match)
    }
}

/// All policies of a request in the order in which they are asked, those after the one that decides as well.
pub fn trace<'p>(policies: &'p Policies, facts: &Facts<'_>) -> Vec<PolicyTrace<'p>> {
    traced(policies, &Subject::request(facts))
}

/// The same of a TCP connection.
pub fn trace_tcp<'p>(policies: &'p Policies, connection: &Connection<'_>) -> Vec<PolicyTrace<'p>> {
    traced(policies, &Subject::connection(connection))
}

fn traced<'p>(policies: &'p Policies, subject: &Subject<'_>) -> Vec<PolicyTrace<'p>> {
    let Policies { deny, allow, audit, broken: _ } = policies;
    let of = |policy: &'p Policy| PolicyTrace {
        policy,
        rules: policy.rules.iter().map(|rule| subject.traced(policy.effect, rule)).collect(),
    };
    deny.iter().chain(allow).chain(audit).map(|policy| of(policy)).collect()
}
