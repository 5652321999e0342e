//! Heads and bodies on their way out.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::head::Framing;

/// A request's head: `authority` becomes the Host header. Headers must be free of connection-specific ones.
pub(crate) fn request(
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
    // A request whose length is 0 says so where a body would be expected.
    let says_zero =
        framing == Framing::Empty && matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    fields(&mut out, headers, framing, says_zero);
    out
}

/// A response's head; `no_body` where the request, or the status, allows none: then a length is only told.
pub(crate) fn response(
    status: StatusCode,
    headers: &HeaderMap,
    framing: Framing,
    close: bool,
    no_body: bool,
) -> BytesMut {
    let mut out = BytesMut::with_capacity(512);
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.put_slice(b"\r\n");
    if close {
        out.put_slice(b"connection: close\r\n");
    }
    fields(&mut out, headers, framing, !no_body);
    out
}

fn fields(out: &mut BytesMut, headers: &HeaderMap, framing: Framing, says_zero: bool) {
    for (name, value) in headers {
        if *name == TRANSFER_ENCODING || (framing == Framing::Chunked && *name == CONTENT_LENGTH) {
            continue;
        }
        out.reserve(name.as_str().len() + value.len() + 4);
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    match framing {
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) if !headers.contains_key(CONTENT_LENGTH) => {
            out.put_slice(format!("content-length: {length}\r\n").as_bytes());
        }
        Framing::Empty if says_zero && !headers.contains_key(CONTENT_LENGTH) => {
            out.put_slice(b"content-length: 0\r\n")
        }
        Framing::Empty | Framing::Length(_) | Framing::Close => {}
    }
    out.put_slice(b"\r\n");
}

/// `data` as one chunk, behind what `out` has.
pub(crate) fn chunk(out: &mut BytesMut, data: &Bytes) {
    out.put_slice(format!("{:x}\r\n", data.len()).as_bytes());
    out.put_slice(data);
    out.put_slice(b"\r\n");
}

/// The last chunk, with the trailers.
pub(crate) fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
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

    #[test]
    fn chunks_are_framed() {
        let mut out = BytesMut::new();
        chunk(&mut out, &Bytes::from_static(b"hello world, sixteen"));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        last_chunk(&mut out, Some(&trailers));
        assert_eq!(&out[..], b"14\r\nhello world, sixteen\r\n0\r\ngrpc-status: 0\r\n\r\n");
    }
}
