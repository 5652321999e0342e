//! The head of an answer.
#![no_main]

#[path = "../laws/heads.rs"]
mod heads;
#[path = "../laws/response_head.rs"]
mod response_head;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| response_head::response(bytes));
