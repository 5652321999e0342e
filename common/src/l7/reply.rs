//! Answers that are made here, for HTTP and for gRPC.
//!
//! **Source**: gRPC over HTTP/2 (Trailers-Only, percent-encoded messages); Envoy's mapping between the two kinds of status.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::failure::{Failure, Reset};
use super::flags::Flag;
use crate::model::l7::Abort;

/// An answer that is made here. What a HEAD asks for is sent without its body.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status; 200 for gRPC, whose own is among the headers.
    pub status: StatusCode,
    /// Its headers; a `content-length` among them if it has a body.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// The flag that it raises.
    pub flag: Option<Flag>,
}

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

impl Reply {
    /// The answer to a failure.
    pub fn failure(failure: &Failure, is_grpc: bool) -> Self {
        let row = failure.reply();
        let body = match row.body {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        };
        let mut reply = Self { details: row.details, flag: row.flag, ..Self::new(row.status, body, is_grpc) };
        if matches!(failure, Failure::Reset { reason: Reset::Overflow, .. }) {
            reply.headers.insert(OVERLOADED, HeaderValue::from_static("true"));
        }
        reply
    }

    /// The answer of a route that says what it is, or of a redirect once `location` is set.
    pub fn direct(status: StatusCode, body: Bytes, is_grpc: bool) -> Self {
        Self { details: "direct_response".into(), ..Self::new(status, body, is_grpc) }
    }

