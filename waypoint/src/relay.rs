//! A request's body on its way to an endpoint, and the answer on its way back.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use culvert_common::hbone::budget::Board;
use culvert_common::hbone::link::{Arrivals, LinkError};
use culvert_common::l7::outlier::Outcome;
use culvert_common::l7::retry::{self, Tried};
use culvert_common::l7::{
    Edits, Flag, Reset, Switch, add_server, add_service_time, clean_response, http_status,
};
use h2::Reason;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, StatusCode};
use tokio::time::{Instant, Sleep};

use crate::current::Node;
use crate::forward::{Ended, Tries, reset_of};
use crate::http1::body::Decoder;
use crate::http1::head::{self, BadHead, Framing};
use crate::http2;
use crate::log;
use crate::message::{Body, Input, MessageError, Request};
use crate::pump::{Pump, PumpError};
use crate::replay::Replay;
use crate::reply::Responder;
use crate::request::{Exchange, Way, facts, values};

/// Answers before the answer, such as 100 or 103, that one request may get.
pub(crate) const INTERIM_MAX: usize = 64;

/// The head of an upstream's answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    pub(crate) body: Option<Box<Arrivals>>,
}

/// Where an answer comes from.
pub(crate) enum Source<'c> {
    Http1(&'c mut Input, Method),
    Http2(h2::client::ResponseFuture, Board),
}

impl Source<'_> {
    /// The next head: of an answer, or of one before it.
    pub(crate) async fn head(&mut self) -> Result<Answer, MessageError> {
        match self {
            Self::Http1(input, method) => {
                let head = input.head(head::RESPONSE_MAX).await?.ok_or(MessageError::Closed)?;
                let head::ResponseHead { status, headers, framing, keep_alive } =
                    head::response(&head, method)?;
                Ok(Answer { status, headers, framing, keep_alive, body: None })
            }
            Self::Http2(response, board) => {
                let interim = |head: http::Response<()>| {
                    let (parts, ()) = head.into_parts();
                    let (status, headers) = (parts.status, parts.headers);
                    Answer { status, headers, framing: Framing::Empty, keep_alive: true, body: None }
                };
                let next = poll_fn(|cx| match response.poll_informational(cx) {
                    Poll::Ready(Some(head)) => Poll::Ready(head.map(Err)),
                    Poll::Ready(None) | Poll::Pending => Pin::new(&mut *response).poll(cx).map_ok(Ok),
                });
                let (parts, body) = match next.await? {
                    Ok(response) => response.into_parts(),
                    Err(head) => return Ok(interim(head)),
                };
                let length = parts.headers.get(CONTENT_LENGTH);
                let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
                let framing = match (body.is_end_stream(), length) {
                    (true, _) => Framing::Empty,
                    (false, Some(length)) => Framing::Length(length),
                    (false, None) => Framing::Chunked,
                };
                let (status, headers) = (parts.status, parts.headers);
                let body = Some(Box::new(Arrivals::new(body, http2::WINDOW, board)));
                Ok(Answer { status, headers, framing, keep_alive: true, body })
            }
        }
    }
}

/// What came of waiting for an answer.
enum Waited {
    Answer(Answer),
    Broken(MessageError),
    TimedOut,
}

/// What became of a request on an open connection.
pub(crate) enum Exchanged {
    /// The try is over; whether the connection may be used again.
    Over(Ended, bool),
    /// The connection ended before anything of an answer came.
    Broken(MessageError),
}

