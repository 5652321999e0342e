//! Heads and bodies on their way out.

use bytes::{BufMut as _, Bytes, BytesMut};
use culvert_common::types::push_number;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::head::Framing;

/// A request's head: `authority` becomes the Host header. Headers must be free of connection-specific ones.
pub fn request(
    method: &Method,
    path: &str,
    authority: &HeaderValue,
    headers: &HeaderMap,
    framing: Framing,
) -> BytesMut {
    let mut out = BytesMut::with_capacity(512);
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(path.as_bytes());
    out.put_slice(b" HTTP/1.1\r\nhost: ");
    out.put_slice(authority.as_bytes());
    out.put_slice(b"\r\n");
    let has_none =
        matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT);
    let length = match framing {
        // A request whose length is 0 says so where a body could be expected.
        Framing::Empty if has_none && !headers.contains_key(CONTENT_LENGTH) => Length::None,
        Framing::Empty => Length::Is(0),
        Framing::Close => Length::None,
        Framing::Length(length) => Length::Is(length),
        Framing::Chunked => Length::Chunked,
    };
    fields(&mut out, headers, length);
    out
}

/// A response's head; of one to a HEAD that says no length it says that chunks would come.
pub fn response(
    status: StatusCode,
    headers: &HeaderMap,
    framing: Framing,
    close: bool,
    is_head: bool,
) -> BytesMut {
    let mut out = BytesMut::with_capacity(512);
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(reason(status).as_bytes());
    out.put_slice(b"\r\n");
    if close {
        out.put_slice(b"connection: close\r\n");
    }
    let length = match framing {
        _ if is_bodiless(status) => Length::AsTold,
        _ if is_head && !headers.contains_key(CONTENT_LENGTH) => Length::Chunked,
        _ if is_head => Length::AsTold,
        Framing::Empty => Length::Is(0),
        Framing::Length(length) => Length::Is(length),
        Framing::Chunked => Length::Chunked,
        Framing::Close => Length::None,
    };
    fields(&mut out, headers, length);
    out
}

/// Whether an answer with this status has neither a body nor, unless it is said, a length.
pub fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The words behind a status, as Envoy has them.
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        102 | 103 | 418 | 451 => "Unknown",
        203 => "Non-Authoritative Information",
        599 => "Last Unassigned Server Error Code",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}

/// What a head says of its body's length. Only one may say it: a header that says otherwise is left out.
#[derive(Clone, Copy, PartialEq)]
enum Length {
    /// What the headers say: nothing follows, and they tell what would have.
    AsTold,
    None,
    Is(u64),
    Chunked,
}

