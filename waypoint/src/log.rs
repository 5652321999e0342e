//! What is told of a request when it is over: the counters, the line of the access log, and of a denial who denied it.
//!
//! The line is made from the request as it went on, as Envoy's is, and only if somebody wants it. Source: Envoy, default
//! format of access logs; l7.md §8.3.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use culvert_common::authz::http::{Decision, DryRun};
use culvert_common::l7::Facts;
use culvert_common::telemetry::{Denial, EndedRequest, GrpcStatus, Party, Reporter, ResponseFlag, denial_id};
use http::{HeaderMap, HeaderName};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::message::Request;
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
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// Counts a request that is over.
pub(crate) fn count(stage: &Stage, told: &Told) {
    let raised;
    let flags = if told.flags.is_empty() {
        "-"
    } else {
        raised = told.flags.to_string();
        &raised
    };
    let ended = EndedRequest {
        source: stage.source.as_ref(),
        source_identity: &stage.client.identity,
        destination: told.endpoint.as_ref().map(|endpoint| &endpoint.workload),
        service: stage.service.as_ref(),
        status: told.status.map_or(0, |status| status.as_u16()),
        grpc: told.grpc.map(GrpcStatus::from),
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
pub(crate) fn denied(stage: &Stage, facts: &Facts<'_>, policy: String) {
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

/// Tells of what AUDIT policies and those that are only tried out say of a request.
pub(crate) fn tried_out(stage: &Stage, facts: &Facts<'_>, decision: &Decision<'_>) {
    let (client, path) = (&stage.client.identity, Shown(Some(facts.target.as_bytes())));
    for one in &decision.dry_run {
        let (verdict, rule) = match one {
            DryRun::WouldDeny(rule) => ("would_deny", Some(rule)),
            DryRun::WouldAllow(rule) => ("would_allow", Some(rule)),
            DryRun::NoneWouldAllow => ("none_would_allow", None),
        };
        stage.worker.shared.metrics.dry_run(verdict);
        tracing::info!(target: "policy", verdict, rule = %OrDash(rule), %client, method = %facts.method, %path, "dry run");
    }
    if let Some(rule) = &decision.audit {
        tracing::info!(target: "policy", %rule, %client, method = %facts.method, %path, "audit");
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

/// Writes the line of a request that is over, if lines are wanted.
pub(crate) fn write(stage: &Stage, told: &Told, request: &Request) {
    let shared = &stage.worker.shared;
    let logger = shared.telemetry.logger();
    let Some(form) = shared.access_log.filter(|_| logger.takes_access()) else { return };
    let line = Line { stage, told, request };
    let mut text = match form {
        Form::Text => line.to_string(),
        Form::Json => line.json().to_string(),
    };
    logger.access(&mut text);
}

/// One request with what became of it.
struct Line<'a> {
    stage: &'a Stage,
    told: &'a Told,
    /// As it went on.
    request: &'a Request,
}

impl Line<'_> {
    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.request.headers.get(name).map(http::HeaderValue::as_bytes)
    }

    /// As the client asked for it.
    fn path(&self) -> &[u8] {
        self.header(&ORIGINAL_PATH).unwrap_or(self.request.path.as_bytes())
    }

    fn started(&self) -> Stamp {
        Stamp(self.told.started)
    }

    fn status(&self) -> u16 {
        self.told.status.map_or(0, |status| status.as_u16())
    }

    fn endpoint(&self) -> Option<SocketAddr> {
        self.told.endpoint.as_ref().map(|endpoint| endpoint.address)
    }

    fn route(&self) -> Option<&str> {
        self.told.route.as_deref().filter(|name| !name.is_empty())
    }

    /// The same as an object; what there is nothing of is null.
    fn json(&self) -> Value {
        let text = |text: Option<&[u8]>| text.map(plain);
        let told = self.told;
        json!({
            "start_time": self.started().to_string(),
            "route_name": self.route(),
            "method": self.request.method.as_str(),
            "path": text(Some(self.path())),
            "protocol": self.request.version.as_str(),
            "response_code": self.status(),
            "response_flags": told.flags.to_string(),
            "response_code_details": filled(&told.details),
            "connection_termination_details": null,
            "bytes_received": told.received,
            "bytes_sent": told.sent,
            "duration": u64::try_from(told.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "upstream_service_time": told.upstream_time.map(|time| time.as_millis().to_string()),
            "x_forwarded_for": text(self.header(&FORWARDED_FOR)),
            "user_agent": text(self.header(&http::header::USER_AGENT)),
            "request_id": text(self.header(&REQUEST_ID)),
            "authority": text(Some(self.request.authority.as_bytes())),
            "upstream_host": self.endpoint().map(|address| address.to_string()),
            "upstream_cluster": told.cluster.as_ref().map(ToString::to_string),
            "upstream_local_address": null,
            "downstream_local_address": self.stage.destination.to_string(),
            "downstream_remote_address": self.stage.client.address.to_string(),
            "requested_server_name": null,
            "upstream_transport_failure_reason": filled(&told.transport),
        })
    }
}

/// Envoy's default text.
impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (told, request) = (self.told, self.request);
        let (method, path, protocol) = (&request.method, Shown(Some(self.path())), request.version.as_str());
        write!(f, "[{}] \"{method} {path} {protocol}\" {} {} ", self.started(), self.status(), told.flags)?;
        let reason = Shown(filled(&told.transport).map(str::as_bytes));
        write!(f, "{} - \"{reason}\" ", filled(&told.details).unwrap_or("-"))?;
        write!(f, "{} {} {} ", told.received, told.sent, told.began.elapsed().as_millis())?;
        write!(f, "{} ", OrDash(told.upstream_time.map(|time| time.as_millis())))?;
        for name in [&FORWARDED_FOR, &http::header::USER_AGENT, &REQUEST_ID] {
            write!(f, "\"{}\" ", Shown(self.header(name)))?;
        }
        write!(f, "\"{}\" ", Shown(Some(request.authority.as_bytes())))?;
        write!(f, "\"{}\" {} - ", OrDash(self.endpoint()), OrDash(told.cluster.as_ref()))?;
        let (stage, route) = (self.stage, OrDash(self.route()));
        write!(f, "{} {} - {route}", stage.destination, stage.client.address)
    }
}

/// A time in UTC, to the millisecond.
struct Stamp(SystemTime);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from(self.0);
        let (date, (hour, minute, second)) = (at.date(), at.to_hms());
        write!(f, "{date}T{hour:02}:{minute:02}:{second:02}.{:03}Z", at.millisecond())
    }
}

