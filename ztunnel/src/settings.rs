//! The agent's settings: flags, each with the environment name that the reference node proxy uses where it has one.
//!
//! Decides what a value may be and which of several sources of one setting wins; what a setting does is its reader's
//! business. The only place that reads the environment. Each group of flags is a file: `mesh` (what the mesh is, capture,
//! identity), `control_plane` (discovery, CA, DNS), `tunnel`, `process`; `values` has the types that they take. What is
//! told beside flags, such as the mesh file, is in `environment`. Start with [`Cli::read`].

pub(crate) mod control_plane;
pub(crate) mod environment;
pub(crate) mod mesh;
pub(crate) mod process;
pub(crate) mod tunnel;
pub(crate) mod values;

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use crate::admission::PodLimits;
use crate::memory;
use clap::builder::styling::{AnsiColor, Styles};
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use culvert_common::hbone::{Http2, Limits};
use culvert_common::model;
use culvert_common::net::netns::NetNs;
use serde::Serialize;

use crate::enroll::settings::{EnrollSettings, Enrolment};
use crate::sandbox::Role;
use environment::Told;

pub(crate) use control_plane::{Authority, ControlPlane, Discovery, OwnPod};
pub(crate) use environment::Environment;
pub(crate) use mesh::{Capture, Identity, Source};
pub(crate) use process::{Lifecycle, Process};
pub(crate) use tunnel::{Budgets, Tunnel};
pub(crate) use values::{Mode, NoDowngrade, OriginalSource};

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
    Proxy(Box<ProxyArgs>),
    /// Only write the pods' capture rules, guard them, and hand the pods over to a proxy that another process is
    #[command(after_help = "Example: capture the pods of node-1 for the proxy that connects\n\n  \
        ztunnel enroll --config ./mesh --node node-1 --zds-socket /var/run/ztunnel/ztunnel.sock")]
    Enroll(Box<EnrollSettings>),
    /// Remove the capture rules from this node's pods, for when the agent is gone for good
    ///
    /// A stopped agent leaves its rules in place, so that captured pods are refused, never bypassed.
    #[command(after_help = "Example: ztunnel release --config ./mesh --node node-1")]
    Release(Box<Settings>),
    /// Look up where datagrams were going, for the process that starts this one
    #[command(name = crate::dns::COMMAND, hide = true)]
    UdpDestinations,
    /// Print the version
    Version,
}

#[derive(Args, Debug)]
pub(crate) struct ProxyArgs {
    /// What the reference's chart says after `proxy`
    #[arg(hide = true, value_parser = ["ztunnel"])]
    kind: Option<String>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

#[derive(Args, Serialize, Debug, Clone)]
pub(crate) struct Settings {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) control_plane: ControlPlane,
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

impl Cli {
    /// The command and its settings, from `args` and what the process finds around it.
    ///
    /// Which source wins: a flag, its environment name, `PROXY_CONFIG`, the mesh file, the default.
    ///
    /// **Errors**: see [`ReadError`].
    pub(crate) fn read<I, T>(args: I, environment: &Environment) -> Result<Self, ReadError>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        let matches = Self::command().try_get_matches_from(args).map_err(name_environment)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        let (settings, matches) = match (&mut cli.command, matches.subcommand()) {
            (None, _) => (&mut cli.settings, &matches),
            (Some(Command::Proxy(proxy)), Some((_, matches))) => (&mut proxy.settings, matches),
            (Some(Command::Release(settings)), Some((_, matches))) => (&mut **settings, matches),
            _ => return Ok(cli),
        };
        settings.complete(environment, &|id| {
            matches!(matches.value_source(id), None | Some(ValueSource::DefaultValue))
        })?;
        Ok(cli)
    }
}

