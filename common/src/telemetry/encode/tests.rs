//! A strict reader of both text forms, and what it makes of a scrape.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// One family as a reader sees it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) unit: Option<String>,
    pub(crate) samples: Vec<Sample>,
}

/// One sample: its name, its labels in their order, its value.
#[derive(Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

/// Reads a scrape by the letter of the form that it claims to be.
///
/// **Source**: OpenMetrics 1.0 (ABNF and "MetricFamily"), Prometheus text format 0.0.4.
pub(crate) fn read(text: &str, openmetrics: bool) -> Result<Vec<Family>, String> {
    let body =
        if openmetrics { text.strip_suffix("# EOF\n").ok_or("the last line is not # EOF")? } else { text };
    if !body.is_empty() && !body.ends_with('\n') {
        return Err("the last line does not end".to_owned());
    }
    let mut families: Vec<Family> = Vec::new();
    for line in body.split_terminator('\n') {
        let add = |e: String| format!("{e}: {line:?}");
        if let Some(rest) = line.strip_prefix("# ") {
            metadata(&mut families, rest).map_err(add)?;
        } else {
            let sample = sample(line).map_err(add)?;
            let family = families.last_mut().ok_or_else(|| add("a sample before any family".to_owned()))?;
            belongs(family, &sample, openmetrics).map_err(add)?;
            family.samples.push(sample);
        }
    }
    let names: BTreeSet<&str> = families.iter().map(|f| f.name.as_str()).collect();
    if names.len() != families.len() {
        return Err("a family is told twice".to_owned());
    }
    families.iter().try_for_each(|family| whole(family, openmetrics))?;
    Ok(families)
}

