//! The agent's settings: flags, each with the environment name that the reference node proxy uses where it has one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::admission::PodLimits;
use crate::memory;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use culvert_common::hbone::{Http2, Limits};
use culvert_common::model;
use culvert_common::net::netns::NetNs;
use culvert_common::telemetry::LogFormat;
use serde::Serialize;

use crate::enroll::settings::{EnrollSettings, Enrolment};
use crate::sandbox::Role;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold());

/// Culvert's node agent: captures the TCP traffic of this node's pods and carries it over mutual TLS (HBONE).
#[derive(Parser, Debug)]
#[command(name = "ztunnel", version, styles = STYLES, max_term_width = 110, args_conflicts_with_subcommands = true)]
#[command(after_help = "Example: run the agent of node-1 from the YAML files in ./mesh\n\n  \
    ztunnel --config ./mesh --node node-1 --ca-dir /var/lib/culvert/ca\n\n\
    Each pod to capture carries the annotation culvert.dev/netns: /run/netns/<name>, or is named with --pod.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Only carry traffic, of the pods that another process hands over; without a command both are one process
    #[command(
        after_help = "Example: serve the pods that `ztunnel enroll` of this node, or Istio's CNI agent, hands over\n\n  \
        ztunnel proxy --config ./mesh --node node-1 --zds-socket /var/run/ztunnel/ztunnel.sock"
    )]
    Proxy(Box<Settings>),
    /// Only write the pods' capture rules, guard them, and hand the pods over to a proxy that another process is
    #[command(after_help = "Example: capture the pods of node-1 for the proxy that connects\n\n  \
        ztunnel enroll --config ./mesh --node node-1 --zds-socket /var/run/ztunnel/ztunnel.sock")]
    Enroll(Box<EnrollSettings>),
    /// Remove the capture rules from this node's pods, for when the agent is gone for good
    ///
    /// A stopped agent leaves its rules in place, so that captured pods are refused, never bypassed.
    #[command(after_help = "Example: ztunnel release --config ./mesh --node node-1")]
    Release(Box<Settings>),
    /// Print the version
    Version,
}

#[derive(Args, Serialize, Debug, Clone)]
pub(crate) struct Settings {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) capture: Capture,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) enrolment: Enrolment,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) identity: Identity,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) tunnel: Tunnel,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) budgets: Budgets,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) lifecycle: Lifecycle,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) process: Process,
}

/// What the mesh is.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Mesh configuration")]
pub(crate) struct Source {
    /// Directory of the YAML that `kubectl apply` takes; re-read when it changes
    #[arg(long, env = "CULVERT_CONFIG", value_name = "DIR", default_value = "/etc/culvert/mesh")]
    pub(crate) config: PathBuf,
    /// Name of this node; without it every pod that names its namespace is captured
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Cluster id in telemetry and workload UIDs
    #[arg(long, env = "CLUSTER_ID", value_name = "ID", default_value = "Kubernetes")]
    pub(crate) cluster_id: String,
    /// Another name of the cluster id, which wins
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", hide = true)]
    pub(crate) istio_meta_cluster_id: Option<String>,
    /// Domain of service host names
    #[arg(long, env = "CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Namespace whose policies apply to the whole mesh
    #[arg(long, env = "CULVERT_ROOT_NAMESPACE", value_name = "NS", default_value = "istio-system")]
    pub(crate) root_namespace: String,
    /// Id of this network
    #[arg(long, env = "NETWORK", value_name = "ID", default_value = "")]
    pub(crate) network: String,
    /// Ranges that service addresses are taken from; an address outside is warned of
    #[arg(long, env = "CULVERT_SERVICE_RANGE", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_range: Vec<ipnet::IpNet>,
    /// Ranges that pods' addresses are taken from; while the state is incomplete nothing unknown in them, or in the service
    /// ranges, is sent in plaintext
    #[arg(long, env = "CULVERT_POD_RANGE", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) pod_range: Vec<ipnet::IpNet>,
    /// What becomes of plaintext to a pod that is labelled but not captured, or STRICT: enforce (hold, then refuse), count
    #[arg(long, env = "CULVERT_NO_DOWNGRADE", value_name = "WHAT", default_value = "enforce")]
    pub(crate) no_downgrade: NoDowngrade,
    /// Namespaces that are never captured
    #[arg(
        long,
        env = "CULVERT_EXCLUDE_NAMESPACES",
        value_name = "NS",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub(crate) exclude_namespaces: Vec<String>,
    /// Let a DENY rule that has only HTTP fields deny at L4, instead of warning that it has no effect
    #[arg(long, env = "POLICY_STRICT", value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(crate) policy_strict: bool,
}

