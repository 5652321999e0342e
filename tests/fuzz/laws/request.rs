//! What holds for any bytes of a request's target, host and header.

use culvert_common::l7::{AboveRoot, Switch, check_value, clean_request, normalize};
use culvert_common::model::l7::Normalization;
use http::{HeaderMap, HeaderValue};

/// Lines: target, value of a header.
pub(crate) fn head(bytes: &[u8]) {
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let (target, value) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let all = [
        Normalization::None,
        Normalization::Base,
        Normalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes,
    ];
    for how in all {
        let Ok(plain) = normalize(target, how, AboveRoot::Dropped) else { continue };
        assert!(plain.starts_with('/') && plain.is_ascii(), "{plain}");
        let again = normalize(plain.as_bytes(), how, AboveRoot::Refused).expect("what is plain stays plain");
        assert_eq!(again, plain, "{how:?}");
        let path = plain.split('?').next().unwrap_or_default();
        if how != Normalization::None {
            assert!(!path.split('/').any(|segment| matches!(segment, "." | "..")), "{path}");
            assert!(!path.contains('\\') && !path.contains("%2e") && !path.contains("%00"), "{path}");
        }
    }
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    // Whatever it says, it says it without a panic.
    drop(check_value(&value));
    let mut headers = HeaderMap::new();
    for name in ["connection", "te", "referer", "keep-alive"] {
        headers.insert(http::HeaderName::from_static(name), value.clone());
    }
    if clean_request(&mut headers, Switch::No).is_ok() {
        assert!(!headers.contains_key("connection") && !headers.contains_key("keep-alive"));
        assert!(headers.get("te").is_none_or(|te| te == "trailers"));
    }
}
