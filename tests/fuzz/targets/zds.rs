//! What the other end of a ZDS connection sends; the first byte chooses how many descriptors come along.
#![no_main]

use std::fs::File;

use culvert_common::zds::{decode_ack, decode_hello, decode_request};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (count, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let fds = (0..count % 3).filter_map(|_| File::open("/dev/null").ok()).map(Into::into).collect();
    let _request = decode_request(bytes, fds);
    let _others = (decode_hello(bytes), decode_ack(bytes));
});
