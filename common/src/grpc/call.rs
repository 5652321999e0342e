//! Calls on a connection.

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::rt::Executor;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::error::CallError;
use super::frame::{self, Decoder};
use super::target::{Limits, Target};
use crate::task::Scope;

/// Requests of a stream that may wait to be sent.
const QUEUE: usize = 4;

/// One connection to a control plane. Clones share it; it ends with the last of them and their calls.
#[derive(Clone)]
pub struct Channel {
    send: SendRequest<Outgoing>,
    shared: Arc<Shared>,
}

/// What all calls of a connection have in common.
struct Shared {
    target: Target,
    scheme: Scheme,
    authority: Authority,
    message_max: usize,
    tasks: Tasks,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tasks.0.cut();
    }
}

/// Owner of what drives a connection.
#[derive(Clone, Default)]
pub(super) struct Tasks(Scope);

impl Tasks {
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, work: F) {
        self.0.spawn(async move {
            work.await;
        });
    }
}

impl Channel {
    pub(super) fn new(send: SendRequest<Outgoing>, tasks: Tasks, target: &Target, limits: &Limits) -> Self {
        let address = target.address.clone().into_parts();
        let shared = Shared {
            target: target.clone(),
            // The address was dialled, so it has both.
            scheme: address.scheme.unwrap_or(Scheme::HTTPS),
            authority: address.authority.unwrap_or_else(|| Authority::from_static("localhost")),
            message_max: limits.message_max,
            tasks,
        };
        Self { send, shared: Arc::new(shared) }
    }

    /// Whether no call can succeed any more.
    pub fn is_closed(&self) -> bool {
        self.send.is_closed()
    }

    /// One message there, one message back, within `limit`. `path` is `/package.Service/Method`.
    ///
    /// **Errors**: the token, the connection, or the server's own answer.
    /// **Cancel safety**: a dropped call is cancelled at the server too.
    pub async fn unary<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        let call = async {
            let (requests, mut responses) = self.stream::<Q, A>(path)?;
            // A server that takes no request has an answer that says why.
            let _refused = requests.send(request).await;
            drop(requests);
            let answer = responses.message().await?.ok_or(CallError::Ended)?;
            match responses.bytes().await? {
                None => Ok(answer),
                Some(_) => Err(CallError::Unreadable { seen: "a second answer".to_owned() }),
            }
        };
        timeout(limit, call).await.unwrap_or(Err(CallError::Timeout { limit }))
    }

    /// Opens a stream in both directions; the server may answer only once the first request has been sent.
    ///
    /// **Errors**: the token cannot be read. What the server says comes with the first response.
    pub fn stream<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
    ) -> Result<(Requests<Q>, Responses<A>), CallError> {
        let (queue, body) = mpsc::channel(QUEUE);
        let mut request = Request::new(Outgoing(body));
        *request.method_mut() = http::Method::POST;
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.shared.scheme.clone());
        uri.authority = Some(self.shared.authority.clone());
        uri.path_and_query = Some(PathAndQuery::from_static(path));
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        for (name, value) in &self.shared.target.headers {
            headers.append(name, value.clone());
        }
        if let Some(token) = &self.shared.target.token {
            headers.insert(AUTHORIZATION, token.header()?);
        }
        let head = Box::pin(self.send.clone().send_request(request));
        let responses = Responses {
            state: State::Head(head),
            decoder: Decoder::new(self.shared.message_max),
            _channel: Arc::clone(&self.shared),
            message: PhantomData,
        };
        Ok((Requests { queue, message: PhantomData }, responses))
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("authority", &self.shared.authority).finish_non_exhaustive()
    }
}

/// Sending end of a stream. Dropped, it tells the server that nothing more will come.
pub struct Requests<Q> {
    queue: mpsc::Sender<Bytes>,
    message: PhantomData<fn(Q)>,
}

impl<Q: Message> Requests<Q> {
    /// Queues a message; waits while the server takes none.
    ///
    /// **Errors**: the stream has ended; its responses tell why.
    /// **Cancel safety**: a dropped call has sent nothing.
    pub async fn send(&self, message: &Q) -> Result<(), CallError> {
        // The answer says more than this: a caller reads it next.
        self.queue.send(frame::encode(message)).await.map_err(|_| CallError::Ended)
    }
}

/// Receiving end of a stream. Dropped, the stream is reset.
pub struct Responses<A> {
    state: State,
    decoder: Decoder,
    /// The connection lives as long as its calls.
    _channel: Arc<Shared>,
    message: PhantomData<fn() -> A>,
}

type Head = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

enum State {
    Head(Head),
    Body(Incoming),
    Ended,
}

impl<A: Message + Default> Responses<A> {
    /// The next message; `None` when the server has ended the stream without an error.
    ///
    /// **Errors**: the server's status, or the connection; the stream has ended.
    /// **Cancel safety**: nothing is lost by a dropped call.
    pub async fn message(&mut self) -> Result<Option<A>, CallError> {
        let Some(bytes) = self.bytes().await? else { return Ok(None) };
        A::decode(bytes).map(Some).map_err(|error| CallError::Unreadable { seen: error.to_string() })
    }

    /// As [`Responses::message`], the message as it came.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>, CallError> {
        let next = self.advance().await;
        if !matches!(next, Ok(Some(_))) {
            self.state = State::Ended;
        }
        next
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            match &mut self.state {
                State::Ended => return Err(CallError::Ended),
                State::Head(head) => {
                    let head = head.await.map_err(|cause| CallError::Broken { cause })?;
                    self.state = State::Body(accepted(head)?);
                }
                State::Body(body) => {
                    if let Some(message) = self.decoder.next()? {
                        return Ok(Some(message));
                    }
                    let Some(frame) = body.frame().await else { return Err(CallError::Ended) };
                    let frame = frame.map_err(|cause| CallError::Broken { cause })?;
                    match frame.into_data() {
                        Ok(data) => self.decoder.push(&data),
                        Err(frame) => return self.end(frame.into_trailers().unwrap_or_default()),
                    }
                }
            }
        }
    }

    fn end(&self, trailers: HeaderMap) -> Result<Option<Bytes>, CallError> {
        frame::status(&trailers).unwrap_or(Err(CallError::Ended))?;
        if self.decoder.is_between_messages() { Ok(None) } else { Err(CallError::Ended) }
    }
}

/// The body of an answer that is gRPC and no error.
fn accepted(head: Response<Incoming>) -> Result<Incoming, CallError> {
    let is_grpc =
        head.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    // Both in one answer: an error without any message.
    if let Some(Err(error)) = frame::status(head.headers()) {
        return Err(error);
    }
    if head.status() != http::StatusCode::OK || !is_grpc {
        return Err(CallError::NotGrpc { status: head.status().as_u16() });
    }
    Ok(head.into_body())
}

/// The requests of a stream as HTTP knows them.
pub(super) struct Outgoing(mpsc::Receiver<Bytes>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|message| message.map(|bytes| Ok(Frame::data(bytes))))
    }
}
