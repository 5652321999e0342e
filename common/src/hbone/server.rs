//! The server's end of one tunnel: TLS with the client's certificate, HTTP/2, one [`ConnectRequest`] per stream.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client::Context;
use super::gather::{Flush, Gather};
use super::guard::{Announced, Guard, Report};
use super::headers::{BAGGAGE, DENIAL, DENIAL_CLASS};
use super::open_error::HandshakeError;
use super::orders::{Order, Orders};
use super::outbox::{Outbox, Piece};
use super::records::Records;
use super::relay::Stream;
use super::seldom::Seldom;
use super::stream::{RecvHalf, SendHalf};
use super::tail::{Tail, read_up};
use super::wire::Wire;
use super::{Limits, RESET_STREAMS, SERVER_HEADER_LIST, SMALL_FRAMES, watch_pings};
use crate::identity::tls::{explain, result_of};
use crate::identity::{Chain, peer_certificate};
use crate::telemetry::{Handshake, Side};
use crate::types::SpiffeId;

/// Streams that were reset before they were looked at; more than the guard lets through in one go.
const PENDING_RESETS: usize = 4000;
/// A timer that is set further ahead overflows; no certificate of ours lives as long.
const LONGEST_SLEEP: Duration = Duration::from_secs(365 * 24 * 3600);

/// A tunnel whose client has proven its identity.
pub struct Accepted {
    /// From its certificate.
    pub peer: SpiffeId,
    /// What it proved that with.
    pub chain: Chain,
    /// End of that certificate: no stream is taken after it.
    expires: SystemTime,
    /// Announced to the client.
    window: u32,
    outbox: Rc<Outbox>,
    connection: h2::server::Connection<Guard<Gather<Records<TlsStream<Wire>>>>, Piece>,
    flush: Flush<Records<TlsStream<Wire>>>,
    tail: Tail,
}

/// TLS and the HTTP/2 preface.
///
/// **Errors**: a wrong certificate (the peer gets an alert), no ALPN `h2`, or a time limit. **Cancel safety**: dropping
/// it closes the connection.
pub async fn accept(
    tcp: TcpStream,
    peer: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    context: &Context<'_>,
) -> Result<Accepted, HandshakeError> {
    let Context { http2, limits, metrics, .. } = *context;
    let accepting = TlsAcceptor::from(tls).accept(Wire::new(tcp)).into_fallible();
    let tls = timeout(limits.tls, accepting).await.map_err(|_| {
        let cause = format!("no handshake within {:?}", limits.tls);
        HandshakeError::Tls { peer, cause, result: Handshake::Timeout }
    })?;
    let tls = match tls {
        Ok(tls) => tls,
        Err((error, mut tcp)) => {
            if tcp.shutdown().await.is_ok() {
                read_up(tcp.into_tcp()).await;
            }
            return Err(HandshakeError::Tls { peer, cause: explain(&error), result: result_of(&error) });
        }
    };
    let (tcp, session) = tls.get_ref();
    let tail = Tail::of(tcp.tcp());
    let outbox = Rc::clone(tcp.outbox());
    let certificate = peer_certificate(session.peer_certificates()).map_err(|e| HandshakeError::Tls {
        peer,
        cause: e.to_string(),
        result: Handshake::BadName,
    })?;
    let chain = Chain::of(session.peer_certificates());
    if session.alpn_protocol() != Some(b"h2") {
        return Err(HandshakeError::Http2 { peer, cause: "the client did not offer ALPN h2".into() });
    }
    let announced =
        Announced { frame: http2.frame_size, header_list: SERVER_HEADER_LIST, limit: limits.preface };
    let report =
        Report { violations: metrics.peer_violations(), peer, identity: certificate.identity.clone() };
    let tls = Gather::new(Records::new(tls, Rc::clone(&outbox)));
    let flush = tls.flush();
    let tls = Guard::new(tls, Side::Server, announced, report);
    let handshake = h2::server::Builder::new()
        .initial_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .max_frame_size(http2.frame_size)
        .max_header_list_size(SERVER_HEADER_LIST)
        .max_send_buffer_size(http2.send_buffer)
        .data_frame_budget(SMALL_FRAMES)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(None) // the guard counts them, by time
        .max_concurrent_streams(http2.server_streams)
        .handshake::<_, Piece>(tls);
    let connection = timeout(limits.preface, handshake)
        .await
        .map_err(|_| HandshakeError::Http2 {
            peer,
            cause: format!("no preface within {:?}", limits.preface),
        })?
        .map_err(|e| HandshakeError::Http2 { peer, cause: e.to_string() })?;
    let expires = certificate.not_after;
    let window = http2.stream_window;
    Ok(Accepted { peer: certificate.identity, chain, expires, window, outbox, connection, flush, tail })
}

