//! Numbers, durations, host names and texts to compare with, out of YAML, as the API server and Istio's webhook take them.

use std::sync::Arc;
use std::time::Duration;

use crate::model::l7::{Fraction, Pattern, TextMatch};
use crate::source::kube::reader::{Field, Labels};
use crate::source::kube::yaml::Kind;

/// Longest regular expression, as the webhook has it.
const REGEX_MAX: usize = 1024;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A whole number between `min` and `max`, which says so if it is not.
pub(super) fn integer(field: &Field<'_>, min: i64, max: i64) -> Option<i64> {
    let number = match &field.node().kind {
        Kind::Scalar { text, plain: true } => text.parse::<i64>().ok(),
        _ => None,
    };
    let number = number.filter(|n| (min..=max).contains(n));
    if number.is_none() {
        field.refuse(&format!("a number, {min} to {max}"));
    }
    number
}

/// The number `key`, 0 to `u32::MAX`.
pub(super) fn number_at(field: &Field<'_>, key: &str) -> Option<u32> {
    integer(&field.get(key)?, 0, u32::MAX.into()).and_then(|n| n.try_into().ok())
}

/// The number `key` of a type that cannot be over `i32::MAX`; 0 is as if it were not there.
pub(super) fn limit_at(field: &Field<'_>, key: &str) -> Option<u32> {
    let number = integer(&field.get(key)?, 0, i32::MAX.into())?;
    u32::try_from(number).ok().filter(|n| *n > 0)
}

/// The percentage `key`, 0 to 100, that is a whole number.
pub(super) fn percent_at(field: &Field<'_>, key: &str) -> Option<u32> {
    integer(&field.get(key)?, 0, 100).and_then(|n| n.try_into().ok())
}

/// A number that may have a fraction.
pub(super) fn decimal(field: &Field<'_>, min: f64, max: f64) -> Option<f64> {
    let number = match &field.node().kind {
        Kind::Scalar { text, plain: true } => text.parse::<f64>().ok(),
        _ => None,
    };
    let number = number.filter(|n| (min..=max).contains(n));
    if number.is_none() {
        field.refuse(&format!("a number, {min} to {max}"));
    }
    number
}

/// A `Percent` of Istio: `{value: 12.5}`; without a value it is 0.
pub(super) fn percentage(field: &Field<'_>) -> Option<Fraction> {
    field.only(&["value"]);
    let Some(value) = field.get("value") else { return Some(Fraction(0)) };
    let percent = decimal(&value, 0.0, 100.0)?;
    if percent > 0.0 && percent < 0.0001 {
        value.refuse("0, or 0.0001 to 100");
        return None;
    }
    Some(fraction(percent))
}

/// So many percent.
pub(super) fn fraction(percent: f64) -> Fraction {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 100 times 10,000; what is left of it is cut off, as Istio does"
    )]
    Fraction((percent * 10_000.0) as u32)
}

/// A duration of at least a millisecond and of whole milliseconds, in Go's form: `1.5s`, `1m30s`.
pub(super) fn duration(field: &Field<'_>) -> Option<Duration> {
    let allowed = "a duration of 1ms or more in whole milliseconds, for example 1.5s";
    checked(field, allowed, |d| !d.is_zero())
}

/// The same, or `0s`.
pub(super) fn duration_or_zero(field: &Field<'_>) -> Option<Duration> {
    checked(field, "0s, or a duration in whole milliseconds, for example 1.5s", |_| true)
}

fn checked(field: &Field<'_>, allowed: &str, is_good: impl Fn(Duration) -> bool) -> Option<Duration> {
    let duration = parse_duration(field.text()?);
    let duration = duration.filter(|d| d.subsec_nanos() % 1_000_000 == 0 && is_good(*d));
    if duration.is_none() {
        field.refuse(allowed);
    }
    duration
}

/// The duration `key` of at least a millisecond.
pub(super) fn duration_at(field: &Field<'_>, key: &str) -> Option<Duration> {
    duration(&field.get(key)?)
}

/// A duration of Gateway API: one to four groups of at most five digits with h, m, s or ms. Source: GEP-2257.
pub(super) fn gateway_duration(field: &Field<'_>) -> Option<Duration> {
    let text = field.text()?;
    let mut groups = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let is_short = groups.clone().count() <= 4 && groups.all(|digits| digits.len() <= 5);
    let is_plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'h' | b'm' | b's'));
    let duration = parse_duration(text).filter(|_| is_short && is_plain && text != "0");
    if duration.is_none() {
        field.refuse("a duration such as 10s, 1m30s or 500ms");
    }
    duration
}

