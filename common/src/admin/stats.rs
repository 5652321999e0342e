//! The scrape page.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::net::TcpListener;

use super::accept::{takes_gzip, wants_openmetrics};
use super::http::{Answer, Body, not_found, serve_get, typed};
use crate::task::Scope;
use crate::telemetry::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Connections at a time: each may hold a whole scrape, which is large on a busy node, while it is being read.
const PLACES: usize = 8;
/// Text that is compressed at a time.
const PIECE: usize = 64 << 10;

/// Serves `GET /metrics` and `GET /stats/prometheus` until `scope` drains: the Prometheus text format, or OpenMetrics where
/// that is preferred, compressed with gzip where that is taken.
///
/// **Source**: l4.md §7.3; RFC 9110 §12. **Cancel safety**: as [`super::serve_readiness`].
pub async fn serve_stats(listener: TcpListener, metrics: Arc<Metrics>, scope: &Scope) {
    serve_get(listener, scope, PLACES, move |path, headers| page(&metrics, path, headers)).await;
}

fn page(metrics: &Metrics, path: &str, headers: &HeaderMap) -> Answer {
    if !matches!(path, "/metrics" | "/stats/prometheus") {
        return not_found();
    }
    let openmetrics = wants_openmetrics(headers);
    let kind = if openmetrics { OPENMETRICS } else { PROMETHEUS };
    let mut text = metrics.pieces(openmetrics);
    let (first, second) = (text.next().unwrap_or_default(), text.next());
    let is_whole = second.is_none();
    let mut answer = if takes_gzip(headers) {
        let text = [first].into_iter().chain(second).chain(text).flat_map(cut);
        let mut answer = Response::new(Body::pieces(gzip(text)));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        answer
    } else if is_whole {
        typed(StatusCode::OK, kind, first)
    } else {
        let text = [first].into_iter().chain(second).chain(text).flat_map(cut);
        typed(StatusCode::OK, kind, Body::pieces(text))
    };
    answer.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    answer
}

/// A text in pieces that are not large.
fn cut(text: String) -> impl Iterator<Item = Bytes> + Send {
    let mut rest = Bytes::from(text);
    std::iter::from_fn(move || {
        let piece = rest.split_to(rest.len().min(PIECE));
        (!piece.is_empty()).then_some(piece)
    })
}

/// Compresses piece by piece, as the reader takes them: others of this thread get their turn in between.
fn gzip(mut text: impl Iterator<Item = Bytes> + Send) -> impl Iterator<Item = Bytes> + Send {
    let mut encoder = Some(GzEncoder::new(Vec::new(), Compression::fast()));
    std::iter::from_fn(move || {
        let Some(piece) = text.next() else {
            return encoder.take()?.finish().ok().map(Bytes::from);
        };
        let open = encoder.as_mut()?;
        open.write_all(&piece).ok()?;
        Some(std::mem::take(open.get_mut()).into())
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;

    use super::*;
    use crate::admin::http::tests::{Server, exchange, get};

    #[tokio::test]
    async fn both_paths_and_both_forms_are_served() {
        let server = Server::start(|listener, scope| async move {
            serve_stats(listener, Metrics::new("1.2.3"), &scope).await;
        })
        .await;
        for path in ["/metrics", "/stats/prometheus"] {
            let plain = exchange(server.addr, "GET", path, "").await;
            assert!(plain.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{plain}");
            assert!(plain.contains("\nculvert_build_info{version=\"1.2.3\"} 1\n"), "{plain}");
            assert!(!plain.contains("# EOF"));
            let accept = "Accept: text/html, Application/OpenMetrics-Text;version=1.0.0;q=0.5\r\n";
            let open = exchange(server.addr, "GET", path, accept).await;
            assert!(
                open.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
            );
            assert!(open.contains("vary: accept, accept-encoding\r\n"));
            assert!(open.ends_with("\n# EOF\n"), "{open}");
        }
        assert_eq!(get(server.addr, "GET", "/", "").await.0, 404);
        assert_eq!(get(server.addr, "POST", "/metrics", "").await.0, 405);
        server.stop().await;
    }

    #[tokio::test]
    async fn a_compressed_scrape_is_the_scrape() {
        let headers: HeaderMap =
            [(http::header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, br"))].into_iter().collect();
        let answer = page(&Metrics::new("1.2.3"), "/metrics", &headers);
        assert_eq!(answer.headers()[CONTENT_ENCODING], "gzip");
        let packed = answer.into_body().collect().await.unwrap().to_bytes();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
        assert!(text.contains("\nculvert_build_info{version=\"1.2.3\"} 1\n"), "{text}");

        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE] {
            let text: Vec<u8> = (0..length).map(|n| (n % 127) as u8).collect();
            let packed: Vec<Bytes> = gzip(cut(String::from_utf8(text.clone()).unwrap())).collect();
            let mut read = Vec::new();
            flate2::read::GzDecoder::new(&packed.concat()[..]).read_to_end(&mut read).unwrap();
            assert_eq!(read, text);
        }
    }
}
