//! One connection that a tunnel carries, from its CONNECT on: where it wants to go, whether that is this waypoint's business,
//! and what is spoken on it.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_common::hbone::link::{self, LinkError, Writer};
use culvert_common::hbone::server::{ConnectRequest, Refusal};
use culvert_common::model::l7::{Protocol, Waypoint};
use culvert_common::model::{Service, Workload};
use culvert_common::state::Snapshot;
use culvert_common::telemetry::denial_id;
use culvert_common::types::{Authority, ServiceKey};
use http::StatusCode;

use crate::http1::body::Decoder;
use crate::http1::head;
use crate::message::{Body, Input, MessageError, Request, Version};
use crate::reply::{self, Responder};
use crate::tunnel::Client;
use crate::worker::Worker;
use crate::{http2, log, request, tcp};

/// A client that has not said anything for so long may wait for the server to speak.
const SPEAKS_FIRST: Duration = Duration::from_millis(20);
/// A head that has begun has come by then.
const HEAD: Duration = Duration::from_secs(60);
/// HTTP/2's first bytes. Source: RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What all requests of one connection have in common.
pub(crate) struct Stage {
    pub(crate) worker: Rc<Worker>,
    pub(crate) client: Rc<Client>,
    pub(crate) target: Target,
    /// What the tunnel was asked for.
    pub(crate) destination: std::net::SocketAddr,
    /// The client's workload: the one at its address, if that may be who it has proven to be.
    pub(crate) source: Option<Arc<Workload>>,
    /// The service of the target.
    pub(crate) service: Option<Arc<Service>>,
}

/// What a connection is addressed to.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A port of a service that is bound to this waypoint.
    Service(ServiceKey, u16),
    /// A workload that is bound to it.
    Workload(Arc<Workload>),
}

/// Why a CONNECT is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the request is no plain CONNECT")]
    NotConnect,
    #[error("{0:?} is no address and no host name with a port")]
    Authority(String),
    #[error("this waypoint has not read its configuration yet")]
    NoConfig,
    #[error("{0} is bound to no service or workload of this waypoint")]
    NotBound(Authority),
    #[error("service {0} has no TCP port {1}")]
    NoPort(ServiceKey, u16),
}

impl Refused {
    fn refusal(&self) -> Refusal {
        let (status, class) = match self {
            Self::NotConnect | Self::Authority(_) => (StatusCode::BAD_REQUEST, "request"),
            Self::NotBound(_) | Self::NoPort(..) => (StatusCode::NOT_FOUND, "destination"),
            Self::NoConfig => (StatusCode::SERVICE_UNAVAILABLE, "destination"),
        };
        Refusal { status, class }
    }
}

/// Serves one CONNECT to its end.
pub(crate) async fn connect(worker: &Rc<Worker>, client: &Rc<Client>, request: Box<ConnectRequest>) {
    let current = worker.shared.current();
    let decided = match &*current {
        current if !current.is_loaded => Err(Refused::NoConfig),
        current => target(&current.snapshot, &current.waypoint, &request),
    };
    let (target, destination, protocol) = match decided {
        Ok(decided) => decided,
        Err(refused) => {
            let id = denial_id();
            tracing::warn!(client = %client.identity, authority = request.authority(), denial = id, "refused: {refused}");
            return request.refuse(refused.refusal(), &id);
        }
    };
    let source = current.snapshot.workload_by_ip(client.address.ip());
    let source = source.filter(|source| source.identity == client.identity).cloned();
    let service = match &target {
        Target::Service(key, _) => current.snapshot.service(key).cloned(),
        Target::Workload(_) => None,
    };
    drop(current);
    let Ok(stream) = request.accept(None) else { return };
    let (reader, writer) = link::tunnel(stream, None, &worker.board);
    let (worker, client) = (Rc::clone(worker), Rc::clone(client));
    let stage = Rc::new(Stage { worker, client, target, destination, source, service });
    let input = Input::new(reader);
    match protocol {
        Protocol::Tcp => Box::pin(tcp::serve(&stage, input, writer)).await,
        Protocol::Tls => Box::pin(tcp::serve_tls(&stage, input, writer)).await,
        Protocol::Http1 | Protocol::Http2 => Box::pin(http(&stage, input, writer)).await,
        Protocol::Unknown => Box::pin(sniffed(&stage, input, writer)).await,
    }
}

