use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

/// A query as a resolver writes it.
fn query(name: &str, kind: u16, payload: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(payload.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    if let Some(payload) = payload {
        bytes.extend([0, 0, 41]);
        bytes.extend(payload.to_be_bytes());
        bytes.extend([0, 0, 0x80, 0, 0, 0]);
    }
    bytes
}

/// A name in a reply, pointers followed, and where it ends.
fn name_at(bytes: &[u8], mut at: usize) -> (String, usize) {
    let (mut name, mut end) = (Vec::new(), None);
    loop {
        let length = bytes[at];
        if length & 0xc0 == 0xc0 {
            end.get_or_insert(at + 2);
            at = usize::from(u16_at(bytes, at).unwrap() & 0x3fff);
        } else if length == 0 {
            return (name.join("."), end.unwrap_or(at + 1));
        } else {
            let label = &bytes[at + 1..at + 1 + usize::from(length)];
            name.push(String::from_utf8(label.to_vec()).unwrap());
            at += 1 + usize::from(length);
        }
    }
}

/// All records of a reply: owner, type, TTL, data.
fn records(bytes: &[u8]) -> Vec<(String, u16, u32, Vec<u8>)> {
    let mut at = question_end(bytes).unwrap();
    let count: u16 = [6, 8, 10].iter().map(|at| u16_at(bytes, *at).unwrap()).sum();
    let mut found = Vec::new();
    for _ in 0..count {
        let (owner, next) = name_at(bytes, at);
        let ttl =
            u32::from(u16_at(bytes, next + 4).unwrap()) << 16 | u32::from(u16_at(bytes, next + 6).unwrap());
        let length = usize::from(u16_at(bytes, next + 8).unwrap());
        found.push((owner, u16_at(bytes, next).unwrap(), ttl, bytes[next + 10..next + 10 + length].to_vec()));
        at = next + 10 + length;
    }
    assert_eq!(at, bytes.len(), "nothing behind the records");
    found
}

fn v4(count: u8) -> Vec<IpAddr> {
    (0..count).map(|last| Ipv4Addr::new(10, 0, 0, last).into()).collect()
}

fn say(addresses: Vec<IpAddr>) -> Answer {
    Answer { addresses, zone: "cluster.local".into(), serial: 7, ..Answer::default() }
}

#[test]
fn a_plain_question_is_read_in_lower_case() {
    let bytes = query("Web.Shop.SVC.cluster.local", 1, None);
    let read = read(&bytes).unwrap();
    assert_eq!(
        read.question(),
        Some(Question { name: "web.shop.svc.cluster.local".into(), family: Family::V4 })
    );
    assert_eq!((read.id(), read.kind(), read.udp_limit()), (0x1234, "A", 512));
    let bytes = query("a.b", 28, Some(1232));
    let read = super::read(&bytes).unwrap();
    assert_eq!(read.question().unwrap().family, Family::V6);
    assert_eq!((read.kind(), read.udp_limit()), ("AAAA", 1232));
}

#[test]
fn what_is_not_plain_is_not_read_as_a_question() {
    let change = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = query("a.b", 1, Some(1232));
        change(&mut bytes);
        read(&bytes).map(|query| query.question())
    };
    assert!(change(&|_| {}).unwrap().is_some());
    for (what, then) in [
        ("update", &(|b: &mut Vec<u8>| b[2] |= 5 << 3) as &dyn Fn(&mut Vec<u8>)),
        ("cut off", &|b| b[2] |= 2),
        ("two questions", &|b| b[5] = 2),
        ("no question", &|b| b[5] = 0),
        ("an answer", &|b| b[7] = 1),
        ("an authority", &|b| b[9] = 1),
        ("two additional records", &|b| b[11] = 2),
        ("a record that is missing", &|b| b.truncate(b.len() - 4)),
        ("something behind the end", &|b| b.push(0)),
        ("EDNS 1", &|b| *b.iter_mut().nth_back(4).unwrap() = 1),
        ("a signature in place of OPT", &|b| *b.iter_mut().nth_back(8).unwrap() = 250),
        ("a compressed name", &|b| b[12] = 0xc0),
        ("a letter no host has", &|b| b[13] = b' '),
        ("a dot within a label", &|b| b[13] = b'.'),
        ("another class", &|b| b[20] = 3),
        ("another type", &|b| b[18] = 33),
    ] {
        assert_eq!(change(then), Some(None), "{what}");
    }
    assert_eq!(change(&|b| b[2] |= 0x80), None, "a response");
    assert_eq!(change(&|b| b.truncate(11)), None, "less than a head");
    assert!(read(&query("", 1, None)).unwrap().question().is_none(), "the root");
}

#[test]
fn addresses_are_said_under_the_asked_name() {
    let bytes = query("WeB.shop", 1, None);
    let reply = read(&bytes).unwrap().answered(&say(v4(2)), 512).unwrap();
    assert_eq!(reply[..4], [0x12, 0x34, 0x85, 0x80]);
    let want = |last| ("WeB.shop".to_owned(), TYPE_A, TTL, vec![10, 0, 0, last]);
    assert_eq!(records(&reply), [want(0), want(1)]);
    assert!(answers(&reply, &bytes));
    let v6: Ipv6Addr = "fd00::1".parse().unwrap();
    let reply = read(&query("a", 28, None)).unwrap().answered(&say(vec![v6.into()]), 512).unwrap();
    assert_eq!(records(&reply), [("a".to_owned(), TYPE_AAAA, TTL, v6.octets().to_vec())]);
}