    /// An answer made on purpose. Who does not speak gRPC gets the HTTP status alone, 200 beside a gRPC status.
    pub fn abort(abort: &Abort, is_grpc: bool) -> Self {
        let mut reply = Self::failure(&Failure::Abort(abort.status), is_grpc);
        if let Some(grpc) = abort.grpc_status.filter(|_| is_grpc) {
            reply.headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(grpc)));
        }
        reply
    }

    /// An answer with a text, or the same in gRPC.
    pub fn new(status: StatusCode, body: Bytes, is_grpc: bool) -> Self {
        let mut headers = HeaderMap::with_capacity(8);
        if is_grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(grpc_status(status))));
            if !body.is_empty()
                && let Ok(message) = HeaderValue::try_from(grpc_message(&body))
            {
                headers.insert(GRPC_MESSAGE, message);
            }
            let nothing = Bytes::new();
            return Self { status: StatusCode::OK, headers, body: nothing, details: "".into(), flag: None };
        }
        if !body.is_empty() {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        Self { status, headers, body, details: "".into(), flag: None }
    }

    /// Lets a route edit the headers. What is said of the body, and to gRPC, is not theirs to change; of a body's type they may
    /// say another one.
    pub fn edit(&mut self, edits: impl FnOnce(&mut HeaderMap)) {
        let headers = &mut self.headers;
        let said = OF_THE_BODY.map(|name| (headers.remove(&name), name));
        edits(headers);
        headers.remove(CONTENT_LENGTH);
        for (value, name) in said {
            let is_other =
                name == CONTENT_TYPE && !self.body.is_empty() && headers.contains_key(CONTENT_TYPE);
            match value {
                Some(value) if !is_other => {
                    headers.insert(name, value);
                }
                None if name == CONTENT_TYPE => {
                    headers.remove(CONTENT_TYPE);
                }
                Some(_) | None => {}
            }
        }
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const OF_THE_BODY: [HeaderName; 4] = [CONTENT_LENGTH, CONTENT_TYPE, GRPC_STATUS, GRPC_MESSAGE];

/// What a gRPC client is told of an HTTP status.
pub fn grpc_status(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// What a gRPC status counts as for an ejection.
pub fn http_status(grpc: u8) -> StatusCode {
    let code = match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    };
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A text as `grpc-message` carries it.
fn grpc_message(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b'%' | 0..b' ' | b'~'.. => {
                out.push('%');
                for nibble in [byte >> 4, byte & 0xf] {
                    out.extend(char::from_digit(nibble.into(), 16).map(|digit| digit.to_ascii_uppercase()));
                }
            }
            byte => out.push(char::from(*byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::fixtures::lines;
    use crate::model::l7::Fraction;

    #[test]
    fn a_failure_is_a_text_to_http_and_a_status_to_grpc() {
        let denied = Failure::Denied("none".into());
        let http = Reply::failure(&denied, false);
        assert_eq!(http.status, 403);
        assert_eq!(lines(&http.headers), ["content-length: 19", "content-type: text/plain"]);
        assert_eq!(http.body, "RBAC: access denied");
        let grpc = Reply::failure(&denied, true);
        assert_eq!((grpc.status, &grpc.body[..]), (StatusCode::OK, &b""[..]));
        let want = ["content-type: application/grpc", "grpc-message: RBAC: access denied", "grpc-status: 7"];
        assert_eq!(lines(&grpc.headers), want);
        assert_eq!(grpc.details, "rbac_access_denied_matched_policy[none]");
        let empty = Reply::failure(&Failure::NoRoute, false);
        assert_eq!(lines(&empty.headers), [""; 0]);
        let empty = Reply::failure(&Failure::NoRoute, true);
        assert_eq!(lines(&empty.headers), ["content-type: application/grpc", "grpc-status: 12"]);
        let timeout = Reply::failure(&Failure::Timeout, true);
        assert_eq!(timeout.headers["grpc-status"], "14");
    }

    /// What Envoy 1.40 answers.
    #[test]
    fn a_route_edits_what_is_not_said_of_the_body() {
        let edited = |mut reply: Reply, edits: &[(&'static str, &'static str)]| {
            reply.edit(|headers| {
                for (name, value) in edits {
                    headers.append(*name, HeaderValue::from_static(value));
                }
            });
            lines(&reply.headers)
        };
        let body = || Reply::direct(StatusCode::OK, Bytes::from_static(b"hello"), false);
        let json = ("content-type", "application/json");
        assert_eq!(edited(body(), &[json]), ["content-length: 5", "content-type: application/json"]);
        let got = edited(body(), &[("content-length", "9"), ("x", "y")]);
        assert_eq!(got, ["content-length: 5", "content-type: text/plain", "x: y"]);
        let empty = Reply::failure(&Failure::NoRoute, false);
        assert_eq!(edited(empty, &[json, ("content-length", "9"), ("x", "y")]), ["x: y"]);
        let grpc = edited(Reply::failure(&Failure::NoRoute, true), &[json, ("x", "y")]);
        assert_eq!(grpc, ["content-type: application/grpc", "grpc-status: 12", "x: y"]);
    }

    #[test]
    fn only_an_open_circuit_says_so_in_a_header() {
        for (reason, is_told) in [(Reset::Overflow, true), (Reset::RemoteReset, false)] {
            let failure = Failure::Reset { reason, retried: false, transport: "".into() };
            for is_grpc in [false, true] {
                let reply = Reply::failure(&failure, is_grpc);
                assert_eq!(
                    reply.headers.get("x-envoy-overloaded").is_some_and(|value| value == "true"),
                    is_told
                );
            }
        }
    }

    #[test]
    fn statuses_are_mapped_both_ways() {
        for (http, grpc) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (502, 14),
            (503, 14),
            (504, 14),
            (200, 2),
            (500, 2),
        ] {
            assert_eq!(grpc_status(StatusCode::from_u16(http).unwrap()), grpc, "{http}");
        }
        let of_grpc =
            [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401, 500];
        for (grpc, http) in (0..).zip(of_grpc) {
            assert_eq!(http_status(grpc), http, "{grpc}");
        }
    }

    #[test]
    fn an_abort_is_what_was_asked_for_in_the_clients_terms() {
        let abort = |status, grpc_status| Abort {
            status: StatusCode::from_u16(status).unwrap(),
            grpc_status,
            share: Fraction::ALL,
        };
        let status = |abort: &Abort| Reply::abort(abort, false).status.as_u16();
        let grpc = |abort: &Abort| Reply::abort(abort, true).headers["grpc-status"].clone();
        assert_eq!((status(&abort(418, None)), grpc(&abort(418, None))), (418, HeaderValue::from(2)));
        assert_eq!(
            (status(&abort(200, Some(14))), grpc(&abort(200, Some(14)))),
            (200, HeaderValue::from(14))
        );
        assert_eq!((status(&abort(200, Some(5))), grpc(&abort(200, Some(5)))), (200, HeaderValue::from(5)));
        let reply = Reply::abort(&abort(418, None), false);
        assert_eq!((&reply.body[..], reply.flag), (&b"fault filter abort"[..], Some(Flag::FaultInjected)));
    }

    #[test]
    fn a_direct_answer_is_as_it_was_written() {
        let reply =
            Reply::direct(StatusCode::NON_AUTHORITATIVE_INFORMATION, Bytes::from_static(b"hello"), false);
        assert_eq!(
            (reply.status.as_u16(), &reply.body[..], &*reply.details),
            (203, &b"hello"[..], "direct_response")
        );
        let reply = Reply::direct(StatusCode::NO_CONTENT, Bytes::new(), false);
        assert_eq!(lines(&reply.headers), [""; 0]);
        let grpc = Reply::direct(StatusCode::OK, Bytes::from_static("100 %~ö".as_bytes()), true);
        assert_eq!(grpc.headers["grpc-message"], "100 %25%7E%C3%B6");
        assert_eq!(grpc.headers["grpc-status"], "2");
    }
}
