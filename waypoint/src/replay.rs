//! A request's body that can be sent again, within bounds.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use culvert_common::hbone::budget::Budget;
use http::HeaderMap;

use crate::http1::body::Part;
use crate::message::{Body, MessageError};

/// Bytes of a request's body that are kept for another try.
const REPLAY_MAX: usize = 1 << 20;
/// Parts up to this size are kept in one piece: each of its own would hold the buffer that it was read into.
const JOINED_MAX: usize = 4096;

/// A request's body that can be sent again from its beginning, as long as it is small enough to be kept.
pub(crate) struct Replay<'a> {
    body: Body<'a>,
    kept: Vec<Bytes>,
    held: Held<'a>,
    end: Option<Option<HeaderMap>>,
    at: usize,
    keeps: bool,
    taken: u64,
}

/// What is kept counts against the memory budget.
struct Held<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Held<'_> {
    /// Counts `more`; false: that would be too much.
    fn grow(&mut self, more: usize) -> bool {
        if self.bytes + more > REPLAY_MAX || self.budget.is_over() {
            return false;
        }
        self.bytes += more;
        self.budget.charge(more as u64);
        true
    }

    fn shrink(&mut self, less: usize) {
        self.bytes -= less;
        self.budget.release(less as u64);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

impl<'a> Replay<'a> {
    /// Kept until it is said that there will be no other try.
    pub(crate) fn new(body: Body<'a>, budget: &'a Budget) -> Self {
        Self {
            body,
            kept: Vec::new(),
            held: Held { budget, bytes: 0 },
            end: None,
            at: 0,
            keeps: true,
            taken: 0,
        }
    }

    /// Bytes that have come.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether it can be sent again.
    pub(crate) fn can_rewind(&self) -> bool {
        self.keeps
    }

    /// From the beginning.
    pub(crate) fn rewind(&mut self) {
        self.at = 0;
    }

    /// The next part. After the end it is not asked again, but after [`Replay::rewind`].
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, MessageError>> {
        if let Some(data) = self.kept.get_mut(self.at) {
            self.at += 1;
            let data = if self.keeps { data.clone() } else { std::mem::take(data) };
            return Poll::Ready(Ok(Part::Data(data)));
        }
        if let Some(trailers) = &self.end {
            return Poll::Ready(Ok(Part::End(trailers.clone())));
        }
        if !self.keeps {
            self.drop_sent();
        }
        let part = ready!(self.body.poll_part(cx))?;
        if let Part::Data(data) = &part {
            self.taken += data.len() as u64;
        }
        match &part {
            Part::End(trailers) => self.end = Some(trailers.clone()),
            Part::Data(data) if self.keeps => {
                self.keeps = self.held.grow(data.len());
                if self.keeps {
                    hold(&mut self.kept, data);
                    self.at = self.kept.len();
                } else {
                    self.drop_sent();
                }
            }
            Part::Data(_) => {}
        }
        Poll::Ready(Ok(part))
    }

    /// Takes what comes of it while there is nobody to send it to; false: it has become too long to be kept.
    ///
    /// **Errors**: its sender broke off.
    pub(crate) fn keep(&mut self, cx: &mut Context<'_>) -> Result<bool, MessageError> {
        while self.keeps && !self.is_done() {
            let Poll::Ready(part) = self.body.poll_part(cx)? else { break };
            match part {
                Part::End(trailers) => self.end = Some(trailers),
                Part::Data(data) => {
                    self.keeps = self.held.grow(data.len());
                    hold(&mut self.kept, &data);
                }
            }
        }
        Ok(self.keeps)
    }

    fn drop_sent(&mut self) {
        self.kept.drain(..self.at);
        self.at = 0;
        let left = self.kept.iter().map(Bytes::len).sum();
        self.held.shrink(self.held.bytes.saturating_sub(left));
    }

    /// What has come so far, if it was all kept: its bytes and the trailers.
    pub(crate) fn whole(&self) -> Option<(Vec<Bytes>, Option<HeaderMap>)> {
        let is_whole = self.keeps && self.is_done();
        is_whole.then(|| (self.kept.clone(), self.end.clone().flatten()))
    }

    /// Ready when the client has gone; what it has said meanwhile is kept.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<MessageError> {
        self.body.poll_gone(cx)
    }

    /// Whether the client has sent everything.
    pub(crate) fn is_done(&self) -> bool {
        self.end.is_some() || self.body.is_done()
    }

    /// No other try will be made. What is kept and not yet sent stays.
    pub(crate) fn forget(&mut self) {
        self.keeps = false;
        self.drop_sent();
    }

    /// From now on its bytes are no body but what another protocol says.
    pub(crate) fn switch(&mut self) {
        self.end = None;
        self.body.switch();
    }

    /// Takes what has come of the rest and is needed by nobody; whether that was all of it.
    pub(crate) async fn take_rest(&mut self) -> bool {
        self.keeps = false;
        poll_fn(|cx| {
            loop {
                if self.end.is_some() || self.body.is_done() {
                    return Poll::Ready(true);
                }
                match self.poll_part(cx) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(false),
                }
            }
        })
        .await
    }
}

