//! What an HTTP route of a VirtualService does with requests, field by field.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, StatusCode};
use std::sync::Arc;

use super::values::{
    Lax, decimal, duration, duration_at, integer, path_text, pattern, percentage, string_match,
};
use crate::grpc::Code;
use crate::model::l7::{
    Abort, BackOff, Cors, Delay, DirectResponse, Fault, Fraction, PathRewrite, Redirect, RedirectPath,
    RedirectPort, Retries, RetryOn, Rewrite, TextMatch, UnmatchedPreflight,
};
use crate::source::kube::reader::Field;

/// Largest body of a direct response.
const BODY_MAX: usize = 1 << 20;
const REDIRECT_CODES: [u16; 5] = [301, 302, 303, 307, 308];

/// `retries` of an HTTP route.
pub(super) fn retries(field: &Field<'_>) -> Retries {
    let fields = [
        "attempts",
        "perTryTimeout",
        "retryOn",
        "retryRemoteLocalities",
        "retryIgnorePreviousHosts",
        "backoff",
    ];
    field.only(&fields);
    // What is no number has been told of, and says nothing of the others.
    let attempts = field.get("attempts").map_or(Some(0), |n| integer(&n, 0, i32::MAX.into()));
    let per_try_timeout = duration_at(field, "perTryTimeout");
    let base = duration_at(field, "backoff").unwrap_or(BackOff::BASE);
    let on = field.get("retryOn").filter(|on| on.text() != Some("")).map(|on| retry_on(&on));
    if attempts == Some(0)
        && let Some(other) =
            ["perTryTimeout", "retryOn", "retryRemoteLocalities"].iter().find_map(|k| field.get(k))
    {
        other.problem("set although attempts is 0, which means no retries", "allowed: attempts of 1 or more");
    }
    Retries {
        attempts: attempts.and_then(|n| n.try_into().ok()).unwrap_or(0),
        on: on.unwrap_or_else(RetryOn::usual),
        per_try_timeout,
        back_off: BackOff::Jittered { base },
        ignore_previous_hosts: field.maybe_flag_at("retryIgnorePreviousHosts"),
        remote_localities: field.flag_at("retryRemoteLocalities"),
    }
}

fn retry_on(field: &Field<'_>) -> RetryOn {
    let mut on = RetryOn::default();
    for token in field.text().unwrap_or("").split(',') {
        match token {
            "5xx" => on.five_xx = true,
            "gateway-error" => on.gateway_error = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "envoy-ratelimited" => on.envoy_ratelimited = true,
            "cancelled" => on.grpc_statuses.push(1),
            "deadline-exceeded" => on.grpc_statuses.push(4),
            "internal" => on.grpc_statuses.push(13),
            "resource-exhausted" => on.grpc_statuses.push(8),
            "unavailable" => on.grpc_statuses.push(14),
            // Of no effect here: codes are named one by one, no headers can be named, and nothing speaks HTTP/3.
            "retriable-status-codes" | "retriable-headers" | "http3-post-connect-failure" => {}
            number => match status_code(number) {
                Some(status) => on.statuses.push(status),
                None => field.problem(
                    format!("{token:?} among the conditions"),
                    "allowed: conditions of Envoy's x-envoy-retry-on and x-envoy-retry-grpc-on, and status codes, \
                     with commas between and no spaces",
                ),
            },
        }
    }
    on
}

/// A status code that has a name.
fn status_code(text: &str) -> Option<StatusCode> {
    let status = text.parse::<u16>().ok().and_then(|n| StatusCode::from_u16(n).ok())?;
    status.canonical_reason().map(|_| status)
}

/// `fault` of an HTTP route.
pub(super) fn fault(field: &Field<'_>) -> Fault {
    field.only(&["delay", "abort"]);
    if field.is_empty() {
        field.problem("neither delay nor abort", "allowed: one of them, or both");
    }
    Fault {
        delay: field.get("delay").and_then(|delay| read_delay(&delay)),
        abort: field.get("abort").and_then(|abort| read_abort(&abort)),
    }
}

