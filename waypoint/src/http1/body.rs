//! Bodies: what of the bytes that arrive belongs to one, and where it ends.

use bytes::{Buf as _, Bytes};
use http::HeaderMap;

use super::head::{FIELDS_MAX, Framing};

/// Longest line of a chunk's size, with its extensions.
const SIZE_LINE_MAX: usize = 256;
/// Bytes of trailers.
const TRAILERS_MAX: usize = 16 * 1024;

/// Takes one body apart.
#[derive(Debug)]
pub struct Decoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Length(u64),
    Close,
    /// A size line, as far as it has come.
    Size(Vec<u8>),
    Chunk(u64),
    /// CR LF behind a chunk: how much of it is missing.
    ChunkEnd(u8),
    /// Trailers, as far as they have come.
    Trailers(Vec<u8>),
    Done,
}

/// A part of a body.
#[derive(Debug, PartialEq)]
pub enum Part {
    /// Some of its bytes, never none.
    Data(Bytes),
    /// It is over, with these trailers.
    End(Option<HeaderMap>),
}

/// The bytes are no such body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk or trailer that breaks HTTP/1.1")]
pub struct BadBody;

impl Decoder {
    /// Of a body that ends so.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(Vec::new()),
            Framing::Close => State::Close,
        };
        Self { state }
    }

    /// Whether the body is over.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the end of the connection is the body's end too.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::Close)
    }

    /// The next part, out of `input`; none: more must come. What is behind the end stays in `input`.
    ///
    /// **Errors**: the connection cannot be used any more.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Part>, BadBody> {
        loop {
            match &mut self.state {
                State::Done => return Ok(Some(Part::End(None))),
                _ if input.is_empty() => return Ok(None),
                State::Close => return Ok(Some(Part::Data(std::mem::take(input)))),
                State::Length(left) => {
                    let data = split(input, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.state = State::Done;
                    }
                    return Ok(Some(Part::Data(data)));
                }
                State::Chunk(left) => {
                    let data = split(input, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.state = State::ChunkEnd(2);
                    }
                    return Ok(Some(Part::Data(data)));
                }
                State::ChunkEnd(missing) => {
                    let wanted = if *missing == 2 { b'\r' } else { b'\n' };
                    if input.get_u8() != wanted {
                        return Err(BadBody);
                    }
                    *missing -= 1;
                    if *missing == 0 {
                        self.state = State::Size(Vec::new());
                    }
                }
                State::Size(line) => {
                    if !take_line(input, line, SIZE_LINE_MAX)? {
                        return Ok(None);
                    }
                    let size = size_of(line)?;
                    self.state = if size == 0 { State::Trailers(Vec::new()) } else { State::Chunk(size) };
                }
                State::Trailers(text) => {
                    if !take_line(input, text, TRAILERS_MAX)? {
                        return Ok(None);
                    }
                    if text == b"\r\n" || text.ends_with(b"\r\n\r\n") {
                        let trailers = trailers_of(text)?;
                        self.state = State::Done;
                        return Ok(Some(Part::End(trailers)));
                    }
                }
            }
        }
    }
}

fn split(input: &mut Bytes, left: u64) -> Bytes {
    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
    input.split_to(take)
}

/// Appends to `line` until it ends in LF; false: more must come.
fn take_line(input: &mut Bytes, line: &mut Vec<u8>, max: usize) -> Result<bool, BadBody> {
    let end = input.iter().position(|byte| *byte == b'\n');
    let take = end.map_or(input.len(), |end| end + 1);
    if line.len() + take > max {
        return Err(BadBody);
    }
    line.extend_from_slice(&input.split_to(take));
    match (end, line.as_slice()) {
        (Some(_), [.., b'\r', b'\n']) => Ok(true),
        (Some(_), _) => Err(BadBody),
        (None, _) => Ok(false),
    }
}

/// A size in hexadecimal digits; extensions behind `;` are passed over, as far as they are visible text.
fn size_of(line: &[u8]) -> Result<u64, BadBody> {
    let line = line.strip_suffix(b"\r\n").ok_or(BadBody)?;
    let end = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    let good = (1..=16).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_hexdigit)
        && extension.iter().all(|byte| (0x20..0x7f).contains(byte) || *byte == b'\t');
    let text = std::str::from_utf8(digits).ok().filter(|_| good).ok_or(BadBody)?;
    u64::from_str_radix(text, 16).map_err(|_| BadBody)
}