/// What is meant, the address of it, and what clients speak there.
fn target(
    snapshot: &Snapshot,
    waypoint: &Waypoint,
    request: &ConnectRequest,
) -> Result<(Target, std::net::SocketAddr, Protocol), Refused> {
    if !request.is_connect() {
        return Err(Refused::NotConnect);
    }
    let authority: Authority =
        request.authority().parse().map_err(|_| Refused::Authority(request.authority().to_owned()))?;
    let port = authority.port();
    let bound = |key: &ServiceKey| waypoint.services.get(key);
    let service = match &authority {
        Authority::Addr(addr) => {
            let at = snapshot.services_at(addr.ip()).iter().chain(snapshot.services_around(addr.ip()));
            at.map(|service| &service.key).find(|key| bound(key).is_some())
        }
        Authority::Host(name, _) => {
            snapshot.services_named(name).iter().map(|service| &service.key).find(|key| bound(key).is_some())
        }
    };
    if let Some(key) = service {
        let at = bound(key).and_then(|bound| bound.ports.get(&port));
        let at = at.ok_or_else(|| Refused::NoPort(key.clone(), port))?;
        let vip = snapshot.service(key).and_then(|service| service.vips.first().copied());
        let address = match &authority {
            Authority::Addr(address) => *address,
            Authority::Host(..) => (vip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()), port).into(),
        };
        return Ok((Target::Service(key.clone(), port), address, at.protocol));
    }
    if let Authority::Addr(address) = &authority
        && let Some(workload) = snapshot.workload_by_ip(address.ip())
        && waypoint.workloads.contains(&workload.uid)
    {
        return Ok((Target::Workload(Arc::clone(workload)), *address, Protocol::Unknown));
    }
    Err(Refused::NotBound(authority))
}

/// Looks at the first bytes. A client that says nothing may be waiting for the server: then that is dialled, and whoever
/// speaks first decides.
async fn sniffed(stage: &Rc<Stage>, mut input: Input, writer: Writer) {
    let spoken = match tokio::time::timeout(SPEAKS_FIRST, poll_fn(|cx| input.poll_bytes(cx))).await {
        Ok(spoken) => spoken,
        Err(_) => match tokio::time::timeout(stage.idle(), tcp::first_word(stage, &mut input)).await {
            Ok(tcp::FirstWord::Client(spoken)) => spoken,
            Ok(tcp::FirstWord::Server(upstream)) => {
                return tcp::answered(stage, (input, writer), *upstream).await;
            }
            Err(_) => return tracing::debug!("nobody has said anything for too long"),
        },
    };
    let first = match spoken {
        Ok(Some(first)) => enough(first, &mut input).await,
        Ok(None) => return tcp::serve(stage, input, writer).await,
        Err(error) => Err(error),
    };
    match first {
        Ok(first) => {
            let is_http = is_http(&first);
            input.put_back(first);
            if is_http {
                http(stage, input, writer).await
            } else {
                tcp::serve_tls(stage, input, writer).await
            }
        }
        Err(error) => tracing::debug!(%error, "a connection broke before it had said what it speaks"),
    }
}

/// So much of the first bytes that HTTP can be told from anything else.
async fn enough(mut first: Bytes, input: &mut Input) -> Result<Bytes, LinkError> {
    while is_open(&first) {
        let more = tokio::time::timeout(HEAD, poll_fn(|cx| input.poll_bytes(cx))).await;
        match more.unwrap_or(Ok(None))? {
            Some(more) => {
                let mut both = BytesMut::from(first);
                both.extend_from_slice(&more);
                first = both.freeze();
            }
            None => break,
        }
    }
    Ok(first)
}

/// What requests begin with where nobody has said that it is HTTP. `PRI` is HTTP/2's preface.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI"];

/// Whether it may yet become a request line.
fn is_open(first: &[u8]) -> bool {
    METHODS.iter().any(|method| method.as_bytes().starts_with(first))
}

