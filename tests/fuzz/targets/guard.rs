//! A peer's frames before the HTTP/2 codec sees them.
#![no_main]

#[path = "../laws/guard.rs"]
mod guard;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guard::frames(bytes));
