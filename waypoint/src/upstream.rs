//! Connections to endpoints: through their agent's tunnel where they are captured, else in plain TCP; and those of HTTP that
//! wait for another request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use culvert_common::hbone::Limits;
use culvert_common::hbone::client::{AnswerWait, Connect, Context, OpenError, Tunnel};
use culvert_common::hbone::headers::TraceParent;
use culvert_common::hbone::link::{self, Reader, Writer};
use culvert_common::hbone::pool::Key;
use culvert_common::model::l7::ConnectionPool;
use culvert_common::model::{Health, TunnelProtocol, Workload};
use culvert_common::net::socket::{self, ConnectError, DialOptions};
use culvert_common::state::Snapshot;
use culvert_common::telemetry::{Handshake, Side};
use culvert_common::types::WorkloadUid;
use http::HeaderValue;
use http::uri::Authority;
use tokio::time::Instant;

use crate::http1::head::Framing;
use crate::message::{Input, LinkIo, Request};
use crate::shared::random;
use crate::tunnel::Client;
use crate::worker::Worker;

/// Port of HBONE.
const HBONE: u16 = 15008;
/// Streams on one HTTP/2 connection, if its server allows as many.
const STREAMS: usize = 100;
/// Connections of HTTP/1.1 to one endpoint that wait for another request.
const IDLE_MAX: usize = 64;

/// Where one try goes.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) workload: Arc<Workload>,
    /// Address of the application.
    pub(crate) address: SocketAddr,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error(transparent)]
    Tunnel(#[from] OpenError),
    #[error(transparent)]
    Tcp(#[from] ConnectError),
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
}

impl UpstreamError {
    /// Whether it took too long.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::Tunnel(OpenError::TcpTimeout { .. } | OpenError::AnswerTimeout { .. })
                | Self::Tcp(ConnectError::Timeout { .. })
        )
    }
}

/// HTTP/1.1 connections that wait, and HTTP/2 connections with room, of one worker.
#[derive(Default)]
pub(crate) struct Connections {
    idle: RefCell<HashMap<Place, Vec<Idle>>>,
    shared: RefCell<HashMap<Place, Vec<Rc<Http2>>>>,
}

/// Which connections are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    workload: WorkloadUid,
    address: SocketAddr,
}

struct Idle {
    connection: Http1,
    until: Instant,
}

/// A connection of HTTP/1.1 to an endpoint.
pub(crate) struct Http1 {
    pub(crate) input: Input,
    pub(crate) output: Writer,
    /// Requests that it has had.
    pub(crate) served: u32,
}

/// A connection of HTTP/2 to an endpoint.
pub(crate) struct Http2 {
    pub(crate) send: h2::client::SendRequest<Bytes>,
    pub(crate) streams: std::cell::Cell<usize>,
}

