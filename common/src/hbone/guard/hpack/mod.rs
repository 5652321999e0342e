//! HPACK: a decoder with limits, and the plainest encoder there is. Source: RFC 7541.
//!
//! The decoder keeps the connection's one dynamic table in step with the peer's whatever else happens, and does no more
//! work than the block has bytes: past the caller's limit fields are followed, not materialised, so that a few bytes
//! that name a large entry again and again cost nothing.

mod huffman;

use std::collections::VecDeque;

/// What no decoder recovers from: the table of the two ends is no longer the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a header block that cannot be decoded")]
pub struct NotHpack;

/// What an entry costs beside its text. Source: RFC 7541 §4.1.
const OVERHEAD: usize = 32;
/// Scratch space kept between two blocks.
const KEPT: usize = 4096;

/// The receiving end of a connection's header compression.
pub struct Decoder {
    /// Newest first.
    entries: VecDeque<Entry>,
    /// Of the entries, as RFC 7541 §4.1 counts.
    size: usize,
    /// What the peer has chosen.
    max: usize,
    /// What we have announced.
    ceiling: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

struct Entry {
    text: Box<[u8]>,
    /// Length of the name within `text`.
    name: usize,
}

impl Entry {
    fn parts(&self) -> Option<(&[u8], &[u8])> {
        self.text.split_at_checked(self.name)
    }

    fn size(&self) -> usize {
        self.text.len() + OVERHEAD
    }
}

impl Decoder {
    /// With the table size that was announced to the peer, in bytes.
    pub fn new(ceiling: usize) -> Self {
        let (name, value) = (Vec::new(), Vec::new());
        Self { entries: VecDeque::new(), size: 0, max: ceiling, ceiling, name, value }
    }

    /// Hands each field of a whole block to `take`, as long as they come to no more than `limit` bytes as SETTINGS_MAX_HEADER_LIST_SIZE
    /// counts. Returns whether there was more.
    ///
    /// **Errors**: the connection cannot go on. Source: RFC 7541 §3.2.
    pub fn decode(
        &mut self,
        block: &[u8],
        limit: usize,
        mut take: impl FnMut(&[u8], &[u8]),
    ) -> Result<bool, NotHpack> {
        let mut input = Input(block);
        let (mut size, mut begun) = (0_usize, false);
        while let Some(first) = input.peek() {
            if first & 0xe0 == 0x20 {
                let wanted = input.integer(5)?;
                // Only in front of all fields: RFC 7541 §4.2.
                if begun || wanted > self.ceiling {
                    return Err(NotHpack);
                }
                self.max = wanted;
                self.evict(0);
                continue;
            }
            begun = true;
            if first & 0x80 != 0 {
                let (name, value) = self.entry(input.integer(7)?)?;
                size = size.saturating_add(name.len() + value.len() + OVERHEAD);
                if size <= limit {
                    take(name, value);
                }
                continue;
            }
            let kept = first & 0x40 != 0;
            if size > limit && !kept {
                input.skip_literal()?;
                continue;
            }
            self.literal(&mut input, kept)?;
            size = size.saturating_add(self.name.len() + self.value.len() + OVERHEAD);
            if size <= limit {
                take(&self.name, &self.value);
            }
            if kept {
                self.insert();
            }
        }
        self.name.shrink_to(KEPT);
        self.value.shrink_to(KEPT);
        Ok(size > limit)
    }

    /// Reads a literal field into `name` and `value`.
    fn literal(&mut self, input: &mut Input<'_>, kept: bool) -> Result<(), NotHpack> {
        let index = input.integer(if kept { 6 } else { 4 })?;
        let mut name = std::mem::take(&mut self.name);
        name.clear();
        let read = match index {
            0 => input.string(&mut name),
            _ => self.entry(index).map(|(known, _)| name.extend_from_slice(known)),
        };
        self.name = name;
        read?;
        self.value.clear();
        input.string(&mut self.value)
    }

    /// The field of an index: the static table, then ours. Source: RFC 7541 §2.3.3.
    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), NotHpack> {
        let nth = index.checked_sub(1).ok_or(NotHpack)?;
        if let Some((name, value)) = STATIC.get(nth) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        self.entries.get(nth - STATIC.len()).and_then(Entry::parts).ok_or(NotHpack)
    }

    /// Makes an entry of `name` and `value`. One that is too large empties the table: RFC 7541 §4.4.
    fn insert(&mut self) {
        let wanted = self.name.len() + self.value.len() + OVERHEAD;
        self.evict(wanted);
        if wanted <= self.max {
            let text = [&self.name[..], &self.value].concat().into_boxed_slice();
            self.entries.push_front(Entry { text, name: self.name.len() });
            self.size += wanted;
        }
    }

    /// Makes room for an entry of `wanted` bytes.
    fn evict(&mut self, wanted: usize) {
        while self.size.saturating_add(wanted) > self.max {
            let Some(oldest) = self.entries.pop_back() else { break };
            self.size = self.size.saturating_sub(oldest.size());
        }
    }
}

/// What is left of a block.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn byte(&mut self) -> Result<u8, NotHpack> {
        let (first, rest) = self.0.split_first().ok_or(NotHpack)?;
        self.0 = rest;
        Ok(*first)
    }

    /// An integer behind `prefix` bits. More than 28 bits is no length and no index of ours. Source: RFC 7541 §5.1.
    fn integer(&mut self, prefix: u32) -> Result<usize, NotHpack> {
        let mask = u8::MAX >> (8 - prefix);
        let mut value = usize::from(self.byte()? & mask);
        if value < usize::from(mask) {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(NotHpack)
    }

    /// The bytes of a string as they came, and whether they are Huffman code.
    fn raw_string(&mut self) -> Result<(&'a [u8], bool), NotHpack> {
        let coded = self.peek().ok_or(NotHpack)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(NotHpack)?;
        self.0 = rest;
        Ok((text, coded))
    }

    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), NotHpack> {
        let (text, coded) = self.raw_string()?;
        if coded {
            return huffman::decode(text, out).ok_or(NotHpack);
        }
        out.extend_from_slice(text);
        Ok(())
    }

    fn skip_literal(&mut self) -> Result<(), NotHpack> {
        if self.integer(4)? == 0 {
            self.raw_string()?;
        }
        self.raw_string().map(|_| ())
    }
}

/// Appends a field that uses and changes no table. Source: RFC 7541 §6.2.2.
pub fn encode(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    for text in [name, value] {
        match u8::try_from(text.len()) {
            Ok(short) if short < 127 => out.push(short),
            _ => {
                out.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    out.push((rest & 0x7f) as u8 | 0x80);
                    rest >>= 7;
                }
                out.push(rest as u8);
            }
        }
        out.extend_from_slice(text);
    }
}

/// Source: RFC 7541 appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests;
