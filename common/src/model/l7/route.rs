//! Routes: which requests they are for, and what becomes of these.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;

use super::{ClusterKey, Pattern, TextMatch};

/// One rule of a VirtualService, HTTPRoute or GRPCRoute, or the default route of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// As logs, traces and metrics name it.
    pub name: Arc<str>,
    /// Where it was written.
    pub origin: Origin,
    /// One must hold; without any it is for every request.
    pub matches: Vec<RequestMatch>,
    /// What becomes of a request.
    pub action: RouteAction,
    /// Edits of the request's headers: with those of the only backend as one list, after those of one of several.
    pub request_headers: HeaderEdits,
    /// Edits of the answer's headers, in the same order.
    pub response_headers: HeaderEdits,
    /// New path and authority.
    pub rewrite: Rewrite,
    /// For the whole request, all tries included; none: no limit.
    pub timeout: Option<Duration>,
    /// What is tried again.
    pub retries: Retries,
    /// Faults that are made on purpose.
    pub fault: Fault,
    /// Who gets a copy.
    pub mirrors: Vec<Mirror>,
    /// Cross-origin requests.
    pub cors: Option<Cors>,
}

/// The object that a route is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `VirtualService`, `HTTPRoute`, `GRPCRoute`, `TCPRoute`; empty for a default route.
    pub kind: &'static str,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Which of its rules, from 0.
    pub rule: usize,
}

/// `<kind> <namespace>/<name> rule <index>`, or `default route`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_empty() {
            return f.write_str("default route");
        }
        write!(f, "{} {}/{} rule {}", self.kind, self.namespace, self.name, self.rule)
    }
}

/// AND over its fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestMatch {
    /// The path without its query.
    pub path: Option<PathTest>,
    /// The method.
    pub method: Option<TextMatch>,
    /// `http` or `https`.
    pub scheme: Option<TextMatch>,
    /// Host header or `:authority`, as the client wrote it.
    pub authority: Option<TextMatch>,
    /// Headers that must be there.
    pub headers: Vec<HeaderMatch>,
    /// Headers that must not be there, or not have such a value.
    pub without_headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
    /// The service's port.
    pub port: Option<u16>,
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum PathTest {
    /// As a text: VirtualService, and Exact or RegularExpression of Gateway API.
    Text {
        /// What it must be.
        text: TextMatch,
        /// Whether the case of letters counts not.
        ignore_case: bool,
    },
    /// By whole segments, without a `/` at its end: PathPrefix of Gateway API.
    Segments(Arc<str>),
}

/// A test of one header; its name is in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The header; `:authority`, `:method`, `:path` and `:scheme` are read from the request line.
    pub name: Arc<str>,
    /// What its value must be.
    pub value: TextMatch,
}

/// A test of one query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// Its name.
    pub name: Arc<str>,
    /// What its first value must be.
    pub value: TextMatch,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteAction {
    /// It goes to one of these, by weight. Weights are over 0.
    Forward(Vec<Weighted>),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered here.
    Respond(DirectResponse),
}

/// One of several destinations.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// Where to.
    pub backend: Backend,
    /// Its part, against those of the others.
    pub weight: u32,
    /// Edits of the request's headers.
    pub request_headers: HeaderEdits,
    /// Edits of the answer's headers.
    pub response_headers: HeaderEdits,
    /// New path and authority, in place of the route's where they say something.
    pub rewrite: Rewrite,
    /// Who gets a copy, beside those of the route.
    pub mirrors: Vec<Mirror>,
}

/// A destination, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A service, or a subset of it. That there is a [`super::Cluster`] for it is not said: a subset that no
    /// DestinationRule defines has none.
    Cluster(ClusterKey),
    /// Requests are answered with this status.
    Invalid {
        /// 500 for Gateway API, 503 else.
        status: StatusCode,
        /// What is wrong with it.
        reason: Arc<str>,
    },
}

/// Edits of headers: `remove` first, then `set`, then `add`; those of a route and of its only destination are one list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Replaces all values.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Adds a value.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Takes all values away.
    pub remove: Vec<HeaderName>,
    /// `host` or `:authority` that was set, which is a rewrite of the authority.
    pub authority: Option<HeaderValue>,
}

/// New path and authority for the upstream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrite {
    /// New path.
    pub path: Option<PathRewrite>,
    /// New authority.
    pub authority: Option<HeaderValue>,
}

