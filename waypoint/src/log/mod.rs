//! What is told of a request or connection when it is over: the counters, the line of the access log, and of a denial who
//! denied it.
//!
//! What ends is told once, however it ends: by [`Ending`] of a request, by that of `tcp` of a connection. How a line looks is
//! in `line`. It must not decide anything: what became of a request is in [`Told`] when it comes here.

mod line;
mod span;

use std::borrow::Cow;
use std::fmt;
use std::time::{Instant, SystemTime};

use culvert_common::authz::http::{Decision, DryRun};
use culvert_common::l7::{Facts, Flag, Reply, grpc_status};
use culvert_common::telemetry::{
    Between, Denial, EndedRequest, GrpcMessages, GrpcStatus, Party, Reporter, ResponseFlag, denial_id,
};
use http::{HeaderMap, HeaderName};

pub(crate) use line::cluster_name;
use line::{Line, OrDash, Shown, Subject};
pub(crate) use span::Begun;

use crate::dial::Endpoint;
use crate::message::{Request, Version};
use crate::request::Told;
use crate::serve::{Stage, Target};

/// In which form requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Envoy's default text.
    Text,
    /// An object a line, with the keys that Istio has.
    Json,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A request that is under way. It is told of when this is dropped: also when its task is, at the end of a drain.
pub(crate) struct Ending<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) told: Told,
    pub(crate) request: Request,
    pub(crate) is_over: bool,
}

impl<'a> Ending<'a> {
    /// A request whose head has come.
    pub(crate) fn new(stage: &'a Stage, request: Request) -> Self {
        let mut told = Told::new();
        let line = request.path.len() + request.authority.len();
        told.heads.0 = head_bytes(&request.headers) + line as u64;
        told.span = span::begin(stage, &request);
        Self { stage, told, request, is_over: false }
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.told.flags.raise(Flag::LocalReset);
            self.told.details = Cow::Borrowed("cut_by_drain");
        }
        count(self.stage, &self.told);
        if let Some(begun) = self.told.span {
            span::end(self.stage, &self.told, &self.request, begun);
        }
        write(self.stage, &self.told, Subject::Request(&self.request));
    }
}

/// Tells of what was no request of HTTP/2, and was reset.
pub(crate) fn reset(stage: &Stage) {
    let mut told = Told::new();
    told.flags.raise(Flag::DownstreamProtocol);
    told.details = Cow::Borrowed("http2.violation.of.messaging.rule");
    count(stage, &told);
    write(stage, &told, Subject::Malformed(Version::Http2));
}

/// Tells of what was no request of HTTP/1.1, and was answered so.
pub(crate) fn malformed(stage: &Stage, reply: &Reply) {
    let mut told = Told::new();
    (told.status, told.details) = (Some(reply.status), reply.details.clone());
    told.flags.extend(reply.flag);
    told.heads.1 = head_bytes(&reply.headers);
    told.sent = reply.body.len() as u64;
    count(stage, &told);
    write(stage, &told, Subject::Malformed(Version::Http1));
}

/// Tells of a TCP connection that is over.
pub(crate) fn tcp(stage: &Stage, told: &Told) {
    write(stage, told, Subject::Tcp);
}

/// Where the messages of a gRPC request to this endpoint are counted.
pub(crate) fn messages(stage: &Stage, endpoint: Option<&Endpoint>) -> GrpcMessages {
    stage.worker.shared.telemetry.messages(&between(stage, endpoint), Instant::now())
}

fn between<'a>(stage: &'a Stage, endpoint: Option<&'a Endpoint>) -> Between<'a> {
    Between {
        source: stage.source.as_ref(),
        source_identity: &stage.client.identity,
        destination: endpoint.and_then(Endpoint::known),
        service: stage.service.as_ref(),
    }
}

/// What the answer says in gRPC, or what its status stands for there. Source: Envoy, `Grpc::Common::getGrpcStatus`.
fn grpc(told: &Told) -> Option<GrpcStatus> {
    let said = told.grpc?;
    Some(match (said, told.status) {
        (Some(status), _) => GrpcStatus::from(status),
        (None, Some(status)) => GrpcStatus::from(u32::from(grpc_status(status))),
        (None, None) => GrpcStatus::None,
    })
}

/// Counts a request that is over.
fn count(stage: &Stage, told: &Told) {
    let raised;
    let flags = if told.flags.is_empty() {
        "-"
    } else {
        raised = told.flags.to_string();
        &raised
    };
    let ended = EndedRequest {
        between: between(stage, told.endpoint.as_ref()),
        status: told.status.map_or(0, |status| status.as_u16()),
        grpc: grpc(told),
        flags,
        took: told.began.elapsed(),
        bytes: (told.heads.0 + told.received, told.heads.1 + told.sent),
    };
    stage.worker.shared.telemetry.request(&ended, Instant::now());
}

/// Bytes of headers as HTTP/1.1 writes them.
pub(crate) fn head_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}

