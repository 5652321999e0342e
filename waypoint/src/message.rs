//! Messages that arrive, whatever version of HTTP they came in; [`crate::pump`] sends them on.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use culvert_common::hbone::link::{Arrivals, LinkError, Reader};
use culvert_common::hbone::stream::StreamEnd;
use http::{HeaderMap, HeaderValue, Method};

use crate::http1::body::{BadBody, Decoder, Part};
use crate::http1::head::{self, BadHead, Framing};

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Version {
    /// As access logs name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// A request's head, as filters and routes see it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) is_https: bool,
    pub(crate) authority: HeaderValue,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) version: Version,
    /// Where its body ends; of HTTP/2 a length only where it is said.
    pub(crate) framing: Framing,
    /// What the client wants to speak instead of HTTP.
    pub(crate) upgrade: Option<HeaderValue>,
}

/// Why a message broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Head(#[from] BadHead),
    #[error(transparent)]
    Body(#[from] BadBody),
    #[error("the connection ended within a message")]
    Short,
    #[error("the connection ended before an answer came")]
    Closed,
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    #[error("the stream was reset: {0}")]
    Reset(h2::Reason),
    #[error("the rest of a head did not come in time")]
    Late,
    #[error("more than {} answers before the answer", crate::relay::INTERIM_MAX)]
    Interim,
}

/// The receiving half of an HTTP/1.1 connection.
pub(crate) struct Input {
    reader: Reader,
    /// What has been read and not been taken.
    held: Bytes,
    /// The beginning of a head, and how far the search for its end has come.
    begun: BytesMut,
    search: head::End,
}

impl Input {
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader, held: Bytes::new(), begun: BytesMut::new(), search: head::End::default() }
    }

    /// Puts back what was only looked at; nothing may have been taken since.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        self.held = bytes;
    }

    /// Bytes as they come; `None` is the end.
    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, LinkError>> {
        if !self.held.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.held))));
        }
        self.reader.poll_chunk(cx)
    }

    /// Whether the other end has closed, or said something that nobody asked for.
    pub(crate) fn has_ended(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.is_ahead() || self.reader.poll_chunk(&mut cx).is_ready()
    }

    /// Whether anything has come that nobody has taken.
    pub(crate) fn is_ahead(&self) -> bool {
        !self.held.is_empty() || !self.begun.is_empty() || self.reader.is_ahead()
    }

    /// Ready with true when the next message has begun, with false when there will be none.
    ///
    /// **Errors**: the other end broke off.
    pub(crate) fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, LinkError>> {
        if self.is_ahead() {
            return Poll::Ready(Ok(true));
        }
        let chunk = ready!(self.reader.poll_chunk(cx))?;
        self.held = chunk.unwrap_or_default();
        Poll::Ready(Ok(!self.held.is_empty()))
    }

    /// Ready when the other end has gone, which one that ends its half has too. What it says meanwhile is held, and then only
    /// that it breaks off counts.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<MessageError> {
        if self.is_ahead() {
            return match ready!(self.reader.poll_gone(cx)) {
                Some(error) => Poll::Ready(error.into()),
                None => Poll::Pending,
            };
        }
        match ready!(self.reader.poll_chunk(cx)) {
            Ok(Some(chunk)) => {
                self.held = chunk;
                Poll::Pending
            }
            Ok(None) => Poll::Ready(MessageError::Short),
            Err(error) => Poll::Ready(error.into()),
        }
    }

    /// The next head, with its empty line; none at the orderly end. Empty lines before it are passed over.
    ///
    /// **Cancel safety**: what has come is kept for the next call.
    pub(crate) async fn head(&mut self, max: usize) -> Result<Option<Bytes>, MessageError> {
        loop {
            let Some(mut chunk) = poll_fn(|cx| self.poll_bytes(cx)).await? else {
                return if self.begun.is_empty() { Ok(None) } else { Err(MessageError::Short) };
            };
            if self.begun.is_empty() {
                while chunk.starts_with(b"\r\n") {
                    chunk.advance(2);
                }
            }
            // A head in one piece, which is the rule, is not copied.
            let mut all = if self.begun.is_empty() {
                chunk
            } else {
                self.begun.extend_from_slice(&chunk);
                self.begun.split().freeze()
            };
            if let Some(end) = self.search.find(&all, max)? {
                self.search = head::End::default();
                let head = all.split_to(end);
                self.held = all;
                // What is left of empty lines that came in pieces.
                if head.as_ref() != b"\r\n" {
                    return Ok(Some(head));
                }
                continue;
            }
            self.begun = BytesMut::from(all);
        }
    }
}

