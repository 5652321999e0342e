//! Every failure that a waypoint answers itself: status, body, details and flag in one table.
//!
//! **Source**: what Envoy says, letter for letter where it says something; clients and dashboards look for these texts.

use std::borrow::Cow;

use http::StatusCode;

use super::flags::Flag;

/// Why an upstream's answer did not come. Source: Envoy `StreamResetReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// No connection: refused, unreachable, TLS or CONNECT refused.
    ConnectionFailure,
    /// No connection in time.
    ConnectionTimeout,
    /// The connection ended.
    ConnectionTermination,
    /// The stream was refused before anything was done: HTTP/2 REFUSED_STREAM, or GOAWAY.
    RefusedStream,
    /// The stream was reset.
    RemoteReset,
    /// It was reset here.
    LocalReset,
    /// A circuit breaker is open.
    Overflow,
    /// The answer is not HTTP.
    ProtocolError,
}

impl Reset {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionFailure => "remote connection failure",
            Self::ConnectionTimeout => "connection timeout",
            Self::ConnectionTermination => "connection termination",
            Self::RefusedStream => "remote refused stream reset",
            Self::RemoteReset => "remote reset",
            Self::LocalReset => "local reset",
            Self::Overflow => "overflow",
            Self::ProtocolError => "protocol error",
        }
    }

    /// The flag that it raises.
    pub fn flag(self) -> Flag {
        match self {
            Self::ConnectionFailure | Self::ConnectionTimeout => Flag::UpstreamConnectionFailure,
            Self::ConnectionTermination => Flag::UpstreamTermination,
            Self::RefusedStream | Self::RemoteReset => Flag::UpstreamReset,
            Self::LocalReset => Flag::LocalReset,
            Self::Overflow => Flag::UpstreamOverflow,
            Self::ProtocolError => Flag::UpstreamProtocol,
        }
    }
}

/// Why a request is answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A policy denies it; the text is the policy's id, or `none`.
    Denied(String),
    /// No route matches, or the request is a CONNECT.
    NoRoute,
    /// The route leads to a subset that nothing defines.
    NoCluster,
    /// The route leads to nothing, with the status that its kind gives to that.
    InvalidBackend(StatusCode),
    /// The DestinationRule asks for something that is not done here.
    Refused,
    /// No endpoint can take it.
    NoHealthyUpstream,
    /// The answer did not come.
    Reset {
        /// Why.
        reason: Reset,
        /// Whether it was the last of several tries.
        retried: bool,
        /// What the transport says, for the log and the body; empty if nothing.
        transport: Cow<'static, str>,
    },
    /// The route's timeout.
    Timeout,
    /// The timeout of the last try.
    PerTryTimeout,
    /// A fault made on purpose.
    Abort(StatusCode),
    /// The body is too long to be kept for another try.
    RetryBufferFull,
    /// An upgrade to something other than WebSocket.
    UpgradeRefused,
    /// The path cannot be made plain.
    BadPath,
    /// The request target is no path: `OPTIONS *`.
    NotAPath,
    /// HTTP/1.0 or older.
    LowVersion,
    /// No Host.
    NoHost,
    /// The head is no HTTP, or says two things.
    BadRequest,
    /// `Connection` names what is not its to name.
    BadConnection,
    /// A transfer coding that is not known.
    BadCoding,
    /// Headers are too many or too long.
    HeadersTooLarge,
    /// Nothing moved for too long: 408 while the request comes, 504 after.
    Idle(StatusCode),
    /// This process has too much to do, or stops.
    Overloaded,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureReply {
    /// Status for HTTP; gRPC gets what it maps to.
    pub status: StatusCode,
    /// Body, or `grpc-message`.
    pub body: Cow<'static, str>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// The flag that it raises.
    pub flag: Option<Flag>,
}

