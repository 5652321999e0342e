//! The frames of a peer, one after the other: what is handed on to the codec, what is dropped, what ends the tunnel.
//!
//! It knows no stream by name. Whatever needs a stream's state is left to the codec, which has it; whatever a peer may
//! repeat without getting anywhere is counted here, in [`Limits`].

use std::time::{Duration, Instant};

use super::Violation;
use super::allowance::Allowance;
use super::hpack::{Decoder, encode};
use super::message::{Message, POISON, Verdict};
use super::sent::Sent;
use super::violation::Ends;
use crate::telemetry::Side;

/// First bytes of a client. Source: RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's head.
const HEAD: usize = 9;
/// What every decoder starts with, and ours announces nothing else. Source: RFC 9113 §6.5.2.
const TABLE_SIZE: usize = 4096;
/// Longest SETTINGS: some hundred settings, of which seven are known.
const SETTINGS_MAX: usize = 1024;
/// Longest GOAWAY, its debug data included.
const GOAWAY_MAX: usize = 4096;
/// Pieces of one header block.
const PIECES_MAX: u32 = 32;
/// A header block that is so many times over the announced limit is not read to its end.
const FAR_OVER: usize = 4;
/// Longest piece of a header block that the codec gets.
const PIECE: usize = 16 * 1024;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The frame kinds of RFC 9113 §6.
pub(super) mod kind {
    pub(in crate::hbone::guard) const DATA: u8 = 0;
    pub(in crate::hbone::guard) const HEADERS: u8 = 1;
    pub(in crate::hbone::guard) const RST_STREAM: u8 = 3;
    pub(in crate::hbone::guard) const SETTINGS: u8 = 4;
    pub(in crate::hbone::guard) const PUSH_PROMISE: u8 = 5;
    pub(in crate::hbone::guard) const PING: u8 = 6;
    pub(in crate::hbone::guard) const GOAWAY: u8 = 7;
    pub(in crate::hbone::guard) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::hbone::guard) const CONTINUATION: u8 = 9;
}

/// What a peer may do without getting anywhere, per tunnel.
struct Limits {
    /// Frames that bring nothing: a burst, then 200 a second; each DATA frame brings one back.
    idle: Allowance,
    /// WINDOW_UPDATE: besides, as many as bytes and frames that were sent to the peer can call for.
    credit: Allowance,
    /// Streams reset by the peer: besides, one for each answered or opened one.
    resets: Allowance,
    /// Stream errors on our side: dear where the peer was wrong, cheap where a frame met a stream that has just ended.
    provoked: Allowance,
    /// Interim answers.
    interim: Allowance,
    /// Header lists over the limit.
    oversize: Allowance,
}

impl Limits {
    fn new(now: Instant) -> Self {
        Self {
            idle: Allowance::new(now, 2000, Duration::from_millis(5)),
            credit: Allowance::new(now, 2000, Duration::from_millis(5)).up_to(2_000_000),
            resets: Allowance::new(now, 2000, Duration::from_millis(2)),
            provoked: Allowance::new(now, 4000, Duration::from_micros(2500)),
            interim: Allowance::new(now, 16, Duration::from_secs(1)),
            oversize: Allowance::new(now, 4, Duration::from_secs(10)),
        }
    }
}

/// What an error of ours costs the peer, of [`Limits::provoked`]: 200 at once, then 20 a second.
const WRONG: u64 = 20;

/// What becomes of the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many are handed on as they are.
    Pass(usize),
    /// So many are not.
    Drop(usize),
    /// So many are not; what takes their place was written.
    Replace(usize),
    /// It takes more to decide.
    More,
}

#[derive(Clone, Copy)]
enum State {
    /// So much of the preface has come.
    Preface(usize),
    /// This is no HTTP/2: the codec says so.
    Foreign,
    /// A frame begins.
    Frame,
    /// So much of a frame is left, to be handed on or not.
    Payload { left: usize, pass: bool },
    /// So much is left of a piece of a header block, with padding behind it.
    Piece { left: usize, padding: usize, last: bool },
}

/// The header block that is being received.
struct Open {
    stream: u32,
    end_stream: bool,
    pieces: u32,
}

