//! A pair of real Envoy sidecars with mutual TLS, as Istio sets them up: one Envoy in each pod's own namespace, the pod's
//! traffic redirected into it, identities checked on both sides.
//!
//! `install.rs` fetches Envoy, `bootstrap.rs` writes its configuration, of which the `.yaml` files are the templates. What
//! differs from Envoy's and from Istio's defaults is said in [`Mode::deviations`].

mod bootstrap;
pub(super) mod install;
#[cfg(test)]
mod tests;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use self::bootstrap::Sidecar;
use self::install::Installed;
use super::{Mode, Proxy, READY_MAX, Stage, World, certificates, proof, redirect};
use crate::bench::work::{Kind, Work};
use crate::lab::{LabError, Pod, Process, wait_until};

const ADMIN_PORT: u16 = 15000;
/// How an Envoy is started; the file of its configuration follows.
pub(super) const START: [&str; 6] =
    ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning", "-c"];
const STOP_MAX: Duration = Duration::from_secs(5);

const FILTERS: &str = "RBAC, fault, CORS and gRPC statistics as in Istio, but without its own filters (peer metadata, \
    istio.stats, istio.alpn): real sidecars cost more";

/// The variants: HTTP/2, HTTP/1.1 and TCP between the sidecars, the first by default.
pub fn modes() -> Vec<Box<dyn Mode>> {
    [Variant::Http2, Variant::Http1, Variant::Tcp].map(|v| Box::new(Sidecars::new(v)) as Box<dyn Mode>).into()
}

/// What goes between the sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Http2,
    Http1,
    Tcp,
}

#[derive(Debug)]
struct Sidecars {
    variant: Variant,
    cache: PathBuf,
    /// How long fetching Envoy may take.
    patience: Duration,
    envoy: Option<Installed>,
    running: Vec<(&'static str, Process)>,
}

impl Sidecars {
    fn new(variant: Variant) -> Self {
        let (cache, patience) = (install::cache(), install::INSTALL_MAX);
        Self { variant, cache, patience, envoy: None, running: Vec::new() }
    }

    fn bring_up(&mut self, stage: &Stage) -> anyhow::Result<Duration> {
        let envoy = self.envoy.clone().context("Envoy was not fetched: prepare the mode first")?;
        let ca = certificates::authority(&stage.lab)?;
        let begin = Instant::now();
        let pairs = [
            ("client sidecar", &stage.client, stage.server.identity()),
            ("server sidecar", &stage.server, stage.client.identity()),
        ];
        for (name, pod, peer) in pairs {
            let dir = stage.scratch.join(pod.name());
            let material = certificates::issue(&ca, pod, &dir)?;
            let sidecar =
                Sidecar { name: pod.name(), peer: &peer, material: &material, variant: self.variant };
            let config = dir.join("envoy.yaml");
            fs::write(&config, bootstrap::text(&sidecar))
                .with_context(|| format!("write {}", config.display()))?;
            // The address from which Istio's sidecars talk to their own app; IPv4 has it on every loopback.
            pod.ip("addr replace ::6/128 dev lo nodad\n")?;
            let process = pod.command(&envoy.binary.to_string_lossy()).args(START).arg(&config).spawn()?;
            self.running.push((name, process));
        }
        for (index, pod) in [&stage.client, &stage.server].into_iter().enumerate() {
            let (name, process) = self.running.get_mut(index).context("a sidecar that was started")?;
            ready(name, pod, process)?;
        }
        let took = begin.elapsed();
        redirect::on(&[&stage.client, &stage.server])?;
        proof::check(stage, stage.server.v4.into(), true)?;
        Ok(took)
    }
}

impl Mode for Sidecars {
    fn name(&self) -> &str {
        match self.variant {
            Variant::Http2 => "envoy-sidecar",
            Variant::Http1 => "envoy-sidecar-h1",
            Variant::Tcp => "envoy-sidecar-tcp",
        }
    }