/// Where traffic is taken from.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Capture")]
pub(crate) struct Capture {
    /// shared: many pods, each in a namespace of its own; dedicated: one workload, the agent's own namespace
    #[arg(long, env = "PROXY_MODE", value_name = "MODE", default_value = "shared")]
    pub(crate) mode: Mode,
    /// The workload of dedicated mode
    #[arg(long, env = "PROXY_WORKLOAD_INFO", value_name = "NS/NAME/SA", required_if_eq("mode", "dedicated"))]
    pub(crate) workload: Option<WorkloadInfo>,
    /// Network namespace of a pod, in place of its annotation culvert.dev/netns; may be repeated
    #[arg(long = "pod", env = "CULVERT_PODS", value_name = "NS/NAME=PATH", value_delimiter = ',')]
    pub(crate) pods: Vec<PodPath>,
    /// Mark of the agent's own sockets
    #[arg(long, env = "PACKET_MARK", value_name = "N", default_value_t = 1337)]
    pub(crate) packet_mark: u32,
    /// Whether the app sees its client's address: auto, true (refuse if impossible), false
    #[arg(long, env = "ENABLE_ORIG_SRC", value_name = "WHEN", default_value = "auto")]
    pub(crate) original_source: OriginalSource,
    /// Listen and capture on IPv6 too; with false a pod's IPv6 traffic stays outside the mesh
    #[arg(long, env = "IPV6_ENABLED", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) ipv6: bool,
    /// Go on in a namespace that holds another mesh's rules
    #[arg(long, env = "CULVERT_ADOPT")]
    pub(crate) adopt: bool,
}

/// Who the workloads are.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Identity")]
pub(crate) struct Identity {
    /// Directory of the embedded CA's root (mode 0700), shared by the agents of a mesh; made if it is missing
    #[arg(long, env = "CULVERT_CA_DIR", value_name = "DIR", default_value = "/var/lib/culvert/ca")]
    pub(crate) ca_dir: PathBuf,
    /// Trust domain of the mesh
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) trust_domain: String,
    /// Lifetime of a workload's certificate
    #[arg(long, env = "SECRET_TTL", value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub(crate) secret_ttl: Duration,
}

