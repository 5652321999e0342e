//! What a certificate authority answers.
#![no_main]

#[path = "../laws/ca_answer.rs"]
mod ca_answer;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ca_answer::answers(bytes));