/// How a path is changed; the query stays.
#[derive(Clone, Debug, PartialEq)]
pub enum PathRewrite {
    /// In place of the prefix that matched, as a text; the whole path if another kind of match did.
    /// Without any path match `/` is the prefix. VirtualService.
    PrefixText(Arc<str>),
    /// In place of the segments that matched, with slashes kept right. Gateway API.
    PrefixSegments(Arc<str>),
    /// In place of the whole path.
    Full(Arc<str>),
    /// All matches of a pattern are substituted.
    Regex {
        /// What is replaced.
        pattern: Pattern,
        /// By what; `\1` is a group.
        substitution: Arc<str>,
    },
}

/// Where a client is sent. What is not said stays as it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// Host name, or authority, of the new address.
    pub authority: Option<Arc<str>>,
    /// Port of the new address.
    pub port: RedirectPort,
    /// Path of the new address.
    pub path: RedirectPath,
}

/// Port of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectPort {
    /// This one; left out if it is the scheme's own.
    Number(u16),
    /// None is said, unless the authority has one: the scheme's own.
    OfScheme,
    /// That of the request.
    OfRequest,
}

/// Path of a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// The request's, with its query.
    Same,
    /// This one; the query stays, unless this has one.
    Full(Arc<str>),
    /// In place of the prefix that matched, as [`PathRewrite::PrefixText`].
    PrefixText(Arc<str>),
    /// In place of the segments that matched, as [`PathRewrite::PrefixSegments`].
    PrefixSegments(Arc<str>),
}

/// An answer that is made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its body; all answers share it.
    pub body: Bytes,
}

/// When a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first; 0: none.
    pub attempts: u32,
    /// What makes a try worth repeating.
    pub on: RetryOn,
    /// For one try; none: the route's.
    pub per_try_timeout: Option<Duration>,
    /// Pauses between tries.
    pub back_off: BackOff,
    /// Whether an endpoint that was tried may be tried again; none: not, if another is there.
    pub ignore_previous_hosts: Option<bool>,
    /// Whether other localities are tried as well.
    pub remote_localities: bool,
}

/// Pauses between tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackOff {
    /// A random part of `(2^n - 1) * base`, at most ten times the base. VirtualService.
    Jittered {
        /// 25 ms unless said otherwise.
        base: Duration,
    },
    /// At least so long. HTTPRoute.
    AtLeast(Duration),
}

impl BackOff {
    /// Base of pauses of which nothing is said.
    pub const BASE: Duration = Duration::from_millis(25);
}

impl Default for Retries {
    /// Where nothing is said of them. Source: Istio, defaultHttpRetryPolicy.
    fn default() -> Self {
        Self {
            attempts: 2,
            on: RetryOn::usual(),
            per_try_timeout: None,
            back_off: BackOff::Jittered { base: BackOff::BASE },
            ignore_previous_hosts: None,
            remote_localities: false,
        }
    }
}

/// What makes a try worth repeating. Source: Envoy, x-envoy-retry-on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the tokens")]
pub struct RetryOn {
    pub five_xx: bool,
    pub gateway_error: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub connect_failure: bool,
    pub refused_stream: bool,
    pub retriable_4xx: bool,
    pub envoy_ratelimited: bool,
    /// `retriable-status-codes`, and numbers among the tokens.
    pub statuses: Vec<StatusCode>,
    /// `cancelled` 1, `deadline-exceeded` 4, `internal` 13, `resource-exhausted` 8, `unavailable` 14.
    pub grpc_statuses: Vec<u8>,
}

impl RetryOn {
    /// `connect-failure,refused-stream,unavailable,cancelled`; `retriable-status-codes` of none means nothing.
    pub fn usual() -> Self {
        Self { connect_failure: true, refused_stream: true, grpc_statuses: vec![14, 1], ..Self::default() }
    }

    /// Tokens of all but the statuses of gRPC.
    pub fn tokens(&self) -> Vec<String> {
        // Written out, so that a new field has to be told.
        let Self {
            five_xx,
            gateway_error,
            reset,
            reset_before_request,
            connect_failure,
            refused_stream,
            retriable_4xx,
            envoy_ratelimited,
            statuses,
            grpc_statuses: _,
        } = self;
        let named = [
            (five_xx, "5xx"),
            (gateway_error, "gateway-error"),
            (reset, "reset"),
            (reset_before_request, "reset-before-request"),
            (connect_failure, "connect-failure"),
            (refused_stream, "refused-stream"),
            (retriable_4xx, "retriable-4xx"),
            (envoy_ratelimited, "envoy-ratelimited"),
        ];
        let named = named.into_iter().filter(|(is_on, _)| **is_on).map(|(_, name)| name.to_owned());
        named.chain(statuses.iter().map(|status| status.as_u16().to_string())).collect()
    }
}

