//! The file of a described mode: its text to a [`Description`], with all problems at once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use culvert_common::config::Problem;
use culvert_common::source::kube::tree::{self, Tree, Value};

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) name: String,
    pub(super) title: String,
    /// A command that prints the version.
    pub(super) version: Option<String>,
    pub(super) deviations: Vec<String>,
    pub(super) one_node: bool,
    /// Our rules redirect the pods' traffic, without our agent.
    pub(super) capture: bool,
    /// Our `enroll` writes the rules and hands the pods over.
    pub(super) enroll: bool,
    /// Istio's certificate service answers on each node.
    pub(super) certificate_service: bool,
    /// Nothing that crosses between the nodes may be readable.
    pub(super) encrypted: bool,
    /// Kinds of work that are left out.
    pub(super) cannot: BTreeSet<&'static str>,
    pub(super) environment: Vec<(String, String)>,
    /// What runs on each node.
    pub(super) node: Option<Part>,
    /// What runs for each pod.
    pub(super) pod: Option<Part>,
    pub(super) start_max: Duration,
    pub(super) stop_max: Duration,
}

/// What is started once for each node or pod; commands are a shell's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: String,
    pub(super) stop: Option<String>,
    pub(super) ready: Ready,
    pub(super) netns: Netns,
    /// The process to be accounted is named in this file, because `start` ends.
    pub(super) pid_file: Option<String>,
}

/// How a part tells that it takes traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// Ends with 0.
    Command(String),
    /// Answers 200.
    Http { address: std::net::SocketAddr, path: String },
    /// Somebody listens.
    Port(u16),
}

/// In whose network namespace a part runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Netns {
    Node,
    Pod,
}

/// Kinds of work, as `cannot` names them.
pub(super) const WORKS: [&str; 7] = ["closed", "open", "connections", "bulk", "memory", "start", "workloads"];
const FIELDS: [&str; 15] = [
    "name",
    "title",
    "version",
    "deviations",
    "nodes",
    "capture",
    "enroll",
    "certificateService",
    "encrypted",
    "cannot",
    "environment",
    "node",
    "pod",
    "startLimit",
    "stopLimit",
];
const START_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(10);
/// Longer than anybody waits for a proxy.
const LIMIT_MAX: Duration = Duration::from_secs(600);
const NAME_MAX: usize = 40;

/// Reads a description.
///
/// **Errors:** all that is wrong in it, each with line, field and allowed values.
pub(super) fn parse(file: &str, text: &str) -> Result<Description, Vec<Problem>> {
    let root = tree::read(file, text).map_err(|problem| vec![*problem])?;
    let report = RefCell::new(Vec::new());
    let top = Field { tree: &root, path: String::new(), file, problems: &report };
    let description = description(&top);
    let mut problems = report.into_inner();
    problems.sort();
    match description {
        Some(description) if problems.is_empty() => Ok(description),
        _ => Err(problems),
    }
}

/// `None` only with a problem reported.
fn description(top: &Field<'_>) -> Option<Description> {
    top.only(&FIELDS);
    let name = top.required("name").and_then(|field| name(&field));
    let title = top.required("title").and_then(|field| field.text());
    let enroll = top.flag("enroll").unwrap_or(false);
    let capture = top.flag("capture").unwrap_or(false);
    if enroll && capture {
        top.problem("capture and enroll", "allowed: one of them; enroll writes the rules itself");
    }
    let node = top.get("node").and_then(|field| part(&field, Netns::Node));
    let pod = top.get("pod").and_then(|field| part(&field, Netns::Pod));
    if top.get("node").is_none() && top.get("pod").is_none() {
        top.problem("neither node nor pod", "allowed: at least one of them, with a start command");
    }
    let nodes = top.get("nodes").and_then(|field| field.one_of(&[("1", 1), ("2", 2)])).unwrap_or(2);
    let cannot = top.get("cannot").map(|field| field.list()).unwrap_or_default();
    let works = WORKS.map(|work| (work, work));
    Some(Description {
        version: top.get("version").and_then(|field| field.text()),
        deviations: top.texts("deviations"),
        one_node: nodes == 1,
        capture,
        enroll,
        certificate_service: top.flag("certificateService").unwrap_or(false),
        encrypted: top.flag("encrypted").unwrap_or(true),
        cannot: cannot.iter().filter_map(|field| field.one_of(&works)).collect(),
        environment: environment(top),
        start_max: top.duration("startLimit").unwrap_or(START_MAX),
        stop_max: top.duration("stopLimit").unwrap_or(STOP_MAX),
        name: name?,
        title: title?,
        node,
        pod,
    })
}

fn name(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(allowed) {
        return Some(text);
    }
    field.problem(&format!("{text:?}"), "allowed: 1 to 40 of a-z, 0-9 and -");
    None
}

fn environment(top: &Field<'_>) -> Vec<(String, String)> {
    let Some(field) = top.get("environment") else { return Vec::new() };
    let mut pairs = Vec::new();
    for (key, value) in field.entries() {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if key.is_empty() || key.starts_with(|c: char| c.is_ascii_digit()) || !key.bytes().all(word) {
            value.problem("no name of a variable", "allowed: letters, digits and _, no digit first");
        } else if key.starts_with("BENCH_") {
            value.problem("a name of the benchmark's own", "allowed: names that do not begin with BENCH_");
        } else if let Some(text) = value.scalar() {
            pairs.push((key.to_owned(), text));
        }
    }
    pairs
}

