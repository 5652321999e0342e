//! Requests of one HTTP/2 connection inside a tunnel: each is a task of its own.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use culvert_common::crypto::random;
use culvert_common::hbone::link::{Arrivals, Writer};
use http::header::{COOKIE, HOST, SEC_WEBSOCKET_KEY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};
use tokio::time::Instant;

use crate::http1::head::{FIELDS_MAX, Framing, is_authority};
use crate::link_io::LinkIo;
use crate::log;
use crate::message::{Body, Input, Request, Version};
use crate::reply::Responder;
use crate::request;
use crate::serve::Stage;

/// Requests at once on one connection.
const STREAMS: u32 = 1024;
/// Bytes of one request's body that may be under way.
pub(crate) const WINDOW: u32 = 256 * 1024;
/// Bytes of all of them: as many as there may be, so that one that nobody takes never stops the others. What memory they may
/// have in all is the budget's.
pub(crate) const CONNECTION_WINDOW: u32 = STREAMS * WINDOW;
/// Bytes of a request's headers.
const HEADERS: u32 = 60 * 1024;
/// Bytes of one answer that may wait to be sent.
const SEND_BUFFER: usize = 128 * 1024;
/// Time for the preface, and for the end of a connection that has been asked to end.
const GREETING: Duration = Duration::from_secs(10);
/// Length of a client's preface.
const PREFACE: usize = 24;
/// Requests that a client may give up at once before they have an answer, and each second after that. Source: Envoy's defaults.
const RESETS: usize = 1000;
const RESETS_PER_SECOND: u64 = 33;

/// Serves a connection whose preface has been seen, not taken.
pub(crate) async fn serve(stage: &Rc<Stage>, input: Input, writer: Writer) {
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol()
        .max_pending_accept_reset_streams(RESETS)
        .handshake::<_, Bytes>(LinkIo::new(input, writer, PREFACE));
    let mut connection = match tokio::time::timeout(GREETING, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "no HTTP/2"),
        Err(_) => return tracing::debug!("no HTTP/2 preface in time"),
    };
    let (scope, idle) = (stage.worker.scope.clone(), stage.worker.shared.idle);
    let under_way = Rc::new(UnderWay { since: Cell::new(Instant::now()), left: Cell::new(0) });
    let began = Instant::now();
    let mut quiet = pin!(tokio::time::sleep(idle));
    let mut ending = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = scope.draining(), if !ending => {
                ending = true;
                connection.graceful_shutdown();
                continue;
            }
            () = quiet.as_mut() => {
                match under_way.idle_for(idle) {
                    Some(more) => quiet.as_mut().reset(Instant::now() + more),
                    // It has been asked to go, and has not.
                    None if ending => return,
                    None => {
                        ending = true;
                        connection.graceful_shutdown();
                        quiet.as_mut().reset(Instant::now() + GREETING);
                    }
                }
                continue;
            }
        };
        match accepted {
            None => return,
            Some(Err(error)) => return tracing::debug!(%error, "an HTTP/2 connection broke"),
            Some(Ok((request, respond))) => {
                if under_way.left.get() > RESETS as u64 + began.elapsed().as_secs() * RESETS_PER_SECOND {
                    connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                    let _as_far_as_it_goes = tokio::time::timeout(GREETING, connection.accept()).await;
                    return tracing::debug!("a client gave up too many requests");
                }
                let (stage, under_way) = (Rc::clone(stage), Rc::clone(&under_way));
                scope.spawn_local(async move {
                    if one(&stage, request, respond).await {
                        under_way.left.set(under_way.left.get() + 1);
                    }
                    under_way.since.set(Instant::now());
                });
            }
        }
    }
}

/// What is known of a connection's requests. Each of them holds it.
struct UnderWay {
    /// When the last one ended.
    since: Cell<Instant>,
    /// Those that were given up before they had an answer.
    left: Cell<u64>,
}

impl UnderWay {
    /// Time that is left until there has been no request for `limit`; none if that is over.
    fn idle_for(self: &Rc<Self>, limit: Duration) -> Option<Duration> {
        if Rc::strong_count(self) > 1 {
            return Some(limit);
        }
        limit.checked_sub(self.since.get().elapsed()).filter(|left| !left.is_zero())
    }
}

/// Whether its client gave it up.
async fn one(
    stage: &Rc<Stage>,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> bool {
    let (parts, body) = request.into_parts();
    let Some(request) = read(parts, body.is_end_stream()) else {
        log::reset(stage);
        respond.send_reset(h2::Reason::PROTOCOL_ERROR);
        return false;
    };
    let responder = Responder::http2(&mut respond, &request);
    let arrivals = |body| Box::new(Arrivals::new(body, WINDOW, &stage.worker.board));
    let body = match request.framing {
        // What comes before the upgrade is granted must not be taken for another request.
        _ if request.upgrade.is_some() => Body::Later(arrivals(body)),
        Framing::Empty => Body::Empty,
        Framing::Length(_) | Framing::Chunked | Framing::Close => Body::Http2(arrivals(body)),
    };
    request::serve(stage, request, body, responder).await.was_left
}

/// None: it is no request of HTTP/2, or has more headers than are taken.
fn read(parts: Parts, has_ended: bool) -> Option<Request> {
    let Parts { mut method, uri, mut headers, extensions, .. } = parts;
    if headers.len() > FIELDS_MAX || headers.get_all(HOST).iter().count() > 1 {
        return None;
    }
    join_cookies(&mut headers);
    let authority = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let host = headers.remove(HOST);
    let authority = authority.or(host).filter(|authority| is_authority(authority.as_bytes()))?;
    let mut upgrade = None;
    if let Some(protocol) = extensions.get::<h2::ext::Protocol>() {
        // As HTTP/1.1 asks for it. Source: RFC 8441 §5.
        (method, upgrade) = (Method::GET, Some(HeaderValue::from_str(protocol.as_str()).ok()?));
        headers.entry(SEC_WEBSOCKET_KEY).or_insert_with(|| websocket_key(random()));
    }
    let path = uri.path_and_query().map_or(String::new(), |path| path.as_str().to_owned());
    let length =
        headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let framing = match (has_ended || upgrade.is_some(), length) {
        (true, _) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Chunked,
    };
    let is_https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    Some(Request { method, is_https, authority, path, headers, version: Version::Http2, framing, upgrade })
}

/// Any 16 bytes in base64; a client of HTTP/2 has none, and servers of HTTP/1.1 want one. Source: RFC 6455 §4.1.
fn websocket_key(random: u128) -> HeaderValue {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |at: u32| {
        // The last digit has two bits.
        let bits = if at < 21 { random >> (122 - at * 6) } else { random << 4 };
        DIGITS.get(usize::try_from(bits & 63).unwrap_or_default()).copied().unwrap_or(b'A')
    };
    let key: Vec<u8> = (0..22).map(digit).chain(*b"==").collect();
    HeaderValue::from_bytes(&key).unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_websocket_is_sixteen_bytes_in_base64() {
        for (bytes, key) in [
            (0, "AAAAAAAAAAAAAAAAAAAAAA=="),
            (u128::MAX, "/////////////////////w=="),
            (u128::from_be_bytes(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            assert_eq!(websocket_key(bytes), key);
        }
    }
}