/// Tells of a denied request: to the client it is 403 and no more.
fn denied(stage: &Stage, facts: &Facts<'_>, policy: String) {
    let id = denial_id();
    let request = facts.headers.get(REQUEST_ID).map(http::HeaderValue::as_bytes);
    tracing::warn!(
        target: "policy",
        denial = id,
        client = %stage.client.identity,
        destination = %Meant(stage),
        method = %facts.method,
        path = %Shown(Some(facts.target.as_bytes())),
        host = %Shown(Some(facts.authority.as_bytes())),
        request_id = %Shown(request),
        "denied: {policy}"
    );
    stage.worker.shared.telemetry.refused(denial(stage, Some(id), policy));
}

/// Tells of a denied TCP connection: its client sees that it ends.
pub(crate) fn denied_tcp(stage: &Stage, policy: &str) {
    let id = denial_id();
    let client = &stage.client.identity;
    tracing::warn!(target: "policy", denial = id, %client, destination = %Meant(stage), "denied: {policy}");
    stage.worker.shared.telemetry.refused(denial(stage, Some(id), policy.to_owned()));
}

/// Tells of what policies say of a request.
pub(crate) fn decided(stage: &Stage, facts: &Facts<'_>, decision: &Decision<'_>) {
    tried_out(stage, Some(facts), decision);
    if let Some(denial) = decision.denial() {
        denied(stage, facts, denial.to_string());
    }
}

/// Tells of what AUDIT policies and those that are only tried out say of a request, or of a connection that has no facts of one.
pub(crate) fn tried_out(stage: &Stage, facts: Option<&Facts<'_>>, decision: &Decision<'_>) {
    let client = &stage.client.identity;
    let method = OrDash(facts.map(|facts| facts.method));
    let path = Shown(facts.map(|facts| facts.target.as_bytes()));
    for one in &decision.dry_run {
        let (verdict, rule) = match one {
            DryRun::WouldDeny(rule) => ("would_deny", Some(rule)),
            DryRun::WouldAllow(rule) => ("would_allow", Some(rule)),
            DryRun::NoneWouldAllow => ("none_would_allow", None),
        };
        stage.worker.shared.metrics.dry_run(verdict);
        tracing::info!(target: "policy", verdict, rule = %OrDash(rule), %client, %method, %path, "dry run");
    }
    if let Some(rule) = &decision.audit {
        tracing::info!(target: "policy", %rule, %client, %method, %path, "audit");
    }
}

/// A denial for the memory of refusals.
fn denial(stage: &Stage, id: Option<String>, policy: String) -> Denial {
    let workload =
        |workload: &culvert_common::model::Workload| format!("{}/{}", workload.namespace, workload.name);
    let meant = match &stage.target {
        Target::Workload(meant) => Some(workload(meant)),
        Target::Service(..) => None,
    };
    Denial {
        at: SystemTime::now(),
        id,
        class: ResponseFlag::Deny.class(),
        flag: ResponseFlag::Deny,
        reporter: Reporter::Waypoint,
        source: Party {
            addr: Some(stage.client.address),
            workload: stage.source.as_deref().map(workload),
            identity: Some(stage.client.identity.clone()),
        },
        destination: Party { addr: Some(stage.destination), workload: meant, identity: None },
        service: stage.service.as_ref().map(|service| service.key.hostname.to_string()),
        authority: None,
        error: policy.clone(),
        policy: Some(policy),
    }
}

/// What a connection is addressed to, for people.
pub(crate) struct Meant<'a>(pub(crate) &'a Stage);

impl fmt::Display for Meant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.target {
            Target::Service(key, port) => write!(f, "{}:{port}", key.hostname),
            Target::Workload(workload) => write!(f, "{}/{}", workload.namespace, workload.name),
        }
    }
}

/// Writes the line of what is over, if lines are wanted.
fn write(stage: &Stage, told: &Told, subject: Subject<'_>) {
    let shared = &stage.worker.shared;
    let logger = shared.telemetry.logger();
    let Some(form) = shared.access_log.filter(|_| logger.takes_access()) else { return };
    let line = Line { stage, told, subject };
    let mut text = match form {
        Form::Text => line.to_string(),
        Form::Json => line.json().to_string(),
    };
    logger.access(&mut text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_as_long_as_written() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, http::HeaderValue::from_static("abc"));
        assert_eq!(head_bytes(&headers), "x-request-id: abc\r\n".len() as u64);
    }

    #[test]
    fn a_grpc_status_is_what_was_said_or_what_the_status_stands_for() {
        for (said, status, wanted) in [
            (None, Some(200), None),
            (Some(Some(5)), Some(200), Some(GrpcStatus::Known(5))),
            (Some(Some(99)), Some(200), Some(GrpcStatus::Unknown)),
            (Some(None), Some(200), Some(GrpcStatus::Known(2))),
            (Some(None), Some(503), Some(GrpcStatus::Known(14))),
            (Some(None), None, Some(GrpcStatus::None)),
        ] {
            let status = status.map(|status| http::StatusCode::from_u16(status).unwrap());
            let told = Told { grpc: said, status, ..Told::new() };
            assert_eq!(grpc(&told), wanted);
        }
    }
}
