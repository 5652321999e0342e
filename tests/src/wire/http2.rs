//! HTTP/2 and gRPC: an application that does what the path of a request says, and clients of it.

use std::future::poll_fn;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use culvert::lab::Place;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::task::JoinSet;

use crate::net::Server;
use crate::peer::{net, stream, within};

/// Longest body that one end sends before it listens.
const WINDOW: u32 = 1 << 20;

/// Runs a test's own future on this thread.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

/// What the application of HTTP/2 has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    requests: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
}

impl Seen {
    /// Requests.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Requests to `/Slow` that their clients have given up.
    pub fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// An application of HTTP/2 on one port, by prior knowledge; it takes extended CONNECTs.
    pub fn serve(&self, place: &Place, port: u16) -> Server {
        let seen = self.clone();
        Server::start(place, port, move |stream, _| run(seen.connection(stream)))
    }

    async fn connection(&self, stream: TcpStream) {
        stream.set_nonblocking(true).expect("a socket");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a runtime");
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(WINDOW).enable_connect_protocol();
        let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
        let mut all = JoinSet::new();
        while let Some(Ok((request, respond))) = connection.accept().await {
            self.requests.fetch_add(1, Ordering::SeqCst);
            let seen = self.clone();
            all.spawn(async move { seen.one(request, respond).await });
        }
    }

    async fn one(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (head, mut body) = request.into_parts();
        let mut answer = Response::new(());
        let is_grpc = head.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
        if is_grpc {
            answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        }
        let what = head.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        match what.as_str() {
            "Slow" => {
                // Ready when the client has reset its request.
                let _reset = poll_fn(|cx| respond.poll_reset(cx)).await;
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                return;
            }
            "Only" => {
                answer.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
                answer.headers_mut().insert("grpc-message", HeaderValue::from_static("none"));
                let _gone = respond.send_response(answer, true);
                return;
            }
            "Hints" => {
                let mut hints = Response::new(());
                *hints.status_mut() = StatusCode::EARLY_HINTS;
                hints.headers_mut().insert("link", HeaderValue::from_static("</a.css>"));
                respond.send_informational(hints).expect("an open stream");
            }
            "Head" => {
                let fields: String = head.headers.iter().map(|(n, v)| format!("{n}: {v:?}\n")).collect();
                let text = format!("{} {}\n{fields}", head.method, head.uri);
                let mut send = respond.send_response(answer, false).expect("an open stream");
                send.send_data(Bytes::from(text), true).expect("an open stream");
                return;
            }
            _ => {}
        }
        let Ok(mut send) = respond.send_response(answer, false) else { return };
        let mut first = true;
        let mut bytes = 0;
        while let Some(Ok(data)) = body.data().await {
            let _credit = body.flow_control().release_capacity(data.len());
            bytes += data.len();
            // One message to a stream of them, a stream of them to one message, or each as it comes.
            let echo = match what.as_str() {
                "Client" => Bytes::new(),
                "Server" if std::mem::take(&mut first) => Bytes::from(vec![&data[..]; 100].concat()),
                _ => data,
            };
            if stream::write(&mut send, &echo).await.is_err() {
                return;
            }
        }
        if what == "Client" {
            let _gone = stream::write(&mut send, &message(bytes.to_string().as_bytes())).await;
        }
        let mut trailers = HeaderMap::new();
        if let Ok(Some(theirs)) = body.trailers().await {
            trailers.extend(
                theirs.get("x-sum").cloned().map(|sum| (Some(http::HeaderName::from_static("x-sum")), sum)),
            );
        }
        if is_grpc {
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
        }
        let _gone = if trailers.is_empty() {
            send.send_data(Bytes::new(), true)
        } else {
            send.send_trailers(trailers)
        };
    }
}

/// A message of gRPC.
pub fn message(text: &[u8]) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("a short text").to_be_bytes();
    [&[0], &length[..], text].concat()
}

/// A connection of HTTP/2 by prior knowledge.
pub struct Client {
    /// Opens streams.
    pub send: SendRequest<Bytes>,
    _driver: JoinSet<Result<(), h2::Error>>,
}

