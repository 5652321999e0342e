//! The client's end of one tunnel: TLS, HTTP/2, CONNECT.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::header::{FORWARDED, InvalidHeaderValue};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::gather::{Flush, Gather};
use super::guard::{Announced, Guard, Report};
use super::headers::{BAGGAGE, TRACEPARENT, TraceParent, forwarded, once};
pub use super::open_error::{Denial, HandshakeError, OpenError};
use super::orders::{Order, Orders};
use super::outbox::{Outbox, Piece};
use super::pulse::Pulse;
use super::records::Records;
use super::relay::Stream;
use super::seldom::Seldom;
use super::stream::{RecvHalf, SendHalf};
use super::tail::Tail;
use super::wire::Wire;
use super::{CLIENT_HEADER_LIST, Http2, Limits, RESET_STREAMS, SMALL_FRAMES};
use crate::identity::tls::{explain, result_of, server_name};
use crate::identity::{Chain, peer_certificate};
use crate::task::Scope;
use crate::telemetry::{Handshake, Metrics, Side};

/// What one CONNECT asks for, and who asks.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// Where the bytes go.
    pub authority: &'a Authority,
    /// Of the source workload.
    pub baggage: &'a HeaderValue,
    /// The client's address.
    pub source: SocketAddr,
    /// Host name of the service that it meant.
    pub host: Option<&'a str>,
    /// Trace context.
    pub trace: TraceParent,
}

impl Connect<'_> {
    fn request(&self) -> Result<Request<()>, InvalidHeaderValue> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = self.authority.clone().into();
        *request.version_mut() = http::Version::HTTP_2;
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(BAGGAGE, self.baggage.clone());
        headers.insert(FORWARDED, once(&forwarded(self.source, self.host))?);
        headers.insert(TRACEPARENT, once(&self.trace.to_string())?);
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// How long to wait for the answer to a CONNECT.
#[derive(Clone, Copy, Debug)]
pub struct AnswerWait {
    /// At most, from a tunnel that lives.
    pub limit: Duration,
    /// From one that answers nothing else either.
    pub patience: Duration,
}

impl AnswerWait {
    /// As [`Limits`] have it.
    pub fn of(limits: &Limits) -> Self {
        Self { limit: limits.answer, patience: limits.failover }
    }
}

/// What establishing a tunnel needs from its surroundings.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// What is announced.
    pub http2: &'a Http2,
    /// How long each stage may take.
    pub limits: &'a Limits,
    /// Owner of the tunnel's driver.
    pub scope: &'a Scope,
    /// Counts open tunnels.
    pub metrics: &'a Metrics,
}

/// An established tunnel. Not `Send`: it lives on its worker.
pub struct Tunnel {
    peer: SocketAddr,
    /// Gone once the tunnel takes no new streams: with the last stream's it lets the connection close.
    request: RefCell<Option<h2::client::SendRequest<Piece>>>,
    streams: Cell<usize>,
    streams_max: usize,
    /// Streams that the peer was seen to allow; all tunnels to it share this, as a new one does not know yet.
    learned: RefCell<Rc<Cell<usize>>>,
    window: u32,
    outbox: Rc<Outbox>,
    idle_since: Cell<Instant>,
    established: Instant,
    pulse: Rc<Pulse>,
    expires: SystemTime,
    lost: RefCell<Option<OpenError>>,
    chain: Chain,
    orders: Rc<Orders>,
}

/// A stream's claim on its tunnel; dropping it makes room for another.
pub struct Slot(Rc<Tunnel>);

impl Slot {
    /// Whether its tunnel was made after `began`.
    pub(super) fn is_newer_than(&self, began: Instant) -> bool {
        self.0.established >= began
    }

