//! A file of revocation lists.
#![no_main]

#[path = "../laws/crl.rs"]
mod crl;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| crl::lists(bytes));
