//! Which header blocks the codec gets to see, and in which words.

use super::hpack::encode;
use crate::telemetry::Side;

/// What is to be done with a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Handed on in the words that were written.
    Accepted,
    /// An interim answer: a tunnel needs none.
    Interim,
    /// No HTTP message: a stream error. Source: RFC 9113 §8.1.1.
    Malformed,
}

/// A field that no message may have: the codec answers it with a stream error, whatever else is in the block.
pub(super) const POISON: (&[u8], &[u8]) = (b"connection", b"close");

/// Checks one block, field by field, and writes what is handed on.
pub(super) struct Message<'a> {
    side: Side,
    out: &'a mut Vec<u8>,
    /// Pseudo headers that were there, one bit each.
    pseudo: u8,
    regular: bool,
    malformed: bool,
    interim: bool,
}

impl<'a> Message<'a> {
    /// Appends to `out`.
    pub(super) fn new(side: Side, out: &'a mut Vec<u8>) -> Self {
        Self { side, out, pseudo: 0, regular: false, malformed: false, interim: false }
    }

    /// The next field, as it was decoded.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        let right = if name.first() == Some(&b':') {
            !self.regular && self.pseudo_header(name, value)
        } else {
            self.regular = true;
            is_name(name) && is_value(value)
        };
        self.malformed |= !right;
        // Neither in a CONNECT nor in an answer to one does a length mean anything: RFC 9110 §9.3.6.
        if right && name != b"content-length" {
            encode(self.out, name, value);
        }
    }

    /// Whether the message may have this pseudo header, here and once. Source: RFC 9113 §8.3.
    fn pseudo_header(&mut self, name: &[u8], value: &[u8]) -> bool {
        let of_request = self.side == Side::Server;
        let (bit, right) = match name {
            b":method" => (1, of_request && !value.is_empty() && value.iter().all(|b| is_token(*b))),
            b":authority" => (2, of_request && is_text(value)),
            b":scheme" => (4, of_request && is_text(value)),
            b":path" => (8, of_request && is_text(value)),
            b":protocol" => (16, of_request && is_text(value)),
            b":status" => (32, !of_request && self.status(value)),
            _ => return false,
        };
        let again = self.pseudo & bit != 0;
        self.pseudo |= bit;
        right && !again
    }

    fn status(&mut self, value: &[u8]) -> bool {
        self.interim = value.first() == Some(&b'1');
        // HTTP/2 has no 101: RFC 9113 §8.6.
        matches!(value, [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9']) && value != b"101"
    }

    /// The last field was seen.
    pub(super) fn verdict(&self, end_stream: bool) -> Verdict {
        match self.interim {
            _ if self.malformed => Verdict::Malformed,
            true if end_stream => Verdict::Malformed,
            true => Verdict::Interim,
            false => Verdict::Accepted,
        }
    }
}

/// Source: RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Source: RFC 9113 §8.2.1.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| is_token(*b) && !b.is_ascii_uppercase())
}

fn is_value(value: &[u8]) -> bool {
    // All of it, rather than up to the first wrong byte: so several bytes are compared at once.
    value.iter().fold(true, |right, b| right & ((*b == b'\t') | (*b >= b' ') & (*b != 0x7f)))
}

fn is_text(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|_| is_value(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(side: Side, fields: &[(&str, &str)], end_stream: bool) -> Verdict {
        let mut out = Vec::new();
        let mut message = Message::new(side, &mut out);
        for (name, value) in fields {
            message.field(name.as_bytes(), value.as_bytes());
        }
        message.verdict(end_stream)
    }

    #[test]
    fn requests() {
        let of = |fields: &[(&str, &str)]| verdict(Side::Server, fields, false);
        let connect = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
        assert_eq!(of(&connect), Verdict::Accepted);
        assert_eq!(of(&[("grpc-status", "0")]), Verdict::Accepted, "trailers");
        for extra in [
            (":status", "200"),
            (":method", "CONNECT"),
            (":target", "x"),
            ("Baggage", "x"),
            ("", "x"),
            ("a b", "x"),
            ("a", "x\ny"),
            ("a", "\0"),
        ] {
            assert_eq!(of(&[connect[0], connect[1], extra]), Verdict::Malformed, "{extra:?}");
        }
        assert_eq!(of(&[connect[0], ("a", "b"), connect[1]]), Verdict::Malformed, "too late");
        assert_eq!(of(&[(":method", "CON NECT")]), Verdict::Malformed);
    }

    #[test]
    fn answers() {
        let of = |fields: &[(&str, &str)]| verdict(Side::Client, fields, false);
        let (ok, extra) = ((":status", "200"), ("content-length", "0"));
        assert_eq!(of(&[ok, extra]), Verdict::Accepted);
        assert_eq!(of(&[(":status", "103"), ("link", "x")]), Verdict::Interim);
        assert_eq!(verdict(Side::Client, &[(":status", "103")], true), Verdict::Malformed);
        for status in ["", "0", "99", "2x0", "600", "101", "1000", "20", "-20"] {
            assert_eq!(of(&[(":status", status)]), Verdict::Malformed, "{status}");
        }
        for extra in [(":path", "/"), (":method", "GET"), (":authority", "x"), ok] {
            assert_eq!(of(&[ok, extra]), Verdict::Malformed, "{extra:?}");
        }
    }

    #[test]
    fn a_content_length_is_not_handed_on() {
        let mut out = Vec::new();
        let mut message = Message::new(Side::Client, &mut out);
        message.field(b":status", b"200");
        message.field(b"content-length", b"0");
        message.field(b"a", b"b");
        let mut expected = Vec::new();
        encode(&mut expected, b":status", b"200");
        encode(&mut expected, b"a", b"b");
        assert_eq!(out, expected);
    }
}