/// How tunnels behave.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Tunnel")]
pub(crate) struct Tunnel {
    /// Streams that share one tunnel
    #[arg(long, env = "POOL_MAX_STREAMS_PER_CONNECTION", value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) pool_max_streams: u16,
    /// An unused tunnel is kept so long
    #[arg(long, env = "POOL_UNUSED_RELEASE_TIMEOUT", value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub(crate) pool_unused_release: Duration,
    /// Bytes that one stream may send ahead
    #[arg(long, env = "HTTP2_STREAM_WINDOW_SIZE", value_name = "BYTES", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(65_535..=0x7fff_ffff))]
    pub(crate) stream_window: u32,
    /// Bytes that all streams of a tunnel may send ahead [default: as many stream windows as a tunnel has streams]
    #[arg(long, env = "HTTP2_CONNECTION_WINDOW_SIZE", value_name = "BYTES", value_parser = clap::value_parser!(u32).range(65_535..=0x7fff_ffff))]
    pub(crate) connection_window: Option<u32>,
    /// Largest HTTP/2 frame
    #[arg(long, env = "HTTP2_FRAME_SIZE", value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(16_384..=0xff_ffff))]
    pub(crate) frame_size: u32,
    /// Limit of a TCP connect
    #[arg(long, env = "CULVERT_CONNECT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) connect_timeout: Duration,
    /// Limit of a TLS handshake
    #[arg(long, env = "CULVERT_TLS_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) tls_timeout: Duration,
    /// Limit of the HTTP/2 preface
    #[arg(long, env = "CULVERT_PREFACE_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) preface_timeout: Duration,
    /// Limit of the answer to a CONNECT
    #[arg(long, env = "CULVERT_ANSWER_TIMEOUT", value_name = "TIME", default_value = "15s", value_parser = duration)]
    pub(crate) answer_timeout: Duration,
    /// Limit of each of the four above while there is something else to try: another endpoint of the service, or a new
    /// tunnel in place of one that answers nothing
    #[arg(long, env = "CULVERT_FAILOVER_TIMEOUT", value_name = "TIME", default_value = "1500ms", value_parser = duration)]
    pub(crate) failover_timeout: Duration,
    /// A connection waits so long for a destination that is about to be captured or known; then it is refused
    #[arg(long, env = "CULVERT_HOLD_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub(crate) hold_timeout: Duration,
    /// Pause between two HTTP/2 PINGs of a tunnel
    #[arg(long, env = "CULVERT_PING_INTERVAL", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) ping_interval: Duration,
    /// Limit of the answer to a PING; a tunnel without it is ended
    #[arg(long, env = "CULVERT_PING_TIMEOUT", value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub(crate) ping_timeout: Duration,
    /// Say in answers who serves them
    #[arg(long, env = "ENABLE_RESPONSE_BAGGAGE", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) response_baggage: bool,
    /// TCP keepalive on apps' connections and tunnels
    #[arg(long, env = "KEEPALIVE_ENABLED", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) keepalive: bool,
    /// Silence before the first keepalive probe
    #[arg(long, env = "KEEPALIVE_TIME", value_name = "TIME", default_value = "180s", value_parser = duration)]
    pub(crate) keepalive_time: Duration,
    /// Pause between keepalive probes
    #[arg(long, env = "KEEPALIVE_INTERVAL", value_name = "TIME", default_value = "180s", value_parser = duration)]
    pub(crate) keepalive_interval: Duration,
    /// Unanswered keepalive probes until a connection is given up
    #[arg(long, env = "KEEPALIVE_RETRIES", value_name = "N", default_value_t = 9)]
    pub(crate) keepalive_retries: u32,
    /// Give a connection up too when its data is not acknowledged for as long as keepalive would take
    #[arg(long, env = "USER_TIMEOUT_ENABLED", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) user_timeout: bool,
}

/// What connections may use, so that one noisy pod leaves the others theirs. See docs/limits.md.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Limits")]
pub(crate) struct Budgets {
    /// Memory that bytes on their way may hold [default: half of the cgroup's memory limit; without one 512 MiB, or a quarter of the machine's memory if that is less]
    #[arg(long, env = "CULVERT_MEMORY_BUDGET", value_name = "BYTES", value_parser = clap::value_parser!(u64).range((1 << 20)..))]
    pub(crate) memory_budget: Option<u64>,
    /// Of it, what one pod's may hold [default: half]
    #[arg(long, env = "CULVERT_POD_MEMORY_BUDGET", value_name = "BYTES", value_parser = clap::value_parser!(u64).range((1 << 20)..))]
    pub(crate) pod_memory_budget: Option<u64>,
    /// Connections and streams that one pod may have open [default: a quarter of the limit of open files]
    #[arg(long, env = "CULVERT_POD_CONNECTIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pod_connections: Option<u32>,
    /// New connections and streams of one pod per second, and at once after a pause; 0 for as many as come
    #[arg(long, env = "CULVERT_POD_CONNECTION_RATE", value_name = "N", default_value_t = 0)]
    pub(crate) pod_connection_rate: u32,
    /// Tunnels to one pod whose handshake is unfinished; the newest beyond is refused
    #[arg(long, env = "CULVERT_POD_HANDSHAKES", value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pod_handshakes: u32,
    /// Of them, those from one address
    #[arg(long, env = "CULVERT_SOURCE_HANDSHAKES", value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) source_handshakes: u32,
}

