//! HTTP/2 frames written and read by hand, for what `h2` is too polite to send.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::within;

/// First bytes of a client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types.
#[expect(missing_docs, reason = "the names are those of RFC 9113")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flag of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// Flag of HEADERS.
pub const END_HEADERS: u8 = 4;
/// Flag of SETTINGS and PING.
pub const ACK: u8 = 1;

/// Settings.
#[expect(missing_docs, reason = "the names are those of RFC 9113")]
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of [`kind`].
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Stream, 0 for the connection.
    pub stream: u32,
    /// What follows the frame's head.
    pub payload: Bytes,
}

impl Frame {
    /// A frame.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Bytes>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// RST_STREAM.
    pub fn reset(stream: u32, reason: h2::Reason) -> Self {
        Self::new(kind::RST_STREAM, 0, stream, u32::from(reason).to_be_bytes().to_vec())
    }

    /// SETTINGS.
    pub fn settings(values: &[(u16, u32)]) -> Self {
        let one = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat();
        Self::new(kind::SETTINGS, 0, 0, values.iter().flat_map(one).collect::<Vec<u8>>())
    }

    /// GOAWAY.
    pub fn goaway(last: u32, reason: h2::Reason) -> Self {
        let payload = [last.to_be_bytes(), u32::from(reason).to_be_bytes()].concat();
        Self::new(kind::GOAWAY, 0, 0, payload)
    }

    /// WINDOW_UPDATE.
    pub fn credit(stream: u32, bytes: u32) -> Self {
        Self::new(kind::WINDOW_UPDATE, 0, stream, bytes.to_be_bytes().to_vec())
    }

    /// Bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).expect("a short frame").to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// First four bytes of the payload: the reason of RST_STREAM, the last stream of GOAWAY.
    pub fn first(&self) -> u32 {
        self.payload.clone().get_u32()
    }

    /// The reason of GOAWAY.
    pub fn goaway_reason(&self) -> h2::Reason {
        self.payload.slice(4..).get_u32().into()
    }

    /// The values of SETTINGS.
    pub fn values(&self) -> Vec<(u16, u32)> {
        let mut payload = self.payload.clone();
        let mut values = Vec::new();
        while payload.len() >= 6 {
            values.push((payload.get_u16(), payload.get_u32()));
        }
        values
    }

    /// The `:status` of an answer whose encoder was told to use no table.
    pub fn status(&self) -> Option<u16> {
        let block = &self.payload[..];
        // Size updates of the table come first.
        let block = &block[block.iter().take_while(|b| **b & 0xe0 == 0x20).count()..];
        match *block {
            [0x88, ..] => Some(200),
            [0x8c, ..] => Some(400),
            [0x8d, ..] => Some(404),
            [0x8e, ..] => Some(500),
            [0x08 | 0x18 | 0x48, length, ref rest @ ..] => {
                let value = rest.get(..usize::from(length & 0x7f))?;
                if length & 0x80 == 0 { std::str::from_utf8(value).ok()?.parse().ok() } else { digits(value) }
            }
            _ => None,
        }
    }
}

/// Decimal digits in HPACK's Huffman code: RFC 7541 appendix B has 0 to 2 in five bits, 3 to 9 in six.
fn digits(coded: &[u8]) -> Option<u16> {
    let bits: Vec<u8> = coded.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1)).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let take =
            |n: usize| bits.get(at..at + n).map(|b| b.iter().fold(0_u16, |v, b| v << 1 | u16::from(*b)));
        let (digit, used) = match take(5)? {
            short @ 0..=2 => (short, 5),
            _ => (take(6)?.checked_sub(0b01_1001)? + 3, 6),
        };
        (at, number) = (at + used, number * 10 + digit);
    }
    Some(number)
}

/// A header block without table and Huffman code: any bytes may stand in it.
pub fn block(headers: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.push(0);
        for part in [name.as_bytes(), value] {
            // An integer with a prefix of seven bits: RFC 7541 §5.1.
            if part.len() < 127 {
                bytes.push(u8::try_from(part.len()).expect("short"));
            } else {
                bytes.push(127);
                let mut rest = part.len() - 127;
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128).expect("short") | 128);
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).expect("short"));
            }
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

/// HEADERS of a CONNECT to `authority`.
pub fn connect(stream: u32, authority: &[u8]) -> Frame {
    headers(stream, &[(":method", b"CONNECT"), (":authority", authority)])
}

/// HEADERS in one frame.
pub fn headers(stream: u32, headers: &[(&str, &[u8])]) -> Frame {
    Frame::new(kind::HEADERS, END_HEADERS, stream, block(headers))
}

/// A connection on which frames are written and read.
pub struct Raw<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// Nothing is sent.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends a client's first bytes: its preface, settings without header table, much credit for the connection.
    pub async fn greet(stream: S) -> Self {
        let mut raw = Self::new(stream);
        raw.write(PREFACE).await.expect("an open connection");
        let settings = [(setting::HEADER_TABLE_SIZE, 0), (setting::INITIAL_WINDOW_SIZE, 1 << 20)];
        raw.send(&Frame::settings(&settings)).await.expect("an open connection");
        raw.send(&Frame::credit(0, 1 << 30)).await.expect("an open connection");
        raw
    }

    /// Waits for a client's preface, and sends a server's settings.
    pub async fn welcome(stream: S, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::new(stream);
        while raw.buffer.len() < PREFACE.len() {
            let n = within("a preface", raw.stream.read_buf(&mut raw.buffer)).await.expect("a preface");
            assert!(n > 0, "closed before the preface");
        }
        assert_eq!(raw.buffer.split_to(PREFACE.len()), PREFACE);
        raw.send(&Frame::settings(settings)).await.expect("an open connection");
        raw
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        within("room to write", self.stream.write_all(bytes)).await?;
        within("room to write", self.stream.flush()).await
    }

    /// Writes a frame.
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.write(&frame.encode()).await
    }

    /// The next frame; `None` when the connection has ended, orderly or not.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.parse() {
                return Some(frame);
            }
            match within("a frame", self.stream.read_buf(&mut self.buffer)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame that `wanted` takes; SETTINGS and PING are acknowledged on the way.
    pub async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if wanted(&frame) {
                return Some(frame);
            }
            if matches!(frame.kind, kind::SETTINGS | kind::PING) && frame.flags & ACK == 0 {
                let payload = if frame.kind == kind::PING { frame.payload } else { Bytes::new() };
                // A connection that ended meanwhile says so in the next read.
                let _ended = self.send(&Frame::new(frame.kind, ACK, 0, payload)).await;
            }
        }
    }

    /// What comes of a request: its answer or its reset; `None` when the connection ends.
    pub async fn outcome(&mut self, stream: u32) -> Option<Frame> {
        self.find(|f| {
            f.kind == kind::GOAWAY || f.stream == stream && matches!(f.kind, kind::HEADERS | kind::RST_STREAM)
        })
        .await
    }

    /// Gives the connection back.
    pub fn into_inner(self) -> S {
        self.stream
    }

    fn parse(&mut self) -> Option<Frame> {
        let head = self.buffer.get(..9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if self.buffer.len() < 9 + length {
            return None;
        }
        let mut head = self.buffer.split_to(9);
        head.advance(3);
        let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32() & 0x7fff_ffff);
        Some(Frame { kind, flags, stream, payload: self.buffer.split_to(length).freeze() })
    }
}
