use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use proptest::prelude::*;

use super::messages::{encode_ack, encode_hello, encode_request};
use super::*;
use crate::net::netns::NetNs;
use crate::net::seqpacket::SeqPacket;

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn info() -> WorkloadInfo {
    WorkloadInfo { name: "cart-0".into(), namespace: "shop".into(), service_account: "cart".into() }
}

fn add(uid: &str) -> Request {
    Request::Add { uid: uid.into(), info: info(), netns: null() }
}

/// A request as text, for comparisons.
fn words(request: &Request) -> String {
    match request {
        Request::Add { uid, info, .. } => format!("add {uid} {info:?}"),
        Request::Keep { uid } => format!("keep {uid}"),
        Request::Del { uid, grace } => format!("del {uid} {grace:?}"),
        Request::SnapshotSent => "snapshot sent".into(),
    }
}

/// Source: field numbers and literal bytes of `istio.workload.zds`.
#[test]
fn the_bytes_are_the_references() {
    assert_eq!(encode_hello(), [0x08, 0x01]);
    assert_eq!(encode_ack(&Ok(())), [0x0a, 0x00]);
    assert_eq!(encode_ack(&Err("no".into())), *b"\x0a\x04\x0a\x02no");
    assert_eq!(encode_request(&Request::SnapshotSent).unwrap(), [0x1a, 0x00]);
    assert_eq!(encode_request(&Request::Keep { uid: "u".into() }).unwrap(), *b"\x2a\x03\x0a\x01u");
    let del = |grace| encode_request(&Request::Del { uid: "u".into(), grace }).unwrap();
    assert_eq!(del(None), *b"\x12\x03\x12\x01u");
    // Field 1000 is ours; who does not know it skips it.
    assert_eq!(del(Some(Duration::from_secs(5))), *b"\x12\x06\x12\x01u\xc0\x3e\x05");
    let bytes = encode_request(&add("u")).unwrap();
    assert_eq!(bytes, *b"\x0a\x19\x0a\x01u\x12\x14\x0a\x06cart-0\x12\x04shop\x1a\x04cart");
}

#[test]
fn requests_come_back_as_they_were() {
    let del = |grace| Request::Del { uid: "v".into(), grace };
    let graces = [None, Some(Duration::ZERO), Some(Duration::from_secs(25))];
    let keep = Request::Keep { uid: "u".into() };
    for request in [add("u"), keep, Request::SnapshotSent].into_iter().chain(graces.map(del)) {
        let bytes = encode_request(&request).unwrap();
        let fds = if matches!(request, Request::Add { .. }) { vec![null()] } else { Vec::new() };
        assert_eq!(words(&decode_request(&bytes, fds).unwrap()), words(&request));
    }
}

#[test]
fn fields_added_later_are_ignored() {
    // workload_info.trust_domain (4, reserved) and a field 9 of the add.
    let bytes = *b"\x0a\x19\x0a\x01u\x12\x0e\x0a\x01n\x12\x02ns\x22\x05other\x4a\x04more";
    let request = decode_request(&bytes, vec![null()]).unwrap();
    assert_eq!(
        words(&request),
        words(&Request::Add {
            uid: "u".into(),
            info: WorkloadInfo { name: "n".into(), namespace: "ns".into(), service_account: String::new() },
            netns: null()
        })
    );
}

#[test]
fn what_is_wrong_is_told_apart() {
    let of = |bytes: &[u8], fds: usize| {
        let error = decode_request(bytes, std::iter::repeat_with(null).take(fds).collect()).unwrap_err();
        (error.is_refusal_only(), error.to_string())
    };
    let good = encode_request(&add("u")).unwrap();
    for (bytes, fds, refusal_only, part) in [
        (&good[..], 0, false, "0 descriptors where 1 belong"),
        (&good, 2, false, "2 descriptors where 1 belong"),
        (b"\x2a\x03\x0a\x01u", 1, false, "keep message came with 1 descriptors where 0 belong"),
        (b"\x12\x03\x12\x01u", 1, false, "del message came with 1"),
        (b"\x1a\x00", 1, false, "snapshot_sent message came with 1"),
        (b"", 0, false, "asks for nothing known"),
        (b"\x32\x00", 0, false, "asks for nothing known"),
        (b"\x0a\x19\x0a", 1, false, "does not parse as a request"),
        (b"\xff\xff\xff\xff", 0, false, "does not parse"),
        (b"\x0a\x03\x0a\x01\xff", 1, false, "does not parse"),
        (b"\x0a\x03\x0a\x01u", 1, true, "\"u\" does not say who it is"),
        (b"\x0a\x05\x0a\x01u\x12\x00", 1, true, "does not say its name"),
        (b"\x0a\x08\x0a\x01u\x12\x03\x0a\x01n", 1, true, "does not say its namespace"),
        (b"\x0a\x09\x12\x07\x0a\x01n\x12\x02ns", 1, true, "does not say its uid"),
    ] {
        let (is_refusal_only, text) = of(bytes, fds);
        assert!(is_refusal_only == refusal_only && text.contains(part), "{bytes:x?}: {text}");
    }
}

