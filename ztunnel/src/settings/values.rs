//! The values that settings take, and how they are written.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

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

/// An address that only this network namespace can reach.
pub(super) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr =
        text.parse().map_err(|_| "write an address and a port, for example 127.0.0.1:15000")?;
    if addr.ip().is_loopback() {
        Ok(addr)
    } else {
        Err("the admin pages change the agent: choose an address of loopback".into())
    }
}

/// `4`, `25%`, `0`.
pub(super) fn thread_count(text: &str) -> Result<String, String> {
    threads(text, 1)
        .map(|_| text.to_owned())
        .ok_or_else(|| "write a number of threads, 0 for all cores, or a share such as 25%".to_owned())
}

/// That many of `cores`.
pub(super) fn threads(text: &str, cores: usize) -> Option<usize> {
    match text.strip_suffix('%') {
        Some(share) => {
            let share: usize = share.parse::<u16>().ok()?.into();
            Some((cores * share).div_ceil(100).clamp(1, cores))
        }
        None => text.parse::<u16>().ok().map(|n| if n == 0 { cores } else { n.into() }),
    }
}

/// Whole CPUs, rounded up.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(pub(super) usize);

/// `200m`, `1.5`, `2`: Kubernetes' way of writing CPUs.
pub(super) fn cpus(text: &str) -> Result<Cpus, String> {
    let wrong = || "write CPUs as Kubernetes does, for example 200m, 1.5 or 2".to_owned();
    let parsed = match text.strip_suffix('m') {
        Some(millis) => millis.parse::<u32>().ok().map(|millis| f64::from(millis) / 1000.0),
        None if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => text.parse::<f64>().ok(),
        None => None,
    };
    let cpus = parsed.filter(|cpus| *cpus <= 4096.0).ok_or_else(wrong)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 4096, and whole")]
    let whole = cpus.ceil() as usize;
    Ok(Cpus(whole))
}
