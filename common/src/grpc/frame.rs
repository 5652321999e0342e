//! gRPC's framing: a flag and a length before each message, and a status in the trailers. No I/O.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use prost::Message;

use super::error::{CallError, Code};

/// The flag and the length.
const HEAD: usize = 5;
/// What stays allocated between messages.
const KEEP_MAX: usize = 64 << 10;
/// Characters of a server's message that are kept.
const TEXT_MAX: usize = 512;

/// One message with its head.
pub(super) fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(HEAD + length);
    framed.put_u8(0);
    // Longer messages are never made here; a server refuses what does not fit.
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut framed);
    framed.freeze()
}

/// Puts messages together again; holds one message and what came with it.
#[derive(Debug)]
pub(super) struct Decoder {
    buffer: BytesMut,
    message_max: usize,
}

impl Decoder {
    pub(super) fn new(message_max: usize) -> Self {
        Self { buffer: BytesMut::new(), message_max }
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole message.
    ///
    /// **Errors**: it is compressed, which nobody asked for, or too long; nothing after it can be read.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some((&[flag, a, b, c, d], _)) = self.buffer.split_first_chunk::<HEAD>() else { return Ok(None) };
        if flag != 0 {
            return Err(CallError::Unreadable { seen: format!("compression flag {flag}") });
        }
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > self.message_max {
            return Err(CallError::TooLong { bytes: length, limit: self.message_max });
        }
        if self.buffer.len() < HEAD + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        let message = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() && length > KEEP_MAX {
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }

    /// Whether the stream may end here.
    pub(super) fn is_between_messages(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// The status among headers or trailers; `None` if there is none.
pub(super) fn status(headers: &HeaderMap) -> Option<Result<(), CallError>> {
    let code = headers.get("grpc-status")?;
    let code = code.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    if code == 0 {
        return Some(Ok(()));
    }
    let message = headers.get("grpc-message").map(|text| decode_text(text.as_bytes())).unwrap_or_default();
    Some(Err(CallError::Status { code: Code(code), message }))
}

/// A server's text for people: percent-decoded, shortened, without control characters.
fn decode_text(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len().min(TEXT_MAX));
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if bytes.len() >= TEXT_MAX {
            break;
        }
        let hex = |at: usize| after.get(at).and_then(|&c| char::from(c).to_digit(16));
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    let mut shown = String::from_utf8_lossy(&bytes).replace(char::is_control, " ");
    if !rest.is_empty() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(length: u32, body: &[u8]) -> Vec<u8> {
        [&[0], &length.to_be_bytes()[..], body].concat()
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let bytes = [framed(3, b"abc"), framed(0, b""), framed(2, b"de")].concat();
        for size in 1..=bytes.len() {
            let mut decoder = Decoder::new(3);
            let mut got = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.push(piece);
                while let Some(message) = decoder.next().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, [&b"abc"[..], b"", b"de"], "pieces of {size}");
            assert!(decoder.is_between_messages());
        }
    }

    #[test]
    fn long_and_compressed_messages_are_refused_by_their_heads() {
        let mut decoder = Decoder::new(3);
        decoder.push(&framed(4, b""));
        assert!(matches!(decoder.next(), Err(CallError::TooLong { bytes: 4, limit: 3 })));
        let mut decoder = Decoder::new(3);
        decoder.push(&[1, 0, 0, 0, 0]);
        assert!(matches!(decoder.next(), Err(CallError::Unreadable { .. })));
    }

    #[test]
    fn a_status_is_read_and_its_text_is_fit_for_a_log() {
        let headers = |code: &str, text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", code.parse().unwrap());
            headers.insert("grpc-message", text.parse().unwrap());
            headers
        };
        assert!(status(&HeaderMap::new()).is_none());
        assert!(matches!(status(&headers("0", "")), Some(Ok(()))));
        let shown = |code, text| status(&headers(code, text)).unwrap().unwrap_err().to_string();
        assert!(
            shown("16", "no%20token%0a")
                .starts_with("the control plane answered UNAUTHENTICATED: no token ;")
        );
        assert!(shown("99", "%zz").contains("UNKNOWN: %zz"));
        assert!(shown("x", "").contains("UNKNOWN"));
        assert!(shown("2", &"x".repeat(4000)).len() < 600);
    }
}