impl Failure {
    /// Its row.
    pub fn reply(&self) -> FailureReply {
        use Flag as F;
        match self {
            Self::Denied(id) => FailureReply {
                details: format!("rbac_access_denied_matched_policy[{id}]").into(),
                ..row(403, "RBAC: access denied", "", None)
            },
            Self::NoRoute => row(404, "", "route_not_found", Some(F::NoRoute)),
            Self::NoCluster => row(503, "", "cluster_not_found", Some(F::NoCluster)),
            Self::InvalidBackend(status) if status.as_u16() == 503 => Self::NoCluster.reply(),
            Self::InvalidBackend(status) => row(status.as_u16(), "", "cluster_not_found", Some(F::NoCluster)),
            Self::Refused => row(503, "", "cluster_refused", Some(F::NoCluster)),
            Self::NoHealthyUpstream => {
                row(503, "no healthy upstream", "no_healthy_upstream", Some(F::NoHealthyUpstream))
            }
            Self::Reset { reason, retried, transport } => reset(*reason, *retried, transport),
            Self::Timeout => row(504, TIMEOUT, "response_timeout", Some(F::UpstreamTimeout)),
            Self::PerTryTimeout => row(504, TIMEOUT, "upstream_per_try_timeout", Some(F::UpstreamTimeout)),
            Self::Abort(status) => {
                row(status.as_u16(), "fault filter abort", "fault_filter_abort", Some(F::FaultInjected))
            }
            Self::RetryBufferFull => {
                row(507, RETRY_BUFFER, "request_payload_exceeded_retry_buffer_limit", None)
            }
            Self::UpgradeRefused => row(403, "", "upgrade_failed", None),
            Self::BadPath => row(400, "", "path_normalization_failed", None),
            Self::NotAPath => row(404, "", "absolute_path_rejected", None),
            Self::LowVersion => row(426, "Upgrade Required", "low_version", None),
            Self::NoHost => row(400, "", "missing_host_header", None),
            Self::BadRequest => row(400, "Bad Request", "http1.codec_error", Some(F::DownstreamProtocol)),
            Self::BadConnection => {
                row(400, "Bad Request", "http1.connection_header_rejected", Some(F::DownstreamProtocol))
            }
            Self::BadCoding => {
                row(501, "Not Implemented", "http1.invalid_transfer_encoding", Some(F::DownstreamProtocol))
            }
            Self::HeadersTooLarge => {
                row(431, HEADERS_TOO_LARGE, "http1.headers_too_large", Some(F::DownstreamProtocol))
            }
            Self::Idle(status) => {
                row(status.as_u16(), "stream timeout", "stream_idle_timeout", Some(F::StreamIdle))
            }
            Self::Overloaded => row(503, "overloaded", "overload_manager_active", Some(F::Overload)),
        }
    }
}

const TIMEOUT: &str = "upstream request timeout";
const RETRY_BUFFER: &str = "exceeded request buffer limit while retrying upstream";
const HEADERS_TOO_LARGE: &str = "Request Header Fields Too Large";

fn row(status: u16, body: &'static str, details: &'static str, flag: Option<Flag>) -> FailureReply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    FailureReply { status, body: body.into(), details: details.into(), flag }
}

