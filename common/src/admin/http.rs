//! A small HTTP/1.1 server: every limit that a hostile client could lean on is set here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::task::Scope;

/// A request's head must arrive within this time, on a kept connection too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// No connection is kept longer: a reader that stalls gives its place back.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// Pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a page answers.
pub(super) type Answer = Response<Full<Bytes>>;

/// Answers GET requests with what `page` makes of path and headers, until `scope` drains; open requests still end.
///
/// Of more than `places` connections at a time the further ones are closed at once.
pub(super) async fn serve<P>(listener: TcpListener, scope: &Scope, places: usize, page: P)
where
    P: Fn(&str, &HeaderMap) -> Answer + Send + Sync + 'static,
{
    let page = Arc::new(page);
    let places = Arc::new(Semaphore::new(places));
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
            connection(stream, &drain, page).await;
            drop(place);
        });
    }
}

async fn connection<P>(stream: TcpStream, scope: &Scope, page: Arc<P>)
where
    P: Fn(&str, &HeaderMap) -> Answer + Send + Sync + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = if request.method() == Method::GET {
            page(request.uri().path(), request.headers())
        } else {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            answer
        };
        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let end = tokio::time::sleep(CONNECTION_TIMEOUT);
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
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// The answer for a path that does not exist.
pub(super) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "no such page\n")
}

#[cfg(test)]
pub(super) mod tests;
