//! `:authority` of a CONNECT, and the identity in a certificate: what is accepted prints as what is accepted again.
#![no_main]

use culvert_common::types::{Authority, SpiffeId};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(authority) = text.parse::<Authority>() {
        assert_eq!(authority.to_string().parse(), Ok(authority));
    }
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
    }
});
