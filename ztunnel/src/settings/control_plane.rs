//! Where the mesh's state and the workloads' certificates come from, and what the agent says of itself there.
//!
//! The flags are as they were told; [`Discovery`] and [`Authority`] are what follows from them, the mesh file and the
//! environment's families (`environment.rs`) together. Secrets are in no form that can be printed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use culvert_common::grpc::{self, Target};
use http::{HeaderName, HeaderValue, Uri};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::environment::Told;

/// Where istiod's certificate authority and discovery answer inside Kubernetes.
const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// Discovery, certificates, and what the agent says of itself.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Control plane")]
#[allow(rustdoc::bare_urls, reason = "the help shows them as they are written")]
pub(crate) struct ControlPlane {
    /// Discovery server (istiod) that the mesh's state comes from, in place of --config; empty for none
    /// [default: discoveryAddress of the mesh file; inside Kubernetes https://istiod.istio-system.svc:15012]
    #[arg(long, env = "XDS_ADDRESS", value_name = "URL", value_parser = address)]
    pub(crate) xds_address: Option<Address>,
    /// Certificate authority (istiod), in place of the embedded one; empty for none
    /// [default: inside Kubernetes https://istiod.istio-system.svc:15012, else the discovery server]
    #[arg(long, env = "CA_ADDRESS", value_name = "URL", value_parser = address)]
    pub(crate) ca_address: Option<Address>,
    /// Roots that the discovery server's certificate is checked against: a file, PEM, or SYSTEM
    #[arg(long, env = "XDS_ROOT_CA", value_name = "ROOTS", default_value = ROOT, value_parser = roots)]
    pub(crate) xds_root_ca: Roots,
    /// The same for the certificate authority
    #[arg(long, env = "CA_ROOT_CA", value_name = "ROOTS", default_value = ROOT, value_parser = roots)]
    pub(crate) ca_root_ca: Roots,
    /// Another name that the discovery server may prove
    #[arg(long, env = "ALT_XDS_HOSTNAME", value_name = "HOST")]
    pub(crate) alt_xds_hostname: Option<String>,
    /// Another name that the certificate authority may prove
    #[arg(long, env = "ALT_CA_HOSTNAME", value_name = "HOST")]
    pub(crate) alt_ca_hostname: Option<String>,
    /// Bearer token for both: its file, or the token itself [default: ./var/run/secrets/tokens/istio-token if it is there]
    #[arg(long, env = "AUTH_TOKEN", hide_env_values = true, value_name = "FILE", value_parser = token)]
    pub(crate) auth_token: Option<Token>,
    /// Ask for a workload when a connection needs it, instead of knowing all of the mesh
    #[arg(long, env = "XDS_ON_DEMAND", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) xds_on_demand: bool,
    /// Largest message that is taken from the discovery server
    #[arg(long, env = "CULVERT_XDS_MESSAGE_MAX", value_name = "BYTES", default_value_t = 200 << 20, value_parser = clap::value_parser!(u32).range((64 << 10)..=(1 << 30)))]
    pub(crate) xds_message_max: u32,
    /// Most that is kept of what it says, counted as it comes over the wire; what is beyond is refused
    #[arg(long, env = "CULVERT_XDS_STATE_MAX", value_name = "BYTES", default_value_t = 200 << 20, value_parser = clap::value_parser!(u32).range((64 << 10)..))]
    pub(crate) xds_state_max: u32,
    /// File with the mesh's workloads, services and policies in the reference node proxy's form; read again when it changes
    #[arg(long, env = "LOCAL_XDS_PATH", value_name = "FILE")]
    pub(crate) local_xds_path: Option<PathBuf>,
    /// The same as text
    #[arg(long, env = "LOCAL_XDS", hide_env_values = true, value_name = "YAML")]
    pub(crate) local_xds: Option<String>,
    /// Folder where the last state of the discovery server, or which waypoints were ready, is kept for the next start, or off
    /// [default: culvert-state beside the ZDS socket]
    #[arg(long, env = "CULVERT_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Trust domains beside --trust-domain whose identities are those of this mesh
    #[arg(long, env = "CULVERT_TRUST_DOMAIN_ALIASES", value_name = "DOMAIN", value_delimiter = ',')]
    pub(crate) trust_domain_aliases: Vec<String>,
    /// Revocation lists (PEM or DER) that peers' certificates are checked against; read again when the file changes
    #[arg(long, env = "CRL_PATH", value_name = "FILE")]
    pub(crate) crl_path: Option<PathBuf>,
    /// Name of the agent's own pod
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub(crate) pod_name: Option<String>,
    /// Namespace of the agent's own pod
    #[arg(long, env = "POD_NAMESPACE", value_name = "NS")]
    pub(crate) pod_namespace: Option<String>,
    /// Service account of the agent's own pod
    #[arg(long, env = "SERVICE_ACCOUNT", value_name = "NAME")]
    pub(crate) service_account: Option<String>,
    /// Address of the agent's own pod
    #[arg(long, env = "INSTANCE_IP", value_name = "IP")]
    pub(crate) instance_ip: Option<IpAddr>,
    /// YAML of a ProxyConfig, which wins over the mesh file ./etc/istio/config/mesh
    #[arg(long, env = "PROXY_CONFIG", hide_env_values = true, value_name = "YAML")]
    pub(crate) proxy_config: Option<String>,
    /// Answer the pods' DNS queries for names of the mesh: true or unset; anything else is off
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", value_name = "BOOL")]
    pub(crate) dns_capture: Option<String>,
    /// Where the DNS proxy listens in each pod
    #[arg(long, env = "ISTIO_META_DNS_PROXY_ADDR", value_name = "ADDR", default_value = "localhost:15053", value_parser = dns_address)]
    pub(crate) dns_proxy_addr: DnsAddress,
    /// Namespace whose service is answered with where several have the name that was asked for
    #[arg(long, env = "PREFERED_SERVICE_NAMESPACE", value_name = "NS")]
    pub(crate) prefered_service_namespace: Option<String>,
    /// Application tunnels of a workload reach its loopback
    #[arg(long, env = "LOCALHOST_APP_TUNNEL", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) localhost_app_tunnel: bool,
    /// What the mesh file and the environment's families say.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) told: Told,
}

