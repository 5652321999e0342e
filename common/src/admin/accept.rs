//! What a client accepts: weighted lists of names (RFC 9110 §12).

use http::HeaderMap;
use http::header::HeaderName;

/// One element of a list: its name in lower case, its weight in thousandths, its other parameters.
struct Element {
    name: String,
    weight: u16,
    parameters: Vec<(String, String)>,
}

fn elements(headers: &HeaderMap, header: &HeaderName) -> Vec<Element> {
    let values = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
    let parts = values.flat_map(|value| value.split(',')).filter(|part| !part.trim().is_empty());
    let element = |part: &str| {
        let mut fields = part.split(';').map(str::trim);
        let name = fields.next().unwrap_or_default().to_ascii_lowercase();
        let (mut weight, mut parameters) = (1000, Vec::new());
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"'));
            if key == "q" {
                weight = thousandths(value);
            } else {
                parameters.push((key, value.to_owned()));
            }
        }
        Element { name, weight, parameters }
    };
    parts.map(element).collect()
}

/// A weight that cannot be read is none: what is asked for in a way that nobody understands is not wanted.
fn thousandths(text: &str) -> u16 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    match (whole, digits) {
        ("0", true) => format!("{part:0<3}").parse().unwrap_or(0),
        ("1", true) if part.bytes().all(|b| b == b'0') => 1000,
        _ => 0,
    }
}

/// Whether OpenMetrics is asked for, and not less than the Prometheus text format.
pub(super) fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let all = elements(headers, &http::header::ACCEPT);
    let version = |e: &&Element| {
        let versions = e.parameters.iter().filter(|(key, _)| key == "version");
        versions.into_iter().all(|(_, version)| matches!(version.as_str(), "1.0.0" | "0.0.1"))
    };
    let weight = |name: &str| all.iter().filter(|e| e.name == name).filter(version).map(|e| e.weight).max();
    let weight_of_text = || {
        let text = all.iter().filter(|e| e.name == "text/plain").map(|e| e.weight).max();
        text.or_else(|| weight("text/*")).or_else(|| weight("*/*")).unwrap_or(0)
    };
    weight("application/openmetrics-text").is_some_and(|open| open > 0 && open >= weight_of_text())
}

/// Whether the answer may be compressed with gzip.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let all = elements(headers, &http::header::ACCEPT_ENCODING);
    let weight = |name: &str| all.iter().find(|e| e.name == name).map(|e| e.weight);
    let gzip = weight("gzip").or_else(|| weight("x-gzip")).or_else(|| weight("*")).unwrap_or(0);
    gzip > 0 && gzip >= weight("identity").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn with(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn openmetrics_is_a_matter_of_weights() {
        let openmetrics = "application/openmetrics-text";
        for (accept, wanted) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["text/plain"], false),
            (&[openmetrics], true),
            (&["text/html, Application/OpenMetrics-Text;version=1.0.0;q=0.5"], true),
            (&["application/openmetrics-text; q=0"], false),
            (&["application/openmetrics-text;q=0.0, text/plain;q=0.1"], false),
            (&["application/openmetrics-text;q=0.5,text/plain;q=0.6"], false),
            (&["application/openmetrics-text;q=0.6,text/plain;q=0.5"], true),
            (&["application/openmetrics-text;q=0.5,*/*"], false),
            (&["application/openmetrics-text;q=0.5,*/*;q=0.1"], true),
            (&["application/openmetrics-text;version=2.0.0"], false),
            (&["application/openmetrics-text;version=\"1.0.0\"; charset=utf-8"], true),
            (&["application/openmetrics-text;q=high"], false),
            (&["text/plain;q=0.3", openmetrics], true),
            // What Prometheus sends.
            (
                &["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                   application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,*/*;q=0.1"],
                true,
            ),
        ] {
            assert_eq!(wants_openmetrics(&with(http::header::ACCEPT, accept)), wanted, "{accept:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read(text in "[ -~]{0,60}") {
            let value = HeaderValue::from_str(&text).unwrap();
            for name in [http::header::ACCEPT, http::header::ACCEPT_ENCODING] {
                let headers: HeaderMap = [(name, value.clone())].into_iter().collect();
                let _any = (wants_openmetrics(&headers), takes_gzip(&headers));
            }
            prop_assert!(thousandths(&text) <= 1000);
        }
    }

    #[test]
    fn gzip_is_a_matter_of_weights() {
        for (accept, taken) in [
            (&[][..], false),
            (&["identity"], false),
            (&["gzip"], true),
            (&["GZIP;q=0.001"], true),
            (&["gzip;q=0"], false),
            (&["gzip;q=0.000, *"], false),
            (&["*"], true),
            (&["br, *;q=0"], false),
            (&["br", "deflate, gzip;q=0.8"], true),
            (&["identity, gzip;q=0.5"], false),
            (&["gzip;q=1.5"], false),
        ] {
            assert_eq!(takes_gzip(&with(http::header::ACCEPT_ENCODING, accept)), taken, "{accept:?}");
        }
    }
}
