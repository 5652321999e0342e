//! Netlink: messages to the kernel and back (`linux/netlink.h`), and the two sockets that carry them here.
//!
//! The writer and the readers are pure. Readers take any bytes: what does not parse is an error, never a panic.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, sendmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::sys;

/// Flags of a request, `NLM_F_…`.
pub mod flag {
    /// `NLM_F_REQUEST`: every message to the kernel has it.
    pub const REQUEST: u16 = 0x1;
    /// `NLM_F_ACK`: the kernel answers also when all went well.
    pub const ACK: u16 = 0x4;
    /// `NLM_F_ROOT | NLM_F_MATCH`.
    pub const DUMP: u16 = 0x300;
    /// `NLM_F_REPLACE`: an object that is there already is replaced.
    pub const REPLACE: u16 = 0x100;
    /// `NLM_F_EXCL`: an object that is there already is an error (`EEXIST`).
    pub const EXCLUSIVE: u16 = 0x200;
    /// `NLM_F_CREATE`: an object that is not there is made.
    pub const CREATE: u16 = 0x400;
    /// `NLM_F_APPEND`: the object goes to the end of its list.
    pub const APPEND: u16 = 0x800;
}

const HEADER: usize = 16;
const DUMP_INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const ACK_HAS_ATTRIBUTES: u16 = 0x200;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
const ACK_TEXT: u16 = 1;

/// The largest part of an answer: the kernel fills at most 32 KiB at a time.
const READ_BYTES: usize = 64 * 1024;
/// A namespace may hold rules of others; past this much of them a dump is refused.
const DUMP_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Parts read for one answer, among them those of earlier answers that nobody waited for.
const READS_MAX: usize = 4096;
const READ_LIMIT_S: i64 = 5;
/// How often a dump is begun again because the table changed meanwhile.
const DUMP_TRIES: usize = 8;

/// One message, or several in a row, as they go to the kernel.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Writer {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Writer {
    /// Appends a message: header, the fixed part `head` that its kind prescribes, then attributes.
    pub fn message(&mut self, about: Header, head: &[u8], fill: impl FnOnce(&mut AttrWriter<'_>)) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&about.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&about.flags.to_ne_bytes());
        self.bytes.extend_from_slice(&about.seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(head);
        pad(&mut self.bytes);
        fill(&mut AttrWriter(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Makes the kernel acknowledge the last message written: the sign that it is through with all of them.
    pub fn acknowledge_last(&mut self) {
        if let Some(place) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let flags = u16::from_ne_bytes([place[0], place[1]]) | flag::ACK;
            place.copy_from_slice(&flags.to_ne_bytes());
        }
    }

    /// The bytes written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a message header says besides its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `nlmsg_type`: what the message asks or tells.
    pub kind: u16,
    /// See [`flag`].
    pub flags: u16,
    /// The request's number; its answers repeat it.
    pub seq: u32,
}

/// Appends attributes to a message.
#[derive(Debug)]
pub struct AttrWriter<'a>(&'a mut Vec<u8>);

impl AttrWriter<'_> {
    /// An attribute with these bytes. One that is too long for its length field is left out; the kernel then refuses the
    /// message. Callers bound what they pass.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len() + 4) else { return };
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(self.0);
    }

    /// A number in the machine's order (rtnetlink).
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// A number in network order (nfnetlink).
    pub fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A string with its closing zero.
    pub fn put_str(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut AttrWriter<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(&mut AttrWriter(self.0));
        match u16::try_from(self.0.len() - start) {
            Ok(length) => {
                if let Some(place) = self.0.get_mut(start..start + 2) {
                    place.copy_from_slice(&length.to_ne_bytes());
                }
            }
            Err(_) => self.0.truncate(start),
        }
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Bytes that are no netlink message or attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink {what}: {have} bytes where {need} are needed")]
pub struct Malformed {
    /// What was being read: a message, an attribute, an error message.
    pub what: &'static str,
    /// Bytes it takes, by its own length field or at the least.
    pub need: usize,
    /// Bytes there were.
    pub have: usize,
}

/// A message as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header, without the length.
    pub header: Header,
    /// Everything after the header.
    pub body: &'a [u8],
}

/// The messages in `bytes`, in order; ends after the first that does not parse.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (frame, after) = match split_frame(rest) {
            Ok((frame, after)) => (Ok(frame), after),
            Err(malformed) => (Err(malformed), [].as_slice()),
        };
        rest = after;
        Some(frame)
    })
}

