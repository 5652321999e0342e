//! Messages on their way through, whatever version of HTTP they came in and go out with.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use culvert_common::hbone::link::{Arrivals, LinkError, Reader, Writer};
use culvert_common::hbone::stream::StreamEnd;
use http::{HeaderMap, HeaderValue, Method};
use tokio::time::Instant;

use crate::flood::Frames;
use crate::grpc::Messages;
use crate::http1::body::{BadBody, Decoder, Part};
use crate::http1::encode;
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

/// Where the body of a message goes.
pub(crate) enum Sink<'a> {
    /// The head has said that there is none.
    Nothing,
    Http1 {
        output: &'a mut Writer,
        framing: Framing,
        pending: Bytes,
    },
    Http2(h2::SendStream<Bytes>),
}

impl<'a> Sink<'a> {
    pub(crate) fn http1(output: &'a mut Writer, framing: Framing, head: BytesMut) -> Self {
        Self::Http1 { output, framing, pending: head.freeze() }
    }

    /// Sends what waits, then takes `part`, which is none afterwards.
    pub(crate) fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
        part: &mut Option<Part>,
    ) -> Poll<Result<(), MessageError>> {
        match self {
            Self::Nothing => *part = None,
            Self::Http1 { output, framing, pending } => {
                let ends = matches!(part, Some(Part::End(_))) && *framing == Framing::Close;
                if let Some(taken) = part.take_if(|_| !ends) {
                    framed(pending, *framing, taken);
                }
                ready!(output.poll_send(cx, pending))?;
                if ends {
                    *part = None;
                    output.finish()?;
                }
            }
            Self::Http2(stream) => return poll_http2(stream, cx, part),
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the receiver wants no more of it. One of HTTP/1.1 is listened to elsewhere.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<MessageError> {
        let Self::Http2(stream) = self else { return Poll::Pending };
        match ready!(stream.poll_reset(cx)) {
            Ok(_) => Poll::Ready(MessageError::Short),
            Err(error) => Poll::Ready(error.into()),
        }
    }

    /// Breaks off an answer: its client gets what has come of it, and sees that this is not all.
    fn break_off(&mut self) {
        if let Self::Http1 { output, framing: Framing::Length(_) | Framing::Chunked, pending } = self {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            if let Poll::Ready(Ok(())) = output.poll_send(&mut cx, pending)
                && output.finish().is_ok()
            {
                return;
            }
        }
        self.reset(h2::Reason::INTERNAL_ERROR);
    }

    /// Breaks off: the receiver must not take what it has for a whole message.
    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        match self {
            Self::Nothing => {}
            Self::Http1 { output, .. } => output.reset(),
            Self::Http2(stream) => stream.send_reset(reason),
        }
    }
}

/// `part` behind what waits, in one piece if it is small.
fn framed(pending: &mut Bytes, framing: Framing, part: Part) {
    match (framing, part) {
        // The head has said that there is none: whoever reads it would take these bytes for the next message.
        (Framing::Empty, Part::Data(_)) => {}
        (Framing::Chunked, Part::Data(data)) => {
            let mut out = BytesMut::with_capacity(pending.len() + data.len() + 16);
            out.extend_from_slice(pending);
            encode::chunk(&mut out, &data);
            *pending = out.freeze();
        }
        (Framing::Chunked, Part::End(_)) => {
            // As Envoy has it, trailers are for HTTP/2.
            let mut out = BytesMut::from(std::mem::take(pending));
            encode::last_chunk(&mut out, None);
            *pending = out.freeze();
        }
        (_, Part::Data(data)) if pending.is_empty() => *pending = data,
        (_, Part::Data(data)) => {
            let mut out = BytesMut::from(std::mem::take(pending));
            out.extend_from_slice(&data);
            *pending = out.freeze();
        }
        (_, Part::End(_)) => {}
    }
}

fn poll_http2(
    stream: &mut h2::SendStream<Bytes>,
    cx: &mut Context<'_>,
    part: &mut Option<Part>,
) -> Poll<Result<(), MessageError>> {
    loop {
        match part {
            None => return Poll::Ready(Ok(())),
            Some(Part::Data(data)) => {
                if stream.capacity() == 0 {
                    stream.reserve_capacity(data.len());
                    match ready!(stream.poll_capacity(cx)) {
                        Some(granted) => {
                            granted?;
                        }
                        None => return Poll::Ready(Err(MessageError::Short)),
                    }
                    continue;
                }
                let piece = data.split_to(stream.capacity().min(data.len()));
                if data.is_empty() {
                    *part = None;
                }
                stream.send_data(piece, false)?;
            }
            Some(Part::End(trailers)) => {
                let trailers = trailers.take();
                *part = None;
                match trailers {
                    Some(trailers) => stream.send_trailers(trailers)?,
                    None => stream.send_data(Bytes::new(), true)?,
                }
            }
        }
    }
}

/// Moves a body into a sink; counts its bytes.
pub(crate) struct Pump<'a> {
    sink: Sink<'a>,
    part: Option<Part>,
    is_ending: bool,
    /// Those that have passed, or wait to.
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) bytes: u64,
    /// Of gRPC, if they are counted.
    messages: Option<Messages>,
    pub(crate) is_done: bool,
}

/// Whose fault it is that a body was not moved to its end.
#[derive(Debug)]
pub(crate) enum PumpError {
    From(MessageError),
    To(MessageError),
}