fn read_delay(field: &Field<'_>) -> Option<Delay> {
    field.only(&["percent", "percentage", "fixedDelay", "exponentialDelay"]);
    if let Some(exponential) = field.get("exponentialDelay") {
        exponential.problem("exponentialDelay", "allowed: fixedDelay");
        return None;
    }
    let old = || {
        let percent = integer(&field.get("percent")?, 0, 100)?;
        u32::try_from(percent).ok().map(|percent| Fraction(percent * 10_000))
    };
    let share = match field.get("percentage") {
        Some(new) => percentage(&new)?,
        None => old().unwrap_or(Fraction(0)),
    };
    let Some(fixed) = field.get("fixedDelay") else {
        field.warning("a delay without fixedDelay", "it has no effect");
        return None;
    };
    warn_of_share(field, share);
    Some(Delay { fixed: duration(&fixed)?, share })
}

fn read_abort(field: &Field<'_>) -> Option<Abort> {
    field.only(&["httpStatus", "grpcStatus", "http2Error", "percentage"]);
    let share = field.get("percentage").map_or(Some(Fraction(0)), |share| percentage(&share))?;
    if let Some(http2) = field.get("http2Error") {
        http2.problem("http2Error", "allowed: httpStatus or grpcStatus");
        return None;
    }
    let abort = match (field.get("httpStatus"), field.get("grpcStatus")) {
        (Some(_), Some(grpc)) => {
            grpc.problem("grpcStatus beside httpStatus", "allowed: one of them");
            None
        }
        (Some(http), None) => Some(Abort { status: response_status(&http)?, grpc_status: None, share }),
        (None, Some(grpc)) => {
            let name = grpc.text()?;
            let number = Code::NAMES.iter().position(|known| *known == name);
            if number.is_none() {
                grpc.refuse(&Code::NAMES.join(", "));
            }
            let number = number.and_then(|n| u8::try_from(n).ok())?;
            Some(Abort { status: StatusCode::OK, grpc_status: Some(number), share })
        }
        (None, None) => {
            field.warning("an abort without httpStatus and grpcStatus", "it has no effect");
            None
        }
    }?;
    warn_of_share(field, share);
    Some(abort)
}

fn warn_of_share(field: &Field<'_>, share: Fraction) {
    if share == Fraction(0) && field.get("percentage").is_none() && field.get("percent").is_none() {
        field.warning("no percentage", "it stands for 0, so nothing happens; write percentage: {value: 100}");
    }
}

/// A status that a route may answer with itself.
fn response_status(field: &Field<'_>) -> Option<StatusCode> {
    let number = integer(field, 200, 599)?;
    u16::try_from(number).ok().and_then(|n| StatusCode::from_u16(n).ok())
}

/// `directResponse` of an HTTP route.
pub(super) fn direct_response(field: &Field<'_>) -> Option<DirectResponse> {
    field.only(&["status", "body"]);
    let Some(status) = field.get("status") else {
        field.problem("no status", "allowed: a status of 200 to 599");
        return None;
    };
    let mut body: Vec<u8> = Vec::new();
    if let Some(given) = field.get("body") {
        given.only(&["string", "bytes"]);
        match (given.get("string"), given.get("bytes")) {
            (Some(_), Some(bytes)) => bytes.problem("bytes beside string", "allowed: one of them"),
            (Some(text), None) => body = text.text().unwrap_or("").into(),
            (None, Some(bytes)) => match STANDARD.decode(bytes.text().unwrap_or("")) {
                Ok(decoded) => body = decoded,
                Err(_) => bytes.refuse("base64"),
            },
            (None, None) => {}
        }
        if body.len() > BODY_MAX {
            given.problem(format!("{} bytes", body.len()), format!("allowed: at most {BODY_MAX}"));
        }
    }
    Some(DirectResponse { status: response_status(&status)?, body: body.into() })
}

