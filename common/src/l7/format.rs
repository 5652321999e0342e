//! Values of headers that are made for each request: `%REQ(x-user)%` and the like.
//!
//! **Source**: Envoy, custom request and response headers; command operators of its access log.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode};

use super::flags::Flags;
use crate::authz::http::Facts;
use crate::types::{push_number, push_padded};

/// What substitutions may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The request.
    pub facts: &'a Facts<'a>,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// When the request began.
    pub started: SystemTime,
    /// Name of its route.
    pub route: &'a str,
    /// The endpoint, once one is chosen.
    pub upstream: Option<SocketAddr>,
    /// What has become of the request so far.
    pub flags: Flags,
    /// Why it has, in Envoy's words; empty: nothing yet.
    pub details: &'a str,
    /// The answer, once it is there.
    pub response: Option<(StatusCode, &'a HeaderMap)>,
}

/// Why a value of a header cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubstitution {
    /// Something begins with `%` and does not end.
    #[error("{0:?} begins a substitution that does not end; a % of its own is written %%")]
    Open(String),
    /// Nothing of that name is known here.
    #[error("%{0}% is not known here; what is: {KNOWN}")]
    Unknown(String),
}

const KNOWN: &str = "REQ(name), RESP(name), PROTOCOL, START_TIME, RESPONSE_CODE, \
    RESPONSE_CODE_DETAILS, RESPONSE_FLAGS, STREAM_ID, ROUTE_NAME, REQUESTED_SERVER_NAME, \
    DOWNSTREAM_REMOTE_ADDRESS, DOWNSTREAM_LOCAL_ADDRESS and UPSTREAM_REMOTE_ADDRESS with _WITHOUT_PORT or as _PORT, \
    DOWNSTREAM_PEER_URI_SAN";

/// Checks a value that an edit of headers is configured with.
///
/// **Errors**: a substitution that is not known or does not end; such a value must not be used.
pub fn check(value: &HeaderValue) -> Result<(), BadSubstitution> {
    pieces(value).try_for_each(|piece| piece.map(drop))
}

/// Whether a value is to be made for each request.
pub(super) fn is_made(value: &HeaderValue) -> bool {
    value.as_bytes().contains(&b'%')
}

/// The value for one request; none if nothing is left of it, and then the header is not touched.
pub(super) fn made(value: &HeaderValue, values: &Values<'_>) -> Option<HeaderValue> {
    let mut out = Vec::new();
    for piece in pieces(value) {
        match piece.ok()? {
            Piece::Text(text) => out.extend_from_slice(text),
            Piece::Made(what, longest) => {
                let made = what.of(values);
                out.extend_from_slice(made.get(..longest.unwrap_or(made.len())).unwrap_or(&made));
            }
        }
    }
    if out.is_empty() { None } else { HeaderValue::from_bytes(&out).ok() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a [u8]),
    /// And how much of it at most.
    Made(Substitution<'a>, Option<usize>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Substitution<'a> {
    /// A header, or another if that is not there.
    Request(&'a str, Option<&'a str>),
    Response(&'a str, Option<&'a str>),
    Protocol,
    StartTime(&'a str),
    ResponseCode,
    ResponseDetails,
    ResponseFlags,
    RouteName,
    ServerName,
    PeerUri,
    Source(Part),
    Destination(Part),
    Upstream(Part),
}

/// Which part of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Ip,
    Port,
}

/// The pieces of a value; nothing follows a bad one.
fn pieces(value: &HeaderValue) -> impl Iterator<Item = Result<Piece<'_>, BadSubstitution>> {
    let mut rest = value.as_bytes();
    std::iter::from_fn(move || {
        let (piece, after) = match rest {
            [] => return None,
            [b'%', b'%', after @ ..] => (Ok(Piece::Text(b"%")), after),
            [b'%', after @ ..] => substitution(after),
            text => {
                let end = text.iter().position(|byte| *byte == b'%').unwrap_or(text.len());
                let (text, after) = text.split_at(end);
                (Ok(Piece::Text(text)), after)
            }
        };
        rest = if piece.is_ok() { after } else { b"" };
        Some(piece)
    })
}

/// What stands behind a `%`, and what follows the one that ends it.
fn substitution(text: &[u8]) -> (Result<Piece<'_>, BadSubstitution>, &[u8]) {
    let open = || (Err(BadSubstitution::Open(String::from_utf8_lossy(text).into_owned())), &b""[..]);
    let name = text.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'_').count();
    let (name, mut rest) = text.split_at(name);
    let mut argument: &[u8] = b"";
    if let [b'(', inner @ ..] = rest {
        let Some(end) = inner.iter().position(|byte| *byte == b')') else { return open() };
        argument = inner.get(..end).unwrap_or_default();
        rest = inner.get(end + 1..).unwrap_or_default();
    }
    let Some(end) = rest.iter().position(|byte| *byte == b'%') else { return open() };
    let (length, after) = (rest.get(..end).unwrap_or_default(), rest.get(end + 1..).unwrap_or_default());
    let unknown = || BadSubstitution::Unknown(String::from_utf8_lossy(text).chars().take(60).collect());
    let texts = (std::str::from_utf8(name), std::str::from_utf8(argument), std::str::from_utf8(length));
    let (Ok(name), Ok(argument), Ok(length)) = texts else { return (Err(unknown()), after) };
    let longest = match length.strip_prefix(':') {
        Some(number) => number.parse().ok().map(Some),
        None => length.is_empty().then_some(None),
    };
    let piece =
        Substitution::named(name, argument).zip(longest).map(|(what, longest)| Piece::Made(what, longest));
    (piece.ok_or_else(unknown), after)
}

