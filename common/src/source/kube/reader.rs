//! Reading fields out of a YAML tree, with a path for every report. All problems are collected; nothing stops early.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::yaml::{Kind, Node, is_null};
use crate::config::Problem;

/// Labels, annotations, or the labels that a selector asks for.
pub(in crate::source) type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Whether everything that `selector` asks for is among `labels`. An empty selector selects everything.
pub(in crate::source) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Where problems and warnings are collected.
#[derive(Default)]
pub(in crate::source) struct Report {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl Report {
    pub(in crate::source) fn problem(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub(in crate::source) fn warning(&self, warning: Problem) {
        self.warnings.borrow_mut().push(warning);
    }

    /// Problems and warnings in the order of files and lines, each once.
    pub(in crate::source) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        let sorted = |cell: RefCell<Vec<Problem>>| {
            let mut all = cell.into_inner();
            all.sort();
            all.dedup();
            all
        };
        (sorted(self.problems), sorted(self.warnings))
    }
}

/// Which object a report is about.
#[derive(Clone, Debug)]
pub(in crate::source) struct At {
    pub(in crate::source) file: Arc<str>,
    pub(in crate::source) line: usize,
    /// Kind and name.
    pub(in crate::source) object: Arc<str>,
}

impl At {
    /// A report about `field` of this object, without a line of its own.
    pub(in crate::source) fn about(
        &self,
        field: &str,
        seen: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Problem {
        Problem {
            file: self.file.to_string(),
            line: self.line,
            object: self.object.to_string(),
            field: field.to_owned(),
            seen: seen.into(),
            allowed: allowed.into(),
        }
    }
}

/// A field of an object: its value, its path, and where to report.
#[derive(Clone)]
pub(in crate::source) struct Field<'a> {
    node: &'a Node<'a>,
    path: String,
    at: &'a At,
    report: &'a Report,
}

impl<'a> Field<'a> {
    /// The whole object.
    pub(in crate::source) fn root(node: &'a Node<'a>, at: &'a At, report: &'a Report) -> Self {
        Self { node, path: String::new(), at, report }
    }

    pub(in crate::source) fn node(&self) -> &'a Node<'a> {
        self.node
    }

    pub(in crate::source) fn at(&self) -> &'a At {
        self.at
    }

    fn about(&self, seen: impl Into<String>, allowed: impl Into<String>) -> Problem {
        Problem { line: self.node.line, ..self.at.about(&self.path, seen, allowed) }
    }

    /// Path of this field.
    pub(in crate::source) fn path(&self) -> &str {
        &self.path
    }

    /// Reports that this field cannot be used.
    pub(in crate::source) fn problem(&self, seen: impl Into<String>, allowed: impl Into<String>) {
        self.report.problem(self.about(seen, allowed));
    }

    /// Reports something doubtful about this field.
    pub(in crate::source) fn warning(&self, seen: impl Into<String>, allowed: impl Into<String>) {
        self.report.warning(self.about(seen, allowed));
    }

    /// Reports that this field's value is not one of those that are allowed.
    pub(in crate::source) fn refuse(&self, allowed: &str) {
        self.problem(self.seen(), format!("allowed: {allowed}"));
    }

    /// The value as a report shows it.
    fn seen(&self) -> String {
        match &self.node.kind {
            Kind::Scalar { text, plain: true } if !is_text(text) => text.to_string(),
            Kind::Scalar { text, .. } => format!("{text:?}"),
            Kind::Sequence(_) => "a list".into(),
            Kind::Mapping(_) => "a mapping".into(),
        }
    }

