//! Headers that must not be passed on, and those that a proxy adds.
//!
//! **Source**: RFC 9110 §7.6.1; Envoy, HTTP header manipulation and sanitizing; `x-forwarded-client-cert`.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, REFERER, SERVER, TE, TRANSFER_ENCODING, UPGRADE};
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
#[error("Connection lists {0}; is the request forged?")]
pub struct BadConnection(&'static str);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// Headers that command a proxy: a client may send none of them.
static COMMANDS: [HeaderName; 16] = [
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
    HeaderName::from_static("x-envoy-upstream-stream-duration-ms"),
];

/// What `Connection` may not name: without these a request means something else.
const NOT_FOR_ONE_HOP: [&str; 4] = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
/// Names in `Connection` that a request may have.
const NAMES_MAX: usize = 9;

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
    let named = named(headers)?;
    clean(headers, &named, switch);
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
    // What an answer's Connection should not name stays: only its own client would be deceived.
    let named = named(headers).unwrap_or_default();
    clean(headers, &named, switch);
}

/// Takes away what HTTP/2 has no place for, whoever says it.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    const NAMES: [HeaderName; 5] = [CONNECTION, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING];
    NAMES.iter().for_each(|name| remove(headers, name));
}

fn remove(headers: &mut HeaderMap, name: &HeaderName) {
    while headers.remove(name).is_some() {}
}

/// Headers that `Connection` names.
fn named(headers: &HeaderMap) -> Result<Vec<HeaderName>, BadConnection> {
    let mut named = Vec::new();
    for (at, token) in headers.get_all(CONNECTION).iter().flat_map(tokens).enumerate() {
        if let Some(name) = NOT_FOR_ONE_HOP.iter().find(|name| token.eq_ignore_ascii_case(name.as_bytes())) {
            return Err(BadConnection(name));
        }
        if token.first() == Some(&b':') {
            return Err(BadConnection("a pseudo-header"));
        }
        if at >= NAMES_MAX {
            return Err(BadConnection("too many names"));
        }
        // TE and Upgrade have rules of their own; the length is that of what is sent on, whoever says what.
        if let Ok(name) = HeaderName::from_bytes(token)
            && ![UPGRADE, TE, CONNECTION, CONTENT_LENGTH].contains(&name)
        {
            named.push(name);
        }
    }
    Ok(named)
}

