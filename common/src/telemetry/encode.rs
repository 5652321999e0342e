//! The text forms of a scrape: Prometheus 0.0.4 and OpenMetrics 1.0.

use std::fmt::{self, Display, Write};

/// What a family measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Units that a family's name may end with.
const UNITS: [&str; 2] = ["seconds", "bytes"];

/// A scrape that is being written.
pub(super) struct Scrape {
    out: String,
    openmetrics: bool,
}

impl Scrape {
    pub(super) fn new(openmetrics: bool) -> Self {
        Self { out: String::new(), openmetrics }
    }

    /// Starts a family. In OpenMetrics a counter's family is named without `_total`, and a unit is told.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let family = if self.openmetrics && kind == Kind::Counter {
            name.strip_suffix("_total").unwrap_or(name)
        } else {
            name
        };
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.put(format_args!("# HELP {family} "));
        push_escaped(&mut self.out, help, self.openmetrics);
        self.put(format_args!("\n# TYPE {family} {kind}\n"));
        let is_unit = |unit: &&&str| {
            family.strip_suffix(**unit).is_some_and(|rest| rest.len() > 1 && rest.ends_with('_'))
        };
        if self.openmetrics
            && let Some(unit) = UNITS.iter().find(is_unit)
        {
            self.put(format_args!("# UNIT {family} {unit}\n"));
        }
    }

    /// Adds a sample to the family that was started last; `labels` is the rendered inside of the braces.
    pub(super) fn sample(&mut self, name: &str, labels: &[&str], value: impl Display) {
        self.out.push_str(name);
        if labels.iter().any(|part| !part.is_empty()) {
            self.out.push('{');
            labels.iter().for_each(|part| self.out.push_str(part));
            self.out.push('}');
        }
        self.put(format_args!(" {value}\n"));
    }

    /// Adds the samples of one histogram: its finite buckets, and the number and sum of all observations.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &str,
        buckets: impl Iterator<Item = (f64, u64)>,
        (count, sum): (u64, f64),
    ) {
        let bucket = format!("{name}_bucket");
        for (bound, count) in buckets.filter(|(bound, _)| bound.is_finite()).chain([(f64::INFINITY, count)]) {
            let mut all = labels.to_owned();
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            push_label(&mut all, "le", &bound);
            self.sample(&bucket, &[&all], count);
        }
        self.sample(&format!("{name}_sum"), &[labels], sum);
        self.sample(&format!("{name}_count"), &[labels], count);
    }

    /// The text of a part: others follow.
    pub(super) fn part(self) -> String {
        self.out
    }

    /// The text.
    pub(super) fn finish(mut self) -> String {
        if self.openmetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn put(&mut self, args: fmt::Arguments<'_>) {
        let _infallible: fmt::Result = self.out.write_fmt(args);
    }
}

/// Appends `name="value"`, after a comma unless it is the first. The value is escaped as both forms ask for.
pub(super) fn push_label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    push_escaped(out, value, true);
    out.push('"');
}

fn push_escaped(out: &mut String, value: &str, quotes: bool) {
    if !value.bytes().any(|b| matches!(b, b'\\' | b'"' | b'\n')) {
        return out.push_str(value);
    }
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' if quotes => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