/// Where the mesh's state comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// A discovery server.
    Xds(Box<Server>),
    /// A file in the form of the reference node proxy.
    LocalFile(PathBuf),
    /// The text of such a file.
    LocalText(String),
    /// A directory of Kubernetes YAML.
    Directory(PathBuf),
}

/// Who signs the workloads' certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Authority {
    /// A server that speaks Istio's protocol.
    Istio(Box<Server>),
    /// The embedded one; never inside Kubernetes.
    Embedded,
}

/// A server of the control plane, and how the agent proves and checks who is who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) address: Uri,
    pub(crate) roots: Roots,
    /// Another name that its certificate may have.
    pub(crate) alternative_host: Option<String>,
    pub(crate) token: Option<Token>,
    /// For each call, beside the token and the cluster's id.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Server {
    /// What a connection to it needs; `cluster` is this cluster's id.
    pub(crate) fn target(&self, cluster: &str) -> Target {
        let id = HeaderValue::try_from(cluster).ok().map(|id| (HeaderName::from_static("clusterid"), id));
        Target {
            address: self.address.clone(),
            roots: match &self.roots {
                Roots::File(path) => grpc::Roots::File(path.clone()),
                Roots::Pem(pem) => grpc::Roots::Pem(pem.clone()),
                Roots::System => grpc::Roots::System,
            },
            alternative_host: self.alternative_host.clone(),
            token: self.token.clone().map(|token| match token {
                Token::File(path) => grpc::Token::File(path),
                Token::Literal(text) => grpc::Token::Literal(grpc::Secret::new(text)),
            }),
            headers: id.into_iter().chain(self.headers.clone()).collect(),
        }
    }
}

/// `XDS_ADDRESS`: a server, or none at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) Option<Uri>);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0.as_ref().map(ToString::to_string).unwrap_or_default())
    }
}

/// What a server's certificate is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    /// Read for each connection.
    File(PathBuf),
    Pem(String),
    /// Those of the machine.
    System,
}