/// The text, unless it is empty.
fn filled(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A text that a stranger chose, for JSON, which escapes it.
fn plain(text: &[u8]) -> String {
    String::from_utf8_lossy(text.get(..SHOWN).unwrap_or(text)).into_owned()
}

/// A value, or `-`.
struct OrDash<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_char('-'),
        }
    }
}

/// A text that a stranger chose, without anything that ends a field or a line; `-` for none.
struct Shown<'a>(Option<&'a [u8]>);

/// Longest text that is shown.
const SHOWN: usize = 1024;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0 else { return f.write_str("-") };
        for byte in text.iter().take(SHOWN) {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                0x20..=0x7e => f.write_char(char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_chose_stays_in_its_field() {
        assert_eq!(Shown(Some(b"a\"b\\c\n\xff")).to_string(), "a\\\"b\\\\c\\x0a\\xff");
        assert_eq!(Shown(None).to_string(), "-");
        assert_eq!(plain(&[b'a'; 2 * SHOWN]).len(), SHOWN);
    }

    #[test]
    fn times_have_milliseconds() {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_007);
        assert_eq!(Stamp(at).to_string(), "2023-11-14T22:13:20.007Z");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        assert_eq!(OrDash(None::<u8>).to_string(), "-");
        assert_eq!(OrDash(Some(7)).to_string(), "7");
        assert_eq!((filled(""), filled("a")), (None, Some("a")));
    }

    #[test]
    fn heads_are_as_long_as_written() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, http::HeaderValue::from_static("abc"));
        assert_eq!(head_bytes(&headers), "x-request-id: abc\r\n".len() as u64);
    }
}