/// A duration as Go writes it, not negative.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (part, after) = after.strip_prefix('.').map_or(("", after), digits);
        if (whole.is_empty() && part.is_empty()) || whole.len() > 12 || part.len() > 12 {
            return None;
        }
        let (unit, after) = unit(after)?;
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let scale = 10u128.checked_pow(part.len().try_into().ok()?)?;
        let part: u128 = if part.is_empty() { 0 } else { part.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(unit)?)?.checked_add(part.checked_mul(unit)? / scale)?;
        rest = after;
    }
    // Go's durations end at 2^63 nanoseconds.
    let nanos = u64::try_from(nanos).ok().filter(|nanos| i64::try_from(*nanos).is_ok())?;
    Some(Duration::from_nanos(nanos))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(end)
}

/// The unit that `text` begins with, in nanoseconds.
fn unit(text: &str) -> Option<(u128, &str)> {
    let units: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ms", 1_000_000),
        ("s", NANOS_PER_SECOND),
        ("m", 60 * NANOS_PER_SECOND),
        ("h", 3600 * NANOS_PER_SECOND),
    ];
    units.iter().find_map(|(name, nanos)| Some((*nanos, text.strip_prefix(name)?)))
}

/// Whether a `StringMatch` may be of nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lax {
    /// A prefix and an expression have at least one character.
    No,
    /// A prefix may be empty: a path.
    EmptyPrefix,
    /// The expression `*` means that something is there: `withoutHeaders`.
    Star,
}

/// A `StringMatch` of Istio; one that says nothing means that something is there.
pub(super) fn string_match(field: &Field<'_>, lax: Lax) -> Option<TextMatch> {
    field.only(&["exact", "prefix", "regex"]);
    let given: Vec<_> = ["exact", "prefix", "regex"].iter().filter_map(|key| field.get(key)).collect();
    let [one] = &given[..] else {
        if given.len() > 1 {
            field.problem("several of exact, prefix and regex", "allowed: one of them");
            return None;
        }
        return Some(TextMatch::Present);
    };
    let text = one.text()?;
    let kind = one.path().rsplit('.').next().unwrap_or("");
    match kind {
        "exact" => Some(TextMatch::Exact(text.into())),
        "prefix" if text.is_empty() && lax != Lax::EmptyPrefix => {
            one.refuse("a prefix of at least one character");
            None
        }
        "prefix" => Some(TextMatch::Prefix(text.into())),
        _ if text == "*" && lax == Lax::Star => Some(TextMatch::Present),
        _ => pattern(one).map(TextMatch::Regex),
    }
}

/// A regular expression in RE2's syntax.
pub(super) fn pattern(field: &Field<'_>) -> Option<Pattern> {
    let text = field.text()?;
    if text.is_empty() || text.len() > REGEX_MAX {
        field.refuse(&format!("a regular expression of 1 to {REGEX_MAX} bytes"));
        return None;
    }
    match Pattern::new(text) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            field.problem(format!("{text:?}: {error}"), "allowed: a regular expression in RE2's syntax");
            None
        }
    }
}

/// The text `key` that is to become part of a path: it would end the line that it is written on if it had what none has.
pub(super) fn path_text(field: &Field<'_>, key: &str) -> Option<Arc<str>> {
    let field = field.get(key)?;
    let text = field.text()?;
    let good = !text.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
    if !good {
        field.refuse("a path without spaces and control characters");
    }
    good.then(|| text.into())
}

/// A host name, perhaps with `*` for its first label or at its beginning.
pub(super) fn host(field: &Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    let mut labels = text.strip_suffix('.').unwrap_or(text).split('.');
    let first = labels.next().unwrap_or("");
    let first = first.strip_prefix("*-").or_else(|| first.strip_prefix('*')).unwrap_or(first);
    let good = (first.is_empty() && text.starts_with('*') || is_label(first))
        && labels.all(is_label)
        && text.len() <= 255;
    if !good {
        field.refuse("a host name, which may begin with *");
    }
    good.then(|| text.to_ascii_lowercase().into())
}

/// Whether this is a label of a host name, of either case.
fn is_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
}

/// A label as DNS has it, of either case: names of subsets and namespaces.
pub(super) fn name(field: &Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    let good = is_label(text);
    if !good {
        field.refuse("1 to 63 characters out of a-z A-Z 0-9 -, with a letter or number at both ends");
    }
    good.then(|| text.into())
}

/// A name of Gateway API's: labels in lower case with dots between.
pub(super) fn section_name(field: &Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    let good =
        text.len() <= 253 && text.split('.').all(is_label) && !text.bytes().any(|b| b.is_ascii_uppercase());
    if !good {
        field.refuse("a name out of a-z 0-9 - with dots between its parts");
    }
    good.then(|| text.into())
}

