//! Where one frame ends and the next begins in what the codec sends, however it is cut into writes.

use super::filter::kind;

const HEAD: usize = 9;

/// A position in the frames that were sent.
pub(super) struct Sent {
    /// Head, and of some frames the first bytes of the payload.
    seen: [u8; HEAD + 8],
    have: usize,
    /// Bytes that are of no interest.
    skip: usize,
}

impl Sent {
    /// Frames begin behind so many bytes.
    pub(super) fn behind(skip: usize) -> Self {
        Self { seen: [0; HEAD + 8], have: 0, skip }
    }

    /// Whether a frame may follow.
    pub(super) fn at_boundary(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    /// Takes note of `bytes`. `see` is told each frame's kind and its length; in its place the error code of RST_STREAM and
    /// GOAWAY, and the flags of PING.
    pub(super) fn advance(&mut self, mut bytes: &[u8], mut see: impl FnMut(u8, u32)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                return;
            }
            let wanted = self.wanted();
            let now = (wanted - self.have).min(bytes.len());
            let (taken, rest) = bytes.split_at_checked(now).unwrap_or_default();
            if let Some(space) = self.seen.get_mut(self.have..self.have + now) {
                space.copy_from_slice(taken);
            }
            self.have += now;
            bytes = rest;
            if self.have == self.wanted() {
                let [a, b, c, kind, flags, _, _, _, _, payload @ ..] = self.seen;
                let length = u32::from_be_bytes([0, a, b, c]);
                let [first @ .., _, _, _, _] = payload;
                let [_, _, _, _, second @ ..] = payload;
                self.skip = (HEAD + length as usize).saturating_sub(self.have);
                self.have = 0;
                see(
                    kind,
                    match kind {
                        kind::RST_STREAM => u32::from_be_bytes(first),
                        kind::GOAWAY => u32::from_be_bytes(second),
                        kind::PING => flags.into(),
                        _ => length,
                    },
                );
            }
        }
    }

    /// How much of the frame is to be looked at.
    fn wanted(&self) -> usize {
        let [_, _, _, kind, ..] = self.seen;
        HEAD + match kind {
            kind::RST_STREAM if self.have >= HEAD => 4,
            kind::GOAWAY if self.have >= HEAD => 8,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_seen_however_they_are_cut() {
        let frame = |kind: u8, payload: &[u8]| {
            [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, 0, 0, 0, 0, 1], payload].concat()
        };
        let all = [
            b"preface".to_vec(),
            frame(0, &[7; 100]),
            frame(kind::RST_STREAM, &[0, 0, 0, 8]),
            frame(kind::HEADERS, &[1; 20]),
            frame(kind::GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 2, b'x']),
            frame(kind::DATA, &[]),
        ]
        .concat();
        for size in 1..all.len() {
            let (mut sent, mut seen) = (Sent::behind(7), Vec::new());
            for part in all.chunks(size) {
                sent.advance(part, |kind, value| seen.push((kind, value)));
            }
            assert_eq!(seen, [(0, 100), (3, 8), (1, 20), (7, 2), (0, 0)], "{size}");
            assert!(sent.at_boundary(), "{size}");
        }
    }
}