impl Exchange<'_> {
    /// Sends the request over an open connection and the answer back.
    ///
    /// **Errors**: the client has gone, or broke off.
    pub(crate) async fn exchange(
        &mut self,
        (request, way): (&Request, &Way<'_>),
        tries: &mut Tries<'_>,
        (upload, source): (&mut Pump<'_>, &mut Source<'_>),
        node: Option<&Node>,
    ) -> Result<Exchanged, MessageError> {
        let (began, mut interim) = (Instant::now(), 0);
        if tries.is_grpc {
            upload.count_messages();
            tries.messages = Some(log::messages(self.stage, self.told.endpoint.as_ref()));
        }
        let answer = loop {
            let answer = match self.answer(tries, upload, source).await? {
                Waited::Answer(answer) => answer,
                // Who has said something has seen the request: nothing else can be made of it.
                Waited::Broken(MessageError::Closed | MessageError::Link(_)) if interim > 0 => {
                    return Ok(Exchanged::Broken(MessageError::Short));
                }
                Waited::Broken(error) => return Ok(Exchanged::Broken(error)),
                Waited::TimedOut => return Ok(Exchanged::Over(self.timed_out(tries, node), false)),
            };
            if answer.status == StatusCode::SWITCHING_PROTOCOLS && request.upgrade.is_none() {
                return Ok(Exchanged::Broken(MessageError::Head(BadHead::Line)));
            }
            if !answer.status.is_informational() || answer.status == StatusCode::SWITCHING_PROTOCOLS {
                break answer;
            }
            interim += 1;
            if interim > INTERIM_MAX {
                return Ok(Exchanged::Broken(MessageError::Interim));
            }
            // As Envoy has it: whoever has heard of one try is not given another one's answer.
            tries.is_told();
            if let Some(responder) = &mut self.responder {
                let mut headers = answer.headers;
                clean_response(&mut headers, Switch::No);
                // Nothing follows of which it could tell. Source: RFC 9110 §8.6.
                headers.remove(CONTENT_LENGTH);
                responder.interim(answer.status, headers).await?;
            }
        };
        let status = match tries.is_grpc.then(|| retry::grpc_status(&answer.headers)).flatten() {
            Some(status) => http_status(status),
            None => answer.status,
        };
        self.record(tries, node, Outcome::Connected);
        self.record(tries, node, Outcome::Answered(status));
        if self.may_retry(tries, Tried::Answered(answer.status, &answer.headers)) {
            if tries.take_permit() {
                return Ok(Exchanged::Over(Ended::Again, false));
            }
            self.told.flags.raise(Flag::UpstreamOverflow);
        }
        self.body.forget();
        self.told.upstream_time = Some(began.elapsed());
        self.told.details = Cow::Borrowed("via_upstream");
        let is_reusable = self.relay((request, way), tries, (upload, source), answer).await?;
        Ok(Exchanged::Over(Ended::Answered, is_reusable))
    }

    /// Sends the body and waits for the head of the answer, for as long as that may take.
    async fn answer(
        &mut self,
        tries: &mut Tries<'_>,
        upload: &mut Pump<'_>,
        source: &mut Source<'_>,
    ) -> Result<Waited, MessageError> {
        let mut head = pin!(source.head());
        let mut timer: Pin<&mut Option<Sleep>> = pin!(None);
        let mut is_timed = false;
        let mut refused = None;
        poll_fn(|cx| {
            if refused.is_none() {
                match upload.poll(cx, |cx| self.body.poll_part(cx)) {
                    Poll::Ready(Err(PumpError::From(error))) => return Poll::Ready(Err(error)),
                    // It may have answered before it stopped reading.
                    Poll::Ready(Err(PumpError::To(error))) => refused = Some(error),
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                }
                self.told.received = upload.bytes;
                tries.tell_messages(upload, None);
            }
            match head.as_mut().poll(cx) {
                Poll::Ready(Ok(answer)) => return Poll::Ready(Ok(Waited::Answer(answer))),
                Poll::Ready(Err(error)) => return Poll::Ready(Ok(Waited::Broken(error))),
                Poll::Pending => {}
            }
            if self.body.is_done() && !is_timed {
                is_timed = true;
                tries.is_sent(&self.body);
                timer.set(tries.limit_of_try().map(tokio::time::sleep_until));
            }
            if timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
                return Poll::Ready(Ok(Waited::TimedOut));
            }
            poll_gone(&mut self.body, &mut self.responder, cx).map(Err)
        })
        .await
    }

    /// The answer's way to the client, beside what is left of the request; whether the connection may be used again.
    async fn relay(
        &mut self,
        (request, way): (&Request, &Way<'_>),
        tries: &mut Tries<'_>,
        (upload, source): (&mut Pump<'_>, &mut Source<'_>),
        answer: Answer,
    ) -> Result<bool, MessageError> {
        let Answer { status, mut headers, framing, keep_alive, body } = answer;
        let switches = status == StatusCode::SWITCHING_PROTOCOLS;
        // As Envoy has it, of an answer that does not take up what was asked for only the head counts.
        let is_refused = request.upgrade.is_some() && !switches;
        if is_refused {
            self.told.details = Cow::Borrowed("websocket_handshake_unsuccessful");
        }
        if is_refused || status == StatusCode::NO_CONTENT {
            headers.remove(CONTENT_LENGTH);
        }
        self.finish_headers(request, way, status, &mut headers);
        self.told.status = Some(status);
        self.told.answered(&headers);
        let Some(mut responder) = self.responder.take() else { return Ok(false) };
        // The rest of a request that is answered early may never come: no other one is waited for behind it.
        responder.keep_alive &= !self.stage.worker.scope.is_draining() && self.body.is_done() && !is_refused;
        let client_keeps = responder.keep_alive && !switches;
        let framing = match (switches, is_refused) {
            (true, _) => Framing::Close,
            (false, true) => Framing::Empty,
            (false, false) => framing,
        };
        if switches {
            self.body.switch();
            upload.switch();
        }
        let mut download = Pump::new(responder.begin(status, &headers, framing)?);
        if tries.is_grpc {
            download.count_messages();
        }
        let mut from = match (source, body) {
            (Source::Http1(input, _), _) => Body::Http1(input, Decoder::new(framing)),
            (Source::Http2(..), Some(body)) => Body::Http2(body),
            (Source::Http2(..), None) => Body::Empty,
        };
        let moved = both(upload, &mut self.body, (&mut download, &mut from), switches, tries).await;
        (self.told.received, self.told.sent) = (upload.bytes, download.bytes);
        if let Some(trailers) = &download.trailers {
            self.told.grpc_status(trailers);
        }
        match moved {
            Ok(()) => {
                self.told.goes_on = client_keeps && self.body.take_rest().await;
                // Who was asked for another protocol may yet speak it.
                Ok(keep_alive && upload.is_done && request.upgrade.is_none())
            }
            Err(Broke::Time) => {
                download.reset(Reason::INTERNAL_ERROR);
                upload.reset(Reason::CANCEL);
                self.told.flags.raise(Flag::UpstreamTimeout);
                self.told.details = Cow::Borrowed("response_timeout");
                Ok(false)
            }
            Err(Broke::Pump(PumpError::From(error))) => {
                download.break_off();
                // As Envoy has it: what ends too soon is no message.
                let reset = if matches!(error, MessageError::Short) {
                    Reset::ProtocolError
                } else {
                    reset_of(&error)
                };
                self.told.flags.raise(reset.flag());
                let words = reset.as_str().replace(' ', "_");
                self.told.details = Cow::Owned(format!("upstream_reset_after_response_started{{{words}}}"));
                tracing::debug!(%error, "an answer broke off");
                Ok(false)
            }
            Err(Broke::Pump(PumpError::To(error))) => {
                upload.reset(Reason::CANCEL);
                Err(error)
            }
        }
    }

    /// What the client sees of an answer's headers.
    fn finish_headers(
        &mut self,
        request: &Request,
        way: &Way<'_>,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) {
        // Of a request that is still coming, or goes on as something else, no time is known.
        if self.body.is_done() && request.upgrade.is_none() {
            add_service_time(headers, self.told.upstream_time.unwrap_or_default());
        } else {
            self.told.upstream_time = None;
        }
        if let Some((route, backend)) = way.route {
            let facts = facts(self.stage, request);
            let mut values = values(&facts, request.version, self.told);
            values.response = Some((status, headers));
            let edits = Edits::of_response(route, Some(backend), &values);
            edits.apply(headers);
        }
        // Behind the edits, as Envoy has it: what is for one hop is not for routes to say.
        let switches = status == StatusCode::SWITCHING_PROTOCOLS;
        clean_response(headers, if switches { Switch::Upgrade } else { Switch::No });
        add_server(headers);
        headers.extend(std::mem::take(&mut self.cors));
    }
}

