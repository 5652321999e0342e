//! Chunks and trailers.
#![no_main]

#[path = "../laws/chunks.rs"]
mod chunks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| chunks::chunks(bytes));
