//! What the kernel answers over netlink: frames and their attributes.
#![no_main]

use culvert_common::net::netlink::{attrs, find_attr, frames};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for frame in frames(bytes).take(1000) {
        if frame.is_err() {
            break;
        }
    }
    for attr in attrs(bytes).take(1000) {
        match attr {
            Ok(attr) => {
                let _as_number = (attr.u32(), attr.be32());
                let _as_text = attr.text();
            }
            Err(_) => break,
        }
    }
    let _found = find_attr(bytes, 1);
});