impl Client {
    /// Connects from inside a place.
    pub async fn open(from: &Place, to: (IpAddr, u16)) -> Self {
        let tcp = net::connect(from, to.into());
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).enable_push(false);
        let (send, connection) = within("an HTTP/2 handshake", builder.handshake(tcp)).await.expect("HTTP/2");
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Self { send, _driver: driver }
    }

    /// Begins a request; `ends` if it has no body.
    pub async fn begin(&mut self, request: Request<()>, ends: bool) -> Call {
        let mut ready =
            within("room for a stream", self.send.clone().ready()).await.expect("an open connection");
        let (answer, send) = ready.send_request(request, ends).expect("a request");
        Call { answer: Some(answer), send, recv: None, held: Vec::new(), head: HeaderMap::new() }
    }

    /// Begins a call of gRPC.
    pub async fn call(&mut self, method: &str, headers: &[(&'static str, &'static str)]) -> Call {
        let mut request = request(Method::POST, &format!("/test.Echo/{method}"));
        let all = [("content-type", "application/grpc"), ("te", "trailers")];
        for (name, value) in all.iter().chain(headers) {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        self.begin(request, false).await
    }
}

/// A request of this method and path to `shop`.
pub fn request(method: Method, path: &str) -> Request<()> {
    let uri = format!("http://shop{path}");
    Request::builder().method(method).uri(uri).body(()).expect("a request")
}

/// A request that was begun.
pub struct Call {
    answer: Option<ResponseFuture>,
    /// Takes its body.
    pub send: SendStream<Bytes>,
    recv: Option<RecvStream>,
    held: Vec<u8>,
    /// Headers of the answer.
    pub head: HeaderMap,
}

impl Call {
    /// Sends a message of gRPC.
    pub async fn say(&mut self, text: &str) {
        stream::write(&mut self.send, &message(text.as_bytes())).await.expect("an open stream");
    }

    /// Sends END_STREAM.
    pub fn finish(&mut self) {
        stream::finish(&mut self.send);
    }

    /// The next head that comes before the answer.
    pub async fn interim(&mut self) -> Option<Response<()>> {
        let answer = self.answer.as_mut().expect("no answer yet");
        within("an interim answer", poll_fn(|cx| answer.poll_informational(cx))).await?.ok()
    }

    /// Waits for the answer's head; its status.
    ///
    /// **Errors**: the stream was reset.
    pub async fn status(&mut self) -> Result<u16, Reason> {
        let Some(answer) = self.answer.take() else { return Ok(0) };
        let answer = within("an answer", answer).await;
        let (head, recv) =
            answer.map_err(|error| error.reason().unwrap_or(Reason::INTERNAL_ERROR))?.into_parts();
        (self.head, self.recv) = (head.headers, Some(recv));
        Ok(head.status.as_u16())
    }

    /// The next message of gRPC; none at the end.
    pub async fn next(&mut self) -> Option<String> {
        self.status().await.expect("an answer");
        let recv = self.recv.as_mut().expect("an answer");
        loop {
            if let [_, a, b, c, d, rest @ ..] = &self.held[..] {
                let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).expect("a length");
                if let Some(text) = rest.get(..length) {
                    let text = String::from_utf8_lossy(text).into_owned();
                    self.held.drain(..5 + length);
                    return Some(text);
                }
            }
            let data = within("a message", recv.data()).await?.expect("an open stream");
            recv.flow_control().release_capacity(data.len()).expect("credit");
            self.held.extend_from_slice(&data);
        }
    }

    /// Everything up to the end, and the trailers.
    ///
    /// **Errors**: the stream was reset.
    pub async fn rest(&mut self) -> Result<(Vec<u8>, HeaderMap), Reason> {
        self.status().await?;
        let recv = self.recv.as_mut().expect("an answer");
        let body = stream::read_end(recv).await?;
        let trailers = within("trailers", recv.trailers()).await;
        let trailers = trailers.map_err(|error| error.reason().unwrap_or(Reason::INTERNAL_ERROR))?;
        Ok((body, trailers.unwrap_or_default()))
    }

    /// `grpc-status` of the trailers, or of the head where there is nothing else.
    pub async fn grpc_status(&mut self) -> String {
        let (_, trailers) = self.rest().await.expect("an orderly end");
        let status = trailers.get("grpc-status").or(self.head.get("grpc-status"));
        status.map_or("none".to_owned(), |status| status.to_str().expect("text").to_owned())
    }
}
