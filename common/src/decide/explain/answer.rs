//! The answer as data: what `-o json` prints and what one agent tells another program.

use serde::{Deserialize, Serialize};

use crate::authz::{PolicyTrace, RuleTrace};

/// Whether the pair can talk, and everything that decides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whether a connection would be let through.
    pub verdict: Outcome,
    /// Why, in one line.
    pub summary: String,
    /// Who connects.
    pub source: Party,
    /// Where to.
    pub destination: Party,
    /// Each endpoint of the service that was asked for.
    pub endpoints: Vec<EndpointView>,
    /// Where connections would go, one for each workload that may be chosen; at least one.
    pub routes: Vec<Route>,
    /// How many more there are than are listed.
    pub more_routes: usize,
    /// How many of all are refused; they are listed first.
    #[serde(default)]
    pub refused_routes: usize,
    /// Policies that one could expect to apply and that do not.
    pub other_policies: Vec<OtherPolicy>,
    /// What would change the answer, or what to know if it is yes.
    pub advice: Vec<String>,
    /// What is doubtful in the objects that take part, each with its file and line where they are known.
    pub remarks: Vec<String>,
    /// Connections between the two that failed lately, newest first; only an agent remembers any.
    #[serde(default)]
    pub recent: Vec<String>,
    /// Revision of the state that was looked at.
    pub revision: u64,
}

/// Whether connections are let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All of them.
    Allowed,
    /// None.
    Refused,
    /// It depends on the endpoint that is chosen.
    Mixed,
}

/// One side, as it was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// What was asked for.
    pub asked: String,
    /// `pod`, `service` or `address`.
    pub kind: String,
    /// `<namespace>/<name>`, or the address.
    pub name: String,
    /// Addresses, with the port if it is the destination.
    pub addresses: Vec<String>,
    /// Identity that its certificate proves; none if it has no certificate or is a service.
    pub identity: Option<String>,
    /// Whether it is in the mesh, and if not, why; empty for a service.
    pub enrolment: String,
    /// Node of a pod; empty if unknown.
    pub node: String,
}

/// One endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// `<namespace>/<name>` of its workload, or the workload's UID if nothing is known of it.
    pub workload: String,
    /// Address and target port; empty if it cannot be chosen.
    pub target: String,
    /// Whether it may be chosen.
    pub is_in: bool,
    /// Why it is in or out.
    pub reason: String,
    /// What would bring it in; empty if it is in, or if nobody can.
    pub fix: String,
}

/// How a connection leaves its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// In a tunnel, with mutual TLS.
    Hbone,
    /// The source is in the mesh, the destination is known and not: plain TCP.
    Plaintext,
    /// The source is in the mesh, the destination nobody's: untouched.
    Passthrough,
    /// The source is outside the mesh: its node sends it as it is.
    Direct,
    /// It waits a moment for the destination to be captured, then it is refused.
    Held,
    /// It does not leave.
    Refused,
}

/// One way that connections may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// How it leaves its source.
    pub kind: RouteKind,
    /// Whether it is let through.
    pub outcome: Outcome,
    /// `<namespace>/<name>` of the workload at its end; empty if none is known.
    pub workload: String,
    /// What is dialled for the app, or asked of the waypoint; empty if nothing is.
    pub target: String,
    /// The waypoint that ends the tunnel, as `<namespace>/<host name>`, and then its address; `workload` is its pod. Empty if
    /// it goes through none.
    #[serde(default)]
    pub waypoint: String,
    /// The decision at the source in the words of its log.
    pub decision: String,
    /// Identity that the source proves; none in plaintext.
    pub proves: Option<String>,
    /// Identities of which the destination must prove one; empty in plaintext.
    pub expects: Vec<String>,
    /// What the destination's agent decides; none where no agent sees the connection.
    pub inbound: Option<Inbound>,
    /// Flag in the access log if it is refused, at the source or at the destination; empty otherwise.
    pub flag: String,
}

/// What the agent of the destination decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbound {
    /// `HBONE on port 15008` or `plaintext`.
    pub via: String,
    /// Address and port that the app would be dialled on; empty if it comes to that.
    pub target: String,
    /// Identity that it sees; none in plaintext.
    pub seen_identity: Option<String>,
    /// Address that it sees.
    pub seen_address: String,
    /// Whether plaintext is taken, and which object says so.
    pub peer_authentication: String,
    /// Why it is refused before any policy is asked.
    pub refusal: Option<String>,
    /// Policies that apply, in the order in which they are asked.
    pub policies: Vec<Enforced>,
    /// Policies that the workload names and that do not exist.
    pub missing: Vec<String>,
    /// What policies that are only tried out would have done.
    pub dry_run: Vec<String>,
    /// The verdict of all policies together, in the words of the log.
    pub verdict: String,
    /// Names of the policies that refused; empty if none did.
    pub refused_by: Vec<String>,
}

/// A policy that applies to the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// Whether it was asked: not when the answer was clear before.
    pub asked: bool,
    /// Where it comes from, if it is made of another object.
    pub origin: String,
    /// Numbers of the rules that were asked, from 1, as the object has them: rules that L4 cannot see are left out.
    #[serde(default)]
    pub rule_numbers: Vec<usize>,
    /// How many rules of the object are left out because L4 cannot see what they ask for.
    #[serde(default)]
    pub rules_left_out: usize,
    /// What it is and how it matched.
    #[serde(flatten)]
    pub trace: PolicyTrace,
}

impl Enforced {
    /// The rules that were asked, with their numbers in the object.
    pub(super) fn rules(&self) -> impl Iterator<Item = (usize, &RuleTrace)> {
        self.rule_numbers.iter().copied().zip(&self.trace.rules)
    }
}

/// A policy that does not apply to the destination, although it lies in a namespace whose policies may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherPolicy {
    /// `<namespace>/<name>`
    pub policy: String,
    /// `ALLOW` or `DENY`
    pub action: String,
    /// Labels that it selects by; empty if unknown.
    pub selector: String,
    /// Workloads that it does select, some of them.
    pub selects: Vec<String>,
    /// Whether it would match this connection.
    pub would_match: bool,
}
