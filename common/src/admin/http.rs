//! A small HTTP/1.1 server: every limit that a hostile client could lean on is set here.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::task::Scope;

/// A request's head must arrive within this time, on a kept connection too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// No connection is kept longer than this and what its pages may take: a reader that stalls gives its place back.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// Pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a page answers.
pub type Answer = Response<Body>;

/// An answer that is still being made.
pub type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A request as a page sees it; its body is never read, as no page needs one.
#[derive(Debug)]
pub struct Request(http::request::Parts);

impl Request {
    /// Method.
    pub fn method(&self) -> &Method {
        &self.0.method
    }

    /// Path, as it was sent.
    pub fn path(&self) -> &str {
        self.0.uri.path()
    }

    /// Host and port of the target, where a client wrote it in full as to a proxy.
    pub(super) fn authority(&self) -> Option<&str> {
        self.0.uri.authority().map(http::uri::Authority::as_str)
    }

    /// Headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// Value of the first field of this name in the query, decoded; empty where the name stands alone.
    pub fn query(&self, name: &str) -> Option<String> {
        let fields = self.0.uri.query()?.split('&');
        let mut pairs = fields.map(|field| field.split_once('=').unwrap_or((field, "")));
        pairs.find(|(key, _)| decode(key) == name).map(|(_, value)| decode(value))
    }
}

/// Undoes the encoding of a query's field. What is no escape stays as it is; what is no UTF-8 is replaced.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut rest = bytes.clone();
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match (byte, digit(rest.next()), digit(rest.next())) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                bytes = rest;
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The content of an answer: whole, or made piece by piece as the reader takes it.
pub struct Body(Content);

enum Content {
    Whole(Bytes),
    Pieces(Box<dyn Iterator<Item = Bytes> + Send>),
}

impl Body {
    /// Pieces that are asked for one at a time, each when the one before is on its way.
    pub fn pieces(pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Self {
        Self(Content::Pieces(Box::new(pieces)))
    }
}

impl<B: Into<Bytes>> From<B> for Body {
    fn from(whole: B) -> Self {
        Self(Content::Whole(whole.into()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut self.0 {
            Content::Whole(whole) => Some(std::mem::take(whole)).filter(|whole| !whole.is_empty()),
            Content::Pieces(pieces) => pieces.find(|piece| !piece.is_empty()),
        };
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Content::Whole(whole) if whole.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(whole) => SizeHint::with_exact(whole.len() as u64),
            Content::Pieces(_) => SizeHint::default(),
        }
    }
}

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at a time; further ones are closed at once.
    pub(super) places: usize,
    /// Longest that a page takes to answer.
    pub(super) answer: Duration,
}

/// Answers requests with what `page` makes of them, until `scope` drains; open requests still end.
pub(super) async fn serve<P>(listener: TcpListener, scope: &Scope, bounds: Bounds, page: P)
where
    P: Fn(Request) -> Answering + Send + Sync + 'static,
{
    let page = Arc::new(page);
    let places = Arc::new(Semaphore::new(bounds.places));
    loop {
        let accepted = tokio::select! {
            biased;
            () = scope.draining() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (page, drain) = (Arc::clone(&page), scope.clone());
        scope.spawn(async move {
            connection(stream, &drain, CONNECTION_TIMEOUT + bounds.answer, page).await;
            drop(place);
        });
    }
}

/// As [`serve`], for pages that only tell and are made at once: GET alone.
pub(super) async fn serve_get<P>(listener: TcpListener, scope: &Scope, places: usize, page: P)
where
    P: Fn(&str, &HeaderMap) -> Answer + Send + Sync + 'static,
{
    let bounds = Bounds { places, answer: Duration::ZERO };
    serve(listener, scope, bounds, move |request| {
        let answer = if request.method() == Method::GET {
            page(request.path(), request.headers())
        } else {
            not_allowed("GET", "only GET is answered here\n")
        };
        Box::pin(std::future::ready(answer))
    })
    .await;
}

async fn connection<P>(stream: TcpStream, scope: &Scope, limit: Duration, page: Arc<P>)
where
    P: Fn(Request) -> Answering + Send + Sync + 'static,
{
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (parts, _body) = request.into_parts();
        let answering = page(Request(parts));
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let end = tokio::time::sleep(limit);
    let mut end = std::pin::pin!(end);
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = end.as_mut() => None,
        () = scope.draining() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                ended = serving => Some(ended),
                () = end => None,
            }
        }
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "admin connection ended early");
    }
}

/// A short text as the whole answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

/// An answer of the given content type.
pub fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Answer {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// The answer for a path that does not exist.
pub(super) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "no such page\n")
}

/// The answer for another method than `allowed`.
pub(super) fn not_allowed(allowed: &'static str, help: impl Into<Bytes>) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, help);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

#[cfg(test)]
pub(super) mod tests;
