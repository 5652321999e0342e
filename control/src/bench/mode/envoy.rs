//! A pair of real Envoy sidecars with mutual TLS, as Istio sets them up.

use std::time::Duration;

use super::{Mode, Proxy, Stage, World};

/// The variants: HTTP/2, HTTP/1.1 and TCP between the sidecars, the first by default.
pub fn modes() -> Vec<Box<dyn Mode>> {
    [Variant::Http2, Variant::Http1, Variant::Tcp]
        .map(|variant| Box::new(Sidecars { variant }) as Box<dyn Mode>)
        .into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Http2,
    Http1,
    Tcp,
}

#[derive(Debug)]
struct Sidecars {
    variant: Variant,
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
            Variant::Http2 => "HTTP/2",
            Variant::Http1 => "HTTP/1.1",
            Variant::Tcp => "TCP",
        };
        format!("Envoy sidecars, {between} with mutual TLS between them")
    }

    fn prepare(&mut self, _say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        anyhow::bail!("not built yet")
    }

    fn start(&mut self, _stage: &Stage, _world: &World) -> anyhow::Result<Duration> {
        anyhow::bail!("not built yet")
    }

    fn proxies(&self) -> Vec<Proxy> {
        Vec::new()
    }

    fn stop(&mut self, _stage: &Stage) -> anyhow::Result<()> {
        Ok(())
    }
}
