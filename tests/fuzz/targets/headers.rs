//! Headers of a CONNECT.
#![no_main]

use culvert_common::hbone::headers::{Baggage, TraceParent, forwarded_host, known_class};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _baggage = Baggage::parse(text.lines());
    let _host = forwarded_host(text);
    let _class = known_class(text);
    if let Some(trace) = TraceParent::parse(text) {
        assert_eq!(trace.to_string(), text);
    }
});
