//! What the agent's processes need: threads, pages, logs, how they end.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use culvert_common::telemetry::LogFormat;
use serde::Serialize;

use super::values::{Cpus, cpus, loopback, thread_count, threads};
use culvert_common::config::duration;

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
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", value_name = "N", value_parser = thread_count)]
    pub(crate) worker_threads: Option<String>,
    /// Cores that the agent may count on, in place of those that it sees
    #[arg(long, env = "ZTUNNEL_CPU_LIMIT", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) cpu_limit: Option<u16>,
    /// CPU limit of the agent's container, from which the threads are derived
    #[arg(long, env = "ZTUNNEL_RESOURCE_CPU_LIMIT", value_name = "CPUS", value_parser = cpus)]
    pub(crate) resource_cpu_limit: Option<Cpus>,
    /// CPU request of the agent's container, at least as many threads as which are run
    #[arg(long, env = "ZTUNNEL_RESOURCE_CPU_REQUEST", value_name = "CPUS", value_parser = cpus)]
    pub(crate) resource_cpu_request: Option<Cpus>,
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
    /// With false: follow the mesh's state and answer the pages, but serve no pod
    #[arg(long, env = "ENABLE_PROXY", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) enable_proxy: bool,
    /// TLS 1.2 beside 1.3. Not supported
    #[arg(long, env = "TLS12_ENABLED", hide = true, default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) tls12: bool,
    /// Which key exchanges and ciphers are allowed: pqc for X25519MLKEM768 alone
    #[arg(long, env = "COMPLIANCE_POLICY", value_name = "POLICY")]
    pub(crate) compliance_policy: Option<String>,
    /// A SOCKS5 server in each pod. Not supported
    #[arg(long, env = "UNSTABLE_ENABLE_SOCKS5", hide = true, default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) socks5: bool,
    /// Certificates that nobody signed. Refused
    #[arg(long, env = "FAKE_CA", hide = true, default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) fake_ca: bool,
    /// Set inside Kubernetes, where an agent must not hold the mesh's root
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true)]
    pub(crate) kubernetes_service_host: Option<String>,
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

impl Lifecycle {
    /// How long open connections get: as told, or what a grace period leaves, or 5 s.
    pub(crate) fn deadline(&self) -> Duration {
        let of_grace = |n: u64| Duration::from_secs(if n > 10 { n - 5 } else { n.saturating_sub(1).max(1) });
        let told = self.termination_deadline.or(self.grace_period.map(of_grace));
        told.unwrap_or(Duration::from_secs(5))
    }
}

impl Process {
    /// Threads that carry traffic.
    pub(crate) fn workers(&self) -> usize {
        let seen = std::thread::available_parallelism().map_or(1, usize::from);
        self.workers_of(self.cpu_limit.map_or(seen, usize::from))
    }

    fn workers_of(&self, cores: usize) -> usize {
        if let Some(told) = &self.worker_threads {
            return threads(told, cores).unwrap_or(1);
        }
        let request = self.resource_cpu_request.map_or(1, |cpus| cpus.0);
        let usual = if cores <= 4 { 1 } else { cores.div_ceil(4) };
        self.resource_cpu_limit.map_or(usual, |cpus| cpus.0).max(request).max(1)
    }
}
