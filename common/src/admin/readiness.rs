//! Whether the agent is ready, and what it waits for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::StatusCode;
use tokio::net::TcpListener;

use super::http::{Answer, not_found, serve_get, text};
use crate::task::Scope;

/// Connections at a time: each is small.
const PLACES: usize = 64;

/// What the agent waits for. Clones share it.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, usize>>>);

/// Something that must happen before the agent is ready.
///
/// Dropped without [`Pending::ready`] the agent stays unready: what was to happen never did.
#[must_use = "the agent is unready until `ready` is called"]
pub struct Pending {
    readiness: Readiness,
    name: String,
    since: Instant,
}

impl Readiness {
    /// Waits for nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The agent is unready until the answer is told otherwise; two of one name must both be.
    pub fn pending(&self, name: &str) -> Pending {
        *self.lock().entry(name.to_owned()).or_default() += 1;
        Pending { readiness: self.clone(), name: name.to_owned(), since: Instant::now() }
    }

    /// The agent is unready from now on: it drains.
    pub fn drain(&self) {
        self.lock().insert("draining".to_owned(), 1);
    }

    /// Names of what is waited for, sorted.
    pub fn waiting_for(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Whether nothing is waited for.
    pub fn is_ready(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, path: &str) -> Answer {
        if path != "/healthz/ready" {
            return not_found();
        }
        let waiting = self.waiting_for();
        if waiting.is_empty() {
            return text(StatusCode::OK, "ready\n");
        }
        let body = format!("not ready, pending: {}\n", waiting.join(", "));
        text(StatusCode::INTERNAL_SERVER_ERROR, body)
    }
}

impl Pending {
    /// It has happened; said in the words that the reference's users look for.
    pub fn ready(self) {
        let mut pending = self.readiness.lock();
        if let Some(count) = pending.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.name);
            }
        }
        let left = pending.len();
        drop(pending);
        let (name, took) = (&self.name, self.since.elapsed());
        match left {
            0 => tracing::info!("Task '{name}' complete ({took:?}), marking server ready"),
            _ => tracing::info!("Task '{name}' complete ({took:?}), still awaiting {left} tasks"),
        }
    }
}

/// Serves `GET /healthz/ready` until `scope` drains.
///
/// Give it a scope that drains last: while the traffic drains the page must still answer, and say so.
/// **Source**: l4.md §7.2. **Cancel safety**: cancelling closes the listener; open requests belong to `scope`.
pub async fn serve_readiness(listener: TcpListener, readiness: Readiness, scope: &Scope) {
    serve_get(listener, scope, PLACES, move |path, _| readiness.page(path)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::http::tests::{Server, get};

    #[tokio::test]
    async fn readiness_says_what_it_waits_for() {
        let readiness = Readiness::new();
        let server = Server::start(|listener, scope| {
            let readiness = readiness.clone();
            async move { serve_readiness(listener, readiness, &scope).await }
        })
        .await;
        let page = async |path| get(server.addr, "GET", path, "").await;
        let path = "/healthz/ready";

        assert_eq!(page(path).await, (200, "ready\n".into()));
        let proxy = readiness.pending("proxy");
        let (state, again) = (readiness.pending("a state"), readiness.pending("a state"));
        assert_eq!(page(path).await, (500, "not ready, pending: a state, proxy\n".into()));
        state.ready();
        assert_eq!(page(path).await, (500, "not ready, pending: a state, proxy\n".into()));
        again.ready();
        assert_eq!(page(path).await, (500, "not ready, pending: proxy\n".into()));
        proxy.ready();
        assert_eq!(page(path).await, (200, "ready\n".into()));

        drop(readiness.pending("a task that died"));
        assert_eq!(page(path).await, (500, "not ready, pending: a task that died\n".into()));
        readiness.drain();
        readiness.drain();
        assert_eq!(page(path).await, (500, "not ready, pending: a task that died, draining\n".into()));
        server.stop().await;
    }

    #[tokio::test]
    async fn other_methods_and_paths_are_refused() {
        let server = Server::start(|listener, scope| async move {
            serve_readiness(listener, Readiness::new(), &scope).await;
        })
        .await;
        for (method, path, status) in [
            ("GET", "/healthz/ready", 200),
            ("GET", "/healthz/ready?x=1", 200),
            ("POST", "/healthz/ready", 405),
            ("HEAD", "/healthz/ready", 405),
            ("DELETE", "/other", 405),
            ("GET", "/", 404),
            ("GET", "/healthz/ready/", 404),
            ("GET", "/healthz/../healthz/ready", 404),
        ] {
            assert_eq!(get(server.addr, method, path, "").await.0, status, "{method} {path}");
        }
        server.stop().await;
    }
}