/// The labels `key`, whose keys and values the API server takes.
pub(super) fn labels_at(field: &Field<'_>, key: &str) -> Labels {
    let is_word = |text: &str, max: usize| {
        let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
        text.len() <= max
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && edge(text.as_bytes().first())
            && edge(text.as_bytes().last())
    };
    let entries = field.get(key).map(|field| field.entries()).unwrap_or_default();
    let mut labels = Labels::new();
    for (key, value) in entries {
        let Some(text) = value.text() else { continue };
        let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
        if name.is_empty() || !is_word(name, 63) || !is_word(prefix, 253) || !is_word(text, 63) {
            value.problem(format!("label {key}: {text:?}"), "allowed: what Kubernetes takes for a label");
        }
        labels.insert(key.into(), text.into());
    }
    labels
}

/// Whether `pattern` means `host`: it is that host, or has `*` in place of the beginning.
pub(super) fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(end) => host.len() > end.len() && host.ends_with(end) || host == pattern,
        None => pattern == host,
    }
}

/// The full name of a host that an object of `namespace` names: names without a dot are services of that namespace.
pub(super) fn full_name(host: &str, namespace: &str, domain: &str) -> Arc<str> {
    if host.contains('.') || host.starts_with('*') {
        return host.into();
    }
    format!("{host}.{namespace}.svc.{domain}").into()
}

/// To whom an object is exported. Source: `exportTo` of VirtualService and DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExportTo {
    /// Namespaces; empty is everywhere.
    namespaces: Vec<Arc<str>>,
}

impl ExportTo {
    /// Reads `exportTo` of an object of `own`.
    pub(super) fn read(spec: &Field<'_>, own: &Arc<str>) -> Self {
        let items = spec.items("exportTo");
        let mut namespaces: Vec<Arc<str>> = Vec::new();
        let mut everywhere = false;
        for item in &items {
            let namespace = match item.text() {
                Some("*") => {
                    everywhere = true;
                    continue;
                }
                Some(".") => Some(Arc::clone(own)),
                Some("~") => {
                    item.refuse("*, . or a namespace; ~ would hide the object from everything");
                    None
                }
                Some(_) => name(item),
                None => None,
            };
            let Some(namespace) = namespace else { continue };
            if namespaces.contains(&namespace) {
                item.problem(format!("{namespace} for the second time"), "allowed: each namespace once");
            }
            namespaces.push(namespace);
        }
        if everywhere && items.len() > 1 {
            let list = spec.get("exportTo").unwrap_or_else(|| spec.clone());
            list.problem("* beside others", "allowed: * alone, or namespaces");
        }
        if everywhere {
            namespaces.clear();
        }
        Self { namespaces }
    }

    /// Whether it is seen in `namespace`.
    pub(super) fn is_visible_in(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|n| **n == *namespace)
    }

    /// Whether it is seen everywhere.
    pub(super) fn is_for_all(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// Whether it is seen in `own` only.
    pub(super) fn is_private(&self, own: &str) -> bool {
        matches!(&self.namespaces[..], [only] if **only == *own)
    }
}

/// Warns of a field that is known and does nothing here.
pub(super) fn warn_unused(parent: &Field<'_>, key: &str, why: &str) {
    if let Some(field) = parent.get(key) {
        field.warning(format!("{key} has no effect"), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, millis) in [
            ("1s", Some(1000)),
            ("1.5s", Some(1500)),
            ("0.25s", Some(250)),
            (".5s", Some(500)),
            ("1m30s", Some(90_000)),
            ("1h", Some(3_600_000)),
            ("100ms", Some(100)),
            ("1000000us", Some(1000)),
            ("1000000µs", Some(1000)),
            ("1000000000ns", Some(1000)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("+2s", Some(2000)),
            ("", None),
            ("1", None),
            ("s", None),
            (".s", None),
            ("-1s", None),
            ("1 s", None),
            ("1d", None),
            ("300y", None),
            ("9999999999h", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn hosts_are_compared_from_their_end() {
        for (pattern, host, is_match) in [
            ("a.b", "a.b", true),
            ("a.b", "b", false),
            ("*.b", "a.b", true),
            ("*.b", "x.a.b", true),
            ("*.b", "b", false),
            ("*", "a.b", true),
            ("*.b", "*.b", true),
            ("b", "a.b", false),
        ] {
            assert_eq!(host_matches(pattern, host), is_match, "{pattern} {host}");
        }
        assert_eq!(&*full_name("cart", "shop", "cluster.local"), "cart.shop.svc.cluster.local");
        assert_eq!(&*full_name("cart.shop", "x", "cluster.local"), "cart.shop");
    }
}