/// What any process of the agent needs: its log, what it gives up, how it ends.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Process")]
pub(crate) struct Lifecycle {
    /// On SIGTERM, and in a pod that leaves the mesh, open connections get so long [default: the grace period less 5 s, or 5 s]
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", value_name = "TIME", value_parser = duration)]
    pub(crate) termination_deadline: Option<Duration>,
    /// The agent pod's grace period in seconds, from which the deadline is derived
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", value_name = "N")]
    pub(crate) grace_period: Option<u64>,
    /// plain or json
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT", default_value = "plain")]
    pub(crate) log_format: Format,
    /// Levels by scope, for example info,access=off
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
    /// Deny system calls that the agent never makes; with false only capabilities are dropped
    #[arg(long, env = "CULVERT_SYSCALL_FILTER", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) syscall_filter: bool,
}

/// How the process that carries traffic runs.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Process")]
pub(crate) struct Process {
    /// Traffic threads: a number, a share of the cores such as 25%, or 0 for all cores [default: 1 up to 4 cores, then a quarter].
    /// The cores are those that the CPU limit and the affinity leave
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", value_name = "N", value_parser = worker_threads)]
    pub(crate) worker_threads: Option<usize>,
    /// Address of the Prometheus metrics
    #[arg(long, env = "CULVERT_STATS_ADDR", value_name = "ADDR", default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15020))]
    pub(crate) stats_addr: SocketAddr,
    /// Address of the readiness probe
    #[arg(long, env = "CULVERT_READY_ADDR", value_name = "ADDR", default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15021))]
    pub(crate) ready_addr: SocketAddr,
    /// Addresses of the admin pages; loopback only
    #[arg(long, env = "CULVERT_ADMIN_ADDR", value_name = "ADDR", value_delimiter = ',', value_parser = loopback, default_value = "127.0.0.1:15000,[::1]:15000")]
    pub(crate) admin_addr: Vec<SocketAddr>,
    /// Where an agent gives its sockets to the one that follows it, or off [default: successor.sock beside the ZDS socket;
    /// /run/culvert/net-<inode of the agent's network namespace>.sock where both parts are one process]
    #[arg(long, env = "CULVERT_SUCCESSOR_SOCKET", value_name = "PATH")]
    pub(crate) successor_socket: Option<PathBuf>,
    /// Log each policy decision at info instead of debug
    #[arg(long, env = "AUTHZ_POLICY_INFO_LOGGING", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) policy_info_logging: bool,
    /// Set inside Kubernetes, where an agent must not hold the mesh's root
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true)]
    pub(crate) kubernetes_service_host: Option<String>,
}

#[derive(ValueEnum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Dedicated,
}

#[derive(ValueEnum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoDowngrade {
    Enforce,
    Count,
}

#[derive(ValueEnum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OriginalSource {
    Auto,
    True,
    False,
}

#[derive(ValueEnum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Json,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Plain => Self::Plain,
            Format::Json => Self::Json,
        }
    }
}

/// `ns/name/sa`.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkloadInfo {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
}

impl std::str::FromStr for WorkloadInfo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [ns, name, sa] if ![ns, name, sa].contains(&"") => {
                Ok(Self { namespace: ns.into(), name: name.into(), service_account: sa.into() })
            }
            _ => Err("write namespace/name/service-account, for example shop/cart-0/cart".into()),
        }
    }
}

/// `ns/name=path`.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodPath {
    pub(crate) pod: String,
    pub(crate) path: PathBuf,
}

