//! The admin server's table of pages, and who may ask for them.

use std::fmt::Write;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CACHE_CONTROL, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::net::TcpListener;

use super::http::{Answer, Answering, Bounds, Request, not_allowed, not_found, serve, text, typed};
use crate::task::Scope;
use crate::telemetry::Metrics;

/// Connections at a time to each listener.
const PLACES: usize = 16;

/// One page of the admin server.
pub struct Route {
    /// Path, with its leading slash.
    path: &'static str,
    /// What it is for, in one line of the index.
    about: &'static str,
    /// What a caller with the wrong method is told; a page that changes something has it.
    post_only: Option<&'static str>,
    handler: Box<dyn Fn(Request) -> Answering + Send + Sync>,
}

impl Route {
    /// A page that only tells: every method is answered, as the reference node proxy does.
    pub fn read<F>(
        path: &'static str,
        about: &'static str,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let handler = Box::new(move |request| Box::pin(handler(request)) as Answering);
        Self { path, about, post_only: None, handler }
    }

    /// A page that changes something: POST only, and every other method is answered 405 with `help`.
    pub fn change<F>(
        path: &'static str,
        about: &'static str,
        help: &'static str,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self { post_only: Some(help), ..Self::read(path, about, handler) }
    }
}

/// All pages of the admin server.
pub struct Routes {
    /// Whose they are.
    of: &'static str,
    routes: Vec<Route>,
    metrics: Arc<Metrics>,
    /// When a refusal was last logged.
    said: Mutex<Option<Instant>>,
}

impl Routes {
    /// The pages of a program, in the order of the index; of two with one path the first is served.
    pub fn new(of: &'static str, routes: Vec<Route>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { of, routes, metrics, said: Mutex::default() })
    }

    fn answer(&self, request: Request) -> Answering {
        let done = |answer| Box::pin(std::future::ready(answer)) as Answering;
        if let Some(why) = refusal(&request) {
            self.refused(why.reason());
            return done(text(StatusCode::FORBIDDEN, why.told()));
        }
        let Some(route) = self.routes.iter().find(|route| route.path == request.path()) else {
            return done(if request.path() == "/" { self.index() } else { not_found() });
        };
        match route.post_only {
            Some(help) if request.method() != Method::POST => {
                self.refused("method");
                done(not_allowed("POST", help))
            }
            _ => (route.handler)(request),
        }
    }

    /// Counts a refusal; logs one a second, so that nobody fills the log with them.
    fn refused(&self, reason: &'static str) {
        self.metrics.admin_refused(reason);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
            *said = Some(Instant::now());
            tracing::warn!(reason, "a request to the admin pages was refused");
        }
    }

    fn index(&self) -> Answer {
        let mut rows = String::new();
        for route in &self.routes {
            let (path, about) = (route.path, route.about.replace('&', "&amp;"));
            let name = match route.post_only {
                // A link would only lead to the 405.
                Some(_) => format!("POST {path}"),
                None => format!("<a href=\"{path}\">{path}</a>"),
            };
            let _infallible = writeln!(rows, "<tr><td>{name}</td><td>{about}</td></tr>");
        }
        typed(
            StatusCode::OK,
            "text/html; charset=utf-8",
            INDEX.replace("{of}", self.of).replace("{rows}", &rows),
        )
    }
}

const INDEX: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Culvert {of}</title>
<style>body{font-family:sans-serif;margin:2em}td{padding:.3em 1.5em .3em 0;vertical-align:top}
td:first-child{font-family:monospace;white-space:nowrap}</style></head>
<body><h1>Culvert {of}</h1>
<table>
{rows}</table>
<p>Metrics are on port 15020 at /metrics, readiness on port 15021 at /healthz/ready.</p>
</body></html>
";

/// Why a request is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Host,
    Origin,
}

impl Refusal {
    fn reason(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Origin => "origin",
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::Host => "the Host of the request is not this machine's loopback; ask for localhost\n",
            Self::Origin => "pages of other origins may not call this server\n",
        }
    }
}

/// A browser on this machine can be led here by a page from anywhere: by a form that posts, or by a name that
/// resolves to loopback. The first gives an Origin, the second a Host, and neither of them is loopback then.
fn refusal(request: &Request) -> Option<Refusal> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok_and(is_loopback),
        _ => false, // none, or two that contradict each other
    };
    if !named || request.authority().is_some_and(|authority| !is_loopback(authority)) {
        return Some(Refusal::Host);
    }
    let ours = |origin: &HeaderValue| origin.to_str().is_ok_and(is_loopback_origin);
    (!origins(request.headers()).all(ours)).then_some(Refusal::Origin)
}

fn origins(headers: &HeaderMap) -> impl Iterator<Item = &HeaderValue> {
    headers.get_all(ORIGIN).iter()
}

fn is_loopback_origin(origin: &str) -> bool {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    rest.is_some_and(is_loopback)
}

/// Whether `host`, with any port, is a name or an address of loopback.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, "")) => (name, None),
        Some((name, port)) => (name, port.strip_prefix(':').or(Some("no port"))),
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let is_v6 = host.starts_with('[');
    let port_is_one = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let is_ours = match name.parse::<IpAddr>() {
        Ok(ip) => ip.is_ipv6() == is_v6 && ip.is_loopback(),
        Err(_) => !is_v6 && name.eq_ignore_ascii_case("localhost"),
    };
    port_is_one && is_ours
}

/// Serves the pages until `scope` drains; `longest` is how long a page may take to answer.
///
/// A request whose Host is not loopback, or whose Origin is given and not loopback, is refused.
/// **Cancel safety**: cancelling closes the listener; open requests belong to `scope`.
pub async fn serve_admin(listener: TcpListener, routes: Arc<Routes>, longest: Duration, scope: &Scope) {
    let bounds = Bounds { places: PLACES, answer: longest };
    serve(listener, scope, bounds, move |request| {
        let answering = routes.answer(request);
        Box::pin(async move {
            let mut answer = answering.await;
            let headers = answer.headers_mut();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            answer
        })
    })
    .await;
}

#[cfg(test)]
mod tests;
