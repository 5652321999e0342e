//! The state as JSON, with the keys that the reference node proxy's dump has, so that its users' tools read ours.
//!
//! **Source**: l4.md §7.1. A large state is written piece by piece while it is read: what is held is a list of
//! references and one piece.

mod shapes;

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::http::{Answer, Body, typed};
use crate::identity::{CertState, Certs, Described};
use crate::model::{Authorization, Service, Workload};
use crate::state::Snapshot;

const JSON: &str = "application/json; charset=utf-8";
/// A piece of the dump is about so large.
const PIECE: usize = 64 << 10;

/// What the dump holds beside the snapshot.
pub struct DumpParts {
    /// Id of the network that services' addresses belong to.
    pub network: Arc<str>,
    /// What was built.
    pub version: Value,
    /// Settings in force, none of them secret.
    pub config: Value,
    /// Whether all of the state comes from a local file.
    pub is_static: bool,
    /// As [`dump_certificates`] makes them.
    pub certificates: Value,
    /// Captured pods by UID, sorted, with their open connections.
    pub workload_state: Box<dyn Iterator<Item = (String, Value)> + Send>,
}

/// An answer of one JSON value, for people's eyes too.
pub fn json_answer(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut text = pretty(value, 0);
    text.push(b'\n');
    typed(status, JSON, Bytes::from(text))
}

/// A list of JSON values under one key, made while it is read.
pub fn json_list<T: Send + 'static>(
    key: &'static str,
    items: Vec<T>,
    show: impl Fn(&T) -> Value + Send + 'static,
) -> Answer {
    let whole = std::iter::once(b"{\n".to_vec())
        .chain(list((key, "[", "]\n"), items.into_iter(), move |item| pretty(&show(&item), 2)))
        .chain(std::iter::once(b"}\n".to_vec()));
    typed(StatusCode::OK, JSON, Body::pieces(gathered(whole)))
}

/// The whole dump.
pub fn dump(snapshot: &Snapshot, parts: DumpParts) -> Answer {
    typed(StatusCode::OK, JSON, Body::pieces(pieces(snapshot, parts)))
}

fn pieces(snapshot: &Snapshot, parts: DumpParts) -> impl Iterator<Item = Bytes> + Send + 'static {
    let mut workloads: Vec<_> = snapshot.workloads().cloned().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut services: Vec<_> = snapshot.services().cloned().collect();
    services.sort_by(|a, b| (&a.key.hostname, &a.key.namespace).cmp(&(&b.key.hostname, &b.key.namespace)));
    let mut policies: Vec<_> = snapshot.policies().cloned().collect();
    policies.sort_by(|a, b| a.key.cmp(&b.key));
    // What each workload is an endpoint of, taken now: the snapshot is not to live as long as a slow reader.
    let workloads: Vec<_> = workloads
        .into_iter()
        .map(|workload| (snapshot.services_of(&workload.uid).to_vec(), workload))
        .collect();
    let network = parts.network;
    let fixed =
        if parts.is_static { fixed(&workloads, &services, &policies, &network) } else { nothing_fixed() };
    let staged = named("stagedServices", &shapes::staged(snapshot.background()));
    let small = [("version", parts.version), ("config", parts.config), ("certificates", parts.certificates)];
    let small = small.into_iter().map(|(key, value)| named(key, &value));
    let state = |(uid, state): (String, Value)| [pretty(&uid, 0), b": ".to_vec(), pretty(&state, 2)].concat();
    let whole = std::iter::once(b"{\n".to_vec())
        .chain(array("workloads", workloads, |(services, w)| pretty(&shapes::workload(&w, &services), 2)))
        .chain(array("services", services, move |s| pretty(&shapes::service(&s, &network), 2)))
        .chain(array("policies", policies, |p| pretty(&shapes::policy(&p), 2)))
        .chain(std::iter::once(staged))
        .chain(fixed)
        .chain(small)
        .chain(list(("workloadState", "{", "}\n"), parts.workload_state, state))
        .chain(std::iter::once(b"}\n".to_vec()));
    gathered(whole)
}