/// Keeps a part behind those that are kept: what is sent of them, and what is not, is either all of them or none.
fn hold(kept: &mut Vec<Bytes>, data: &Bytes) {
    match kept.last_mut() {
        Some(last) if last.len() + data.len() <= JOINED_MAX => {
            let mut both = BytesMut::with_capacity(last.len() + data.len());
            both.extend_from_slice(last);
            both.extend_from_slice(data);
            *last = both.freeze();
        }
        _ if data.len() < JOINED_MAX => kept.push(Bytes::copy_from_slice(data)),
        _ => kept.push(data.clone()),
    }
}

#[cfg(test)]
mod tests {
    use culvert_common::hbone::link;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::http1::body::Decoder;
    use crate::http1::head::Framing;
    use crate::message::Input;

    async fn pair() -> (TcpStream, Input, link::Writer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (reader, writer) = link::tcp(listener.accept().await.unwrap().0);
        (client, Input::new(reader), writer)
    }

    async fn all(replay: &mut Replay<'_>) -> usize {
        let mut bytes = 0;
        while let Part::Data(data) = poll_fn(|cx| replay.poll_part(cx)).await.unwrap() {
            bytes += data.len();
        }
        bytes
    }

    #[tokio::test]
    async fn a_body_is_sent_again_if_it_is_small_and_counts_until_it_is_forgotten() {
        for (size, again) in [(1000, true), (REPLAY_MAX, true), (REPLAY_MAX + 1, false)] {
            let (mut client, mut input, _writer) = pair().await;
            let budget = Budget::new(1 << 30);
            let body = Body::Http1(&mut input, Decoder::new(Framing::Length(size as u64)));
            let mut replay = Replay::new(body, &budget);
            let data = vec![b'x'; size];
            let (sent, read) = tokio::join!(client.write_all(&data), all(&mut replay));
            sent.unwrap();
            assert_eq!((read, replay.can_rewind()), (size, again));
            assert_eq!(budget.held(), if again { size as u64 } else { 0 });
            if again {
                replay.rewind();
                assert_eq!(all(&mut replay).await, size);
            }
            replay.forget();
            assert_eq!(budget.held(), 0);
        }
    }

    #[tokio::test]
    async fn a_body_in_tiny_pieces_is_kept_in_few() {
        const SIZE: usize = 50_000;
        let (mut client, mut input, _writer) = pair().await;
        let budget = Budget::new(1 << 30);
        let mut replay = Replay::new(Body::Http1(&mut input, Decoder::new(Framing::Chunked)), &budget);
        let chunks = ["1\r\nx\r\n".repeat(SIZE), "0\r\n\r\n".to_owned()].concat();
        let (sent, read) = tokio::join!(client.write_all(chunks.as_bytes()), all(&mut replay));
        sent.unwrap();
        assert_eq!((read, replay.held.bytes), (SIZE, SIZE));
        assert!(replay.kept.len() <= 2 * SIZE / JOINED_MAX, "{}", replay.kept.len());
        replay.rewind();
        assert_eq!(all(&mut replay).await, SIZE);
        assert_eq!(replay.whole().unwrap().0.concat(), vec![b'x'; SIZE]);
    }

    #[tokio::test]
    async fn a_client_that_goes_after_its_request_is_noticed_and_one_that_goes_on_is_not() {
        let (mut client, mut input, _writer) = pair().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next").await.unwrap();
        assert!(input.head(1000).await.unwrap().is_some());
        let pending = poll_fn(|cx| Poll::Ready(input.poll_gone(cx).is_pending())).await;
        assert!(pending && input.is_ahead(), "the next request is kept");
        let (client, mut input, _writer) = pair().await;
        drop(client);
        poll_fn(|cx| input.poll_gone(cx)).await;
    }

    #[tokio::test]
    async fn a_head_that_is_waited_for_in_vain_is_not_lost() {
        let (mut client, mut input, _writer) = pair().await;
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        while !input.is_ahead() {
            tokio::select! {
                biased;
                _ = input.head(1000) => panic!("half a head was taken"),
                () = tokio::task::yield_now() => {}
            }
        }
        client.write_all(b"Host: a\r\n\r\n").await.unwrap();
        assert_eq!(input.head(1000).await.unwrap().unwrap(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
}
