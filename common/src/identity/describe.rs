//! What of a certificate may be shown to people: all of it is public, the key is not here.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate as admin pages show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The whole certificate in DER.
    pub der: Vec<u8>,
    /// Serial number, decimal.
    pub serial: String,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

/// `None` if it does not parse.
pub(super) fn describe(der: &CertificateDer<'_>) -> Option<Described> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let time = |t: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(t.timestamp()).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let validity = certificate.validity();
    Some(Described {
        der: der.to_vec(),
        serial: certificate.tbs_certificate.serial.to_string(),
        not_before: time(validity.not_before),
        not_after: time(validity.not_after),
    })
}
