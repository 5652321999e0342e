//! What the kernel answers over netlink: frames, their attributes, and rules.
#![no_main]

#[path = "../laws/netlink.rs"]
mod netlink;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netlink::answers(bytes));
