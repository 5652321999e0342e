//! What a discovery server sends: the response, its resources, and what becomes of them.
#![no_main]

#[path = "../laws/discovery.rs"]
mod discovery;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| discovery::responses(bytes));
