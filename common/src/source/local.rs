//! A mesh in one file, in the form that the reference node proxy reads (`LOCAL_XDS_PATH`): workloads, services, policies.
//!
//! What a control plane would send, written by hand: no translation of Kubernetes objects stands between. Keys are those
//! of the configuration dump; one that is not known is a problem, with its line and what is allowed. A file that changes is
//! read again ([`watch`]); while it is wrong, the last good state stays. Pure but for that and [`load`]. Start with
//! [`translate`]. **Source**: l4.md §6.2.

mod policy;
mod reload;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use super::kube::reader::{At, Field, Report};
use super::kube::yaml;
use crate::config::Problem;
use crate::model::{Endpoint, GatewayAddress, GatewayDestination, Model};
use crate::types::{PolicyKey, ServiceKey};

pub use reload::{LocalSource, watch};

/// Largest file.
const BYTES_MAX: u64 = 32 << 20;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// It cannot be read.
    #[error("{path} cannot be read ({source}); check LOCAL_XDS_PATH and the file's permissions")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is too large.
    #[error("{path} has more than {} MiB; is it the right file?", BYTES_MAX >> 20)]
    TooLarge {
        /// The file.
        path: String,
    },
    /// What it says is wrong; all problems, one a line.
    #[error("{} problem(s) in the local file:\n{}", .0.len(), lines(.0))]
    Problems(Vec<Problem>),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads the file at `path`. `network` is the agent's own; virtual addresses of others are left out.
///
/// **Errors**: unreadable, too large, or all problems in it.
pub fn load(path: &Path, network: &str) -> Result<Model, LocalError> {
    parse(&path.display().to_string(), &read(path)?, network)
}

fn read(path: &Path) -> Result<Vec<u8>, LocalError> {
    let mut bytes = Vec::new();
    // O_NONBLOCK: a pipe in the file's place must not hold the agent.
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let read = opened.and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
    let path = || path.display().to_string();
    match read {
        Err(source) => Err(LocalError::Io { path: path(), source }),
        Ok(read) if read as u64 > BYTES_MAX => Err(LocalError::TooLarge { path: path() }),
        Ok(_) => Ok(bytes),
    }
}

fn parse(shown: &str, bytes: &[u8], network: &str) -> Result<Model, LocalError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => translate(shown, text, network).map_err(LocalError::Problems),
        Err(_) => Err(LocalError::Problems(vec![Problem {
            file: shown.to_owned(),
            line: 0,
            object: String::new(),
            field: String::new(),
            seen: "bytes that are no UTF-8".into(),
            allowed: "allowed: YAML or JSON in UTF-8".into(),
        }])),
    }
}

/// What `text` says. `file` is its name in reports.
///
/// **Errors**: every problem in it.
pub fn translate(file: &str, text: &str, network: &str) -> Result<Model, Vec<Problem>> {
    let report = Report::default();
    let mut model = Model::default();
    let at = At { file: file.into(), line: 0, object: "".into() };
    let mut documents = yaml::documents(text);
    // An empty file is an empty mesh.
    match documents.next() {
        Some(Ok(document)) => root(&Field::root(&document, &at, &report), network, &mut model),
        Some(Err(refused)) => {
            report.problem(Problem { line: refused.line, ..at.about("", refused.reason, "") })
        }
        None => {}
    }
    match documents.next() {
        Some(Ok(second)) => report.problem(Problem {
            line: second.line,
            ..at.about("", "a second document", "allowed: one YAML document")
        }),
        Some(Err(refused)) => {
            report.problem(Problem { line: refused.line, ..at.about("", refused.reason, "") })
        }
        None => {}
    }
    let (problems, _) = report.finish();
    if problems.is_empty() { Ok(model.settle()) } else { Err(problems) }
}

