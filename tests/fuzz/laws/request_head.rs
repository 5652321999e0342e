//! What holds for the head of any request of HTTP/1.1: what was read says the same when it is written and read again.

use http::Method;
use waypoint::http1::encode;
use waypoint::http1::head::{self, Framing};

use crate::heads::{ROOM, head_of, is_one};

/// The head of a request.
pub(crate) fn request(bytes: &[u8]) {
    let Some(text) = head_of(bytes, head::REQUEST_MAX) else { return };
    let Ok(read) = head::request(text) else { return };
    assert!(read.upgrade.is_none() || read.framing == Framing::Empty, "an upgrade with a body");
    assert!(!read.headers.contains_key("host") && !read.headers.contains_key("transfer-encoding"));
    if read.method == Method::CONNECT {
        assert!(!read.keep_alive && read.path.is_empty());
        return;
    }
    assert!(read.path.starts_with('/') || read.path == "*", "{:?}", read.path);
    let text = encode::request(&read.method, &read.path, &read.authority, &read.headers, read.framing);
    is_one(&text);
    if read.headers.len() + ROOM < head::FIELDS_MAX {
        let again = head::request(&text).expect("what was written can be read");
        assert_eq!((again.method, again.path, again.framing), (read.method, read.path, read.framing));
        assert_eq!((again.authority, again.upgrade), (read.authority, read.upgrade));
    }
}
