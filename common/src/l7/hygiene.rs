//! Headers that must not be passed on, and those that a proxy adds.
//!
//! **Source**: RFC 9110 §7.6.1; Envoy, HTTP header manipulation and sanitizing; `x-forwarded-client-cert`.

use std::fmt::Write as _;
use std::time::Duration;

use http::header::{CONNECTION, HeaderName, REFERER, SERVER, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue};

use crate::types::{SpiffeId, push_hex};

/// Whether a message switches protocols, so that the headers for that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It does not.
    No,
    /// `Connection: upgrade`, and `Upgrade`.
    Upgrade,
}

/// `Connection` names what is not its to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Connection lists {0}, which is not for one hop; is the request forged?")]
pub struct BadConnection(&'static str);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// Headers that command a proxy: a client may send none of them.
static COMMANDS: [HeaderName; 15] = [
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
    HeaderName::from_static("x-envoy-internal"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
];

/// What `Connection` may not name: without these a request means something else.
const NOT_FOR_ONE_HOP: [&str; 6] = [
    "host",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "content-length",
    "transfer-encoding",
];

/// Takes from a request what was meant for this hop, what commands a proxy, and what only a proxy may say.
///
/// **Errors**: `Connection` names a header that must not vanish; the request is answered with 400.
pub fn clean_request(headers: &mut HeaderMap, switch: Switch) -> Result<(), BadConnection> {
    // One walk over names in place of twenty look-ups: nearly all requests have none of these.
    let mut has_envoy = false;
    let mut has_client_cert = false;
    let mut referers = 0;
    for name in headers.keys() {
        has_envoy |= name.as_str().starts_with("x-envoy-");
        has_client_cert |= *name == CLIENT_CERT;
        referers += usize::from(*name == REFERER);
    }
    remove_hop_by_hop(headers, switch)?;
    if has_envoy {
        COMMANDS.iter().for_each(|name| remove(headers, name));
    }
    if has_client_cert {
        remove(headers, &CLIENT_CERT);
    }
    let lines = if referers == 0 { 0 } else { headers.get_all(REFERER).iter().count() };
    if lines > 1 || headers.get(REFERER).is_some_and(|referer| !is_referer(referer.as_bytes())) {
        remove(headers, &REFERER);
    }
    Ok(())
}

/// Takes from an answer what was meant for this hop.
pub fn clean_response(headers: &mut HeaderMap, switch: Switch) {
    // An answer whose Connection names what it should not keeps that; nobody is deceived by it but its own client.
    let _ = remove_hop_by_hop(headers, switch);
}

fn remove(headers: &mut HeaderMap, name: &HeaderName) {
    while headers.remove(name).is_some() {}
}

fn remove_hop_by_hop(headers: &mut HeaderMap, switch: Switch) -> Result<(), BadConnection> {
    let mut named: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for token in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if let Some(name) =
                NOT_FOR_ONE_HOP.iter().find(|name| token.eq_ignore_ascii_case(name.as_bytes()))
            {
                return Err(BadConnection(name));
            }
            if token.first() == Some(&b':') {
                return Err(BadConnection("a pseudo-header"));
            }
            // TE, Upgrade and Connection have rules of their own.
            if let Ok(name) = HeaderName::from_bytes(token)
                && name != UPGRADE
                && name != TE
                && name != CONNECTION
            {
                named.push(name);
            }
        }
    }
    named.iter().for_each(|name| remove(headers, name));
    [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING].iter().for_each(|name| remove(headers, name));
    match switch {
        Switch::No => [CONNECTION, UPGRADE].iter().for_each(|name| remove(headers, name)),
        Switch::Upgrade => drop(headers.insert(CONNECTION, HeaderValue::from_static("upgrade"))),
    }
    if headers.contains_key(TE) {
        let wants_trailers = headers.get_all(TE).iter().any(|value| {
            let coding = |part: &[u8]| {
                part.split(|byte| *byte == b';').next().map(<[u8]>::trim_ascii) == Some(b"trailers")
            };
            value.as_bytes().to_ascii_lowercase().split(|byte| *byte == b',').any(coding)
        });
        remove(headers, &TE);
        if wants_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    Ok(())
}

/// An absolute address without user or fragment, or a relative one without fragment.
fn is_referer(value: &[u8]) -> bool {
    let after_scheme = [b"http://".as_slice(), b"https://"].iter().find_map(|scheme| {
        let (start, rest) = value.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    let is_text = |part: &[u8]| part.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
    match after_scheme {
        Some(rest) => {
            let host = rest.split(|byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default();
            !host.is_empty() && !host.contains(&b'@') && is_text(rest)
        }
        None => {
            let segment = value.split(|byte| *byte == b'/').next().unwrap_or_default();
            !segment.contains(&b':') && is_text(value)
        }
    }
}

/// Gives a request an id and a scheme if it has none.
///
/// **Shape**: `random` makes the id, a UUID of version 4; a client's own is kept.
pub fn add_request_headers(headers: &mut HeaderMap, scheme: &str, random: u128) {
    if !headers.contains_key(REQUEST_ID) {
        let mut id = String::with_capacity(36);
        let bits = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
        for (digits, shift) in [(8, 96), (4, 80), (4, 64), (4, 48), (12, 0)] {
            if shift < 96 {
                id.push('-');
            }
            push_hex(&mut id, (bits >> shift) & ((1 << (digits * 4)) - 1), digits);
        }
        headers.extend(HeaderValue::try_from(id).ok().map(|id| (REQUEST_ID, id)));
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        let scheme = if scheme == "https" { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
}

/// Tells the application who the client is; what the client said of that is gone before.
pub fn add_client_cert(headers: &mut HeaderMap, own: &SpiffeId, peer: &SpiffeId) {
    let mut value = String::with_capacity(160);
    for (key, id) in [("By=", own), (";URI=", peer)] {
        let id = id.to_string();
        // An identity may hold what separates the parts of this header.
        let quote = if id.contains([',', ';', '=', '"']) { "\"" } else { "" };
        // Writing to a String does not fail.
        let _ = write!(value, "{key}{quote}{}{quote}", id.replace('\\', "\\\\").replace('"', "\\\""));
    }
    headers.extend(HeaderValue::try_from(value).ok().map(|value| (CLIENT_CERT, value)));
}

/// Tells the application what the client asked for, before a rewrite.
pub fn add_original_path(headers: &mut HeaderMap, target: &str) {
    headers.extend(HeaderValue::try_from(target).ok().map(|target| (ORIGINAL_PATH, target)));
}

/// Adds to an upstream's answer how long it took, in whole milliseconds.
pub fn add_service_time(headers: &mut HeaderMap, took: Duration) {
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    headers.insert(SERVICE_TIME, HeaderValue::from(millis));
}

/// Says on every answer what it came through, in place of what the upstream says.
pub fn add_server(headers: &mut HeaderMap) {
    headers.insert(SERVER, HeaderValue::from_static("istio-envoy"));
}
