//! A real Envoy as the waypoint: it ends tunnels, routes, and begins tunnels, as Istio's control plane tells its waypoints.
//!
//! `envoy.yaml` is what it is told. Whatever is not in Envoy itself is left out and said in [`Instance::deviations`].

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use super::documents::{ADMIN, CANARY, SERVICE, VIP};
use super::{Instance, NAME, Stage};
use crate::bench::mode::certificates::{self, Material};
use crate::bench::mode::envoy::install::{self, Installed};
use crate::bench::mode::envoy::{START, ready_now};
use crate::bench::mode::{BULK_PORT, HTTP_PORT};
use crate::lab::{Pod, Process};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const TEMPLATE: &str = include_str!("envoy.yaml");

/// Upstream's Envoy, pinned as for the sidecars.
#[derive(Debug)]
pub(super) struct Envoy {
    cache: PathBuf,
    /// How long fetching it may take.
    patience: Duration,
    found: Option<Installed>,
}

impl Envoy {
    pub(super) fn new() -> Self {
        Self { cache: install::cache(), patience: install::INSTALL_MAX, found: None }
    }
}

impl Instance for Envoy {
    fn mode(&self) -> &'static str {
        "envoy-waypoint"
    }

    fn title(&self) -> &'static str {
        "the same agents, a real Envoy as the waypoint in that pod: the same service, routes and policy"
    }

    fn deviations(&self) -> Vec<String> {
        [
            "without Istio's own filters (peer metadata, istio.stats): real waypoints cost more",
            "the one endpoint, routes and policy from a file: no xDS, and no metadata of workloads",
            "TLS 1.3 with P-256 certificates from files (Istio: SDS), AES-128 as Envoy chooses",
            "access log and tracing off, few statistics: Istio's default profile; 2 worker threads",
            "chains for one service and two ports; none for workloads, other services or double tunnels",
            "no agent on the waypoint's node: nothing there is captured",
        ]
        .map(str::to_owned)
        .into()
    }

    fn class(&self) -> &'static str {
        "istio-waypoint"
    }

    fn tools(&self) -> Vec<(String, String)> {
        self.found.iter().map(|e| ("envoy".to_owned(), e.version.clone())).collect()
    }

    fn cannot_know(&self) -> Option<&'static str> {
        Some("Envoy knows services by xDS, which does not run here")
    }

    fn prepare(&mut self, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.found = Some(install::install(&self.cache, self.patience, say)?);
        Ok(())
    }

    fn hurry(&mut self, limit: Duration) {
        self.patience = self.patience.min(limit);
    }

    fn start(&self, stage: &Stage, pod: &Pod) -> anyhow::Result<Process> {
        let envoy = self.found.as_ref().context("Envoy was not fetched: prepare the mode first")?;
        let ca = certificates::authority(&stage.lab)?;
        let dir = stage.scratch.join(NAME);
        let material = certificates::issue(&ca, pod, &dir)?;
        let config = dir.join("envoy.yaml");
        let text = text(&stage.client.identity(), &stage.server, &material);
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        Ok(pod.command(&envoy.binary.to_string_lossy()).args(START).arg(&config).spawn()?)
    }

    fn is_ready(&self, pod: &Pod) -> bool {
        ready_now(pod)
    }
}

/// The bootstrap file's text: `client` is the only identity that the policy lets in.
fn text(client: &str, server: &Pod, material: &Material) -> String {
    fill(client, (&server.v4.to_string(), &server.identity()), material)
}

fn fill(client: &str, (address, identity): (&str, &str), material: &Material) -> String {
    let mut text = TEMPLATE.to_owned();
    for (key, value) in [
        ("@NAME@", NAME),
        ("@SERVICE@", SERVICE),
        ("@VIP@", &VIP.to_string()),
        ("@HTTP_PORT@", &HTTP_PORT.to_string()),
        ("@BULK_PORT@", &BULK_PORT.to_string()),
        ("@SERVER@", address),
        ("@CANARY@", CANARY.0),
        ("@CANARY_VALUE@", CANARY.1),
        ("@ADMIN@", ADMIN),
        (
            "@CLIENT@",
            &format!(
                "{{filter_state: {{key: io.istio.peer_principal, string_match: {{exact: {client:?}}}}}}}"
            ),
        ),
        (
            "@TLS_SERVER@",
            &tls(
                "DownstreamTlsContext, require_client_certificate: true",
                material,
                "prefix: \"spiffe://cluster.local/\"",
            ),
        ),
        ("@TLS_CLIENT@", &tls("UpstreamTlsContext", material, &format!("exact: {identity:?}"))),
    ] {
        text = text.replace(key, value);
    }
    text
}

/// One side of a tunnel's TLS, which takes peers whose SPIFFE identity is as `peer` says.
fn tls(context: &str, Material { cert, key, root }: &Material, peer: &str) -> String {
    format!(
        "{{\"@type\": {TLS}.{context}, common_tls_context: {{alpn_protocols: [h2], \
         tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
         tls_certificates: [{{certificate_chain: {{filename: {cert:?}}}, private_key: {{filename: {key:?}}}}}], \
         validation_context: {{trusted_ca: {{filename: {root:?}}}, \
         match_typed_subject_alt_names: [{{san_type: URI, matcher: {{{peer}}}}}]}}}}}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_be_filled_in_and_both_sides_of_the_tunnel_prove_who_they_are() {
        let path = |name: &str| format!("/tmp/{name}.pem").into();
        let material = Material { cert: path("cert"), key: path("key"), root: path("root") };
        let server = "spiffe://cluster.local/ns/default/sa/server";
        let text = fill("spiffe://cluster.local/ns/default/sa/client", ("10.244.2.10", server), &material);
        let left: Vec<_> = text.lines().filter(|l| l.contains('@') && !l.contains("\"@type\"")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(text.matches("require_client_certificate: true").count(), 1);
        assert_eq!(text.matches(&format!("exact: {server:?}")).count(), 1);
        assert_eq!(text.matches("exact: \"spiffe://cluster.local/ns/default/sa/client\"").count(), 3);
    }
}
