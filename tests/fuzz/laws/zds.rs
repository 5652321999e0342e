//! What holds for any bytes from the other end of a ZDS connection.

use std::fs::File;
use std::os::fd::OwnedFd;

use culvert_common::zds::{PACKET_MAX, Request, decode_ack, decode_hello, decode_request};

/// The first byte chooses how many descriptors come along; what is taken has what its kind must have.
pub(crate) fn messages(bytes: &[u8]) {
    let (count, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let count = usize::from(count % 3);
    let fds: Vec<OwnedFd> =
        (0..count).map(|_| File::open("/dev/null").expect("a descriptor").into()).collect();
    if let Ok(request) = decode_request(bytes, fds) {
        let is_add = matches!(&request, Request::Add { uid, info, .. }
            if ![uid, &info.name, &info.namespace].iter().any(|text| text.is_empty()));
        assert_eq!(count, usize::from(is_add), "{request:?}");
        assert!(
            is_add || !matches!(request, Request::Add { .. }),
            "an add that does not say who: {request:?}"
        );
    }
    let _version = decode_hello(bytes);
    if let Ok(Err(text)) = decode_ack(bytes) {
        assert!(
            !text.is_empty() && text.len() <= bytes.len().min(PACKET_MAX),
            "a refusal from nowhere: {text}"
        );
    }
}
