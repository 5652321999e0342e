//! The way back to the client, in its version of HTTP.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use culvert_common::hbone::link::Writer;
use culvert_common::l7::{Failure, Reply, add_server};
use http::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderMap, Method, Response, StatusCode};

use crate::http1::encode;
use crate::http1::head::{BadHead, Framing};
use crate::message::{MessageError, Request};
use crate::pump::Sink;

/// Takes one answer.
pub(crate) struct Responder<'a> {
    to: To<'a>,
    is_head: bool,
    /// Whether another request may follow.
    pub(crate) keep_alive: bool,
}

enum To<'a> {
    Http1(&'a mut Writer),
    Http2(&'a mut h2::server::SendResponse<Bytes>),
}

impl<'a> Responder<'a> {
    pub(crate) fn http1(output: &'a mut Writer, request: &Request, keep_alive: bool) -> Self {
        Self { to: To::Http1(output), is_head: request.method == Method::HEAD, keep_alive }
    }

    pub(crate) fn http2(respond: &'a mut h2::server::SendResponse<Bytes>, request: &Request) -> Self {
        Self { to: To::Http2(respond), is_head: request.method == Method::HEAD, keep_alive: true }
    }

    /// An answer before the answer: 100 or 103.
    ///
    /// **Errors**: the client has gone.
    pub(crate) async fn interim(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
    ) -> Result<(), MessageError> {
        match &mut self.to {
            To::Http1(output) => {
                let mut head = encode::response(status, &headers, Framing::Empty, false, false).freeze();
                poll_fn(|cx| output.poll_send(cx, &mut head)).await?;
            }
            To::Http2(respond) => {
                let mut response = Response::new(());
                (*response.status_mut(), *response.headers_mut()) = (status, headers);
                respond.send_informational(response)?;
            }
        }
        Ok(())
    }

    /// Ready when the client has reset its request. One that speaks HTTP/1.1 is not listened to meanwhile.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<MessageError> {
        match &mut self.to {
            To::Http1(_) => Poll::Pending,
            To::Http2(respond) => match ready!(respond.poll_reset(cx)) {
                Ok(_) => Poll::Ready(MessageError::Short),
                Err(error) => Poll::Ready(error.into()),
            },
        }
    }

    /// The head; the sink takes the body that `framing` tells of, if a body is allowed.
    ///
    /// **Errors**: the client has gone.
    pub(crate) fn begin(
        self,
        status: StatusCode,
        headers: &HeaderMap,
        framing: Framing,
    ) -> Result<Sink<'a>, MessageError> {
        // Behind a switch of protocols comes what no framing knows.
        let switches = status == StatusCode::SWITCHING_PROTOCOLS;
        let is_empty =
            !switches && (self.is_head || encode::is_bodiless(status) || framing == Framing::Empty);
        match self.to {
            To::Http1(output) => {
                // What ends with the upstream's connection, or whose length a route takes away, has none: chunks say where
                // it ends. What follows a switch of protocols has no end of its own.
                let framing = match framing {
                    _ if switches => framing,
                    _ if is_empty => Framing::Empty,
                    Framing::Close => Framing::Chunked,
                    Framing::Length(_) if !headers.contains_key(CONTENT_LENGTH) => Framing::Chunked,
                    framing => framing,
                };
                let head = encode::response(status, headers, framing, !self.keep_alive, self.is_head);
                Ok(Sink::http1(output, framing, head))
            }
            To::Http2(respond) => {
                let mut response = Response::new(());
                (*response.status_mut(), *response.headers_mut()) = (status, headers.clone());
                if switches {
                    // HTTP/2 says it by accepting the CONNECT. Source: RFC 8441 §5.
                    *response.status_mut() = StatusCode::OK;
                    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
                        response.headers_mut().remove(name);
                    }
                }
                let stream = respond.send_response(response, is_empty)?;
                Ok(if is_empty { Sink::Nothing } else { Sink::Http2(stream) })
            }
        }
    }

    /// A whole answer.
    ///
    /// **Errors**: the client has gone.
    pub(crate) async fn whole(
        self,
        status: StatusCode,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(), MessageError> {
        let has_no_body = self.is_head || encode::is_bodiless(status);
        let framing = if body.is_empty() { Framing::Empty } else { Framing::Length(body.len() as u64) };
        let mut sink = self.begin(status, headers, framing)?;
        let data = (!has_no_body && !body.is_empty()).then_some(crate::http1::body::Part::Data(body));
        for part in [data, Some(crate::http1::body::Part::End(None))] {
            let mut part = part;
            poll_fn(|cx| sink.poll_part(cx, &mut part)).await?;
        }
        Ok(())
    }
}

/// An answer to what is no request, which is returned; the connection ends behind it.
pub(crate) async fn malformed(error: &MessageError, output: &mut Writer) -> Option<Reply> {
    let failure = match error {
        MessageError::Head(bad) => failure(*bad),
        MessageError::Late => Failure::Idle(StatusCode::REQUEST_TIMEOUT),
        _ => return None, // nobody is there, or nobody listens
    };
    let mut reply = Reply::failure(&failure, false);
    add_server(&mut reply.headers);
    let framing = Framing::Length(reply.body.len() as u64);
    let mut head: BytesMut = encode::response(reply.status, &reply.headers, framing, true, false);
    head.extend_from_slice(&reply.body);
    let mut head = head.freeze();
    let _gone = poll_fn(|cx| output.poll_send(cx, &mut head)).await;
    Some(reply)
}

fn failure(bad: BadHead) -> Failure {
    match bad {
        BadHead::OldVersion | BadHead::Version => Failure::LowVersion,
        BadHead::Coding => Failure::BadCoding,
        BadHead::TooLarge => Failure::HeadersTooLarge,
        BadHead::Host => Failure::NoHost,
        BadHead::Line
        | BadHead::Field
        | BadHead::Target
        | BadHead::Authority
        | BadHead::Length
        | BadHead::Upgrade => Failure::BadRequest,
    }
}