fn split_frame(bytes: &[u8]) -> Result<(Frame<'_>, &[u8]), Malformed> {
    let short = |need| Malformed { what: "message", need, have: bytes.len() };
    let header = bytes.get(..HEADER).ok_or(short(HEADER))?;
    let length = usize::try_from(u32_at(header, 0).unwrap_or(0)).unwrap_or(0).max(HEADER);
    let body = bytes.get(HEADER..length).ok_or(short(length))?;
    let header = Header {
        kind: u16_at(header, 4).unwrap_or(0),
        flags: u16_at(header, 6).unwrap_or(0),
        seq: u32_at(header, 8).unwrap_or(0),
    };
    Ok((Frame { header, body }, after(bytes, length)))
}

/// An attribute as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Without the flag bits.
    pub kind: u16,
    /// Without header and padding.
    pub value: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The value as a number in the machine's order.
    pub fn u32(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.value.try_into().ok()?))
    }

    /// The value as a number in network order.
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as text up to its closing zero.
    pub fn text(&self) -> &'a str {
        let end = self.value.iter().position(|&byte| byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(self.value.get(..end).unwrap_or_default()).unwrap_or("?")
    }
}

/// The attributes in `bytes`, in order; ends after the first that does not parse.
pub fn attrs(bytes: &[u8]) -> impl Iterator<Item = Result<Attr<'_>, Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (attr, after) = match split_attr(rest) {
            Ok((attr, after)) => (Ok(attr), after),
            Err(malformed) => (Err(malformed), [].as_slice()),
        };
        rest = after;
        Some(attr)
    })
}

fn split_attr(bytes: &[u8]) -> Result<(Attr<'_>, &[u8]), Malformed> {
    let short = |need| Malformed { what: "attribute", need, have: bytes.len() };
    let (Some(length), Some(kind)) = (u16_at(bytes, 0), u16_at(bytes, 2)) else { return Err(short(4)) };
    let length = usize::from(length).max(4);
    let value = bytes.get(4..length).ok_or(short(length))?;
    Ok((Attr { kind: kind & KIND_MASK, value }, after(bytes, length)))
}

/// The attribute of this kind, when there is one and everything before it parses.
pub fn find_attr(bytes: &[u8], kind: u16) -> Option<Attr<'_>> {
    attrs(bytes).map_while(Result::ok).find(|attr| attr.kind == kind)
}

fn after(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The socket could not be made or used.
    #[error("netlink socket: {0}")]
    Socket(Errno),
    /// The kernel said nothing.
    #[error("the kernel did not answer a netlink request within {READ_LIMIT_S} s")]
    Timeout,
    /// The answer does not parse.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The kernel refused.
    #[error("the kernel refused: {errno}{}{text}", if text.is_empty() { "" } else { ": " })]
    Kernel {
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own explanation; often empty.
        text: String,
    },
    /// What was read changed each time it was read.
    #[error(
        "the kernel's tables changed during each of {DUMP_TRIES} reads: something else writes them all the time"
    )]
    Changing,
    /// More than a pod's namespace should hold.
    #[error("a kernel table holds more than {DUMP_BYTES_MAX} bytes: look for runaway rules in the namespace")]
    TooMuch,
}