    /// Keys and values of a mapping; empty, with a report, if it is none.
    pub(in crate::source) fn entries(&self) -> Vec<(&'a str, Field<'a>)> {
        let Kind::Mapping(entries) = &self.node.kind else {
            self.refuse("a mapping");
            return Vec::new();
        };
        entries
            .iter()
            .filter(|(_, node)| !is_null(node))
            .map(|(key, node)| {
                let path =
                    if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) };
                (&**key, Field { node, path, ..self.clone() })
            })
            .collect()
    }

    /// The value of `key`; none if it is absent or null.
    pub(in crate::source) fn get(&self, key: &str) -> Option<Field<'a>> {
        let Kind::Mapping(entries) = &self.node.kind else {
            self.refuse("a mapping");
            return None;
        };
        let (_, node) = entries.iter().find(|(k, node)| k == key && !is_null(node))?;
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Some(Field { node, path, ..self.clone() })
    }

    /// The value at `keys`, one below the other.
    pub(in crate::source) fn dig(&self, keys: &[&str]) -> Option<Field<'a>> {
        keys.iter().try_fold(self.clone(), |field, key| field.get(key))
    }

    /// Whether this is a list or a mapping of nothing.
    pub(in crate::source) fn is_empty(&self) -> bool {
        match &self.node.kind {
            Kind::Sequence(items) => items.is_empty(),
            Kind::Mapping(entries) => entries.iter().all(|(_, node)| is_null(node)),
            Kind::Scalar { .. } => false,
        }
    }

    /// The items of the list `key`; empty if it is absent.
    pub(in crate::source) fn items(&self, key: &str) -> Vec<Field<'a>> {
        self.get(key).map(|list| list.list()).unwrap_or_default()
    }

    /// The items of this list; empty, with a report, if it is none.
    pub(in crate::source) fn list(&self) -> Vec<Field<'a>> {
        let Kind::Sequence(items) = &self.node.kind else {
            self.refuse("a list");
            return Vec::new();
        };
        let item =
            |(i, node)| Field { node, path: format!("{}[{i}]", self.path), at: self.at, report: self.report };
        items.iter().enumerate().map(item).collect()
    }

    /// This text; reports numbers and booleans that are not quoted, as the Kubernetes API does.
    pub(in crate::source) fn text(&self) -> Option<&'a str> {
        match &self.node.kind {
            Kind::Scalar { text, plain } if !plain || is_text(text) => Some(text),
            Kind::Scalar { .. } => {
                self.refuse("a text; put it in quotes");
                None
            }
            _ => {
                self.refuse("a text");
                None
            }
        }
    }

    /// The text `key`; none if it is absent or empty.
    pub(in crate::source) fn text_at(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.text().filter(|text| !text.is_empty())
    }

    /// The boolean `key`; false if it is absent.
    pub(in crate::source) fn flag_at(&self, key: &str) -> bool {
        self.maybe_flag_at(key).unwrap_or(false)
    }

    /// The boolean `key`.
    pub(in crate::source) fn maybe_flag_at(&self, key: &str) -> Option<bool> {
        let field = self.get(key)?;
        match &field.node.kind {
            Kind::Scalar { text, plain: true } if matches!(&**text, "true" | "True" | "TRUE") => Some(true),
            Kind::Scalar { text, plain: true } if matches!(&**text, "false" | "False" | "FALSE") => {
                Some(false)
            }
            _ => {
                field.refuse("true, false");
                None
            }
        }
    }

    /// A boolean in text, as Go's `strconv.ParseBool` reads it.
    pub(in crate::source) fn go_bool(&self) -> Option<bool> {
        let truth = ["1", "t", "T", "true", "TRUE", "True"].map(|text| (text, true));
        let lies = ["0", "f", "F", "false", "FALSE", "False"].map(|text| (text, false));
        let text = self.text()?;
        let found = truth.iter().chain(&lies).find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            self.refuse("\"true\", \"false\"");
        }
        found
    }

    /// Whether this is a number rather than a name, for fields that may be either.
    pub(in crate::source) fn is_number(&self) -> bool {
        matches!(&self.node.kind, Kind::Scalar { text, plain: true } if text.parse::<i64>().is_ok())
    }

    /// This number.
    pub(in crate::source) fn number(&self) -> Option<u32> {
        let number = match &self.node.kind {
            Kind::Scalar { text, plain: true } => text.parse().ok(),
            _ => None,
        };
        if number.is_none() {
            self.refuse(&format!("a number, 0 to {}", u32::MAX));
        }
        number
    }

    /// This port number.
    pub(in crate::source) fn port(&self) -> Option<u16> {
        match &self.node.kind {
            Kind::Scalar { text, plain: true } => parse_port(text),
            _ => None,
        }
        .or_else(|| {
            self.refuse("a port number, 1 to 65535");
            None
        })
    }

    /// This address.
    pub(in crate::source) fn ip(&self) -> Option<IpAddr> {
        let ip = self.text()?.parse().ok();
        if ip.is_none() {
            self.refuse("an IP address");
        }
        ip
    }

    /// This block of addresses; an address alone is a block of one.
    pub(in crate::source) fn block(&self) -> Option<IpNet> {
        let block = parse_block(self.text()?);
        if block.is_none() {
            self.refuse("an IP address or a CIDR block such as 10.0.0.0/8");
        }
        block
    }

    /// The value in `table` that this text names.
    pub(in crate::source) fn one_of<T: Copy>(&self, table: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = table.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
            self.refuse(&names.join(", "));
        }
        found
    }

    /// The mapping of text to text `key`; empty if it is absent.
    pub(in crate::source) fn labels(&self, key: &str) -> Labels {
        let entries = self.get(key).map(|field| field.entries()).unwrap_or_default();
        entries.into_iter().filter_map(|(key, value)| Some((key.into(), value.text()?.into()))).collect()
    }

    /// Reports every key that is not in `known`.
    pub(in crate::source) fn only(&self, known: &[&str]) {
        let Kind::Mapping(entries) = &self.node.kind else {
            return self.refuse("a mapping");
        };
        for (key, node) in entries.iter().filter(|(key, _)| !known.contains(&&**key)) {
            let path = if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) };
            let field = Field { node, path, ..self.clone() };
            field.problem("no such field", format!("allowed: {}", known.join(", ")));
        }
    }
}

/// A port number in decimal digits, 1 to 65535.
pub(in crate::source) fn parse_port(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// A CIDR block, or an address as a block of one.
pub(in crate::source) fn parse_block(text: &str) -> Option<IpNet> {
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()
}

/// Whether a plain scalar is a text and not a boolean or a number. Null does not come here.
fn is_text(text: &str) -> bool {
    let boolean = matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE");
    // "1.0", "1e3", "0x1f" and ".5" are numbers; "10.0.0.1", "1.2.3", "inf" and "nan" are texts.
    let number = text.parse::<f64>().is_ok() && text.bytes().any(|b| b.is_ascii_digit());
    let radix = |prefix, radix| {
        text.strip_prefix(prefix).is_some_and(|digits| u64::from_str_radix(digits, radix).is_ok())
    };
    !(boolean || number || radix("0x", 16) || radix("0o", 8))
}