    /// What the tunnel's owner asks of it.
    pub fn orders(&self) -> &Rc<Orders> {
        &self.0.orders
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

impl Tunnel {
    /// TLS and HTTP/2 over `tcp`; its driver runs in the scope until the tunnel ends. It takes no new streams once our
    /// certificate, which ends at `expires`, or the server's has expired.
    ///
    /// **Errors**: handshake or time limit. With TLS 1.3 a server that refuses *our* certificate says so only after
    /// this has succeeded: the first [`Tunnel::open`] reports it.
    pub async fn establish(
        tcp: TcpStream,
        peer: SocketAddr,
        tls: Arc<rustls::ClientConfig>,
        expires: SystemTime,
        context: &Context<'_>,
    ) -> Result<Rc<Self>, OpenError> {
        let Context { http2, limits, scope, metrics } = *context;
        let tls = handshake(tcp, peer, tls, limits).await?;
        let theirs = peer_certificate(tls.get_ref().1.peer_certificates())
            .map_err(|e| HandshakeError::Tls { peer, cause: e.to_string(), result: Handshake::BadName })?;
        let chain = Chain::of(tls.get_ref().1.peer_certificates());
        let tail = Tail::of(tls.get_ref().0.tcp());
        let outbox = Rc::clone(tls.get_ref().0.outbox());
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            let cause = "the peer did not choose ALPN h2".into();
            return Err(HandshakeError::Http2 { peer, cause }.into());
        }
        let announced =
            Announced { frame: http2.frame_size, header_list: CLIENT_HEADER_LIST, limit: limits.preface };
        let report = Report { violations: metrics.peer_violations(), peer, identity: theirs.identity };
        let tls = Gather::new(Records::new(tls, Rc::clone(&outbox)));
        let flush = tls.flush();
        let tls = Guard::new(tls, Side::Client, announced, report);
        let handshake = h2::client::Builder::new()
            .initial_window_size(http2.stream_window)
            .initial_connection_window_size(http2.connection_window)
            .max_frame_size(http2.frame_size)
            .max_header_list_size(CLIENT_HEADER_LIST)
            .max_send_buffer_size(http2.send_buffer)
            .data_frame_budget(SMALL_FRAMES)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(None) // the guard counts them, by time
            .initial_max_send_streams(http2.client_streams)
            .enable_push(false)
            .handshake::<_, Piece>(tls);
        let (request, connection) = timeout(limits.preface, handshake)
            .await
            .map_err(|_| HandshakeError::Http2 {
                peer,
                cause: format!("no handshake within {:?}", limits.preface),
            })?
            .map_err(|e| HandshakeError::Http2 { peer, cause: e.to_string() })?;
        let tunnel = Rc::new(Self {
            peer,
            request: RefCell::new(Some(request)),
            streams: Cell::new(0),
            streams_max: http2.client_streams,
            learned: RefCell::new(Rc::new(Cell::new(usize::MAX))),
            window: http2.stream_window,
            outbox,
            idle_since: Cell::new(Instant::now()),
            established: Instant::now(),
            pulse: Rc::new(Pulse::new()),
            expires: expires.min(theirs.not_after),
            chain,
            orders: Rc::default(),
            lost: RefCell::new(None),
        });
        let counted = metrics.tunnel(Side::Client);
        let (weak, limits, draining) = (Rc::downgrade(&tunnel), limits.clone(), scope.clone());
        let (pulse, orders) = (Rc::clone(&tunnel.pulse), Rc::clone(&tunnel.orders));
        let connection = Box::new(connection); // 2.4 KiB, which the task would have room for four times
        scope.spawn_local(async move {
            let lost = drive((connection, flush), (&weak, &pulse), &limits, (&draining, &orders)).await;
            drop(counted);
            if let Some(tunnel) = weak.upgrade() {
                tunnel.lost.replace(lost.map(|error| error.of(peer, &limits)));
                tunnel.retire();
            }
            tail.read_up().await;
        });
        Ok(tunnel)
    }

    /// Room for one stream more, unless the tunnel is full, closing or too old.
    pub fn claim(self: &Rc<Self>, now: SystemTime) -> Option<Slot> {
        let offered = self.request.borrow().as_ref()?.current_max_send_streams();
        let allowed = self.streams_max.min(offered).min(self.learned.borrow().get());
        // A peer that allows none yet gets one to wait with: it may raise its limit, and the wait has one of its own.
        if self.is_closed() || now >= self.expires || self.streams.get() >= allowed.max(1) {
            return None;
        }
        self.streams.set(self.streams.get() + 1);
        Some(Slot(Rc::clone(self)))
    }

    /// The server's certificate and its intermediates.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// What its owner asks of it.
    pub fn orders(&self) -> &Rc<Orders> {
        &self.orders
    }

    /// Whether it carries bulk, and nothing else for now.
    pub(super) fn is_bulk(&self) -> bool {
        self.outbox.is_bulk()
    }

    /// Joins the tunnels to one peer, which share what they learn of it.
    pub fn share(&self, learned: &Rc<Cell<usize>>) {
        self.learned.replace(Rc::clone(learned));
    }

    /// No new stream will be accepted: the connection ended, the peer sent GOAWAY, or it was retired.
    pub fn is_closed(&self) -> bool {
        let gone = match self.request.borrow_mut().as_mut() {
            None => return true,
            Some(request) => {
                let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                matches!(request.poll_ready(&mut cx), Poll::Ready(Err(_)))
            }
        };
        if gone {
            self.retire();
        }
        gone
    }

    /// Takes no new streams; the connection closes behind the last.
    fn retire(&self) {
        self.request.borrow_mut().take();
    }

    /// Whether nothing has used it for `idle`.
    pub fn is_idle(&self, now: Instant, idle: Duration) -> bool {
        self.streams.get() == 0 && now.duration_since(self.idle_since.get()) >= idle
    }

    /// Whether its certificate has expired.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now >= self.expires
    }