#[derive(Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    fn parse(input: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *input.first_chunk::<HEAD>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(Self { length, kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn append(&self, out: &mut Vec<u8>) {
        let [_, length @ ..] = (self.length as u32).to_be_bytes();
        out.extend_from_slice(&length);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
    }
}

/// Both directions of one tunnel, seen from our end.
pub(super) struct Filter {
    side: Side,
    state: State,
    /// Whether the peer's first SETTINGS have come.
    greeted: bool,
    open: Option<Open>,
    block: Vec<u8>,
    written: Vec<u8>,
    hpack: Decoder,
    limits: Limits,
    /// Largest frame and largest header list that we have announced.
    frame_max: usize,
    list_max: usize,
    last_stream: u32,
    sent: Sent,
    /// PINGs of ours that are not answered yet.
    pings: u32,
    clock: fn() -> Instant,
}

impl Filter {
    /// `frame_max` and `list_max` are what our SETTINGS announce.
    pub(super) fn new(side: Side, frame_max: usize, list_max: usize, clock: fn() -> Instant) -> Self {
        let (state, preface) = match side {
            Side::Server => (State::Preface(0), 0),
            Side::Client => (State::Frame, PREFACE.len()),
        };
        Self {
            side,
            state,
            greeted: false,
            open: None,
            block: Vec::new(),
            written: Vec::new(),
            hpack: Decoder::new(TABLE_SIZE),
            limits: Limits::new(clock()),
            frame_max,
            list_max,
            last_stream: 0,
            sent: Sent::behind(preface),
            pings: 0,
            clock,
        }
    }

    /// Whether the peer's first SETTINGS have come.
    pub(super) fn greeted(&self) -> bool {
        self.greeted || matches!(self.state, State::Foreign)
    }

    /// The highest stream that the peer has opened.
    pub(super) fn last_stream(&self) -> u32 {
        if self.side == Side::Server { self.last_stream } else { 0 }
    }

    /// Whether what was sent so far ends with a whole frame.
    pub(super) fn at_boundary(&self) -> bool {
        self.sent.at_boundary()
    }

    /// What becomes of the first bytes of `input`, which is not empty. Replacements go to `out`.
    ///
    /// **Errors**: the peer has broken a rule for which the tunnel ends.
    pub(super) fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, Violation> {
        match self.state {
            State::Foreign => Ok(Step::Pass(input.len())),
            State::Preface(have) => Ok(self.preface(have, input)),
            State::Frame => self.frame(input),
            State::Payload { left, pass } => {
                let now = left.min(input.len());
                self.payload(left - now, pass);
                Ok(if pass { Step::Pass(now) } else { Step::Drop(now) })
            }
            State::Piece { left, padding, last } => {
                let now = left.min(input.len());
                self.block.extend_from_slice(input.get(..now).unwrap_or_default());
                if now < left {
                    self.state = State::Piece { left: left - now, padding, last };
                    return Ok(Step::Drop(now));
                }
                self.payload(padding, false);
                if last {
                    self.message(out)?;
                }
                Ok(Step::Replace(now))
            }
        }
    }

    fn preface(&mut self, have: usize, input: &[u8]) -> Step {
        let rest = PREFACE.get(have..).unwrap_or_default();
        let now = rest.len().min(input.len());
        self.state = match input.get(..now) == rest.get(..now) {
            false => State::Foreign,
            true if now == rest.len() => State::Frame,
            true => State::Preface(have + now),
        };
        Step::Pass(now)
    }

    fn payload(&mut self, left: usize, pass: bool) {
        self.state = if left == 0 { State::Frame } else { State::Payload { left, pass } };
    }

    fn idle(&mut self, cost: u64, otherwise: Violation) -> Result<(), Violation> {
        if self.limits.idle.spend(cost, self.clock) { Ok(()) } else { Err(otherwise) }
    }

