//! The waypoint's settings: flags, each with an environment name.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use culvert_common::config::duration;
use culvert_common::hbone::{Http2, Limits};
use culvert_common::model::l7::{AboveRoot, Fraction, GatewayKey, Normalization};
use culvert_common::source::kube;
use culvert_common::telemetry::LogFormat;
use culvert_common::types::SpiffeId;

use crate::log::Form;

/// Bytes that a client may send on one CONNECT stream before they are taken: with less, bulk comes in pieces so small that
/// they cost more than what is in them.
const CLIENT_WINDOW: u32 = 1 << 20;
/// Bytes that a server may send on one: less, since many answers may wait for clients that do not read.
const SERVER_WINDOW: u32 = 256 * 1024;

/// Culvert's waypoint: HTTP routing, resilience and authorization for the services and workloads that are bound to it.
#[derive(Parser, Debug, Clone)]
#[command(name = "waypoint", version, max_term_width = 110)]
#[command(after_help = "Example: be the waypoint that the Gateway shop/waypoint in ./mesh describes\n\n  \
    waypoint --config ./mesh --gateway shop/waypoint --ca-dir /var/lib/culvert/ca")]
pub(crate) struct Settings {
    /// Directory of Kubernetes YAML; read again on change
    #[arg(long, env = "CULVERT_CONFIG", default_value = "./mesh", value_name = "DIR")]
    pub(crate) config: PathBuf,
    /// The Gateway to be, `<namespace>/<name>`; needed only if the directory has several of class culvert-waypoint
    #[arg(long, env = "WAYPOINT_GATEWAY", value_name = "NAMESPACE/NAME", value_parser = gateway)]
    pub(crate) gateway: Option<GatewayKey>,
    /// Directory of the embedded CA, shared with the node agents
    #[arg(long, env = "CULVERT_CA_DIR", default_value = "./ca", value_name = "DIR")]
    pub(crate) ca_dir: PathBuf,
    /// Trust domain of all identities
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub(crate) trust_domain: String,
    /// Trust domains beside --trust-domain whose identities are those of this mesh
    #[arg(long, env = "CULVERT_TRUST_DOMAIN_ALIASES", value_name = "DOMAIN", value_delimiter = ',')]
    pub(crate) trust_domain_aliases: Vec<String>,
    /// Cluster id
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub(crate) cluster_id: String,
    /// Domain of service names
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Namespace whose objects apply to the whole mesh
    #[arg(long, env = "ROOT_NAMESPACE", default_value = "istio-system")]
    pub(crate) root_namespace: String,
    /// How paths are made plain before anything looks at them: none, base, merge-slashes or decode-and-merge-slashes
    #[arg(long, env = "PATH_NORMALIZATION", default_value = "base", value_name = "HOW", value_parser = normalization)]
    pub(crate) path_normalization: Normalization,
    /// Answer paths that climb above their root with 400, instead of dropping what climbs
    #[arg(long, env = "PATH_STRICT", value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(crate) path_strict: bool,
    /// Service accounts of proxies whose X-Forwarded-For is believed, such as ingress gateways: what it says is what
    /// remoteIpBlocks and remote.ip see, in place of the proxy's own address
    #[arg(long, env = "TRUSTED_PROXIES", value_name = "NAMESPACE/NAME", value_delimiter = ',', value_parser = account)]
    pub(crate) trusted_proxies: Vec<Account>,
    /// How many proxies in a row add to that header: the client is so many addresses from its end
    #[arg(long, env = "TRUSTED_HOPS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) trusted_hops: u32,
    /// Where node agents connect
    #[arg(long, env = "HBONE_ADDR", default_value_t = any(15008), value_name = "ADDR")]
    pub(crate) hbone_addr: SocketAddr,
    /// Admin pages
    #[arg(long, env = "ADMIN_ADDR", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)), value_name = "ADDR")]
    pub(crate) admin_addr: SocketAddr,
    /// Prometheus metrics
    #[arg(long, env = "STATS_ADDR", default_value_t = any(15020), value_name = "ADDR")]
    pub(crate) stats_addr: SocketAddr,
    /// Readiness
    #[arg(long, env = "READINESS_ADDR", default_value_t = any(15021), value_name = "ADDR")]
    pub(crate) ready_addr: SocketAddr,
    /// Threads that carry traffic; as many as CPUs without
    #[arg(long, env = "WORKER_THREADS", value_name = "N")]
    pub(crate) worker_threads: Option<std::num::NonZero<usize>>,
    /// Bytes that may wait for endpoints and clients that do not read
    #[arg(long, env = "MEMORY_BUDGET", default_value_t = 32 << 20, value_name = "BYTES")]
    pub(crate) memory_budget: u64,
    /// How long open requests may go on when the waypoint is asked to end
    #[arg(long, env = "TERMINATION_DEADLINE", default_value = "5s", value_name = "DURATION", value_parser = duration)]
    pub(crate) termination_deadline: Duration,
    /// A client's connection without requests is ended after so long
    #[arg(long, env = "ISTIO_META_IDLE_TIMEOUT", default_value = "1h", value_name = "DURATION", value_parser = duration)]
    pub(crate) idle_timeout: Duration,
    /// Line of each request and TCP connection: Envoy's default text, its JSON, or none
    #[arg(long, env = "ACCESS_LOG", value_enum, default_value_t = AccessLog::Text, value_name = "FORM")]
    pub(crate) access_log: AccessLog,
    /// Percent of the requests that have a span, of those whose caller has not decided
    #[arg(long, env = "CULVERT_TRACE_SAMPLING", default_value = "1", value_name = "PERCENT", value_parser = percent)]
    pub(crate) trace_sampling: Fraction,
    /// Form of the waypoint's own log
    #[arg(long, env = "LOG_FORMAT", default_value = "json", value_name = "FORM", value_parser = log_format)]
    pub(crate) log_format: LogFormat,
    /// Log levels, such as `info` or `info,access=off`
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "LEVELS")]
    pub(crate) log: String,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    namespace: String,
    name: String,
}

