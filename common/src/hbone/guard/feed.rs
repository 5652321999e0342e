//! Bytes through the filter: in place where they are handed on as they came, which is all of a tunnel's payload.

use std::time::Instant;

use tokio::io::ReadBuf;

use super::Violation;
use super::filter::{Filter, Step};
use crate::telemetry::Side;

/// A filter with what it has not decided yet, and what the codec has not taken yet.
pub(super) struct Feed {
    pub(super) filter: Filter,
    /// Undecided.
    input: Vec<u8>,
    /// Decided.
    out: Vec<u8>,
    /// So much of it was taken.
    taken: usize,
}

/// What either buffer keeps when it is empty.
const KEPT: usize = 4096;

impl Feed {
    pub(super) fn new(side: Side, frame_max: usize, list_max: usize, clock: fn() -> Instant) -> Self {
        let filter = Filter::new(side, frame_max, list_max, clock);
        Self { filter, input: Vec::new(), out: Vec::new(), taken: 0 }
    }

    /// What was held back, to stand in front of the next bytes; `None` if those cannot stay where they will be read to.
    pub(super) fn held(&self, space: usize) -> Option<&[u8]> {
        (self.out.is_empty() && self.input.len() < space).then_some(&self.input)
    }

    /// Moves what is decided to `buf`; whether there was anything.
    pub(super) fn take(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let ready = self.out.get(self.taken..).unwrap_or_default();
        let now = ready.len().min(buf.remaining());
        buf.put_slice(ready.get(..now).unwrap_or_default());
        self.taken += now;
        if self.taken == self.out.len() {
            self.out.clear();
            self.out.shrink_to(KEPT);
            self.taken = 0;
        }
        now > 0
    }

    /// Takes bytes that begin with what was held back. Leaves in front what is handed on, and returns its length. What has to be said in other words, and all
    /// that comes behind it, is for [`Feed::take`].
    pub(super) fn in_place(&mut self, bytes: &mut [u8]) -> Result<usize, Violation> {
        let (mut read, mut written) = (0, 0);
        self.input.clear();
        while read < bytes.len() {
            let rest = bytes.get(read..).unwrap_or_default();
            match self.filter.step(rest, &mut self.out)? {
                Step::Pass(n) => {
                    if written < read {
                        bytes.copy_within(read..read + n, written);
                    }
                    read += n;
                    written += n;
                }
                Step::Drop(n) => read += n,
                Step::Replace(n) if self.out.is_empty() => read += n,
                Step::Replace(n) => {
                    read += n;
                    break;
                }
                Step::More => break,
            }
        }
        self.push(bytes.get(read..).unwrap_or_default())?;
        Ok(written)
    }

    /// Takes bytes that the caller does not keep.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.input.extend_from_slice(bytes);
        let mut read = 0;
        while read < self.input.len() || self.filter.is_due() {
            let rest = self.input.get(read..).unwrap_or_default();
            match self.filter.step(rest, &mut self.out)? {
                Step::Pass(n) => {
                    self.out.extend_from_slice(rest.get(..n).unwrap_or_default());
                    read += n;
                }
                Step::Drop(n) | Step::Replace(n) => read += n,
                Step::More => break,
            }
        }
        self.input.drain(..read);
        self.input.shrink_to(KEPT);
        Ok(())
    }
}
