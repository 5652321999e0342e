//! What the other end of a ZDS connection sends; the first byte chooses how many descriptors come along.
#![no_main]

#[path = "../laws/zds.rs"]
mod zds;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| zds::messages(bytes));