fn reset(reason: Reset, retried: bool, transport: &str) -> FailureReply {
    let retried = if retried { "retried and the latest " } else { "" };
    let words = reason.as_str();
    let (comma, bar) = if transport.is_empty() { ("", "") } else { (", transport failure reason: ", "|") };
    let details = format!("upstream_reset_before_response_started{{{words}{bar}{transport}}}");
    FailureReply {
        status: match reason {
            Reset::ProtocolError => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
        body: format!(
            "upstream connect error or disconnect/reset before headers. {retried}reset reason: {words}{comma}{transport}"
        )
        .into(),
        details: details.replace(' ', "_").into(),
        flag: Some(reason.flag()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status, flag, details and body.
    const TABLE: &str = "\
403 - rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]]: RBAC: access denied
404 NR route_not_found:
503 NC cluster_not_found:
503 NC cluster_not_found:
500 NC cluster_not_found:
503 NC cluster_refused:
503 UH no_healthy_upstream: no healthy upstream
504 UT response_timeout: upstream request timeout
504 UT upstream_per_try_timeout: upstream request timeout
418 FI fault_filter_abort: fault filter abort
507 - request_payload_exceeded_retry_buffer_limit: exceeded request buffer limit while retrying upstream
403 - upgrade_failed:
400 - path_normalization_failed:
404 - absolute_path_rejected:
426 - low_version: Upgrade Required
400 - missing_host_header:
400 DPE http1.codec_error: Bad Request
400 DPE http1.connection_header_rejected: Bad Request
501 DPE http1.invalid_transfer_encoding: Not Implemented
431 DPE http1.headers_too_large: Request Header Fields Too Large
408 SI stream_idle_timeout: stream timeout
503 OM overload_manager_active: overloaded
";

    #[test]
    fn each_failure_has_its_status_body_details_and_flag() {
        let all = [
            Failure::Denied("ns[a]-policy[b]-rule[0]".into()),
            Failure::NoRoute,
            Failure::NoCluster,
            Failure::InvalidBackend(StatusCode::SERVICE_UNAVAILABLE),
            Failure::InvalidBackend(StatusCode::INTERNAL_SERVER_ERROR),
            Failure::Refused,
            Failure::NoHealthyUpstream,
            Failure::Timeout,
            Failure::PerTryTimeout,
            Failure::Abort(StatusCode::IM_A_TEAPOT),
            Failure::RetryBufferFull,
            Failure::UpgradeRefused,
            Failure::BadPath,
            Failure::NotAPath,
            Failure::LowVersion,
            Failure::NoHost,
            Failure::BadRequest,
            Failure::BadConnection,
            Failure::BadCoding,
            Failure::HeadersTooLarge,
            Failure::Idle(StatusCode::REQUEST_TIMEOUT),
            Failure::Overloaded,
        ];
        let line = |failure: &Failure| {
            let FailureReply { status, body, details, flag } = failure.reply();
            let flag = flag.map_or("-", |flag| flag.as_str());
            format!("{} {flag} {details}: {body}", status.as_u16()).trim_end().to_owned() + "\n"
        };
        assert_eq!(all.iter().map(line).collect::<String>(), TABLE);
    }

    #[test]
    fn each_reset_says_what_it_was() {
        for (reason, status, flag, words) in [
            (Reset::ConnectionFailure, 503, Flag::UpstreamConnectionFailure, "remote connection failure"),
            (Reset::ConnectionTimeout, 503, Flag::UpstreamConnectionFailure, "connection timeout"),
            (Reset::ConnectionTermination, 503, Flag::UpstreamTermination, "connection termination"),
            (Reset::RefusedStream, 503, Flag::UpstreamReset, "remote refused stream reset"),
            (Reset::RemoteReset, 503, Flag::UpstreamReset, "remote reset"),
            (Reset::LocalReset, 503, Flag::LocalReset, "local reset"),
            (Reset::Overflow, 503, Flag::UpstreamOverflow, "overflow"),
            (Reset::ProtocolError, 502, Flag::UpstreamProtocol, "protocol error"),
        ] {
            let reply = Failure::Reset { reason, retried: false, transport: "".into() }.reply();
            assert_eq!((reply.status.as_u16(), reply.flag), (status, Some(flag)));
            let want =
                format!("upstream connect error or disconnect/reset before headers. reset reason: {words}");
            assert_eq!(reply.body, want);
            let details = format!("upstream_reset_before_response_started{{{}}}", words.replace(' ', "_"));
            assert_eq!(reply.details, details);
        }
        let retried = Failure::Reset {
            reason: Reset::ConnectionFailure,
            retried: true,
            transport: "delayed connect error: Connection refused".into(),
        };
        assert_eq!(
            retried.reply().body,
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote \
             connection failure, transport failure reason: delayed connect error: Connection refused"
        );
        assert_eq!(
            retried.reply().details,
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
    }
}
