//! DNS messages: the question is read, answers are written, everything else stays bytes.
//!
//! **Source**: RFC 1035 §4, RFC 6891 (OPT), RFC 2308 (SOA in negative answers), RFC 4343 (case).

use std::net::IpAddr;

/// Length of a message's head.
pub const HEADER: usize = 12;
/// Longest message that is read: TCP's length has 16 bits.
pub const READ_MAX: usize = u16::MAX as usize;

/// What a client without EDNS takes by UDP.
const UDP_MIN: usize = 512;
/// What is sent by UDP at most, whatever the client takes.
const UDP_MAX: u16 = 4096;
const NAME_MAX: usize = 255;
const LABEL_MAX: u8 = 63;

pub(super) const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
pub(super) const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
pub(super) const CLASS_IN: u16 = 1;
/// Points at the question's name, which stands behind the head.
const ASKED_NAME: u16 = 0xc00c;
/// Seconds for which an address may be kept.
const TTL: u32 = 30;
/// Seconds for which it may be kept that there is none: endpoints come soon.
const TTL_NONE: u32 = 5;

/// Bits of the head's third and fourth byte.
pub(super) mod flag {
    pub(super) const RESPONSE: u8 = 0x80;
    pub(super) const OPCODE: u8 = 0x78;
    pub(super) const AUTHORITATIVE: u8 = 0x04;
    pub(in crate::dns) const TRUNCATED: u8 = 0x02;
    pub(in crate::dns) const RECURSION_DESIRED: u8 = 0x01;
    pub(super) const RECURSION_AVAILABLE: u8 = 0x80;
    pub(super) const CHECKING_DISABLED: u8 = 0x10;
}

/// Bit of an OPT record's last flag bytes: DNSSEC records are wanted.
const DNSSEC_OK: u8 = 0x80;

/// A query, as far as it is read.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    bytes: &'a [u8],
    kind: u16,
    class: u16,
    /// Where the question ends; none where there is not exactly one that can be read.
    end: Option<usize>,
    edns: Option<Edns>,
    /// Nothing about it is out of the ordinary: one question, nothing else but perhaps an OPT record.
    is_plain: bool,
}

#[derive(Clone, Copy, Debug)]
struct Edns {
    payload: u16,
    dnssec_ok: bool,
}

/// A question for addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// In lower case, without the dot at the end.
    pub name: String,
    /// Which addresses.
    pub family: Family,
}

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A
    V4,
    /// AAAA
    V6,
}

impl Family {
    /// Whether `ip` is one of these.
    pub fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

/// How a query failed, or that it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of RFC 1035")]
pub enum Code {
    NoError = 0,
    ServFail = 2,
}

/// What is said about a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The name that has the addresses, where it is not the asked one.
    pub alias: Option<String>,
    /// In the order in which they are said; none makes a negative answer.
    pub addresses: Vec<IpAddr>,
    /// The zone that a negative answer speaks for.
    pub zone: String,
    /// Its version.
    pub serial: u32,
}

/// Reads a message; none when it is no query, so that nobody may be answered.
pub fn read(bytes: &[u8]) -> Option<Query<'_>> {
    let head: &[u8; HEADER] = bytes.first_chunk()?;
    if head[2] & flag::RESPONSE != 0 {
        return None;
    }
    let counts = [(4, 5), (6, 7), (8, 9), (10, 11)].map(|(a, b)| u16::from_be_bytes([head[a], head[b]]));
    let mut query = Query { bytes, kind: 0, class: 0, end: None, edns: None, is_plain: false };
    let [questions, answers, authorities, additionals] = counts;
    if questions != 1 {
        return Some(query);
    }
    let Some(end) = question_end(bytes) else { return Some(query) };
    query.end = Some(end);
    query.kind = u16_at(bytes, end - 4).unwrap_or_default();
    query.class = u16_at(bytes, end - 2).unwrap_or_default();
    let is_question = head[2] & (flag::OPCODE | flag::TRUNCATED) == 0 && (answers, authorities) == (0, 0);
    match additionals {
        0 => query.is_plain = is_question && end == bytes.len(),
        1 => {
            query.edns = opt(bytes.get(end..).unwrap_or_default());
            query.is_plain = is_question && query.edns.is_some();
        }
        _ => {}
    }
    Some(query)
}

impl<'a> Query<'a> {
    /// The message.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its transaction id.
    pub fn id(&self) -> u16 {
        u16_at(self.bytes, 0).unwrap_or_default()
    }

