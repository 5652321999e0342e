//! Settings of a process that enrols only.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::settings::{Capture, Lifecycle, Source};
use culvert_common::config::duration;

/// Where pods are handed over, and how their rules are guarded.
#[derive(Args, Serialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Enrolment")]
pub(crate) struct Enrolment {
    /// Socket where the proxy fetches the pods' network namespaces (ZDS); its folder should be root's alone
    #[arg(long, env = "INPOD_UDS", value_name = "PATH", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub(crate) zds_socket: PathBuf,
    /// The rules of each pod are looked at within this time, also when the kernel has told of no change
    #[arg(long, env = "CULVERT_AUDIT_INTERVAL", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) audit_interval: Duration,
    /// Redirect the pods' DNS queries to their proxy, but for those of pods whose annotation ambient.istio.io/dns-capture says otherwise
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) capture_dns: bool,
}

/// All settings of `ztunnel enroll`.
#[derive(Args, Debug, Clone)]
pub(crate) struct EnrollSettings {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) capture: Capture,
    #[command(flatten)]
    pub(crate) enrolment: Enrolment,
    #[command(flatten)]
    pub(crate) lifecycle: Lifecycle,
    #[command(flatten)]
    pub(crate) process: EnrollProcess,
}

/// Its pages.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Process")]
pub(crate) struct EnrollProcess {
    /// Address of the Prometheus metrics, or off
    #[arg(long, env = "CULVERT_ENROLL_STATS_ADDR", value_name = "ADDR", default_value_t = Page::any(15014), value_parser = page)]
    pub(crate) stats_addr: Page,
    /// Address of the readiness probe, or off
    #[arg(long, env = "CULVERT_ENROLL_READY_ADDR", value_name = "ADDR", default_value_t = Page::any(15022), value_parser = page)]
    pub(crate) ready_addr: Page,
}

/// Where a page is served, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Off,
    At(SocketAddr),
}

impl Page {
    fn any(port: u16) -> Self {
        Self::At(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
    }
}

impl std::fmt::Display for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(addr) => write!(f, "{addr}"),
        }
    }
}

fn page(text: &str) -> Result<Page, String> {
    match text {
        "off" => Ok(Page::Off),
        addr => addr.parse().map(Page::At).map_err(|_| "write an address such as [::]:15014, or off".into()),
    }
}

impl EnrollSettings {
    /// What only several settings together can get wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.capture.problems()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_can_be_turned_off() {
        assert_eq!(page("off"), Ok(Page::Off));
        assert_eq!(page("127.0.0.1:1").map(|page| page.to_string()), Ok("127.0.0.1:1".into()));
        assert_eq!(page(&Page::any(15014).to_string()), Ok(Page::any(15014)));
        assert!(page("15014").is_err() && page("").is_err());
    }
}
