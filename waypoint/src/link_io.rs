//! A link under HTTP/2's codec.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use culvert_common::hbone::link::{LinkError, Writer};
use tokio::time::Instant;

use crate::flood::Frames;
use crate::message::Input;

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