/// Adds the environment's name to what clap says of a flag, as the value may have come from there.
fn name_environment(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return error };
    let flag = shown.trim_start_matches("--").split([' ', '=']).next().unwrap_or_default().to_owned();
    let proxy = Cli::command();
    let arg = proxy.get_arguments().find(|arg| arg.get_long() == Some(&flag));
    if let Some(name) = arg.and_then(|arg| arg.get_env()) {
        let named = format!("{shown} ({})", name.to_string_lossy());
        error.insert(ContextKind::InvalidArg, ContextValue::String(named));
    }
    error
}

/// Why the settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// A flag, or its environment name; also the wish for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// What is told beside them.
    #[error("{}", .0.join("\n"))]
    Told(Vec<String>),
}

impl Settings {
    /// Adds what is told beside flags, where a setting `is_open`.
    fn complete(
        &mut self,
        environment: &Environment,
        is_open: &dyn Fn(&str) -> bool,
    ) -> Result<(), ReadError> {
        let told =
            Told::read(environment, self.control_plane.proxy_config.as_deref()).map_err(ReadError::Told)?;
        if let Some(port) = told.stats_port.filter(|_| is_open("stats_addr")) {
            self.process.stats_addr.set_port(port);
        }
        if let Some(port) = told.admin_port.filter(|_| is_open("admin_addr")) {
            self.process.admin_addr.iter_mut().for_each(|addr| addr.set_port(port));
        }
        if let Some(threads) = told.concurrency.filter(|_| is_open("worker_threads")) {
            self.process.worker_threads = Some(threads.to_string());
        }
        if let Some(domain) = told.trust_domain.clone().filter(|_| is_open("trust_domain")) {
            self.identity.trust_domain = domain;
        }
        if is_open("trust_domain_aliases") {
            self.control_plane.trust_domain_aliases.clone_from(&told.trust_domain_aliases);
        }
        if let Some(id) = told.metadata_text("CLUSTER_ID").filter(|_| is_open("cluster_id")) {
            self.source.istio_meta_cluster_id.get_or_insert_with(|| id.to_owned());
        }
        self.control_plane.told = told;
        Ok(())
    }

    /// Where the mesh's state comes from.
    pub(crate) fn discovery(&self) -> Discovery {
        self.control_plane.discovery(&self.source.config, self.in_kubernetes())
    }

    /// Who signs the workloads' certificates.
    pub(crate) fn authority(&self) -> Authority {
        self.control_plane.authority(&self.discovery(), self.in_kubernetes())
    }

    fn in_kubernetes(&self) -> bool {
        self.process.kubernetes_service_host.is_some()
    }

    /// Settings of the reference node proxy that were made and that this agent does not follow, one line each.
    pub(crate) fn unsupported(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut unless = |follows: bool, line: &str| {
            if !follows {
                lines.push(line.to_owned());
            }
        };
        let process = &self.process;
        unless(!process.tls12, "TLS12_ENABLED=true is not supported: peers need TLS 1.3");
        unless(!process.socks5, "UNSTABLE_ENABLE_SOCKS5=true is not supported: there is no SOCKS5 server");
        // Empty is how a chart leaves it open.
        let policy = process.compliance_policy.as_deref();
        if let Some(policy) = policy.filter(|policy| !matches!(*policy, "" | "pqc")) {
            lines.push(format!("COMPLIANCE_POLICY={policy} is not supported: TLS 1.3 with this agent's key exchanges and ciphers is used"));
        }
        lines
    }