impl std::str::FromStr for PodPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((pod, path))
                if pod.split('/').filter(|part| !part.is_empty()).count() == 2 && !path.is_empty() =>
            {
                Ok(Self { pod: pod.into(), path: path.into() })
            }
            _ => Err("write namespace/name=path, for example shop/cart-0=/run/netns/cart-0".into()),
        }
    }
}

/// `250ms`, `10s`, `5m`, `24h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("write a number and ms, s, m or h, for example 10s".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number and ms, s, m or h, for example 10s")?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| "the time is too long".into())
}

/// An address that only this network namespace can reach.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr =
        text.parse().map_err(|_| "write an address and a port, for example 127.0.0.1:15000")?;
    if addr.ip().is_loopback() {
        Ok(addr)
    } else {
        Err("the admin pages change the agent: choose an address of loopback".into())
    }
}

/// `4`, `25%`, `0`.
fn worker_threads(text: &str) -> Result<usize, String> {
    let cores = cores();
    let wrong = |_| "write a number of threads, 0 for all cores, or a share such as 25%".to_owned();
    match text.strip_suffix('%') {
        Some(share) => {
            share.parse().map(|share: usize| (cores * share).div_ceil(100).clamp(1, cores)).map_err(wrong)
        }
        None => text.parse().map(|n| if n == 0 { cores } else { n }).map_err(wrong),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Settings {
    /// What only several settings together can get wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.process.kubernetes_service_host.is_some() {
            problems.push(
                "KUBERNETES_SERVICE_HOST is set: with the embedded CA this agent would hold the mesh's root key inside \
                 Kubernetes; run it outside a pod, or unset the variable if this is no cluster"
                    .into(),
            );
        }
        problems.extend(self.capture.problems());
        if !self.capture.ipv6 {
            for (name, addr) in
                [("--stats-addr", self.process.stats_addr), ("--ready-addr", self.process.ready_addr)]
            {
                if addr.is_ipv6() && addr.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
                    problems.push(format!("{name} is {addr}, but IPV6_ENABLED is false"));
                }
            }
        }
        problems
    }

    /// Where this agent and the one before or after it meet; `None` when they should not.
    pub(crate) fn successor_socket(&self, role: Role) -> std::io::Result<Option<PathBuf>> {
        Ok(match (&self.process.successor_socket, role) {
            (Some(path), _) if path.as_os_str() == "off" => None,
            (Some(path), _) => Some(path.clone()),
            (None, Role::Proxy) => Some(self.enrolment.zds_socket.with_file_name("successor.sock")),
            (None, Role::Enroll) => {
                // Several agents may run on one machine, each in a network namespace of its own.
                let (_, inode) = NetNs::current()?.id();
                Some(format!("/run/culvert/net-{inode}.sock").into())
            }
        })
    }

    pub(crate) fn workers(&self) -> usize {
        let cores = cores();
        self.process.worker_threads.unwrap_or(if cores <= 4 { 1 } else { cores.div_ceil(4) })
    }

    pub(crate) fn http2(&self) -> Http2 {
        let t = &self.tunnel;
        Http2::new(t.stream_window, t.connection_window, t.frame_size, t.pool_max_streams.into())
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            connect: self.tunnel.connect_timeout,
            tls: self.tunnel.tls_timeout,
            preface: self.tunnel.preface_timeout,
            answer: self.tunnel.answer_timeout,
            failover: self.tunnel.failover_timeout,
            ping_interval: self.tunnel.ping_interval,
            ping_timeout: self.tunnel.ping_timeout,
            idle: self.tunnel.pool_unused_release,
        }
    }

    /// What is never sent in plaintext.
    pub(crate) fn no_downgrade(&self) -> model::NoDowngrade {
        model::NoDowngrade {
            mode: match self.source.no_downgrade {
                NoDowngrade::Enforce => model::DowngradeMode::Enforce,
                NoDowngrade::Count => model::DowngradeMode::Count,
            },
            pod_ranges: self.source.pod_range.clone(),
            service_ranges: self.source.service_range.clone(),
        }
    }

    /// Bytes on their way that the process may hold.
    pub(crate) fn memory_budget(&self) -> u64 {
        self.budgets.memory_budget.unwrap_or_else(memory::default_budget)
    }

    /// What one pod may use.
    pub(crate) fn pod_limits(&self) -> PodLimits {
        let b = &self.budgets;
        let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        PodLimits {
            memory: b.pod_memory_budget.unwrap_or_else(|| self.memory_budget() / 2),
            connections: b.pod_connections.map_or_else(memory::default_connections, count),
            rate: (b.pod_connection_rate > 0).then_some(b.pod_connection_rate),
            handshakes: count(b.pod_handshakes),
            handshakes_per_source: count(b.source_handshakes),
        }
    }
}

