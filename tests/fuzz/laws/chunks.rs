//! What holds for any body of HTTP/1.1: it is the same however it comes, and when it is written and read again.

use bytes::Bytes;
use http::HeaderMap;
use waypoint::http1::body::{BadBody, Decoder, Part};
use waypoint::http1::encode;
use waypoint::http1::head::Framing;

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