    /// Name of the asked type, for metrics: one of a few.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            _ if self.end.is_none() => "unknown",
            TYPE_A => "A",
            2 => "NS",
            TYPE_CNAME => "CNAME",
            TYPE_SOA => "SOA",
            12 => "PTR",
            15 => "MX",
            16 => "TXT",
            TYPE_AAAA => "AAAA",
            33 => "SRV",
            64 => "SVCB",
            65 => "HTTPS",
            255 => "ANY",
            _ => "other",
        }
    }

    /// What is asked, when it is a plain question for the addresses of a name that a host may have.
    pub fn question(&self) -> Option<Question> {
        let family = match (self.kind, self.class) {
            (TYPE_A, CLASS_IN) => Family::V4,
            (TYPE_AAAA, CLASS_IN) => Family::V6,
            _ => return None,
        };
        let name = self.is_plain.then(|| host_name(self.bytes.get(HEADER..self.end? - 4)?)).flatten()?;
        Some(Question { name, family })
    }

    /// Bytes that an answer by UDP may have.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_MIN, |edns| usize::from(edns.payload).clamp(UDP_MIN, UDP_MAX.into()))
    }

    /// The answer's bytes, at most `limit`: with what does not fit it says that it is cut off.
    ///
    /// None when a name in it cannot be written.
    pub fn answered(&self, answer: &Answer, limit: usize) -> Option<Vec<u8>> {
        let limit = limit.min(READ_MAX);
        let mut out = Writer::reply(self, Code::NoError, true);
        let (mut answers, mut authorities) = (0, 0);
        let mut owner = ASKED_NAME;
        if let Some(alias) = &answer.alias {
            out.record(ASKED_NAME, TYPE_CNAME, TTL);
            owner = 0xc000 | u16::try_from(out.0.len() + 2).ok()?;
            out.sized(|out| out.name(alias))?;
            answers += 1;
        }
        let room = limit.checked_sub(if self.edns.is_some() { OPT_LENGTH } else { 0 })?;
        let mut is_cut = out.0.len() > room;
        for ip in &answer.addresses {
            let length = RECORD_HEAD + if ip.is_ipv4() { 4 } else { 16 };
            if is_cut || out.0.len() + length > room || answers == u16::MAX {
                is_cut = true;
                break;
            }
            out.address(owner, *ip);
            answers += 1;
        }
        if answer.addresses.is_empty() && !is_cut {
            let before = out.0.len();
            out.start_of_authority(&answer.zone, answer.serial)?;
            // It is good to have, and never worth a second question by TCP.
            if out.0.len() > room { out.0.truncate(before) } else { authorities = 1 }
        }
        if is_cut && answers == 0 {
            out.0.truncate(self.end?);
        }
        let mut additionals = 0;
        if let Some(edns) = self.edns {
            out.opt(UDP_MAX, edns.dnssec_ok);
            additionals = 1;
        }
        out.counts(answers, authorities, additionals);
        if is_cut {
            out.set(2, flag::TRUNCATED);
        }
        Some(out.0)
    }
}

/// The answer that says only `code`, also to a query that cannot be read.
pub fn failure(query: &Query<'_>, code: Code) -> Vec<u8> {
    let mut out = Writer::reply(query, code, false);
    let mut additionals = 0;
    if let Some(edns) = query.edns {
        out.opt(UDP_MAX, edns.dnssec_ok);
        additionals = 1;
    }
    out.counts(0, 0, additionals);
    out.0
}

/// Whether `reply` answers `query`, apart from its id: it is a response, and repeats the question, if any.
pub fn answers(reply: &[u8], query: &[u8]) -> bool {
    let Some(head) = reply.first_chunk::<HEADER>() else { return false };
    if head[2] & flag::RESPONSE == 0 {
        return false;
    }
    let asked = query.get(4..6) == Some(&[0, 1]);
    match (asked.then(|| question_end(query)).flatten(), (head[4], head[5])) {
        // A server that cannot read a query need not repeat it; what this side cannot read it cannot compare.
        (_, (0, 0)) | (None, _) => true,
        (Some(end), _) => {
            let (there, here) = (reply.get(HEADER..end), query.get(HEADER..end));
            matches!((there, here), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b))
        }
    }
}

/// Where the one question ends; none when it does not, or is compressed, which no query is.
pub(super) fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *bytes.get(at)? {
            0 => break,
            length @ 1..=LABEL_MAX => at += 1 + usize::from(length),
            _ => return None,
        }
        if at - HEADER >= NAME_MAX {
            return None;
        }
    }
    let end = at + 5;
    (end <= bytes.len()).then_some(end)
}

