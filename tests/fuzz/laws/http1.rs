//! What holds for any bytes of HTTP/1.1 at a waypoint: what was read says the same when it is written and read again.

use bytes::Bytes;
use culvert_common::l7::timeout::timeouts;
use http::{HeaderMap, HeaderValue, Method};
use std::time::Duration;
use waypoint::client_hello::{self, Hello};
use waypoint::http1::body::{BadBody, Decoder, Part};
use waypoint::http1::encode;
use waypoint::http1::head::{self, BadHead, End, Framing};

/// Header lines that a written message may have more than the one that was read.
const ROOM: usize = 2;

/// The bytes up to the end of a head, which is the same however they come.
fn head_of(bytes: &[u8], max: usize) -> Option<&[u8]> {
    let whole = End::default().find(bytes, max);
    let mut search = End::default();
    let in_pieces = (0..=bytes.len()).map(|cut| search.find(&bytes[..cut], max));
    let found = in_pieces.into_iter().find(|found| !matches!(found, Ok(None))).unwrap_or(Ok(None));
    assert_eq!(found, whole, "piece by piece");
    whole.ok().flatten().map(|length| &bytes[..length])
}

/// A written head has one end: its own.
fn is_one(text: &[u8]) {
    let found = End::default().find(text, head::RESPONSE_MAX);
    assert!(found == Ok(Some(text.len())) || found == Err(BadHead::TooLarge), "{text:?}: {found:?}");
}

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

/// Data, trailers, what is left.
type Body = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

fn body(framing: Framing, pieces: &[&[u8]]) -> Result<Body, BadBody> {
    let (mut decoder, mut data, mut left, mut trailers) =
        (Decoder::new(framing), Vec::new(), Vec::new(), None);
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        while !decoder.is_done() {
            match decoder.next(&mut input)? {
                Some(Part::Data(part)) => {
                    assert!(!part.is_empty(), "nothing is no part");
                    data.extend_from_slice(&part);
                }
                Some(Part::End(end)) => trailers = end,
                None => break,
            }
        }
        left.extend_from_slice(&input);
    }
    Ok((data, trailers, left))
}

/// Chunks; the first byte says where they are cut.
pub(crate) fn chunks(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let whole = body(Framing::Chunked, &[bytes]);
    let (one, other) = bytes.split_at(usize::from(*first).min(bytes.len()));
    assert_eq!(body(Framing::Chunked, &[one, other]), whole, "in two pieces");
    let Ok((data, _, _)) = whole else { return };
    let mut written = bytes::BytesMut::new();
    encode::chunk(&mut written, &Bytes::from(data.clone()));
    encode::last_chunk(&mut written, None);
    assert_eq!(body(Framing::Chunked, &[&written]), Ok((data, None, Vec::new())), "written again");
    let length = bytes.len().min(usize::from(*first)) as u64;
    let (taken, _, left) = body(Framing::Length(length), &[bytes]).expect("bytes are a body");
    assert_eq!((taken.len() as u64, taken.len() + left.len()), (length, bytes.len()));
}

/// A TLS client's first message: once it is known what it is, more bytes change nothing.
pub(crate) fn hello(bytes: &[u8]) {
    let all = client_hello::read(bytes);
    let known =
        (0..bytes.len()).map(|cut| client_hello::read(&bytes[..cut])).find(|hello| *hello != Hello::Open);
    assert!(known.is_none_or(|known| known == all), "{all:?}");
    if let Hello::Tls(Some(name)) = all {
        assert!(!name.is_empty() && name.is_ascii() && name == name.to_ascii_lowercase());
    }
}

/// `grpc-timeout`: what the upstream is told is never more.
pub(crate) fn grpc_timeout(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("grpc-timeout", value);
    let asked = timeouts(None, None, Some(&headers));
    let Some(time) = asked.request else { return };
    asked.announce(Duration::ZERO, true, &mut headers);
    let told = timeouts(None, None, Some(&headers)).request.expect("a time is told");
    assert!(!told.is_zero() && told <= time, "{time:?} is told as {told:?}");
    assert!(headers["x-envoy-expected-rq-timeout-ms"].to_str().is_ok_and(|text| text.parse::<u64>().is_ok()));
}
