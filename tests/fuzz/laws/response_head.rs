//! What holds for the head of any answer of HTTP/1.1: what was read says the same when it is written and read again.

use http::Method;
use waypoint::http1::{encode, head};

use crate::heads::{ROOM, head_of, is_one};

/// The head of an answer; the first byte says to what.
pub(crate) fn response(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let method = if first % 2 == 0 { Method::GET } else { Method::HEAD };
    let Some(text) = head_of(bytes, head::RESPONSE_MAX) else { return };
    let Ok(read) = head::response(text, &method) else { return };
    let text = encode::response(read.status, &read.headers, read.framing, false, method == Method::HEAD);
    is_one(&text);
    if read.headers.len() + ROOM < head::FIELDS_MAX {
        let again = head::response(&text, &method).expect("what was written can be read");
        assert_eq!((again.status, again.framing), (read.status, read.framing), "{text:?}");
    }
}