impl<'a> Substitution<'a> {
    fn named(name: &str, argument: &'a str) -> Option<Self> {
        let header = || match argument.split_once('?') {
            Some((one, other)) => (one, Some(other)),
            None => (argument, None),
        };
        let part = |rest: &str| match rest {
            "_ADDRESS" => Some(Part::Whole),
            "_ADDRESS_WITHOUT_PORT" => Some(Part::Ip),
            "_PORT" => Some(Part::Port),
            _ => None,
        };
        let address = || {
            let of = |start: &str| name.strip_prefix(start).and_then(part);
            of("DOWNSTREAM_REMOTE")
                .or_else(|| of("DOWNSTREAM_DIRECT_REMOTE"))
                .map(Self::Source)
                .or_else(|| of("DOWNSTREAM_LOCAL").map(Self::Destination))
                .or_else(|| of("UPSTREAM_REMOTE").map(Self::Upstream))
        };
        let takes_none = match name {
            "REQ" if !argument.is_empty() => return Some(Self::Request(header().0, header().1)),
            "RESP" if !argument.is_empty() => return Some(Self::Response(header().0, header().1)),
            "START_TIME" => return Some(Self::StartTime(argument)),
            "PROTOCOL" => Some(Self::Protocol),
            "RESPONSE_CODE" => Some(Self::ResponseCode),
            "RESPONSE_CODE_DETAILS" => Some(Self::ResponseDetails),
            "RESPONSE_FLAGS" => Some(Self::ResponseFlags),
            // As Envoy has it, whose streams are called what their requests are.
            "STREAM_ID" => Some(Self::Request("x-request-id", None)),
            "ROUTE_NAME" => Some(Self::RouteName),
            "REQUESTED_SERVER_NAME" => Some(Self::ServerName),
            "DOWNSTREAM_PEER_URI_SAN" => Some(Self::PeerUri),
            "UPSTREAM_HOST" => Some(Self::Upstream(Part::Whole)),
            _ => address(),
        };
        takes_none.filter(|_| argument.is_empty())
    }