#[test]
fn hellos_and_acks_are_checked() {
    assert!(decode_hello(&[8, 1]).is_ok());
    for (bytes, part) in [(&[][..], "version 0"), (&[8, 2], "version 2"), (&[8], "does not parse")] {
        assert!(decode_hello(bytes).unwrap_err().to_string().contains(part), "{bytes:?}");
    }
    assert_eq!(decode_ack(&[10, 0]).unwrap(), Ok(()));
    assert_eq!(decode_ack(b"\x0a\x04\x0a\x02no").unwrap(), Err("no".into()));
    for bytes in [&[][..], &[18, 0], &[10, 9], &[10]] {
        assert!(decode_ack(bytes).is_err(), "{bytes:?}");
    }
}

/// The longest names that Kubernetes allows fit the reference's buffer; so does a refusal of any length.
#[test]
fn packets_fit_the_references_buffers() {
    let info =
        WorkloadInfo { name: "n".repeat(253), namespace: "s".repeat(63), service_account: "a".repeat(253) };
    let longest = Request::Add { uid: "u".repeat(128), info, netns: null() };
    assert!(encode_request(&longest).unwrap().len() <= REFERENCE_PACKET);
    let reason = encode_ack(&Err("ä".repeat(5000)));
    assert!(reason.len() <= REFERENCE_PACKET);
    assert!(decode_ack(&reason).unwrap().unwrap_err().starts_with("ää"));
    assert!(decode_ack(&encode_ack(&Err(String::new()))).unwrap().is_err(), "an empty reason is no success");
    let too_long = Request::Del { uid: "u".repeat(PACKET_MAX), grace: None };
    assert!(matches!(encode_request(&too_long), Err(ZdsError::TooLong { .. })));
}

#[tokio::test]
async fn a_conversation_over_a_socket() {
    let (agent, proxy) = SeqPacket::pair().unwrap();
    let (agent, proxy) = (Channel::new(agent), Channel::new(proxy));
    proxy.send_hello().await.unwrap();
    agent.recv_hello().await.unwrap();
    let here = NetNs::current().unwrap();
    let netns = here.as_fd().try_clone_to_owned().unwrap();
    agent.send_request(&Request::Add { uid: "u".into(), info: info(), netns }).await.unwrap();
    let Some(Request::Add { netns, .. }) = proxy.recv_request().await.unwrap() else { panic!("an add") };
    assert_eq!(NetNs::from_fd(netns).unwrap(), here);
    proxy.send_ack(&Err("not now".into())).await.unwrap();
    assert_eq!(agent.recv_ack().await.unwrap(), Err("not now".into()));
    drop(agent);
    assert!(proxy.recv_request().await.unwrap().is_none());
}

#[tokio::test]
async fn what_breaks_a_connection() {
    async fn answer(bytes: &[u8], fds: usize) -> (ZdsError, ZdsError, ZdsError) {
        let mut errors = Vec::new();
        for side in 0..3 {
            let (raw, end) = SeqPacket::pair().unwrap();
            let end = Channel::new(end);
            let file = null();
            raw.send(bytes, &vec![file.as_fd(); fds]).await.unwrap();
            errors.push(match side {
                0 => end.recv_request().await.map(drop).unwrap_err(),
                1 => end.recv_ack().await.map(drop).unwrap_err(),
                _ => end.recv_hello().await.unwrap_err(),
            });
        }
        let mut errors = errors.into_iter();
        (errors.next().unwrap(), errors.next().unwrap(), errors.next().unwrap())
    }
    let (request, ack, hello) = answer(&[0; PACKET_MAX + 1], 0).await;
    assert!([request, ack, hello].iter().all(|error| matches!(error, ZdsError::Truncated)));
    let (request, ack, hello) = answer(&[0xff; 20], 0).await;
    assert!([request, ack, hello].iter().all(|error| matches!(error, ZdsError::Malformed { .. })));
    let (_, ack, hello) = answer(&[10, 0], 1).await;
    assert!([ack, hello].iter().all(|error| matches!(error, ZdsError::Descriptors { found: 1, .. })));
    let (gone, end) = SeqPacket::pair().unwrap();
    drop(gone);
    assert!(matches!(Channel::new(end).recv_ack().await, Err(ZdsError::Ended)));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), fds in 0..3_usize) {
        let _request = decode_request(&bytes, std::iter::repeat_with(null).take(fds).collect());
        let (_hello, _ack) = (decode_hello(&bytes), decode_ack(&bytes));
    }

    /// What is taken can be said again, and means the same.
    #[test]
    fn what_is_taken_comes_back(at in 0..28_usize, to in any::<u8>(), cut in 0..28_usize) {
        let mut bytes = encode_request(&add("u")).unwrap();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()) / 2);
        if let Ok(request) = decode_request(&bytes, vec![null()]) {
            let again = decode_request(&encode_request(&request).unwrap(), vec![null()]).unwrap();
            prop_assert_eq!(words(&again), words(&request));
        }
    }
}