/// A request's place on a connection of HTTP/2.
pub(crate) struct Stream(Rc<Http2>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

impl Http2 {
    /// Sends a request's head; the stream takes its body, if it has one.
    ///
    /// **Errors**: the connection takes no new requests.
    pub(crate) async fn request(
        self: &Rc<Self>,
        request: &Request,
    ) -> Result<(h2::client::ResponseFuture, Option<h2::SendStream<Bytes>>, Stream), h2::Error> {
        self.streams.set(self.streams.get() + 1);
        let place = Stream(Rc::clone(self));
        let mut send = self.send.clone().ready().await?;
        let scheme = if request.is_https { "https" } else { "http" };
        let uri = http::Uri::builder()
            .scheme(scheme)
            .authority(request.authority.as_bytes())
            .path_and_query(request.path.as_str())
            .build();
        let mut head = http::Request::new(());
        *head.method_mut() = request.method.clone();
        // Made of an authority and a path that were read as such.
        *head.uri_mut() = uri.unwrap_or_default();
        *head.version_mut() = http::Version::HTTP_2;
        head.headers_mut().clone_from(&request.headers);
        let is_empty = request.framing == Framing::Empty;
        let (response, stream) = send.send_request(head, is_empty)?;
        Ok((response, (!is_empty).then_some(stream), place))
    }
}

impl Connections {
    /// Forgets connections that have waited long enough, and those to endpoints that are gone.
    pub(crate) fn sweep(&self, snapshot: &Snapshot, now: Instant) {
        let serves = |place: &Place| {
            snapshot.workload(&place.workload).is_some_and(|workload| {
                workload.health != Health::Terminating && workload.addresses.contains(&place.address.ip())
            })
        };
        self.idle.borrow_mut().retain(|place, idle| {
            idle.retain(|one| one.until > now);
            !idle.is_empty() && serves(place)
        });
        self.shared.borrow_mut().retain(|place, connections| {
            connections.retain(|one| one.streams.get() > 0 || Rc::strong_count(one) > 1 || serves(place));
            !connections.is_empty()
        });
    }

    /// A connection that waits, the last used first.
    fn take(&self, place: &Place) -> Option<Http1> {
        let mut all = self.idle.borrow_mut();
        let idle = all.get_mut(place)?;
        let now = Instant::now();
        while let Some(mut one) = idle.pop() {
            if one.until > now && !one.connection.input.has_ended() {
                return Some(one.connection);
            }
        }
        None
    }
}

/// A connection of HTTP/1.1, one that waited or a new one; whether it is new.
///
/// **Errors**: see [`UpstreamError`]. **Cancel safety**: dropping it gives up.
pub(crate) async fn http1(
    worker: &Rc<Worker>,
    client: &Client,
    endpoint: &Endpoint,
    pool: &ConnectionPool,
) -> Result<(Http1, bool), UpstreamError> {
    if let Some(connection) = worker.connections.take(&Place::of(endpoint)) {
        return Ok((connection, false));
    }
    let (reader, output) = Box::pin(connect(worker, client, endpoint, pool)).await?;
    Ok((Http1 { input: Input::new(reader), output, served: 0 }, true))
}

/// Keeps a connection for another request.
pub(crate) fn keep(worker: &Worker, endpoint: &Endpoint, connection: Http1, pool: &ConnectionPool) {
    let most = pool.max_requests_per_connection;
    if (most > 0 && connection.served >= most) || worker.scope.is_draining() || connection.input.is_ahead() {
        return;
    }
    let mut all = worker.connections.idle.borrow_mut();
    let idle = all.entry(Place::of(endpoint)).or_default();
    if idle.len() < IDLE_MAX {
        idle.push(Idle { connection, until: Instant::now() + pool.http_idle });
    }
}

impl Place {
    fn of(endpoint: &Endpoint) -> Self {
        Self { workload: endpoint.workload.uid.clone(), address: endpoint.address }
    }
}

/// A connection of HTTP/2 with room for a request, an open one or a new one.
///
/// **Errors**: see [`UpstreamError`]. **Cancel safety**: dropping it gives up.
pub(crate) async fn http2(
    worker: &Rc<Worker>,
    client: &Client,
    endpoint: &Endpoint,
    pool: &ConnectionPool,
) -> Result<Rc<Http2>, UpstreamError> {
    let place = Place::of(endpoint);
    let most = STREAMS.min(usize::try_from(pool.max_streams).unwrap_or(STREAMS));
    let open = worker
        .connections
        .shared
        .borrow()
        .get(&place)
        .and_then(|connections| connections.iter().find(|one| one.streams.get() < most).cloned());
    if let Some(connection) = open {
        return Ok(connection);
    }
    let (reader, writer) = Box::pin(connect(worker, client, endpoint, pool)).await?;
    let (send, driver) = h2::client::Builder::new()
        .initial_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_header_list_size(80 * 1024)
        .enable_push(false)
        .handshake::<_, Bytes>(LinkIo::new(Input::new(reader), writer))
        .await?;
    let connection = Rc::new(Http2 { send, streams: std::cell::Cell::new(0) });
    worker.connections.shared.borrow_mut().entry(place.clone()).or_default().push(Rc::clone(&connection));
    let (owner, weak) = (Rc::clone(worker), Rc::downgrade(&connection));
    worker.scope.spawn_local(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a connection to an endpoint ended");
        }
        if let Some(connections) = owner.connections.shared.borrow_mut().get_mut(&place) {
            connections.retain(|one| !std::ptr::eq(Rc::as_ptr(one), weak.as_ptr()));
        }
    });
    Ok(connection)
}

