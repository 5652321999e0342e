//! What a pod sends as a DNS query, and a name server as its answer.
#![no_main]

#[path = "../laws/dns.rs"]
mod dns;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dns::messages(bytes));
