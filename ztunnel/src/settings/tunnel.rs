//! How tunnels behave, and what connections may use.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use culvert_common::config::duration;

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