/// Whether it is a method and a space.
fn is_http(first: &[u8]) -> bool {
    METHODS
        .iter()
        .any(|method| first.strip_prefix(method.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' ')))
}

/// HTTP of either version; the first bytes say which.
async fn http(stage: &Rc<Stage>, mut input: Input, writer: Writer) {
    match is_http2(stage, &mut input).await {
        Ok(Some(true)) => http2::serve(stage, input, writer).await,
        Ok(Some(false)) => http1(stage, input, writer).await,
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "a connection broke before its first request"),
    }
}

/// Whether HTTP/2's preface comes; none if nothing does.
async fn is_http2(stage: &Stage, input: &mut Input) -> Result<Option<bool>, LinkError> {
    let mut seen = BytesMut::new();
    loop {
        let limit = if seen.is_empty() { stage.idle() } else { HEAD };
        let next = tokio::time::timeout(limit, poll_fn(|cx| input.poll_bytes(cx))).await;
        let Some(more) = next.unwrap_or(Ok(None))? else { return Ok(None) };
        seen.extend_from_slice(&more);
        let length = seen.len().min(PREFACE.len());
        let same = seen.get(..length) == PREFACE.get(..length);
        if !same || length == PREFACE.len() {
            input.put_back(seen.freeze());
            return Ok(Some(same));
        }
    }
}

/// Requests of HTTP/1.1, one after the other.
async fn http1(stage: &Rc<Stage>, mut input: Input, mut writer: Writer) {
    let scope = &stage.worker.scope;
    loop {
        if !next_begins(stage, &mut input).await {
            break;
        }
        let head = match tokio::time::timeout(HEAD, input.head(head::REQUEST_MAX)).await {
            Ok(Ok(Some(head))) => head::request(&head).map_err(MessageError::Head),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(MessageError::Late),
        };
        let (request, framing, keep_alive) = match head {
            Ok(head) => {
                let (framing, keep_alive) = (head.framing, head.keep_alive && !scope.is_draining());
                (Request::of_http1(head), framing, keep_alive)
            }
            Err(error) => {
                tracing::debug!(client = %stage.client.identity, %error, "no request of HTTP/1.1");
                if let Some(reply) = reply::malformed(&error, &mut writer).await {
                    log::malformed(stage, &reply);
                }
                break;
            }
        };
        let body = Body::Http1(&mut input, Decoder::new(framing));
        let responder = Responder::http1(&mut writer, &request, keep_alive);
        if !request::serve(stage, request, body, responder).await.goes_on {
            break;
        }
    }
    // A client that has gone hears nothing of it.
    let _gone = writer.finish();
}

/// Waits for another request; false: there will be none, or none has come for too long. In a drain one may still come, as its
/// client may have sent it before it could know; it is answered with `Connection: close`.
async fn next_begins(stage: &Stage, input: &mut Input) -> bool {
    let shared = &stage.worker.shared;
    let last_call = async {
        stage.worker.scope.draining().await;
        tokio::time::sleep(shared.last_call).await;
    };
    tokio::select! {
        biased;
        begun = poll_fn(|cx| input.poll_begun(cx)) => begun.unwrap_or(false),
        () = tokio::time::sleep(shared.idle) => false,
        () = last_call => false,
    }
}

impl Stage {
    /// A connection on which nobody wants anything for so long is ended.
    pub(crate) fn idle(&self) -> Duration {
        self.worker.shared.idle
    }
}

impl Request {
    fn of_http1(head: head::RequestHead) -> Self {
        let head::RequestHead { method, authority, path, is_https, headers, framing, upgrade, .. } = head;
        Self { method, is_https, authority, path, headers, version: Version::Http1, framing, upgrade }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_told_from_other_bytes() {
        for (text, open, http) in [
            ("GET / HTTP/1.1", false, true),
            ("PRI * HTTP/2.0", false, true),
            ("GE", true, false),
            ("POST", true, false),
            ("EHLO mail", false, false),
            ("\x16\x03\x01", false, false),
            ("get / ", false, false),
            ("GETS / ", false, false),
        ] {
            assert_eq!((is_open(text.as_bytes()), is_http(text.as_bytes())), (open, http), "{text:?}");
        }
    }
}
