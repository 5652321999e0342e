//! A request's target and a header of it.
#![no_main]

#[path = "../laws/request.rs"]
mod request;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| request::head(bytes));