fn clean(headers: &mut HeaderMap, named: &[HeaderName], switch: Switch) {
    named.iter().for_each(|name| remove(headers, name));
    [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING].iter().for_each(|name| remove(headers, name));
    match switch {
        Switch::No => [CONNECTION, UPGRADE].iter().for_each(|name| remove(headers, name)),
        Switch::Upgrade => drop(headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"))),
    }
    if headers.contains_key(TE) {
        let is_trailers = |token: &[u8]| {
            let coding = token.split(|byte| *byte == b';').next().unwrap_or_default();
            coding.trim_ascii().eq_ignore_ascii_case(b"trailers")
        };
        let wants_trailers = headers.get_all(TE).iter().flat_map(tokens).any(is_trailers);
        remove(headers, &TE);
        if wants_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// An absolute address without user or fragment, or a relative one without fragment.
fn is_referer(value: &[u8]) -> bool {
    let is_text =
        |part: &[u8]| part.iter().all(|byte| byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(byte));
    let Some(colon) = value.iter().position(|byte| matches!(byte, b':' | b'/')) else {
        return is_text(value);
    };
    let (scheme, rest) = value.split_at(colon);
    match rest {
        [b':', b'/', b'/', rest @ ..] if scheme.first().is_some_and(u8::is_ascii_alphabetic) => {
            let host = rest.split(|byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default();
            !host.is_empty() && !host.contains(&b'@') && is_text(rest)
        }
        [b':', ..] => false,
        _ => is_text(value),
    }
}

/// Gives a request an id and a scheme if it has none.
///
/// **Shape**: `random` makes the id, a UUID of version 4; a client's own is kept.
pub fn add_request_headers(headers: &mut HeaderMap, random: u128) {
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
        // What came through the tunnel had no TLS of its own, whatever the client calls it.
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
}

/// Tells the application who the client is; what the client said of that is gone before. An identity holds nothing that
/// would have to be quoted.
pub fn add_client_cert(headers: &mut HeaderMap, own: &SpiffeId, peer: &SpiffeId) {
    let value = HeaderValue::try_from(format!("By={own};URI={peer}"));
    headers.extend(value.ok().map(|value| (CLIENT_CERT, value)));
}

/// Tells the application what the client asked for, before a rewrite, in place of what the client says of that.
pub(super) fn add_original_path(headers: &mut HeaderMap, target: &str) {
    if let Ok(target) = HeaderValue::try_from(target) {
        headers.insert(ORIGINAL_PATH, target);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::fixtures::{asked, lines};

    fn headers(all: &[&str]) -> HeaderMap {
        all.iter().fold(asked("GET /"), |request, line| request.with(line)).headers
    }

    #[track_caller]
    fn cleaned(all: &[&str], want: &[&str]) {
        let mut got = headers(all);
        clean_request(&mut got, Switch::No).unwrap();
        assert_eq!(lines(&got), want, "{all:?}");
    }

    #[test]
    fn what_is_for_one_hop_or_commands_a_proxy_does_not_pass() {
        cleaned(&["connection: foo, close", "foo: 1", "bar: 2"], &["bar: 2"]);
        cleaned(&["connection: close", "connection: Foo", "foo: 1", "foo: 2"], &[]);
        cleaned(&["keep-alive: x", "proxy-connection: x", "transfer-encoding: chunked", "upgrade: h2c"], &[]);
        cleaned(&["connection: te", "te: gzip;q=1, Trailers"], &["te: trailers"]);
        cleaned(&["te: gzip"], &[]);
        cleaned(&["connection: content-length", "content-length: 3"], &["content-length: 3"]);
        cleaned(&["connection: bad name, cookie", "cookie: a"], &[]);
        for command in COMMANDS.iter() {
            cleaned(&[&format!("{command}: 1"), &format!("{command}: 2")], &[]);
        }
        assert_eq!(COMMANDS.len(), 16);
        cleaned(&["x-forwarded-client-cert: By=a", "x-forwarded-client-cert: By=b"], &[]);
        let kept = [
            "x-envoy-attempt-count: 7",
            "x-envoy-decorator-operation: op",
            "x-envoy-foo: 1",
            "x-envoy-original-path: /f",
            "x-forwarded-for: 192.0.2.1",
            "x-request-id: mine",
        ];
        cleaned(&kept, &kept);
    }

    #[test]
    fn connection_may_not_name_what_a_request_means() {
        for value in ["host", "a, X-Forwarded-For", "x-forwarded-proto", ":path", "a,b,c,d,e,f,g,h,i,j"] {
            let mut got = headers(&[&format!("connection: {value}")]);
            assert!(clean_request(&mut got, Switch::No).is_err(), "{value}");
        }
        let error = clean_request(&mut headers(&["connection: HOST"]), Switch::No).unwrap_err();
        assert_eq!(error.to_string(), "Connection lists host; is the request forged?");
        let mut answer = headers(&["connection: host, close", "keep-alive: 5", "x: y"]);
        clean_response(&mut answer, Switch::No);
        assert_eq!(lines(&answer), ["x: y"]);
    }

    #[test]
    fn an_upgrade_keeps_what_it_needs() {
        let mut got = headers(&["connection: keep-alive, Upgrade", "upgrade: websocket", "keep-alive: 5"]);
        clean_request(&mut got, Switch::Upgrade).unwrap();
        assert_eq!(lines(&got), ["connection: Upgrade", "upgrade: websocket"]);
    }

    /// What Envoy 1.40 passes and drops.
    #[test]
    fn a_referer_is_an_address_or_goes() {
        for referer in ["http://a/b?c", "/rel:x", "ftp://x/y", "a/b:c", "HTTPS://A/b", ""] {
            let line = format!("referer: {referer}");
            cleaned(&[&line], &[&line]);
        }
        for referer in [
            "rel:x",
            "http://a/b#c",
            "about:blank",
            "https://u:p@h/",
            "http://a/ö",
            "http://",
            "http://a b/",
            "a<b",
        ] {
            let mut got = HeaderMap::new();
            got.insert(REFERER, HeaderValue::from_bytes(referer.as_bytes()).unwrap());
            clean_request(&mut got, Switch::No).unwrap();
            assert!(got.is_empty(), "{referer}");
        }
        cleaned(&["referer: /a", "referer: /b"], &[]);
    }

    #[test]
    fn a_request_gets_an_id_and_a_scheme_unless_it_has_them() {
        let mut got = HeaderMap::new();
        add_request_headers(&mut got, u128::MAX);
        assert_eq!(
            lines(&got),
            ["x-forwarded-proto: http", "x-request-id: ffffffff-ffff-4fff-bfff-ffffffffffff"]
        );
        let mut got = HeaderMap::new();
        add_request_headers(&mut got, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(
            lines(&got),
            ["x-forwarded-proto: http", "x-request-id: 01234567-89ab-4def-8123-456789abcdef"]
        );
        let own = ["x-forwarded-proto: ftp", "x-request-id: mine"];
        let mut got = headers(&own);
        add_request_headers(&mut got, 1);
        assert_eq!(lines(&got), own);
    }

    #[test]
    fn the_application_is_told_who_the_client_is() {
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        let own = id("spiffe://td/ns/shop/sa/waypoint");
        let mut got = HeaderMap::new();
        add_client_cert(&mut got, &own, &id("spiffe://td/ns/shop/sa/client"));
        let want =
            "x-forwarded-client-cert: By=spiffe://td/ns/shop/sa/waypoint;URI=spiffe://td/ns/shop/sa/client";
        assert_eq!(lines(&got), [want]);
    }

    #[test]
    fn answers_say_what_they_came_through() {
        let mut got = headers(&["server: app", "connection: close"]);
        clean_response(&mut got, Switch::No);
        add_service_time(&mut got, Duration::from_micros(2_900));
        add_server(&mut got);
        assert_eq!(lines(&got), ["server: istio-envoy", "x-envoy-upstream-service-time: 2"]);
        add_original_path(&mut got, "/a?b");
        assert_eq!(got["x-envoy-original-path"], "/a?b");
        add_original_path(&mut got, "/c");
        let all: Vec<_> = got.get_all("x-envoy-original-path").iter().collect();
        assert_eq!(all, ["/c"], "what the client says of it does not count");
    }
}
