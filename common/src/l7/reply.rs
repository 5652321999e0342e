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
    /// Its headers, `content-length` among them.
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

    /// An answer made on purpose. A gRPC status becomes an HTTP status for who does not speak gRPC.
    pub fn abort(abort: &Abort, is_grpc: bool) -> Self {
        let status = abort.grpc_status.map_or(abort.status, http_status);
        let mut reply = Self::failure(&Failure::Abort(status), is_grpc);
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
        } else if !(status.is_informational() || status == StatusCode::NO_CONTENT) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Self { status, headers, body, details: "".into(), flag: None }
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

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

/// What an HTTP client is told of a gRPC status, and how an ejection counts it.
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
