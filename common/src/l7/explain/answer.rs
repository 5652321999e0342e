//! The answer as data: what `-o json` prints.

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::l7::{Failure, FailureReply};

/// What a waypoint does with a request, and everything that decides it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpExplanation {
    /// The Gateway, `<namespace>/<name>`.
    pub waypoint: String,
    /// Who the waypoint is to endpoints.
    pub identity: Option<String>,
    /// Method, host and path.
    pub request: String,
    /// The path as routes and policies see it, where that differs.
    pub plain_path: Option<String>,
    /// What is spoken on the port, as its name or appProtocol says.
    pub protocol: String,
    /// How it ends.
    pub verdict: Verdict,
    /// Status of an answer that the waypoint makes itself.
    pub status: Option<u16>,
    /// Flag in the access log; empty for none.
    pub flag: String,
    /// Details in the access log; empty for none.
    pub details: String,
    /// Why, in one line.
    pub summary: String,
    /// How many routes the port has.
    pub routes: usize,
    /// Routes that come before the one that matches.
    pub passed_over: Vec<PassedRoute>,
    /// The route that matches.
    pub route: Option<RouteView>,
    /// Policies, in the order in which they are asked.
    pub policies: Vec<PolicyView>,
    /// Where it may go.
    pub backends: Vec<BackendView>,
    /// What would change the answer, or what to know.
    pub advice: Vec<String>,
}

/// How a request ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It goes to an endpoint.
    #[default]
    Forwarded,
    /// It is answered as a route says: a redirect, a direct response, a preflight.
    Answered,
    /// It ends in a failure.
    Refused,
    /// It depends on the destination that the weights choose.
    Depends,
}

/// A route that does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedRoute {
    /// Object and rule.
    pub origin: String,
    /// Why not, for each of its matches.
    pub why: Vec<String>,
}

/// The route that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// Object and rule.
    pub origin: String,
    /// Its name in logs and metrics.
    pub name: String,
    /// Which match, and what it asks for.
    pub matched: String,
    /// What is done with the request, in the order in which it is done.
    pub actions: Vec<String>,
}

/// A policy for the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// `<namespace>/<name>`
    pub policy: String,
    /// `ALLOW`, `DENY`, `AUDIT`, or the kind of an object that cannot be evaluated.
    pub action: String,
    /// Told, not enforced.
    pub dry_run: bool,
    /// Whether a rule of it matches.
    pub matched: bool,
    /// Whether it decided.
    pub decided: bool,
    /// Each rule, from 1: what it asks for, or why it does not match.
    pub rules: Vec<String>,
}

/// A destination of the route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// As logs name it; empty if there is none.
    pub cluster: String,
    /// Its part of the requests, in percent.
    pub percent: u32,
    /// The subset; none: all endpoints.
    pub subset: Option<String>,
    /// The DestinationRule that counts; none: defaults.
    pub rule: Option<String>,
    /// How an endpoint is chosen, and when one is left alone.
    pub balance: String,
    /// What the upstream sees that differs from what was asked for.
    pub edits: Vec<String>,
    /// Why nothing can be sent there; empty if it can.
    pub problem: String,
    /// The failure that a request gets; none if it is sent.
    pub failure: Option<u16>,
    /// Flag of that failure.
    pub flag: String,
    /// Details of that failure.
    pub details: String,
    /// Each endpoint of the service.
    pub endpoints: Vec<CandidateView>,
}

/// An endpoint that may be chosen, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateView {
    /// `<namespace>/<name>` of its workload.
    pub workload: String,
    /// Address of its application; empty if it cannot be chosen.
    pub target: String,
    /// Whether it may be chosen.
    pub is_in: bool,
    /// Why it is in or out.
    pub reason: String,
    /// Why its node's agent would refuse the waypoint; empty if it would not.
    pub refused: String,
}

impl HttpExplanation {
    /// It goes on.
    pub(super) fn pass(&mut self, why: String) {
        (self.verdict, self.summary) = (Verdict::Forwarded, why);
    }

    /// It is answered as configured.
    pub(super) fn reply(&mut self, status: StatusCode, why: String) {
        self.status = Some(status.as_u16());
        (self.verdict, self.summary) = (Verdict::Answered, why);
    }

    /// It ends without an answer, or with one that is told elsewhere.
    pub(super) fn refuse(&mut self, status: Option<u16>, why: String) {
        self.status = status;
        (self.verdict, self.summary) = (Verdict::Refused, why);
    }

    /// It ends in a failure of the table.
    pub(super) fn fail(&mut self, failure: &Failure, why: String) {
        let FailureReply { status, body: _, details, flag } = failure.reply();
        self.flag = flag.map(|flag| flag.as_str().to_owned()).unwrap_or_default();
        self.details = details.into_owned();
        self.refuse(Some(status.as_u16()), why);
    }
}
