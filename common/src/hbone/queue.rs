//! Bytes on their way from a tunnel to an app that does not take them yet: bounded by the stream's window, and cheap
//! however small the pieces are.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// A piece up to this size is copied behind the last one: a piece kept as it came holds the whole read buffer it was
/// cut from, so that 1-byte DATA frames would hold a thousand times their size (`faults.md` 8).
const COALESCE_BELOW: usize = 4096;
/// Size of the blocks that small pieces are copied into.
const BLOCK: usize = 16 * 1024;
/// What a kept piece costs beside its bytes.
const PIECE_OVERHEAD: usize = 64;

/// First in, first out.
#[derive(Default)]
pub(super) struct Queue {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Queue {
    pub(super) fn push(&mut self, data: Bytes) {
        self.len += data.len();
        if data.len() < COALESCE_BELOW {
            if self.tail.capacity() - self.tail.len() < data.len() {
                self.seal_tail();
                self.tail.reserve(BLOCK);
            }
            self.tail.extend_from_slice(&data);
        } else {
            self.seal_tail();
            self.pieces.push_back(data);
        }
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    /// The first piece.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front().or_else(|| {
            let tail = std::mem::take(&mut self.tail);
            (!tail.is_empty()).then(|| tail.freeze())
        })?;
        self.len -= piece.len();
        Some(piece)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that memory really holds for this queue.
    pub(super) fn cost(&self) -> usize {
        let block = if self.tail.is_empty() { 0 } else { BLOCK };
        self.len + self.pieces.len() * PIECE_OVERHEAD + block
    }

    /// Fills `slices` from the front; returns how many.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        let all = self.pieces.iter().map(|piece| &piece[..]).chain([&self.tail[..]]);
        for (slot, piece) in slices.iter_mut().zip(all.filter(|piece| !piece.is_empty())) {
            *slot = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    pub(super) fn advance(&mut self, mut taken: usize) {
        self.len -= taken;
        while let Some(front) = self.pieces.front_mut() {
            if taken < front.len() {
                front.advance(taken);
                return;
            }
            taken -= front.len();
            self.pieces.pop_front();
        }
        self.tail.advance(taken);
        if self.len == 0 {
            *self = Self::default(); // an idle connection holds no block
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_million_single_bytes_cost_about_a_megabyte() {
        let mut queue = Queue::default();
        let big = Bytes::from(vec![0; 64 * 1024]);
        for _ in 0..1 << 20 {
            queue.push(big.slice(..1));
        }
        assert!(queue.cost() < (1 << 20) + (1 << 16), "{}", queue.cost());
    }

    proptest! {
        /// What goes in comes out, in order, whatever the sizes of the pieces and of the writes.
        #[test]
        fn bytes_keep_their_order(
            pieces in prop::collection::vec(0usize..9000, 0..40),
            takes in prop::collection::vec(1usize..20000, 1..40),
        ) {
            let (mut queue, mut sent, mut got) = (Queue::default(), Vec::new(), Vec::new());
            let mut takes = takes.into_iter().cycle();
            for (i, size) in pieces.into_iter().enumerate() {
                let data = vec![i as u8; size];
                sent.extend_from_slice(&data);
                queue.push(data.into());
                drain(&mut queue, &mut got, takes.next().unwrap_or(1));
            }
            while !queue.is_empty() {
                drain(&mut queue, &mut got, takes.next().unwrap_or(1));
            }
            prop_assert_eq!(sent, got);
        }
    }

    fn drain(queue: &mut Queue, got: &mut Vec<u8>, want: usize) {
        let mut slices = [IoSlice::new(&[]); 8];
        let filled = queue.slices(&mut slices);
        let all: Vec<u8> = slices[..filled].iter().flat_map(|s| s.iter().copied()).take(want).collect();
        got.extend_from_slice(&all);
        queue.advance(all.len());
    }
}