/// Faults that are made on purpose: the delay first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    /// Time that is lost.
    pub delay: Option<Delay>,
    /// An answer in place of the upstream's.
    pub abort: Option<Abort>,
}

/// Time that is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    /// How long.
    pub fixed: Duration,
    /// How often.
    pub share: Fraction,
}

/// An answer in place of the upstream's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Abort {
    /// Status of the answer; 200 beside a gRPC status.
    pub status: StatusCode,
    /// gRPC status of the answer.
    pub grpc_status: Option<u8>,
    /// How often.
    pub share: Fraction,
}

/// How often, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fraction(pub u32);

impl Fraction {
    /// Always.
    pub const ALL: Self = Self(1_000_000);

    /// Whether it is so for a number out of 0 to 999,999.
    pub fn includes(self, random: u32) -> bool {
        random < self.0
    }
}

/// Who gets a copy of requests; its answers are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub backend: Backend,
    /// How often.
    pub share: Fraction,
}

/// Cross-origin requests. Source: Fetch, HTTP-CORS protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// Origins that may ask.
    pub origins: Vec<TextMatch>,
    /// `Access-Control-Allow-Methods`; empty: not sent.
    pub methods: Option<HeaderValue>,
    /// `Access-Control-Allow-Headers`; empty: not sent.
    pub headers: Option<HeaderValue>,
    /// `Access-Control-Expose-Headers`; empty: not sent.
    pub expose: Option<HeaderValue>,
    /// `Access-Control-Max-Age`.
    pub max_age: Option<Duration>,
    /// `Access-Control-Allow-Credentials`.
    pub credentials: bool,
    /// What becomes of a preflight from another origin.
    pub unmatched: UnmatchedPreflight,
}

/// What becomes of a preflight whose origin may not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmatchedPreflight {
    /// It goes upstream.
    Forward,
    /// It is answered with 200 and nothing said of the origin.
    Answer,
}

/// A TCP route, or a TLS route of the service's own host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpRoute {
    /// As logs name it.
    pub name: Arc<str>,
    /// Where it was written.
    pub origin: Origin,
    /// One must hold; without any it is for every connection.
    pub matches: Vec<TcpMatch>,
    /// Where to, by weight.
    pub backends: Vec<(Backend, u32)>,
}

/// AND over its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpMatch {
    /// One of these has the destination's address; none: any.
    pub destinations: Vec<IpNet>,
    /// The service's port.
    pub port: Option<u16>,
    /// Names of TLS servers, for which a route counts before others. What a client asks for is not compared: the tunnel has said
    /// which service it wants, and istiod's waypoints do not compare it either.
    pub server_names: Vec<Arc<str>>,
}

impl TcpMatch {
    /// Whether a connection to this address is meant.
    pub fn is_match(&self, ip: IpAddr, port: u16) -> bool {
        (self.destinations.is_empty() || self.destinations.iter().any(|net| net.contains(&ip)))
            && self.port.is_none_or(|p| p == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcp_match_means_addresses_and_a_port() {
        let of = |nets: &[&str], port| TcpMatch {
            destinations: nets.iter().map(|net| net.parse().unwrap()).collect(),
            port,
            server_names: Vec::new(),
        };
        for (of, address, is_meant) in [
            (of(&[], None), "10.0.0.1:80", true),
            (of(&[], Some(80)), "10.0.0.1:80", true),
            (of(&[], Some(81)), "10.0.0.1:80", false),
            (of(&["10.1.0.0/16", "10.0.0.0/16"], None), "10.0.0.1:80", true),
            (of(&["10.1.0.0/16"], None), "10.0.0.1:80", false),
            (of(&["10.0.0.0/16"], Some(81)), "10.0.0.1:80", false),
            (of(&["fd00::/8"], Some(80)), "[fd00::1]:80", true),
            (of(&["10.0.0.0/8"], None), "[fd00::1]:80", false),
        ] {
            let address: std::net::SocketAddr = address.parse().unwrap();
            assert_eq!(of.is_match(address.ip(), address.port()), is_meant, "{of:?} {address}");
        }
    }
}