/// A connection to an endpoint's application.
///
/// **Errors**: see [`UpstreamError`]. **Cancel safety**: dropping it gives up.
pub(crate) async fn connect(
    worker: &Rc<Worker>,
    client: &Client,
    endpoint: &Endpoint,
    pool: &ConnectionPool,
) -> Result<(Reader, Writer), UpstreamError> {
    let shared = &worker.shared;
    let limits = Limits { connect: pool.connect_timeout, tls: pool.connect_timeout, ..shared.limits.clone() };
    if endpoint.workload.protocol == TunnelProtocol::Tcp {
        let options =
            DialOptions { mark: None, source: None, nodelay: true, keepalive: None, reset_on_drop: true };
        let to = endpoint.address;
        let made = socket::dial_socket(to, &options).map_err(|source| ConnectError::Io { to, source })?;
        let stream = socket::connect(made, to, limits.connect).await?;
        return Ok(link::tcp(stream, &worker.board));
    }
    let peer = SocketAddr::new(endpoint.address.ip(), HBONE);
    let expected = vec![endpoint.workload.identity.clone()];
    let key =
        Key::new("waypoint".into(), shared.identity.clone(), endpoint.workload.uid.clone(), peer, expected);
    let authority = authority(endpoint.address);
    let connect = Connect {
        authority: &authority,
        baggage: &HeaderValue::from_static(""),
        source: client.address,
        host: None,
        trace: TraceParent::new(random(), random() as u64),
    };
    let establish = || Box::pin(establish(worker, &key, &limits));
    let opened = worker.tunnels.open(&key, &connect, AnswerWait::of(&limits), establish).await?;
    Ok(link::tunnel(opened.stream, Some(opened.slot), &worker.board))
}

/// A new tunnel: our certificate, TCP, TLS, HTTP/2.
async fn establish(worker: &Rc<Worker>, key: &Key, limits: &Limits) -> Result<Rc<Tunnel>, OpenError> {
    let shared = &worker.shared;
    let start = Instant::now();
    let count = |result| shared.metrics.handshake(Side::Client, result, start.elapsed());
    let certificate = match shared.certs.current(&key.identity) {
        Some(certificate) => certificate,
        None => shared.certs.wait(&key.identity, shared.certificate_wait).await.map_err(|error| {
            count(Handshake::NoCertificate);
            OpenError::Identity(error.to_string())
        })?,
    };
    let peer = key.peer;
    let options =
        DialOptions { mark: None, source: None, nodelay: true, keepalive: None, reset_on_drop: false };
    let failed = |error| match error {
        ConnectError::Timeout { limit, .. } => OpenError::TcpTimeout { peer, limit },
        ConnectError::Io { source, .. } => {
            let is_refused = source.kind() == io::ErrorKind::ConnectionRefused;
            OpenError::Tcp { peer, cause: source.to_string(), is_refused }
        }
    };
    let made = socket::dial_socket(peer, &options)
        .map_err(|source| failed(ConnectError::Io { to: peer, source }))?;
    let tcp = socket::connect(made, peer, limits.connect).await.map_err(failed)?;
    let tls = certificate.client_config(&key.expected);
    let context = Context { http2: &shared.http2, limits, scope: &worker.scope, metrics: &shared.metrics };
    let tunnel = Tunnel::establish(tcp, peer, tls, certificate.not_after, &context).await;
    count(match &tunnel {
        Ok(_) => Handshake::Complete,
        Err(error) => error.result().unwrap_or(Handshake::Tls),
    });
    tunnel
}

/// `<address>:<port>`
fn authority(address: SocketAddr) -> Authority {
    // The text of an address is an authority.
    Authority::try_from(address.to_string()).unwrap_or(Authority::from_static("0.0.0.0:0"))
}