    /// Sends a CONNECT and waits for the answer.
    ///
    /// **Errors**: see [`OpenError`]; a tunnel that has answered nothing at all when the patience ends is lost. **Cancel
    /// safety**: dropping it resets the stream.
    pub async fn open(slot: &Slot, connect: &Connect<'_>, wait: AnswerWait) -> Result<Stream, OpenError> {
        let tunnel = &slot.0;
        let peer = tunnel.peer;
        let request = connect.request().map_err(|e| HandshakeError::Http2 { peer, cause: e.to_string() })?;
        let answer = async {
            let sender = tunnel.request.borrow().clone();
            let Some(sender) = sender else { return Ok(None) };
            let mut sender = sender.ready().await?;
            let (response, send) = sender.send_request(request, false)?;
            Ok(Some((response.await?, send)))
        };
        let (response, send) = match tunnel.answered(answer, wait).await? {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(OpenError::Lost { peer, cause: "it takes no new streams".into() }),
            Err(error) => return Err(tunnel.why_lost(&error)),
        };
        tunnel.pulse.answered();
        if response.status() != StatusCode::OK {
            let denial = Denial::of(response.headers());
            return Err(OpenError::Refused { status: response.status(), denial });
        }
        let recv = RecvHalf::new(response.into_body(), &tunnel.outbox);
        Ok(Stream { send: SendHalf::new(send, &tunnel.outbox), recv, window: tunnel.window })
    }
}

impl Tunnel {
    /// Waits for the answer to a CONNECT. In doubt a PING asks whether the tunnel lives: who has nothing else to try goes
    /// on waiting for an app that is slow, but not on a tunnel that is stuck.
    async fn answered<T>(&self, answer: impl Future<Output = T>, wait: AnswerWait) -> Result<T, OpenError> {
        let (peer, asked, AnswerWait { limit, patience }) = (self.peer, Instant::now(), wait);
        let half = patience.min(limit) / 2;
        tokio::pin!(answer);
        if let Ok(answered) = timeout(half, &mut answer).await {
            return Ok(answered);
        }
        self.pulse.doubt();
        if let Ok(answered) = timeout(half, &mut answer).await {
            return Ok(answered);
        }
        if patience < limit {
            if !self.pulse.heard_since(asked) {
                self.retire();
                let cause = format!("neither the CONNECT nor a PING was answered within {patience:?}");
                return Err(OpenError::Lost { peer, cause });
            }
            if let Ok(answered) = timeout(limit - patience, &mut answer).await {
                return Ok(answered);
            }
        }
        // Others had answers meanwhile: it is the app that does not take this one.
        if !self.pulse.answered_since(asked) {
            self.retire();
        }
        Err(OpenError::AnswerTimeout { peer, limit })
    }
}