impl<'a> Pump<'a> {
    pub(crate) fn new(sink: Sink<'a>) -> Self {
        Self { sink, part: None, is_ending: false, trailers: None, bytes: 0, messages: None, is_done: false }
    }

    /// From now on counts messages of gRPC.
    pub(crate) fn count_messages(&mut self) {
        self.messages.get_or_insert_default();
    }

    /// Messages of gRPC that have begun.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.as_ref().map_or(0, |messages| messages.begun)
    }

    /// Moves what can be moved. `next` gives the parts.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut next: impl FnMut(&mut Context<'_>) -> Poll<Result<Part, MessageError>>,
    ) -> Poll<Result<(), PumpError>> {
        while !self.is_done {
            if self.part.is_none() && !self.is_ending {
                // What waits goes first: nothing is read that cannot be sent. Only a head goes with its body, if that is there.
                if self.bytes > 0 {
                    ready!(self.sink.poll_part(cx, &mut None)).map_err(PumpError::To)?;
                }
                match next(cx) {
                    Poll::Ready(part) => self.take(part.map_err(PumpError::From)?),
                    // A head does not wait for its body.
                    Poll::Pending => {
                        if let Poll::Ready(Err(error)) = self.sink.poll_part(cx, &mut None) {
                            return Poll::Ready(Err(PumpError::To(error)));
                        }
                        return Poll::Pending;
                    }
                }
            }
            ready!(self.sink.poll_part(cx, &mut self.part)).map_err(PumpError::To)?;
            self.is_done = self.is_ending;
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, part: Part) {
        match &part {
            Part::Data(data) => {
                self.bytes += data.len() as u64;
                if let Some(messages) = &mut self.messages {
                    messages.pass(data);
                }
            }
            Part::End(trailers) => {
                self.is_ending = true;
                self.trailers.clone_from(trailers);
            }
        }
        self.part = Some(part);
    }

    /// As [`Sink::reset`].
    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.sink.reset(reason);
    }

    /// As [`Sink::break_off`].
    pub(crate) fn break_off(&mut self) {
        self.sink.break_off();
    }

    /// As [`Sink::poll_gone`].
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<MessageError> {
        self.sink.poll_gone(cx)
    }

    /// From now on the sink takes bytes as they are.
    pub(crate) fn switch(&mut self) {
        (self.is_ending, self.is_done) = (false, false);
        if let Sink::Http1 { framing, .. } = &mut self.sink {
            *framing = Framing::Close;
        }
    }
}

/// A link as what HTTP/2's codec reads and writes.
pub(crate) struct LinkIo {
    input: Input,
    chunk: Bytes,
    output: Writer,
    waiting: Bytes,
    frames: Frames,
}

impl LinkIo {
    /// `preface` is what comes before the other end's first frame.
    pub(crate) fn new(input: Input, output: Writer, preface: usize) -> Self {
        let frames = Frames::behind(preface, Instant::now());
        Self { input, chunk: Bytes::new(), output, waiting: Bytes::new(), frames }
    }
}

fn broken(error: &LinkError) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, error.to_string())
}

impl tokio::io::AsyncRead for LinkIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.chunk.is_empty() {
            match ready!(self.input.poll_bytes(cx)).map_err(|error| broken(&error))? {
                Some(chunk) => self.chunk = chunk,
                None => return Poll::Ready(Ok(())),
            }
            let this = &mut *self;
            let aborted = |flood| std::io::Error::new(std::io::ErrorKind::ConnectionAborted, flood);
            this.frames.came(&this.chunk).map_err(aborted)?;
        }
        let take = self.chunk.len().min(buf.remaining());
        buf.put_slice(&self.chunk.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for LinkIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        ready!(self.as_mut().poll_flush(cx))?;
        let this = &mut *self;
        this.waiting = Bytes::copy_from_slice(data);
        this.frames.sent(data.len());
        // What is not taken now is sent before anything else.
        let _later = this.output.poll_send(cx, &mut this.waiting).map_err(|error| broken(&error))?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        this.output.poll_send(cx, &mut this.waiting).map_err(|error| broken(&error))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Poll::Ready(self.output.finish().map_err(|error| broken(&error)))
    }
}

#[cfg(test)]
mod tests {
    use culvert_common::hbone::budget::{Board, Budget};

    use super::*;

    /// A server of HTTP/2 can send a body behind a status that has none.
    #[tokio::test]
    async fn behind_a_head_without_a_body_nothing_is_written() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_reader, mut writer) = culvert_common::hbone::link::tcp(listener.accept().await.unwrap().0);
        let head =
            encode::response(http::StatusCode::NOT_MODIFIED, &HeaderMap::new(), Framing::Empty, false, false);
        let wanted = head.clone();
        let mut parts =
            [Part::Data(Bytes::from_static(b"HTTP/1.1 200 OK\r\n\r\n")), Part::End(None)].into_iter();
        let mut pump = Pump::new(Sink::http1(&mut writer, Framing::Empty, head));
        poll_fn(|cx| pump.poll(cx, |_| Poll::Ready(Ok(parts.next().unwrap())))).await.unwrap();
        drop(pump);
        writer.finish().unwrap();
        let mut got = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut client, &mut got).await.unwrap();
        assert_eq!(got, wanted);
    }

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