impl Accepted {
    /// Hands each request to `serve` until the tunnel ends. When `drained` resolves or `orders` say so, a GOAWAY is sent,
    /// and it ends behind its last stream.
    ///
    /// **Errors**: what broke the tunnel. **Cancel safety**: dropping it cuts all streams.
    pub async fn run(
        mut self,
        limits: &Limits,
        drained: impl Future<Output = ()>,
        orders: &Orders,
        mut serve: impl FnMut(ConnectRequest),
    ) -> Result<(), String> {
        let pings = self.connection.ping_pong();
        // Whoever cannot prove its identity any more opens no new streams; those that are open go on.
        let expires = self.expires.duration_since(SystemTime::now()).unwrap_or_default();
        let expired = tokio::time::sleep(expires.min(LONGEST_SLEEP));
        let close = Cell::new(false);
        let last = async {
            tokio::select! {
                () = drained => {}
                () = expired => {}
            }
        };
        let ended = Seldom::new(ended_early(pings, last, (limits, orders), &close));
        tokio::pin!(ended);
        let Self { connection, flush, window, outbox, .. } = &mut self;
        let polled = poll_fn(|cx| {
            let early = ended.as_mut().poll(cx);
            if close.take() {
                connection.graceful_shutdown();
            }
            if let Poll::Ready(early) = early {
                return Poll::Ready(Err(early));
            }
            while let Poll::Ready(next) = connection.poll_accept(cx) {
                match next {
                    None => return Poll::Ready(Ok(())),
                    Some(Err(error)) => return Poll::Ready(Err(Early::Broken(error.to_string()))),
                    Some(Ok((request, respond))) => {
                        serve(ConnectRequest {
                            request,
                            respond,
                            window: *window,
                            outbox: Rc::clone(outbox),
                        });
                    }
                }
            }
            flush.poll(cx);
            Poll::Pending
        });
        let ended = match polled.await {
            // Whoever is at the other end is nobody to wait for.
            Err(Early::Cut) => return Err("its owner has cut it".into()),
            Err(Early::Broken(cause)) => Err(cause),
            Ok(()) => Ok(()),
        };
        drop(self.connection);
        self.tail.read_up().await;
        ended
    }
}

/// Why a tunnel ends before its client has closed it.
enum Early {
    Cut,
    Broken(String),
}

/// Resolves when a tunnel must end though nothing broke, and before that asks in `close` for its end behind the last
/// stream, once, when there is a reason for it.
async fn ended_early(
    pings: Option<h2::PingPong>,
    last: impl Future<Output = ()>,
    (limits, orders): (&Limits, &Orders),
    close: &Cell<bool>,
) -> Early {
    let watch = async {
        match pings {
            Some(pings) => watch_pings(pings, limits).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(watch, last);
    let mut draining = false;
    let mut obeyed = Order::GoOn;
    loop {
        tokio::select! {
            () = &mut last, if !draining => {}
            order = orders.beyond(obeyed) => {
                obeyed = order;
                if order == Order::Cut {
                    return Early::Cut;
                }
            }
            () = &mut watch => {
                return Early::Broken(format!("no PING answer within {:?}", limits.ping_timeout));
            }
        }
        if !std::mem::replace(&mut draining, true) {
            close.set(true);
        }
    }
}

/// One CONNECT, not yet answered. Dropped unanswered it is reset.
pub struct ConnectRequest {
    request: Request<h2::RecvStream>,
    respond: h2::server::SendResponse<Piece>,
    window: u32,
    outbox: Rc<Outbox>,
}

/// Why a stream is refused; with the id it is all that the peer learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the answer.
    pub status: StatusCode,
    /// Class in the header `culvert-denial-class`.
    pub class: &'static str,
}

impl ConnectRequest {
    /// Whether it is a plain CONNECT, without `:protocol`, `:scheme` and `:path`.
    pub fn is_connect(&self) -> bool {
        self.request.method() == Method::CONNECT
            && self.request.extensions().get::<h2::ext::Protocol>().is_none()
            && self.request.uri().path().is_empty()
    }

    /// The `:authority` as it came.
    pub fn authority(&self) -> &str {
        self.request.uri().authority().map_or("", http::uri::Authority::as_str)
    }

    /// The request's headers.
    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// Answers 200; `baggage` tells the client who serves it.
    ///
    /// **Errors**: the stream or the tunnel is gone.
    pub fn accept(mut self, baggage: Option<HeaderValue>) -> Result<Stream, h2::Error> {
        let mut response = Response::new(());
        if let Some(value) = baggage {
            response.headers_mut().insert(BAGGAGE, value);
        }
        let send = self.respond.send_response(response, false)?;
        let recv = RecvHalf::new(self.request.into_body(), &self.outbox);
        Ok(Stream { send: SendHalf::new(send, &self.outbox), recv, window: self.window })
    }

    /// Answers with the status, the denial's id and class, END_STREAM, and nothing else.
    pub fn refuse(mut self, refusal: Refusal, id: &str) {
        let mut response = Response::new(());
        *response.status_mut() = refusal.status;
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert(DENIAL, id);
            headers.insert(DENIAL_CLASS, HeaderValue::from_static(refusal.class));
        }
        // An error says that the peer has gone: nobody waits for the answer.
        let _gone = self.respond.send_response(response, true);
    }

    /// Resolves when the client has reset the stream or the tunnel broke. Cancel-safe.
    pub async fn gone(&mut self) {
        let _reason = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

#[cfg(test)]
mod tests;