#[test]
fn an_alias_has_the_addresses() {
    let bytes = query("example.com.ns.svc.cluster.local", 1, Some(1232));
    let answer = Answer { alias: Some("example.com".into()), ..say(v4(1)) };
    let reply = read(&bytes).unwrap().answered(&answer, 1232).unwrap();
    let found = records(&reply);
    assert_eq!((&*found[0].0, found[0].1), ("example.com.ns.svc.cluster.local", TYPE_CNAME));
    let target = reply.windows(found[0].3.len()).position(|part| part == found[0].3).unwrap();
    assert_eq!(name_at(&reply, target).0, "example.com");
    assert_eq!((&*found[1].0, found[1].1), ("example.com", TYPE_A));
    // EDNS is answered with the same bit for DNSSEC.
    assert_eq!((found[2].1, found[2].2), (TYPE_OPT, 0x8000));
}

#[test]
fn nothing_is_said_with_a_start_of_authority() {
    let bytes = query("web.shop.svc.cluster.local", 28, None);
    let reply = read(&bytes).unwrap().answered(&say(Vec::new()), 512).unwrap();
    assert_eq!(reply[3] & 0x0f, 0, "no error");
    let found = records(&reply);
    assert_eq!((&*found[0].0, found[0].1, found[0].2), ("cluster.local", TYPE_SOA, TTL_NONE));
    assert_eq!(found[0].3[found[0].3.len() - 20..][..4], [0, 0, 0, 7]);
    assert_eq!(found[0].3[found[0].3.len() - 4..], TTL_NONE.to_be_bytes());
}

#[test]
fn what_does_not_fit_is_cut_off_and_said_to_be() {
    for payload in [None, Some(100), Some(1232), Some(65_000)] {
        let bytes = query("web.shop", 1, payload);
        let read = read(&bytes).unwrap();
        let limit = read.udp_limit();
        assert!((512..=4096).contains(&limit));
        let reply = read.answered(&say(v4(250)), limit).unwrap();
        let fits = limit >= 4096;
        assert_eq!((reply[2] & 2 == 0, reply.len() <= limit), (fits, true), "{payload:?}");
        let opt = usize::from(payload.is_some());
        let count = records(&reply).len() - opt;
        assert!(if fits { count == 250 } else { count > 20 && count < 250 }, "{payload:?}: {count}");
        // By TCP there is room.
        let whole = read.answered(&say(v4(250)), READ_MAX).unwrap();
        assert_eq!((whole[2] & 2, records(&whole).len()), (0, 250 + opt));
    }
}

#[test]
fn a_failure_repeats_the_question() {
    let bytes = query("web.shop", 33, Some(1232));
    let reply = failure(&read(&bytes).unwrap(), Code::ServFail);
    assert_eq!(reply[..4], [0x12, 0x34, 0x81, 0x82]);
    assert!(answers(&reply, &bytes));
    assert_eq!(records(&reply).len(), 1);
    // A head alone has something to answer with too.
    let head = [0, 1, 1, 0, 0, 7, 0, 0, 0, 0, 0, 0];
    assert_eq!(failure(&read(&head).unwrap(), Code::ServFail), [0, 1, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_reply_is_one_to_the_query() {
    let asked = query("web.shop", 33, None);
    let reply = |name: &str, kind| {
        let mut bytes = query(name, kind, None);
        bytes[2] |= 0x80;
        bytes
    };
    assert!(answers(&reply("web.shop", 33), &asked));
    assert!(answers(&reply("WEB.shop", 33), &asked));
    assert!(!answers(&reply("web.shop", 1), &asked));
    assert!(!answers(&reply("wab.shop", 33), &asked));
    assert!(!answers(&reply("web", 33), &asked));
    assert!(!answers(&asked, &asked), "a query");
    assert!(!answers(&reply("web.shop", 33)[..11], &asked));
    // A server that cannot read the query.
    assert!(answers(&[0x12, 0x34, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0], &asked));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), limit in 0..700_usize) {
        if let Some(query) = read(&bytes) {
            query.question();
            query.kind();
            prop_assert!(failure(&query, Code::ServFail).len() <= bytes.len() + OPT_LENGTH);
            if let Some(reply) = query.answered(&say(v4(40)), limit) {
                prop_assert!(reply.len() <= limit.max(bytes.len() + OPT_LENGTH));
            }
        }
        answers(&bytes, &query("a.b", 1, None));
        answers(&query("a.b", 1, None), &bytes);
    }

    #[test]
    fn a_question_comes_back_as_it_was_written(
        labels in prop::collection::vec("[a-z0-9_-]{1,20}", 1..10), v6: bool, payload in prop::option::of(any::<u16>())
    ) {
        let name = labels.join(".");
        let bytes = query(&name, if v6 { 28 } else { 1 }, payload);
        let read = read(&bytes).unwrap();
        let found = read.question().unwrap();
        prop_assert_eq!(&found.name, &name);
        prop_assert_eq!(found.family == Family::V6, v6);
        let reply = read.answered(&say(v4(3)), READ_MAX).unwrap();
        prop_assert!(answers(&reply, &bytes));
        prop_assert_eq!(records(&reply).len(), 3 + usize::from(payload.is_some()));
    }
}