    fn title(&self) -> String {
        let between = match self.variant {
            Variant::Http2 => "HTTP/2 between them",
            Variant::Http1 => "HTTP/1.1 between them",
            Variant::Tcp => "HTTP treated as TCP",
        };
        format!("an Envoy sidecar in each pod, mutual TLS, {between}")
    }

    fn deviations(&self) -> Vec<String> {
        let own: &[&str] = match self.variant {
            Variant::Http2 => &[
                "HTTP/2 between the sidecars: Istio's h2UpgradePolicy UPGRADE; its default is HTTP/1.1",
                FILTERS,
            ],
            Variant::Http1 => &[FILTERS],
            Variant::Tcp => &[
                "port 8080 is treated as TCP, as Istio treats a port named tcp-...: a TLS connection for each of the client's",
                "without Istio's own filters (peer metadata, istio.stats): real sidecars cost more",
            ],
        };
        let common = [
            "TLS 1.3 only (Istio: from 1.2), P-256 certificates from files (Istio: SDS), AES-128 as Envoy chooses",
            "access log and tracing off, few statistics: Istio's default profile; 2 worker threads",
            "one cluster by original destination for all services, no xDS",
            "redirected by Culvert's nftables rules, exempt by mark (Istio: iptables, by uid); no DNS capture",
        ];
        own.iter().copied().chain(common).map(str::to_owned).collect()
    }

    fn tools(&self) -> Vec<(String, String)> {
        self.envoy.iter().map(|e| ("envoy".to_owned(), e.version.clone())).collect()
    }

    fn cannot(&self, work: &Work) -> Option<&'static str> {
        match work.kind {
            Kind::Start { workloads } if workloads > 0 => {
                Some("a sidecar knows services by xDS, which does not run here")
            }
            _ => None,
        }
    }

    fn prepare(&mut self, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.envoy = Some(install::install(&self.cache, self.patience, say)?);
        Ok(())
    }

    fn hurry(&mut self, limit: Duration) {
        self.patience = self.patience.min(limit);
    }

    fn start(&mut self, stage: &Stage, _world: &World) -> anyhow::Result<Duration> {
        let up = self.bring_up(stage);
        if up.is_err() {
            let _first_error_counts = self.stop(stage);
        }
        up.with_context(|| self.name().to_owned())
    }

    fn proxies(&self) -> Vec<Proxy> {
        let of = |(name, process): &(&str, Process)| Proxy { name: (*name).to_owned(), pid: process.pid() };
        self.running.iter().map(of).collect()
    }

    fn stop(&mut self, stage: &Stage) -> anyhow::Result<()> {
        // Redirects first: what is sent from now on is direct.
        let direct = redirect::off(&[&stage.client, &stage.server]);
        for (_, process) in &self.running {
            let _ended_already = process.signal(Signal::SIGTERM);
        }
        // Killed where it does not end by itself.
        for (_, mut process) in self.running.drain(..) {
            let _killed_when_dropped = process.wait(STOP_MAX);
        }
        direct
    }
}

/// Whether the Envoy of the pod takes traffic.
pub(super) fn ready_now(pod: &Pod) -> bool {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT));
    matches!(proof::status(pod, to, "/ready"), Ok(Ok(200)))
}

/// Waits until the sidecar takes traffic.
fn ready(name: &str, pod: &Pod, process: &mut Process) -> anyhow::Result<()> {
    let mut ended = None;
    let waited = wait_until(
        &format!("{name} ready"),
        READY_MAX,
        || {
            ended = process.ended();
            (ended.is_some() || ready_now(pod)).then_some(())
        },
        String::new,
    );
    let log = || process.stderr().lines().rev().take(5).collect::<Vec<_>>().join("\n");
    match (ended, waited) {
        (Some(status), _) => bail!("{name} ended with {status}: {}", log()),
        (None, Err(LabError::Timeout { .. })) => {
            bail!("{name} was not ready within {READY_MAX:?}: {}", log())
        }
        (None, other) => Ok(other?),
    }
}
