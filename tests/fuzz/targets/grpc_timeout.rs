//! A value of `grpc-timeout`.
#![no_main]

#[path = "../laws/grpc_timeout.rs"]
mod grpc_timeout;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| grpc_timeout::grpc_timeout(bytes));
