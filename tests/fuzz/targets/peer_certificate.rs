//! A peer's certificate, before anything in it is trusted.
#![no_main]

use culvert_common::identity::peer_certificate;
use rustls_pki_types::CertificateDer;

libfuzzer_sys::fuzz_target!(|der: &[u8]| {
    let _identity = peer_certificate(Some(&[CertificateDer::from(der)]));
});