    fn frame(&mut self, input: &[u8]) -> Result<Step, Violation> {
        let Some(head) = Head::parse(input) else { return Ok(Step::More) };
        if !self.greeted && (head.kind != kind::SETTINGS || head.has(ACK)) {
            return Err(Violation::NoSettings);
        }
        if head.length > self.frame_max {
            return Err(Violation::FrameSize);
        }
        let continued = self.open.as_ref().map(|open| open.stream);
        if (head.kind == kind::CONTINUATION) != continued.is_some()
            || continued.is_some_and(|s| s != head.stream)
        {
            return Err(Violation::Protocol);
        }
        match head.kind {
            kind::DATA => self.data(head, input),
            kind::HEADERS => self.headers(head, input),
            kind::CONTINUATION => self.continuation(head),
            kind::PUSH_PROMISE => Err(Violation::Push),
            kind::SETTINGS | kind::PING | kind::GOAWAY | kind::WINDOW_UPDATE | kind::RST_STREAM => {
                self.control(head, input)
            }
            // The codec ignores them, as it must; nobody needs them copied.
            _ => {
                self.idle(1 + head.length as u64 / 1024, Violation::FrameFlood)?;
                self.payload(head.length, false);
                Ok(Step::Drop(HEAD))
            }
        }
    }

    fn data(&mut self, head: Head, input: &[u8]) -> Result<Step, Violation> {
        if head.length == 0 && !head.has(END_STREAM) && head.stream != 0 {
            // The codec ends a tunnel at the 101st of its life; it says nothing, so nothing is lost.
            self.idle(1, Violation::EmptyData)?;
            return Ok(Step::Drop(HEAD));
        }
        self.limits.idle.earn(1);
        let whole = HEAD + head.length;
        let now = whole.min(input.len());
        self.payload(whole - now, true);
        Ok(Step::Pass(now))
    }

    fn headers(&mut self, head: Head, input: &[u8]) -> Result<Step, Violation> {
        // In front of the block: length of the padding, then five bytes of a priority that nobody uses any more.
        let before = usize::from(head.has(PADDED)) + if head.has(PRIORITY) { 5 } else { 0 };
        let Some(before_block) = input.get(HEAD..HEAD + before) else { return Ok(Step::More) };
        let padding = match before_block.first() {
            Some(length) if head.has(PADDED) => usize::from(*length),
            _ => 0,
        };
        let left = head.length.checked_sub(before + padding).ok_or(Violation::Protocol)?;
        self.last_stream = self.last_stream.max(head.stream);
        self.limits.idle.earn(4);
        // Some peers open each stream's window on its own.
        self.limits.credit.earn(2);
        self.block.clear();
        self.open = Some(Open { stream: head.stream, end_stream: head.has(END_STREAM), pieces: 0 });
        self.piece(head, left, padding)?;
        Ok(Step::Drop(HEAD + before))
    }

    fn continuation(&mut self, head: Head) -> Result<Step, Violation> {
        if let Some(open) = &mut self.open {
            open.pieces += 1;
            if open.pieces > PIECES_MAX {
                return Err(Violation::Continuation);
            }
        }
        self.idle(1, Violation::Continuation)?;
        self.piece(head, head.length, 0)?;
        Ok(Step::Drop(HEAD))
    }

    fn piece(&mut self, head: Head, left: usize, padding: usize) -> Result<(), Violation> {
        if self.block.len() + left > FAR_OVER * self.list_max {
            return Err(Violation::HeaderList);
        }
        self.state = State::Piece { left, padding, last: head.has(END_HEADERS) };
        Ok(())
    }

    /// Whether a piece without bytes is due, for which no input needs to come.
    pub(super) fn is_due(&self) -> bool {
        matches!(self.state, State::Piece { left: 0, .. })
    }

    /// The header block is whole.
    fn message(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.written.clear();
        let mut message = Message::new(self.side, &mut self.written);
        let decoded = self.hpack.decode(&self.block, self.list_max, |n, v| message.field(n, v));
        let verdict = message.verdict(open.end_stream);
        let is_over = decoded.map_err(|_| Violation::Compression)?;
        self.block.clear();
        self.block.shrink_to(TABLE_SIZE);
        if is_over && !self.limits.oversize.spend(1, self.clock) {
            return Err(Violation::HeaderList);
        }
        match verdict {
            _ if is_over => self.poison(),
            Verdict::Malformed => self.poison(),
            Verdict::Accepted => {}
            Verdict::Interim => {
                let allowed = self.limits.interim.spend(1, self.clock);
                return if allowed { Ok(()) } else { Err(Violation::Interim) };
            }
        }
        self.hand_on(&open, out);
        self.written.shrink_to(TABLE_SIZE);
        Ok(())
    }