fn trailers_of(text: &[u8]) -> Result<Option<HeaderMap>, BadBody> {
    let mut trailers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !matches!(line, [] | [b'\r'])) {
        let line = line.strip_suffix(b"\r").filter(|line| !line.contains(&b'\r')).ok_or(BadBody)?;
        let colon = line.iter().position(|byte| *byte == b':').ok_or(BadBody)?;
        let (name, value) = line.split_at(colon);
        let name = http::HeaderName::from_bytes(name).map_err(|_| BadBody)?;
        let value = super::trim(value.get(1..).unwrap_or_default());
        trailers.append(name, http::HeaderValue::from_bytes(value).map_err(|_| BadBody)?);
        if trailers.len() > FIELDS_MAX {
            return Err(BadBody);
        }
    }
    Ok(Some(trailers).filter(|trailers| !trailers.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes, trailers, and what is left behind the end.
    type Read = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// All of a body, fed in pieces.
    fn all(framing: Framing, pieces: &[&[u8]]) -> Result<Read, BadBody> {
        let (mut decoder, mut data, mut left) = (Decoder::new(framing), Vec::new(), Vec::new());
        let mut trailers = None;
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while !decoder.is_done() {
                match decoder.next(&mut input)? {
                    Some(Part::Data(part)) => data.extend_from_slice(&part),
                    Some(Part::End(end)) => trailers = end,
                    None => break,
                }
            }
            left.extend_from_slice(&input);
        }
        Ok((data, trailers, left))
    }

    const CHUNKED: &[u8] = b"5;x=y\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nA: b\r\n\r\nNEXT";

    #[test]
    fn bodies_end_where_they_say() {
        assert_eq!(all(Framing::Length(3), &[b"ab", b"cd"]).unwrap(), (b"abc".into(), None, b"d".into()));
        assert_eq!(all(Framing::Empty, &[b"ab"]).unwrap(), (vec![], None, b"ab".into()));
        let (data, trailers, left) = all(Framing::Chunked, &[CHUNKED]).unwrap();
        assert_eq!((data.as_slice(), left.as_slice()), (b"hello world".as_slice(), b"NEXT".as_slice()));
        assert_eq!(trailers.unwrap()["a"], "b");
    }

    #[test]
    fn doubtful_chunks_are_refused() {
        for bad in [
            "5\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "11111111111111111\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "0\r\nA b\r\n\r\n",
            "0\r\n A: b\r\n\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA: b\rc\r\n\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\nA: \u{c}\r\n\r\n",
            "-1\r\nhello\r\n0\r\n\r\n",
            "5,5\r\nhello\r\n0\r\n\r\n",
            "5\rhello\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5\t\r\nhello\r\n0\r\n\r\n",
            "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
            "\u{ff15}\r\nhello\r\n0\r\n\r\n",
            "10000000000000000\r\nhello\r\n0\r\n\r\n",
        ] {
            assert_eq!(all(Framing::Chunked, &[bad.as_bytes()]), Err(BadBody), "{bad:?}");
        }
        let long = format!("5;{}\r\nhello", "x".repeat(SIZE_LINE_MAX));
        assert!(all(Framing::Chunked, &[long.as_bytes()]).is_err());
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(4000));
        assert!(all(Framing::Chunked, &[trailers.as_bytes()]).is_err());
    }

    proptest! {
        /// However the bytes are cut, the same body comes out.
        #[test]
        fn pieces_do_not_matter(mut cuts in prop::collection::vec(0..CHUNKED.len(), 0..6)) {
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([CHUNKED.len()]) {
                pieces.push(&CHUNKED[from..cut]);
                from = cut;
            }
            prop_assert_eq!(all(Framing::Chunked, &pieces), all(Framing::Chunked, &[CHUNKED]));
        }

        #[test]
        fn anything_is_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _either = all(Framing::Chunked, &[&bytes]);
        }
    }
}
