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
            Self::InvalidBackend(status) => row(status.as_u16(), "", "direct_response", None),
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
            Self::LowVersion => row(426, "", "low_version", None),
            Self::NoHost => row(400, "", "missing_host_header", None),
            Self::BadRequest => row(400, "Bad Request", "http1.codec_error", Some(F::DownstreamProtocol)),
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
