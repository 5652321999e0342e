//! A TLS client's first message.
#![no_main]

#[path = "../laws/client_hello.rs"]
mod client_hello;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client_hello::hello(bytes));
