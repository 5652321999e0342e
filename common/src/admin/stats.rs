//! The scrape page.

use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::net::TcpListener;

use super::http::{Answer, not_found, serve_get, text};
use crate::task::Scope;
use crate::telemetry::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Connections at a time: each may hold a whole scrape, which is large on a busy node, while it is being read.
const PLACES: usize = 8;

/// Serves `GET /metrics` and `GET /stats/prometheus` until `scope` drains.
///
/// **Source**: l4.md §7.3, without compression. **Cancel safety**: as [`super::serve_readiness`].
pub async fn serve_stats(listener: TcpListener, metrics: Arc<Metrics>, scope: &Scope) {
    serve_get(listener, scope, PLACES, move |path, headers| page(&metrics, path, headers)).await;
}

fn page(metrics: &Metrics, path: &str, headers: &HeaderMap) -> Answer {
    if !matches!(path, "/metrics" | "/stats/prometheus") {
        return not_found();
    }
    let openmetrics = wants_openmetrics(headers);
    let mut answer = text(StatusCode::OK, metrics.encode(openmetrics));
    let kind = if openmetrics { OPENMETRICS } else { PROMETHEUS };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|one| {
        let kind = one.split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case("application/openmetrics-text")
    })
}

#[cfg(test)]
mod tests {
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
            assert!(open.ends_with("\n# EOF\n"), "{open}");
        }
        assert_eq!(get(server.addr, "GET", "/", "").await.0, 404);
        assert_eq!(get(server.addr, "POST", "/metrics", "").await.0, 405);
        server.stop().await;
    }
}
