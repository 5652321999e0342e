//! HTTP/1.1 over a byte stream, strictly: what two parsers could read differently is refused. Source: RFC 9112.
//!
//! Pure: bytes in, heads and bodies out; who reads and writes them is elsewhere. [`head`] has request and response heads,
//! [`body`] where a body ends, [`encode`] the way back.

pub(crate) mod body;
pub(crate) mod encode;
pub(crate) mod head;