impl NetlinkError {
    /// The kernel's error number, when it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// A netlink socket in the namespace where it was opened.
///
/// Its calls block the thread: the kernel answers within the request, and a stuck one is given up after 5 s.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Addresses, rules and routes.
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// nf_tables and what else belongs to netfilter.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    /// The namespace's sockets.
    pub fn sockets() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkSockDiag)
    }

    fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(NetlinkError::Socket)?;
        let limit = TimeVal::seconds(READ_LIMIT_S);
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit).map_err(NetlinkError::Socket)?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            // Only for better answers; a kernel without them still answers.
            if let Err(error) = sys::set_socket_option(&fd, libc::SOL_NETLINK, option, 1) {
                tracing::debug!(option, %error, "netlink socket option");
            }
        }
        Ok(Self { fd, seq: 1, buffer: vec![0; READ_BYTES] })
    }

    /// The number for the next message.
    pub fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// Sends messages and waits until the one numbered `last`, which carries [`flag::ACK`], is done.
    ///
    /// Shape: numbers from [`Self::next_seq`] on; none above `last` + 1.
    /// Errors: the kernel's first refusal of any of them.
    pub fn apply(&mut self, messages: &Writer, last: u32) -> Result<(), NetlinkError> {
        self.seq = last.wrapping_add(1);
        self.send(messages.bytes())?;
        for _ in 0..READS_MAX {
            let read = self.receive()?;
            for frame in frames(self.buffer.get(..read).unwrap_or_default()) {
                let frame = frame?;
                if frame.header.kind != KIND_ERROR {
                    continue;
                }
                refusal(&frame)?;
                if frame.header.seq == last {
                    return Ok(());
                }
            }
        }
        Err(NetlinkError::TooMuch)
    }

    /// Asks for all objects of a kind; returns the body of each.
    ///
    /// Errors: the kernel's; [`NetlinkError::Changing`] when no read of the table was undisturbed.
    pub fn dump(
        &mut self,
        kind: u16,
        head: &[u8],
        fill: impl Fn(&mut AttrWriter<'_>),
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let seq = self.next_seq();
            let mut request = Writer::default();
            request.message(Header { kind, flags: flag::REQUEST | flag::DUMP, seq }, head, &fill);
            self.send(request.bytes())?;
            if let Some(found) = self.read_dump(seq)? {
                return Ok(found);
            }
        }
        Err(NetlinkError::Changing)
    }

    /// Asks for one object; returns its body.
    pub fn get(&mut self, kind: u16, head: &[u8]) -> Result<Vec<u8>, NetlinkError> {
        self.find(kind, head, |_| {})
    }

    /// Asks for the object that the attributes name; returns its body.
    pub fn find(
        &mut self,
        kind: u16,
        head: &[u8],
        fill: impl FnOnce(&mut AttrWriter<'_>),
    ) -> Result<Vec<u8>, NetlinkError> {
        let seq = self.next_seq();
        let mut request = Writer::default();
        request.message(Header { kind, flags: flag::REQUEST, seq }, head, fill);
        self.send(request.bytes())?;
        for _ in 0..READS_MAX {
            let read = self.receive()?;
            for frame in frames(self.buffer.get(..read).unwrap_or_default()) {
                let frame = frame?;
                if frame.header.seq != seq {
                    continue;
                }
                if frame.header.kind != KIND_ERROR {
                    return Ok(frame.body.to_vec());
                }
                refusal(&frame)?;
            }
        }
        Err(NetlinkError::TooMuch)
    }

    /// None when the table changed while it was read.
    fn read_dump(&mut self, seq: u32) -> Result<Option<Vec<Vec<u8>>>, NetlinkError> {
        let (mut found, mut total, mut whole) = (Vec::new(), 0, true);
        for _ in 0..READS_MAX {
            let read = self.receive()?;
            total += read;
            if total > DUMP_BYTES_MAX {
                return Err(NetlinkError::TooMuch);
            }
            for frame in frames(self.buffer.get(..read).unwrap_or_default()) {
                let frame = frame?;
                if frame.header.seq != seq {
                    continue;
                }
                whole &= frame.header.flags & DUMP_INTERRUPTED == 0;
                match frame.header.kind {
                    KIND_DONE => {
                        // The result of the dump as a whole, negative when it broke off.
                        let code = u32_at(frame.body, 0).unwrap_or(0).cast_signed();
                        if code < 0 && code != -libc::EINTR {
                            let text = explanation(frame.body.get(4..).unwrap_or_default());
                            return Err(NetlinkError::Kernel { errno: Errno::from_raw(-code), text });
                        }
                        return Ok((whole && code == 0).then_some(found));
                    }
                    KIND_ERROR => refusal(&frame)?,
                    _ => found.push(frame.body.to_vec()),
                }
            }
        }
        Err(NetlinkError::TooMuch)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let parts = [IoSlice::new(bytes)];
        let kernel = NetlinkAddr::new(0, 0);
        let sent = sendmsg(self.fd.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&kernel))
            .map_err(NetlinkError::Socket)?;
        if sent == bytes.len() { Ok(()) } else { Err(NetlinkError::Socket(Errno::EMSGSIZE)) }
    }

    /// Reads one datagram from the kernel into the buffer; others may send to this socket too, and are ignored.
    fn receive(&mut self) -> Result<usize, NetlinkError> {
        for _ in 0..READS_MAX {
            match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
                Ok((read, Some(from))) if from.pid() == 0 => return Ok(read),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(NetlinkError::Timeout),
                Err(errno) => return Err(NetlinkError::Socket(errno)),
            }
        }
        Err(NetlinkError::Timeout)
    }
}

/// Reads an `NLMSG_ERROR`; number 0 is an acknowledgement.
fn refusal(frame: &Frame<'_>) -> Result<(), NetlinkError> {
    let short = Malformed { what: "error message", need: 4, have: frame.body.len() };
    let code = u32_at(frame.body, 0).ok_or(short)?.cast_signed();
    if code == 0 {
        return Ok(());
    }
    // After the number: the request, its header alone when the answer is capped; then attributes.
    let request = match frame.header.flags & CAPPED {
        0 => usize::try_from(u32_at(frame.body, 4).unwrap_or(0)).unwrap_or(0).max(HEADER),
        _ => HEADER,
    };
    let text = match frame.header.flags & ACK_HAS_ATTRIBUTES {
        0 => String::new(),
        _ => explanation(request.checked_add(4).map_or(&[], |at| after(frame.body, at))),
    };
    Err(NetlinkError::Kernel { errno: Errno::from_raw(code.saturating_neg()), text })
}

fn explanation(attributes: &[u8]) -> String {
    find_attr(attributes, ACK_TEXT).map(|attr| attr.text().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