impl Serialize for Roots {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::File(path) => to.collect_str(&path.display()),
            Self::Pem(_) => to.serialize_str("PEM"),
            Self::System => to.serialize_str("SYSTEM"),
        }
    }
}

/// A bearer token; never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// Read for each call.
    File(PathBuf),
    Literal(String),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::File(path) => to.collect_str(&path.display()),
            Self::Literal(_) => to.serialize_str("given"),
        }
    }
}

/// Where the DNS proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsAddress {
    /// Loopback of both families.
    Localhost(u16),
    At(SocketAddr),
}

impl Serialize for DnsAddress {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Localhost(port) => to.collect_str(&format_args!("localhost:{port}")),
            Self::At(addr) => to.collect_str(addr),
        }
    }
}

/// The agent's own pod, where it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnPod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
}

impl ControlPlane {
    /// Where the mesh's state comes from; `directory` unless told otherwise.
    pub(crate) fn discovery(&self, directory: &Path, in_kubernetes: bool) -> Discovery {
        let told = self.xds_address.clone().or_else(|| self.told.discovery_address.clone());
        match (told, &self.local_xds_path, &self.local_xds) {
            (None, Some(path), _) => Discovery::LocalFile(path.clone()),
            (None, None, Some(text)) => Discovery::LocalText(text.clone()),
            (Some(Address(Some(uri))), _, _) => Discovery::Xds(Box::new(self.discovery_server(uri))),
            (None, None, None) if in_kubernetes => {
                Discovery::Xds(Box::new(self.discovery_server(Uri::from_static(ISTIOD))))
            }
            (Some(Address(None)), Some(path), _) => Discovery::LocalFile(path.clone()),
            (Some(Address(None)), None, Some(text)) => Discovery::LocalText(text.clone()),
            (_, None, None) => Discovery::Directory(directory.to_owned()),
        }
    }

    /// Who signs certificates; `discovery` is where the state comes from.
    pub(crate) fn authority(&self, discovery: &Discovery, in_kubernetes: bool) -> Authority {
        let address = match (&self.ca_address, discovery) {
            (Some(Address(told)), _) => told.clone(),
            (None, _) if in_kubernetes => Some(Uri::from_static(ISTIOD)),
            (None, Discovery::Xds(server)) => Some(server.address.clone()),
            (None, _) => None,
        };
        address.map_or(Authority::Embedded, |address| {
            Authority::Istio(Box::new(Server {
                address,
                roots: self.ca_root_ca.clone(),
                alternative_host: self.alt_ca_hostname.clone(),
                token: self.token(),
                headers: self.told.ca_headers.clone(),
            }))
        })
    }

    fn discovery_server(&self, address: Uri) -> Server {
        Server {
            address,
            roots: self.xds_root_ca.clone(),
            alternative_host: self.alt_xds_hostname.clone(),
            token: self.token(),
            headers: self.told.xds_headers.clone(),
        }
    }

    fn token(&self) -> Option<Token> {
        let usual = || Path::new(TOKEN).exists().then(|| Token::File(TOKEN.into()));
        self.auth_token.clone().or_else(usual)
    }