/// `redirect` of an HTTP route.
pub(super) fn redirect(field: &Field<'_>) -> Option<Redirect> {
    let fields = ["uri", "authority", "port", "derivePort", "scheme", "redirectCode", "prefixRewrite"];
    field.only(&fields);
    if !["uri", "authority", "port", "derivePort", "scheme", "prefixRewrite"]
        .iter()
        .any(|k| field.get(k).is_some())
    {
        field.problem("nowhere to go", "allowed: uri, authority, port, derivePort, scheme or prefixRewrite");
    }
    let schemes = ["http", "https"].map(|scheme| (scheme, scheme));
    let port = match (field.get("port"), field.get("derivePort")) {
        (Some(_), Some(derive)) => {
            derive.problem("derivePort beside port", "allowed: one of them");
            RedirectPort::OfScheme
        }
        (Some(port), None) => port.port().map_or(RedirectPort::OfScheme, RedirectPort::Number),
        (None, Some(derive)) => {
            let kinds = [
                ("FROM_PROTOCOL_DEFAULT", RedirectPort::OfScheme),
                ("FROM_REQUEST_PORT", RedirectPort::OfRequest),
            ];
            derive.one_of(&kinds)?
        }
        (None, None) => RedirectPort::OfScheme,
    };
    let path = match (said_path(field, "uri"), said_path(field, "prefixRewrite")) {
        (Some(_), Some(_)) => {
            field.problem("prefixRewrite beside uri", "allowed: one of them");
            return None;
        }
        (Some(uri), None) => RedirectPath::Full(uri),
        (None, Some(prefix)) => RedirectPath::PrefixText(prefix),
        (None, None) => RedirectPath::Same,
    };
    Some(Redirect {
        status: redirect_code(field, "redirectCode", 301)?,
        scheme: field.get("scheme").and_then(|scheme| scheme.one_of(&schemes)).map(Arc::from),
        authority: field.text_at("authority").map(Arc::from),
        port,
        path,
    })
}

/// The code `key` of a redirect.
pub(super) fn redirect_code(field: &Field<'_>, key: &str, unset: u16) -> Option<StatusCode> {
    let mut code = unset;
    if let Some(given) = field.get(key) {
        let number = integer(&given, 0, 599)?;
        match u16::try_from(number) {
            Ok(0) => {}
            Ok(number) if REDIRECT_CODES.contains(&number) => code = number,
            _ => {
                given.refuse("301, 302, 303, 307, 308");
                return None;
            }
        }
    }
    StatusCode::from_u16(code).ok()
}

/// The path `key`; an empty text says nothing, as everywhere in Istio's objects.
fn said_path(field: &Field<'_>, key: &str) -> Option<Arc<str>> {
    path_text(field, key).filter(|text| !text.is_empty())
}

/// `rewrite` of an HTTP route.
pub(super) fn rewrite(field: &Field<'_>) -> Rewrite {
    field.only(&["uri", "authority", "uriRegexRewrite"]);
    let uri = said_path(field, "uri");
    let authority = field.get("authority").filter(|a| a.text() != Some(""));
    let path = match (uri, field.get("uriRegexRewrite")) {
        (Some(_), Some(regex)) => {
            regex.problem("uriRegexRewrite beside uri", "allowed: one of them");
            None
        }
        (Some(uri), None) => Some(PathRewrite::PrefixText(uri)),
        (None, Some(regex)) => regex_rewrite(&regex),
        (None, None) => {
            if authority.is_none() {
                field.problem("nothing to rewrite", "allowed: uri, uriRegexRewrite or authority");
            }
            None
        }
    };
    Rewrite { path, authority: authority.and_then(|authority| authority_value(&authority)) }
}

/// An authority as the value of a header.
pub(super) fn authority_value(field: &Field<'_>) -> Option<HeaderValue> {
    let value = HeaderValue::from_str(field.text()?).ok();
    if value.is_none() {
        field.refuse("a host name, perhaps with a port");
    }
    value
}

