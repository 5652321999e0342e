//! A file of revocation lists.
#![no_main]

#[path = "../laws/identity.rs"]
#[allow(dead_code, reason = "the other law is another target's")]
mod identity;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| identity::lists(bytes));