fn root(file: &Field<'_>, network: &str, model: &mut Model) {
    file.only(&["workloads", "services", "policies"]);
    let mut members: BTreeMap<ServiceKey, Vec<Endpoint>> = BTreeMap::new();
    for field in file.items("workloads") {
        if let Some((workload, services)) = workload::read(&field) {
            for (key, ports) in services {
                let endpoint = Endpoint { workload: workload.uid.clone(), ports, health: workload.health };
                members.entry(key).or_default().push(endpoint);
            }
            model.workloads.push(workload);
        }
    }
    for field in file.items("services") {
        if let Some(mut service) = service::read(&field, network) {
            service.endpoints = members.remove(&service.key).unwrap_or_default();
            for endpoint in &mut service.endpoints {
                let same =
                    |port: &u16, target: &u16| service.ports.get(port).is_some_and(|p| p.target == *target);
                endpoint.ports.retain(|port, target| *target != 0 && !same(port, target));
            }
            model.services.push(service);
        }
    }
    model.background.staged = members;
    model.policies.extend(file.items("policies").iter().filter_map(policy::read));
}

/// The texts of the list `key`.
fn texts<'a>(of: &Field<'a>, key: &str) -> Vec<&'a str> {
    of.items(key).iter().filter_map(Field::text).collect()
}

/// The text `key`; reports that it is missing.
fn required<'a>(of: &Field<'a>, key: &str) -> Option<&'a str> {
    let text = of.text_at(key);
    if text.is_none() {
        of.problem(format!("no {key}"), format!("required: {key}"));
    }
    text
}

fn text_or<'a>(of: &Field<'a>, key: &str, default: &'a str) -> Arc<str> {
    of.text_at(key).unwrap_or(default).into()
}

/// `<namespace>/<host name>`
fn service_key(field: &Field<'_>, text: &str) -> Option<ServiceKey> {
    let (namespace, hostname) = named(field, text, "<namespace>/<host name>")?;
    Some(ServiceKey { namespace, hostname })
}

/// `<namespace>/<name>`
fn policy_key(field: &Field<'_>) -> Option<PolicyKey> {
    let (namespace, name) = named(field, field.text()?, "<namespace>/<name>")?;
    Some(PolicyKey { namespace, name })
}

fn named(field: &Field<'_>, text: &str, form: &str) -> Option<(Arc<str>, Arc<str>)> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Some((namespace.into(), name.into()))
        }
        _ => {
            field.problem(format!("{text:?}"), format!("allowed: {form}"));
            None
        }
    }
}

/// A number of a key or a value, as a port; 0 is one.
fn port_or_zero(field: &Field<'_>, text: &str) -> Option<u16> {
    let port = text.parse().ok();
    if port.is_none() {
        field.problem(format!("{text:?}"), "allowed: a port number, 0 to 65535");
    }
    port
}

/// The mapping of ports to ports `key`.
fn ports(field: &Field<'_>) -> BTreeMap<u16, u16> {
    let entry = |(key, value): (&str, Field<'_>)| {
        let target = number(&value)?;
        Some((
            port_or_zero(&value, key)?,
            u16::try_from(target).ok().or_else(|| {
                value.refuse("a port number, 0 to 65535");
                None
            })?,
        ))
    };
    field.entries().into_iter().filter_map(entry).collect()
}

fn number(field: &Field<'_>) -> Option<u32> {
    let found = match &field.node().kind {
        yaml::Kind::Scalar { text, plain: true } => text.parse().ok(),
        _ => None,
    };
    if found.is_none() {
        field.refuse("a number, 0 or more");
    }
    found
}

/// `{destination: <network>/<address> or <namespace>/<host name>, hboneMtlsPort: 15008}`
fn gateway(field: &Field<'_>) -> Option<GatewayAddress> {
    field.only(&["destination", "hboneMtlsPort"]);
    let destination = required(field, "destination")?;
    let (first, second) = destination.split_once('/').unwrap_or(("", ""));
    let destination = match second.parse() {
        Ok(ip) => GatewayDestination::Address { network: first.into(), ip },
        Err(_) => GatewayDestination::Hostname(service_key(&field.get("destination")?, destination)?),
    };
    let port = field.get("hboneMtlsPort").map_or(Some(15008), |port| port.port())?;
    Some(GatewayAddress { destination, port })
}

fn optional_gateway(of: &Field<'_>, key: &str) -> Option<Arc<GatewayAddress>> {
    of.get(key).and_then(|field| gateway(&field)).map(Arc::new)
}