fn fields(out: &mut BytesMut, headers: &HeaderMap, length: Length) {
    for (name, value) in headers {
        if *name == TRANSFER_ENCODING || (length != Length::AsTold && *name == CONTENT_LENGTH) {
            continue;
        }
        out.reserve(name.as_str().len() + value.len() + 4);
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    match length {
        Length::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Length::Is(length) => {
            let mut line = String::with_capacity(40);
            line.push_str("content-length: ");
            push_number(&mut line, length);
            line.push_str("\r\n");
            out.put_slice(line.as_bytes());
        }
        Length::AsTold | Length::None => {}
    }
    out.put_slice(b"\r\n");
}

/// `data` as one chunk, behind what `out` has; nothing is none, as an empty chunk would be the last one.
pub fn chunk(out: &mut BytesMut, data: &Bytes) {
    if data.is_empty() {
        return;
    }
    out.put_slice(format!("{:x}\r\n", data.len()).as_bytes());
    out.put_slice(data);
    out.put_slice(b"\r\n");
}

/// The last chunk, with the trailers.
pub fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head;

    #[test]
    fn what_is_written_is_read_again() {
        let mut headers = HeaderMap::new();
        headers.append("a", HeaderValue::from_static("1"));
        headers.append("a", HeaderValue::from_static("2"));
        for framing in [Framing::Empty, Framing::Length(7), Framing::Chunked] {
            let authority = HeaderValue::from_static("shop:80");
            let text = request(&Method::POST, "/x?y", &authority, &headers, framing);
            let read = head::request(&text).unwrap();
            assert_eq!((read.path.as_str(), read.authority, read.framing), ("/x?y", authority, framing));
            assert_eq!(read.headers.get_all("a").iter().count(), 2);
            let text = response(StatusCode::OK, &headers, framing, false, false);
            assert_eq!(head::response(&text, &Method::GET).unwrap().framing, framing);
        }
    }

    /// What Envoy 1.40 writes.
    #[test]
    fn answers_say_their_length_as_they_must() {
        let mut said = HeaderMap::new();
        said.insert(CONTENT_LENGTH, HeaderValue::from_static("7"));
        let none = HeaderMap::new();
        for (status, headers, is_head, want) in [
            (200, &none, false, "200 OK\r\ncontent-length: 0\r\n\r\n"),
            (200, &none, true, "200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            (200, &said, true, "200 OK\r\ncontent-length: 7\r\n\r\n"),
            (204, &none, false, "204 No Content\r\n\r\n"),
            (204, &none, true, "204 No Content\r\n\r\n"),
            (304, &none, false, "304 Not Modified\r\n\r\n"),
            (103, &none, false, "103 Unknown\r\n\r\n"),
            (418, &none, false, "418 Unknown\r\ncontent-length: 0\r\n\r\n"),
            (203, &none, false, "203 Non-Authoritative Information\r\ncontent-length: 0\r\n\r\n"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let head = response(status, headers, Framing::Empty, false, is_head);
            assert_eq!(head, format!("HTTP/1.1 {want}"), "{status} {is_head}");
        }
    }

    #[test]
    fn requests_say_that_they_have_no_body_where_one_could_be() {
        let authority = HeaderValue::from_static("shop");
        for (method, says) in
            [("GET", false), ("HEAD", false), ("DELETE", false), ("POST", true), ("OPTIONS", true)]
        {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let head = request(&method, "/", &authority, &HeaderMap::new(), Framing::Empty);
            assert_eq!(String::from_utf8_lossy(&head).contains("content-length: 0\r\n"), says, "{method}");
        }
    }

    /// Two readers must not find two lengths, whatever a client or a route says.
    #[test]
    fn a_head_has_one_length() {
        let mut headers = HeaderMap::new();
        headers.append(CONTENT_LENGTH, HeaderValue::from_static("5"));
        headers.append(CONTENT_LENGTH, HeaderValue::from_static("6"));
        headers.append(TRANSFER_ENCODING, HeaderValue::from_static("gzip"));
        let authority = HeaderValue::from_static("a");
        for (framing, method, want) in [
            (Framing::Length(5), Method::POST, "content-length: 5"),
            (Framing::Empty, Method::GET, "content-length: 0"),
            (Framing::Chunked, Method::POST, "transfer-encoding: chunked"),
        ] {
            let text = request(&method, "/", &authority, &headers, framing);
            let text = String::from_utf8(text.to_vec()).unwrap();
            let lines = text.lines().filter(|line| line.contains("length") || line.contains("encoding"));
            assert_eq!(lines.collect::<Vec<_>>(), [want]);
            let text = response(StatusCode::OK, &headers, framing, false, false);
            let text = String::from_utf8(text.to_vec()).unwrap();
            let lines = text.lines().filter(|line| line.contains("length") || line.contains("encoding"));
            assert_eq!(lines.collect::<Vec<_>>(), [want]);
        }
        let text = request(&Method::GET, "/", &authority, &HeaderMap::new(), Framing::Empty);
        assert!(!text.windows(6).any(|word| word == b"length"));
    }

    #[test]
    fn chunks_are_framed() {
        let mut out = BytesMut::new();
        chunk(&mut out, &Bytes::from_static(b"hello world, sixteen"));
        chunk(&mut out, &Bytes::new());
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        last_chunk(&mut out, Some(&trailers));
        assert_eq!(&out[..], b"14\r\nhello world, sixteen\r\n0\r\ngrpc-status: 0\r\n\r\n");
    }
}
