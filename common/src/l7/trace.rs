//! Trace context of a request: which span it continues, and whether somebody has decided that it is recorded.
//!
//! **Source**: W3C Trace Context §3.2 (`traceparent`), which counts where both are there; B3 Propagation, single and multiple
//! headers. What is none of these is no context: nobody is refused for it.

use http::{HeaderMap, HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What a caller says of its trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace, and the caller's span in it.
    pub parent: Option<(u128, u64)>,
    /// Whether it is recorded; none: the caller leaves that to others.
    pub sampled: Option<bool>,
}

/// The context that these headers carry.
pub fn trace_context(headers: &HeaderMap) -> TraceContext {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    text(&TRACEPARENT).and_then(w3c).or_else(|| text(&B3).and_then(b3)).unwrap_or_else(|| several(text))
}

/// `<version>-<trace id>-<parent id>-<flags>`; what a later version adds stands behind.
fn w3c(text: &str) -> Option<TraceContext> {
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let (flags, more) = (parts.next()?, parts.next().is_some());
    let version_number = hex(version, &[2])?;
    // 255 is no version; the first has nothing behind its flags.
    if version_number == 0xff || (version_number == 0 && more) {
        return None;
    }
    let sampled = Some(hex(flags, &[2])? & 1 == 1);
    Some(TraceContext { parent: Some(ids(hex(trace, &[32])?, hex(span, &[16])?)?), sampled })
}

/// `<trace id>-<span id>[-<decision>[-<parent span id>]]`, or the decision alone.
fn b3(text: &str) -> Option<TraceContext> {
    let mut parts = text.split('-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        return Some(TraceContext { parent: None, sampled: Some(decision(first)?) });
    };
    let sampled = match parts.next() {
        Some(said) => Some(decision(said)?),
        None => None,
    };
    Some(TraceContext { parent: Some(ids(hex(first, &[16, 32])?, hex(span, &[16])?)?), sampled })
}

fn several<'h>(text: impl Fn(&HeaderName) -> Option<&'h str>) -> TraceContext {
    let trace = text(&B3_TRACE).and_then(|trace| hex(trace, &[16, 32]));
    let span = trace.and_then(|_| text(&B3_SPAN)).and_then(|span| hex(span, &[16]));
    let debugs = text(&B3_FLAGS) == Some("1");
    let sampled = if debugs { Some(true) } else { text(&B3_SAMPLED).and_then(decision) };
    TraceContext { parent: trace.zip(span).and_then(|(trace, span)| ids(trace, span)), sampled }
}

fn decision(text: &str) -> Option<bool> {
    match text {
        "1" | "true" | "d" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// Zero is no id.
fn ids(trace: u128, span: u128) -> Option<(u128, u64)> {
    let span = u64::try_from(span).ok()?;
    (trace != 0 && span != 0).then_some((trace, span))
}

/// So many lower-case digits.
fn hex(text: &str, lengths: &[usize]) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_hex = lengths.contains(&text.len()) && text.bytes().all(is_digit);
    is_hex.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    const SPAN: u64 = 0xb7ad_6b71_6920_3331;

    fn of(lines: &[(&'static str, &str)]) -> TraceContext {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        trace_context(&headers)
    }

    #[test]
    fn each_form_of_a_context_is_read() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let whole = |sampled| TraceContext { parent: Some((TRACE, SPAN)), sampled };
        let decided = |sampled| TraceContext { parent: None, sampled: Some(sampled) };
        let short = TraceContext { parent: Some((TRACE & u128::from(u64::MAX), SPAN)), sampled: None };
        for (value, wanted) in [
            (format!("00-{trace}-{span}-01"), whole(Some(true))),
            (format!("00-{trace}-{span}-00"), whole(Some(false))),
            (format!("cc-{trace}-{span}-03-what-comes"), whole(Some(true))),
            (format!("00-{trace}-{span}-01-more"), TraceContext::default()),
            (format!("ff-{trace}-{span}-01"), TraceContext::default()),
            (format!("00-{}-{span}-01", "0".repeat(32)), TraceContext::default()),
            (format!("00-{trace}-{}-01", "0".repeat(16)), TraceContext::default()),
            (format!("00-{}-{span}-01", trace.to_uppercase()), TraceContext::default()),
            (format!("00-{trace}-{span}"), TraceContext::default()),
            (String::new(), TraceContext::default()),
        ] {
            assert_eq!(of(&[("traceparent", &value)]), wanted, "traceparent: {value}");
        }
        for (value, wanted) in [
            (format!("{trace}-{span}-1"), whole(Some(true))),
            (format!("{trace}-{span}-d-05e3ac9a4f6e3b90"), whole(Some(true))),
            (format!("{trace}-{span}-0"), whole(Some(false))),
            (format!("{trace}-{span}"), whole(None)),
            (format!("8448eb211c80319c-{span}"), short),
            ("0".to_owned(), decided(false)),
            ("1".to_owned(), decided(true)),
            (format!("{trace}-{span}-2"), TraceContext::default()),
            (trace.to_owned(), TraceContext::default()),
        ] {
            assert_eq!(of(&[("b3", &value)]), wanted, "b3: {value}");
        }
        let ids = [("x-b3-traceid", trace), ("x-b3-spanid", span)];
        assert_eq!(of(&ids), whole(None));
        assert_eq!(of(&[ids[0], ids[1], ("x-b3-sampled", "0")]), whole(Some(false)));
        assert_eq!(of(&[ids[0], ids[1], ("x-b3-sampled", "0"), ("x-b3-flags", "1")]), whole(Some(true)));
        assert_eq!(of(&[("x-b3-sampled", "1")]), decided(true));
        assert_eq!(of(&[ids[0]]), TraceContext::default(), "no span");
    }

    #[test]
    fn w3c_counts_where_both_are_there() {
        let (w3c, b3) = (
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "8448eb211c80319c-b7ad6b7169203331-1",
        );
        let both = of(&[("traceparent", w3c), ("b3", b3)]);
        assert_eq!(both, TraceContext { parent: Some((TRACE, SPAN)), sampled: Some(false) });
        assert_eq!(of(&[("traceparent", "none"), ("b3", b3)]).sampled, Some(true), "unless it is none");
    }

    proptest! {
        /// Whatever a stranger sends, it is a context with ids or none.
        #[test]
        fn anything_is_read(one in "[ -~]{0,80}", other in "[0-9a-f-]{0,80}") {
            for text in [&one, &other] {
                for name in ["traceparent", "b3", "x-b3-traceid"] {
                    let context = of(&[(name, text), ("x-b3-spanid", "b7ad6b7169203331")]);
                    prop_assert!(context.parent.is_none_or(|(trace, span)| trace != 0 && span != 0));
                }
            }
        }
    }
}
