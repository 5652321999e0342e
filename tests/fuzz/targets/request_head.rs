//! The head of a request.
#![no_main]

#[path = "../laws/heads.rs"]
mod heads;
#[path = "../laws/request_head.rs"]
mod request_head;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| request_head::request(bytes));