fn regex_rewrite(field: &Field<'_>) -> Option<PathRewrite> {
    field.only(&["match", "rewrite"]);
    match (field.get("match"), said_path(field, "rewrite")) {
        (Some(expression), Some(substitution)) => {
            Some(PathRewrite::Regex { pattern: pattern(&expression)?, substitution })
        }
        _ => {
            field.problem("no match or no rewrite", "allowed: both");
            None
        }
    }
}

/// `corsPolicy` of an HTTP route.
pub(super) fn cors(field: &Field<'_>) -> Cors {
    field.only(&[
        "allowOrigin",
        "allowOrigins",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
        "maxAge",
        "allowCredentials",
        "unmatchedPreflights",
    ]);
    let origins = match field.get("allowOrigins") {
        Some(list) => list.list().iter().filter_map(origin).collect(),
        None => field
            .items("allowOrigin")
            .iter()
            .filter_map(|o| Some(TextMatch::Exact(o.text()?.into())))
            .collect(),
    };
    let max_age = field.get("maxAge").and_then(|age| {
        let duration = duration(&age)?;
        if duration.subsec_nanos() > 0 {
            age.refuse("whole seconds");
        }
        Some(duration)
    });
    let preflights = [
        ("UNSPECIFIED", UnmatchedPreflight::Forward),
        ("FORWARD", UnmatchedPreflight::Forward),
        ("IGNORE", UnmatchedPreflight::Answer),
    ];
    Cors {
        origins,
        methods: joined(field, "allowMethods", |name| {
            let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];
            known.contains(&name)
        }),
        headers: joined(field, "allowHeaders", is_header),
        expose: joined(field, "exposeHeaders", is_header),
        max_age,
        credentials: field.flag_at("allowCredentials"),
        unmatched: field
            .get("unmatchedPreflights")
            .and_then(|how| how.one_of(&preflights))
            .unwrap_or(UnmatchedPreflight::Forward),
    }
}

fn origin(field: &Field<'_>) -> Option<TextMatch> {
    let origin = string_match(field, Lax::No)?;
    if matches!(&origin, TextMatch::Present) || matches!(&origin, TextMatch::Exact(text) if text.is_empty()) {
        field.problem("no origin", "allowed: exact, prefix or regex with at least one character");
        return None;
    }
    Some(origin)
}

/// Whether this is a header's name, or `*`.
pub(super) fn is_header(name: &str) -> bool {
    let char = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    name == "*" || (!name.is_empty() && name.bytes().all(char))
}

/// The texts of a list, with commas between; none if there is none.
pub(super) fn joined(field: &Field<'_>, key: &str, is_good: impl Fn(&str) -> bool) -> Option<HeaderValue> {
    let mut names = Vec::new();
    for item in field.items(key) {
        match item.text() {
            Some(text) if is_good(text) => names.push(text),
            Some(_) => {
                item.refuse(if key == "allowMethods" { "an HTTP method" } else { "a header's name, or *" })
            }
            None => {}
        }
    }
    if names.is_empty() { None } else { HeaderValue::from_str(&names.join(",")).ok() }
}

/// Percentage of mirrored requests: `percentage: {value}`, else `percent`, else all.
pub(super) fn mirror_share(field: &Field<'_>, new: &str, old: Option<&str>) -> Option<Fraction> {
    if let Some(share) = field.get(new) {
        share.only(&["value"]);
        let value = share.get("value").map_or(Some(0.0), |value| decimal(&value, 0.0, 100.0))?;
        return Some(super::values::fraction(value));
    }
    if let Some(old) = old.and_then(|key| field.get(key)) {
        old.warning("mirrorPercent is deprecated", "write mirrorPercentage: {value: ...}");
        let percent = integer(&old, 0, 100)?;
        return u32::try_from(percent).ok().map(|percent| Fraction(percent * 10_000));
    }
    Some(Fraction::ALL)
}

/// Whether this is a method that CORS may name, or `*`.
pub(super) fn is_method(name: &str) -> bool {
    name == "*"
        || Method::from_bytes(name.as_bytes())
            .is_ok_and(|m| m.as_str().bytes().all(|b| b.is_ascii_uppercase()))
}