    fn poison(&mut self) {
        self.written.clear();
        encode(&mut self.written, POISON.0, POISON.1);
    }

    fn hand_on(&self, open: &Open, out: &mut Vec<u8>) {
        let pieces = self.written.len().div_ceil(PIECE).max(1);
        for nth in 0..pieces {
            let from = nth * PIECE;
            let to = self.written.len().min(from + PIECE);
            let end_headers = if nth + 1 == pieces { END_HEADERS } else { 0 };
            let (kind, end_stream) = match nth {
                0 => (kind::HEADERS, u8::from(open.end_stream) * END_STREAM),
                _ => (kind::CONTINUATION, 0),
            };
            let flags = end_headers | end_stream;
            Head { length: to - from, kind, flags, stream: open.stream }.append(out);
            out.extend_from_slice(self.written.get(from..to).unwrap_or_default());
        }
    }

    /// Short frames that are handed on whole.
    fn control(&mut self, head: Head, input: &[u8]) -> Result<Step, Violation> {
        let right = match head.kind {
            kind::SETTINGS if head.has(ACK) => head.length == 0,
            kind::SETTINGS => head.length.is_multiple_of(6) && head.length <= SETTINGS_MAX,
            kind::PING => head.length == 8,
            kind::GOAWAY => (8..=GOAWAY_MAX).contains(&head.length),
            _ => head.length == 4,
        };
        if !right {
            return Err(Violation::FrameSize);
        }
        let whole = HEAD + head.length;
        let Some(payload) = input.get(HEAD..whole) else { return Ok(Step::More) };
        match head.kind {
            kind::SETTINGS => self.settings(payload)?,
            kind::PING => {
                self.idle(1, Violation::PingFlood)?;
                if head.has(ACK) {
                    // The codec would log each answer to nothing.
                    let Some(left) = self.pings.checked_sub(1) else { return Ok(Step::Drop(whole)) };
                    self.pings = left;
                }
            }
            kind::WINDOW_UPDATE if !self.limits.credit.spend(1, self.clock) => {
                return Err(Violation::WindowUpdateFlood);
            }
            kind::RST_STREAM if !self.limits.resets.spend(1, self.clock) => {
                return Err(Violation::ResetFlood);
            }
            kind::GOAWAY => self.idle(1, Violation::FrameFlood)?,
            _ => {}
        }
        Ok(Step::Pass(whole))
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Violation> {
        self.greeted = true;
        // A changed window is applied to each stream.
        self.idle(if payload.is_empty() { 1 } else { 20 }, Violation::SettingsFlood)?;
        let pushes = |setting: &[u8]| matches!(setting, [0, 2, value @ ..] if value != [0; 4]);
        // Only a client may allow pushes: RFC 9113 §6.5.2.
        if self.side == Side::Client && payload.chunks(6).any(pushes) {
            return Err(Violation::Settings);
        }
        Ok(())
    }

    /// Notes what was sent to the peer. Each frame that says that the peer was wrong is told to `blame`.
    ///
    /// **Errors**: the peer provoked too many of them.
    pub(super) fn sent(&mut self, bytes: &[u8], mut blame: impl FnMut(Ends)) -> Result<(), Violation> {
        let Self { sent, limits, pings, clock, .. } = self;
        let mut cost = 0;
        sent.advance(bytes, |frame, value| match frame {
            kind::DATA => limits.credit.earn(4 + u64::from(value) / 64),
            kind::HEADERS => limits.resets.earn(1),
            kind::PING if value & u32::from(ACK) == 0 => *pings = pings.saturating_add(1),
            kind::GOAWAY => {
                if let Some(violation) = Violation::of_goaway(value.into()) {
                    blame(Ends::Tunnel(violation));
                }
            }
            kind::RST_STREAM => match (Violation::of_reset(value.into()), h2::Reason::from(value)) {
                (Some(violation), _) => {
                    blame(Ends::Stream(violation));
                    cost += WRONG;
                }
                (None, h2::Reason::REFUSED_STREAM) => cost += WRONG,
                (None, h2::Reason::STREAM_CLOSED) => cost += 1,
                (None, _) => {}
            },
            _ => {}
        });
        if limits.provoked.spend(cost, *clock) { Ok(()) } else { Err(Violation::ProvokedResets) }
    }
}

#[cfg(test)]
mod tests;
