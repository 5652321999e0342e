//! What is told beside the flags: families of environment names, the mesh file, `PROXY_CONFIG`.
//!
//! A flag or its own environment name wins over `PROXY_CONFIG`, which wins over the mesh file, which wins over defaults.

use std::collections::BTreeMap;
use std::path::Path;

use culvert_common::source::kube::tree::{self, Tree};
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::control_plane::{Address, address};

/// Where the mesh file is mounted.
const MESH_FILE: &str = "./etc/istio/config/mesh";

/// What a process finds around it when it starts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    pub(crate) variables: BTreeMap<String, String>,
    /// Text of the mesh file, if there is one.
    pub(crate) mesh_file: Option<String>,
}

impl Environment {
    /// This process's.
    ///
    /// **Errors**: the mesh file is there and cannot be read.
    pub(crate) fn of_process() -> Result<Self, String> {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let mesh_file = match std::fs::read_to_string(Path::new(MESH_FILE)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("{MESH_FILE} cannot be read: {error}")),
        };
        Ok(Self { variables, mesh_file })
    }
}

/// What was told beside the flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) discovery_address: Option<Address>,
    pub(crate) admin_port: Option<u16>,
    pub(crate) stats_port: Option<u16>,
    pub(crate) concurrency: Option<u32>,
    pub(crate) trust_domain: Option<String>,
    pub(crate) trust_domain_aliases: Vec<String>,
    /// For the discovery server and the CA; marked as sensitive.
    pub(crate) xds_headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) ca_headers: Vec<(HeaderName, HeaderValue)>,
    /// Node metadata, without the prefix `ISTIO_META_`.
    pub(crate) metadata: Map<String, Value>,
}

impl Told {
    /// All of it.
    ///
    /// **Errors**: each thing that cannot be understood.
    pub(crate) fn read(environment: &Environment, proxy_config: Option<&str>) -> Result<Self, Vec<String>> {
        let (mut told, mut problems) = (Self::default(), Vec::new());
        if let Some(text) = environment.mesh_file.as_deref()
            && let Some(mesh) = document(MESH_FILE, text, &mut problems)
        {
            told.mesh(&mesh, &mut problems);
        }
        if let Some(text) = proxy_config
            && let Some(config) = document("PROXY_CONFIG", text, &mut problems)
        {
            told.proxy_config("PROXY_CONFIG", &config, &mut problems);
        }
        for (name, value) in &environment.variables {
            told.variable(name, value, &mut problems);
        }
        if problems.is_empty() { Ok(told) } else { Err(problems) }
    }

    /// One entry of the node's metadata, where it is a text.
    pub(crate) fn metadata_text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).and_then(Value::as_str)
    }

    fn mesh(&mut self, mesh: &Tree, problems: &mut Vec<String>) {
        if let Some(config) = field(mesh, "defaultConfig") {
            self.proxy_config(MESH_FILE, config, problems);
        }
        self.trust_domain = field(mesh, "trustDomain").and_then(scalar).map(str::to_owned);
        if let Some(tree::Value::List(aliases)) = field(mesh, "trustDomainAliases").map(|tree| &tree.value) {
            self.trust_domain_aliases = aliases.iter().filter_map(scalar).map(str::to_owned).collect();
        }
    }

    fn proxy_config(&mut self, file: &str, config: &Tree, problems: &mut Vec<String>) {
        let mut number = |key: &str, most: u32| -> Option<u32> {
            let text = field(config, key).and_then(scalar)?;
            let number = text.parse().ok().filter(|number| *number <= most);
            if number.is_none() {
                problems.push(format!("{key} of {file} is {text:?}: write a number up to {most}"));
            }
            number
        };
        let port = |number: u32| u16::try_from(number).ok();
        self.admin_port = number("proxyAdminPort", u16::MAX.into()).and_then(port).or(self.admin_port);
        self.stats_port = number("statsPort", u16::MAX.into()).and_then(port).or(self.stats_port);
        self.concurrency = number("concurrency", 4096).or(self.concurrency);
        if let Some(text) = field(config, "discoveryAddress").and_then(scalar) {
            match address(text) {
                Ok(address) => self.discovery_address = Some(address).filter(|address| address.0.is_some()),
                Err(error) => problems.push(format!("discoveryAddress of {file}: {error}")),
            }
        }
        if let Some(tree::Value::Mapping(entries)) = field(config, "proxyMetadata").map(|tree| &tree.value) {
            for (key, value) in entries {
                let key = key.strip_prefix("ISTIO_META_").unwrap_or(key);
                self.metadata.insert(key.to_owned(), scalar(value).unwrap_or_default().into());
            }
        }
    }

    fn variable(&mut self, name: &str, value: &str, problems: &mut Vec<String>) {
        if let Some(key) = name.strip_prefix("ISTIO_METAJSON_") {
            match serde_json::from_str(value) {
                Ok(value) => drop(self.metadata.insert(key.to_owned(), value)),
                Err(error) => problems.push(format!("{name} is no JSON: {error}")),
            }
        } else if let Some(key) = name.strip_prefix("ISTIO_META_") {
            self.metadata.insert(key.to_owned(), value.into());
        } else if let Some(header) = name.strip_prefix("XDS_HEADER_") {
            self.xds_headers.extend(header_of(name, header, value, problems));
        } else if let Some(header) = name.strip_prefix("CA_HEADER_") {
            self.ca_headers.extend(header_of(name, header, value, problems));
        }
    }
}

fn header_of(
    variable: &str,
    name: &str,
    value: &str,
    problems: &mut Vec<String>,
) -> Option<(HeaderName, HeaderValue)> {
    match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        (Ok(name), Ok(mut value)) => {
            value.set_sensitive(true);
            Some((name, value))
        }
        // The value may be a secret.
        _ => {
            problems.push(format!(
                "{variable} is no header: its name or value has characters that no header may have"
            ));
            None
        }
    }
}

fn document(file: &str, text: &str, problems: &mut Vec<String>) -> Option<Tree> {
    if text.trim().is_empty() {
        return None;
    }
    tree::read(file, text).map_err(|problem| problems.push(problem.to_string())).ok()
}

fn field<'a>(tree: &'a Tree, key: &str) -> Option<&'a Tree> {
    match &tree.value {
        tree::Value::Mapping(entries) => {
            entries.iter().find(|(name, _)| &**name == key).map(|(_, tree)| tree)
        }
        _ => None,
    }
}

fn scalar(tree: &Tree) -> Option<&str> {
    match &tree.value {
        tree::Value::Scalar { text, .. } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
