//! What an evaluation looks at, told while it happens: the explanation of a verdict is the evaluation itself.
//!
//! [`Observer`] is called by `matches.rs`, inner parts before the outer ones they belong to. `()` observes nothing and
//! is compiled away; [`Trace`] keeps everything as data.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use super::matches::Subject;
use crate::model::{Action, Authorization, Scope};

/// Values of a list that a trace keeps: a policy may name thousands.
const SHOWN: usize = 8;

/// What a list is compared with.
#[derive(Clone, Copy)]
pub(super) struct Compared<'a> {
    pub(super) field: Field,
    pub(super) subject: &'a Subject<'a>,
}

/// A field of a match, positive and negative form together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Namespaces,
    Principals,
    ServiceAccounts,
    Ports,
    SourceIps,
    DestinationIps,
}

/// Which of the two lists of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// One of them must be found.
    Wanted,
    /// None of them may be found.
    Unwanted,
}

/// Is told what is compared and how it ends.
pub(super) trait Observer {
    /// Whether to look also at what no longer changes the outcome.
    const THOROUGH: bool;
    /// A list of values was compared; an empty one is a list of which nothing could be read.
    fn field<T: Display>(&mut self, of: Compared<'_>, side: Side, list: &[T], held: bool);
    /// The match that the fields since the last one belong to.
    fn one_match(&mut self, held: bool);
    /// The clause of the matches since the last one.
    fn clause(&mut self, held: bool);
    /// The rule of the clauses since the last one.
    fn rule(&mut self, held: bool);
    /// The policy of the rules since the last one.
    fn policy(&mut self, policy: &Authorization, held: bool);
}

impl Observer for () {
    const THOROUGH: bool = false;
    #[inline(always)]
    fn field<T: Display>(&mut self, _: Compared<'_>, _: Side, _: &[T], _: bool) {}
    #[inline(always)]
    fn one_match(&mut self, _: bool) {}
    #[inline(always)]
    fn clause(&mut self, _: bool) {}
    #[inline(always)]
    fn rule(&mut self, _: bool) {}
    #[inline(always)]
    fn policy(&mut self, _: &Authorization, _: bool) {}
}

/// One policy that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTrace {
    /// `<namespace>/<name>`
    pub policy: String,
    /// `ALLOW` or `DENY`
    pub action: String,
    /// Why it applies: `mesh`, `namespace` or `selector`.
    pub scope: String,
    /// Whether it is only tried out.
    pub dry_run: bool,
    /// Whether one of its rules matched.
    pub matched: bool,
    /// Its rules, in order; without any it never matches.
    pub rules: Vec<RuleTrace>,
}

/// One rule: all clauses must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleTrace {
    /// Whether it matched.
    pub matched: bool,
    /// Its clauses; without any it matches everything.
    pub clauses: Vec<ClauseTrace>,
}

/// One clause: one of its matches must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClauseTrace {
    /// Whether one did.
    pub held: bool,
    /// The matches that say something; with none of those a clause that does not hold has only what L4 cannot see.
    pub matches: Vec<MatchTrace>,
}

/// One match: all of its fields must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchTrace {
    /// Whether they did.
    pub held: bool,
    /// What was compared.
    pub fields: Vec<FieldTrace>,
}

/// One list of values that a connection was compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldTrace {
    /// Its name in an AuthorizationPolicy, for example `principals` or `notPrincipals`.
    pub field: String,
    /// The list as the policy has it, its first values.
    pub listed: Vec<String>,
    /// How many more there are.
    pub more: usize,
    /// The connection's own value; empty if it has none.
    pub found: String,
    /// Whether the list lets the match hold.
    pub held: bool,
}

/// Keeps everything that it is told.
#[derive(Debug, Default)]
pub(super) struct Trace {
    fields: Vec<FieldTrace>,
    matches: Vec<MatchTrace>,
    clauses: Vec<ClauseTrace>,
    rules: Vec<RuleTrace>,
    pub(super) policies: Vec<PolicyTrace>,
}

impl Observer for Trace {
    const THOROUGH: bool = true;

    fn field<T: Display>(&mut self, of: Compared<'_>, side: Side, list: &[T], held: bool) {
        self.fields.push(FieldTrace {
            field: of.field.name(side).to_owned(),
            listed: list.iter().take(SHOWN).map(ToString::to_string).collect(),
            more: list.len().saturating_sub(SHOWN),
            found: of.field.found(of.subject),
            held,
        });
    }

    fn one_match(&mut self, held: bool) {
        self.matches.push(MatchTrace { held, fields: std::mem::take(&mut self.fields) });
    }

    fn clause(&mut self, held: bool) {
        self.clauses.push(ClauseTrace { held, matches: std::mem::take(&mut self.matches) });
    }

    fn rule(&mut self, matched: bool) {
        self.rules.push(RuleTrace { matched, clauses: std::mem::take(&mut self.clauses) });
    }

    fn policy(&mut self, policy: &Authorization, matched: bool) {
        self.policies.push(PolicyTrace {
            rules: std::mem::take(&mut self.rules),
            matched,
            ..PolicyTrace::of(policy)
        });
    }
}

impl PolicyTrace {
    /// A policy that was not looked at.
    pub fn of(policy: &Authorization) -> Self {
        let action = match policy.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
        };
        let scope = match policy.scope {
            Scope::Global => "mesh",
            Scope::Namespace => "namespace",
            Scope::WorkloadSelector => "selector",
        };
        Self {
            policy: policy.key.to_string(),
            action: action.into(),
            scope: scope.into(),
            dry_run: policy.dry_run,
            matched: false,
            rules: Vec::new(),
        }
    }
}

impl Field {
    fn name(self, side: Side) -> &'static str {
        match (self, side) {
            (Self::Namespaces, Side::Wanted) => "namespaces",
            (Self::Namespaces, Side::Unwanted) => "notNamespaces",
            (Self::Principals, Side::Wanted) => "principals",
            (Self::Principals, Side::Unwanted) => "notPrincipals",
            (Self::ServiceAccounts, Side::Wanted) => "serviceAccounts",
            (Self::ServiceAccounts, Side::Unwanted) => "notServiceAccounts",
            (Self::Ports, Side::Wanted) => "ports",
            (Self::Ports, Side::Unwanted) => "notPorts",
            (Self::SourceIps, Side::Wanted) => "ipBlocks",
            (Self::SourceIps, Side::Unwanted) => "notIpBlocks",
            (Self::DestinationIps, Side::Wanted) => "destination.ip",
            (Self::DestinationIps, Side::Unwanted) => "not destination.ip",
        }
    }

    fn found(self, subject: &Subject<'_>) -> String {
        match self {
            Self::Namespaces => subject.peer.map_or("", |peer| peer.namespace()).to_owned(),
            Self::Principals => subject.principal.clone().unwrap_or_default(),
            Self::ServiceAccounts => {
                subject.peer.map(|p| format!("{}/{}", p.namespace(), p.service_account())).unwrap_or_default()
            }
            Self::Ports => subject.destination_port.to_string(),
            Self::SourceIps => subject.source_ip.to_string(),
            Self::DestinationIps => subject.destination_ip.to_string(),
        }
    }
}
