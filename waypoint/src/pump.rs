//! Messages that are sent, whatever version of HTTP they go out with: where a body goes, and what moves it there.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use culvert_common::hbone::link::Writer;
use http::HeaderMap;

use crate::grpc::Messages;
use crate::http1::body::Part;
use crate::http1::encode;
use crate::http1::head::Framing;
use crate::message::MessageError;

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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

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
}