/// Whether and how requests are logged.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessLog {
    Text,
    Json,
    Off,
}

impl AccessLog {
    pub(crate) fn form(self) -> Option<Form> {
        match self {
            Self::Text => Some(Form::Text),
            Self::Json => Some(Form::Json),
            Self::Off => None,
        }
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "json" => Ok(LogFormat::Json),
        "plain" => Ok(LogFormat::Plain),
        _ => Err("allowed: json, plain".into()),
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

/// `<namespace>/<name>`
fn key(text: &str) -> Option<(&str, &str)> {
    let is_name = |name: &str| !name.is_empty() && !name.contains('/');
    text.split_once('/').filter(|(namespace, name)| is_name(namespace) && is_name(name))
}

fn gateway(text: &str) -> Result<GatewayKey, String> {
    let (namespace, name) =
        key(text).ok_or("allowed: <namespace>/<name> of a Gateway, for example shop/waypoint")?;
    Ok(GatewayKey { namespace: namespace.into(), name: name.into() })
}

fn account(text: &str) -> Result<Account, String> {
    let allowed = "allowed: <namespace>/<name> of a service account, for example istio-ingress/gateway";
    let (namespace, name) = key(text).ok_or(allowed)?;
    SpiffeId::new("cluster.local", namespace, name).map_err(|_| allowed)?;
    Ok(Account { namespace: namespace.into(), name: name.into() })
}

fn percent(text: &str) -> Result<Fraction, String> {
    match text.parse::<f64>() {
        // A millionth is the smallest step; what is out of range does not come here.
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Fraction((percent * 10_000.0).round() as u32)),
        _ => Err("allowed: 0 to 100".into()),
    }
}

fn normalization(text: &str) -> Result<Normalization, String> {
    match text {
        "none" => Ok(Normalization::None),
        "base" => Ok(Normalization::Base),
        "merge-slashes" => Ok(Normalization::MergeSlashes),
        "decode-and-merge-slashes" => Ok(Normalization::DecodeAndMergeSlashes),
        _ => Err("allowed: none, base, merge-slashes, decode-and-merge-slashes".into()),
    }
}

impl Settings {
    /// Threads that carry traffic.
    pub(crate) fn workers(&self) -> usize {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.worker_threads.map_or(cpus, std::num::NonZero::get)
    }

    /// For tunnels that clients open, and for those to endpoints.
    pub(crate) fn http2(&self) -> [Http2; 2] {
        [(CLIENT_WINDOW, 256 * 1024), (SERVER_WINDOW, 64 * 1024)]
            .map(|(window, frame)| Http2::new(window, None, frame, 100))
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Identities of the proxies that are believed, in all names of the mesh's trust domain.
    pub(crate) fn trusted_proxies(&self) -> Vec<SpiffeId> {
        let domains = || std::iter::once(&self.trust_domain).chain(&self.trust_domain_aliases);
        let of = |account: &Account| {
            let (namespace, name) = (account.namespace.clone(), account.name.clone());
            domains()
                .filter_map(move |domain| SpiffeId::new(domain, &namespace, &name).ok())
                .collect::<Vec<_>>()
        };
        self.trusted_proxies.iter().flat_map(of).collect()
    }

    /// What the translation of documents needs to know.
    pub(crate) fn translation(&self) -> kube::Settings {
        kube::Settings {
            cluster: self.cluster_id.as_str().into(),
            trust_domain: self.trust_domain.as_str().into(),
            cluster_domain: self.cluster_domain.as_str().into(),
            root_namespace: self.root_namespace.as_str().into(),
            waypoint: Some(self.gateway.clone().unwrap_or_default()),
            trust_domain_aliases: self
                .trust_domain_aliases
                .iter()
                .map(|domain| domain.as_str().into())
                .collect(),
            normalization: self.path_normalization,
            above_root: if self.path_strict { AboveRoot::Refused } else { AboveRoot::Dropped },
            ..kube::Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Settings::command().debug_assert();
        assert_eq!(normalization("merge-slashes"), Ok(Normalization::MergeSlashes));
        assert!(normalization("Base").is_err());
        assert!(gateway("shop/waypoint").is_ok() && gateway("shop").is_err() && gateway("a/b/c").is_err());
    }
    #[test]
    fn what_is_strict_or_trusted_is_said() {
        let of = |args: &[&str]| Settings::try_parse_from(["waypoint"].iter().chain(args));
        let plain = of(&[]).unwrap();
        assert_eq!(plain.translation().above_root, AboveRoot::Dropped);
        assert_eq!((plain.trusted_proxies(), plain.trusted_hops), (vec![], 1), "nobody is believed");
        assert_eq!(of(&["--path-strict"]).unwrap().translation().above_root, AboveRoot::Refused);
        let trusting = of(&["--trusted-proxies=a/b,c/d", "--trust-domain-aliases=old", "--trusted-hops=2"]);
        let trusting = trusting.unwrap();
        assert_eq!(
            trusting.trusted_proxies().iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "spiffe://cluster.local/ns/a/sa/b",
                "spiffe://old/ns/a/sa/b",
                "spiffe://cluster.local/ns/c/sa/d",
                "spiffe://old/ns/c/sa/d"
            ]
        );
        for bad in
            ["--trusted-proxies=a", "--trusted-proxies=a/b/c", "--trusted-proxies=a/*", "--trusted-hops=0"]
        {
            assert!(of(&[bad]).is_err(), "{bad}");
        }
    }
}
