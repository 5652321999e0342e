//! HTTP/1.1 over a byte stream, strictly: what two parsers could read differently is refused. Source: RFC 9112.
//!
//! Pure: bytes in, heads and bodies out; who reads and writes them is elsewhere. [`head`] has request and response heads,
//! [`body`] where a body ends, [`encode`] the way back.

pub mod body;
pub mod encode;
pub mod head;

/// Without the white space that may stand around a value: space and tab, not what else some take for white space.
fn trim(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let to = value.iter().rposition(|byte| !is_space(byte)).map_or(from, |last| last + 1);
    value.get(from..to).unwrap_or_default()
}
