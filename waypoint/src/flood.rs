//! What a peer of an HTTP/2 connection may repeat without getting anywhere: frames that ask for nothing and bring nothing.
//!
//! It reads nothing but the heads of frames; what they mean is left to the codec. Right peers send few of what costs
//! something here, or earn more by what they ask for and take.

use std::time::Duration;

use tokio::time::Instant;

/// Length of a frame's head. Source: RFC 9113 §4.1.
const HEAD: usize = 9;
/// Such frames that may come at once, and that may be saved up by earning.
const BURST: u64 = 10_000;
const SAVED_MAX: u64 = 50_000;
/// One more may come after so long.
const PAUSE: Duration = Duration::from_millis(1);
/// What one request's, or answer's, headers earn: credit, PINGs and a reset come with them.
const PER_MESSAGE: u64 = 8;
/// So many bytes that a peer is sent may call for one WINDOW_UPDATE.
const PER_CREDIT: u64 = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// A peer sent too many frames that mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer sent too many frames that bring nothing")]
pub(crate) struct Flood;

/// The frames of one peer.
#[derive(Debug)]
pub(crate) struct Frames {
    head: [u8; HEAD],
    have: usize,
    /// Bytes until the next head.
    skip: usize,
    allowed: u64,
    filled: Instant,
    /// Bytes sent that have not earned anything yet.
    sent: u64,
}

impl Frames {
    /// `preface` is what comes before the first frame.
    pub(crate) fn behind(preface: usize, now: Instant) -> Self {
        Self { head: [0; HEAD], have: 0, skip: preface, allowed: BURST, filled: now, sent: 0 }
    }

    /// So many bytes were sent to the peer.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.earn(self.sent / PER_CREDIT);
        self.sent %= PER_CREDIT;
    }

    /// Looks at bytes of the peer.
    ///
    /// **Errors**: too many of its frames bring nothing.
    pub(crate) fn came(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            let wanted = (HEAD - self.have).min(bytes.len());
            let (now, rest) = bytes.split_at(wanted);
            for byte in now {
                if let Some(at) = self.head.get_mut(self.have) {
                    *at = *byte;
                    self.have += 1;
                }
            }
            bytes = rest;
            if self.have == HEAD {
                self.have = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        match kind {
            HEADERS => self.earn(PER_MESSAGE),
            DATA if self.skip > 0 => self.earn(1),
            DATA if flags & END_STREAM != 0 => {}
            // The codec bounds how many make one message.
            CONTINUATION => {}
            _ => self.spend()?,
        }
        Ok(())
    }

    fn earn(&mut self, frames: u64) {
        self.allowed = self.allowed.saturating_add(frames).min(SAVED_MAX);
    }

    fn spend(&mut self) -> Result<(), Flood> {
        if self.allowed == 0 {
            let now = Instant::now();
            let back = now.duration_since(self.filled).as_millis() / PAUSE.as_millis();
            self.allowed = u64::try_from(back).unwrap_or(BURST).min(BURST);
            self.filled = now;
        }
        self.allowed = self.allowed.checked_sub(1).ok_or(Flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, a, b, c] = (length as u32).to_be_bytes();
        let mut bytes = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD + length, 7);
        bytes
    }

    /// How many of these frames are let through, fed in pieces of `size`.
    fn let_through(bytes: &[u8], size: usize) -> u64 {
        let mut frames = Frames::behind(24, Instant::now());
        assert_eq!(frames.came(&[0; 24]), Ok(()));
        for count in 0..SAVED_MAX * 2 {
            if bytes.chunks(size).any(|piece| frames.came(piece).is_err()) {
                return count;
            }
        }
        SAVED_MAX * 2
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_bring_nothing_are_bounded_and_others_are_not() {
        for (kind, flags, length) in
            [(6, 0, 8), (4, 0, 0), (2, 0, 5), (8, 0, 4), (3, 0, 4), (0, 0, 0), (200, 0, 300)]
        {
            assert_eq!(let_through(&frame(kind, flags, length), 4), BURST, "kind {kind}");
        }
        for (kind, flags, length) in [(1, 4, 10), (0, 0, 1), (0, END_STREAM, 0), (9, 4, 10)] {
            assert_eq!(let_through(&frame(kind, flags, length), 3), SAVED_MAX * 2, "kind {kind}");
        }
        // A request that is asked for and given up, with PINGs and credit: as right clients do.
        let given_up = [frame(1, 4, 20), frame(8, 0, 4), frame(6, 0, 8), frame(3, 0, 4)].concat();
        assert_eq!(let_through(&given_up, 100), SAVED_MAX * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn time_and_what_was_sent_bring_more() {
        let mut frames = Frames::behind(0, Instant::now());
        let credit = frame(8, 0, 4);
        let many = |frames: &mut Frames| {
            let count = (0..).take_while(|_| frames.came(&credit).is_ok()).count() as u64;
            frames.came(&[0; 4]).unwrap(); // the rest of the one that was too many
            count
        };
        assert_eq!(many(&mut frames), BURST);
        frames.sent(PER_CREDIT as usize * 5 - 1);
        frames.sent(1);
        assert_eq!(many(&mut frames), 5);
        tokio::time::advance(PAUSE * 7).await;
        assert_eq!(many(&mut frames), 7);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(many(&mut frames), BURST);
    }
}
