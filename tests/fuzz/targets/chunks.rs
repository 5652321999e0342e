//! Chunks and trailers.
#![no_main]
#![allow(dead_code, reason = "each target uses one of the laws")]

#[path = "../laws/http1.rs"]
mod http1;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| http1::chunks(bytes));