/// A name that has been found whole, as text; none when a host cannot have it.
fn host_name(mut wire: &[u8]) -> Option<String> {
    let mut name = String::with_capacity(wire.len());
    while let Some((&length, rest)) = wire.split_first() {
        if length == 0 {
            break;
        }
        let (label, rest) = rest.split_at_checked(length.into())?;
        if !name.is_empty() {
            name.push('.');
        }
        for &byte in label {
            if !(byte.is_ascii_alphanumeric() || b"-_*".contains(&byte)) {
                return None;
            }
            name.push(char::from(byte.to_ascii_lowercase()));
        }
        wire = rest;
    }
    (!name.is_empty()).then_some(name)
}

/// Reads the one additional record, which must be OPT of version 0 and the message's end.
fn opt(record: &[u8]) -> Option<Edns> {
    // root, type, payload, extended code, version, flags, length
    let head: &[u8; OPT_LENGTH] = record.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([head[9], head[10]]));
    let is_opt = head[0] == 0 && u16::from_be_bytes([head[1], head[2]]) == TYPE_OPT && head[6] == 0;
    (is_opt && record.len() == OPT_LENGTH + length).then(|| Edns {
        payload: u16::from_be_bytes([head[3], head[4]]),
        dnssec_ok: head[7] & DNSSEC_OK != 0,
    })
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

/// An OPT record without options.
const OPT_LENGTH: usize = 11;
/// Owner (a pointer), type, class, TTL and length.
const RECORD_HEAD: usize = 12;

pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    /// The head, and the question as it was asked.
    fn reply(query: &Query<'_>, code: Code, authoritative: bool) -> Self {
        let head = query.bytes.first_chunk::<HEADER>().copied().unwrap_or_default();
        let mut out = vec![0; HEADER];
        let kept = head[2] & (flag::OPCODE | flag::RECURSION_DESIRED);
        let own = flag::RESPONSE | if authoritative { flag::AUTHORITATIVE } else { 0 };
        let code = flag::RECURSION_AVAILABLE | head[3] & flag::CHECKING_DISABLED | code as u8;
        out.splice(..4, [head[0], head[1], kept | own, code]);
        if let Some(question) = query.end.and_then(|end| query.bytes.get(HEADER..end)) {
            out.splice(4..6, [0, 1]);
            out.extend(question);
        }
        Self(out)
    }

    fn set(&mut self, at: usize, bits: u8) {
        if let Some(byte) = self.0.get_mut(at) {
            *byte |= bits;
        }
    }

    fn counts(&mut self, answers: u16, authorities: u16, additionals: u16) {
        let counts = [answers, authorities, additionals].map(u16::to_be_bytes);
        self.0.splice(6..HEADER, counts.as_flattened().iter().copied());
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_be_bytes());
    }

    /// All of a record but its data, and its owner a pointer.
    fn record(&mut self, owner: u16, kind: u16, ttl: u32) {
        self.u16(owner);
        self.u16(kind);
        self.u16(CLASS_IN);
        self.u32(ttl);
    }

    /// Data with its length before it.
    fn sized(&mut self, write: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        let at = self.0.len();
        self.u16(0);
        write(self)?;
        let length = u16::try_from(self.0.len() - at - 2).ok()?;
        self.0.splice(at..at + 2, length.to_be_bytes());
        Some(())
    }

    fn address(&mut self, owner: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                self.record(owner, TYPE_A, TTL);
                self.u16(4);
                self.0.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                self.record(owner, TYPE_AAAA, TTL);
                self.u16(16);
                self.0.extend(ip.octets());
            }
        }
    }

    pub(super) fn name(&mut self, name: &str) -> Option<()> {
        let start = self.0.len();
        for label in name.split('.') {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..=LABEL_MAX).contains(length))?;
            self.0.push(length);
            self.0.extend(label.as_bytes());
        }
        self.0.push(0);
        (self.0.len() - start <= NAME_MAX).then_some(())
    }

    fn start_of_authority(&mut self, zone: &str, serial: u32) -> Option<()> {
        self.name(zone)?;
        self.u16(TYPE_SOA);
        self.u16(CLASS_IN);
        self.u32(TTL_NONE);
        self.sized(|out| {
            // Who answers, and whom to write to; nobody reads either.
            out.name(zone)?;
            out.name(zone)?;
            out.u32(serial);
            // Refresh, retry, expire: for secondary servers. Minimum: for how long there is nothing.
            [7200, 1800, 86_400, TTL_NONE].into_iter().for_each(|seconds| out.u32(seconds));
            Some(())
        })
    }

    pub(super) fn opt(&mut self, payload: u16, dnssec_ok: bool) {
        self.0.push(0);
        self.u16(TYPE_OPT);
        self.u16(payload);
        self.0.extend([0, 0, if dnssec_ok { DNSSEC_OK } else { 0 }, 0]);
        self.u16(0);
    }
}

#[cfg(test)]
mod tests;
