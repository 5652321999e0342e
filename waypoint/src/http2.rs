//! Requests of one HTTP/2 connection inside a tunnel: each is a task of its own.

use std::rc::Rc;

use bytes::Bytes;
use culvert_common::hbone::link::Writer;
use http::header::COOKIE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use crate::http1::head::{FIELDS_MAX, Framing};
use crate::message::{Body, Input, LinkIo, Request, Version};
use crate::reply::Responder;
use crate::request;
use crate::serve::Stage;

/// Requests at once on one connection.
const STREAMS: u32 = 1024;
/// Bytes of one request's body that may be under way.
const WINDOW: u32 = 256 * 1024;
/// Bytes of all of them.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a request's headers.
const HEADERS: u32 = 60 * 1024;
/// Bytes of one answer that may wait to be sent.
const SEND_BUFFER: usize = 128 * 1024;
/// Time for the preface.
const PREFACE: std::time::Duration = std::time::Duration::from_secs(10);

/// Serves a connection whose preface has been seen, not taken.
pub(crate) async fn serve(stage: &Rc<Stage>, input: Input, writer: Writer) {
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(LinkIo::new(input, writer));
    let mut connection = match tokio::time::timeout(PREFACE, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "no HTTP/2"),
        Err(_) => return tracing::debug!("no HTTP/2 preface in time"),
    };
    let scope = stage.worker.scope.clone();
    let mut draining = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = scope.draining(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match accepted {
            None => return,
            Some(Err(error)) => return tracing::debug!(%error, "an HTTP/2 connection broke"),
            Some(Ok((request, respond))) => {
                let stage = Rc::clone(stage);
                scope.spawn_local(async move { one(&stage, request, respond).await });
            }
        }
    }
}

async fn one(
    stage: &Rc<Stage>,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let (parts, body) = request.into_parts();
    let Some(request) = read(parts, body.is_end_stream()) else {
        return respond.send_reset(h2::Reason::PROTOCOL_ERROR);
    };
    let responder = Responder::http2(&mut respond, &request);
    let body = if request.framing == Framing::Empty { Body::Empty } else { Body::Http2(body) };
    request::serve(stage, request, body, responder).await;
}

/// None: it is no request of HTTP/2, or has more headers than are taken.
fn read(parts: Parts, has_ended: bool) -> Option<Request> {
    let Parts { method, uri, mut headers, .. } = parts;
    if headers.len() > FIELDS_MAX {
        return None;
    }
    join_cookies(&mut headers);
    let authority = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let host = headers.remove(http::header::HOST);
    let authority = authority.or(host)?;
    let path = uri.path_and_query().map_or(String::new(), |path| path.as_str().to_owned());
    let length =
        headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let framing = match (has_ended, length) {
        (true, _) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Chunked,
    };
    let is_https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    Some(Request {
        method,
        is_https,
        authority,
        path,
        headers,
        version: Version::Http2,
        framing,
        upgrade: None,
    })
}

/// Clients may send cookies in pieces; servers of HTTP/1.1 expect one line. Source: RFC 9113 §8.2.3.
fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(COOKIE).iter();
    let (Some(first), Some(_)) = (pieces.next(), pieces.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for piece in headers.get_all(COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(piece.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}