    /// Empty if it is not known.
    fn of(self, values: &Values<'a>) -> Cow<'a, [u8]> {
        let facts = values.facts;
        let text = |text: &'a str| Cow::Borrowed(text.as_bytes());
        let address = |address: SocketAddr, part| match part {
            Part::Whole => address.to_string(),
            Part::Ip => address.ip().to_string(),
            Part::Port => address.port().to_string(),
        };
        match self {
            Self::Request(one, other) => {
                let one_of = |name: &str| facts.values(&name.to_ascii_lowercase()).next();
                Cow::Borrowed(one_of(one).or_else(|| other.and_then(one_of)).unwrap_or_default())
            }
            Self::Response(one, other) => {
                let one_of = |name: &str| values.response?.1.get(name).map(|value| value.as_bytes());
                Cow::Borrowed(one_of(one).or_else(|| other.and_then(one_of)).unwrap_or_default())
            }
            Self::Protocol => text(values.protocol),
            Self::StartTime(format) => Cow::Owned(time(values.started, format).into_bytes()),
            Self::ResponseCode => match values.response {
                Some((status, _)) => Cow::Owned(status.as_str().as_bytes().to_vec()),
                // As Envoy has it, as long as there is none.
                None => Cow::Borrowed(b"0"),
            },
            Self::ResponseDetails => text(values.details),
            Self::ResponseFlags => Cow::Owned(values.flags.to_string().into_bytes()),
            Self::RouteName => text(values.route),
            Self::ServerName => text(facts.connection.server_name.unwrap_or_default()),
            Self::PeerUri => {
                Cow::Owned(facts.connection.peer.map(ToString::to_string).unwrap_or_default().into_bytes())
            }
            Self::Source(part) => Cow::Owned(address(facts.connection.source, part).into_bytes()),
            Self::Destination(part) => Cow::Owned(address(facts.connection.destination, part).into_bytes()),
            Self::Upstream(part) => {
                Cow::Owned(values.upstream.map(|up| address(up, part)).unwrap_or_default().into_bytes())
            }
        }
    }
}

/// A time in UTC; without a format as `2026-01-31T09:08:07.123Z`.
///
/// **Shape**: of `strftime`'s letters `Y m d H M S T F s` and fractions `3f 6f 9f`; others stay as they are.
fn time(at: SystemTime, format: &str) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let Ok(date) = i64::try_from(since.as_secs()).map(time::OffsetDateTime::from_unix_timestamp) else {
        return String::new();
    };
    let Ok(date) = date else { return String::new() };
    let mut out = String::new();
    let format = if format.is_empty() { "%FT%T.%3fZ" } else { format };
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let year = u64::try_from(date.year()).unwrap_or_default();
        let (month, day) = (u64::from(u8::from(date.month())), u64::from(date.day()));
        let (hour, minute, second) = (date.hour(), date.minute(), date.second());
        match rest.next() {
            Some('Y') => push_number(&mut out, year),
            Some('m') => push_padded(&mut out, month, 2),
            Some('d') => push_padded(&mut out, day, 2),
            Some('H') => push_padded(&mut out, hour.into(), 2),
            Some('M') => push_padded(&mut out, minute.into(), 2),
            Some('S') => push_padded(&mut out, second.into(), 2),
            Some('s') => push_number(&mut out, since.as_secs()),
            Some('F') => {
                push_number(&mut out, year);
                for part in [month, day] {
                    out.push('-');
                    push_padded(&mut out, part, 2);
                }
            }
            Some('T') => {
                push_padded(&mut out, hour.into(), 2);
                for part in [minute, second] {
                    out.push(':');
                    push_padded(&mut out, part.into(), 2);
                }
            }
            Some(digits @ ('3' | '6' | '9')) if rest.as_str().starts_with('f') => {
                rest.next();
                let width = digits.to_digit(10).unwrap_or(9);
                let fraction = u64::from(since.subsec_nanos()) / 10_u64.pow(9 - width);
                push_padded(&mut out, fraction, usize::try_from(width).unwrap_or(9));
            }
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::Flag;
    use crate::l7::fixtures::asked;

    fn value(text: &str) -> HeaderValue {
        HeaderValue::from_str(text).unwrap()
    }

    fn made_of(text: &str) -> Option<String> {
        let mut request = asked("POST /x?y")
            .with("x-user: alice")
            .with("x-user: bob")
            .with("x-request-id: 7d0c")
            .host("h:8080");
        request.server_name = Some("tls.name".into());
        let mut answer = HeaderMap::new();
        answer.insert("server", HeaderValue::from_static("app"));
        let facts = request.facts();
        let values = Values {
            facts: &facts,
            protocol: "HTTP/2",
            started: SystemTime::UNIX_EPOCH + Duration::new(1_795_313_678, 639_000_001),
            route: "shop.vs",
            upstream: Some("[2001:db8::1]:8080".parse().unwrap()),
            flags: Flags::from(Flag::FaultInjected),
            details: "fault_filter_abort",
            response: Some((StatusCode::IM_A_TEAPOT, &answer)),
        };
        check(&value(text)).unwrap();
        made(&value(text), &values).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn substitutions_say_what_they_name() {
        for (text, want) in [
            ("%REQ(X-User)%", "alice"),
            ("%REQ(x-none?X-USER)%", "alice"),
            ("%REQ(x-user):3%", "ali"),
            ("%REQ(x-user):99%", "alice"),
            (
                "%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)% %REQ(:SCHEME)% %REQ(Host)%",
                "POST /x?y h:8080 http h:8080",
            ),
            ("%RESP(Server)%", "app"),
            ("%RESPONSE_CODE%", "418"),
            ("%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%", "FI fault_filter_abort"),
            ("%STREAM_ID%", "7d0c"),
            ("%PROTOCOL%", "HTTP/2"),
            ("%ROUTE_NAME%", "shop.vs"),
            ("%REQUESTED_SERVER_NAME%", "tls.name"),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:4000"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1"),
            ("%DOWNSTREAM_REMOTE_PORT%", "4000"),
            ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "10.0.0.1:4000"),
            ("%DOWNSTREAM_LOCAL_ADDRESS%", "10.96.0.1:80"),
            ("%DOWNSTREAM_LOCAL_PORT%", "80"),
            ("%DOWNSTREAM_PEER_URI_SAN%", "spiffe://cluster.local/ns/shop/sa/client"),
            ("%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "[2001:db8::1]:8080 2001:db8::1"),
            ("%START_TIME%", "2026-11-22T02:14:38.639Z"),
            ("%START_TIME(%s)%", "1795313678"),
            ("%START_TIME(%Y/%m/%d %H:%M:%S.%6f|%9f %q %)%", "2026/11/22 02:14:38.639000|639000001 %q %"),
            ("100%%", "100%"),
            ("%%REQ(x)%%", "%REQ(x)%"),
            ("a%REQ(x-none)%b", "ab"),
        ] {
            assert_eq!(made_of(text).as_deref(), Some(want), "{text}");
        }
        assert_eq!(made_of("%REQ(x-none)%"), None, "nothing is no value");
        assert!(!is_made(&value("plain")) && is_made(&value("%%")));
    }

    #[test]
    fn what_is_not_known_is_refused_where_it_is_read() {
        for text in ["50%", "%REQ(x", "%REQ(x)", "a %PROTOCOL", "%"] {
            assert!(matches!(check(&value(text)), Err(BadSubstitution::Open(_))), "{text}");
        }
        for text in [
            "%NONE%",
            "%REQ%",
            "%REQ()%",
            "%PROTOCOL(x)%",
            "%req(x)%",
            "%REQ(x)3%",
            "%REQ(x):a%",
            "%UPSTREAM_METADATA(x)%",
        ] {
            assert!(matches!(check(&value(text)), Err(BadSubstitution::Unknown(_))), "{text}");
        }
        let error = check(&value("%HOSTNAME%")).unwrap_err().to_string();
        assert!(error.starts_with("%HOSTNAME%% is not known here") || error.contains("HOSTNAME"), "{error}");
    }
}