impl Lifecycle {
    /// How long open connections get: as told, or what a grace period leaves, or 5 s.
    pub(crate) fn deadline(&self) -> Duration {
        let of_grace = |n: u64| Duration::from_secs(if n > 10 { n - 5 } else { n.saturating_sub(1).max(1) });
        let told = self.termination_deadline.or(self.grace_period.map(of_grace));
        told.unwrap_or(Duration::from_secs(5))
    }
}

impl Source {
    pub(crate) fn cluster_id(&self) -> &str {
        self.istio_meta_cluster_id.as_deref().unwrap_or(&self.cluster_id)
    }
}

impl Capture {
    /// What only several settings together can get wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        let lacks_workload = self.mode == Mode::Dedicated && self.workload.is_none();
        let told = "dedicated mode needs --workload NAMESPACE/NAME/SERVICE-ACCOUNT (PROXY_WORKLOAD_INFO)";
        lacks_workload.then(|| told.to_owned()).into_iter().collect()
    }

    pub(crate) fn netns_overrides(&self) -> HashMap<String, PathBuf> {
        self.pods.iter().map(|p| (p.pod.clone(), p.path.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "10", "s", "1.5s", "-1s", "10d", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_admin_pages_are_on_loopback_only() {
        let of = |args: &[&str]| {
            let cli = Cli::try_parse_from(["ztunnel"].iter().chain(args)).map_err(|e| e.to_string())?;
            Ok::<_, String>(
                cli.settings.process.admin_addr.iter().map(ToString::to_string).collect::<Vec<_>>(),
            )
        };
        assert_eq!(of(&[]).unwrap(), ["127.0.0.1:15000", "[::1]:15000"]);
        assert_eq!(of(&["--admin-addr", "127.0.0.9:1"]).unwrap(), ["127.0.0.9:1"]);
        for bad in [
            "0.0.0.0:15000",
            "[::]:15000",
            "10.0.0.1:15000",
            "[::ffff:127.0.0.1]:15000",
            "localhost:1",
            "15000",
        ] {
            assert!(of(&["--admin-addr", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn workloads_and_pods_are_named_in_full() {
        assert!("shop/cart-0/cart".parse::<WorkloadInfo>().is_ok());
        assert!(
            "shop/cart-0".parse::<WorkloadInfo>().is_err() && "shop//cart".parse::<WorkloadInfo>().is_err()
        );
        assert!("shop/cart-0=/run/netns/x".parse::<PodPath>().is_ok());
        assert!(
            "cart-0=/run/netns/x".parse::<PodPath>().is_err() && "shop/cart-0".parse::<PodPath>().is_err()
        );
    }

    #[test]
    fn the_deadline_follows_the_grace_period() {
        let of = |args: &[&str]| {
            let args = ["ztunnel"].iter().chain(args);
            Cli::try_parse_from(args).unwrap().settings.lifecycle.deadline().as_secs()
        };
        assert_eq!(of(&["--grace-period", "30"]), 25);
        assert_eq!(of(&["--grace-period", "10"]), 9);
        assert_eq!(of(&["--grace-period", "1"]), 1);
        assert_eq!(of(&["--grace-period", "30", "--termination-deadline", "7s"]), 7);
    }
}