/// The body of a message that arrives.
pub(crate) enum Body<'a> {
    Empty,
    /// None, until the upgrade that its stream asks for is granted; what comes earlier waits.
    Later(Box<Arrivals>),
    Http1(&'a mut Input, Decoder),
    Http2(Box<Arrivals>),
}

impl Body<'_> {
    /// The next part. After the end it is not asked again.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, MessageError>> {
        match self {
            Self::Empty | Self::Later(_) => Poll::Ready(Ok(Part::End(None))),
            Self::Http1(input, decoder) => loop {
                match decoder.next(&mut input.held)? {
                    // As Envoy has it, trailers are for HTTP/2.
                    Some(Part::End(_)) => return Poll::Ready(Ok(Part::End(None))),
                    Some(part) => return Poll::Ready(Ok(part)),
                    None => {}
                }
                match ready!(input.reader.poll_chunk(cx))? {
                    Some(chunk) => input.held = chunk,
                    None if decoder.ends_with_connection() => return Poll::Ready(Ok(Part::End(None))),
                    None => return Poll::Ready(Err(MessageError::Short)),
                }
            },
            // Its sender may go on once it is taken: who polls this has room for one part.
            Self::Http2(stream) => match ready!(stream.poll_data(cx)).map_err(of_stream)? {
                Some(data) => Poll::Ready(Ok(Part::Data(data))),
                None => Poll::Ready(Ok(Part::End(ready!(stream.poll_trailers(cx)).map_err(of_stream)?))),
            },
        }
    }

    /// Ready when the sender has gone, before or behind the end of its message. What has come and is not taken is kept
    /// meanwhile, and counts against the memory budget.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<MessageError> {
        match self {
            Self::Empty => Poll::Pending,
            Self::Http1(input, decoder) if decoder.is_done() => input.poll_gone(cx),
            Self::Http1(input, decoder) => match ready!(input.reader.poll_gone(cx)) {
                Some(error) => Poll::Ready(error.into()),
                None if decoder.ends_with_connection() => Poll::Pending,
                None => Poll::Ready(MessageError::Short),
            },
            Self::Later(stream) | Self::Http2(stream) => stream.poll_broken(cx).map(of_stream),
        }
    }

    /// From now on its bytes are no body but what another protocol says.
    pub(crate) fn switch(&mut self) {
        *self = match std::mem::replace(self, Self::Empty) {
            Self::Later(stream) => Self::Http2(stream),
            Self::Http1(input, _) => Self::Http1(input, Decoder::new(Framing::Close)),
            other => other,
        };
    }

    /// Whether nothing more is to come.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Empty | Self::Later(_) => true,
            Self::Http1(_, decoder) => decoder.is_done(),
            Self::Http2(stream) => stream.is_end(),
        }
    }
}

/// A stream of HTTP/2 that is reset leaves its connection as it is.
fn of_stream(error: LinkError) -> MessageError {
    match error {
        LinkError::Stream(StreamEnd::Reset(code)) => MessageError::Reset(code.into()),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use culvert_common::hbone::budget::{Board, Budget};

    use super::*;

    /// What gRPC clients send: a message, then an empty frame that ends the stream.
    #[tokio::test]
    async fn an_empty_frame_is_no_part_of_a_body() {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (sender, connection) = h2::client::handshake(client).await.unwrap();
        let run = async {
            let mut server = h2::server::handshake(server).await.unwrap();
            let (request, _respond) = server.accept().await.unwrap().unwrap();
            let board = Board::new(Budget::new(1 << 20));
            let mut body = Body::Http2(Box::new(Arrivals::new(request.into_body(), 1 << 16, &board)));
            let mut parts = Vec::new();
            while !matches!(parts.last(), Some(Part::End(_))) {
                tokio::select! {
                    part = poll_fn(|cx| body.poll_part(cx)) => parts.push(part.unwrap()),
                    accepted = server.accept() => assert!(accepted.is_none()),
                }
            }
            parts
        };
        let send = async {
            let head = http::Request::post("http://shop/").body(()).unwrap();
            let mut sender = sender.ready().await.unwrap();
            let (_response, mut stream) = sender.send_request(head, false).unwrap();
            stream.send_data(Bytes::from_static(b"message"), false).unwrap();
            stream.send_data(Bytes::new(), false).unwrap();
            stream.send_data(Bytes::new(), true).unwrap();
            std::future::pending::<()>().await;
        };
        let parts = tokio::select! {
            parts = run => parts,
            ended = connection => panic!("{ended:?}"),
            () = send => unreachable!(),
        };
        assert_eq!(parts, [Part::Data(Bytes::from_static(b"message")), Part::End(None)]);
    }
}
