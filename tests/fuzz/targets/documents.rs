//! Configuration files: anything is translated or refused with a reason.
#![no_main]

use culvert_common::model::l7::GatewayKey;
use culvert_common::source::kube::{Document, Settings, translate, translate_waypoint};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let document = Document { file: "fuzz.yaml", text };
    if let Err(problems) = translate(&[document], &Settings::default()) {
        assert!(!problems.is_empty());
    }
    let gateway = GatewayKey { namespace: "default".into(), name: "waypoint".into() };
    if let Err(problems) = translate_waypoint(&[document], &Settings::default(), &gateway) {
        assert!(!problems.is_empty());
    }
});