type Pieces = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// The local file's content, from which the state comes: services have no endpoints there, workloads tell their ports.
fn fixed(
    workloads: &[(Vec<Arc<Service>>, Arc<Workload>)],
    services: &[Arc<Service>],
    policies: &[Arc<Authorization>],
    network: &Arc<str>,
) -> Pieces {
    let network = Arc::clone(network);
    let (workloads, services, policies) = (workloads.to_vec(), services.to_vec(), policies.to_vec());
    let of_workload =
        |(services, w): (Vec<Arc<Service>>, Arc<Workload>)| pretty(&shapes::local_workload(&w, &services), 2);
    let inside = array("workloads", workloads, of_workload)
        .chain(array("services", services, move |s| pretty(&shapes::local_service(&s, &network), 2)))
        .chain(list(("policies", "[", "]\n"), policies.into_iter(), |p| pretty(&shapes::policy(&p), 2)));
    // One level deeper than what stands alone.
    let deeper = |piece: Vec<u8>| String::from_utf8_lossy(&piece).replace('\n', "\n  ").into_bytes();
    let whole = std::iter::once(b"  \"staticConfig\": {\n  ".to_vec())
        .chain(inside.map(deeper))
        .chain(std::iter::once(b"},\n".to_vec()));
    Box::new(whole)
}

fn nothing_fixed() -> Pieces {
    let nothing = json!({"workloads": [], "services": [], "policies": []});
    Box::new(std::iter::once(named("staticConfig", &nothing)))
}

/// `"key": value,`
fn named(key: &str, value: &Value) -> Vec<u8> {
    let mut out = format!("  \"{key}\": ").into_bytes();
    out.append(&mut pretty(value, 1));
    out.extend_from_slice(b",\n");
    out
}

fn array<T: Send>(
    key: &'static str,
    items: Vec<T>,
    show: impl Fn(T) -> Vec<u8> + Send,
) -> impl Iterator<Item = Vec<u8>> + Send {
    list((key, "[", "],\n"), items.into_iter(), show)
}

/// `"key":`, then the elements one at a time between the two texts.
fn list<T>(
    (key, open, close): (&'static str, &'static str, &'static str),
    items: impl Iterator<Item = T> + Send,
    show: impl Fn(T) -> Vec<u8> + Send,
) -> impl Iterator<Item = Vec<u8>> + Send {
    let head = format!("  \"{key}\": {open}").into_bytes();
    let (mut items, mut first, mut open) = (items, true, true);
    let elements = std::iter::from_fn(move || {
        let Some(item) = items.next() else {
            let indent = if first { "" } else { "\n  " };
            return std::mem::take(&mut open).then(|| format!("{indent}{close}").into_bytes());
        };
        let mut out = if std::mem::take(&mut first) { b"\n    ".to_vec() } else { b",\n    ".to_vec() };
        out.append(&mut show(item));
        Some(out)
    });
    std::iter::once(head).chain(elements)
}

fn gathered(mut small: impl Iterator<Item = Vec<u8>> + Send) -> impl Iterator<Item = Bytes> + Send {
    std::iter::from_fn(move || {
        let mut piece = small.next()?;
        while piece.len() < PIECE
            && let Some(mut more) = small.next()
        {
            piece.append(&mut more);
        }
        Some(piece.into())
    })
}

/// Two spaces a level, of which this value stands at `level`.
fn pretty(value: &impl Serialize, level: usize) -> Vec<u8> {
    let text =
        serde_json::to_string_pretty(value).unwrap_or_else(|error| json!(error.to_string()).to_string());
    if level == 0 {
        return text.into_bytes();
    }
    // A newline inside a string is escaped, so that each one here begins a line.
    text.replace('\n', &format!("\n{}", "  ".repeat(level))).into_bytes()
}

/// All identities of this agent, sorted, with their certificates; never a key.
pub fn dump_certificates(certs: &Certs) -> Value {
    let all = certs.status().into_iter().map(|status| {
        let state = match (status.state, &status.error) {
            (CertState::Unavailable, Some(error)) => format!("Unavailable: {error}"),
            (state, _) => state.to_string(),
        };
        let cert = certs.current(&status.identity);
        let chain = cert.as_ref().map(|c| c.chain()).unwrap_or_default();
        let roots = cert.as_ref().map(|c| c.roots()).unwrap_or_default();
        json!({
            "identity": status.identity.to_string(),
            "state": state,
            "certChain": chain.iter().map(certificate).collect::<Vec<_>>(),
            "rootCerts": roots.iter().map(certificate).collect::<Vec<_>>(),
        })
    });
    Value::Array(all.collect())
}

fn certificate(described: &Described) -> Value {
    json!({
        "pem": STANDARD.encode(pem(&described.der)),
        "serialNumber": described.serial,
        "validFrom": rfc3339(described.not_before),
        "expirationTime": rfc3339(described.not_after),
    })
}

fn pem(der: &[u8]) -> String {
    let mut out = "-----BEGIN CERTIFICATE-----\n".to_owned();
    // 48 bytes are 64 characters, the longest line.
    for line in der.chunks(48) {
        out.push_str(&STANDARD.encode(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;
