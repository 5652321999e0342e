//! The other side: a question of the agent's own, and the addresses in its answer.

use std::net::IpAddr;

use super::message::{CLASS_IN, Family, HEADER, TYPE_A, TYPE_AAAA, Writer, flag, question_end, u16_at};

/// Addresses of one answer that are read.
const ADDRESSES_MAX: usize = 64;
/// What the agent takes by UDP.
const PAYLOAD: u16 = 1232;

/// What a name server says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// None where it has none of this kind, or does not exist.
    pub addresses: Vec<IpAddr>,
    /// Seconds for which that may be kept; none where it is not said.
    pub ttl: Option<u32>,
    /// There is more than fits: ask by TCP.
    pub is_cut: bool,
}

/// A question for the addresses of `host`; none when that is no name.
pub fn ask(id: u16, host: &str, family: Family) -> Option<Vec<u8>> {
    let mut out = Writer(id.to_be_bytes().to_vec());
    out.0.extend([flag::RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    out.name(host.strip_suffix('.').unwrap_or(host))?;
    out.u16(match family {
        Family::V4 => TYPE_A,
        Family::V6 => TYPE_AAAA,
    });
    out.u16(CLASS_IN);
    out.opt(PAYLOAD, false);
    Some(out.0)
}

/// The addresses of `family` in an answer; none when it fails (as SERVFAIL does) or cannot be read.
///
/// A chain of aliases is the name server's business, and so are the names of the records.
pub fn told(reply: &[u8], family: Family) -> Option<Told> {
    let head: &[u8; HEADER] = reply.first_chunk()?;
    // No error, or no such name.
    if !matches!(head[3] & 0x0f, 0 | 3) || u16_at(reply, 4) != Some(1) {
        return None;
    }
    let mut told = Told { addresses: Vec::new(), ttl: None, is_cut: head[2] & flag::TRUNCATED != 0 };
    let mut at = question_end(reply)?;
    for _ in 0..u16_at(reply, 6)? {
        let record = match record(reply, at) {
            Some(record) => record,
            None if told.is_cut => break,
            None => return None,
        };
        at = record.end;
        told.ttl = Some(told.ttl.unwrap_or(u32::MAX).min(record.ttl));
        let ip = match (record.kind, family) {
            (TYPE_A, Family::V4) => record.data.try_into().ok().map(|ip: [u8; 4]| IpAddr::from(ip)),
            (TYPE_AAAA, Family::V6) => record.data.try_into().ok().map(|ip: [u8; 16]| IpAddr::from(ip)),
            _ => None,
        };
        told.addresses.extend(ip.filter(|_| told.addresses.len() < ADDRESSES_MAX));
    }
    Some(told)
}

struct Record<'a> {
    kind: u16,
    ttl: u32,
    data: &'a [u8],
    end: usize,
}

fn record(bytes: &[u8], at: usize) -> Option<Record<'_>> {
    let at = name_end(bytes, at)?;
    let ttl = bytes.get(at + 4..)?.first_chunk().copied().map(u32::from_be_bytes)?;
    let start = at + 10;
    let end = start + usize::from(u16_at(bytes, at + 8)?);
    Some(Record { kind: u16_at(bytes, at)?, ttl, data: bytes.get(start..end)?, end })
}

/// Where a name ends that may be compressed; where it points is not looked at.
fn name_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::{Answer, READ_MAX, read};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_asked_and_answered_is_read() {
        for (family, ips) in [(Family::V4, ["10.0.0.1", "10.0.0.2"]), (Family::V6, ["fd00::1", "fd00::2"])] {
            let bytes = ask(7, "WWW.example.org.", family).unwrap();
            let query = read(&bytes).unwrap();
            let question = query.question().unwrap();
            assert_eq!((&*question.name, question.family, query.id()), ("www.example.org", family, 7));
            let addresses = ips.map(ip).to_vec();
            let mut answer =
                Answer { alias: Some("a.example.org".into()), addresses, zone: "z".into(), serial: 1 };
            let reply = query.answered(&answer, READ_MAX).unwrap();
            let want = Told { addresses: answer.addresses.clone(), ttl: Some(30), is_cut: false };
            assert_eq!(told(&reply, family), Some(want));
            answer = Answer { alias: None, addresses: Vec::new(), ..answer };
            let reply = query.answered(&answer, READ_MAX).unwrap();
            let none = Told { addresses: Vec::new(), ttl: None, is_cut: false };
            assert_eq!(told(&reply, family), Some(none.clone()));
            let mut failed = reply.clone();
            failed[3] |= 2;
            assert_eq!(told(&failed, family), None, "SERVFAIL");
            failed[3] |= 1;
            assert_eq!(told(&failed, family), Some(none), "NXDOMAIN");
        }
        for bad in ["", "a..b", ".", &"a".repeat(64), &["a"; 128].join(".")] {
            assert_eq!(ask(1, bad, Family::V4), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_cut_off_says_so() {
        let bytes = ask(7, "a", Family::V4).unwrap();
        let addresses = (0..200).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let answer = Answer { addresses, ..Answer::default() };
        let query = read(&bytes).unwrap();
        let cut = told(&query.answered(&answer, 512).unwrap(), Family::V4).unwrap();
        assert!(cut.is_cut && cut.addresses.len() < 64);
        let whole = told(&query.answered(&answer, READ_MAX).unwrap(), Family::V4).unwrap();
        assert_eq!((whole.is_cut, whole.addresses.len()), (false, ADDRESSES_MAX));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), whole: bool) {
            if whole && bytes.len() > 12 {
                // One question for the root, so that records are reached.
                bytes[3] = 0;
                bytes.splice(4..6, [0, 1]);
                bytes.splice(12..12, [0, 0, 1, 0, 1]);
            }
            for family in [Family::V4, Family::V6] {
                if let Some(told) = told(&bytes, family) {
                    prop_assert!(told.addresses.iter().all(|ip| family.has(*ip)));
                }
            }
        }
    }
}
