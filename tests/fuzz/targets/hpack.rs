//! A peer's header blocks: our decoder, and the codec behind the filter, see the same fields.
#![no_main]

#[path = "../laws/guard.rs"]
mod guard;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guard::headers(bytes));