    /// The id that the discovery server knows this agent by. **Source**: l4.md §4.1.
    pub(crate) fn node_id(&self) -> String {
        let ip = self.instance_ip.unwrap_or(IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)));
        let (name, ns) = (text(self.pod_name.as_ref()), text(self.pod_namespace.as_ref()));
        format!("ztunnel~{ip}~{name}.{ns}~{ns}.svc.cluster.local")
    }

    /// What it says of itself there.
    pub(crate) fn node_metadata(&self, node: Option<&str>) -> Map<String, Value> {
        let mut all = Map::new();
        let ip = self.instance_ip.unwrap_or(IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)));
        all.insert("NAME".into(), text(self.pod_name.as_ref()).into());
        all.insert("NAMESPACE".into(), text(self.pod_namespace.as_ref()).into());
        all.insert("INSTANCE_IPS".into(), ip.to_string().into());
        all.insert("NODE_NAME".into(), node.unwrap_or_default().into());
        all.extend(self.told.metadata.clone());
        all
    }

    /// Whether the pods' DNS queries are answered.
    pub(crate) fn dns_capture(&self) -> bool {
        let told = self.dns_capture.as_deref().or_else(|| self.told.metadata_text("DNS_CAPTURE"));
        told.is_none_or(|told| told.eq_ignore_ascii_case("true"))
    }

    /// The agent's own pod; `None` unless all of it is told.
    pub(crate) fn own_pod(&self) -> Option<OwnPod> {
        let named = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        Some(OwnPod {
            name: named(&self.pod_name)?,
            namespace: named(&self.pod_namespace)?,
            service_account: named(&self.service_account)?,
        })
    }

    /// Where the last state is kept.
    pub(crate) fn state_dir(&self, zds_socket: &Path) -> Option<PathBuf> {
        match &self.state_dir {
            Some(dir) if dir.as_os_str() == "off" => None,
            Some(dir) => Some(dir.clone()),
            None => Some(zds_socket.with_file_name("culvert-state")),
        }
    }

    /// What only several of these together can get wrong.
    pub(crate) fn problems(&self, in_kubernetes: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let address = self.xds_address.clone().or_else(|| self.told.discovery_address.clone());
        if self.local_xds_path.is_some() && self.local_xds.is_some() {
            problems.push("LOCAL_XDS_PATH and LOCAL_XDS are both set: choose one".to_owned());
        } else if let (Some(Address(Some(address))), true) =
            (address, self.local_xds_path.is_some() || self.local_xds.is_some())
        {
            problems.push(format!(
                "LOCAL_XDS_PATH or LOCAL_XDS is set, and the discovery server {address} (XDS_ADDRESS or discoveryAddress) \
                 too: the state comes from one of them; set XDS_ADDRESS to nothing for the file"
            ));
        }
        if in_kubernetes && self.ca_address == Some(Address(None)) {
            problems.push(
                "CA_ADDRESS is empty and KUBERNETES_SERVICE_HOST is set: with the embedded CA this agent would hold the \
                 mesh's root key inside Kubernetes; name a certificate authority, or run the agent outside a pod"
                    .to_owned(),
            );
        }
        problems
    }
}

fn text(field: Option<&String>) -> &str {
    field.map_or("", String::as_str)
}

/// A URL of http or https; https where no scheme is written.
pub(super) fn address(text: &str) -> Result<Address, String> {
    if text.is_empty() {
        return Ok(Address(None));
    }
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let wrong =
        || format!("{text} is no address of a server; write for example {ISTIOD}, or nothing for none");
    let uri: Uri = full.parse().map_err(|_| wrong())?;
    let scheme = matches!(uri.scheme_str(), Some("https" | "http"));
    let bare = matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("/" | ""));
    let host = uri.host().is_some_and(|host| !host.is_empty());
    if scheme && bare && host { Ok(Address(Some(uri))) } else { Err(wrong()) }
}

fn roots(text: &str) -> Result<Roots, String> {
    match text {
        "" => Err("write a file, PEM, or SYSTEM".into()),
        "SYSTEM" => Ok(Roots::System),
        pem if pem.contains("-----BEGIN") => Ok(Roots::Pem(pem.into())),
        path => Ok(Roots::File(path.into())),
    }
}

/// Refuses nothing but nothing: what is said of a wrong value would print it.
fn token(text: &str) -> Result<Token, String> {
    match text.trim() {
        "" => Err("write the file of a token, or the token".into()),
        // No token begins so: a JWT begins with base64.
        path if path.starts_with(['/', '.']) || Path::new(path).exists() => Ok(Token::File(path.into())),
        literal => Ok(Token::Literal(literal.into())),
    }
}

fn dns_address(text: &str) -> Result<DnsAddress, String> {
    let wrong =
        || "write localhost and a port, or an address and a port, for example localhost:15053".to_owned();
    match text.strip_prefix("localhost:") {
        Some(port) => port.parse().map(DnsAddress::Localhost).map_err(|_| wrong()),
        None => text.parse().map(DnsAddress::At).map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests;