/// Ready when the client has gone while its request is worked on.
pub(crate) fn poll_gone(
    body: &mut Replay<'_>,
    responder: &mut Option<Responder<'_>>,
    cx: &mut Context<'_>,
) -> Poll<MessageError> {
    if let Some(responder) = responder
        && let Poll::Ready(error) = responder.poll_gone(cx)
    {
        return Poll::Ready(error);
    }
    body.poll_gone(cx)
}

/// Why two bodies were not moved to their end.
enum Broke {
    Pump(PumpError),
    /// The request took too long.
    Time,
}

/// Moves both bodies until the answer is over. A server that has answered need not hear the rest.
async fn both(
    upload: &mut Pump<'_>,
    request: &mut Replay<'_>,
    (download, from): (&mut Pump<'_>, &mut Body<'_>),
    switches: bool,
    tries: &mut Tries<'_>,
) -> Result<(), Broke> {
    let mut deaf = false;
    let mut timer: Pin<&mut Option<Sleep>> = pin!(None);
    let mut is_timed = switches;
    poll_fn(|cx| {
        if !deaf {
            match upload.poll(cx, |cx| request.poll_part(cx)) {
                Poll::Ready(Err(PumpError::From(error))) => {
                    return Poll::Ready(Err(Broke::Pump(PumpError::To(error))));
                }
                Poll::Ready(Err(PumpError::To(_))) => deaf = true,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let moved = download.poll(cx, |cx| from.poll_part(cx));
        tries.tell_messages(upload, Some(download));
        if let Poll::Ready(moved) = moved {
            return Poll::Ready(moved.map_err(Broke::Pump));
        }
        if !is_timed && request.is_done() {
            is_timed = true;
            tries.is_sent(request);
            timer.set(tries.deadline().map(tokio::time::sleep_until));
        }
        if timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
            return Poll::Ready(Err(Broke::Time));
        }
        if let Poll::Ready(error) = download.poll_gone(cx) {
            return Poll::Ready(Err(Broke::Pump(PumpError::To(error))));
        }
        // A client that does not read lets the answer wait here, where it counts.
        if let Poll::Ready(error @ MessageError::Link(LinkError::Budget)) = from.poll_gone(cx) {
            return Poll::Ready(Err(Broke::Pump(PumpError::From(error))));
        }
        request.poll_gone(cx).map(|error| Err(Broke::Pump(PumpError::To(error))))
    })
    .await
}
