//! Port 15008 of the world's peer, or of another place, answered by the test.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use culvert::lab::Place;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::net::{App, End, expect_bytes, read_end};
use super::raw::{Frame, Raw, kind};
use super::world::{HBONE, World};
use super::{stream, tls, within};

/// A listener with TLS.
pub struct Server {
    /// Its plain socket.
    pub tcp: App,
    config: Arc<ServerConfig>,
}

impl Server {
    /// With the right certificate of the world's peer.
    pub fn new(world: &World) -> Self {
        Self::with(world, tls::server(&world.leaf(), &world.pki, &["h2"]))
    }

    /// With any TLS.
    pub fn with(world: &World, config: Arc<ServerConfig>) -> Self {
        Self::at(&world.peer, config)
    }

    /// In any place.
    pub fn at(place: &Place, config: Arc<ServerConfig>) -> Self {
        Self { tcp: App::listen(place, HBONE), config }
    }

    /// The next tunnel, after its handshake.
    pub async fn accept(&self) -> io::Result<TlsStream<TcpStream>> {
        let (tcp, _) = self.tcp.accept().await;
        let accepting = TlsAcceptor::from(Arc::clone(&self.config)).accept(tcp).into_fallible();
        match within("a TLS handshake", accepting).await {
            Ok(stream) => Ok(stream),
            Err((error, mut tcp)) => {
                // A close with bytes unread would be a reset, and could overtake our alert.
                let _gone = tcp.shutdown().await;
                let _gone = within("the client's end", tcp.read_to_end(&mut Vec::new())).await;
                Err(error)
            }
        }
    }

    /// The next tunnel, served by `h2`.
    pub async fn session(&self) -> Session {
        self.session_with(100).await
    }

    /// As [`Server::session`], with room for so many streams.
    pub async fn session_with(&self, streams: u32) -> Session {
        let stream = self.accept().await.expect("a TLS handshake");
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(streams).initial_window_size(64 * 1024);
        let mut connection =
            within("a preface", builder.handshake::<_, Bytes>(stream)).await.expect("HTTP/2");
        let (tell, requests) = mpsc::channel(1024);
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            while let Some(Ok(request)) = connection.accept().await {
                if tell.send(request).await.is_err() {
                    return;
                }
            }
        });
        Session { requests, _driver: driver }
    }

    /// The next tunnel with its first request, as frames: the stream's number is that of the CONNECT.
    pub async fn raw(&self, settings: &[(u16, u32)]) -> (Raw<TlsStream<TcpStream>>, u32) {
        let stream = self.accept().await.expect("a TLS handshake");
        let mut raw = Raw::welcome(stream, settings).await;
        let request = raw.find(|f| f.kind == kind::HEADERS).await.expect("a request");
        (raw, request.stream)
    }
}

/// A tunnel that `h2` serves. It is cut when this is dropped.
pub struct Session {
    requests: mpsc::Receiver<(Request<RecvStream>, SendResponse<Bytes>)>,
    _driver: JoinSet<()>,
}

impl Session {
    /// The next request of this tunnel, and its stream.
    pub async fn accept(&mut self) -> (Request<()>, Incoming) {
        let (request, respond) =
            within("a request", self.requests.recv()).await.expect("the tunnel ended before a request");
        let (head, recv) = request.into_parts();
        (Request::from_parts(head, ()), Incoming { respond, recv, send: None })
    }

    /// The next request of this tunnel, whenever it comes; none at the tunnel's end.
    pub async fn next(&mut self) -> Option<(Request<()>, Incoming)> {
        let (request, respond) = self.requests.recv().await?;
        let (head, recv) = request.into_parts();
        Some((Request::from_parts(head, ()), Incoming { respond, recv, send: None }))
    }

    /// Panics unless the tunnel ends without another request.
    pub async fn ended(&mut self) {
        assert!(within("the end of a tunnel", self.requests.recv()).await.is_none(), "another request");
    }
}

/// The stream of a CONNECT.
pub struct Incoming {
    respond: SendResponse<Bytes>,
    /// From the agent.
    pub recv: RecvStream,
    /// To the agent, once accepted.
    pub send: Option<SendStream<Bytes>>,
}

impl Incoming {
    /// Answers 200.
    pub fn accept(&mut self) {
        self.send = Some(self.respond.send_response(Response::new(()), false).expect("an open stream"));
    }

    /// Answers with another status and these headers, and END_STREAM.
    pub fn refuse(&mut self, status: u16, headers: &[(&'static str, &str)]) {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
        for (name, value) in headers {
            answer.headers_mut().append(*name, value.parse().expect("a value"));
        }
        self.respond.send_response(answer, true).expect("an open stream");
    }

    /// Sends all of `data` as the agent gives credit.
    pub async fn write(&mut self, data: &[u8]) {
        stream::write(self.send.as_mut().expect("accepted"), data).await.expect("an open stream");
    }

    /// Sends END_STREAM.
    pub fn finish(&mut self) {
        stream::finish(self.send.as_mut().expect("accepted"));
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    /// Reads exactly `expected`.
    pub async fn expect(&mut self, expected: &[u8]) {
        stream::expect(&mut self.recv, expected).await;
    }

    /// Reads what begins with `expected`.
    pub async fn expect_begin(&mut self, expected: &[u8]) {
        stream::expect_begin(&mut self.recv, expected).await;
    }

    /// Reads to the end; a reset stream is its reason.
    pub async fn read_end(&mut self) -> Result<Vec<u8>, Reason> {
        stream::read_end(&mut self.recv).await
    }

    /// After [`Incoming::accept`]: the app's question comes here and this answer to the app, and both end in order.
    pub async fn converse(&mut self, app: &mut TcpStream) {
        app.write_all(b"question").await.expect("an open connection");
        self.expect(b"question").await;
        self.write(b"answer").await;
        expect_bytes(app, b"answer").await;
        app.shutdown().await.expect("an open connection");
        assert_eq!(self.read_end().await, Ok(Vec::new()));
        self.finish();
        assert_eq!(read_end(app).await, End::Orderly(Vec::new()));
    }
}

/// The answer 200, with nothing else.
pub fn accepted(stream: u32) -> Frame {
    Frame::new(kind::HEADERS, super::raw::END_HEADERS, stream, vec![0x88])
}