fn metadata(families: &mut Vec<Family>, rest: &str) -> Result<(), String> {
    let (what, rest) = rest.split_once(' ').ok_or("no metadata")?;
    let (name, value) = rest.split_once(' ').ok_or("metadata without a value")?;
    if !is_name(name, true) {
        return Err(format!("{name:?} is no name"));
    }
    if families.last().is_none_or(|family| family.name != name) {
        families.push(Family { name: name.to_owned(), ..Family::default() });
    }
    let family = families.last_mut().unwrap();
    if !family.samples.is_empty() {
        return Err("metadata behind samples".to_owned());
    }
    let field = match what {
        "HELP" => &mut family.help,
        "TYPE" => &mut family.kind,
        "UNIT" => family.unit.insert(String::new()),
        _ => return Err("neither HELP, TYPE nor UNIT".to_owned()),
    };
    if !field.is_empty() || value.is_empty() {
        return Err("told twice, or empty".to_owned());
    }
    *field = if what == "HELP" { unescape(value)? } else { value.to_owned() };
    Ok(())
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err(format!("{name:?} is no name"));
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("no label")?;
            if !is_name(label, false) {
                return Err(format!("{label:?} is no label name"));
            }
            let close = closing_quote(after).ok_or("a value that does not end")?;
            let (value, after) = after.split_at(close);
            labels.push((label.to_owned(), unescape(value)?));
            rest = after.strip_prefix('"').ok_or("no quote")?;
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').ok_or("no closing brace")?;
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let number = value.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    let value = value.parse::<f64>().ok().filter(|_| number).ok_or("no number")?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| {
        let closes = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        closes
    })
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(match chars.next() {
                Some('n') => '\n',
                Some(c @ ('\\' | '"')) => c,
                other => return Err(format!("{other:?} behind a backslash")),
            }),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn is_name(name: &str, colons: bool) -> bool {
    let may = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || colons && b == b':';
    !name.is_empty() && name.bytes().all(may) && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn belongs(family: &Family, sample: &Sample, openmetrics: bool) -> Result<(), String> {
    let suffix = sample.name.strip_prefix(&*family.name).ok_or("a sample of another family")?;
    let right = match (family.kind.as_str(), openmetrics) {
        ("counter", true) => suffix == "_total",
        ("counter" | "gauge", _) => suffix.is_empty(),
        ("histogram", _) => {
            let is_bucket = sample.labels.iter().any(|(name, _)| name == "le");
            if is_bucket { suffix == "_bucket" } else { ["_sum", "_count"].contains(&suffix) }
        }
        _ => return Err("no type, or one that is not written here".to_owned()),
    };
    if !right {
        return Err(format!("{suffix:?} is no suffix of a {}", family.kind));
    }
    if family.kind == "counter" && (sample.value.is_nan() || sample.value < 0.0) {
        return Err("a counter below zero".to_owned());
    }
    let names: BTreeSet<_> = sample.labels.iter().map(|(name, _)| name).collect();
    if names.len() != sample.labels.len() || names.iter().any(|name| name.starts_with("__")) {
        return Err("a label twice, or a reserved one".to_owned());
    }
    Ok(())
}

fn whole(family: &Family, openmetrics: bool) -> Result<(), String> {
    let Family { name, kind, unit, samples, .. } = family;
    if kind.is_empty() || samples.is_empty() {
        return Err(format!("{name} has no type or no samples"));
    }
    if openmetrics && kind == "counter" && name.ends_with("_total") {
        return Err(format!("the counter family {name} ends with _total"));
    }
    match unit {
        Some(_) if !openmetrics => return Err(format!("{name} has a unit")),
        Some(unit) if !name.ends_with(&format!("_{unit}")) => {
            return Err(format!("{name} does not end with its unit {unit}"));
        }
        _ => {}
    }
    let mut series: Vec<_> = samples.iter().map(|s| (&s.name, s.labels.clone())).collect();
    series.iter_mut().for_each(|(_, labels)| labels.sort());
    let all = series.len();
    let apart: BTreeSet<_> = series.into_iter().collect();
    if apart.len() == all { Ok(()) } else { Err(format!("{name} has two samples with the same labels")) }
}

fn written(openmetrics: bool, name: &str, kind: Kind, samples: &[(&str, f64)]) -> String {
    let mut scrape = Scrape::new(openmetrics);
    scrape.family(name, kind, "Help with \\ and \"quotes\" and\na line.");
    for (value, number) in samples {
        let mut labels = String::new();
        push_label(&mut labels, "first", value);
        push_label(&mut labels, "second", "x");
        scrape.sample(name, &[&labels], number);
    }
    scrape.finish()
}

#[test]
fn both_forms_are_what_their_reader_expects() {
    for (openmetrics, family, unit) in [(false, "a_bytes_total", None), (true, "a_bytes", Some("bytes"))] {
        let text = written(openmetrics, "a_bytes_total", Kind::Counter, &[("v", 3.0), ("w", 1e21)]);
        let families = read(&text, openmetrics).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let [got] = &families[..] else { panic!("{families:?}") };
        assert_eq!((got.name.as_str(), got.unit.as_deref()), (family, unit));
        assert_eq!(got.help, "Help with \\ and \"quotes\" and\na line.");
        assert_eq!(got.samples[0].labels[0], ("first".to_owned(), "v".to_owned()));
        assert_eq!(got.samples[1].value, 1e21);
    }
    for name in ["age_seconds", "seconds", "_seconds", "milliseconds"] {
        let text = written(true, name, Kind::Gauge, &[("v", -1.5)]);
        let unit = read(&text, true).unwrap().remove(0).unit;
        assert_eq!(unit.is_some(), name == "age_seconds", "{text}");
    }
}

#[test]
fn the_reader_refuses_what_is_wrong() {
    let good = "# TYPE a counter\na_total{x=\"1\"} 2\n# EOF\n";
    assert!(read(good, true).is_ok());
    for (bad, why) in [
        ("# TYPE a counter\na_total 2\n", "no EOF"),
        ("# TYPE a counter\na_total 2\n# EOF", "EOF without end"),
        ("# TYPE a counter\na_total 2\n# EOF\n# EOF\n", "two EOFs"),
        ("# TYPE a counter\na 2\n# EOF\n", "no suffix"),
        ("# TYPE a_total counter\na_total 2\n# EOF\n", "family with suffix"),
        ("# TYPE a gauge\nb 2\n# EOF\n", "another family"),
        ("a 2\n# EOF\n", "no type"),
        ("# TYPE a gauge\na 1\n# HELP a x\n# EOF\n", "metadata late"),
        ("# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n# TYPE a gauge\na 2\n# EOF\n", "interleaved"),
        ("# TYPE a gauge\na{x=\"1\",x=\"2\"} 1\n# EOF\n", "label twice"),
        ("# TYPE a gauge\na{x=\"1\"} 1\na{x=\"1\"} 2\n# EOF\n", "series twice"),
        ("# TYPE a gauge\na{x=\"1\",} 1\n# EOF\n", "comma"),
        ("# TYPE a gauge\na{x=\"\\t\"} 1\n# EOF\n", "escape"),
        ("# TYPE a gauge\na{x=\"1} 1\n# EOF\n", "open quote"),
        ("# TYPE a gauge\na{x=\"1\"}  1\n# EOF\n", "two spaces"),
        ("# TYPE a gauge\n\na 1\n# EOF\n", "empty line"),
        ("# TYPE a counter\na_total -1\n# EOF\n", "below zero"),
        ("# TYPE a gauge\na one\n# EOF\n", "no number"),
        ("# TYPE a gauge\n# UNIT a seconds\na 1\n# EOF\n", "unit"),
    ] {
        assert!(read(bad, true).is_err(), "{why}: {bad:?}");
    }
}

proptest! {
    /// Whatever a workload is called, a reader gets it back, and nothing else.
    #[test]
    fn any_label_value_is_read_back(value in any::<String>(), openmetrics in any::<bool>()) {
        let text = written(openmetrics, "a_total", Kind::Counter, &[(&value, 7.0)]);
        let families = read(&text, openmetrics).unwrap();
        prop_assert_eq!(families.len(), 1);
        let samples = &families[0].samples;
        prop_assert_eq!(samples.len(), 1);
        prop_assert_eq!(&samples[0].labels[0].1, &value);
        prop_assert_eq!(samples[0].value, 7.0);
    }
}