async fn handshake(
    tcp: TcpStream,
    peer: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<TlsStream<Wire>, OpenError> {
    let failed = |cause, result| Err(HandshakeError::Tls { peer, cause, result }.into());
    match timeout(limits.tls, TlsConnector::from(tls).connect(server_name(), Wire::new(tcp))).await {
        Ok(Ok(tls)) => Ok(tls),
        // Listeners reset what waits in their queues when they close: nobody took it, as if it had been refused.
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => {
            Err(OpenError::Tcp { peer, cause: error.to_string(), is_refused: true })
        }
        Ok(Err(error)) => failed(explain(&error), result_of(&error)),
        Err(_) => failed(format!("no handshake within {:?}", limits.tls), Handshake::Timeout),
    }
}

type Tls = Records<TlsStream<Wire>>;
type Driven = Box<h2::client::Connection<Guard<Gather<Tls>>, Piece>>;

/// What ended a tunnel.
enum Ended {
    Error(h2::Error),
    Silent,
    Cut,
}

impl Ended {
    fn of(self, peer: SocketAddr, limits: &Limits) -> OpenError {
        match self {
            Self::Error(error) => lost(peer, &error),
            Self::Cut => OpenError::Lost { peer, cause: "its owner has cut it".into() },
            Self::Silent => {
                OpenError::Lost { peer, cause: format!("no PING answer within {:?}", limits.ping_timeout) }
            }
        }
    }
}

/// Moves the tunnel's frames until it ends; `None` is an orderly end. When `scope` drains it takes no new streams.
async fn drive(
    (connection, flush): (Driven, Flush<Tls>),
    (tunnel, pulse): (&Weak<Tunnel>, &Pulse),
    limits: &Limits,
    asked: (&Scope, &Orders),
) -> Option<Ended> {
    let mut connection = connection;
    let pings = connection.ping_pong();
    let ended = Seldom::new(ended_early(pings, (tunnel, pulse), limits, asked));
    tokio::pin!(connection, ended);
    poll_fn(|cx| {
        if let Poll::Ready(ended) = ended.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended.err().map(Ended::Error));
        }
        flush.poll(cx);
        Poll::Pending
    })
    .await
}

/// Resolves when a tunnel must end though nothing broke, and retires it before that when it should take no new streams.
async fn ended_early(
    pings: Option<h2::PingPong>,
    (tunnel, pulse): (&Weak<Tunnel>, &Pulse),
    limits: &Limits,
    (scope, orders): (&Scope, &Orders),
) -> Ended {
    let watch = async {
        match pings {
            Some(pings) => pulse.watch(pings, limits).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(watch);
    let mut retired = false;
    let mut obeyed = Order::GoOn;
    loop {
        tokio::select! {
            () = &mut watch => return Ended::Silent,
            order = orders.beyond(obeyed) => {
                obeyed = order;
                if order == Order::Cut {
                    return Ended::Cut;
                }
            }
            () = scope.draining(), if !retired => retired = true,
        }
        if let Some(tunnel) = tunnel.upgrade() {
            tunnel.retire();
        }
    }
}

impl Tunnel {
    /// The stream's error, or what broke the tunnel below it, which says more.
    fn why_lost(&self, error: &h2::Error) -> OpenError {
        if error.is_go_away() || error.is_io() {
            self.retire();
        } else if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
            // Too many, on their way before its SETTINGS said so; or it takes none at all.
            let offered =
                self.request.borrow().as_ref().map_or(1, h2::client::SendRequest::current_max_send_streams);
            self.learned.borrow().set(offered.clamp(1, self.streams_max));
            if self.streams.get() <= 1 {
                self.retire();
            }
        }
        let below = self.lost.borrow().clone();
        below.unwrap_or_else(|| lost(self.peer, error))
    }
}

/// What an HTTP/2 error says about the tunnel: a TLS alert that came after our handshake is a TLS failure.
fn lost(peer: SocketAddr, error: &h2::Error) -> OpenError {
    // The codec keeps of an I/O error its kind and its text; those of TLS, and no others, are of invalid data.
    match error.get_io().filter(|io| io.kind() == ErrorKind::InvalidData) {
        Some(tls) => HandshakeError::Tls { peer, cause: tls.to_string(), result: Handshake::Refused }.into(),
        None => OpenError::Lost { peer, cause: error.to_string() },
    }
}