    /// What only several settings together can get wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.control_plane.problems(self.in_kubernetes());
        if self.process.fake_ca {
            problems.push(
                "FAKE_CA is true: certificates that nobody signed prove nothing; unset it, or use the embedded CA outside \
                 Kubernetes"
                    .into(),
            );
        }
        problems.extend(self.capture.problems());
        if http::HeaderValue::try_from(self.source.cluster_id()).is_err() {
            problems.push(
                "the cluster id (CLUSTER_ID, ISTIO_META_CLUSTER_ID) has characters that no header may have"
                    .into(),
            );
        }
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
        if !self.process.enable_proxy {
            return Ok(None);
        }
        Ok(match (&self.process.successor_socket, role) {
            (Some(path), _) if path.as_os_str() == "off" => None,
            (Some(path), _) => Some(path.clone()),
            (None, Role::Proxy) => Some(self.enrolment.zds_socket.with_file_name("successor.sock")),
            (None, Role::Enroll | Role::Lookup) => {
                // Several agents may run on one machine, each in a network namespace of its own.
                let (_, inode) = NetNs::current()?.id();
                Some(format!("/run/culvert/net-{inode}.sock").into())
            }
        })
    }

    pub(crate) fn workers(&self) -> usize {
        self.process.workers()
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
            mode: match (self.source.no_downgrade, self.discovery()) {
                (Some(NoDowngrade::Enforce), _) => model::DowngradeMode::Enforce,
                (Some(NoDowngrade::Count), _) | (None, Discovery::Xds(_)) => model::DowngradeMode::Count,
                (None, _) => model::DowngradeMode::Enforce,
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

#[cfg(test)]
mod tests {

    use super::values::{PodPath, WorkloadInfo};
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_arguments_of_the_reference_chart_are_taken() {
        let of = |args: &[&str]| Cli::read(["ztunnel"].iter().chain(args), &Environment::default());
        for args in [&["proxy", "ztunnel"][..], &["proxy"], &["version"]] {
            assert!(of(args).is_ok(), "{args:?}");
        }
        assert!(of(&["proxy", "sidecar"]).is_err());
        assert!(matches!(of(&["help"]), Err(ReadError::Usage(e)) if e.exit_code() == 0));
    }

    #[test]
    fn a_wrong_value_names_the_environment_too() {
        let of = |arg: &str| {
            Cli::read(["ztunnel", "proxy", arg], &Environment::default()).unwrap_err().to_string()
        };
        let told = of("--port-reuse=maybe");
        for part in ["--port-reuse", "INPOD_PORT_REUSE", "'maybe'", "true, false"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(of("--secret-ttl=10").contains("SECRET_TTL"));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let of = |args: &[&str]| {
            let cli = Cli::read(["ztunnel"].iter().chain(args), &Environment::default());
            cli.unwrap().settings.unsupported().concat()
        };
        for followed in [&[][..], &["--compliance-policy", "pqc"], &["--compliance-policy", ""]] {
            assert_eq!(of(followed), "");
        }
        for (args, name) in [
            (["--tls12", "true"], "TLS12_ENABLED=true"),
            (["--socks5", "true"], "UNSTABLE_ENABLE_SOCKS5=true"),
            (["--compliance-policy", "fips-140-2"], "COMPLIANCE_POLICY=fips-140-2"),
        ] {
            assert!(of(&args).starts_with(name), "{args:?}");
        }
        let fake = Cli::read(["ztunnel", "--fake-ca", "true"], &Environment::default()).unwrap().settings;
        assert!(fake.problems().concat().contains("FAKE_CA"));
    }

    #[test]
    fn threads_follow_what_the_container_may_use() {
        let of = |args: &[&str]| {
            let args = ["ztunnel", "--cpu-limit", "8"].iter().chain(args);
            Cli::read(args, &Environment::default())
                .map_err(|e| e.to_string())
                .map(|cli| cli.settings.workers())
        };
        for (args, want) in [
            (&[][..], 2),
            (&["--worker-threads", "0"], 8),
            (&["--worker-threads", "50%"], 4),
            (&["--worker-threads", "3"], 3),
            (&["--resource-cpu-limit", "1500m"], 2),
            (&["--resource-cpu-limit", "1", "--resource-cpu-request", "2.5"], 3),
            (&["--resource-cpu-request", "200m"], 2),
        ] {
            assert_eq!(of(args), Ok(want), "{args:?}");
        }
        for bad in ["--worker-threads=x", "--worker-threads=-1", "--cpu-limit=0", "--resource-cpu-limit=1Gi"]
        {
            assert!(of(&[bad]).is_err(), "{bad}");
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