fn part(field: &Field<'_>, netns: Netns) -> Option<Part> {
    field.only(&["start", "stop", "ready", "netns", "pidFile"]);
    let place = [("node", Netns::Node), ("pod", Netns::Pod)];
    // A node has no pod of its own; a pod's program may run on its node.
    let place = if netns == Netns::Node { place.get(..1).unwrap_or_default() } else { &place };
    let (start, ready) = (field.required("start"), field.required("ready"));
    Some(Part {
        stop: field.get("stop").and_then(|f| f.text()),
        netns: field.get("netns").and_then(|f| f.one_of(place)).unwrap_or(netns),
        pid_file: field.get("pidFile").and_then(|f| f.text()),
        ready: ready.and_then(|f| readiness(&f))?,
        start: start.and_then(|f| f.text())?,
    })
}

fn readiness(field: &Field<'_>) -> Option<Ready> {
    const ALLOWED: &str = "allowed: one of command, http, port";
    field.only(&["command", "http", "port"]);
    let entries = field.entries();
    let [(key, value)] = &entries[..] else {
        field.problem(&format!("{} of them", entries.len()), ALLOWED);
        return None;
    };
    match *key {
        "command" => value.text().map(Ready::Command),
        "http" => {
            let text = value.text()?;
            let (address, path) = text.split_once('/').unwrap_or((&text, ""));
            match address.parse() {
                Ok(address) => Some(Ready::Http { address, path: format!("/{path}") }),
                Err(_) => {
                    value.problem(&format!("{text:?}"), "allowed: such as 127.0.0.1:15021/healthz/ready");
                    None
                }
            }
        }
        "port" => {
            let port = value.scalar()?.parse().ok().filter(|port| *port > 0);
            if port.is_none() {
                value.problem("no port", "allowed: 1 to 65535");
            }
            port.map(Ready::Port)
        }
        _ => None, // reported as no such field
    }
}

/// A field of the file: its value, its path, and where to report.
struct Field<'a> {
    tree: &'a Tree,
    path: String,
    file: &'a str,
    problems: &'a RefCell<Vec<Problem>>,
}

impl<'a> Field<'a> {
    fn problem(&self, seen: &str, allowed: &str) {
        self.problems.borrow_mut().push(Problem {
            file: self.file.to_owned(),
            line: self.tree.line,
            object: String::new(),
            field: self.path.clone(),
            seen: seen.to_owned(),
            allowed: allowed.to_owned(),
        });
    }

    fn below(&self, key: &str, tree: &'a Tree) -> Self {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Self { tree, path, file: self.file, problems: self.problems }
    }

    /// What is not null; empty, with a report, if this is no mapping.
    fn entries(&self) -> Vec<(&'a str, Self)> {
        let Value::Mapping(entries) = &self.tree.value else {
            self.problem("no mapping", "allowed: a mapping");
            return Vec::new();
        };
        let set = entries.iter().filter(|(_, tree)| tree.value != Value::Null);
        set.map(|(key, tree)| (key.as_str(), self.below(key, tree))).collect()
    }

    fn get(&self, key: &str) -> Option<Self> {
        let Value::Mapping(entries) = &self.tree.value else { return None };
        let (_, tree) = entries.iter().find(|(k, tree)| k == key && tree.value != Value::Null)?;
        Some(self.below(key, tree))
    }

    fn required(&self, key: &str) -> Option<Self> {
        let found = self.get(key);
        if found.is_none() {
            self.below(key, self.tree).problem("missing", "it has to be there");
        }
        found
    }

    /// Reports every key that is not in `known`.
    fn only(&self, known: &[&str]) {
        for (key, field) in self.entries() {
            if !known.contains(&key) {
                field.problem("no such field", &format!("allowed: {}", known.join(", ")));
            }
        }
    }

    /// A text, number or boolean as it was written.
    fn scalar(&self) -> Option<String> {
        if let Value::Scalar { text, .. } = &self.tree.value {
            return Some(text.clone());
        }
        self.problem("no text", "allowed: a text");
        None
    }

    fn text(&self) -> Option<String> {
        let text = self.scalar()?;
        if text.trim().is_empty() || text.contains('\0') {
            self.problem("an empty text", "allowed: a text");
            return None;
        }
        Some(text.trim_end().to_owned())
    }

    fn list(&self) -> Vec<Self> {
        let Value::List(items) = &self.tree.value else {
            self.problem("no list", "allowed: a list");
            return Vec::new();
        };
        let item = |(i, tree)| Self {
            tree,
            path: format!("{}[{i}]", self.path),
            file: self.file,
            problems: self.problems,
        };
        items.iter().enumerate().map(item).collect()
    }

    fn texts(&self, key: &str) -> Vec<String> {
        self.get(key).map(|f| f.list()).unwrap_or_default().iter().filter_map(Self::text).collect()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.one_of(&[("true", true), ("false", false)])
    }

    fn one_of<T: Copy>(&self, table: &[(&str, T)]) -> Option<T> {
        let text = self.scalar()?;
        let found = table.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
            self.problem(&format!("{text:?}"), &format!("allowed: {}", names.join(", ")));
        }
        found
    }

    /// Whole seconds or minutes, such as `30s` or `2m`.
    fn duration(&self, key: &str) -> Option<Duration> {
        let field = self.get(key)?;
        let text = field.scalar()?;
        let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).unwrap_or_default();
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            _ => 0,
        };
        let seconds = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
        let found = seconds.map(Duration::from_secs).filter(|d| !d.is_zero() && *d <= LIMIT_MAX);
        if found.is_none() {
            field.problem(&format!("{text:?}"), "allowed: such as 30s or 2m, at most 10m");
        }
        found
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
