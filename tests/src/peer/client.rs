//! An HBONE client that does it right, with the well-behaved `h2`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use culvert::lab::Place;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use rustls::ClientConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::net::{self, End, expect_bytes, read_end};
use super::within;
use super::{stream, tls, world::World};

/// A TLS connection from `place`; who refuses it may do so later, in the first read.
pub async fn dial(
    place: &Place,
    to: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = net::connect(place, to);
    within("a TLS handshake", TlsConnector::from(config).connect(tls::nobody(), tcp)).await
}

/// A CONNECT without any other header.
pub fn request(authority: &str) -> Request<()> {
    let uri: Uri = Uri::builder().authority(authority).build().expect("an authority");
    Request::builder().method(Method::CONNECT).uri(uri).body(()).expect("a request")
}

/// A tunnel that the test has opened.
pub struct Tunnel {
    /// Opens streams.
    pub send: SendRequest<Bytes>,
    /// Source address of the tunnel, as the agent's log has it.
    pub local: SocketAddr,
    /// Ends with the connection, and says how.
    pub driver: JoinSet<Result<(), h2::Error>>,
}

/// An answered CONNECT.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// From the agent.
    pub recv: RecvStream,
    /// To the agent.
    pub send: SendStream<Bytes>,
}

impl Tunnel {
    /// From the world's peer to the world's pod, with a right certificate.
    pub async fn open(world: &World) -> Self {
        Self::to(world, world.hbone()).await
    }

    /// As [`Tunnel::open`], to another address.
    pub async fn to(world: &World, to: SocketAddr) -> Self {
        let config = tls::client(Some(&world.leaf()), &["h2"]);
        Self::over(dial(&world.peer, to, config).await.expect("a TLS handshake")).await.expect("HTTP/2")
    }

    /// HTTP/2 over an established TLS connection.
    pub async fn over(stream: TlsStream<TcpStream>) -> Result<Self, h2::Error> {
        let local = stream.get_ref().0.local_addr().expect("a socket");
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 24).enable_push(false);
        let (send, connection) = within("an HTTP/2 handshake", builder.handshake(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self { send, local, driver })
    }

    /// Sends a request.
    pub async fn send(
        &mut self,
        request: Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut ready = within("room for a stream", self.send.clone().ready()).await?;
        ready.send_request(request, false)
    }

    /// Sends a request and waits for the answer.
    pub async fn ask(&mut self, request: Request<()>) -> Result<Answer, h2::Error> {
        let (answer, send) = self.send(request).await?;
        let (head, recv) = within("an answer", answer).await?.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, recv, send })
    }

    /// A CONNECT to `authority` that must be answered with 200.
    pub async fn connect(&mut self, authority: &str) -> Answer {
        let answer = self.ask(request(authority)).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{authority}: {:?}", answer.headers);
        answer
    }

    /// How the connection ended.
    pub async fn ended(&mut self) -> Result<(), h2::Error> {
        within("the end of a tunnel", self.driver.join_next()).await.expect("one driver").expect("no panic")
    }
}

impl Answer {
    /// Sends all of `data` as the agent gives credit.
    pub async fn write(&mut self, data: &[u8]) {
        self.try_write(data).await.expect("an open stream");
    }

    /// As [`Answer::write`]; an error when the stream is gone.
    pub async fn try_write(&mut self, data: &[u8]) -> Result<(), h2::Error> {
        stream::write(&mut self.send, data).await
    }

    /// Sends END_STREAM.
    pub fn finish(&mut self) {
        stream::finish(&mut self.send);
    }

    /// Reads exactly `expected`.
    pub async fn expect(&mut self, expected: &[u8]) {
        stream::expect(&mut self.recv, expected).await;
    }

    /// Reads to the end; a reset stream is its reason.
    pub async fn read_end(&mut self) -> Result<Vec<u8>, h2::Reason> {
        stream::read_end(&mut self.recv).await
    }

    /// A question goes to the app, which has accepted `served`, its answer comes back, and both end in order.
    pub async fn converse(&mut self, mut served: TcpStream) {
        self.write(b"question").await;
        expect_bytes(&mut served, b"question").await;
        served.write_all(b"answer").await.expect("an open connection");
        self.expect(b"answer").await;
        self.finish();
        assert_eq!(read_end(&mut served).await, End::Orderly(Vec::new()));
        drop(served);
        assert_eq!(self.read_end().await, Ok(Vec::new()));
    }

    /// Whether the agent refused as it should: END_STREAM, no body, no trailers, and these headers only.
    pub async fn assert_refused(&mut self, status: u16, class: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.headers);
        let mut names: Vec<_> = self.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["culvert-denial", "culvert-denial-class"]);
        assert_eq!(self.headers["culvert-denial-class"], class);
        let id = self.headers["culvert-denial"].to_str().expect("text").to_owned();
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "128 random bits: {id}");
        assert!(self.recv.is_end_stream(), "END_STREAM with the headers");
        assert_eq!(self.read_end().await, Ok(Vec::new()));
        assert_eq!(within("trailers", self.recv.trailers()).await.expect("an orderly end"), None);
        id
    }
}

/// Both ways through an echoing app, to its end: the agent serves.
pub async fn assert_serves(world: &World) {
    let mut tunnel = Tunnel::open(world).await;
    let mut stream = tunnel.connect(&world.app().to_string()).await;
    stream.write(b"are you there").await;
    stream.expect(b"are you there").await;
    stream.finish();
    assert_eq!(stream.read_end().await, Ok(Vec::new()));
}

/// As [`assert_serves`], from an app of the captured pod over plain TCP to another captured pod.
pub async fn assert_pod_serves(world: &World) {
    let mut app = net::connect(&world.twin, world.app());
    app.write_all(b"hello").await.expect("an open connection");
    expect_bytes(&mut app, b"hello").await;
    app.shutdown().await.expect("an open connection");
    assert_eq!(read_end(&mut app).await, End::Orderly(Vec::new()));
}
