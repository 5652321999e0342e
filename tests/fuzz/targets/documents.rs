//! Configuration files: anything is translated or refused with a reason.
#![no_main]

use culvert_common::source::kube::{Document, Settings, translate};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let document = Document { file: "fuzz.yaml", text };
    if let Err(problems) = translate(&[document], &Settings::default()) {
        assert!(!problems.is_empty());
    }
});
